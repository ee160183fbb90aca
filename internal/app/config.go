// Package app puts a skiff together: a server, a node, or both in one process. It
// wires the rooms by hand, in the order in which they start; what started last
// stops first.
package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/component-helpers/node/util/sysctl"
	configv1 "k8s.io/kube-scheduler/config/v1"
	"sigs.k8s.io/yaml"

	"skiff/internal/cli"
	"skiff/internal/dns"
	"skiff/internal/host"
	"skiff/internal/runtime/image/registry"
)

// Config says how an instance is set up. It is written to the data directory at
// the first start; later starts read it from there, and a flag that contradicts
// it is refused where it cannot change (CIDRs, names).
type Config struct {
	// Name of the instance.
	Name string `json:"name,omitempty"`
	// DataDir keeps everything durable; /var/lib/skiff/NAME by default.
	DataDir string `json:"dataDir,omitempty"`
	// NodeName, the host's name by default, and NodeIP, the address of the
	// default route's link by default; with two IP families two, separated by a comma.
	NodeName string `json:"nodeName,omitempty"`
	NodeIP   string `json:"nodeIP,omitempty"`
	// APIPort and KubeletPort on all addresses; 6443 and 10250 by default, the
	// next free ones for an instance with a name of its own.
	APIPort     int `json:"apiPort,omitempty"`
	KubeletPort int `json:"kubeletPort,omitempty"`
	// PodCIDR is what nodes get their pods' ranges from; ServiceCIDR what cluster
	// addresses come from. By default ranges that no other cluster on this machine
	// has: 10.244.0.0/16 and 10.96.0.0/16 for the one without a name. Each may be two,
	// one of each IP family, separated by a comma: the first is the primary family's.
	PodCIDR     string `json:"podCIDR,omitempty"`
	ServiceCIDR string `json:"serviceCIDR,omitempty"`
	// NodePorts is the range of node ports, "30000-32767".
	NodePorts string `json:"nodePorts,omitempty"`
	// ClusterDomain is "cluster.local" by default.
	ClusterDomain string `json:"clusterDomain,omitempty"`
	// DNSUpstreams are asked about names outside the cluster instead of the host's
	// resolvers, the first that answers; DNSStubDomains about names at or below those
	// domains, of which the longest that fits decides. They are IP addresses, with a
	// port or without.
	DNSUpstreams   []string            `json:"dnsUpstreams,omitempty"`
	DNSStubDomains map[string][]string `json:"dnsStubDomains,omitempty"`
	// DNSHosts are addresses by name, as in a hosts file: they hold whatever others
	// say.
	DNSHosts map[string][]string `json:"dnsHosts,omitempty"`
	// ExtraSANs are more names that the API server is reached by.
	ExtraSANs []string `json:"extraSANs,omitempty"`
	// Etcd are the endpoints of an external etcd; none embeds it.
	Etcd []string `json:"etcd,omitempty"`
	// EtcdCA, EtcdCert and EtcdKey are files: what verifies those endpoints, and
	// what this server proves itself with to them.
	EtcdCA   string `json:"etcdCA,omitempty"`
	EtcdCert string `json:"etcdCert,omitempty"`
	EtcdKey  string `json:"etcdKey,omitempty"`
	// MaxPods per node, 110 by default.
	MaxPods int `json:"maxPods,omitempty"`
	// ContainerRuntimeEndpoint uses another CRI runtime instead of the built-in.
	ContainerRuntimeEndpoint string `json:"containerRuntimeEndpoint,omitempty"`
	// CNIConfDir is where CNI configurations are looked for, CNIBinDir where the
	// plugins are; the usual places by default. While there is a configuration its
	// plugins attach pods instead of the built-in network.
	CNIConfDir string `json:"cniConfDir,omitempty"`
	CNIBinDir  string `json:"cniBinDir,omitempty"`
	// LoadBalancers says who gives addresses to services of type LoadBalancer that
	// name no class: "nodes", the default, gives them those of the nodes; "none"
	// leaves them to what is installed in the cluster (delete those that have their
	// addresses from skiff first).
	LoadBalancers string `json:"loadBalancers,omitempty"`
	// RegistryMirrors are URLs that images are looked for at before their registry
	// is asked, by its domain: {"docker.io": ["https://mirror.example.com"]}; those
	// of "*" are for all registries that have none.
	RegistryMirrors map[string][]string `json:"registryMirrors,omitempty"`
	// InsecureRegistries are registries whose certificate is not verified, and that
	// may lack TLS: domains with their port, or ranges of addresses (10.0.0.0/8).
	InsecureRegistries []string `json:"insecureRegistries,omitempty"`
	// MaxParallelImagePulls is how many images pods pull at once, 5 by default; 1
	// is what upstream calls serializeImagePulls.
	MaxParallelImagePulls int `json:"maxParallelImagePulls,omitempty"`
	// SchedulerConfig is a file with a KubeSchedulerConfiguration
	// (kubescheduler.config.k8s.io/v1).
	SchedulerConfig string `json:"schedulerConfig,omitempty"`
	// Kubelet are settings of this node's kubelet.
	Kubelet *cli.KubeletConfig `json:"kubelet,omitempty"`
	// Verbose logs more.
	Verbose bool `json:"verbose,omitempty"`
	// AllowedUnsafeSysctls are sysctls that pods of this node may set beside those
	// that concern a pod alone: names, or prefixes that end in *.
	AllowedUnsafeSysctls []string `json:"allowedUnsafeSysctls,omitempty"`
	// MaxContainerRestartPeriod is the longest back-off of a container that keeps
	// ending, 1s to 300s, which is the default.
	MaxContainerRestartPeriod string `json:"maxContainerRestartPeriod,omitempty"`
}

