package kubelet

import (
	"fmt"
	"net"
	"slices"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statusInput is all that a pod's status follows from.
type statusInput struct {
	pod      *corev1.Pod
	old      corev1.PodStatus // the last status, or the API's
	o        *observed
	waiting  map[string]waiting
	verdict  *verdict
	resize   resize
	terminal bool // nothing will be started any more
	all      bool // restartsAll: podStatus finds out
	runtime  string
	nodeIPs  []net.IP
	started  func(c *container, old *corev1.ContainerStatus) bool
	ready    func(c *container, old *corev1.ContainerStatus) bool
	// devices is the state of a container's devices; nil for none.
	devices func(c *corev1.Container) []corev1.ResourceStatus
	now     time.Time
}

// generate computes the pod's status from what the runtime has.
func (w *worker) generate(pod *corev1.Pod, o *observed, terminal bool) corev1.PodStatus {
	pod = w.allocation.apply(pod)
	return podStatus(statusInput{
		pod: pod, resize: w.resize, old: w.status.current(), o: o, waiting: w.waiting, verdict: w.verdict, terminal: terminal,
		runtime: w.k.runtimeName, nodeIPs: w.k.d.NodeIPs, now: w.k.d.Now(),
		started: func(c *container, old *corev1.ContainerStatus) bool { return w.probes.startedNow(pod, c, old) },
		ready:   func(c *container, old *corev1.ContainerStatus) bool { return w.probes.readyNow(pod, c, old) },
		devices: func(c *corev1.Container) []corev1.ResourceStatus { return w.k.devices.Status(pod, c) },
	})
}

// podStatus is the pure core of the status.
func podStatus(in statusInput) corev1.PodStatus {
	pod := in.pod
	in.all = restartsAll(pod, in.o, in.old.Conditions)
	s := corev1.PodStatus{
		ObservedGeneration: pod.Generation,
		QOSClass:           qosClass(pod),
		StartTime:          in.old.StartTime,
		// What others write stays.
		NominatedNodeName:           pod.Status.NominatedNodeName,
		ResourceClaimStatuses:       pod.Status.ResourceClaimStatuses,
		Resize:                      pod.Status.Resize,
		ExtendedResourceClaimStatus: pod.Status.ExtendedResourceClaimStatus,
	}
	if s.StartTime == nil {
		s.StartTime = &metav1.Time{Time: in.now.Truncate(time.Second)}
	}
	addresses(&s, in)
	inits := len(pod.Spec.InitContainers) > 0
	s.InitContainerStatuses = containerStatuses(in, ptrs(pod.Spec.InitContainers), in.old.InitContainerStatuses, inits, true)
	s.ContainerStatuses = containerStatuses(in, ptrs(pod.Spec.Containers), in.old.ContainerStatuses, inits, false)
	var eph []*corev1.Container
	for i := range pod.Spec.EphemeralContainers {
		eph = append(eph, (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	s.EphemeralContainerStatuses = containerStatuses(in, eph, in.old.EphemeralContainerStatuses, inits, false)
	podResources(&s, pod)

	s.Phase = podPhase(pod, &s, in.terminal)
	// A phase that is final is never left, however its containers end.
	if final(pod.Status.Phase) {
		s.Phase = pod.Status.Phase
	} else if !final(s.Phase) && final(in.old.Phase) {
		s.Phase = in.old.Phase
	}
	if s.Phase == in.old.Phase {
		s.Reason, s.Message = in.old.Reason, in.old.Message
	}
	// What runs is not at its end, whatever has been decided.
	if in.verdict != nil && !final(pod.Status.Phase) && !in.o.anyRunning() {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, in.verdict.reason, in.verdict.message
		if in.verdict.rejected {
			s.Message = "Pod was rejected: " + s.Message
		}
	}
	readiness(&s, in)
	conditions(&s, in)
	return s
}

func final(p corev1.PodPhase) bool { return p == corev1.PodSucceeded || p == corev1.PodFailed }

func ptrs(cs []corev1.Container) []*corev1.Container {
	out := make([]*corev1.Container, len(cs))
	for i := range cs {
		out[i] = &cs[i]
	}
	return out
}

func addresses(s *corev1.PodStatus, in statusInput) {
	for _, ip := range sortIPs(in.o.ips(), in.nodeIPs) {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
	for i, ip := range in.nodeIPs {
		if i < 2 {
			s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip.String()})
		}
	}
	if len(s.HostIPs) > 0 {
		s.HostIP = s.HostIPs[0].IP
	}
	if hostNetwork(in.pod) && len(s.PodIPs) == 0 {
		for _, ip := range s.HostIPs {
			s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip.IP})
		}
	}
	if len(s.PodIPs) == 0 && (in.terminal || in.pod.DeletionTimestamp != nil || final(in.old.Phase)) {
		// An ended pod keeps the address it had.
		s.PodIPs = in.old.PodIPs
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
}

// sortIPs returns at most one address per family, that of the node's first.
func sortIPs(ips []string, node []net.IP) []string {
	first4 := len(node) == 0 || node[0].To4() != nil
	pick := func(v4 bool) []string {
		for _, s := range ips {
			if ip := net.ParseIP(s); ip != nil && (ip.To4() != nil) == v4 {
				return []string{ip.String()}
			}
		}
		return nil
	}
	return append(pick(first4), pick(!first4)...)
}

func oldStatus(list []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

const (
	reasonCreating     = "ContainerCreating"
	reasonInitializing = "PodInitializing"
	reasonUnknown      = "ContainerStatusUnknown"
)

func containerStatuses(in statusInput, cs []*corev1.Container, olds []corev1.ContainerStatus, podHasInits, isInit bool) []corev1.ContainerStatus {
	if len(cs) == 0 {
		return nil
	}
	out := make([]corev1.ContainerStatus, 0, len(cs))
	for _, c := range cs {
		st := containerStatus(in, c, oldStatus(olds, c.Name), podHasInits, isInit)
		if in.devices != nil && !isInit {
			st.AllocatedResourcesStatus = in.devices(c)
		}
		out = append(out, st)
	}
	if !isInit {
		sort.SliceStable(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	}
	return out
}

func volumeMountStatuses(c *corev1.Container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for _, m := range c.VolumeMounts {
		v := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			v.RecursiveReadOnly = &mode
		}
		out = append(out, v)
	}
	return out
}

// containerStatus is the status of one container: of its newest instance, with the
// one before as its last state.
func containerStatus(in statusInput, c *corev1.Container, old *corev1.ContainerStatus, podHasInits, isInit bool) corev1.ContainerStatus {
	var have []*container
	for i := range in.o.containers {
		if in.o.containers[i].name == c.Name {
			have = append(have, &in.o.containers[i])
		}
	}
	if len(have) == 0 {
		return lostStatus(in, c, old, podHasInits, isInit)
	}
	cur := have[0]
	s := corev1.ContainerStatus{
		Name: c.Name, RestartCount: int32(cur.restarts), Image: cur.image, ImageID: cur.imageRef,
		ContainerID: in.runtime + "://" + cur.id, State: stateOf(in.runtime, cur, old), VolumeMounts: volumeMountStatuses(c),
		AllocatedResources: c.Resources.Requests, Resources: statusResources(c.Resources, cur), User: userOf(cur),
	}
	if s.Image == "" {
		s.Image = c.Image
	}
	if old != nil {
		s.RestartCount = max(s.RestartCount, sameInstanceRestarts(old, s.ContainerID))
	}
	if len(have) > 1 {
		s.LastTerminationState = stateOf(in.runtime, have[1], nil)
	} else if old != nil {
		if old.ContainerID != s.ContainerID && old.State.Terminated != nil {
			s.LastTerminationState.Terminated = old.State.Terminated
		} else if old.LastTerminationState.Terminated != nil {
			s.LastTerminationState.Terminated = old.LastTerminationState.Terminated
		}
	}
	started := cur.running() && in.started(cur, old)
	s.Started = &started
	showWaiting(in, c, cur, &s, isInit)
	return s
}

func sameInstanceRestarts(old *corev1.ContainerStatus, id string) int32 {
	if old.ContainerID == id {
		return old.RestartCount
	}
	return 0
}

// showWaiting shows why a container that is to run again does not.
func showWaiting(in statusInput, c *corev1.Container, cur *container, s *corev1.ContainerStatus, isInit bool) {
	why, ok := in.waiting[c.Name]
	if !ok || in.terminal || in.pod.DeletionTimestamp != nil || cur.running() {
		return
	}
	if cur.exited() && !shouldRestart(in.pod, c, isInit, cur.restarts, cur.exitCode) {
		return
	}
	if s.State.Terminated != nil {
		s.LastTerminationState = s.State
	}
	s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: why.reason, Message: why.message}}
}

func userOf(c *container) *corev1.ContainerUser {
	if c.user == nil {
		return nil
	}
	u := &corev1.ContainerUser{}
	if l := c.user.Linux; l != nil {
		u.Linux = &corev1.LinuxContainerUser{UID: l.Uid, GID: l.Gid, SupplementalGroups: l.SupplementalGroups}
	}
	return u
}

func stateOf(runtime string, c *container, old *corev1.ContainerStatus) corev1.ContainerState {
	switch c.state {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: seconds(c.started)}}
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: c.exitCode, Reason: c.reason, Message: c.message,
			StartedAt: seconds(c.started), FinishedAt: seconds(c.finished), ContainerID: runtime + "://" + c.id,
		}}
	case runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		if old != nil && old.State.Running != nil {
			return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: reasonUnknown, Message: "The container could not be located when the pod was terminated", ExitCode: 137,
			}}
		}
	}
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{}}
}

