package explain

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"skiff/internal/api/explanation"
	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

func claimRef(c *corev1.PersistentVolumeClaim) *explanation.Reference {
	return &explanation.Reference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name}
}

func claimBound(c *corev1.PersistentVolumeClaim) bool {
	_, done := c.Annotations[storage.BindCompleted]
	return done && c.Spec.VolumeName != ""
}

// explainClaim says why a claim is not bound.
func (w *World) explainClaim(c *corev1.PersistentVolumeClaim) *explanation.Explanation {
	out := begin("PersistentVolumeClaim", "v1", c)
	if c.DeletionTimestamp != nil {
		users := each(w.usersOf(c), func(p *corev1.Pod) string { return p.Name })
		out.State, out.Summary = explanation.Ending, "it is deleted, and stays until its finalizers are taken off"
		for _, f := range c.Finalizers {
			why := ""
			if f == "kubernetes.io/pvc-protection" && len(users) > 0 {
				why = ": used by " + and(users)
			}
			cause(out, "Finalizer", "finalizer %s%s", f, why)
		}
		return out
	}
	if c.Status.Phase == corev1.ClaimLost {
		out.State, out.Summary = explanation.Failing, fmt.Sprintf("its volume %s is gone, and the data with it", c.Spec.VolumeName)
		advise(out, "restore the volume from a backup, or delete the claim and create it anew", nil)
		return out
	}
	if claimBound(c) {
		out.State, out.Summary = explanation.Fine, fmt.Sprintf("it is bound to volume %s", c.Spec.VolumeName)
		return out
	}
	out.State = explanation.Failing
	w.whyUnbound(out, c, true)
	if out.State == explanation.Failing {
		for _, ch := range w.claimChanges(c) {
			got, ok := get[*corev1.PersistentVolumeClaim](w.with(ch.storage...).settled(), c.Namespace, c.Name)
			class, _ := get[*storagev1.StorageClass](w.with(ch.storage...), "", storage.ClaimClass(got))
			if ok && (claimBound(got) || storage.Delays(class) && provisions(class)) {
				out.Remedies = append(out.Remedies, explanation.Remedy{Changes: []explanation.Change{ch.shown(nil)}, Proven: true})
			}
		}
	}
	return out
}

// usersOf are the pods that use a claim and have not ended.
func (w *World) usersOf(c *corev1.PersistentVolumeClaim) []*corev1.Pod {
	return slices.DeleteFunc(in[*corev1.Pod](w, c.Namespace), func(p *corev1.Pod) bool {
		return finished(p) || !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return storage.ClaimOf(p, &v) == c.Name })
	})
}

