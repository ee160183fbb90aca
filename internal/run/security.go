package run

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

// bytesOf reads docker's sizes: a number with b, k, m, g or t, binary.
func bytesOf(flag, s string) (int64, error) {
	n := strings.ToLower(strings.TrimSpace(s))
	n = strings.TrimSuffix(n, "b")
	n = strings.TrimSuffix(n, "i")
	unit := int64(1)
	for i, u := range []string{"k", "m", "g", "t"} {
		if strings.HasSuffix(n, u) {
			unit, n = 1<<(10*(i+1)), strings.TrimSuffix(n, u)
			break
		}
	}
	f, err := strconv.ParseFloat(n, 64)
	if err != nil || f <= 0 || f*float64(unit) > 1<<62 {
		return 0, fmt.Errorf("%s %q: must be a size, such as 512m or 2g", flag, s)
	}
	return int64(f * float64(unit)), nil
}

func quantity(bytes int64) resource.Quantity { return *resource.NewQuantity(bytes, resource.BinarySI) }

// resources are limits alone; the requests of what is limited are zero, or they
// would be as large.
func (p *plan) resources() error {
	limits, requests := corev1.ResourceList{}, corev1.ResourceList{}
	if m := p.o.Memory; m != "" {
		n, err := bytesOf("--memory", m)
		if err != nil {
			return err
		}
		limits[corev1.ResourceMemory], requests[corev1.ResourceMemory] = quantity(n), quantity(0)
	}
	if c := p.o.CPUs; c != "" {
		q, err := resource.ParseQuantity(c)
		if err != nil || q.Sign() <= 0 || strings.ContainsAny(c, "eEkMGTPi") {
			return fmt.Errorf("--cpus %q: must be a number, such as 1.5", c)
		}
		limits[corev1.ResourceCPU], requests[corev1.ResourceCPU] = q, *resource.NewQuantity(0, resource.DecimalSI)
	}
	if m := p.o.MemoryReservation; m != "" {
		n, err := bytesOf("--memory-reservation", m)
		if err != nil {
			return err
		}
		requests[corev1.ResourceMemory] = quantity(n)
	}
	if s := p.o.CPUShares; s > 0 {
		// 1024 shares are one CPU.
		requests[corev1.ResourceCPU] = *resource.NewMilliQuantity(max(s*1000/1024, 1), resource.DecimalSI)
	}
	if len(limits) > 0 {
		p.c.Resources.Limits = limits
	}
	if len(requests) > 0 {
		p.c.Resources.Requests = requests
	}
	return nil
}

// capability is docker's name in Kubernetes' form.
func capability(s string) corev1.Capability {
	return corev1.Capability(strings.TrimPrefix(strings.ToUpper(s), "CAP_"))
}

func (p *plan) security() error {
	sc, psc := &corev1.SecurityContext{}, &corev1.PodSecurityContext{}
	if !p.o.Privileged {
		sc.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	}
	yes, no := true, false
	if p.o.Privileged {
		sc.Privileged = &yes
	}
	if p.o.ReadOnly {
		sc.ReadOnlyRootFilesystem = &yes
	}
	if len(p.o.CapAdd)+len(p.o.CapDrop) > 0 {
		sc.Capabilities = &corev1.Capabilities{}
		for _, c := range p.o.CapAdd {
			sc.Capabilities.Add = append(sc.Capabilities.Add, capability(c))
		}
		for _, c := range p.o.CapDrop {
			sc.Capabilities.Drop = append(sc.Capabilities.Drop, capability(c))
		}
	}
	if u := p.o.User; u != "" {
		uid, gid, err := user("--user", u)
		if err != nil {
			return err
		}
		sc.RunAsUser, sc.RunAsGroup = uid, gid
	}
	for _, o := range p.o.SecurityOpts {
		name, value, given := strings.Cut(o, "=")
		if !given {
			name, value, _ = strings.Cut(o, ":")
		}
		switch {
		case name == "no-new-privileges" && oneOf(value, "", "true"):
			sc.AllowPrivilegeEscalation = &no
		case name == "no-new-privileges" && oneOf(value, "false"):
			sc.AllowPrivilegeEscalation = nil
		case name == "seccomp" && value == "unconfined":
			sc.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}
		case name == "seccomp" && oneOf(value, "builtin", "default"):
		case name == "seccomp":
			return fmt.Errorf("--security-opt %q: filters of files are those in the node's seccomp directory (securityContext.seccompProfile.localhostProfile); apply a manifest for one", o)
		case name == "apparmor" && value == "unconfined":
			sc.AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
		case name == "label" && value == "disable":
		case name == "systempaths" && value == "unconfined":
			mount := corev1.UnmaskedProcMount
			sc.ProcMount, p.pod.Spec.HostUsers = &mount, &no // pods have the one only with the other
		default:
			return fmt.Errorf("--security-opt %q: not known; no-new-privileges, seccomp=unconfined, apparmor=unconfined and systempaths=unconfined are", o)
		}
	}
	if len(p.o.Devices) > 0 && !p.o.Privileged {
		return fmt.Errorf("--device %s: a pod gets devices by resource claims, or all of them with --privileged", p.o.Devices[0])
	}
	for _, g := range p.o.GroupAdd {
		n, err := strconv.ParseInt(g, 10, 32)
		if err != nil {
			return fmt.Errorf("--group-add %q: pods know groups by number", g)
		}
		psc.SupplementalGroups = append(psc.SupplementalGroups, n)
	}
	for _, s := range p.o.Sysctls {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return fmt.Errorf("--sysctl %q: must be NAME=VALUE", s)
		}
		psc.Sysctls = append(psc.Sysctls, corev1.Sysctl{Name: k, Value: v})
	}
	if *sc != (corev1.SecurityContext{}) {
		p.c.SecurityContext = sc
	}
	if len(psc.SupplementalGroups)+len(psc.Sysctls) > 0 {
		p.pod.Spec.SecurityContext = psc
	}
	return nil
}

