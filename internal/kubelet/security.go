package kubelet

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var maskedPaths = []string{
	"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
	"/sys/devices/virtual/powercap",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// effectiveSecurity is a container's security context with what it takes from its
// pod.
func effectiveSecurity(pod *corev1.Pod, c *corev1.Container) *corev1.SecurityContext {
	s := &corev1.SecurityContext{}
	if c.SecurityContext != nil {
		s = c.SecurityContext.DeepCopy()
	}
	p := pod.Spec.SecurityContext
	if p == nil {
		return s
	}
	if s.RunAsUser == nil {
		s.RunAsUser = p.RunAsUser
	}
	if s.RunAsGroup == nil {
		s.RunAsGroup = p.RunAsGroup
	}
	if s.RunAsNonRoot == nil {
		s.RunAsNonRoot = p.RunAsNonRoot
	}
	if s.SELinuxOptions == nil {
		s.SELinuxOptions = p.SELinuxOptions
	}
	if s.SeccompProfile == nil {
		s.SeccompProfile = p.SeccompProfile
	}
	if s.AppArmorProfile == nil {
		s.AppArmorProfile = p.AppArmorProfile
	}
	return s
}

// verifyNonRoot refuses a container that must not run as root and would, or might.
// uid and user are what its image says.
func verifyNonRoot(pod *corev1.Pod, c *corev1.Container, uid *int64, user string) error {
	s := effectiveSecurity(pod, c)
	if s.RunAsNonRoot == nil || !*s.RunAsNonRoot {
		return nil
	}
	where := fmt.Sprintf("(pod: %q, container: %s)", podNameFull(pod), c.Name)
	switch {
	case s.RunAsUser != nil && *s.RunAsUser == 0:
		return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
	case s.RunAsUser != nil:
		return nil
	case uid == nil && user != "":
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", user, where)
	case uid == nil:
		return nil
	case *uid == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	}
	if errs := validation.IsValidUserID(*uid); len(errs) > 0 {
		return fmt.Errorf("container has runAsNonRoot and image has an invalid user id (%d). (Must be 1-(%d)): %s %s", *uid, 1<<31-1, strings.Join(errs, "; "), where)
	}
	return nil
}

// imageUser is the user that an image says it runs as.
func (k *Kubelet) imageUser(ctx context.Context, image string) (*int64, string, error) {
	resp, err := k.d.Images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: image}, false)
	if err != nil {
		return nil, "", err
	}
	if resp.GetImage() != nil {
		if u := resp.Image.Uid; u != nil {
			return &u.Value, "", nil
		}
		if resp.Image.Username != "" {
			return nil, resp.Image.Username, nil
		}
	}
	zero := int64(0)
	return &zero, "", nil
}

func namespaces(pod *corev1.Pod, users *runtimeapi.UserNamespace) *runtimeapi.NamespaceOption {
	n := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: users}
	if pod.Spec.HostNetwork {
		n.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		n.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case pod.Spec.HostPID:
		n.Pid = runtimeapi.NamespaceMode_NODE
	case pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace:
		n.Pid = runtimeapi.NamespaceMode_POD
	}
	return n
}

