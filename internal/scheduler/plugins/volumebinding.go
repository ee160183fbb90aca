package plugins

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/ephemeral"
	config "k8s.io/kube-scheduler/config/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

const volumeBinding = "VolumeBinding"

// bindTimeout is how long a pod that has its node waits for its volumes.
const bindTimeout = 10 * time.Minute

// VolumeBinding places pods where their volumes are or can be: bound ones by their
// node affinity, claims of classes that wait for their first consumer by the
// volumes there are, or where one can be provisioned. What it chose is written
// before the pod is bound, which then waits until its claims are.
type VolumeBinding struct {
	c     *client.Client
	s     *Storage
	wait  time.Duration
	shape func(requested, capacity int64) int64
	nodes *client.Informer[*corev1.Node]
}

// volumeChoice is what a pod's claims get on a node.
type volumeChoice struct {
	bind      []volumePair
	provision []*corev1.PersistentVolumeClaim
	// rooms are what the drivers said that they have, nil where they say nothing.
	rooms []*storagev1.CSIStorageCapacity
}

type volumePair struct {
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume
}

// NewVolumeBinding returns the plugin with arguments that were defaulted and
// validated; it writes by c.
func NewVolumeBinding(c *client.Client, s *Storage, inf *client.Informers, args *config.VolumeBindingArgs) *VolumeBinding {
	v := &VolumeBinding{c: c, s: s, wait: bindTimeout, nodes: client.InformerFor[*corev1.Node](inf)}
	v.shape = ratio(args.Shape)
	if len(args.Shape) == 0 {
		v.shape = ratio([]config.UtilizationShapePoint{{Utilization: 0, Score: 10}, {Utilization: 100, Score: 0}})
	}
	if args.BindTimeoutSeconds != nil {
		v.wait = time.Duration(*args.BindTimeoutSeconds) * time.Second
	}
	return v
}

// Watch implements framework.Watcher.
func (v *VolumeBinding) Watch(tell func(framework.Event)) []<-chan struct{} {
	return v.s.watch(tell)
}

// Name implements framework.Plugin.
func (*VolumeBinding) Name() string { return volumeBinding }

func refusal(code framework.Code, reason string) *framework.Status {
	return &framework.Status{Code: code, Plugin: volumeBinding, Reasons: []string{reason}}
}

var unboundImmediate = refusal(framework.Unresolvable, "pod has unbound immediate PersistentVolumeClaims")

// What speaks against a node, as bits: several may.
const (
	volumeElsewhere = 1 << iota
	noVolumes
	volumeNotFound
	noSpace
	volumeFaults
)

var volumeRefusals = makeVolumeRefusals()

func makeVolumeRefusals() (out [volumeFaults]*framework.Status) {
	reasons := map[int]string{
		volumeElsewhere: "node(s) didn't match PersistentVolume's node affinity",
		noVolumes:       "node(s) didn't find available persistent volumes to bind",
		volumeNotFound:  "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)",
		noSpace:         "node(s) did not have enough free storage",
	}
	for bits := 1; bits < volumeFaults; bits++ {
		out[bits] = refusal(framework.Unresolvable, "")
		out[bits].Reasons = nil
		for bit := 1; bit < volumeFaults; bit <<= 1 {
			if bits&bit != 0 {
				out[bits].Reasons = append(out[bits].Reasons, reasons[bit])
			}
		}
	}
	return out
}

// podVolumes are the claims of a class's pods: those bound, and those for which a
// node is to be chosen.
type podVolumes struct {
	bound   []*corev1.PersistentVolume
	missing bool // a claim is bound to a volume that is not there
	delayed []delayedClaim
	unbound []*corev1.PersistentVolume // what delayed claims may get
}

type delayedClaim struct {
	claim *corev1.PersistentVolumeClaim
	class *storagev1.StorageClass
}

// PreFilter implements framework.PreFilterer.
func (*VolumeBinding) PreFilter(*framework.Class) (any, []string, *framework.Status) {
	return nil, nil, skip
}

// Surveys implements framework.Surveyor.
func (*VolumeBinding) Surveys(c *framework.Class) bool { return len(c.Claims) > 0 }

