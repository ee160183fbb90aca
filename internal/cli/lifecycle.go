package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/admin"
	"skiff/internal/api/runpod"
	"skiff/internal/run"
)

// signal sends a signal to a container's process through the door of this host.
func (p *pods) signal(ctx context.Context, pod *corev1.Pod, sig syscall.Signal) error {
	id := run.ID(pod)
	if id == "" {
		now, err := p.in(pod.Namespace).Get(ctx, pod.Name)
		if err != nil {
			return err
		}
		if id = run.ID(now); id == "" {
			return errors.New("it does not run")
		}
	}
	return p.door.Signal(ctx, id, int(sig))
}

// stop has the kubelet end a pod, with its signal and grace, and leave it there.
func (p *pods) stop(ctx context.Context, pod *corev1.Pod) error {
	_, err := p.in(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, []byte(`{"spec":{"activeDeadlineSeconds":1}}`), "")
	return err
}

// kill removes a pod and ends what runs of it at once. It returns when the node has
// ended it: its ports are free, its volumes nobody's.
func (p *pods) kill(ctx context.Context, pod *corev1.Pod) error {
	if run.Ended(pod) || pod.Spec.NodeName == "" {
		return p.delete(ctx, pod, nil)
	}
	// Where the node is another one, its kubelet kills a second later.
	_ = p.signal(ctx, pod, syscall.SIGKILL)
	least := int64(1)
	return p.delete(ctx, pod, &least)
}

func (c *command) stopContainers() *cobra.Command {
	var ns string
	var limit func() time.Duration
	cmd := &cobra.Command{
		Use: "stop CONTAINER...", Short: "Stop containers of skiff run; start brings them back", Args: cobra.MinimumNArgs(1),
		Long: `Stop containers of skiff run: with their stop signal, and KILL when the time that
they have (run --stop-timeout, 10 s) is over. They keep their logs and exit codes,
and are not restarted. skiff start starts them again.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd.Context(), "stop", ns, args, func(p *pods, pod *corev1.Pod) error {
				return p.stopAndWait(cmd.Context(), pod, limit())
			})
		},
		ValidArgsFunction: c.completeContainers(true),
	}
	namespaceFlag(cmd, &ns)
	limit = limitFlag(cmd)
	return cmd
}

// limitFlag is stop's --time; negative where it was not given.
func limitFlag(cmd *cobra.Command) func() time.Duration {
	seconds := int64(-1)
	f := cmd.Flags()
	f.Int64VarP(&seconds, "time", "t", -1, "seconds before KILL, where that is less than the container was given")
	f.Int64Var(&seconds, "timeout", -1, "")
	_ = f.MarkHidden("timeout")
	return func() time.Duration { return time.Duration(seconds) * time.Second }
}

// stopAndWait stops a pod; after limit, where it is not negative, it is killed.
func (p *pods) stopAndWait(ctx context.Context, pod *corev1.Pod, limit time.Duration) error {
	if run.Ended(pod) {
		return nil
	}
	if err := p.stop(ctx, pod); err != nil {
		return err
	}
	if limit >= 0 {
		t := time.AfterFunc(limit, func() { _ = p.signal(ctx, pod, syscall.SIGKILL) })
		defer t.Stop()
	}
	return p.follow(ctx, pod, func(now *corev1.Pod, gone bool) (bool, error) { return gone || run.Ended(now), nil })
}

func (c *command) kill() *cobra.Command {
	var ns, name string
	cmd := &cobra.Command{
		Use: "kill CONTAINER...", Short: "Send a signal to the process of containers", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n := run.SignalNumber(name)
			if n == 0 {
				return fmt.Errorf("--signal %q: no such signal", name)
			}
			return c.each(cmd.Context(), ns, args, func(p *pods, word string) error {
				pod, _, err := p.find(cmd.Context(), word)
				if err != nil {
					return err
				}
				if run.Ended(pod) {
					return fmt.Errorf("kill %s: it does not run", word)
				}
				if err := p.signal(cmd.Context(), pod, syscall.Signal(n)); err != nil {
					return fmt.Errorf("kill %s: %w", word, err)
				}
				fmt.Fprintln(c.out, word)
				return nil
			})
		},
		ValidArgsFunction: c.completeContainers(true),
	}
	namespaceFlag(cmd, &ns)
	cmd.Flags().StringVarP(&name, "signal", "s", "KILL", "signal, by name or number")
	return cmd
}

func (c *command) startContainers() *cobra.Command {
	var ns string
	cmd := &cobra.Command{
		Use: "start CONTAINER...", Short: "Start containers of skiff run that have ended", Args: cobra.MinimumNArgs(1),
		Long: `Start containers of skiff run that have ended. A pod does not run twice: it is made
anew as it was. Its volumes are there again, and so is what it wrote elsewhere, if it
ran on this machine; the log of its last run is not.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd.Context(), "start", ns, args, func(p *pods, pod *corev1.Pod) error {
				if !run.Ended(pod) {
					return nil
				}
				return c.again(cmd.Context(), p, pod)
			})
		},
		ValidArgsFunction: c.completeContainers(false),
	}
	namespaceFlag(cmd, &ns)
	return cmd
}