// user reads UID[:GID].
func user(flag, s string) (uid, gid *int64, err error) {
	number := func(s string) (*int64, error) {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%s %q: pods know users and groups by number, such as 1000:1000", flag, s)
		}
		return &n, nil
	}
	if s == "root" {
		s = "0"
	}
	u, g, grouped := strings.Cut(s, ":")
	if uid, err = number(u); err != nil {
		return nil, nil, err
	}
	if grouped {
		gid, err = number(g)
	}
	return uid, gid, err
}

// signalName is the name of a signal as a Pod has it.
func signalName(s string) (string, error) {
	n := strings.ToUpper(s)
	if i, err := strconv.Atoi(n); err == nil {
		for name, num := range signals {
			if num == i {
				return name, nil
			}
		}
		return "", errors.New("no such signal")
	}
	if !strings.HasPrefix(n, "SIG") {
		n = "SIG" + n
	}
	if _, ok := signals[n]; ok {
		return n, nil
	}
	if rest, ok := strings.CutPrefix(n, "SIGRT"); ok {
		// SIGRTMIN+3 is SIGRTMINPLUS3 there.
		n = "SIGRT" + strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(rest)
		return n, nil
	}
	return "", errors.New("no such signal")
}

// signals of Linux that may stop a container, by number.
var signals = map[string]int{
	"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGILL": 4, "SIGTRAP": 5, "SIGABRT": 6, "SIGBUS": 7, "SIGFPE": 8,
	"SIGKILL": 9, "SIGUSR1": 10, "SIGSEGV": 11, "SIGUSR2": 12, "SIGPIPE": 13, "SIGALRM": 14, "SIGTERM": 15,
	"SIGSTKFLT": 16, "SIGCHLD": 17, "SIGCONT": 18, "SIGSTOP": 19, "SIGTSTP": 20, "SIGTTIN": 21, "SIGTTOU": 22,
	"SIGURG": 23, "SIGXCPU": 24, "SIGXFSZ": 25, "SIGVTALRM": 26, "SIGPROF": 27, "SIGWINCH": 28, "SIGIO": 29,
	"SIGPWR": 30, "SIGSYS": 31,
}

// SignalNumber is the number of a signal, by name or number; 0 for one that there
// is not.
func SignalNumber(s string) int {
	n, err := signalName(s)
	if err != nil {
		return 0
	}
	return signals[n]
}

func (p *plan) namespaces() error {
	yes := true
	switch p.o.PID {
	case "", "private":
		if p.o.Init { // the pod's first process reaps, as an init would
			p.pod.Spec.ShareProcessNamespace = &yes
		}
	case "host":
		p.pod.Spec.HostPID = true
	default:
		return fmt.Errorf("--pid %q: must be host; containers that share processes are containers of one pod", p.o.PID)
	}
	switch p.o.IPC {
	case "", "private", "shareable":
	case "host":
		p.pod.Spec.HostIPC = true
	default:
		return fmt.Errorf("--ipc %q: must be host or private", p.o.IPC)
	}
	return nil
}

func (p *plan) hosts() error {
	if h := p.o.Hostname; h != "" {
		if errs := validation.IsDNS1123Label(h); len(errs) > 0 {
			return fmt.Errorf("--hostname %q: %s", h, errs[0])
		}
		p.pod.Spec.Hostname = h
	}
	for _, a := range p.o.AddHosts {
		name, ip, ok := strings.Cut(a, "=")
		if !ok {
			name, ip, ok = strings.Cut(a, ":")
		}
		ip = strings.Trim(ip, "[]")
		if ip == "host-gateway" {
			ip = p.m.Gateway
		}
		if _, err := netip.ParseAddr(ip); !ok || name == "" || err != nil {
			return fmt.Errorf("--add-host %q: must be NAME:ADDRESS", a)
		}
		p.addHost(ip, name)
	}
	if len(p.o.DNS)+len(p.o.DNSSearch)+len(p.o.DNSOptions) == 0 {
		return nil
	}
	c := &corev1.PodDNSConfig{Nameservers: p.o.DNS, Searches: p.o.DNSSearch}
	for _, s := range p.o.DNS {
		if _, err := netip.ParseAddr(s); err != nil {
			return fmt.Errorf("--dns %q: must be an address", s)
		}
	}
	for _, o := range p.o.DNSOptions {
		name, value, given := strings.Cut(o, ":")
		d := corev1.PodDNSConfigOption{Name: name}
		if given {
			d.Value = &value
		}
		c.Options = append(c.Options, d)
	}
	p.pod.Spec.DNSConfig = c
	if len(p.o.DNS) > 0 {
		p.pod.Spec.DNSPolicy = corev1.DNSNone // these servers, not those too
	}
	return nil
}

func (p *plan) addHost(ip, name string) {
	for i := range p.pod.Spec.HostAliases {
		if a := &p.pod.Spec.HostAliases[i]; a.IP == ip {
			a.Hostnames = append(a.Hostnames, name)
			return
		}
	}
	p.pod.Spec.HostAliases = append(p.pod.Spec.HostAliases, corev1.HostAlias{IP: ip, Hostnames: []string{name}})
}
