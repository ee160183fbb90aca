package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"

	"skiff/internal/admin"
	"skiff/internal/client"
	"skiff/internal/run"
)

// runFlags are those of run that are not of the container.
type runFlags struct {
	run.Options
	entrypoint  string
	stopTimeout int64
	up, dryRun  bool
	nameFile    string
	detachKeys  string
	sigProxy    bool
	quiet       bool
}

func (c *command) run() *cobra.Command {
	var o runFlags
	cmd := &cobra.Command{
		DisableFlagsInUseLine: true,
		Use:                   "run [FLAGS] IMAGE [COMMAND] [ARG...]", Short: "Run a container, as docker does", Args: cobra.MinimumNArgs(1),
		Long: `Run one container of an image. It is a Pod of the cluster with docker's words for
it: kubectl, skiff explain, Services and metrics see it, and skiff ps, logs, exec,
stop, start and rm handle it.

Without -d, skiff is attached before the process starts, so that none of its
output is missed, and exits with its exit code: 125 where the container could not
be made, 126 and 127 where its command cannot be run or is not there. ^P^Q leaves a
terminal and lets the container run.

What a Pod cannot do is refused with a word on what to do instead. --dry-run prints
the Pod and creates nothing.`,
		Example: `  skiff run --rm -it busybox sh
  skiff run -d --name web -p 8080:80 -v $PWD/site:/usr/share/nginx/html:ro nginx
  skiff run --rm -v data:/data busybox ls /data       a named volume
  skiff run --dry-run --restart always -m 256m web:1  the manifest of it`,
		RunE: func(cmd *cobra.Command, args []string) error {
			for name, why := range refused {
				if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
					return fmt.Errorf("--%s: %s", name, why)
				}
			}
			o.Image, o.Args = args[0], args[1:]
			if cmd.Flags().Changed("entrypoint") {
				o.Entrypoint = &o.entrypoint
			}
			if cmd.Flags().Changed("stop-timeout") {
				o.StopTimeout = &o.stopTimeout
			}
			if o.dryRun {
				return c.dryRun(cmd.Context(), &o)
			}
			if o.up {
				if err := c.ensureUp(cmd.Context()); err != nil {
					return err
				}
			}
			// What ends skiff is for the container first: see signals.
			ctx := context.WithoutCancel(cmd.Context())
			return c.with(ctx, o.Namespace, func(p *pods) error { return c.runIn(ctx, p, &o) })
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the image is the command's
	o.flags(cmd)
	f.StringVar(&o.Namespace, "namespace", "", "namespace of the container (default \"default\")")
	f.BoolVar(&o.up, "up", false, "start the cluster first where it does not run")
	f.BoolVar(&o.dryRun, "dry-run", false, "print the Pod, and claims of named volumes, and create nothing")
	for name := range refused {
		f.StringArray(name, nil, "")
		_ = f.MarkHidden(name)
		f.Lookup(name).NoOptDefVal = "true"
	}
	cmd.ValidArgsFunction = c.completeImages
	return cmd
}

// flags declares docker's flags.
func (o *runFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Name, "name", "", "name of the container (default: a generated one)")
	f.BoolVarP(&o.Detach, "detach", "d", false, "run in the background and print the name")
	f.BoolVar(&o.Remove, "rm", false, "remove the container when it has ended")
	f.BoolVarP(&o.Interactive, "interactive", "i", false, "keep standard input open")
	f.BoolVarP(&o.Terminal, "tty", "t", false, "give it a terminal")
	f.StringArrayVarP(&o.Attach, "attach", "a", nil, "attach to stdin, stdout or stderr alone")
	f.BoolVar(&o.sigProxy, "sig-proxy", true, "pass signals on to the process")
	f.StringVar(&o.detachKeys, "detach-keys", defaultDetachKeys, "keys that leave the container running")

	f.StringArrayVarP(&o.Env, "env", "e", nil, "NAME=VALUE, or NAME with its value here")
	f.StringArrayVar(&o.EnvFiles, "env-file", nil, "file of such lines")
	f.StringVarP(&o.Workdir, "workdir", "w", "", "working directory")
	f.StringVarP(&o.User, "user", "u", "", "UID[:GID]")
	f.StringVar(&o.entrypoint, "entrypoint", "", "program instead of the image's entrypoint; empty for none")
	f.StringArrayVarP(&o.Labels, "label", "l", nil, "NAME=VALUE; a label, or an annotation where the value is no label's")
	f.StringArrayVar(&o.LabelFiles, "label-file", nil, "file of such lines")
	f.StringArrayVar(&o.Annotations, "annotation", nil, "NAME=VALUE")
	f.StringVar(&o.nameFile, "cidfile", "", "file to write the container's name to")

	f.StringArrayVarP(&o.Publish, "publish", "p", nil, "[[IP:]HOST:]CONTAINER[/PROTOCOL]; ports or ranges")
	f.BoolVarP(&o.PublishAll, "publish-all", "P", false, "publish every port that the image or --expose names, each on a free port")
	f.StringArrayVar(&o.Expose, "expose", nil, "PORT[/PROTOCOL] that it serves")
	f.StringVar(&o.Network, "network", "", "pod, host, or none for the loopback device alone (default pod)")
	f.StringVar(&o.Network, "net", "", "")
	_ = f.MarkHidden("net")
	f.StringVarP(&o.Hostname, "hostname", "h", "", "host name (default: the container's name)")
	f.StringArrayVar(&o.AddHosts, "add-host", nil, "NAME:ADDRESS for /etc/hosts; host-gateway is this machine")
	f.StringArrayVar(&o.DNS, "dns", nil, "DNS server, instead of the cluster's")
	f.StringArrayVar(&o.DNSSearch, "dns-search", nil, "domain to search")
	f.StringArrayVar(&o.DNSOptions, "dns-option", nil, "option of the resolver")

	f.StringArrayVarP(&o.Volumes, "volume", "v", nil, "[SOURCE:]TARGET[:OPTIONS]; SOURCE is a path, or the name of a volume")
	f.StringArrayVar(&o.Mounts, "mount", nil, "type=bind|volume|tmpfs|image,source=...,target=...[,readonly]")
	f.StringArrayVar(&o.Tmpfs, "tmpfs", nil, "TARGET[:size=SIZE], in memory")
	f.StringVar(&o.ShmSize, "shm-size", "", "size of /dev/shm (default 64m)")
	f.StringArrayVar(&o.Devices, "device", nil, "device; needs --privileged")

	f.StringVarP(&o.Memory, "memory", "m", "", "most memory, such as 512m")
	f.StringVar(&o.MemoryReservation, "memory-reservation", "", "memory that is kept for it")
	f.StringVar(&o.CPUs, "cpus", "", "most CPUs, such as 1.5")
	f.Int64VarP(&o.CPUShares, "cpu-shares", "c", 0, "weight; 1024 is one CPU that is kept for it")

	f.StringArrayVar(&o.CapAdd, "cap-add", nil, "capability to add, or ALL")
	f.StringArrayVar(&o.CapDrop, "cap-drop", nil, "capability to take away, or ALL")
	f.BoolVar(&o.Privileged, "privileged", false, "give it all that the host has")
	f.BoolVar(&o.ReadOnly, "read-only", false, "let it write to volumes alone")
	f.StringArrayVar(&o.SecurityOpts, "security-opt", nil, "no-new-privileges, seccomp=unconfined, apparmor=unconfined or systempaths=unconfined")
	f.StringArrayVar(&o.GroupAdd, "group-add", nil, "further GID")
	f.StringArrayVar(&o.Sysctls, "sysctl", nil, "NAME=VALUE of the container's kernel settings")
	f.StringVar(&o.PID, "pid", "", "host, for the host's processes")
	f.StringVar(&o.IPC, "ipc", "", "host, for the host's shared memory")
	f.BoolVar(&o.Init, "init", false, "have a first process that reaps others")
	f.StringVar(&o.RuntimeClass, "runtime", "", "runtime class")
	f.StringVar(&o.ServiceAccount, "service-account", "", "account of the cluster whose token it gets (default none)")

	f.StringVar(&o.Restart, "restart", "no", "no, on-failure[:N] for N restarts at most, always or unless-stopped")
	f.StringVar(&o.Pull, "pull", "missing", "always, missing or never")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not tell of a pull")
	f.Int64Var(&o.stopTimeout, "stop-timeout", 10, "seconds that it has to end when it is stopped")
	f.StringVar(&o.StopSignal, "stop-signal", "", "signal that stops it (default: the image's, or TERM)")
	f.StringVar(&o.HealthCmd, "health-cmd", "", "shell command that tells whether it is healthy")
	f.DurationVar(&o.HealthInterval, "health-interval", 0, "time between two checks (default 30s)")
	f.DurationVar(&o.HealthTimeout, "health-timeout", 0, "longest time of a check (default 30s)")
	f.DurationVar(&o.HealthStart, "health-start-period", 0, "time before the first check")
	f.Int32Var(&o.HealthRetries, "health-retries", 0, "failed checks in a row that make it unhealthy (default 3)")
	f.BoolVar(&o.NoHealthcheck, "no-healthcheck", false, "check nothing")
	// -h is docker's for the host name.
	f.Bool("help", false, "help for run")
}

