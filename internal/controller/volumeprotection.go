package controller

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/control"
)

// Finalizers that keep what is in use; admission puts them on.
const (
	pvProtection  = "kubernetes.io/pv-protection"
	pvcProtection = "kubernetes.io/pvc-protection"
	vacProtection = "kubernetes.io/vac-protection"
)

// protected says which finalizers an object is to have: name goes from one that is
// deleted and not used, and comes to one that is not deleted and lacks it. changed
// tells that these are not the ones it has.
func protected(o metav1.Object, name string, used bool) (finalizers []string, changed bool) {
	has := slices.Contains(o.GetFinalizers(), name)
	switch {
	case o.GetDeletionTimestamp() == nil && !has:
		return append(slices.Clone(o.GetFinalizers()), name), true
	case o.GetDeletionTimestamp() != nil && has && !used:
		return slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == name }), true
	}
	return o.GetFinalizers(), false
}

// protect writes the finalizers that protected wants.
func protect[T client.Object](ctx context.Context, c *control.Controller, inf *client.Informer[T], o T, name string, used bool) error {
	finalizers, changed := protected(o, name, used)
	if !changed {
		return nil
	}
	next := o.DeepCopyObject().(T)
	next.SetFinalizers(finalizers)
	got, err := client.For[T](c.Client).Update(ctx, next)
	if err != nil {
		return ignoreGone(err)
	}
	control.Wrote(c.Pending, control.KeyOf(o), inf, got)
	return nil
}

// newPVProtection keeps volumes that are bound.
func newPVProtection(d Deps) *control.Controller {
	c := control.New("pv-protection-controller", d.Deps)
	volumes := control.Watch(c, control.Enqueue[*corev1.PersistentVolume](c))
	c.Writes = append(c.Writes, control.Rule("", []string{"persistentvolumes"}, "update"))
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		v, ok := volumes.Get("", k.Name)
		if !ok {
			return control.Result{}, nil
		}
		return control.Result{}, protect(ctx, c, volumes, v, pvProtection, v.Status.Phase == corev1.VolumeBound)
	}
	return c
}

// newVACProtection keeps classes of volume attributes that claims or volumes use.
func newVACProtection(d Deps) *control.Controller {
	c := control.New("volumeattributesclass-protection-controller", d.Deps)
	classes := control.Watch(c, control.Enqueue[*storagev1.VolumeAttributesClass](c))
	add := func(names ...*string) {
		for _, n := range names {
			if n != nil && *n != "" {
				c.Queue.Add(control.Key{Name: *n})
			}
		}
	}
	of := func(p *corev1.PersistentVolumeClaim) []*string {
		out := []*string{p.Spec.VolumeAttributesClassName, p.Status.CurrentVolumeAttributesClassName}
		if m := p.Status.ModifyVolumeStatus; m != nil {
			out = append(out, &m.TargetVolumeAttributesClassName)
		}
		return out
	}
	claims := control.Watch(c, func(ch client.Change[*corev1.PersistentVolumeClaim]) {
		if ch.Old != nil {
			add(of(ch.Old)...)
		}
	})
	volumes := control.Watch(c, func(ch client.Change[*corev1.PersistentVolume]) {
		if ch.Old != nil {
			add(ch.Old.Spec.VolumeAttributesClassName)
		}
	})
	c.Writes = append(c.Writes, control.Rule(storagev1.GroupName, []string{"volumeattributesclasses"}, "update"))
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		class, ok := classes.Get("", k.Name)
		if !ok {
			return control.Result{}, nil
		}
		is := func(n *string) bool { return ptr.Deref(n, "") == class.Name }
		used := slices.ContainsFunc(claims.List("", nil), func(p *corev1.PersistentVolumeClaim) bool { return slices.ContainsFunc(of(p), is) }) ||
			slices.ContainsFunc(volumes.List("", nil), func(v *corev1.PersistentVolume) bool { return is(v.Spec.VolumeAttributesClassName) })
		return control.Result{}, protect(ctx, c, classes, class, vacProtection, used)
	}
	return c
}

// pvcProtector keeps claims that pods use, and says of bound ones since when none
// does.
type pvcProtector struct {
	*control.Controller
	now    func() time.Time
	claims *client.Informer[*corev1.PersistentVolumeClaim]
	pods   *client.Informer[*corev1.Pod]
}

