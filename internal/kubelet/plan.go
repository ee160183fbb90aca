package kubelet

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/api/runpod"
)

// killReason tells why a container is to end while its pod goes on; it chooses
// the grace period.
type killReason int

const (
	killUnknown killReason = iota
	killLiveness
	killStartup
)

// kill is a container to end.
type kill struct {
	id, name, message string
	reason            killReason
}

// start is a container to start. Where id is set it was created before, by a
// kubelet that ended before it could start it.
type start struct {
	container *corev1.Container
	id        string
	ephemeral *corev1.EphemeralContainer
	init      bool
}

// actions is what is to be done for a pod now, in this order: kill, resize,
// then (stop and) create the sandbox, then start. Where killPod is set without newSandbox
// the pod is done.
type actions struct {
	killPod    bool
	newSandbox bool
	attempt    uint32
	sandboxID  string  // the sandbox to use, or the old one
	reset      []reset // with nothing else
	kill       []kill
	resize     []resizeTo
	start      []start
}

// resizeTo is a running container that is to have other resources.
type resizeTo struct {
	id        string
	container *corev1.Container
	memory    int64 // its limit so far, bytes, 0 for none
}

// probeView is what the core needs to know of probes.
type probeView interface {
	// failed tells why a running container must end, by its probes.
	failed(containerID string) (killReason, bool)
	// started tells that a running container passed its startup probe or has none.
	started(containerID string) bool
}

// podNameFull is how a pod is named in messages.
func podNameFull(p *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", p.Name, p.Namespace, p.UID)
}

// containerHash changes when a container must be replaced: with its image.
func containerHash(c *corev1.Container) uint64 {
	b, _ := json.Marshal(struct {
		Image string `json:"image"`
		Name  string `json:"name"`
	}{c.Image, c.Name})
	h := fnv.New32a()
	_, _ = h.Write(b)
	return uint64(h.Sum32())
}

// restartRule is what the first of a container's restart rules (KEP-5307) that is
// about an exit code asks for; "" where there is none.
func restartRule(c *corev1.Container, code int32) corev1.ContainerRestartRuleAction {
	for _, r := range c.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		if slices.Contains(r.ExitCodes.Values, code) == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action
		}
	}
	return ""
}

func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// shouldRestart tells whether a container that was restarted so often before, and
// ended with this code, is to run again, by its own policy and rules, or the pod's.
func shouldRestart(pod *corev1.Pod, c *corev1.Container, init bool, restarts int, code int32) bool {
	switch restartRule(c, code) {
	case corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers:
		return true
	}
	if c.RestartPolicy != nil {
		switch *c.RestartPolicy {
		case corev1.ContainerRestartPolicyAlways:
			return true
		case corev1.ContainerRestartPolicyOnFailure:
			return code != 0
		default:
			return false
		}
	}
	switch pod.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0 && !retriesSpent(pod, c, restarts)
	default:
		// An init container that succeeded is done under every policy.
		return !init || code != 0
	}
}

// retriesSpent tells that a container has been restarted as often as its pod's word
// of `skiff run --restart on-failure:N` allows. It is of no container that has a
// policy of its own.
func retriesSpent(pod *corev1.Pod, c *corev1.Container, restarts int) bool {
	limit, limited := runpod.Retries(pod.Annotations)
	return limited && restarts >= limit && c.RestartPolicy == nil && pod.Spec.RestartPolicy == corev1.RestartPolicyOnFailure
}

// restartsAfterKill tells whether a container that the kubelet ends for its
// probes is started again.
func restartsAfterKill(pod *corev1.Pod, c *corev1.Container, restarts int) bool {
	if c.RestartPolicy != nil {
		return *c.RestartPolicy != corev1.ContainerRestartPolicyNever
	}
	return pod.Spec.RestartPolicy != corev1.RestartPolicyNever && !retriesSpent(pod, c, restarts)
}

func hostNetwork(p *corev1.Pod) bool { return p.Spec.HostNetwork }

