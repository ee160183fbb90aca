package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Resizing in place (KEP-1287). A pod's spec says what it shall have, its
// allocation what this node has promised it, the runtime what its containers run
// with. A change of the spec becomes the allocation when there is room, and what
// runs is then made to follow: by new limits, or by a restart where the container's
// resizePolicy wants one. Everything but the spec reads the allocation.
//
// Nothing is kept on disk: the pod's status tells a new kubelet what was allocated.

// allocation is what the node has promised a pod.
type allocation struct {
	pod        *corev1.ResourceRequirements
	containers map[string]corev1.ResourceRequirements
}

func resizable(pod *corev1.Pod, f func(c *corev1.Container)) {
	for i := range pod.Spec.InitContainers {
		if isSidecar(&pod.Spec.InitContainers[i]) {
			f(&pod.Spec.InitContainers[i])
		}
	}
	for i := range pod.Spec.Containers {
		f(&pod.Spec.Containers[i])
	}
}

// allocationOf is all that the pod asks for.
func allocationOf(pod *corev1.Pod) allocation {
	a := allocation{pod: pod.Spec.Resources, containers: map[string]corev1.ResourceRequirements{}}
	resizable(pod, func(c *corev1.Container) { a.containers[c.Name] = c.Resources })
	return a
}

// recordedAllocation is what a former kubelet has allocated. Limits count for
// nothing when room is looked for: where the requests are those of the spec the
// limits are too.
func recordedAllocation(pod *corev1.Pod) allocation {
	a := allocationOf(pod)
	if pod.Status.StartTime == nil {
		return a
	}
	resizable(pod, func(c *corev1.Container) {
		st := oldStatus(append(slices.Clone(pod.Status.InitContainerStatuses), pod.Status.ContainerStatuses...), c.Name)
		if st == nil || st.Resources == nil || equality.Semantic.DeepEqual(st.AllocatedResources, c.Resources.Requests) {
			return
		}
		a.containers[c.Name] = corev1.ResourceRequirements{Requests: st.AllocatedResources, Limits: st.Resources.Limits, Claims: c.Resources.Claims}
	})
	if was := pod.Status.Resources; pod.Spec.Resources != nil && was != nil && !equality.Semantic.DeepEqual(pod.Status.AllocatedResources, was.Requests) {
		a.pod = &corev1.ResourceRequirements{Requests: pod.Status.AllocatedResources, Limits: was.Limits}
	}
	return a
}

// apply returns the pod with what it has been allocated: itself where that is what
// it asks for.
func (a allocation) apply(pod *corev1.Pod) *corev1.Pod {
	same := equality.Semantic.DeepEqual(a.pod, pod.Spec.Resources)
	resizable(pod, func(c *corev1.Container) {
		if r, ok := a.containers[c.Name]; ok && !equality.Semantic.DeepEqual(r, c.Resources) {
			same = false
		}
	})
	if same || a.containers == nil {
		return pod
	}
	out := *pod
	out.Spec.Resources = a.pod
	out.Spec.InitContainers, out.Spec.Containers = slices.Clone(pod.Spec.InitContainers), slices.Clone(pod.Spec.Containers)
	resizable(&out, func(c *corev1.Container) {
		if r, ok := a.containers[c.Name]; ok {
			c.Resources = r
		}
	})
	return &out
}

// resize is how far a change of a pod's resources is.
type resize struct {
	// generation is that of the spec whose resources were allocated last, while
	// they are not in force everywhere; 0 otherwise.
	generation int64
	failed     string // why they could not be put into force
	// pending tells why what the spec asks for is not allocated.
	pending           string
	pendingGeneration int64
	// group: the pod's own control group has not followed yet.
	group bool
}

// resumeResize takes over from a former kubelet.
func resumeResize(pod *corev1.Pod) resize {
	if c := condition(pod.Status.Conditions, corev1.PodResizeInProgress); c != nil {
		return resize{generation: max(c.ObservedGeneration, 1), group: true}
	}
	return resize{}
}

