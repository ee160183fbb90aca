package kubelet

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func said(v *verdict) string {
	if v == nil {
		return ""
	}
	return v.reason + ": " + v.message
}

func TestForbiddenSysctl(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*corev1.PodSpec)
		unsafe []string
		want   string
	}{
		{name: "kernel.shm_rmid_forced"},
		{name: "net/ipv4/ip_unprivileged_port_start"},
		{name: "net.ipv4.tcp_rmem"},
		{name: "net.core.somaxconn", want: `SysctlForbidden: forbidden sysctl: "net.core.somaxconn" not allowlisted`},
		{name: "net.core.somaxconn", unsafe: []string{"net.core.*"}},
		{name: "kernel.msgmax", unsafe: []string{"kernel.msgmax"}},
		{name: "kernel.msgmaxx", unsafe: []string{"kernel.msgmax"}, want: `SysctlForbidden: forbidden sysctl: "kernel.msgmaxx" not allowlisted`},
		{name: "vm.swappiness", want: `SysctlForbidden: forbidden sysctl: "vm.swappiness" not allowlisted`},
		{name: "kernel.shm_rmid_forced", change: func(s *corev1.PodSpec) { s.HostIPC = true }, want: `SysctlForbidden: forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host IPC enabled`},
		{name: "net/ipv4/tcp_syncookies", change: func(s *corev1.PodSpec) { s.HostNetwork = true }, want: `SysctlForbidden: forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host Net enabled`},
		{name: "user.max_user_namespaces", unsafe: []string{"user.*"}, want: `SysctlForbidden: forbidden sysctl: "user.max_user_namespaces" not allowed with host User enabled`},
	} {
		p := newPod("web", "a")
		p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "net.ipv4.tcp_syncookies", Value: "1"}, {Name: c.name, Value: "1"}}}
		if c.change != nil {
			c.change(&p.Spec)
		}
		if c.change != nil && p.Spec.HostNetwork {
			p.Spec.SecurityContext.Sysctls = p.Spec.SecurityContext.Sysctls[1:]
		}
		if got := said(forbiddenSysctl(p, c.unsafe)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestMisplaced(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: map[string]string{"disk": "ssd"}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "leave", Effect: corev1.TaintEffectNoExecute}, {Key: "full", Effect: corev1.TaintEffectNoSchedule}}}}
	for _, c := range []struct {
		about  string
		change func(*corev1.Pod)
		want   string
	}{
		{"it belongs here", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }, ""},
		{"another node", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "tape"} },
			"NodeAffinity: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"},
		{"a taint", func(p *corev1.Pod) { p.Spec.Tolerations = nil },
			"TaintToleration: Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"},
		{"another system by label", func(p *corev1.Pod) { p.Labels = map[string]string{corev1.LabelOSStable: "windows"} },
			"PodOSSelectorNodeLabelDoesNotMatch: Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"},
		{"another system", func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} },
			"PodOSNotSupported: Failed to admit pod as the OS field doesn't match node OS"},
		{"this system", func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Linux} }, ""},
	} {
		p := newPod("web", "a")
		p.Spec.Tolerations = []corev1.Toleration{{Key: "leave", Operator: corev1.TolerationOpExists}}
		c.change(p)
		v := otherOS(p)
		if v == nil {
			v = misplaced(p, n)
		}
		if got := said(v); got != c.want {
			t.Errorf("%s: %q, want %q", c.about, got, c.want)
		}
	}
}

func TestUnconfinable(t *testing.T) {
	confined := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	free := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	for _, c := range []struct {
		pod, container *corev1.AppArmorProfile
		on             bool
		want           string
	}{
		{},
		{pod: free, container: free},
		{pod: confined, on: true},
		{pod: confined, want: "AppArmor: Cannot enforce AppArmor: AppArmor is not enabled on the host"},
		{container: confined, want: "AppArmor: Cannot enforce AppArmor: AppArmor is not enabled on the host"},
		{container: confined, on: true},
	} {
		p := newPod("web", "a")
		p.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: c.pod}
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{AppArmorProfile: c.container}
		if got := said(unconfinable(p, func() bool { return c.on })); got != c.want {
			t.Errorf("%+v: %q, want %q", c, got, c.want)
		}
	}
}
