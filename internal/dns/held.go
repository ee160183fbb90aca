package dns

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// held is a UDP socket that notes each query outside the process before it takes
// it from the kernel, until it is answered. What a killed server had read its
// successor finds noted, and answers: the client, who would ask again only after
// five seconds, gets the answer from the same socket.
//
// The notes are slots of a file that is mapped into memory; the kernel keeps it
// when the process ends. A slot counts once its stamp is written, which is after
// the rest. A query is looked at, noted and then taken, so that one is noted or
// still in the socket at every moment; a server killed between the last two leaves
// one that is answered twice.
//
// One goroutine reads; any number answer.
type held struct {
	*net.UDPConn
	raw interface {
		Read(func(fd uintptr) bool) error
	}
	now func() time.Time
	mem []byte

	// left are queries of the former server, still to be handed out.
	left []query

	mu   sync.Mutex
	free []int
	// noted are the slots of queries in work.
	noted map[queryID][]int
}

type query struct {
	from netip.AddrPort
	msg  []byte
}

// queryID is how an answer is known to belong to a query.
type queryID struct {
	from netip.AddrPort
	id   uint16
}

const (
	slots = 1024
	// A slot is stamp (8), length (2), port (2), address (16), message.
	slotHeader = 28
	slotSize   = 544
	maxHeld    = slotSize - slotHeader
	// tooOld is when a client has asked again.
	tooOld = 5 * time.Second
)

// hold returns pc with its notes in the file at path, which is made where it is
// not there. Close closes the socket and leaves the file.
func hold(pc *net.UDPConn, path string, now func() time.Time) (*held, error) {
	raw, err := pc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("hold queries: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("hold queries: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("hold queries: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(slots * slotSize); err != nil {
		return nil, fmt.Errorf("hold queries in %s: %w", path, err)
	}
	// Writing to a page for which the disk has no room would be a fault: the room is
	// taken now.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, slots*slotSize); err != nil {
		return nil, fmt.Errorf("hold queries in %s: %w", path, err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, slots*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("hold queries in %s: %w", path, err)
	}
	h := &held{UDPConn: pc, raw: raw, now: now, mem: mem, noted: map[queryID][]int{}}
	for i := slots - 1; i >= 0; i-- {
		if q, ok := h.read(i); ok {
			h.left = append(h.left, q)
		}
		h.stamp(i).Store(0)
		h.free = append(h.free, i)
	}
	return h, nil
}

func (h *held) slot(i int) []byte { return h.mem[i*slotSize : (i+1)*slotSize] }

func (h *held) stamp(i int) *atomic.Int64 {
	return (*atomic.Int64)(unsafe.Pointer(&h.mem[i*slotSize])) // aligned: pages and slots are multiples of 8
}

// read returns what a slot has, unless it is empty, damaged or too old.
func (h *held) read(i int) (query, bool) {
	at := h.stamp(i).Load()
	s := h.slot(i)
	n := int(binary.NativeEndian.Uint16(s[8:]))
	if age := h.now().Sub(time.Unix(0, at)); at == 0 || n > maxHeld || age < 0 || age > tooOld {
		return query{}, false
	}
	from := netip.AddrPortFrom(netip.AddrFrom16([16]byte(s[12:28])).Unmap(), binary.NativeEndian.Uint16(s[10:]))
	return query{from: from, msg: append([]byte(nil), s[slotHeader:slotHeader+n]...)}, true
}

// note writes a query down. What is no query, or has no room, is not noted.
func (h *held) note(q query) {
	const header, response = 12, 0x80
	if len(q.msg) < header || len(q.msg) > maxHeld || q.msg[2]&response != 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.free) == 0 {
		h.reclaim()
	}
	if len(h.free) == 0 {
		return
	}
	i := h.free[len(h.free)-1]
	h.free = h.free[:len(h.free)-1]
	s, addr := h.slot(i), q.from.Addr().As16()
	binary.NativeEndian.PutUint16(s[8:], uint16(len(q.msg)))
	binary.NativeEndian.PutUint16(s[10:], q.from.Port())
	copy(s[12:28], addr[:])
	copy(s[slotHeader:], q.msg)
	h.stamp(i).Store(h.now().UnixNano())
	id := idOf(q.from, q.msg)
	h.noted[id] = append(h.noted[id], i)
}

// reclaim frees the slots of queries that were never answered. It runs under mu.
func (h *held) reclaim() {
	for id, is := range h.noted {
		if at := h.stamp(is[0]).Load(); h.now().Sub(time.Unix(0, at)) > tooOld {
			for _, i := range is {
				h.stamp(i).Store(0)
			}
			h.free = append(h.free, is...)
			delete(h.noted, id)
		}
	}
}

func idOf(from netip.AddrPort, msg []byte) queryID {
	return queryID{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), binary.BigEndian.Uint16(msg)}
}

// ReadFrom returns the next query: first those that a former server left.
func (h *held) ReadFrom(b []byte) (int, net.Addr, error) {
	if len(h.left) > 0 {
		q := h.left[0]
		h.left = h.left[1:]
		h.note(q)
		return copy(b, q.msg), net.UDPAddrFromAddrPort(q.from), nil
	}
	var n int
	var from netip.AddrPort
	var rerr error
	err := h.raw.Read(func(fd uintptr) bool {
		var sa unix.Sockaddr
		n, sa, rerr = recv(int(fd), b, unix.MSG_PEEK)
		if rerr == unix.EAGAIN {
			return false
		}
		if rerr == nil {
			from = addrPortOf(sa)
			h.note(query{from, b[:n]})
			n, _, rerr = recv(int(fd), b, 0)
		}
		return true
	})
	if err == nil && rerr != nil {
		err = &net.OpError{Op: "read", Net: "udp", Source: h.LocalAddr(), Err: os.NewSyscallError("recvfrom", rerr)}
	}
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

func recv(fd int, b []byte, flags int) (int, unix.Sockaddr, error) {
	for {
		n, sa, err := unix.Recvfrom(fd, b, flags|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return n, sa, err
		}
	}
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// WriteTo sends an answer and strikes out its query.
func (h *held) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := h.UDPConn.WriteTo(b, to)
	if a, ok := to.(*net.UDPAddr); ok && len(b) >= 2 {
		id := idOf(a.AddrPort(), b)
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, i := range h.noted[id] {
			h.stamp(i).Store(0)
			h.free = append(h.free, i)
		}
		delete(h.noted, id)
	}
	return n, err
}

// Close closes the socket. What is still noted stays so, for the next server.
func (h *held) Close() error { return h.UDPConn.Close() }

// release gives the memory back, once nobody reads or writes any more.
func (h *held) release() error { return unix.Munmap(h.mem) }