// allocate gives the pod what its spec asks for when there is room, and returns it
// with what it has.
func (w *worker) allocate(pod *corev1.Pod) *corev1.Pod {
	w.k.admission.Lock()
	defer w.k.admission.Unlock()
	have := w.allocation.apply(pod)
	if have == pod {
		w.resize.pending = ""
		return pod
	}
	if short := w.k.room(pod); short != nil {
		if w.resize.pending != short.message || w.resize.pendingGeneration != pod.Generation {
			w.event(pod, corev1.EventTypeWarning, "ResizeDeferred", resizeMessage("Pod resize "+corev1.PodReasonDeferred, pod, pod.Generation, short.message))
		}
		w.resize.pending, w.resize.pendingGeneration = short.message, pod.Generation
		return have
	}
	w.allocation = allocationOf(pod)
	w.resize = resize{generation: pod.Generation, group: true}
	delete(w.blocked, resizeKey)
	w.event(pod, corev1.EventTypeNormal, "ResizeStarted", resizeMessage("Pod resize started", pod, pod.Generation, ""))
	w.k.retryResizes(w)
	return pod
}

// retryResizes lets the pods look again that wait for room.
func (k *Kubelet) retryResizes(but *worker) {
	for _, w := range k.allWorkers() {
		if w != but {
			if st := w.status.current(); condition(st.Conditions, corev1.PodResizePending) != nil {
				w.kick()
			}
		}
	}
}

// resizeMessage is the text of an event: a summary for machines after a few words.
func resizeMessage(words string, pod *corev1.Pod, generation int64, failed string) string {
	type entry struct {
		Name      string                      `json:"name"`
		Resources corev1.ResourceRequirements `json:"resources,omitempty"`
	}
	summary := struct {
		InitContainers []entry `json:"initContainers,omitempty"`
		Containers     []entry `json:"containers,omitempty"`
		Generation     int64   `json:"generation"`
		Error          string  `json:"error,omitempty"`
	}{Generation: generation, Error: failed}
	for _, c := range pod.Spec.InitContainers {
		summary.InitContainers = append(summary.InitContainers, entry{c.Name, c.Resources})
	}
	for _, c := range pod.Spec.Containers {
		summary.Containers = append(summary.Containers, entry{c.Name, c.Resources})
	}
	b, err := json.Marshal(summary)
	if err != nil {
		return words
	}
	return words + ": " + string(b)
}

// followResize notes that a resize is in force everywhere.
func (w *worker) followResize(pod *corev1.Pod, o *observed) {
	if w.resize.generation == 0 || w.resize.group || unlike(pod, o) {
		return
	}
	w.event(pod, corev1.EventTypeNormal, "ResizeCompleted", resizeMessage("Pod resize completed", pod, w.resize.generation, ""))
	w.resize.generation, w.resize.failed = 0, ""
	delete(w.blocked, resizeKey)
}

// unlike tells that a container runs with other resources than its pod has been
// allocated.
func unlike(pod *corev1.Pod, o *observed) bool {
	found := false
	resizable(pod, func(c *corev1.Container) {
		if last := o.latest(c.Name); last != nil && last.running() {
			update, restart := resizeOf(pod, c, last)
			found = found || update || restart
		}
	})
	return found
}

// resizeOf tells how a running container comes to what its pod has been allocated.
func resizeOf(pod *corev1.Pod, c *corev1.Container, last *container) (update, restart bool) {
	if last.resources == nil {
		return false, false
	}
	policy := func(n corev1.ResourceName) bool {
		i := slices.IndexFunc(c.ResizePolicy, func(p corev1.ContainerResizePolicy) bool { return p.ResourceName == n })
		return i >= 0 && c.ResizePolicy[i].RestartPolicy == corev1.RestartContainer
	}
	// What wants a restart is as it was when the container was made.
	for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if made := last.made; made != nil && policy(n) {
			request, limit := c.Resources.Requests[n], c.Resources.Limits[n]
			if request.Cmp(made.Requests[n]) != 0 || limit.Cmp(made.Limits[n]) != 0 {
				return false, true
			}
		}
	}
	want := cpuAndMemory(pod, c)
	differs := want.CpuShares != last.resources.GetCpuShares() || want.CpuQuota != max(last.resources.GetCpuQuota(), 0) ||
		want.MemoryLimitInBytes != last.resources.GetMemoryLimitInBytes()
	return differs, false
}

