package run

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/runpod"
)

// States of a container, in docker's words.
const (
	Created    = "created"
	Running    = "running"
	Restarting = "restarting"
	Exited     = "exited"
	Removing   = "removing"
)

// State is how a container is.
type State struct {
	Word string
	// Code of its last end, where it has ended; -1 where nobody knows.
	Code int
	// At is when it came into this state; zero where it is not told.
	At time.Time
	// Reason and Message say why it waits or how it ended.
	Reason, Message string
	// Health is healthy, unhealthy, starting, or "" without a health check.
	Health string
}

// container finds a pod's container, by name or the first.
func container(p *corev1.Pod, name string) (*corev1.Container, *corev1.ContainerStatus) {
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		if name != "" && c.Name != name {
			continue
		}
		for j := range p.Status.ContainerStatuses {
			if p.Status.ContainerStatuses[j].Name == c.Name {
				return c, &p.Status.ContainerStatuses[j]
			}
		}
		return c, nil
	}
	return nil, nil
}

// StateOf tells how a container of a pod is; name "" means its first.
func StateOf(p *corev1.Pod, name string) State {
	c, st := container(p, name)
	s := State{Word: Created, Code: -1, At: p.CreationTimestamp.Time, Reason: p.Status.Reason, Message: p.Status.Message}
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
			s.Reason, s.Message = cond.Reason, cond.Message
		}
	}
	if st != nil {
		s.take(c, st)
	}
	switch {
	case p.DeletionTimestamp != nil:
		s.Word = Removing
	case (s.Word == Created || s.Word == Restarting) && (p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded):
		// It never ran, or nobody knows how it ended. One that runs is about to end.
		s.Word = Exited
	case s.Word == Exited && p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded && restarts(p, st, s.Code):
		s.Word = Restarting
	}
	return s
}

// take reads a status.
func (s *State) take(c *corev1.Container, st *corev1.ContainerStatus) {
	last := st.LastTerminationState.Terminated
	switch {
	case st.State.Running != nil:
		s.Word, s.At, s.Reason, s.Message = Running, st.State.Running.StartedAt.Time, "", ""
		if c.ReadinessProbe != nil {
			switch {
			case st.Ready:
				s.Health = "healthy"
			case time.Since(s.At) < grace(c.ReadinessProbe):
				s.Health = "starting"
			default:
				s.Health = "unhealthy"
			}
		}
	case st.State.Terminated != nil:
		t := st.State.Terminated
		s.Word, s.Code, s.At, s.Reason, s.Message = Exited, int(t.ExitCode), t.FinishedAt.Time, t.Reason, t.Message
	case st.State.Waiting != nil:
		w := st.State.Waiting
		s.Reason, s.Message = w.Reason, w.Message
		if last != nil {
			s.Word, s.Code, s.At = Restarting, int(last.ExitCode), last.FinishedAt.Time
		}
	}
}

// grace is how long a container may be unready before it is unhealthy.
func grace(p *corev1.Probe) time.Duration {
	return time.Duration(p.InitialDelaySeconds+max(p.PeriodSeconds, 1)*max(p.FailureThreshold, 1)) * time.Second
}

// restarts tells that a container with the status st, which ended with code, is started
// again.
func restarts(p *corev1.Pod, st *corev1.ContainerStatus, code int) bool {
	switch p.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		limit, limited := runpod.Retries(p.Annotations)
		return code != 0 && !(limited && st != nil && int(st.RestartCount) >= limit)
	}
	return true
}

// placing is how long a container may be without a node: one that has just become
// free, or Ready, is taken.
const placing = 5 * time.Second

// Fatal tells that a container that does not run yet will not by itself, with
// docker's exit code for that and why.
func Fatal(p *corev1.Pod, now time.Time) (code int, why string, fatal bool) {
	s := StateOf(p, "")
	if s.Word == Running || s.Reason == corev1.PodReasonUnschedulable && now.Sub(p.CreationTimestamp.Time) < placing {
		return 0, "", false
	}
	why = s.Reason
	if s.Message != "" {
		why += ": " + s.Message
	}
	switch s.Reason {
	case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable", "ImageInspectError",
		"CreateContainerConfigError", "CreateContainerError", corev1.PodReasonUnschedulable, corev1.PodReasonSchedulingGated:
		return 125, why, true
	case "RunContainerError", "StartError":
		switch m := strings.ToLower(s.Message); {
		case strings.Contains(m, "not found"), strings.Contains(m, "no such file"):
			return 127, why, true
		case strings.Contains(m, "permission denied"), strings.Contains(m, "exec format"), strings.Contains(m, "is a directory"):
			return 126, why, true
		}
		return 125, why, true
	}
	if p.Status.Phase == corev1.PodFailed && s.Code < 0 { // refused by the node
		return 125, why, true
	}
	return 0, "", false
}

