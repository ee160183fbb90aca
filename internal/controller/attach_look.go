package controller

import (
	"cmp"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	// byVolume is the index of PersistentVolumes, of pods (for volumes that stand in
	// them) and of nodes (that list it) by the unique name of a volume.
	byVolume = "attachable"
	// bySource is the index of VolumeAttachments by what they attach: the name of a
	// PersistentVolume, or the unique name of an inline volume.
	bySource = "source"
)

func sourceKey(o *storagev1.VolumeAttachment) string {
	if s := o.Spec.Source.InlineVolumeSpec; s != nil {
		x, _ := storage.AttachableSpec(s)
		return string(x.Name)
	}
	return ptr.Deref(o.Spec.Source.PersistentVolumeName, "")
}

func inlineNames(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.Volumes {
		if x, ok := storage.AttachableInline(p.Namespace, &p.Spec.Volumes[i]); ok {
			out = append(out, string(x.Name))
		}
	}
	return out
}

// look is a volume as it is now, with all its nodes where it is exclusive, otherwise
// with the one named; with none named, with all.
func (a *attachDetach) look(name corev1.UniqueVolumeName, node string) *attachedVolume {
	v := &attachedVolume{}
	pods, found := a.users(name, &v.Attachable)
	if !found {
		v.Attachable, _ = storage.AttachableNamed(name)
	}
	v.Name = name
	names := []string{node}
	if v.Exclusive || node == "" {
		names = a.nodesOf(v, pods)
	}
	for _, n := range names {
		v.nodes = append(v.nodes, a.lookAt(v, n, pods[n]))
	}
	return v
}

// lookAt is a volume on a node as it is now.
func (a *attachDetach) lookAt(v *attachedVolume, name string, pods []*corev1.Pod) attachment {
	x := attachment{node: name, pods: pods}
	a.mu.Lock()
	x.attachmentMemory = a.places[v.Name][name]
	inUse, known := a.left[name]
	a.mu.Unlock()
	if n, ok := a.nodes.Get("", name); ok {
		_, x.there = n.Annotations[storage.ManagedAttach]
		x.ready = nodeReady(n) == corev1.ConditionTrue
		x.outOfService = outOfService(n)
		x.listed = slices.ContainsFunc(n.Status.VolumesAttached, func(l corev1.AttachedVolume) bool { return l.Name == v.Name })
		inUse, known = n.Status.VolumesInUse, true
	}
	x.inUse = !known || slices.Contains(inUse, v.Name)
	if v.Driver != "" {
		x.object, _ = a.objects.Get("", storage.AttachmentName(v.Driver, v.Handle, name))
	}
	return x
}

// users finds the pods that want a volume, by their node, and how it is attached:
// what of is set to. It tells whether anything has that volume.
func (a *attachDetach) users(name corev1.UniqueVolumeName, of *storage.Attachable) (pods map[string][]*corev1.Pod, found bool) {
	pods = map[string][]*corev1.Pod{}
	wanted := false
	add := func(x storage.Attachable, list []*corev1.Pod) {
		if !found || !wanted && len(list) > 0 {
			*of = x
		}
		found, wanted = true, wanted || len(list) > 0
		for _, p := range list {
			if n := p.Spec.NodeName; !slices.Contains(pods[n], p) {
				pods[n] = append(pods[n], p)
			}
		}
	}
	volumes := a.volumes.ByIndex(byVolume, string(name))
	slices.SortFunc(volumes, func(x, y *corev1.PersistentVolume) int { return cmp.Compare(x.Name, y.Name) })
	for _, pv := range volumes {
		if x, ok := storage.AttachableVolume(pv); ok {
			add(x, a.needing(x, a.claimants(pv)))
		}
	}
	inline := a.pods.ByIndex(byVolume, string(name))
	slices.SortFunc(inline, func(x, y *corev1.Pod) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	for _, p := range inline {
		for i := range p.Spec.Volumes {
			if x, ok := storage.AttachableInline(p.Namespace, &p.Spec.Volumes[i]); ok && x.Name == name && p.Spec.NodeName != "" && !podOver(p) {
				add(x, a.needing(x, []*corev1.Pod{p}))
			}
		}
	}
	for _, list := range pods {
		slices.SortFunc(list, func(x, y *corev1.Pod) int {
			return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
		})
	}
	return pods, found
}

// wanting are the pods of a node that want a volume now.
func (a *attachDetach) wanting(v *attachedVolume, node string) []*corev1.Pod {
	pods, _ := a.users(v.Name, &storage.Attachable{})
	return pods[node]
}

// needing is pods where the volume's driver has its volumes attached.
func (a *attachDetach) needing(x storage.Attachable, pods []*corev1.Pod) []*corev1.Pod {
	if x.Driver != "" && !a.attaches(x.Driver) {
		return nil
	}
	return pods
}

func (a *attachDetach) attaches(driver string) bool {
	d, ok := a.drivers.Get("", driver)
	return !ok || ptr.Deref(d.Spec.AttachRequired, true)
}

// claimants are the pods on nodes that use the claim to which a volume is bound.
func (a *attachDetach) claimants(pv *corev1.PersistentVolume) []*corev1.Pod {
	r := pv.Spec.ClaimRef
	if r == nil {
		return nil
	}
	c, ok := a.claims.Get(r.Namespace, r.Name)
	if !ok || c.UID != r.UID || c.Status.Phase != corev1.ClaimBound || c.Spec.VolumeName != pv.Name {
		return nil
	}
	var out []*corev1.Pod
	for _, p := range a.pods.ByIndex(byClaim, claimKey(c)) {
		if p.Spec.NodeName != "" && !podOver(p) && mayUse(p, c) {
			out = append(out, p)
		}
	}
	return out
}

// mayUse tells whether a pod has a volume of a claim: one for an ephemeral volume is
// its own pod's alone.
func mayUse(p *corev1.Pod, c *corev1.PersistentVolumeClaim) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
		return storage.ClaimOf(p, &v) == c.Name && (v.Ephemeral == nil || ephemeral.VolumeIsForPod(p, c) == nil)
	})
}

