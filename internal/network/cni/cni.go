// Package cni attaches pods by the plugins that a CNI configuration names: where
// there is one in /etc/cni/net.d, it takes the place of the built-in network
// (package pod), with the same methods and values.
//
// The configuration that comes first by its file's name is used, and looked at
// anew for each pod. What a plugin answered is kept below the instance's run
// directory, with the configuration it was given: so a pod is detached by the
// plugins that attached it.
package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skiff/internal/host"
	"skiff/internal/network/ns"
	"skiff/internal/network/pod"
)

// ErrNoConfig is why nothing can be attached while no configuration is there.
var ErrNoConfig = errors.New("no CNI network configuration")

// Journal records what is put on the host (host.Journal has it).
type Journal interface {
	Record(host.Entry) error
}

// Deps is what a Network needs.
type Deps struct {
	Instance host.Instance
	Journal  Journal
	// ConfDir holds configurations, BinDirs the plugins. Empty: /etc/cni/net.d;
	// /opt/cni/bin and Debian's /usr/lib/cni.
	ConfDir string
	BinDirs []string
}

// Network attaches pods by plugins.
type Network struct {
	deps Deps
	cni  *libcni.CNIConfig

	mu sync.Mutex
	// known are the networks that this process has attached a pod to.
	known map[string]bool
}

// ifName is the link's name in the pod.
const ifName = "eth0"

// New returns a Network and touches nothing.
func New(d Deps) *Network {
	if d.ConfDir == "" {
		d.ConfDir = "/etc/cni/net.d"
	}
	if len(d.BinDirs) == 0 {
		d.BinDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	}
	return &Network{deps: d, cni: libcni.NewCNIConfigWithCacheDir(d.BinDirs, d.Instance.Run("cni"), nil), known: map[string]bool{}}
}

// ConfDir is where configurations are looked for.
func (n *Network) ConfDir() string { return n.deps.ConfDir }

// Configured tells whether there is a configuration, be it right or wrong.
func (n *Network) Configured() bool {
	files, err := n.files()
	return err != nil || len(files) > 0
}

// Attached tells whether plugins have attached the sandbox, and not detached it.
func (n *Network) Attached(id string) bool {
	done, err := n.cni.GetCachedAttachments(id)
	return err != nil || len(done) > 0
}

func (n *Network) files() ([]string, error) {
	files, err := libcni.ConfFiles(n.deps.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	slices.Sort(files)
	return files, nil
}

// load returns the first configuration. ErrNoConfig where there is none.
func (n *Network) load() (*libcni.NetworkConfigList, error) {
	files, err := n.files()
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w in %s", ErrNoConfig, n.deps.ConfDir)
	}
	path := files[0]
	var list *libcni.NetworkConfigList
	if strings.HasSuffix(path, ".conflist") {
		list, err = libcni.NetworkConfFromFile(path)
	} else {
		// A single plugin's, as before there were lists.
		var one *libcni.PluginConfig
		if one, err = single(path); err == nil {
			list, err = libcni.ConfListFromConf(one)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("CNI configuration %s: %w", path, err)
	}
	return list, nil
}

func single(path string) (*libcni.PluginConfig, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkPluginConfFromBytes(b)
}

// Ready is nil when pods can be attached, otherwise it tells why not.
func (n *Network) Ready() error {
	list, err := n.load()
	if err != nil {
		return err
	}
	if err := n.cni.GetStatusNetworkList(context.Background(), list); err != nil {
		return fmt.Errorf("CNI network %s: %w", list.Name, err)
	}
	return nil
}

// Attach has the plugins connect the sandbox. A second call for the same ID and
// namespace returns the addresses of the first.
func (n *Network) Attach(ctx context.Context, s pod.Sandbox) (pod.Result, error) {
	list, err := n.load()
	if err != nil {
		return pod.Result{}, err
	}
	done, err := n.cni.GetCachedAttachments(s.ID)
	if err != nil {
		return pod.Result{}, fmt.Errorf("attach sandbox %q: %w", s.ID, err)
	}
	rt := runtimeConf(s)
	if len(done) > 0 {
		if done[0].NetNS == s.NetNS && done[0].Network == list.Name {
			if cached, err := n.cni.GetNetworkListCachedResult(list, rt); err == nil && cached != nil {
				if r, err := result(cached.GetAsVersion(types100.ImplementedSpecVersion)); err == nil {
					return r, nil
				}
			}
		}
		if err := n.Detach(ctx, s); err != nil {
			return pod.Result{}, err
		}
	}
	if err := loopbackUp(s.NetNS); err != nil {
		return pod.Result{}, fmt.Errorf("attach sandbox %q: %w", s.ID, err)
	}
	if err := n.keepNamespace(s); err != nil {
		return pod.Result{}, fmt.Errorf("attach sandbox %q: %w", s.ID, err)
	}
	note, err := n.noteLinks(list.Name)
	if err != nil {
		return pod.Result{}, fmt.Errorf("attach sandbox %q: %w", s.ID, err)
	}
	added, err := n.cni.AddNetworkList(ctx, list, rt)
	if err == nil {
		err = note(added)
	}
	if err == nil {
		var r pod.Result
		if r, err = result(added.GetAsVersion(types100.ImplementedSpecVersion)); err == nil {
			return r, nil
		}
	}
	// Some of the plugins may have done their part; the context may be over.
	undo := n.cni.DelNetworkList(context.WithoutCancel(ctx), list, rt)
	return pod.Result{}, errors.Join(fmt.Errorf("attach sandbox %q to CNI network %s: %w", s.ID, list.Name, err), undo)
}

func result(r any, err error) (pod.Result, error) {
	if err != nil {
		return pod.Result{}, err
	}
	v, ok := r.(*types100.Result)
	if !ok {
		return pod.Result{}, fmt.Errorf("result of an unknown kind %T", r)
	}
	var out pod.Result
	for _, ip := range v.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out.IPs = append(out.IPs, a.Unmap())
		}
	}
	if len(out.IPs) == 0 {
		return pod.Result{}, errors.New("the plugins gave no address")
	}
	return out, nil
}

