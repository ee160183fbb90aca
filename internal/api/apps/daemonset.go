package apps

import (
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// DaemonSet declares apps/v1 daemonsets.
func DaemonSet() *resource.Resource {
	spec, status := appsv1.DaemonSetSpec{}.SwaggerDoc(), appsv1.DaemonSetStatus{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, Kind: "DaemonSet", Plural: "daemonsets", Singular: "daemonset",
		ShortNames: []string{"ds"}, Categories: []string{"all"}, Namespaced: true, Prefix: "/registry/daemonsets/",
		New:     func() resource.Object { return &appsv1.DaemonSet{} },
		NewList: func() runtime.Object { return &appsv1.DaemonSetList{} },
		Readable: func(o resource.Object) error {
			v, ok := o.GetAnnotations()[appsv1.DeprecatedTemplateGeneration]
			if !ok {
				return nil
			}
			_, err := strconv.ParseInt(v, 10, 64)
			return err
		},
		Columns: append([]metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Desired", "integer", status["desiredNumberScheduled"], 0),
			resource.Column("Current", "integer", status["currentNumberScheduled"], 0),
			resource.Column("Ready", "integer", status["numberReady"], 0),
			resource.Column("Up-to-date", "integer", status["updatedNumberScheduled"], 0),
			resource.Column("Available", "integer", status["numberAvailable"], 0),
			resource.Column("Node Selector", "string", corev1.PodSpec{}.SwaggerDoc()["nodeSelector"], 0),
			resource.AgeColumn(),
		}, pod.TemplateColumns(1, spec["selector"])...),
		Subresources: []resource.Subresource{
			resource.StatusOf(resource.StrategyOf[*appsv1.DaemonSet]{
				Default:             defaultDaemonSet,
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec"},
				PrepareUpdate: func(_ resource.Env, d, old *appsv1.DaemonSet) {
					d.Spec = old.Spec
					setTemplateGeneration(d, templateGeneration(old))
				},
				ValidateUpdate: validateDaemonSetStatus,
			}),
		},
	}, resource.StrategyOf[*appsv1.DaemonSet]{
		Default:             defaultDaemonSet,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, d *appsv1.DaemonSet) {
			d.Status = appsv1.DaemonSetStatus{}
			d.Generation = 1
			setTemplateGeneration(d, max(templateGeneration(d), 1))
			pod.DropDisabled(env.Features, &d.Spec.Template, nil)
		},
		PrepareUpdate: func(env resource.Env, d, old *appsv1.DaemonSet) {
			d.Status = old.Status
			pod.DropDisabled(env.Features, &d.Spec.Template, &old.Spec.Template)
			d.Generation = old.Generation
			if !equal(d.Spec, old.Spec) {
				d.Generation++
			}
			n := templateGeneration(old)
			if !equal(d.Spec.Template, old.Spec.Template) {
				n++
			}
			setTemplateGeneration(d, n)
		},
		ValidateCreate: func(env resource.Env, d *appsv1.DaemonSet) field.ErrorList {
			return append(resource.ValidateMeta(d, true, resource.DNSSubdomain),
				validateDaemonSetSpec(&d.Spec, pod.TemplateOptions(env.Features, nil), false)...)
		},
		ValidateUpdate: func(env resource.Env, d, old *appsv1.DaemonSet) field.ErrorList {
			errs := resource.ValidateMetaUpdate(d, old)
			errs = append(errs, apivalidation.ValidateImmutableField(d.Spec.Selector, old.Spec.Selector, specPath.Child("selector"))...)
			return append(errs, validateDaemonSetSpec(&d.Spec, pod.TemplateOptions(env.Features, &old.Spec.Template),
				metavalidation.LabelSelectorHasInvalidLabelValue(old.Spec.Selector))...)
		},
		Warnings: func(_ resource.Env, d, old *appsv1.DaemonSet) []string {
			if old != nil && templateGeneration(d) == templateGeneration(old) {
				return nil
			}
			return pod.TemplateWarnings(specPath.Child("template"), &d.Spec.Template)
		},
		Row: func(d *appsv1.DaemonSet, now time.Time) []any {
			s := &d.Status
			return append(append([]any{d.Name, int64(s.DesiredNumberScheduled), int64(s.CurrentNumberScheduled), int64(s.NumberReady),
				int64(s.UpdatedNumberScheduled), int64(s.NumberAvailable), labels.FormatLabels(d.Spec.Template.Spec.NodeSelector),
				resource.Age(d.CreationTimestamp, now)}, pod.TemplateCells(&d.Spec.Template)...), metav1.FormatLabelSelector(d.Spec.Selector))
		},
	})
}

// The number of a daemon set's template was a field of the versions before
// apps/v1, where it is an annotation that every daemon set has.

