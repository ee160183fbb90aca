package pod

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// pool hands out the addresses of one prefix in turn, so that an address that
// was given back is the last one to be used again. The first and the last
// address of an IPv4 prefix, and the first of an IPv6 prefix, are never used.
type pool struct {
	prefix netip.Prefix
	// first and last usable offset from the prefix's first address, next to try.
	first, last, next uint64
	used              map[netip.Addr]bool
}

// maxPool bounds the part of an IPv6 prefix that is used.
const maxPool = 1 << 32

func newPool(p netip.Prefix) (*pool, error) {
	if !p.IsValid() || p != p.Masked() {
		return nil, fmt.Errorf("pod CIDR %q: must be a network address with its length, 10.244.0.0/24 say", p)
	}
	bits := p.Addr().BitLen() - p.Bits()
	if bits < 2 {
		return nil, fmt.Errorf("pod CIDR %q: must have room for two pods", p)
	}
	last := uint64(maxPool)
	if bits < 32 {
		last = 1<<bits - 1
	}
	if p.Addr().Is4() {
		last-- // the broadcast address
	}
	return &pool{prefix: p, first: 1, last: last, next: 1, used: map[netip.Addr]bool{}}, nil
}

func (p *pool) at(offset uint64) netip.Addr {
	if p.prefix.Addr().Is4() {
		b := p.prefix.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(offset))
		return netip.AddrFrom4(b)
	}
	b := p.prefix.Addr().As16()
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low+offset)
	return netip.AddrFrom16(b)
}

// take returns the next free address.
func (p *pool) take() (netip.Addr, error) {
	for range p.last - p.first + 1 {
		a := p.at(p.next)
		p.next++
		if p.next > p.last {
			p.next = p.first
		}
		if !p.used[a] {
			p.used[a] = true
			return a, nil
		}
		if uint64(len(p.used)) > p.last-p.first {
			break
		}
	}
	return netip.Addr{}, fmt.Errorf("no free address in pod CIDR %s: all %d are in use", p.prefix, len(p.used))
}

func (p *pool) adopt(a netip.Addr) {
	if p.prefix.Contains(a) {
		p.used[a] = true
	}
}

func (p *pool) release(a netip.Addr) { delete(p.used, a) }

// seek continues after a stored position.
func (p *pool) seek(next uint64) {
	if next >= p.first && next <= p.last {
		p.next = next
	}
}

// ahead is the distance between the position stored and the one in use: the
// file is written once per so many addresses.
const ahead = 32

// cursors remembers the pools' positions over restarts. What is used now shows
// in the kernel's routes and is not stored.
type cursors struct {
	path   string
	stored map[string]uint64
}

func openCursors(path string) *cursors {
	c := &cursors{path: path, stored: map[string]uint64{}}
	// A missing or damaged file costs the turn, nothing else.
	if b, err := os.ReadFile(path); err == nil {
		_ = json.Unmarshal(b, &c.stored)
		if c.stored == nil {
			c.stored = map[string]uint64{}
		}
	}
	return c
}

// restore moves a new pool to where a former run may have been at most.
func (c *cursors) restore(p *pool) { p.seek(c.stored[p.prefix.String()]) }

// keep makes sure that the stored position is ahead of the pool's, in its turn.
func (c *cursors) keep(p *pool) error {
	key := p.prefix.String()
	size := p.last - p.first + 1
	lead := min(ahead, size/4)
	if at, ok := c.stored[key]; ok && at >= p.first && at <= p.last && (at+size-p.next)%size <= lead {
		return nil
	}
	c.stored[key] = p.first + (p.next-p.first+lead)%size
	b, err := json.Marshal(c.stored)
	if err != nil {
		return fmt.Errorf("keep the place in pod CIDR %s: %w", p.prefix, err)
	}
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return fmt.Errorf("keep the place in pod CIDR %s: %w", p.prefix, err)
	}
	tmp := c.path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("keep the place in pod CIDR %s: %w", p.prefix, err)
	}
	if err := os.Rename(tmp, c.path); err != nil {
		return fmt.Errorf("keep the place in pod CIDR %s: %w", p.prefix, err)
	}
	return nil
}
