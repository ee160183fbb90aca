package storage

import (
	"context"
	"math"
	"slices"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/operation"
	"k8s.io/apimachinery/pkg/api/validate"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// VolumeAttachment declares volumeattachments.
func VolumeAttachment() *resource.Resource {
	spec := storagev1.VolumeAttachmentSpec{}.SwaggerDoc()
	attacher := resource.Column("Attacher", "string", spec["attacher"], 0)
	attacher.Format = "name"
	status := resource.StatusOf(resource.StrategyOf[*storagev1.VolumeAttachment]{
		ResetFields: []string{"metadata", "spec"},
		PrepareUpdate: func(_ resource.Env, a, old *storagev1.VolumeAttachment) {
			a.Spec = *old.Spec.DeepCopy()
			metav1.ResetObjectMetaForStatus(&a.ObjectMeta, old.ObjectMeta.DeepCopy())
		},
		ValidateUpdate: attachmentUpdate,
	})
	return resource.Define(resource.Resource{
		GroupVersion: storagev1.SchemeGroupVersion, Kind: "VolumeAttachment", Plural: "volumeattachments", Singular: "volumeattachment",
		Prefix: "/registry/volumeattachments/", ReturnDeleted: true,
		New:     func() resource.Object { return &storagev1.VolumeAttachment{} },
		NewList: func() runtime.Object { return &storagev1.VolumeAttachmentList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			attacher,
			resource.Column("PV", "string", storagev1.VolumeAttachmentSource{}.SwaggerDoc()["persistentVolumeName"], 0),
			resource.Column("Node", "string", spec["nodeName"], 0),
			resource.Column("Attached", "boolean", storagev1.VolumeAttachmentStatus{}.SwaggerDoc()["attached"], 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{status},
	}, resource.StrategyOf[*storagev1.VolumeAttachment]{
		Default: func(a *storagev1.VolumeAttachment) {
			if a.Spec.Source.InlineVolumeSpec != nil {
				pod.DefaultVolumeSource(&a.Spec.Source.InlineVolumeSpec.PersistentVolumeSource)
			}
		},
		ResetFields:   []string{"status"},
		PrepareCreate: func(_ resource.Env, a *storagev1.VolumeAttachment) { a.Status = storagev1.VolumeAttachmentStatus{} },
		PrepareUpdate: func(_ resource.Env, a, old *storagev1.VolumeAttachment) { a.Status = *old.Status.DeepCopy() },
		ValidateCreate: func(_ resource.Env, a *storagev1.VolumeAttachment) field.ErrorList {
			return slices.Concat(resource.ValidateMeta(a, false, resource.DNSSubdomain), validateAttachment(a), validateAttacher(&a.Spec.Attacher))
		},
		ValidateUpdate: attachmentUpdate,
		Row: func(a *storagev1.VolumeAttachment, now time.Time) []any {
			return []any{a.Name, a.Spec.Attacher, value(a.Spec.Source.PersistentVolumeName, ""), a.Spec.NodeName, a.Status.Attached, resource.Age(a.CreationTimestamp, now)}
		},
	})
}

// validateAttacher checks the name of a driver, with the words of the marker on the
// field.
func validateAttacher(name *string) field.ErrorList {
	ctx, op, p := context.Background(), operation.Operation{}, specPath.Child("attacher")
	if errs := validate.RequiredValue(ctx, op, p, name, nil); len(errs) > 0 {
		return errs
	}
	return append(validate.LongNameCaseless(ctx, op, p, name, nil), validate.MaxLength(ctx, op, p, name, nil, 63)...)
}

func attachmentUpdate(_ resource.Env, a, old *storagev1.VolumeAttachment) field.ErrorList {
	return slices.Concat(resource.ValidateMeta(a, false, resource.DNSSubdomain),
		resource.ValidateDriverName(specPath.Child("attacher"), a.Spec.Attacher), validateAttachment(a),
		resource.Immutable(specPath, a.Spec, old.Spec))
}

// Bounds of what an attacher reports, in bytes.
const (
	maxAttachmentMetadata = 256 << 10
	maxVolumeError        = 1024
)

// validateAttachment checks all but the metadata and the name of the attacher, whose
// place among the mistakes differs.
func validateAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	var errs field.ErrorList
	src, p := &a.Spec.Source, specPath.Child("source")
	switch name := src.PersistentVolumeName; {
	case src.InlineVolumeSpec == nil && name == nil:
		errs = append(errs, field.Required(p, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case src.InlineVolumeSpec != nil && name != nil:
		errs = append(errs, field.Forbidden(p, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
	case src.InlineVolumeSpec != nil:
		errs = append(errs, pod.ValidateVolumeSpec(p.Child("inlineVolumeSpec"), src.InlineVolumeSpec, "", pod.VolumeOptions{Inline: true})...)
	case *name == "":
		errs = append(errs, field.Required(p.Child("persistentVolumeName"), "must specify non empty persistentVolumeName"))
	}
	for _, msg := range resource.DNSSubdomain(a.Spec.NodeName, false) {
		errs = append(errs, field.Invalid(specPath.Child("nodeName"), a.Spec.NodeName, msg))
	}
	size := 0
	for k, v := range a.Status.AttachmentMetadata {
		size += len(k) + len(v)
	}
	if size > maxAttachmentMetadata {
		errs = append(errs, field.TooLong(statusPath.Child("attachmentMetadata"), "", maxAttachmentMetadata))
	}
	errs = append(errs, validateVolumeError(statusPath.Child("attachError"), a.Status.AttachError)...)
	errs = append(errs, validateVolumeError(statusPath.Child("detachError"), a.Status.DetachError)...)
	if name := src.PersistentVolumeName; name != nil {
		for _, msg := range resource.DNSSubdomain(*name, false) {
			errs = append(errs, field.Invalid(field.NewPath("spec.source.persistentVolumeName"), *name, msg))
		}
	}
	return errs
}

func validateVolumeError(p *field.Path, e *storagev1.VolumeError) field.ErrorList {
	var errs field.ErrorList
	if e == nil {
		return nil
	}
	if len(e.Message) > maxVolumeError {
		errs = append(errs, field.TooLong(p.Child("message"), "", maxVolumeError))
	}
	if c := e.ErrorCode; c != nil && *c < 0 {
		errs = append(errs, field.Invalid(p.Child("errorCode"), *c, validation.InclusiveRangeError(0, math.MaxInt32)))
	}
	return errs
}
