// Package run is what `skiff run` means: docker's words for a container, as a Pod.
// Plan is a function of the flags and of what they refer to on the machine where
// they were typed; rows and states say how a Pod looks to who thinks of
// containers. docs/run.md has the mapping in a table.
package run

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"skiff/internal/api/runpod"
)

// StorageClass is that of named volumes, ClaimSize what their claims ask for: the
// class does not enforce it.
const (
	StorageClass = "local"
	ClaimSize    = "1Gi"
)

// Options are the flags of `skiff run`, as they were typed. The zero value of each
// field means that its flag was not given.
type Options struct {
	Image string
	Args  []string

	Name, Namespace       string
	Detach, Remove        bool
	Interactive, Terminal bool
	Attach                []string

	Env, EnvFiles                []string
	Workdir, User                string
	Entrypoint                   *string
	Hostname                     string
	AddHosts                     []string
	DNS, DNSSearch, DNSOptions   []string
	Publish                      []string
	PublishAll                   bool
	Expose                       []string
	Network                      string
	Volumes, Mounts, Tmpfs       []string
	ShmSize                      string
	CapAdd, CapDrop              []string
	Privileged, ReadOnly, Init   bool
	SecurityOpts, GroupAdd       []string
	Sysctls, Devices             []string
	PID, IPC                     string
	Memory, MemoryReservation    string
	CPUs                         string
	CPUShares                    int64
	Restart, Pull                string
	Labels, LabelFiles           []string
	Annotations                  []string
	StopTimeout                  *int64
	StopSignal                   string
	HealthCmd                    string
	HealthInterval               time.Duration
	HealthTimeout                time.Duration
	HealthStart                  time.Duration
	HealthRetries                int32
	NoHealthcheck                bool
	RuntimeClass, ServiceAccount string
}

// Attached tells that a client is to be attached to the container.
func (o *Options) Attached() bool { return !o.Detach }

// Machine is what flags refer to where they are typed.
type Machine struct {
	// Dir is the working directory, for relative paths.
	Dir string
	// Lookup is the environment, for --env NAME.
	Lookup func(name string) (string, bool)
	// ReadFile reads --env-file and --label-file.
	ReadFile func(path string) ([]byte, error)
	// Exists tells whether a host path is there.
	Exists func(path string) bool
	// FreePort finds a port of the host from..to that is free; from 0 means any.
	FreePort func(ip, proto string, from, to int) (int, error)
	// Exposed are the ports that an image names, PORT[/PROTOCOL], for --publish-all.
	Exposed func(image string) ([]string, error)
	// Gateway is the node's address, for --add-host NAME:host-gateway.
	Gateway string
	// Taken tells that a container of the name exists.
	Taken func(name string) bool
	// Random returns a number below n.
	Random func(n int) int
}

// Made is what is to be created: the pod, and the claims of named volumes, which
// may exist already.
type Made struct {
	Pod    *corev1.Pod
	Claims []*corev1.PersistentVolumeClaim
}

// Plan makes the Pod of a container. What a Pod cannot honour is an error that
// says so.
func Plan(o Options, m Machine) (Made, error) {
	p := &plan{o: o, m: m}
	p.c.Image = o.Image
	steps := []func() error{
		p.meta, p.command, p.env, p.labels, p.streams, p.restart, p.pull, p.stop, p.health,
		p.resources, p.security, p.namespaces, p.hosts, p.network, p.ports, p.volumes,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return Made{}, err
		}
	}
	p.pod.Spec.Containers = []corev1.Container{p.c}
	return Made{Pod: &p.pod, Claims: p.claims}, nil
}

// plan is a Pod in the making.
type plan struct {
	o      Options
	m      Machine
	pod    corev1.Pod
	c      corev1.Container
	claims []*corev1.PersistentVolumeClaim
}

func (p *plan) meta() error {
	name := p.o.Name
	if name == "" {
		name = GenerateName(p.m.Random, p.m.Taken)
	} else if err := CheckName("--name", name); err != nil {
		return err
	}
	ns := p.o.Namespace
	if ns == "" {
		ns = corev1.NamespaceDefault
	}
	no := false
	p.pod = corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: map[string]string{runpod.LabelName: name}},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			ServiceAccountName: p.o.ServiceAccount,
		},
	}
	if p.o.ServiceAccount != "" {
		p.pod.Spec.AutomountServiceAccountToken = nil // who names one wants its token
	}
	if p.o.RuntimeClass != "" {
		p.pod.Spec.RuntimeClassName = &p.o.RuntimeClass
	}
	p.c.Name = name
	if p.o.Remove {
		p.pod.Labels[runpod.LabelRemove] = runpod.RemoveAtEnd
		if p.o.Attached() {
			p.pod.Labels[runpod.LabelRemove] = runpod.RemoveByClient
		}
	}
	return nil
}

