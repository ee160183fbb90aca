package testcluster

import (
	"context"
	"errors"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/client"
)

// Rates say how often what goes wrong, in thousandths of requests, or of events
// of a watch.
type Rates struct {
	Refuse int // a write fails and is not done: a conflict, an error of the server, a broken connection
	Lose   int // a write is done and its answer lost
	Delay  int // a request takes up to Slowest
	Break  int // a watch ends; half of them must start anew
	Repeat int // an event comes twice
	Stall  int // a watch delivers nothing for up to Slowest
	// Slowest bounds what Delay and Stall add.
	Slowest time.Duration
}

// Faults are the faults of a cluster's network. Whether something goes wrong
// depends on the seed and on how many requests of that kind its sender has made,
// not on the order in which different senders come.
type Faults struct {
	seed  uint64
	late  sync.WaitGroup
	mu    sync.Mutex
	rates Rates
	dice  map[string]uint64
	// Done counts the faults that were done, by kind.
	done map[string]int
}

// NewFaults returns faults that do nothing until they are Set.
func NewFaults(seed uint64) *Faults {
	return &Faults{seed: seed, dice: map[string]uint64{}, done: map[string]int{}}
}

// Set changes the rates.
func (f *Faults) Set(r Rates) { f.mu.Lock(); f.rates = r; f.mu.Unlock() }

// Done returns how many faults of each kind there were.
func (f *Faults) Done() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]int{}
	for k, n := range f.done {
		out[k] = n
	}
	return out
}

// Wait waits for the requests that outlived their senders.
func (f *Faults) Wait() { f.late.Wait() }

// Roll returns a number below n that follows from the seed, the place that asks
// and how often it has asked.
func (f *Faults) Roll(place string, n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.roll(place, n)
}

func (f *Faults) roll(place string, n int) int {
	f.dice[place]++
	h := fnv.New64a()
	_, _ = h.Write([]byte(place))
	x := h.Sum64() ^ f.seed*0x9e3779b97f4a7c15 ^ f.dice[place]*0xbf58476d1ce4e5b9
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	return int(x % uint64(n))
}

// hit tells whether a fault of a rate happens now.
func (f *Faults) hit(place, kind string, rate func(Rates) int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := rate(f.rates)
	if r == 0 || f.roll(place+kind, 1000) >= r {
		return false
	}
	f.done[kind]++
	return true
}

func (f *Faults) pause(place string) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rates.Slowest <= 0 {
		return 0
	}
	return time.Duration(f.roll(place+"pause", int(f.rates.Slowest/time.Millisecond)+1)) * time.Millisecond
}

// Process is what dies at once: all its transports stop to work, and nothing that
// it still does reaches the API. What was under way when it died may arrive later.
type Process struct {
	faults *Faults
	dead   atomic.Bool
}

// Process returns a new process on this network.
func (f *Faults) Process() *Process { return &Process{faults: f} }

// Kill ends the process without any goodbye.
func (p *Process) Kill() { p.dead.Store(true) }

// Transport wraps the transport of a part of the process, whose name tells its
// dice from those of others.
func (p *Process) Transport(part string, t client.Transport) client.Transport {
	return &faulty{Transport: t, p: p, part: part}
}

// ErrConnection is what a request ends in whose connection broke.
var ErrConnection = errors.New("connection reset by peer")

type faulty struct {
	client.Transport
	p    *Process
	part string
}

// read does a request that changes nothing.
func read[T any](ctx context.Context, f *faulty, ref client.Ref, do func() (T, error)) (T, error) {
	var none T
	place := f.part + " read " + ref.GVR.Resource
	if f.p.dead.Load() {
		return none, ErrConnection
	}
	if f.p.faults.hit(place, "delay", func(r Rates) int { return r.Delay }) {
		if !sleep(ctx, f.p.faults.pause(place)) {
			return none, ctx.Err()
		}
	}
	if f.p.faults.hit(place, "refuse", func(r Rates) int { return r.Refuse }) {
		return none, ErrConnection
	}
	out, err := do()
	if f.p.dead.Load() {
		return none, ErrConnection
	}
	return out, err
}

// write does a request that changes something.
func write[T any](ctx context.Context, f *faulty, verb string, ref client.Ref, do func(context.Context) (T, error)) (T, error) {
	var none T
	n := f.p.faults
	place := f.part + " " + verb + " " + ref.GVR.Resource + "/" + ref.Subresource
	if f.p.dead.Load() {
		return none, ErrConnection
	}
	if n.hit(place, "refuse", func(r Rates) int { return r.Refuse }) {
		switch n.Roll(place+"how", 3) {
		case 0:
			return none, apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, errors.New("injected"))
		case 1:
			return none, apierrors.NewInternalError(errors.New("injected"))
		}
		return none, ErrConnection
	}
	lose := n.hit(place, "lose", func(r Rates) int { return r.Lose })
	if n.hit(place, "delay", func(r Rates) int { return r.Delay }) {
		d := n.pause(place)
		if start := time.Now(); !sleep(ctx, d) || f.p.dead.Load() {
			// The sender has gone; the request may be on its way all the same.
			if n.Roll(place+"late", 2) == 0 {
				n.late.Go(func() {
					time.Sleep(d - time.Since(start))
					_, _ = do(context.WithoutCancel(ctx))
				})
			}
			if err := ctx.Err(); err != nil {
				return none, err
			}
			return none, ErrConnection
		}
	}
	out, err := do(ctx)
	if lose || f.p.dead.Load() {
		return none, ErrConnection
	}
	return out, err
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (f *faulty) Get(ctx context.Context, ref client.Ref, o metav1.GetOptions) (client.Object, error) {
	return read(ctx, f, ref, func() (client.Object, error) { return f.Transport.Get(ctx, ref, o) })
}

