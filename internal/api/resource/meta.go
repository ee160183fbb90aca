package resource

import (
	"strings"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ValidateMeta validates the metadata of a new object with the rule for its name.
func ValidateMeta(obj Object, namespaced bool, name apivalidation.ValidateNameFunc) field.ErrorList {
	return append(apivalidation.ValidateObjectMetaAccessor(obj, namespaced, name, field.NewPath("metadata")), finalizerErrors(obj)...)
}

// ValidateMetaUpdate validates the change of an object's metadata.
func ValidateMetaUpdate(obj, old Object) field.ErrorList {
	errs := apivalidation.ValidateObjectMetaAccessorUpdate(obj, old, field.NewPath("metadata"))
	return append(errs, finalizerErrors(obj)...)
}

// finalizerErrors refuses a finalizer without a domain that is none of
// Kubernetes' own.
func finalizerErrors(obj Object) field.ErrorList {
	var errs field.ErrorList
	for i, f := range obj.GetFinalizers() {
		switch {
		case strings.Contains(f, "/"):
		case f == "kubernetes", f == metav1.FinalizerOrphanDependents, f == metav1.FinalizerDeleteDependents:
		default:
			errs = append(errs, field.Invalid(field.NewPath("metadata", "finalizers").Index(i), f,
				"name is neither a standard finalizer name nor is it fully qualified"))
		}
	}
	return errs
}

// OnlyCollected tells that an update changes no more than the garbage collector
// does: owners and finalizers.
func OnlyCollected(obj, old Object) bool {
	if old == nil {
		return false
	}
	c := obj.DeepCopyObject().(Object)
	c.SetOwnerReferences(old.GetOwnerReferences())
	c.SetFinalizers(old.GetFinalizers())
	c.SetManagedFields(old.GetManagedFields())
	c.SetResourceVersion(old.GetResourceVersion())
	return apiequality.Semantic.DeepEqual(c, old)
}

// Name rules.
var (
	// DNSSubdomain is the usual rule.
	DNSSubdomain = apivalidation.NameIsDNSSubdomain
	// DNSLabel is RFC 1123's.
	DNSLabel = apivalidation.NameIsDNSLabel
	// DNS1035Label is the rule of Services.
	DNS1035Label = apivalidation.NameIsDNS1035Label
)

// PathSegment is the rule of RBAC's names: whatever can stand in a path.
func PathSegment(name string, prefix bool) []string {
	if prefix {
		return pathSegmentPrefix(name)
	}
	switch name {
	case ".", "..":
		return []string{"may not be '" + name + "'"}
	}
	return pathSegmentPrefix(name)
}

func pathSegmentPrefix(name string) []string {
	var out []string
	for _, s := range []string{"/", "%"} {
		if strings.Contains(name, s) {
			out = append(out, "may not contain '"+s+"'")
		}
	}
	return out
}

// IsQualifiedName re-exports the label key rule for declarations.
var IsQualifiedName = validation.IsQualifiedName

// Column makes a column definition; priority 0 is shown always, 1 with -o wide.
func Column(name, typ, description string, priority int32) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: typ, Description: description, Priority: priority}
}

// NameColumn is the first column of every table.
func NameColumn() metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]}
}

// AgeColumn is the usual last one.
func AgeColumn() metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: "Age", Type: "string", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]}
}

// Age is a cell of how long ago t was, as kubectl shows it.
func Age(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}
