package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

// byPool is the index of slices by driver and pool, and of claims by those of the
// devices that they have.
const byPool = "pool"

func poolKey(driver, pool string) string { return driver + "/" + pool }

// deviceTaints ends pods whose devices have a NoExecute taint that their claims do
// not tolerate, or no longer (KEP-5055), and says in the status of rules what they
// bring about. Keys are pods, and rules, which are in no namespace.
type deviceTaints struct {
	*control.Controller
	now    func() time.Time
	pods   *client.Informer[*corev1.Pod]
	claims *client.Informer[*resourcev1.ResourceClaim]
	slices *client.Informer[*resourcev1.ResourceSlice]
	rules  *client.Informer[*resourcev1.DeviceTaintRule]

	mu      sync.Mutex
	waiting map[control.Key]types.UID // pods whose end is near
	ended   map[types.UID]int64       // pods that a rule ended
}

func newDeviceTaintEviction(d Deps) *control.Controller {
	c := control.New("device-taint-eviction-controller", d.Deps)
	e := &deviceTaints{Controller: c, now: d.Clock(), waiting: map[control.Key]types.UID{}, ended: map[types.UID]int64{}}
	e.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		p := ch.Object()
		if len(p.Spec.ResourceClaims) > 0 || p.Status.ExtendedResourceClaimStatus != nil {
			c.Queue.Add(control.KeyOf(p))
		}
	})
	e.claims = control.Watch(c, func(ch client.Change[*resourcev1.ResourceClaim]) {
		if ch.Old != nil {
			e.enqueueUsers(ch.Old)
		}
		if ch.New != nil {
			e.enqueueUsers(ch.New)
		}
	})
	e.claims.AddIndex(byPool, func(o *resourcev1.ResourceClaim) []string {
		if o.Status.Allocation == nil {
			return nil
		}
		var out []string
		for _, r := range o.Status.Allocation.Devices.Results {
			if key := poolKey(r.Driver, r.Pool); !slices.Contains(out, key) {
				out = append(out, key)
			}
		}
		return out
	})
	e.slices = control.Watch(c, func(ch client.Change[*resourcev1.ResourceSlice]) {
		s := ch.Object()
		if !evicts(ch.Old) && !evicts(ch.New) {
			return
		}
		for _, o := range e.claims.ByIndex(byPool, poolKey(s.Spec.Driver, s.Spec.Pool.Name)) {
			e.enqueueUsers(o)
		}
	})
	e.slices.AddIndex(byPool, func(s *resourcev1.ResourceSlice) []string {
		return []string{poolKey(s.Spec.Driver, s.Spec.Pool.Name)}
	})
	e.rules = control.Watch(c, e.onRule)
	c.Writes = append(c.Writes,
		control.Rule("", []string{"pods"}, "delete"),
		control.Rule("", []string{"pods/status"}, "update", "patch"),
		control.Rule(resourcev1.GroupName, []string{"devicetaintrules/status"}, "update", "patch"),
		control.Rule(resourcev1.GroupName, []string{"deviceclasses"}, "get", "list", "watch"),
	)
	c.Reconcile = e.reconcile
	return c
}

func (e *deviceTaints) onRule(ch client.Change[*resourcev1.DeviceTaintRule]) {
	if ch.Old != nil && ch.New != nil && ch.Old.UID == ch.New.UID && equality.Semantic.DeepEqual(ch.Old.Spec, ch.New.Spec) {
		return
	}
	e.Queue.Add(control.KeyOf(ch.Object()))
	for o := range e.claims.All() {
		if ch.Old != nil && selectsClaim(ch.Old, o) || ch.New != nil && selectsClaim(ch.New, o) {
			e.enqueueUsers(o)
		}
	}
}

func (e *deviceTaints) enqueueUsers(c *resourcev1.ResourceClaim) {
	for _, ref := range c.Status.ReservedFor {
		if ref.APIGroup == "" && ref.Resource == "pods" {
			e.Queue.Add(control.Key{Namespace: c.Namespace, Name: ref.Name})
		}
	}
}

// evicts tells whether a slice has devices that pods must leave.
func evicts(s *resourcev1.ResourceSlice) bool {
	return s != nil && slices.ContainsFunc(s.Spec.Devices, func(d resourcev1.Device) bool {
		return slices.ContainsFunc(d.Taints, func(t resourcev1.DeviceTaint) bool { return t.Effect == resourcev1.DeviceTaintEffectNoExecute })
	})
}

