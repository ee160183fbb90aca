package core

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// PersistentVolume declares core/v1 persistentvolumes.
func PersistentVolume() *resource.Resource {
	spec, status := corev1.PersistentVolumeSpec{}.SwaggerDoc(), corev1.PersistentVolumeStatus{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "PersistentVolume", Plural: "persistentvolumes", Singular: "persistentvolume",
		ShortNames: []string{"pv"}, Prefix: "/registry/persistentvolumes/", ReturnDeleted: true,
		New:     func() resource.Object { return &corev1.PersistentVolume{} },
		NewList: func() runtime.Object { return &corev1.PersistentVolumeList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Capacity", "string", spec["capacity"], 0),
			resource.Column("Access Modes", "string", spec["accessModes"], 0),
			resource.Column("Reclaim Policy", "string", spec["persistentVolumeReclaimPolicy"], 0),
			resource.Column("Status", "string", status["phase"], 0),
			resource.Column("Claim", "string", spec["claimRef"], 0),
			resource.Column("StorageClass", "string", "StorageClass of the pv", 0),
			resource.Column("VolumeAttributesClass", "string", "VolumeAttributesClass of the pv", 0),
			resource.Column("Reason", "string", status["reason"], 0),
			resource.AgeColumn(),
			resource.Column("VolumeMode", "string", spec["volumeMode"], 1),
		},
		Subresources: []resource.Subresource{resource.StatusOf(resource.StrategyOf[*corev1.PersistentVolume]{
			Default:             defaultVolume,
			UnconditionalUpdate: true,
			ResetFields:         []string{"spec"},
			PrepareUpdate:       prepareVolumeStatus,
			ValidateUpdate: func(_ resource.Env, v, old *corev1.PersistentVolume) field.ErrorList {
				return resource.ValidateMetaUpdate(v, old)
			},
		})},
	}, resource.StrategyOf[*corev1.PersistentVolume]{
		Default:             defaultVolume,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, v *corev1.PersistentVolume) {
			now := metav1.NewTime(env.Now())
			v.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending, LastPhaseTransitionTime: &now}
		},
		PrepareUpdate: func(_ resource.Env, v, old *corev1.PersistentVolume) { v.Status = *old.Status.DeepCopy() },
		ValidateCreate: func(_ resource.Env, v *corev1.PersistentVolume) field.ErrorList {
			return append(validateVolume(v, pod.VolumeOptions{}), mountOptions(v)...)
		},
		ValidateUpdate: validateVolumeUpdate,
		Warnings:       func(_ resource.Env, v, _ *corev1.PersistentVolume) []string { return volumeWarnings(v) },
		Row:            volumeRow,
	})
}

func defaultVolume(v *corev1.PersistentVolume) {
	if v.Status.Phase == "" {
		v.Status.Phase = corev1.VolumePending
	}
	if v.Spec.PersistentVolumeReclaimPolicy == "" {
		v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}
	if v.Spec.VolumeMode == nil {
		m := corev1.PersistentVolumeFilesystem
		v.Spec.VolumeMode = &m
	}
	pod.DefaultVolumeSource(&v.Spec.PersistentVolumeSource)
	pod.WholeMillis(v.Spec.Capacity)
}

// prepareVolumeStatus notes when the phase changed, where the client does not say.
func prepareVolumeStatus(env resource.Env, v, old *corev1.PersistentVolume) {
	v.Spec = *old.Spec.DeepCopy()
	s, was := &v.Status, &old.Status
	switch {
	case s.Phase == was.Phase && s.LastPhaseTransitionTime == nil:
		s.LastPhaseTransitionTime = was.LastPhaseTransitionTime.DeepCopy()
	case s.Phase != was.Phase && (s.LastPhaseTransitionTime == nil || s.LastPhaseTransitionTime.Equal(was.LastPhaseTransitionTime)):
		now := metav1.NewTime(env.Now())
		s.LastPhaseTransitionTime = &now
	}
}

func validateVolume(v *corev1.PersistentVolume, o pod.VolumeOptions) field.ErrorList {
	errs := resource.ValidateMeta(v, false, resource.DNSSubdomain)
	return append(errs, pod.ValidateVolumeSpec(field.NewPath("spec"), &v.Spec, v.Name, o)...)
}

// mountOptions refuses the annotation on a volume of a type that knows none.
func mountOptions(v *corev1.PersistentVolume) field.ErrorList {
	s := &v.Spec
	if _, ok := v.Annotations[mountOptionsAnnotation]; !ok || s.GCEPersistentDisk != nil || s.AWSElasticBlockStore != nil || s.Glusterfs != nil ||
		s.NFS != nil || s.RBD != nil || s.Quobyte != nil || s.ISCSI != nil || s.Cinder != nil || s.CephFS != nil || s.AzureFile != nil ||
		s.VsphereVolume != nil || s.AzureDisk != nil || s.PhotonPersistentDisk != nil {
		return nil
	}
	return field.ErrorList{field.Forbidden(field.NewPath("metadata", "annotations", mountOptionsAnnotation), "may not specify mount options for this volume type")}
}

const mountOptionsAnnotation = corev1.MountOptionAnnotation