// hold keeps what a pod's container wrote for the pod that is to replace it, where that
// is on this machine. It returns the container's ID; "" for a new file system.
func (p *pods) hold(ctx context.Context, pod *corev1.Pod) (string, error) {
	id := run.Files(pod)
	if id == "" || !runpod.Keeps(pod.Labels) {
		return "", nil
	}
	err := p.door.Hold(ctx, id)
	if errors.Is(err, admin.ErrNoContainer) || errors.Is(err, admin.ErrNotRunning) {
		return "", nil // its files are elsewhere, if anywhere
	}
	if err != nil {
		return "", err
	}
	return id, nil
}

// again replaces a pod that has ended by one like it, and waits until that runs.
func (c *command) again(ctx context.Context, p *pods, old *corev1.Pod) error {
	if now, err := p.in(old.Namespace).Get(ctx, old.Name); err == nil && now.UID == old.UID {
		old = now // with the container that ended last
	}
	rootfs, err := p.hold(ctx, old)
	if err != nil {
		fmt.Fprintf(c.err, "skiff: %s begins with a new file system: %v\n", old.Name, err)
	}
	if err := p.delete(ctx, old, nil); err != nil {
		return err
	}
	pod, err := p.in(old.Namespace).Create(ctx, run.Again(old, rootfs))
	if err != nil {
		return err
	}
	return c.started(ctx, p, pod)
}

func (c *command) restart() *cobra.Command {
	var ns string
	var limit func() time.Duration
	cmd := &cobra.Command{
		Use: "restart CONTAINER...", Short: "Stop containers of skiff run and start them again", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd.Context(), "restart", ns, args, func(p *pods, pod *corev1.Pod) error {
				if err := p.stopAndWait(cmd.Context(), pod, limit()); err != nil {
					return err
				}
				return c.again(cmd.Context(), p, pod)
			})
		},
		ValidArgsFunction: c.completeContainers(false),
	}
	namespaceFlag(cmd, &ns)
	limit = limitFlag(cmd)
	return cmd
}

func (c *command) wait() *cobra.Command {
	var ns string
	cmd := &cobra.Command{
		Use: "wait CONTAINER...", Short: "Wait until containers have ended and print their exit codes", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(cmd.Context(), ns, args, func(p *pods, word string) error {
				pod, _, err := p.find(cmd.Context(), word)
				if err != nil {
					return err
				}
				code := -1
				err = p.follow(cmd.Context(), pod, func(now *corev1.Pod, gone bool) (bool, error) {
					if s := run.StateOf(now, ""); s.Code >= 0 {
						code = s.Code
					}
					return gone || run.Ended(now), nil
				})
				if err != nil {
					return err
				}
				if code < 0 {
					return fmt.Errorf("%s ended, and nobody knows its exit code", word)
				}
				fmt.Fprintln(c.out, code)
				return nil
			})
		},
		ValidArgsFunction: c.completeContainers(true),
	}
	namespaceFlag(cmd, &ns)
	return cmd
}

func (c *command) remove() *cobra.Command {
	var ns string
	var force, volumes bool
	cmd := &cobra.Command{
		Use: "rm CONTAINER...", Short: "Remove containers of skiff run", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(cmd.Context(), ns, args, func(p *pods, word string) error {
				pod, err := p.ours(cmd.Context(), word)
				if err != nil {
					if _, _, ferr := p.find(cmd.Context(), word); force && ferr != nil && !apierrors.IsForbidden(ferr) {
						return nil // it is not there: that is what was wanted
					}
					return err
				}
				if s := run.StateOf(pod, ""); !force && (s.Word == run.Running || s.Word == run.Restarting) {
					return fmt.Errorf("%s is running: stop it first, or remove it with --force", word)
				}
				if err := p.kill(cmd.Context(), pod); err != nil {
					return fmt.Errorf("remove %s: %w", word, err)
				}
				fmt.Fprintln(c.out, word)
				return nil
			})
		},
		ValidArgsFunction: c.completeContainers(false),
	}
	namespaceFlag(cmd, &ns)
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill those that run")
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "as docker's: volumes without a name go with their container in any case")
	return cmd
}