// seconds drops what the wire does not carry.
func seconds(t time.Time) metav1.Time {
	if t.UnixNano() == 0 {
		return metav1.NewTime(time.Unix(0, 0))
	}
	return metav1.NewTime(t.Truncate(time.Second))
}

// lostStatus is the status of a container of which the runtime has nothing: it was
// not made yet, or its record is gone.
func lostStatus(in statusInput, c *corev1.Container, old *corev1.ContainerStatus, podHasInits, isInit bool) corev1.ContainerStatus {
	reason := reasonCreating
	if podHasInits {
		reason = reasonInitializing
	}
	s := corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, VolumeMounts: volumeMountStatuses(c),
		State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}},
	}
	no := false
	s.Started = &no
	if in.all && old != nil && old.State.Waiting == nil {
		s.RestartCount = old.RestartCount + 1
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reasonRestartingAll, Message: messageRestartingAll}}
		s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{Reason: reasonRestartingAll, Message: messageRestartingAll, ExitCode: 137}
		return s
	}
	if old != nil {
		s.RestartCount, s.LastTerminationState = old.RestartCount, old.LastTerminationState
		switch {
		case old.State.Terminated != nil:
			s = *old.DeepCopy()
			s.Started = &no
		case old.State.Running != nil && s.LastTerminationState.Terminated == nil:
			s.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
				Reason:  reasonUnknown,
				Message: "The container could not be located when the pod was deleted.  The container used to be Running", ExitCode: 137,
			}
			if in.pod.DeletionTimestamp == nil {
				s.RestartCount++
			}
		}
	}
	if isInit && !isSidecar(c) && s.State.Waiting != nil && regularSeen(in.pod, in.o) {
		s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Reason:  "Completed",
			Message: "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally",
		}}
		return s
	}
	if why, ok := in.waiting[c.Name]; ok && !in.terminal {
		if s.State.Terminated != nil {
			s.LastTerminationState = s.State
		}
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: why.reason, Message: why.message}}
	}
	return s
}

