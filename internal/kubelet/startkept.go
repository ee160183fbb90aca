package kubelet

import (
	corev1 "k8s.io/api/core/v1"

	"skiff/internal/api/runpod"
	"skiff/internal/cri"
)

// keepsFiles tells that the containers of a pod find what they wrote when they are
// started again. Pods in general have a new file system each time. The owners of files in
// a user namespace depend on the pod.
func keepsFiles(pod *corev1.Pod) bool { return runpod.Keeps(pod.Labels) && !ownUsers(pod) }

// keepFiles asks the runtime, by a container's annotations, to keep what it writes for the
// next one, and to begin with what the one before it wrote: that of the same pod or, for
// its first, that of the pod which it replaces.
func (w *worker) keepFiles(pod *corev1.Pod, o *observed, s start, annotations map[string]string) {
	if s.init || s.ephemeral != nil || !keepsFiles(pod) || w.k.runtimeName != ownRuntime {
		return
	}
	annotations[cri.AnnotationKeep] = "true"
	from := pod.Annotations[runpod.AnnotationRootfs]
	if last := o.latest(s.container.Name); last != nil {
		from = last.id
	} else if s.container.Name != pod.Spec.Containers[0].Name {
		from = ""
	}
	if from != "" {
		annotations[cri.AnnotationRootfs] = from
	}
}
