// Package scheduler places pending pods on nodes.
//
// One goroutine owns everything that is known: the snapshot, the queue and the
// cycle. It takes what informers and the binder tell it, tries all pods that are
// to be tried as one batch (whatever is queued at that moment: there is no wait
// for more), hands the placements to the binder and the failures to the
// reporter, and sleeps until something happens.
//
// The decisions are a pure function of snapshot, pods and seed (Cycle); what
// plugins may rely on is said in package framework.
//
// # What is promised
//
// A pod is bound at most once. What a pod was placed by is counted from that
// moment on, so no node is over-committed by pods that this scheduler places.
// Every pending pod that is not gated and was tried has a PodScheduled condition
// that says why it is pending. A pod that no node could take is tried again as
// soon as something happens that the plugins which refused it care about, and
// after five minutes in any case. Pods of other schedulers are left alone, and
// counted once they are bound.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	configv1 "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/client"
	"skiff/internal/scheduler/config"
	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// EventRecorder writes events.k8s.io/v1 events. Event must not block: it is
// called between binding one batch and the next.
type EventRecorder interface {
	// Event records an event about a pod; related may be nil.
	Event(regarding, related *corev1.Pod, eventType, reason, action, note string)
}

// Deps is what a Scheduler needs.
type Deps struct {
	Client    *client.Client
	Informers *client.Informers
	// Events may be nil: then none are written.
	Events EventRecorder
	Log    *slog.Logger
	// Now is the clock, time.Now by default.
	Now func() time.Time
	// Seed makes the choice among equal nodes repeatable.
	Seed uint64
	// Config, defaulted and validated, says what profiles there are, how long to wait
	// between tries, and who extends the scheduler; config.Default by default.
	Config *configv1.KubeSchedulerConfiguration
	// Plugins, where not nil, are those of the only profile.
	Plugins []plugins.Enabled
	// Metrics, where not nil, gets the scheduler's metrics.
	Metrics prometheus.Registerer
}

// maxBatch bounds the pods of one cycle: bindings of the first are written while
// the next batch is decided.
const maxBatch = 512

// Scheduler places pods. See the package's doc.
type Scheduler struct {
	d        Deps
	pods     *client.Informer[*corev1.Pod]
	nodes    *client.Informer[*corev1.Node]
	spaces   *client.Informer[*corev1.Namespace]
	groups   *groups
	metrics  *metrics
	binder   *mailbox[binding]
	reporter *reporter
	evictor  *mailbox[eviction]

	in *mailbox[input]

	profiles  map[string]*profile // by schedulerName
	first     *profile
	live      []framework.Plugin // those that watch or run, each once
	extenders extenders

	// Owned by Run's goroutine.
	snapshot *framework.Snapshot
	classes  *framework.Classes
	queue    *queue
	unsure   []binding // to be asked about at askAt
	askAt    time.Time
}

// input is one thing that the loop is told.
type input struct {
	pod   *client.Change[*corev1.Pod]
	node  *client.Change[*corev1.Node]
	space *client.Change[*corev1.Namespace]
	bound *bound
	kept  *eviction // an eviction that failed
	ask   *explainRequest
	// event is what a plugin was told of.
	event *framework.Event
}

// New returns a scheduler; it works while Run runs.
func New(d Deps) (*Scheduler, error) {
	if d.Client == nil || d.Informers == nil {
		return nil, errors.New("scheduler: Client and Informers are required")
	}
	if d.Log == nil {
		d.Log = slog.Default()
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Events == nil {
		d.Events = noEvents{}
	}
	if d.Config == nil {
		d.Config = config.Default()
	}
	s := &Scheduler{
		d: d, pods: client.InformerFor[*corev1.Pod](d.Informers), nodes: client.InformerFor[*corev1.Node](d.Informers),
		spaces:   client.InformerFor[*corev1.Namespace](d.Informers),
		snapshot: framework.NewSnapshot(), classes: framework.NewClasses(), queue: newQueue(),
		binder: newMailbox[binding](), evictor: newMailbox[eviction](), in: newMailbox[input](),
	}
	if err := s.configure(); err != nil {
		return nil, err
	}
	s.groups = newGroups(d.Informers, s.classes)
	s.reporter = newReporter(d)
	var err error
	if s.metrics, err = newMetrics(d.Metrics); err != nil {
		return nil, err
	}
	s.queue.incoming = func(to place, event string) { s.metrics.incoming.WithLabelValues(placeNames[to], event).Inc() }
	return s, nil
}

type noEvents struct{}

func (noEvents) Event(_, _ *corev1.Pod, _, _, _, _ string) {}

// Run schedules until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	s.pods.OnChange(func(c client.Change[*corev1.Pod]) { s.in.put(input{pod: &c}) })
	s.nodes.OnChange(func(c client.Change[*corev1.Node]) { s.in.put(input{node: &c}) })
	s.spaces.OnChange(func(c client.Change[*corev1.Namespace]) { s.in.put(input{space: &c}) })
	ready := append(s.groups.watch(), s.nodes.Synced(), s.spaces.Synced(), s.pods.Synced())
	for _, p := range s.live {
		if w, ok := p.(framework.Watcher); ok {
			ready = append(ready, w.Watch(func(e framework.Event) { s.in.put(input{event: &e}) })...)
		}
	}
	for _, c := range ready {
		select {
		case <-c:
		case <-ctx.Done():
			return nil
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.loop(ctx) })
	g.Go(func() error { return s.bindAll(ctx) })
	g.Go(func() error { return s.reporter.run(ctx) })
	g.Go(func() error { return s.evictAll(ctx) })
	for _, p := range s.live {
		if r, ok := p.(framework.Runner); ok {
			g.Go(func() error { return r.Run(ctx) })
		}
	}
	return g.Wait()
}

