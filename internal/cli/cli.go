// Package cli is skiff's command line. It talks to a running skiff through the
// admin socket and the API; what must run in this process (a server, a node, a
// build while skiff is down) it gets from main as Local.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"skiff/internal/admin"
	"skiff/internal/host"
	"skiff/internal/run"
)

// Settings are what flags and the config file can say. The fields are those of
// the config file.
type Settings struct {
	Name                     string
	DataDir                  string
	NodeName                 string
	NodeIP                   string
	APIPort                  int
	KubeletPort              int
	PodCIDR                  string
	ServiceCIDR              string
	NodePorts                string
	ClusterDomain            string
	DNSUpstreams             []string // these three in the config file alone
	DNSStubDomains           map[string][]string
	DNSHosts                 map[string][]string
	ExtraSANs                []string
	Etcd                     []string
	EtcdCA                   string
	EtcdCert                 string
	EtcdKey                  string
	MaxPods                  int
	ContainerRuntimeEndpoint string
	CNIConfDir               string
	CNIBinDir                string
	LoadBalancers            string
	RegistryMirrors          map[string][]string // in the config file alone
	InsecureRegistries       []string            // likewise
	MaxParallelImagePulls    int                 // likewise
	SchedulerConfig          string
	Kubelet                  *KubeletConfig // in the config file alone
	Verbose                  bool

	AllowedUnsafeSysctls      []string
	MaxContainerRestartPeriod string
}

// Role is what a process is.
type Role int

// Roles.
const (
	AllInOne Role = iota
	ServerOnly
	NodeOnly
)

// Start is a start of a process in the foreground.
type Start struct {
	Role       Role
	Settings   Settings
	ConfigFile string
	// Kubeconfig is a node's way to its server.
	Kubeconfig string
	// Progress hears of each step; Ready is called when pods start.
	Progress func(step string, took time.Duration)
	Ready    func(Reached)
}

// Reached is where a cluster that came up is found.
type Reached struct {
	Name       string
	Server     string
	Kubeconfig string
	LogFile    string
}

// Local is what runs in this process.
type Local interface {
	Installer
	Certificates
	Upgrader
	// Run starts a process and blocks until ctx ends or it fails.
	Run(ctx context.Context, s Start) error
	// Find returns the instance that name and data directory mean, each found by
	// the other; known is false where this machine has none of that name.
	Find(s Settings) (i host.Instance, known bool, err error)
	// Unknown says that the machine has no such instance, and which it has.
	Unknown(i host.Instance) string
	// Resolve completes settings as Run would: for what must be known before.
	Resolve(configFile string, s Settings) (host.Instance, Reached, error)
	// Reset undoes everything that an instance put on this host.
	Reset(ctx context.Context, i host.Instance, say func(string)) error
	// NodeKubeconfig makes the kubeconfig of a node elsewhere; server, where not
	// empty, is the URL that it reaches the API server at.
	NodeKubeconfig(i host.Instance, node, server string) ([]byte, error)
	// Images serves /images and /build without a running skiff.
	Images(ctx context.Context, i host.Instance) (http.Handler, func() error, error)
	// Credentials are what the user keeps for the registry of an image; nil for none.
	Credentials(ctx context.Context, ref string) (*admin.Auth, error)
	// Login verifies credentials with a registry ("" is docker.io) and keeps them;
	// it returns the file that they are in, or the program that keeps them.
	Login(ctx context.Context, i host.Instance, registry string, a admin.Auth, insecure bool) (string, error)
	// Logout forgets them; false where there were none.
	Logout(registry string) (bool, error)
	// BuildProgress shows a build's progress on w; mode is auto, plain, tty,
	// rawjson or quiet.
	BuildProgress(w io.Writer, mode string) (admin.BuildProgress, error)
	// Kubectl unpacks the kubectl that this skiff carries and returns its path.
	Kubectl(i host.Instance) (string, error)
	Version() string
}

type command struct {
	local Local
	// here is what flags of run refer to, this machine where nil.
	here *run.Machine
	out  io.Writer
	err  io.Writer
	set  Settings
	conf string
}

// Execute runs the command line and returns the exit code.
func Execute(ctx context.Context, local Local, args []string) int {
	c := &command{local: local, out: os.Stdout, err: os.Stderr}
	root := c.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var exit *exec.ExitError
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintln(c.err, "skiff:", err)
	return 1
}

