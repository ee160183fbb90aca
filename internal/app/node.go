package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/api/runpod"
	"skiff/internal/client"
	"skiff/internal/control"
	"skiff/internal/cri"
	"skiff/internal/host"
	"skiff/internal/kubelet"
	"skiff/internal/network/pod"
	"skiff/internal/runtime"
	"skiff/internal/runtime/programs"
	"skiff/internal/volume"
)

// node is the node half of a process.
type node struct {
	set     *Settings
	log     *slog.Logger
	g       *group
	journal *host.Journal
	// serving is what the kubelet proves itself with to the API server.
	serving *tls.Config
	// client acts as the node, services as what serves Services and DNS on it.
	client, services *client.Client

	programs programs.Set
	images   *images
	network  *podNetwork
	runtime  *runtime.Runtime
	kubelet  *kubelet.Kubelet
	events   *control.Recorder
	sockets  *sockets
	data     *dataPlane
	dns      netip.AddrPort // where this node's pods look up names
	endPods  atomic.Bool
}

// open does what needs no API server: images, runtime and its adoption of pods.
func (n *node) open(ctx context.Context) error {
	i := n.set.Instance
	var err error
	if n.images, err = openImages(i, n.log); err != nil {
		return err
	}
	n.g.atStop("images", n.images.close)
	if n.network, err = openPodNetwork(n.set, n.journal, n.log); err != nil {
		return err
	}
	n.g.atStop("pod network", n.network.own.Close)
	n.runtime, err = runtime.New(ctx, runtime.Deps{
		Instance: i, Journal: n.journal, Images: n.images.store, Snapshots: n.images.snapshots, Network: n.network,
		Programs: n.programs, Log: n.log, Now: time.Now, Socket: i.Run("cri.sock"),
		Step: killAt(os.Getenv(killAtEnv)),
	})
	if err != nil {
		return err
	}
	n.g.start("pod network", n.network.own.Run)
	n.g.start("runtime", n.runtime.Run)
	n.g.atStop("pods", func() error {
		if !n.endPods.Load() {
			return nil
		}
		return n.stopPods(context.WithoutCancel(ctx))
	})
	return nil
}

// downGrace is what containers get, seconds, when the node is told to end.
const downGrace = 10

// stopPods ends every pod of the node, all at once. The kubelet has stopped by
// then, so nothing starts them again.
func (n *node) stopPods(ctx context.Context) error {
	rt := cri.InProcess(n.runtime).Runtime
	sandboxes, err := rt.ListPodSandbox(ctx, nil)
	if err != nil {
		return err
	}
	containers, err := rt.ListContainers(ctx, nil)
	if err != nil {
		return err
	}
	var eg errgroup.Group
	for _, c := range containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			eg.Go(func() error { return rt.StopContainer(ctx, c.Id, downGrace) })
		}
	}
	err = eg.Wait()
	var rm errgroup.Group
	for _, s := range sandboxes {
		rm.Go(func() error {
			if err := rt.StopPodSandbox(ctx, s.Id); err != nil {
				return err
			}
			if runpod.Keeps(s.Labels) {
				return nil // it finds what it wrote when skiff is there again
			}
			return rt.RemovePodSandbox(ctx, s.Id)
		})
	}
	return errors.Join(err, rm.Wait())
}

// kubeletEvents lets the kubelet record events.
type kubeletEvents struct{ *control.Recorder }

func (e kubeletEvents) Event(ref *corev1.ObjectReference, eventType, reason, message string) {
	e.EventRef(*ref, eventType, reason, "%s", message)
}

func (e kubeletEvents) AnnotatedEvent(ref *corev1.ObjectReference, annotations map[string]string, eventType, reason, message string) {
	e.AnnotatedEventRef(*ref, annotations, eventType, reason, "%s", message)
}

