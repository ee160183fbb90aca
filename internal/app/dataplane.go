package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"skiff/internal/client"
	"skiff/internal/control"
	"skiff/internal/dns"
	"skiff/internal/host"
	"skiff/internal/network/service"
)

// dataPlane turns Services and EndpointSlices into the node's service rules and
// DNS records.
type dataPlane struct {
	set    *Settings
	log    *slog.Logger
	proxy  *service.Proxy
	index  *dns.Index
	server *dns.Server
	events *control.Recorder
	// local is where this node's DNS listens, one of each family.
	local []netip.AddrPort
	// refused are the node ports that another cluster on this host has, as told.
	refused map[service.Refused]bool

	services *client.Informer[*corev1.Service]
	slices   *client.Informer[*discoveryv1.EndpointSlice]
	spaces   *client.Informer[*corev1.Namespace]

	mu    sync.Mutex
	dirty map[nsName]bool
	wake  chan struct{}
	// written is closed when the first full state is in the kernel.
	written chan struct{}

	// routed has, of each service, the addresses that its rules in the kernel send
	// new connections to; changed is closed and replaced when it changes.
	routedMu sync.Mutex
	routed   map[string]map[netip.Addr]bool
	changed  chan struct{}
}

type nsName struct{ ns, name string }

func (k nsName) String() string { return k.ns + "/" + k.name }

const byService = "service"

func newDataPlane(set *Settings, log *slog.Logger, j *host.Journal, informers *client.Informers, events *control.Recorder, local []netip.AddrPort) (*dataPlane, error) {
	proxy, err := service.New(service.Deps{
		Instance: set.Instance, Journal: j, ClusterCIDRs: set.PodRanges, ServiceCIDRs: set.ServiceRanges, Log: log,
	})
	if err != nil {
		return nil, err
	}
	d := &dataPlane{
		set: set, log: log, proxy: proxy, index: dns.NewIndex(), events: events, local: local,
		services: client.InformerFor[*corev1.Service](informers), slices: client.InformerFor[*discoveryv1.EndpointSlice](informers),
		spaces: client.InformerFor[*corev1.Namespace](informers),
		dirty:  map[nsName]bool{}, wake: make(chan struct{}, 1), written: make(chan struct{}),
		routed: map[string]map[netip.Addr]bool{}, changed: make(chan struct{}),
	}
	own := slices.Clone(set.DNSIPs)
	for _, at := range local {
		own = append(own, at.Addr())
	}
	deps, err := set.dns(dns.Deps{Domain: set.ClusterDomain, Records: d.index, Own: own, Now: time.Now, Log: log})
	if err == nil {
		d.server, err = dns.New(deps)
	}
	if err != nil {
		return nil, errors.Join(err, proxy.Close())
	}
	d.slices.AddIndex(byService, func(s *discoveryv1.EndpointSlice) []string {
		return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}
	})
	return d, nil
}

func (d *dataPlane) mark(k nsName) {
	d.mu.Lock()
	d.dirty[k] = true
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// run keeps rules and records in line until ctx ends. The rules stay in the
// kernel after it.
func (d *dataPlane) run(ctx context.Context) error {
	for _, c := range []<-chan struct{}{d.services.Synced(), d.slices.Synced(), d.spaces.Synced()} {
		select {
		case <-c:
		case <-ctx.Done():
			return nil
		}
	}
	d.services.OnChange(func(c client.Change[*corev1.Service]) {
		o := c.Object()
		d.mark(nsName{o.Namespace, o.Name})
	})
	d.slices.OnChange(func(c client.Change[*discoveryv1.EndpointSlice]) {
		o := c.Object()
		d.mark(nsName{o.Namespace, o.Labels[discoveryv1.LabelServiceName]})
	})
	d.spaces.OnChange(func(c client.Change[*corev1.Namespace]) {
		d.index.SetNamespace(c.Object().Name, !c.Deleted())
	})
	synced := false
	d.mark(nsName{}) // the first flush, though there be no service
	var again <-chan time.Time
	for {
		if again == nil && len(d.refused) > 0 {
			again = time.After(retryRefused)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			again = nil
			for r := range d.refused {
				ns, name, _ := strings.Cut(r.Service, "/")
				d.mark(nsName{ns, name})
			}
			continue
		case <-d.wake:
		}
		if err := d.flush(ctx, !synced); err != nil {
			d.log.Error("write service rules", "err", err)
			if errors.Is(err, service.ErrNotWritten) {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(time.Second):
				}
				d.mark(nsName{})
				continue
			}
		}
		if !synced {
			synced = true
			d.index.MarkSynced()
			close(d.written)
		}
	}
}