// whyUnbound says why a claim has no volume; with users, why the pod has no node that
// it waits for.
func (w *World) whyUnbound(out *explanation.Explanation, c *corev1.PersistentVolumeClaim, withUsers bool) {
	if name := c.Spec.VolumeName; name != "" {
		v, ok := get[*corev1.PersistentVolume](w, "", name)
		switch {
		case !ok:
			out.Summary = fmt.Sprintf("it names volume %s, which does not exist", name)
		case v.Spec.ClaimRef != nil && !storage.IsFor(v, c):
			out.Summary = fmt.Sprintf("it names volume %s, which belongs to claim %s/%s", name, v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name)
		case storage.Mismatch(c, v) != "":
			out.Summary = fmt.Sprintf("it names volume %s, which does not suit: %s", name, w.unsuited(c, v))
		default:
			out.State, out.Summary = explanation.Waiting, fmt.Sprintf("it is about to be bound to volume %s", name)
		}
		cause(out, "VolumeName", "%s", out.Summary)
		return
	}
	class, known := get[*storagev1.StorageClass](w, "", storage.ClaimClass(c))
	delay := known && storage.Delays(class)
	if v, err := storage.Match(c, all[*corev1.PersistentVolume](w), delay); err == nil && v != nil {
		out.State, out.Summary = explanation.Waiting, fmt.Sprintf("volume %s suits, and is about to be bound to it", v.Name)
		return
	}
	name := storage.ClaimClass(c)
	classes := each(all[*storagev1.StorageClass](w), func(s *storagev1.StorageClass) string { return s.Name })
	switch {
	case !storage.NamesClass(c) && storage.DefaultClass(all[*storagev1.StorageClass](w)) != nil:
		out.State, out.Summary = explanation.Waiting, "it is about to get the default class"
		return
	case !storage.NamesClass(c):
		out.Summary = "it names no storage class, no class is the default, and no volume suits"
		cause(out, "NoClass", "%s", some("the storage class is", classes, "there is no storage class at all"))
	case name == "":
		out.Summary = `it wants no storage class (""), and no volume suits`
	case !known:
		out.Summary = fmt.Sprintf("its storage class %s does not exist", name)
		cause(out, "ClassNotFound", "%s", some("the storage class is", classes, "there is no storage class at all"))
	case delay && c.Annotations[storage.SelectedNode] == "" && (provisions(class) || len(w.usersOf(c)) == 0):
		out.State = explanation.Waiting
		users := w.usersOf(c)
		if len(users) == 0 {
			out.Summary = fmt.Sprintf("it waits for the first pod that uses it (class %s: WaitForFirstConsumer)", name)
			cause(out, "WaitForFirstConsumer", "no pod uses it yet; this is as it should be")
			return
		}
		out.Summary = fmt.Sprintf("it waits until pod %s has a node", users[0].Name)
		if withUsers && users[0].Spec.NodeName == "" {
			out.State = explanation.Failing
			out.Because = append(out.Because, *w.explainPod(users[0]))
			if out.Because[0].State == explanation.Waiting {
				out.State = explanation.Waiting
			}
		}
		return
	case provisions(class):
		out.State, out.Summary = explanation.Waiting, fmt.Sprintf("it waits for %s to make a volume", class.Provisioner)
		if texts := said(w, "PersistentVolumeClaim", c.Namespace, c.Name, "ProvisioningFailed"); len(texts) > 0 {
			out.State, out.Summary = explanation.Failing, fmt.Sprintf("%s could not make a volume", class.Provisioner)
			cause(out, "ProvisioningFailed", "%s", texts[0])
			return
		}
		cause(out, "ExternalProvisioning", "class %s has the provisioner %s, which has not answered", name, class.Provisioner)
		if _, ok := get[*storagev1.CSIDriver](w, "", class.Provisioner); !ok {
			note(out, "No CSI driver of the name %s is installed: is the provisioner running?", class.Provisioner)
		}
		return
	default:
		out.Summary = fmt.Sprintf("no volume suits, and class %s makes none (%s)", name, class.Provisioner)
	}
	w.whyNoVolume(out, c)
}

// whyNoVolume says of the volumes there are why none of them does.
func (w *World) whyNoVolume(out *explanation.Explanation, c *corev1.PersistentVolumeClaim) {
	volumes := all[*corev1.PersistentVolume](w)
	if len(volumes) == 0 {
		cause(out, "NoVolumes", "there is no PersistentVolume")
		return
	}
	groups := map[string][]string{}
	var order []string
	for _, v := range volumes {
		why := w.unsuited(c, v)
		if groups[why] == nil {
			order = append(order, why)
		}
		groups[why] = append(groups[why], v.Name)
	}
	for _, why := range order {
		cause(out, "VolumeMismatch", "%s %s", some("volume", groups[why], ""), why)
	}
}

// unsuited says why a volume cannot be a claim's.
func (w *World) unsuited(c *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) string {
	want := c.Spec.Resources.Requests[corev1.ResourceStorage]
	have := v.Spec.Capacity[corev1.ResourceStorage]
	missing := slices.DeleteFunc(slices.Clone(c.Spec.AccessModes), func(m corev1.PersistentVolumeAccessMode) bool { return slices.Contains(v.Spec.AccessModes, m) })
	switch {
	case v.DeletionTimestamp != nil:
		return "is being deleted"
	case v.Spec.ClaimRef != nil && v.Status.Phase == corev1.VolumeReleased:
		return fmt.Sprintf("is Released: it still refers to the deleted claim %s/%s", v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name)
	case v.Spec.ClaimRef != nil && !storage.IsFor(v, c):
		return fmt.Sprintf("belongs to claim %s/%s", v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name)
	case storage.VolumeClass(v) != storage.ClaimClass(c):
		return fmt.Sprintf("is of class %q, the claim wants %q", storage.VolumeClass(v), storage.ClaimClass(c))
	case have.Cmp(want) < 0:
		return fmt.Sprintf("is too small: it has %s, the claim asks for %s", have.String(), want.String())
	case len(missing) > 0:
		return fmt.Sprintf("has not the access mode %s", strings.Join(each(missing, func(m corev1.PersistentVolumeAccessMode) string { return string(m) }), ","))
	case !storage.SameMode(c, v):
		return "is of another volumeMode (Block or Filesystem)"
	}
	if c.Spec.Selector != nil {
		if s, err := metav1.LabelSelectorAsSelector(c.Spec.Selector); err != nil || !s.Matches(labels.Set(v.Labels)) {
			return fmt.Sprintf("has not the labels that the claim selects (%s)", metav1.FormatLabelSelector(c.Spec.Selector))
		}
	}
	if v.Status.Phase != corev1.VolumeAvailable {
		return fmt.Sprintf("is %s", v.Status.Phase)
	}
	return "is of other attributes"
}

