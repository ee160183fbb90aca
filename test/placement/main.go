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
	"maps"
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
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/client"
	"skiff/internal/scheduler"
	"skiff/internal/store/mem"
	"skiff/internal/testcluster"
)

var (
	program = flag.String("scheduler", "out/upstream/kube-scheduler", "upstream's kube-scheduler")
	rounds  = flag.Int("rounds", 40, "of each workload, each with other numbers")
	first   = flag.Uint64("first", 1, "the numbers of the first round follow from it")
	each    = flag.Bool("each", false, "print every placement, too")
	// Most of a placement is waiting for the scheduler to try the last pods again.
	parallel = flag.Int("parallel", 8, "placements at a time")
	only     = flag.String("only", "", "the workload of that name alone")
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

func compare(ctx context.Context) (worse bool, err error) {
	fmt.Println(header())
	for i, w := range workloads(*first) {
		if *only != "" && *only != w.name {
			continue
		}
		c, err := placeOften(ctx, i)
		if err != nil {
			return false, fmt.Errorf("%s: %w", w.name, err)
		}
		fmt.Println(c.rows(w.name))
		for _, what := range c.worse() {
			worse = true
			fmt.Fprintf(os.Stderr, "%s: %s\n", w.name, what)
		}
	}
	return worse, nil
}

// placeOften lets both schedulers place the workloads of a kind, the same ones.
func placeOften(ctx context.Context, kind int) (comparison, error) {
	c := make(comparison, *rounds)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(*parallel)
	for i := range c {
		w := workloads(*first + uint64(i))[kind] //nolint:gosec // an index
		for side := range sides {
			g.Go(func() error {
				r, err := place(ctx, sides[side], w)
				if err != nil {
					return fmt.Errorf("round %d, %s: %w", i, sides[side], err)
				}
				c[i][side] = r
				if *each {
					fmt.Fprintf(os.Stderr, "%s, %d, %s: cores %.2f %%, memory %.2f %%, preempted %d, without a node %v\n",
						w.name, i, sides[side], r.cpu, r.memory, r.lost, slices.Sorted(maps.Keys(r.pending)))
				}
				return nil
			})
		}
	}
	return c, g.Wait()
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
	if err := warm(run, c); err != nil {
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

// warm waits until the scheduler places pods. One that starts later finds all pods of
// a wave at once, in the order of their names, and places another workload than one
// that sees them come.
func warm(ctx context.Context, c *client.Client) error {
	pods := client.For[*corev1.Pod](c).In("default")
	p, err := pods.Create(ctx, pod("first", "first", 0, 0))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w, err := pods.Watch(ctx, metav1.ListOptions{ResourceVersion: p.ResourceVersion})
	if err != nil {
		return err
	}
	placed := false
	for e := range w.Events() {
		o, ok := e.Object.(*corev1.Pod)
		switch {
		case e.Err != nil:
			return e.Err
		case ok && e.Type == watch.Deleted:
			return nil
		case ok && o.Spec.NodeName != "" && !placed:
			placed = true
			if err := pods.Delete(ctx, "first", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("the scheduler does not begin: %w", context.Cause(ctx))
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
