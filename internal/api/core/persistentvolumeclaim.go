package core

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// PersistentVolumeClaim declares core/v1 persistentvolumeclaims. That a claim grows
// only where its class allows it is for admission to hold.
func PersistentVolumeClaim() *resource.Resource {
	spec, status := corev1.PersistentVolumeClaimSpec{}.SwaggerDoc(), corev1.PersistentVolumeClaimStatus{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims", Singular: "persistentvolumeclaim",
		ShortNames: []string{"pvc"}, Namespaced: true, Prefix: "/registry/persistentvolumeclaims/", ReturnDeleted: true,
		New:     func() resource.Object { return &corev1.PersistentVolumeClaim{} },
		NewList: func() runtime.Object { return &corev1.PersistentVolumeClaimList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Status", "string", status["phase"], 0),
			resource.Column("Volume", "string", spec["volumeName"], 0),
			resource.Column("Capacity", "string", status["capacity"], 0),
			resource.Column("Access Modes", "string", status["accessModes"], 0),
			resource.Column("StorageClass", "string", "StorageClass of the pvc", 0),
			resource.Column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pvc", 0),
			resource.AgeColumn(),
			resource.Column("VolumeMode", "string", spec["volumeMode"], 1),
		},
		Subresources: []resource.Subresource{resource.StatusOf(resource.StrategyOf[*corev1.PersistentVolumeClaim]{
			Default:             defaultClaim,
			UnconditionalUpdate: true,
			ResetFields:         []string{"spec"},
			PrepareUpdate: func(env resource.Env, c, old *corev1.PersistentVolumeClaim) {
				c.Spec = *old.Spec.DeepCopy()
				if !env.Features.Enabled("CSIVolumeHealth") && old.Status.HealthStatus == nil {
					c.Status.HealthStatus = nil
				}
			},
			ValidateUpdate: validateClaimStatus,
		})},
	}, resource.StrategyOf[*corev1.PersistentVolumeClaim]{
		Default:             defaultClaim,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, c *corev1.PersistentVolumeClaim) {
			c.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
			dropSources(env.Features, &c.Spec, &corev1.PersistentVolumeClaimSpec{})
		},
		PrepareUpdate: func(env resource.Env, c, old *corev1.PersistentVolumeClaim) {
			c.Status = *old.Status.DeepCopy()
			dropSources(env.Features, &c.Spec, &old.Spec)
		},
		ValidateCreate: func(_ resource.Env, c *corev1.PersistentVolumeClaim) field.ErrorList {
			return validateClaim(c, pod.ClaimOptions{})
		},
		ValidateUpdate: validateClaimUpdate,
		Warnings: func(_ resource.Env, c, _ *corev1.PersistentVolumeClaim) []string {
			var out []string
			if _, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
				out = append(out, fmt.Sprintf("%s: %s", field.NewPath("metadata", "annotations").Key(corev1.BetaStorageClassAnnotation),
					`deprecated since v1.8; use "storageClassName" attribute instead`))
			}
			return append(out, pod.ClaimWarnings(field.NewPath("spec"), &c.Spec)...)
		},
		Row: claimRow,
	})
}

func defaultClaim(c *corev1.PersistentVolumeClaim) {
	if c.Status.Phase == "" {
		c.Status.Phase = corev1.ClaimPending
	}
	pod.DefaultClaimSpec(&c.Spec)
	pod.WholeMillis(c.Status.Capacity, c.Status.AllocatedResources)
}

// dropSources drops a data source that may not be named, and brings dataSource and
// dataSourceRef into line: each fills in the other (KEP 1495). Where the claim had
// one, or dataSourceRef is set, nothing is dropped from dataSource: the client knows
// of sources of any kind.
func dropSources(f resource.Features, s, old *corev1.PersistentVolumeClaimSpec) {
	if r := s.DataSourceRef; r != nil && r.Namespace != nil && *r.Namespace != "" && !f.Enabled("CrossNamespaceVolumeDataSource") && old.DataSourceRef == nil {
		s.DataSourceRef = nil
	}
	if old.DataSource == nil && old.DataSourceRef == nil && s.DataSourceRef == nil && !isClaimOrSnapshot(s.DataSource) {
		s.DataSource = nil
	}
	alignSources(s)
}

