package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"skiff/internal/admin"
	"skiff/internal/host"
	"skiff/internal/pki"
	"skiff/internal/runtime/keeper"
	"skiff/internal/runtime/programs"
)

// Progress hears of each step of a start as it is done.
type Progress func(step string, took time.Duration)

// Process is one skiff process: a control plane, a node, or both.
type Process struct {
	set      *Settings
	log      *slog.Logger
	progress Progress
	started  time.Time
	last     time.Time
	ready    atomic.Bool
	quit     chan bool // with whether the pods end too

	journal  *host.Journal
	programs programs.Set
	sockets  *sockets
	server   *server
	node     *node
	join     *join
	images   atomic.Pointer[images]
	running  atomic.Pointer[node] // once it runs containers
	cpu      cpuMeter
}

// NewProcess returns a process that Run starts.
func NewProcess(set *Settings, log *slog.Logger, p Progress) *Process {
	if p == nil {
		p = func(string, time.Duration) {}
	}
	return &Process{set: set, log: log, progress: p, quit: make(chan bool, 1)}
}

func (p *Process) step(name string) {
	now := time.Now()
	p.progress(name, now.Sub(p.last))
	p.log.Debug("start", "step", name, "took", now.Sub(p.last))
	p.last = now
}

// Run starts the process and returns when ctx ends, Stop is called, or a part
// fails. ready is called once a pod that is created then starts and is reachable.
func (p *Process) Run(ctx context.Context, withNode bool, ready func()) (err error) {
	p.started = time.Now()
	p.last = p.started
	if err := preflight(p.set, withNode, thisMachine()); err != nil {
		return err
	}
	inst := p.set.Instance
	if err := claimDir(inst); err != nil {
		return err
	}
	unlock, err := lockInstance(inst)
	if err != nil {
		return err
	}
	defer unlock()
	switch from, err := theseFormats().migrate(ctx, inst); {
	case err != nil:
		return err
	case from != dataFormat:
		p.step(fmt.Sprintf("data of format %d migrated to %d", from, dataFormat))
	}
	if p.journal, err = host.OpenJournal(inst.JournalPath()); err != nil {
		return err
	}
	for _, e := range []host.Entry{{Kind: host.KindDir, Name: inst.DataDir}, {Kind: host.KindDir, Name: inst.RunDir}} {
		if err := p.journal.Record(e); err != nil {
			return err
		}
	}
	unsave, err := p.set.saveFor()
	if err != nil {
		return fmt.Errorf("write config: %w", err)
	}
	defer func() {
		if err != nil && !p.ready.Load() {
			err = errors.Join(err, unsave())
		}
	}()
	g := newGroup(p.log)
	defer g.stop()
	if p.programs, err = programs.Unpack(programs.Embedded(), inst.Data("bin")); err != nil {
		return err
	}
	k, err := keeper.Open(ctx, p.programs.Pod, inst.Run("keeper"))
	if err != nil {
		return err
	}
	p.sockets = &sockets{keeper: k}
	defer func() {
		if err == nil || p.ready.Load() {
			return
		}
		letGo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if lerr := p.sockets.letGo(letGo); lerr != nil {
			p.log.Warn("the sockets of a start that failed stay open", "err", lerr)
		}
	}()
	l, err := admin.Listen(inst.AdminSocket())
	if err != nil {
		return err
	}
	g.start("admin", func(ctx context.Context) error { return admin.Serve(ctx, l, p) })
	g.start("memory", tendMemory)
	g.start("CPU meter", p.cpu.run)
	g.start("log", tendLog(inst))
	if p.set.Kubeconfig != "" {
		if p.join, err = openJoin(p.set.Kubeconfig, p.set.NodeName, p.log); err != nil {
			return err
		}
		g.atStop("connections to the server", p.join.close)
		g.start("certificates", p.join.own.tend)
	} else if err := p.startServer(ctx, g); err != nil {
		return err
	}
	if withNode {
		if err := p.startNode(ctx, g); err != nil {
			return err
		}
	}
	p.ready.Store(true)
	if ready != nil {
		ready()
	}
	p.pruneHelpers()
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- g.wait(wctx) }()
	select {
	case err := <-done:
		return err
	case pods := <-p.quit:
		if p.node != nil {
			p.node.endPods.Store(pods)
		}
		if pods {
			// Nobody is to wait for a cluster that ended.
			defer func() {
				if kerr := k.Shutdown(context.WithoutCancel(ctx)); err == nil {
					err = kerr
				}
			}()
		}
		return nil
	}
}

