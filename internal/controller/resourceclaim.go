package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

// Indices of pods, by the resource claims and the templates of such that they use;
// and of claims by the UID of the pod that owns them. Values are namespace/name.
const (
	byResourceClaim = "resourceclaim"
	byClaimTemplate = "resourceclaimtemplate"
	byOwningPod     = "owningpod"
)

func indexResourceClaims(pods *client.Informer[*corev1.Pod]) {
	pods.AddIndex(byResourceClaim, func(p *corev1.Pod) []string {
		var out []string
		for name := range resourceclaim.PodClaims(p) {
			out = append(out, p.Namespace+"/"+name)
		}
		return out
	})
}

// resourceClaims makes the resource claims of pods from their templates, says in the
// pods' status what they are called, and reserves allocated ones for pods that were
// put on a node past the scheduler. Keys are pods.
type resourceClaims struct {
	*control.Controller
	pods      *client.Informer[*corev1.Pod]
	claims    *client.Informer[*resourcev1.ResourceClaim]
	templates *client.Informer[*resourcev1.ResourceClaimTemplate]
}

func newResourceClaim(d Deps) *control.Controller {
	c := control.New("resource-claim-controller", d.Deps)
	c.ReportAs("resource_claim")
	r := &resourceClaims{Controller: c}
	enqueue := func(p *corev1.Pod) {
		if len(p.Spec.ResourceClaims) > 0 && p.DeletionTimestamp == nil && !podTerminal(p) {
			c.Queue.Add(control.KeyOf(p))
		}
	}
	r.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		if !ch.Deleted() {
			enqueue(ch.New)
		}
	})
	indexResourceClaims(r.pods)
	r.pods.AddIndex(byClaimTemplate, func(p *corev1.Pod) []string {
		var out []string
		for i := range p.Spec.ResourceClaims {
			if t := p.Spec.ResourceClaims[i].ResourceClaimTemplateName; t != nil {
				out = append(out, p.Namespace+"/"+*t)
			}
		}
		return out
	})
	r.claims = control.Watch(c, func(ch client.Change[*resourcev1.ResourceClaim]) {
		for _, p := range r.pods.ByIndex(byResourceClaim, control.KeyOf(ch.Object()).String()) {
			enqueue(p)
		}
	})
	r.claims.AddIndex(byOwningPod, func(o *resourcev1.ResourceClaim) []string {
		if _, uid := owningPod(o); uid != "" {
			return []string{o.Namespace + "/" + string(uid)}
		}
		return nil
	})
	r.templates = control.Watch(c, func(ch client.Change[*resourcev1.ResourceClaimTemplate]) {
		if ch.Deleted() {
			return
		}
		for _, p := range r.pods.ByIndex(byClaimTemplate, control.KeyOf(ch.New).String()) {
			enqueue(p)
		}
	})
	c.Writes = append(c.Writes,
		control.Rule("", []string{"pods/finalizers"}, "update"),
		control.Rule("", []string{"pods/status"}, "update", "patch"),
		control.Rule(resourcev1.GroupName, []string{"resourceclaims"}, "create", "delete"),
		control.Rule(resourcev1.GroupName, []string{"resourceclaims", "resourceclaims/status", "resourceclaims/binding"}, "update", "patch"),
	)
	c.Reconcile = r.reconcile
	return c
}

// owningPod is the pod for which a claim was made.
func owningPod(c *resourcev1.ResourceClaim) (string, types.UID) {
	for _, o := range c.OwnerReferences {
		if ptr.Deref(o.Controller, false) && o.APIVersion == "v1" && o.Kind == "Pod" {
			return o.Name, o.UID
		}
	}
	return "", ""
}

func (r *resourceClaims) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	p, ok := r.pods.Get(k.Namespace, k.Name)
	if !ok || p.DeletionTimestamp != nil || podTerminal(p) {
		return control.Result{}, nil
	}
	made := map[string]string{}
	for i := range p.Spec.ResourceClaims {
		ref := &p.Spec.ResourceClaims[i]
		name, err := r.ensure(ctx, k, p, ref)
		if namespaceTerminating(err) {
			return control.Result{}, nil
		}
		if err != nil {
			r.Events.Event(p, corev1.EventTypeWarning, "FailedResourceClaimCreation", "PodResourceClaim %s: %v", ref.Name, err)
			return control.Result{}, fmt.Errorf("pod %s, PodResourceClaim %s: %w", k, ref.Name, err)
		}
		if name != "" {
			made[ref.Name] = name
		}
	}
	if len(made) > 0 {
		if err := r.tell(ctx, k, p, made); err != nil {
			return control.Result{}, fmt.Errorf("update pod %s ResourceClaimStatuses: %w", k, err)
		}
		return control.Result{}, nil // the pod's change brings it back
	}
	if p.Spec.NodeName == "" {
		return control.Result{}, nil
	}
	return control.Result{}, r.reserve(ctx, k, p)
}