func selectsDevice(rule *resourcev1.DeviceTaintRule, driver, pool, device string) bool {
	s := rule.Spec.DeviceSelector
	return s != nil && ptr.Deref(s.Driver, driver) == driver && ptr.Deref(s.Pool, pool) == pool && ptr.Deref(s.Device, device) == device
}

func selectsClaim(rule *resourcev1.DeviceTaintRule, c *resourcev1.ResourceClaim) bool {
	return c.Status.Allocation != nil && slices.ContainsFunc(c.Status.Allocation.Devices.Results, func(r resourcev1.DeviceRequestAllocationResult) bool {
		return selectsDevice(rule, r.Driver, r.Pool, r.Device)
	})
}

// deviceEnd is when a pod has to leave its devices, and the rules that say so.
type deviceEnd struct {
	at    time.Time
	rules []types.UID
}

// endOf is when a pod has to leave its devices, nil for never. The rules' effects
// are as they say, but for one, which is taken for NoExecute.
func (e *deviceTaints) endOf(p *corev1.Pod, rules []*resourcev1.DeviceTaintRule, but types.UID) *deviceEnd {
	if p.Spec.NodeName == "" {
		return nil
	}
	var out *deviceEnd
	for name, own := range resourceclaim.PodClaims(p) {
		c, ok := e.claims.Get(p.Namespace, name)
		if !ok || c.Status.Allocation == nil || own && resourceclaim.IsForPod(p, c, false) != nil || !resourceclaim.IsReservedForPod(p, c, false) {
			continue
		}
		for i := range c.Status.Allocation.Devices.Results {
			r := &c.Status.Allocation.Devices.Results[i]
			add := func(t resourcev1.DeviceTaint, rule types.UID) {
				at, tolerated := toleratedUntil(t, r.Tolerations)
				if tolerated {
					return
				}
				if out == nil {
					out = &deviceEnd{at: at}
				}
				if at.Before(out.at) {
					out.at = at
				}
				if rule != "" && !slices.Contains(out.rules, rule) {
					out.rules = append(out.rules, rule)
				}
			}
			for _, t := range e.taintsOf(r) {
				add(t, "")
			}
			for _, rule := range rules {
				t := rule.Spec.Taint
				if rule.UID == but {
					t.Effect = resourcev1.DeviceTaintEffectNoExecute
				}
				if t.Effect == resourcev1.DeviceTaintEffectNoExecute && selectsDevice(rule, r.Driver, r.Pool, r.Device) {
					add(t, rule.UID)
				}
			}
		}
	}
	return out
}

// taintsOf are the evicting taints that the newest generation of a pool shows of a
// device.
func (e *deviceTaints) taintsOf(r *resourcev1.DeviceRequestAllocationResult) []resourcev1.DeviceTaint {
	var out []resourcev1.DeviceTaint
	for _, s := range e.current(poolKey(r.Driver, r.Pool)) {
		for i := range s.Spec.Devices {
			if s.Spec.Devices[i].Name != r.Device {
				continue
			}
			for _, t := range s.Spec.Devices[i].Taints {
				if t.Effect == resourcev1.DeviceTaintEffectNoExecute {
					out = append(out, t)
				}
			}
		}
	}
	return out
}

// current are the slices of a pool's newest generation.
func (e *deviceTaints) current(pool string) []*resourcev1.ResourceSlice {
	all := e.slices.ByIndex(byPool, pool)
	var newest int64
	for _, s := range all {
		newest = max(newest, s.Spec.Pool.Generation)
	}
	return slices.DeleteFunc(all, func(s *resourcev1.ResourceSlice) bool { return s.Spec.Pool.Generation != newest })
}

// toleratedUntil is when a taint is tolerated no more; the shortest of the
// tolerations that apply counts, one without an end ends the question.
func toleratedUntil(t resourcev1.DeviceTaint, tolerations []resourcev1.DeviceToleration) (at time.Time, forever bool) {
	if t.TimeAdded != nil {
		at = t.TimeAdded.Time
	}
	shortest := time.Duration(-1)
	for _, tol := range tolerations {
		if tol.Effect != resourcev1.DeviceTaintEffectNoExecute || !resourceclaim.ToleratesTaint(tol, t) {
			continue
		}
		if tol.TolerationSeconds == nil {
			return time.Time{}, true
		}
		if d := time.Duration(max(*tol.TolerationSeconds, 0)) * time.Second; shortest < 0 || d < shortest {
			shortest = d
		}
	}
	return at.Add(max(shortest, 0)), false
}