// noNetwork tells of a pod that is to have the loopback device alone.
func noNetwork(p *corev1.Pod) bool {
	return !hostNetwork(p) && p.Annotations[runpod.AnnotationNetwork] == runpod.NetworkNone
}

// Messages of the condition PodReadyToStartContainers.
const (
	msgNoSandbox        = "no pod sandbox exists"
	msgSandboxes        = "multiple pod sandboxes are ready and need to be reconciled"
	msgSandboxNotReady  = "pod sandbox is not ready"
	msgNetworkNamespace = "network namespace mode changed and sandbox needs to be recreated"
	msgNoIP             = "pod sandbox has no IP address"
)

// sandboxState tells whether the pod needs a new sandbox, with which attempt, the
// newest there is, and why.
func sandboxState(pod *corev1.Pod, o *observed) (changed bool, attempt uint32, id, why string) {
	if len(o.sandboxes) == 0 {
		return true, 0, "", msgNoSandbox
	}
	ready := 0
	for _, s := range o.sandboxes {
		if s.ready {
			ready++
		}
	}
	s := o.sandboxes[0]
	switch {
	case ready > 1:
		return true, s.attempt + 1, s.id, msgSandboxes
	case !s.ready:
		return true, s.attempt + 1, s.id, msgSandboxNotReady
	case s.hostNet != hostNetwork(pod):
		return true, s.attempt + 1, s.id, msgNetworkNamespace
	case !hostNetwork(pod) && s.networked && len(s.ips) == 0:
		return true, s.attempt + 1, s.id, msgNoIP
	}
	return false, s.attempt, s.id, ""
}

// regularSeen tells that the pod was initialized once: the runtime has a regular
// container of it.
func regularSeen(pod *corev1.Pod, o *observed) bool {
	for i := range pod.Spec.Containers {
		if o.latest(pod.Spec.Containers[i].Name) != nil {
			return true
		}
	}
	return false
}

// plan says what is to be done for a pod that is to run. It has no side effects:
// the same view gives the same actions.
func plan(pod *corev1.Pod, o *observed, probes probeView) actions {
	changed, attempt, id, _ := sandboxState(pod, o)
	a := actions{attempt: attempt, sandboxID: id}
	if changed {
		return planSandbox(pod, o, a)
	}
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		if c := o.latest(e.Name); c == nil || createdBefore(c, (*corev1.Container)(&e.EphemeralContainerCommon), id) {
			a.start = append(a.start, start{container: (*corev1.Container)(&e.EphemeralContainerCommon), ephemeral: e, id: idOf(c)})
		}
	}
	if !planInit(pod, o, probes, &a) || a.killPod {
		return a
	}
	planContainers(pod, o, probes, &a)
	return a
}

// createdBefore tells that c waits in sandbox for a start that never came.
func createdBefore(c *container, spec *corev1.Container, sandboxID string) bool {
	return c != nil && c.state == runtimeapi.ContainerState_CONTAINER_CREATED && c.sandboxID == sandboxID && c.hash == containerHash(spec)
}

func idOf(c *container) string {
	if c == nil {
		return ""
	}
	return c.id
}

// planSandbox plans for a pod whose sandbox is missing or unfit: everything
// starts anew, unless the pod is done.
func planSandbox(pod *corev1.Pod, o *observed, a actions) actions {
	a.killPod = true
	mayRestart := pod.Spec.RestartPolicy != corev1.RestartPolicyNever
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.RestartPolicy != nil && *c.RestartPolicy != corev1.ContainerRestartPolicyNever || len(c.RestartPolicyRules) > 0 {
			mayRestart = true
		}
	}
	if !mayRestart && a.attempt != 0 && len(o.containers) > 0 {
		return a
	}
	var starts []start
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		once := pod.Spec.RestartPolicy == corev1.RestartPolicyOnFailure
		if c.RestartPolicy != nil {
			once = *c.RestartPolicy == corev1.ContainerRestartPolicyOnFailure
		}
		if last := o.latest(c.Name); once && last != nil && last.exited() && (last.exitCode == 0 || retriesSpent(pod, c, last.restarts)) {
			continue
		}
		starts = append(starts, start{container: c})
	}
	if len(starts) == 0 && regularSeen(pod, o) {
		return a
	}
	a.newSandbox = true
	if len(pod.Spec.InitContainers) > 0 {
		a.start = []start{{container: &pod.Spec.InitContainers[0], init: true}}
		return a
	}
	a.start = starts
	return a
}

