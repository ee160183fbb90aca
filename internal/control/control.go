// Package control is what every controller shares: the queue of keys, the memory
// of own writes, events, leadership, and the declaration that a controller is.
//
// A controller declares what it watches and what it writes; its RBAC rules follow
// from that (Controller.Rules). Run starts controllers on the informers they
// share, each under its own identity.
//
// # Reconciliation
//
// Reconcile gets a key, reads the informers, and brings the world nearer to what
// the object wants. It is never called for one key twice at a time. It sees its
// own writes: the runner holds a key back until the informers show what was
// recorded with Wrote and Removed. An error brings the key back after an
// exponential back-off of 5 ms to 1000 s. Objects from informers are shared and
// must not be changed.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"golang.org/x/sync/errgroup"

	"skiff/internal/client"
)

// Key names an object. Namespace is empty for cluster-scoped kinds.
type Key struct{ Namespace, Name string }

func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// KeyOf returns the key of an object.
func KeyOf(o client.Object) Key { return Key{o.GetNamespace(), o.GetName()} }

// Deps is what controllers are made from.
type Deps struct {
	// Informers are shared with the rest of the process; whoever made them runs
	// them.
	Informers *client.Informers
	// ClientFor returns the client of a controller's identity, the service
	// account kube-system/<name>.
	ClientFor func(name string) *client.Client
	Log       *slog.Logger
	// Now is the clock of decisions; time.Now where nil.
	Now func() time.Time
	// Leadership says when the controllers may run; at once where nil.
	Leadership Leadership
}

// Clock returns Now, or the system's clock.
func (d Deps) Clock() func() time.Time {
	if d.Now != nil {
		return d.Now
	}
	return time.Now
}

// Result of a reconciliation that succeeded.
type Result struct {
	// After, where not zero, asks for another reconciliation in that time.
	After time.Duration
	// Rest is how long the key is left alone, whatever changes, where that is longer
	// than keys rest anyway: for an object of which a reconciliation is costly.
	Rest time.Duration
}

// Controller is the declaration of one controller.
type Controller struct {
	// Name is upstream's: the service account in kube-system, the component of
	// its events, the suffix of its role system:controller:<name>.
	Name string
	// Workers is the number of keys that are worked on at a time; 5 where zero.
	Workers int
	// Writes are the rules for what it writes and for live reads; watching and
	// events need no mention.
	Writes []rbacv1.PolicyRule
	// Roleless says that no cluster role is made of what it declares: it acts
	// under an identity that has its rights, or has roles in namespaces.
	Roleless bool
	// Reconcile handles a key. It may be nil where Loop does all.
	Reconcile func(ctx context.Context, k Key) (Result, error)
	// SyncWait, where set, bounds how long informers are waited for at the start:
	// for a controller that can do its part of the work while some kind is not
	// served. Otherwise it starts when all have synced.
	SyncWait time.Duration
	// Loop, where set, runs beside the workers, after the informers have synced,
	// until ctx ends.
	Loop func(ctx context.Context) error

	Client  *client.Client
	Events  *Recorder
	Queue   *Queue[Key]
	Pending *Pending
	Log     *slog.Logger

	// Metrics are what it tells besides the figures of its queues.
	Metrics []prometheus.Collector
	// QueueName is what metrics call Queue; Name where empty.
	QueueName string

	informers *client.Informers
	watches   []watch
	more      []namedQueue
}

type watch struct {
	gvr    schema.GroupVersionResource
	start  func()
	synced <-chan struct{}
}

// New returns a controller of that name with its client, queue and recorder; the
// caller declares the rest.
func New(name string, d Deps) *Controller {
	c := d.ClientFor(name)
	log := d.Log
	if log == nil {
		log = slog.Default()
	}
	log = log.With("controller", name)
	return &Controller{
		Name: name, Client: c, Queue: NewQueue[Key](), Pending: newPending(), Log: log, informers: d.Informers,
		Events: NewRecorder(RecorderDeps{Client: c, Component: name, Now: d.Clock(), Log: log}),
	}
}

// ReportAs sets the component of c's events where it is not its name.
func (c *Controller) ReportAs(component string) {
	d := c.Events.d
	d.Component = component
	c.Events = NewRecorder(d)
}

// Watch declares that c watches T. onChange is called for every change, and for
// every object there is at the start; it must not block. It may be nil. The
// informer is returned for reading.
func Watch[T client.Object](c *Controller, onChange func(client.Change[T])) *client.Informer[T] {
	inf := client.InformerFor[T](c.informers)
	c.watches = append(c.watches, watch{
		gvr: client.KindOf[T]().GVR, synced: inf.Synced(),
		start: func() {
			if onChange != nil {
				inf.OnChange(onChange)
			}
		},
	})
	return inf
}