func (c *command) attach() *cobra.Command {
	var ns, keys string
	var noStdin, proxy bool
	cmd := &cobra.Command{
		Use: "attach CONTAINER", Short: "Join a container's own input and output", Args: cobra.ExactArgs(1),
		Long: `Join a container's own input and output, until it ends or ^P^Q is typed on its
terminal. What it wrote before is in skiff logs.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := context.WithoutCancel(cmd.Context())
			return c.with(ctx, ns, func(p *pods) error {
				pod, _, err := p.find(ctx, args[0])
				if err != nil {
					return err
				}
				if run.Ended(pod) {
					return fmt.Errorf("%s does not run", args[0])
				}
				ct := &pod.Spec.Containers[0]
				con, err := c.consoleFor(ct.Stdin && !noStdin, ct.TTY, true, true, keys)
				if err != nil {
					return err
				}
				defer con.restore()
				a := &attachment{c: c, p: p, con: con, proxy: proxy, remove: pod.Labels[runpod.LabelRemove] != ""}
				return a.run(ctx, pod)
			})
		},
		ValidArgsFunction: c.completeContainers(true),
	}
	namespaceFlag(cmd, &ns)
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not send input")
	cmd.Flags().BoolVar(&proxy, "sig-proxy", true, "pass signals on to the process")
	cmd.Flags().StringVar(&keys, "detach-keys", defaultDetachKeys, "keys that leave the container running")
	return cmd
}

func (c *command) execIn() *cobra.Command {
	var ns, keys, dir, user, container string
	var in, tty, detach bool
	var env []string
	cmd := &cobra.Command{
		DisableFlagsInUseLine: true,
		Use:                   "exec [FLAGS] CONTAINER COMMAND [ARG...]", Short: "Run a command in a running container", Args: cobra.MinimumNArgs(2),
		Long: `Run a command in a running container, of skiff run or, as NAMESPACE/POD[/CONTAINER],
of any pod. skiff exits with its exit code.`,
		Example: "  skiff exec -it web sh\n  skiff exec -u www-data -w /etc -e LANG=C web ls\n  skiff exec kube-system/dns-0 cat /etc/resolv.conf",
		RunE: func(cmd *cobra.Command, args []string) error {
			if dir != "" && !strings.HasPrefix(dir, "/") {
				return fmt.Errorf("--workdir %q: must be an absolute path", dir)
			}
			vars, err := pairs("--env", env)
			if err != nil {
				return err
			}
			x := execution{args: args[1:], dir: dir, vars: vars, user: user, stdin: in, tty: tty}
			return c.with(cmd.Context(), ns, func(p *pods) error {
				pod, ct, err := p.find(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if run.Ended(pod) {
					return fmt.Errorf("%s does not run", args[0])
				}
				if container == "" {
					container = ct
				}
				if detach {
					return p.leave(cmd.Context(), pod, container, x)
				}
				con, err := c.consoleFor(in, tty, true, true, keys)
				if err != nil {
					return err
				}
				defer con.restore()
				code, err := p.exec(cmd.Context(), pod, container, x, con.streams())
				con.restore()
				switch {
				case errors.Is(err, errDetached):
					return nil
				case err != nil:
					return err
				case code != 0:
					return exitCode(code)
				}
				return nil
			})
		},
		ValidArgsFunction: c.completeContainers(true),
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	namespaceFlag(cmd, &ns)
	f.StringVar(&container, "container", "", "container of the pod (default: its first)")
	f.BoolVarP(&in, "interactive", "i", false, "send standard input")
	f.BoolVarP(&tty, "tty", "t", false, "give it a terminal")
	f.BoolVarP(&detach, "detach", "d", false, "start the command and leave it there")
	f.StringArrayVarP(&env, "env", "e", nil, "NAME=VALUE")
	f.StringVarP(&dir, "workdir", "w", "", "working directory")
	f.StringVarP(&user, "user", "u", "", "USER[:GROUP], by name or number (default: the container's)")
	f.StringVar(&keys, "detach-keys", defaultDetachKeys, "keys that end the connection")
	return cmd
}
