package pod

import (
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
)

func setDefaults(pod *corev1.Pod) {
	// What only pods get: a template stays as its author wrote it.
	spec := &pod.Spec
	if g := spec.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		spec.TerminationGracePeriodSeconds = new(int64(1))
	}
	for _, list := range [][]corev1.Container{spec.Containers, spec.InitContainers} {
		for i := range list {
			requestLimits(&list[i].Resources)
			if !spec.HostNetwork {
				continue
			}
			for j := range list[i].Ports {
				if p := &list[i].Ports[j]; p.HostPort == 0 {
					p.HostPort = p.ContainerPort
				}
			}
		}
	}
	unset(&spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks)

	DefaultSpec(spec)
	defaultStatus(&pod.Status)
}

// requestLimits requests what is limited and not requested.
func requestLimits(r *corev1.ResourceRequirements) {
	if r.Limits == nil {
		return
	}
	if r.Requests == nil {
		r.Requests = corev1.ResourceList{}
	}
	for n, q := range r.Limits {
		if _, ok := r.Requests[n]; !ok {
			r.Requests[n] = q.DeepCopy()
		}
	}
}

// DefaultSpec fills in what a pod's spec leaves out, in a pod or in a template.
func DefaultSpec(spec *corev1.PodSpec) {
	// serviceAccount is the old name of serviceAccountName, which wins.
	if spec.ServiceAccountName == "" {
		spec.ServiceAccountName = spec.DeprecatedServiceAccount
	}
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
	empty(&spec.DNSPolicy, corev1.DNSClusterFirst)
	empty(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	empty(&spec.SchedulerName, corev1.DefaultSchedulerName)
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	unset(&spec.TerminationGracePeriodSeconds, int64(corev1.DefaultTerminationGracePeriodSeconds))

	for i := range spec.Volumes {
		defaultVolume(&spec.Volumes[i].VolumeSource)
	}
	for ctr := range containers(spec, nil) {
		defaultContainer(ctr)
	}
	WholeMillis(spec.Overhead)
	if spec.Resources != nil {
		WholeMillis(spec.Resources.Limits, spec.Resources.Requests)
	}
}

func empty[T ~string](v *T, def T) {
	if *v == "" {
		*v = def
	}
}

func zero(v *int32, def int32) {
	if *v == 0 {
		*v = def
	}
}

func unset[T any](v **T, def T) {
	if *v == nil {
		*v = &def
	}
}

// WholeMillis rounds quantities up to thousandths, the finest the API keeps.
func WholeMillis(lists ...corev1.ResourceList) {
	for _, l := range lists {
		for n, q := range l {
			q.RoundUp(apiresource.Milli)
			l[n] = q
		}
	}
}

// Modes of projected files.
const defaultFileMode = corev1.SecretVolumeSourceDefaultMode

func defaultVolume(v *corev1.VolumeSource) {
	if *v == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	if v.Image != nil {
		empty(&v.Image.PullPolicy, pullPolicyFor(v.Image.Reference))
	}
	defaultHostPath(v.HostPath)
	if v.Secret != nil {
		unset(&v.Secret.DefaultMode, defaultFileMode)
	}
	if v.ConfigMap != nil {
		unset(&v.ConfigMap.DefaultMode, defaultFileMode)
	}
	if v.DownwardAPI != nil {
		unset(&v.DownwardAPI.DefaultMode, defaultFileMode)
		defaultDownwardFiles(v.DownwardAPI.Items)
	}
	if v.Projected != nil {
		unset(&v.Projected.DefaultMode, defaultFileMode)
		for i := range v.Projected.Sources {
			s := &v.Projected.Sources[i]
			if s.DownwardAPI != nil {
				defaultDownwardFiles(s.DownwardAPI.Items)
			}
			if s.ServiceAccountToken != nil {
				unset(&s.ServiceAccountToken.ExpirationSeconds, int64(3600))
			}
		}
	}
	if v.ISCSI != nil {
		empty(&v.ISCSI.ISCSIInterface, "default")
	}
	if v.RBD != nil {
		empty(&v.RBD.RBDPool, "rbd")
		empty(&v.RBD.RadosUser, "admin")
		empty(&v.RBD.Keyring, "/etc/ceph/keyring")
	}
	defaultAzureDisk(v.AzureDisk)
	if v.ScaleIO != nil {
		empty(&v.ScaleIO.StorageMode, "ThinProvisioned")
		empty(&v.ScaleIO.FSType, "xfs")
	}
	if v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
		DefaultClaimSpec(&v.Ephemeral.VolumeClaimTemplate.Spec)
	}
}