// Enqueue is a handler for Watch: the changed object's own key.
func Enqueue[T client.Object](c *Controller) func(client.Change[T]) {
	return func(ch client.Change[T]) { c.Queue.Add(KeyOf(ch.Object())) }
}

// Rules are the RBAC rules that the declaration amounts to, for the cluster role
// system:controller:<name>.
func (c *Controller) Rules() []rbacv1.PolicyRule {
	byGroup := map[string][]string{}
	var groups []string
	for _, w := range c.watches {
		if _, ok := byGroup[w.gvr.Group]; !ok {
			groups = append(groups, w.gvr.Group)
		}
		if !slices.Contains(byGroup[w.gvr.Group], w.gvr.Resource) {
			byGroup[w.gvr.Group] = append(byGroup[w.gvr.Group], w.gvr.Resource)
		}
	}
	slices.Sort(groups)
	var rules []rbacv1.PolicyRule
	for _, g := range groups {
		slices.Sort(byGroup[g])
		rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{g}, Resources: byGroup[g], Verbs: []string{"get", "list", "watch"}})
	}
	rules = append(rules, c.Writes...)
	return append(rules, rbacv1.PolicyRule{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch", "update"}})
}

// Rule is a short way to write a policy rule of one API group.
func Rule(group string, resources []string, verbs ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: resources, Verbs: verbs}
}

// Run runs controllers, while leading, until ctx ends. It returns nil when ctx
// ended and an error when leadership was lost or a controller's loop failed;
// after an error the controllers must be made anew.
func Run(ctx context.Context, d Deps, cs []*Controller) error {
	lead := d.Leadership
	if lead == nil {
		lead = Alone{}
	}
	return lead.Lead(ctx, func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, c := range cs {
			g.Go(func() error {
				if err := c.run(ctx); err != nil {
					return fmt.Errorf("controller %s: %w", c.Name, err)
				}
				return nil
			})
		}
		return g.Wait()
	})
}

func (c *Controller) run(ctx context.Context) error {
	var late <-chan time.Time
	if c.SyncWait > 0 {
		t := time.NewTimer(c.SyncWait)
		defer t.Stop()
		late = t.C
	}
	for _, w := range c.watches {
		select {
		case <-w.synced:
		case <-late:
			c.Log.Warn("starting without an informer that has not synced", "resource", w.gvr.Resource)
			closed := make(chan time.Time)
			close(closed)
			late = closed
		case <-ctx.Done():
			return nil
		}
	}
	for _, w := range c.watches {
		w.start()
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.Events.Run(ctx) })
	if c.Loop != nil {
		g.Go(func() error { return c.Loop(ctx) })
	}
	if c.Reconcile != nil {
		n := c.Workers
		if n <= 0 {
			n = 5
		}
		g.Go(func() error { c.Queue.Work(ctx, n, c.work); return nil })
	}
	return g.Wait()
}

// unsettledRetry is how soon a key is looked at again whose writes the informers
// do not show yet; their arrival usually brings the key back sooner.
const unsettledRetry = 20 * time.Millisecond

// maxRest bounds how long a key rests after a reconciliation. A key rests twice as
// long as its reconciliation took, so that an object under thousands of changes is
// reconciled for a batch of them at a time.
const maxRest = 20 * time.Millisecond

func (c *Controller) work(ctx context.Context, k Key) (time.Duration, error) {
	if !c.Pending.Settled(k) {
		c.Queue.AddAfter(k, unsettledRetry)
		return 0, nil
	}
	start := time.Now()
	r, err := c.reconcile(ctx, k)
	if err != nil {
		if ctx.Err() != nil {
			return 0, nil
		}
		level := slog.LevelError
		if apierrors.IsConflict(err) {
			level = slog.LevelDebug
		}
		c.Log.Log(ctx, level, "reconcile failed", "key", k.String(), "retries", c.Queue.Retries(k), "err", err)
		return 0, err
	}
	if r.After > 0 {
		c.Queue.AddAfter(k, r.After)
	}
	return max(min(2*time.Since(start), maxRest), r.Rest), nil
}

var errPanic = errors.New("reconcile panicked")

// reconcile keeps one bad object from taking the process down.
func (c *Controller) reconcile(ctx context.Context, k Key) (r Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errPanic, p)
			c.Log.Error("reconcile panicked", "key", k.String(), "panic", fmt.Sprint(p), "stack", stack())
		}
	}()
	return c.Reconcile(ctx, k)
}
