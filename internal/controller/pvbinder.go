package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/control"
)

// waitAgain is how often a claim that waits says again for what.
const waitAgain = 5 * time.Minute

// pvBinder binds claims to volumes, asks provisioners for volumes, and gives
// volumes back when their claims are gone. Keys with a namespace are claims, those
// without are volumes.
//
// A binding is four writes, each of which the next reconciliation takes up where it
// was interrupted: the volume's reference to the claim, its phase, the claim's
// reference to the volume, its phase. The first, on the volume's revision, decides
// between two claims that want the same volume.
type pvBinder struct {
	*control.Controller
	volumes *client.Informer[*corev1.PersistentVolume]
	claims  *client.Informer[*corev1.PersistentVolumeClaim]
	classes *client.Informer[*storagev1.StorageClass]
	pods    *client.Informer[*corev1.Pod]
}

func newPVBinder(d Deps) *control.Controller {
	c := control.New("persistent-volume-binder", d.Deps)
	c.ReportAs("persistentvolume-controller")
	b := &pvBinder{Controller: c}
	b.volumes = control.Watch(c, b.onVolume)
	indexVolumeClaims(b.volumes)
	b.claims = control.Watch(c, b.onClaim)
	b.classes = control.Watch(c, func(ch client.Change[*storagev1.StorageClass]) {
		if !ch.Deleted() {
			b.wakePending(func(p *corev1.PersistentVolumeClaim) bool {
				return storage.ClaimClass(p) == ch.New.Name || !storage.NamesClass(p)
			})
		}
	})
	b.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		// A first consumer, or one that is gone: what a claim waits for, and
		// whether its volume is used, may be another now.
		if ch.Deleted() || ch.Old == nil || podTerminal(ch.New) != podTerminal(ch.Old) {
			for i := range ch.Object().Spec.Volumes {
				if name := storage.ClaimOf(ch.Object(), &ch.Object().Spec.Volumes[i]); name != "" {
					c.Queue.Add(control.Key{Namespace: ch.Object().Namespace, Name: name})
				}
			}
		}
	})
	indexPodClaims(b.pods)
	c.Writes = append(c.Writes,
		control.Rule("", []string{"persistentvolumes"}, "create", "delete", "update"),
		control.Rule("", []string{"persistentvolumeclaims"}, "update"),
		control.Rule("", []string{"persistentvolumes/status", "persistentvolumeclaims/status"}, "update"),
	)
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		if k.Namespace == "" {
			return control.Result{}, b.reconcileVolume(ctx, k)
		}
		return b.reconcileClaim(ctx, k)
	}
	return c
}

func (b *pvBinder) onVolume(ch client.Change[*corev1.PersistentVolume]) {
	v := ch.Object()
	b.Queue.Add(control.KeyOf(v))
	if v.Spec.ClaimRef != nil {
		b.Queue.Add(refKey(v.Spec.ClaimRef))
	}
	if !ch.Deleted() && (ch.Old == nil || ch.Old.Status.Phase != v.Status.Phase || !equality.Semantic.DeepEqual(ch.Old.Spec, v.Spec) || !equality.Semantic.DeepEqual(ch.Old.Labels, v.Labels)) {
		b.wakePending(func(p *corev1.PersistentVolumeClaim) bool {
			return p.Spec.VolumeName == v.Name || p.Spec.VolumeName == "" && v.Status.Phase == corev1.VolumeAvailable && storage.ClaimClass(p) == storage.VolumeClass(v)
		})
	}
}

func (b *pvBinder) onClaim(ch client.Change[*corev1.PersistentVolumeClaim]) {
	p := ch.Object()
	b.Queue.Add(control.KeyOf(p))
	for _, v := range b.volumes.ByIndex(byClaim, claimKey(p)) {
		b.Queue.Add(control.KeyOf(v))
	}
	if p.Spec.VolumeName != "" {
		b.Queue.Add(control.Key{Name: p.Spec.VolumeName})
	}
}

func (b *pvBinder) wakePending(wants func(*corev1.PersistentVolumeClaim) bool) {
	for p := range b.claims.All() {
		if _, done := p.Annotations[storage.BindCompleted]; !done && wants(p) {
			b.Queue.Add(control.KeyOf(p))
		}
	}
}