// planInit walks the init containers in order and tells whether the regular ones
// may run. Sidecars that ended are started again wherever they stand; of the
// others the first that is not done holds up what follows.
func planInit(pod *corev1.Pod, o *observed, probes probeView, a *actions) bool {
	done := regularSeen(pod, o)
	if done && !anyRegularInSandbox(pod, o, a.sandboxID) {
		// The regular containers are those of a former sandbox.
		done = false
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		last := o.latest(c.Name)
		if last != nil && last.sandboxID != a.sandboxID {
			last = nil
		}
		if isSidecar(c) {
			if !planSidecar(pod, o, probes, a, i, last, done) {
				return false
			}
			continue
		}
		if done {
			continue
		}
		switch {
		case last == nil:
			if laterSeen(pod, o, i+1, a.sandboxID) {
				continue // its record is gone; what follows it has run
			}
			a.start = append(a.start, start{container: c, init: true})
			return false
		case createdBefore(last, c, a.sandboxID):
			a.start = append(a.start, start{container: c, init: true, id: last.id})
			return false
		case last.running():
			return false
		case last.exited() && last.exitCode == 0:
			continue
		case last.exited():
			if !shouldRestart(pod, c, true, last.restarts, last.exitCode) {
				a.killPod = true
				return false
			}
			a.start = append(a.start, start{container: c, init: true})
			return false
		default:
			a.kill = append(a.kill, kill{last.id, c.Name, fmt.Sprintf("Init container is in %q state, try killing it before restart", "unknown"), killUnknown})
			a.start = append(a.start, start{container: c, init: true})
			return false
		}
	}
	return true
}

// planSidecar plans for one restartable init container; false means that what
// follows must wait for it.
func planSidecar(pod *corev1.Pod, o *observed, probes probeView, a *actions, i int, last *container, done bool) bool {
	c := &pod.Spec.InitContainers[i]
	passed := done || laterSeen(pod, o, i+1, a.sandboxID)
	if last != nil && last.running() {
		if reason, failed := probes.failed(last.id); failed || last.hash != containerHash(c) {
			a.kill = append(a.kill, kill{last.id, c.Name, killMessage(c.Name, reason, failed, true, "Init container"), reason})
			a.start = append(a.start, start{container: c, init: true})
			return passed
		}
		if !planResize(pod, c, last, a) {
			a.start = append(a.start, start{container: c, init: true})
			return passed
		}
		return passed || probes.started(last.id)
	}
	if done && !anyRegularActive(pod, o) {
		return true // the pod ends: a sidecar must not hold it up
	}
	s := start{container: c, init: true}
	if createdBefore(last, c, a.sandboxID) {
		s.id = last.id
	}
	a.start = append(a.start, s)
	return passed
}

// laterSeen tells that an init container from index i on was made in the sandbox.
func laterSeen(pod *corev1.Pod, o *observed, i int, sandboxID string) bool {
	for ; i < len(pod.Spec.InitContainers); i++ {
		if c := o.latest(pod.Spec.InitContainers[i].Name); c != nil && c.sandboxID == sandboxID {
			return true
		}
	}
	return false
}

func anyRegularInSandbox(pod *corev1.Pod, o *observed, sandboxID string) bool {
	for i := range pod.Spec.Containers {
		if c := o.latest(pod.Spec.Containers[i].Name); c != nil && c.sandboxID == sandboxID {
			return true
		}
	}
	return false
}

