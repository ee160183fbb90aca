package certificates

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a Set over an API in memory, with a pod that has a certificate.
type world struct {
	t     *testing.T
	api   *clienttest.API
	set   *Set
	told  []string
	turns int // calls of Changed
	pod   *corev1.Pod
	proj  *corev1.PodCertificateProjection
	held  func() (key, chain []byte)
	stop  context.CancelFunc
}

func run(t *testing.T, f func(*world)) {
	t.Helper()
	runOver(t, func(w *world) client.Transport { return w.api }, f)
}

// runOver is run with a way to the API of the test's own.
func runOver(t *testing.T, by func(*world) client.Transport, f func(*world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, api: clienttest.New(
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "node-uid"}},
			&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "robot", UID: "robot-uid"}},
		)}
		w.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "pod-uid"}, Spec: corev1.PodSpec{ServiceAccountName: "robot"}}
		hour := int32(3600)
		w.proj = &corev1.PodCertificateProjection{SignerName: "example.com/s", KeyType: "ED25519", MaxExpirationSeconds: &hour, UserAnnotations: map[string]string{"example.com/a": "b"}}
		w.set = New(Deps{
			Client: client.New(by(w), "test"), NodeName: "n", Jitter: func() time.Duration { return 0 },
			Warn:    func(_ *corev1.Pod, reason, message string) { w.told = append(w.told, reason+": "+message) },
			Changed: func(types.UID) { w.turns++ },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.set.Run(ctx) }()
		w.stop = func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		f(w)
		w.stop()
	})
}

func (w *world) get() (string, time.Time, error) {
	key, chain, next, err := w.set.Get(w.t.Context(), w.pod, w.proj, "v", 0, w.held)
	synctest.Wait()
	return string(key) + string(chain), next, err
}

