// Package podrefs tells which API objects a pod or a volume refers to.
package podrefs

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Kind of an object that is referred to.
type Kind uint8

// The kinds. All but PersistentVolume are in a namespace.
const (
	Secret Kind = iota
	ConfigMap
	ServiceAccount
	PersistentVolumeClaim
	ResourceClaim
	PersistentVolume
)

// Ref is a reference to an object in the pod's own namespace.
type Ref struct {
	Kind Kind
	Name string
}

// Of returns what a pod refers to; an object may be in it more than once.
func Of(p *corev1.Pod) []Ref {
	return slices.DeleteFunc(references(p), func(r Ref) bool { return r.Name == "" })
}

// references are what Of returns, and those that lack a name, which the API takes
// where it always did.
func references(p *corev1.Pod) []Ref {
	var out list
	if name := p.Spec.ServiceAccountName; name != "" {
		out.add(ServiceAccount, name)
	}
	for _, s := range p.Spec.ImagePullSecrets {
		out.add(Secret, s.Name)
	}
	for i := range p.Spec.InitContainers {
		out.container(p.Spec.InitContainers[i].EnvFrom, p.Spec.InitContainers[i].Env)
	}
	for i := range p.Spec.Containers {
		out.container(p.Spec.Containers[i].EnvFrom, p.Spec.Containers[i].Env)
	}
	for i := range p.Spec.EphemeralContainers {
		out.container(p.Spec.EphemeralContainers[i].EnvFrom, p.Spec.EphemeralContainers[i].Env)
	}
	for i := range p.Spec.Volumes {
		out.volume(p, &p.Spec.Volumes[i])
	}
	for _, c := range p.Spec.ResourceClaims {
		if c.ResourceClaimName != nil {
			out.add(ResourceClaim, *c.ResourceClaimName)
		}
	}
	for _, c := range p.Status.ResourceClaimStatuses {
		if c.ResourceClaimName != nil {
			out.add(ResourceClaim, *c.ResourceClaimName)
		}
	}
	if c := p.Status.ExtendedResourceClaimStatus; c != nil {
		out.add(ResourceClaim, c.ResourceClaimName)
	}
	return out
}

type list []Ref

func (l *list) add(k Kind, name string) { *l = append(*l, Ref{k, name}) }

func (l *list) secret(r *corev1.LocalObjectReference) {
	if r != nil {
		l.add(Secret, r.Name)
	}
}

func (l *list) container(from []corev1.EnvFromSource, env []corev1.EnvVar) {
	for _, f := range from {
		if f.SecretRef != nil {
			l.add(Secret, f.SecretRef.Name)
		}
		if f.ConfigMapRef != nil {
			l.add(ConfigMap, f.ConfigMapRef.Name)
		}
	}
	for _, e := range env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			l.add(Secret, r.Name)
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			l.add(ConfigMap, r.Name)
		}
	}
}

func (l *list) volume(p *corev1.Pod, v *corev1.Volume) {
	if s := v.Secret; s != nil {
		l.add(Secret, s.SecretName)
	}
	if s := v.ConfigMap; s != nil {
		l.add(ConfigMap, s.Name)
	}
	if s := v.Projected; s != nil {
		for _, src := range s.Sources {
			if src.Secret != nil {
				l.add(Secret, src.Secret.Name)
			}
			if src.ConfigMap != nil {
				l.add(ConfigMap, src.ConfigMap.Name)
			}
		}
	}
	if s := v.PersistentVolumeClaim; s != nil {
		l.add(PersistentVolumeClaim, s.ClaimName)
	}
	if v.Ephemeral != nil {
		l.add(PersistentVolumeClaim, p.Name+"-"+v.Name)
	}
	if s := v.CSI; s != nil {
		l.secret(s.NodePublishSecretRef)
	}
	if s := v.AzureFile; s != nil {
		l.add(Secret, s.SecretName)
	}
	if s := v.CephFS; s != nil {
		l.secret(s.SecretRef)
	}
	if s := v.Cinder; s != nil {
		l.secret(s.SecretRef)
	}
	if s := v.FlexVolume; s != nil {
		l.secret(s.SecretRef)
	}
	if s := v.RBD; s != nil {
		l.secret(s.SecretRef)
	}
	if s := v.ScaleIO; s != nil {
		l.secret(s.SecretRef)
	}
	if s := v.ISCSI; s != nil {
		l.secret(s.SecretRef)
	}
	if s := v.StorageOS; s != nil {
		l.secret(s.SecretRef)
	}
}