// exitCode ends the command with a code and without a further word.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func (c *command) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "skiff",
		Short: "Kubernetes, whole, in one small program",
		Long: `skiff runs a Kubernetes cluster in one process: API server, etcd, scheduler,
controllers, kubelet, container runtime, pod network, services and DNS.

  skiff up                 start a cluster on this machine
  skiff kubectl get nodes  use it
  skiff down               stop it; the data stays
  skiff reset              remove it and everything it put on this machine`,
		SilenceUsage: true, SilenceErrors: true, Version: c.local.Version(),
		// What stands before a command is skiff's: skiff --name CLUSTER run --name CONTAINER.
		TraverseChildren: true,
	}
	f := root.PersistentFlags()
	f.StringVar(&c.set.Name, "name", "", "name of the cluster on this machine; several run side by side (default \"default\")")
	f.StringVar(&c.set.DataDir, "data-dir", "", "directory of everything durable (default /var/lib/skiff/NAME)")
	root.AddCommand(c.up(), c.server(), c.node(), c.down(), c.reset(), c.status(), c.kubeconfig(), c.kubectl(), c.build(), c.image(), c.explain(), c.install(), c.uninstall(), c.certs())
	root.AddCommand(c.containers()...)
	c.completions(root)
	return root
}

// startFlags are those of commands that start a process.
func (c *command) startFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.conf, "config", "", "file with these settings (YAML; the flags' names in camel case)")
	f.StringVar(&c.set.NodeName, "node-name", "", "name of this node (default: the host's name)")
	f.StringVar(&c.set.NodeIP, "node-ip", "", "address of this node; of each IP family one, separated by a comma (default: those towards the default routes)")
	f.IntVar(&c.set.APIPort, "api-port", 0, "port of the API server (default 6443; for a named cluster the next free one)")
	f.IntVar(&c.set.KubeletPort, "kubelet-port", 0, "port of the kubelet (default 10250; for a named cluster the next free one)")
	f.StringVar(&c.set.PodCIDR, "pod-cidr", "", "range of all pods' addresses; of each IP family one, separated by a comma, the primary first (default 10.244.0.0/16)")
	f.StringVar(&c.set.ServiceCIDR, "service-cidr", "", "range of services' cluster addresses; of each IP family one, separated by a comma (default 10.96.0.0/16; of IPv6 fd00:10:96::/112)")
	f.StringVar(&c.set.NodePorts, "node-ports", "", "range of node ports (default 30000-32767)")
	f.StringVar(&c.set.ClusterDomain, "cluster-domain", "", "domain of the cluster's DNS (default cluster.local)")
	f.StringSliceVar(&c.set.ExtraSANs, "san", nil, "more names or addresses that the API server is reached by")
	f.StringSliceVar(&c.set.Etcd, "etcd", nil, "endpoints of an etcd cluster to use instead of the built-in one")
	f.StringVar(&c.set.EtcdCA, "etcd-ca", "", "file with the authority of those endpoints' certificates (default: the system's)")
	f.StringVar(&c.set.EtcdCert, "etcd-cert", "", "file with the client certificate for those endpoints")
	f.StringVar(&c.set.EtcdKey, "etcd-key", "", "file with its key")
	f.IntVar(&c.set.MaxPods, "max-pods", 0, "most pods on this node (default 110)")
	f.StringSliceVar(&c.set.AllowedUnsafeSysctls, "allowed-unsafe-sysctls", nil, "sysctls that pods of this node may set beside the safe ones: names, or prefixes that end in *")
	f.StringVar(&c.set.MaxContainerRestartPeriod, "max-container-restart-period", "", "longest back-off of a container that keeps ending, 1s to 300s (default 300s)")
	f.StringVar(&c.set.ContainerRuntimeEndpoint, "container-runtime-endpoint", "", "socket of another CRI runtime to use instead of the built-in one")
	f.StringVar(&c.set.CNIConfDir, "cni-conf-dir", "", "directory of CNI configurations, which replace the built-in pod network (default /etc/cni/net.d)")
	f.StringVar(&c.set.CNIBinDir, "cni-bin-dir", "", "directory of CNI plugins (default /opt/cni/bin, then /usr/lib/cni)")
	f.StringVar(&c.set.LoadBalancers, "load-balancers", "", "who serves services of type LoadBalancer: nodes, or none of skiff (default nodes)")
	f.StringVar(&c.set.SchedulerConfig, "scheduler-config", "", "file with a KubeSchedulerConfiguration: profiles, plugins, extenders")
	f.BoolVarP(&c.set.Verbose, "verbose", "v", false, "log more")
}

func (c *command) instance() (host.Instance, Reached, error) {
	return c.local.Resolve(c.conf, c.set)
}

