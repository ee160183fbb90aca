package service

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"skiff/internal/network/nft"
)

// Refused is a node port of a service that is not in effect here, since another
// cluster on this host has it.
type Refused struct {
	Service  string // namespace/name
	Protocol string
	Port     uint16
	// By is the name of the instance that has it; empty where it could not be told.
	By string
}

// Refused lists, in order of services, the node ports that the last changes left
// out. A service is tried again with its next change.
func (p *Proxy) Refused() []Refused {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Refused
	for _, r := range p.refused {
		out = append(out, r...)
	}
	slices.SortFunc(out, func(a, b Refused) int {
		if c := strings.Compare(a.Service, b.Service); c != 0 {
			return c
		}
		return int(a.Port) - int(b.Port)
	})
	return out
}

// yield takes out of the fragments the node ports that other instances have. It
// returns what ends the instances' common turn: until then no other one looks.
// Ports that are in effect stay; only new ones are looked for.
func (p *Proxy) yield(next map[string]*fragment) (done func()) {
	fresh := func(f front) bool { return f.addr.IsUnspecified() && p.state.owner[f.frontend] == "" }
	any := false
	for key, frag := range next {
		delete(p.refused, key)
		any = any || frag != nil && slices.ContainsFunc(frag.fronts, fresh)
	}
	if !any {
		return func() {}
	}
	done, err := p.turn()
	taken := map[frontend]string{}
	for _, f := range p.families {
		if err == nil {
			err = p.nodePorts(f, taken)
		}
	}
	if err != nil {
		// Nothing is taken that may be another's.
		p.deps.Log.Error("look for other clusters' node ports", "err", err)
	} else if len(taken) == 0 {
		return done
	}
	for key, frag := range next {
		if frag == nil {
			continue
		}
		var last Refused
		frag.fronts = slices.DeleteFunc(frag.fronts, func(f front) bool {
			by, is := taken[f.frontend]
			if !is && err == nil || !fresh(f) {
				return false
			}
			r := Refused{Service: key, Protocol: protoName(f.proto), Port: f.port, By: by}
			if r != last { // once, not per family
				p.refused[key] = append(p.refused[key], r)
				last = r
			}
			return true
		})
	}
	return done
}

// turn waits until no other instance decides about node ports.
func (p *Proxy) turn() (done func(), err error) {
	d, err := os.Open(filepath.Dir(p.deps.Instance.RunDir))
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil // nobody else is there
	}
	if err != nil {
		return func() {}, fmt.Errorf("node ports of other clusters: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return func() {}, fmt.Errorf("node ports of other clusters: %w", err)
	}
	return func() { d.Close() }, nil
}

// nodePorts adds to taken the node ports in the rules of other instances.
func (p *Proxy) nodePorts(f nft.Family, taken map[frontend]string) error {
	return p.nft.Query(func(c *nftables.Conn) error {
		tables, err := c.ListTablesOfFamily(f.Table)
		if err != nil {
			return fmt.Errorf("list tables: %w", err)
		}
		for _, t := range tables {
			name, ours := strings.CutPrefix(t.Name, "skiff-")
			name, services := strings.CutSuffix(name, "-services")
			if !ours || !services || t.Name == p.tableName() {
				continue
			}
			elems, err := c.GetSetElements(&nftables.Set{Table: t, Name: "services"})
			if errors.Is(err, unix.ENOENT) {
				continue // it goes meanwhile
			}
			if err != nil {
				return fmt.Errorf("read services of %s: %w", t.Name, err)
			}
			for _, e := range elems {
				if at, ok := parseFront(f, e.Key); ok && at.addr.IsUnspecified() {
					taken[at] = name
				}
			}
		}
		return nil
	})
}

func protoName(p byte) string {
	switch p {
	case unix.IPPROTO_UDP:
		return "UDP"
	case unix.IPPROTO_SCTP:
		return "SCTP"
	}
	return "TCP"
}

// parseFront is the reverse of layout.frontKey.
func parseFront(f nft.Family, key []byte) (frontend, bool) {
	a := int(f.AddrLen)
	if len(key) != a+8 {
		return frontend{}, false
	}
	addr, ok := netip.AddrFromSlice(key[:a])
	return frontend{addr, key[a], uint16(key[a+4])<<8 | uint16(key[a+5])}, ok
}