func namespaceTerminating(err error) bool {
	return err != nil && apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

// ensure returns the name of the claim that was made for one of a pod's references,
// "" where the status has it or none is to be made.
func (r *resourceClaims) ensure(ctx context.Context, k control.Key, p *corev1.Pod, ref *corev1.PodResourceClaim) (string, error) {
	name, own, err := resourceclaim.Name(p, ref)
	switch {
	case errors.Is(err, resourceclaim.ErrClaimNotFound):
	case err != nil:
		return "", fmt.Errorf("checking for claim before creating it: %w", err)
	case name == nil:
		return "", nil // the claim turned out not to be needed
	case !own:
		return "", nil // who names a claim makes it
	default:
		c, ok := r.claims.Get(p.Namespace, *name)
		if !ok {
			if c, err = client.For[*resourcev1.ResourceClaim](r.Client).In(p.Namespace).Get(ctx, *name); err != nil && !apierrors.IsNotFound(err) {
				return "", fmt.Errorf("checking claim existence: %w", err)
			}
			ok = err == nil
		}
		if ok && resourceclaim.IsForPod(p, c, false) == nil {
			return "", nil
		}
	}
	for _, c := range r.claims.ByIndex(byOwningPod, p.Namespace+"/"+string(p.UID)) {
		if c.Annotations[resourcev1.PodResourceClaimAnnotation] == ref.Name {
			return c.Name, nil
		}
	}
	t, ok := r.templates.Get(p.Namespace, *ref.ResourceClaimTemplateName)
	if !ok {
		return "", fmt.Errorf("resource claim template %q: %w", *ref.ResourceClaimTemplateName,
			apierrors.NewNotFound(resourcev1.Resource("resourceclaimtemplate"), *ref.ResourceClaimTemplateName))
	}
	c, err := client.For[*resourcev1.ResourceClaim](r.Client).In(p.Namespace).Create(ctx, claimFromTemplate(p, ref.Name, t))
	if err != nil {
		return "", fmt.Errorf("create ResourceClaim : %w", err)
	}
	control.Wrote(r.Pending, k, r.claims, c)
	return c.Name, nil
}

// claimNameLimit leaves room for what makes a generated name unique.
const claimNameLimit = 57

// claimFromTemplate is the claim that a pod's reference of that name stands for.
func claimFromTemplate(p *corev1.Pod, ref string, t *resourcev1.ResourceClaimTemplate) *resourcev1.ResourceClaim {
	annotations := maps.Clone(t.Spec.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[resourcev1.PodResourceClaimAnnotation] = ref
	name := p.Name + "-" + ref + "-"
	if n := len(name); n > claimNameLimit {
		// Both parts get shorter by the same share.
		name = p.Name[:len(p.Name)*claimNameLimit/n] + "-" + ref[:len(ref)*claimNameLimit/n]
	}
	return &resourcev1.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: name, Annotations: annotations, Labels: maps.Clone(t.Spec.Labels),
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID, Controller: ptr.To(true)}},
		},
		Spec: *t.Spec.Spec.DeepCopy(),
	}
}

// tell writes the names of claims into a pod's status, beside those that are there.
func (r *resourceClaims) tell(ctx context.Context, k control.Key, p *corev1.Pod, made map[string]string) error {
	for _, s := range p.Status.ResourceClaimStatuses {
		if _, ok := made[s.Name]; !ok && s.ResourceClaimName != nil {
			made[s.Name] = *s.ResourceClaimName
		}
	}
	var statuses []corev1.PodResourceClaimStatus
	for _, name := range slices.Sorted(maps.Keys(made)) {
		statuses = append(statuses, corev1.PodResourceClaimStatus{Name: name, ResourceClaimName: ptr.To(made[name])})
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID}, "status": map[string]any{"resourceClaimStatuses": statuses},
	})
	if err != nil {
		return err
	}
	got, err := client.For[*corev1.Pod](r.Client).In(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, "status")
	if err != nil {
		return ignoreGone(err)
	}
	control.Wrote(r.Pending, k, r.pods, got)
	return nil
}

// reserve reserves the allocated claims of a pod that has its node already.
func (r *resourceClaims) reserve(ctx context.Context, k control.Key, p *corev1.Pod) error {
	for i := range p.Spec.ResourceClaims {
		name, own, err := resourceclaim.Name(p, &p.Spec.ResourceClaims[i])
		if err != nil {
			return err
		}
		if name == nil {
			continue
		}
		c, ok := r.claims.Get(p.Namespace, *name)
		if !ok {
			return nil // its coming brings the pod back
		}
		if own {
			if err := resourceclaim.IsForPod(p, c, false); err != nil {
				return err
			}
		}
		if c.Status.Allocation == nil || resourceclaim.IsReservedForPod(p, c, false) || !resourceclaim.CanBeReserved(c) {
			continue
		}
		next := c.DeepCopy()
		next.Status.ReservedFor = append(next.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p.Name, UID: p.UID})
		got, err := client.For[*resourcev1.ResourceClaim](r.Client).UpdateStatus(ctx, next)
		if err != nil {
			return fmt.Errorf("reserve claim %s/%s: %w", c.Namespace, c.Name, err)
		}
		control.Wrote(r.Pending, k, r.claims, got)
	}
	return nil
}
