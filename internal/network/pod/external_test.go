package pod

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skiff/internal/network/nettest"
)

// TestExternal: where others attach the pods nothing of this network is in their
// way; pods that it has attached before keep theirs, until the last one has gone.
func TestExternal(t *testing.T) {
	tn := newNode(t, "net-test-external")
	configure := func(external bool) {
		t.Helper()
		c := testConfig()
		c.External, c.LocalAddrs = external, LocalAddrs(tn.inst)
		if err := tn.net.Configure(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	// held tells whether the node's pod CIDR is this network's: its addresses
	// without a pod are dropped, its packets to the outside masqueraded.
	held := func() (dropped, masqueraded bool) {
		t.Helper()
		tn.node.Netlink(func(h *netlink.Handle) {
			routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range routes {
				dropped = dropped || r.Type == unix.RTN_BLACKHOLE && prefixOf(r) == testCIDR
			}
		})
		return dropped, strings.Contains(tn.node.Ruleset(), "saddr "+testCIDR.String())
	}
	want := func(what string, is bool) {
		t.Helper()
		if dropped, masqueraded := held(); dropped != is || masqueraded != is {
			t.Errorf("%s: dropped %v, masqueraded %v, want %v", what, dropped, masqueraded, is)
		}
	}
	configure(false)
	want("built in", true)
	pod := nettest.New(t)
	s := Sandbox{ID: "before", NetNS: pod.Path}
	if _, err := tn.net.Attach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if !tn.net.Attached("before") || tn.net.Attached("other") {
		t.Error("Attached is wrong")
	}
	configure(true)
	want("external, with a pod from before", true)
	tn.outside.ServeTCP(":80", "outside")
	if _, seen := pod.MustAsk("tcp", netip.AddrPortFrom(nettest.OutsideIP, 80).String()); seen != nettest.NodeIP.String() {
		t.Errorf("the pod from before is seen as %s", seen)
	}
	if err := tn.net.Detach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	configure(true)
	want("external", false)
	if !strings.Contains(tn.node.Ruleset(), "ct status dnat accept") {
		t.Errorf("what a service sends to the local addresses is not let in:\n%s", tn.node.Ruleset())
	}
	configure(false)
	want("built in again", true)
	if strings.Contains(tn.node.Ruleset(), "ct status dnat accept") {
		t.Error("the local addresses are still open to every link")
	}
}