func templateGeneration(d *appsv1.DaemonSet) int64 {
	n, _ := strconv.ParseInt(d.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	return n
}

func setTemplateGeneration(d *appsv1.DaemonSet, n int64) {
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[appsv1.DeprecatedTemplateGeneration] = strconv.FormatInt(n, 10)
}

func defaultDaemonSet(d *appsv1.DaemonSet) {
	u := &d.Spec.UpdateStrategy
	if u.Type == "" {
		u.Type = appsv1.RollingUpdateDaemonSetStrategyType
	}
	unavailable := int32(0)
	if u.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		unavailable = 1
		if u.RollingUpdate == nil {
			u.RollingUpdate = &appsv1.RollingUpdateDaemonSet{}
		}
	}
	if r := u.RollingUpdate; r != nil {
		if r.MaxUnavailable == nil {
			r.MaxUnavailable = new(intstr.FromInt32(unavailable))
		}
		if r.MaxSurge == nil {
			r.MaxSurge = new(intstr.FromInt32(0))
		}
	}
	unset(&d.Spec.RevisionHistoryLimit, 10)
	pod.DefaultSpec(&d.Spec.Template.Spec)
	setTemplateGeneration(d, templateGeneration(d))
}

// validateDaemonSetSpec: with lax, values of the selector may be bad, as the old
// object's are.
func validateDaemonSetSpec(s *appsv1.DaemonSetSpec, o pod.Options, lax bool) field.ErrorList {
	sp, tp := specPath.Child("selector"), specPath.Child("template")
	errs := metavalidation.ValidateLabelSelector(s.Selector, metavalidation.LabelSelectorValidationOptions{AllowInvalidLabelValueInSelector: lax}, sp)
	if selector, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil && !selector.Matches(labels.Set(s.Template.Labels)) {
		errs = append(errs, field.Invalid(tp.Child("metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`"))
	}
	if s.Selector != nil && len(s.Selector.MatchLabels)+len(s.Selector.MatchExpressions) == 0 {
		errs = append(errs, field.Invalid(sp, s.Selector, "empty selector is invalid for daemonset"))
	}
	errs = append(errs, pod.ValidateTemplate(&s.Template, tp, o)...)
	errs = append(errs, pod.ValidateEndless(tp, &s.Template, "DaemonSet")...)
	errs = append(errs, resource.NotNegative(specPath, resource.N("minReadySeconds", s.MinReadySeconds))...)
	errs = append(errs, validateDaemonSetStrategy(specPath.Child("updateStrategy"), &s.UpdateStrategy)...)
	return append(errs, resource.NotNegative(specPath, resource.N("revisionHistoryLimit", number(s.RevisionHistoryLimit)))...)
}

func validateDaemonSetStrategy(p *field.Path, u *appsv1.DaemonSetUpdateStrategy) field.ErrorList {
	switch u.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
		return nil
	case appsv1.RollingUpdateDaemonSetStrategyType:
	default:
		var shown struct {
			Type          appsv1.DaemonSetUpdateStrategyType
			RollingUpdate *limits
		}
		shown.Type = u.Type
		if r := u.RollingUpdate; r != nil {
			shown.RollingUpdate = &limits{value(r.MaxUnavailable), value(r.MaxSurge)}
		}
		return field.ErrorList{field.NotSupported(p, any(shown), []string{"RollingUpdate", "OnDelete"})}
	}
	rp := p.Child("rollingUpdate")
	if u.RollingUpdate == nil {
		return field.ErrorList{field.Required(rp, "")}
	}
	unavailable, surge := value(u.RollingUpdate.MaxUnavailable), value(u.RollingUpdate.MaxSurge)
	up, sp := rp.Child("maxUnavailable"), rp.Child("maxSurge")
	errs := append(intOrPercent(up, unavailable), intOrPercent(sp, surge)...)
	errs = append(append(errs, notOverPercent(up, unavailable)...), notOverPercent(sp, surge)...)
	switch some, more := plain(unavailable) != 0, plain(surge) != 0; {
	case some && more:
		errs = append(errs, field.Invalid(sp, surge, "may not be set when maxUnavailable is non-zero"))
	case !some && !more:
		errs = append(errs, field.Required(up, "cannot be 0 when maxSurge is 0"))
	}
	return errs
}

func validateDaemonSetStatus(_ resource.Env, d, old *appsv1.DaemonSet) field.ErrorList {
	s := &d.Status
	errs := resource.ValidateMetaUpdate(d, old)
	errs = append(errs, resource.NotNegative(statusPath,
		resource.N("currentNumberScheduled", s.CurrentNumberScheduled), resource.N("numberMisscheduled", s.NumberMisscheduled),
		resource.N("desiredNumberScheduled", s.DesiredNumberScheduled), resource.N("numberReady", s.NumberReady))...)
	errs = append(errs, apivalidation.ValidateNonnegativeField(s.ObservedGeneration, statusPath.Child("observedGeneration"))...)
	errs = append(errs, resource.NotNegative(statusPath,
		resource.N("updatedNumberScheduled", s.UpdatedNumberScheduled), resource.N("numberAvailable", s.NumberAvailable),
		resource.N("numberUnavailable", s.NumberUnavailable), resource.N("collisionCount", number(s.CollisionCount)))...)
	return append(errs, resource.NotDecremented(statusPath.Child("collisionCount"), s.CollisionCount, old.Status.CollisionCount)...)
}
