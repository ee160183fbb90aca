package plugins

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/storage/ephemeral"

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
//
// Other than most it looks at more than class and node: it names the nodes, so that
// nothing is kept of what it said.
type VolumeBinding struct {
	c       *client.Client
	volumes *client.Informer[*corev1.PersistentVolume]
	claims  *client.Informer[*corev1.PersistentVolumeClaim]
	classes *client.Informer[*storagev1.StorageClass]
	nodes   *client.Informer[*corev1.Node]

	mu sync.Mutex
	// chosen is what is to be written for a pod that has its node.
	chosen map[types.UID]volumeChoice
	// changed is closed, and made anew, when a volume or a claim changes.
	changed chan struct{}
}

// volumeChoice is what a pod's claims get on a node.
type volumeChoice struct {
	bind      []volumePair
	provision []*corev1.PersistentVolumeClaim
}

type volumePair struct {
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume
}

// NewVolumeBinding returns the plugin; it reads the informers and writes by c.
func NewVolumeBinding(c *client.Client, inf *client.Informers) *VolumeBinding {
	return &VolumeBinding{
		c: c, volumes: client.InformerFor[*corev1.PersistentVolume](inf), claims: client.InformerFor[*corev1.PersistentVolumeClaim](inf),
		classes: client.InformerFor[*storagev1.StorageClass](inf), nodes: client.InformerFor[*corev1.Node](inf),
		chosen: map[types.UID]volumeChoice{}, changed: make(chan struct{}),
	}
}

// Follow implements framework.Follower.
func (v *VolumeBinding) Follow(changed func(framework.Event)) []<-chan struct{} {
	note := func() {
		v.mu.Lock()
		close(v.changed)
		v.changed = make(chan struct{})
		v.mu.Unlock()
		changed(framework.Event{Kind: framework.VolumesChanged})
	}
	v.volumes.OnChange(func(client.Change[*corev1.PersistentVolume]) { note() })
	v.claims.OnChange(func(client.Change[*corev1.PersistentVolumeClaim]) { note() })
	v.classes.OnChange(func(client.Change[*storagev1.StorageClass]) { note() })
	return []<-chan struct{}{v.volumes.Synced(), v.claims.Synced(), v.classes.Synced()}
}

// Name implements framework.Plugin.
func (*VolumeBinding) Name() string { return volumeBinding }

// Events implements framework.Hinter.
func (*VolumeBinding) Events() framework.EventKind {
	return framework.VolumesChanged | framework.NodeAdded | framework.NodeLabels | framework.PodDeleted
}

// Hint implements framework.Hinter.
func (*VolumeBinding) Hint(*framework.Pod, framework.Event) bool { return true }

func refusal(code framework.Code, reason string) *framework.Status {
	return &framework.Status{Code: code, Plugin: volumeBinding, Reasons: []string{reason}}
}

var (
	unboundImmediate   = refusal(framework.Unresolvable, "pod has unbound immediate PersistentVolumeClaims")
	volumeNodeConflict = refusal(framework.Unresolvable, "node(s) didn't match PersistentVolume's node affinity")
	noVolumes          = refusal(framework.Unresolvable, "node(s) didn't find available persistent volumes to bind")
	volumeNotFound     = refusal(framework.Unresolvable, "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")
)

// podVolumes are the claims of a class's pods: those bound, and those for which a
// node is to be chosen.
type podVolumes struct {
	bound   []*corev1.PersistentVolume
	missing bool // a claim is bound to a volume that is not there
	delayed []delayedClaim
}

type delayedClaim struct {
	claim *corev1.PersistentVolumeClaim
	class *storagev1.StorageClass
}