// NeedsAPI returns the first thing by which a pod needs more of the API than itself,
// in the words of upstream's refusals; "" where it needs nothing: a pod that a node
// makes must not.
func NeedsAPI(p *corev1.Pod) string {
	refs := references(p)
	for _, w := range []struct {
		kind Kind
		name string
	}{{ServiceAccount, "serviceaccounts"}, {Secret, "secrets"}, {ConfigMap, "configmaps"}} {
		if slices.ContainsFunc(refs, func(r Ref) bool { return r.Kind == w.kind }) {
			return w.name
		}
	}
	if len(p.Spec.ResourceClaims) > 0 {
		return "resourceclaims"
	}
	for _, v := range p.Spec.Volumes {
		switch {
		case v.CSI != nil:
			return "csidrivers (via CSI volumes)"
		case v.Glusterfs != nil:
			return "endpoints (via glusterFS volumes)"
		case v.PersistentVolumeClaim != nil:
			return "persistentvolumeclaims"
		case v.Ephemeral != nil:
			return "persistentvolumeclaims (via ephemeral volumes)"
		case v.ConfigMap != nil:
			return "configmaps (via configmap volumes)"
		case v.Secret != nil:
			return "secrets (via secret volumes)"
		case v.AzureFile != nil:
			return "secrets (via azureFile volumes)"
		case v.Projected != nil:
			if what := projectedNeeds(v.Projected); what != "" {
				return what
			}
		}
	}
	return ""
}

func projectedNeeds(v *corev1.ProjectedVolumeSource) string {
	for _, s := range v.Sources {
		switch {
		case s.ConfigMap != nil:
			return "configmaps (via projected volumes)"
		case s.Secret != nil:
			return "secrets (via projected volumes)"
		case s.ServiceAccountToken != nil:
			return "serviceaccounts (via projected volumes)"
		case s.ClusterTrustBundle != nil:
			return "clustertrustbundles"
		case s.PodCertificate != nil:
			return "podcertificates"
		}
	}
	return ""
}

// NamedSecret is a secret of any namespace.
type NamedSecret struct{ Namespace, Name string }

// VolumeSecrets returns the secrets that a node needs to mount a persistent volume.
func VolumeSecrets(pv *corev1.PersistentVolume) []NamedSecret {
	claim := ""
	if r := pv.Spec.ClaimRef; r != nil {
		claim = r.Namespace
	}
	var out []NamedSecret
	add := func(ns, name string) {
		if name != "" {
			out = append(out, NamedSecret{ns, name})
		}
	}
	// Some sources without a namespace mean the claim's.
	ref := func(r *corev1.SecretReference, claimed bool) {
		switch {
		case r == nil:
		case r.Namespace == "" && claimed:
			add(claim, r.Name)
		default:
			add(r.Namespace, r.Name)
		}
	}
	if s := pv.Spec.AzureFile; s != nil {
		ns := claim
		if s.SecretNamespace != nil && *s.SecretNamespace != "" {
			ns = *s.SecretNamespace
		}
		add(ns, s.SecretName)
	}
	if s := pv.Spec.CephFS; s != nil {
		ref(s.SecretRef, true)
	}
	if s := pv.Spec.Cinder; s != nil {
		ref(s.SecretRef, false)
	}
	if s := pv.Spec.FlexVolume; s != nil {
		ref(s.SecretRef, true)
	}
	if s := pv.Spec.RBD; s != nil {
		ref(s.SecretRef, true)
	}
	if s := pv.Spec.ScaleIO; s != nil {
		ref(s.SecretRef, true)
	}
	if s := pv.Spec.ISCSI; s != nil {
		ref(s.SecretRef, true)
	}
	if s := pv.Spec.StorageOS; s != nil && s.SecretRef != nil {
		add(s.SecretRef.Namespace, s.SecretRef.Name)
	}
	if s := pv.Spec.CSI; s != nil {
		ref(s.NodePublishSecretRef, false)
		ref(s.NodeStageSecretRef, false)
		ref(s.NodeExpandSecretRef, false)
	}
	return out
}
