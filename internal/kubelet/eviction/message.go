package eviction

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Reason is that of an evicted pod's status and of the event.
const Reason = "Evicted"

// Refusal is why a node with these conditions does not take a pod in; "" if it does.
// tolerates tells whether the pod tolerates a taint.
func Refusal(conditions []corev1.NodeConditionType, pod *corev1.Pod, class corev1.PodQOSClass, tolerates func(corev1.Taint) bool) string {
	if len(conditions) == 0 || Critical(pod) {
		return ""
	}
	if slices.Equal(conditions, []corev1.NodeConditionType{corev1.NodeMemoryPressure}) {
		if class != corev1.PodQOSBestEffort || tolerates(corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}) {
			return ""
		}
	}
	return fmt.Sprintf("The node had condition: %v. ", conditions)
}

// Message is what an evicted pod's status says, and the annotations of the event.
func Message(t Threshold, due []Threshold, o Observations, pod *corev1.Pod, usages Usages) (string, map[string]string) {
	name := t.Signal.Resource()
	m := fmt.Sprintf("The node was low on resource: %v. ", name)
	for _, x := range due {
		if seen, ok := o[x.Signal]; ok && x.Signal.Resource() == name {
			want := x.Value.Of(seen.Capacity)
			m += fmt.Sprintf("Threshold quantity: %v, available: %v. ", &want, &seen.Available)
			break
		}
	}
	annotations := map[string]string{}
	u, ok := usages(pod)
	if !ok {
		return m, annotations
	}
	if name == corev1.ResourceMemory && resourcehelper.IsPodLevelResourcesSet(pod) && u.Memory != nil {
		if asked, ok := pod.Spec.Resources.Requests[name]; ok {
			used := bytes(*u.Memory).String()
			m += fmt.Sprintf("Pod %s was using %s, request is %s, has larger consumption of %v. ", pod.Name, used, asked.String(), name)
			annotations["offending_pod"], annotations["offending_pod_usage"] = pod.Name, used
		}
	}
	var names, amounts []string
	for _, c := range u.Containers {
		spec := containerOf(pod, c.Name)
		var used *resource.Quantity
		switch {
		case spec == nil:
		case name == corev1.ResourceEphemeralStorage && c.Root != nil && c.Logs != nil:
			used = bytes(c.Root.Bytes + c.Logs.Bytes)
		case name == corev1.ResourceMemory && c.Memory != nil:
			used = bytes(*c.Memory)
		}
		if used == nil {
			continue
		}
		if asked := spec.Resources.Requests[name]; used.Cmp(asked) > 0 {
			m += fmt.Sprintf("Container %s was using %s, request is %s, has larger consumption of %v. ", c.Name, used, &asked, name)
			names, amounts = append(names, c.Name), append(amounts, used.String())
		}
	}
	annotations["offending_containers"], annotations["offending_containers_usage"] = strings.Join(names, ","), strings.Join(amounts, ",")
	annotations["starved_resource"] = string(name)
	return m, annotations
}

func containerOf(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// Excess is a limit of its own that a pod is beyond. Signal is what it counts as.
type Excess struct{ Signal, Message string }

// Limited tells whether a pod has limits of its own for local storage: the sizes of
// emptyDirs on disk or in memory, or ephemeral-storage.
func Limited(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if e := pod.Spec.Volumes[i].EmptyDir; e != nil && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
			return true
		}
	}
	_, ok := podLimits(pod)[corev1.ResourceEphemeralStorage]
	return ok || len(containerLimits(pod)) > 0
}

func podLimits(pod *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
}

// containerLimits are the containers' own limits of ephemeral storage, by name.
func containerLimits(pod *corev1.Pod) map[string]resource.Quantity {
	out := map[string]resource.Quantity{}
	add := func(c *corev1.Container) {
		if q := c.Resources.Limits.StorageEphemeral(); q.Value() != 0 {
			out[c.Name] = *q
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return out
}

// Local tells which limit of its own a pod is beyond, nil for none: an emptyDir's size,
// the ephemeral storage of the pod, or that of a container, in this order.
func Local(pod *corev1.Pod, u Usage, l Layout) *Excess {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		used, known := u.Volumes[v.Name]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || !known || v.EmptyDir.SizeLimit.Sign() <= 0 {
			continue
		}
		if size := v.EmptyDir.SizeLimit; used.Bytes > size.Value() {
			return &Excess{"emptydirfs.limit", fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, size.String())}
		}
	}
	if limit, ok := podLimits(pod)[corev1.ResourceEphemeralStorage]; ok && u.Ephemeral(pod).Bytes > limit.Value() {
		return &Excess{"ephemeralpodfs.limit", fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())}
	}
	limits := containerLimits(pod)
	for _, c := range u.Containers {
		var used Disk
		if c.Logs != nil {
			used.add(*c.Logs)
		}
		if c.Root != nil && !l.ImageFs {
			used.add(*c.Root)
		}
		if limit, ok := limits[c.Name]; ok && used.Bytes > limit.Value() {
			return &Excess{"ephemeralcontainerfs.limit", fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())}
		}
	}
	return nil
}