func (p *plan) annotate(key, value string) {
	if p.pod.Annotations == nil {
		p.pod.Annotations = map[string]string{}
	}
	p.pod.Annotations[key] = value
}

// CheckName says why a word cannot be the name of a container or volume, and what
// could.
func CheckName(flag, name string) error {
	if len(validation.IsDNS1123Label(name)) == 0 {
		return nil
	}
	better := strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(name), "-"), "-")
	if len(better) > validation.DNS1123LabelMaxLength {
		better = strings.Trim(better[:validation.DNS1123LabelMaxLength], "-")
	}
	msg := fmt.Sprintf("%s %q: names are of lower case letters, digits and '-', at most %d of them", flag, name, validation.DNS1123LabelMaxLength)
	if better != "" {
		msg += fmt.Sprintf(", such as %q", better)
	}
	return errors.New(msg)
}

// literal keeps a word from being expanded: $(NAME) is a reference in a Pod, and
// $$ is one $.
func literal(s string) string {
	if strings.Contains(s, "$(") || strings.Contains(s, "$$") {
		return strings.ReplaceAll(s, "$", "$$")
	}
	return s
}

func literals(in []string) []string {
	var out []string
	for _, s := range in {
		out = append(out, literal(s))
	}
	return out
}

func (p *plan) command() error {
	p.c.Args = literals(p.o.Args)
	if p.o.Entrypoint != nil {
		if *p.o.Entrypoint == "" { // --entrypoint "" takes the image's away
			p.c.Command, p.c.Args = p.c.Args, nil
		} else {
			p.c.Command = []string{literal(*p.o.Entrypoint)}
		}
	}
	if w := p.o.Workdir; w != "" {
		if !strings.HasPrefix(w, "/") {
			return fmt.Errorf("--workdir %q: must be an absolute path", w)
		}
		p.c.WorkingDir = w
	}
	return nil
}

// env has what files say first, then what flags say over them.
func (p *plan) env() error {
	at := map[string]int{}
	set := func(line string) error {
		name, value, given := strings.Cut(line, "=")
		if name == "" || strings.ContainsAny(name, " \t") {
			return fmt.Errorf("--env %q: must be NAME or NAME=VALUE", line)
		}
		if !given {
			if value, given = p.m.Lookup(name); !given {
				return nil
			}
		}
		e := corev1.EnvVar{Name: name, Value: literal(value)}
		if i, ok := at[name]; ok {
			p.c.Env[i] = e
			return nil
		}
		at[name] = len(p.c.Env)
		p.c.Env = append(p.c.Env, e)
		return nil
	}
	for _, file := range p.o.EnvFiles {
		lines, err := p.lines("--env-file", file)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if err := set(l); err != nil {
				return fmt.Errorf("--env-file %s: %w", file, err)
			}
		}
	}
	for _, e := range p.o.Env {
		if err := set(e); err != nil {
			return err
		}
	}
	return nil
}

// lines of a file, without comments.
func (p *plan) lines(flag, file string) ([]string, error) {
	b, err := p.m.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, file, err)
	}
	var out []string
	for l := range strings.Lines(string(b)) {
		l = strings.TrimLeft(strings.TrimRight(l, "\r\n"), " \t")
		if l != "" && !strings.HasPrefix(l, "#") {
			out = append(out, l)
		}
	}
	return out, nil
}

