package core

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// Namespace declares core/v1 namespaces. A namespace is deleted in two steps: the
// deletion sets its phase to Terminating; the namespace controller empties it and
// takes its finalizer away through the finalize door.
func Namespace() *resource.Resource {
	status := resource.StatusOf(resource.StrategyOf[*corev1.Namespace]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"spec"},
		Default:             defaultNamespace,
		Canonicalize:        labelNamespace,
		PrepareUpdate: func(_ resource.Env, n, old *corev1.Namespace) {
			n.Spec = *old.Spec.DeepCopy()
		},
		ValidateUpdate: func(_ resource.Env, n, old *corev1.Namespace) field.ErrorList {
			errs := resource.ValidateMetaUpdate(n, old)
			path := field.NewPath("status", "Phase")
			if n.DeletionTimestamp.IsZero() {
				if n.Status.Phase != corev1.NamespaceActive {
					errs = append(errs, field.Invalid(path, n.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty"))
				}
			} else if n.Status.Phase != corev1.NamespaceTerminating {
				errs = append(errs, field.Invalid(path, n.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty"))
			}
			return errs
		},
	})
	finalize := resource.Untyped(resource.StrategyOf[*corev1.Namespace]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		Default:             defaultNamespace,
		Canonicalize:        labelNamespace,
		PrepareUpdate: func(_ resource.Env, n, old *corev1.Namespace) {
			n.Status = *old.Status.DeepCopy()
		},
		ValidateUpdate: func(_ resource.Env, n, old *corev1.Namespace) field.ErrorList {
			errs := resource.ValidateMetaUpdate(n, old)
			for i, f := range n.Spec.Finalizers {
				errs = append(errs, validateFinalizer(string(f), field.NewPath("spec", "finalizers").Index(i))...)
			}
			return errs
		},
	})
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "Namespace", Plural: "namespaces", Singular: "namespace",
		ShortNames: []string{"ns"}, Prefix: "/registry/namespaces/", ReturnDeleted: true,
		Verbs:   []string{"create", "delete", "get", "list", "patch", "update", "watch"},
		New:     func() resource.Object { return &corev1.Namespace{} },
		NewList: func() runtime.Object { return &corev1.NamespaceList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Status", "string", "The status of the namespace", 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{
			{Name: "finalize", Verbs: []string{"update"}, Status: &finalize},
			status,
		},
	}, resource.StrategyOf[*corev1.Namespace]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		Default:             defaultNamespace,
		PrepareCreate: func(_ resource.Env, n *corev1.Namespace) {
			n.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
			for _, f := range n.Spec.Finalizers {
				if f == corev1.FinalizerKubernetes {
					return
				}
			}
			n.Spec.Finalizers = append(n.Spec.Finalizers, corev1.FinalizerKubernetes)
		},
		PrepareUpdate: func(_ resource.Env, n, old *corev1.Namespace) {
			n.Spec.Finalizers = append([]corev1.FinalizerName(nil), old.Spec.Finalizers...)
			n.Status = *old.Status.DeepCopy()
		},
		ValidateCreate: func(_ resource.Env, n *corev1.Namespace) field.ErrorList { return validateNamespace(n) },
		ValidateUpdate: func(_ resource.Env, n, old *corev1.Namespace) field.ErrorList {
			return append(validateNamespace(n), resource.ValidateMetaUpdate(n, old)...)
		},
		Canonicalize: labelNamespace,
		// Its storage checks them itself, before the rules of all kinds.
		StoredPreconditions: true,
		Held:                func(n *corev1.Namespace) bool { return len(n.Spec.Finalizers) > 0 },
		DeletePrepare: func(_ resource.Env, n *corev1.Namespace) {
			n.Status.Phase = corev1.NamespaceTerminating
			n.DeletionGracePeriodSeconds = nil
		},
		Selectable: func(n *corev1.Namespace) fields.Set {
			return fields.Set{"status.phase": string(n.Status.Phase)}
		},
		Row: func(n *corev1.Namespace, now time.Time) []any {
			return []any{n.Name, string(n.Status.Phase), resource.Age(n.CreationTimestamp, now)}
		},
	})
}

func defaultNamespace(n *corev1.Namespace) {
	if n.Status.Phase == "" {
		n.Status.Phase = corev1.NamespaceActive
	}
	if n.Name != "" {
		labelNamespace(n)
	}
}

// labelNamespace names the namespace in a label, also where its name was generated
// after defaulting.
func labelNamespace(n *corev1.Namespace) {
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelMetadataName] = n.Name
}

func validateNamespace(n *corev1.Namespace) field.ErrorList {
	errs := resource.ValidateMeta(n, false, resource.DNSLabel)
	for _, f := range n.Spec.Finalizers {
		errs = append(errs, validateFinalizer(string(f), field.NewPath("spec", "finalizers"))...)
	}
	return errs
}

func validateFinalizer(name string, path *field.Path) field.ErrorList {
	errs := apivalidation.ValidateFinalizerName(name, path)
	switch {
	case strings.Contains(name, "/"):
	case name == string(corev1.FinalizerKubernetes), name == metav1.FinalizerOrphanDependents, name == metav1.FinalizerDeleteDependents:
	default:
		errs = append(errs, field.Invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified"))
	}
	return errs
}
