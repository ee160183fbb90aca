package explain

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/api/explanation"
)

// explainPod says why a pod does not run, is not ready or does not go away.
func (w *World) explainPod(p *corev1.Pod) *explanation.Explanation {
	out := begin("Pod", "v1", p)
	switch {
	case p.DeletionTimestamp != nil:
		w.explainEnding(p, out)
	case p.Status.Phase == corev1.PodSucceeded:
		out.State, out.Summary = explanation.Fine, "it has ended well"
	case p.Status.Phase == corev1.PodFailed:
		out.State, out.Summary = explanation.Failing, "it has failed"
		if p.Status.Reason != "" || p.Status.Message != "" {
			cause(out, orElse(p.Status.Reason, "Failed"), "%s", orElse(p.Status.Message, p.Status.Reason))
		}
		w.containers(p, out)
	case p.Spec.NodeName == "":
		w.explainPending(p, out)
	default:
		w.explainPlaced(p, out)
	}
	return out
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// explainEnding says what keeps a deleted pod.
func (w *World) explainEnding(p *corev1.Pod, out *explanation.Explanation) {
	out.State = explanation.Ending
	ref := &explanation.Reference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name}
	over := w.Now.Sub(p.DeletionTimestamp.Time)
	node, known := get[*corev1.Node](w, "", p.Spec.NodeName)
	_, unread := w.Unread["nodes"]
	switch {
	case p.Spec.NodeName != "" && !known && !unread && !finished(p):
		out.Summary = fmt.Sprintf("it is deleted, but node %s is gone, so nobody ends it", p.Spec.NodeName)
		cause(out, "NodeGone", "node %s does not exist", p.Spec.NodeName)
		advise(out, "remove it from the API; if the machine still runs, so do its containers", ref,
			fmt.Sprintf("kubectl delete pod %s -n %s --force --grace-period=0", p.Name, p.Namespace))
	case known && !nodeReady(node) && !finished(p):
		out.Summary = fmt.Sprintf("it is deleted, but node %s does not answer, so nobody ends it", node.Name)
		cause(out, "NodeNotReady", "node %s is not Ready: %s", node.Name, readyMessage(node))
		advise(out, fmt.Sprintf("bring node %s back; or, if it is off for good, say so", node.Name), nodeRef(node.Name),
			fmt.Sprintf("kubectl taint node %s node.kubernetes.io/out-of-service=nodeshutdown:NoExecute", node.Name))
	case len(p.Finalizers) > 0 && (finished(p) || over > 0):
		out.Summary = fmt.Sprintf("it is deleted, and stays until %s is taken off", some("finalizer", p.Finalizers, ""))
		if len(p.Finalizers) > 1 {
			out.Summary = strings.Replace(out.Summary, " is taken", " are taken", 1)
		}
	case over < 0:
		out.Summary = fmt.Sprintf("it is ending: its containers have %s left of their grace period", since(-over))
	default:
		out.Summary = fmt.Sprintf("it is ending, and %s over its grace period", since(over))
		if texts := said(w, "Pod", p.Namespace, p.Name, "FailedKillPod"); len(texts) > 0 {
			cause(out, "FailedKillPod", "%s", texts[0])
		}
	}
	for _, f := range p.Finalizers {
		cause(out, "Finalizer", "finalizer %s: whoever set it is to take it off when its work is done", f)
	}
	if len(p.Finalizers) > 0 && len(out.Remedies) == 0 {
		advise(out, "see why the owner of the finalizer does not act; taking it off by hand skips what it is for", ref,
			fmt.Sprintf(`kubectl patch pod %s -n %s --type merge -p '{"metadata":{"finalizers":null}}'`, p.Name, p.Namespace))
	}
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func readyMessage(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return strings.TrimSuffix(c.Message, ".")
		}
	}
	return "it has never said that it is"
}

