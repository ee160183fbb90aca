package certificates

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// abandonAfter is how long a request is waited for that nobody has seen since
	// it was made: it must have been deleted. Up to maxJitter is added.
	abandonAfter = 10 * time.Minute
	// overdueAfter is how long past the time for a new certificate the pod is told
	// that there is none.
	overdueAfter = 10 * time.Minute
	// maxJitter keeps the certificates of many pods from being renewed at once.
	maxJitter = 5 * time.Minute
	// pause is the least time between two requests for one credential.
	pause = time.Minute
	// A request that the API refuses is made again after firstRetry, then after
	// twice as long, up to lastRetry.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 2 * time.Minute
)

// credential is where one podCertificate source of a pod stands. Its zero value is
// one for which nobody was asked. It is a value: step and the others return the
// next one.
//
//	nothing --> request --> bundle --> bundle and request --> bundle ...
//	               |                          |
//	               +-------> refusal <--------+
type credential struct {
	// bundle is what the pod has; nil before the first certificate.
	bundle *bundle
	// request waits for its answer; nil for none.
	request *request
	// refusal is the signer's no. It is final.
	refusal *refusal
	// retry is the first moment for another request.
	retry    time.Time
	failures int // requests in a row that the API refused
	// late and expired: the pod was told so of this bundle.
	late, expired bool
}

// bundle is a key and the certificates for it, in PEM.
type bundle struct {
	key, chain          []byte
	refreshAt, notAfter time.Time
}

type request struct {
	name      string
	uid       types.UID
	key       []byte // PEM
	abandonAt time.Time
}

// refusal is a request that was denied or failed, as its condition tells.
type refusal struct {
	condition, reason, message string
}

// view is what a credential is judged by: a moment, and its request as the API has
// it then.
type view struct {
	now time.Time
	// request is nil while it was not seen, or after it was deleted.
	request *certificatesv1.PodCertificateRequest
	deleted bool
	jitter  time.Duration
}

// event is a warning about the pod.
type event struct{ reason, message string }

// step takes note of the request's answer and of the time. ask says that a request
// is to be made.
func (c credential) step(v view) (next credential, events []event, ask bool) {
	if c.request != nil {
		var e *event
		if c, e = c.answer(v); e != nil {
			events = append(events, *e)
		}
	}
	if b := c.bundle; b != nil && c.refusal == nil {
		if !c.late && v.now.After(b.refreshAt.Add(overdueAfter)) {
			c.late = true
			events = append(events, event{"CertificateOverdueForRefresh", "PodCertificate refresh overdue"})
		}
		if !c.expired && v.now.After(b.notAfter) {
			c.expired = true
			events = append(events, event{"CertificateExpired", "PodCertificate expired"})
		}
	}
	ask = c.refusal == nil && c.request == nil && !v.now.Before(c.retry) && (c.bundle == nil || !v.now.Before(c.bundle.refreshAt))
	return c, events, ask
}

// answer takes what became of the request.
func (c credential) answer(v view) (credential, *event) {
	r := v.request
	if v.deleted || r == nil && v.now.After(c.request.abandonAt) || r != nil && r.UID != c.request.uid {
		c.request = nil
		return c, nil
	}
	if r == nil {
		return c, nil
	}
	for _, cond := range r.Status.Conditions {
		said := ""
		switch cond.Type {
		case certificatesv1.PodCertificateRequestConditionTypeDenied:
			said = "was denied"
		case certificatesv1.PodCertificateRequestConditionTypeFailed:
			said = "failed"
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			s := &r.Status
			if s.BeginRefreshAt == nil || s.NotAfter == nil {
				continue // the API lets no such thing through
			}
			return credential{retry: c.retry, bundle: &bundle{
				key: c.request.key, chain: cleanChain(s.CertificateChain),
				refreshAt: s.BeginRefreshAt.Add(v.jitter), notAfter: s.NotAfter.Time,
			}}, nil
		default:
			continue
		}
		c.request, c.refusal = nil, &refusal{cond.Type, cond.Reason, cond.Message}
		// Upstream means to say this; it passes the text as an argument to a format.
		return c, &event{cond.Type, fmt.Sprintf("PodCertificateRequest %s/%s %s, reason=%q, message=%q", r.Namespace, r.Name, said, cond.Reason, cond.Message)}
	}
	return c, nil
}

// asked is c with a request that waits for its answer.
func (c credential) asked(v view, r request) credential {
	r.abandonAt = v.now.Add(abandonAfter + v.jitter)
	c.request, c.failures, c.retry = &r, 0, v.now.Add(pause)
	return c
}

// failed is c after a request that could not be made.
func (c credential) failed(v view) credential {
	d := firstRetry
	for range c.failures {
		d = min(2*d, lastRetry)
	}
	c.failures++
	c.retry = v.now.Add(d)
	return c
}

var errNotIssued = errors.New("credential bundle is not issued yet")

// content is what the pod gets.
func (c credential) content() (*bundle, error) {
	switch {
	case c.refusal != nil && c.refusal.condition == certificatesv1.PodCertificateRequestConditionTypeDenied:
		return nil, fmt.Errorf("PodCertificateRequest was permanently denied: reason=%q message=%q", c.refusal.reason, c.refusal.message)
	case c.refusal != nil:
		return nil, fmt.Errorf("PodCertificateRequest was permanently failed: reason=%q message=%q", c.refusal.reason, c.refusal.message)
	case c.bundle == nil:
		return nil, errNotIssued
	}
	return c.bundle, nil
}

// next is when step has something to do again although nothing changed: always
// later than now.
func (c credential) next(now time.Time) time.Time {
	b := c.bundle
	if b == nil || c.refusal != nil {
		return time.Time{}
	}
	var next time.Time
	at := func(t time.Time) {
		if t.After(now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if c.request != nil {
		at(c.request.abandonAt.Add(time.Second))
	} else if b.refreshAt.After(c.retry) {
		at(b.refreshAt)
	} else {
		at(c.retry)
	}
	if !c.late {
		at(b.refreshAt.Add(overdueAfter + time.Second))
	}
	if !c.expired {
		at(b.notAfter.Add(time.Second))
	}
	if next.IsZero() {
		next = now.Add(pause)
	}
	return next
}

// state is the credential's state as upstream's metric names it.
func (c credential) state(now time.Time) string {
	switch {
	case c.refusal != nil && c.refusal.condition == certificatesv1.PodCertificateRequestConditionTypeDenied:
		return "denied"
	case c.refusal != nil:
		return "failed"
	case c.bundle == nil:
		return "not_yet_issued"
	case now.After(c.bundle.notAfter):
		return "expired"
	case now.After(c.bundle.refreshAt.Add(overdueAfter)):
		return "overdue_for_refresh"
	}
	return "fresh"
}

// cleanChain drops headers and what stands between the certificates.
func cleanChain(chain string) []byte {
	var out bytes.Buffer
	for b, rest := pem.Decode([]byte(chain)); b != nil; b, rest = pem.Decode(rest) {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Bytes}))
	}
	return out.Bytes()
}
