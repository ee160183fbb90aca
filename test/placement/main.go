// Command placement lets two schedulers place the same workloads on the same nodes
// and compares where the pods went: skiff's own and upstream's kube-scheduler, each
// against a skiff API server of its own with a store in memory and hollow nodes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/scheduler"
	"skiff/internal/store/mem"
	"skiff/internal/testcluster"
)

var (
	program = flag.String("scheduler", "out/upstream/kube-scheduler", "upstream's kube-scheduler")
	rounds  = flag.Int("rounds", 3, "placements of each workload by each scheduler; medians are shown")
	only    = flag.String("only", "", "the workload of that name alone")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	worse, err := compare(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "placement:", err)
		os.Exit(1)
	}
	if worse {
		os.Exit(2)
	}
}

// result is what a placement is judged by.
type result struct {
	pending map[string]bool // pods without a node
	lost    int             // pods that were preempted
	used    float64         // nodes with pods
	skew    map[string]float64
	cpu     float64 // standard deviation of the share of a node's cores that is asked for, percent
	memory  float64
}

func compare(ctx context.Context) (worse bool, err error) {
	fmt.Println("| workload | scheduler | pods | without a node | preempted | nodes used | skew by zone | skew by host | deviation of cores | of memory |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|")
	for _, w := range workloads() {
		if *only != "" && *only != w.name {
			continue
		}
		byName := map[string][]result{}
		for range *rounds {
			for _, side := range []string{"upstream", "skiff"} {
				r, err := place(ctx, side, w)
				if err != nil {
					return false, fmt.Errorf("%s, %s: %w", w.name, side, err)
				}
				byName[side] = append(byName[side], r)
			}
		}
		pods := 0
		for _, wave := range w.waves {
			pods += len(wave)
		}
		u, s := byName["upstream"], byName["skiff"]
		for _, side := range []string{"upstream", "skiff"} {
			r := byName[side]
			fmt.Printf("| %s | %s | %d | %v | %v | %v | %v | %v | %.2f %% | %.2f %% |\n", w.name, side, pods,
				median(r, func(r result) float64 { return float64(len(r.pending)) }), median(r, func(r result) float64 { return float64(r.lost) }),
				median(r, func(r result) float64 { return r.used }), median(r, func(r result) float64 { return r.skew[corev1.LabelTopologyZone] }),
				median(r, func(r result) float64 { return r.skew[corev1.LabelHostname] }), median(r, func(r result) float64 { return r.cpu }), median(r, func(r result) float64 { return r.memory }))
		}
		for what, f := range map[string]func(result) float64{
			"pods without a node": func(r result) float64 { return float64(len(r.pending)) }, "nodes used": func(r result) float64 { return r.used },
			"skew by zone": func(r result) float64 { return r.skew[corev1.LabelTopologyZone] }, "skew by host": func(r result) float64 { return r.skew[corev1.LabelHostname] },
			"deviation of cores": func(r result) float64 { return r.cpu }, "deviation of memory": func(r result) float64 { return r.memory },
			"pods preempted": func(r result) float64 { return float64(r.lost) },
		} {
			if a, b := median(s, f), median(u, f); a > b*1.02+1e-9 || what == "pods without a node" && a > b {
				worse = true
				fmt.Fprintf(os.Stderr, "%s: %s: %.3f, upstream %.3f\n", w.name, what, a, b)
			}
		}
	}
	return worse, nil
}

