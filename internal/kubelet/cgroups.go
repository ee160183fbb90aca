package kubelet

import (
	"log/slog"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/host"
	"skiff/internal/kubelet/cgroup"
)

// NewCgroups returns the control groups of an instance's pods, for Deps.
func NewCgroups(i host.Instance, j *host.Journal, log *slog.Logger) (*cgroup.Tree, error) {
	return cgroup.New(cgroup.Deps{Host: i, Journal: j, Log: log, Class: qosClass, Limits: podLimits})
}

// podLimits are those of a pod as a whole: what its containers request, and the
// sum of their limits where all of them have one.
func podLimits(pod *corev1.Pod) cgroup.Limits {
	l := cgroup.Limits{Shares: shares(podRequest(pod, corev1.ResourceCPU, true))}
	if qosClass(pod) == corev1.PodQOSBestEffort {
		return cgroup.Limits{Shares: minShares}
	}
	if cpu, bounded := podLimit(pod, corev1.ResourceCPU, true); bounded {
		l.Quota = quota(cpu)
	}
	if memory, bounded := podLimit(pod, corev1.ResourceMemory, false); bounded {
		l.Memory = memory
	}
	return l
}
