package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (r *Runtime) hostname(s *sandbox) string {
	if h := s.config.GetHostname(); h != "" && !s.hostNetwork() {
		return h
	}
	h, _ := os.Hostname()
	return h
}

// writeFiles makes what is bound over the containers' /etc.
func (r *Runtime) writeFiles(s *sandbox) error {
	resolv, err := resolvConf(s.config.GetDnsConfig())
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		hosts = []byte("127.0.0.1\tlocalhost\n::1\tlocalhost\n")
	}
	for name, content := range map[string][]byte{
		"resolv.conf": resolv, "hosts": hosts, "hostname": []byte(r.hostname(s) + "\n"),
	} {
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
		if err := s.own(path); err != nil {
			return err
		}
	}
	return nil
}

// resolvConf writes the pod's DNS configuration; without one the host's holds.
func resolvConf(d *runtimeapi.DNSConfig) ([]byte, error) {
	if d == nil || len(d.GetServers())+len(d.GetSearches())+len(d.GetOptions()) == 0 {
		b, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	var b strings.Builder
	if len(d.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.GetSearches(), " "))
	}
	for _, n := range d.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	if len(d.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.GetOptions(), " "))
	}
	return []byte(b.String()), nil
}
