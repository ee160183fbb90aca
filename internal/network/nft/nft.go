// Package nft is what the parts of the data plane share of nftables: a
// connection that applies one transaction at a time, and rules as expressions.
//
// A Txn collects changes and Commit applies them all or none; packets see the
// rules before or the rules after. The tables are of the families ip and ip6,
// one each, so that one register layout serves an address family.
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"skiff/internal/network/ns"
)

// socketBuffer holds the messages of one transaction (a full sync of 10,000
// services has some 10 MiB) and the acknowledgements of them.
const socketBuffer = 64 << 20

// Chunk is how many elements fit one message: a netlink attribute holds at most
// 64 KiB.
const Chunk = 400

// Conn is a connection to nftables of one network namespace. It is safe for
// concurrent use; transactions are applied one after the other.
type Conn struct {
	ns ns.NS
	mu sync.Mutex
	c  *nftables.Conn
}

// Dial returns a connection. n must stay open as long as it is used.
func Dial(n ns.NS) *Conn { return &Conn{ns: n} }

// Close closes the socket. Nothing that was committed is undone.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.c == nil {
		return nil
	}
	err := c.c.CloseLasting()
	c.c = nil
	return err
}

func (c *Conn) dial() (*nftables.Conn, error) {
	if c.c != nil {
		return c.c, nil
	}
	force := func(nl *netlink.Conn) error {
		raw, err := nl.SyscallConn()
		if err != nil {
			return err
		}
		// Forced, the buffers may be larger than net.core.*mem_max; without the
		// privilege to force them the ordinary limit has to do.
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
		})
		return nil
	}
	opts := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(force)}
	if fd := c.ns.Fd(); fd != 0 {
		opts = append(opts, nftables.WithNetNSFd(fd))
	}
	conn, err := nftables.New(opts...)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	c.c = conn
	return conn, nil
}

// Hint explains an error of the first transaction on a host to a person; empty
// where there is nothing to say.
func Hint(err error) string {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return " (needs root, or CAP_NET_ADMIN)"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return " (this kernel may lack a part of nf_tables that is needed: nat, masq, reject, fib, numgen, ct, sets)"
	}
	return ""
}

// Txn is a transaction in the making.
type Txn struct {
	c   *nftables.Conn
	err error
}

// Do builds a transaction with fn and commits it. An error of fn or of the
// kernel leaves everything as it was.
func (c *Conn) Do(fn func(*Txn)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn, err := c.dial()
	if err != nil {
		return err
	}
	t := &Txn{c: conn}
	fn(t)
	err = t.err
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		// Answers that nobody read would be taken for those of the next
		// transaction: start with a fresh socket.
		_ = conn.CloseLasting()
		c.c = nil
		return fmt.Errorf("nftables: %w", first(err))
	}
	return nil
}

// first returns the first of joined errors: the kernel reports each message of a
// transaction, and those after the first are mostly its consequence.
func first(err error) error {
	for {
		switch e := err.(type) {
		case interface{ Unwrap() []error }:
			if all := e.Unwrap(); len(all) > 0 {
				err = all[0]
				continue
			}
		case interface{ Unwrap() error }:
			var joined interface{ Unwrap() []error }
			if errors.As(err, &joined) {
				err = e.Unwrap()
				continue
			}
		}
		return err
	}
}

// mostReads bounds how often Query reads: where rules change all the time, what the
// last one read has to do.
const mostReads = 50

// Query calls fn with the connection, for dumps. It calls it again where somebody's
// transaction came between, since entries may be missing in such a dump: fn starts
// anew each time.
func (c *Conn) Query(fn func(*nftables.Conn) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range mostReads {
		before, err := c.generation()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		conn, err := c.dial()
		if err != nil {
			return err
		}
		if err := fn(conn); err != nil {
			_ = conn.CloseLasting()
			c.c = nil
			return fmt.Errorf("nftables: %w", err)
		}
		after, err := c.generation()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		if after == before {
			break
		}
	}
	return nil
}

