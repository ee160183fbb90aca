package kubelet

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podHostname is the name that the pod's processes see, and its domain where the
// pod has a subdomain.
func (k *Kubelet) podHostname(pod *corev1.Pod) (name, domain string, err error) {
	if h := pod.Spec.HostnameOverride; h != nil {
		if errs := validation.IsDNS1123Subdomain(*h); len(errs) > 0 {
			return "", "", fmt.Errorf("pod HostnameOverride %q is not a valid DNS subdomain: %s", *h, strings.Join(errs, ";"))
		}
		return *h, "", nil
	}
	name = pod.Name
	if pod.Spec.Hostname != "" {
		if errs := validation.IsDNS1123Label(pod.Spec.Hostname); len(errs) > 0 {
			return "", "", fmt.Errorf("pod Hostname %q is not a valid DNS label: %s", pod.Spec.Hostname, strings.Join(errs, ";"))
		}
		name = pod.Spec.Hostname
	} else if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-.")
		if name == "" {
			return "", "", fmt.Errorf("hostname for pod %q was invalid: %q", pod.Name, name)
		}
	}
	if pod.Spec.Subdomain != "" {
		if errs := validation.IsDNS1123Label(pod.Spec.Subdomain); len(errs) > 0 {
			return "", "", fmt.Errorf("pod Subdomain %q is not a valid DNS label: %s", pod.Spec.Subdomain, strings.Join(errs, ";"))
		}
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, k.d.ClusterDomain)
	}
	if pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN && domain != "" {
		fqdn := name + "." + domain
		if len(fqdn) > 64 {
			return "", "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (64 characters is the max, %d characters requested)", fqdn, len(fqdn))
		}
		name = fqdn
	}
	return name, domain, nil
}

// writeHosts writes the pod's /etc/hosts and returns its path. It is written anew
// for every container that starts.
func (k *Kubelet) writeHosts(pod *corev1.Pod, ips []string) (string, error) {
	var b bytes.Buffer
	if hostNetwork(pod) {
		host, err := os.ReadFile("/etc/hosts")
		if err != nil {
			return "", fmt.Errorf("read the host's hosts file: %w", err)
		}
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		b.Write(host)
	} else {
		name, domain, err := k.podHostname(pod)
		if err != nil {
			return "", err
		}
		short, _, _ := strings.Cut(name, ".")
		if pod.Spec.HostnameOverride != nil {
			short = name
		}
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, short, domain, short)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, name)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	path := filepath.Join(k.podDir(pod.UID), "etc-hosts")
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, b.Bytes()) {
		return path, nil
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return "", fmt.Errorf("write hosts file: %w", err)
	}
	return path, os.Chmod(path, 0o644)
}

const (
	maxSearches   = 32
	maxSearchSize = 2048
	maxServers    = 3
)

// podDNS is the pod's resolver configuration by its policy.
func (k *Kubelet) podDNS(pod *corev1.Pod) (*runtimeapi.DNSConfig, error) {
	host, err := readResolvConf(k.d.ResolvConf)
	if err != nil {
		return nil, err
	}
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && hostNetwork(pod) {
		policy = corev1.DNSDefault
	}
	var d *runtimeapi.DNSConfig
	switch policy {
	case corev1.DNSNone:
		d = &runtimeapi.DNSConfig{}
	case corev1.DNSDefault:
		d = host
		if len(k.d.ClusterDNS) == 0 && len(d.Servers) == 0 {
			d.Servers = []string{"127.0.0.1"}
		}
	default:
		if len(k.d.ClusterDNS) == 0 {
			d = host
			break
		}
		d = &runtimeapi.DNSConfig{Options: []string{"ndots:5"}}
		for _, ip := range k.d.ClusterDNS {
			d.Servers = append(d.Servers, ip.String())
		}
		if cd := k.d.ClusterDomain; cd != "" {
			d.Searches = []string{pod.Namespace + ".svc." + cd, "svc." + cd, cd}
		}
		for _, s := range host.Searches {
			if !slices.Contains(d.Searches, s) {
				d.Searches = append(d.Searches, s)
			}
		}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		d.Servers = appendNew(d.Servers, c.Nameservers)
		d.Searches = appendNew(d.Searches, c.Searches)
		d.Options = mergeOptions(d.Options, c.Options)
	}
	if len(d.Servers) > maxServers {
		d.Servers = d.Servers[:maxServers]
	}
	if len(d.Searches) > maxSearches {
		d.Searches = d.Searches[:maxSearches]
	}
	for len(strings.Join(d.Searches, " ")) > maxSearchSize {
		d.Searches = d.Searches[:len(d.Searches)-1]
	}
	return d, nil
}

func appendNew(list, more []string) []string {
	for _, m := range more {
		if !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

// mergeOptions puts a pod's resolver options over those of its policy.
func mergeOptions(base []string, more []corev1.PodDNSConfigOption) []string {
	var out []string
	for _, b := range base {
		name, _, _ := strings.Cut(b, ":")
		if !slices.ContainsFunc(more, func(o corev1.PodDNSConfigOption) bool { return o.Name == name }) {
			out = append(out, b)
		}
	}
	for _, o := range more {
		if o.Value != nil && *o.Value != "" {
			out = append(out, o.Name+":"+*o.Value)
		} else {
			out = append(out, o.Name)
		}
	}
	return out
}

// readResolvConf reads a resolver configuration; a missing file is an empty one.
func readResolvConf(path string) (*runtimeapi.DNSConfig, error) {
	d := &runtimeapi.DNSConfig{}
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return d, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read resolver configuration: %w", err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		f := strings.Fields(line)
		switch f[0] {
		case "nameserver":
			if len(f) > 1 {
				d.Servers = append(d.Servers, f[1])
			}
		case "search":
			d.Searches = nil
			for _, s := range f[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				d.Searches = append(d.Searches, s)
			}
		case "options":
			d.Options = appendNew(d.Options, f[1:])
		}
	}
	return d, nil
}
