package plugins

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	dracel "k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/dynamic-resource-allocation/structured"

	"skiff/internal/api/dra"
	"skiff/internal/client"
	"skiff/internal/scheduler/devices"
	"skiff/internal/scheduler/framework"
)

const dynamicResources = "DynamicResources"

// Limits of upstream's defaults (DynamicResourcesArgs).
const (
	deviceFilterTimeout = 10 * time.Second
	deviceBindTimeout   = 10 * time.Minute
	compiledSelectors   = 10
)

// DynamicResources places pods where the devices are that their resource claims ask
// for, by structured parameters (KEP-4381): claims that are allocated keep a pod to
// the nodes that reach their devices, others are allocated for the node that is
// chosen. What was decided counts for the next pod at once, and is written before
// the pod is bound.
//
// Like VolumeBinding it names the nodes, so that nothing is kept of what it said. A
// pod that has no claims, and asks for no extended resource that a device class
// stands for, costs it a look at two lengths.
type DynamicResources struct {
	d       Deps
	claims  *client.Informer[*resourcev1.ResourceClaim]
	slices  *client.Informer[*resourcev1.ResourceSlice]
	classes *client.Informer[*resourcev1.DeviceClass]
	rules   *client.Informer[*resourcev1.DeviceTaintRule]
	nodes   *client.Informer[*corev1.Node]

	mu sync.Mutex
	// news is what informers and binders told and the loop has not taken yet.
	news []deviceNews
	// chosen is what is to be written for a pod that has its node.
	chosen map[types.UID]*deviceChoice
	// errands are writes that nobody waits for.
	errands []func(context.Context) error
	wake    chan struct{}
	// changed is closed, and made anew, when a claim changes.
	changed chan struct{}

	// Owned by the scheduling loop.
	ledger    *devices.Ledger
	byClass   *devices.Classes
	published []*resourcev1.ResourceSlice // with the rules' taints; nil when to be read anew
	anywhere  bool                        // some slice is not of one node alone
	local     map[string]bool             // nodes with slices of their own
	selectors *dracel.Cache               // made for the first claim
	last      *demand                     // of the pod that is being decided on
}

// deviceNews is one thing that the loop is told; the first that is set.
type deviceNews struct {
	claim   *client.Change[*resourcev1.ResourceClaim]
	written *resourcev1.ResourceClaim
	revoked []types.UID
	slices  bool
	classes bool
}

// NewDynamicResources returns the plugin.
func NewDynamicResources(d Deps) *DynamicResources {
	p := &DynamicResources{
		d: d, claims: client.InformerFor[*resourcev1.ResourceClaim](d.Informers), slices: client.InformerFor[*resourcev1.ResourceSlice](d.Informers),
		classes: client.InformerFor[*resourcev1.DeviceClass](d.Informers), rules: client.InformerFor[*resourcev1.DeviceTaintRule](d.Informers),
		nodes:  client.InformerFor[*corev1.Node](d.Informers),
		chosen: map[types.UID]*deviceChoice{}, wake: make(chan struct{}, 1), changed: make(chan struct{}), ledger: devices.NewLedger(),
	}
	if p.d.Now == nil {
		p.d.Now = time.Now
	}
	if p.d.Log == nil {
		p.d.Log = slog.New(slog.DiscardHandler)
	}
	p.byClass = devices.NewClasses(func() []*resourcev1.DeviceClass { return p.classes.List("", nil) })
	return p
}