// Survey implements framework.Surveyor.
func (v *VolumeBinding) Survey(c *framework.Class, _ *framework.Snapshot) (any, []string, *framework.Status) {
	state, st := v.claimsOf(c.Template)
	if st != nil {
		return nil, nil, st
	}
	return state, nil, nil
}

// claimsOf sorts a pod's claims; nil where it has none.
func (v *VolumeBinding) claimsOf(p *corev1.Pod) (*podVolumes, *framework.Status) {
	var out *podVolumes
	immediate := false
	for i := range p.Spec.Volumes {
		vol := &p.Spec.Volumes[i]
		name := storage.ClaimOf(p, vol)
		if name == "" {
			continue
		}
		if out == nil {
			out = &podVolumes{}
		}
		c, ok := v.s.claims.Get(p.Namespace, name)
		switch {
		case !ok && vol.Ephemeral != nil:
			return nil, refusal(framework.Unresolvable, fmt.Sprintf("waiting for ephemeral volume controller to create the persistentvolumeclaim %q", name))
		case !ok:
			return nil, refusal(framework.Unresolvable, fmt.Sprintf("persistentvolumeclaim %q not found", name))
		case c.Status.Phase == corev1.ClaimLost:
			return nil, refusal(framework.Unresolvable, fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, c.Spec.VolumeName))
		case c.DeletionTimestamp != nil:
			return nil, refusal(framework.Unresolvable, fmt.Sprintf("persistentvolumeclaim %q is being deleted", name))
		}
		if vol.Ephemeral != nil {
			if err := ephemeral.VolumeIsForPod(p, c); err != nil {
				return nil, refusal(framework.Unresolvable, err.Error())
			}
		}
		if _, done := c.Annotations[storage.BindCompleted]; done && c.Spec.VolumeName != "" {
			pv, ok := v.s.volumes.Get("", c.Spec.VolumeName)
			if !ok {
				out.missing = true
				continue
			}
			out.bound = append(out.bound, pv)
			continue
		}
		class, ok := v.s.classes.Get("", storage.ClaimClass(c))
		if !ok || !storage.Delays(class) || c.Spec.VolumeName != "" {
			immediate = true
			continue
		}
		out.delayed = append(out.delayed, delayedClaim{c, class})
	}
	if immediate {
		return nil, unboundImmediate
	}
	if out != nil && len(out.delayed) > 0 {
		// The smallest first: they must not take the large volumes.
		slices.SortStableFunc(out.delayed, func(a, b delayedClaim) int {
			x, y := a.claim.Spec.Resources.Requests[corev1.ResourceStorage], b.claim.Spec.Resources.Requests[corev1.ResourceStorage]
			return x.Cmp(y)
		})
		out.unbound = v.unbound(out.delayed)
	}
	return out, nil
}

// Filter implements framework.Filterer.
func (v *VolumeBinding) Filter(state any, _ *framework.Class, n *framework.Node) *framework.Status {
	p, ok := state.(*podVolumes)
	if !ok || p == nil || n.Obj == nil {
		return nil
	}
	_, st := v.choose(p, n.Obj)
	return st
}

// choose says what a pod's claims get on a node, or why they get nothing there.
func (v *VolumeBinding) choose(p *podVolumes, n *corev1.Node) (volumeChoice, *framework.Status) {
	var out volumeChoice
	faults := 0
	if p.missing {
		faults |= volumeNotFound
	}
	for _, pv := range p.bound {
		if !storage.Reaches(pv, n) {
			faults |= volumeElsewhere
			break
		}
	}
	if len(p.delayed) == 0 {
		return out, volumeRefusals[faults]
	}
	var provision, rest []delayedClaim
	for _, d := range p.delayed {
		switch node, ok := d.claim.Annotations[storage.SelectedNode]; {
		case !ok:
			rest = append(rest, d)
		case node != n.Name:
			return out, volumeRefusals[faults|noVolumes]
		default:
			provision = append(provision, d)
		}
	}
	free := v.free(p, n)
	for _, d := range rest {
		pv, err := storage.Match(d.claim, free, false)
		switch {
		case err != nil:
			return out, refusal(framework.Unresolvable, err.Error())
		case pv == nil:
			provision = append(provision, d)
		default:
			out.bind = append(out.bind, volumePair{d.claim, pv})
			free = slices.DeleteFunc(free, func(o *corev1.PersistentVolume) bool { return o == pv })
		}
	}
	for _, d := range provision {
		if d.class.Provisioner == "kubernetes.io/no-provisioner" || !storage.Allows(d.class.AllowedTopologies, n.Labels) {
			return out, volumeRefusals[faults|noVolumes]
		}
		room, ok := v.s.room(d, n)
		if !ok {
			return out, volumeRefusals[faults|noSpace]
		}
		out.provision, out.rooms = append(out.provision, d.claim), append(out.rooms, room)
	}
	return out, volumeRefusals[faults]
}

