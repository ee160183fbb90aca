// Package runpod has the labels and annotations of the Pods that are containers of
// `skiff run`, which client, control plane and node agree on. docs/run.md tells what
// each does.
package runpod

import (
	"strconv"
	"strings"
)

const (
	// LabelName has the container's name; a pod with it is one of `skiff run`.
	LabelName = "run.skiff.io/name"
	// LabelRemove marks a pod that is removed once it has ended. Its value says who
	// does it: RemoveAtEnd or RemoveByClient.
	LabelRemove = "run.skiff.io/remove"
	// AnnotationStart with the value StartAttached holds the process until a
	// client is attached to its container.
	AnnotationStart = "run.skiff.io/start"
	// AnnotationRestart keeps the word of --restart. With "on-failure:N" the kubelet
	// starts a container that fails N times again, and then no more.
	AnnotationRestart = "run.skiff.io/restart"
	// AnnotationNetwork with the value NetworkNone gives a pod a network of its own
	// with the loopback device alone.
	AnnotationNetwork = "run.skiff.io/network"
	// AnnotationRootfs is the ID of the container that the pod's own begins as: with all
	// that it wrote. `skiff start` has the node hold that for the pod before it removes
	// the former one; without a hold the annotation gets nobody anything.
	AnnotationRootfs = "run.skiff.io/rootfs"
)

// Values of LabelRemove and AnnotationStart.
const (
	// RemoveAtEnd: the control plane removes it at once.
	RemoveAtEnd = "at-end"
	// RemoveByClient: a client waits for the exit code and removes it then; the
	// control plane, should the client have died.
	RemoveByClient = "by-client"
	StartAttached  = "attached"
	NetworkNone    = "none"
)

// Keeps tells of a pod by its labels that its containers, where they are started again,
// find what they wrote: it is one of `skiff run`, and not removed when it has ended.
func Keeps(labels map[string]string) bool {
	return labels[LabelName] != "" && labels[LabelRemove] == ""
}

// Retries is how often a container that fails is started again at most, by its pod's
// annotations; ok is false where there is no limit.
func Retries(annotations map[string]string) (n int, ok bool) {
	count, ok := strings.CutPrefix(annotations[AnnotationRestart], "on-failure:")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(count)
	return n, err == nil && n > 0
}

// ReasonUnattached is why a container with StartAttached waits.
const ReasonUnattached = "WaitingForAttach"
