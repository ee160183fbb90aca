package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"k8s.io/klog/v2"

	"skiff/internal/admin"
	"skiff/internal/cli"
	"skiff/internal/host"
	"skiff/internal/runtime/build"
	"skiff/internal/runtime/image"
	"skiff/internal/runtime/image/registry"
	"skiff/internal/runtime/programs"
)

// Local is what the command line runs in its own process.
type Local struct{}

// said are the settings of a file, with what flags say over them.
func said(file string, s cli.Settings) (Config, error) {
	c := Config(s)
	if file == "" {
		return c, nil
	}
	f, err := LoadConfig(file)
	if err != nil {
		return c, err
	}
	return overlay(f, c), nil
}

func settings(file string, s cli.Settings) (*Settings, error) {
	c, err := said(file, s)
	if err != nil {
		return nil, err
	}
	if _, err := c.find(machine()); err != nil {
		return nil, err
	}
	if err := c.Merge(); err != nil {
		return nil, err
	}
	if err := c.keepApart(machine()); err != nil {
		return nil, err
	}
	return c.Complete()
}

// overlay puts what was set by flag over what a file says.
func overlay(file, flags Config) Config {
	str := func(dst *string, v string) {
		if v != "" {
			*dst = v
		}
	}
	num := func(dst *int, v int) {
		if v != 0 {
			*dst = v
		}
	}
	str(&file.Name, flags.Name)
	str(&file.DataDir, flags.DataDir)
	str(&file.NodeName, flags.NodeName)
	str(&file.NodeIP, flags.NodeIP)
	num(&file.APIPort, flags.APIPort)
	num(&file.KubeletPort, flags.KubeletPort)
	str(&file.PodCIDR, flags.PodCIDR)
	str(&file.ServiceCIDR, flags.ServiceCIDR)
	str(&file.NodePorts, flags.NodePorts)
	str(&file.ClusterDomain, flags.ClusterDomain)
	if len(flags.ExtraSANs) > 0 {
		file.ExtraSANs = flags.ExtraSANs
	}
	if len(flags.Etcd) > 0 {
		file.Etcd = flags.Etcd
	}
	str(&file.EtcdCA, flags.EtcdCA)
	str(&file.EtcdCert, flags.EtcdCert)
	str(&file.EtcdKey, flags.EtcdKey)
	num(&file.MaxPods, flags.MaxPods)
	if len(flags.AllowedUnsafeSysctls) > 0 {
		file.AllowedUnsafeSysctls = flags.AllowedUnsafeSysctls
	}
	str(&file.MaxContainerRestartPeriod, flags.MaxContainerRestartPeriod)
	str(&file.ContainerRuntimeEndpoint, flags.ContainerRuntimeEndpoint)
	str(&file.CNIConfDir, flags.CNIConfDir)
	str(&file.CNIBinDir, flags.CNIBinDir)
	str(&file.LoadBalancers, flags.LoadBalancers)
	str(&file.SchedulerConfig, flags.SchedulerConfig)
	file.Verbose = file.Verbose || flags.Verbose
	return file
}

// Run implements cli.Local.
func (Local) Run(ctx context.Context, st cli.Start) error {
	set, err := startSettings(st)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if set.Verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	// Libraries of the field log through klog.
	klog.SetSlogLogger(log)
	sd := notifier{log: log, send: daemon.SdNotify}
	p := NewProcess(set, log, func(step string, took time.Duration) {
		sd.tell("STATUS=Starting: " + step + " is done")
		if st.Progress != nil {
			st.Progress(step, took)
		}
	})
	// systemd knows then that the end was asked for.
	stop := context.AfterFunc(ctx, func() { sd.tell(daemon.SdNotifyStopping) })
	defer stop()
	return p.Run(ctx, st.Role != cli.ServerOnly, func() {
		sd.tell(daemon.SdNotifyReady + "\nSTATUS=Ready at " + reached(set).Server)
		if st.Ready != nil {
			st.Ready(reached(set))
		}
	})
}

