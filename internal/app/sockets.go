package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/keeper"
)

// sockets opens listening sockets that outlive this process: a keeper holds a
// copy of each, so that what arrives while skiff is down waits for the next one.
type sockets struct {
	keeper *keeper.Keeper

	mu sync.Mutex
	// opened are the names of those that were not kept before.
	opened []string
}

// letGo undoes what a start that failed had kept: its ports are free again. What was
// kept before stays, for the next start; a keeper of nothing ends.
func (s *sockets) letGo(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, name := range s.opened {
		errs = append(errs, s.keeper.Drop(ctx, name))
	}
	if names, err := s.keeper.Names(ctx); err != nil || len(names) > 0 {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, s.keeper.Shutdown(ctx))...)
}

// keep gives the keeper a socket that was opened.
func (s *sockets) keep(ctx context.Context, name string, sock interface{ File() (*os.File, error) }) error {
	f, err := sock.File()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.keeper.Put(ctx, name, f); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = append(s.opened, name)
	return nil
}

// listen returns the TCP listener kept under name, or opens one at addr. A kept
// one at another address than addr is replaced; port 0 takes any.
func (s *sockets) listen(ctx context.Context, name, addr string) (net.Listener, error) {
	f, err := s.keeper.Get(ctx, name)
	switch {
	case err == nil:
		l, err := net.FileListener(f)
		f.Close()
		if err == nil && sameAddr(l.Addr(), addr) {
			return l, nil
		}
		if err == nil {
			l.Close()
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	l, err := free.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tl, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("%T is no TCP listener", l)
	}
	if err := s.keep(ctx, name, tl); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// listenPacket is listen for UDP.
func (s *sockets) listenPacket(ctx context.Context, name, addr string) (net.PacketConn, error) {
	f, err := s.keeper.Get(ctx, name)
	switch {
	case err == nil:
		pc, err := net.FilePacketConn(f)
		f.Close()
		if err == nil && sameAddr(pc.LocalAddr(), addr) {
			return pc, nil
		}
		if err == nil {
			pc.Close()
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	pc, err := free.ListenPacket(ctx, "udp", addr)
	if err != nil {
		return nil, err
	}
	uc, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, fmt.Errorf("%T is no UDP socket", pc)
	}
	if err := s.keep(ctx, name, uc); err != nil {
		pc.Close()
		return nil, err
	}
	return pc, nil
}

func sameAddr(have net.Addr, want string) bool {
	h, p, err := net.SplitHostPort(have.String())
	if err != nil {
		return false
	}
	wh, wp, err := net.SplitHostPort(want)
	if err != nil {
		return false
	}
	any := func(h string) bool { return h == "" || h == "::" || h == "0.0.0.0" }
	return (h == wh || any(h) && any(wh)) && (wp == "0" || p == wp)
}

// free listens on addresses that the host does not have yet (ip(7), IP_FREEBIND).
var free = net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, unix.IP_FREEBIND, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}}
