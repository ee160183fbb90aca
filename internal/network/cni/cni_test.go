package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"skiff/internal/network/nettest"
	"skiff/internal/network/pod"
)

// plugin is a CNI plugin that notes how it is called; the file "fail" beside it
// names a command that fails.
const plugin = `#!/bin/sh
dir=$(dirname "$0")
conf=$(cat)
echo "$CNI_COMMAND id=$CNI_CONTAINERID netns=$CNI_NETNS if=$CNI_IFNAME args=$CNI_ARGS conf=$conf" >>"$dir/calls"
if [ "$(cat "$dir/fail" 2>/dev/null)" = "$CNI_COMMAND" ]; then
	echo '{"cniVersion":"1.1.0","code":11,"msg":"try again later"}'
	exit 1
fi
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}' ;;
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.1.2.3/24","interface":0},{"address":"fd00::3/64","interface":0}]}' ;;
esac
`

type fixture struct {
	t    *testing.T
	conf string
	bin  string
	net  *Network
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, conf: t.TempDir(), bin: t.TempDir()}
	f.write(filepath.Join(f.bin, "fake"), plugin, 0o755)
	inst, _ := nettest.Instance(t, "net-test-cni")
	f.net = New(Deps{Instance: inst, ConfDir: f.conf, BinDirs: []string{f.bin}})
	return f
}

func (f *fixture) write(path, content string, mode os.FileMode) {
	f.t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) config(file, name string) {
	f.t.Helper()
	f.write(filepath.Join(f.conf, file), fmt.Sprintf(
		`{"cniVersion":"1.1.0","name":%q,"plugins":[{"type":"fake","capabilities":{"portMappings":true}}]}`, name), 0o644)
}

// calls returns what the plugin was asked since the last time, VERSION aside.
func (f *fixture) calls() []string {
	f.t.Helper()
	path := filepath.Join(f.bin, "calls")
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	_ = os.Remove(path)
	var out []string
	for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		if l != "" && !strings.HasPrefix(l, "VERSION") {
			out = append(out, l)
		}
	}
	return out
}

func (f *fixture) want(parts ...string) {
	f.t.Helper()
	calls := f.calls()
	ok := len(calls) == len(parts)
	for i := 0; ok && i < len(parts); i++ {
		ok = strings.HasPrefix(calls[i], parts[i])
	}
	if !ok {
		f.t.Fatalf("calls\n%s\nwant\n%s", strings.Join(calls, "\n"), strings.Join(parts, "\n"))
	}
}

