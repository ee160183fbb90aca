package kubelet

import (
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestEnvironment(t *testing.T) {
	run(t, func(w *world) {
		svc := func(ns, name, ip string, ports ...corev1.ServicePort) {
			w.api.Put(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}})
		}
		svc("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Name: "https", Port: 443})
		svc("default", "my-db", "10.96.0.7", corev1.ServicePort{Port: 5432})
		svc("default", "headless", "None", corev1.ServicePort{Port: 1})
		svc("other", "elsewhere", "10.96.0.8", corev1.ServicePort{Port: 1})
		w.api.Put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "default"}, Data: map[string]string{"A": "cm-a", "B": "cm-b"}})
		w.api.Put(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "sec", Namespace: "default"}, Data: map[string][]byte{"PW": []byte("geheim")}})
		w.api.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}}})
	}, func(w *world) {
		p := newPod("web", "a")
		p.Labels = map[string]string{"app": "x"}
		p.Spec.ServiceAccountName = "sa"
		c := &p.Spec.Containers[0]
		c.Resources = corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")}, Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}}
		c.EnvFrom = []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}},
			{Prefix: "S_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "sec"}}},
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: ptr(true)}},
		}
		field := func(path string) *corev1.EnvVarSource {
			return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
		}
		res := func(name string) *corev1.EnvVarSource {
			return &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: name}}
		}
		c.Env = []corev1.EnvVar{
			{Name: "B", Value: "own"}, {Name: "REF", Value: "$(B)-$(S_PW)-$(MY_DB_SERVICE_HOST)-$(NOT)-$$(B)"},
			{Name: "POD", ValueFrom: field("metadata.name")}, {Name: "UID", ValueFrom: field("metadata.uid")}, {Name: "IP", ValueFrom: field("status.podIP")},
			{Name: "HOST", ValueFrom: field("status.hostIP")}, {Name: "NODE", ValueFrom: field("spec.nodeName")}, {Name: "SA", ValueFrom: field("spec.serviceAccountName")},
			{Name: "LABEL", ValueFrom: field("metadata.labels['app']")},
			{Name: "CPU", ValueFrom: res("limits.cpu")}, {Name: "MEM", ValueFrom: res("requests.memory")}, {Name: "MEMLIMIT", ValueFrom: res("limits.memory")},
			{Name: "OPT", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "k", Optional: ptr(true)}}},
			{Name: "EMPTY"},
		}
		c.Command, c.Args = []string{"run", "$(POD)"}, []string{"$(REF)"}
		w.create(p)
		cfg := w.container("a").Config
		got := map[string]string{}
		for _, e := range cfg.Envs {
			got[e.Key] = string(e.Value)
		}
		want := map[string]string{
			"A": "cm-a", "B": "own", "S_PW": "geheim", "REF": "own-geheim-10.96.0.7-$(NOT)-$(B)", "POD": "web", "UID": "web-uid", "IP": "10.244.0.2",
			"HOST": "192.168.7.1", "NODE": node, "SA": "sa", "LABEL": "x", "CPU": "2", "MEM": "67108864", "MEMLIMIT": "1073741824", "EMPTY": "",
			"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443", "KUBERNETES_SERVICE_PORT_HTTPS": "443", "KUBERNETES_PORT": "tcp://10.96.0.1:443",
			"KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP_PROTO": "tcp", "KUBERNETES_PORT_443_TCP_PORT": "443", "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
			"MY_DB_SERVICE_HOST": "10.96.0.7", "MY_DB_SERVICE_PORT": "5432", "MY_DB_PORT": "tcp://10.96.0.7:5432", "MY_DB_PORT_5432_TCP": "tcp://10.96.0.7:5432",
			"MY_DB_PORT_5432_TCP_PROTO": "tcp", "MY_DB_PORT_5432_TCP_PORT": "5432", "MY_DB_PORT_5432_TCP_ADDR": "10.96.0.7",
		}
		if !reflect.DeepEqual(got, want) {
			for k, v := range want {
				if got[k] != v {
					t.Errorf("%s is %q, want %q", k, got[k], v)
				}
			}
			for k, v := range got {
				if _, ok := want[k]; !ok {
					t.Errorf("%s is %q, want none", k, v)
				}
			}
		}
		if !slices.Equal(cfg.Command, []string{"run", "web"}) || !slices.Equal(cfg.Args, []string{want["REF"]}) {
			t.Errorf("command %q %q", cfg.Command, cfg.Args)
		}
		q := newPod("nolinks", "b")
		q.Spec.EnableServiceLinks = ptr(false)
		w.create(q)
		for _, e := range w.container("b").Config.Envs {
			if !strings.HasPrefix(e.Key, "KUBERNETES_") {
				t.Errorf("without service links: %s", e.Key)
			}
		}
	})
}