// claimChanges are what might let a claim be bound: another class, less of what no
// volume has, a volume as it asks for.
func (w *World) claimChanges(c *corev1.PersistentVolumeClaim) []change {
	var out []change
	anew := func(key, message string, edit func(*corev1.PersistentVolumeClaim)) {
		next := c.DeepCopy()
		edit(next)
		out = append(out, change{key: "claim " + c.Name + " " + key, message: fmt.Sprintf("claim %s created anew with %s", c.Name, message), storage: []client.Object{next}, target: claimRef(c)})
	}
	classes := all[*storagev1.StorageClass](w)
	_, known := get[*storagev1.StorageClass](w, "", storage.ClaimClass(c))
	if !known && c.Spec.VolumeName == "" {
		for _, s := range classes {
			if !storage.NamesClass(c) && storage.DefaultClass(classes) == nil && provisions(s) {
				next := s.DeepCopy()
				metav1.SetMetaDataAnnotation(&next.ObjectMeta, "storageclass.kubernetes.io/is-default-class", "true")
				with := c.DeepCopy()
				with.Spec.StorageClassName = &s.Name
				out = append(out, change{
					key: "default " + s.Name, message: fmt.Sprintf("make class %s the default", s.Name), storage: []client.Object{next, with},
					target:  &explanation.Reference{APIVersion: "storage.k8s.io/v1", Kind: "StorageClass", Name: s.Name},
					command: fmt.Sprintf("kubectl annotate storageclass %s storageclass.kubernetes.io/is-default-class=true", s.Name),
				})
			}
			anew("class "+s.Name, "class "+s.Name, func(n *corev1.PersistentVolumeClaim) {
				delete(n.Annotations, corev1.BetaStorageClassAnnotation)
				n.Spec.StorageClassName = &s.Name
			})
		}
	}
	var largest *resource.Quantity
	modes := map[string][]corev1.PersistentVolumeAccessMode{}
	for _, v := range all[*corev1.PersistentVolume](w) {
		if v.Spec.ClaimRef != nil || v.DeletionTimestamp != nil || storage.VolumeClass(v) != storage.ClaimClass(c) || c.Spec.VolumeName != "" {
			continue
		}
		if have := v.Spec.Capacity.Storage(); largest == nil || have.Cmp(*largest) > 0 {
			largest = have
		}
		modes[fmt.Sprint(v.Spec.AccessModes)] = v.Spec.AccessModes
	}
	if want := c.Spec.Resources.Requests[corev1.ResourceStorage]; largest != nil && largest.Cmp(want) < 0 {
		anew("size", fmt.Sprintf("a request of %s instead of %s", largest.String(), want.String()), func(n *corev1.PersistentVolumeClaim) {
			n.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: *largest}
		})
	}
	for _, k := range slices.Sorted(maps.Keys(modes)) {
		if fmt.Sprint(c.Spec.AccessModes) != k {
			anew("modes "+k, "access mode "+shownModes(modes[k]), func(n *corev1.PersistentVolumeClaim) { n.Spec.AccessModes = modes[k] })
		}
	}
	if c.Spec.Selector != nil {
		anew("selector", "no selector", func(n *corev1.PersistentVolumeClaim) { n.Spec.Selector = nil })
	}
	return append(out, w.released(c)...)
}

func shownModes(ms []corev1.PersistentVolumeAccessMode) string {
	return strings.Join(each(ms, func(m corev1.PersistentVolumeAccessMode) string { return string(m) }), ",")
}