// open lists the requests that have no answer.
func (w *world) open() []*certificatesv1.PodCertificateRequest {
	w.t.Helper()
	all, _, err := client.For[*certificatesv1.PodCertificateRequest](w.api.Client()).List(w.t.Context(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []*certificatesv1.PodCertificateRequest
	for _, r := range all {
		if len(r.Status.Conditions) == 0 {
			out = append(out, r)
		}
	}
	return out
}

// answer is a signer's answer to the one open request; the certificate lasts an hour
// and is to be renewed after half of it.
func (w *world) answer(condition string) {
	w.t.Helper()
	w.respond(condition)
	synctest.Wait()
}

func (w *world) respond(condition string) {
	w.t.Helper()
	open := w.open()
	if len(open) != 1 {
		w.t.Fatalf("%d requests wait for an answer", len(open))
	}
	r := open[0].DeepCopy()
	r.Status.Conditions = []metav1.Condition{{Type: condition, Status: metav1.ConditionTrue, Reason: "Why", Message: "so"}}
	if condition == issued {
		now := time.Now()
		r.Status.CertificateChain = string(certify(w.t, r.Spec.StubPKCS10Request, now, now.Add(time.Hour)))
		r.Status.BeginRefreshAt = &metav1.Time{Time: now.Add(time.Hour / 2)}
		r.Status.NotAfter = &metav1.Time{Time: now.Add(time.Hour)}
	}
	if _, err := client.For[*certificatesv1.PodCertificateRequest](w.api.Client()).UpdateStatus(w.t.Context(), r); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) states() string {
	out := []string{}
	for s, n := range w.set.States() {
		out = append(out, fmt.Sprint(s.Signer, " ", s.State, " ", n))
	}
	return strings.Join(out, ", ")
}

func TestIssue(t *testing.T) {
	run(t, func(w *world) {
		if _, _, err := w.get(); err == nil || err.Error() != "credential bundle is not issued yet" {
			t.Fatal(err)
		}
		r := w.open()[0]
		want := certificatesv1.PodCertificateRequestSpec{
			SignerName: "example.com/s", PodName: "p", PodUID: "pod-uid", ServiceAccountName: "robot", ServiceAccountUID: "robot-uid",
			NodeName: "n", NodeUID: "node-uid", MaxExpirationSeconds: w.proj.MaxExpirationSeconds, StubPKCS10Request: r.Spec.StubPKCS10Request,
			UnverifiedUserAnnotations: w.proj.UserAnnotations,
		}
		if !reflect.DeepEqual(r.Spec, want) || !strings.HasPrefix(r.Name, "req-") || len(r.OwnerReferences) != 1 || r.OwnerReferences[0] != (metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "pod-uid"}) {
			t.Errorf("asked with %+v", r)
		}
		if got := w.states(); got != "example.com/s not_yet_issued 1" {
			t.Error(got)
		}
		w.answer(issued)
		if w.turns != 1 {
			t.Errorf("told %d times of the answer", w.turns)
		}
		first, next, err := w.get()
		if err != nil || adopt([]byte(first), []byte(first), view{}) == nil {
			t.Fatal(first, err)
		}
		if d := time.Until(next); d <= 25*time.Minute || d > 30*time.Minute {
			t.Errorf("again in %v", d)
		}
		if got := w.states(); got != "example.com/s fresh 1" {
			t.Error(got)
		}

		// It is renewed in time, and the pod has the old one until then.
		time.Sleep(time.Until(next))
		if again, _, err := w.get(); again != first || err != nil {
			t.Fatal(again, err)
		}
		w.answer(issued)
		second, _, err := w.get()
		if err != nil || second == first || adopt([]byte(second), []byte(second), view{}) == nil {
			t.Fatal(second, err)
		}
		if w.turns != 2 || len(w.told) != 0 {
			t.Error(w.turns, w.told)
		}
		w.set.Forget(w.pod.UID)
		if got := w.states(); got != "" || len(w.set.waiting) != 0 {
			t.Errorf("left behind: %s %v", got, w.set.waiting)
		}
	})
}

// TestQuickSigner: a signer that answers at once keeps no pod waiting.
func TestQuickSigner(t *testing.T) {
	run(t, func(w *world) {
		go func() {
			time.Sleep(patience / 2)
			w.respond(issued)
		}()
		if got, _, err := w.get(); err != nil || got == "" {
			t.Errorf("%q %v", got, err)
		}
		if w.turns != 0 {
			t.Errorf("told %d times of what was waited for", w.turns)
		}
	})
}

// slow is an API whose answer to a create comes after all that it brings about.
type slow struct {
	*clienttest.API
	created func()
}

func (s slow) Create(ctx context.Context, ref client.Ref, obj client.Object, o metav1.CreateOptions) (client.Object, error) {
	made, err := s.API.Create(ctx, ref, obj, o)
	s.created()
	return made, err
}

// TestEarlyAnswer: a signer may be quicker than the answer to the request's creation.
func TestEarlyAnswer(t *testing.T) {
	over := func(w *world) client.Transport {
		return slow{w.api, func() {
			synctest.Wait()
			w.answer(issued)
		}}
	}
	runOver(t, over, func(w *world) {
		before := time.Now()
		if got, _, err := w.get(); err != nil || got == "" || time.Since(before) != 0 {
			t.Errorf("%q %v after %v", got, err, time.Since(before))
		}
	})
}

func TestRefusal(t *testing.T) {
	run(t, func(w *world) {
		_, _, _ = w.get()
		w.answer(denied)
		if _, _, err := w.get(); err == nil || err.Error() != `PodCertificateRequest was permanently denied: reason="Why" message="so"` {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		_, _, _ = w.get()
		if open := w.open(); len(open) != 0 || w.turns != 1 {
			t.Errorf("asked again after a refusal: %v, told %d times", open, w.turns)
		}
		if len(w.told) != 1 || !strings.HasSuffix(w.told[0], ` was denied, reason="Why", message="so"`) || !strings.HasPrefix(w.told[0], "Denied: PodCertificateRequest ns/req-") {
			t.Error(w.told)
		}
	})
}

func TestDeletedRequest(t *testing.T) {
	run(t, func(w *world) {
		_, _, _ = w.get()
		first := w.open()[0]
		if err := client.For[*certificatesv1.PodCertificateRequest](w.api.Client()).In("ns").Delete(t.Context(), first.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		_, _, _ = w.get()
		if len(w.open()) != 0 {
			t.Error("asked twice within a minute")
		}
		time.Sleep(pause)
		_, _, _ = w.get()
		w.answer(issued)
		if _, _, err := w.get(); err != nil {
			t.Error(err)
		}
	})
}

// TestRefusedByAPI: the pod's owner is told why there is no request.
func TestRefusedByAPI(t *testing.T) {
	run(t, func(w *world) {
		no := errors.New("no")
		w.api.Intercept = func(verb string, ref client.Ref, _ client.Object) error {
			if verb == "create" && ref.GVR.Resource == "podcertificaterequests" {
				return no
			}
			return nil
		}
		if _, _, err := w.get(); err == nil || err.Error() != "credential bundle is not issued yet: while creating initial PodCertificateRequest: while creating on API: no" {
			t.Error(err)
		}
		no = nil
		time.Sleep(firstRetry)
		_, _, _ = w.get()
		w.answer(issued)
		if _, _, err := w.get(); err != nil {
			t.Error(err)
		}
	})
}

// TestRestart: what the volume holds is used on, and renewed soon.
func TestRestart(t *testing.T) {
	run(t, func(w *world) {
		key, stub, err := newKey("ED25519")
		if err != nil {
			t.Fatal(err)
		}
		chain := certify(t, stub, time.Now(), time.Now().Add(time.Hour))
		w.held = func() ([]byte, []byte) { return key, chain }
		got, _, err := w.get()
		if err != nil || got != string(key)+string(chain) {
			t.Fatal(got, err)
		}
		w.answer(issued)
		if now, _, err := w.get(); err != nil || now == got {
			t.Errorf("not renewed: %v", err)
		}
	})
}

// TestFollows: requests are watched while some pod has certificates, and not else.
func TestFollows(t *testing.T) {
	run(t, func(w *world) {
		watches := 0
		w.api.Intercept = func(verb string, _ client.Ref, _ client.Object) error {
			if verb == "watch" {
				watches++
			}
			return nil
		}
		synctest.Wait()
		if watches != 0 {
			t.Errorf("%d watches of a node without certificates", watches)
		}
		follows := func() bool {
			synctest.Wait()
			w.set.mu.Lock()
			defer w.set.mu.Unlock()
			return w.set.requests != nil
		}
		for round := 1; round <= 2; round++ {
			_, _, _ = w.get()
			if !follows() || watches != round {
				t.Errorf("round %d: %d watches", round, watches)
			}
			w.set.Forget(w.pod.UID)
			if follows() {
				t.Error("requests are followed for nobody")
			}
		}
	})
}
