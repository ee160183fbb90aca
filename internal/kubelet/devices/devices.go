// Package devices is the node's part of dynamic resource allocation: it has the
// drivers of the devices in a pod's resource claims prepare them before the pod
// starts and unprepare them after it has ended, and tells what the runtime must
// give to each container (CDI devices) and how healthy it is (KEP-4381, KEP-4680).
//
// # Recovery
//
// What was prepared for whom is in a file, written before a driver is called and
// after it has answered. After a restart nothing is prepared twice; after a reboot
// everything is, since what drivers made of devices may be gone. Claims of pods that
// ended meanwhile are unprepared.
package devices

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"skiff/internal/client"
	"skiff/internal/kubelet/registration"
)

// Deps is what Devices needs.
type Deps struct {
	Client   *client.Client
	NodeName string
	// Registry is the directory in which drivers put the sockets by which they
	// register; State is the file of what is prepared.
	Registry, State string
	// Boot is another one after every start of the machine.
	Boot string
	Log  *slog.Logger
	// Active tells the pods that may still use their devices; it is asked once a
	// minute while some are prepared.
	Active func() map[types.UID]bool
	// Changed is called, without blocking, when the health of a pod's device
	// changed. It may be nil.
	Changed func(pod types.UID)
	// Gone is how long a driver may be away before its resource slices are deleted;
	// 30 s where zero.
	Gone time.Duration
}

// Devices prepares devices. See New.
type Devices struct {
	d      Deps
	health *health

	mu      sync.Mutex
	drivers map[string][]*driver // by name, in the order in which they registered
	wipes   map[string]context.CancelFunc
	claims  map[types.NamespacedName]*claim
	// busy are the claims that are being worked on; the channel is closed after.
	busy  map[types.NamespacedName]chan struct{}
	spawn func(func(context.Context)) // nil while Run does not run
}

// New returns the node's devices, as its state file tells of them.
func New(d Deps) (*Devices, error) {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Gone == 0 {
		d.Gone = 30 * time.Second
	}
	if d.Changed == nil {
		d.Changed = func(types.UID) {}
	}
	x := &Devices{d: d, health: newHealth(), drivers: map[string][]*driver{}, wipes: map[string]context.CancelFunc{}, busy: map[types.NamespacedName]chan struct{}{}}
	var err error
	if x.claims, err = readState(d.State, d.Boot); err != nil {
		return nil, err
	}
	return x, nil
}

// releasePeriod is how often claims of pods that are gone are looked for.
const releasePeriod = time.Minute

// Run registers drivers and follows them until ctx ends. What is published of drivers
// that do not register within Deps.Gone is deleted. (Upstream's kubelet deletes all at
// its start; but here the API server starts with it, and drivers whose watch it cut
// would take half a minute to publish their devices again.)
func (x *Devices) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	x.mu.Lock()
	x.spawn = func(f func(context.Context)) {
		g.Go(func() error { f(ctx); return nil })
	}
	x.mu.Unlock()
	g.Go(func() error { x.expect(ctx); return nil })
	g.Go(func() error {
		return registration.Watch(ctx, registration.Deps{
			Dir: x.d.Registry, Log: x.d.Log, Handlers: map[string]registration.Handler{registerapi.DRAPlugin: x},
		})
	})
	g.Go(func() error {
		for wait(ctx, releasePeriod) {
			x.releaseUnused(ctx)
		}
		return nil
	})
	return g.Wait()
}

// wait waits for d; false means that ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// releaseUnused unprepares what pods hold that are gone.
func (x *Devices) releaseUnused(ctx context.Context) {
	x.mu.Lock()
	holders := map[types.UID]bool{}
	for _, c := range x.claims {
		for _, p := range c.Pods {
			holders[p] = true
		}
	}
	x.mu.Unlock()
	if len(holders) == 0 {
		return
	}
	active := x.d.Active()
	for p := range holders {
		if active[p] {
			continue
		}
		if err := x.Unprepare(ctx, p); err != nil && ctx.Err() == nil {
			x.d.Log.Warn("unprepare devices of a pod that is gone", "uid", p, "err", err)
		}
	}
}