// PreFilter implements framework.PreFilterer.
func (v *VolumeBinding) PreFilter(c *framework.Class) (any, []string, *framework.Status) {
	state, st := v.claimsOf(c.Template)
	if st != nil {
		return nil, nil, st
	}
	if state == nil {
		return nil, nil, &framework.Status{Code: framework.Skip}
	}
	names := []string{}
	for n := range v.nodes.All() {
		names = append(names, n.Name)
	}
	return state, names, nil
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
		c, ok := v.claims.Get(p.Namespace, name)
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
			pv, ok := v.volumes.Get("", c.Spec.VolumeName)
			if !ok {
				out.missing = true
				continue
			}
			out.bound = append(out.bound, pv)
			continue
		}
		class, ok := v.classes.Get("", storage.ClaimClass(c))
		if !ok || !storage.Delays(class) || c.Spec.VolumeName != "" {
			immediate = true
			continue
		}
		out.delayed = append(out.delayed, delayedClaim{c, class})
	}
	if immediate {
		return nil, unboundImmediate
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
	if p.missing {
		return out, volumeNotFound
	}
	for _, pv := range p.bound {
		if !storage.Reaches(pv, n) {
			return out, volumeNodeConflict
		}
	}
	if len(p.delayed) == 0 {
		return out, nil
	}
	free := v.free(n)
	for _, d := range p.delayed {
		if node, ok := d.claim.Annotations[storage.SelectedNode]; ok {
			if node != n.Name {
				return out, noVolumes
			}
			out.provision = append(out.provision, d.claim)
			continue
		}
		pv, err := storage.Match(d.claim, free, false)
		switch {
		case err != nil:
			return out, refusal(framework.Unresolvable, err.Error())
		case pv != nil:
			out.bind = append(out.bind, volumePair{d.claim, pv})
			free = slices.DeleteFunc(free, func(o *corev1.PersistentVolume) bool { return o == pv })
		case d.class.Provisioner == "kubernetes.io/no-provisioner" || !storage.Allows(d.class.AllowedTopologies, n.Labels):
			return out, noVolumes
		default:
			out.provision = append(out.provision, d.claim)
		}
	}
	return out, nil
}

// free are the volumes that a node reaches and that no pod before was given.
func (v *VolumeBinding) free(n *corev1.Node) []*corev1.PersistentVolume {
	v.mu.Lock()
	taken := map[string]bool{}
	for _, c := range v.chosen {
		for _, b := range c.bind {
			taken[b.volume.Name] = true
		}
	}
	v.mu.Unlock()
	return slices.DeleteFunc(v.volumes.List("", nil), func(pv *corev1.PersistentVolume) bool {
		return taken[pv.Name] || !storage.Reaches(pv, n)
	})
}

// Explain implements framework.Explainer.
func (v *VolumeBinding) Explain(c *framework.Class, n *framework.Node) string {
	p, st := v.claimsOf(c.Template)
	if st == nil && p != nil && n.Obj != nil {
		_, st = v.choose(p, n.Obj)
	}
	switch st {
	case nil:
		return ""
	case volumeNodeConflict:
		return "A volume of the pod can be used on other nodes alone: its node affinity says which."
	case noVolumes:
		return "There is no volume here for a claim of the pod, and its class can make none here."
	case unboundImmediate:
		return "A claim of the pod is not bound and its class does not wait for a pod: its events say what it needs."
	}
	return st.Reasons[0]
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
	v.mu.Lock()
	v.chosen[p.UID] = choice
	v.mu.Unlock()
	return nil
}

// Unreserve implements framework.Reserver.
func (v *VolumeBinding) Unreserve(p *framework.Pod, _ *framework.Node) { v.forget(p.UID) }

func (v *VolumeBinding) forget(uid types.UID) {
	v.mu.Lock()
	delete(v.chosen, uid)
	v.mu.Unlock()
}

// Waits implements framework.Waiter.
func (v *VolumeBinding) Waits(p *framework.Pod) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	c, ok := v.chosen[p.UID]
	return ok && len(c.bind)+len(c.provision) > 0
}

// PreBind implements framework.PreBinder.
func (v *VolumeBinding) PreBind(ctx context.Context, p *framework.Pod, node string) error {
	v.mu.Lock()
	choice, ok := v.chosen[p.UID]
	v.mu.Unlock()
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
	ctx, cancel := context.WithTimeout(ctx, bindTimeout)
	defer cancel()
	for {
		v.mu.Lock()
		changed := v.changed
		v.mu.Unlock()
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
		c, ok := v.claims.Get(was.Namespace, was.Name)
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
		pv, ok := v.volumes.Get("", c.Spec.VolumeName)
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