// ConfigError is a mistake in a setting: Field names it as in the config file.
type ConfigError struct {
	Field, Problem string
}

func (e *ConfigError) Error() string { return fmt.Sprintf("%s: %s", e.Field, e.Problem) }

// LoadConfig reads a config file. Unknown fields are refused.
func LoadConfig(path string) (Config, error) {
	var c Config
	b, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("config file: %w", err)
	}
	if err := yaml.UnmarshalStrict(b, &c); err != nil {
		if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) && wrong.Field != "" {
			return c, fmt.Errorf("config file %s: %s: must be a %s, not a %s", path, wrong.Field, plainType(wrong.Type.Kind()), wrong.Value)
		}
		text := err.Error()
		for _, p := range []string{"error unmarshaling JSON: ", "error converting YAML to JSON: ", "while decoding JSON: ", "json: "} {
			text = strings.TrimPrefix(text, p)
		}
		return c, fmt.Errorf("config file %s: %s", path, text)
	}
	return c, nil
}

// plainType is what a person calls the kind of a setting.
func plainType(k reflect.Kind) string {
	switch k {
	case reflect.Int:
		return "number"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "list"
	}
	return k.String()
}

// Instance returns the instance that c is of.
func (c *Config) Instance() (host.Instance, error) {
	i, err := host.New(c.Name, c.DataDir)
	if err != nil {
		return i, &ConfigError{"name", strings.TrimPrefix(err.Error(), fmt.Sprintf("name %q: ", c.Name))}
	}
	return i, nil
}

// configFile is in every data directory.
const configFile = "config.yaml"

func configPath(i host.Instance) string { return i.Data(configFile) }

// Merge fills what c leaves open from the config that the instance was started
// with before, and refuses to change what cannot change.
func (c *Config) Merge() error {
	i, err := c.Instance()
	if err != nil {
		return err
	}
	old, err := LoadConfig(configPath(i))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if errors.Is(err, os.ErrPermission) {
		return &StartError{"skiff needs root to run containers", "run it with sudo"}
	}
	if err != nil {
		return err
	}
	fixed := []struct {
		field    string
		now, was *string
	}{
		{"podCIDR", &c.PodCIDR, &old.PodCIDR},
		{"serviceCIDR", &c.ServiceCIDR, &old.ServiceCIDR},
		{"clusterDomain", &c.ClusterDomain, &old.ClusterDomain},
		{"nodeName", &c.NodeName, &old.NodeName},
	}
	for _, f := range fixed {
		if *f.now != "" && *f.was != "" && *f.now != *f.was {
			return &ConfigError{f.field, fmt.Sprintf("is %q since this cluster was made and cannot become %q; `skiff reset` removes the cluster", *f.was, *f.now)}
		}
		if *f.now == "" {
			*f.now = *f.was
		}
	}
	if c.APIPort == 0 {
		c.APIPort = old.APIPort
	}
	if c.KubeletPort == 0 {
		c.KubeletPort = old.KubeletPort
	}
	if c.NodePorts == "" {
		c.NodePorts = old.NodePorts
	}
	if len(c.ExtraSANs) == 0 {
		c.ExtraSANs = old.ExtraSANs
	}
	if len(c.Etcd) == 0 {
		c.Etcd = old.Etcd
	}
	for _, f := range []struct{ now, was *string }{{&c.EtcdCA, &old.EtcdCA}, {&c.EtcdCert, &old.EtcdCert}, {&c.EtcdKey, &old.EtcdKey}} {
		if *f.now == "" {
			*f.now = *f.was
		}
	}
	if c.MaxParallelImagePulls == 0 {
		c.MaxParallelImagePulls = old.MaxParallelImagePulls
	}
	if c.MaxPods == 0 {
		c.MaxPods = old.MaxPods
	}
	if c.RegistryMirrors == nil {
		c.RegistryMirrors = old.RegistryMirrors
	}
	if c.Kubelet == nil {
		c.Kubelet = old.Kubelet
	}
	if c.InsecureRegistries == nil {
		c.InsecureRegistries = old.InsecureRegistries
	}
	if c.DNSUpstreams == nil {
		c.DNSUpstreams = old.DNSUpstreams
	}
	if c.DNSStubDomains == nil {
		c.DNSStubDomains = old.DNSStubDomains
	}
	if c.DNSHosts == nil {
		c.DNSHosts = old.DNSHosts
	}
	if len(c.AllowedUnsafeSysctls) == 0 {
		c.AllowedUnsafeSysctls = old.AllowedUnsafeSysctls
	}
	for _, f := range []struct{ now, was *string }{
		{&c.ContainerRuntimeEndpoint, &old.ContainerRuntimeEndpoint}, {&c.CNIConfDir, &old.CNIConfDir}, {&c.CNIBinDir, &old.CNIBinDir},
		{&c.LoadBalancers, &old.LoadBalancers},
		{&c.MaxContainerRestartPeriod, &old.MaxContainerRestartPeriod},
		{&c.SchedulerConfig, &old.SchedulerConfig},
	} {
		if *f.now == "" {
			*f.now = *f.was
		}
	}
	return nil
}

