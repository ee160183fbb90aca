// Package pod is the built-in pod network: one routed address (or one per
// family) for each pod, over netlink, in process.
//
// A pod has a veth pair. Its end is eth0 with a /32 (/128) address and a default
// route to a link-local gateway that no interface owns (169.254.1.1, fe80::1): a
// permanent neighbour entry gives the gateway the hardware address that all host
// ends share. The host end has a route to the pod's address and a permanent
// neighbour entry for it. So there is no bridge, no ARP and no broadcast domain,
// and the first packet waits for nothing.
//
// The kernel is the record of what is attached: a host end's name derives from
// the sandbox ID, and its routes, which carry the instance's own routing
// protocol number and are the last thing Attach makes, say the addresses. A
// restart reads them back; a small file keeps only the place in the turn of
// addresses. Pods' packets to the outside are masqueraded; those to other pods,
// services and the excepted networks are not. Where an address of the node's pod
// CIDR has no pod, packets to it are dropped and not refused: a connection that
// a service sent to a pod that has just gone is tried again and reaches another.
//
// Nothing here assumes the first network namespace: Deps.NetNS may be any, and
// two instances live side by side in one.
package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"skiff/internal/host"
	"skiff/internal/network/nft"
	"skiff/internal/network/ns"
)

// Journal records what is put on the host (host.Journal has it).
type Journal interface {
	Record(host.Entry) error
	Entries() []host.Entry
}

// Deps is what the network needs.
type Deps struct {
	Instance host.Instance
	Journal  Journal
	// NetNS is the path of the node's network namespace; empty for the process's.
	NetNS string
	Log   *slog.Logger
}

// Config is what a node learns when it has joined its cluster.
type Config struct {
	// PodCIDRs are this node's, one per family, the primary family first.
	PodCIDRs []netip.Prefix
	// ClusterCIDRs hold the pods of all nodes.
	ClusterCIDRs []netip.Prefix
	// ServiceCIDRs are where cluster IPs come from. They are routed to lo, so that
	// the host itself reaches services even where it has no default route: their
	// destination is rewritten on the way, or they are dropped.
	ServiceCIDRs []netip.Prefix
	// NoMasquerade are further destinations for which pods keep their address, as
	// they do for pods and services.
	NoMasquerade []netip.Prefix
	// NodeIPs are this node's addresses, the source of packets from the host to
	// its pods. Empty: the kernel chooses.
	NodeIPs []netip.Addr
	// LocalAddrs are put on lo, for servers of this node's pods (see LocalAddrs).
	// Nobody else reaches them.
	LocalAddrs []netip.Addr
	// External says that others attach the node's pods: there are no routes for
	// addresses without a pod, nothing is masqueraded (as long as no pod of this
	// network's is left), and LocalAddrs answer to all that comes by way of a
	// service.
	External bool
	// MTU of the pods; 0 takes that of the link that has the first node address,
	// or the default route.
	MTU int
}

// Sandbox names a sandbox.
type Sandbox struct {
	ID, Namespace, Name, UID string
	// NetNS is the path of the network namespace, /proc/<pid>/ns/net say.
	NetNS string
	// HostPorts to map to the pod.
	HostPorts []HostPort
}

// HostPort maps a port of the host to a sandbox.
type HostPort struct {
	Protocol string // TCP, UDP, SCTP
	// HostIP limits the mapping to one address of the host; invalid or
	// unspecified means all of them, but for loopback's of IPv6.
	HostIP        netip.Addr
	HostPort      uint16
	ContainerPort uint16
}

// Result is what a sandbox got: its addresses, the primary one first.
type Result struct {
	IPs []netip.Addr
}

// ErrNotConfigured is why nothing can be attached before Configure.
var ErrNotConfigured = errors.New("the node has no pod CIDR yet")

// unlinkAfter is how long a detached link may outlive its sandbox. Most links go
// with their namespace before, in the kernel's own time and many at once;
// deleting one costs 16 ms under a lock that attaching needs.
const unlinkAfter = 3 * time.Second

// Network is the pod network of a node.
type Network struct {
	deps    Deps
	ns      ns.NS
	nl      *netlink.Handle
	nft     *nft.Conn
	proto   netlink.RouteProtocol
	cursors *cursors

	unlink chan unlink

	// attaching serialises the calls for one sandbox.
	attaching keyed

	mu       sync.Mutex
	cfg      *Config
	mtu      int
	families []nft.Family
	pools    []*pool
	// links are the complete ones, by name.
	links     map[string][]netip.Addr
	hostPorts map[string][]mapping

	checkEvery time.Duration
}

type unlink struct {
	name string
	at   time.Time
}

