package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"skiff/internal/admin"
	"skiff/internal/host"
)

// report is a line that a process in the background sends to the command that
// started it.
type report struct {
	Step  string   `json:"step,omitempty"`
	MS    float64  `json:"ms,omitempty"`
	Ready *Reached `json:"ready,omitempty"`
	Error string   `json:"error,omitempty"`
}

// progressFD is the pipe of those lines.
const progressFD = 3

func (c *command) up() *cobra.Command {
	var foreground, child bool
	var up upgrade
	cmd := &cobra.Command{
		Use: "up", Short: "Start a cluster on this machine", Args: cobra.NoArgs,
		Long: `Start a cluster on this machine, in the background, and return when it is Ready:
when a pod that is created starts and is reachable by its service's name.

Pods that ran when skiff was killed are taken over as they are. A cluster that
runs already with this very program is left alone.

One that runs with another skiff is upgraded in place: this skiff looks whether it
can run, the other one ends, and this one takes over. Pods go on; requests wait
for a moment; watches are resumed by their clients. Where this one fails to start,
the other one is started again. It does not take over from a newer release unless
--downgrade says so. docs/upgrade.md tells more.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, r, err := c.instance()
			if err != nil {
				return err
			}
			if !child {
				a := admin.Dial(i.AdminSocket())
				if st, err := a.Status(cmd.Context()); err == nil {
					do, says := up.decide(st, c.local.Identity(), c.local.Older)
					switch do {
					case refuse:
						return errors.New(says)
					case leave:
						fmt.Fprintln(c.out, says)
						c.goOn(i, r)
						return nil
					}
					fmt.Fprintln(c.out, says)
					return c.takeOver(cmd.Context(), a, i, st, func() (came bool, err error) {
						if foreground {
							return c.upForeground(cmd.Context())
						}
						err = c.upBackground(cmd.Context(), i)
						return err == nil, err
					})
				}
			}
			switch {
			case child:
				return c.upChild(cmd.Context())
			case foreground:
				_, err := c.upForeground(cmd.Context())
				return err
			}
			if started, err := c.local.StartService(cmd.Context(), i, c.say); started || err != nil {
				if err == nil {
					c.goOn(i, r)
				}
				return err
			}
			return c.upBackground(cmd.Context(), i)
		},
	}
	c.startFlags(cmd)
	cmd.Flags().BoolVar(&foreground, "foreground", false, "stay in the foreground and log to standard error")
	cmd.Flags().BoolVar(&up.newer, "upgrade", true, "take over from another skiff that runs the cluster")
	cmd.Flags().BoolVar(&up.older, "downgrade", false, "take over also from a newer release")
	cmd.Flags().BoolVar(&child, "report", false, "report progress on file descriptor 3 (used by up itself)")
	_ = cmd.Flags().MarkHidden("report")
	return cmd
}

func (c *command) printStep(step string, took time.Duration) {
	fmt.Fprintf(c.out, "  %-44s %6.0f ms\n", step, float64(took.Microseconds())/1000)
}

func (c *command) goOn(i host.Instance, r Reached) {
	fmt.Fprintf(c.out, `
  export KUBECONFIG=%s
  skiff kubectl%s get nodes     (or any kubectl)
  skiff down%s                  stops it; skiff reset%s removes it
`, r.Kubeconfig, nameFlag(i), nameFlag(i), nameFlag(i))
}

// upForeground returns when the cluster ends; came tells that it was Ready before.
func (c *command) upForeground(ctx context.Context) (came bool, err error) {
	start := time.Now()
	err = c.local.Run(ctx, Start{
		Role: AllInOne, Settings: c.set, ConfigFile: c.conf, Progress: c.printStep,
		Ready: func(r Reached) {
			came = true
			fmt.Fprintf(c.out, "Cluster %q is Ready after %.2f s.\n", r.Name, time.Since(start).Seconds())
			c.goOn(host.Instance{Name: r.Name}, r)
		},
	})
	return came, err
}

// upChild is the process in the background.
func (c *command) upChild(ctx context.Context) error {
	pipe := os.NewFile(progressFD, "progress")
	if pipe == nil {
		return errors.New("--report needs a pipe on file descriptor 3")
	}
	syscall.CloseOnExec(progressFD)
	send := func(r report) {
		b, err := json.Marshal(r)
		if err == nil {
			// The reader may be gone: then nobody wants to know.
			_, _ = pipe.Write(append(b, '\n'))
		}
	}
	ready := false
	err := c.local.Run(ctx, Start{
		Role: AllInOne, Settings: c.set, ConfigFile: c.conf,
		Progress: func(step string, took time.Duration) {
			send(report{Step: step, MS: float64(took.Microseconds()) / 1000})
		},
		Ready: func(r Reached) {
			ready = true
			send(report{Ready: &r})
			pipe.Close()
		},
	})
	if err != nil && !ready {
		send(report{Error: err.Error()})
	}
	return err
}

func (c *command) upBackground(ctx context.Context, i host.Instance) error {
	start := time.Now()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Fprintf(c.out, "Starting cluster %q\n", i.Name)
	r, err := c.spawn(ctx, self, i, c.flags())
	if err != nil {
		return err
	}
	fmt.Fprintf(c.out, "Cluster %q is Ready after %.2f s.\n", i.Name, time.Since(start).Seconds())
	c.goOn(i, r)
	return nil
}

// spawn starts program in the background as the skiff of i, with these flags of up,
// and returns when it is Ready.
func (c *command) spawn(ctx context.Context, program string, i host.Instance, flags []string) (Reached, error) {
	if err := os.MkdirAll(i.RunDir, 0o700); err != nil {
		if os.Geteuid() != 0 {
			return Reached{}, errors.New("skiff needs root to run containers; run it with sudo")
		}
		return Reached{}, fmt.Errorf("run directory: %w", err)
	}
	logPath := i.Run(host.LogFile)
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return Reached{}, fmt.Errorf("log file: %w", err)
	}
	defer logFile.Close()
	pr, pw, err := os.Pipe()
	if err != nil {
		return Reached{}, err
	}
	defer pr.Close()
	cmd := exec.Command(program, append([]string{"up", "--report"}, flags...)...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{pw}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		pw.Close()
		return Reached{}, fmt.Errorf("start in the background: %w", err)
	}
	pw.Close()
	lines := bufio.NewScanner(pr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r report
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			continue
		}
		switch {
		case r.Error != "":
			_ = cmd.Wait()
			return Reached{}, errors.New(r.Error)
		case r.Ready != nil:
			return *r.Ready, cmd.Process.Release()
		default:
			c.printStep(r.Step, time.Duration(r.MS*float64(time.Millisecond)))
		}
	}
	err = cmd.Wait()
	return Reached{}, fmt.Errorf("skiff ended before it was Ready (%v); its log ends with:\n%s", err, tail(logPath, 2000))
}

// flags are the flags that this command was called with, for the one in the
// background.
func (c *command) flags() []string {
	s := c.set
	var out []string
	add := func(name, v string) {
		if v != "" {
			out = append(out, "--"+name, v)
		}
	}
	num := func(name string, v int) {
		if v != 0 {
			add(name, fmt.Sprint(v))
		}
	}
	add("name", s.Name)
	add("data-dir", s.DataDir)
	add("config", c.conf)
	add("node-name", s.NodeName)
	add("node-ip", s.NodeIP)
	num("api-port", s.APIPort)
	num("kubelet-port", s.KubeletPort)
	add("pod-cidr", s.PodCIDR)
	add("service-cidr", s.ServiceCIDR)
	add("node-ports", s.NodePorts)
	add("cluster-domain", s.ClusterDomain)
	add("san", strings.Join(s.ExtraSANs, ","))
	add("etcd", strings.Join(s.Etcd, ","))
	num("max-pods", s.MaxPods)
	add("allowed-unsafe-sysctls", strings.Join(s.AllowedUnsafeSysctls, ","))
	add("max-container-restart-period", s.MaxContainerRestartPeriod)
	add("container-runtime-endpoint", s.ContainerRuntimeEndpoint)
	add("etcd-ca", s.EtcdCA)
	add("etcd-cert", s.EtcdCert)
	add("etcd-key", s.EtcdKey)
	add("cni-conf-dir", s.CNIConfDir)
	add("cni-bin-dir", s.CNIBinDir)
	add("load-balancers", s.LoadBalancers)
	add("scheduler-config", s.SchedulerConfig)
	if s.Verbose {
		out = append(out, "--verbose")
	}
	return out
}

func tail(path string, n int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (c *command) down() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use: "down", Short: "Stop the cluster on this machine; its data stays", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, i, known, err := c.find()
			if err != nil {
				return err
			}
			if !known {
				fmt.Fprintln(c.out, c.local.Unknown(i)+".")
				return nil
			}
			err = a.End(cmd.Context(), !keep)
			if errors.Is(err, admin.ErrNotRunning) {
				fmt.Fprintf(c.out, "skiff %q is not running.\n", i.Name)
				return nil
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(c.out, "Cluster %q is stopped. `skiff up%s` starts it again.\n", i.Name, nameFlag(i))
			return nil
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-pods", false, "end skiff alone and leave the pods running")
	return cmd
}

func (c *command) reset() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "reset", Short: "Remove the cluster and everything it put on this machine", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, i, known, err := c.find()
			if err != nil {
				return err
			}
			if !known {
				fmt.Fprintln(c.out, c.local.Unknown(i)+". Nothing was removed.")
				return nil
			}
			if !yes {
				return fmt.Errorf("this removes cluster %q and all its data in %s; say so with --yes", i.Name, i.DataDir)
			}
			if err := a.End(cmd.Context(), true); err != nil && !errors.Is(err, admin.ErrNotRunning) {
				return err
			}
			if err := c.local.Reset(cmd.Context(), i, func(s string) { fmt.Fprintln(c.out, " ", s) }); err != nil {
				return err
			}
			fmt.Fprintf(c.out, "Cluster %q is removed.\n", i.Name)
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}