// run starts the kubelet and the data plane, and returns when the node is Ready.
func (n *node) run(ctx context.Context) error {
	informers := client.NewInformers(n.services, n.log)
	n.g.start("node informers", informers.Run)
	n.events = control.NewRecorder(control.RecorderDeps{Client: n.client, Component: "kubelet", Host: n.set.NodeName, Now: time.Now, Log: n.log})
	n.g.start("kubelet events", n.events.Run)
	services := cri.InProcess(n.runtime)
	sources := kubelet.NewSources(kubelet.SourcesDeps{Client: n.client, Now: time.Now, NodeName: n.set.NodeName, Events: kubeletEvents{n.events}, Log: n.log})
	cgroups, err := kubelet.NewCgroups(n.set.Instance, n.journal, n.log)
	if err != nil {
		return err
	}
	volumes := volume.New(volume.Deps{Host: n.set.Instance, Journal: n.journal, Sources: sources, Log: n.log})
	restartPeriod, err := n.set.restartPeriod()
	if err != nil {
		return err
	}
	n.kubelet, err = kubelet.New(kubelet.Deps{
		Client: n.client, Runtime: services.Runtime, Images: services.Images,
		Volumes: volumes, LocalVolumes: volumes, Sources: sources,
		Cgroups: cgroups,
		Events:  kubeletEvents{n.events}, Log: n.log, Now: time.Now,
		Host: n.set.Instance, NodeName: n.set.NodeName, NodeIPs: netIPs(n.set.NodeAddrs),
		ClusterDNS: netIPs(n.set.DNSIPs[:1]), ClusterDomain: n.set.ClusterDomain,
		Leave:   func(ctx context.Context, p *corev1.Pod) { n.data.leave(ctx, p) },
		MaxPods: n.set.MaxPods, Port: int32(n.set.KubeletPort), Version: version().GitVersion,
		Eviction: n.set.kubelet.Eviction, ImageGC: n.set.kubelet.ImageGC, ImageDir: n.set.Instance.Data("images"),
		LogMaxSize: n.set.kubelet.LogMaxSize, LogMaxFiles: n.set.kubelet.LogMaxFiles, StaticPods: n.set.kubelet.StaticPods,
		Plugins:       n.set.Instance.Data("kubelet", "plugins_registry"),
		FreeCache:     n.images.handler.builder.Free,
		PullPolicy:    n.set.kubelet.PullPolicy,
		ParallelPulls: n.set.parallelPulls(), DockerConfigs: dockerConfigs(n.set.Instance),

		AllowedUnsafeSysctls: n.set.AllowedUnsafeSysctls, MaxRestartPeriod: restartPeriod,
		IDsPerPod: n.set.kubelet.IDsPerPod, Reserved: n.set.kubelet.Reserved,
	})
	if err != nil {
		return err
	}
	if err := n.serve(ctx); err != nil {
		return err
	}
	doors, err := dnsDoors(ctx, n.sockets, n.set.Instance, n.set.ofFamilies(pod.LocalAddrs(n.set.Instance)))
	if err != nil {
		return err
	}
	var local []netip.AddrPort
	for _, d := range doors {
		at, err := netip.ParseAddrPort(d.TCP.Addr().String())
		if err != nil {
			return err
		}
		local = append(local, at)
	}
	n.dns = local[0]
	events := control.NewRecorder(control.RecorderDeps{Client: n.services, Component: "kube-proxy", Host: n.set.NodeName, Now: time.Now, Log: n.log})
	n.g.start("service events", events.Run)
	if n.data, err = newDataPlane(n.set, n.log, n.journal, informers, events, local); err != nil {
		return err
	}
	n.g.atStop("service rules", n.data.proxy.Close)
	n.g.start("service rules keeper", n.data.proxy.Run)
	n.g.start("services", n.data.run)
	n.g.start("DNS", func(ctx context.Context) error { return n.data.server.Serve(ctx, doors...) })
	nodes := client.InformerFor[*corev1.Node](informers)
	ready := make(chan struct{})
	follow := &nodeFollower{n: n, ready: ready, peers: map[netip.Prefix]netip.Addr{}, wake: make(chan struct{}, 1), nodes: nodes}
	nodes.OnChange(func(client.Change[*corev1.Node]) { follow.poke() })
	n.g.start("node network", follow.run)
	n.g.start("kubelet", n.kubelet.Run)
	late := time.NewTimer(2 * time.Minute)
	defer late.Stop()
	for _, c := range []<-chan struct{}{ready, n.data.written} {
		select {
		case <-c:
		case err := <-n.g.failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return errors.New("node did not become Ready within 2 minutes; the log says why")
		}
	}
	return nil
}