func isClaimOrSnapshot(d *corev1.TypedLocalObjectReference) bool {
	if d == nil {
		return false
	}
	group := ""
	if d.APIGroup != nil {
		group = *d.APIGroup
	}
	return d.Kind == "PersistentVolumeClaim" && group == "" || d.Kind == "VolumeSnapshot" && group == "snapshot.storage.k8s.io"
}

func alignSources(s *corev1.PersistentVolumeClaimSpec) {
	d, r := s.DataSource, s.DataSourceRef
	switch {
	case d != nil && r == nil:
		d = d.DeepCopy()
		s.DataSourceRef = &corev1.TypedObjectReference{APIGroup: d.APIGroup, Kind: d.Kind, Name: d.Name}
	case d == nil && r != nil && (r.Namespace == nil || *r.Namespace == ""):
		r = r.DeepCopy()
		s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: r.APIGroup, Kind: r.Kind, Name: r.Name}
	}
}

func validateClaim(c *corev1.PersistentVolumeClaim, o pod.ClaimOptions) field.ErrorList {
	errs := resource.ValidateMeta(c, true, resource.DNSSubdomain)
	return append(errs, pod.ValidateClaimSpec(field.NewPath("spec"), &c.Spec, o)...)
}

func validateClaimUpdate(_ resource.Env, c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	p := field.NewPath("spec")
	is, was := c.Spec.DeepCopy(), old.Spec.DeepCopy()
	alignSources(was)
	errs := append(resource.ValidateMetaUpdate(c, old), validateClaim(c, pod.ClaimOptionsOf(was))...)

	// What may change is made equal before the rest is compared.
	if was.VolumeName == "" {
		was.VolumeName = is.VolumeName
	}
	oldClass, hadClass := old.Annotations[corev1.BetaStorageClassAnnotation]
	class, hasClass := c.Annotations[corev1.BetaStorageClassAnnotation]
	named := is.StorageClassName != nil && was.StorageClassName == nil
	if named && hadClass && *is.StorageClassName == oldClass && (!hasClass || class == oldClass) {
		is.StorageClassName = nil // from the annotation into the field
	} else {
		if class != oldClass {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "annotations", corev1.BetaStorageClassAnnotation), class, apivalidation.FieldImmutableErrorMsg))
		}
		if named && (!hadClass || *is.StorageClassName == oldClass) {
			is.StorageClassName = nil
		}
	}
	size, oldSize := c.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	if c.Status.Phase == corev1.ClaimBound {
		if is.Resources.Requests != nil {
			is.Resources.Requests[corev1.ResourceStorage] = oldSize
		}
		is.VolumeAttributesClassName = was.VolumeAttributesClassName
	}
	if !equal(is, was) {
		errs = append(errs, field.Forbidden(p, fmt.Sprintf("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n%v", resource.Diff(was, is))))
	}
	// A request may shrink to undo an expansion that failed, never below what is there.
	if capacity := old.Status.Capacity[corev1.ResourceStorage]; size.Cmp(oldSize) < 0 && size.Cmp(capacity) <= 0 {
		errs = append(errs, field.Forbidden(p.Child("resources", "requests", "storage"), "field can not be less than status.capacity"))
	}
	errs = append(errs, apivalidation.ValidateImmutableField(c.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode"))...)
	if n := c.Spec.VolumeAttributesClassName; old.Status.CurrentVolumeAttributesClassName != nil && !equal(n, old.Spec.VolumeAttributesClassName) {
		if n == nil {
			errs = append(errs, field.Forbidden(p.Child("volumeAttributesClassName"), "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil"))
		} else if *n == "" {
			errs = append(errs, field.Forbidden(p.Child("volumeAttributesClassName"), "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil"))
		}
	}
	return errs
}

var resizeStates = []corev1.ClaimResourceStatus{
	corev1.PersistentVolumeClaimControllerResizeInProgress, corev1.PersistentVolumeClaimControllerResizeInfeasible,
	corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizeInfeasible, corev1.PersistentVolumeClaimNodeResizePending,
}

func validateClaimStatus(_ resource.Env, c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	p, s := field.NewPath("status"), &c.Status
	errs := resource.ValidateMetaUpdate(c, old)
	whole := func(p *field.Path, l corev1.ResourceList, n corev1.ResourceName) {
		q := l[n]
		if v := q.Value(); v < 0 {
			errs = append(errs, field.Invalid(p.Key(string(n)), v, "must be a valid resource quantity"))
		}
	}
	for _, n := range sortedResources(s.Capacity) {
		whole(p.Child("capacity"), s.Capacity, n)
	}
	names := make([]string, 0, len(s.AllocatedResourceStatuses))
	for n := range s.AllocatedResourceStatuses {
		names = append(names, string(n))
	}
	slices.Sort(names)
	for _, n := range names {
		rp := p.Child("allocatedResourceStatuses")
		errs = append(errs, claimResource(rp, n)...)
		if !slices.Contains(resizeStates, s.AllocatedResourceStatuses[corev1.ResourceName(n)]) {
			sorted := slices.Sorted(slices.Values(resizeStates))
			errs = append(errs, field.NotSupported(rp, n, sorted))
		}
	}
	for _, n := range sortedResources(s.AllocatedResources) {
		rp := p.Child("allocatedResources")
		if bad := claimResource(rp, string(n)); len(bad) > 0 {
			errs = append(errs, bad...)
			continue
		}
		whole(rp, s.AllocatedResources, n)
	}
	return errs
}

// claimResource checks the name of something that a claim is given: storage, or a
// name with a domain of its own.
func claimResource(p *field.Path, name string) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range validation.IsQualifiedName(name) {
		errs = append(errs, field.Invalid(p, name, msg))
	}
	native := !strings.Contains(name, "/") || strings.Contains(name, corev1.ResourceDefaultNamespacePrefix)
	if len(errs) == 0 && native && name != string(corev1.ResourceStorage) {
		errs = append(errs, field.NotSupported(p, name, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	return errs
}

// ClaimClass is the name of a claim's storage class, from the annotation that came
// before the field where that is set.
func ClaimClass(c *corev1.PersistentVolumeClaim) string {
	if n, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return n
	}
	if n := c.Spec.StorageClassName; n != nil {
		return *n
	}
	return ""
}

func claimRow(c *corev1.PersistentVolumeClaim, now time.Time) []any {
	phase, size, modes := string(c.Status.Phase), "", ""
	if c.DeletionTimestamp != nil {
		phase = "Terminating"
	}
	if c.Spec.VolumeName != "" {
		q := c.Status.Capacity[corev1.ResourceStorage]
		size, modes = q.String(), accessModes(c.Status.AccessModes)
	}
	return []any{c.Name, phase, c.Spec.VolumeName, size, modes, ClaimClass(c), orUnset(c.Spec.VolumeAttributesClassName),
		resource.Age(c.CreationTimestamp, now), orUnset(c.Spec.VolumeMode)}
}

// accessModes are their short names.
func accessModes(modes []corev1.PersistentVolumeAccessMode) string {
	var out []string
	for _, m := range []struct {
		mode  corev1.PersistentVolumeAccessMode
		short string
	}{{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"}} {
		if slices.Contains(modes, m.mode) {
			out = append(out, m.short)
		}
	}
	return strings.Join(out, ",")
}
