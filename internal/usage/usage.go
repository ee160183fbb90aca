// Package usage knows what nodes and their pods use of processors and memory: the
// source of metrics.k8s.io. It asks every ready node's kubelet for /metrics/resource,
// which holds cumulative counters, and makes rates of two readings.
//
// # When kubelets are asked
//
// Only while somebody wants to know. The first question wakes the source: every node
// is read twice, a second apart, and the question waits for that. From then on nodes
// are read every 15 seconds, and questions are answered from memory. When nobody has
// asked for five minutes the source forgets everything and sleeps: a cluster without
// autoscalers and without somebody who looks pays nothing. An autoscaler asks every 15
// seconds and so keeps its source awake (docs/adr/012-usage-on-demand.md).
//
// # What is told
//
// A figure is the average over the window between two readings, with the time of the
// later one, as metrics-server tells it. There is none where there is no honest one: a
// counter that went back, a container that started since, a window that the clock of
// this process contradicts (a node whose clock was set), a value that is not a number.
// A container of between 10 and 15 seconds of age is measured from its start. A pod is
// told when all of its containers are.
//
// A node that cannot be reached keeps its last figures for a minute; one that is not
// ready or gone has none.
package usage

import (
	"context"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"

	"skiff/internal/api/resource"
)

const (
	// resolution is the time between two readings of a node.
	resolution = 15 * time.Second
	// firstWindow is the time between the first two readings of a node.
	firstWindow = time.Second
	// freshAge is the least age at which a container is measured from its start.
	freshAge = 10 * time.Second
	// interest is how long nodes are read after the last question.
	interest = 5 * time.Minute
	// keep is how long the figures of a node that does not answer are told.
	keep = time.Minute
	// patience is how long a question waits for the first figures.
	patience = 5 * time.Second
	// readTimeout bounds one reading; readsAtOnce those that are under way.
	readTimeout = 10 * time.Second
	readsAtOnce = 64
	// clockSlack is by how much a window may differ from the time that passed here.
	// Runtimes measure now and then, some no more than every 15 seconds.
	clockSlack = 30 * time.Second
)

// Kubelets reaches the server of a node's kubelet.
type Kubelets interface {
	Kubelet(ctx context.Context, node *corev1.Node) (*url.URL, http.RoundTripper, error)
}

// Deps is what a Source is made from.
type Deps struct {
	// Nodes lists the cluster's nodes.
	Nodes func(ctx context.Context) ([]*corev1.Node, error)
	// Kubelets reaches them.
	Kubelets Kubelets
	Now      func() time.Time
	Log      *slog.Logger
}

// Source implements resource.UsageSource. It answers while Run runs.
type Source struct {
	d     Deps
	wake  chan struct{}
	slots chan struct{}

	mu    sync.Mutex
	asked time.Time
	nodes map[string]*node
	// round says that every ready node was read, or failed, since the source woke.
	round bool
	// told is closed when something is known that was not.
	told chan struct{}
}

// node is what is known of one node.
type node struct {
	last, prev *reading
	failures   int
}

// New returns a Source that sleeps.
func New(d Deps) *Source {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.Default()
	}
	return &Source{d: d, wake: make(chan struct{}, 1), slots: make(chan struct{}, readsAtOnce), nodes: map[string]*node{}, told: make(chan struct{})}
}

// Run reads nodes while somebody asks, until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		s.d.Log.Debug("reading what nodes use")
		tick := time.NewTicker(resolution)
		for s.wanted() {
			s.readAll(ctx)
			select {
			case <-ctx.Done():
				tick.Stop()
				return nil
			case <-tick.C:
			}
		}
		tick.Stop()
		s.forget()
	}
}

// wanted tells that somebody asked not long ago.
func (s *Source) wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := s.d.Now().Sub(s.asked)
	return since >= 0 && since < interest
}

// forget ends a time of interest; a question that came meanwhile begins another.
func (s *Source) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes, s.round = map[string]*node{}, false
}

