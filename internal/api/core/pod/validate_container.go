package pod

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func (c *check) regularContainers(p *field.Path, s scope) {
	if len(s.spec.Containers) == 0 {
		c.required(p, "")
		return
	}
	names := map[string]bool{}
	for i := range s.spec.Containers {
		ctr, cp := &s.spec.Containers[i], p.Index(i)
		c.container(cp, ctr, s)
		if names[ctr.Name] {
			c.duplicate(cp.Child("name"), ctr.Name)
		}
		names[ctr.Name] = true
		c.lifecycle(cp.Child("lifecycle"), ctr.Lifecycle, s.spec)
		c.probes(cp, ctr, s.spec)
		if c.restartRules {
			c.containerRestart(cp, ctr)
		} else if ctr.RestartPolicy != nil {
			c.forbidden(cp.Child("restartPolicy"), "may not be set for non-init containers")
		}
	}
	c.hostPortsUnique(p, s.spec.Containers)
}

func (c *check) initContainers(p *field.Path, s scope) {
	names := map[string]bool{}
	for _, ctr := range s.spec.Containers {
		names[ctr.Name] = true
	}
	for i := range s.spec.InitContainers {
		ctr, cp := &s.spec.InitContainers[i], p.Index(i)
		c.container(cp, ctr, s)
		c.initRestart(cp, ctr)
		if names[ctr.Name] {
			c.duplicate(cp.Child("name"), ctr.Name)
		} else if ctr.Name != "" {
			names[ctr.Name] = true
		}
		// Init containers run one after the other: ports clash only within one.
		// The path is that of a list of its own.
		c.hostPortsUnique(p, s.spec.InitContainers[i:i+1])
		if isSidecar(ctr) {
			c.lifecycle(cp.Child("lifecycle"), ctr.Lifecycle, s.spec)
			c.probes(cp, ctr, s.spec)
		} else {
			for _, f := range []struct {
				name string
				set  bool
			}{{"lifecycle", ctr.Lifecycle != nil}, {"livenessProbe", ctr.LivenessProbe != nil},
				{"readinessProbe", ctr.ReadinessProbe != nil}, {"startupProbe", ctr.StartupProbe != nil}} {
				if f.set {
					c.forbidden(cp.Child(f.name), "may not be set for init containers without restartPolicy=Always")
				}
			}
		}
		if !c.sidecarResizePolicy && len(ctr.ResizePolicy) > 0 {
			c.invalid(cp.Child("resizePolicy"), resource.Shown(ctr.ResizePolicy), "must not be set for init containers")
		}
		if isSidecar(ctr) || c.restartingInitContainer {
			continue
		}
		for j, r := range ctr.ResizePolicy {
			if r.RestartPolicy == corev1.RestartContainer {
				c.invalid(cp.Child("resizePolicy").Index(j).Child("restartPolicy"), r.RestartPolicy,
					"must not be set to 'RestartContainer' for non-sidecar initContainers")
			}
		}
	}
}

// ephemeralFields are the fields that an ephemeral container may set.
var ephemeralFields = []string{"Name", "Image", "Command", "Args", "WorkingDir", "EnvFrom", "Env", "VolumeMounts",
	"VolumeDevices", "TerminationMessagePath", "TerminationMessagePolicy", "ImagePullPolicy", "SecurityContext",
	"Stdin", "StdinOnce", "TTY"}

func (c *check) ephemeralContainers(p *field.Path, s scope) {
	const detail = "cannot be set for an Ephemeral Container"
	targets, names := map[string]bool{}, map[string]bool{}
	for _, list := range [][]corev1.Container{s.spec.Containers, s.spec.InitContainers} {
		for _, ctr := range list {
			targets[ctr.Name], names[ctr.Name] = true, true
		}
	}
	for i := range s.spec.EphemeralContainers {
		e, cp := &s.spec.EphemeralContainers[i], p.Index(i)
		c.container(cp, asContainer(e), s)
		c.trimmedImage(cp, e.Image)
		if names[e.Name] {
			c.duplicate(cp.Child("name"), e.Name)
		}
		names[e.Name] = true
		if e.TargetContainerName != "" && !targets[e.TargetContainerName] {
			c.notFound(cp.Child("targetContainerName"), e.TargetContainerName)
		}
		c.onlyFields(cp, e.EphemeralContainerCommon, detail, ephemeralFields...)
		for j, m := range e.VolumeMounts {
			mp := cp.Child("volumeMounts").Index(j)
			if m.SubPath != "" {
				c.forbidden(mp.Child("subPath"), detail)
			}
			if m.SubPathExpr != "" {
				c.forbidden(mp.Child("subPathExpr"), detail)
			}
		}
	}
}