// podResources fills in what the pod as a whole was given.
func podResources(s *corev1.PodStatus, pod *corev1.Pod) {
	all, limits := podTotals(pod)
	s.AllocatedResources = all
	s.Resources = &corev1.ResourceRequirements{}
	if pod.Spec.Resources != nil {
		s.Resources = pod.Spec.Resources.DeepCopy()
	}
	s.Resources.Requests, s.Resources.Limits = all, limits
}

// readiness sets the containers' ready.
func readiness(s *corev1.PodStatus, in statusInput) {
	set := func(list []corev1.ContainerStatus, isInit bool) {
		for i := range list {
			c := &list[i]
			spec := findContainer(in.pod, c.Name)
			if isInit && !isSidecar(spec) {
				c.Ready = c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
				continue
			}
			c.Ready = false
			if c.State.Running == nil || c.Started == nil || !*c.Started {
				continue
			}
			olds := in.old.ContainerStatuses
			if isInit {
				olds = in.old.InitContainerStatuses
			}
			if have := in.o.latest(c.Name); have != nil {
				c.Ready = in.ready(have, oldStatus(olds, c.Name))
			}
		}
	}
	set(s.InitContainerStatuses, true)
	set(s.ContainerStatuses, false)
}

// ours are the conditions that the kubelet always writes, passing those that it
// writes while there is something to tell.
var ours = []corev1.PodConditionType{
	corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
}