func (f *faulty) List(ctx context.Context, ref client.Ref, o metav1.ListOptions) (*client.List, error) {
	return read(ctx, f, ref, func() (*client.List, error) { return f.Transport.List(ctx, ref, o) })
}

func (f *faulty) Create(ctx context.Context, ref client.Ref, obj client.Object, o metav1.CreateOptions) (client.Object, error) {
	return write(ctx, f, "create", ref, func(ctx context.Context) (client.Object, error) { return f.Transport.Create(ctx, ref, obj, o) })
}

func (f *faulty) Update(ctx context.Context, ref client.Ref, obj client.Object, o metav1.UpdateOptions) (client.Object, error) {
	return write(ctx, f, "update", ref, func(ctx context.Context) (client.Object, error) { return f.Transport.Update(ctx, ref, obj, o) })
}

func (f *faulty) Patch(ctx context.Context, ref client.Ref, t types.PatchType, patch []byte, o metav1.PatchOptions) (client.Object, error) {
	return write(ctx, f, "patch", ref, func(ctx context.Context) (client.Object, error) { return f.Transport.Patch(ctx, ref, t, patch, o) })
}

func (f *faulty) Delete(ctx context.Context, ref client.Ref, o metav1.DeleteOptions) (client.Object, error) {
	return write(ctx, f, "delete", ref, func(ctx context.Context) (client.Object, error) { return f.Transport.Delete(ctx, ref, o) })
}

func (f *faulty) DeleteCollection(ctx context.Context, ref client.Ref, o metav1.DeleteOptions, lo metav1.ListOptions) error {
	_, err := write(ctx, f, "deletecollection", ref, func(ctx context.Context) (client.Object, error) {
		return nil, f.Transport.DeleteCollection(ctx, ref, o, lo)
	})
	return err
}

func (f *faulty) Bind(ctx context.Context, bindings []*corev1.Binding) []error {
	errs := make([]error, len(bindings))
	var wg sync.WaitGroup
	for i, b := range bindings {
		wg.Go(func() {
			ref := client.Ref{GVR: corev1.SchemeGroupVersion.WithResource("pods"), Namespace: b.Namespace, Name: b.Name, Subresource: "binding"}
			_, errs[i] = write(ctx, f, "bind", ref, func(ctx context.Context) (client.Object, error) {
				return nil, f.Transport.Bind(ctx, []*corev1.Binding{b})[0]
			})
		})
	}
	wg.Wait()
	return errs
}

func (f *faulty) Watch(ctx context.Context, ref client.Ref, o metav1.ListOptions) (client.Watch, error) {
	place := f.part + " watch " + ref.GVR.Resource
	if f.p.dead.Load() || f.p.faults.hit(place, "refuse", func(r Rates) int { return r.Refuse }) {
		return nil, ErrConnection
	}
	ctx, cancel := context.WithCancel(ctx)
	w, err := f.Transport.Watch(ctx, ref, o)
	if err != nil {
		cancel()
		return nil, err
	}
	out := &faultyWatch{out: make(chan client.Event)}
	go func() {
		defer cancel()
		defer close(out.out)
		f.pump(ctx, place, ref, w, out.out)
	}()
	return out, nil
}

type faultyWatch struct{ out chan client.Event }

func (w *faultyWatch) Events() <-chan client.Event { return w.out }

func (f *faulty) pump(ctx context.Context, place string, ref client.Ref, w client.Watch, out chan<- client.Event) {
	n := f.p.faults
	send := func(e client.Event) bool {
		select {
		case out <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for {
		var e client.Event
		var ok bool
		select {
		case e, ok = <-w.Events():
		case <-ctx.Done():
			return
		}
		if !ok || f.p.dead.Load() {
			return
		}
		if n.hit(place, "stall", func(r Rates) int { return r.Stall }) && !sleep(ctx, n.pause(place)) {
			return
		}
		if n.hit(place, "break", func(r Rates) int { return r.Break }) {
			if n.Roll(place+"how", 2) == 0 {
				send(client.Event{Type: watch.Error, Err: apierrors.NewResourceExpired("injected: too old resource version")})
			}
			return
		}
		if !send(e) || e.Type == watch.Error {
			return
		}
		if e.Type != watch.Bookmark && n.hit(place, "repeat", func(r Rates) int { return r.Repeat }) && !send(e) {
			return
		}
	}
}
