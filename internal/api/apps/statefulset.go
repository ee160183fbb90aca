package apps

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// recreateStrategy replaces all pods at once; a feature of its own.
const recreateStrategy = appsv1.StatefulSetUpdateStrategyType("Recreate")

// StatefulSet declares apps/v1 statefulsets.
func StatefulSet() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, Kind: "StatefulSet", Plural: "statefulsets", Singular: "statefulset",
		ShortNames: []string{"sts"}, Categories: []string{"all"}, Namespaced: true, Prefix: "/registry/statefulsets/",
		New:     func() resource.Object { return &appsv1.StatefulSet{} },
		NewList: func() runtime.Object { return &appsv1.StatefulSetList{} },
		Columns: append([]metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Ready", "string", "Number of the pod with ready state", 0),
			resource.AgeColumn(),
		}, pod.TemplateColumns(1, "")...),
		Subresources: []resource.Subresource{
			resource.ScaleOf(resource.Scaled[*appsv1.StatefulSet]{
				Replicas: func(s *appsv1.StatefulSet) **int32 { return &s.Spec.Replicas },
				Current:  func(s *appsv1.StatefulSet) int32 { return s.Status.Replicas },
				Selector: func(s *appsv1.StatefulSet) *metav1.LabelSelector { return s.Spec.Selector },
			}),
			resource.StatusOf(resource.StrategyOf[*appsv1.StatefulSet]{
				Default:             defaultStatefulSet,
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec"},
				PrepareUpdate:       func(_ resource.Env, s, old *appsv1.StatefulSet) { s.Spec = old.Spec },
				ValidateUpdate:      validateStatefulSetStatus,
			}),
		},
	}, resource.StrategyOf[*appsv1.StatefulSet]{
		Default:             defaultStatefulSet,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, s *appsv1.StatefulSet) {
			s.Status = appsv1.StatefulSetStatus{}
			s.Generation = 1
			dropMaxUnavailable(env.Features, s, nil)
			pod.DropDisabled(env.Features, &s.Spec.Template, nil)
		},
		PrepareUpdate: func(env resource.Env, s, old *appsv1.StatefulSet) {
			s.Status = old.Status
			dropMaxUnavailable(env.Features, s, old)
			pod.DropDisabled(env.Features, &s.Spec.Template, &old.Spec.Template)
			s.Generation = old.Generation
			if !equal(s.Spec, old.Spec) {
				s.Generation++
			}
		},
		ValidateCreate: func(env resource.Env, s *appsv1.StatefulSet) field.ErrorList {
			c := setRules{Options: pod.TemplateOptions(env.Features, nil), recreate: recreates(env.Features), isNew: true}
			return append(resource.ValidateMeta(s, true, resource.DNSLabel), c.spec(specPath, &s.Spec)...)
		},
		ValidateUpdate: validateStatefulSetUpdate,
		Warnings:       statefulSetWarnings,
		Row: func(s *appsv1.StatefulSet, now time.Time) []any {
			return append([]any{s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, number(s.Spec.Replicas)), resource.Age(s.CreationTimestamp, now)},
				pod.TemplateCells(&s.Spec.Template)...)
		},
	})
}

func defaultStatefulSet(s *appsv1.StatefulSet) {
	if s.Spec.PodManagementPolicy == "" {
		s.Spec.PodManagementPolicy = appsv1.OrderedReadyPodManagement
	}
	u := &s.Spec.UpdateStrategy
	if u.Type == "" {
		u.Type = appsv1.RollingUpdateStatefulSetStrategyType
		if u.RollingUpdate == nil {
			u.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{}
		}
	}
	if r := u.RollingUpdate; r != nil {
		unset(&r.Partition, 0)
		if u.Type == appsv1.RollingUpdateStatefulSetStrategyType && r.MaxUnavailable == nil {
			r.MaxUnavailable = new(intstr.FromInt32(1))
		}
	}
	if s.Spec.PersistentVolumeClaimRetentionPolicy == nil {
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{}
	}
	for _, when := range retention(s.Spec.PersistentVolumeClaimRetentionPolicy) {
		if *when == "" {
			*when = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
		}
	}
	unset(&s.Spec.Replicas, 1)
	unset(&s.Spec.RevisionHistoryLimit, 10)
	pod.DefaultSpec(&s.Spec.Template.Spec)
	for i := range s.Spec.VolumeClaimTemplates {
		t := &s.Spec.VolumeClaimTemplates[i]
		// Templates are shown with their type, whatever the client sent.
		t.APIVersion, t.Kind = "v1", "PersistentVolumeClaim"
		if t.Status.Phase == "" {
			t.Status.Phase = corev1.ClaimPending
		}
		pod.DefaultClaimSpec(&t.Spec)
		pod.WholeMillis(t.Status.Capacity, t.Status.AllocatedResources)
	}
}

func retention(p *appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy) []*appsv1.PersistentVolumeClaimRetentionPolicyType {
	return []*appsv1.PersistentVolumeClaimRetentionPolicyType{&p.WhenDeleted, &p.WhenScaled}
}