func (e *deviceTaints) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	if k.Namespace == "" {
		return e.reconcileRule(ctx, k.Name)
	}
	p, ok := e.pods.Get(k.Namespace, k.Name)
	e.mu.Lock()
	uid, waits := e.waiting[k]
	if waits && (!ok || p.UID != uid || p.DeletionTimestamp != nil) {
		delete(e.waiting, k)
		waits = false
	}
	e.mu.Unlock()
	if !ok || p.DeletionTimestamp != nil {
		return control.Result{}, nil
	}
	end := e.endOf(p, e.rules.List("", nil), "")
	if end == nil {
		if waits {
			e.mu.Lock()
			delete(e.waiting, k)
			e.mu.Unlock()
			e.report(p, "Cancelling deletion")
		}
		return control.Result{}, nil
	}
	if !waits {
		e.mu.Lock()
		e.waiting[k] = p.UID
		e.mu.Unlock()
		e.lookAtRules(end.rules)
	}
	if left := end.at.Sub(e.now()); left > 0 {
		return control.Result{After: left}, nil
	}
	return control.Result{}, e.evict(ctx, k, p.UID, end.rules)
}

// lookAtRules has the status of rules written again, after a while.
func (e *deviceTaints) lookAtRules(uids []types.UID) {
	for rule := range e.rules.All() {
		if slices.Contains(uids, rule.UID) {
			e.Queue.AddAfter(control.KeyOf(rule), ruleStatusPeriod)
		}
	}
}

func (e *deviceTaints) report(p *corev1.Pod, what string) {
	ref := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}
	e.Events.EventRef(ref, corev1.EventTypeNormal, "DeviceTaintManagerEviction", "%s", what)
}

// evict marks a pod as disrupted and deletes it.
func (e *deviceTaints) evict(ctx context.Context, k control.Key, uid types.UID, rules []types.UID) error {
	ended, err := endDisrupted(ctx, e.Client, k, uid, func(p *corev1.Pod) func(*corev1.PodStatus) {
		e.report(p, "Marking for deletion")
		return func(s *corev1.PodStatus) {
			disrupt(s, p.Generation, e.now(), "DeletionByDeviceTaintManager", "Device Taint manager: deleting due to NoExecute taint")
		}
	})
	if err != nil || !ended {
		return err
	}
	e.mu.Lock()
	delete(e.waiting, k)
	for _, rule := range rules {
		e.ended[rule]++
	}
	e.mu.Unlock()
	e.lookAtRules(rules)
	return nil
}

// ruleStatusPeriod is how often the status of a rule is written at most.
const ruleStatusPeriod = 10 * time.Second

// reconcileRule says in a rule's status what it does, or would do.
func (e *deviceTaints) reconcileRule(ctx context.Context, name string) (control.Result, error) {
	rule, ok := e.rules.Get("", name)
	if !ok {
		known := map[types.UID]bool{}
		for r := range e.rules.All() {
			known[r.UID] = true
		}
		e.mu.Lock()
		for uid := range e.ended {
			if !known[uid] {
				delete(e.ended, uid)
			}
		}
		e.mu.Unlock()
		return control.Result{}, nil
	}
	var old metav1.Condition
	if i := slices.IndexFunc(rule.Status.Conditions, func(c metav1.Condition) bool {
		return c.Type == resourcev1.DeviceTaintConditionEvictionInProgress
	}); i >= 0 {
		old = rule.Status.Conditions[i]
		if since := e.now().Sub(old.LastTransitionTime.Time); old.ObservedGeneration == rule.Generation && since < ruleStatusPeriod {
			return control.Result{After: ruleStatusPeriod - since}, nil
		}
	}
	next := e.conditionOf(rule)
	next.LastTransitionTime = old.LastTransitionTime
	if next == old {
		return control.Result{}, nil
	}
	next.LastTransitionTime = metav1.NewTime(e.now().Truncate(time.Second))
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": rule.UID}, "status": map[string]any{"conditions": []metav1.Condition{next}}})
	if err != nil {
		return control.Result{}, err
	}
	got, err := client.For[*resourcev1.DeviceTaintRule](e.Client).Patch(ctx, name, types.StrategicMergePatchType, patch, "status")
	if err != nil {
		return control.Result{}, ignoreGone(err)
	}
	control.Wrote(e.Pending, control.Key{Name: name}, e.rules, got)
	return control.Result{}, nil
}

