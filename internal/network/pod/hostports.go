package pod

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"skiff/internal/network/nft"
)

// mapping is a host port in one family.
type mapping struct {
	proto  byte
	hostIP netip.Addr // unspecified: any
	port   uint16
	to     netip.AddrPort
}

func protoNumber(name string) (byte, error) {
	switch name {
	case "TCP", "":
		return unix.IPPROTO_TCP, nil
	case "UDP":
		return unix.IPPROTO_UDP, nil
	case "SCTP":
		return unix.IPPROTO_SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q: must be TCP, UDP or SCTP", name)
}

func mappings(ips []netip.Addr, ports []HostPort) []mapping {
	var out []mapping
	for _, hp := range ports {
		proto, err := protoNumber(hp.Protocol)
		if err != nil {
			continue // Attach has checked
		}
		for _, ip := range ips {
			hostIP := hp.HostIP.Unmap()
			if !hostIP.IsValid() || hostIP.IsUnspecified() {
				hostIP = family(ip).Any()
			}
			if hostIP.Is4() == ip.Is4() {
				out = append(out, mapping{proto, hostIP, hp.HostPort, netip.AddrPortFrom(ip, hp.ContainerPort)})
			}
		}
	}
	return out
}

func (m mapping) key() []byte {
	return slices.Concat(nft.ProtoKey(m.proto), nft.PortKey(m.port), m.hostIP.AsSlice())
}

func (m mapping) element() nftables.SetElement {
	return nftables.SetElement{Key: m.key(), Val: slices.Concat(m.to.Addr().AsSlice(), nft.PortKey(m.to.Port()))}
}

func (r rules) elements(ms []mapping) (ports, hairpin []nftables.SetElement) {
	seen := map[netip.Addr]bool{}
	for _, m := range ms {
		ip := m.to.Addr()
		if !r.f.Has(ip) {
			continue
		}
		ports = append(ports, m.element())
		if !seen[ip] {
			seen[ip] = true
			hairpin = append(hairpin, nftables.SetElement{Key: slices.Concat(ip.AsSlice(), ip.AsSlice())})
		}
	}
	return ports, hairpin
}

// mapHostPorts makes the host ports of a link what ports says.
func (n *Network) mapHostPorts(name string, ips []netip.Addr, ports []HostPort) error {
	want := mappings(ips, ports)
	n.mu.Lock()
	defer n.mu.Unlock()
	have := n.hostPorts[name]
	if slices.Equal(have, want) {
		return nil
	}
	for other, ms := range n.hostPorts {
		for _, m := range ms {
			if other != name && slices.ContainsFunc(want, func(w mapping) bool {
				return w.proto == m.proto && w.port == m.port && w.hostIP == m.hostIP
			}) {
				return fmt.Errorf("host port %d is mapped to %s already", m.port, m.to)
			}
		}
	}
	err := n.localPorts(name, want)
	if err != nil {
		return fmt.Errorf("map host ports: %w", err)
	}
	err = n.nft.Do(func(t *nft.Txn) {
		for _, f := range n.families {
			r := n.rules(f)
			p, h := r.elements(have)
			t.Delete(r.ports, p)
			t.Delete(r.hairpin, h)
			p, h = r.elements(want)
			t.Add(r.ports, p)
			t.Add(r.hairpin, h)
		}
	})
	if err != nil {
		return fmt.Errorf("map host ports: %w", err)
	}
	if len(want) == 0 {
		delete(n.hostPorts, name)
	} else {
		n.hostPorts[name] = want
	}
	return n.forgetFlows(have, want)
}

// adoptHostPorts reads back the host ports of a former run, and takes out those
// whose pods have gone since. It runs under mu.
func (n *Network) adoptHostPorts(f nft.Family) error {
	owner := map[netip.Addr]string{}
	for name, ips := range n.links {
		for _, ip := range ips {
			owner[ip] = name
		}
	}
	r := n.rules(f)
	var elems []nftables.SetElement
	err := n.nft.Query(func(c *nftables.Conn) error {
		elems = nil
		tables, err := c.ListTablesOfFamily(f.Table)
		if err != nil {
			return fmt.Errorf("list tables: %w", err)
		}
		if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == r.table.Name }) {
			return nil
		}
		if elems, err = c.GetSetElements(r.ports); err != nil {
			return fmt.Errorf("read host ports: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var left []mapping
	for _, e := range elems {
		m, ok := parseMapping(f, e)
		if !ok {
			continue
		}
		if name, attached := owner[m.to.Addr()]; !attached {
			left = append(left, m)
		} else if !slices.Contains(n.hostPorts[name], m) {
			n.hostPorts[name] = append(n.hostPorts[name], m)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return n.nft.Do(func(t *nft.Txn) {
		ports, hairpin := r.elements(left)
		t.Delete(r.ports, ports)
		t.Delete(r.hairpin, hairpin)
	})
}

func parseMapping(f nft.Family, e nftables.SetElement) (mapping, bool) {
	a := int(f.AddrLen)
	if len(e.Key) != 8+a || len(e.Val) != a+4 {
		return mapping{}, false
	}
	hostIP, _ := netip.AddrFromSlice(e.Key[8:])
	ip, _ := netip.AddrFromSlice(e.Val[:a])
	return mapping{
		proto: e.Key[0], port: binary.BigEndian.Uint16(e.Key[4:]), hostIP: hostIP,
		to: netip.AddrPortFrom(ip, binary.BigEndian.Uint16(e.Val[a:])),
	}, true
}