// word is an event to be recorded.
type word struct{ kind, reason, message string }

// claimPlan is what is to be done for a claim: one of bind, class, ask and phase.
type claimPlan struct {
	// bind is the volume to bind it to.
	bind *corev1.PersistentVolume
	// class is the default one, to be written into a claim that names none.
	class string
	// ask is the provisioner to be asked for a volume.
	ask string
	// phase is what the claim's status is to say.
	phase corev1.PersistentVolumeClaimPhase
	// say is told every time; with once, only when phase changes.
	say  word
	once bool
	// waits asks for the same again after a while.
	waits bool
	// err keeps the claim as it is and brings it back.
	err error
}

// surroundings are what a claim is judged by.
type surroundings struct {
	volume  func(name string) (*corev1.PersistentVolume, bool)
	volumes []*corev1.PersistentVolume
	class   func(name string) (*storagev1.StorageClass, bool)
	classes []*storagev1.StorageClass
	pods    []*corev1.Pod // that use the claim
}

// planClaim decides about a claim.
func planClaim(c *corev1.PersistentVolumeClaim, w surroundings) claimPlan {
	if _, done := c.Annotations[storage.BindCompleted]; done {
		return planBound(c, w)
	}
	if c.Spec.VolumeName != "" {
		return planNamed(c, w)
	}
	class, known := w.class(storage.ClaimClass(c))
	delay := known && storage.Delays(class)
	v, err := storage.Match(c, w.volumes, delay)
	if err != nil {
		return claimPlan{err: fmt.Errorf("error finding PV for claim %q: %w", claimKey(c), err)}
	}
	if v != nil {
		return claimPlan{bind: v}
	}
	if !storage.NamesClass(c) {
		if d := storage.DefaultClass(w.classes); d != nil {
			return claimPlan{class: d.Name}
		}
	}
	_, chosen := c.Annotations[storage.SelectedNode]
	switch {
	case delay && !chosen:
		return claimPlan{phase: corev1.ClaimPending, say: waitsForConsumer(w.pods), waits: true}
	case storage.ClaimClass(c) == "":
		return claimPlan{phase: corev1.ClaimPending, waits: true,
			say: word{corev1.EventTypeNormal, "FailedBinding", "no persistent volumes available for this claim and no storage class is set"}}
	case !known:
		return claimPlan{waits: true, say: word{corev1.EventTypeWarning, "ProvisioningFailed", fmt.Sprintf("storageclass.storage.k8s.io %q not found", storage.ClaimClass(c))}}
	}
	who, err := provisionerOf(class)
	if err != nil {
		return claimPlan{waits: true, say: word{corev1.EventTypeWarning, "ProvisioningFailed", err.Error()}}
	}
	return claimPlan{ask: who, waits: true, say: word{corev1.EventTypeNormal, "ExternalProvisioning", fmt.Sprintf(
		"Waiting for a volume to be created either by the external provisioner '%s' or manually by the system administrator. "+
			"If volume creation is delayed, please verify that the provisioner is running and correctly registered.", who)}}
}

