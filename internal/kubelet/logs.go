package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/api/runpod"
)

// podByName finds a pod of this node.
func (k *Kubelet) podByName(ns, name string) (*corev1.Pod, *worker, error) {
	pod, ok := k.pods.Get(ns, name)
	if ok && isMirror(pod) {
		if w := k.statics.of(pod); w != nil {
			p, _ := w.current()
			return p, w, nil
		}
	}
	if ok {
		if w := k.worker(pod.UID); w != nil {
			return pod, w, nil
		}
		return pod, nil, nil
	}
	for _, w := range k.allWorkers() {
		if p, _ := w.current(); p.Namespace == ns && p.Name == name {
			return p, w, nil
		}
	}
	return nil, nil, apierrors.NewNotFound(corev1.Resource("pods"), name)
}

// Logs returns a container's log. It ends with the log, or with ctx where opts ask
// to follow. An empty container name means the only one.
func (k *Kubelet) Logs(ctx context.Context, ns, name, container string, opts *corev1.PodLogOptions) (io.ReadCloser, error) {
	pod, w, err := k.podByName(ns, name)
	if err != nil {
		return nil, err
	}
	if opts == nil {
		opts = &corev1.PodLogOptions{}
	}
	if err := checkLogOptions(opts); err != nil {
		return nil, err
	}
	if container == "" && len(pod.Spec.Containers) == 1 {
		container = pod.Spec.Containers[0].Name
	}
	if findContainer(pod, container) == nil {
		return nil, apierrors.NewNotFound(corev1.Resource("containers"), container)
	}
	status := pod.Status
	if w != nil {
		status = w.status.current()
	}
	id, err := logInstance(name, &status, container, opts.Previous)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	resp, err := k.d.Runtime.ContainerStatus(ctx, id, false)
	if err != nil {
		if isNotFound(err) {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("container %q in pod %q is not available", container, name))
		}
		return nil, apierrors.NewInternalError(fmt.Errorf("failed to try resolving symlinks in path of the log: %w", err))
	}
	return k.openLog(ctx, id, resp.Status.LogPath, opts)
}

func checkLogOptions(o *corev1.PodLogOptions) error {
	switch {
	case o.TailLines != nil && *o.TailLines < 0:
		return apierrors.NewBadRequest("tailLines: Invalid value: must be greater than or equal to 0")
	case o.LimitBytes != nil && *o.LimitBytes < 1:
		return apierrors.NewBadRequest("limitBytes: Invalid value: must be greater than 0")
	case o.SinceSeconds != nil && o.SinceTime != nil:
		return apierrors.NewBadRequest("at most one of sinceTime or sinceSeconds may be specified")
	case o.SinceSeconds != nil && *o.SinceSeconds < 1:
		return apierrors.NewBadRequest("sinceSeconds: Invalid value: must be greater than 0")
	}
	return nil
}

// logInstance chooses the instance of a container whose log is meant.
func logInstance(pod string, s *corev1.PodStatus, name string, previous bool) (string, error) {
	var st *corev1.ContainerStatus
	for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
		if c := oldStatus(list, name); c != nil {
			st = c
		}
	}
	if st == nil {
		return "", fmt.Errorf("container %q in pod %q is not available", name, pod)
	}
	last := st.LastTerminationState.Terminated
	if previous {
		if last == nil || last.ContainerID == "" {
			return "", fmt.Errorf("previous terminated container %q in pod %q not found", name, pod)
		}
		return bareID(last.ContainerID), nil
	}
	switch now := st.State; {
	case now.Running != nil:
		return bareID(st.ContainerID), nil
	case now.Terminated != nil && now.Terminated.ContainerID != "":
		return bareID(now.Terminated.ContainerID), nil
	case last != nil && last.ContainerID != "":
		return bareID(last.ContainerID), nil
	case now.Terminated != nil || last != nil:
		return "", fmt.Errorf("container %q in pod %q is terminated", name, pod)
	case now.Waiting != nil && now.Waiting.Reason == "ErrImagePull":
		return "", fmt.Errorf("container %q in pod %q is waiting to start: image can't be pulled", name, pod)
	case now.Waiting != nil && now.Waiting.Reason == "ImagePullBackOff":
		return "", fmt.Errorf("container %q in pod %q is waiting to start: trying and failing to pull image", name, pod)
	case now.Waiting != nil:
		return "", fmt.Errorf("container %q in pod %q is waiting to start: %v", name, pod, now.Waiting.Reason)
	}
	return "", fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", name, pod)
}

// bareID is a container ID without its runtime.
func bareID(id string) string {
	for i := 0; i+2 < len(id); i++ {
		if id[i:i+3] == "://" {
			return id[i+3:]
		}
	}
	return id
}

// onExit lets one who follows a log know when its container has ended.
func (k *Kubelet) onExit(id string) (ended <-chan struct{}, forget func()) {
	ch := make(chan struct{})
	k.exitMu.Lock()
	defer k.exitMu.Unlock()
	if k.exits == nil {
		k.exits = map[string]map[chan struct{}]bool{}
	}
	if k.exits[id] == nil {
		k.exits[id] = map[chan struct{}]bool{}
	}
	k.exits[id][ch] = true
	return ch, func() {
		k.exitMu.Lock()
		defer k.exitMu.Unlock()
		delete(k.exits[id], ch)
		if len(k.exits[id]) == 0 {
			delete(k.exits, id)
		}
	}
}

// noteExits tells the followers of containers that no longer run.
func (k *Kubelet) noteExits(o *observed) {
	k.exitMu.Lock()
	defer k.exitMu.Unlock()
	if len(k.exits) == 0 {
		return
	}
	for i := range o.containers {
		c := &o.containers[i]
		if c.running() {
			continue
		}
		for ch := range k.exits[c.id] {
			close(ch)
		}
		delete(k.exits, c.id)
	}
}

var errLogEnd = errors.New("end of log")

// runningContainer finds a running container by name, for exec and attach; with held,
// also one whose start waits for a client.
func (k *Kubelet) runningContainer(ctx context.Context, ns, name, uid, container string, held bool) (string, error) {
	pod, _, err := k.podByName(ns, name)
	if err != nil {
		return "", err
	}
	if uid != "" && pod.UID != types.UID(uid) {
		return "", apierrors.NewNotFound(corev1.Resource("pods"), name)
	}
	o, err := k.observe(ctx, pod.UID)
	if err != nil {
		return "", apierrors.NewInternalError(err)
	}
	if container == "" && len(pod.Spec.Containers) > 0 {
		container = pod.Spec.Containers[0].Name
	}
	held = held && pod.Annotations[runpod.AnnotationStart] == runpod.StartAttached
	if c := o.latest(container); c != nil && (c.running() || held && c.state == runtimeapi.ContainerState_CONTAINER_CREATED) {
		return c.id, nil
	}
	return "", apierrors.NewInternalError(fmt.Errorf("container not found (%q)", container))
}