// annotated is what a container's annotation keeps for resizeOf; nil where no
// resource wants a restart.
func annotated(c *corev1.Container) *corev1.ResourceRequirements {
	if !slices.ContainsFunc(c.ResizePolicy, func(p corev1.ContainerResizePolicy) bool { return p.RestartPolicy == corev1.RestartContainer }) {
		return nil
	}
	return &corev1.ResourceRequirements{Requests: c.Resources.Requests, Limits: c.Resources.Limits}
}

// resizeKey stands for a resize among the names in worker.blocked.
const resizeKey = "\x00resize"

// applyResize puts the allocation into force: first the pod's own group takes what
// is the looser of old and new, then the containers follow, then the group. next,
// where not zero, is when to try again.
func (w *worker) applyResize(ctx context.Context, pod *corev1.Pod, o *observed, a actions) (acted bool, next time.Time) {
	if len(a.resize) == 0 && !w.resize.group {
		return false, time.Time{}
	}
	now := w.k.d.Now()
	if at := w.blocked[resizeKey]; now.Before(at) {
		return false, at
	}
	err := w.resizeAll(ctx, pod, o, a)
	if ctx.Err() != nil {
		return true, time.Time{}
	}
	if err == nil {
		w.resize.group, w.resize.failed = false, ""
		return true, time.Time{}
	}
	if w.resize.failed != err.Error() {
		w.event(pod, corev1.EventTypeWarning, "ResizeError", resizeMessage("Pod resize error", pod, w.resize.generation, err.Error()))
	}
	w.resize.failed = err.Error()
	w.blocked[resizeKey] = now.Add(startRetry)
	return true, time.Time{}
}

