package explain

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/api/explanation"
)

// What the kubelet and the controller that attaches volumes say in events.
var (
	onlyWaits    = regexp.MustCompile(`unattached volumes=\[[^\]]`)
	heldByPods   = regexp.MustCompile(`^Waiting for detach for volume "([^"]+)" Volume is already used by pod\(s\) (.*?)( and \d+ pod\(s\) in different namespaces)?$`)
	heldByOthers = regexp.MustCompile(`^Waiting for detach for volume "([^"]+)" Volume is already used by \d+ pod\(s\) in different namespaces$`)
	heldByNode   = regexp.MustCompile(`^Waiting for detach for volume "([^"]+)" Volume is already exclusively attached`)
	noDriver     = regexp.MustCompile(`for volume "([^"]+)" : .*driver name (\S+) not found in the list of registered CSI drivers`)
	noAttacher   = regexp.MustCompile(`for volume "([^"]+)" : timed out waiting for external-attacher of (\S+) CSI driver`)
	attachFailed = regexp.MustCompile(`^AttachVolume.Attach failed for volume "([^"]+)" : (.*)`)
)

// whyNotMounted is the event that says most: that a pod waits for a volume tells less
// than why it is not attached.
func (w *World) whyNotMounted(p *corev1.Pod, texts []string) string {
	if onlyWaits.MatchString(texts[0]) {
		if attach := said(w, "Pod", p.Namespace, p.Name, "FailedAttachVolume"); len(attach) > 0 {
			return attach[0]
		}
	}
	return texts[0]
}

// attachFails tells of a volume that is not attached to the pod's node, or that nobody
// there can mount; false where the event is of something else.
func (w *World) attachFails(p *corev1.Pod, out *explanation.Explanation, text string) bool {
	summary := func(format string, args ...any) { out.Summary = fmt.Sprintf(format, args...) }
	many := "a volume that many nodes can have at a time (access mode ReadWriteMany), where its driver has such"
	if m := heldByPods.FindStringSubmatch(text); m != nil {
		names := strings.Split(m[2], ", ")
		summary("it waits for volume %s, which pods of another node use", m[1])
		for _, name := range names {
			at := ""
			if q, ok := get[*corev1.Pod](w, p.Namespace, name); ok && q.Spec.NodeName != "" {
				at = " on node " + q.Spec.NodeName
			}
			cause(out, "VolumeInUse", "volume %s can be attached to one node at a time, and pod %s%s uses it", m[1], name, at)
		}
		advise(out, "end "+some("pod", names, "")+", or have all pods that use the volume on one node (pod affinity)",
			&explanation.Reference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: names[0]}, "kubectl delete pod", strings.Join(names, " "), "-n", p.Namespace)
		advise(out, many, nil)
		return true
	}
	if m := heldByOthers.FindStringSubmatch(text); m != nil {
		summary("it waits for volume %s, which pods of another node use", m[1])
		cause(out, "VolumeInUse", "volume %s can be attached to one node at a time, and pods of other namespaces use it on another", m[1])
		advise(out, many, nil)
		return true
	}
	if m := heldByNode.FindStringSubmatch(text); m != nil {
		summary("it waits until volume %s is detached from another node", m[1])
		cause(out, "VolumeAttached", "volume %s can be attached to one node at a time, and is attached to another that may have it mounted still", m[1])
		advise(out, "bring the other node back, so that it unmounts; after six minutes not Ready it is not waited for; if it is off for good, say so", nil,
			"kubectl taint node NODE node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
		return true
	}
	if m := noDriver.FindStringSubmatch(text); m != nil {
		summary("volume %s needs CSI driver %s, which node %s does not have", m[1], m[2], p.Spec.NodeName)
		cause(out, "NoDriver", "no driver %s has registered with the kubelet of node %s", m[2], p.Spec.NodeName)
		advise(out, fmt.Sprintf("the node part of driver %s on node %s", m[2], p.Spec.NodeName), nodeRef(p.Spec.NodeName))
		return true
	}
	if m := noAttacher.FindStringSubmatch(text); m != nil {
		summary("volume %s is not attached to node %s: its driver %s says nothing", m[1], p.Spec.NodeName, m[2])
		cause(out, "FailedAttachVolume", "%s", text)
		advise(out, fmt.Sprintf("see whether the controller of driver %s runs; VolumeAttachments tell it what to do", m[2]), nil, "kubectl get volumeattachments")
		return true
	}
	if m := attachFailed.FindStringSubmatch(text); m != nil {
		summary("volume %s cannot be attached to node %s", m[1], p.Spec.NodeName)
		cause(out, "FailedAttachVolume", "%s", m[2])
		return true
	}
	return false
}