func newPVCProtection(d Deps) *control.Controller {
	c := control.New("pvc-protection-controller", d.Deps)
	p := &pvcProtector{Controller: c, now: d.Clock()}
	p.claims = control.Watch(c, control.Enqueue[*corev1.PersistentVolumeClaim](c))
	p.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		o := ch.Object()
		if !ch.Deleted() && ch.Old != nil && ch.Old.UID == o.UID && podTerminal(ch.Old) == podTerminal(o) &&
			ch.Old.Spec.NodeName == o.Spec.NodeName && podShutDown(ch.Old) == podShutDown(o) {
			return
		}
		for i := range o.Spec.Volumes {
			if name := storage.ClaimOf(o, &o.Spec.Volumes[i]); name != "" {
				c.Queue.Add(control.Key{Namespace: o.Namespace, Name: name})
			}
		}
	})
	indexPodClaims(p.pods)
	c.Writes = append(c.Writes,
		control.Rule("", []string{"persistentvolumeclaims", "persistentvolumeclaims/status"}, "update"),
		control.Rule("", []string{"pods"}, "list"),
	)
	c.Reconcile = p.reconcile
	return c
}

// podShutDown tells that a pod's containers are gone and only its object is left.
func podShutDown(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil && p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 0
}

// uses tells whether a pod has a volume of claim c; ephemeral ones count where also
// does.
func uses(p *corev1.Pod, c *corev1.PersistentVolumeClaim, also bool) bool {
	return p.Namespace == c.Namespace && slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == c.Name ||
			also && v.Ephemeral != nil && ephemeral.VolumeClaimName(p, &v) == c.Name && ephemeral.VolumeIsForPod(p, c) == nil
	})
}

// holdsClaim tells whether a pod keeps a claim from going: one that was never on a
// node does not.
func holdsClaim(p *corev1.Pod, c *corev1.PersistentVolumeClaim) bool {
	return p.Spec.NodeName != "" && uses(p, c, !podShutDown(p))
}

func claimUsed(p *corev1.Pod, c *corev1.PersistentVolumeClaim) bool {
	return !podTerminal(p) && uses(p, c, true)
}

func (p *pvcProtector) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	c, ok := p.claims.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	any := func(test func(*corev1.Pod, *corev1.PersistentVolumeClaim) bool, pods []*corev1.Pod) bool {
		return slices.ContainsFunc(pods, func(o *corev1.Pod) bool { return test(o, c) })
	}
	known := p.pods.ByIndex(byClaim, claimKey(c))
	if c.DeletionTimestamp == nil && c.Status.Phase == corev1.ClaimBound {
		used := any(claimUsed, known)
		if !used {
			var err error
			if used, err = p.live(ctx, c, claimUsed); err != nil {
				return control.Result{}, err
			}
		}
		if next := unusedCondition(c, used, metav1.NewTime(p.now().Truncate(time.Second))); next != nil {
			got, err := client.For[*corev1.PersistentVolumeClaim](p.Client).UpdateStatus(ctx, next)
			if err != nil {
				return control.Result{}, ignoreGone(err)
			}
			control.Wrote(p.Pending, k, p.claims, got)
			c = got
		}
	}
	used := any(holdsClaim, known)
	if !used && c.DeletionTimestamp != nil && slices.Contains(c.Finalizers, pvcProtection) {
		var err error
		if used, err = p.live(ctx, c, holdsClaim); err != nil {
			return control.Result{}, err
		}
	}
	return control.Result{}, protect(ctx, p.Controller, p.claims, c, pvcProtection, used)
}

// live asks the API itself: a pod of which the informer has not heard yet counts.
func (p *pvcProtector) live(ctx context.Context, c *corev1.PersistentVolumeClaim, test func(*corev1.Pod, *corev1.PersistentVolumeClaim) bool) (bool, error) {
	pods, _, err := client.For[*corev1.Pod](p.Client).In(c.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(pods, func(o *corev1.Pod) bool { return test(o, c) }), nil
}

// unusedCondition is c with the condition Unused as it is to be, nil where it is so.
func unusedCondition(c *corev1.PersistentVolumeClaim, used bool, now metav1.Time) *corev1.PersistentVolumeClaim {
	want := corev1.PersistentVolumeClaimCondition{
		Type: corev1.PersistentVolumeClaimUnused, Status: corev1.ConditionTrue, LastTransitionTime: now,
		Reason: "NoPodsUsingPVC", Message: "No pods are currently referencing this PVC",
	}
	if used {
		want.Status, want.Reason, want.Message = corev1.ConditionFalse, "PodUsingPVC", "A pod is currently referencing this PVC"
	}
	i := slices.IndexFunc(c.Status.Conditions, func(o corev1.PersistentVolumeClaimCondition) bool { return o.Type == want.Type })
	if i >= 0 && (c.Status.Conditions[i].Status == corev1.ConditionTrue) != used {
		return nil
	}
	next := c.DeepCopy()
	if i >= 0 {
		next.Status.Conditions[i] = want
	} else {
		next.Status.Conditions = append(next.Status.Conditions, want)
	}
	return next
}
