package pod

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Annotations with rules of their own.
const (
	mirrorAnnotation      = "kubernetes.io/config.mirror"
	tolerationsAnnotation = "scheduler.alpha.kubernetes.io/tolerations"
	deletionCost          = corev1.PodDeletionCost
	seccompPod            = corev1.SeccompPodAnnotationKey
	seccompContainer      = corev1.SeccompContainerAnnotationKeyPrefix
	appArmorContainer     = corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix
)

const (
	appArmorRuntimeDefault = corev1.DeprecatedAppArmorBetaProfileRuntimeDefault
	appArmorUnconfined     = corev1.DeprecatedAppArmorBetaProfileNameUnconfined
	appArmorLocalhost      = corev1.DeprecatedAppArmorBetaProfileNamePrefix
)

// annotations checks the annotations that mean something for a pod.
func (c *check) annotations(p *field.Path, a map[string]string, spec *corev1.PodSpec) {
	if v, ok := a[mirrorAnnotation]; ok && spec.NodeName == "" {
		c.invalid(p.Key(mirrorAnnotation), v, "must set spec.nodeName if mirror pod annotation is set")
	}
	if v := a[tolerationsAnnotation]; v != "" {
		var ts []corev1.Toleration
		if err := json.Unmarshal([]byte(v), &ts); err != nil {
			c.invalid(p, tolerationsAnnotation, internalNames(err))
		} else {
			c.tolerations(p.Child(tolerationsAnnotation), ts)
		}
	}
	if !c.badDeletionCost && !validDeletionCost(a) {
		c.invalid(p.Key(deletionCost), a[deletionCost], "must be a 32bit integer")
	}
	if v, ok := a[seccompPod]; ok {
		c.seccompAnnotation(p.Child(seccompPod), v)
	}
	for _, k := range sortedKeys(a) {
		if strings.HasPrefix(k, seccompContainer) {
			c.seccompAnnotation(p.Child(k), a[k])
		}
	}
	for _, k := range sortedKeys(a) {
		name, ok := strings.CutPrefix(k, appArmorContainer)
		if !ok {
			continue
		}
		if !anyContainer(spec, func(ctr *corev1.Container) bool { return ctr.Name == name }) {
			c.invalid(p.Key(k), name, "container not found")
		}
		switch v := a[k]; {
		case v == "", v == appArmorRuntimeDefault, v == appArmorUnconfined, strings.HasPrefix(v, appArmorLocalhost):
		default:
			c.invalid(p.Key(k), v, fmt.Sprintf("invalid AppArmor profile name: %q", v))
		}
	}
}

// internalNames is the text of an error of decoding, which names upstream's
// internal type.
func internalNames(err error) string { return strings.ReplaceAll(err.Error(), " []v1.", " []core.") }

func (c *check) seccompAnnotation(p *field.Path, v string) {
	switch {
	case v == corev1.SeccompProfileRuntimeDefault, v == corev1.DeprecatedSeccompProfileDockerDefault, v == corev1.SeccompProfileNameUnconfined:
	case strings.HasPrefix(v, corev1.SeccompLocalhostProfileNamePrefix):
		c.descendingPath(p, strings.TrimPrefix(v, corev1.SeccompLocalhostProfileNamePrefix))
	default:
		c.invalid(p, v, "must be a valid seccomp profile")
	}
}

// validDeletionCost tells whether the deletion cost is absent or a canonical
// 32 bit integer: no plus sign, no leading zero.
func validDeletionCost(a map[string]string) bool {
	v, ok := a[deletionCost]
	if !ok {
		return true
	}
	if v == "" || v[0] == '+' || v[0] == '0' && v != "0" {
		return false
	}
	_, err := strconv.ParseInt(v, 10, 32)
	return err == nil
}

