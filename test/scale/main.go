// Command scale measures a large cluster on one machine: the API server over
// embedded etcd or the store in memory, the controllers, the scheduler and hollow
// nodes, all in this process. It prints how long pods take to be bound and Ready, the
// memory of the process, how fast a node's death is answered, and the API's latency
// meanwhile.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/store"
	"skiff/internal/store/etcd"
	"skiff/internal/store/mem"
	"skiff/internal/testcluster"
)

var (
	nodes   = flag.Int("nodes", 5000, "hollow nodes")
	pods    = flag.Int("pods", 150_000, "pods, in deployments of 1,000")
	kind    = flag.String("store", "etcd", "etcd (embedded, in a directory of its own) or mem")
	profile = flag.String("profile", "", "write CPU and heap profiles to files with this prefix")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func open(ctx context.Context, log *slog.Logger) (store.Store, func(), error) {
	if *kind == "mem" {
		st := mem.New(mem.Config{})
		return st, func() { _ = st.Close() }, nil
	}
	dir, err := os.MkdirTemp("", "scale")
	if err != nil {
		return nil, nil, err
	}
	st, err := etcd.Open(ctx, etcd.Config{Dir: dir, Name: "scale", Log: log})
	if err != nil {
		return nil, nil, err
	}
	return st, func() { _ = st.Close(); _ = os.RemoveAll(dir) }, nil
}

func measure(ctx context.Context) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	st, closeStore, err := open(ctx, log)
	if err != nil {
		return err
	}
	defer closeStore()
	cl, err := testcluster.New(testcluster.Config{Store: st, Log: log})
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	g, run := errgroup.WithContext(run)
	defer g.Wait() //nolint:errcheck // of parts that are ended
	defer stop()
	g.Go(func() error { return cl.Run(run) })
	if err := cl.Bootstrap(run); err != nil {
		return err
	}
	g.Go(func() error { return cl.RunControl(run, testcluster.Control{Alone: true, Seed: 1}) })
	kubelet := cl.Client("kubelet")
	informers := client.NewInformers(kubelet, log)
	fleet := testcluster.NewFleet(testcluster.FleetDeps{Client: kubelet, Informers: informers, Roll: func(string, int) int { return 0 }, Workers: 8})
	watch := follow(informers)
	g.Go(func() error { return informers.Run(run) })
	g.Go(func() error { return fleet.Run(run) })

	c := cl.Client("scale")
	if err := makeNodes(run, c, fleet); err != nil {
		return err
	}
	url, err := serve(run, cl, g)
	if err != nil {
		return err
	}
	fmt.Printf("%d nodes, %d pods, store %s, %d processors\n", *nodes, *pods, *kind, runtime.GOMAXPROCS(0))
	report("before the pods")

	if *profile != "" {
		f, err := os.Create(*profile + ".cpu")
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	probe := newProbe(url)
	probing, endProbe := context.WithCancel(run)
	var wg sync.WaitGroup
	wg.Go(func() { probe.run(probing) })
	start := time.Now()
	for i := range *pods / 1000 {
		if _, err := client.For[*appsv1.Deployment](c).Create(run, deployment(i)); err != nil {
			endProbe()
			return err
		}
	}
	bound, ready, err := watch.wait(run, *pods)
	if err != nil {
		endProbe()
		return fmt.Errorf("after %v: %w", time.Since(start), err)
	}
	fmt.Printf("all pods bound after %.1f s (%.0f a second), all Ready after %.1f s\n",
		bound.Sub(start).Seconds(), float64(*pods)/bound.Sub(start).Seconds(), ready.Sub(start).Seconds())
	endProbe()
	wg.Wait()
	probe.print("while pods are made")
	report("with all pods Ready")

	probe = newProbe(url)
	probing, endProbe = context.WithCancel(run)
	defer endProbe()
	wg.Go(func() { probe.run(probing) })
	if err := death(run, fleet, watch); err != nil {
		return err
	}
	endProbe()
	wg.Wait()
	probe.print("while a node dies")
	report("at the end")
	if *profile != "" {
		f, err := os.Create(*profile + ".heap")
		if err != nil {
			return err
		}
		defer f.Close()
		return pprof.WriteHeapProfile(f)
	}
	return nil
}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }

