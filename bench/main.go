// Bench measures a Kubernetes cluster, and another beside it.
//
// It speaks to any cluster through a kubeconfig, so that the same program runs
// against skiff and against upstream. With a peer, it alternates between the two,
// round by round, and prints medians, ranges and ratios: on a machine that both
// share with the load, only ratios of one run say something. Every load is
// bounded in count and in time, and what a scenario makes is gone when it ends.
//
// See README.md for what each figure means.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	sizes
	kubeconfig, peer string
	names            string
	pids, peerPIDs   string
	dataDir          string
	peerBin          string
	rounds           int
	http2            bool
	json             string
	skiff, upstream  string
	command          string
	profile          string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func flags(o *options, stderr io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "the cluster to measure")
	f.StringVar(&o.peer, "peer", "", "kubeconfig of the cluster to compare with, in alternation")
	f.StringVar(&o.names, "names", "skiff,upstream", "what to call the two")
	f.StringVar(&o.pids, "pid", "", "processes of the server, whose CPU and memory are reported (comma-separated)")
	f.StringVar(&o.peerPIDs, "peer-pid", "", "the same of the peer (@FILE reads them from a file)")
	f.StringVar(&o.peerBin, "peer-bin", "", "directory of the peer's programs: finds the processes of its node, pauses included")
	f.StringVar(&o.dataDir, "data-dir", "", "data directory of a running skiff: finds its processes, those of pods included")
	f.IntVar(&o.rounds, "rounds", 0, "rounds per scenario (default 5 with a peer, 1 alone)")
	f.BoolVar(&o.http2, "http2", false, "speak HTTP/2 by Go's library instead of HTTP/1.1 by a lighter client")
	f.StringVar(&o.json, "json", "", "write the results to this file, too")
	f.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile of bench itself to this file: what the load costs beside the server")
	f.StringVar(&o.skiff, "skiff", "bin/skiff", "start: the skiff program")
	f.StringVar(&o.upstream, "upstream", "", "start: directory with etcd and kube-apiserver to compare with")
	f.IntVar(&o.Starts, "starts", 20, "start: times each is started in a round")
	f.IntVar(&o.Count, "count", 5000, "api: requests per figure, at most")
	f.DurationVar(&o.For, "for", 5*time.Second, "api: time per figure, at most")
	f.IntVar(&o.Pods, "pods", 10000, "list: pods")
	f.IntVar(&o.Lists, "lists", 20, "list: LISTs per encoding and round")
	f.IntVar(&o.Watchers, "watchers", 100, "watch: watchers")
	f.IntVar(&o.Events, "events", 2000, "watch: events that each of them sees")
	f.IntVar(&o.Nodes, "nodes", 1000, "all scenarios on hollow nodes: how many of them")
	f.IntVar(&o.Bind, "bind", 5000, "schedule, bind: pods")
	f.IntVar(&o.Replicas, "replicas", 3000, "deployment, rollout: replicas")
	f.IntVar(&o.Jobs, "jobs", 1000, "jobs: Jobs")
	f.IntVar(&o.Fillers, "fillers", 4, "preempt: pods of low priority that fill each node")
	f.StringVar(&o.Image, "image", "busybox:1", "podstart: an image that the node has")
	f.StringVar(&o.command, "command", "", "podstart: what to run in it, instead of a shell that exits on TERM (comma-separated)")
	f.IntVar(&o.Serial, "serial", 20, "podstart: pods one by one")
	f.IntVar(&o.Burst, "burst", 100, "podstart: pods at once")
	f.DurationVar(&o.Settle, "settle", 5*time.Minute, "idle: wait before measuring")
	f.DurationVar(&o.Window, "window", time.Minute, "idle: time over which CPU is measured")
	f.DurationVar(&o.Patience, "patience", 5*time.Minute, "the longest that anything is waited for")
	f.Usage = func() {
		fmt.Fprint(stderr, "Usage: bench [flags] SCENARIO...\n       bench peer -h\n       bench markdown FILE...\n\nScenarios:\n")
		fmt.Fprintf(stderr, "  %-12s%s\n", "start", "exec of the programs on empty data to /readyz and to Ready")
		for _, s := range scenarios {
			fmt.Fprintf(stderr, "  %-12s%s\n", s.name, s.about)
		}
		fmt.Fprint(stderr, "  all         all of them but podstart, start and idle\n\nFlags:\n")
		f.PrintDefaults()
	}
	return f
}

// inAll are the scenarios of "all": those that need nothing but a kubeconfig.
var inAll = []string{"api", "list", "watch", "schedule", "deployment"}