// container checks what every kind of container has.
func (c *check) container(p *field.Path, ctr *corev1.Container, s scope) {
	if c.filled(p.Child("name"), ctr.Name) {
		c.label(p.Child("name"), ctr.Name)
	}
	c.filled(p.Child("image"), ctr.Image)
	oneOfRequired(c, p.Child("terminationMessagePolicy"), ctr.TerminationMessagePolicy,
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	c.ports(p.Child("ports"), ctr.Ports)
	c.env(p.Child("env"), ctr.Env)
	c.envFrom(p.Child("envFrom"), ctr.EnvFrom)
	c.mounts(p.Child("volumeMounts"), ctr, s)
	c.devices(p.Child("volumeDevices"), ctr, s)
	c.pullPolicy(p.Child("imagePullPolicy"), ctr.ImagePullPolicy)
	c.requirements(p.Child("resources"), &ctr.Resources, s.claims, c.containerResource)
	c.resizePolicy(p.Child("resizePolicy"), ctr.ResizePolicy, s.spec.RestartPolicy)
	c.security(p.Child("securityContext"), ctr.SecurityContext, s.hostUsers())
}

func (c *check) trimmedImage(p *field.Path, image string) {
	if image != strings.TrimSpace(image) {
		c.invalid(p.Child("image"), image, "must not have leading or trailing whitespace")
	}
}

func (c *check) pullPolicy(p *field.Path, v corev1.PullPolicy) {
	oneOfRequired(c, p, v, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
}

func (c *check) ports(p *field.Path, ports []corev1.ContainerPort) {
	names := map[string]bool{}
	for i, port := range ports {
		pp := p.Index(i)
		if port.Name != "" {
			if msgs := validation.IsValidPortName(port.Name); len(msgs) > 0 {
				c.all(pp.Child("name"), port.Name, msgs)
			} else if names[port.Name] {
				c.duplicate(pp.Child("name"), port.Name)
			} else {
				names[port.Name] = true
			}
		}
		if port.ContainerPort == 0 {
			c.required(pp.Child("containerPort"), "")
		} else {
			c.all(pp.Child("containerPort"), port.ContainerPort, validation.IsValidPortNum(int(port.ContainerPort)))
		}
		if port.HostPort != 0 {
			c.all(pp.Child("hostPort"), port.HostPort, validation.IsValidPortNum(int(port.HostPort)))
		}
		oneOfRequired(c, pp.Child("protocol"), port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
	}
}

func (c *check) hostPortsUnique(p *field.Path, ctrs []corev1.Container) {
	seen := map[string]bool{}
	for i, ctr := range ctrs {
		for j, port := range ctr.Ports {
			if port.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if seen[key] {
				c.duplicate(p.Index(i).Child("ports").Index(j).Child("hostPort"), key)
			}
			seen[key] = true
		}
	}
}

func (c *check) resizePolicy(p *field.Path, list []corev1.ContainerResizePolicy, podRestart corev1.RestartPolicy) {
	seen := map[corev1.ResourceName]bool{}
	for i, r := range list {
		if seen[r.ResourceName] {
			c.duplicate(p.Index(i), r.ResourceName)
		}
		seen[r.ResourceName] = true
		oneOfRequired(c, p, r.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)
		oneOfRequired(c, p, r.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)
		if podRestart == corev1.RestartPolicyNever && r.RestartPolicy != corev1.NotRequired {
			c.invalid(p, r.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'")
		}
	}
}

func (c *check) initRestart(p *field.Path, ctr *corev1.Container) {
	switch {
	case ctr.RestartPolicy == nil:
		if len(ctr.RestartPolicyRules) > 0 {
			c.required(p.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
		}
	case !c.restartRules:
		oneOf(c, p.Child("restartPolicy"), *ctr.RestartPolicy, corev1.ContainerRestartPolicyAlways)
	case isSidecar(ctr) && !c.restartAll:
		if len(ctr.RestartPolicyRules) > 0 {
			c.forbidden(p.Child("restartPolicyRules"), "restartPolicyRules are not allowed for init containers with restart policy Always")
		}
	default:
		c.containerRestart(p, ctr)
	}
}

func (c *check) containerRestart(p *field.Path, ctr *corev1.Container) {
	const maxRules, maxCodes = 20, 255
	if ctr.RestartPolicy != nil {
		oneOf(c, p.Child("restartPolicy"), *ctr.RestartPolicy,
			corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)
	} else if len(ctr.RestartPolicyRules) > 0 {
		c.required(p.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
	}
	rules := p.Child("restartPolicyRules")
	if n := len(ctr.RestartPolicyRules); n > maxRules {
		c.add(field.TooMany(rules, n, maxRules))
	}
	actions := []corev1.ContainerRestartRuleAction{corev1.ContainerRestartRuleActionRestart}
	if c.restartAll {
		actions = append(actions, corev1.ContainerRestartRuleActionRestartAllContainers)
	}
	for i, r := range ctr.RestartPolicyRules {
		oneOf(c, rules.Index(i).Child("action"), r.Action, actions...)
		codes := rules.Index(i).Child("exitCodes")
		if r.ExitCodes == nil {
			c.required(codes, "must be specified")
			continue
		}
		oneOf(c, codes.Child("operator"), r.ExitCodes.Operator, corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)
		if n := len(r.ExitCodes.Values); n > maxCodes {
			c.add(field.TooMany(codes.Child("values"), n, maxCodes))
		}
	}
}

func (c *check) probes(p *field.Path, ctr *corev1.Container, spec *corev1.PodSpec) {
	once := func(p *field.Path, probe *corev1.Probe) {
		if probe == nil {
			return
		}
		c.probe(p, probe, spec)
		if probe.SuccessThreshold != 1 {
			c.invalid(p.Child("successThreshold"), probe.SuccessThreshold, "must be 1")
		}
	}
	once(p.Child("livenessProbe"), ctr.LivenessProbe)
	if r := ctr.ReadinessProbe; r != nil {
		rp := p.Child("readinessProbe")
		c.probe(rp, r, spec)
		if s := r.TerminationGracePeriodSeconds; s != nil {
			c.invalid(rp.Child("terminationGracePeriodSeconds"), s, "must not be set for readinessProbes")
		}
	}
	once(p.Child("startupProbe"), ctr.StartupProbe)
}

func (c *check) probe(p *field.Path, probe *corev1.Probe, spec *corev1.PodSpec) {
	c.handler(p, handler{probe.Exec, probe.HTTPGet, probe.TCPSocket, probe.GRPC, nil}, spec)
	c.nonNegative(p.Child("initialDelaySeconds"), int64(probe.InitialDelaySeconds))
	c.nonNegative(p.Child("timeoutSeconds"), int64(probe.TimeoutSeconds))
	c.nonNegative(p.Child("periodSeconds"), int64(probe.PeriodSeconds))
	c.nonNegative(p.Child("successThreshold"), int64(probe.SuccessThreshold))
	c.nonNegative(p.Child("failureThreshold"), int64(probe.FailureThreshold))
	if s := probe.TerminationGracePeriodSeconds; s != nil && *s <= 0 {
		c.invalid(p.Child("terminationGracePeriodSeconds"), *s, "must be greater than 0")
	}
}

func (c *check) lifecycle(p *field.Path, l *corev1.Lifecycle, spec *corev1.PodSpec) {
	if l == nil {
		return
	}
	hook := func(p *field.Path, h *corev1.LifecycleHandler) {
		if h != nil {
			c.handler(p, handler{h.Exec, h.HTTPGet, h.TCPSocket, nil, h.Sleep}, spec)
		}
	}
	hook(p.Child("postStart"), l.PostStart)
	hook(p.Child("preStop"), l.PreStop)
	if s := l.StopSignal; s != nil {
		sp := p.Child("stopSignal")
		switch {
		case spec.OS == nil:
			c.forbidden(sp, "may not be set for containers with empty `spec.os.name`")
		case spec.OS.Name == corev1.Windows:
			oneOf(c, sp, *s, corev1.SIGKILL, corev1.SIGTERM)
		case spec.OS.Name == corev1.Linux:
			oneOf(c, sp, *s, linuxSignals...)
		}
	}
}

// linuxSignals are the signals a Linux container may be stopped with, sorted.
var linuxSignals = func() []corev1.Signal {
	names := strings.Fields("ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT " +
		"STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX")
	for i := 1; i <= 15; i++ {
		names = append(names, fmt.Sprintf("RTMIN+%d", i))
	}
	for i := 1; i <= 14; i++ {
		names = append(names, fmt.Sprintf("RTMAX-%d", i))
	}
	var out []corev1.Signal
	for _, n := range names {
		out = append(out, corev1.Signal("SIG"+n))
	}
	slices.Sort(out)
	return out
}()

// handler is what a probe or a hook does: one of its fields.
type handler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func (c *check) handler(p *field.Path, h handler, spec *corev1.PodSpec) {
	n := 0
	// first tells whether the handler set is to be checked: every one after the
	// first is refused.
	first := func(p *field.Path, set bool) bool {
		if !set {
			return false
		}
		if n++; n > 1 {
			c.forbidden(p, "may not specify more than 1 handler type")
		}
		return n == 1
	}
	if hp := p.Child("exec"); first(hp, h.exec != nil) && len(h.exec.Command) == 0 {
		c.required(hp.Child("command"), "")
	}
	if hp := p.Child("httpGet"); first(hp, h.http != nil) {
		c.httpGet(hp, h.http)
	}
	if hp := p.Child("tcpSocket"); first(hp, h.tcp != nil) {
		c.port(hp.Child("port"), h.tcp.Port)
	}
	if hp := p.Child("grpc"); first(hp, h.grpc != nil) {
		c.port(hp.Child("port"), intstr.FromInt32(h.grpc.Port))
		if h.grpc.Mode != nil {
			oneOf(c, hp.Child("mode"), *h.grpc.Mode, corev1.GRPCProbeModePlaintext, corev1.GRPCProbeModeTLS)
		}
	}
	if hp := p.Child("sleep"); first(hp, h.sleep != nil) {
		if grace := spec.TerminationGracePeriodSeconds; grace != nil && (h.sleep.Seconds < 0 || h.sleep.Seconds > *grace) {
			c.invalid(hp, h.sleep.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", *grace))
		}
	}
	if n == 0 {
		c.required(p, "must specify a handler type")
	}
}

func (c *check) httpGet(p *field.Path, h *corev1.HTTPGetAction) {
	c.filled(p.Child("path"), h.Path)
	c.port(p.Child("port"), h.Port)
	oneOf(c, p.Child("scheme"), h.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
	for _, header := range h.HTTPHeaders {
		c.all(p.Child("httpHeaders"), header.Name, validation.IsHTTPHeaderName(header.Name))
	}
	if h.Protocol == nil || !oneOf(c, p.Child("protocol"), *h.Protocol, corev1.HTTPProtocolHTTP1, corev1.HTTPProtocolHTTP2) {
		return
	}
	if *h.Protocol == corev1.HTTPProtocolHTTP2 {
		if h.Scheme != corev1.URISchemeHTTP {
			c.invalid(p.Child("protocol"), *h.Protocol, "is only supported with HTTP (H2C)")
		} else if h.Host != "" {
			c.invalid(p.Child("host"), h.Host, "must be empty when `protocol` is \"HTTP2\"")
		}
	}
}

// port checks a port given by number or by the name of a container's port.
func (c *check) port(p *field.Path, port intstr.IntOrString) {
	if port.Type == intstr.String {
		c.all(p, port.StrVal, validation.IsValidPortName(port.StrVal))
	} else {
		c.all(p, port.IntValue(), validation.IsValidPortNum(port.IntValue()))
	}
}