func makeNodes(ctx context.Context, c *client.Client, fleet *testcluster.Fleet) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range *nodes {
		g.Go(func() error {
			return fleet.Add(gctx, testcluster.Node(nodeName(i), corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("128Gi"), corev1.ResourcePods: resource.MustParse("110"),
			}, map[string]string{corev1.LabelTopologyZone: fmt.Sprint("zone-", i%3)}, time.Now()))
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for {
		list, _, err := client.For[*corev1.Node](c).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list, func(n *corev1.Node) bool { return len(n.Spec.Taints) > 0 }) {
			return nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deployment has pods that leave a dead node at once.
func deployment(i int) *appsv1.Deployment {
	labels := map[string]string{"app": fmt.Sprint("app-", i)}
	var tolerations []corev1.Toleration
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		tolerations = append(tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To(int64(0))})
	}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("app-", i)},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(int32(1000)), Selector: &metav1.LabelSelector{MatchLabels: labels}, ProgressDeadlineSeconds: ptr.To(int32(3600)),
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
				Tolerations: tolerations,
				Containers: []corev1.Container{{Name: "c", Image: "registry.example/app:1", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi"),
				}}}},
			}},
		},
	}
}

// watcher counts pods as a watch shows them.
type watcher struct {
	mu           sync.Mutex
	bound, ready map[string]bool // by UID
	boundAt      time.Time
	readyAt      time.Time
	on           map[string]int // pods by node, not being deleted
	going        int
	changed      chan struct{}
	nodes        *client.Informer[*corev1.Node]
}

func follow(in *client.Informers) *watcher {
	w := &watcher{bound: map[string]bool{}, ready: map[string]bool{}, on: map[string]int{}, changed: make(chan struct{}), nodes: client.InformerFor[*corev1.Node](in)}
	client.InformerFor[*corev1.Pod](in).OnChange(w.see)
	w.nodes.OnChange(func(client.Change[*corev1.Node]) { w.mu.Lock(); w.tell(); w.mu.Unlock() })
	return w
}

func (w *watcher) tell() { close(w.changed); w.changed = make(chan struct{}) }

func serving(p *corev1.Pod) bool {
	return p != nil && p.DeletionTimestamp == nil && p.Spec.NodeName != ""
}

func (w *watcher) see(ch client.Change[*corev1.Pod]) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if serving(ch.Old) && !ch.Deleted() || ch.Deleted() && serving(ch.Old) {
		w.on[ch.Old.Spec.NodeName]--
	}
	now := time.Now()
	uid := string(ch.Object().UID)
	if p := ch.New; p != nil && p.DeletionTimestamp == nil {
		if p.Spec.NodeName != "" {
			w.on[p.Spec.NodeName]++
			if !w.bound[uid] {
				w.bound[uid], w.boundAt = true, now
			}
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && !w.ready[uid] {
				w.ready[uid], w.readyAt = true, now
			} else if c.Type == corev1.PodReady && c.Status != corev1.ConditionTrue {
				delete(w.ready, uid)
			}
		}
	} else {
		delete(w.bound, uid)
		delete(w.ready, uid)
	}
	w.tell()
}

// until waits for f, which is called under the lock.
func (w *watcher) until(ctx context.Context, f func() bool) error {
	for {
		w.mu.Lock()
		ok, changed := f(), w.changed
		w.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			return fmt.Errorf("%d pods bound, %d Ready: %w", len(w.bound), len(w.ready), context.Cause(ctx))
		}
	}
}

func (w *watcher) wait(ctx context.Context, n int) (bound, ready time.Time, err error) {
	err = w.until(ctx, func() bool { return len(w.ready) == n })
	return w.boundAt, w.readyAt, err
}

