// Package certificates gets the certificates of a node's pods. For each
// podCertificate source of a projected volume it makes a key, asks the signer that
// the source names by a PodCertificateRequest, and asks again when the certificate
// is to be renewed (KEP-4317). The key never leaves the node.
//
// What is asked, and when, is decided by package-internal values (credential) that
// know neither clock nor API. Nothing runs for a node whose pods have no such
// sources: the node's requests are watched from the first source on until the last
// is forgotten.
//
// # Recovery
//
// Keys and certificates are in the volumes alone. A kubelet that was started anew
// takes over what they hold, and has it renewed within some minutes, since the time
// that the signer had given is forgotten. (Upstream's asks for all of them at once,
// and its pods' volumes are not mounted until the answers are there.)
package certificates

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

// Deps is what a Set needs. Client and NodeName are required.
type Deps struct {
	Client   *client.Client
	NodeName string
	Now      func() time.Time
	Log      *slog.Logger
	// Warn records a warning event about a pod. Neither it nor Changed may block.
	Warn func(pod *corev1.Pod, reason, message string)
	// Changed is called when Get has something else to give for a pod.
	Changed func(pod types.UID)
	// Jitter is what is added to the times at which certificates are renewed; up to
	// 5 minutes, at random, by default.
	Jitter func() time.Duration
}

// Set has the certificates of a node's pods. It is safe for concurrent use.
type Set struct {
	d    Deps
	wake chan struct{}

	mu      sync.Mutex
	records map[place]*record
	// waiting are the requests without an answer.
	waiting map[types.NamespacedName]place
	// requests are those of the node; nil while they are not followed.
	requests *client.Informer[*certificatesv1.PodCertificateRequest]
}

// place is where a certificate goes.
type place struct {
	pod    types.UID
	volume string
	source int
}

type record struct {
	credential
	pod    *corev1.Pod
	signer string
	// busy: a request is being made.
	busy bool
	// answered is closed when the request that waits has its answer; attended says
	// that somebody waits for that, and need not be told by Deps.Changed.
	answered chan struct{}
	attended bool
}

// New returns the certificates of a node.
func New(d Deps) *Set {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Warn == nil {
		d.Warn = func(*corev1.Pod, string, string) {}
	}
	if d.Changed == nil {
		d.Changed = func(types.UID) {}
	}
	if d.Jitter == nil {
		d.Jitter = func() time.Duration { return rand.N(maxJitter) }
	}
	return &Set{d: d, wake: make(chan struct{}, 1), records: map[place]*record{}, waiting: map[types.NamespacedName]place{}}
}

// patience is how long Get waits for the answer to a first request: a signer that is
// quick keeps no pod from starting.
const patience = time.Second