func median(rs []result, f func(result) float64) float64 {
	v := make([]float64, len(rs))
	for i, r := range rs {
		v[i] = f(r)
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// place runs a workload under one scheduler until it rests.
func place(ctx context.Context, side string, w workload) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	st := mem.New(mem.Config{})
	defer st.Close()
	cl, err := testcluster.New(testcluster.Config{Store: st})
	if err != nil {
		return result{}, err
	}
	run, stop := context.WithCancel(ctx)
	g, run := errgroup.WithContext(run)
	defer g.Wait() //nolint:errcheck // its errors are those of a cluster that is ended
	defer stop()
	g.Go(func() error { return cl.Run(run) })
	if err := cl.Bootstrap(run); err != nil {
		return result{}, err
	}
	c := cl.Client("placement")
	if err := prepare(run, c, cl, w, g); err != nil {
		return result{}, err
	}
	switch side {
	case "skiff":
		err = ours(run, cl, g)
	default:
		err = theirs(run, cl, g)
	}
	if err != nil {
		return result{}, err
	}
	for _, wave := range w.waves {
		for _, p := range wave {
			if _, err := client.For[*corev1.Pod](c).Create(run, p); err != nil {
				return result{}, err
			}
		}
		if err := rest(run, c); err != nil {
			return result{}, err
		}
	}
	pods, _, err := client.For[*corev1.Pod](c).List(run, metav1.ListOptions{})
	if err != nil {
		return result{}, err
	}
	return judge(w, pods), nil
}

// prepare makes nodes, with their kubelets, and what pods refer to.
func prepare(ctx context.Context, c *client.Client, cl *testcluster.Cluster, w workload, g *errgroup.Group) error {
	if _, err := client.For[*corev1.ServiceAccount](c).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}); err != nil {
		return err
	}
	for name, value := range map[string]int32{"low": 0, "high": 1000} {
		if _, err := client.For[*schedulingv1.PriorityClass](c).Create(ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}); err != nil {
			return err
		}
	}
	log := slog.New(slog.DiscardHandler)
	kubelet := cl.Client("kubelet")
	informers := client.NewInformers(kubelet, log)
	fleet := testcluster.NewFleet(testcluster.FleetDeps{Client: kubelet, Informers: informers, Roll: func(string, int) int { return 0 }})
	g.Go(func() error { return informers.Run(ctx) })
	g.Go(func() error { return fleet.Run(ctx) })
	for _, n := range w.nodes {
		if err := fleet.Add(ctx, testcluster.Node(n.name, n.list, n.labels, time.Now())); err != nil {
			return err
		}
		// No controller takes the taint of new nodes away here.
		o, err := client.For[*corev1.Node](c).Get(ctx, n.name)
		if err != nil {
			return err
		}
		o = o.DeepCopy()
		o.Spec.Taints = n.taints
		if _, err := client.For[*corev1.Node](c).Update(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func ours(ctx context.Context, cl *testcluster.Cluster, g *errgroup.Group) error {
	c := cl.Client("kube-scheduler")
	log := slog.New(slog.DiscardHandler)
	informers := client.NewInformers(c, log)
	s, err := scheduler.New(scheduler.Deps{Client: c, Informers: informers, Log: log, Seed: uint64(time.Now().UnixNano())}) //nolint:gosec // any number
	if err != nil {
		return err
	}
	g.Go(func() error { return informers.Run(ctx) })
	g.Go(func() error { return s.Run(ctx) })
	return nil
}

// theirs serves the API over HTTP on loopback and starts upstream's scheduler.
func theirs(ctx context.Context, cl *testcluster.Cluster, g *errgroup.Group) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	h := &http.Server{Handler: cl.API.Handler(), ReadHeaderTimeout: 10 * time.Second}
	g.Go(func() error { return ignoreClosed(h.Serve(l)) })
	g.Go(func() error { <-ctx.Done(); return h.Close() })
	dir, err := os.MkdirTemp("", "placement")
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":"http://%s"}}],"users":[{"name":"u"}],"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}],"current-context":"x"}`, l.Addr())
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, *program, "--kubeconfig", kubeconfig, "--leader-elect=false", "--secure-port=0", "--kube-api-qps=1000", "--kube-api-burst=1000")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	g.Go(func() error {
		err := cmd.Wait()
		_ = out.Close()
		if ctx.Err() == nil {
			b, _ := os.ReadFile(out.Name())
			return fmt.Errorf("kube-scheduler: %w\n%s", err, b[max(0, len(b)-2000):])
		}
		return os.RemoveAll(dir)
	})
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// rest waits until every pod has a node or was told why not, and nothing has changed
// for longer than any scheduler waits before it tries again.
func rest(ctx context.Context, c *client.Client) error {
	const long = 12 * time.Second
	last, since := "", time.Now()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("pods do not come to rest: %w", context.Cause(ctx))
		case <-time.After(250 * time.Millisecond):
		}
		pods, _, err := client.For[*corev1.Pod](c).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		bound, told, going := 0, 0, 0
		for _, p := range pods {
			switch {
			case p.DeletionTimestamp != nil:
				going++
			case p.Spec.NodeName != "":
				bound++
			case slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse
			}):
				told++
			}
		}
		state := fmt.Sprint(len(pods), bound, told, going)
		if state != last {
			last, since = state, time.Now()
		}
		all := bound == len(pods)
		if all && time.Since(since) > time.Second || bound+told == len(pods) && time.Since(since) > long {
			return nil
		}
	}
}

func judge(w workload, pods []*corev1.Pod) result {
	r := result{pending: map[string]bool{}, skew: map[string]float64{}}
	cpu, memory, nodes := map[string]float64{}, map[string]float64{}, map[string]node{}
	for _, n := range w.nodes {
		nodes[n.name] = n
	}
	total := 0
	for _, wave := range w.waves {
		total += len(wave)
	}
	r.lost = total - len(pods)
	counts := map[string]map[string]map[string]int{} // topology key, app, domain
	domain := func(key string, n node) string {
		if key == corev1.LabelHostname {
			return n.name
		}
		return n.labels[key]
	}
	for _, p := range pods {
		if p.Spec.NodeName == "" {
			r.pending[p.Name] = true
			continue
		}
		n := nodes[p.Spec.NodeName]
		req := p.Spec.Containers[0].Resources.Requests
		cpu[n.name] += float64(req.Cpu().MilliValue()) / float64(n.list.Cpu().MilliValue())
		memory[n.name] += float64(req.Memory().Value()) / float64(n.list.Memory().Value())
		// Skew is of what a constraint asks to spread.
		for _, t := range p.Spec.TopologySpreadConstraints {
			if counts[t.TopologyKey] == nil {
				counts[t.TopologyKey] = map[string]map[string]int{}
			}
			if counts[t.TopologyKey][p.Labels[app]] == nil {
				m := map[string]int{}
				for _, n := range w.nodes {
					m[domain(t.TopologyKey, n)] = 0
				}
				counts[t.TopologyKey][p.Labels[app]] = m
			}
			counts[t.TopologyKey][p.Labels[app]][domain(t.TopologyKey, n)]++
		}
	}
	for key, apps := range counts {
		for _, byDomain := range apps {
			least, most := math.MaxInt, 0
			for _, n := range byDomain {
				least, most = min(least, n), max(most, n)
			}
			r.skew[key] = max(r.skew[key], float64(most-least))
		}
	}
	r.used = float64(len(cpu))
	r.cpu, r.memory = deviation(w.nodes, cpu), deviation(w.nodes, memory)
	return r
}

// deviation is the standard deviation over nodes, in percent.
func deviation(nodes []node, share map[string]float64) float64 {
	mean, sum := 0.0, 0.0
	for _, n := range nodes {
		mean += share[n.name] / float64(len(nodes))
	}
	for _, n := range nodes {
		sum += (share[n.name] - mean) * (share[n.name] - mean)
	}
	return 100 * math.Sqrt(sum/float64(len(nodes)))
}
