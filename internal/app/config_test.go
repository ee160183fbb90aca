package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/cli"
	"skiff/internal/host"
)

// The kubelet's settings outlast a start without a file; no threshold is not the same as
// the usual ones.
func TestKubeletSettings(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "skiff.yaml")
	if err := os.WriteFile(file, []byte("kubelet:\n  evictionHard: {}\n  imageGCHighThresholdPercent: 90\n  containerLogMaxSize: 1Mi\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	c.DataDir, c.NodeIP, c.NodeName = dir, "192.0.2.7", "n"
	s, err := c.Complete()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Save(); err != nil {
		t.Fatal(err)
	}
	again := Config{DataDir: dir}
	if err := again.Merge(); err != nil {
		t.Fatal(err)
	}
	if s, err = again.Complete(); err != nil {
		t.Fatal(err)
	}
	k := s.kubelet
	if len(k.Eviction.Thresholds) != 0 || k.ImageGC.High != 90 || k.ImageGC.KeepHigh != 0 || k.ImageGC.Low != 80 || k.ImageGC.KeepLow == 0 || k.LogMaxSize != 1<<20 {
		t.Errorf("%+v", k)
	}
	plain, err := Config{NodeIP: "192.0.2.7", NodeName: "n"}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	if k := plain.kubelet; len(k.Eviction.Thresholds) == 0 || k.Eviction.Transition != 5*time.Minute || k.ImageGC.High != 85 || k.LogMaxSize != 0 {
		t.Errorf("%+v", k)
	}
}

func TestCompleteChecksEveryField(t *testing.T) {
	tests := []struct {
		c    Config
		want string
	}{
		{Config{Name: "Upper"}, `name: must be a lower case DNS label of at most 30 characters`},
		{Config{PodCIDR: "10.0.0.0"}, `podCIDR: "10.0.0.0": must be a CIDR such as 10.0.0.0/16`},
		{Config{PodCIDR: "10.0.0.1/16"}, `podCIDR: "10.0.0.1/16": must be the first address of its range (10.0.0.0/16)`},
		{Config{PodCIDR: "10.0.0.0/26"}, `podCIDR: "10.0.0.0/26": must be /24 or larger`},
		{Config{PodCIDR: "fd00::/96"}, `podCIDR: "fd00::/96": must be /64 or larger`},
		{Config{PodCIDR: "10.0.0.0/16,10.1.0.0/16"}, `podCIDR: "10.0.0.0/16,10.1.0.0/16": must be one range, or one of each IP family, separated by a comma`},
		{Config{PodCIDR: "10.0.0.0/16,,fd00::/56"}, `podCIDR: "": must be a CIDR such as 10.0.0.0/16`},
		{Config{ServiceCIDR: "fd00::/48"}, `serviceCIDR: "fd00::/48": must be /64 or smaller`},
		{Config{ServiceCIDR: "fd00::/126"}, `serviceCIDR: "fd00::/126": must be /124 or larger`},
		{Config{PodCIDR: "10.0.0.0/16", ServiceCIDR: "fd00::/112"}, `serviceCIDR: "fd00::/112": must have the IP families of podCIDR (10.0.0.0/16) in the same order, or the first alone`},
		{Config{PodCIDR: "fd01::/56,10.0.0.0/16", ServiceCIDR: "10.1.0.0/16,fd00::/112"}, `serviceCIDR: "10.1.0.0/16,fd00::/112": must have the IP families of podCIDR (fd01::/56,10.0.0.0/16) in the same order, or the first alone`},
		{Config{PodCIDR: "fd00::/56", ServiceCIDR: "fd00::/112"}, `serviceCIDR: fd00::/112 overlaps podCIDR fd00::/56`},
		{Config{NodeIP: "192.0.2.1,192.0.2.2"}, `nodeIP: "192.0.2.1,192.0.2.2": must be one address, or one of each IP family, separated by a comma`},
		{Config{NodeIP: "fe80::1%eth0", PodCIDR: "fd00::/56"}, `nodeIP: "fe80::1%eth0": must be an IP address`},
		{Config{PodCIDR: "10.0.0.0/8", ServiceCIDR: "10.1.0.0/16"}, `serviceCIDR: 10.1.0.0/16 overlaps podCIDR 10.0.0.0/8`},
		{Config{LoadBalancers: "metal"}, `loadBalancers: "metal": must be nodes or none`},
		{Config{NodePorts: "9-3"}, `nodePorts: "9-3": must be FIRST-LAST, ports from 1 to 65535`},
		{Config{ClusterDomain: "a_b"}, `clusterDomain: "a_b": a lowercase RFC 1123 subdomain`},
		{Config{NodeName: "A B"}, `nodeName: "A B": a lowercase RFC 1123 subdomain`},
		{Config{MaxPods: -1}, `maxPods: -1: must be greater than 0`},
		{Config{AllowedUnsafeSysctls: []string{"net.core.*", "vm.swappiness"}}, `allowedUnsafeSysctls: "vm.swappiness": is not known to be namespaced`},
		{Config{MaxContainerRestartPeriod: "301s"}, `maxContainerRestartPeriod: "301s": must be between 1s and 300s`},
		{Config{MaxContainerRestartPeriod: "soon"}, `maxContainerRestartPeriod: "soon": must be between 1s and 300s`},
		{Config{APIPort: 70000}, `apiPort: 70000: must be a port from 1 to 65535`},
		{Config{SchedulerConfig: "/nowhere"}, `schedulerConfig: open /nowhere: no such file or directory`},
		{Config{Kubelet: &cli.KubeletConfig{EvictionHard: map[string]string{"disk": "1"}}}, `kubelet.eviction: unsupported eviction signal disk`},
		{Config{Kubelet: &cli.KubeletConfig{EvictionSoft: map[string]string{"pid.available": "5"}}}, `kubelet.eviction: grace period must be specified for the soft eviction threshold pid.available`},
		{Config{Kubelet: &cli.KubeletConfig{ImageGCHighThresholdPercent: new(int32(101))}}, `kubelet.imageGCHighThresholdPercent: 101: must be between 0 and 100, inclusive`},
		{Config{Kubelet: &cli.KubeletConfig{UserNamespaces: &cli.UserNamespaces{IDsPerPod: new(int64(65535))}}}, `kubelet.userNamespaces.idsPerPod: 65535: must not be less than 65536`},
		{Config{Kubelet: &cli.KubeletConfig{UserNamespaces: &cli.UserNamespaces{IDsPerPod: new(int64(65537))}}}, `kubelet.userNamespaces.idsPerPod: 65537: must be a multiple of 65536`},
		{Config{Kubelet: &cli.KubeletConfig{UserNamespaces: &cli.UserNamespaces{IDsPerPod: new(int64(1 << 32))}}}, `kubelet.userNamespaces.idsPerPod: 4294967296: must not be more than 4294967295`},
		{Config{Kubelet: &cli.KubeletConfig{SystemReserved: map[string]string{"gpu": "1"}}}, `kubelet.systemReserved: cannot reserve "gpu" resource`},
		{Config{Kubelet: &cli.KubeletConfig{KubeReserved: map[string]string{"memory": "much"}}}, `kubelet.kubeReserved: failed to parse quantity "much" for "memory" resource: `},
		{Config{Kubelet: &cli.KubeletConfig{KubeReserved: map[string]string{"memory": "-1"}}}, `kubelet.kubeReserved: resource quantity for "memory" cannot be negative: -1`},
		{Config{Kubelet: &cli.KubeletConfig{EnforceNodeAllocatable: []string{"all"}}}, `kubelet.enforceNodeAllocatable: "all": must be "pods" or "none"`},
		{Config{Kubelet: &cli.KubeletConfig{EnforceNodeAllocatable: []string{"none", "pods"}}}, `kubelet.enforceNodeAllocatable: may not contain additional enforcements when "none" is specified`},
		{Config{Kubelet: &cli.KubeletConfig{ImageGCHighThresholdPercent: new(int32(80))}}, `kubelet.imageGCLowThresholdPercent: 80: must be less than imageGCHighThresholdPercent 80`},
		{Config{Kubelet: &cli.KubeletConfig{ImageMaximumGCAge: metav1.Duration{Duration: time.Minute}}}, `kubelet.imageMaximumGCAge: 1m0s: must be greater than imageMinimumGCAge 2m0s`},
		{Config{Kubelet: &cli.KubeletConfig{ContainerLogMaxSize: "big"}}, `kubelet.containerLogMaxSize: "big": `},
		{Config{Kubelet: &cli.KubeletConfig{ContainerLogMaxFiles: new(int32(1))}}, `kubelet.containerLogMaxFiles: 1: must be greater than 1`},
		{Config{Kubelet: &cli.KubeletConfig{ImagePullCredentialsVerificationPolicy: "Maybe"}}, `kubelet.imagePullCredentialsVerificationPolicy: "Maybe": must be NeverVerify, `},
		{Config{Kubelet: &cli.KubeletConfig{PreloadedImagesVerificationAllowlist: []string{"app"}}}, `kubelet.preloadedImagesVerificationAllowlist: cannot be set unless `},
		{Config{Kubelet: &cli.KubeletConfig{MaxParallelImagePulls: new(int32(0))}}, `kubelet.maxParallelImagePulls: 0: must be a positive number`},
		{Config{Kubelet: &cli.KubeletConfig{SerializeImagePulls: new(true), MaxParallelImagePulls: new(int32(2))}}, `kubelet.maxParallelImagePulls: 2: must be 1 while serializeImagePulls is true`},
		{Config{Kubelet: &cli.KubeletConfig{StaticPodPath: "pods"}}, `kubelet.staticPodPath: "pods": must be an absolute path`},
		{Config{NodeIP: "here"}, `nodeIP: "here": must be an IP address`},
		{Config{NodeIP: "192.0.2.1", DNSUpstreams: []string{"resolver.example"}}, `dns: resolver "resolver.example": must be an IP address, with a port or without`},
		{Config{NodeIP: "192.0.2.1", DNSStubDomains: map[string][]string{"corp": nil}}, `dns: stub domain "corp": must be a domain name with resolvers`},
		{Config{NodeIP: "192.0.2.1", DNSHosts: map[string][]string{"a": {"b"}}}, `dnsHosts.a: "b": must be an IP address`},
		{Config{NodeIP: "10.244.0.9"}, `nodeIP: 10.244.0.9 lies within podCIDR or serviceCIDR`},
	}
	for _, tt := range tests {
		_, err := tt.c.Complete()
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %s", tt.c, err, tt.want)
		}
		var ce *ConfigError
		if !errors.As(err, &ce) {
			t.Errorf("%+v: %T is no ConfigError", tt.c, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	s, err := Config{NodeIP: "192.0.2.7", NodeName: "n"}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	if s.APIPort != 6443 || s.KubeletPort != 10250 || s.APIServiceIP.String() != "10.96.0.1" || s.DNSIPs[0].String() != "10.96.0.10" || s.DataDir != "/var/lib/skiff/default" {
		t.Errorf("%+v", s)
	}
	// Clusters with names of their own do not meet the default one.
	o, err := Config{Name: "two", NodeIP: "192.0.2.7", NodeName: "n"}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	if o.PodRanges[0].Overlaps(s.PodRanges[0]) || o.ServiceRanges[0].Overlaps(s.ServiceRanges[0]) || o.APIPort == s.APIPort || o.KubeletPort == s.KubeletPort {
		t.Errorf("%+v meets the default cluster", o)
	}
}

// TestFamilies: what is said of one setting decides the others.
func TestFamilies(t *testing.T) {
	found := func(v6 bool) (netip.Addr, error) {
		if v6 {
			return netip.MustParseAddr("2001:db8::7"), nil
		}
		return netip.MustParseAddr("192.0.2.7"), nil
	}
	for _, tt := range []struct {
		c                         Config
		pods, services, node, dns string
	}{
		{Config{}, "[10.244.0.0/16]", "[10.96.0.0/16]", "192.0.2.7", "[10.96.0.10]"},
		{Config{PodCIDR: "fd00:9::/56"}, "[fd00:9::/56]", "[fd00:10:96::/112]", "2001:db8::7", "[fd00:10:96::a]"},
		{Config{PodCIDR: "10.9.0.0/16,fd00:9::/56"}, "[10.9.0.0/16 fd00:9::/56]", "[10.96.0.0/16 fd00:10:96::/112]", "192.0.2.7,2001:db8::7", "[10.96.0.10 fd00:10:96::a]"},
		{Config{PodCIDR: "fd00:9::/56, 10.9.0.0/16", NodeIP: "192.0.2.8"}, "[fd00:9::/56 10.9.0.0/16]", "[fd00:10:96::/112 10.96.0.0/16]", "2001:db8::7,192.0.2.8", "[fd00:10:96::a 10.96.0.10]"},
		{Config{ServiceCIDR: "10.8.0.0/16,fd00:8::/112"}, "[10.244.0.0/16 fd00:10:244::/56]", "[10.8.0.0/16 fd00:8::/112]", "192.0.2.7,2001:db8::7", "[10.8.0.10 fd00:8::a]"},
		{Config{PodCIDR: "10.9.0.0/16,fd00:9::/56", ServiceCIDR: "10.8.0.0/16"}, "[10.9.0.0/16 fd00:9::/56]", "[10.8.0.0/16]", "192.0.2.7,2001:db8::7", "[10.8.0.10]"},
		{Config{NodeIP: "2001:db8::9,192.0.2.8"}, "[10.244.0.0/16]", "[10.96.0.0/16]", "192.0.2.8,2001:db8::9", "[10.96.0.10]"},
	} {
		i, err := tt.c.Instance()
		if err != nil {
			t.Fatal(err)
		}
		s, said := &Settings{Instance: i}, tt.c
		if err := errors.Join(tt.c.chooseRanges(i, nil), s.setRanges(&tt.c), s.setNodeAddrs(&tt.c, found)); err != nil {
			t.Errorf("%+v: %v", said, err)
			continue
		}
		if pods, services, dns := fmt.Sprint(s.PodRanges), fmt.Sprint(s.ServiceRanges), fmt.Sprint(s.DNSIPs); pods != tt.pods || services != tt.services || tt.c.NodeIP != tt.node || dns != tt.dns {
			t.Errorf("%+v: pods %s, services %s, node %s, DNS %s", said, pods, services, tt.c.NodeIP, dns)
		}
	}
	none := func(bool) (netip.Addr, error) { return netip.Addr{}, errors.New("none") }
	c, s := Config{}, &Settings{PodRanges: []netip.Prefix{netip.MustParsePrefix("fd00::/56")}}
	if err := s.setNodeAddrs(&c, none); err == nil || err.Error() != "nodeIP: this host has no IPv6 address besides loopback and those of a link alone; set one" {
		t.Errorf("without an address: %v", err)
	}
}

func TestMergeKeepsWhatCannotChange(t *testing.T) {
	dir := t.TempDir()
	mirrors := map[string][]string{"docker.io": {"https://mirror.example.com"}}
	first, err := Config{DataDir: dir, NodeIP: "192.0.2.7", NodeName: "n", APIPort: 7001, RegistryMirrors: mirrors}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Save(); err != nil {
		t.Fatal(err)
	}
	again := Config{DataDir: dir}
	if err := again.Merge(); err != nil {
		t.Fatal(err)
	}
	if again.APIPort != 7001 || again.NodeName != "n" || !reflect.DeepEqual(again.RegistryMirrors, mirrors) {
		t.Errorf("%+v", again)
	}
	other := Config{DataDir: dir, PodCIDR: "10.9.0.0/16"}
	if err := other.Merge(); err == nil || !strings.HasPrefix(err.Error(), `podCIDR: is "10.244.0.0/16" since this cluster was made and cannot become "10.9.0.0/16"`) {
		t.Errorf("%v", err)
	}
}

func TestFailedStartKeepsNoPorts(t *testing.T) {
	dir := t.TempDir()
	start := func(c Config) func() error {
		t.Helper()
		c.DataDir, c.NodeIP, c.NodeName = dir, "192.0.2.7", "n"
		if err := c.Merge(); err != nil {
			t.Fatal(err)
		}
		s, err := c.Complete()
		if err != nil {
			t.Fatal(err)
		}
		unsave, err := s.saveFor()
		if err != nil {
			t.Fatal(err)
		}
		return unsave
	}
	saved := func() Config {
		t.Helper()
		c, err := LoadConfig(filepath.Join(dir, "config.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if err := start(Config{APIPort: 7001, ServiceCIDR: "10.3.0.0/16"})(); err != nil {
		t.Fatal(err)
	}
	// What the store may have been made with stays.
	if c := saved(); c.APIPort != 0 || c.KubeletPort != 0 || c.ServiceCIDR != "10.3.0.0/16" {
		t.Errorf("after a first start that failed: %+v", c)
	}
	start(Config{APIPort: 7002})
	if c := saved(); c.APIPort != 7002 || c.KubeletPort != 10250 {
		t.Errorf("after a start: %+v", c)
	}
	if err := start(Config{APIPort: 7003, KubeletPort: 7004})(); err != nil {
		t.Fatal(err)
	}
	if c := saved(); c.APIPort != 7002 || c.KubeletPort != 10250 {
		t.Errorf("after a later start that failed: %+v", c)
	}
}

func TestConfigFileRefusesUnknownFields(t *testing.T) {
	f := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(f, []byte("apiPort: 1\npodRange: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(f); err == nil || !strings.Contains(err.Error(), `unknown field "podRange"`) {
		t.Errorf("%v", err)
	}
}

func TestForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	i, err := host.New("x", dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := foreignDir(i); err != nil {
		t.Errorf("an empty directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "letters.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := foreignDir(i); err == nil || !strings.Contains(err.Error(), "is not empty and not a data directory of skiff; choose another --data-dir") {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := foreignDir(i); err != nil {
		t.Errorf("a directory of skiff: %v", err)
	}
}

// TestLockOfAKilledOne: the last threads of a skiff that was killed hold its lock a
// little longer than it lives.
func TestLockOfAKilledOne(t *testing.T) {
	i, err := host.New("x", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := lockInstance(i)
	if err != nil {
		t.Fatal(err)
	}
	killed := exec.Command("true")
	if err := killed.Run(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(i.Data("lock"), fmt.Appendln(nil, killed.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, unlock)
	unlock, err = lockInstance(i)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestOneProcessAtATime(t *testing.T) {
	i, err := host.New("x", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := lockInstance(i)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockInstance(i); err == nil || !strings.Contains(err.Error(), `skiff "x" is running already (pid `) {
		t.Errorf("%v", err)
	}
	unlock()
	unlock, err = lockInstance(i)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestGroupStopsInOppositeOrder(t *testing.T) {
	g := newGroup(slog.New(slog.DiscardHandler))
	var order []string
	for _, name := range []string{"one", "two", "three"} {
		g.start(name, func(ctx context.Context) error {
			<-ctx.Done()
			order = append(order, name)
			return nil
		})
	}
	g.stop()
	if got := strings.Join(order, " "); got != "three two one" {
		t.Errorf("stopped %s", got)
	}
}

func TestGroupTellsWhoFailed(t *testing.T) {
	g := newGroup(slog.New(slog.DiscardHandler))
	g.start("fine", func(ctx context.Context) error { <-ctx.Done(); return nil })
	g.start("broken", func(context.Context) error { return errors.New("no luck") })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := g.wait(ctx); err == nil || err.Error() != "broken: no luck" {
		t.Errorf("%v", err)
	}
	g.stop()
}