func (d *dataPlane) take() map[nsName]bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.dirty
	d.dirty = map[nsName]bool{}
	return out
}

func (d *dataPlane) flush(ctx context.Context, full bool) error {
	dirty := d.take()
	if full {
		for s := range d.services.All() {
			dirty[nsName{s.Namespace, s.Name}] = true
		}
	}
	var upsert []service.Service
	var remove []string
	for k := range dirty {
		if k.name == "" {
			continue
		}
		svc, ok := d.services.Get(k.ns, k.name)
		if !ok {
			d.index.Delete(k.ns, k.name)
			remove = append(remove, k.String())
			continue
		}
		eps := d.slices.ByIndex(byService, k.String())
		d.index.Set(d.records(svc, eps))
		if s, ok := d.rules(svc, eps); ok {
			upsert = append(upsert, s)
		} else {
			remove = append(remove, k.String())
		}
	}
	var err error
	if full {
		err = d.proxy.Sync(ctx, upsert)
	} else {
		err = d.proxy.Apply(ctx, upsert, remove)
	}
	if !errors.Is(err, service.ErrNotWritten) {
		d.note(upsert, remove)
	}
	d.tellRefused()
	return err
}

// retryRefused is how often a node port that another cluster has is tried again:
// nobody tells when it is free.
const retryRefused = 5 * time.Second

// tellRefused records an event for each node port that is not served here.
func (d *dataPlane) tellRefused() {
	now := map[service.Refused]bool{}
	for _, r := range d.proxy.Refused() {
		now[r] = true
		ns, name, _ := strings.Cut(r.Service, "/")
		svc, ok := d.services.Get(ns, name)
		if d.refused[r] || r.By == "" || !ok {
			continue
		}
		d.log.Warn("node port belongs to another cluster", "service", r.Service, "port", r.Port, "cluster", r.By)
		d.events.Event(svc, corev1.EventTypeWarning, "NodePortInUse", "node port %d/%s is not served on node %s: cluster %q on the same host has it",
			r.Port, r.Protocol, d.set.NodeName, r.By)
	}
	d.refused = now
}

