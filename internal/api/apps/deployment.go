package apps

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// Deployment declares apps/v1 deployments.
func Deployment() *resource.Resource {
	spec, status := appsv1.DeploymentSpec{}.SwaggerDoc(), appsv1.DeploymentStatus{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, Kind: "Deployment", Plural: "deployments", Singular: "deployment",
		ShortNames: []string{"deploy"}, Categories: []string{"all"}, Namespaced: true, Prefix: "/registry/deployments/",
		New:     func() resource.Object { return &appsv1.Deployment{} },
		NewList: func() runtime.Object { return &appsv1.DeploymentList{} },
		Readable: func(o resource.Object) error {
			v := o.GetAnnotations()[rollbackAnnotation]
			if v == "" {
				return nil
			}
			if _, err := strconv.ParseInt(v, 10, 64); err != nil {
				return fmt.Errorf("failed to parse annotation[%s]=%s as int64: %w", rollbackAnnotation, v, err)
			}
			return nil
		},
		Columns: append([]metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Ready", "string", "Number of the pod with ready state", 0),
			resource.Column("Up-to-date", "string", status["updatedReplicas"], 0),
			resource.Column("Available", "string", status["availableReplicas"], 0),
			resource.AgeColumn(),
		}, pod.TemplateColumns(1, spec["selector"])...),
		Subresources: []resource.Subresource{
			resource.ScaleOf(resource.Scaled[*appsv1.Deployment]{
				Replicas: func(d *appsv1.Deployment) **int32 { return &d.Spec.Replicas },
				Current:  func(d *appsv1.Deployment) int32 { return d.Status.Replicas },
				Selector: func(d *appsv1.Deployment) *metav1.LabelSelector { return d.Spec.Selector },
			}),
			resource.StatusOf(resource.StrategyOf[*appsv1.Deployment]{
				Default:             defaultDeployment,
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec", "metadata.labels"},
				PrepareUpdate: func(env resource.Env, d, old *appsv1.Deployment) {
					d.Spec, d.Labels = old.Spec, old.Labels
					dropTerminating(env.Features, &d.Status.TerminatingReplicas, old.Status.TerminatingReplicas)
				},
				ValidateUpdate: validateDeploymentStatus,
			}),
		},
	}, resource.StrategyOf[*appsv1.Deployment]{
		Default:             defaultDeployment,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, d *appsv1.Deployment) {
			d.Status = appsv1.DeploymentStatus{}
			d.Generation = 1
			pod.DropDisabled(env.Features, &d.Spec.Template, nil)
		},
		PrepareUpdate: func(env resource.Env, d, old *appsv1.Deployment) {
			d.Status = old.Status
			pod.DropDisabled(env.Features, &d.Spec.Template, &old.Spec.Template)
			d.Generation = old.Generation
			// Annotations count too: the controller copies them to the replica sets.
			if !equal(d.Spec, old.Spec) || !equal(withoutRollback(d.Annotations), withoutRollback(old.Annotations)) ||
				d.Annotations[rollbackAnnotation] != old.Annotations[rollbackAnnotation] {
				d.Generation++
			}
		},
		ValidateCreate: func(env resource.Env, d *appsv1.Deployment) field.ErrorList {
			return append(resource.ValidateMeta(d, true, resource.DNSSubdomain),
				validateDeploymentSpec(d, pod.TemplateOptions(env.Features, nil))...)
		},
		ValidateUpdate: func(env resource.Env, d, old *appsv1.Deployment) field.ErrorList {
			errs := resource.ValidateMetaUpdate(d, old)
			errs = append(errs, validateDeploymentSpec(d, pod.TemplateOptions(env.Features, &old.Spec.Template))...)
			return append(errs, apivalidation.ValidateImmutableField(d.Spec.Selector, old.Spec.Selector, specPath.Child("selector"))...)
		},
		Warnings: func(_ resource.Env, d, old *appsv1.Deployment) []string {
			if old != nil && old.Generation == d.Generation {
				return nil
			}
			return pod.WorkloadWarnings(specPath.Child("template"), d, old == nil, &d.Spec.Template)
		},
		Row: func(d *appsv1.Deployment, now time.Time) []any {
			selector := "<invalid>"
			if s, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil {
				selector = s.String()
			}
			return append([]any{d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, number(d.Spec.Replicas)),
				int64(d.Status.UpdatedReplicas), int64(d.Status.AvailableReplicas), resource.Age(d.CreationTimestamp, now)},
				append(pod.TemplateCells(&d.Spec.Template), selector)...)
		},
	})
}

// rollbackAnnotation asks for a rollback to a revision; it is the field rollbackTo
// of the versions before apps/v1.
const rollbackAnnotation = appsv1.DeprecatedRollbackTo

func withoutRollback(a map[string]string) map[string]string {
	if _, ok := a[rollbackAnnotation]; !ok {
		return a
	}
	a = maps.Clone(a)
	delete(a, rollbackAnnotation)
	return a
}

func defaultDeployment(d *appsv1.Deployment) {
	unset(&d.Spec.Replicas, 1)
	unset(&d.Spec.RevisionHistoryLimit, 10)
	unset(&d.Spec.ProgressDeadlineSeconds, 600)
	s := &d.Spec.Strategy
	if s.Type == "" {
		s.Type = appsv1.RollingUpdateDeploymentStrategyType
	}
	if s.Type == appsv1.RollingUpdateDeploymentStrategyType {
		if s.RollingUpdate == nil {
			s.RollingUpdate = &appsv1.RollingUpdateDeployment{}
		}
		quarter := func(v **intstr.IntOrString) {
			if *v == nil {
				*v = new(intstr.FromString("25%"))
			}
		}
		quarter(&s.RollingUpdate.MaxUnavailable)
		quarter(&s.RollingUpdate.MaxSurge)
	}
	pod.DefaultSpec(&d.Spec.Template.Spec)
}

