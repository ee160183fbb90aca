package plugins

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/dynamic-resource-allocation/structured"

	"skiff/internal/scheduler/devices"
	"skiff/internal/scheduler/framework"
)

// demand is what the pods of a class want of devices, and what was found for them.
type demand struct {
	class *framework.Class
	// claims are the pod's own; reach are, for those that are allocated, the nodes
	// that reach their devices, nil for all.
	claims []*resourcev1.ResourceClaim
	reach  []*nodeaffinity.NodeSelector
	// extended are the extended resources that device classes may stand for.
	extended map[corev1.ResourceName]int64
	// allocator is nil where nothing is to be allocated.
	allocator structured.Allocator

	found map[string]*devicePlace
	// elsewhere are the allocated claims, by index, that some node does not reach
	// or that became unusable.
	elsewhere map[int]bool
}

// devicePlace is what a node gives.
type devicePlace struct {
	// allocations are those of the claims that had none, in their order, that of
	// the special claim last.
	allocations []resourcev1.AllocationResult
	special     *resourcev1.ResourceClaim
	mappings    []corev1.ContainerExtendedResourceRequest
}

// extendedOf returns the extended resources of a class's pods, nil where no device
// class stands for any of them.
func (d *DynamicResources) extendedOf(c *framework.Class) map[corev1.ResourceName]int64 {
	if len(c.Requests.Scalar) == 0 {
		return nil
	}
	d.catchUp()
	for name, n := range c.Requests.Scalar {
		if n > 0 && d.byClass.For(name) != nil {
			return c.Requests.Scalar
		}
	}
	return nil
}

// PreFilter implements framework.PreFilterer.
func (d *DynamicResources) PreFilter(c *framework.Class) (any, []string, *framework.Status) {
	w, st := d.want(c)
	if st != nil || w == nil {
		if st == nil {
			st = &framework.Status{Code: framework.Skip}
		}
		d.last = nil
		return nil, nil, st
	}
	d.last = w
	names := []string{}
	for n := range d.nodes.All() {
		names = append(names, n.Name)
	}
	return w, names, nil
}

// want gathers what the pods of a class ask for; nil for nothing.
func (d *DynamicResources) want(c *framework.Class) (*demand, *framework.Status) {
	extended := d.extendedOf(c)
	if len(c.Template.Spec.ResourceClaims) == 0 && extended == nil {
		return nil, nil
	}
	claims, err := d.claimsOf(c.Template)
	if err != nil {
		return nil, deviceRefusal(err.Error())
	}
	if len(claims) == 0 && extended == nil {
		return nil, nil
	}
	w := &demand{class: c, claims: claims, extended: extended, reach: make([]*nodeaffinity.NodeSelector, len(claims)), found: map[string]*devicePlace{}}
	allocate := extended != nil
	for i, claim := range claims {
		if a := claim.Status.Allocation; a != nil {
			if !resourceclaim.CanBeReserved(claim) && !resourceclaim.IsReservedForPod(c.Template, claim, false) {
				return nil, claimInUse
			}
			if a.NodeSelector == nil {
				continue
			}
			if w.reach[i], err = nodeaffinity.NewNodeSelector(a.NodeSelector); err != nil {
				return nil, deviceRefusal(err.Error())
			}
			continue
		}
		allocate = true
		if d.ledger.Pending(claim.UID) {
			return nil, deviceRefusal(fmt.Sprintf("resource claim %s/%s is in the process of being allocated", claim.Namespace, claim.Name))
		}
		if st := d.checkClasses(claim); st != nil {
			return nil, st
		}
	}
	if allocate {
		if w.allocator, err = d.allocator(); err != nil {
			return nil, deviceRefusal(err.Error())
		}
	}
	return w, nil
}

// checkClasses refuses a claim that names a class which is not there.
func (d *DynamicResources) checkClasses(claim *resourcev1.ResourceClaim) *framework.Status {
	check := func(class, request string) *framework.Status {
		if d.byClass.Get(class) == nil {
			return deviceRefusal(fmt.Sprintf("request %s: device class %s does not exist", request, class))
		}
		return nil
	}
	for i := range claim.Spec.Devices.Requests {
		r := &claim.Spec.Devices.Requests[i]
		switch {
		case r.Exactly != nil:
			if st := check(r.Exactly.DeviceClassName, r.Name); st != nil {
				return st
			}
		case len(r.FirstAvailable) > 0:
			for j := range r.FirstAvailable {
				if st := check(r.FirstAvailable[j].DeviceClassName, r.Name+"/"+r.FirstAvailable[j].Name); st != nil {
					return st
				}
			}
		default:
			return deviceRefusal(fmt.Sprintf("resource claim %s/%s, request %s: unknown request type", claim.Namespace, claim.Name, r.Name))
		}
	}
	return nil
}

// Filter implements framework.Filterer.
func (d *DynamicResources) Filter(state any, _ *framework.Class, n *framework.Node) *framework.Status {
	w, ok := state.(*demand)
	if !ok || w == nil || n.Obj == nil {
		return nil
	}
	place, st := d.place(w, n)
	if place != nil {
		w.found[n.Name] = place
	}
	return st
}

