package app

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"skiff/internal/host"
)

// taken is a range that a new cluster must keep off, and whose it is.
type taken struct {
	prefix netip.Prefix
	owner  string
	// soft ones are kept off by what is chosen here, not by what is said.
	soft bool
}

// How many ranges there are to choose from, of each kind: pods get 10.244.0.0/16
// and downwards, services 10.96.0.0/16 and upwards; of IPv6 fd00:10:244::/56 and
// fd00:10:96::/112, with the same digits.
const rangeChoices = 61

func podChoice(n int, v6 bool) netip.Prefix { return choice(244-n, v6, 56) }

func serviceChoice(n int, v6 bool) netip.Prefix { return choice(96+n, v6, 112) }

func choice(n int, v6 bool, bits6 int) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:10:%d::", n)), bits6)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, 0}), 16)
}

// keepApart chooses the ranges of a cluster that is not made yet.
func (c *Config) keepApart(x host.Index) error {
	i, err := c.Instance()
	if err != nil {
		return err
	}
	if _, err := os.Stat(configPath(i)); err == nil {
		return nil
	}
	return c.chooseRanges(i, takenRanges(x, i.Name))
}

// chooseRanges gives a new cluster ranges that nobody has, where none were said,
// and refuses ranges that another cluster on this machine has: the rules of both
// would take each other's packets.
func (c *Config) chooseRanges(i host.Instance, others []taken) error {
	// A cluster with a name of its own starts to look at a place of its own, so
	// that two that are made at the same time do not choose the same.
	first := 0
	if i.Name != host.DefaultName {
		fmt.Sscanf(i.Tag()[:2], "%02x", &first) //nolint:errcheck // two hex digits always
		first = 1 + first%(rangeChoices-1)
	}
	families := []bool{false} // IPv6?
	for _, said := range []string{c.ServiceCIDR, c.PodCIDR} {
		for i, p := range prefixes(said) {
			others = append(others, taken{prefix: p, soft: true})
			if i == 0 {
				families = nil
			}
			families = append(families, p.Addr().Is6())
		}
	}
	for _, f := range []struct {
		field  string
		value  *string
		choice func(n int, v6 bool) netip.Prefix
	}{{"podCIDR", &c.PodCIDR, podChoice}, {"serviceCIDR", &c.ServiceCIDR, serviceChoice}} {
		free := func(v6 bool) (netip.Prefix, bool) {
			for k := range rangeChoices {
				if p := f.choice((first+k)%rangeChoices, v6); meets(p, others, true) == nil {
					return p, true
				}
			}
			return f.choice(first, v6), false // the check below, or Complete's, says what is wrong with it
		}
		if *f.value == "" {
			var chosen []string
			for _, v6 := range families {
				p, _ := free(v6)
				chosen = append(chosen, p.String())
			}
			*f.value = strings.Join(chosen, ",")
		}
		for _, p := range prefixes(*f.value) { // Complete finds those that are none
			if o := meets(p, others, false); o != nil {
				hint := "choose another one"
				if p, ok := free(p.Addr().Is6()); ok {
					hint += ", " + p.String() + " say"
				}
				return &ConfigError{f.field, fmt.Sprintf("%s overlaps %s of cluster %q on this machine; %s", p, o.prefix, o.owner, hint)}
			}
		}
	}
	return nil
}

func meets(p netip.Prefix, others []taken, soft bool) *taken {
	for i, o := range others {
		if (soft || !o.soft) && o.prefix.Overlaps(p) {
			return &others[i]
		}
	}
	return nil
}

// takenRanges are those of the other clusters on this machine, and the networks
// that it is in itself.
func takenRanges(x host.Index, self string) []taken {
	var out []taken
	for name, dir := range x.All() {
		if name == self {
			continue
		}
		c, err := LoadConfig(filepath.Join(dir, configFile))
		if err != nil {
			continue // not started yet, or not to be read: it has no rules of this version
		}
		for _, v := range []string{c.PodCIDR, c.ServiceCIDR} {
			for _, p := range prefixes(v) {
				out = append(out, taken{prefix: p, owner: name})
			}
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return out
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		if p := netip.PrefixFrom(ip.Unmap(), ones); ok && p.IsValid() {
			out = append(out, taken{prefix: p.Masked(), soft: true})
		}
	}
	return out
}