// Row is a line of `skiff ps`. The fields are also those of its --format.
type Row struct {
	ID, Image, Command, CreatedAt, RunningFor, Ports, State, Status, Names, Namespace, Pod, Labels string

	Restarts int32
	created  time.Time
}

// Rows are the containers of pods, the newest first. all has those that do not
// run, too.
func Rows(pods []*corev1.Pod, all bool, now time.Time) []Row {
	var out []Row
	for _, p := range pods {
		for i := range p.Spec.Containers {
			c := &p.Spec.Containers[i]
			s := StateOf(p, c.Name)
			if !all && s.Word != Running && s.Word != Restarting {
				continue
			}
			name := p.Name
			if p.Labels[runpod.LabelName] == "" {
				name = p.Namespace + "/" + p.Name
				if len(p.Spec.Containers) > 1 {
					name += "/" + c.Name
				}
			}
			r := Row{
				Image: c.Image, Command: commandOf(c), created: p.CreationTimestamp.Time,
				CreatedAt: p.CreationTimestamp.Format("2006-01-02 15:04:05 -0700 MST"), RunningFor: Ago(now.Sub(p.CreationTimestamp.Time)),
				Ports: Ports(p, c), State: s.Word, Status: s.Status(now), Names: name, Namespace: p.Namespace, Pod: p.Name, Labels: labelsOf(p),
			}
			if _, st := container(p, c.Name); st != nil {
				r.ID, r.Restarts = bareID(st.ContainerID), st.RestartCount
			}
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b Row) int {
		if c := b.created.Compare(a.created); c != 0 {
			return c
		}
		return cmp.Compare(a.Names, b.Names)
	})
	return out
}

// bareID is a container's ID without the runtime's name.
func bareID(id string) string {
	if _, rest, ok := strings.Cut(id, "://"); ok {
		return rest
	}
	return id
}

// ID is the runtime's ID of a pod's first container, "" before there is one.
func ID(p *corev1.Pod) string { return IDOf(p, "") }

// IDOf is the runtime's ID of a pod's container, by name, "" before there is one.
func IDOf(p *corev1.Pod, name string) string {
	if _, st := container(p, name); st != nil {
		return bareID(st.ContainerID)
	}
	return ""
}

func commandOf(c *corev1.Container) string {
	// $$ is how a $ is written where $(NAME) is a reference.
	return strings.ReplaceAll(strings.Join(append(slices.Clone(c.Command), c.Args...), " "), "$$", "$")
}