// New opens the network and touches nothing. Close it at the end.
func New(d Deps) (*Network, error) {
	if d.Log == nil {
		d.Log = slog.Default()
	}
	space, err := ns.Open(d.NetNS)
	if err != nil {
		return nil, err
	}
	n := &Network{
		deps: d, ns: space, nft: nft.Dial(space),
		cursors: openCursors(d.Instance.Run("network", "cursors")),
		unlink:  make(chan unlink, 4096),
		links:   map[string][]netip.Addr{}, hostPorts: map[string][]mapping{},
		checkEvery: checkEvery,
	}
	err = space.Do(func() (err error) { n.nl, err = newHandle(); return err })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("netlink: %w", err), space.Close())
	}
	return n, nil
}

// Close closes the sockets. Pods keep their network.
func (n *Network) Close() error {
	n.nl.Close()
	return errors.Join(n.nft.Close(), n.ns.Close())
}

// Ready is nil when pods can be attached, otherwise it tells why not.
func (n *Network) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cfg == nil {
		return ErrNotConfigured
	}
	return nil
}

// Configure sets the network up, or changes it, and adopts what a former run
// attached. Pods that are attached keep their addresses.
func (n *Network) Configure(ctx context.Context, c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var pools []*pool
	var families []nft.Family
	for _, p := range c.PodCIDRs {
		pl, err := newPool(p)
		if err != nil {
			return err
		}
		n.cursors.restore(pl)
		for _, old := range n.pools {
			if old.prefix == p {
				pl = old
			}
		}
		pools = append(pools, pl)
		families = append(families, family(p.Addr()))
	}
	n.pools, n.families = pools, families
	if n.proto == 0 {
		if err := n.chooseProtocol(); err != nil {
			return err
		}
	}
	if err := n.record(families); err != nil {
		return err
	}
	if err := n.setSysctls(families, c.NodeIPs); err != nil {
		return err
	}
	mtu, err := n.findMTU(c)
	if err != nil {
		return err
	}
	n.mtu = mtu
	if err := n.adopt(c); err != nil {
		return err
	}
	if err := n.setOwnRoutes(c); err != nil {
		return err
	}
	if err := n.setLocalAddrs(c.LocalAddrs); err != nil {
		return err
	}
	if err := n.writeRules(c); err != nil {
		return err
	}
	n.cfg = &c
	return nil
}

func (c Config) validate() error {
	if len(c.PodCIDRs) == 0 || len(c.PodCIDRs) > 2 {
		return fmt.Errorf("pod CIDRs %v: must be one, or one of each family", c.PodCIDRs)
	}
	if len(c.PodCIDRs) == 2 && c.PodCIDRs[0].Addr().Is4() == c.PodCIDRs[1].Addr().Is4() {
		return fmt.Errorf("pod CIDRs %v: must be of different families", c.PodCIDRs)
	}
	for _, a := range c.NodeIPs {
		if !a.IsValid() {
			return fmt.Errorf("node addresses %v: must be valid", c.NodeIPs)
		}
	}
	if c.MTU != 0 && c.MTU < 1280 {
		return fmt.Errorf("MTU %d: must be at least 1280", c.MTU)
	}
	return nil
}

func family(a netip.Addr) nft.Family {
	if a.Is4() {
		return nft.IPv4
	}
	return nft.IPv6
}