// podOver tells that a pod needs its volumes attached no more: it has ended, or it is
// deleted and none of its containers run.
func podOver(p *corev1.Pod) bool {
	if podTerminal(p) {
		return true
	}
	if p.DeletionTimestamp == nil {
		return false
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if s := &list[i].State; s.Terminated == nil && s.Waiting == nil {
				return false
			}
		}
	}
	return true
}

func outOfService(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// nodesOf are the nodes that have to do with a volume.
func (a *attachDetach) nodesOf(v *attachedVolume, pods map[string][]*corev1.Pod) []string {
	nodes := map[string]bool{}
	for n := range pods {
		nodes[n] = true
	}
	for _, n := range a.nodes.ByIndex(byVolume, string(v.Name)) {
		nodes[n.Name] = true
	}
	a.mu.Lock()
	for n := range a.places[v.Name] {
		nodes[n] = true
	}
	a.mu.Unlock()
	sources := []string{string(v.Name)}
	for _, pv := range a.volumes.ByIndex(byVolume, string(v.Name)) {
		sources = append(sources, pv.Name)
	}
	for _, s := range sources {
		for _, o := range a.objects.ByIndex(bySource, s) {
			nodes[o.Spec.NodeName] = true
		}
	}
	return slices.Sorted(maps.Keys(nodes))
}

// wakeVolume has all attachments of a volume looked at.
func (a *attachDetach) wakeVolume(x storage.Attachable) {
	a.Queue.Add(control.Key{Namespace: string(x.Name)})
}

// wakeNamed has the attachment of a volume to a node looked at.
func (a *attachDetach) wakeNamed(name corev1.UniqueVolumeName, node string) {
	if x, ok := storage.AttachableNamed(name); ok {
		a.Queue.Add(attachKey(&x, node))
	}
}

func (a *attachDetach) onPod(ch client.Change[*corev1.Pod]) {
	p := ch.Object()
	if p.Spec.NodeName == "" || len(p.Spec.Volumes) == 0 {
		return
	}
	if !ch.Deleted() && ch.Old != nil && ch.Old.UID == p.UID && ch.Old.Spec.NodeName == p.Spec.NodeName && podOver(ch.Old) == podOver(p) {
		return
	}
	a.wakePod(p)
}

// wakePod has the attachments that a pod on a node wants looked at.
func (a *attachDetach) wakePod(p *corev1.Pod) {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if name := storage.ClaimOf(p, v); name != "" {
			for _, pv := range a.volumes.ByIndex(byClaim, p.Namespace+"/"+name) {
				if x, ok := storage.AttachableVolume(pv); ok {
					a.Queue.Add(attachKey(&x, p.Spec.NodeName))
				}
			}
		} else if x, ok := storage.AttachableInline(p.Namespace, v); ok {
			a.Queue.Add(attachKey(&x, p.Spec.NodeName))
		}
	}
}

func (a *attachDetach) onClaim(ch client.Change[*corev1.PersistentVolumeClaim]) {
	c := ch.Object()
	if !ch.Deleted() && ch.Old != nil && ch.Old.UID == c.UID && ch.Old.Status.Phase == c.Status.Phase && ch.Old.Spec.VolumeName == c.Spec.VolumeName {
		return
	}
	for _, pv := range a.volumes.ByIndex(byClaim, claimKey(c)) {
		if x, ok := storage.AttachableVolume(pv); ok {
			a.wakeVolume(x)
		}
	}
}

func (a *attachDetach) onVolume(ch client.Change[*corev1.PersistentVolume]) {
	if !ch.Deleted() && ch.Old != nil && equality.Semantic.DeepEqual(ch.Old.Spec, ch.New.Spec) {
		return
	}
	for _, pv := range []*corev1.PersistentVolume{ch.Old, ch.New} {
		if pv == nil {
			continue
		}
		if x, ok := storage.AttachableVolume(pv); ok {
			a.wakeVolume(x)
		}
	}
}