// labels that Kubernetes takes as such are labels; all others annotations.
func (p *plan) labels() error {
	set := func(flag, l string) error {
		k, v, _ := strings.Cut(l, "=")
		if errs := validation.IsQualifiedName(k); len(errs) > 0 {
			return fmt.Errorf("%s %q: %s", flag, l, errs[0])
		}
		if strings.HasPrefix(k, "run.skiff.io/") {
			return fmt.Errorf("%s %q: run.skiff.io is skiff's own", flag, l)
		}
		if flag == "--annotation" || len(validation.IsValidLabelValue(v)) > 0 {
			p.annotate(k, v)
		} else {
			p.pod.Labels[k] = v
		}
		return nil
	}
	for _, file := range p.o.LabelFiles {
		lines, err := p.lines("--label-file", file)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if err := set("--label", l); err != nil {
				return err
			}
		}
	}
	for _, l := range p.o.Labels {
		if err := set("--label", l); err != nil {
			return err
		}
	}
	for _, l := range p.o.Annotations {
		if err := set("--annotation", l); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) streams() error {
	for _, a := range p.o.Attach {
		if a = strings.ToLower(a); a != "stdin" && a != "stdout" && a != "stderr" {
			return fmt.Errorf("--attach %q: must be stdin, stdout or stderr", a)
		}
	}
	if len(p.o.Attach) > 0 && p.o.Detach {
		return errors.New("--attach and --detach exclude each other")
	}
	p.c.Stdin, p.c.TTY = p.o.Interactive, p.o.Terminal
	// The input ends with the client that brought it.
	p.c.StdinOnce = p.o.Interactive && p.o.Attached()
	if p.o.Attached() {
		p.annotate(runpod.AnnotationStart, runpod.StartAttached)
	}
	return nil
}

func (p *plan) restart() error {
	word, retries, limited := strings.Cut(p.o.Restart, ":")
	switch word {
	case "", "no":
		p.pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	case "on-failure":
		if limited {
			if _, err := strconv.ParseUint(retries, 10, 31); err != nil {
				return fmt.Errorf("--restart %q: must be on-failure:N with a number of restarts, such as on-failure:3", p.o.Restart)
			}
		}
		p.pod.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	case "always", "unless-stopped":
		p.pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	default:
		return fmt.Errorf("--restart %q: must be no, on-failure[:N], always or unless-stopped", p.o.Restart)
	}
	if limited && word != "on-failure" {
		return fmt.Errorf("--restart %q: only on-failure takes a number", p.o.Restart)
	}
	if word != "" && word != "no" {
		if p.o.Remove {
			return errors.New("--restart and --rm exclude each other")
		}
		p.annotate(runpod.AnnotationRestart, p.o.Restart)
	}
	return nil
}

func (p *plan) pull() error {
	switch p.o.Pull {
	case "", "missing":
		p.c.ImagePullPolicy = corev1.PullIfNotPresent
	case "always":
		p.c.ImagePullPolicy = corev1.PullAlways
	case "never":
		p.c.ImagePullPolicy = corev1.PullNever
	default:
		return fmt.Errorf("--pull %q: must be always, missing or never", p.o.Pull)
	}
	return nil
}

// defaultGrace is docker's, seconds.
const defaultGrace = 10

func (p *plan) stop() error {
	grace := int64(defaultGrace)
	if t := p.o.StopTimeout; t != nil {
		if grace = *t; grace < 0 {
			return fmt.Errorf("--stop-timeout %d: a pod must be given a time; 0 kills at once", grace)
		}
	}
	p.pod.Spec.TerminationGracePeriodSeconds = &grace
	if p.o.StopSignal == "" {
		return nil
	}
	name, err := signalName(p.o.StopSignal)
	if err != nil {
		return fmt.Errorf("--stop-signal %q: %w", p.o.StopSignal, err)
	}
	s := corev1.Signal(name)
	p.c.Lifecycle = &corev1.Lifecycle{StopSignal: &s}
	p.pod.Spec.OS = &corev1.PodOS{Name: corev1.Linux} // which signals there are depends on it
	return nil
}

// health is a readiness probe: docker, too, leaves an unhealthy container running.
func (p *plan) health() error {
	if p.o.HealthCmd == "" || p.o.NoHealthcheck {
		return nil
	}
	seconds := func(d time.Duration, otherwise int32) int32 {
		if d <= 0 {
			return otherwise
		}
		return int32((d + time.Second - 1) / time.Second)
	}
	probe := &corev1.Probe{
		ProbeHandler:     corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", p.o.HealthCmd}}},
		PeriodSeconds:    seconds(p.o.HealthInterval, 30),
		TimeoutSeconds:   seconds(p.o.HealthTimeout, 30),
		FailureThreshold: 3,
	}
	if p.o.HealthStart > 0 {
		probe.InitialDelaySeconds = seconds(p.o.HealthStart, 0)
	}
	if p.o.HealthRetries > 0 {
		probe.FailureThreshold = p.o.HealthRetries
	}
	p.c.ReadinessProbe = probe
	return nil
}

// oneOf finds a word in any case.
func oneOf(s string, words ...string) bool { return slices.Contains(words, strings.ToLower(s)) }