// death cuts a node off and waits until its pods are replaced.
func death(ctx context.Context, fleet *testcluster.Fleet, w *watcher) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	victim := nodeName(*nodes / 2)
	w.mu.Lock()
	had := w.on[victim]
	w.mu.Unlock()
	fleet.Silence(victim, true)
	start := time.Now()
	if err := w.until(ctx, func() bool {
		n, ok := w.nodes.Get("", victim)
		return ok && slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute })
	}); err != nil {
		return err
	}
	tainted := time.Now()
	if err := w.until(ctx, func() bool { return w.on[victim] == 0 }); err != nil {
		return err
	}
	evicted := time.Now()
	if err := w.until(ctx, func() bool { return len(w.ready) >= *pods }); err != nil {
		return err
	}
	done := time.Now()
	fmt.Printf("a node with %d pods falls silent: tainted after %.1f s (50 s are the grace since its last heartbeat, then one node of a zone in 10 s), its pods deleted %.3f s later, replaced and Ready another %.3f s later\n",
		had, tainted.Sub(start).Seconds(), evicted.Sub(tainted).Seconds(), done.Sub(evicted).Seconds())
	return nil
}

func serve(ctx context.Context, cl *testcluster.Cluster, g *errgroup.Group) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	h := &http.Server{Handler: cl.API.Handler(), ReadHeaderTimeout: 10 * time.Second}
	g.Go(func() error {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error { <-ctx.Done(); return h.Close() })
	return "http://" + l.Addr().String(), nil
}

// probe asks the API over HTTP now and then and notes how long it takes.
type probe struct {
	url  string
	made atomic.Int64
	mu   sync.Mutex
	took map[string][]time.Duration
	errs int
}

func newProbe(url string) *probe { return &probe{url: url, took: map[string][]time.Duration{}} }

func (p *probe) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	each := func(name string, every time.Duration, method, path string, body func() string) {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-time.After(every):
				}
				start := time.Now()
				err := p.ask(ctx, method, path, body())
				if ctx.Err() != nil {
					return
				}
				p.mu.Lock()
				if err != nil {
					p.errs++
				} else {
					p.took[name] = append(p.took[name], time.Since(start))
				}
				p.mu.Unlock()
			}
		})
	}
	none := func() string { return "" }
	each("GET a node", 20*time.Millisecond, http.MethodGet, "/api/v1/nodes/"+nodeName(1), none)
	each("LIST 500 pods", 200*time.Millisecond, http.MethodGet, "/api/v1/namespaces/default/pods?limit=500", none)
	each("LIST one app's pods", time.Second, http.MethodGet, "/api/v1/namespaces/default/pods?labelSelector=app%3Dapp-0", none)
	each("LIST all nodes", 5*time.Second, http.MethodGet, "/api/v1/nodes", none)
	id := fmt.Sprint(time.Now().UnixNano())
	each("create a ConfigMap", 20*time.Millisecond, http.MethodPost, "/api/v1/namespaces/default/configmaps", func() string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"probe-%s-%d"},"data":{"a":"b"}}`, id, p.made.Add(1))
	})
}

func (p *probe) ask(ctx context.Context, method, path, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return errors.New(resp.Status)
	}
	return nil
}

func (p *probe) print(when string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Printf("API %s (%d errors):\n", when, p.errs)
	var names []string
	for n := range p.took {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		t := p.took[n]
		slices.Sort(t)
		at := func(q float64) time.Duration {
			return t[min(int(q*float64(len(t))), len(t)-1)].Round(10 * time.Microsecond)
		}
		fmt.Printf("  %-20s %5d times  p50 %v  p99 %v  most %v\n", n, len(t), at(0.5), at(0.99), at(1))
	}
}

// report prints the memory of this process.
func report(when string) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	status, _ := os.ReadFile("/proc/self/status")
	line := func(key string) string {
		for l := range strings.Lines(string(status)) {
			if v, ok := strings.CutPrefix(l, key+":"); ok {
				return strings.TrimSpace(v)
			}
		}
		return "?"
	}
	fmt.Printf("memory %s: live heap %d MiB, resident %s, at most %s\n", when, m.HeapAlloc>>20, line("VmRSS"), line("VmHWM"))
}
