package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"skiff/internal/client"
)

// peer is upstream's servers on this machine, on loopback: TLS everywhere, RBAC,
// and etcd's fsync on.
type peer struct {
	dir, bin   string
	kubeconfig string
	etcdURL    string
	peerURL    string // for other members of etcd; there are none
	apiPort    int
	ca         *authority
	procs      []*process
	node       *peerNode // nil where there is none
}

// process is a server that runs; exited is closed when it is gone.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	err    error
}

// spawn starts a program whose output goes to a file, in a process group of its
// own: an interrupt at the terminal is for bench, which ends it in order.
func spawn(path, logFile string, args ...string) (*process, error) {
	return start(exec.Command(path, args...), logFile, 0)
}

// start is spawn in new namespaces.
func start(cmd *exec.Cmd, logFile string, namespaces uintptr) (*process, error) {
	f, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &process{cmd: cmd, exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: namespaces}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// stop asks the process to end, and kills it when it does not within 20 s.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // gone already: then exited is closed
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// Ports of servers are below those that the kernel gives to connections by default
// (net.ipv4.ip_local_port_range): between looking and listening no connection gets one,
// such as those of an API server that asks for its etcd. NodePorts begin above, too.
const firstPort, lastPort = 16384, 29999

// freePorts finds ports on loopback that nobody listens on.
func freePorts(n int) ([]int, error) {
	var out []int
	for tries := 0; len(out) < n; tries++ {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if errors.Is(err, syscall.EADDRINUSE) && tries < 1000 {
			continue
		}
		if err != nil {
			return nil, err
		}
		defer l.Close()
		out = append(out, port)
	}
	return out, nil
}

// newPeer prepares certificates and kubeconfigs in dir; bin holds the programs.
func newPeer(dir, bin string) (*peer, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	p := &peer{
		dir: dir, bin: bin, etcdURL: "https://127.0.0.1:" + strconv.Itoa(ports[0]), apiPort: ports[1],
		peerURL: "http://127.0.0.1:" + strconv.Itoa(ports[2]),
	}
	if p.ca, err = newAuthority(dir); err != nil {
		return nil, err
	}
	for _, c := range [][]string{
		{"etcd", "etcd"}, {"server", "kube-apiserver"}, {"admin", "admin", "system:masters"},
		{"kube-controller-manager", "system:kube-controller-manager"}, {"kube-scheduler", "system:kube-scheduler"},
	} {
		if err := p.ca.issue(c[0], c[1], c[2:]...); err != nil {
			return nil, err
		}
		kc, err := p.ca.kubeconfig(c[0], "https://127.0.0.1:"+strconv.Itoa(p.apiPort))
		if err != nil {
			return nil, err
		}
		if c[0] == "admin" {
			p.kubeconfig = kc
		}
	}
	_, err = p.ca.privateKey("accounts")
	return p, err
}

// logOf is the file with what a server writes.
func (p *peer) logOf(x *process) string {
	return filepath.Join(p.dir, filepath.Base(x.cmd.Path)+".log")
}

func (p *peer) spawn(program string, args ...string) error {
	x, err := spawn(filepath.Join(p.bin, program), filepath.Join(p.dir, program+".log"), args...)
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	p.procs = append(p.procs, x)
	return nil
}

// start etcd and the API server, both at once: the API server waits for etcd.
func (p *peer) start() error {
	f := p.ca.path
	if err := p.spawn("etcd", "--name=bench", "--data-dir="+f("etcd"), "--logger=zap", "--log-level=warn",
		"--listen-client-urls="+p.etcdURL, "--advertise-client-urls="+p.etcdURL,
		"--listen-peer-urls="+p.peerURL, "--initial-advertise-peer-urls="+p.peerURL, "--initial-cluster=bench="+p.peerURL,
		"--cert-file="+f("etcd.crt"), "--key-file="+f("etcd.key"), "--client-cert-auth", "--trusted-ca-file="+f("ca.crt"),
	); err != nil {
		return err
	}
	return p.spawn("kube-apiserver",
		"--etcd-servers="+p.etcdURL, "--etcd-cafile="+f("ca.crt"), "--etcd-certfile="+f("server.crt"), "--etcd-keyfile="+f("server.key"),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+strconv.Itoa(p.apiPort),
		"--tls-cert-file="+f("server.crt"), "--tls-private-key-file="+f("server.key"), "--client-ca-file="+f("ca.crt"),
		"--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.97.0.0/16", "--endpoint-reconciler-type=none",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+f("accounts.key"), "--service-account-signing-key-file="+f("accounts.key"),
		"--kubelet-client-certificate="+f("admin.crt"), "--kubelet-client-key="+f("admin.key"), "--kubelet-preferred-address-types=InternalIP")
}

// startControl starts the controller manager and the scheduler. Their limits on
// requests to the API are raised, or they alone would be measured: by default
// they send 20 and 50 requests a second.
func (p *peer) startControl() error {
	f := p.ca.path
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	common := func(name string, port int) []string {
		kc := "--kubeconfig=" + f(name+".kubeconfig")
		return []string{
			kc, "--authentication-" + kc[2:], "--authorization-" + kc[2:], "--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(port),
			"--leader-elect=false", "--kube-api-qps=5000", "--kube-api-burst=10000",
		}
	}
	cm, sched := "kube-controller-manager", "kube-scheduler"
	if err := p.spawn(cm, append(common(cm, ports[0]),
		"--root-ca-file="+f("ca.crt"), "--service-account-private-key-file="+f("accounts.key"), "--use-service-account-credentials",
		"--concurrent-deployment-syncs=10", "--concurrent-replicaset-syncs=10", "--concurrent-job-syncs=10")...); err != nil {
		return err
	}
	return p.spawn(sched, append(common(sched, ports[1]), "--authentication-tolerate-lookup-failure")...)
}

// ready waits until /readyz says so, or a server is gone.
func (p *peer) ready(ctx context.Context, most time.Duration) error {
	return readyz(ctx, p.kubeconfig, most, p.procs)
}

// readyz asks a server until it says that it is ready. The kubeconfig may not
// exist yet.
func readyz(ctx context.Context, kubeconfig string, most time.Duration, procs []*process) error {
	var w *wire
	defer func() {
		if w != nil {
			w.close()
		}
	}()
	var last error
	err := poll(ctx, most, 2*time.Millisecond, func() (bool, error) {
		for _, x := range procs {
			select {
			case <-x.exited:
				return false, fmt.Errorf("%s ended: %v", filepath.Base(x.cmd.Path), x.err)
			default:
			}
		}
		if w == nil {
			cfg, err := client.LoadKubeconfig(kubeconfig)
			if err != nil {
				last = err
				return false, nil
			}
			e, err := newEndpoint(cfg)
			if err != nil {
				return false, err
			}
			w = e.wire()
		}
		r := request{Method: "GET", Path: "/readyz", Accept: "text/plain"}
		code, body, err := w.call(ctx, r)
		if err == nil && code != 200 {
			err = answerError(r, code, body)
		}
		last = err
		return err == nil, nil
	})
	if errors.Is(err, errLate) {
		return fmt.Errorf("not ready after %v: %w", most, last)
	}
	return err
}

// stop ends all, the one started last first.
func (p *peer) stop() error {
	for i := len(p.procs) - 1; i >= 0; i-- {
		p.procs[i].stop()
	}
	if p.node == nil {
		return nil
	}
	return p.node.clean()
}

func (p *peer) pids() []int {
	var out []int
	for _, x := range p.procs {
		out = append(out, x.pid())
	}
	return out
}

// peerCommand runs upstream's servers until it is interrupted, for --peer.
func peerCommand(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	f := flag.NewFlagSet("bench peer", flag.ContinueOnError)
	f.SetOutput(stderr)
	bin := f.String("bin", "out/upstream", "directory with etcd, kube-apiserver and the others (test/conformance/build.sh makes them)")
	dir := f.String("dir", "", "directory for data, logs, admin.kubeconfig and pids; must be empty or not exist")
	control := f.Bool("control", true, "start the controller manager and the scheduler, too")
	node := f.String("node", "", "start a node too: a kubelet with containerd and runc, with the images of this archive (pause:3.10.2 among them)")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("--dir: is needed")
	}
	if old, err := os.ReadDir(*dir); err == nil && len(old) > 0 {
		return fmt.Errorf("--dir %s: is not empty", *dir)
	}
	p, err := newPeer(*dir, *bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.start(); err != nil {
		return err
	}
	if err := p.ready(ctx, 2*time.Minute); err != nil {
		return err
	}
	if *control {
		if err := p.startControl(); err != nil {
			return err
		}
	}
	if *node != "" {
		if err := p.startNode(*node); err != nil {
			return err
		}
		if err := nodeReady(ctx, p.kubeconfig, p.procs[len(p.procs)-1]); err != nil {
			return err
		}
	}
	text := strings.Trim(strings.ReplaceAll(fmt.Sprint(p.pids()), " ", ","), "[]") + "\n"
	if err := os.WriteFile(filepath.Join(p.dir, "pids"), []byte(text), 0o600); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "ready: --peer %s --peer-pid @%s\n", p.kubeconfig, filepath.Join(p.dir, "pids"))
	g, ctx := errgroup.WithContext(ctx)
	for _, x := range p.procs {
		g.Go(func() error {
			select {
			case <-x.exited:
				return fmt.Errorf("%s ended: %v", filepath.Base(x.cmd.Path), x.err)
			case <-ctx.Done():
				return nil
			}
		})
	}
	return g.Wait()
}