// free are the volumes that a node reaches and that no pod before was given.
func (v *VolumeBinding) free(p *podVolumes, n *corev1.Node) []*corev1.PersistentVolume {
	var out []*corev1.PersistentVolume
	for _, pv := range p.unbound {
		if storage.Reaches(pv, n) {
			out = append(out, pv)
		}
	}
	return out
}

// unbound are the volumes of the classes of delayed claims that no pod before was
// given.
func (v *VolumeBinding) unbound(delayed []delayedClaim) []*corev1.PersistentVolume {
	v.s.mu.Lock()
	taken := map[string]bool{}
	for _, c := range v.s.chosen {
		for _, b := range c.bind {
			taken[b.volume.Name] = true
		}
	}
	v.s.mu.Unlock()
	var out []*corev1.PersistentVolume
	for pv := range v.s.volumes.All() {
		if pv.Status.Phase == corev1.VolumeBound || taken[pv.Name] {
			continue
		}
		if slices.ContainsFunc(delayed, func(d delayedClaim) bool { return storage.VolumeClass(pv) == storage.ClaimClass(d.claim) }) {
			out = append(out, pv)
		}
	}
	// The smallest that does is taken, by name where several are alike.
	slices.SortFunc(out, func(a, b *corev1.PersistentVolume) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// PreScore implements framework.PreScorer.
func (v *VolumeBinding) PreScore(c *framework.Class) (any, *framework.Status) {
	if len(c.Claims) == 0 {
		return nil, skip
	}
	p, st := v.claimsOf(c.Template)
	if st != nil || p == nil || len(p.delayed) == 0 {
		return nil, skip
	}
	return p, nil
}

// Score implements framework.Scorer: how much is left of the volumes that the claims
// would get, or of where they would be made, by the configured shape; the mean over
// the storage classes.
func (v *VolumeBinding) Score(state any, _ *framework.Class, n *framework.Node, _ *framework.Snapshot) int64 {
	choice, st := v.choose(state.(*podVolumes), n.Obj)
	if st != nil {
		return 0
	}
	requested, capacity := map[string]int64{}, map[string]int64{}
	for _, b := range choice.bind {
		class := storage.ClaimClass(b.claim)
		want, have := b.claim.Spec.Resources.Requests[corev1.ResourceStorage], b.volume.Spec.Capacity[corev1.ResourceStorage]
		requested[class] += want.Value()
		capacity[class] += have.Value()
	}
	for i, c := range choice.provision {
		room := choice.rooms[i]
		if len(choice.bind) > 0 || room == nil || room.Capacity == nil {
			continue
		}
		class, want := storage.ClaimClass(c), c.Spec.Resources.Requests[corev1.ResourceStorage]
		requested[class] += want.Value()
		capacity[class] = room.Capacity.Value() // one for all of the class
	}
	if len(capacity) == 0 {
		return 0
	}
	var sum int64
	for class, have := range capacity {
		if have <= 0 {
			sum += v.shape(1, 0)
			continue
		}
		sum += v.shape(requested[class], have)
	}
	return int64(math.Round(float64(sum) / float64(len(capacity))))
}

// Explain implements framework.Explainer.
func (v *VolumeBinding) Explain(c *framework.Class, n *framework.Node) string {
	p, st := v.claimsOf(c.Template)
	if st == nil && p != nil && n.Obj != nil {
		_, st = v.choose(p, n.Obj)
	}
	if st == nil {
		return ""
	}
	switch st {
	case unboundImmediate:
		return "A claim of the pod is not bound and its class does not wait for a pod: its events say what it needs."
	case volumeRefusals[volumeElsewhere]:
		return "A volume of the pod can be used on other nodes alone: its node affinity says which."
	case volumeRefusals[noVolumes]:
		return "There is no volume here for a claim of the pod, and its class can make none here."
	case volumeRefusals[noSpace]:
		return "The driver of a claim's class has no room for it here, as its CSIStorageCapacity objects say."
	}
	return st.Reasons[0]
}

// Events implements framework.Hinter.
func (*VolumeBinding) Events() framework.EventKind {
	return framework.VolumesChanged | framework.CSINodeChanged | framework.NodeAdded | framework.NodeLabels
}

// Hint implements framework.Hinter.
func (*VolumeBinding) Hint(p *framework.Pod, e framework.Event) bool {
	switch {
	case e.Kind&framework.ClaimChanged != 0:
		_, ours := claimChanged(p, e)
		return ours
	case e.Kind&framework.StorageClassChanged != 0:
		now, ok := e.Object.(*storagev1.StorageClass)
		was, had := e.OldObject.(*storagev1.StorageClass)
		return ok && (!had || !equality.Semantic.DeepEqual(was.AllowedTopologies, now.AllowedTopologies))
	case e.Kind&framework.CapacityChanged != 0:
		now, ok := e.Object.(*storagev1.CSIStorageCapacity)
		was, had := e.OldObject.(*storagev1.CSIStorageCapacity)
		if !ok || !had {
			return ok
		}
		a, b := largest(was), largest(now)
		return b != nil && (a == nil || b.Cmp(*a) > 0)
	case e.Kind&framework.CSIDriverChanged != 0:
		now, ok := e.Object.(*storagev1.CSIDriver)
		was, had := e.OldObject.(*storagev1.CSIDriver)
		return ok && had && ptr.Deref(was.Spec.StorageCapacity, false) && !ptr.Deref(now.Spec.StorageCapacity, false)
	case e.Kind&framework.VolumeChanged != 0:
		return e.Object != nil
	}
	return true
}

// room tells whether the driver of a class can make a volume for a claim that a node
// can use, by what it says of its capacity (KEP 1472). A driver that says nothing
// can.
func (s *Storage) room(d delayedClaim, n *corev1.Node) (*storagev1.CSIStorageCapacity, bool) {
	size, ok := d.claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if !ok {
		return nil, true
	}
	driver, ok := s.drivers.Get("", d.class.Provisioner)
	if !ok || !ptr.Deref(driver.Spec.StorageCapacity, false) {
		return nil, true
	}
	for c := range s.capacities.All() {
		if c.StorageClassName != d.class.Name || c.NodeTopology == nil {
			continue
		}
		if most := largest(c); most == nil || most.Cmp(size) < 0 {
			continue
		}
		if sel, err := metav1.LabelSelectorAsSelector(c.NodeTopology); err == nil && sel.Matches(labels.Set(n.Labels)) {
			return c, true
		}
	}
	return nil, false
}

// largest is the size of the largest volume that can be made, nil where none.
func largest(c *storagev1.CSIStorageCapacity) *resource.Quantity {
	if c.MaximumVolumeSize != nil {
		return c.MaximumVolumeSize
	}
	return c.Capacity
}

// Reserve implements framework.Reserver.
func (v *VolumeBinding) Reserve(p *framework.Pod, n *framework.Node) *framework.Status {
	claims, st := v.claimsOf(p.Pod)
	if st != nil || claims == nil || n.Obj == nil {
		return st
	}
	choice, st := v.choose(claims, n.Obj)
	if st != nil {
		return st
	}
	v.s.mu.Lock()
	v.s.chosen[p.UID] = choice
	v.s.mu.Unlock()
	return nil
}

// Unreserve implements framework.Reserver.
func (v *VolumeBinding) Unreserve(p *framework.Pod, _ *framework.Node) { v.forget(p.UID) }

func (v *VolumeBinding) forget(uid types.UID) {
	v.s.mu.Lock()
	delete(v.s.chosen, uid)
	v.s.mu.Unlock()
}

// Waits implements framework.Waiter.
func (v *VolumeBinding) Waits(p *framework.Pod) bool {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	c, ok := v.s.chosen[p.UID]
	return ok && len(c.bind)+len(c.provision) > 0
}

// PreBind implements framework.PreBinder.
func (v *VolumeBinding) PreBind(ctx context.Context, p *framework.Pod, node string) error {
	v.s.mu.Lock()
	choice, ok := v.s.chosen[p.UID]
	v.s.mu.Unlock()
	if !ok {
		return nil
	}
	defer v.forget(p.UID)
	for _, b := range choice.bind {
		if err := v.reserveVolume(ctx, b); err != nil {
			return err
		}
	}
	for i, c := range choice.provision {
		var err error
		if choice.provision[i], err = v.selectNode(ctx, c, node); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, v.wait)
	defer cancel()
	for {
		changed := v.s.next()
		if done, err := v.bound(choice, node); done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("binding volumes: %w", ctx.Err())
		}
	}
}

// reserveVolume makes a volume refer to its claim: the binder completes the rest.
func (v *VolumeBinding) reserveVolume(ctx context.Context, b volumePair) error {
	if storage.IsFor(b.volume, b.claim) && b.volume.Spec.ClaimRef.UID == b.claim.UID {
		return nil
	}
	next := b.volume.DeepCopy()
	if !storage.IsFor(b.volume, b.claim) {
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, storage.BoundByController, "yes")
	}
	next.Spec.ClaimRef = storage.Reference(b.claim)
	if _, err := client.For[*corev1.PersistentVolume](v.c).Update(ctx, next); err != nil {
		return fmt.Errorf("bind volume %s: %w", next.Name, err)
	}
	return nil
}