// Get returns the key and the chain of certificates, in PEM, of a source of one of
// the pod's volumes, and when to call it again although Changed was not called. An
// error says that there are none, maybe not yet; what makes that change is told by
// Changed, or found by calling Get again after a while. held, which may be nil,
// returns what the volume holds already.
func (s *Set) Get(ctx context.Context, pod *corev1.Pod, p *corev1.PodCertificateProjection, volume string, source int, held func() (key, chain []byte)) (key, chain []byte, next time.Time, err error) {
	at := place{pod.UID, volume, source}
	var failure error
	if s.look(at, pod, p.SignerName, held) {
		answered, err := s.ask(ctx, at, pod, p)
		if err != nil {
			failure = err
			if ctx.Err() != nil {
				return nil, nil, time.Time{}, ctx.Err()
			}
			s.d.Log.Warn("ask for a pod's certificate", "pod", pod.Name, "ns", pod.Namespace, "err", err)
		} else if answered != nil {
			t := time.NewTimer(patience)
			defer t.Stop()
			select {
			case <-answered:
			case <-t.C:
			case <-ctx.Done():
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[at]
	if r == nil {
		return nil, nil, time.Time{}, fmt.Errorf("pod %s/%s is gone", pod.Namespace, pod.Name)
	}
	r.attended = false
	b, err := r.content()
	switch {
	case errors.Is(err, errNotIssued) && failure != nil:
		return nil, nil, time.Time{}, fmt.Errorf("%w: %w", err, failure)
	case err != nil:
		return nil, nil, time.Time{}, err
	}
	return b.key, b.chain, r.next(s.d.Now()), nil
}

// look brings a credential up to date and tells whether to ask for a certificate;
// then the caller must call ask.
func (s *Set) look(at place, pod *corev1.Pod, signer string, held func() (key, chain []byte)) (ask bool) {
	v := view{now: s.d.Now(), jitter: s.d.Jitter()}
	var taken *bundle
	if held != nil && !s.knows(at) {
		if key, chain := held(); len(key) > 0 {
			taken = adopt(key, chain, v)
		}
	}
	s.mu.Lock()
	r := s.records[at]
	if r == nil {
		r = &record{signer: signer, answered: make(chan struct{}), credential: credential{bundle: taken}}
		s.records[at] = r
		s.poke()
	}
	r.pod = pod
	if r.request != nil && s.requests != nil {
		v.request, _ = s.requests.Get(pod.Namespace, r.request.name)
	}
	ask, done := s.step(at, r, v)
	ask = ask && !r.busy
	r.busy = r.busy || ask
	s.mu.Unlock()
	done()
	return ask
}

// step lets a record take its next step. s.mu is held; done is to be called after
// it is not anymore.
func (s *Set) step(at place, r *record, v view) (ask bool, done func()) {
	before := r.request
	next, events, ask := r.credential.step(v)
	r.credential = next
	pod := r.pod
	answered := before != nil && r.request == nil
	tell := answered && !r.attended
	if answered {
		delete(s.waiting, types.NamespacedName{Namespace: pod.Namespace, Name: before.name})
		close(r.answered)
		r.answered = make(chan struct{})
	}
	return ask, func() {
		for _, e := range events {
			s.d.Warn(pod, e.reason, e.message)
		}
		if tell {
			s.d.Changed(at.pod)
		}
	}
}

// ask makes a request. The channel, nil where the pod has a certificate already, is
// closed when the request has its answer.
func (s *Set) ask(ctx context.Context, at place, pod *corev1.Pod, p *corev1.PodCertificateProjection) (<-chan struct{}, error) {
	made, key, err := s.create(ctx, pod, p)
	s.mu.Lock()
	r := s.records[at]
	if r == nil { // forgotten meanwhile
		s.mu.Unlock()
		return nil, err
	}
	r.busy = false
	v := view{now: s.d.Now(), jitter: s.d.Jitter()}
	if err != nil {
		what := "initial"
		if r.bundle != nil {
			what = "refresh"
		}
		r.credential = r.failed(v)
		s.mu.Unlock()
		return nil, fmt.Errorf("while creating %s PodCertificateRequest: %w", what, err)
	}
	r.credential = r.asked(v, request{name: made.Name, uid: made.UID, key: key})
	s.waiting[types.NamespacedName{Namespace: pod.Namespace, Name: made.Name}] = at
	var answered chan struct{}
	if r.bundle == nil {
		answered, r.attended = r.answered, true
	}
	// The answer may have been seen before it was known to be one.
	done := func() {}
	if s.requests != nil {
		if v.request, _ = s.requests.Get(pod.Namespace, made.Name); v.request != nil {
			_, done = s.step(at, r, v)
		}
	}
	s.mu.Unlock()
	done()
	return answered, nil
}

// create makes a key and asks for a certificate for it.
func (s *Set) create(ctx context.Context, pod *corev1.Pod, p *corev1.PodCertificateProjection) (*certificatesv1.PodCertificateRequest, []byte, error) {
	account, err := client.For[*corev1.ServiceAccount](s.d.Client).In(pod.Namespace).Get(ctx, pod.Spec.ServiceAccountName)
	if err != nil {
		return nil, nil, fmt.Errorf("while fetching service account: %w", err)
	}
	node, err := client.For[*corev1.Node](s.d.Client).Get(ctx, s.d.NodeName)
	if err != nil {
		return nil, nil, fmt.Errorf("while getting node object: %w", err)
	}
	key, stub, err := newKey(p.KeyType)
	if err != nil {
		return nil, nil, err
	}
	made, err := client.For[*certificatesv1.PodCertificateRequest](s.d.Client).In(pod.Namespace).Create(ctx, &certificatesv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, GenerateName: "req-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
		},
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: p.SignerName,
			PodName:    pod.Name, PodUID: pod.UID,
			ServiceAccountName: account.Name, ServiceAccountUID: account.UID,
			NodeName: types.NodeName(s.d.NodeName), NodeUID: node.UID,
			MaxExpirationSeconds:      p.MaxExpirationSeconds,
			StubPKCS10Request:         stub,
			UnverifiedUserAnnotations: p.UserAnnotations,
		},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("while creating on API: %w", err)
	}
	return made, key, nil
}

// Forget forgets the certificates of a pod.
func (s *Set) Forget(pod types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, r := range s.records {
		if at.pod != pod {
			continue
		}
		if r.request != nil {
			delete(s.waiting, types.NamespacedName{Namespace: r.pod.Namespace, Name: r.request.name})
		}
		delete(s.records, at)
	}
	if len(s.records) == 0 {
		s.poke()
	}
}

// State is a signer and the state of a certificate that it was asked for, both as
// upstream's metric kubelet_podcertificate_states has them.
type State struct{ Signer, State string }

// Compare orders by signer, then by state.
func (s State) Compare(o State) int {
	return cmp.Or(cmp.Compare(s.Signer, o.Signer), cmp.Compare(s.State, o.State))
}

// States counts the certificates of the node.
func (s *Set) States() map[State]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.d.Now()
	out := map[State]int{}
	for _, r := range s.records {
		out[State{r.signer, r.state(now)}]++
	}
	return out
}