func (o *options) parse(args []string, stderr io.Writer) ([]string, error) {
	f := flags(o, stderr)
	var names []string
	// Flags may stand after names.
	for len(args) > 0 {
		if err := f.Parse(args); err != nil {
			return nil, err
		}
		if args = f.Args(); len(args) > 0 {
			names, args = append(names, args[0]), args[1:]
		}
	}
	var out []string
	for _, n := range names {
		switch {
		case n == "all":
			out = append(out, inAll...)
		case n == "start" || slices.ContainsFunc(scenarios, func(s scenario) bool { return s.name == n }):
			out = append(out, n)
		default:
			return nil, fmt.Errorf("scenario %q is not known; bench -h lists them", n)
		}
	}
	if len(out) == 0 {
		f.Usage()
		return nil, flag.ErrHelp
	}
	for name, n := range map[string]int{
		"starts": o.Starts, "count": o.Count, "pods": o.Pods, "lists": o.Lists, "watchers": o.Watchers, "events": o.Events,
		"nodes": o.Nodes, "bind": o.Bind, "replicas": o.Replicas, "jobs": o.Jobs, "fillers": o.Fillers, "serial": o.Serial, "burst": o.Burst,
	} {
		if n < 1 {
			return nil, fmt.Errorf("--%s %d: must be at least 1", name, n)
		}
	}
	if o.command != "" {
		o.Command = strings.Split(o.command, ",")
	}
	return out, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) > 0 && args[0] == "peer" {
		return peerCommand(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "markdown" {
		return markdownCommand(args[1:], stdout, stderr)
	}
	var o options
	chosen, err := o.parse(args, stderr)
	if err != nil {
		return err
	}
	names := strings.Split(o.names, ",")
	if len(names) != 2 {
		return fmt.Errorf("--names %q: must be two names, separated by a comma", o.names)
	}
	if o.peer == "" && o.upstream == "" {
		names = names[:1]
	}
	if o.rounds <= 0 {
		o.rounds = 1
		if len(names) > 1 {
			o.rounds = 5
		}
	}
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	rep := &report{Time: time.Now().UTC(), Host: facts(), Names: names, Rounds: o.rounds}
	fmt.Fprintf(stdout, "%d processors, kernel %s, load average %s\n\n", rep.Host.CPUs, rep.Host.Kernel, rep.Host.Load)
	var sides []*side
	for _, name := range chosen {
		var prepares []func(context.Context) (runner, error)
		if name == "start" {
			prepares = startPrepares(o)
		} else {
			if sides == nil {
				if sides, err = o.sides(names); err != nil {
					return err
				}
			}
			i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
			for _, s := range sides {
				prepares = append(prepares, func(ctx context.Context) (runner, error) { return scenarios[i].prepare(ctx, s, o.sizes) })
			}
		}
		fmt.Fprintf(stdout, "%s\n", name)
		rs, err := rep.alternate(ctx, name, o.rounds, prepares)
		columns(stdout, names, rs)
		if err != nil {
			fmt.Fprintf(stdout, "%s: %v\n\n", name, err)
			rep.Errors = append(rep.Errors, fmt.Sprintf("%s: %v", name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if o.json != "" {
		if err := rep.write(o.json); err != nil {
			return err
		}
	}
	if len(rep.Errors) > 0 {
		return fmt.Errorf("%d scenarios failed: %s", len(rep.Errors), strings.Join(rep.Errors, "; "))
	}
	return ctx.Err()
}

func (o *options) sides(names []string) ([]*side, error) {
	if o.kubeconfig == "" {
		return nil, errors.New("which cluster? Name it with --kubeconfig or KUBECONFIG")
	}
	pids, err := readPIDs(o.pids)
	if err != nil {
		return nil, err
	}
	a, err := newSide(names[0], o.kubeconfig, pids, o.dataDir, o.http2)
	if err != nil {
		return nil, err
	}
	if o.peer == "" {
		return []*side{a}, nil
	}
	if pids, err = readPIDs(o.peerPIDs); err != nil {
		return nil, err
	}
	b, err := newSide(names[1], o.peer, pids, "", o.http2)
	if err != nil {
		return nil, err
	}
	b.Bin = o.peerBin
	return []*side{a, b}, nil
}

func readPIDs(text string) ([]int, error) {
	if file, ok := strings.CutPrefix(text, "@"); ok {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		text = string(b)
	}
	return parsePIDs(text)
}

// alternate runs a scenario round by round, on each side in turn: A B A B. A
// failure ends the scenario after its round; the figures made so far stay.
func (r *report) alternate(ctx context.Context, name string, rounds int, prepares []func(context.Context) (runner, error)) (rs []result, err error) {
	var runners []runner
	defer func() {
		for _, x := range runners {
			err = errors.Join(err, x.finish(ctx))
		}
	}()
	values := [2]map[string][]float64{{}, {}}
	var order []figure
	known := map[string]bool{}
	defer func() { rs = r.collect(name, values, order) }()
	for _, p := range prepares {
		x, err := p(ctx)
		if x != nil {
			runners = append(runners, x)
		}
		if err != nil {
			return nil, fmt.Errorf("prepare: %w", err)
		}
	}
	for range rounds {
		for i, x := range runners {
			fs, ferr := x.round(ctx)
			if ferr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", r.Names[min(i, len(r.Names)-1)], ferr))
			}
			for _, f := range fs {
				values[i][f.Name] = append(values[i][f.Name], f.Value)
				if !known[f.Name] {
					known[f.Name] = true
					order = append(order, f)
				}
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}