// restartPeriod is MaxContainerRestartPeriod, 0 where it is not set.
func (c *Config) restartPeriod() (time.Duration, error) {
	if c.MaxContainerRestartPeriod == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(c.MaxContainerRestartPeriod)
	if err != nil || d < time.Second || d > 300*time.Second {
		return 0, &ConfigError{"maxContainerRestartPeriod", fmt.Sprintf("%q: must be between 1s and 300s", c.MaxContainerRestartPeriod)}
	}
	return d, nil
}

// Save writes c to the data directory.
func (c *Config) Save() error {
	i, err := c.Instance()
	if err != nil {
		return err
	}
	b, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	return writeFile(configPath(i), b, 0o600)
}

// dns puts what is said of names outside the cluster into what a DNS server needs.
func (c *Config) dns(d dns.Deps) (dns.Deps, error) {
	d.Upstreams, d.StubDomains, d.Hosts = c.DNSUpstreams, c.DNSStubDomains, map[string][]netip.Addr{}
	for _, name := range slices.Sorted(maps.Keys(c.DNSHosts)) {
		for _, s := range c.DNSHosts[name] {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				return d, &ConfigError{"dnsHosts." + name, fmt.Sprintf("%q: must be an IP address", s)}
			}
			d.Hosts[name] = append(d.Hosts[name], ip)
		}
	}
	return d, nil
}

// saveFor writes c for a start. Where the start fails unsave takes the ports back:
// one that was in use must not be what the next start begins with.
func (c *Config) saveFor() (unsave func() error, err error) {
	i, err := c.Instance()
	if err != nil {
		return nil, err
	}
	var before Config
	if old, err := LoadConfig(configPath(i)); err == nil {
		before = old
	}
	failed := *c
	failed.APIPort, failed.KubeletPort = before.APIPort, before.KubeletPort
	return failed.Save, c.Save()
}

