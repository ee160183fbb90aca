package runtime

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// PortForward prepares a stream.
func (r *Runtime) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	s, err := r.findSandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	ready := s.ready()
	r.mu.Unlock()
	if !ready {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %q is not running", s.id)
	}
	return r.stream.GetPortForward(req)
}

// PortForward connects the stream to a port on the pod's loopback.
func (s streams) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	sb, err := s.r.findSandbox(id)
	if err != nil {
		return err
	}
	if port <= 0 || port > 65535 {
		return fmt.Errorf("port %d: must be between 1 and 65535", port)
	}
	conn, err := s.r.dialInPod(ctx, sb, int(port))
	if errors.Is(err, syscall.ECONNREFUSED) {
		// What one connection meets must not end the others: kubectl gives all of them
		// up when it is told of an error. The connection is closed, as it would be had
		// it gone to the pod itself.
		s.r.Log.Info("nobody listens where a connection was to be forwarded", "sandbox", sb.id, "port", port)
		unread(stream)
		return nil
	}
	if err != nil {
		return fmt.Errorf("failed to connect to localhost:%d inside namespace %q: %w", port, sb.id, err)
	}
	defer conn.Close()
	stop := make(chan struct{})
	defer close(stop)
	s.r.onEnd(ctx, stop, func() {
		conn.Close()
		stream.Close()
	})
	// Ends when the pod's side has said all, or the client is gone.
	var g errgroup.Group
	g.Go(func() error {
		_, err := io.Copy(conn, stream)
		if t, ok := conn.(*net.TCPConn); ok {
			_ = t.CloseWrite()
		}
		if err != nil {
			conn.Close()
		}
		return nil
	})
	_, err = io.Copy(stream, conn)
	stream.Close()
	_ = g.Wait()
	unread(stream)
	if err != nil {
		// How a connection ends is between its ends: told to kubectl as an error, it
		// would end all the others.
		s.r.Log.Debug("forwarded connection", "port", port, "err", err)
	}
	return nil
}

// unread tells the other end of a stream that nothing more is read of it. Data that
// nobody reads would hold up other streams of the same connection.
func unread(stream io.ReadWriteCloser) {
	if s, ok := stream.(interface{ Reset() error }); ok {
		_ = s.Reset()
	}
}

// dialInPod dials from inside the pod's network namespace: IPv4 first, then IPv6.
func (r *Runtime) dialInPod(ctx context.Context, s *sandbox, port int) (net.Conn, error) {
	dial := func() (net.Conn, error) {
		var d net.Dialer
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		c, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return c, nil
		}
		if c6, err6 := d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(port))); err6 == nil {
			return c6, nil
		}
		return nil, err
	}
	if s.hostNetwork() {
		return dial()
	}
	r.mu.Lock()
	path := fmt.Sprintf("/proc/%d/ns/net", s.rec.PID)
	ready := s.ready()
	r.mu.Unlock()
	if !ready {
		return nil, errors.New("the sandbox is not running")
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	type result struct {
		c   net.Conn
		err error
	}
	ch := make(chan result, 1)
	r.background(func() {
		c, err := inNetNS(ns, dial)
		ch <- result{c, err}
	})
	select {
	case res := <-ch:
		return res.c, res.err
	case <-r.stopping:
		return nil, errors.New("the runtime is stopping")
	}
}

// inNetNS calls f on a thread in a network namespace, and takes the thread home.
// A thread that cannot go home is not used again (it ends, unless it is the
// program's first: so it must go home).
func inNetNS(ns *os.File, f func() (net.Conn, error)) (net.Conn, error) {
	goruntime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		goruntime.UnlockOSThread()
		return nil, err
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		goruntime.UnlockOSThread()
		return nil, err
	}
	c, err := f()
	if herr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); herr != nil {
		return c, errors.Join(err, herr)
	}
	goruntime.UnlockOSThread()
	return c, err
}

// networkUsage reads the pod's own interface counters.
func (r *Runtime) networkUsage(s *sandbox) *runtimeapi.NetworkUsage {
	r.mu.Lock()
	path := fmt.Sprintf("/proc/%d/net/dev", s.rec.PID)
	r.mu.Unlock()
	if s.hostNetwork() {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	out := &runtimeapi.NetworkUsage{Timestamp: r.Now().UnixNano()}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		name, counters, ok := strings.Cut(strings.TrimSpace(sc.Text()), ":")
		f := strings.Fields(counters)
		if !ok || len(f) < 11 || name == "lo" {
			continue
		}
		n := func(i int) *runtimeapi.UInt64Value {
			v, _ := strconv.ParseUint(f[i], 10, 64)
			return u64(v)
		}
		i := &runtimeapi.NetworkInterfaceUsage{Name: name, RxBytes: n(0), RxErrors: n(2), TxBytes: n(8), TxErrors: n(10)}
		if out.DefaultInterface == nil {
			out.DefaultInterface = i
		}
		out.Interfaces = append(out.Interfaces, i)
	}
	return out
}
