package pod

import (
	"iter"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/api/resource"
)

// gated is a part of the spec that exists only while a feature is on. It is
// dropped from what clients send, unless the object has it already.
type gated struct {
	feature string
	used    func(*corev1.PodSpec) bool
	drop    func(*corev1.PodSpec)
}

var gatedSpec = []gated{
	{"AtomicWriteVolumeUserFields", fileUsersUsed, func(s *corev1.PodSpec) {
		for u := range fileUsers(s) {
			*u = nil
		}
	}},
	{"GenericWorkload", func(s *corev1.PodSpec) bool { return s.SchedulingGroup != nil }, func(s *corev1.PodSpec) { s.SchedulingGroup = nil }},
	{"EvictionRequestAPI", func(s *corev1.PodSpec) bool { return s.EvictionResponders != nil }, func(s *corev1.PodSpec) { s.EvictionResponders = nil }},
	{"GRPCContainerProbeTLS", inContainers(func(c *corev1.Container) bool {
		return slices.ContainsFunc(probesOf(c), func(p *corev1.Probe) bool { return p.GRPC != nil && p.GRPC.Mode != nil })
	}), eachContainer(func(c *corev1.Container) {
		for _, p := range probesOf(c) {
			if p.GRPC != nil {
				p.GRPC.Mode = nil
			}
		}
	})},
	{"H2CContainerProbe", inContainers(func(c *corev1.Container) bool {
		return slices.ContainsFunc(httpGetsOf(c), func(h *corev1.HTTPGetAction) bool { return h.Protocol != nil })
	}), eachContainer(func(c *corev1.Container) {
		for _, h := range httpGetsOf(c) {
			h.Protocol = nil
		}
	})},
	{"ContainerStopSignals", inContainers(func(c *corev1.Container) bool { return c.Lifecycle != nil && c.Lifecycle.StopSignal != nil }),
		eachContainer(func(c *corev1.Container) {
			if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
				c.Lifecycle.StopSignal = nil
				if *c.Lifecycle == (corev1.Lifecycle{}) {
					c.Lifecycle = nil
				}
			}
		})},
	{"EmptyDirVolumeMode", func(s *corev1.PodSpec) bool {
		return slices.ContainsFunc(s.Volumes, func(v corev1.Volume) bool { return v.EmptyDir != nil && v.EmptyDir.Mode != nil })
	}, func(s *corev1.PodSpec) {
		for _, v := range s.Volumes {
			if v.EmptyDir != nil {
				v.EmptyDir.Mode = nil
			}
		}
	}},
	{"VolumeBindMountOptions", inContainers(func(c *corev1.Container) bool {
		return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.BindMountOptions != nil })
	}), eachContainer(func(c *corev1.Container) {
		for i := range c.VolumeMounts {
			c.VolumeMounts[i].BindMountOptions = nil
		}
	})},
}

func inContainers(has func(*corev1.Container) bool) func(*corev1.PodSpec) bool {
	return func(s *corev1.PodSpec) bool { return anyContainer(s, has) }
}

func eachContainer(do func(*corev1.Container)) func(*corev1.PodSpec) {
	return func(s *corev1.PodSpec) {
		for c := range containers(s, nil) {
			do(c)
		}
	}
}

func probesOf(c *corev1.Container) []*corev1.Probe {
	return slices.DeleteFunc([]*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe}, func(p *corev1.Probe) bool { return p == nil })
}

func httpGetsOf(c *corev1.Container) []*corev1.HTTPGetAction {
	var out []*corev1.HTTPGetAction
	for _, p := range probesOf(c) {
		out = append(out, p.HTTPGet)
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				out = append(out, h.HTTPGet)
			}
		}
	}
	return slices.DeleteFunc(out, func(h *corev1.HTTPGetAction) bool { return h == nil })
}

func fileUsersUsed(s *corev1.PodSpec) bool {
	for u := range fileUsers(s) {
		if *u != nil {
			return true
		}
	}
	return false
}

