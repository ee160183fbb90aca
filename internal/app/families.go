package app

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A cluster has one IP family or two: podCIDR names a range of each, the primary
// one first. Services have the primary one, and both where serviceCIDR names two;
// a node has an address of each.

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// list splits a setting that may have two values.
func list(v string) []string {
	if strings.TrimSpace(v) == "" {
		return nil
	}
	out := strings.Split(v, ",")
	for i := range out {
		out[i] = strings.TrimSpace(out[i])
	}
	return out
}

// prefixes are the ranges of a setting, those that are none left out.
func prefixes(v string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list(v) {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// parseCIDRs reads a setting of one range, or one of each family. longest are the
// longest prefixes of IPv4 and of IPv6.
func parseCIDRs(field, v string, longest [2]int) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list(v) {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return nil, &ConfigError{field, fmt.Sprintf("%q: must be a CIDR such as 10.0.0.0/16", s)}
		}
		if p != p.Masked() {
			return nil, &ConfigError{field, fmt.Sprintf("%q: must be the first address of its range (%s)", s, p.Masked())}
		}
		most := longest[0]
		if p.Addr().Is6() {
			most = longest[1]
		}
		if p.Bits() > most {
			return nil, &ConfigError{field, fmt.Sprintf("%q: must be /%d or larger", s, most)}
		}
		out = append(out, p)
	}
	if len(out) == 0 || len(out) > 2 || len(out) == 2 && out[0].Addr().Is4() == out[1].Addr().Is4() {
		return nil, &ConfigError{field, fmt.Sprintf("%q: must be one range, or one of each IP family, separated by a comma", v)}
	}
	return out, nil
}

// Of pods the longest prefixes leave a node its usual part, of services room for the
// cluster's own.
var podLongest, serviceLongest = [2]int{24, 64}, [2]int{28, 124}

// serviceShortest is the largest IPv6 range that addresses are given out of.
const serviceShortest = 64

// setRanges fills in the ranges and what derives from them.
func (s *Settings) setRanges(c *Config) error {
	var err error
	if s.PodRanges, err = parseCIDRs("podCIDR", c.PodCIDR, podLongest); err != nil {
		return err
	}
	if s.ServiceRanges, err = parseCIDRs("serviceCIDR", c.ServiceCIDR, serviceLongest); err != nil {
		return err
	}
	for i, svc := range s.ServiceRanges {
		if svc.Addr().Is6() && svc.Bits() < serviceShortest {
			return &ConfigError{"serviceCIDR", fmt.Sprintf("%q: must be /%d or smaller", svc, serviceShortest)}
		}
		if i >= len(s.PodRanges) || s.PodRanges[i].Addr().Is4() != svc.Addr().Is4() {
			return &ConfigError{"serviceCIDR", fmt.Sprintf("%q: must have the IP families of podCIDR (%s) in the same order, or the first alone", c.ServiceCIDR, c.PodCIDR)}
		}
		for _, pods := range s.PodRanges {
			if pods.Overlaps(svc) {
				return &ConfigError{"serviceCIDR", fmt.Sprintf("%s overlaps podCIDR %s", svc, pods)}
			}
		}
		s.DNSIPs = append(s.DNSIPs, nth(svc.Addr(), 10))
	}
	s.APIServiceIP = s.ServiceRanges[0].Addr().Next()
	return nil
}

// setNodeAddrs fills in the node's addresses, the primary family's first. What is
// not said is found out.
func (s *Settings) setNodeAddrs(c *Config, find func(v6 bool) (netip.Addr, error)) error {
	said := map[bool]netip.Addr{}
	for _, v := range list(c.NodeIP) {
		a, err := netip.ParseAddr(v)
		if err != nil || a.Zone() != "" {
			return &ConfigError{"nodeIP", fmt.Sprintf("%q: must be an IP address", v)}
		}
		a = a.Unmap()
		if _, twice := said[a.Is6()]; twice {
			return &ConfigError{"nodeIP", fmt.Sprintf("%q: must be one address, or one of each IP family, separated by a comma", c.NodeIP)}
		}
		for _, p := range slices.Concat(s.PodRanges, s.ServiceRanges) {
			if p.Contains(a) {
				return &ConfigError{"nodeIP", fmt.Sprintf("%s lies within podCIDR or serviceCIDR", a)}
			}
		}
		said[a.Is6()] = a
	}
	primary := s.PodRanges[0].Addr().Is6()
	for _, v6 := range []bool{primary, !primary} {
		a, ok := said[v6]
		needed := slices.ContainsFunc(s.PodRanges, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
		if !ok && needed {
			var err error
			if a, err = find(v6); err != nil {
				return &ConfigError{"nodeIP", fmt.Sprintf("this host has no %s address besides loopback and those of a link alone; set one", familyName(v6))}
			}
			ok = true
		}
		if ok {
			s.NodeAddrs = append(s.NodeAddrs, a)
		}
	}
	var text []string
	for _, a := range s.NodeAddrs {
		text = append(text, a.String())
	}
	c.NodeIP = strings.Join(text, ",")
	return nil
}

// NodeAddr is the node's address of the cluster's primary family.
func (s *Settings) NodeAddr() netip.Addr { return s.NodeAddrs[0] }

// usesIPv6 tells that pods have IPv6 addresses.
func (s *Settings) usesIPv6() bool {
	return slices.ContainsFunc(s.PodRanges, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// ofFamilies are the addresses whose family pods have, the primary one first.
func (s *Settings) ofFamilies(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, p := range s.PodRanges {
		for _, a := range addrs {
			if a.Is4() == p.Addr().Is4() {
				out = append(out, a)
			}
		}
	}
	return out
}