// place says what a node gives; nil where nothing has to be allocated.
func (d *DynamicResources) place(w *demand, n *framework.Node) (*devicePlace, *framework.Status) {
	out := &devicePlace{}
	if w.extended != nil {
		var st *framework.Status
		if out.special, out.mappings, st = d.special(w, n); st != nil {
			return nil, st
		}
		if out.special == nil && len(w.claims) == 0 {
			// The node has the resources itself.
			return nil, nil
		}
	}
	here := true
	var claims []*resourcev1.ResourceClaim
	for i, claim := range w.claims {
		switch {
		case claim.Status.Allocation == nil:
			claims = append(claims, claim)
		case w.reach[i] != nil && !w.reach[i].Match(n.Obj) || d.unusable(claim):
			if w.elsewhere == nil {
				w.elsewhere = map[int]bool{}
			}
			w.elsewhere[i], here = true, false
		}
	}
	if out.special != nil {
		claims = append(claims, out.special)
	}
	if w.allocator != nil && len(claims) > 0 {
		var st *framework.Status
		if out.allocations, st = d.allocate(w.allocator, n.Obj, claims); st != nil {
			return nil, st
		}
	}
	if !here {
		return nil, claimElsewhere
	}
	if len(claims) == 0 {
		return nil, nil
	}
	return out, nil
}

// special makes the claim for the extended resources that a node does not have
// itself; nil where it has all.
func (d *DynamicResources) special(w *demand, n *framework.Node) (*resourcev1.ResourceClaim, []corev1.ContainerExtendedResourceRequest, *framework.Status) {
	var asked map[corev1.ResourceName]int64
	for name, amount := range w.extended {
		if amount == 0 || !isExtended(name) {
			continue
		}
		have, listed := n.Allocatable.Scalar[name]
		switch {
		case have == 0 && d.byClass.For(name) != nil:
			if asked == nil {
				asked = map[corev1.ResourceName]int64{}
			}
			asked[name] = amount
		case !listed:
			return nil, nil, resourceUnfit
		}
	}
	if asked == nil {
		return nil, nil, nil
	}
	requests, mappings := devices.Requests(w.class.Template, asked, d.byClass.For)
	return &resourcev1.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.class.Template.Namespace, Name: "<extended-resources>"},
		Spec:       resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: requests}},
	}, mappings, nil
}

// PreScore implements framework.PreScorer.
func (d *DynamicResources) PreScore(c *framework.Class) (any, *framework.Status) {
	if d.last == nil || d.last.class != c {
		return nil, &framework.Status{Code: framework.Skip}
	}
	return d.last, nil
}

// Score implements framework.Scorer: alternatives that come earlier in their lists
// count more.
func (d *DynamicResources) Score(state any, _ *framework.Class, n *framework.Node, _ *framework.Snapshot) int64 {
	w, ok := state.(*demand)
	if !ok {
		return 0
	}
	place := w.found[n.Name]
	if place == nil {
		return 0
	}
	var score int64
	next := 0
	for _, claim := range w.claims {
		a := claim.Status.Allocation
		if a == nil {
			if next >= len(place.allocations) {
				return 0
			}
			a = &place.allocations[next]
			next++
		}
		given := map[string]bool{}
		for i := range a.Devices.Results {
			given[a.Devices.Results[i].Request] = true
		}
		for i := range claim.Spec.Devices.Requests {
			r := &claim.Spec.Devices.Requests[i]
			for j := range r.FirstAvailable {
				if given[resourceclaim.CreateSubRequestRef(r.Name, r.FirstAvailable[j].Name)] {
					score += int64(resourcev1.FirstAvailableDeviceRequestMaxSize - j)
				}
			}
		}
	}
	return score
}

// Normalize implements framework.Normalizer.
func (*DynamicResources) Normalize(raw, _, greatest int64) int64 { return toGreatest(raw, greatest) }

// Explain implements framework.Explainer.
func (d *DynamicResources) Explain(c *framework.Class, n *framework.Node) string {
	w, st := d.want(c)
	if st == nil && w != nil && n.Obj != nil {
		_, st = d.place(w, n)
	}
	switch st {
	case nil:
		return ""
	case noDevices:
		return fmt.Sprintf("node %s has not enough free devices of the classes that the pod's claims ask for: a pod that ends and gives one back, or a driver that publishes one more, would help", n.Name)
	case claimElsewhere:
		return fmt.Sprintf("a claim of the pod has devices that node %s does not reach, or that failed to become ready: it stays with them until no pod uses it", n.Name)
	case resourceUnfit:
		return fmt.Sprintf("node %s has none of an extended resource that the pod requests, and no device class stands for it", n.Name)
	}
	return st.Reasons[0]
}

// pendingSpecial stands for the claim of a pod's extended resources while it is not
// made yet.
func pendingSpecial(pod types.UID) types.UID { return "extended-resources/" + pod }