// fileUsers yields the owners of the files that volumes are written from.
func fileUsers(s *corev1.PodSpec) iter.Seq[**int64] {
	return func(yield func(**int64) bool) {
		one := func(u **int64) bool { return yield(u) }
		keys := func(items []corev1.KeyToPath) bool {
			for i := range items {
				if !one(&items[i].User) {
					return false
				}
			}
			return true
		}
		files := func(items []corev1.DownwardAPIVolumeFile) bool {
			for i := range items {
				if !one(&items[i].User) {
					return false
				}
			}
			return true
		}
		source := func(p *corev1.VolumeProjection) bool {
			return (p.Secret == nil || keys(p.Secret.Items)) &&
				(p.ConfigMap == nil || keys(p.ConfigMap.Items)) &&
				(p.DownwardAPI == nil || files(p.DownwardAPI.Items)) &&
				(p.ServiceAccountToken == nil || one(&p.ServiceAccountToken.User)) &&
				(p.ClusterTrustBundle == nil || one(&p.ClusterTrustBundle.User)) &&
				(p.PodCertificate == nil || one(&p.PodCertificate.User))
		}
		for i := range s.Volumes {
			v := &s.Volumes[i]
			ok := (v.Secret == nil || one(&v.Secret.DefaultUser) && keys(v.Secret.Items)) &&
				(v.ConfigMap == nil || one(&v.ConfigMap.DefaultUser) && keys(v.ConfigMap.Items)) &&
				(v.DownwardAPI == nil || one(&v.DownwardAPI.DefaultUser) && files(v.DownwardAPI.Items)) &&
				(v.Projected == nil || one(&v.Projected.DefaultUser))
			if ok && v.Projected != nil {
				for j := range v.Projected.Sources {
					ok = ok && source(&v.Projected.Sources[j])
				}
			}
			if !ok {
				return
			}
		}
	}
}

// dropDisabled removes from a spec what no feature allows. old is nil for a new
// object. Nothing is written to a spec that has nothing to drop: it may be the
// old one.
func dropDisabled(f resource.Features, spec, old *corev1.PodSpec) {
	for _, g := range gatedSpec {
		if !f.Enabled(g.feature) && g.used(spec) && (old == nil || !g.used(old)) {
			g.drop(spec)
		}
	}
}

// initAnnotations once held init containers.
var initAnnotations = []string{
	"pod.beta.kubernetes.io/init-containers", "pod.alpha.kubernetes.io/init-containers",
	"pod.beta.kubernetes.io/init-container-statuses", "pod.alpha.kubernetes.io/init-container-statuses",
}

func dropInitAnnotations(a map[string]string) {
	for _, k := range initAnnotations {
		delete(a, k)
	}
}

// DropDisabled removes from a template what no feature allows; old is nil for a
// new object.
func DropDisabled(f resource.Features, t, old *corev1.PodTemplateSpec) {
	var oldSpec *corev1.PodSpec
	if old != nil {
		oldSpec = &old.Spec
	}
	dropDisabled(f, &t.Spec, oldSpec)
	dropInitAnnotations(t.Annotations)
}

func dropDisabledPod(f resource.Features, pod, old *corev1.Pod) {
	var oldSpec *corev1.PodSpec
	oldStatus := &corev1.PodStatus{}
	if old != nil {
		oldSpec, oldStatus = &old.Spec, &old.Status
	}
	dropDisabled(f, &pod.Spec, oldSpec)
	dropInitAnnotations(pod.Annotations)
	dropDisabledStatus(f, &pod.Status, oldStatus)
}

// dropDisabledStatus may be given the old status itself, like dropDisabled.
func dropDisabledStatus(f resource.Features, s, old *corev1.PodStatus) {
	if !f.Enabled("ImageVolumeWithDigest") && mountStatusUsed(s) && !mountStatusUsed(old) {
		for c := range statuses(s) {
			for i := range c.VolumeMounts {
				c.VolumeMounts[i].VolumeStatus = nil
			}
		}
	}
	if !f.Enabled("DRANodeAllocatableResources") && s.NodeAllocatableResourceClaimStatuses != nil && len(old.NodeAllocatableResourceClaimStatuses) == 0 {
		s.NodeAllocatableResourceClaimStatuses = nil
	}
	if !f.Enabled("CSIVolumeHealth") && s.VolumeHealth != nil && len(old.VolumeHealth) == 0 {
		s.VolumeHealth = nil
	}
}

func mountStatusUsed(s *corev1.PodStatus) bool {
	for c := range statuses(s) {
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMountStatus) bool { return m.VolumeStatus != nil }) {
			return true
		}
	}
	return false
}

func statuses(s *corev1.PodStatus) iter.Seq[*corev1.ContainerStatus] {
	return func(yield func(*corev1.ContainerStatus) bool) {
		for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
			for i := range list {
				if !yield(&list[i]) {
					return
				}
			}
		}
	}
}