func (s *Scheduler) loop(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		for _, in := range s.in.take() {
			s.apply(in)
		}
		now := s.d.Now()
		s.queue.flush(now)
		if len(s.unsure) > 0 && !s.askAt.After(now) {
			s.binder.put(s.unsure...)
			s.unsure = nil
		}
		if batch := s.queue.take(maxBatch); len(batch) > 0 {
			s.try(batch)
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		s.metrics.queue(s.queue, s.snapshot.NumNodes(), s.snapshot.NumPods(), s.snapshot.NumAssumed())
		wait := time.Hour
		if t := s.queue.next(); !t.IsZero() {
			wait = max(t.Sub(now), 0)
		}
		if len(s.unsure) > 0 {
			wait = min(wait, max(s.askAt.Sub(now), 0))
		}
		timer.Reset(wait)
		select {
		case <-s.in.wake:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// try decides on a batch.
func (s *Scheduler) try(batch []*queued) {
	pods := make([]*framework.Pod, 0, len(batch))
	tried := make([]*queued, 0, len(batch))
	for _, q := range batch {
		if q.pod.DeletionTimestamp != nil {
			s.d.Events.Event(q.pod.Pod, nil, corev1.EventTypeWarning, "FailedScheduling", "Scheduling",
				fmt.Sprintf("skip schedule deleting pod: %s/%s", q.pod.Namespace, q.pod.Name))
			s.queue.remove(q.pod.UID)
			continue
		}
		q.pod.Group = s.groups.of(q.pod)
		pods = append(pods, q.pod)
		tried = append(tried, q)
	}
	began := s.d.Now()
	for _, q := range tried {
		q.tried = began
	}
	var bindings []binding
	waited := make(map[int]string)
	for i, p := range pods {
		if n := s.snapshot.NominatedNode(p.UID); n != "" {
			waited[i] = n
		}
	}
	for i, d := range s.decide(pods) {
		if n := waited[i]; n != "" && d.Failure == nil && d.Node != n {
			s.queue.happened(framework.Event{Kind: framework.PodDeleted, Pod: d.Pod}, s.d.Now())
		}
		if d.Err != nil {
			s.error(tried[i], d.Err)
			continue
		}
		if d.Failure != nil {
			s.fail(tried[i], d.Failure, waited[i])
			continue
		}
		s.reporter.drop(d.Pod.UID)
		bindings = append(bindings, binding{pod: d.Pod, node: d.Node})
	}
	if len(pods) > 0 {
		// Of a batch each took the same.
		each := s.d.Now().Sub(began).Seconds() / float64(len(pods))
		for range pods {
			s.metrics.algorithm.Observe(each)
		}
	}
	s.binder.put(bindings...)
}

// decide has every pod decided on by its profile, in order.
func (s *Scheduler) decide(pods []*framework.Pod) []Decision {
	var out []Decision
	for len(pods) > 0 {
		by, n := s.profileOf(pods[0]), 1
		for n < len(pods) && s.profileOf(pods[n]) == by {
			n++
		}
		out = append(out, by.cycle.Schedule(s.snapshot, pods[:n])...)
		pods = pods[n:]
	}
	return out
}

// error returns a pod to the queue for which nothing could be decided or done.
func (s *Scheduler) error(q *queued, err error) {
	s.metrics.attempt("error", q.pod.Spec.SchedulerName, s.took(q))
	s.queue.errored(q, s.d.Now())
	s.reporter.put(report{pod: q.pod.Pod, reason: corev1.PodReasonSchedulerError, message: err.Error()})
}

// took is how long the last attempt for a pod took until now.
func (s *Scheduler) took(q *queued) float64 { return s.d.Now().Sub(q.tried).Seconds() }

// fail returns a pod to the queue and says why; was is the node that it was
// nominated to before.
func (s *Scheduler) fail(q *queued, f *Failure, was string) {
	s.metrics.attempt("unschedulable", q.pod.Spec.SchedulerName, s.took(q))
	s.metrics.preemptions.Inc()
	if len(f.Victims) > 0 {
		s.metrics.victims.Observe(float64(len(f.Victims)))
		if f.Violations > 0 {
			s.metrics.violations.WithLabelValues("pod").Add(float64(f.Violations))
		}
	}
	q.waits = f.Nominated
	s.queue.failed(q, f.Plugins, s.d.Now())
	s.nominate(q.pod, f)
	said := q.early && q.message == f.Message && was == f.Nominated
	q.message = f.Message
	if said {
		// Tried ahead of its time with the same outcome: nothing new to say.
		return
	}
	r := report{pod: q.pod.Pod, reason: corev1.PodReasonUnschedulable, message: f.Message}
	if f.Nominated == "" {
		r.hint = f.Hint
	}
	if was != f.Nominated {
		r.nominated = &f.Nominated
	}
	s.reporter.put(r)
}

func (s *Scheduler) apply(in input) {
	switch {
	case in.pod != nil:
		s.applyPod(*in.pod)
	case in.node != nil:
		s.applyNode(*in.node)
	case in.space != nil:
		if in.space.Deleted() {
			s.snapshot.RemoveNamespace(in.space.Old.Name)
		} else {
			s.snapshot.SetNamespace(in.space.New.Name, in.space.New.Labels)
		}
	case in.event != nil:
		if in.event.Kind&framework.DeviceClasses != 0 {
			for _, p := range s.profiles {
				p.cycle.Forget()
			}
		}
		s.queue.happened(*in.event, s.d.Now())
	case in.bound != nil:
		s.applyBound(*in.bound)
	case in.kept != nil:
		s.applyKept(*in.kept)
	case in.ask != nil:
		p := s.classes.Held(in.ask.pod)
		p.Group = s.groups.of(p)
		in.ask.answer <- s.profileOf(p).cycle.Explain(s.snapshot, p)
	}
}

func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (s *Scheduler) applyPod(c client.Change[*corev1.Pod]) {
	if c.Old != nil && (c.New == nil || c.New.UID != c.Old.UID) {
		s.forget(c.Old.UID)
	}
	p := c.New
	if p == nil {
		return
	}
	if finished(p) {
		s.forget(p.UID)
		return
	}
	if p.Spec.NodeName != "" {
		if q := s.queue.pods[p.UID]; q != nil && q.place == inFlight && s.snapshot.Assumed(p.UID) {
			s.bound(q)
		} else {
			s.queue.remove(p.UID)
		}
		old, _, _ := s.snapshot.Placed(p.UID)
		pod := s.classes.Pod(p)
		if news := s.snapshot.SetPod(pod, p.Spec.NodeName); news != 0 {
			s.queue.happened(framework.Event{Kind: news, Pod: pod, OldPod: old}, s.d.Now())
		}
		return
	}
	if s.profiles[p.Spec.SchedulerName] == nil {
		return
	}
	if s.snapshot.Assumed(p.UID) && s.queue.pods[p.UID] == nil {
		// Bound; this is a state from before, seen late.
		return
	}
	pod := s.classes.Pod(p)
	if !s.snapshot.Assumed(p.UID) {
		if name := s.snapshot.NominatedNode(p.UID); name != "" {
			s.snapshot.Nominate(pod, name)
		} else if s.queue.pods[p.UID] == nil && p.Status.NominatedNodeName != "" {
			// Nominated before this scheduler started.
			s.snapshot.Nominate(pod, p.Status.NominatedNodeName)
		}
	}
	if st := s.queue.set(pod, s.d.Now()); st != nil && len(p.Spec.SchedulingGates) > 0 && !hasCondition(p, corev1.PodReasonSchedulingGated) {
		s.reporter.put(report{pod: p, reason: corev1.PodReasonSchedulingGated, message: gatedMessage, quiet: true})
	}
}

// gatedMessage is what the condition of a gated pod says, as upstream's API
// server writes it.
const gatedMessage = "Scheduling is blocked due to non-empty scheduling gates"

func hasCondition(p *corev1.Pod, reason string) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == reason {
			return true
		}
	}
	return false
}

// forget drops a pod that is gone or finished; what it held is free.
func (s *Scheduler) forget(uid types.UID) {
	if q := s.queue.pods[uid]; q != nil {
		s.queue.remove(uid)
		s.unwait(q.pod)
	}
	old, node, ok := s.snapshot.Placed(uid)
	if !ok {
		return
	}
	if s.snapshot.Assumed(uid) {
		s.profileOf(old).cycle.Undo(s.snapshot, old, node)
	} else {
		s.snapshot.RemovePod(uid)
	}
	s.queue.happened(framework.Event{Kind: framework.PodDeleted, Pod: old}, s.d.Now())
}

func (s *Scheduler) applyNode(c client.Change[*corev1.Node]) {
	if c.New == nil {
		s.snapshot.RemoveNode(c.Old.Name)
		s.queue.happened(framework.Event{Kind: framework.NodeRemoved, OldNode: c.Old}, s.d.Now())
		return
	}
	n := s.snapshot.Node(c.New.Name)
	if n == nil {
		s.snapshot.SetNode(c.New)
		s.queue.happened(framework.Event{Kind: framework.NodeAdded, Node: c.New}, s.d.Now())
		return
	}
	old := n.Obj
	kind := nodeChange(old, c.New)
	if kind == 0 {
		// A heartbeat: nothing that any plugin looks at.
		s.snapshot.RefreshNode(c.New)
		return
	}
	s.snapshot.SetNode(c.New)
	if kind &^= framework.NodeOther; kind != 0 {
		s.queue.happened(framework.Event{Kind: kind, Node: c.New, OldNode: old}, s.d.Now())
	}
}

// applyBound takes the outcome of a binding.
func (s *Scheduler) applyBound(b bound) {
	q := s.queue.pods[b.pod.UID]
	if q == nil || q.place != inFlight {
		// Gone, finished, or seen on its node already.
		return
	}
	if b.err == nil {
		s.bound(q)
		return
	}
	if b.unsure {
		// The place stays taken until it is known.
		s.unsure = append(s.unsure, binding{pod: b.pod, node: b.node, doubt: b.err})
		s.askAt = s.d.Now().Add(firstBackoff)
		return
	}
	s.profileOf(b.pod).cycle.Undo(s.snapshot, b.pod, b.node)
	s.queue.happened(framework.Event{Kind: framework.PodDeleted, Pod: b.pod}, s.d.Now())
	if b.gone || s.podGone(b.pod) {
		s.queue.remove(b.pod.UID)
		return
	}
	s.error(q, b.err)
}

// bound notes that a pod is on the node that was chosen for it.
func (s *Scheduler) bound(q *queued) {
	s.metrics.attempt("scheduled", q.pod.Spec.SchedulerName, s.took(q))
	s.metrics.bound(q, s.d.Now().Sub(q.first).Seconds())
	s.queue.remove(q.pod.UID)
}

// podGone tells whether the pod that a binding was for does not exist any more.
func (s *Scheduler) podGone(p *framework.Pod) bool {
	now, ok := s.pods.Get(p.Namespace, p.Name)
	return !ok || now.UID != p.UID
}

// unwait ends a pod's nomination: the place that was kept for it is free.
func (s *Scheduler) unwait(p *framework.Pod) {
	if s.snapshot.NominatedNode(p.UID) == "" {
		return
	}
	s.snapshot.Nominate(p, "")
	s.queue.happened(framework.Event{Kind: framework.PodDeleted, Pod: p}, s.d.Now())
}

type explainRequest struct {
	pod    *corev1.Pod
	answer chan []Refusal
}

// Explain says for every node why it cannot take a pod as things are now. It
// answers while Run runs.
func (s *Scheduler) Explain(ctx context.Context, p *corev1.Pod) ([]Refusal, error) {
	r := explainRequest{pod: p, answer: make(chan []Refusal, 1)}
	s.in.put(input{ask: &r})
	select {
	case a := <-r.answer:
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// mailbox is an unbounded queue between goroutines: put never blocks.
type mailbox[T any] struct {
	mu    sync.Mutex
	items []T
	wake  chan struct{}
}

func newMailbox[T any]() *mailbox[T] { return &mailbox[T]{wake: make(chan struct{}, 1)} }

func (m *mailbox[T]) put(items ...T) {
	if len(items) == 0 {
		return
	}
	m.mu.Lock()
	m.items = append(m.items, items...)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// take returns all that is in the box.
func (m *mailbox[T]) take() []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	items := m.items
	m.items = nil
	return items
}