func TestSandboxConfig(t *testing.T) {
	run(t, func(w *world) {
		writeFile(t, w.dir+"/resolv.conf", "nameserver 1.1.1.1\nsearch corp.example.\noptions ndots:2 timeout:1\n")
		w.deps = func(d *Deps) { d.ResolvConf = w.dir + "/resolv.conf" }
	}, func(w *world) {
		p := newPod("web", "a")
		p.Spec.Hostname, p.Spec.Subdomain = "host", "sub"
		p.Spec.HostAliases = []corev1.HostAlias{{IP: "1.2.3.4", Hostnames: []string{"x", "y"}}}
		p.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"8.8.8.8"}, Searches: []string{"more.example"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr("3")}, {Name: "debug"}}}
		p.Spec.ShareProcessNamespace = ptr(true)
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(1000)), FSGroup: ptr(int64(2000)), SupplementalGroups: []int64{3000}, Sysctls: []corev1.Sysctl{{Name: "net.ipv4.tcp_fin_timeout", Value: "9"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
		c := &p.Spec.Containers[0]
		c.Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080, Protocol: corev1.ProtocolUDP}}
		c.SecurityContext = &corev1.SecurityContext{RunAsUser: ptr(int64(1001)), Privileged: ptr(true), ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
			Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}}}
		w.create(p)
		s := w.rt.Sandboxes()[0].Config
		if s.Hostname != "host" {
			t.Errorf("hostname %q", s.Hostname)
		}
		wantDNS := &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10", "8.8.8.8"}, Options: []string{"ndots:3", "debug"},
			Searches: []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example", "more.example"}}
		if d := s.DnsConfig; !slices.Equal(d.Servers, wantDNS.Servers) || !slices.Equal(d.Searches, wantDNS.Searches) || !slices.Equal(d.Options, wantDNS.Options) {
			t.Errorf("DNS %v, want %v", d, wantDNS)
		}
		if m := s.PortMappings; len(m) != 1 || m[0].HostPort != 8080 || m[0].Protocol != runtimeapi.Protocol_UDP {
			t.Errorf("ports %v", m)
		}
		sc := s.Linux.SecurityContext
		if !sc.Privileged || sc.RunAsUser.GetValue() != 1000 || !slices.Equal(sc.SupplementalGroups, []int64{2000, 3000}) || sc.NamespaceOptions.Pid != runtimeapi.NamespaceMode_POD || s.Linux.Sysctls["net.ipv4.tcp_fin_timeout"] != "9" {
			t.Errorf("sandbox security %v, sysctls %v", sc, s.Linux.Sysctls)
		}
		cs := w.container("a").Config.Linux.SecurityContext
		if !cs.Privileged || !cs.ReadonlyRootfs || !cs.NoNewPrivs || cs.RunAsUser.GetValue() != 1001 || !slices.Equal(cs.Capabilities.AddCapabilities, []string{"NET_ADMIN"}) ||
			!slices.Equal(cs.Capabilities.DropCapabilities, []string{"ALL"}) || cs.Seccomp.ProfileType != runtimeapi.SecurityProfile_RuntimeDefault || !slices.Equal(cs.SupplementalGroups, []int64{2000, 3000}) {
			t.Errorf("container security %v", cs)
		}
		for _, m := range w.container("a").Config.Mounts {
			if m.ContainerPath != "/etc/hosts" {
				continue
			}
			b, err := os.ReadFile(m.HostPath)
			if err != nil {
				t.Fatal(err)
			}
			want := "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n" +
				"10.244.0.2\thost.sub.default.svc.cluster.local\thost\n\n# Entries added by HostAliases.\n1.2.3.4\tx\ty\n"
			if string(b) != want {
				t.Errorf("hosts:\n%s\nwant:\n%s", b, want)
			}
		}
		q := newPod("node", "n")
		q.Spec.HostNetwork = true
		w.create(q)
		s = w.rt.Sandboxes()[0].Config
		if s.Hostname != "" || s.Linux.SecurityContext.NamespaceOptions.Network != runtimeapi.NamespaceMode_NODE || !slices.Equal(s.DnsConfig.Servers, []string{"1.1.1.1"}) {
			t.Errorf("host network: %v", s)
		}
		if ip := w.pod("node").Status.PodIP; ip != "192.168.7.1" {
			t.Errorf("address with the host's network: %q", ip)
		}
	})
}

