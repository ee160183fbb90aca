package pod

import (
	"slices"

	"golang.org/x/sys/unix"

	"skiff/internal/network/conntrack"
)

// forgetFlows deletes conntrack entries of UDP to host ports that were mapped
// elsewhere before, or not at all: a client that keeps sending from one port would
// reach a pod that has gone, or nobody, for ever. It runs under mu.
func (n *Network) forgetFlows(before, now []mapping) error {
	var changed []mapping
	for _, m := range slices.Concat(before, now) {
		if m.proto == unix.IPPROTO_UDP && !(slices.Contains(before, m) && slices.Contains(now, m)) {
			changed = append(changed, m)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return conntrack.ForgetUDP(n.ns, n.families, func(f conntrack.Flow) bool {
		maps := func(m mapping) bool {
			return m.proto == unix.IPPROTO_UDP && m.port == f.To.Port() && m.to.Addr().Is4() == f.To.Addr().Is4() &&
				(m.hostIP == f.To.Addr() || m.hostIP.IsUnspecified())
		}
		if !f.Local || !slices.ContainsFunc(changed, maps) {
			return false
		}
		for _, ms := range n.hostPorts {
			if slices.ContainsFunc(ms, func(m mapping) bool { return maps(m) && m.to == f.By }) {
				return false // it goes where the port is mapped now
			}
		}
		return true
	})
}
