package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// deviceChoice is what the claims of a pod get on its node.
type deviceChoice struct {
	claims []chosenClaim
	// special is the claim to be made for extended resources, nil for none.
	special  *chosenClaim
	mappings []corev1.ContainerExtendedResourceRequest
	// writing tells that a binder is at work on it, over that the pod does not go
	// to its node after all.
	writing, over bool
}

// chosenClaim is a claim and the allocation that it is to get; nil where it has one.
type chosenClaim struct {
	claim      *resourcev1.ResourceClaim
	allocation *resourcev1.AllocationResult
}

// pending are the keys by which the ledger knows what was decided.
func (c *deviceChoice) pending(pod types.UID) []types.UID {
	var out []types.UID
	for _, x := range c.claims {
		if x.allocation != nil {
			out = append(out, x.claim.UID)
		}
	}
	if c.special != nil {
		out = append(out, pendingSpecial(pod))
	}
	return out
}

// Reserve implements framework.Reserver.
func (d *DynamicResources) Reserve(p *framework.Pod, n *framework.Node) *framework.Status {
	w := d.last
	if w == nil || w.class != p.Class {
		var st *framework.Status
		if w, st = d.want(p.Class); st != nil || w == nil {
			return st
		}
	}
	if w.extended != nil {
		if left := d.ledger.SpecialOf(p.UID); left != nil {
			d.errand(func(ctx context.Context) error { return d.deleteClaim(ctx, left) })
			return leftoverExtended
		}
	}
	place := w.found[n.Name]
	if place == nil && w != d.last {
		var st *framework.Status
		if place, st = d.place(w, n); st != nil {
			return st
		}
	}
	choice := &deviceChoice{}
	next := 0
	for _, claim := range w.claims {
		x := chosenClaim{claim: claim}
		if claim.Status.Allocation == nil {
			if place == nil || next >= len(place.allocations) {
				return deviceRefusal("claim allocation not found for node")
			}
			x.allocation = &place.allocations[next]
			next++
			d.ledger.Decide(claim.UID, x.allocation)
		}
		choice.claims = append(choice.claims, x)
	}
	if place != nil && place.special != nil {
		special := place.special.DeepCopy()
		special.Name, special.GenerateName = "", p.Name+"-extended-resources-"
		special.Annotations = map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"}
		special.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID, Controller: ptr.To(true),
		}}
		choice.special, choice.mappings = &chosenClaim{special, &place.allocations[next]}, place.mappings
		d.ledger.Decide(pendingSpecial(p.UID), choice.special.allocation)
	}
	if len(choice.claims) == 0 && choice.special == nil {
		return nil
	}
	d.mu.Lock()
	d.chosen[p.UID] = choice
	d.mu.Unlock()
	return nil
}

// Unreserve implements framework.Reserver. What a binder is writing at that moment
// stays decided until it is done.
func (d *DynamicResources) Unreserve(p *framework.Pod, _ *framework.Node) {
	d.mu.Lock()
	choice := d.chosen[p.UID]
	busy := choice != nil && choice.writing
	if busy {
		choice.over = true
	}
	delete(d.chosen, p.UID)
	d.mu.Unlock()
	if busy {
		return
	}
	if choice != nil {
		for _, uid := range choice.pending(p.UID) {
			d.ledger.Revoke(uid)
		}
	}
	if len(p.Spec.ResourceClaims) == 0 && len(p.Class.Requests.Scalar) == 0 {
		return
	}
	// What was written already is given back, the allocation stays.
	claims, err := d.claimsOf(p.Pod)
	if err == nil {
		for _, c := range claims {
			if c.Status.Allocation != nil && resourceclaim.IsReservedForPod(p.Pod, c, false) {
				d.errand(func(ctx context.Context) error { return d.unreserve(ctx, c, p.UID) })
			}
		}
	}
	if special := d.ledger.SpecialOf(p.UID); special != nil {
		d.errand(func(ctx context.Context) error { return d.deleteClaim(ctx, special) })
	}
}