func TestAttachDetach(t *testing.T) {
	f := newFixture(t)
	if err := f.net.Ready(); !errors.Is(err, ErrNoConfig) {
		t.Fatalf("without a configuration: %v", err)
	}
	f.config("20-b.conflist", "second")
	f.config("10-a.conflist", "first")
	f.write(filepath.Join(f.conf, "00-notes.txt"), "not a configuration", 0o644)
	if err := f.net.Ready(); err != nil {
		t.Fatal(err)
	}
	f.want("STATUS")

	s := nettest.New(t)
	sandbox := pod.Sandbox{ID: "abc", Namespace: "default", Name: "web", UID: "u", NetNS: s.Path,
		HostPorts: []pod.HostPort{{Protocol: "TCP", HostPort: 8080, ContainerPort: 80, HostIP: netip.MustParseAddr("192.0.2.1")}}}
	for range 2 { // the second time without the plugin
		r, err := f.net.Attach(t.Context(), sandbox)
		if err != nil || fmt.Sprint(r.IPs) != "[10.1.2.3 fd00::3]" {
			t.Fatalf("%v, %v", r, err)
		}
	}
	calls := f.calls()
	if len(calls) != 1 || !strings.HasPrefix(calls[0], "ADD id=abc netns="+s.Path+" if=eth0 args=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;") ||
		!strings.Contains(calls[0], `"portMappings":[{"containerPort":80,"hostIP":"192.0.2.1","hostPort":8080,"protocol":"tcp"}]`) ||
		!strings.Contains(calls[0], `"name":"first"`) {
		t.Fatalf("calls %q", calls)
	}
	s.Netlink(func(h *netlink.Handle) {
		lo, err := h.LinkByName("lo")
		if err != nil || lo.Attrs().RawFlags&1 == 0 {
			t.Errorf("lo: %v, %v", lo, err)
		}
	})

	// The configuration of the attachment is used, not the present one.
	if err := os.Remove(filepath.Join(f.conf, "10-a.conflist")); err != nil {
		t.Fatal(err)
	}
	sandbox.NetNS = "/proc/0/ns/net"
	if err := f.net.Detach(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
	calls = f.calls()
	if len(calls) != 1 || !strings.HasPrefix(calls[0], "DEL id=abc netns= if=eth0") || !strings.Contains(calls[0], `"name":"first"`) {
		t.Fatalf("calls %q", calls)
	}
	// A second time it asks nobody, so no configuration of today is in the way.
	f.write(filepath.Join(f.conf, "10-a.conflist"), "{", 0o644)
	if err := f.net.Detach(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
	f.want()
}

// An attachment that was begun and not noted is undone by the configuration of the
// day; one that was never begun asks nobody.
func TestDetachUnfinished(t *testing.T) {
	f := newFixture(t)
	f.config("10-a.conflist", "net")
	s := pod.Sandbox{ID: "abc", NetNS: nettest.New(t).Path}
	if err := f.net.Detach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f.want()
	if err := f.net.keepNamespace(s); err != nil {
		t.Fatal(err)
	}
	f.write(filepath.Join(f.bin, "fail"), "DEL", 0o644)
	if err := f.net.Detach(t.Context(), s); err == nil || !strings.Contains(err.Error(), "try again later") {
		t.Fatalf("got %v", err)
	}
	f.write(filepath.Join(f.bin, "fail"), "", 0o644)
	for range 2 {
		if err := f.net.Detach(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	f.want("DEL id=abc netns="+s.NetNS, "DEL id=abc netns="+s.NetNS)
}

func TestFailingPlugin(t *testing.T) {
	f := newFixture(t)
	f.config("10-a.conflist", "net")
	f.write(filepath.Join(f.bin, "fail"), "ADD", 0o644)
	s := nettest.New(t)
	sandbox := pod.Sandbox{ID: "abc", NetNS: s.Path}
	_, err := f.net.Attach(t.Context(), sandbox)
	if err == nil || !strings.Contains(err.Error(), `attach sandbox "abc" to CNI network net`) || !strings.Contains(err.Error(), "try again later") {
		t.Fatalf("got %v", err)
	}
	f.want("ADD", "DEL")
	f.write(filepath.Join(f.bin, "fail"), "STATUS", 0o644)
	if err := f.net.Ready(); err == nil || !strings.Contains(err.Error(), "try again later") {
		t.Fatalf("Ready: %v", err)
	}
}

func TestNewNamespaceIsAttachedAnew(t *testing.T) {
	f := newFixture(t)
	f.write(filepath.Join(f.conf, "10-a.conf"), `{"cniVersion":"0.4.0","name":"old","type":"fake"}`, 0o644)
	for _, s := range []*nettest.Space{nettest.New(t), nettest.New(t)} {
		if _, err := f.net.Attach(t.Context(), pod.Sandbox{ID: "abc", NetNS: s.Path}); err != nil {
			t.Fatal(err)
		}
	}
	f.want("ADD", "DEL", "ADD")
}

func TestRetain(t *testing.T) {
	f := newFixture(t)
	f.config("10-a.conflist", "net")
	for _, id := range []string{"a", "b"} {
		if _, err := f.net.Attach(t.Context(), pod.Sandbox{ID: id, NetNS: nettest.New(t).Path}); err != nil {
			t.Fatal(err)
		}
	}
	f.calls()
	if err := f.net.Retain(t.Context(), []string{"a"}); err != nil {
		t.Fatal(err)
	}
	f.want("DEL id=b")
}

func TestBadConfig(t *testing.T) {
	f := newFixture(t)
	f.write(filepath.Join(f.conf, "10-a.conflist"), "{", 0o644)
	if err := f.net.Ready(); err == nil || !strings.Contains(err.Error(), "10-a.conflist") {
		t.Fatalf("got %v", err)
	}
	if _, err := f.net.Attach(t.Context(), pod.Sandbox{ID: "a", NetNS: "/proc/self/ns/net"}); err == nil {
		t.Fatal("attached")
	}
}

// A path that leads to another namespace by now, since a process got the number of
// the pod's, is not given to plugins: they would take that one's links.
func TestDetachLeavesOtherNamespacesAlone(t *testing.T) {
	f := newFixture(t)
	f.config("10-a.conflist", "first")
	own, other := nettest.New(t), nettest.New(t)
	path := filepath.Join(t.TempDir(), "ns")
	if err := os.Symlink(own.Path, path); err != nil {
		t.Fatal(err)
	}
	s := pod.Sandbox{ID: "abc", NetNS: path}
	if _, err := f.net.Attach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f.want("ADD id=abc netns=" + path)
	if err := errors.Join(os.Remove(path), os.Symlink(other.Path, path)); err != nil {
		t.Fatal(err)
	}
	if err := f.net.Detach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	f.want("DEL id=abc netns= ")
}