func (a *attachDetach) onObject(ch client.Change[*storagev1.VolumeAttachment]) {
	o := ch.Object()
	if x, ok := a.volumeOf(o); ok {
		a.Queue.Add(attachKey(&x, o.Spec.NodeName))
	}
}

// volumeOf is the volume that an object of this controller attaches; false for those
// of others.
func (a *attachDetach) volumeOf(o *storagev1.VolumeAttachment) (storage.Attachable, bool) {
	var x storage.Attachable
	if s := o.Spec.Source.InlineVolumeSpec; s != nil {
		x, _ = storage.AttachableSpec(s)
	} else if pv, ok := a.volumes.Get("", ptr.Deref(o.Spec.Source.PersistentVolumeName, "")); ok {
		x, _ = storage.AttachableVolume(pv)
	} else {
		x, _ = storage.AttachableNamed(a.ownerOf(o))
	}
	return x, x.Driver != "" && o.Name == storage.AttachmentName(x.Driver, x.Handle, o.Spec.NodeName)
}

// ownerOf is the volume of an object whose PersistentVolume is gone: it is known from
// before, or the node still names it.
func (a *attachDetach) ownerOf(o *storagev1.VolumeAttachment) corev1.UniqueVolumeName {
	a.mu.Lock()
	name, known := a.owners[o.Name]
	a.mu.Unlock()
	if known {
		return name
	}
	n, ok := a.nodes.Get("", o.Spec.NodeName)
	if !ok {
		return ""
	}
	names := slices.Clone(n.Status.VolumesInUse)
	for _, l := range n.Status.VolumesAttached {
		names = append(names, l.Name)
	}
	for _, name := range names {
		if x, ok := storage.AttachableNamed(name); ok && x.Driver != "" && o.Name == storage.AttachmentName(x.Driver, x.Handle, n.Name) {
			return name
		}
	}
	return ""
}

func (a *attachDetach) onNodeChange(ch client.Change[*corev1.Node]) {
	n := ch.Object()
	a.mu.Lock()
	delete(a.left, n.Name)
	if ch.Deleted() && len(a.onNode[n.Name]) > 0 {
		a.left[n.Name] = n.Status.VolumesInUse
	}
	a.mu.Unlock()
	old := &corev1.Node{}
	if ch.Old != nil && !ch.Deleted() {
		old = ch.Old
	}
	changed := different(attachedNames(old), attachedNames(n))
	for _, name := range changed {
		a.wakeNamed(name, n.Name)
	}
	if len(changed) > 0 || ch.Old == nil {
		a.Queue.Add(control.Key{Name: n.Name})
	}
	for _, name := range different(old.Status.VolumesInUse, n.Status.VolumesInUse) {
		a.wakeNamed(name, n.Name)
	}
	_, managed := n.Annotations[storage.ManagedAttach]
	_, wasManaged := old.Annotations[storage.ManagedAttach]
	if !ch.Deleted() && ch.Old != nil && managed == wasManaged && nodeReady(old) == nodeReady(n) && outOfService(old) == outOfService(n) {
		return
	}
	for _, name := range a.volumesOn(n.Name) {
		a.wakeNamed(name, n.Name)
	}
	for _, p := range a.pods.ByIndex(byNode, n.Name) {
		a.wakePod(p)
	}
}

func attachedNames(n *corev1.Node) []corev1.UniqueVolumeName {
	var out []corev1.UniqueVolumeName
	for _, l := range n.Status.VolumesAttached {
		out = append(out, l.Name)
	}
	return out
}

// different are the names that one of two lists has and the other lacks.
func different(a, b []corev1.UniqueVolumeName) []corev1.UniqueVolumeName {
	var out []corev1.UniqueVolumeName
	if slices.Equal(a, b) {
		return nil
	}
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			out = append(out, x)
		}
	}
	return out
}

// onDriver looks at the volumes of a driver that begins or ends to have them attached.
func (a *attachDetach) onDriver(ch client.Change[*storagev1.CSIDriver]) {
	d := ch.Object()
	if !ch.Deleted() && ch.Old != nil && ptr.Deref(ch.Old.Spec.AttachRequired, true) == ptr.Deref(d.Spec.AttachRequired, true) {
		return
	}
	for pv := range a.volumes.All() {
		if x, ok := storage.AttachableVolume(pv); ok && x.Driver == d.Name {
			a.wakeVolume(x)
		}
	}
	for p := range a.pods.All() {
		for _, name := range inlineNames(p) {
			if x, ok := storage.AttachableNamed(corev1.UniqueVolumeName(name)); ok && x.Driver == d.Name {
				a.wakeVolume(x)
			}
		}
	}
}

// sooner is the earlier of two times, zero being never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