// Watch implements framework.Watcher.
func (d *DynamicResources) Watch(changed func(framework.Event)) []<-chan struct{} {
	d.claims.OnChange(func(c client.Change[*resourcev1.ResourceClaim]) {
		d.mu.Lock()
		d.news = append(d.news, deviceNews{claim: &c})
		close(d.changed)
		d.changed = make(chan struct{})
		d.mu.Unlock()
		changed(framework.Event{Kind: framework.DeviceClaims, Claim: c.New, OldClaim: c.Old})
	})
	d.slices.OnChange(func(client.Change[*resourcev1.ResourceSlice]) {
		d.tell(deviceNews{slices: true})
		changed(framework.Event{Kind: framework.Devices})
	})
	d.rules.OnChange(func(client.Change[*resourcev1.DeviceTaintRule]) {
		d.tell(deviceNews{slices: true})
		changed(framework.Event{Kind: framework.Devices})
	})
	d.classes.OnChange(func(client.Change[*resourcev1.DeviceClass]) {
		d.tell(deviceNews{classes: true})
		changed(framework.Event{Kind: framework.DeviceClasses})
	})
	return []<-chan struct{}{d.claims.Synced(), d.slices.Synced(), d.classes.Synced(), d.rules.Synced()}
}

func (d *DynamicResources) tell(n deviceNews) {
	d.mu.Lock()
	d.news = append(d.news, n)
	d.mu.Unlock()
}

// catchUp takes what the loop was told.
func (d *DynamicResources) catchUp() {
	d.mu.Lock()
	news := d.news
	d.news = nil
	d.mu.Unlock()
	for _, n := range news {
		switch {
		case n.claim != nil && n.claim.Deleted():
			d.ledger.Drop(n.claim.Old)
		case n.claim != nil:
			if o := n.claim.Old; o != nil && o.UID != n.claim.New.UID {
				d.ledger.Drop(o)
			}
			d.ledger.Put(n.claim.New)
		case n.written != nil:
			d.ledger.Put(n.written)
		case n.revoked != nil:
			for _, uid := range n.revoked {
				d.ledger.Revoke(uid)
			}
		case n.slices:
			d.published = nil
		case n.classes:
			d.byClass.Changed()
		}
	}
}

// Name implements framework.Plugin.
func (*DynamicResources) Name() string { return dynamicResources }

// Backs tells whether a device class stands for an extended resource.
func (d *DynamicResources) Backs(name corev1.ResourceName) bool {
	d.catchUp()
	return d.byClass.For(name) != nil
}

func deviceRefusal(reason string) *framework.Status {
	return &framework.Status{Code: framework.Unresolvable, Plugin: dynamicResources, Reasons: []string{reason}}
}

var (
	claimInUse       = deviceRefusal("resourceclaim in use")
	claimElsewhere   = deviceRefusal("resourceclaim not available on the node")
	noDevices        = deviceRefusal("cannot allocate all claims")
	resourceUnfit    = deviceRefusal("cannot fit resource")
	leftoverExtended = deviceRefusal("cannot schedule extended resource claim")
)

// Events implements framework.Hinter.
func (*DynamicResources) Events() framework.EventKind {
	return framework.NodeAdded | framework.NodeLabels | framework.NodeAllocatable |
		framework.PodClaims | framework.DeviceClaims | framework.Devices | framework.DeviceClasses
}

// Hint implements framework.Hinter.
func (d *DynamicResources) Hint(p *framework.Pod, e framework.Event) bool {
	switch {
	case e.Kind&framework.PodClaims != 0:
		_, err := d.claimsOf(p.Pod)
		return err == nil
	case e.Kind&framework.DeviceClaims == 0:
		return true
	case e.Claim == nil:
		return e.OldClaim.Status.Allocation != nil
	}
	claims, err := d.claimsOf(p.Pod)
	if err != nil {
		return false
	}
	if o := e.OldClaim; o != nil && o.Status.Allocation != nil && e.Claim.Status.Allocation == nil {
		return true
	}
	if !slices.ContainsFunc(claims, func(c *resourcev1.ResourceClaim) bool { return c.UID == e.Claim.UID }) {
		return false
	}
	return e.OldClaim == nil || !equality.Semantic.DeepEqual(e.OldClaim.Status, e.Claim.Status)
}

// PreEnqueue implements framework.PreEnqueuer.
func (d *DynamicResources) PreEnqueue(p *corev1.Pod) *framework.Status {
	if len(p.Spec.ResourceClaims) == 0 {
		return nil
	}
	if _, err := d.claimsOf(p); err != nil {
		return deviceRefusal(err.Error())
	}
	return nil
}