func dropMaxUnavailable(f resource.Features, s, old *appsv1.StatefulSet) {
	r := s.Spec.UpdateStrategy.RollingUpdate
	if f.Enabled("MaxUnavailableStatefulSet") || r == nil {
		return
	}
	if old != nil && old.Spec.UpdateStrategy.RollingUpdate != nil && old.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable != nil {
		return
	}
	r.MaxUnavailable = nil
}

func recreates(f resource.Features) bool { return f.Enabled("StatefulSetRecreateStrategy") }

// setRules are the rules of a stateful set's spec, and what an object that is
// stored already may keep.
type setRules struct {
	pod.Options
	// recreate allows the strategy of that name.
	recreate bool
	// isNew: fields that cannot change later are checked too.
	isNew bool
	// oldTemplate: the template was not valid before.
	oldTemplate bool
}

func validateStatefulSetUpdate(env resource.Env, s, old *appsv1.StatefulSet) field.ErrorList {
	c := setRules{
		Options:  pod.TemplateOptions(env.Features, &old.Spec.Template),
		recreate: recreates(env.Features) || old.Spec.UpdateStrategy.Type == recreateStrategy,
	}
	errs := resource.ValidateMetaUpdate(s, old)
	c.oldTemplate = len(c.spec(nil, &old.Spec)) > 0
	errs = append(errs, c.spec(specPath, &s.Spec)...)
	same := func(name string, is, was any) {
		errs = append(errs, apivalidation.ValidateImmutableField(is, was, specPath.Child(name))...)
	}
	same("selector", s.Spec.Selector, old.Spec.Selector)
	if !equal(s.Spec.VolumeClaimTemplates, old.Spec.VolumeClaimTemplates) {
		shown := slices.Clone(s.Spec.VolumeClaimTemplates)
		for i := range shown {
			shown[i].TypeMeta = metav1.TypeMeta{}
		}
		errs = append(errs, field.Invalid(specPath.Child("volumeClaimTemplates"), resource.Shown(shown), "field is immutable"))
	}
	same("serviceName", s.Spec.ServiceName, old.Spec.ServiceName)
	same("podManagementPolicy", s.Spec.PodManagementPolicy, old.Spec.PodManagementPolicy)
	return errs
}

func (c setRules) spec(p *field.Path, s *appsv1.StatefulSetSpec) field.ErrorList {
	var errs field.ErrorList
	switch policy := s.PodManagementPolicy; policy {
	case "":
		errs = append(errs, field.Required(p.Child("podManagementPolicy"), ""))
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	default:
		errs = append(errs, field.Invalid(p.Child("podManagementPolicy"), policy, "must be 'OrderedReady' or 'Parallel'"))
	}
	errs = append(errs, c.strategy(p.Child("updateStrategy"), &s.UpdateStrategy)...)
	if policy := s.PersistentVolumeClaimRetentionPolicy; policy != nil {
		names := []string{"whenDeleted", "whenScaled"}
		for i, when := range retention(policy) {
			switch *when {
			case appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType:
			default:
				errs = append(errs, field.NotSupported(p.Child("persistentVolumeClaimRetentionPolicy", names[i]), *when, []string{"Retain", "Delete"}))
			}
		}
	}
	if c.isNew {
		for i := range s.VolumeClaimTemplates {
			errs = append(errs, pod.ValidateClaimSpec(p.Child("volumeClaimTemplates").Index(i).Child("spec"), &s.VolumeClaimTemplates[i].Spec, pod.ClaimOptions{})...)
		}
	}
	errs = append(errs, resource.NotNegative(p, resource.N("replicas", number(s.Replicas)), resource.N("minReadySeconds", s.MinReadySeconds))...)
	if s.Ordinals != nil {
		errs = append(errs, resource.NotNegative(p, resource.N("ordinals.start", s.Ordinals.Start))...)
	}
	if c.isNew && s.ServiceName != "" {
		for _, msg := range validation.IsDNS1123Label(s.ServiceName) {
			errs = append(errs, field.Invalid(p.Child("serviceName"), s.ServiceName, msg))
		}
	}
	return append(errs, c.selected(p, s)...)
}

func (c setRules) strategy(p *field.Path, u *appsv1.StatefulSetUpdateStrategy) field.ErrorList {
	rp := p.Child("rollingUpdate")
	r := u.RollingUpdate
	switch {
	case u.Type == "":
		return field.ErrorList{field.Required(p, "")}
	case u.Type == appsv1.RollingUpdateStatefulSetStrategyType:
		if r == nil {
			return nil
		}
		errs := resource.NotNegative(rp, resource.N("partition", number(r.Partition)))
		if r.MaxUnavailable == nil {
			return errs
		}
		up, v := rp.Child("maxUnavailable"), *r.MaxUnavailable
		errs = append(errs, intOrPercent(up, v)...)
		if plain(v) == 0 {
			errs = append(errs, field.Invalid(up, v, "cannot be 0"))
		}
		return append(errs, notOverPercent(up, v)...)
	case u.Type == appsv1.OnDeleteStatefulSetStrategyType, u.Type == recreateStrategy && c.recreate:
		if r != nil {
			return field.ErrorList{field.Invalid(rp, shownPartition(r), "only allowed for updateStrategy 'RollingUpdate'")}
		}
		return nil
	}
	detail := "must be 'RollingUpdate' or 'OnDelete'"
	if c.recreate {
		detail = "must be 'RollingUpdate', 'OnDelete', or 'Recreate'"
	}
	return field.ErrorList{field.Invalid(p, struct {
		Type          appsv1.StatefulSetUpdateStrategyType
		RollingUpdate any
	}{u.Type, shownPartition(r)}, detail)}
}