func (w *worker) resizeAll(ctx context.Context, pod *corev1.Pod, o *observed, a actions) error {
	if err := w.memoryAllows(ctx, pod, a.resize); err != nil {
		return err
	}
	group := func(p *corev1.Pod) error {
		if w.k.d.Cgroups == nil {
			return nil
		}
		_, err := w.k.d.Cgroups.Ensure(p)
		return err
	}
	if err := group(looser(pod, o)); err != nil {
		return err
	}
	var errs []error
	for _, r := range a.resize {
		to := cpuAndMemory(pod, r.container)
		if err := w.k.d.Runtime.UpdateContainerResources(ctx, r.id, &runtimeapi.ContainerResources{Linux: to}); err != nil {
			errs = append(errs, fmt.Errorf("failed to resize container %q: %w", r.container.Name, err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return group(pod)
}

// memoryAllows refuses to take memory from a container that uses it.
func (w *worker) memoryAllows(ctx context.Context, pod *corev1.Pod, all []resizeTo) error {
	for _, r := range all {
		to := cpuAndMemory(pod, r.container).MemoryLimitInBytes
		if to == 0 || r.memory != 0 && to >= r.memory {
			continue
		}
		stats, err := w.k.d.Runtime.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{Id: r.id})
		if err != nil {
			return fmt.Errorf("memory that container %q uses: %w", r.container.Name, err)
		}
		for _, s := range stats {
			if used := s.GetMemory().GetWorkingSetBytes().GetValue(); s.GetAttributes().GetId() == r.id && used > uint64(to) {
				return fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", r.container.Name, to, used)
			}
		}
	}
	return nil
}

// looser is the pod with limits that its containers can have before and after they
// follow.
func looser(pod *corev1.Pod, o *observed) *corev1.Pod {
	out := *pod
	out.Spec.InitContainers, out.Spec.Containers = slices.Clone(pod.Spec.InitContainers), slices.Clone(pod.Spec.Containers)
	// The sum over the containers counts, not the pod's own limit.
	if r := pod.Spec.Resources; r != nil {
		out.Spec.Resources = &corev1.ResourceRequirements{Requests: r.Requests}
	}
	resizable(&out, func(c *corev1.Container) {
		last := o.latest(c.Name)
		if last == nil || !last.running() || last.resources == nil {
			return
		}
		limits := maps.Clone(c.Resources.Limits)
		widen := func(n corev1.ResourceName, now resource.Quantity) {
			if now.IsZero() {
				delete(limits, n)
			} else if l, ok := limits[n]; ok && l.Cmp(now) < 0 {
				limits[n] = now
			}
		}
		widen(corev1.ResourceCPU, *resource.NewMilliQuantity(milliOfQuota(last.resources), resource.DecimalSI))
		widen(corev1.ResourceMemory, *resource.NewQuantity(last.resources.GetMemoryLimitInBytes(), resource.BinarySI))
		c.Resources.Limits = limits
	})
	return &out
}

func milliOfQuota(r *runtimeapi.LinuxContainerResources) int64 {
	period := r.GetCpuPeriod()
	if period == 0 {
		period = cpuPeriod
	}
	return max(r.GetCpuQuota(), 0) * 1000 / period
}

// statusResources are the resources in force of a container: the allocated ones
// where it does not run, and what the runtime says of it otherwise. What the kernel
// cannot tell apart is shown as allocated.
func statusResources(allocated corev1.ResourceRequirements, c *container) *corev1.ResourceRequirements {
	out := allocated.DeepCopy()
	if c == nil || !c.running() || c.resources == nil {
		return out
	}
	if l := out.Limits; l != nil {
		if milli := milliOfQuota(c.resources); milli > 0 && (milli > minMilliLimit || l.Cpu().MilliValue() > minMilliLimit) {
			show(l, corev1.ResourceCPU, resource.NewMilliQuantity(milli, resource.DecimalSI))
		}
		if n := c.resources.GetMemoryLimitInBytes(); n > 0 {
			show(l, corev1.ResourceMemory, resource.NewQuantity(n, resource.BinarySI))
		}
	}
	if r := out.Requests; r != nil {
		if n := c.resources.GetCpuShares(); n >= minShares {
			if milli := (n*1000 + 1023) / 1024; milli > minShares || r.Cpu().MilliValue() > minShares {
				show(r, corev1.ResourceCPU, resource.NewMilliQuantity(milli, resource.DecimalSI))
			}
		}
	}
	return out
}

// show sets a value that may be written as the one that is there.
func show(l corev1.ResourceList, n corev1.ResourceName, q *resource.Quantity) {
	if have, ok := l[n]; !ok || have.Cmp(*q) != 0 {
		l[n] = *q
	}
}

// resizeConditions are those that tell of a resize.
func resizeConditions(in statusInput) []corev1.PodCondition {
	var out []corev1.PodCondition
	add := func(t corev1.PodConditionType, reason, message string, generation int64) {
		now := seconds(in.now)
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message, ObservedGeneration: generation,
			LastProbeTime: now, LastTransitionTime: now}
		if old := condition(in.old.Conditions, t); old != nil && old.Reason == reason {
			c.LastTransitionTime = old.LastTransitionTime
			if reflect.DeepEqual([]any{old.Message, old.ObservedGeneration}, []any{message, generation}) {
				c.LastProbeTime = old.LastProbeTime // nothing new to write
			}
		}
		out = append(out, c)
	}
	if in.resize.pending != "" {
		add(corev1.PodResizePending, corev1.PodReasonDeferred, in.resize.pending, in.resize.pendingGeneration)
	}
	if in.resize.generation != 0 {
		reason := ""
		if in.resize.failed != "" {
			reason = corev1.PodReasonError
		}
		add(corev1.PodResizeInProgress, reason, in.resize.failed, in.resize.generation)
	}
	return out
}