// poke wakes Run.
func (s *Set) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Set) knows(at place) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[at] != nil
}

func (s *Set) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records) == 0
}

// Run follows what becomes of requests until ctx ends.
func (s *Set) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		if !s.empty() {
			s.follow(ctx)
		}
	}
}

// follow watches the node's requests until nothing has a certificate anymore.
func (s *Set) follow(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	informers := client.NewInformers(s.d.Client, s.d.Log)
	requests := client.InformerOf[*certificatesv1.PodCertificateRequest](informers, "", metav1.ListOptions{FieldSelector: "spec.nodeName=" + s.d.NodeName})
	s.follows(requests)
	requests.OnChange(s.onRequest)
	var wg sync.WaitGroup
	wg.Go(func() { _ = informers.Run(ctx) }) // which ends with ctx alone
	for ctx.Err() == nil && !s.empty() {
		select {
		case <-ctx.Done():
		case <-s.wake:
		}
	}
	cancel()
	wg.Wait()
	s.follows(nil)
	// One that came meanwhile begins anew.
	if !s.empty() {
		s.poke()
	}
}

func (s *Set) follows(requests *client.Informer[*certificatesv1.PodCertificateRequest]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = requests
}

// onRequest hands a change of a request to the credential that waits for it.
func (s *Set) onRequest(c client.Change[*certificatesv1.PodCertificateRequest]) {
	o := c.Object()
	s.mu.Lock()
	at, ok := s.waiting[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}]
	if !ok {
		s.mu.Unlock()
		return
	}
	v := view{now: s.d.Now(), jitter: s.d.Jitter(), request: c.New, deleted: c.Deleted()}
	_, done := s.step(at, s.records[at], v)
	s.mu.Unlock()
	done()
}
