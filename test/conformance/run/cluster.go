package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The first node runs on the host; the others, in namespaces of their own, are
// tied to it by a bridge.
const (
	clusterName = "conformance"
	bridge      = "skconf0"
	network     = "10.199.78"
)

// cluster is a development cluster: an all-in-one skiff, and further nodes.
type cluster struct {
	skiff   string
	dir     string
	archive string // of the tests' images
	nodes   []*node
	started bool
	bridged bool
	mirror  *mirror
}

// node is a further node.
type node struct {
	c         *cluster
	name      string
	holder    *exec.Cmd // keeps the namespaces
	skiff     *exec.Cmd
	importing func(args ...string) *exec.Cmd
}

func (c *cluster) data(name string) string { return filepath.Join(c.dir, name) }
func (c *cluster) config() string          { return c.data("config.yaml") }
func (c *cluster) kubeconfig() string      { return filepath.Join(c.data("first"), "admin.kubeconfig") }

// kubectl is a program that runs the kubectl which skiff carries: the suite's own
// version.
func (c *cluster) kubectl() string { return filepath.Join(c.dir, "kubectl") }

func (c *cluster) first(args ...string) *exec.Cmd {
	return exec.Command(c.skiff, append([]string{"--name", clusterName, "--data-dir", c.data("first")}, args...)...)
}

func (c *cluster) start(ctx context.Context, nodes int) error {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	var flags []string
	address := "127.0.0.1"
	if nodes > 1 {
		address = network + ".1"
		c.bridged = true
		for _, args := range [][]string{
			{"link", "add", bridge, "type", "bridge"}, {"addr", "add", network + ".1/24", "dev", bridge}, {"link", "set", bridge, "up"},
		} {
			if err := do(exec.CommandContext(ctx, "ip", args...)); err != nil {
				return err
			}
		}
		flags = []string{"--node-ip", network + ".1"}
	}
	var err error
	if c.mirror, err = serveImages(c.archive, address); err != nil {
		return err
	}
	// JSON is YAML.
	config := fmt.Sprintf(`{"registryMirrors": {"registry.k8s.io": ["http://%s"]}}`, c.mirror.addr)
	if err := os.WriteFile(c.config(), []byte(config), 0o644); err != nil {
		return err
	}
	flags = append(flags, "--config", c.config())
	c.started = true
	if err := do(c.first(append([]string{"up"}, flags...)...)); err != nil {
		return err
	}
	if err := do(c.first("image", "import", c.archive)); err != nil {
		return err
	}
	wrapper := fmt.Sprintf("#!/bin/sh\nexec %q --name %s --data-dir %q kubectl \"$@\"\n", c.skiff, clusterName, c.data("first"))
	if err := os.WriteFile(c.kubectl(), []byte(wrapper), 0o755); err != nil {
		return err
	}
	for i := 2; i <= nodes; i++ {
		if err := c.join(ctx, i); err != nil {
			return fmt.Errorf("node %d: %w", i, err)
		}
	}
	if nodes > 1 {
		return do(c.first("kubectl", "wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"))
	}
	return nil
}

// join starts the i-th node in namespaces that only the bridge leads to.
func (c *cluster) join(ctx context.Context, i int) error {
	n := &node{c: c, name: fmt.Sprintf("node-%d", i)}
	n.holder = exec.Command("unshare", "--net", "--mount", "--uts", "--propagation", "private", "sh", "-c", "echo; exec sleep infinity")
	n.holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := n.holder.StdoutPipe()
	if err != nil {
		return err
	}
	if err := n.holder.Start(); err != nil {
		return err
	}
	c.nodes = append(c.nodes, n)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // they exist now
		return err
	}
	pid := fmt.Sprint(n.holder.Process.Pid)
	inside := func(args ...string) *exec.Cmd {
		return exec.Command("nsenter", append([]string{"-t", pid, "-n", "-m", "-u"}, args...)...)
	}
	outer := fmt.Sprintf("skconf%d", i)
	for _, cmd := range []*exec.Cmd{
		exec.CommandContext(ctx, "ip", "link", "add", outer, "master", bridge, "up", "type", "veth", "peer", "name", "eth0", "netns", pid),
		inside("hostname", n.name),
		inside("ip", "link", "set", "lo", "up"),
		inside("ip", "addr", "add", fmt.Sprintf("%s.%d/24", network, i), "dev", "eth0"),
		inside("ip", "link", "set", "eth0", "up"),
		inside("ip", "route", "add", "default", "via", network+".1"),
	} {
		if err := do(cmd); err != nil {
			return err
		}
	}
	kubeconfig, err := c.first("kubeconfig", "--node", n.name).Output()
	if err != nil {
		return err
	}
	path := c.data(n.name + ".kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		return err
	}
	n.importing = func(args ...string) *exec.Cmd {
		return inside(append([]string{c.skiff, "--name", clusterName + "-" + n.name, "--data-dir", c.data(n.name)}, args...)...)
	}
	n.skiff = n.importing("node", "--config", c.config(), "--kubeconfig", path, "--node-name", n.name, "--node-ip", fmt.Sprintf("%s.%d", network, i))
	n.skiff.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(c.data(n.name + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	n.skiff.Stderr = log
	if out, err = n.skiff.StdoutPipe(); err != nil {
		return err
	}
	if err := n.skiff.Start(); err != nil {
		return err
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "Ready\n" {
		return fmt.Errorf("%s says %q (%w); see %s", n.name, line, err, log.Name())
	}
	return do(n.importing("image", "import", c.archive))
}

// remove takes away everything that start put on the host.
func (c *cluster) remove() error {
	var errs []error
	for _, n := range c.nodes {
		if n.skiff != nil && n.skiff.Process != nil {
			errs = append(errs, n.skiff.Process.Signal(syscall.SIGTERM))
			ended := make(chan struct{})
			go func() { _ = n.skiff.Wait(); close(ended) }()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				errs = append(errs, fmt.Errorf("%s does not end", n.name), n.skiff.Process.Kill())
				<-ended
			}
			errs = append(errs, do(n.importing("reset", "--yes")))
		}
		_ = n.holder.Process.Kill() // it does nothing but sleep
		_ = n.holder.Wait()
	}
	if c.started {
		errs = append(errs, do(c.first("reset", "--yes")))
	}
	if c.mirror != nil {
		errs = append(errs, c.mirror.close())
	}
	if c.bridged {
		errs = append(errs, do(exec.Command("ip", "link", "del", bridge)))
	}
	return errors.Join(errs...)
}

func do(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
