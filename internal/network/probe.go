package network

import (
	"errors"
	"fmt"
	"net"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skiff/internal/network/nft"
	"skiff/internal/network/ns"
)

// MissingError is a feature that the kernel lacks.
type MissingError struct {
	// Feature as a person calls it, and the module that may have it.
	Feature, Module string
	Err             error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("this kernel has no %s: %v", e.Feature, e.Err)
}

func (e *MissingError) Unwrap() error { return e.Err }

// Probe asks the kernel for what pods' networks are made of, and makes nothing. It
// needs root.
func Probe() error {
	space, err := ns.Open("")
	if err != nil {
		return err
	}
	defer space.Close()
	c := nft.Dial(space)
	defer c.Close()
	if err := c.Query(func(c *nftables.Conn) error { _, err := c.ListTables(); return err }); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("ask for nftables: %w", err)
		}
		return &MissingError{"nftables", "nf_tables", err}
	}
	return withHandle(space, func(h *netlink.Handle) error {
		// A link with this hardware address is refused by those who know what a veth
		// is, before anything is made.
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = "skprobe", make(net.HardwareAddr, 6)
		err := h.LinkAdd(netlink.NewVeth(attrs))
		if err == nil {
			return h.LinkDel(&netlink.Veth{LinkAttrs: attrs})
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			return &MissingError{"virtual links (veth)", "veth", err}
		}
		return nil
	})
}