// notifier tells systemd how far a start is (sd_notify(3)), where systemd waits
// for that.
type notifier struct {
	log  *slog.Logger
	send func(unsetEnvironment bool, state string) (bool, error)
}

func (n notifier) tell(state string) {
	if _, err := n.send(false, state); err != nil {
		n.log.Warn("systemd could not be told", "state", state, "err", err)
	}
}

// startSettings are the settings of a start: a node alone takes from its
// kubeconfig what its cluster is like.
func startSettings(st cli.Start) (*Settings, error) {
	if st.Role != cli.NodeOnly {
		return settings(st.ConfigFile, st.Settings)
	}
	facts, err := readFacts(st.Kubeconfig)
	if err != nil {
		return nil, err
	}
	c, err := said(st.ConfigFile, st.Settings)
	if err != nil {
		return nil, err
	}
	if _, err := c.find(machine()); err != nil {
		return nil, err
	}
	facts.into(&c)
	if c.NodeName == "" {
		c.NodeName = nodeNameOf(st.Kubeconfig)
	}
	if err := c.Merge(); err != nil {
		return nil, err
	}
	set, err := c.Complete()
	if err != nil {
		return nil, err
	}
	set.Kubeconfig = st.Kubeconfig
	return set, nil
}

// NodeKubeconfig implements cli.Local.
func (Local) NodeKubeconfig(i host.Instance, node, server string) ([]byte, error) {
	return NodeKubeconfig(i, node, server)
}

func reached(s *Settings) cli.Reached {
	return cli.Reached{Name: s.Name, Server: s.ServerURL(), Kubeconfig: s.KubeconfigPath(), LogFile: s.Instance.Run(host.LogFile)}
}

// Resolve implements cli.Local.
func (Local) Resolve(configFile string, s cli.Settings) (host.Instance, cli.Reached, error) {
	set, err := settings(configFile, s)
	if err != nil {
		return host.Instance{}, cli.Reached{}, err
	}
	return set.Instance, reached(set), nil
}

// Images implements cli.Local.
func (Local) Images(_ context.Context, i host.Instance) (http.Handler, func() error, error) {
	im, err := openImages(i, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	return im.handler.handler(), im.close, nil
}

// Credentials implements cli.Local.
func (Local) Credentials(ctx context.Context, ref string) (*admin.Auth, error) {
	a, err := credentials(ctx, ref)
	if a == nil || err != nil {
		return nil, err
	}
	return &admin.Auth{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}, nil
}

// Login implements cli.Local.
func (Local) Login(ctx context.Context, i host.Instance, domain string, a admin.Auth, insecure bool) (string, error) {
	c, err := LoadConfig(configPath(i))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	auth := &image.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken}
	if err := registry.New(registryDeps(c)).Verify(ctx, domain, image.Access{Auth: auth, Insecure: insecure}); err != nil {
		return "", err
	}
	return registry.Keep(domain, *auth)
}

// Logout implements cli.Local.
func (Local) Logout(domain string) (bool, error) { return registry.Forget(domain) }

// BuildProgress implements cli.Local.
func (Local) BuildProgress(w io.Writer, mode string) (admin.BuildProgress, error) {
	return build.NewProgress(w, mode)
}

// Kubectl implements cli.Local.
func (Local) Kubectl(i host.Instance) (string, error) {
	return programs.UnpackOne(programs.Embedded(), i.Data("bin"), "kubectl")
}

// Reset implements cli.Local.
func (Local) Reset(ctx context.Context, i host.Instance, say func(string)) error {
	return reset(ctx, i, say)
}

// Version implements cli.Local.
func (Local) Version() string {
	self := identity()
	return fmt.Sprintf("%s (Kubernetes %s, build %s)", self.Release, version().GitVersion, self.Build)
}