// annotationUpdates refuses changes of annotations that are fixed at creation.
func (c *check) annotationUpdates(p *field.Path, pod, old *corev1.Pod) {
	fixed := func(k, appArmor, mirror string) {
		if strings.HasPrefix(k, appArmorContainer) {
			c.forbidden(p.Key(k), "may not "+appArmor+" AppArmor annotations")
		}
		if k == mirrorAnnotation {
			c.forbidden(p.Key(k), "may not "+mirror+" mirror pod annotation")
		}
	}
	for _, k := range sortedKeys(old.Annotations) {
		if v, ok := pod.Annotations[k]; !ok || v != old.Annotations[k] {
			fixed(k, "remove or update", "remove or update")
		}
	}
	for _, k := range sortedKeys(pod.Annotations) {
		if _, ok := old.Annotations[k]; !ok {
			fixed(k, "add", "add")
		}
	}
	c.annotations(p, pod.Annotations, &pod.Spec)
}

// profileAnnotations asks that the annotations which security profiles were once
// set by say the same as the fields.
func (c *check) profileAnnotations(p *field.Path, meta *metav1.ObjectMeta, spec *corev1.PodSpec) {
	if s := spec.SecurityContext; s != nil && s.SeccompProfile != nil {
		if v, ok := meta.Annotations[seccompPod]; ok {
			c.seccompMatches(p.Child("securityContext", "seccompProfile"), v, s.SeccompProfile)
		}
	}
	for ctr, cp := range containers(spec, p) {
		if ctr.SecurityContext == nil || ctr.SecurityContext.SeccompProfile == nil {
			continue
		}
		if v, ok := meta.Annotations[seccompContainer+ctr.Name]; ok {
			c.seccompMatches(cp.Child("securityContext", "seccompProfile"), v, ctr.SecurityContext.SeccompProfile)
		}
	}
	if isWindows(spec) {
		return
	}
	for ctr, cp := range containers(spec, p) {
		var profile *corev1.AppArmorProfile
		if spec.SecurityContext != nil {
			profile = spec.SecurityContext.AppArmorProfile
		}
		if s := ctr.SecurityContext; s != nil && s.AppArmorProfile != nil {
			profile = s.AppArmorProfile
		}
		if v, ok := meta.Annotations[appArmorContainer+ctr.Name]; ok && profile != nil {
			c.appArmorMatches(cp.Child("securityContext", "appArmorProfile"), v, profile)
		}
	}
}

func (c *check) seccompMatches(p *field.Path, annotation string, profile *corev1.SeccompProfile) {
	ok := true
	switch profile.Type {
	case corev1.SeccompProfileTypeUnconfined:
		ok = annotation == corev1.SeccompProfileNameUnconfined
	case corev1.SeccompProfileTypeRuntimeDefault:
		ok = annotation == corev1.SeccompProfileRuntimeDefault || annotation == corev1.DeprecatedSeccompProfileDockerDefault
	case corev1.SeccompProfileTypeLocalhost:
		var name string
		if name, ok = strings.CutPrefix(annotation, corev1.SeccompLocalhostProfileNamePrefix); ok &&
			(profile.LocalhostProfile == nil || *profile.LocalhostProfile != name) {
			c.forbidden(p.Child("localhostProfile"), "seccomp profile in annotation and field must match")
		}
	}
	if !ok {
		c.forbidden(p.Child("type"), "seccomp type in annotation and field must match")
	}
}

func (c *check) appArmorMatches(p *field.Path, annotation string, profile *corev1.AppArmorProfile) {
	ok := true
	switch profile.Type {
	case corev1.AppArmorProfileTypeUnconfined:
		ok = annotation == appArmorUnconfined
	case corev1.AppArmorProfileTypeRuntimeDefault:
		ok = annotation == appArmorRuntimeDefault
	case corev1.AppArmorProfileTypeLocalhost:
		var name string
		if name, ok = strings.CutPrefix(annotation, appArmorLocalhost); ok &&
			(profile.LocalhostProfile == nil || *profile.LocalhostProfile != name) {
			c.forbidden(p.Child("localhostProfile"), "apparmor profile in annotation and field must match")
		}
	}
	if !ok {
		c.forbidden(p.Child("type"), "apparmor type in annotation and field must match")
	}
}