// find returns the instance that is meant, with the door to it.
func (c *command) find() (a *admin.Client, i host.Instance, known bool, err error) {
	i, known, err = c.local.Find(c.set)
	if err != nil {
		return nil, i, known, err
	}
	return admin.Dial(i.AdminSocket()), i, known, nil
}

// existing is find where there must be an instance.
func (c *command) existing() (*admin.Client, host.Instance, error) {
	a, i, known, err := c.find()
	if err == nil && !known {
		err = errors.New(c.local.Unknown(i))
	}
	return a, i, err
}

func (c *command) server() *cobra.Command {
	cmd := &cobra.Command{
		Use: "server", Short: "Run a control plane without a node, in the foreground", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.local.Run(cmd.Context(), Start{Role: ServerOnly, Settings: c.set, ConfigFile: c.conf, Ready: func(r Reached) {
				fmt.Fprintf(c.out, "Ready at %s; kubeconfig %s\n", r.Server, r.Kubeconfig)
			}})
		},
	}
	c.startFlags(cmd)
	return cmd
}

func (c *command) node() *cobra.Command {
	var kubeconfig string
	cmd := &cobra.Command{
		Use: "node --kubeconfig FILE", Short: "Run a node of a cluster elsewhere, in the foreground", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.local.Run(cmd.Context(), Start{Role: NodeOnly, Settings: c.set, ConfigFile: c.conf, Kubeconfig: kubeconfig, Ready: func(Reached) {
				fmt.Fprintln(c.out, "Ready")
			}})
		},
	}
	c.startFlags(cmd)
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the server, with credentials of a node")
	_ = cmd.MarkFlagRequired("kubeconfig")
	return cmd
}

func nameFlag(i host.Instance) string {
	if i.Name == host.DefaultName {
		return ""
	}
	return " --name " + i.Name
}

func (c *command) kubeconfig() *cobra.Command {
	var path bool
	var node, server string
	cmd := &cobra.Command{
		Use: "kubeconfig", Short: "Print the administrator's kubeconfig, or one for a node elsewhere", Args: cobra.NoArgs,
		Long: `Print the administrator's kubeconfig.

With --node, make and print one with which "skiff node --kubeconfig FILE" joins
this cluster from another host. It holds the node's key: keep it as one. It is
good for a year.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, i, err := c.existing()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("node") {
				b, err := c.local.NodeKubeconfig(i, node, server)
				if err != nil {
					return err
				}
				_, err = c.out.Write(b)
				return err
			}
			_, r, err := c.instance()
			if err != nil {
				return err
			}
			if path {
				fmt.Fprintln(c.out, r.Kubeconfig)
				return nil
			}
			b, err := os.ReadFile(r.Kubeconfig)
			if errors.Is(err, os.ErrNotExist) {
				return errors.New("this cluster was not started yet: run `skiff up`")
			}
			if err != nil {
				return err
			}
			_, err = c.out.Write(b)
			return err
		},
	}
	cmd.Flags().BoolVar(&path, "path", false, "print the file's path instead")
	cmd.Flags().StringVar(&node, "node", "", "make one for a node of this name")
	cmd.Flags().StringVar(&server, "server", "", "with --node: URL at which the node reaches the API server (default: the server's node address)")
	return cmd
}

func (c *command) kubectl() *cobra.Command {
	return &cobra.Command{
		Use: "kubectl ARGS...", Short: "Run the kubectl that skiff carries against this cluster",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			args = c.ownFlags(args)
			_, i, err := c.existing()
			if err != nil {
				return err
			}
			_, r, err := c.instance()
			if err != nil {
				return err
			}
			if _, err := os.Stat(r.Kubeconfig); errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("cluster %q was not started yet: run `skiff up%s`", i.Name, nameFlag(i))
			}
			bin, err := c.local.Kubectl(i)
			if err != nil {
				return err
			}
			k := exec.CommandContext(cmd.Context(), bin, args...)
			k.Stdin, k.Stdout, k.Stderr = os.Stdin, os.Stdout, os.Stderr
			k.Env = append(os.Environ(), "KUBECONFIG="+r.Kubeconfig)
			if os.Getenv("KUBECACHEDIR") == "" {
				// kubectl knows servers by their port: another cluster had this one.
				k.Env = append(k.Env, "KUBECACHEDIR="+i.Data("kubectl-cache"))
			}
			return k.Run()
		},
	}
}

// ownFlags takes --name and --data-dir from the front of kubectl's arguments.
func (c *command) ownFlags(args []string) []string {
	for len(args) >= 2 {
		switch args[0] {
		case "--name":
			c.set.Name = args[1]
		case "--data-dir":
			c.set.DataDir = args[1]
		default:
			return args
		}
		args = args[2:]
	}
	return args
}