// Detach has the plugins that attached the sandbox take it off. It works when the
// namespace is gone, and a second time.
func (n *Network) Detach(ctx context.Context, s pod.Sandbox) error {
	done, err := n.cni.GetCachedAttachments(s.ID)
	if err != nil {
		return fmt.Errorf("detach sandbox %q: %w", s.ID, err)
	}
	rt := runtimeConf(s)
	if !n.sameNamespace(s) {
		rt.NetNS = "" // what plugins expect of a namespace that is gone
	}
	if len(done) == 0 {
		if _, err := os.Stat(n.namespaceFile(s.ID)); errors.Is(err, os.ErrNotExist) {
			return nil // no plugin was asked to attach it, or all is undone
		}
		// Attach may have ended before it was noted. Plugins take a deletion of what
		// is not there for done.
		list, err := n.load()
		if err == nil {
			err = n.cni.DelNetworkList(ctx, list, rt)
		}
		if err != nil && !errors.Is(err, ErrNoConfig) {
			return fmt.Errorf("detach sandbox %q: %w", s.ID, err)
		}
	}
	for _, a := range done {
		list, err := libcni.NetworkConfFromBytes(a.Config)
		if err == nil {
			was := *rt
			was.IfName, was.Args, was.CapabilityArgs = a.IfName, a.CniArgs, a.CapabilityArgs
			err = n.cni.DelNetworkList(ctx, list, &was)
		}
		if err != nil {
			return fmt.Errorf("detach sandbox %q from CNI network %s: %w", s.ID, a.Network, err)
		}
	}
	if err := os.Remove(n.namespaceFile(s.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("detach sandbox %q: %w", s.ID, err)
	}
	return nil
}

// Retain detaches what belongs to none of the sandboxes.
func (n *Network) Retain(ctx context.Context, ids []string) error {
	all, err := n.cni.GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("list CNI attachments: %w", err)
	}
	var errs []error
	for _, a := range all {
		if !slices.Contains(ids, a.ContainerID) {
			errs = append(errs, n.Detach(ctx, pod.Sandbox{ID: a.ContainerID, NetNS: a.NetNS}))
		}
	}
	return errors.Join(errs...)
}

func runtimeConf(s pod.Sandbox) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{
		ContainerID: s.ID, NetNS: s.NetNS, IfName: ifName,
		// The names that plugins for Kubernetes know.
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", s.Namespace}, {"K8S_POD_NAME", s.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", s.ID}, {"K8S_POD_UID", s.UID}},
	}
	if len(s.HostPorts) == 0 {
		return rt
	}
	var ports []map[string]any
	for _, p := range s.HostPorts {
		m := map[string]any{"hostPort": p.HostPort, "containerPort": p.ContainerPort, "protocol": strings.ToLower(p.Protocol)}
		if p.Protocol == "" {
			m["protocol"] = "tcp"
		}
		if p.HostIP.IsValid() {
			m["hostIP"] = p.HostIP.String()
		}
		ports = append(ports, m)
	}
	rt.CapabilityArgs = map[string]any{"portMappings": ports}
	return rt
}

// loopbackUp sets lo up in the pod: configurations leave it to the runtime.
func loopbackUp(path string) error {
	space, err := ns.Open(path)
	if err != nil {
		return err
	}
	defer space.Close()
	var h *netlink.Handle
	if err := space.Do(func() (err error) { h, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err }); err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