// claimsOf returns the claims that a pod names or that were made for it; those that
// turned out not to be needed are left out.
func (d *DynamicResources) claimsOf(p *corev1.Pod) ([]*resourcev1.ResourceClaim, error) {
	if len(p.Spec.ResourceClaims) == 0 {
		return nil, nil
	}
	d.catchUp()
	out := make([]*resourcev1.ResourceClaim, 0, len(p.Spec.ResourceClaims))
	for i := range p.Spec.ResourceClaims {
		name, made, err := resourceclaim.Name(p, &p.Spec.ResourceClaims[i])
		if err != nil {
			return nil, err
		}
		if name == nil {
			continue
		}
		c, ok := d.ledger.Claim(p.Namespace, *name)
		if !ok {
			return nil, fmt.Errorf("could not find resourceclaim %q", p.Namespace+"/"+*name)
		}
		if c.DeletionTimestamp != nil {
			return nil, fmt.Errorf("resourceclaim %q is being deleted", c.Name)
		}
		if made {
			if err := resourceclaim.IsForPod(p, c, false); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// Get implements structured.DeviceClassLister.
func (l classLister) Get(name string) (*resourcev1.DeviceClass, error) {
	if c := l.d.byClass.Get(name); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("device class %s does not exist", name)
}

// List implements structured.DeviceClassLister.
func (l classLister) List() ([]*resourcev1.DeviceClass, error) { return l.d.byClass.All(), nil }

type classLister struct{ d *DynamicResources }

// allocator returns one for things as they are.
func (d *DynamicResources) allocator() (structured.Allocator, error) {
	if d.published == nil {
		rules := d.rules.List("", nil)
		slices.SortFunc(rules, func(a, b *resourcev1.DeviceTaintRule) int { return cmp.Compare(a.Name, b.Name) })
		d.published, d.local, d.anywhere = []*resourcev1.ResourceSlice{}, map[string]bool{}, false
		for _, s := range d.slices.List("", nil) {
			if n := s.Spec.NodeName; n != nil && *n != "" {
				d.local[*n] = true
			} else {
				d.anywhere = true
			}
			d.published = append(d.published, dra.Tainted(s, rules))
		}
		slices.SortFunc(d.published, func(a, b *resourcev1.ResourceSlice) int { return cmp.Compare(a.Name, b.Name) })
	}
	if d.selectors == nil {
		// The compiler's environment takes time and memory: not before it is needed.
		d.selectors = dracel.NewCache(compiledSelectors, dracel.Features{EnableConsumableCapacity: true})
	}
	return structured.NewAllocator(context.Background(), structured.Features{
		AdminAccess: true, PrioritizedList: true, PartitionableDevices: true, DeviceTaints: true, DeviceBindingAndStatus: true,
		ConsumableCapacity: true, FractionalCapacityRange: true,
	}, d.ledger.Taken(), classLister{d}, d.published, d.selectors)
}

// allocate finds devices on a node for claims; nil where there are not enough.
func (d *DynamicResources) allocate(a structured.Allocator, n *corev1.Node, claims []*resourcev1.ResourceClaim) ([]resourcev1.AllocationResult, *framework.Status) {
	if !d.anywhere && !d.local[n.Name] && slices.ContainsFunc(claims, func(c *resourcev1.ResourceClaim) bool { return len(c.Spec.Devices.Requests) > 0 }) {
		return nil, noDevices
	}
	ctx, cancel := context.WithTimeout(context.Background(), deviceFilterTimeout)
	defer cancel()
	out, err := a.Allocate(ctx, n, claims)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, deviceRefusal(fmt.Sprintf("node %s: timed out trying to allocate devices", n.Name))
	case err != nil:
		return nil, deviceRefusal(err.Error())
	case len(out) != len(claims):
		return nil, noDevices
	}
	return out, nil
}
