package storage

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// DefaultClassAnnotation marks, with the value "true", the class of claims that
// name none.
const DefaultClassAnnotation = "storageclass.kubernetes.io/is-default-class"

// betaDefaultClassAnnotation is what it was called before.
const betaDefaultClassAnnotation = "storageclass.beta.kubernetes.io/is-default-class"

func isDefault(c *storagev1.StorageClass) bool {
	return c.Annotations[DefaultClassAnnotation] == "true" || c.Annotations[betaDefaultClassAnnotation] == "true"
}

// DefaultClass returns the class of claims that name none: of those so marked the
// newest, and of these the first by name. Nil where there is none.
func DefaultClass(list []*storagev1.StorageClass) *storagev1.StorageClass {
	return resource.Newest(list, isDefault)
}

// StorageClass declares storageclasses.
func StorageClass() *resource.Resource {
	doc := storagev1.StorageClass{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Kind: "StorageClass", Plural: "storageclasses", Singular: "storageclass",
		ShortNames: []string{"sc"}, Prefix: "/registry/storageclasses/", ReturnDeleted: true,
		New:     func() resource.Object { return &storagev1.StorageClass{} },
		NewList: func() runtime.Object { return &storagev1.StorageClassList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Provisioner", "string", doc["provisioner"], 0),
			resource.Column("ReclaimPolicy", "string", doc["reclaimPolicy"], 0),
			resource.Column("VolumeBindingMode", "string", doc["volumeBindingMode"], 0),
			resource.Column("AllowVolumeExpansion", "string", doc["allowVolumeExpansion"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*storagev1.StorageClass]{
		UnconditionalUpdate: true,
		Default: func(c *storagev1.StorageClass) {
			set(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
			set(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
		},
		ValidateCreate: func(_ resource.Env, c *storagev1.StorageClass) field.ErrorList {
			return append(validateClass(c), provisionerGiven(c)...)
		},
		ValidateUpdate: func(_ resource.Env, c, old *storagev1.StorageClass) field.ErrorList {
			errs := append(validateClass(c), resource.ValidateMetaUpdate(c, old)...)
			errs = append(errs, provisionerGiven(c)...)
			errs = append(errs, resource.Immutable(field.NewPath("provisioner"), c.Provisioner, old.Provisioner)...)
			errs = append(errs, resource.Immutable(field.NewPath("parameters"), c.Parameters, old.Parameters)...)
			errs = append(errs, resource.Immutable(field.NewPath("reclaimPolicy"), c.ReclaimPolicy, old.ReclaimPolicy)...)
			return append(errs, resource.Immutable(field.NewPath("volumeBindingMode"), c.VolumeBindingMode, old.VolumeBindingMode)...)
		},
		Warnings: func(_ resource.Env, c, _ *storagev1.StorageClass) []string {
			var out []string
			for i, t := range c.AllowedTopologies {
				for j, e := range t.MatchLabelExpressions {
					if text, ok := pod.DeprecatedNodeLabels[e.Key]; ok {
						out = append(out, fmt.Sprintf("%s: %s", field.NewPath("allowedTopologies").Index(i).Child("matchLabelExpressions").Index(j).Child("key"), text))
					}
				}
			}
			return out
		},
		Row: func(c *storagev1.StorageClass, now time.Time) []any {
			return []any{c.Name, c.Provisioner, string(value(c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)),
				string(value(c.VolumeBindingMode, storagev1.VolumeBindingImmediate)), value(c.AllowVolumeExpansion, false), resource.Age(c.CreationTimestamp, now)}
		},
		ListCells: func(list []*storagev1.StorageClass, cells [][]any) {
			d := DefaultClass(list)
			for i, c := range list {
				if c == d {
					cells[i][0] = c.Name + " (default)"
				}
			}
		},
	})
}

func provisionerGiven(c *storagev1.StorageClass) field.ErrorList {
	if c.Provisioner == "" {
		return field.ErrorList{field.Required(field.NewPath("provisioner"), "")}
	}
	return nil
}

func validateClass(c *storagev1.StorageClass) field.ErrorList {
	errs := resource.ValidateMeta(c, false, resource.DNSSubdomain)
	if c.Provisioner != "" {
		errs = append(errs, validateProvisioner(field.NewPath("provisioner"), c.Provisioner)...)
	}
	errs = append(errs, validateParameters(field.NewPath("parameters"), c.Parameters)...)
	switch p := value(c.ReclaimPolicy, ""); p {
	case "", corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain:
	default:
		errs = append(errs, field.NotSupported(field.NewPath("reclaimPolicy"), p,
			[]corev1.PersistentVolumeReclaimPolicy{corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain}))
	}
	switch m := value(c.VolumeBindingMode, storagev1.VolumeBindingImmediate); m {
	case storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer:
	default:
		errs = append(errs, field.NotSupported(field.NewPath("volumeBindingMode"), m,
			[]storagev1.VolumeBindingMode{storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer}))
	}
	return append(errs, validateTopologies(field.NewPath("allowedTopologies"), c.AllowedTopologies)...)
}

// validateTopologies checks terms, of which none may say what another one says.
func validateTopologies(p *field.Path, terms []corev1.TopologySelectorTerm) field.ErrorList {
	var errs field.ErrorList
	// Upstream compares with as many empty terms as there are terms, so that an
	// empty term is a duplicate of each.
	said := make([]map[string]sets.Set[string], len(terms))
	for i, t := range terms {
		tp := p.Index(i).Child("matchLabelExpressions")
		term := map[string]sets.Set[string]{}
		for j, e := range t.MatchLabelExpressions {
			ep := tp.Index(j)
			values := sets.Set[string]{}
			if len(e.Values) == 0 {
				errs = append(errs, field.Required(ep.Child("values"), ""))
			}
			for k, v := range e.Values {
				if values.Has(v) {
					errs = append(errs, field.Duplicate(ep.Child("values").Index(k), v))
				}
				values.Insert(v)
			}
			errs = append(errs, metavalidation.ValidateLabelName(e.Key, ep.Child("key"))...)
			if _, ok := term[e.Key]; ok {
				errs = append(errs, field.Duplicate(ep.Child("key"), e.Key))
			}
			term[e.Key] = values
		}
		for _, s := range said {
			if equal(term, s) {
				errs = append(errs, field.Duplicate(tp, ""))
			}
		}
		said = append(said, term)
	}
	return errs
}
