package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skiff/internal/host"
	"skiff/internal/network/nft"
	"skiff/internal/network/ns"
	"skiff/internal/network/pod"
)

// Undo takes back what a journal entry says was put on the host, in the network
// namespace at netns (empty: the process's). handled is false for kinds that are
// not the network's. What is gone already is no error.
func Undo(netns string, e host.Entry) (handled bool, err error) {
	var undo func(ns.NS, host.Entry) error
	switch e.Kind {
	case host.KindTable:
		undo = undoTable
	case host.KindLinks, host.KindLink:
		undo = undoLinks
	case host.KindRoutes:
		undo = undoRoutes
	case host.KindSysctl:
		undo = undoSysctl
	case pod.KindAddress:
		undo = undoAddress
	default:
		return false, nil
	}
	space, err := ns.Open(netns)
	if err != nil {
		return true, err
	}
	defer space.Close()
	if err := undo(space, e); err != nil {
		return true, fmt.Errorf("undo %s %q: %w", e.Kind, e.Name, err)
	}
	return true, nil
}

func undoTable(space ns.NS, e host.Entry) error {
	family, name, ok := strings.Cut(e.Name, " ")
	families := map[string]nftables.TableFamily{
		"ip": nftables.TableFamilyIPv4, "ip6": nftables.TableFamilyIPv6, "inet": nftables.TableFamilyINet}
	f, known := families[family]
	if !ok || !known {
		return errors.New("must be ip, ip6 or inet, and a name")
	}
	c := nft.Dial(space)
	defer c.Close()
	return c.Do(func(t *nft.Txn) { t.DelTable(&nftables.Table{Name: name, Family: f}) })
}

func undoLinks(space ns.NS, e host.Entry) error {
	return withHandle(space, func(h *netlink.Handle) error {
		links, err := ns.Dump(h.LinkList)
		if err != nil {
			return err
		}
		var errs []error
		for _, l := range links {
			name := l.Attrs().Name
			if name != e.Name && (e.Kind == host.KindLink || e.Name == "" || !strings.HasPrefix(name, e.Name)) {
				continue
			}
			if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("delete link %s: %w", name, err))
			}
		}
		return errors.Join(errs...)
	})
}

func undoRoutes(space ns.NS, e host.Entry) error {
	proto, err := strconv.Atoi(e.Name)
	if err != nil || proto <= unix.RTPROT_STATIC || proto > 255 {
		return errors.New("must be a routing protocol number that is no system's")
	}
	return withHandle(space, func(h *netlink.Handle) error {
		routes, err := ns.Dump(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(netlink.FAMILY_ALL,
				&netlink.Route{Protocol: netlink.RouteProtocol(proto), Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return err
		}
		var errs []error
		for _, r := range routes {
			if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
				errs = append(errs, fmt.Errorf("delete route to %s: %w", r.Dst, err))
			}
		}
		return errors.Join(errs...)
	})
}

// undoSysctl leaves a setting alone that has another value than was written:
// someone else has taken it over. So does a setting that is no more.
func undoSysctl(space ns.NS, e host.Entry) error {
	now, err := space.Sysctl(e.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || now != e.Value {
		return err
	}
	return space.SetSysctl(e.Name, e.Prior)
}

func undoAddress(space ns.NS, e host.Entry) error {
	link, cidr, _ := strings.Cut(e.Name, " ")
	ip, prefix, err := net.ParseCIDR(cidr)
	if err != nil {
		return err
	}
	return withHandle(space, func(h *netlink.Handle) error {
		l, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		err = h.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: prefix.Mask}})
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil
		}
		return err
	})
}

func withHandle(space ns.NS, fn func(*netlink.Handle) error) error {
	var h *netlink.Handle
	err := space.Do(func() (err error) { h, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}