// refused are docker's flags that a Pod cannot honour, with what to do instead.
var refused = map[string]string{
	"link":              "containers reach each other by the addresses of their pods, or through a Service",
	"network-alias":     "give it a Service: skiff kubectl expose pod NAME",
	"ip":                "the cluster assigns addresses; a Service has one that lasts",
	"ip6":               "the cluster assigns addresses; a Service has one that lasts",
	"mac-address":       "the pod network assigns it",
	"log-driver":        "logs are files of the node, which agents of the cluster collect",
	"log-opt":           "logs are files of the node, which the kubelet rotates",
	"volumes-from":      "name the volumes with --volume",
	"volume-driver":     "make a claim of another storage class and name it with --volume",
	"gpus":              "a pod gets devices by resource claims; apply a manifest with one",
	"ulimit":            "pods have none; the process may lower its own",
	"pids-limit":        "pods have none of their own",
	"memory-swap":       "the node decides on swap",
	"memory-swappiness": "the node decides on swap",
	"kernel-memory":     "the kernel has it no more",
	"oom-kill-disable":  "a container at its limit is killed",
	"oom-score-adj":     "it follows from requests and limits (QoS)",
	"cpuset-cpus":       "the node's CPU manager assigns them",
	"cpuset-mems":       "the node's memory manager assigns them",
	"cpu-period":        "use --cpus",
	"cpu-quota":         "use --cpus",
	"blkio-weight":      "pods have none",
	"device-read-bps":   "pods have none",
	"device-write-bps":  "pods have none",
	"cgroup-parent":     "the kubelet places it by its QoS class",
	"cgroupns":          "every container has its own",
	"userns":            "apply a manifest with hostUsers",
	"uts":               "use --network host, which has the host's name",
	"isolation":         "it is of Windows",
	"platform":          "images are of this machine's platform",
	"storage-opt":       "use a limit of ephemeral-storage in a manifest",
	"domainname":        "use --hostname and a headless Service",
}

