package kubelet

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/api/runpod"
	"skiff/internal/cri"
)

// attachPatience is how long a container whose pod asks for it waits for its first
// client. One whose client died before it came is started all the same.
const attachPatience = time.Minute

// awaitsClient holds the first start of a container back until a client is attached
// to it, where its pod asks for that (runpod.AnnotationStart) and the runtime can do
// it.
func (w *worker) awaitsClient(pod *corev1.Pod, o *observed, c *corev1.Container, id string) bool {
	if pod.Annotations[runpod.AnnotationStart] != runpod.StartAttached || w.k.runtimeName != ownRuntime {
		return false
	}
	since := w.k.d.Now() // it was made just now
	for i := range o.containers {
		x := &o.containers[i]
		switch {
		case x.name != c.Name:
		case x.id != id || x.attached || x.restarts > 0:
			return false
		default:
			since = x.created
		}
	}
	until := since.Add(attachPatience)
	if !w.k.d.Now().Before(until) {
		return false
	}
	w.hold(c.Name, runpod.ReasonUnattached, "the process starts when a client is attached", until)
	return true
}

// ownRuntime is the name of the runtime that takes clients before the start.
const ownRuntime = "skiff"

// attachedTo tells of an event that it is about a client who came before the start.
func attachedTo(e *runtimeapi.ContainerEventResponse) bool {
	for _, s := range e.GetContainersStatuses() {
		if s.GetId() == e.GetContainerId() {
			return s.GetAnnotations()[cri.AnnotationAttached] == "true"
		}
	}
	return false
}

// attachedFirst tells that a container is created, with a client.
func (o *observed) attachedFirst(id string) bool {
	for i := range o.containers {
		if c := &o.containers[i]; id != "" && c.id == id {
			return c.attached
		}
	}
	return false
}