// conditionOf is the condition EvictionInProgress of a rule as things are.
func (e *deviceTaints) conditionOf(rule *resourcev1.DeviceTaintRule) metav1.Condition {
	e.mu.Lock()
	ended := e.ended[rule.UID]
	e.mu.Unlock()
	c := metav1.Condition{Type: resourcev1.DeviceTaintConditionEvictionInProgress, Status: metav1.ConditionFalse, ObservedGeneration: rule.Generation}
	switch rule.Spec.Taint.Effect {
	case resourcev1.DeviceTaintEffectNoExecute:
		pods, spaces := e.affected(rule)
		switch {
		case pods > 0:
			c.Status, c.Reason = metav1.ConditionTrue, "PodsPendingEviction"
			c.Message = counted(pods, "1 pod needs to be evicted in ", "%d pods need to be evicted in ") + counted(spaces, "1 namespace.", "%d different namespaces.")
		case ended > 0:
			c.Reason = "Completed"
		default:
			c.Reason = "NotStarted"
		}
	case resourcev1.DeviceTaintEffectNone:
		published, allocated := e.selected(rule)
		pods, spaces := e.affected(rule)
		c.Reason = "NoEffect"
		c.Message = counted(published, "1 published device selected. ", "%d published devices selected. ") +
			counted(allocated, "1 allocated device selected. ", "%d allocated devices selected. ") +
			counted(pods, "1 pod would be evicted in ", "%d pods would be evicted in ") + counted(spaces, "1 namespace ", "%d different namespaces ") +
			"if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update."
	default:
		c.Reason, c.Message = "OtherEffect", "Eviction only happens for the NoExecute effect."
	}
	if ended > 0 {
		if c.Message != "" {
			c.Message += " "
		}
		c.Message += counted(int(ended), "1 pod ", "%d pods ") + "evicted since starting the controller."
	}
	return c
}

func counted(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return fmt.Sprintf(many, n)
}

// affected counts the pods, and their namespaces, that a rule ends or, were its
// effect NoExecute, would end.
func (e *deviceTaints) affected(rule *resourcev1.DeviceTaintRule) (pods, spaces int) {
	seen := map[types.UID]bool{}
	in := map[string]bool{}
	for c := range e.claims.All() {
		if !selectsClaim(rule, c) {
			continue
		}
		for _, ref := range c.Status.ReservedFor {
			p, ok := e.pods.Get(c.Namespace, ref.Name)
			if !ok || p.UID != ref.UID || p.DeletionTimestamp != nil || seen[p.UID] {
				continue
			}
			if end := e.endOf(p, []*resourcev1.DeviceTaintRule{rule}, rule.UID); end != nil && slices.Contains(end.rules, rule.UID) {
				seen[p.UID], in[p.Namespace] = true, true
			}
		}
	}
	return len(seen), len(in)
}

// selected counts the devices that a rule selects, published ones and allocated ones.
func (e *deviceTaints) selected(rule *resourcev1.DeviceTaintRule) (published, allocated int) {
	newest := map[string]int64{}
	for s := range e.slices.All() {
		key := poolKey(s.Spec.Driver, s.Spec.Pool.Name)
		newest[key] = max(newest[key], s.Spec.Pool.Generation)
	}
	for s := range e.slices.All() {
		if s.Spec.Pool.Generation != newest[poolKey(s.Spec.Driver, s.Spec.Pool.Name)] {
			continue
		}
		for i := range s.Spec.Devices {
			if selectsDevice(rule, s.Spec.Driver, s.Spec.Pool.Name, s.Spec.Devices[i].Name) {
				published++
			}
		}
	}
	for c := range e.claims.All() {
		if c.Status.Allocation == nil {
			continue
		}
		for _, r := range c.Status.Allocation.Devices.Results {
			if selectsDevice(rule, r.Driver, r.Pool, r.Device) {
				allocated++
			}
		}
	}
	return published, allocated
}