// machine is what flags refer to.
func (c *command) machine(ctx context.Context, p *pods) run.Machine {
	if c.here != nil {
		return *c.here
	}
	dir, _ := os.Getwd() // relative paths say so where it is unknown
	m := run.Machine{
		Dir: dir, Lookup: os.LookupEnv, ReadFile: os.ReadFile, FreePort: freePort, Random: rand.IntN,
		Exists: func(path string) bool { _, err := os.Stat(path); return err == nil },
	}
	m.Exposed = func(image string) ([]string, error) { return c.exposed(ctx, image) }
	if p == nil {
		return m
	}
	if st, err := p.door.Status(ctx); err == nil {
		m.Gateway = st.NodeIP
	}
	ns := p.namespace
	m.Taken = func(name string) bool {
		_, err := p.in(ns).Get(ctx, name)
		return err == nil
	}
	return m
}

// freePort asks the kernel which port of the host is free.
func freePort(ip, proto string, from, to int) (int, error) {
	free := func(port int) (int, error) {
		at := net.JoinHostPort(ip, strconv.Itoa(port))
		if proto == "udp" {
			c, err := net.ListenPacket("udp", at)
			if err != nil {
				return 0, err
			}
			defer c.Close()
			return c.LocalAddr().(*net.UDPAddr).Port, nil
		}
		l, err := net.Listen("tcp", at)
		if err != nil {
			return 0, err
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port, nil
	}
	err := errors.New("no port is free")
	for port := from; port <= max(from, to); port++ {
		var n int
		if n, err = free(port); err == nil {
			return n, nil
		}
	}
	return 0, err
}

// exposed are the ports that an image of this machine names.
func (c *command) exposed(ctx context.Context, ref string) ([]string, error) {
	var img struct {
		Config struct{ ExposedPorts map[string]struct{} }
	}
	err := c.withImages(ctx, func(a *admin.Client) error {
		raw, err := a.Inspect(ctx, ref)
		if err != nil {
			return err
		}
		return json.Unmarshal(raw, &img)
	})
	return sortedKeys(img.Config.ExposedPorts), err
}

// dryRun prints what run would create, as a manifest.
func (c *command) dryRun(ctx context.Context, o *runFlags) error {
	m := c.machine(ctx, nil)
	made, err := run.Plan(o.Options, m)
	if err == nil && o.PublishAll {
		err = made.PublishAll(m)
	}
	if err != nil {
		return err
	}
	for _, claim := range made.Claims {
		if err := c.manifest(claim, true); err != nil {
			return err
		}
	}
	return c.manifest(made.Pod, false)
}

// manifest prints an object without what only a server fills in.
func (c *command) manifest(o any, more bool) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	delete(m, "status")
	if b, err = yaml.Marshal(m); err != nil {
		return err
	}
	if more {
		b = append(b, "---\n"...)
	}
	_, err = c.out.Write(b)
	return err
}

