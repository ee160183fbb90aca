package storage

import (
	"strings"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// CSIDriver declares csidrivers.
func CSIDriver() *resource.Resource {
	doc := storagev1.CSIDriverSpec{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Kind: "CSIDriver", Plural: "csidrivers", Singular: "csidriver",
		Prefix: "/registry/csidrivers/", ReturnDeleted: true,
		New:     func() resource.Object { return &storagev1.CSIDriver{} },
		NewList: func() runtime.Object { return &storagev1.CSIDriverList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("AttachRequired", "boolean", doc["attachRequired"], 0),
			resource.Column("PodInfoOnMount", "boolean", doc["podInfoOnMount"], 0),
			resource.Column("StorageCapacity", "boolean", doc["storageCapacity"], 0),
			resource.Column("TokenRequests", "string", doc["tokenRequests"], 0),
			resource.Column("RequiresRepublish", "boolean", doc["requiresRepublish"], 0),
			resource.Column("Modes", "string", doc["volumeLifecycleModes"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*storagev1.CSIDriver]{
		Default: defaultDriver,
		PrepareUpdate: func(_ resource.Env, d, old *storagev1.CSIDriver) {
			if !equal(d.Spec, old.Spec) {
				d.Generation = old.Generation + 1
			}
		},
		ValidateCreate: func(_ resource.Env, d *storagev1.CSIDriver) field.ErrorList {
			return append(resource.ValidateMeta(d, false, resource.DNSSubdomain), validateDriver(&d.Spec)...)
		},
		ValidateUpdate: func(_ resource.Env, d, old *storagev1.CSIDriver) field.ErrorList {
			errs := append(resource.ValidateMetaUpdate(d, old), validateDriver(&d.Spec)...)
			// The misspelling is upstream's.
			errs = append(errs, apivalidation.ValidateImmutableField(d.Spec.AttachRequired, old.Spec.AttachRequired, specPath.Child("attachedRequired"))...)
			return append(errs, apivalidation.ValidateImmutableField(d.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes, specPath.Child("volumeLifecycleModes"))...)
		},
		Warnings: func(_ resource.Env, d, old *storagev1.CSIDriver) []string {
			if len(d.Spec.TokenRequests) == 0 || d.Spec.ServiceAccountTokenInSecrets != nil || old != nil && equal(d.Spec.TokenRequests, old.Spec.TokenRequests) {
				return nil
			}
			return []string{"spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes"}
		},
		Row: driverRow,
	})
}

func defaultDriver(d *storagev1.CSIDriver) {
	s := &d.Spec
	set(&s.AttachRequired, true)
	set(&s.PodInfoOnMount, false)
	set(&s.StorageCapacity, false)
	set(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	if len(s.VolumeLifecycleModes) == 0 {
		s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	}
	set(&s.RequiresRepublish, false)
	set(&s.SELinuxMount, false)
	set(&s.PreventPodSchedulingIfMissing, false)
}

// Bounds of the life of tokens for a driver, in seconds.
const (
	minTokenSeconds = 10 * 60
	maxTokenSeconds = 1 << 32
)

func validateDriver(s *storagev1.CSIDriverSpec) field.ErrorList {
	var errs field.ErrorList
	switch p := value(s.FSGroupPolicy, storagev1.NoneFSGroupPolicy); p {
	case storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy:
	default:
		errs = append(errs, field.NotSupported(specPath.Child("fsGroupPolicy"), p,
			[]storagev1.FSGroupPolicy{storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy}))
	}
	seen := map[string]bool{}
	for i, r := range s.TokenRequests {
		p := specPath.Child("tokenRequests").Index(i)
		if seen[r.Audience] {
			errs = append(errs, field.Duplicate(p.Child("audience"), r.Audience))
			continue
		}
		seen[r.Audience] = true
		if e := r.ExpirationSeconds; e != nil && *e < minTokenSeconds {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *e, "may not specify a duration less than 10 minutes"))
		} else if e != nil && *e > maxTokenSeconds {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *e, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	for _, m := range s.VolumeLifecycleModes {
		if m != storagev1.VolumeLifecyclePersistent && m != storagev1.VolumeLifecycleEphemeral {
			errs = append(errs, field.NotSupported(specPath.Child("volumeLifecycleModes"), m,
				[]storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral}))
		}
	}
	if n := s.NodeAllocatableUpdatePeriodSeconds; n != nil && *n < 10 {
		errs = append(errs, field.Invalid(specPath.Child("nodeAllocatableUpdatePeriodSeconds"), *n, "must be greater than or equal to 10 seconds"))
	}
	if b := s.ServiceAccountTokenInSecrets; b != nil && len(s.TokenRequests) == 0 {
		errs = append(errs, field.Invalid(specPath.Child("serviceAccountTokenInSecrets"), *b, "serviceAccountTokenInSecrets is set but no tokenRequests are specified"))
	}
	return errs
}

func driverRow(d *storagev1.CSIDriver, now time.Time) []any {
	s := &d.Spec
	modes, tokens := "<none>", "<unset>"
	if len(s.VolumeLifecycleModes) > 0 {
		var list []string
		for _, m := range s.VolumeLifecycleModes {
			list = append(list, string(m))
		}
		modes = strings.Join(list, ",")
	}
	if s.TokenRequests != nil {
		var list []string
		for _, r := range s.TokenRequests {
			list = append(list, r.Audience)
		}
		tokens = strings.Join(list, ",")
	}
	return []any{d.Name, value(s.AttachRequired, true), value(s.PodInfoOnMount, false), value(s.StorageCapacity, false),
		tokens, value(s.RequiresRepublish, false), modes, resource.Age(d.CreationTimestamp, now)}
}