// released are volumes that lack nothing but to be given free, and a volume as the
// claim asks for.
func (w *World) released(c *corev1.PersistentVolumeClaim) []change {
	var out []change
	for _, v := range all[*corev1.PersistentVolume](w) {
		if v.Status.Phase != corev1.VolumeReleased || v.Spec.ClaimRef == nil || len(out) > 2 {
			continue
		}
		next := v.DeepCopy()
		next.Spec.ClaimRef, next.Status.Phase = nil, corev1.VolumeAvailable
		out = append(out, change{
			key: "release " + v.Name, message: fmt.Sprintf("volume %s is given free (its data stays on it)", v.Name), storage: []client.Object{next},
			target:  &explanation.Reference{APIVersion: "v1", Kind: "PersistentVolume", Name: v.Name},
			command: fmt.Sprintf(`kubectl patch pv %s --type json -p '[{"op":"remove","path":"/spec/claimRef"}]'`, v.Name),
		})
	}
	name := c.Spec.VolumeName
	if name == "" {
		name = "new-for-" + c.Namespace + "-" + c.Name
	}
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: c.Spec.Resources.Requests, AccessModes: c.Spec.AccessModes, StorageClassName: storage.ClaimClass(c), VolumeMode: c.Spec.VolumeMode,
			VolumeAttributesClassName: c.Spec.VolumeAttributesClassName,
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	size := c.Spec.Resources.Requests[corev1.ResourceStorage]
	text := fmt.Sprintf("a PersistentVolume of %s, %s", size.String(), shownModes(c.Spec.AccessModes))
	if class := storage.ClaimClass(c); class != "" {
		text += ", class " + class
	}
	if c.Spec.Selector != nil {
		v.Labels = c.Spec.Selector.MatchLabels
		text += ", labels " + pairs(c.Spec.Selector.MatchLabels)
	}
	if old, taken := get[*corev1.PersistentVolume](w, "", name); taken && old != nil {
		return out
	}
	return append(out, change{key: "volume for " + c.Name, message: text, storage: []client.Object{v}, target: &explanation.Reference{APIVersion: "v1", Kind: "PersistentVolume", Name: name}})
}

const volumeBinding = "VolumeBinding"

// ofVolumes tells whether a plugin looks at a pod's volumes.
func ofVolumes(plugin string) bool {
	return slices.Contains([]string{volumeBinding, "VolumeRestrictions", "NodeVolumeLimits", "VolumeZone"}, plugin)
}

// volumeChanges are what might give a pod its volumes on one of the nodes.
func (m *sim) volumeChanges(p *corev1.Pod, _ []*framework.Node) [][]change {
	var set []change
	var alternatives [][]change
	for i := range p.Spec.Volumes {
		name := storage.ClaimOf(p, &p.Spec.Volumes[i])
		if name == "" {
			continue
		}
		c, ok := get[*corev1.PersistentVolumeClaim](m.w, p.Namespace, name)
		switch {
		case !ok && p.Spec.Volumes[i].Ephemeral != nil:
			// Its controller makes it.
		case !ok:
			set = append(set, m.newClaim(p.Namespace, name))
		case claimBound(c) && slices.Contains(c.Spec.AccessModes, corev1.ReadWriteOncePod):
			for _, o := range m.w.usersOf(c) {
				if o.Spec.NodeName != "" {
					alternatives = append(alternatives, []change{leaves(o)})
				}
			}
		case claimBound(c) || c.DeletionTimestamp != nil:
		default:
			for _, ch := range m.w.claimChanges(c) {
				alternatives = append(alternatives, []change{ch})
			}
		}
	}
	if len(set) > 0 {
		alternatives = append(alternatives, set)
	}
	return alternatives
}

// newClaim is a claim that is missing, of the default class.
func (m *sim) newClaim(ns, name string) change {
	c := &corev1.PersistentVolumeClaim{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}, ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	text := fmt.Sprintf("a claim of the name %s", name)
	classes := all[*storagev1.StorageClass](m.w)
	with := c.DeepCopy()
	if d := storage.DefaultClass(classes); d != nil {
		with.Spec.StorageClassName = &d.Name
		text += fmt.Sprintf(" (class %s is the default)", d.Name)
	}
	return change{key: "claim " + name, message: text, create: c, storage: []client.Object{with}, target: claimRef(c)}
}