// ensureUp starts the cluster where it does not run.
func (c *command) ensureUp(ctx context.Context) error {
	i, _, err := c.instance()
	if err != nil {
		return err
	}
	a, _, _, err := c.find()
	if err != nil {
		return err
	}
	if _, err := a.Status(ctx); err == nil {
		return nil
	}
	out := c.out
	c.out = c.err // the container's output is what this command is for
	defer func() { c.out = out }()
	return c.upBackground(ctx, i)
}

// create makes the pod and the claims that are missing.
func (p *pods) create(ctx context.Context, made run.Made) (*corev1.Pod, error) {
	for _, claim := range made.Claims {
		_, err := client.For[*corev1.PersistentVolumeClaim](p.Client).In(claim.Namespace).Create(ctx, claim)
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("volume %s: %w", claim.Name, err)
		}
	}
	pod, err := p.in(made.Pod.Namespace).Create(ctx, made.Pod)
	if apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("the name %q is taken by another container: remove it with `skiff rm %s`, or choose another", made.Pod.Name, made.Pod.Name)
	}
	return pod, err
}

// failed ends the command with docker's code for a container that does not start.
func (c *command) failed(code int, why string) error {
	fmt.Fprintln(c.err, "skiff:", strings.TrimSpace(why))
	return exitCode(code)
}

// Codes of docker.
const (
	codeFailed  = 125
	codeSignals = 128
)

func (c *command) runIn(ctx context.Context, p *pods, o *runFlags) error {
	m := c.machine(ctx, p)
	made, err := run.Plan(o.Options, m)
	if err != nil {
		return c.failed(codeFailed, err.Error())
	}
	if err := c.fetch(ctx, p, o); err != nil {
		return c.failed(codeFailed, err.Error())
	}
	if o.PublishAll {
		if err := made.PublishAll(m); err != nil {
			return c.failed(codeFailed, err.Error())
		}
	}
	var con *console
	if o.Attached() {
		if con, err = c.console(o); err != nil {
			return c.failed(codeFailed, err.Error())
		}
		defer con.restore()
	}
	pod, err := p.create(ctx, made)
	if err != nil {
		return c.failed(codeFailed, err.Error())
	}
	if o.nameFile != "" {
		if err := writeNew(o.nameFile, pod.Name); err != nil {
			return errors.Join(err, p.kill(ctx, pod))
		}
	}
	if !o.Attached() {
		if err := c.started(ctx, p, pod); err != nil {
			return err
		}
		fmt.Fprintln(c.out, pod.Name)
		return nil
	}
	s := &attachment{c: c, p: p, con: con, remove: o.Remove, proxy: o.sigProxy}
	return s.run(ctx, pod)
}

func writeNew(path, content string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

// started waits until the process of a pod has started. One that cannot start is
// removed again, but for what an image that is there does.
func (c *command) started(ctx context.Context, p *pods, pod *corev1.Pod) error {
	return p.follow(ctx, pod, func(now *corev1.Pod, gone bool) (bool, error) {
		s := run.StateOf(now, "")
		if code, why, fatal := run.Fatal(now, time.Now()); fatal && !gone {
			return true, errors.Join(c.failed(code, why), p.kill(ctx, now))
		}
		return gone || s.Word == run.Running || s.Word == run.Exited || s.Word == run.Restarting, nil
	})
}

// fetch pulls the image of a container where that is to be done, with its progress
// shown. What the kubelet of another machine has is not known here: it pulls itself.
func (c *command) fetch(ctx context.Context, p *pods, o *runFlags) error {
	if o.Pull == "never" {
		return nil
	}
	if _, err := p.door.Status(ctx); err != nil {
		return nil
	}
	if _, err := p.door.Inspect(ctx, o.Image); err == nil && o.Pull != "always" {
		return nil
	} else if err != nil && !o.quiet {
		fmt.Fprintf(c.err, "Unable to find image %q locally\n", o.Image)
	}
	var t transferFlags
	if err := t.complete(ctx, c, o.Image); err != nil {
		return err
	}
	shown := newLayers(c.err, o.quiet)
	_, err := p.door.Pull(ctx, t.req, shown.note)
	shown.close()
	return err
}