func int64Value(v *int64) *runtimeapi.Int64Value {
	if v == nil {
		return nil
	}
	return &runtimeapi.Int64Value{Value: *v}
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func privilegedPod(pod *corev1.Pod) bool {
	is := func(s *corev1.SecurityContext) bool { return s != nil && s.Privileged != nil && *s.Privileged }
	for i := range pod.Spec.InitContainers {
		if is(pod.Spec.InitContainers[i].SecurityContext) {
			return true
		}
	}
	for i := range pod.Spec.Containers {
		if is(pod.Spec.Containers[i].SecurityContext) {
			return true
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if is(pod.Spec.EphemeralContainers[i].SecurityContext) {
			return true
		}
	}
	return false
}

func groupsPolicy(p *corev1.PodSecurityContext) runtimeapi.SupplementalGroupsPolicy {
	if p.SupplementalGroupsPolicy == nil {
		return 0
	}
	return runtimeapi.SupplementalGroupsPolicy(runtimeapi.SupplementalGroupsPolicy_value[string(*p.SupplementalGroupsPolicy)])
}

// sandboxSecurity fills in a sandbox's security context and sysctls.
func sandboxSecurity(pod *corev1.Pod, users *runtimeapi.UserNamespace, l *runtimeapi.LinuxPodSandboxConfig) {
	s := &runtimeapi.LinuxSandboxSecurityContext{
		Privileged:       privilegedPod(pod),
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		NamespaceOptions: namespaces(pod, users),
	}
	l.SecurityContext = s
	p := pod.Spec.SecurityContext
	if p == nil {
		return
	}
	s.RunAsUser, s.RunAsGroup = int64Value(p.RunAsUser), int64Value(p.RunAsGroup)
	if p.FSGroup != nil {
		s.SupplementalGroups = append(s.SupplementalGroups, *p.FSGroup)
	}
	s.SupplementalGroups = append(s.SupplementalGroups, p.SupplementalGroups...)
	s.SupplementalGroupsPolicy = groupsPolicy(p)
	s.SelinuxOptions = selinux(p.SELinuxOptions)
	for _, c := range p.Sysctls {
		if l.Sysctls == nil {
			l.Sysctls = map[string]string{}
		}
		l.Sysctls[c.Name] = c.Value
	}
}

// containerSecurity is the CRI form of a container's security context.
func containerSecurity(pod *corev1.Pod, users *runtimeapi.UserNamespace, c *corev1.Container, uid *int64, user string) (*runtimeapi.LinuxContainerSecurityContext, error) {
	e := effectiveSecurity(pod, c)
	s := &runtimeapi.LinuxContainerSecurityContext{
		RunAsUser: int64Value(e.RunAsUser), RunAsGroup: int64Value(e.RunAsGroup),
		Privileged:       e.Privileged != nil && *e.Privileged,
		ReadonlyRootfs:   e.ReadOnlyRootFilesystem != nil && *e.ReadOnlyRootFilesystem,
		NoNewPrivs:       e.AllowPrivilegeEscalation != nil && !*e.AllowPrivilegeEscalation,
		SelinuxOptions:   selinux(e.SELinuxOptions),
		NamespaceOptions: namespaces(pod, users),
		MaskedPaths:      maskedPaths, ReadonlyPaths: readonlyPaths,
	}
	if e.ProcMount != nil && *e.ProcMount == corev1.UnmaskedProcMount {
		s.MaskedPaths, s.ReadonlyPaths = []string{}, []string{}
	}
	if s.RunAsUser == nil {
		s.RunAsUser = int64Value(uid)
		s.RunAsUsername = user
	}
	if caps := e.Capabilities; caps != nil {
		s.Capabilities = &runtimeapi.Capability{}
		for _, v := range caps.Add {
			s.Capabilities.AddCapabilities = append(s.Capabilities.AddCapabilities, string(v))
		}
		for _, v := range caps.Drop {
			s.Capabilities.DropCapabilities = append(s.Capabilities.DropCapabilities, string(v))
		}
	}
	var err error
	if s.Seccomp, err = seccomp(e.SeccompProfile); err != nil {
		return nil, err
	}
	s.Apparmor = apparmor(e.AppArmorProfile)
	if p := pod.Spec.SecurityContext; p != nil {
		if p.FSGroup != nil {
			s.SupplementalGroups = append(s.SupplementalGroups, *p.FSGroup)
		}
		s.SupplementalGroups = append(s.SupplementalGroups, p.SupplementalGroups...)
		s.SupplementalGroupsPolicy = groupsPolicy(p)
	}
	return s, nil
}

func seccomp(p *corev1.SeccompProfile) (*runtimeapi.SecurityProfile, error) {
	if p == nil {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	}
	switch p.Type {
	case corev1.SeccompProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case corev1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile == nil || *p.LocalhostProfile == "" {
			return nil, fmt.Errorf("localhostProfile must be set if seccompProfile type is Localhost.")
		}
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost,
			LocalhostRef: "/var/lib/kubelet/seccomp/" + *p.LocalhostProfile}, nil
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
}

func apparmor(p *corev1.AppArmorProfile) *runtimeapi.SecurityProfile {
	if p == nil {
		return nil
	}
	switch p.Type {
	case corev1.AppArmorProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	case corev1.AppArmorProfileTypeLocalhost:
		if p.LocalhostProfile != nil {
			return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}
		}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
}