// note remembers where the rules now send connections.
func (d *dataPlane) note(upsert []service.Service, remove []string) {
	d.routedMu.Lock()
	defer d.routedMu.Unlock()
	for _, k := range remove {
		delete(d.routed, k)
	}
	for _, s := range upsert {
		to := map[netip.Addr]bool{}
		for _, p := range s.Ports {
			for _, e := range p.Endpoints {
				if e.Ready {
					to[e.Addr.Addr()] = true
				}
			}
		}
		d.routed[s.Key] = to
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

// leave waits until no rule of this node sends new connections to a pod.
func (d *dataPlane) leave(ctx context.Context, p *corev1.Pod) {
	var ips []netip.Addr
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, addrs([]string{ip.IP})...)
	}
	select {
	case <-d.written: // until then nothing is known of the rules of a former run
	case <-ctx.Done():
		return
	}
	waited := false
	for {
		d.routedMu.Lock()
		used := false
		for _, to := range d.routed {
			for _, ip := range ips {
				used = used || to[ip]
			}
		}
		changed := d.changed
		d.routedMu.Unlock()
		if !used {
			break
		}
		waited = true
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
	if !waited {
		return
	}
	// What was sent just before is in the server's queue: it gets the time to
	// take it.
	t := time.NewTimer(settle)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// settle is how long a server gets to accept what rules sent it before they
// changed.
const settle = 50 * time.Millisecond

func addrs(in []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

func clusterIPs(s *corev1.Service) []netip.Addr {
	if s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	return addrs(s.Spec.ClusterIPs)
}

// proxyLabel and headless services are left to others, as upstream's proxies
// leave them.
const proxyLabel = "service.kubernetes.io/service-proxy-name"

// rules makes the values of a service's rules; false where it has none.
func (d *dataPlane) rules(s *corev1.Service, eps []*discoveryv1.EndpointSlice) (service.Service, bool) {
	ips := clusterIPs(s)
	if len(ips) == 0 || s.Labels[proxyLabel] != "" {
		return service.Service{}, false
	}
	out := service.Service{
		Key: s.Namespace + "/" + s.Name, ClusterIPs: ips, ExternalIPs: addrs(s.Spec.ExternalIPs),
		ExternalLocal: s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		InternalLocal: s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
	}
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IP != "" && (i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP) {
			out.LoadBalancerIPs = append(out.LoadBalancerIPs, addrs([]string{i.IP})...)
		}
	}
	for _, r := range s.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(r)); err == nil {
			out.LoadBalancerRanges = append(out.LoadBalancerRanges, p)
		}
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		out.Affinity = 3 * time.Hour
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			out.Affinity = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	isDNS := s.Namespace == metaSystem && s.Name == dnsService
	for _, p := range s.Spec.Ports {
		port := service.Port{Name: p.Name, Protocol: string(p.Protocol), Port: uint16(p.Port), NodePort: uint16(p.NodePort)}
		if isDNS && p.Port == 53 {
			port.NodeLocal = d.local
		} else {
			port.Endpoints = d.endpoints(p, eps)
		}
		out.Ports = append(out.Ports, port)
	}
	return out, true
}

func (d *dataPlane) endpoints(p corev1.ServicePort, eps []*discoveryv1.EndpointSlice) []service.Endpoint {
	var out []service.Endpoint
	seen := map[netip.AddrPort]bool{}
	for _, sl := range eps {
		for _, sp := range sl.Ports {
			if sp.Port == nil || deref(sp.Name) != p.Name || sp.Protocol != nil && *sp.Protocol != p.Protocol {
				continue
			}
			for _, e := range sl.Endpoints {
				for _, a := range addrs(e.Addresses) {
					ep := service.Endpoint{
						Addr: netip.AddrPortFrom(a, uint16(*sp.Port)), Local: e.NodeName != nil && *e.NodeName == d.set.NodeName,
						Ready: e.Conditions.Ready == nil || *e.Conditions.Ready, Terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating,
					}
					ep.Serving = ep.Ready
					if e.Conditions.Serving != nil {
						ep.Serving = *e.Conditions.Serving
					}
					if !seen[ep.Addr] {
						seen[ep.Addr] = true
						out = append(out, ep)
					}
				}
			}
		}
	}
	return out
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// records makes the DNS records of a service.
func (d *dataPlane) records(s *corev1.Service, eps []*discoveryv1.EndpointSlice) *dns.Service {
	out := &dns.Service{Namespace: s.Namespace, Name: s.Name, ClusterIPs: clusterIPs(s)}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		out.ExternalName = s.Spec.ExternalName
		return out
	}
	for _, p := range s.Spec.Ports {
		out.Ports = append(out.Ports, dns.Port{Name: p.Name, Protocol: string(p.Protocol), Port: uint16(p.Port)})
	}
	for _, sl := range eps {
		var ports []dns.Port
		for _, sp := range sl.Ports {
			if sp.Port != nil {
				proto := string(corev1.ProtocolTCP)
				if sp.Protocol != nil {
					proto = string(*sp.Protocol)
				}
				ports = append(ports, dns.Port{Name: deref(sp.Name), Protocol: proto, Port: uint16(*sp.Port)})
			}
		}
		for _, e := range sl.Endpoints {
			if e.Conditions.Ready != nil && !*e.Conditions.Ready && !s.Spec.PublishNotReadyAddresses {
				continue
			}
			for _, a := range addrs(e.Addresses) {
				out.Endpoints = append(out.Endpoints, dns.Endpoint{Addr: a, Hostname: deref(e.Hostname), Ports: ports})
			}
		}
	}
	return out
}

const (
	metaSystem = "kube-system"
	dnsService = "kube-dns"
)

func dnsPortError(at string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return &StartError{
			fmt.Sprintf("%s, where this node's pods look up names, is in use by another program, which may listen on port 53 of all addresses", at),
			"have it listen on the addresses that it needs, or end it",
		}
	}
	return fmt.Errorf("DNS socket: %w", err)
}

// dnsDoors opens the sockets of the node's DNS at addrs, one of each family: the
// kept ones where there are. The addresses are put on the host only once the node
// knows its pod ranges: until then nobody can ask.
func dnsDoors(ctx context.Context, k *sockets, i host.Instance, addrs []netip.Addr) ([]dns.Door, error) {
	var out []dns.Door
	fail := func(err error) ([]dns.Door, error) {
		for _, d := range out {
			err = errors.Join(err, d.UDP.Close(), d.TCP.Close())
		}
		return nil, err
	}
	for _, addr := range addrs {
		suffix := ""
		if addr.Is6() {
			suffix = "6"
		}
		at := netip.AddrPortFrom(addr, 53).String()
		l, err := k.listen(ctx, "dns-tcp"+suffix, at)
		if err != nil {
			return fail(dnsPortError(at, err))
		}
		pc, err := k.listenPacket(ctx, "dns-udp"+suffix, at)
		if err != nil {
			l.Close()
			return fail(dnsPortError(at, err))
		}
		out = append(out, dns.Door{UDP: pc, TCP: l, Unanswered: i.Run("dns-queries" + suffix)})
	}
	return out, nil
}
