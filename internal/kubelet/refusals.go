package kubelet

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/node/util/sysctl"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"skiff/internal/client"
)

// safeSysctls are those that concern one pod alone: every pod may set them. The
// kernels that skiff runs on have each of them by namespace.
var safeSysctls = map[string]bool{
	"kernel.shm_rmid_forced":              true,
	"net.ipv4.ip_local_port_range":        true,
	"net.ipv4.tcp_syncookies":             true,
	"net.ipv4.ping_group_range":           true,
	"net.ipv4.ip_unprivileged_port_start": true,
	"net.ipv4.ip_local_reserved_ports":    true,
	"net.ipv4.tcp_keepalive_time":         true,
	"net.ipv4.tcp_fin_timeout":            true,
	"net.ipv4.tcp_keepalive_intvl":        true,
	"net.ipv4.tcp_keepalive_probes":       true,
	"net.ipv4.tcp_rmem":                   true,
	"net.ipv4.tcp_wmem":                   true,
	"net.ipv4.tcp_slow_start_after_idle":  true,
	"net.ipv4.tcp_notsent_lowat":          true,
}

// forbiddenSysctl refuses a pod that sets what would reach beyond it, unless unsafe,
// names or prefixes that end in *, allows it.
func forbiddenSysctl(pod *corev1.Pod, unsafe []string) *verdict {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := sysctl.NormalizeName(s.Name)
		why := ""
		switch ns, _, _ := sysctl.GetNamespace(name); {
		case !safeSysctls[name] && !allows(unsafe, name):
			why = fmt.Sprintf("%q not allowlisted", name)
		case ns == sysctl.IPCNamespace && pod.Spec.HostIPC,
			ns == sysctl.NetNamespace && pod.Spec.HostNetwork,
			ns == sysctl.UserNamespace && (pod.Spec.HostUsers == nil || *pod.Spec.HostUsers):
			why = fmt.Sprintf("%q not allowed with host %s enabled", name, ns)
		}
		if why != "" {
			return &verdict{reason: "SysctlForbidden", message: "forbidden sysctl: " + why, rejected: true}
		}
	}
	return nil
}

func allows(patterns []string, name string) bool {
	for _, p := range patterns {
		if prefix, ok := strings.CutSuffix(sysctl.NormalizeName(p), "*"); ok && strings.HasPrefix(name, prefix) || p == name {
			return true
		}
	}
	return false
}

// otherOS refuses a pod of another operating system.
func otherOS(pod *corev1.Pod) *verdict {
	if os, ok := pod.Labels[corev1.LabelOSStable]; ok && os != "linux" {
		return &verdict{reason: "PodOSSelectorNodeLabelDoesNotMatch", message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label", rejected: true}
	}
	if pod.Spec.OS != nil && pod.Spec.OS.Name != corev1.Linux {
		return &verdict{reason: "PodOSNotSupported", message: "Failed to admit pod as the OS field doesn't match node OS", rejected: true}
	}
	return nil
}

// misplaced refuses a pod that was bound to a node where it does not belong.
func misplaced(pod *corev1.Pod, node *corev1.Node) *verdict {
	if ok, _ := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); !ok {
		return &verdict{reason: "NodeAffinity", message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector", rejected: true}
	}
	for i := range node.Spec.Taints {
		t := &node.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectNoExecute && !slices.ContainsFunc(pod.Spec.Tolerations, func(o corev1.Toleration) bool { return o.ToleratesTaint(klog.Logger{}, t, false) }) {
			return &verdict{reason: "TaintToleration", message: "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate", rejected: true}
		}
	}
	return nil
}

// nodeRead bounds how long the judgement of a pod waits for the node's newest state.
const nodeRead = 5 * time.Second

// misplaced judges by the node as it was last seen and, where that speaks against
// the pod, by its newest state: the pod may be here for a label that is newer.
func (k *Kubelet) misplaced(pod *corev1.Pod) *verdict {
	node := k.node.seen()
	if node == nil {
		return nil
	}
	v := misplaced(pod, node)
	if v == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), nodeRead)
	defer cancel()
	if node, err := client.For[*corev1.Node](k.d.Client).Get(ctx, k.d.NodeName); err == nil {
		return misplaced(pod, node)
	}
	return v
}

// appArmorOn tells that the host's kernel enforces AppArmor profiles.
func appArmorOn() bool {
	if _, err := os.Stat("/sys/kernel/security/apparmor"); err != nil {
		return false
	}
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(b) > 0 && b[0] == 'Y'
}

// unconfinable refuses a pod that is to be confined by AppArmor on a host that does
// not have it: it would run unconfined.
func unconfinable(pod *corev1.Pod, on func() bool) *verdict {
	wanted := func(p *corev1.AppArmorProfile) bool {
		return p != nil && p.Type != corev1.AppArmorProfileTypeUnconfined
	}
	any := pod.Spec.SecurityContext != nil && wanted(pod.Spec.SecurityContext.AppArmorProfile)
	for _, c := range allContainers(pod) {
		any = any || c.SecurityContext != nil && wanted(c.SecurityContext.AppArmorProfile)
	}
	if any && !on() {
		return &verdict{reason: "AppArmor", message: "Cannot enforce AppArmor: AppArmor is not enabled on the host", rejected: true}
	}
	return nil
}

// allContainers are a pod's init, regular and ephemeral containers.
func allContainers(pod *corev1.Pod) []*corev1.Container {
	all := append(ptrs(pod.Spec.InitContainers), ptrs(pod.Spec.Containers)...)
	for i := range pod.Spec.EphemeralContainers {
		all = append(all, (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	return all
}