func validateVolumeUpdate(env resource.Env, v, old *corev1.PersistentVolume) field.ErrorList {
	o := pod.VolumeOptionsOf(&old.Spec)
	errs := append(validateVolume(v, o), mountOptions(v)...)
	errs = append(errs, validateVolume(v, o)...) // upstream checks twice, and says so
	p, is, was := field.NewPath("spec"), &v.Spec, &old.Spec
	// The secret for expansion may come later.
	source := is.PersistentVolumeSource
	if source.CSI != nil && source.CSI.ControllerExpandSecretRef != nil && was.CSI != nil && was.CSI.ControllerExpandSecretRef == nil {
		c := *source.CSI
		c.ControllerExpandSecretRef = nil
		source.CSI = &c
	}
	if !equal(source, was.PersistentVolumeSource) {
		errs = append(errs, field.Forbidden(p.Child("persistentvolumesource"),
			fmt.Sprintf("spec.persistentvolumesource is immutable after creation\n%v", resource.Diff(was.PersistentVolumeSource, source))))
	}
	errs = append(errs, apivalidation.ValidateImmutableField(is.VolumeMode, was.VolumeMode, field.NewPath("volumeMode"))...)
	if !env.Features.Enabled("MutablePVNodeAffinity") && was.NodeAffinity != nil && !equal(is.NodeAffinity, renamedLabels(was.NodeAffinity, is.NodeAffinity)) {
		errs = append(errs, field.Invalid(field.NewPath("nodeAffinity"), resource.Shown(is.NodeAffinity), apivalidation.FieldImmutableErrorMsg+", except for updating from beta label to GA"))
	}
	if was.VolumeAttributesClassName != nil && is.VolumeAttributesClassName == nil {
		errs = append(errs, field.Forbidden(p.Child("volumeAttributesClassName"), "update from non-nil value to nil is forbidden"))
	}
	return errs
}

// stableLabels are the present names of labels that nodes once had.
var stableLabels = map[string]string{
	corev1.LabelFailureDomainBetaZone: corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
	corev1.LabelInstanceType: corev1.LabelInstanceTypeStable,
	"beta.kubernetes.io/os":  corev1.LabelOSStable, "beta.kubernetes.io/arch": corev1.LabelArchStable,
}

// renamedLabels returns old with those labels renamed that have their present name
// at the same place of is.
func renamedLabels(old, is *corev1.VolumeNodeAffinity) *corev1.VolumeNodeAffinity {
	if old == nil || old.Required == nil || is == nil || is.Required == nil {
		return old
	}
	out := old.DeepCopy()
	rename := func(list, now []corev1.NodeSelectorRequirement) {
		for i := range min(len(list), len(now)) {
			if k := list[i].Key; k != now[i].Key && stableLabels[k] == now[i].Key {
				list[i].Key = now[i].Key
			}
		}
	}
	terms := out.Required.NodeSelectorTerms
	for i := range min(len(terms), len(is.Required.NodeSelectorTerms)) {
		now := is.Required.NodeSelectorTerms[i]
		rename(terms[i].MatchExpressions, now.MatchExpressions)
		rename(terms[i].MatchFields, now.MatchFields)
	}
	return out
}

func volumeWarnings(v *corev1.PersistentVolume) []string {
	var out []string
	say := func(p *field.Path, text string) { out = append(out, fmt.Sprintf("%s: %s", p, text)) }
	if _, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		say(field.NewPath("metadata", "annotations").Key(corev1.BetaStorageClassAnnotation), `deprecated since v1.8; use "storageClassName" attribute instead`)
	}
	if _, ok := v.Annotations[mountOptionsAnnotation]; ok {
		say(field.NewPath("metadata", "annotations").Key(mountOptionsAnnotation), `deprecated since v1.31; use "mountOptions" attribute instead`)
	}
	s, p := &v.Spec, field.NewPath("spec")
	if s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		say(p.Child("persistentVolumeReclaimPolicy"), "The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.")
	}
	if a := s.NodeAffinity; a != nil && a.Required != nil {
		for i, t := range a.Required.NodeSelectorTerms {
			for j, e := range t.MatchExpressions {
				if text, ok := pod.DeprecatedNodeLabels[e.Key]; ok {
					say(p.Child("nodeAffinity", "required", "nodeSelectorTerms").Index(i).Child("matchExpressions").Index(j).Child("key"), e.Key+" is "+text)
				}
			}
		}
	}
	for _, t := range []struct {
		set         bool
		name, since string
	}{
		{s.CephFS != nil, "cephfs", "deprecated in v1.28, non-functional in v1.31+"},
		{s.PhotonPersistentDisk != nil, "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"},
		{s.ScaleIO != nil, "scaleIO", "deprecated in v1.16, non-functional in v1.22+"},
		{s.StorageOS != nil, "storageOS", "deprecated in v1.22, non-functional in v1.25+"},
		{s.Glusterfs != nil, "glusterfs", "deprecated in v1.25, non-functional in v1.26+"},
		{s.RBD != nil, "rbd", "deprecated in v1.28, non-functional in v1.31+"},
	} {
		if t.set {
			say(p.Child(t.name), t.since)
		}
	}
	return out
}

func volumeRow(v *corev1.PersistentVolume, now time.Time) []any {
	claim, phase := "", string(v.Status.Phase)
	if r := v.Spec.ClaimRef; r != nil {
		claim = r.Namespace + "/" + r.Name
	}
	if v.DeletionTimestamp != nil {
		phase = "Terminating"
	}
	class := v.Spec.StorageClassName
	if c, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		class = c
	}
	size := v.Spec.Capacity[corev1.ResourceStorage]
	return []any{v.Name, size.String(), accessModes(v.Spec.AccessModes), string(v.Spec.PersistentVolumeReclaimPolicy), phase, claim, class,
		orUnset(v.Spec.VolumeAttributesClassName), v.Status.Reason, resource.Age(v.CreationTimestamp, now), orUnset(v.Spec.VolumeMode)}
}

func orUnset[T ~string](s *T) string {
	if s == nil {
		return "<unset>"
	}
	return string(*s)
}