var passing = []corev1.PodConditionType{corev1.PodResizePending, corev1.PodResizeInProgress, corev1.AllContainersRestarting}

func condition(list []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range list {
		if list[i].Type == t {
			return &list[i]
		}
	}
	return nil
}

// sameForeignConditions tells that two states have the same conditions of others.
func sameForeignConditions(a, b *corev1.Pod) bool {
	return slices.EqualFunc(foreign(a.Status.Conditions), foreign(b.Status.Conditions), func(x, y corev1.PodCondition) bool {
		return x.Type == y.Type && x.Status == y.Status
	})
}

func foreign(list []corev1.PodCondition) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, c := range list {
		if !slices.Contains(ours, c.Type) && !slices.Contains(passing, c.Type) && !ourDisruption(c) {
			out = append(out, c)
		}
	}
	return out
}

// ourDisruption tells of a condition DisruptionTarget that the kubelet set: others set
// it for reasons of theirs.
func ourDisruption(c corev1.PodCondition) bool {
	return c.Type == corev1.DisruptionTarget && c.Reason == corev1.PodReasonTerminationByKubelet
}

// conditions sets the pod's conditions.
func conditions(s *corev1.PodStatus, in statusInput) {
	pod := in.pod
	s.Conditions = append(foreign(pod.Status.Conditions), resizeConditions(in)...)
	set := func(t corev1.PodConditionType, status bool, reason, message string) {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: pod.Generation}
		if status {
			c.Status = corev1.ConditionTrue
		}
		c.LastTransitionTime = metav1.NewTime(in.now.Truncate(time.Second))
		if old := condition(in.old.Conditions, t); old != nil && old.Status == c.Status && !old.LastTransitionTime.IsZero() {
			c.LastTransitionTime = old.LastTransitionTime
		} else if old := condition(pod.Status.Conditions, t); old != nil && old.Status == c.Status && !old.LastTransitionTime.IsZero() {
			c.LastTransitionTime = old.LastTransitionTime
		}
		s.Conditions = append(s.Conditions, c)
	}
	if v := in.verdict; v != nil && v.disruption {
		s.Conditions = slices.DeleteFunc(s.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
		set(corev1.DisruptionTarget, true, corev1.PodReasonTerminationByKubelet, v.message)
	} else if c := condition(pod.Status.Conditions, corev1.DisruptionTarget); c != nil && ourDisruption(*c) {
		s.Conditions = append(s.Conditions, *c)
	}
	if changed, _, _, why := sandboxState(pod, in.o); changed {
		set(corev1.PodReadyToStartContainers, false, "PodSandboxNotReady", why)
	} else {
		set(corev1.PodReadyToStartContainers, true, "", "")
	}
	all := append(slices.Clone(s.InitContainerStatuses), s.ContainerStatuses...)
	ok, reason, message := initialized(pod, s, all)
	if was := condition(in.old.Conditions, corev1.PodInitialized); !ok && was != nil && was.Status == corev1.ConditionTrue {
		ok, reason, message = true, "", "" // that is never taken back
	}
	set(corev1.PodInitialized, ok, reason, message)
	ok, reason, message = containersReady(pod, s, all)
	readyOK, readyReason, readyMessage := ok, reason, message
	if ok {
		readyOK, readyReason, readyMessage = gates(pod, s.Conditions)
	}
	set(corev1.PodReady, readyOK, readyReason, readyMessage)
	set(corev1.ContainersReady, ok, reason, message)
	set(corev1.PodScheduled, true, "", "")
	if couldRestartAll(pod) {
		removed := !slices.ContainsFunc(restartable(pod), func(c *corev1.Container) bool { return in.o.latest(c.Name) != nil })
		ok, reason, message = restartingAll(s.Phase, in.all, removed)
		set(corev1.AllContainersRestarting, ok, reason, message)
	}
}