func netIPs(in []netip.Addr) []net.IP {
	out := make([]net.IP, len(in))
	for i, a := range in {
		out[i] = a.AsSlice()
	}
	return out
}

// serve answers the kubelet's HTTPS port.
func (n *node) serve(ctx context.Context) error {
	l, err := n.sockets.listen(ctx, "kubelet", fmt.Sprintf(":%d", n.set.KubeletPort))
	if err != nil {
		return portError("kubeletPort", n.set.KubeletPort, err)
	}
	cfg := n.serving.Clone()
	// Only the API server's own client certificate opens this door.
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	cfg.NextProtos = []string{"http/1.1"}
	h := &http.Server{Handler: onlyServer(n.kubelet.Handler()), ReadHeaderTimeout: 32 * time.Second, ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug)}
	n.g.start("kubelet server", func(ctx context.Context) error {
		var eg errgroup.Group
		eg.Go(func() error { return h.Serve(tls.NewListener(l, cfg)) })
		eg.Go(func() error { <-ctx.Done(); return h.Close() })
		if err := eg.Wait(); err != nil && !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}

func onlyServer(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, c := range r.TLS.PeerCertificates {
			if c.Subject.CommonName == "kube-apiserver-kubelet-client" {
				h.ServeHTTP(w, r)
				return
			}
		}
		http.Error(w, "Forbidden", http.StatusForbidden)
	})
}

// nodeFollower configures the pod network with what the Node object says, and
// routes to the pods of other nodes.
type nodeFollower struct {
	n     *node
	nodes *client.Informer[*corev1.Node]
	ready chan struct{}
	wake  chan struct{}
	peers map[netip.Prefix]netip.Addr
	done  struct{ configured, ready bool }
}

func (f *nodeFollower) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *nodeFollower) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		}
		if err := f.step(ctx); err != nil {
			f.n.log.Warn("node network", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
				f.poke()
			}
		}
	}
}

func (f *nodeFollower) step(ctx context.Context) error {
	me, ok := f.nodes.Get("", f.n.set.NodeName)
	if !ok {
		return nil
	}
	if !f.done.configured && len(me.Spec.PodCIDRs) > 0 {
		cfg := pod.Config{
			ClusterCIDRs: f.n.set.PodRanges, ServiceCIDRs: f.n.set.ServiceRanges,
			NodeIPs: f.n.set.NodeAddrs, LocalAddrs: f.n.set.ofFamilies(pod.LocalAddrs(f.n.set.Instance)),
		}
		for _, c := range me.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(c)
			if err != nil {
				return fmt.Errorf("spec.podCIDRs of node %q: %w", me.Name, err)
			}
			cfg.PodCIDRs = append(cfg.PodCIDRs, p)
		}
		if err := f.n.network.configure(ctx, cfg); err != nil {
			return err
		}
		f.done.configured = true
	}
	if !f.done.ready && f.done.configured && conditionTrue(me, corev1.NodeReady) {
		f.done.ready = true
		close(f.ready)
	}
	return f.routes()
}

// routes sends packets for other nodes' pods to those nodes.
func (f *nodeFollower) routes() error {
	if !f.done.configured {
		return nil
	}
	peers := map[netip.Prefix]netip.Addr{}
	for o := range f.nodes.All() {
		if o.Name == f.n.set.NodeName {
			continue
		}
		for _, c := range o.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(c)
			if err != nil {
				continue
			}
			if addr, ok := internalAddr(o, p.Addr().Is6()); ok {
				peers[p] = addr
			}
		}
	}
	if len(peers) == 0 && len(f.peers) == 0 {
		return nil
	}
	if err := f.n.network.setRoutes(peers); err != nil {
		return err
	}
	f.peers = peers
	return nil
}

// internalAddr is a node's address of a family.
func internalAddr(o *corev1.Node, v6 bool) (netip.Addr, bool) {
	for _, a := range o.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			if ip, err := netip.ParseAddr(a.Address); err == nil && ip.Is6() == v6 {
				return ip, true
			}
		}
	}
	return netip.Addr{}, false
}

func conditionTrue(o *corev1.Node, t corev1.NodeConditionType) bool {
	for _, c := range o.Status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