func writeFile(path string, b []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Settings are a Config that was completed and checked.
type Settings struct {
	Config
	// Kubeconfig is the way to the server of a node alone; empty where the server
	// is in this process.
	Kubeconfig string
	Instance   host.Instance
	// NodeAddrs, PodRanges and ServiceRanges are one, or one of each IP family: the
	// cluster's primary one first.
	NodeAddrs                []netip.Addr
	PodRanges, ServiceRanges []netip.Prefix
	// APIServiceIP is the kubernetes Service's address, DNSIPs the cluster's DNS, one
	// for each of ServiceRanges.
	APIServiceIP  netip.Addr
	DNSIPs        []netip.Addr
	NodePortFirst uint16
	NodePortLast  uint16
	// Scheduler is what SchedulerConfig says.
	Scheduler *configv1.KubeSchedulerConfiguration

	kubelet kubeletSettings
}

// Complete fills in defaults and checks every field.
func (c Config) Complete() (*Settings, error) {
	if c.Name == "" {
		c.Name = host.DefaultName
	}
	i, err := c.Instance()
	if err != nil {
		return nil, err
	}
	c.DataDir = i.DataDir
	s := &Settings{Instance: i}
	if err := c.chooseRanges(i, nil); err != nil {
		return nil, err
	}
	if err := s.setRanges(&c); err != nil {
		return nil, err
	}
	if c.NodePorts == "" {
		c.NodePorts = "30000-32767"
	}
	if _, err := fmt.Sscanf(c.NodePorts, "%d-%d", &s.NodePortFirst, &s.NodePortLast); err != nil || s.NodePortFirst == 0 || s.NodePortLast < s.NodePortFirst {
		return nil, &ConfigError{"nodePorts", fmt.Sprintf("%q: must be FIRST-LAST, ports from 1 to 65535", c.NodePorts)}
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if msgs := validation.IsDNS1123Subdomain(c.ClusterDomain); len(msgs) > 0 {
		return nil, &ConfigError{"clusterDomain", fmt.Sprintf("%q: %s", c.ClusterDomain, msgs[0])}
	}
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("host name: %w", err)
		}
		c.NodeName = strings.ToLower(name)
	}
	if msgs := validation.IsDNS1123Subdomain(c.NodeName); len(msgs) > 0 {
		return nil, &ConfigError{"nodeName", fmt.Sprintf("%q: %s", c.NodeName, msgs[0])}
	}
	if c.MaxParallelImagePulls == 0 {
		c.MaxParallelImagePulls = 5
	}
	if c.MaxParallelImagePulls < 0 {
		return nil, &ConfigError{"maxParallelImagePulls", fmt.Sprintf("%d: must be greater than 0", c.MaxParallelImagePulls)}
	}
	if c.MaxPods == 0 {
		c.MaxPods = 110
	}
	if c.MaxPods < 0 {
		return nil, &ConfigError{"maxPods", fmt.Sprintf("%d: must be greater than 0", c.MaxPods)}
	}
	for _, s := range c.AllowedUnsafeSysctls {
		if ns, _, _ := sysctl.GetNamespace(s); ns == sysctl.UnknownNamespace {
			return nil, &ConfigError{"allowedUnsafeSysctls", fmt.Sprintf("%q: is not known to be namespaced", s)}
		}
	}
	if _, err := c.restartPeriod(); err != nil {
		return nil, err
	}
	for _, p := range []struct {
		field string
		port  *int
		first int
	}{{"apiPort", &c.APIPort, 6443}, {"kubeletPort", &c.KubeletPort, 10250}} {
		if *p.port < 0 || *p.port > 65535 {
			return nil, &ConfigError{p.field, fmt.Sprintf("%d: must be a port from 1 to 65535", *p.port)}
		}
		if *p.port == 0 {
			*p.port = p.first
			if c.Name != host.DefaultName {
				*p.port = freePort(p.first + 1)
			}
		}
	}
	if err := s.setNodeAddrs(&c, defaultAddr); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		field string
		dir   *string
	}{{"cniConfDir", &c.CNIConfDir}, {"cniBinDir", &c.CNIBinDir}} {
		if *f.dir != "" && !filepath.IsAbs(*f.dir) {
			return nil, &ConfigError{f.field, fmt.Sprintf("%q: must be an absolute path", *f.dir)}
		}
	}
	if c.LoadBalancers != "" && c.LoadBalancers != "nodes" && c.LoadBalancers != "none" {
		return nil, &ConfigError{"loadBalancers", fmt.Sprintf("%q: must be nodes or none", c.LoadBalancers)}
	}
	for domain, mirrors := range c.RegistryMirrors {
		for _, m := range mirrors {
			if err := registry.CheckMirror(m); err != nil {
				return nil, &ConfigError{"registryMirrors." + domain, err.Error()}
			}
		}
	}
	for _, r := range c.InsecureRegistries {
		if err := registry.CheckInsecure(r); err != nil {
			return nil, &ConfigError{"insecureRegistries", err.Error()}
		}
	}
	if d, err := c.dns(dns.Deps{}); err != nil {
		return nil, err
	} else if err := d.Check(); err != nil {
		return nil, &ConfigError{"dns", err.Error()}
	}
	if s.Scheduler, err = c.scheduler(); err != nil {
		return nil, err
	}
	if s.kubelet, err = c.kubelet(); err != nil {
		return nil, err
	}
	if err := c.checkEtcd(); err != nil {
		return nil, err
	}
	slices.Sort(c.ExtraSANs)
	s.Config = c
	return s, nil
}

func nth(a netip.Addr, n int) netip.Addr {
	for range n {
		a = a.Next()
	}
	return a
}