// generation is the number of the rules' last transaction in the namespace.
func (c *Conn) generation() (id uint32, err error) {
	err = c.ns.Do(func() error {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil {
			return fmt.Errorf("read generation: %w", err)
		}
		for _, m := range msgs {
			attrs, err := nl.ParseRouteAttr(m[min(nl.SizeofNfgenmsg, len(m)):])
			if err != nil {
				return fmt.Errorf("read generation: %w", err)
			}
			for _, a := range attrs {
				if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
					id = binary.BigEndian.Uint32(a.Value)
					return nil
				}
			}
		}
		return errors.New("read generation: the kernel tells none")
	})
	return id, err
}

func (t *Txn) fail(err error) {
	if t.err == nil && err != nil {
		t.err = err
	}
}

// AddTable adds a table where it is not yet.
func (t *Txn) AddTable(tb *nftables.Table) { t.c.AddTable(tb) }

// ReplaceTable empties a table, whatever is in it, or makes it.
func (t *Txn) ReplaceTable(tb *nftables.Table) {
	t.c.AddTable(tb)
	t.c.DelTable(tb)
	t.c.AddTable(tb)
}

// DelTable deletes a table; it is no error when there is none.
func (t *Txn) DelTable(tb *nftables.Table) {
	t.c.AddTable(tb)
	t.c.DelTable(tb)
}

// AddChain adds a chain where it is not yet.
func (t *Txn) AddChain(ch *nftables.Chain) { t.c.AddChain(ch) }

// DelChain deletes an unreferenced chain.
func (t *Txn) DelChain(ch *nftables.Chain) { t.c.DelChain(ch) }

// FlushChain deletes the chain's rules.
func (t *Txn) FlushChain(ch *nftables.Chain) { t.c.FlushChain(ch) }

// setIDs numbers sets. The library's own counter is not safe when two
// connections are in use.
var setIDs atomic.Uint32

// AddSet adds a set or map where it is not yet.
func (t *Txn) AddSet(s *nftables.Set) {
	s.ID = setIDs.Add(1)
	t.fail(t.c.AddSet(s, nil))
}

// FlushSet deletes the set's elements.
func (t *Txn) FlushSet(s *nftables.Set) { t.c.FlushSet(s) }

// Rule appends a rule to a chain.
func (t *Txn) Rule(ch *nftables.Chain, r Rule) {
	t.c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: r})
}

// RuleFirst puts a rule before all others of a chain.
func (t *Txn) RuleFirst(ch *nftables.Chain, r Rule) {
	t.c.InsertRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: r})
}

// DelSet deletes a set that no rule refers to.
func (t *Txn) DelSet(s *nftables.Set) { t.c.DelSet(s) }

// Add adds elements to a set.
func (t *Txn) Add(s *nftables.Set, elems []nftables.SetElement) {
	for len(elems) > 0 {
		n := min(Chunk, len(elems))
		t.fail(t.c.SetAddElements(s, elems[:n]))
		elems = elems[n:]
	}
}

// Delete deletes elements that are in a set.
func (t *Txn) Delete(s *nftables.Set, elems []nftables.SetElement) {
	for len(elems) > 0 {
		n := min(Chunk, len(elems))
		t.fail(t.c.SetDeleteElements(s, elems[:n]))
		elems = elems[n:]
	}
}

// Ranges returns the elements of an interval set of addresses. The prefixes
// must not overlap.
func Ranges(prefixes []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range prefixes {
		p = p.Masked()
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		if end := lastAddr(p).Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Disjoint drops prefixes that others contain.
func Disjoint(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
next:
	for i, p := range prefixes {
		for j, q := range prefixes {
			if i != j && q.Contains(p.Masked().Addr()) && (q.Bits() < p.Bits() || q.Bits() == p.Bits() && j < i) {
				continue next
			}
		}
		out = append(out, p)
	}
	return out
}
