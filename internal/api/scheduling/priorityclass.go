// Package scheduling declares the resources of scheduling.k8s.io.
package scheduling

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

const (
	systemPrefix = "system-"
	// highestUser is the highest priority that users may give.
	highestUser = int32(1000000000)
)

// SystemClasses are the classes that every cluster has. They cannot be deleted.
func SystemClasses() []*schedulingv1.PriorityClass {
	return []*schedulingv1.PriorityClass{
		{
			ObjectMeta:  metav1.ObjectMeta{Name: "system-node-critical"},
			Value:       2*highestUser + 1000,
			Description: "Used for system critical pods that must not be moved from their current node.",
		},
		{
			ObjectMeta:  metav1.ObjectMeta{Name: "system-cluster-critical"},
			Value:       2 * highestUser,
			Description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
		},
	}
}

// PriorityClass declares priorityclasses. That only one is the default is for the
// Priority admission to hold; so is that a system class stays.
func PriorityClass() *resource.Resource {
	doc := schedulingv1.PriorityClass{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: schedulingv1.SchemeGroupVersion, Kind: "PriorityClass", Plural: "priorityclasses", Singular: "priorityclass",
		ShortNames: []string{"pc"}, Prefix: "/registry/priorityclasses/",
		New:     func() resource.Object { return &schedulingv1.PriorityClass{} },
		NewList: func() runtime.Object { return &schedulingv1.PriorityClassList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Value", "integer", doc["value"], 0),
			resource.Column("Global-Default", "boolean", doc["globalDefault"], 0),
			resource.AgeColumn(),
			resource.Column("PreemptionPolicy", "string", doc["preemptionPolicy"], 0),
		},
	}, resource.StrategyOf[*schedulingv1.PriorityClass]{
		UnconditionalUpdate: true,
		Default: func(c *schedulingv1.PriorityClass) {
			if c.PreemptionPolicy == nil {
				p := corev1.PreemptLowerPriority
				c.PreemptionPolicy = &p
			}
		},
		PrepareCreate:  func(_ resource.Env, c *schedulingv1.PriorityClass) { c.Generation = 1 },
		ValidateCreate: func(_ resource.Env, c *schedulingv1.PriorityClass) field.ErrorList { return validateClass(c) },
		ValidateUpdate: func(_ resource.Env, c, old *schedulingv1.PriorityClass) field.ErrorList {
			errs := resource.ValidateMetaUpdate(c, old)
			if c.Value != old.Value {
				errs = append(errs, field.Forbidden(field.NewPath("value"), "may not be changed in an update."))
			}
			return append(errs, apivalidation.ValidateImmutableField(c.PreemptionPolicy, old.PreemptionPolicy, field.NewPath("preemptionPolicy"))...)
		},
		Row: func(c *schedulingv1.PriorityClass, now time.Time) []any {
			policy := ""
			if c.PreemptionPolicy != nil {
				policy = string(*c.PreemptionPolicy)
			}
			return []any{c.Name, int64(c.Value), c.GlobalDefault, resource.Age(c.CreationTimestamp, now), policy}
		},
	})
}

func validateClass(c *schedulingv1.PriorityClass) field.ErrorList {
	errs := resource.ValidateMeta(c, false, resource.DNSSubdomain)
	if strings.HasPrefix(c.Name, systemPrefix) {
		if err := knownSystem(c); err != nil {
			errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"),
				"priority class names with '"+systemPrefix+"' prefix are reserved for system use only. error: "+err.Error()))
		}
	} else if c.Value > highestUser {
		errs = append(errs, field.Forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %v", highestUser)))
	}
	if p := c.PreemptionPolicy; p != nil {
		path := field.NewPath("preemptionPolicy")
		switch *p {
		case corev1.PreemptLowerPriority, corev1.PreemptNever:
		case "":
			errs = append(errs, field.Required(path, ""))
		default:
			errs = append(errs, field.NotSupported(path, *p, []corev1.PreemptionPolicy{corev1.PreemptLowerPriority, corev1.PreemptNever}))
		}
	}
	return errs
}

func knownSystem(c *schedulingv1.PriorityClass) error {
	for _, s := range SystemClasses() {
		if s.Name != c.Name {
			continue
		}
		if s.Value != c.Value {
			return fmt.Errorf("value of %v PriorityClass must be %v", s.Name, s.Value)
		}
		if s.GlobalDefault != c.GlobalDefault {
			return fmt.Errorf("globalDefault of %v PriorityClass must be %v", s.Name, s.GlobalDefault)
		}
		return nil
	}
	return fmt.Errorf("%v is not a known system priority class", c.Name)
}