func validateDeploymentSpec(d *appsv1.Deployment, o pod.Options) field.ErrorList {
	s := &d.Spec
	errs := resource.NotNegative(specPath, resource.N("replicas", number(s.Replicas)))
	errs = append(errs, validateSelected(s.Selector, &s.Template, o)...)
	errs = append(errs, validateStrategy(specPath.Child("strategy"), &s.Strategy)...)
	errs = append(errs, resource.NotNegative(specPath, resource.N("minReadySeconds", s.MinReadySeconds), resource.N("revisionHistoryLimit", number(s.RevisionHistoryLimit)))...)
	if to, err := strconv.ParseInt(d.Annotations[rollbackAnnotation], 10, 64); err == nil {
		errs = append(errs, apivalidation.ValidateNonnegativeField(to, specPath.Child("rollback", "version"))...)
	}
	if p := s.ProgressDeadlineSeconds; p != nil {
		errs = append(errs, resource.NotNegative(specPath, resource.N("progressDeadlineSeconds", *p))...)
		if *p <= s.MinReadySeconds {
			errs = append(errs, field.Invalid(specPath.Child("progressDeadlineSeconds"), p, "must be greater than minReadySeconds"))
		}
	}
	return errs
}

func validateStrategy(p *field.Path, s *appsv1.DeploymentStrategy) field.ErrorList {
	rp := p.Child("rollingUpdate")
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			return field.ErrorList{field.Forbidden(rp, "may not be specified when strategy `type` is 'Recreate'")}
		}
	case appsv1.RollingUpdateDeploymentStrategyType:
		if s.RollingUpdate == nil {
			return field.ErrorList{field.Required(rp, "this should be defaulted and never be nil")}
		}
		return validateRolling(rp, s.RollingUpdate)
	default:
		return field.ErrorList{field.NotSupported(p, shownStrategy(s),
			[]appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType})}
	}
	return nil
}

// limits of a rolling update, as upstream shows them: no pointers.
type limits struct{ MaxUnavailable, MaxSurge intstr.IntOrString }

// shownStrategy is a strategy as upstream shows it, where the limits of a rolling
// update are no pointers.
func shownStrategy(s *appsv1.DeploymentStrategy) any {
	out := struct {
		Type          appsv1.DeploymentStrategyType
		RollingUpdate *limits
	}{Type: s.Type}
	if r := s.RollingUpdate; r != nil {
		out.RollingUpdate = &limits{value(r.MaxUnavailable), value(r.MaxSurge)}
	}
	return out
}

func value(v *intstr.IntOrString) intstr.IntOrString {
	if v == nil {
		return intstr.IntOrString{}
	}
	return *v
}

func validateRolling(p *field.Path, r *appsv1.RollingUpdateDeployment) field.ErrorList {
	unavailable, surge := value(r.MaxUnavailable), value(r.MaxSurge)
	up := p.Child("maxUnavailable")
	errs := append(intOrPercent(up, unavailable), intOrPercent(p.Child("maxSurge"), surge)...)
	if plain(unavailable) == 0 && plain(surge) == 0 {
		errs = append(errs, field.Invalid(up, unavailable, "may not be 0 when `maxSurge` is 0"))
	}
	return append(errs, notOverPercent(up, unavailable)...)
}

func notOverPercent(p *field.Path, v intstr.IntOrString) field.ErrorList {
	if n, ok := percent(v); ok && n > 100 {
		return field.ErrorList{field.Invalid(p, v, "must not be greater than 100%")}
	}
	return nil
}

func intOrPercent(p *field.Path, v intstr.IntOrString) field.ErrorList {
	if v.Type == intstr.Int {
		return apivalidation.ValidateNonnegativeField(int64(v.IntValue()), p)
	}
	var errs field.ErrorList
	for _, msg := range validation.IsValidPercent(v.StrVal) {
		errs = append(errs, field.Invalid(p, v, msg))
	}
	return errs
}

func percent(v intstr.IntOrString) (int, bool) {
	if v.Type != intstr.String || len(validation.IsValidPercent(v.StrVal)) > 0 {
		return 0, false
	}
	n, _ := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	return n, true
}

// plain is the number before the percent sign, if there is one.
func plain(v intstr.IntOrString) int {
	if n, ok := percent(v); ok {
		return n
	}
	return v.IntValue()
}

func validateDeploymentStatus(_ resource.Env, d, old *appsv1.Deployment) field.ErrorList {
	s := &d.Status
	errs := resource.ValidateMetaUpdate(d, old)
	errs = append(errs, apivalidation.ValidateNonnegativeField(s.ObservedGeneration, statusPath.Child("observedGeneration"))...)
	errs = append(errs, resource.NotNegative(statusPath,
		resource.N("replicas", s.Replicas), resource.N("updatedReplicas", s.UpdatedReplicas), resource.N("readyReplicas", s.ReadyReplicas),
		resource.N("availableReplicas", s.AvailableReplicas), resource.N("unavailableReplicas", s.UnavailableReplicas),
		resource.N("terminatingReplicas", number(s.TerminatingReplicas)), resource.N("collisionCount", number(s.CollisionCount)))...)
	errs = append(errs, atMost(s.Replicas, s.ReadyReplicas, s.AvailableReplicas,
		resource.N("updatedReplicas", s.UpdatedReplicas), resource.N("readyReplicas", s.ReadyReplicas), resource.N("availableReplicas", s.AvailableReplicas))...)
	return append(errs, resource.NotDecremented(statusPath.Child("collisionCount"), s.CollisionCount, old.Status.CollisionCount)...)
}
