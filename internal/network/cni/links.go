package cni

import (
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"skiff/internal/host"
	"skiff/internal/network/ns"
)

// noteLinks prepares for the first pod of a network in this process: the links of
// the host that plugins make for all of its pods, a bridge say, stay when the last
// pod goes. The function returned puts them into the journal. Those that were there
// before are somebody else's.
func (n *Network) noteLinks(network string) (note func(types.Result) error, err error) {
	n.mu.Lock()
	known := n.known[network]
	n.mu.Unlock()
	if known || n.deps.Journal == nil {
		return func(types.Result) error { return nil }, nil
	}
	links, err := ns.Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	before := map[string]bool{}
	for _, l := range links {
		before[l.Attrs().Name] = true
	}
	return func(r types.Result) error {
		v, err := types100.NewResultFromResult(r)
		if err != nil {
			return err
		}
		for _, i := range v.Interfaces {
			if i.Sandbox != "" || before[i.Name] {
				continue
			}
			// A pod's own link goes with the pod.
			l, err := netlink.LinkByName(i.Name)
			if err != nil || l.Type() == "veth" {
				continue
			}
			if err := n.deps.Journal.Record(host.Entry{Kind: host.KindLink, Name: i.Name}); err != nil {
				return err
			}
		}
		n.mu.Lock()
		n.known[network] = true
		n.mu.Unlock()
		return nil
	}, nil
}