func waitsForConsumer(pods []*corev1.Pod) word {
	var names []string
	for _, p := range pods {
		if !podTerminal(p) && p.Spec.NodeName == "" {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	switch len(names) {
	case 0:
		return word{corev1.EventTypeNormal, "WaitForFirstConsumer", "waiting for first consumer to be created before binding"}
	case 1:
		return word{corev1.EventTypeNormal, "WaitForPodScheduled", fmt.Sprintf("waiting for pod %s to be scheduled", names[0])}
	}
	return word{corev1.EventTypeNormal, "WaitForPodScheduled", fmt.Sprintf("waiting for pods %s to be scheduled", strings.Join(names, ","))}
}

// planNamed decides about an unbound claim that names its volume.
func planNamed(c *corev1.PersistentVolumeClaim, w surroundings) claimPlan {
	v, ok := w.volume(c.Spec.VolumeName)
	switch {
	case !ok:
		return claimPlan{phase: corev1.ClaimPending}
	case v.Spec.ClaimRef == nil:
		if why := storage.Mismatch(c, v); why != "" {
			return claimPlan{phase: corev1.ClaimPending, waits: true,
				say: word{corev1.EventTypeWarning, "VolumeMismatch", fmt.Sprintf("Cannot bind to requested volume %q: %s", v.Name, why)}}
		}
		return claimPlan{bind: v}
	case storage.IsFor(v, c):
		return claimPlan{bind: v}
	}
	p := claimPlan{say: word{corev1.EventTypeWarning, "FailedBinding", fmt.Sprintf("volume %q already bound to a different claim.", v.Name)}}
	if _, ours := c.Annotations[storage.BoundByController]; !ours {
		p.phase, p.waits = corev1.ClaimPending, true
		return p
	}
	p.err = fmt.Errorf("invalid binding of claim %q to volume %q: volume already claimed by %q", claimKey(c), c.Spec.VolumeName, refKey(v.Spec.ClaimRef).String())
	return p
}

// planBound decides about a claim that was bound before.
func planBound(c *corev1.PersistentVolumeClaim, w surroundings) claimPlan {
	lost := func(reason, message string) claimPlan {
		return claimPlan{phase: corev1.ClaimLost, once: true, say: word{corev1.EventTypeWarning, reason, message}}
	}
	if c.Spec.VolumeName == "" {
		return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	}
	v, ok := w.volume(c.Spec.VolumeName)
	switch {
	case !ok:
		return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case v.Spec.ClaimRef == nil, v.Spec.ClaimRef.UID == c.UID:
		return claimPlan{bind: v}
	}
	return lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
}

func (b *pvBinder) reconcileClaim(ctx context.Context, k control.Key) (control.Result, error) {
	c, ok := b.claims.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, nil
	}
	p := planClaim(c, surroundings{
		volume:  func(name string) (*corev1.PersistentVolume, bool) { return b.volumes.Get("", name) },
		volumes: b.candidates(c), pods: b.pods.ByIndex(byClaim, claimKey(c)),
		class:   func(name string) (*storagev1.StorageClass, bool) { return b.classes.Get("", name) },
		classes: b.classes.List("", nil),
	})
	var r control.Result
	if p.waits {
		r.After = waitAgain
	}
	switch {
	case p.bind != nil:
		return r, b.bind(ctx, k, p.bind, c)
	case p.class != "":
		next := c.DeepCopy()
		next.Spec.StorageClassName = &p.class
		_, err := b.updateClaim(ctx, k, next)
		return control.Result{}, ignoreGone(err)
	case p.ask != "":
		next := c.DeepCopy()
		annotateObject(next, storage.StorageProvisioner, p.ask)
		annotateObject(next, storage.BetaStorageProvisioner, p.ask)
		if !equality.Semantic.DeepEqual(next.Annotations, c.Annotations) {
			if _, err := b.updateClaim(ctx, k, next); err != nil {
				if apierrors.IsConflict(err) {
					return r, err
				}
				b.Events.Event(c, corev1.EventTypeWarning, "ProvisioningFailed", "Error saving claim: %v", err)
				return r, ignoreGone(err)
			}
		}
	}
	changed := p.phase != "" && p.phase != c.Status.Phase
	if p.phase != "" {
		if _, err := b.setClaimStatus(ctx, k, c, p.phase, nil); err != nil {
			return r, ignoreGone(err)
		}
	}
	if p.say.reason != "" && (!p.once || changed) {
		b.Events.Event(c, p.say.kind, p.say.reason, "%s", p.say.message)
	}
	return r, p.err
}

// candidates are the volumes that a claim without one could be bound to.
func (b *pvBinder) candidates(c *corev1.PersistentVolumeClaim) []*corev1.PersistentVolume {
	if _, done := c.Annotations[storage.BindCompleted]; done || c.Spec.VolumeName != "" {
		return nil
	}
	return b.volumes.List("", nil)
}

func annotateObject(o client.Object, key, value string) {
	a := o.GetAnnotations()
	if a == nil {
		a = map[string]string{}
	}
	a[key] = value
	o.SetAnnotations(a)
}