// pruneHelpers removes the programs of other releases that no pod runs from.
func (p *Process) pruneHelpers() {
	used := map[string]bool{}
	for _, path := range helpers(p.programs.Pod) {
		used[path] = true
	}
	if err := programs.Prune(p.set.Instance.Data("bin"), p.programs, func(path string) bool { return used[path] }); err != nil {
		p.log.Warn("programs of other releases stay", "err", err)
	}
}

func (p *Process) startServer(ctx context.Context, g *group) error {
	s := &server{set: p.set, log: p.log, g: g}
	p.server = s
	var eg errgroup.Group
	eg.Go(func() error { return s.openStore(ctx) })
	eg.Go(func() error { return s.openPKI(ctx) })
	if err := eg.Wait(); err != nil {
		return err
	}
	p.step("etcd and certificates")
	if err := s.newAPI(); err != nil {
		return err
	}
	l, err := p.sockets.listen(ctx, "api", fmt.Sprintf(":%d", p.set.APIPort))
	if err != nil {
		return portError("apiPort", p.set.APIPort, err)
	}
	select {
	case <-s.api.Ready():
	case err := <-g.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.alloc.Start(ctx); err != nil {
		return err
	}
	g.start("service allocations", s.alloc.Run)
	s.serve(l)
	if err := p.writeKubeconfigs(); err != nil {
		return err
	}
	g.start("certificates", p.tendCertificates)
	p.step("API server")
	if err := s.startControl(ctx); err != nil {
		return err
	}
	p.step("controllers and scheduler")
	return nil
}

func (p *Process) startNode(ctx context.Context, g *group) error {
	n := &node{
		set: p.set, log: p.log, g: g, journal: p.journal, programs: p.programs, sockets: p.sockets,
	}
	if p.join != nil {
		n.serving, n.client, n.services = p.join.serving, p.join.node, p.join.services
	} else {
		own := p.server.pki
		n.serving = own.Pair("kubelet").ServerTLS(own.Pool(pki.ClusterCA))
		n.client = p.server.local("system:node:"+p.set.NodeName, "kubelet", "system:nodes")
		n.services = p.server.local("system:kube-proxy", "kube-proxy")
	}
	p.node = n
	if err := n.open(ctx); err != nil {
		return err
	}
	p.images.Store(n.images)
	p.running.Store(n)
	p.step("container runtime")
	if err := n.run(ctx); err != nil {
		return err
	}
	p.step("node Ready")
	return nil
}

func portError(field string, port int, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return &ConfigError{field, fmt.Sprintf("port %d is in use by another program; choose another one, or end that program", port)}
	}
	return fmt.Errorf("listen on port %d: %w", port, err)
}

// ServerURL is where this instance's API server is reached from this host.
func (s *Settings) ServerURL() string { return fmt.Sprintf("https://127.0.0.1:%d", s.APIPort) }

// KubeconfigPath is the administrator's kubeconfig.
func (s *Settings) KubeconfigPath() string { return s.Instance.Data("admin.kubeconfig") }

func (p *Process) writeKubeconfigs() error {
	for leaf, path := range map[string]string{
		"admin": p.set.KubeconfigPath(),
		// For the day when RBAC locks everybody out: it needs no role.
		"super-admin": p.set.Instance.Data("super-admin.kubeconfig"),
	} {
		k, err := p.server.pki.Kubeconfig(leaf, p.contextName(), p.set.ServerURL())
		if err != nil {
			return err
		}
		if err := k.Write(path); err != nil {
			return err
		}
	}
	return nil
}

func (p *Process) contextName() string {
	if p.set.Name == host.DefaultName {
		return "skiff"
	}
	return "skiff-" + p.set.Name
}

// Stop implements admin.Host.
func (p *Process) Stop(pods bool) {
	select {
	case p.quit <- pods:
	default:
	}
}

// Images implements admin.Host.
func (p *Process) Images() http.Handler {
	if im := p.images.Load(); im != nil {
		return im.handler.handler()
	}
	return nil
}
