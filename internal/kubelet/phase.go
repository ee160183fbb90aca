package kubelet

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// podPhase sums the containers' states up. terminal tells that none of them will
// be started again, whatever its policy.
func podPhase(pod *corev1.Pod, s *corev1.PodStatus, terminal bool) corev1.PodPhase {
	hasRun := false
	for i := range s.ContainerStatuses {
		st := &s.ContainerStatuses[i]
		if st.State.Running != nil || st.State.Terminated != nil || st.LastTerminationState.Terminated != nil {
			hasRun = true
		}
	}
	pendingInit, failedInit, pendingSide := 0, 0, 0
	running, waiting, stopped, succeeded, over, unknown := 0, 0, 0, 0, 0, 0
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		st := oldStatus(s.InitContainerStatuses, c.Name)
		if isSidecar(c) {
			switch {
			case st == nil:
				unknown++
			case st.State.Running != nil:
				running++
				if st.Started == nil || !*st.Started {
					pendingSide++
				}
			case st.State.Terminated != nil, st.LastTerminationState.Terminated != nil:
			default:
				pendingSide++
				waiting++
			}
			continue
		}
		ended := ended(st)
		switch {
		case ended == nil:
			pendingInit++
		case ended.ExitCode != 0 && ended.Reason != reasonRestartingAll && !shouldRestart(pod, c, true, int(st.RestartCount), ended.ExitCode):
			failedInit++
		}
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		st := oldStatus(s.ContainerStatuses, c.Name)
		if st == nil {
			unknown++
			continue
		}
		if st.State.Running != nil {
			running++
			continue
		}
		e := ended(st)
		if e == nil {
			waiting++
			continue
		}
		stopped++
		if e.ExitCode == 0 && st.State.Terminated != nil {
			succeeded++
		}
		if e.Reason != reasonRestartingAll && !shouldRestart(pod, c, false, int(st.RestartCount), e.ExitCode) {
			over++
		}
	}
	switch {
	case failedInit > 0:
		return corev1.PodFailed
	case pendingInit > 0, pendingSide > 0 && !hasRun, waiting > 0:
		return corev1.PodPending
	case running > 0 && unknown == 0:
		return corev1.PodRunning
	case running == 0 && stopped > 0 && unknown == 0:
		if !terminal && stopped != over {
			return corev1.PodRunning // some will be started again
		}
		if stopped == succeeded {
			return corev1.PodSucceeded
		}
		return corev1.PodFailed
	}
	return corev1.PodPending
}

// ended is how a container last ended, nil where it did not or runs again.
func ended(st *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	switch {
	case st == nil || st.State.Running != nil:
		return nil
	case st.State.Terminated != nil:
		return st.State.Terminated
	}
	return st.LastTerminationState.Terminated
}

// podTotals are the requests and limits of a pod as a whole.
func podTotals(pod *corev1.Pod) (requests, limits corev1.ResourceList) {
	names := map[corev1.ResourceName]bool{}
	each := func(r *corev1.ResourceRequirements) {
		for n := range r.Requests {
			names[n] = true
		}
		for n := range r.Limits {
			names[n] = true
		}
	}
	for i := range pod.Spec.InitContainers {
		each(&pod.Spec.InitContainers[i].Resources)
	}
	for i := range pod.Spec.Containers {
		each(&pod.Spec.Containers[i].Resources)
	}
	if pod.Spec.Resources != nil {
		each(pod.Spec.Resources)
	}
	for n := range names {
		milli := n == corev1.ResourceCPU
		of := func(v int64) resource.Quantity {
			if milli {
				return *resource.NewMilliQuantity(v, resource.DecimalSI)
			}
			if n == corev1.ResourceMemory || n == corev1.ResourceEphemeralStorage {
				return *resource.NewQuantity(v, resource.BinarySI)
			}
			return *resource.NewQuantity(v, resource.DecimalSI)
		}
		if v := podRequest(pod, n, milli); v > 0 {
			if requests == nil {
				requests = corev1.ResourceList{}
			}
			requests[n] = of(v)
		}
		if v, _ := podLimit(pod, n, milli); v > 0 {
			if limits == nil {
				limits = corev1.ResourceList{}
			}
			limits[n] = of(v)
		}
	}
	return requests, limits
}