// PostFilter implements framework.PostFilterer: a claim that keeps the pod from
// every node, and that no other pod uses, is given back, to be allocated anew.
func (d *DynamicResources) PostFilter(p *framework.Pod, _ *framework.Snapshot, _ framework.Judged) framework.PostFilterResult {
	if d.last == nil || d.last.class != p.Class {
		return framework.PostFilterResult{}
	}
	for i, claim := range d.last.claims {
		if !d.last.elsewhere[i] {
			continue
		}
		if r := claim.Status.ReservedFor; len(r) > 1 || len(r) == 1 && r[0].UID != p.UID {
			continue
		}
		next := claim.DeepCopy()
		next.Status = resourcev1.ResourceClaimStatus{}
		d.errand(func(ctx context.Context) error {
			_, err := client.For[*resourcev1.ResourceClaim](d.d.Client).UpdateStatus(ctx, next)
			return err
		})
		return framework.PostFilterResult{Message: "deallocation of ResourceClaim completed"}
	}
	return framework.PostFilterResult{}
}

// errand has something written that nobody waits for.
func (d *DynamicResources) errand(f func(context.Context) error) {
	d.mu.Lock()
	d.errands = append(d.errands, f)
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run implements framework.Runner: it runs errands.
func (d *DynamicResources) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		}
		d.mu.Lock()
		todo := d.errands
		d.errands = nil
		d.mu.Unlock()
		for _, f := range todo {
			if err := f(ctx); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
				d.d.Log.Warn("give back devices", "err", err)
			}
		}
	}
}

func (d *DynamicResources) unreserve(ctx context.Context, c *resourcev1.ResourceClaim, pod types.UID) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": c.UID},
		"status":   map[string]any{"reservedFor": []any{map[string]any{"$patch": "delete", "uid": pod}}},
	})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	_, err = client.For[*resourcev1.ResourceClaim](d.d.Client).In(c.Namespace).Patch(ctx, c.Name, types.StrategicMergePatchType, patch, "status")
	return err
}

// deleteClaim deletes a claim that was made for extended resources and not used.
func (d *DynamicResources) deleteClaim(ctx context.Context, c *resourcev1.ResourceClaim) error {
	claims := client.For[*resourcev1.ResourceClaim](d.d.Client).In(c.Namespace)
	uid := c.UID
	for slices.Contains(c.Finalizers, resourcev1.Finalizer) {
		next := c.DeepCopy()
		next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == resourcev1.Finalizer })
		_, err := claims.Update(ctx, next)
		if err == nil {
			break
		}
		if !apierrors.IsConflict(err) {
			return err
		}
		if c, err = claims.Get(ctx, c.Name); err != nil {
			return err
		}
		if c.UID != uid {
			return nil
		}
	}
	return claims.Delete(ctx, c.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
}

// Waits implements framework.Waiter: pods with claims are bound beside the others.
func (d *DynamicResources) Waits(p *framework.Pod) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.chosen[p.UID] != nil
}

// PreBind implements framework.PreBinder.
func (d *DynamicResources) PreBind(ctx context.Context, p *framework.Pod, node string) error {
	d.mu.Lock()
	choice := d.chosen[p.UID]
	if choice == nil {
		d.mu.Unlock()
		return nil
	}
	choice.writing = true
	d.mu.Unlock()
	written, err := d.writeChoice(ctx, p, choice)
	if err == nil {
		err = d.awaitDevices(ctx, p, node, written)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	choice.writing = false
	if choice.over {
		d.news = append(d.news, deviceNews{revoked: choice.pending(p.UID)})
		return errors.Join(err, fmt.Errorf("pod %s/%s does not go to node %q any more", p.Namespace, p.Name, node))
	}
	if err == nil {
		delete(d.chosen, p.UID)
	}
	return err
}

// writeChoice writes allocations and reservations, and returns the claims as they
// are then.
func (d *DynamicResources) writeChoice(ctx context.Context, p *framework.Pod, choice *deviceChoice) ([]*resourcev1.ResourceClaim, error) {
	var out []*resourcev1.ResourceClaim
	for _, x := range choice.claims {
		if resourceclaim.IsReservedForPod(p.Pod, x.claim, false) {
			out = append(out, x.claim)
			continue
		}
		c, err := d.writeClaim(ctx, p, x)
		if err != nil {
			return nil, err
		}
		d.tell(deviceNews{written: c})
		out = append(out, c)
	}
	if choice.special == nil {
		return out, nil
	}
	c, err := client.For[*resourcev1.ResourceClaim](d.d.Client).In(p.Namespace).Create(ctx, choice.special.claim)
	if err != nil {
		return nil, fmt.Errorf("create claim for extended resources %s/%s: %w", p.Namespace, choice.special.claim.GenerateName, err)
	}
	d.tell(deviceNews{written: c})
	if c, err = d.writeClaim(ctx, p, chosenClaim{c, choice.special.allocation}); err != nil {
		return nil, err
	}
	d.mu.Lock()
	// In this order: the devices change hands, and are the claim's at the end.
	d.news = append(d.news, deviceNews{revoked: []types.UID{pendingSpecial(p.UID)}}, deviceNews{written: c})
	d.mu.Unlock()
	if len(choice.mappings) == 0 {
		return nil, fmt.Errorf("nil or empty request mappings, no update of pod %s/%s ExtendedResourceClaimStatus", p.Namespace, p.Name)
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID},
		"status": map[string]any{"extendedResourceClaimStatus": corev1.PodExtendedResourceClaimStatus{
			RequestMappings: choice.mappings, ResourceClaimName: c.Name,
		}},
	})
	if err == nil {
		_, err = client.For[*corev1.Pod](d.d.Client).In(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, "status")
	}
	if err != nil {
		return nil, fmt.Errorf("update pod %s/%s ExtendedResourceClaimStatus: %w", p.Namespace, p.Name, err)
	}
	return append(out, c), nil
}

