// Package alloc hands out cluster addresses and node ports of services.
//
// A cluster address is taken by creating an IPAddress object named like it; free
// addresses come from the ServiceCIDR objects that are ready. A node port is taken
// by setting its bit in the RangeAllocation stored under PortsKey, the key and form
// of upstream. Both are decided by the store's compare-and-swap, so that any number
// of API servers may allocate at once.
//
// What is taken before a service is written, and not given back because a process
// ended in between, is found and given back by Run.
package alloc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/api/resource"
	"skiff/internal/client"
	"skiff/internal/store"
)

// Deps is what an Allocator needs.
type Deps struct {
	// Client returns the API server's own client. It is called first by Start.
	Client func() *client.Client
	Store  store.Store
	// ServiceCIDRs are the configured ranges, the primary family first: one, or
	// one of each family.
	ServiceCIDRs []netip.Prefix
	// FirstPort and LastPort bound the node ports.
	FirstPort, LastPort int32
	Now                 func() time.Time
	Log                 *slog.Logger
	// RepairEvery is the time between two runs of the repair; upstream's three
	// minutes where it is 0.
	RepairEvery time.Duration
}

// Allocator is a resource.ServiceAllocator.
type Allocator struct {
	Deps
	families []string

	mu    sync.Mutex // guards ports
	ports portMap

	// leakedPorts are the ports that the repair found without a service, and in
	// how many runs. Guarded by mu.
	leakedPorts map[int32]int
}

var _ resource.ServiceAllocator = (*Allocator)(nil)

// New checks the ranges. Nothing can be allocated before Start.
func New(d Deps) (*Allocator, error) {
	d.ServiceCIDRs = slices.Clone(d.ServiceCIDRs)
	a := &Allocator{Deps: d, leakedPorts: map[int32]int{}}
	if len(d.ServiceCIDRs) == 0 || len(d.ServiceCIDRs) > 2 {
		return nil, fmt.Errorf("%d service ranges: there must be one, or one of each IP family", len(d.ServiceCIDRs))
	}
	for i, p := range d.ServiceCIDRs {
		if p.Addr().Is6() && p.Bits() < 64 {
			return nil, fmt.Errorf("service range %s: an IPv6 range may not be larger than a /64", p)
		}
		a.ServiceCIDRs[i] = p.Masked()
		a.families = append(a.families, family(p.Addr()))
	}
	if len(a.families) == 2 && a.families[0] == a.families[1] {
		return nil, fmt.Errorf("service ranges %s and %s are of the same IP family", d.ServiceCIDRs[0], d.ServiceCIDRs[1])
	}
	if d.FirstPort < 1 || d.LastPort > 65535 || d.LastPort < d.FirstPort {
		return nil, fmt.Errorf("node ports %d-%d: must be a range of ports from 1 to 65535", d.FirstPort, d.LastPort)
	}
	a.ports = newPortMap(d.FirstPort, d.LastPort)
	if a.RepairEvery == 0 {
		a.RepairEvery = 3 * time.Minute
	}
	if a.Log == nil {
		a.Log = slog.Default()
	}
	if a.Now == nil {
		a.Now = time.Now
	}
	return a, nil
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// Families implements resource.ServiceAllocator.
func (a *Allocator) Families() []string { return a.families }

// DefaultServiceCIDR is the object that holds the configured ranges.
const DefaultServiceCIDR = "kubernetes"

// Start makes the default ServiceCIDR and the map of node ports where they are
// not there. Services can be created when it returns.
func (a *Allocator) Start(ctx context.Context) error {
	if err := a.ensureServiceCIDR(ctx); err != nil {
		return err
	}
	return a.repairPorts(ctx)
}

// ensureServiceCIDR makes the default ServiceCIDR, gives it its second range where
// the cluster became dual-stack, and says that it is ready.
func (a *Allocator) ensureServiceCIDR(ctx context.Context) error {
	cidrs := client.For[*networkingv1.ServiceCIDR](a.Client())
	want := make([]string, len(a.ServiceCIDRs))
	for i, p := range a.ServiceCIDRs {
		want[i] = p.String()
	}
	obj, err := cidrs.Get(ctx, DefaultServiceCIDR)
	if apierrors.IsNotFound(err) {
		obj, err = cidrs.Create(ctx, &networkingv1.ServiceCIDR{
			ObjectMeta: metav1.ObjectMeta{Name: DefaultServiceCIDR},
			Spec:       networkingv1.ServiceCIDRSpec{CIDRs: want},
		})
		if apierrors.IsAlreadyExists(err) {
			obj, err = cidrs.Get(ctx, DefaultServiceCIDR)
		}
	}
	if err != nil {
		return fmt.Errorf("default service range: %w", err)
	}
	if have := obj.Spec.CIDRs; len(want) == 2 && len(have) == 1 && have[0] == want[0] {
		obj = obj.DeepCopy()
		obj.Spec.CIDRs = want
		if obj, err = cidrs.Update(ctx, obj); err != nil {
			return fmt.Errorf("default service range becomes dual-stack: %w", err)
		}
	} else if fmt.Sprint(have) != fmt.Sprint(want) {
		// Upstream keeps the object too: addresses of it are in use.
		a.Log.Warn("the default ServiceCIDR is not what is configured", "have", have, "want", want)
		return nil
	}
	c := apimeta.FindStatusCondition(obj.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
	if obj.DeletionTimestamp != nil || c != nil && c.Status != metav1.ConditionUnknown {
		return nil
	}
	owner := client.New(a.Client().Transport(), "kubernetes-service-cidr-controller")
	if _, err := client.For[*networkingv1.ServiceCIDR](owner).Patch(ctx, DefaultServiceCIDR, types.ApplyPatchType, a.readyStatus(), "status"); err != nil {
		return fmt.Errorf("default service range: %w", err)
	}
	return nil
}

// readyStatus is the apply configuration of a ServiceCIDR that is ready. It has no
// reason, as upstream's.
func (a *Allocator) readyStatus() []byte {
	return fmt.Appendf(nil, `{"apiVersion":%q,"kind":"ServiceCIDR","metadata":{"name":%q},"status":{"conditions":[`+
		`{"type":%q,"status":"True","message":"Kubernetes default Service CIDR is ready","lastTransitionTime":%q}]}}`,
		networkingv1.SchemeGroupVersion, DefaultServiceCIDR, networkingv1.ServiceCIDRConditionReady, a.Now().UTC().Format(time.RFC3339))
}

// Run repairs at once and then now and then, until ctx ends.
func (a *Allocator) Run(ctx context.Context) error {
	t := time.NewTicker(a.RepairEvery)
	defer t.Stop()
	for {
		if err := a.Repair(ctx); err != nil && ctx.Err() == nil {
			a.Log.Error("repair of service allocations", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// Repair brings addresses and ports in line with the services that there are.
func (a *Allocator) Repair(ctx context.Context) error {
	return errors.Join(a.ensureServiceCIDR(ctx), a.repairAddresses(ctx), a.repairPorts(ctx))
}