// DefaultClaimSpec fills in what the spec of a PersistentVolumeClaim leaves out.
func DefaultClaimSpec(s *corev1.PersistentVolumeClaimSpec) {
	unset(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
	WholeMillis(s.Resources.Limits, s.Resources.Requests)
}

// DefaultVolumeSource fills in what the source of a PersistentVolume leaves out.
func DefaultVolumeSource(v *corev1.PersistentVolumeSource) {
	defaultHostPath(v.HostPath)
	defaultAzureDisk(v.AzureDisk)
	if s := v.RBD; s != nil {
		empty(&s.RBDPool, "rbd")
		empty(&s.RadosUser, "admin")
		empty(&s.Keyring, "/etc/ceph/keyring")
	}
	if s := v.ISCSI; s != nil {
		empty(&s.ISCSIInterface, "default")
	}
	if s := v.ScaleIO; s != nil {
		empty(&s.StorageMode, "ThinProvisioned")
		empty(&s.FSType, "xfs")
	}
}

func defaultHostPath(v *corev1.HostPathVolumeSource) {
	if v != nil {
		unset(&v.Type, corev1.HostPathUnset)
	}
}

func defaultAzureDisk(v *corev1.AzureDiskVolumeSource) {
	if v != nil {
		unset(&v.CachingMode, corev1.AzureDataDiskCachingReadWrite)
		unset(&v.FSType, "ext4")
		unset(&v.ReadOnly, false)
		unset(&v.Kind, corev1.AzureSharedBlobDisk)
	}
}

func defaultDownwardFiles(files []corev1.DownwardAPIVolumeFile) {
	for i := range files {
		defaultFieldRef(files[i].FieldRef)
	}
}

func defaultFieldRef(r *corev1.ObjectFieldSelector) {
	if r != nil {
		empty(&r.APIVersion, "v1")
	}
}

func defaultContainer(c *corev1.Container) {
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = pullPolicyFor(c.Image)
	}
	empty(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	empty(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		empty(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil {
			defaultFieldRef(from.FieldRef)
			if from.FileKeyRef != nil {
				unset(&from.FileKeyRef.Optional, false)
			}
		}
	}
	WholeMillis(c.Resources.Limits, c.Resources.Requests)
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p == nil {
			continue
		}
		zero(&p.TimeoutSeconds, 1)
		zero(&p.PeriodSeconds, 10)
		zero(&p.SuccessThreshold, 1)
		zero(&p.FailureThreshold, 3)
		defaultHTTPGet(p.HTTPGet)
		if p.GRPC != nil {
			unset(&p.GRPC.Service, "")
		}
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				defaultHTTPGet(h.HTTPGet)
			}
		}
	}
}

func defaultHTTPGet(h *corev1.HTTPGetAction) {
	if h != nil {
		empty(&h.Path, "/")
		empty(&h.Scheme, corev1.URISchemeHTTP)
	}
}

// defaultStatus keeps podIP and podIPs in line; where both are set and disagree,
// podIP is meant.
func defaultStatus(s *corev1.PodStatus) {
	switch {
	case s.PodIP == "" && len(s.PodIPs) > 0:
		s.PodIP = s.PodIPs[0].IP
	case s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP):
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			WholeMillis(list[i].AllocatedResources)
			if r := list[i].Resources; r != nil {
				WholeMillis(r.Limits, r.Requests)
			}
		}
	}
	WholeMillis(s.AllocatedResources)
	if s.Resources != nil {
		WholeMillis(s.Resources.Limits, s.Resources.Requests)
	}
}
