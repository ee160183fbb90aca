package control

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

func stack() string { return string(debug.Stack()) }

// Leadership lets one server of several run something.
type Leadership interface {
	// Lead calls run while leading, with a context that ends with leadership,
	// and returns when ctx ended, run returned, or leadership was lost.
	Lead(ctx context.Context, run func(context.Context) error) error
}

// Alone leads at once and for ever: the leadership of a single server.
type Alone struct{}

// Lead calls run.
func (Alone) Lead(ctx context.Context, run func(context.Context) error) error { return run(ctx) }

// ErrLost is returned when another has taken the lease, or it could not be renewed
// in time.
var ErrLost = errors.New("leader election lost")

// LeaseDeps is what a Lease is made from. Durations of zero take upstream's
// defaults: 15 s, 10 s, 2 s.
type LeaseDeps struct {
	Client *client.Client
	// Namespace and Name of the lease: kube-system and kube-controller-manager
	// for the controllers.
	Namespace, Name string
	// Identity is unique to this process.
	Identity string
	// Duration is how long others wait after the last renewal they saw, Renew how
	// long the leader tries to renew before it gives up, Retry the pause between
	// two tries.
	Duration, Renew, Retry time.Duration
	Now                    func() time.Time
	Log                    *slog.Logger
}

// Lease is leadership by a coordination.k8s.io Lease. A holder that stops renews
// no more; one that ends in order gives the lease up, so that another takes it at
// its next try. The clocks of servers need not agree: a lease counts as held until
// its record has not changed for Duration by the observer's own clock.
type Lease struct {
	d        LeaseDeps
	record   coordinationv1.LeaseSpec
	observed time.Time
}

// NewLease returns a Lease that is not held yet.
func NewLease(d LeaseDeps) *Lease {
	if d.Duration == 0 {
		d.Duration = 15 * time.Second
	}
	if d.Renew == 0 {
		d.Renew = 10 * time.Second
	}
	if d.Retry == 0 {
		d.Retry = 2 * time.Second
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.Default()
	}
	return &Lease{d: d}
}

// Lead implements Leadership.
func (l *Lease) Lead(ctx context.Context, run func(context.Context) error) error {
	for !l.try(ctx) {
		if !sleep(ctx, l.d.Retry) {
			return nil
		}
	}
	l.d.Log.Info("became leader", "lease", l.d.Name)
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- run(runCtx) }()
	renewed := l.d.Now()
	for {
		select {
		case err := <-done:
			l.release(ctx)
			return err
		case <-ctx.Done():
			err := <-done
			l.release(ctx)
			return err
		case <-time.After(l.d.Retry):
		}
		tryCtx, cancel := context.WithTimeout(ctx, l.d.Renew)
		ok := l.try(tryCtx)
		cancel()
		if ok {
			renewed = l.d.Now()
		} else if ctx.Err() == nil && (l.heldByOther() || l.d.Now().Sub(renewed) >= l.d.Renew) {
			stop()
			<-done
			return ErrLost
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (l *Lease) heldByOther() bool {
	h := l.record.HolderIdentity
	return h != nil && *h != "" && *h != l.d.Identity
}

// try takes or renews the lease and tells whether it is held now.
func (l *Lease) try(ctx context.Context) bool {
	leases := client.For[*coordinationv1.Lease](l.d.Client).In(l.d.Namespace)
	now := metav1.NewMicroTime(l.d.Now())
	seconds, zero := int32(l.d.Duration/time.Second), int32(0)
	want := coordinationv1.LeaseSpec{
		HolderIdentity: &l.d.Identity, LeaseDurationSeconds: &seconds,
		AcquireTime: &now, RenewTime: &now, LeaseTransitions: &zero,
	}
	old, err := leases.Get(ctx, l.d.Name)
	if apierrors.IsNotFound(err) {
		made, err := leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: l.d.Namespace, Name: l.d.Name}, Spec: want,
		})
		if err != nil {
			l.d.Log.Debug("cannot create lease", "lease", l.d.Name, "err", err)
			return false
		}
		l.observe(made.Spec)
		return true
	}
	if err != nil {
		l.d.Log.Debug("cannot read lease", "lease", l.d.Name, "err", err)
		return false
	}
	l.observe(old.Spec)
	mine := old.Spec.HolderIdentity != nil && *old.Spec.HolderIdentity == l.d.Identity
	if !mine && l.heldByOther() {
		held := l.d.Duration
		if s := old.Spec.LeaseDurationSeconds; s != nil {
			held = time.Duration(*s) * time.Second
		}
		if l.d.Now().Before(l.observed.Add(held)) {
			return false
		}
	}
	transitions := int32(0)
	if t := old.Spec.LeaseTransitions; t != nil {
		transitions = *t
	}
	if mine {
		want.AcquireTime = old.Spec.AcquireTime
	} else {
		transitions++
	}
	want.LeaseTransitions = &transitions
	next := old.DeepCopy()
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds = want.HolderIdentity, want.LeaseDurationSeconds
	next.Spec.AcquireTime, next.Spec.RenewTime, next.Spec.LeaseTransitions = want.AcquireTime, want.RenewTime, want.LeaseTransitions
	got, err := leases.Update(ctx, next)
	if err != nil {
		l.d.Log.Debug("cannot take lease", "lease", l.d.Name, "err", err)
		return false
	}
	l.observe(got.Spec)
	return true
}

// observe notes when the record last changed, by this process's clock.
func (l *Lease) observe(s coordinationv1.LeaseSpec) {
	same := l.record.RenewTime != nil && s.RenewTime != nil && l.record.RenewTime.Equal(s.RenewTime) &&
		l.record.HolderIdentity != nil && s.HolderIdentity != nil && *l.record.HolderIdentity == *s.HolderIdentity
	if !same {
		l.observed = l.d.Now()
	}
	l.record = s
}

// release gives the lease up, so that a successor need not wait for its end.
func (l *Lease) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	leases := client.For[*coordinationv1.Lease](l.d.Client).In(l.d.Namespace)
	old, err := leases.Get(ctx, l.d.Name)
	if err != nil || old.Spec.HolderIdentity == nil || *old.Spec.HolderIdentity != l.d.Identity {
		return
	}
	next := old.DeepCopy()
	nobody, one := "", int32(1)
	now := metav1.NewMicroTime(l.d.Now())
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds, next.Spec.RenewTime = &nobody, &one, &now
	if _, err := leases.Update(ctx, next); err != nil {
		l.d.Log.Debug("cannot release lease", "lease", l.d.Name, "err", err)
	}
}
