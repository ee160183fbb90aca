package app

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// defaultAddr is the address of a family that the host uses towards others: found
// by asking the kernel for a route, without sending anything.
func defaultAddr(v6 bool) (netip.Addr, error) {
	network, other := "udp4", "198.51.100.1:9"
	d := net.Dialer{}
	if v6 {
		network, other = "udp6", "[2001:db8::1]:9"
		// Not one that will be given up soon, for the sake of privacy (RFC 5014).
		d.Control = func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_ADDR_PREFERENCES, preferPublic)
			})
		}
	}
	if c, err := d.Dial(network, other); err == nil {
		defer c.Close()
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok && !a.IP.IsLoopback() && !a.IP.IsLinkLocalUnicast() {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				return ip.Unmap(), nil
			}
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.IsLoopback() || n.IP.IsLinkLocalUnicast() {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap().Is6() == v6 {
			return ip.Unmap(), nil
		}
	}
	return netip.Addr{}, errors.New("no address")
}

// preferPublic is IPV6_PREFER_SRC_PUBLIC.
const preferPublic = 2

// freePort finds a port from first on that nobody listens on.
func freePort(first int) int {
	for p := first; p < first+1000 && p <= 65535; p++ {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", p))
		if err == nil {
			l.Close()
			return p
		}
	}
	return first
}