// ask keeps the source awake and waits until enough is known, at most patience.
func (s *Source) ask(ctx context.Context, enough func() bool) {
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		s.mu.Lock()
		s.asked = s.d.Now()
		done, told := s.round || enough(), s.told
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case s.wake <- struct{}{}:
		default:
		}
		select {
		case <-told:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// settled tells that a node's figures are there, or are not to be had; under s.mu.
func (s *Source) settled(name string) bool {
	n := s.nodes[name]
	return n != nil && (n.prev != nil || n.failures > 0)
}

// NodeUsage implements resource.UsageSource.
func (s *Source) NodeUsage(ctx context.Context, nodes []*corev1.Node) ([]resource.Usage, error) {
	s.ask(ctx, func() bool {
		return !slices.ContainsFunc(nodes, func(n *corev1.Node) bool { return ready(n) && !s.settled(n.Name) })
	})
	out := make([]resource.Usage, len(nodes))
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.d.Now()
	for i, n := range nodes {
		k := s.nodes[n.Name]
		if !k.known(now) {
			continue
		}
		if f, ok := rate(k.last.node, k.prev.node, k.passed()); ok {
			out[i] = resource.Usage{At: f.at, Window: f.window, Used: f.used}
		}
	}
	return out, ctx.Err()
}

// PodUsage implements resource.UsageSource.
func (s *Source) PodUsage(ctx context.Context, pods []*corev1.Pod) ([]resource.PodUsage, error) {
	names := map[string]bool{}
	for _, p := range pods {
		if p.Spec.NodeName != "" {
			names[p.Spec.NodeName] = true
		}
	}
	s.ask(ctx, func() bool {
		for n := range names {
			if !s.settled(n) {
				return false
			}
		}
		return true
	})
	out := make([]resource.PodUsage, len(pods))
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.d.Now()
	for i, p := range pods {
		if k := s.nodes[p.Spec.NodeName]; k.known(now) {
			out[i] = podUsage(k, podKey{p.Namespace, p.Name})
		}
	}
	return out, ctx.Err()
}

// known tells that there are two readings, of which the later one is not too old.
func (n *node) known(now time.Time) bool {
	return n != nil && n.last != nil && n.prev != nil && now.Sub(n.last.read) <= keep
}

// passed is the time between the readings on this process's clock.
func (n *node) passed() time.Duration { return n.last.read.Sub(n.prev.read) }

// podUsage is what a pod's containers use; nothing where one of them is not known.
func podUsage(n *node, k podKey) resource.PodUsage {
	var out resource.PodUsage
	last, prev := n.last.pods[k], n.prev.pods[k]
	for _, c := range slices.Sorted(maps.Keys(last)) {
		to := last[c]
		from, seen := prev[c]
		passed := n.passed()
		switch age := to.at.Sub(to.start); {
		case !to.start.IsZero() && age >= freshAge && age < resolution:
			from, passed = sample{start: to.start, at: to.start}, age
		case !seen || !to.start.IsZero() && !to.start.Before(from.at):
			return resource.PodUsage{}
		}
		f, ok := rate(to, from, passed)
		if !ok {
			return resource.PodUsage{}
		}
		// The containers are of about one time: the earliest is told.
		if out.At.IsZero() || f.at.Before(out.At) {
			out.At, out.Window = f.at, f.window
		}
		out.Containers = append(out.Containers, resource.ContainerUsage{Name: c, Used: f.used})
	}
	return out
}

// figure is what was used in a window that ended at a time.
type figure struct {
	at     time.Time
	window time.Duration
	used   corev1.ResourceList
}

// rate makes a figure of two samples that were read so far apart here.
func rate(to, from sample, passed time.Duration) (figure, bool) {
	window := to.at.Sub(from.at)
	if window <= 0 || to.start.Before(from.start) || to.cpu < from.cpu || (window-passed).Abs() > clockSlack {
		return figure{}, false
	}
	cores := float64(to.cpu-from.cpu) / window.Seconds()
	if cores >= 1<<62 {
		return figure{}, false
	}
	return figure{at: to.at, window: window, used: corev1.ResourceList{
		corev1.ResourceCPU:    *apiresource.NewScaledQuantity(int64(cores), apiresource.Nano),
		corev1.ResourceMemory: *apiresource.NewQuantity(to.memory, apiresource.BinarySI),
	}}, true
}

// ready tells that a node's kubelet is worth asking.
func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
