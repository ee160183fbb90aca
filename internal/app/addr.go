package app

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// defaultAddr is the address that the host uses towards others: found by asking
// the kernel for a route, without sending anything.
func defaultAddr() (netip.Addr, error) {
	if c, err := net.Dial("udp", "198.51.100.1:9"); err == nil {
		defer c.Close()
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok && !a.IP.IsLoopback() {
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
		if !ok || n.IP.IsLoopback() || n.IP.IsLinkLocalUnicast() || n.IP.To4() == nil {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP.To4()); ok {
			return ip, nil
		}
	}
	return netip.Addr{}, errors.New("no address")
}

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