// claimConflicts bounds how often a claim is read again because others change it.
const claimConflicts = 5

// writeClaim reserves a claim for a pod, and allocates it where that was decided.
// The finalizer comes first, so that an allocated claim never goes unnoticed.
func (d *DynamicResources) writeClaim(ctx context.Context, p *framework.Pod, x chosenClaim) (*resourcev1.ResourceClaim, error) {
	claims := client.For[*resourcev1.ResourceClaim](d.d.Client).In(p.Namespace)
	name := x.claim.Namespace + "/" + x.claim.Name
	c, uid := x.claim, x.claim.UID
	var err error
	for try := 0; ; try++ {
		if try > 0 {
			if c, err = claims.Get(ctx, x.claim.Name); err != nil {
				return nil, fmt.Errorf("get updated claim %s after conflict: %w", name, err)
			}
		}
		var next *resourcev1.ResourceClaim
		if next, err = d.reserveClaim(ctx, p, c, x.allocation, uid); err == nil {
			return next, nil
		}
		if !apierrors.IsConflict(err) || try == claimConflicts {
			return nil, err
		}
	}
}

func (d *DynamicResources) reserveClaim(ctx context.Context, p *framework.Pod, c *resourcev1.ResourceClaim, allocation *resourcev1.AllocationResult, uid types.UID) (*resourcev1.ResourceClaim, error) {
	claims := client.For[*resourcev1.ResourceClaim](d.d.Client).In(c.Namespace)
	name := c.Namespace + "/" + c.Name
	switch {
	case c.UID != uid || c.DeletionTimestamp != nil:
		return nil, fmt.Errorf("claim %s got deleted in the meantime", name)
	case allocation != nil && c.Status.Allocation != nil:
		return nil, fmt.Errorf("claim %s got allocated elsewhere in the meantime", name)
	case allocation == nil && c.Status.Allocation == nil:
		return nil, fmt.Errorf("claim %s got deallocated elsewhere in the meantime", name)
	}
	next := c.DeepCopy()
	what := "reservation"
	if allocation != nil {
		what = "allocation and reservation"
		if !slices.Contains(next.Finalizers, resourcev1.Finalizer) {
			next.Finalizers = append(next.Finalizers, resourcev1.Finalizer)
			got, err := claims.Update(ctx, next)
			if err != nil {
				return nil, fmt.Errorf("add finalizer to claim %s: %w", name, err)
			}
			next = got.DeepCopy()
		}
		next.Status.Allocation = allocation.DeepCopy()
	}
	if next.Status.Allocation.AllocationTimestamp == nil {
		next.Status.Allocation.AllocationTimestamp = ptr.To(metav1.NewTime(d.d.Now()))
	}
	next.Status.ReservedFor = append(next.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p.Name, UID: p.UID})
	got, err := claims.UpdateStatus(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("add %s to claim %s: %w", what, name, err)
	}
	return got, nil
}

var (
	errDeviceTimeout = errors.New("device binding timeout")
	errDeviceFailed  = errors.New("device binding failed")
)

