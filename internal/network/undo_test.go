package network_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"skiff/internal/host"
	"skiff/internal/network"
	"skiff/internal/network/nettest"
	"skiff/internal/network/ns"
	"skiff/internal/network/pod"
	"skiff/internal/network/service"
)

// snapshot shows all that the network may change in a namespace.
func snapshot(t *testing.T, node *nettest.Space) string {
	t.Helper()
	var out []string
	node.Netlink(func(h *netlink.Handle) {
		links, err := h.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			out = append(out, "link "+l.Attrs().Name)
		}
		addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			out = append(out, "address "+a.IPNet.String())
		}
		routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			out = append(out, "route "+r.String())
		}
	})
	space, err := ns.Open(node.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	err = space.Do(func() error {
		for _, dir := range []string{"/proc/sys/net/ipv4", "/proc/sys/net/ipv6", "/proc/sys/net/netfilter", "/proc/sys/net/core"} {
			err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() || strings.Contains(path, "stable_secret") || strings.HasSuffix(path, "nf_conntrack_count") ||
					strings.Contains(path, "/neigh/") || strings.HasSuffix(path, "flush") {
					return nil
				}
				b, _ := os.ReadFile(path)
				out = append(out, fmt.Sprintf("%s=%q", path, b))
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, "\n") + "\n" + node.Ruleset()
}

// TestUndo compares a namespace before the network came and after its journal
// has been undone, once and once more.
func TestUndo(t *testing.T) {
	node, _ := nettest.Node(t)
	inst, journal := nettest.Instance(t, "net-test-undo")
	before := snapshot(t, node)

	n, err := pod.New(pod.Deps{Instance: inst, Journal: journal, NetNS: node.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	v4, v6 := netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("fd00:10:244:3::/64")
	err = n.Configure(t.Context(), pod.Config{PodCIDRs: []netip.Prefix{v4, v6}, LocalAddrs: pod.LocalAddrs(inst),
		NodeIPs: []netip.Addr{nettest.NodeIP, nettest.NodeIP6}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.SetRoutes(map[netip.Prefix]netip.Addr{netip.MustParsePrefix("10.244.4.0/24"): nettest.OutsideIP}); err != nil {
		t.Fatal(err)
	}
	s := nettest.New(t)
	_, err = n.Attach(t.Context(), pod.Sandbox{ID: "a", NetNS: s.Path, HostPorts: []pod.HostPort{{HostPort: 80, ContainerPort: 80}}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := service.New(service.Deps{Instance: inst, Journal: journal, NetNS: node.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Sync(t.Context(), []service.Service{{Key: "a/b", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []service.Port{{Port: 80}}}}); err != nil {
		t.Fatal(err)
	}
	if snapshot(t, node) == before {
		t.Fatal("nothing has changed")
	}
	for range 2 {
		for _, e := range journal.Entries() {
			if handled, err := network.Undo(node.Path, e); err != nil || !handled {
				t.Errorf("%v: handled %v, %v", e, handled, err)
			}
		}
	}
	if after := snapshot(t, node); after != before {
		t.Errorf("left behind or taken away:\n%s", diff(before, after))
	}
	if handled, err := network.Undo(node.Path, host.Entry{Kind: host.KindDir, Name: "/nothing"}); handled || err != nil {
		t.Errorf("a directory: handled %v, %v", handled, err)
	}
}

func diff(a, b string) string {
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out []string
	for _, l := range la {
		if !slices.Contains(lb, l) {
			out = append(out, "-"+l)
		}
	}
	for _, l := range lb {
		if !slices.Contains(la, l) {
			out = append(out, "+"+l)
		}
	}
	return strings.Join(out, "\n")
}

// TestUndoLeavesWhatOthersChanged keeps a setting that someone else has changed
// since.
func TestUndoLeavesWhatOthersChanged(t *testing.T) {
	node := nettest.New(t)
	space, err := ns.Open(node.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	e := host.Entry{Kind: host.KindSysctl, Name: "net.ipv4.conf.all.rp_filter", Prior: "0", Value: "1"}
	for _, c := range []struct{ now, want string }{{"1", "0"}, {"2", "2"}} {
		if err := space.SetSysctl(e.Name, c.now); err != nil {
			t.Fatal(err)
		}
		if _, err := network.Undo(node.Path, e); err != nil {
			t.Fatal(err)
		}
		if got, err := space.Sysctl(e.Name); err != nil || got != c.want {
			t.Errorf("from %s: %s, %v; want %s", c.now, got, err, c.want)
		}
	}
}