// explainPlaced says why a pod that has its node is not ready.
func (w *World) explainPlaced(p *corev1.Pod, out *explanation.Explanation) {
	node, known := get[*corev1.Node](w, "", p.Spec.NodeName)
	_, unread := w.Unread["nodes"]
	if !known && !unread {
		out.State = explanation.Failing
		out.Summary = fmt.Sprintf("its node %s does not exist", p.Spec.NodeName)
		cause(out, "NodeGone", "spec.nodeName is %s, which is not there", p.Spec.NodeName)
		advise(out, "delete the pod: one without nodeName goes where there is room", nil)
		return
	}
	if known && !nodeReady(node) && p.Status.Phase != corev1.PodRunning {
		out.State = explanation.Failing
		out.Summary = fmt.Sprintf("its node %s is not Ready", node.Name)
		cause(out, "NodeNotReady", "node %s: %s", node.Name, readyMessage(node))
		return
	}
	if podReady(p) {
		out.State, out.Summary = explanation.Fine, fmt.Sprintf("it runs on %s and is ready", p.Spec.NodeName)
		return
	}
	w.containers(p, out)
	if out.Summary != "" {
		return
	}
	if known && !nodeReady(node) {
		out.State = explanation.Failing
		out.Summary = fmt.Sprintf("it is not ready, since its node %s is not", node.Name)
		cause(out, "NodeNotReady", "node %s: %s", node.Name, readyMessage(node))
		return
	}
	if w.volumesFail(p, out) {
		return
	}
	for _, g := range p.Spec.ReadinessGates {
		i := slices.IndexFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == g.ConditionType })
		if i < 0 || p.Status.Conditions[i].Status != corev1.ConditionTrue {
			out.State = explanation.Failing
			out.Summary = "its containers are ready, and a readiness gate is not"
			cause(out, "ReadinessGate", "readiness gate %s is not True: whoever sets that condition has not", g.ConditionType)
		}
	}
	if out.Summary != "" {
		return
	}
	out.State, out.Summary = explanation.Waiting, fmt.Sprintf("it is starting on node %s", p.Spec.NodeName)
	if texts := said(w, "Pod", p.Namespace, p.Name, "FailedCreatePodSandBox"); len(texts) > 0 {
		out.State, out.Summary = explanation.Failing, fmt.Sprintf("node %s cannot make its sandbox", p.Spec.NodeName)
		cause(out, "FailedCreatePodSandBox", "%s", texts[0])
	}
}

func podReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// containers explains the containers that do not do what they should; the first one
// gives the summary.
func (w *World) containers(p *corev1.Pod, out *explanation.Explanation) {
	tell := func(statuses []corev1.ContainerStatus, specs []corev1.Container, init bool) {
		for i := range statuses {
			st := &statuses[i]
			at := slices.IndexFunc(specs, func(c corev1.Container) bool { return c.Name == st.Name })
			if at < 0 || init && st.State.Terminated != nil && st.State.Terminated.ExitCode == 0 {
				continue
			}
			what := "container " + st.Name
			if init {
				what = "init container " + st.Name
			}
			w.container(p, out, st, &specs[at], what)
		}
	}
	tell(p.Status.InitContainerStatuses, p.Spec.InitContainers, true)
	tell(p.Status.ContainerStatuses, p.Spec.Containers, false)
}

func failing(out *explanation.Explanation, format string, args ...any) {
	out.State = explanation.Failing
	if out.Summary == "" || out.Summary == "it has failed" {
		out.Summary = fmt.Sprintf(format, args...)
	}
}

var (
	missingKey    = regexp.MustCompile(`couldn't find key (\S+) in (ConfigMap|Secret) ([^/\s]+)/(\S+)`)
	missingObject = regexp.MustCompile(`(configmap|secret) "([^"]+)" not found`)
)

func (w *World) container(p *corev1.Pod, out *explanation.Explanation, st *corev1.ContainerStatus, spec *corev1.Container, what string) {
	of := w.template(p)
	switch wait := st.State.Waiting; {
	case wait == nil:
	case wait.Reason == "CreateContainerConfigError":
		failing(out, "%s cannot be made: %s", what, wait.Message)
		w.missing(p, out, wait.Message)
		return
	case wait.Reason == "ErrImageNeverPull":
		failing(out, "the image of %s is not on the node, and may not be pulled", what)
		cause(out, wait.Reason, "image %s, with imagePullPolicy Never", spec.Image)
		advise(out, fmt.Sprintf("bring %s to node %s (skiff image import FILE), or let it be pulled", spec.Image, p.Spec.NodeName), &of.ref)
		return
	case slices.Contains([]string{"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ImageInspectError", "RegistryUnavailable"}, wait.Reason):
		failing(out, "the image of %s cannot be pulled", what)
		why := wait.Message
		if wait.Reason == "ImagePullBackOff" {
			// The message says that it waits; the event says why.
			for _, text := range said(w, "Pod", p.Namespace, p.Name, "Failed") {
				if strings.Contains(text, spec.Image) || strings.Contains(text, "pull") {
					why = text
				}
			}
		}
		cause(out, wait.Reason, "%s", pullError(spec.Image, why))
		advise(out, pullAdvice(spec.Image, why), &of.ref)
		return
	case wait.Reason == "CreateContainerError", wait.Reason == "RunContainerError", wait.Reason == "StartError":
		failing(out, "%s cannot be started", what)
		cause(out, wait.Reason, "%s", wait.Message)
		return
	case wait.Reason == "CrashLoopBackOff":
		failing(out, "%s ends again and again (%s)", what, count(int(st.RestartCount), "restart"))
		w.ended(p, out, st, spec, what, st.LastTerminationState.Terminated)
		return
	}
	if t := st.State.Terminated; t != nil {
		if t.ExitCode == 0 && p.Status.Phase == corev1.PodFailed {
			return
		}
		failing(out, "%s has ended", what)
		w.ended(p, out, st, spec, what, t)
		return
	}
	if st.State.Running == nil || st.Ready {
		return
	}
	running := w.Now.Sub(st.State.Running.StartedAt.Time)
	if spec.StartupProbe != nil && !ptr.Deref(st.Started, false) {
		w.probe(p, out, what, "Startup", spec.StartupProbe, running)
		return
	}
	if spec.ReadinessProbe != nil {
		w.probe(p, out, what, "Readiness", spec.ReadinessProbe, running)
	}
}