func labelsOf(p *corev1.Pod) string {
	var out []string
	for k, v := range p.Labels {
		if !strings.HasPrefix(k, "run.skiff.io/") {
			out = append(out, k+"="+v)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

// Ports are those of a container as docker writes them, of the host's side first.
func Ports(p *corev1.Pod, c *corev1.Container) string {
	var out []string
	for _, port := range c.Ports {
		proto := strings.ToLower(string(cmp.Or(port.Protocol, corev1.ProtocolTCP)))
		to := fmt.Sprintf("%d/%s", port.ContainerPort, proto)
		if port.HostPort > 0 && !p.Spec.HostNetwork {
			ip := cmp.Or(port.HostIP, "0.0.0.0")
			if strings.Contains(ip, ":") {
				ip = "[" + ip + "]"
			}
			to = fmt.Sprintf("%s:%d->%s", ip, port.HostPort, to)
		}
		out = append(out, to)
	}
	return strings.Join(out, ", ")
}

// Status is a state in docker's sentence.
func (s State) Status(now time.Time) string {
	since := Span(now.Sub(s.At))
	switch s.Word {
	case Running:
		switch s.Health {
		case "":
			return "Up " + since
		case "starting":
			return "Up " + since + " (health: starting)"
		}
		return "Up " + since + " (" + s.Health + ")"
	case Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", s.Code, since)
	case Exited:
		if s.Code < 0 {
			return "Exited (" + cmp.Or(s.Reason, "unknown") + ")"
		}
		return fmt.Sprintf("Exited (%d) %s ago", s.Code, since)
	case Removing:
		return "Removal In Progress"
	}
	if s.Reason != "" && s.Reason != "ContainerCreating" && s.Reason != "PodInitializing" {
		return "Created (" + s.Reason + ")"
	}
	return "Created"
}

// Ended tells that nothing of a pod runs, nor will.
func Ended(p *corev1.Pod) bool {
	for i := range p.Status.ContainerStatuses {
		if p.Status.ContainerStatuses[i].State.Running != nil {
			return false // a pod that is stopped is Failed before it has ended
		}
	}
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

// Waits tells that the container is held until a client is attached to it.
func Waits(p *corev1.Pod) bool { return StateOf(p, "").Reason == runpod.ReasonUnattached }

// Ago is how long ago something was.
func Ago(d time.Duration) string { return Span(d) + " ago" }

// Span is a duration in docker's words.
func Span(d time.Duration) string {
	plural := func(n int, unit string) string { return fmt.Sprintf("%d %s", n, unit) }
	switch s := int(d.Seconds()); {
	case s < 1:
		return "Less than a second"
	case s == 1:
		return "1 second"
	case s < 60:
		return plural(s, "seconds")
	case s < 120:
		return "About a minute"
	case s < 60*60:
		return plural(s/60, "minutes")
	case int(d.Hours()+0.5) == 1:
		return "About an hour"
	case int(d.Hours()+0.5) < 48:
		return plural(int(d.Hours()+0.5), "hours")
	case int(d.Hours()+0.5) < 24*7*2:
		return plural(int(d.Hours()+0.5)/24, "days")
	case int(d.Hours()+0.5) < 24*30*2:
		return plural(int(d.Hours()+0.5)/24/7, "weeks")
	case int(d.Hours()+0.5) < 24*365*2:
		return plural(int(d.Hours()+0.5)/24/30, "months")
	}
	return plural(int(d.Hours())/24/365, "years")
}

// Again is the pod with which a container that ended starts anew: its own spec, of
// a new pod. rootfs is the container whose files its node holds for it; "" for a new file
// system.
func Again(p *corev1.Pod, rootfs string) *corev1.Pod {
	n := &corev1.Pod{TypeMeta: p.TypeMeta, Spec: *p.Spec.DeepCopy()}
	n.APIVersion, n.Kind = "v1", "Pod"
	n.Name, n.Namespace, n.Labels = p.Name, p.Namespace, p.Labels
	n.Annotations = map[string]string{}
	for k, v := range p.Annotations {
		if k != runpod.AnnotationStart && k != runpod.AnnotationRootfs {
			n.Annotations[k] = v
		}
	}
	if reflect.DeepEqual(n.Spec.Affinity, onNode(p.Spec.NodeName)) {
		n.Spec.Affinity = nil // of an earlier time
	}
	if rootfs != "" {
		n.Annotations[runpod.AnnotationRootfs] = rootfs
		if n.Spec.Affinity == nil {
			n.Spec.Affinity = onNode(p.Spec.NodeName)
		}
	}
	// What the server, the scheduler and a stop put there.
	n.Spec.NodeName, n.Spec.ActiveDeadlineSeconds = "", nil
	n.Spec.Priority, n.Spec.PreemptionPolicy = nil, nil
	for i := range n.Spec.Containers {
		c := &n.Spec.Containers[i]
		c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount"
		})
	}
	n.Spec.Volumes = slices.DeleteFunc(n.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Projected != nil && strings.HasPrefix(v.Name, "kube-api-access-")
	})
	return n
}

// onNode places a pod where the files of its container are.
func onNode(name string) *corev1.Affinity {
	return &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{
			Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{name},
		}}}},
	}}}
}

// Files is the container whose files a pod's has, or would have had, had it come that far;
// "" for none.
func Files(p *corev1.Pod) string {
	if id := ID(p); id != "" {
		return id
	}
	return p.Annotations[runpod.AnnotationRootfs]
}

// Size is a quantity of bytes as docker prints it.
func Size(q resource.Quantity) string {
	n := float64(q.Value())
	for _, u := range []string{"B", "KiB", "MiB", "GiB"} {
		if n < 1024 {
			return fmt.Sprintf("%.4g%s", n, u)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.4gTiB", n)
}