func initialized(pod *corev1.Pod, s *corev1.PodStatus, all []corev1.ContainerStatus) (bool, string, string) {
	var unknown, incomplete []string
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		st := oldStatus(all, c.Name)
		switch {
		case st == nil:
			unknown = append(unknown, c.Name)
		case isSidecar(c) && (st.Started == nil || !*st.Started), !isSidecar(c) && !st.Ready:
			incomplete = append(incomplete, c.Name)
		}
	}
	if s.Phase == corev1.PodSucceeded && len(unknown) == 0 {
		return true, "PodCompleted", ""
	}
	for i := range pod.Spec.Containers {
		// A regular container that started shows that the pod was initialized.
		if st := oldStatus(all, pod.Spec.Containers[i].Name); st != nil && (st.State.Running != nil || st.State.Terminated != nil || st.LastTerminationState.Terminated != nil) {
			return true, "", ""
		}
	}
	if m := lists("containers with unknown status: ", unknown, "containers with incomplete status: ", incomplete); m != "" {
		return false, "ContainersNotInitialized", m
	}
	return true, "", ""
}

func lists(a string, as []string, b string, bs []string) string {
	var m []string
	if len(as) > 0 {
		m = append(m, a+fmt.Sprint(as))
	}
	if len(bs) > 0 {
		m = append(m, b+fmt.Sprint(bs))
	}
	return strings.Join(m, ", ")
}

func containersReady(pod *corev1.Pod, s *corev1.PodStatus, all []corev1.ContainerStatus) (bool, string, string) {
	var unknown, unready []string
	look := func(c *corev1.Container) {
		switch st := oldStatus(all, c.Name); {
		case st == nil:
			unknown = append(unknown, c.Name)
		case !st.Ready:
			unready = append(unready, c.Name)
		}
	}
	for i := range pod.Spec.InitContainers {
		if isSidecar(&pod.Spec.InitContainers[i]) {
			look(&pod.Spec.InitContainers[i])
		}
	}
	for i := range pod.Spec.Containers {
		look(&pod.Spec.Containers[i])
	}
	if s.Phase == corev1.PodSucceeded && len(unknown) == 0 {
		return false, "PodCompleted", ""
	}
	if s.Phase == corev1.PodFailed {
		return false, "PodFailed", ""
	}
	if m := lists("containers with unknown status: ", unknown, "containers with unready status: ", unready); m != "" {
		return false, "ContainersNotReady", m
	}
	return true, "", ""
}

func gates(pod *corev1.Pod, conds []corev1.PodCondition) (bool, string, string) {
	var m []string
	for _, g := range pod.Spec.ReadinessGates {
		c := condition(conds, g.ConditionType)
		if c == nil {
			m = append(m, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", string(g.ConditionType)))
		} else if c.Status != corev1.ConditionTrue {
			m = append(m, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", string(g.ConditionType), c.Status))
		}
	}
	if len(m) > 0 {
		return false, "ReadinessGatesNotReady", strings.Join(m, ", ")
	}
	return true, "", ""
}