// Attach connects the sandbox's network namespace. A second call for the same
// ID finds the first one's work and returns the same addresses, as long as the
// namespace is the same.
func (n *Network) Attach(ctx context.Context, s Sandbox) (Result, error) {
	if s.ID == "" || s.NetNS == "" {
		return Result{}, fmt.Errorf("attach sandbox %q: needs an ID and a network namespace", s.ID)
	}
	for _, hp := range s.HostPorts {
		if _, err := protoNumber(hp.Protocol); err != nil || hp.HostPort == 0 || hp.ContainerPort == 0 {
			return Result{}, fmt.Errorf("attach sandbox %q: host port %+v: needs TCP, UDP or SCTP and both ports", s.ID, hp)
		}
	}
	defer n.attaching.lock(s.ID)()
	name := n.deps.Instance.Link(s.ID)
	if err := n.Ready(); err != nil {
		return Result{}, err
	}
	pod, err := ns.Open(s.NetNS)
	if err != nil {
		return Result{}, fmt.Errorf("attach sandbox %q: %w", s.ID, err)
	}
	defer pod.Close()
	var ph *netlink.Handle
	if err := pod.Do(func() (err error) { ph, err = newHandle(); return err }); err != nil {
		return Result{}, fmt.Errorf("attach sandbox %q: %w", s.ID, err)
	}
	defer ph.Close()

	n.mu.Lock()
	ips, known := n.links[name]
	n.mu.Unlock()
	if known && n.connected(name, ph) {
		if err := n.mapHostPorts(name, ips, s.HostPorts); err != nil {
			return Result{}, fmt.Errorf("attach sandbox %q: %w", s.ID, err)
		}
		return Result{IPs: slices.Clone(ips)}, nil
	}
	if known {
		// The namespace that it was attached to has gone.
		if err := n.drop(name); err != nil {
			return Result{}, fmt.Errorf("attach sandbox %q: %w", s.ID, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	ips, err = n.take()
	if err != nil {
		return Result{}, fmt.Errorf("attach sandbox %q: %w", s.ID, err)
	}
	err = n.connect(name, pod, ph, ips)
	if err == nil {
		n.mu.Lock()
		n.links[name] = ips
		n.mu.Unlock()
		err = n.mapHostPorts(name, ips, s.HostPorts)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("attach sandbox %q: %w", s.ID, err), n.deleteLink(name))
		n.forget(name, ips)
		return Result{}, err
	}
	return Result{IPs: slices.Clone(ips)}, nil
}

// Detach releases links and addresses. It works when the namespace is gone, and
// a second time.
func (n *Network) Detach(ctx context.Context, s Sandbox) error {
	defer n.attaching.lock(s.ID)()
	if err := n.drop(n.deps.Instance.Link(s.ID)); err != nil {
		return fmt.Errorf("detach sandbox %q: %w", s.ID, err)
	}
	return nil
}

// drop takes routes, host ports and addresses from a link at once, and has the
// link deleted later.
func (n *Network) drop(name string) error {
	n.mu.Lock()
	ips := n.links[name]
	n.mu.Unlock()
	if err := n.mapHostPorts(name, nil, nil); err != nil {
		return err
	}
	for _, ip := range ips {
		if err := n.deleteRoute(ip, name); err != nil {
			return err
		}
	}
	n.forget(name, ips)
	select {
	case n.unlink <- unlink{name: name, at: time.Now().Add(unlinkAfter)}:
		return nil
	default:
		return n.deleteLink(name)
	}
}

// Retain drops what belongs to none of the sandboxes: what a former run left
// when it ended between two steps.
func (n *Network) Retain(ctx context.Context, ids []string) error {
	keep := map[string]bool{}
	for _, id := range ids {
		keep[n.deps.Instance.Link(id)] = true
	}
	found, err := n.ownLinks()
	if err != nil {
		return err
	}
	n.mu.Lock()
	for name := range n.links {
		if !slices.Contains(found, name) {
			found = append(found, name) // its namespace is gone, not its address
		}
	}
	n.mu.Unlock()
	for _, name := range found {
		if keep[name] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := n.drop(name); err != nil {
			return err
		}
	}
	return nil
}

// checkEvery is how often Run looks whether the rules are still there: services
// of the host that load their own rules are known to delete everyone's.
const checkEvery = 30 * time.Second

// Run deletes links in the background, and writes the rules again when someone
// else has deleted them, until ctx ends. Links it does not get to are found by
// Retain after the next start.
func (n *Network) Run(ctx context.Context) error {
	check := time.NewTicker(n.checkEvery)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-check.C:
			if err := n.check(); err != nil {
				n.deps.Log.Error("check pod network rules", "err", err)
			}
			continue
		case u := <-n.unlink:
			t := time.NewTimer(time.Until(u.at))
			select {
			case <-ctx.Done():
				t.Stop()
				return nil
			case <-t.C:
			}
			if n.isAttached(u.name) {
				continue // attached again since
			}
			if err := n.deleteLink(u.name); err != nil {
				n.deps.Log.Error("delete pod link", "link", u.name, "err", err)
			}
		}
	}
}

// check writes the rules where they are not.
func (n *Network) check() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cfg == nil {
		return nil
	}
	return n.writeRules(*n.cfg)
}

func (n *Network) isAttached(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.links[name]
	return ok
}

// Attached tells whether this network has attached the sandbox.
func (n *Network) Attached(id string) bool { return n.isAttached(n.deps.Instance.Link(id)) }

func (n *Network) take() ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ips []netip.Addr
	for _, p := range n.pools {
		ip, err := p.take()
		if err == nil {
			err = n.cursors.keep(p)
		}
		if err != nil {
			for i, ip := range ips {
				n.pools[i].release(ip)
			}
			return nil, err
		}
		ips = append(ips, ip)
	}
	return ips, nil
}

func (n *Network) forget(name string, ips []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.links, name)
	for _, p := range n.pools {
		for _, ip := range ips {
			p.release(ip)
		}
	}
}

// keyed is a mutex per key.
type keyed struct {
	mu   sync.Mutex
	held map[string]*entry
}

type entry struct {
	sync.Mutex
	users int
}

func (k *keyed) lock(key string) (unlock func()) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[string]*entry{}
	}
	e := k.held[key]
	if e == nil {
		e = &entry{}
		k.held[key] = e
	}
	e.users++
	k.mu.Unlock()
	e.Lock()
	return func() {
		e.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if e.users--; e.users == 0 {
			delete(k.held, key)
		}
	}
}