// shownPartition is a rolling update as upstream shows it, where the partition is
// no pointer.
func shownPartition(r *appsv1.RollingUpdateStatefulSetStrategy) any {
	if r == nil {
		return nil
	}
	return struct {
		Partition      int32
		MaxUnavailable *intstr.IntOrString
	}{number(r.Partition), r.MaxUnavailable}
}

// selected checks the selector and the template of the pods that it selects.
func (c setRules) selected(p *field.Path, s *appsv1.StatefulSetSpec) field.ErrorList {
	var errs field.ErrorList
	sp, tp := p.Child("selector"), p.Child("template")
	if s.Selector == nil {
		errs = append(errs, field.Required(sp, ""))
	} else {
		errs = append(errs, metavalidation.ValidateLabelSelector(s.Selector, metavalidation.LabelSelectorValidationOptions{}, sp)...)
		if len(s.Selector.MatchLabels)+len(s.Selector.MatchExpressions) == 0 {
			errs = append(errs, field.Invalid(sp, s.Selector, "empty selector is invalid for statefulset"))
		}
	}
	if selector, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		errs = append(errs, field.Invalid(sp, s.Selector, ""))
	} else {
		if !selector.Empty() && !selector.Matches(labels.Set(s.Template.Labels)) {
			errs = append(errs, field.Invalid(tp.Child("metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`"))
		}
		t := asCreated(s)
		if c.oldTemplate {
			errs = append(errs, pod.ValidateTemplateMeta(t, tp, c.Options)...)
		} else {
			errs = append(errs, pod.ValidateTemplate(t, tp, c.Options)...)
		}
	}
	return append(errs, pod.ValidateEndless(tp, &s.Template, "StatefulSet")...)
}

// asCreated is the template as the pods made from it have it: host names are the
// controller's, and every claim template gives a volume.
func asCreated(s *appsv1.StatefulSetSpec) *corev1.PodTemplateSpec {
	t := s.Template
	t.Spec.Subdomain, t.Spec.Hostname = "", ""
	if len(s.VolumeClaimTemplates) == 0 {
		return &t
	}
	named := map[string]bool{}
	var volumes []corev1.Volume
	for _, claim := range s.VolumeClaimTemplates {
		if !named[claim.Name] {
			named[claim.Name] = true
			volumes = append(volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
			}})
		}
	}
	for _, v := range t.Spec.Volumes {
		if !named[v.Name] {
			volumes = append(volumes, v)
		}
	}
	t.Spec.Volumes = volumes
	return &t
}

func validateStatefulSetStatus(_ resource.Env, set, old *appsv1.StatefulSet) field.ErrorList {
	s := &set.Status
	counts := []resource.Count{resource.N("readyReplicas", s.ReadyReplicas), resource.N("currentReplicas", s.CurrentReplicas),
		resource.N("updatedReplicas", s.UpdatedReplicas), resource.N("availableReplicas", s.AvailableReplicas)}
	errs := resource.NotNegative(statusPath, resource.N("replicas", s.Replicas))
	errs = append(errs, resource.NotNegative(statusPath, counts...)...)
	errs = append(errs, apivalidation.ValidateNonnegativeField(s.ObservedGeneration, statusPath.Child("observedGeneration"))...)
	errs = append(errs, resource.NotNegative(statusPath, resource.N("collisionCount", number(s.CollisionCount)))...)
	errs = append(errs, resource.NotMore(statusPath, s.Replicas, counts...)...)
	if s.AvailableReplicas > s.ReadyReplicas {
		errs = append(errs, field.Invalid(statusPath.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than status.readyReplicas"))
	}
	errs = append(errs, resource.ValidateMetaUpdate(set, old)...)
	return append(errs, resource.NotDecremented(statusPath.Child("collisionCount"), s.CollisionCount, old.Status.CollisionCount)...)
}

func statefulSetWarnings(_ resource.Env, s, old *appsv1.StatefulSet) []string {
	var out []string
	if old == nil || old.Generation != s.Generation {
		out = pod.TemplateWarnings(specPath.Child("template"), &s.Spec.Template)
	}
	for i := range s.Spec.VolumeClaimTemplates {
		p := specPath.Child("volumeClaimTemplates").Index(i)
		if old != nil {
			p = p.Child("Spec")
		}
		out = append(out, pod.ClaimWarnings(p, &s.Spec.VolumeClaimTemplates[i].Spec)...)
	}
	if n := s.Spec.RevisionHistoryLimit; n != nil && *n < 0 {
		out = append(out, "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
	}
	return out
}
