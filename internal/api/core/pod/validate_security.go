package pod

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/node/util/sysctl"

	"skiff/internal/api/resource"
)

const capSysAdmin = corev1.Capability("CAP_SYS_ADMIN")

func isWindows(spec *corev1.PodSpec) bool { return spec.OS != nil && spec.OS.Name == corev1.Windows }

// security checks a container's security context; privileged containers are
// allowed.
func (c *check) security(p *field.Path, s *corev1.SecurityContext, hostUsers bool) {
	if s == nil {
		return
	}
	if s.RunAsUser != nil {
		c.all(p.Child("runAsUser"), *s.RunAsUser, validation.IsValidUserID(*s.RunAsUser))
	}
	if s.RunAsGroup != nil {
		c.all(p.Child("runAsGroup"), *s.RunAsGroup, validation.IsValidGroupID(*s.RunAsGroup))
	}
	if m := s.ProcMount; m != nil {
		oneOf(c, p.Child("procMount"), *m, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
		if hostUsers && *m == corev1.UnmaskedProcMount {
			c.invalid(p.Child("procMount"), m, "`hostUsers` must be false to use `Unmasked`")
		}
	}
	c.seccomp(p.Child("seccompProfile"), s.SeccompProfile)
	if isFalse(s.AllowPrivilegeEscalation) {
		if isTrue(s.Privileged) {
			c.invalid(p, resource.Shown(s), "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
		}
		if s.Capabilities != nil && !c.sysAdminWithoutEscalation {
			for _, added := range s.Capabilities.Add {
				if added == capSysAdmin {
					c.invalid(p, resource.Shown(s), "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
				}
			}
		}
	}
	c.windows(p.Child("windowsOptions"), s.WindowsOptions)
	c.appArmor(p.Child("appArmorProfile"), s.AppArmorProfile)
}

// podSecurity checks the security context of the pod itself.
func (c *check) podSecurity(p *field.Path, spec *corev1.PodSpec) {
	s := spec.SecurityContext
	if s == nil {
		return
	}
	if s.FSGroup != nil {
		c.all(p.Child("fsGroup"), *s.FSGroup, validation.IsValidGroupID(*s.FSGroup))
	}
	if s.RunAsUser != nil {
		c.all(p.Child("runAsUser"), *s.RunAsUser, validation.IsValidUserID(*s.RunAsUser))
	}
	if s.RunAsGroup != nil {
		c.all(p.Child("runAsGroup"), *s.RunAsGroup, validation.IsValidGroupID(*s.RunAsGroup))
	}
	for i, g := range s.SupplementalGroups {
		c.all(p.Child("supplementalGroups").Index(i), g, validation.IsValidGroupID(g))
	}
	c.sysctls(p.Child("sysctls"), spec)
	if v := s.FSGroupChangePolicy; v != nil {
		oneOf(c, p.Child("fsGroupChangePolicy"), *v, corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)
	}
	c.seccomp(p.Child("seccompProfile"), s.SeccompProfile)
	c.windows(p.Child("windowsOptions"), s.WindowsOptions)
	c.appArmor(p.Child("appArmorProfile"), s.AppArmorProfile)
	if v := s.SupplementalGroupsPolicy; v != nil {
		oneOf(c, p.Child("supplementalGroupsPolicy"), *v, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	if v := s.SELinuxChangePolicy; v != nil {
		allowed := []corev1.PodSELinuxChangePolicy{corev1.SELinuxChangePolicyRecursive}
		if c.anySELinuxChangePolicy {
			allowed = []corev1.PodSELinuxChangePolicy{corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive}
		}
		oneOf(c, p.Child("seLinuxChangePolicy"), *v, allowed...)
	}
}

const maxSysctl = 253

var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

func (c *check) sysctls(p *field.Path, spec *corev1.PodSpec) {
	seen := map[string]bool{}
	for i, s := range spec.SecurityContext.Sysctls {
		np := p.Index(i).Child("name")
		switch {
		case s.Name == "":
			c.required(np, "")
		case len(s.Name) > maxSysctl || !sysctlName.MatchString(s.Name):
			c.invalid(np, s.Name, fmt.Sprintf("must have at most %d characters and match regex %s", maxSysctl, sysctlName))
		case seen[s.Name]:
			c.duplicate(np, s.Name)
		}
		if detail := hostSysctl(s.Name, spec); detail != "" && !c.hostSysctls {
			c.invalid(np, s.Name, detail)
		}
		seen[s.Name] = true
	}
}

// hostSysctl says why a pod may not set a sysctl of a namespace that it shares
// with the host.
func hostSysctl(name string, spec *corev1.PodSpec) string {
	switch ns, _, _ := sysctl.GetNamespace(name); {
	case spec.HostNetwork && ns == sysctl.NetNamespace:
		return "may not be specified when 'hostNetwork' is true"
	case spec.HostIPC && ns == sysctl.IPCNamespace:
		return "may not be specified when 'hostIPC' is true"
	}
	return ""
}

func (c *check) seccomp(p *field.Path, s *corev1.SeccompProfile) {
	if s == nil {
		return
	}
	if s.Type == "" {
		c.required(p.Child("type"), "type is required when seccompProfile is set")
	} else {
		oneOf(c, p.Child("type"), s.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	}
	lp := p.Child("localhostProfile")
	switch local := s.Type == corev1.SeccompProfileTypeLocalhost; {
	case local && s.LocalhostProfile == nil:
		c.required(lp, "must be set when seccomp type is Localhost")
	case local:
		c.descendingPath(lp, *s.LocalhostProfile)
	case s.LocalhostProfile != nil:
		c.invalid(lp, resource.Shown(s), "can only be set when seccomp type is Localhost")
	}
}

func (c *check) appArmor(p *field.Path, a *corev1.AppArmorProfile) {
	if a == nil {
		return
	}
	const longest = 4095 // of a path
	lp := p.Child("localhostProfile")
	switch a.Type {
	case corev1.AppArmorProfileTypeLocalhost:
		if a.LocalhostProfile == nil || *a.LocalhostProfile == "" {
			c.required(lp, "must be set when AppArmor type is Localhost")
			return
		}
		name := *a.LocalhostProfile
		if name != strings.TrimSpace(name) {
			c.invalid(lp, name, "must not be padded with whitespace")
		}
		if len(name) > longest {
			c.tooLong(lp, "", longest)
		}
	case corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined:
		if a.LocalhostProfile != nil {
			c.invalid(lp, a.LocalhostProfile, "can only be set when AppArmor type is Localhost")
		}
	case "":
		c.required(p.Child("type"), "type is required when appArmorProfile is set")
	default:
		oneOf(c, p.Child("type"), a.Type, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
	}
}

// os checks that what the pod sets exists on its operating system.
func (c *check) os(p *field.Path, spec *corev1.PodSpec) {
	if spec.OS == nil {
		return
	}
	op := p.Child("os")
	switch spec.OS.Name {
	case "":
		c.required(op.Child("name"), "")
	case corev1.Linux:
		c.notOn(p, spec, "windows options cannot be set for a linux pod", linuxLacks, nil, linuxLacksInContainer)
	case corev1.Windows:
		c.notOn(p, spec, "cannot be set for a windows pod", windowsLacks, windowsLacksInSpec, windowsLacksInContainer)
	default:
		oneOf(c, op, spec.OS.Name, corev1.Linux, corev1.Windows)
	}
}

// fieldSet names a field and tells whether it is set.
type fieldSet struct {
	name string
	set  bool
}

func (c *check) notOn(p *field.Path, spec *corev1.PodSpec, detail string,
	pod func(*corev1.PodSecurityContext) []fieldSet, whole func(*corev1.PodSpec) []fieldSet, ctr func(*corev1.SecurityContext) []fieldSet) {
	refuse := func(p *field.Path, fields []fieldSet) {
		for _, f := range fields {
			if f.set {
				c.forbidden(p.Child(f.name), detail)
			}
		}
	}
	if spec.SecurityContext != nil {
		refuse(p.Child("securityContext"), pod(spec.SecurityContext))
	}
	if whole != nil {
		refuse(p, whole(spec))
	}
	for one, cp := range containers(spec, p) {
		if one.SecurityContext != nil {
			refuse(cp.Child("securityContext"), ctr(one.SecurityContext))
		}
	}
}

func linuxLacks(s *corev1.PodSecurityContext) []fieldSet {
	return []fieldSet{{"windowsOptions", s.WindowsOptions != nil}}
}

func linuxLacksInContainer(s *corev1.SecurityContext) []fieldSet {
	return []fieldSet{{"windowsOptions", s.WindowsOptions != nil}}
}

func windowsLacks(s *corev1.PodSecurityContext) []fieldSet {
	return []fieldSet{
		{"appArmorProfile", s.AppArmorProfile != nil}, {"seLinuxOptions", s.SELinuxOptions != nil},
		{"seccompProfile", s.SeccompProfile != nil}, {"fsGroup", s.FSGroup != nil},
		{"fsGroupChangePolicy", s.FSGroupChangePolicy != nil}, {"sysctls", len(s.Sysctls) > 0},
		{"runAsUser", s.RunAsUser != nil}, {"runAsGroup", s.RunAsGroup != nil},
		{"supplementalGroups", s.SupplementalGroups != nil},
		{"supplementalGroupsPolicy", s.SupplementalGroupsPolicy != nil},
		{"seLinuxChangePolicy", s.SELinuxChangePolicy != nil},
	}
}

func windowsLacksInSpec(s *corev1.PodSpec) []fieldSet {
	return []fieldSet{{"hostUsers", s.HostUsers != nil}, {"hostPID", s.HostPID}, {"hostIPC", s.HostIPC},
		{"shareProcessNamespace", s.ShareProcessNamespace != nil}}
}

func windowsLacksInContainer(s *corev1.SecurityContext) []fieldSet {
	return []fieldSet{
		{"appArmorProfile", s.AppArmorProfile != nil}, {"seLinuxOptions", s.SELinuxOptions != nil},
		{"seccompProfile", s.SeccompProfile != nil}, {"capabilities", s.Capabilities != nil},
		{"readOnlyRootFilesystem", s.ReadOnlyRootFilesystem != nil}, {"privileged", s.Privileged != nil},
		{"allowPrivilegeEscalation", s.AllowPrivilegeEscalation != nil}, {"procMount", s.ProcMount != nil},
		{"runAsUser", s.RunAsUser != nil}, {"runAsGroup", s.RunAsGroup != nil},
	}
}

// The rules of names of Windows users.
var (
	controlChars   = regexp.MustCompile(`[[:cntrl:]]+`)
	netBIOSDomain  = regexp.MustCompile(`^[^\\/:\*\?"<>|\.][^\\/:\*\?"<>|]{0,14}$`)
	dnsDomain      = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
	badUserChars   = regexp.MustCompile(`["/\\:;|=,\+\*\?<>@\[\]]`)
	dotsAndSpaces  = regexp.MustCompile(`^[\. ]+$`)
	maxUserDomain  = 256
	maxUser        = 104
	maxGMSASpecKiB = 64
)

func (c *check) windows(p *field.Path, w *corev1.WindowsSecurityContextOptions) {
	if w == nil {
		return
	}
	if n := w.GMSACredentialSpecName; n != nil {
		c.all(p.Child("gmsaCredentialSpecName"), n, validation.IsDNS1123Subdomain(*n))
	}
	if s := w.GMSACredentialSpec; s != nil {
		if *s == "" {
			c.invalid(p.Child("gmsaCredentialSpec"), s, "gmsaCredentialSpec cannot be an empty string")
		} else if len(*s) > maxGMSASpecKiB*1024 {
			c.invalid(p.Child("gmsaCredentialSpec"), s, fmt.Sprintf("gmsaCredentialSpec size must be under %d KiB", maxGMSASpecKiB))
		}
	}
	if w.RunAsUserName == nil {
		return
	}
	name := *w.RunAsUserName
	bad := func(detail string) { c.invalid(p.Child("runAsUserName"), w.RunAsUserName, "runAsUserName"+detail) }
	switch {
	case name == "":
		bad(" cannot be an empty string")
		return
	case controlChars.MatchString(name):
		bad(" cannot contain control characters")
		return
	case strings.Count(name, `\`) > 1:
		bad(" cannot contain more than one backslash")
		return
	}
	domain, user, found := strings.Cut(name, `\`)
	if !found {
		domain, user = "", name
	}
	if len(domain) >= maxUserDomain {
		bad(fmt.Sprintf("'s Domain length must be under %d characters", maxUserDomain))
	}
	if found && !netBIOSDomain.MatchString(domain) && !dnsDomain.MatchString(domain) {
		bad("'s Domain doesn't match the NetBios nor the DNS format")
	}
	if user == "" {
		bad("'s User cannot be empty")
	} else if len(user) > maxUser {
		bad(fmt.Sprintf("'s User length must not be longer than %d characters", maxUser))
	}
	if dotsAndSpaces.MatchString(user) {
		bad("'s User cannot contain only periods or spaces")
	}
	if badUserChars.MatchString(user) {
		bad(`'s User cannot contain the following characters: "/\:;|=,+*?<>@[]`)
	}
}

// hostProcess: either every container is a Windows host process, or none.
func (c *check) hostProcess(p *field.Path, spec *corev1.PodSpec) {
	var pod *bool
	if s := spec.SecurityContext; s != nil && s.WindowsOptions != nil {
		pod = s.WindowsOptions.HostProcess
	}
	total, host := 0, 0
	for ctr, cp := range containers(spec, p) {
		total++
		own := pod
		if s := ctr.SecurityContext; s != nil && s.WindowsOptions != nil && s.WindowsOptions.HostProcess != nil {
			own = s.WindowsOptions.HostProcess
			if pod != nil && *pod != *own {
				c.invalid(cp.Child("securityContext", "windowsOptions", "hostProcess"), *own,
					fmt.Sprintf("pod hostProcess value must be identical if both are specified, was %v", *pod))
			}
		}
		if isTrue(own) {
			host++
		}
	}
	if host == 0 {
		return
	}
	if host != total {
		c.invalid(p, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers")
	}
	if !spec.HostNetwork {
		c.invalid(p.Child("hostNetwork"), false, "hostNetwork must be true if pod contains any hostProcess containers")
	}
}

func seLinuxChangePolicyUsed(spec *corev1.PodSpec) bool {
	return spec.SecurityContext != nil && spec.SecurityContext.SELinuxChangePolicy != nil
}

func restartRulesUsed(spec *corev1.PodSpec) bool {
	return slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool {
		return c.RestartPolicy != nil && !isSidecar(&c) || len(c.RestartPolicyRules) > 0
	}) || slices.ContainsFunc(spec.Containers, func(c corev1.Container) bool { return c.RestartPolicy != nil })
}

func restartAllUsed(spec *corev1.PodSpec) bool {
	all := func(c corev1.Container) bool {
		return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
			return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
		})
	}
	return slices.ContainsFunc(spec.Containers, all) || slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool {
		return all(c) || isSidecar(&c) && len(c.RestartPolicyRules) > 0
	})
}