// anyRegularActive tells that a regular container runs or is to run.
func anyRegularActive(pod *corev1.Pod, o *observed) bool {
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		last := o.latest(c.Name)
		if last == nil || !last.exited() || shouldRestart(pod, c, false, last.restarts, last.exitCode) {
			return true
		}
	}
	return false
}

func killMessage(name string, reason killReason, probe, restart bool, kind string) string {
	m := fmt.Sprintf("%s %s definition changed", kind, name)
	if probe {
		m = fmt.Sprintf("%s %s failed liveness probe", kind, name)
		if reason == killStartup {
			m = fmt.Sprintf("%s %s failed startup probe", kind, name)
		}
	}
	if restart {
		m += ", will be restarted"
	}
	return m
}

// planContainers plans the regular containers of an initialized pod.
func planContainers(pod *corev1.Pod, o *observed, probes probeView, a *actions) {
	keep, starts := 0, 0
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		last := o.latest(c.Name)
		switch {
		case last == nil:
			a.start = append(a.start, start{container: c})
			starts++
		case last.running():
			reason, failed := probes.failed(last.id)
			changed := last.hash != containerHash(c)
			if !failed && !changed {
				if planResize(pod, c, last, a) {
					keep++
					continue
				}
				a.start = append(a.start, start{container: c})
				starts++
				continue
			}
			if changed {
				failed, reason = false, killUnknown
			}
			restart := changed || restartsAfterKill(pod, c, last.restarts)
			a.kill = append(a.kill, kill{last.id, c.Name, killMessage(c.Name, reason, failed, restart, "Container"), reason})
			if restart {
				a.start = append(a.start, start{container: c})
				starts++
			}
		case createdBefore(last, c, a.sandboxID):
			a.start = append(a.start, start{container: c, id: last.id})
			starts++
		case last.exited() && !shouldRestart(pod, c, false, last.restarts, last.exitCode):
		default:
			if last.state == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
				a.kill = append(a.kill, kill{last.id, c.Name, fmt.Sprintf("Container is in %q state, try killing it before restart", "unknown"), killUnknown})
			}
			a.start = append(a.start, start{container: c})
			starts++
		}
	}
	if keep == 0 && starts == 0 {
		// Nothing runs nor is to run: the pod is done, its sidecars with it.
		a.killPod = true
		a.start = nil
	}
}

// planResize plans for a running container that its pod's allocation may have left
// behind; false tells that it ends for that.
func planResize(pod *corev1.Pod, c *corev1.Container, last *container, a *actions) bool {
	update, restart := resizeOf(pod, c, last)
	if restart {
		a.kill = append(a.kill, kill{last.id, c.Name, fmt.Sprintf("Container %s resize requires restart", c.Name), killUnknown})
		return false
	}
	if update {
		a.resize = append(a.resize, resizeTo{last.id, c, last.resources.GetMemoryLimitInBytes()})
	}
	return true
}

// backoff is a delay that doubles with every failure and is forgotten after a
// long time without one.
type backoff struct {
	delay   time.Duration
	updated time.Time
}

const (
	backoffInitial = 10 * time.Second
	backoffMax     = 300 * time.Second
	// backoffForgotten is after how long without a failure the next one counts as
	// the first.
	backoffForgotten = 600 * time.Second
)

// active tells until when the back-off that began at since lasts. One that was
// last renewed more than ten minutes before since is forgotten.
func (b backoff) active(since, now time.Time) (until time.Time, on bool) {
	if b.delay == 0 || since.Sub(b.updated) > backoffForgotten {
		return time.Time{}, false
	}
	until = since.Add(b.delay)
	return until, now.Before(until)
}

// next returns the back-off after one more failure, at most longest.
func (b backoff) next(since, now time.Time, longest time.Duration) backoff {
	switch {
	case b.delay == 0 || since.Sub(b.updated) > backoffForgotten:
		b.delay = min(backoffInitial, longest)
	default:
		b.delay = min(b.delay*2, longest)
	}
	b.updated = now
	return b
}