func (w *World) probe(p *corev1.Pod, out *explanation.Explanation, what, kind string, probe *corev1.Probe, running time.Duration) {
	var last string
	for _, text := range said(w, "Pod", p.Namespace, p.Name, "Unhealthy") {
		if strings.HasPrefix(text, kind+" probe") {
			last = text
			break
		}
	}
	name := strings.ToLower(kind) + " probe"
	if last == "" && running < time.Duration(probe.InitialDelaySeconds+probe.PeriodSeconds*max(probe.FailureThreshold, 1))*time.Second {
		if out.Summary == "" {
			out.State, out.Summary = explanation.Waiting, fmt.Sprintf("%s runs for %s, and its %s has not succeeded yet", what, since(running), name)
		}
		return
	}
	failing(out, "%s runs, but its %s fails", what, name)
	cause(out, "Unhealthy", "%s%s", probed(probe), prefixed(": ", lastLine(strings.TrimPrefix(last, kind+" probe failed: "))))
	advise(out, fmt.Sprintf("make %s answer the probe, or correct the probe", what), &w.template(p).ref)
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// probed says what a probe does.
func probed(p *corev1.Probe) string {
	switch {
	case p.HTTPGet != nil:
		return fmt.Sprintf("GET %s on port %s", orElse(p.HTTPGet.Path, "/"), p.HTTPGet.Port.String())
	case p.TCPSocket != nil:
		return fmt.Sprintf("a connection to port %s", p.TCPSocket.Port.String())
	case p.Exec != nil:
		return "command " + strings.Join(p.Exec.Command, " ")
	case p.GRPC != nil:
		return fmt.Sprintf("the gRPC health of port %d", p.GRPC.Port)
	}
	return "the probe"
}

// ended says how a container ended, and what it said last.
func (w *World) ended(p *corev1.Pod, out *explanation.Explanation, st *corev1.ContainerStatus, spec *corev1.Container, what string, t *corev1.ContainerStateTerminated) {
	if t == nil {
		return
	}
	of := w.template(p)
	switch {
	case t.Reason == "OOMKilled":
		limit := "the node's memory was short"
		if q, ok := spec.Resources.Limits[corev1.ResourceMemory]; ok {
			limit = "its limit is " + q.String()
		}
		cause(out, t.Reason, "%s used more memory than it may: %s (exit code %d)", what, limit, t.ExitCode)
		advise(out, fmt.Sprintf("a higher memory limit for %s, or a program that needs less", what), &of.ref)
	case t.Reason == "ContainerCannotRun", t.Reason == "StartError":
		cause(out, t.Reason, "%s", t.Message)
	case t.Signal != 0 || t.ExitCode > 128:
		signal := t.Signal
		if signal == 0 {
			signal = t.ExitCode - 128
		}
		text := fmt.Sprintf("%s was ended by signal %d", what, signal)
		if texts := said(w, "Pod", p.Namespace, p.Name, "Unhealthy"); st.RestartCount > 0 && len(texts) > 0 && strings.HasPrefix(texts[0], "Liveness") {
			text += ": " + lastLine(texts[0])
		}
		cause(out, "Signal", "%s", text)
	case t.ExitCode == 0:
		cause(out, orElse(t.Reason, "Completed"), "%s ended with exit code 0, and is to run for ever (restartPolicy %s)", what, p.Spec.RestartPolicy)
	default:
		cause(out, orElse(t.Reason, "Error"), "%s ended with exit code %d", what, t.ExitCode)
	}
	said := strings.TrimSpace(t.Message)
	if said == "" || t.Reason == "ContainerCannotRun" || t.Reason == "StartError" {
		said = strings.TrimSpace(w.Logs[LogKey(p.Namespace, p.Name, st.Name)])
	}
	if said != "" {
		cause(out, "LastWords", "it wrote last: %s", lastLine(said))
	}
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// missing names what a container refers to and is not there.
func (w *World) missing(p *corev1.Pod, out *explanation.Explanation, message string) {
	if m := missingKey.FindStringSubmatch(message); m != nil {
		text := fmt.Sprintf("%s %s has no key %s", m[2], m[4], m[1])
		if cm, ok := get[*corev1.ConfigMap](w, m[3], m[4]); ok && m[2] == "ConfigMap" {
			text += fmt.Sprintf("; it has %s", orElse(few(sorted(cm.Data)), "none"))
		}
		cause(out, "MissingKey", "%s", text)
		advise(out, fmt.Sprintf("the key %s in %s %s, or optional: true where it is referred to", m[1], m[2], m[4]),
			&explanation.Reference{APIVersion: "v1", Kind: m[2], Namespace: m[3], Name: m[4]})
		return
	}
	if m := missingObject.FindStringSubmatch(message); m != nil {
		kind := map[string]string{"configmap": "ConfigMap", "secret": "Secret"}[m[1]]
		cause(out, "Missing"+kind, "%s %s does not exist in namespace %s", kind, m[2], p.Namespace)
		command := fmt.Sprintf("kubectl create configmap %s -n %s --from-literal=KEY=VALUE", m[2], p.Namespace)
		if kind == "Secret" {
			command = fmt.Sprintf("kubectl create secret generic %s -n %s --from-literal=KEY=VALUE", m[2], p.Namespace)
		}
		advise(out, fmt.Sprintf("%s %s", kind, m[2]), &explanation.Reference{APIVersion: "v1", Kind: kind, Namespace: p.Namespace, Name: m[2]}, command)
		return
	}
	cause(out, "CreateContainerConfigError", "%s", message)
}

// volumesFail tells of volumes that cannot be mounted.
func (w *World) volumesFail(p *corev1.Pod, out *explanation.Explanation) bool {
	texts := said(w, "Pod", p.Namespace, p.Name, "FailedMount", "FailedAttachVolume", "FailedMapVolume")
	if len(texts) == 0 {
		return false
	}
	failing(out, "a volume cannot be mounted on node %s", p.Spec.NodeName)
	why := w.whyNotMounted(p, texts)
	if w.attachFails(p, out, why) {
		return true
	}
	before := len(out.Causes)
	if missingObject.MatchString(why) || missingKey.MatchString(why) {
		w.missing(p, out, why)
	}
	if len(out.Causes) == before {
		cause(out, "FailedMount", "%s", why)
	}
	return true
}

// pullError is the part of a message that says why an image could not be pulled.
func pullError(image, message string) string {
	message = strings.TrimPrefix(message, fmt.Sprintf("Failed to pull image %q: ", image))
	message = strings.TrimPrefix(message, fmt.Sprintf("Back-off pulling image %q: ErrImagePull: ", image))
	return fmt.Sprintf("image %s: %s", image, strings.TrimSpace(message))
}

func pullAdvice(image, why string) string {
	why = strings.ToLower(why)
	switch {
	case strings.Contains(why, "no such host"), strings.Contains(why, "server misbehaving"), strings.Contains(why, "name resolution"):
		return fmt.Sprintf("a registry whose name the node can look up: %s is not known to it", strings.SplitN(image, "/", 2)[0])
	case strings.Contains(why, "401"), strings.Contains(why, "unauthorized"), strings.Contains(why, "403"), strings.Contains(why, "denied"), strings.Contains(why, "forbidden"):
		return "an imagePullSecret with the right to pull it, or the right name"
	case strings.Contains(why, "not found"), strings.Contains(why, "404"), strings.Contains(why, "manifest unknown"):
		return "a name and tag that exist in the registry"
	case strings.Contains(why, "timeout"), strings.Contains(why, "refused"), strings.Contains(why, "unreachable"), strings.Contains(why, "deadline"):
		return "a way from the node to the registry"
	}
	return "an image that the node can pull, or that is there already (skiff image import FILE)"
}

// worst is the pod of several that says most of what is wrong; nil where all are well.
func (w *World) worst(pods []*corev1.Pod) (*corev1.Pod, *explanation.Explanation) {
	rank := func(p *corev1.Pod) int {
		switch {
		case p.DeletionTimestamp != nil, podReady(p), p.Status.Phase == corev1.PodSucceeded:
			return 0
		case p.Spec.NodeName == "":
			return 3
		case p.Status.Phase == corev1.PodFailed:
			return 1
		case slices.ContainsFunc(append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...), func(s corev1.ContainerStatus) bool {
			return s.State.Waiting != nil && s.State.Waiting.Reason != "ContainerCreating" && s.State.Waiting.Reason != "PodInitializing"
		}):
			return 4
		}
		return 2
	}
	var best *corev1.Pod
	for _, p := range pods {
		if r := rank(p); r > 0 && (best == nil || r > rank(best)) {
			best = p
		}
	}
	if best == nil {
		return nil, nil
	}
	return best, w.explainPod(best)
}

func ownedBy(p *corev1.Pod, owner metav1.Object) bool {
	return metav1.IsControlledBy(p, owner)
}
