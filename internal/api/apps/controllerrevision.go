package apps

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// ControllerRevision declares apps/v1 controllerrevisions.
func ControllerRevision() *resource.Resource {
	data := field.NewPath("data")
	return resource.Define(resource.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, Kind: "ControllerRevision", Plural: "controllerrevisions", Singular: "controllerrevision",
		Namespaced: true, Prefix: "/registry/controllerrevisions/",
		New:     func() resource.Object { return &appsv1.ControllerRevision{} },
		NewList: func() runtime.Object { return &appsv1.ControllerRevisionList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Controller", "string", "Controller of the object", 0),
			resource.Column("Revision", "string", appsv1.ControllerRevision{}.SwaggerDoc()["revision"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*appsv1.ControllerRevision]{
		UnconditionalUpdate: true,
		ValidateCreate: func(_ resource.Env, r *appsv1.ControllerRevision) field.ErrorList {
			errs := validateRevision(r)
			var v any
			if r.Data.Raw == nil {
				return append(errs, field.Required(data, "data is mandatory"))
			}
			if err := json.Unmarshal(r.Data.Raw, &v); err != nil {
				return append(errs, field.Invalid(data, "<value omitted>", fmt.Sprintf("error parsing data: %v", err)))
			}
			if v == nil {
				return append(errs, field.Required(data, "data is mandatory"))
			}
			if _, ok := v.(map[string]any); !ok {
				return append(errs, field.Required(data, "data must be a valid JSON object"))
			}
			return errs
		},
		ValidateUpdate: func(_ resource.Env, r, old *appsv1.ControllerRevision) field.ErrorList {
			errs := append(resource.ValidateMetaUpdate(r, old), validateRevision(r)...)
			return append(errs, apivalidation.ValidateImmutableField(r.Data, old.Data, data)...)
		},
		Row: func(r *appsv1.ControllerRevision, now time.Time) []any {
			controller := "<none>"
			if ref := metav1.GetControllerOf(r); ref != nil {
				gk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).GroupKind()
				controller = strings.ToLower(gk.String()) + "/" + ref.Name
			}
			return []any{r.Name, controller, r.Revision, resource.Age(r.CreationTimestamp, now)}
		},
	})
}

func validateRevision(r *appsv1.ControllerRevision) field.ErrorList {
	errs := resource.ValidateMeta(r, true, resource.DNSSubdomain)
	return append(errs, apivalidation.ValidateNonnegativeField(r.Revision, field.NewPath("revision"))...)
}