// awaitDevices waits until the drivers say that the devices are ready for the pod
// (KEP-5007).
func (d *DynamicResources) awaitDevices(ctx context.Context, p *framework.Pod, node string, claims []*resourcev1.ResourceClaim) error {
	if !slices.ContainsFunc(claims, conditional) {
		return nil
	}
	d.d.Events.Event(p.Pod, nil, corev1.EventTypeNormal, "BindingConditionsPending", "Scheduling", "waiting for binding conditions for device on node "+node)
	ctx, cancel := context.WithTimeout(ctx, deviceBindTimeout)
	defer cancel()
	for {
		d.mu.Lock()
		changed := d.changed
		d.mu.Unlock()
		ready := true
		var late time.Duration
		for _, was := range claims {
			c, ok := d.claims.Get(was.Namespace, was.Name)
			if !ok || c.UID != was.UID {
				return fmt.Errorf("could not find resourceclaim %q", was.Namespace+"/"+was.Name)
			}
			if c.Status.Allocation == nil {
				ready = false // the informer is behind, or it was taken away
				continue
			}
			done, err := devicesReady(c)
			if err != nil {
				return err
			}
			ready = ready && done
			if left, limited := d.timeLeft(c); !done && limited {
				if left <= 0 {
					return fmt.Errorf("%w: claim=%s", errDeviceTimeout, c.Name)
				}
				late = left
			}
		}
		if ready {
			return nil
		}
		if late == 0 {
			late = deviceBindTimeout
		}
		timer := time.NewTimer(late)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", errDeviceTimeout, ctx.Err())
		}
		timer.Stop()
	}
}

// conditional tells whether devices of a claim have to become ready first.
func conditional(c *resourcev1.ResourceClaim) bool {
	return c.Status.Allocation != nil && slices.ContainsFunc(c.Status.Allocation.Devices.Results,
		func(r resourcev1.DeviceRequestAllocationResult) bool { return len(r.BindingConditions) > 0 })
}

// devicesReady tells whether all devices of an allocated claim are ready for the
// pod; an error says that one never will be.
func devicesReady(c *resourcev1.ResourceClaim) (bool, error) {
	for i := range c.Status.Allocation.Devices.Results {
		r := &c.Status.Allocation.Devices.Results[i]
		if len(r.BindingConditions) == 0 {
			continue
		}
		at := slices.IndexFunc(c.Status.Devices, func(s resourcev1.AllocatedDeviceStatus) bool {
			return s.Driver == r.Driver && s.Pool == r.Pool && s.Device == r.Device
		})
		if at < 0 {
			return false, nil
		}
		conditions := c.Status.Devices[at].Conditions
		for _, name := range r.BindingFailureConditions {
			if f := apimeta.FindStatusCondition(conditions, name); f != nil && f.Status == metav1.ConditionTrue {
				return false, fmt.Errorf("%w: claim=%s, reason=%s, message=%q", errDeviceFailed, c.Name, f.Reason, f.Message)
			}
		}
		for _, name := range r.BindingConditions {
			if !apimeta.IsStatusConditionTrue(conditions, name) {
				return false, nil
			}
		}
	}
	return true, nil
}

// timeLeft is how long the devices of a claim may still take to become ready.
func (d *DynamicResources) timeLeft(c *resourcev1.ResourceClaim) (left time.Duration, limited bool) {
	if a := c.Status.Allocation; a == nil || a.AllocationTimestamp == nil || !conditional(c) {
		return 0, false
	}
	return c.Status.Allocation.AllocationTimestamp.Add(deviceBindTimeout).Sub(d.d.Now()), true
}

// unusable tells that an allocated claim has devices that did not become ready.
func (d *DynamicResources) unusable(c *resourcev1.ResourceClaim) bool {
	ready, err := devicesReady(c)
	if err != nil {
		return true
	}
	left, limited := d.timeLeft(c)
	return !ready && limited && left <= 0
}

// isExtended tells of resources that others than Kubernetes define, and of those
// that name a device class.
func isExtended(name corev1.ResourceName) bool {
	s := string(name)
	return strings.HasPrefix(s, resourcev1.ResourceDeviceClassPrefix) ||
		strings.Contains(s, "/") && !strings.Contains(s, corev1.ResourceDefaultNamespacePrefix) && !strings.HasPrefix(s, corev1.DefaultResourceRequestsPrefix)
}
