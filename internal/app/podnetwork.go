package app

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"

	"skiff/internal/host"
	"skiff/internal/network/cni"
	"skiff/internal/network/pod"
	"skiff/internal/runtime"
)

// podNetwork attaches the node's pods: by the plugins of a CNI configuration while
// there is one, otherwise by the built-in network. Each pod is detached by what
// attached it. The node's own part (addresses of its DNS, ways to services) is
// the built-in network's in both cases.
type podNetwork struct {
	own *pod.Network
	cni *cni.Network
	log *slog.Logger

	mu  sync.Mutex
	cfg *pod.Config // as last put into effect
}

func openPodNetwork(set *Settings, j *host.Journal, log *slog.Logger) (*podNetwork, error) {
	own, err := pod.New(pod.Deps{Instance: set.Instance, Journal: j, Log: log})
	if err != nil {
		return nil, err
	}
	return &podNetwork{own: own, cni: newCNI(set.Config, set.Instance, j), log: log}, nil
}

func newCNI(c Config, i host.Instance, j *host.Journal) *cni.Network {
	d := cni.Deps{Instance: i, Journal: j, ConfDir: c.CNIConfDir}
	if c.CNIBinDir != "" {
		d.BinDirs = []string{c.CNIBinDir}
	}
	return cni.New(d)
}

// configure puts the node's part into effect.
func (n *podNetwork) configure(ctx context.Context, c pod.Config) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	c.External = n.cni.Configured()
	if c.External {
		n.log.Info("pods are attached by CNI plugins", "dir", n.cni.ConfDir())
	}
	if err := n.own.Configure(ctx, c); err != nil {
		return err
	}
	n.cfg = &c
	return nil
}

// external tells whether plugins attach pods now. The node's part follows a
// configuration that came or went since.
func (n *podNetwork) external(ctx context.Context) (bool, error) {
	now := n.cni.Configured()
	n.mu.Lock()
	cfg := n.cfg
	n.mu.Unlock()
	if cfg == nil {
		return now, pod.ErrNotConfigured
	}
	if cfg.External != now {
		if err := n.configure(ctx, *cfg); err != nil {
			return now, err
		}
	}
	return now, nil
}

// setRoutes sends packets for other nodes' pods there, where that is not the
// plugins' matter.
func (n *podNetwork) setRoutes(peers map[netip.Prefix]netip.Addr) error {
	if n.cni.Configured() {
		peers = nil
	}
	return n.own.SetRoutes(peers)
}

func sandboxOf(s runtime.NetworkSandbox) pod.Sandbox {
	out := pod.Sandbox{ID: s.ID, Namespace: s.Namespace, Name: s.Name, UID: s.UID, NetNS: s.NetNS}
	for _, p := range s.HostPorts {
		out.HostPorts = append(out.HostPorts, pod.HostPort(p))
	}
	return out
}

// Attach implements runtime.Network.
func (n *podNetwork) Attach(ctx context.Context, s runtime.NetworkSandbox) (runtime.NetworkResult, error) {
	sandbox := sandboxOf(s)
	external, err := n.external(ctx)
	if err != nil {
		return runtime.NetworkResult{}, err
	}
	attach := n.own.Attach
	if external && !n.own.Attached(s.ID) || n.cni.Attached(s.ID) {
		attach = n.cni.Attach
	}
	r, err := attach(ctx, sandbox)
	return runtime.NetworkResult{IPs: r.IPs}, err
}

// Detach implements runtime.Network.
func (n *podNetwork) Detach(ctx context.Context, s runtime.NetworkSandbox) error {
	sandbox := sandboxOf(s)
	// One that neither knows may have been on its way when a former run ended.
	plugins := n.cni.Attached(s.ID) || !n.own.Attached(s.ID) && n.cni.Configured()
	err := n.own.Detach(ctx, sandbox)
	if plugins {
		err = errors.Join(err, n.cni.Detach(ctx, sandbox))
	}
	return err
}

// Ready implements runtime.Network.
func (n *podNetwork) Ready() error {
	if err := n.own.Ready(); err != nil || !n.cni.Configured() {
		return err
	}
	return n.cni.Ready()
}
