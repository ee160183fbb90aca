package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

// startPrepares are the programs that the scenario start execs on empty data.
func startPrepares(o options) []func(context.Context) (runner, error) {
	out := []func(context.Context) (runner, error){func(context.Context) (runner, error) {
		bin, err := filepath.Abs(o.skiff)
		if err == nil {
			_, err = os.Stat(bin)
		}
		return simple{do: func(ctx context.Context) ([]figure, error) { return skiffStarts(ctx, bin, o.sizes) }}, err
	}}
	if o.upstream != "" {
		out = append(out, func(context.Context) (runner, error) {
			return simple{do: func(ctx context.Context) ([]figure, error) { return upstreamStarts(ctx, o.upstream, o.sizes) }}, nil
		})
	}
	return out
}

const (
	titleReadyz = "start to /readyz"
	titleReady  = "exec to Ready"
)

func startFigures(title string, took []float64, mem []float64) []figure {
	return []figure{
		{title + ", p50", "ms", true, percentile(took, 50)},
		{title + ", p99", "ms", true, percentile(took, 99)},
		{title + ", memory then", "MiB", true, median(mem)},
	}
}

// skiffStarts starts a control plane, and then everything, z.Starts times each.
func skiffStarts(ctx context.Context, bin string, z sizes) ([]figure, error) {
	var out []figure
	for _, role := range []string{"server", "up"} {
		var took, mem []float64
		for i := range z.Starts {
			t, m, err := skiffStart(ctx, bin, role, i)
			if err != nil {
				return out, fmt.Errorf("skiff %s: %w", role, err)
			}
			took, mem = append(took, millis(t)), append(mem, mib(m.rss()))
		}
		title := titleReadyz
		if role == "up" {
			title = titleReady
		}
		out = append(out, startFigures(title, took, mem)...)
	}
	return out, nil
}

// skiffStart starts one instance, and removes it with all it put on the host.
func skiffStart(ctx context.Context, bin, role string, i int) (took time.Duration, m memory, err error) {
	tmp, err := os.MkdirTemp("", "bench-start-")
	if err != nil {
		return 0, m, err
	}
	defer os.RemoveAll(tmp)
	data := filepath.Join(tmp, "data")
	at := []string{"--name", fmt.Sprintf("bench-%d-%d", os.Getpid(), i), "--data-dir", data}
	ports, err := freePorts(2)
	if err != nil {
		return 0, m, err
	}
	args := append([]string{role, "--api-port", strconv.Itoa(ports[0])}, at...)
	if role == "up" {
		args = append(args, "--kubelet-port", strconv.Itoa(ports[1]), "--foreground")
	}
	logFile := filepath.Join(tmp, "log")
	start := time.Now()
	p, err := spawn(bin, logFile, args...)
	if err != nil {
		return 0, m, err
	}
	defer func() {
		p.stop()
		if out, rerr := exec.Command(bin, append([]string{"reset", "--yes"}, at...)...).CombinedOutput(); rerr != nil {
			err = errors.Join(err, fmt.Errorf("reset: %w: %s", rerr, out))
		}
		if err != nil {
			if b, rerr := os.ReadFile(logFile); rerr == nil {
				err = fmt.Errorf("%w; its log ends with:\n%s", err, b[max(0, len(b)-2000):])
			}
		}
	}()
	kubeconfig := filepath.Join(data, "admin.kubeconfig")
	if err := readyz(ctx, kubeconfig, time.Minute, []*process{p}); err != nil {
		return 0, m, err
	}
	if role == "up" {
		if err := nodeReady(ctx, kubeconfig, p); err != nil {
			return 0, m, err
		}
	}
	took = time.Since(start)
	pids, err := instancePIDs(data)
	if err != nil {
		return 0, m, err
	}
	m, err = memoryOf(pids)
	return took, m, err
}

// nodeReady waits until a node is Ready and pods may be bound to it: from then on
// a pod that is created starts.
func nodeReady(ctx context.Context, kubeconfig string, p *process) error {
	cfg, err := client.LoadKubeconfig(kubeconfig)
	if err != nil {
		return err
	}
	t, err := client.NewHTTPS(cfg)
	if err != nil {
		return err
	}
	defer t.Close()
	nodes := client.For[*corev1.Node](client.New(t, "bench"))
	state := "no node"
	err = poll(ctx, time.Minute, 5*time.Millisecond, func() (bool, error) {
		select {
		case <-p.exited:
			return false, fmt.Errorf("ended: %v", p.err)
		default:
		}
		list, _, err := nodes.List(ctx, metav1.ListOptions{})
		if err != nil {
			// Refused is not Ready yet.
			state = err.Error()
			return false, ctx.Err()
		}
		for _, n := range list {
			state = fmt.Sprintf("node %s, taints %v", n.Name, n.Spec.Taints)
			for _, c := range n.Status.Conditions {
				if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue && len(n.Spec.Taints) == 0 {
					return true, nil
				}
			}
		}
		return false, nil
	})
	if errors.Is(err, errLate) {
		return fmt.Errorf("no Ready node: %s: %w", state, err)
	}
	return err
}

func upstreamStarts(ctx context.Context, bin string, z sizes) ([]figure, error) {
	var took, mem []float64
	for range z.Starts {
		t, m, err := upstreamStart(ctx, bin)
		if err != nil {
			return nil, err
		}
		took, mem = append(took, millis(t)), append(mem, mib(m.rss()))
	}
	return startFigures(titleReadyz, took, mem), nil
}

// upstreamStart counts from the exec of etcd; certificates are there before.
func upstreamStart(ctx context.Context, bin string) (took time.Duration, m memory, err error) {
	tmp, err := os.MkdirTemp("", "bench-start-")
	if err != nil {
		return 0, memory{}, err
	}
	defer os.RemoveAll(tmp)
	p, err := newPeer(tmp, bin)
	if err != nil {
		return 0, memory{}, err
	}
	defer func() {
		if err = errors.Join(err, p.stop()); err == nil {
			return
		}
		for _, x := range p.procs {
			if b, rerr := os.ReadFile(p.logOf(x)); rerr == nil {
				err = fmt.Errorf("%w; the log of %s ends with:\n%s", err, filepath.Base(x.cmd.Path), b[max(0, len(b)-2000):])
			}
		}
	}()
	start := time.Now()
	if err := p.start(); err != nil {
		return 0, memory{}, err
	}
	if err := p.ready(ctx, 2*time.Minute); err != nil {
		return 0, memory{}, err
	}
	took = time.Since(start)
	m, err = memoryOf(p.pids())
	return took, m, err
}
