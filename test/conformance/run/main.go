// run takes a development cluster of skiff through Kubernetes' own conformance
// tests, unmodified, and writes what passed, by area.
//
//	run -skiff bin/skiff -out out/conformance -focus 'Deployment|StatefulSet' -nodes 2
//
// The tests that may run together do; those marked Serial follow one by one.
// OUT/report.md has a table and, for each failure, its first line; OUT/*.log what
// the tests said. The exit code is 1 when a test failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
)

type options struct {
	skiff, out, focus, skip string
	nodes, procs            int
	keep                    bool
}

func main() {
	var o options
	flag.StringVar(&o.skiff, "skiff", "bin/skiff", "the program to test")
	flag.StringVar(&o.out, "out", "out/conformance", "directory with e2e.test, ginkgo and images.tar; results go there")
	flag.StringVar(&o.focus, "focus", "", "only tests whose name matches this regular expression")
	flag.StringVar(&o.skip, "skip", "", "not those whose name matches this one")
	flag.IntVar(&o.nodes, "nodes", 1, "nodes of the cluster; all but the first in network namespaces of their own")
	flag.IntVar(&o.procs, "procs", 4, "tests that run at the same time")
	flag.BoolVar(&o.keep, "keep", false, "leave the cluster for a look at it: a key press removes it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	failed, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(2)
	}
	if failed > 0 {
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (failed int, err error) {
	for _, p := range []*string{&o.skiff, &o.out} {
		if *p, err = filepath.Abs(*p); err != nil {
			return 0, err
		}
	}
	for _, re := range []string{o.focus, o.skip} {
		if _, err := regexp.Compile(re); err != nil {
			return 0, err
		}
	}
	c := &cluster{skiff: o.skiff, dir: filepath.Join(o.out, "cluster"), archive: filepath.Join(o.out, "images.tar")}
	defer func() { err = errors.Join(err, c.remove()) }()
	if err := c.start(ctx, o.nodes); err != nil {
		return 0, err
	}
	var all []result
	for _, part := range []struct {
		name, labels string
		procs        int
	}{
		{"parallel", "Conformance && !Serial", o.procs},
		{"serial", "Conformance && Serial", 1},
	} {
		rs, err := o.suite(ctx, c, part.name, part.labels, part.procs)
		if err != nil {
			return 0, fmt.Errorf("%s tests: %w", part.name, err)
		}
		all = append(all, rs...)
	}
	if len(all) == 0 {
		return 0, fmt.Errorf("no conformance test matches %q", o.focus)
	}
	text, failed := report(all)
	path := filepath.Join(o.out, "report.md")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return 0, err
	}
	fmt.Printf("%s\nWritten to %s.\n", text, path)
	if o.keep {
		fmt.Printf("The cluster stays until you press Enter: KUBECONFIG=%s\n", c.kubeconfig())
		if _, err := fmt.Scanln(); err != nil && ctx.Err() == nil {
			<-ctx.Done()
		}
	}
	return failed, nil
}

// suite runs the tests with some labels.
func (o options) suite(ctx context.Context, c *cluster, name, labels string, procs int) ([]result, error) {
	json, log := filepath.Join(o.out, name+".json"), filepath.Join(o.out, name+".log")
	for _, f := range []string{json, log} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	args := []string{
		"--procs", fmt.Sprint(procs), "--label-filter", labels, "--timeout", "4h", "--no-color", "--silence-skips",
		"--output-dir", o.out, "--json-report", name + ".json", "--keep-going",
	}
	if o.focus != "" {
		args = append(args, "--focus", o.focus)
	}
	if o.skip != "" {
		args = append(args, "--skip", o.skip)
	}
	args = append(args, filepath.Join(o.out, "e2e.test"), "--",
		"--provider", "skeleton", "--kubeconfig", c.kubeconfig(), "--report-dir", "", "--delete-namespace-on-failure=true",
		"--kubectl-path", c.kubectl(), "--dns-domain", "cluster.local", "--num-nodes", fmt.Sprint(o.nodes))
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fmt.Printf("Running the %s tests; %s has what they say.\n", name, log)
	cmd := exec.CommandContext(ctx, filepath.Join(o.out, "ginkgo"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Dir = o.out
	rerr := cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	rs, err := readResults(json)
	if err != nil {
		return nil, errors.Join(err, rerr)
	}
	return rs, nil
}
