package certificates

import (
	"fmt"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var start = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

const (
	issued = certificatesv1.PodCertificateRequestConditionTypeIssued
	denied = certificatesv1.PodCertificateRequestConditionTypeDenied
	failed = certificatesv1.PodCertificateRequestConditionTypeFailed
)

// answer is a request with a condition; the certificate, where it has one, is to be
// renewed at refresh and ends an hour later.
func answer(name, condition string, refresh time.Time) *certificatesv1.PodCertificateRequest {
	r := &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid of " + name)}}
	if condition != "" {
		r.Status.Conditions = []metav1.Condition{{Type: condition, Status: metav1.ConditionTrue, Reason: "Why", Message: "so"}}
	}
	if condition == issued {
		r.Status.CertificateChain = "words\n-----BEGIN CERTIFICATE-----\nHead: er\n\nYWJj\n-----END CERTIFICATE-----\nmore words\n"
		r.Status.BeginRefreshAt = &metav1.Time{Time: refresh}
		r.Status.NotAfter = &metav1.Time{Time: refresh.Add(time.Hour)}
	}
	return r
}

// TestSteps tells stories of one credential. Each line is a moment, in minutes, what
// is seen, and what comes of it: the state, whether to ask, what the pod is told and
// when to look again.
func TestSteps(t *testing.T) {
	at := func(minutes float64) time.Time { return start.Add(time.Duration(minutes * float64(time.Minute))) }
	type moment struct {
		at      float64
		seen    *certificatesv1.PodCertificateRequest
		deleted bool
		// then: "asked NAME" or "refused", what became of the request to ask.
		then string
		want string
	}
	for name, story := range map[string][]moment{
		"issued and renewed": {
			{at: 0, then: "asked a", want: "not_yet_issued ask"},
			{at: 0.1, want: "not_yet_issued"},
			{at: 0.2, seen: answer("a", "", at(0)), want: "not_yet_issued"},
			{at: 0.3, seen: answer("a", issued, at(60)), want: "fresh, again at 60m0s"},
			{at: 59, want: "fresh, again at 60m0s"},
			{at: 60, then: "asked b", want: "fresh ask, again at 70m1s"},
			{at: 61, seen: answer("b", "", at(60)), want: "fresh, again at 70m1s"},
			{at: 62, seen: answer("b", issued, at(120)), want: "fresh, again at 120m0s"},
		},
		"denied": {
			{at: 0, then: "asked a", want: "not_yet_issued ask"},
			{at: 1, seen: answer("a", denied, at(0)), want: `denied {Denied PodCertificateRequest ns/a was denied, reason="Why", message="so"}`},
			{at: 100, want: "denied"},
		},
		"failed when it was to be renewed": {
			{at: 0, then: "asked a", want: "not_yet_issued ask"},
			{at: 1, seen: answer("a", issued, at(60)), want: "fresh, again at 60m0s"},
			{at: 60, then: "asked b", want: "fresh ask, again at 70m1s"},
			{at: 61, seen: answer("b", failed, at(0)), want: `failed {Failed PodCertificateRequest ns/b failed, reason="Why", message="so"}`},
			{at: 200, want: "failed"},
		},
		"no answer": {
			{at: 0, then: "asked a", want: "not_yet_issued ask"},
			{at: 1, seen: answer("a", issued, at(60)), want: "fresh, again at 60m0s"},
			{at: 60, then: "asked b", want: "fresh ask, again at 70m1s"},
			{at: 71, seen: answer("b", "", at(0)), want: "overdue_for_refresh {CertificateOverdueForRefresh PodCertificate refresh overdue}, again at 120m1s"},
			{at: 72, seen: answer("b", "", at(0)), want: "overdue_for_refresh, again at 120m1s"},
			{at: 121, seen: answer("b", "", at(0)), want: "expired {CertificateExpired PodCertificate expired}, again at 122m0s"},
			{at: 122, seen: answer("b", "", at(0)), want: "expired, again at 123m0s"},
			{at: 123, seen: answer("b", issued, at(180)), want: "fresh, again at 180m0s"},
			{at: 191, then: "asked c", want: "overdue_for_refresh {CertificateOverdueForRefresh PodCertificate refresh overdue} ask, again at 201m1s"},
		},
		"deleted": {
			{at: 0, then: "asked a", want: "not_yet_issued ask"},
			{at: 0.5, deleted: true, want: "not_yet_issued"}, // not more than one in a minute
			{at: 1, then: "asked b", want: "not_yet_issued ask"},
			{at: 10, want: "not_yet_issued"},
			{at: 11.1, then: "asked c", want: "not_yet_issued ask"}, // nobody ever saw b
			{at: 12, seen: answer("c", issued, at(60)), want: "fresh, again at 60m0s"},
			{at: 60, then: "asked d", want: "fresh ask, again at 70m1s"},
			{at: 60.5, deleted: true, want: "fresh, again at 61m0s"},
			{at: 61, then: "asked e", want: "fresh ask, again at 70m1s"},
		},
		"another of that name": {
			{at: 0, then: "asked a", want: "not_yet_issued ask"},
			{at: 1, seen: func() *certificatesv1.PodCertificateRequest {
				r := answer("a", issued, at(60))
				r.UID = "other"
				return r
			}(), want: "not_yet_issued ask"},
		},
		"the API refuses": {
			{at: 0, then: "refused", want: "not_yet_issued ask"},
			{at: 0.005, want: "not_yet_issued"},
			{at: 0.01, then: "refused", want: "not_yet_issued ask"},
			{at: 0.02, want: "not_yet_issued"},
			{at: 0.03, then: "asked a", want: "not_yet_issued ask"},
			{at: 1, seen: answer("a", issued, at(60)), want: "fresh, again at 60m0s"},
			{at: 60, then: "refused", want: "fresh ask, again at 60m0.5s"},
		},
		"times in the past": { // of a signer whose clock is not the node's
			{at: 0, then: "asked a", want: "not_yet_issued ask"},
			{at: 0.1, seen: answer("a", issued, at(-30)), want: "overdue_for_refresh {CertificateOverdueForRefresh PodCertificate refresh overdue}, again at 1m0s"},
			{at: 1, then: "asked b", want: "overdue_for_refresh ask, again at 11m1s"},
		},
		"an answer without times": {
			{at: 0, then: "asked a", want: "not_yet_issued ask"},
			{at: 1, seen: func() *certificatesv1.PodCertificateRequest {
				r := answer("a", issued, at(60))
				r.Status.NotAfter = nil
				return r
			}(), want: "not_yet_issued"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c credential
			for _, m := range story {
				v := view{now: at(m.at), request: m.seen, deleted: m.deleted}
				next, events, ask := c.step(v)
				c = next
				got := c.state(v.now)
				for _, e := range events {
					got += fmt.Sprint(" ", e)
				}
				if ask {
					got += " ask"
				}
				if name, ok := strings.CutPrefix(m.then, "asked "); ok {
					c = c.asked(v, request{name: name, uid: types.UID("uid of " + name), key: []byte("key of " + name)})
				} else if m.then != "" {
					c = c.failed(v)
				}
				if again := c.next(v.now); !again.IsZero() {
					d := again.Sub(start)
					got += fmt.Sprintf(", again at %dm%gs", int(d.Minutes()), (d % time.Minute).Seconds())
					if !again.After(v.now) {
						t.Errorf("at %g: again at %v, which is not later", m.at, d)
					}
				}
				if got != m.want {
					t.Errorf("at %g:\n got %s\nwant %s", m.at, got, m.want)
				}
			}
		})
	}
}

func TestContent(t *testing.T) {
	v := view{now: start, jitter: time.Minute}
	c := credential{}.asked(v, request{name: "a", uid: "uid of a", key: []byte("KEY")})
	if _, err := c.content(); err == nil || err.Error() != "credential bundle is not issued yet" {
		t.Error(err)
	}
	v.request = answer("a", issued, start.Add(time.Hour))
	c, _, _ = c.step(v)
	b, err := c.content()
	if err != nil || string(b.key) != "KEY" || string(b.chain) != "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n" {
		t.Errorf("%+v %v", b, err)
	}
	if want := start.Add(time.Hour + time.Minute); !b.refreshAt.Equal(want) {
		t.Errorf("renewed at %v, want %v", b.refreshAt, want)
	}
	// What is there stays while the next one is waited for, and goes with a no.
	c = c.asked(v, request{name: "b", uid: "uid of b"})
	if again, err := c.content(); again != b {
		t.Error(again, err)
	}
	for condition, want := range map[string]string{
		denied: `PodCertificateRequest was permanently denied: reason="Why" message="so"`,
		failed: `PodCertificateRequest was permanently failed: reason="Why" message="so"`,
	} {
		v.request = answer("b", condition, start)
		next, _, _ := c.step(v)
		if _, err := next.content(); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