func TestNonRoot(t *testing.T) {
	for _, c := range []struct {
		user  *int64
		image func(*runtimeapi.Image)
		want  string
	}{
		{ptr(int64(0)), nil, `container's runAsUser breaks non-root policy (pod: "web_default(web-uid)", container: a)`},
		{nil, nil, `container has runAsNonRoot and image will run as root (pod: "web_default(web-uid)", container: a)`},
		{nil, func(i *runtimeapi.Image) { i.Username = "app" }, `container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root (pod: "web_default(web-uid)", container: a)`},
		{nil, func(i *runtimeapi.Image) { i.Uid = &runtimeapi.Int64Value{Value: 5} }, ""},
		{ptr(int64(5)), nil, ""},
	} {
		run(t, func(w *world) {
			if c.image != nil {
				c.image(w.rt.AddImage("nginx"))
			}
		}, func(w *world) {
			p := newPod("web", "a")
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsNonRoot: ptr(true), RunAsUser: c.user}
			w.create(p)
			if c.want == "" {
				w.wantPhase("web", corev1.PodRunning)
				return
			}
			w.wantWaiting("web", "a", "CreateContainerConfigError", c.want)
			w.wantEvent("Failed: Error: " + c.want)
		})
	}
}

func list(cpu, memory string) corev1.ResourceList {
	l := corev1.ResourceList{}
	if cpu != "" {
		l[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		l[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return l
}

func TestResources(t *testing.T) {
	k := &Kubelet{memory: 8 << 30}
	for _, c := range []struct {
		requests, limits corev1.ResourceList
		qos              corev1.PodQOSClass
		shares, quota    int64
		memory, oom      int64
	}{
		{nil, nil, corev1.PodQOSBestEffort, 2, 0, 0, 1000},
		{list("100m", "1Gi"), nil, corev1.PodQOSBurstable, 102, 0, 0, 875},
		{list("500m", "1Gi"), list("500m", "1Gi"), corev1.PodQOSGuaranteed, 512, 50000, 1 << 30, -997},
		{nil, list("1", ""), corev1.PodQOSBurstable, 1024, 100000, 0, 999},
		{list("1m", ""), list("1m", ""), corev1.PodQOSBurstable, 2, 1000, 0, 999},
		{list("", "8Gi"), nil, corev1.PodQOSBurstable, 2, 0, 0, 3},
	} {
		p := newPod("p", "a")
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: c.requests, Limits: c.limits}
		if q := qosClass(p); q != c.qos {
			t.Errorf("%v %v: class %s, want %s", c.requests, c.limits, q, c.qos)
		}
		r := k.containerResources(p, &p.Spec.Containers[0])
		if len(r.Unified) > 0 {
			t.Errorf("without cgroups of version 2: %v", r.Unified)
		}
		if r.CpuShares != c.shares || r.CpuQuota != c.quota || r.MemoryLimitInBytes != c.memory || r.OomScoreAdj != c.oom {
			t.Errorf("%v %v: shares %d quota %d memory %d oom %d, want %d %d %d %d", c.requests, c.limits, r.CpuShares, r.CpuQuota, r.MemoryLimitInBytes, r.OomScoreAdj, c.shares, c.quota, c.memory, c.oom)
		}
	}
	k.d.Cgroups = &cgroups{}
	if r := k.containerResources(newPod("p", "a"), &newPod("p", "a").Spec.Containers[0]); r.Unified["memory.oom.group"] != "1" {
		t.Errorf("a container of version 2 is not killed as a whole: %v", r.Unified)
	}
	// A pod as a whole: the largest moment counts.
	p := newPod("p", "a", "b")
	p.Spec.Containers[0].Resources.Requests, p.Spec.Containers[1].Resources.Requests = list("100m", ""), list("200m", "")
	p.Spec.InitContainers = []corev1.Container{
		{Name: "s", RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways), Resources: corev1.ResourceRequirements{Requests: list("50m", "")}},
		{Name: "i", Resources: corev1.ResourceRequirements{Requests: list("500m", "")}},
	}
	if v := podRequest(p, corev1.ResourceCPU, true); v != 550 {
		t.Errorf("pod requests %dm, want 550m: the init container beside the sidecar", v)
	}
	p.Spec.InitContainers = p.Spec.InitContainers[:1]
	if v := podRequest(p, corev1.ResourceCPU, true); v != 350 {
		t.Errorf("pod requests %dm, want 350m", v)
	}
	if _, bounded := podLimit(p, corev1.ResourceCPU, true); bounded {
		t.Error("a pod without limits is bounded")
	}
}

func TestSortIPs(t *testing.T) {
	six := []net.IP{net.ParseIP("fd00::1")}
	for _, c := range []struct {
		ips  []string
		node []net.IP
		want []string
	}{
		{[]string{"fd00::2", "10.0.0.2", "10.0.0.3"}, nil, []string{"10.0.0.2", "fd00::2"}},
		{[]string{"10.0.0.2", "fd00::2"}, six, []string{"fd00::2", "10.0.0.2"}},
		{[]string{"10.0.0.2"}, six, []string{"10.0.0.2"}},
		{nil, nil, nil},
	} {
		if got := sortIPs(c.ips, c.node); !slices.Equal(got, c.want) {
			t.Errorf("sortIPs(%v) = %v, want %v", c.ips, got, c.want)
		}
	}
}
