package service

import (
	"net/netip"
	"testing"

	"skiff/internal/network/nettest"
	"skiff/internal/network/pod"
)

// TestTwoNodes has two nodes on one link, each with a pod.
func TestTwoNodes(t *testing.T) {
	a, b := nettest.Node(t)
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("10.244.2.0/24")}
	cluster := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	ips := []netip.Addr{nettest.NodeIP, nettest.OutsideIP}
	var nodes []*testNode
	var pods []*testPod
	for i, space := range []*nettest.Space{a, b} {
		inst, journal := nettest.Instance(t, "svc-test-node")
		n, err := pod.New(pod.Deps{Instance: inst, Journal: journal, NetNS: space.Path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		err = n.Configure(t.Context(), pod.Config{PodCIDRs: cidrs[i : i+1], ClusterCIDRs: cluster,
			ServiceCIDRs: []netip.Prefix{svcCIDR}, NodeIPs: ips[i : i+1]})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.SetRoutes(map[netip.Prefix]netip.Addr{cidrs[0]: ips[0], cidrs[1]: ips[1]}); err != nil {
			t.Fatal(err)
		}
		p, err := New(Deps{Instance: inst, Journal: journal, NetNS: space.Path, ClusterCIDRs: cluster, ServiceCIDRs: []netip.Prefix{svcCIDR}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		tn := &testNode{t: t, node: space, inst: inst, journal: journal, pods: n, proxy: p}
		nodes = append(nodes, tn)
		pods = append(pods, tn.pod([]string{"a", "b"}[i]))
	}
	// The service's endpoint is the pod of the second node.
	for i, tn := range nodes {
		tn.sync(Service{Key: "default/web", ClusterIPs: []netip.Addr{vip}, Ports: []Port{{Protocol: "TCP", Port: 8080, NodePort: 30080,
			Endpoints: []Endpoint{{Addr: netip.AddrPortFrom(pods[1].ips[0], 80), Local: i == 1, Ready: true, Serving: true}}}}})
	}
	for _, c := range []struct {
		what       string
		from       *nettest.Space
		to         string
		name, seen string
	}{
		{"pod to pod", pods[0].Space, at(pods[1].ips[0], 80), "b", pods[0].ips[0].String()},
		{"pod to pod, back", pods[1].Space, at(pods[0].ips[0], 80), "a", pods[1].ips[0].String()},
		{"node to the other's pod", a, at(pods[1].ips[0], 80), "b", nettest.NodeIP.String()},
		{"pod to service", pods[0].Space, at(vip, 8080), "b", pods[0].ips[0].String()},
		{"pod to service, the same node", pods[1].Space, at(vip, 8080), "b", nettest.OutsideIP.String()}, // itself
		{"node to service", a, at(vip, 8080), "b", nettest.NodeIP.String()},
		{"to the other node's port", b, at(nettest.NodeIP, 30080), "b", nettest.NodeIP.String()},
		{"pod to its own node's port", pods[0].Space, at(nettest.NodeIP, 30080), "b", nettest.NodeIP.String()},
	} {
		name, seen := c.from.MustAsk("tcp", c.to)
		if name != c.name || seen != c.seen {
			t.Errorf("%s: answered by %s, which saw %s; want %s and %s", c.what, name, seen, c.name, c.seen)
		}
	}
}