// selectNode tells the provisioner where the volume is wanted, and returns the claim
// that says so.
func (v *VolumeBinding) selectNode(ctx context.Context, c *corev1.PersistentVolumeClaim, node string) (*corev1.PersistentVolumeClaim, error) {
	claims, uid := client.For[*corev1.PersistentVolumeClaim](v.c).In(c.Namespace), c.UID
	for {
		switch c.Annotations[storage.SelectedNode] {
		case node:
			return c, nil
		case "":
		default:
			return nil, fmt.Errorf("pvc %s/%s was given to another node meanwhile", c.Namespace, c.Name)
		}
		next := c.DeepCopy()
		metav1.SetMetaDataAnnotation(&next.ObjectMeta, storage.SelectedNode, node)
		got, err := claims.Update(ctx, next)
		if !apierrors.IsConflict(err) {
			return got, err
		}
		if c, err = claims.Get(ctx, c.Name); err != nil {
			return nil, err
		}
		if c.UID != uid {
			return nil, fmt.Errorf("pvc %s/%s was deleted", c.Namespace, c.Name)
		}
	}
}

// behind tells that a is older than b.
func behind(a, b *corev1.PersistentVolumeClaim) bool {
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errX == nil && errY == nil && x < y
}

// bound tells whether all claims of a choice are bound, and fails where they never
// will be on this node.
func (v *VolumeBinding) bound(choice volumeChoice, node string) (bool, error) {
	n, ok := v.nodes.Get("", node)
	if !ok {
		return false, fmt.Errorf("node %q is gone", node)
	}
	done := true
	check := func(was *corev1.PersistentVolumeClaim, provisioned bool) error {
		c, ok := v.s.claims.Get(was.Namespace, was.Name)
		if !ok || c.UID != was.UID {
			return fmt.Errorf("pvc %s/%s was deleted", was.Namespace, was.Name)
		}
		if _, complete := c.Annotations[storage.BindCompleted]; !complete {
			done = false
			if provisioned && !behind(c, was) && c.Annotations[storage.SelectedNode] == "" {
				return fmt.Errorf("selectedNode annotation reset for PVC %q", c.Name)
			}
			return nil
		}
		pv, ok := v.s.volumes.Get("", c.Spec.VolumeName)
		if !ok {
			done = false // the informer is behind
			return nil
		}
		if !storage.Reaches(pv, n) {
			return fmt.Errorf("pv %q node affinity doesn't match node %q", pv.Name, node)
		}
		return nil
	}
	for _, b := range choice.bind {
		if err := check(b.claim, false); err != nil {
			return false, err
		}
	}
	for _, c := range choice.provision {
		if err := check(c, true); err != nil {
			return false, err
		}
	}
	return done, nil
}
