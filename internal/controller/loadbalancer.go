package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	balancerFinalizer = "service.kubernetes.io/load-balancer-cleanup"
	// autoscalerTaint is on nodes that the autoscaler is about to take away.
	autoscalerTaint = "ToBeDeletedByClusterAutoscaler"
)

// loadBalancers gives services of type LoadBalancer the addresses of the nodes: the
// service rules of every node serve them there. Where two services want the same
// port of an address, the one that has the address keeps it, and of two that have it
// not, the older one gets it.
type loadBalancers struct {
	*control.Controller
	services *client.Informer[*corev1.Service]
	nodes    *client.Informer[*corev1.Node]
	pods     *client.Informer[*corev1.Pod]
	slices   *client.Informer[*discoveryv1.EndpointSlice]
	reserved []netip.AddrPort

	mu   sync.Mutex
	told map[control.Key]string // what was last said of a service's ports
}

const (
	balancedIndex = "balanced"
	// byHostPorts are the pods that have ports of their node, by node.
	byHostPorts = "host-ports"
)

func newLoadBalancer(d Deps) *control.Controller {
	c := control.New("service-controller", d.Deps)
	l := &loadBalancers{Controller: c, reserved: d.ReservedPorts, told: map[control.Key]string{}}
	l.services = control.Watch(c, func(ch client.Change[*corev1.Service]) {
		if balanced(ch.Old) || balanced(ch.New) || hasBalancer(ch.New) {
			c.Queue.Add(control.KeyOf(ch.Object()))
		}
		// What one gives up another may have.
		if ch.Old == nil || ch.New == nil || ch.Old.DeletionTimestamp == nil != (ch.New.DeletionTimestamp == nil) || !equality.Semantic.DeepEqual(ch.Old.Spec, ch.New.Spec) {
			if balanced(ch.Old) || balanced(ch.New) {
				l.all()
			}
		}
	})
	l.services.AddIndex(balancedIndex, func(s *corev1.Service) []string {
		if balanced(s) {
			return []string{""}
		}
		return nil
	})
	l.nodes = control.Watch(c, func(ch client.Change[*corev1.Node]) {
		if ch.Old == nil || ch.New == nil || balances(ch.Old) != balances(ch.New) ||
			!equality.Semantic.DeepEqual(ch.Old.Status.Addresses, ch.New.Status.Addresses) {
			l.all()
		}
	})
	l.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		if !maps.Equal(hostPorts(ch.Old), hostPorts(ch.New)) {
			l.all()
		}
	})
	l.pods.AddIndex(byHostPorts, func(p *corev1.Pod) []string {
		if len(hostPorts(p)) == 0 {
			return nil
		}
		return []string{p.Spec.NodeName}
	})
	l.slices = control.Watch(c, func(ch client.Change[*discoveryv1.EndpointSlice]) {
		s := ch.Object()
		svc, ok := l.services.Get(s.Namespace, s.Labels[discoveryv1.LabelServiceName])
		if !ok || !balanced(svc) || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
			return
		}
		if !maps.Equal(readyNodes(ch.Old), readyNodes(ch.New)) {
			l.all() // others may want what it leaves
		}
	})
	c.Writes = append(c.Writes,
		control.Rule("", []string{"services", "services/status"}, "patch", "update"),
	)
	c.Reconcile = l.reconcile
	return c
}

func (l *loadBalancers) all() {
	for _, s := range l.services.ByIndex(balancedIndex, "") {
		l.Queue.Add(control.KeyOf(s))
	}
}

// balanced tells that a service wants a load balancer of this cluster's own kind:
// those with a class are for others.
func balanced(s *corev1.Service) bool {
	return s != nil && s.DeletionTimestamp == nil && s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.LoadBalancerClass == nil
}

// hasBalancer tells that a service was given one, or was about to be.
func hasBalancer(s *corev1.Service) bool {
	return s != nil && s.Spec.LoadBalancerClass == nil && slices.Contains(s.Finalizers, balancerFinalizer)
}

// balances tells whether a node takes part.
func balances(n *corev1.Node) bool {
	if _, out := n.Labels[corev1.LabelNodeExcludeBalancers]; out || n.DeletionTimestamp != nil || nodeReady(n) != corev1.ConditionTrue {
		return false
	}
	return !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == autoscalerTaint })
}

func (l *loadBalancers) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	s, ok := l.services.Get(k.Namespace, k.Name)
	if !ok || !balanced(s) {
		l.mu.Lock()
		delete(l.told, k)
		l.mu.Unlock()
		if !hasBalancer(s) {
			return control.Result{}, nil
		}
		return control.Result{}, l.release(ctx, k, s)
	}
	api := client.For[*corev1.Service](l.Client).In(k.Namespace)
	fresh := !slices.Contains(s.Finalizers, balancerFinalizer)
	if fresh {
		l.Events.Event(s, corev1.EventTypeNormal, "EnsuringLoadBalancer", "Ensuring load balancer")
		next := s.DeepCopy()
		next.Finalizers = append(next.Finalizers, balancerFinalizer)
		got, err := api.Update(ctx, next)
		if err != nil {
			return control.Result{}, fmt.Errorf("failed to add load balancer cleanup finalizer: %w", err)
		}
		control.Wrote(l.Pending, k, l.services, got)
		s = got
	}
	plan := planBalancer(s, l.sites(), l.services.ByIndex(balancedIndex, ""), func(s *corev1.Service) map[string]bool {
		out := map[string]bool{}
		for _, es := range l.slices.List(s.Namespace, labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: s.Name})) {
			maps.Copy(out, readyNodes(es))
		}
		return out
	})
	l.tell(k, s, plan)
	want := make([]corev1.LoadBalancerIngress, 0, len(plan.addrs))
	for _, a := range plan.addrs {
		want = append(want, corev1.LoadBalancerIngress{IP: a.String(), IPMode: ptr.To(corev1.LoadBalancerIPModeVIP)})
	}
	have := s.Status.LoadBalancer.Ingress
	if equality.Semantic.DeepEqual(have, want) {
		return control.Result{}, nil
	}
	next := s.DeepCopy()
	next.Status.LoadBalancer.Ingress = want
	got, err := api.UpdateStatus(ctx, next)
	if err != nil {
		if apierrors.IsNotFound(err) {
			return control.Result{}, nil
		}
		return control.Result{}, fmt.Errorf("failed to update load balancer status: %w", err)
	}
	control.Wrote(l.Pending, k, l.services, got)
	switch {
	case len(have) > 0:
		l.Events.Event(s, corev1.EventTypeNormal, "UpdatedLoadBalancer", "Updated load balancer with new hosts")
	case len(want) > 0:
		l.Events.Event(s, corev1.EventTypeNormal, "EnsuredLoadBalancer", "Ensured load balancer")
	}
	return control.Result{}, nil
}

// tell says why a service has not all the addresses that it could have, once.
func (l *loadBalancers) tell(k control.Key, s *corev1.Service, plan balancerPlan) {
	text := plan.refused
	reason, message := "SyncLoadBalancerFailed", "Error syncing load balancer: failed to ensure load balancer: "+text
	if plan.noNodes {
		reason, message = "UnAvailableLoadBalancer", "There are no available nodes for LoadBalancer"
		text = reason
	}
	l.mu.Lock()
	same := l.told[k] == text
	l.told[k] = text
	l.mu.Unlock()
	if text != "" && !same {
		l.Events.Event(s, corev1.EventTypeWarning, reason, "%s", message)
	}
}

// release takes the addresses back, and lets the service go.
func (l *loadBalancers) release(ctx context.Context, k control.Key, s *corev1.Service) error {
	api := client.For[*corev1.Service](l.Client).In(k.Namespace)
	l.Events.Event(s, corev1.EventTypeNormal, "DeletingLoadBalancer", "Deleting load balancer")
	if len(s.Status.LoadBalancer.Ingress) > 0 {
		next := s.DeepCopy()
		next.Status.LoadBalancer = corev1.LoadBalancerStatus{}
		got, err := api.UpdateStatus(ctx, next)
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("failed to update load balancer status: %w", err)
		}
		if err == nil {
			control.Wrote(l.Pending, k, l.services, got)
			s = got
		}
	}
	next := s.DeepCopy()
	next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == balancerFinalizer })
	got, err := api.Update(ctx, next)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("failed to remove load balancer cleanup finalizer: %w", err)
	}
	if err == nil {
		control.Wrote(l.Pending, k, l.services, got)
	}
	l.Events.Event(s, corev1.EventTypeNormal, "DeletedLoadBalancer", "Deleted load balancer")
	return nil
}

// balancerPort is a port of an address.
type balancerPort struct {
	number   int32
	protocol corev1.Protocol
}

func (p balancerPort) String() string { return fmt.Sprintf("%d/%s", p.number, p.protocol) }

// balancerSite is a node's address, and the ports that are taken there by others
// than services, and by whom.
type balancerSite struct {
	node  string
	addr  netip.Addr
	taken map[balancerPort]string
}

// sites are the addresses of the nodes that take part, by node.
func (l *loadBalancers) sites() []balancerSite {
	var out []balancerSite
	for _, n := range l.nodes.List("", nil) {
		if !balances(n) {
			continue
		}
		taken := map[balancerPort]string{}
		if p := n.Status.DaemonEndpoints.KubeletEndpoint.Port; p != 0 {
			taken[balancerPort{p, corev1.ProtocolTCP}] = "the kubelet"
		}
		for _, p := range l.pods.ByIndex(byHostPorts, n.Name) {
			for port := range hostPorts(p) {
				taken[port] = "pod " + p.Namespace + "/" + p.Name
			}
		}
		for _, a := range n.Status.Addresses {
			ip, err := netip.ParseAddr(a.Address)
			if a.Type != corev1.NodeInternalIP || err != nil {
				continue
			}
			own := taken
			for _, r := range l.reserved {
				if r.Addr() == ip {
					own = maps.Clone(own)
					own[balancerPort{int32(r.Port()), corev1.ProtocolTCP}] = "the API server"
				}
			}
			out = append(out, balancerSite{n.Name, ip, own})
		}
	}
	slices.SortFunc(out, func(a, b balancerSite) int { return cmp.Or(cmp.Compare(a.node, b.node), a.addr.Compare(b.addr)) })
	return out
}

// hostPorts are the ports of its node that a pod has; nil for most.
func hostPorts(p *corev1.Pod) map[balancerPort]bool {
	var out map[balancerPort]bool
	if p == nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.Spec.NodeName == "" {
		return out
	}
	for _, cs := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range cs {
			for _, port := range cs[i].Ports {
				if port.HostPort != 0 {
					if out == nil {
						out = map[balancerPort]bool{}
					}
					out[balancerPort{port.HostPort, cmp.Or(port.Protocol, corev1.ProtocolTCP)}] = true
				}
			}
		}
	}
	return out
}

func readyNodes(es *discoveryv1.EndpointSlice) map[string]bool {
	out := map[string]bool{}
	if es == nil {
		return out
	}
	for i := range es.Endpoints {
		if e := &es.Endpoints[i]; e.NodeName != nil && ptr.Deref(e.Conditions.Ready, true) {
			out[*e.NodeName] = true
		}
	}
	return out
}

// balancerPlan is which addresses a service gets, and why not others.
type balancerPlan struct {
	addrs   []netip.Addr
	refused string
	noNodes bool
}

// planBalancer gives service s the addresses of its families at which all its ports
// are free, at nodes with endpoints alone where its policy is Local. A port is taken
// by what site.taken says, and by those of all services that get the address and go
// before s (see before).
func planBalancer(s *corev1.Service, sites []balancerSite, all []*corev1.Service, ready func(*corev1.Service) map[string]bool) balancerPlan {
	users := map[balancerPort][]*corev1.Service{}
	for _, o := range all {
		for _, p := range servicePorts(o) {
			users[p] = append(users[p], o)
		}
	}
	nodes := map[*corev1.Service]map[string]bool{}
	wants := func(s *corev1.Service, site *balancerSite) bool {
		if !hasFamily(s, site.addr) {
			return false
		}
		if s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
			return true
		}
		if nodes[s] == nil {
			nodes[s] = ready(s)
		}
		return nodes[s][site.node]
	}
	plan := balancerPlan{noNodes: len(sites) == 0}
	for i := range sites {
		site := &sites[i]
		if !wants(s, site) {
			continue
		}
		known := map[*corev1.Service]string{}
		// blocked says who has a port of a service there: empty where it gets the
		// address. It asks of services before it alone, so it ends.
		var blocked func(*corev1.Service) string
		blocked = func(s *corev1.Service) string {
			if by, ok := known[s]; ok {
				return by
			}
			by := ""
			for _, p := range servicePorts(s) {
				if who := site.taken[p]; who != "" {
					by = fmt.Sprintf("port %s of node %s is taken by %s", p, site.node, who)
					break
				}
				for _, o := range users[p] {
					if before(o, s, site.addr) && wants(o, site) && blocked(o) == "" {
						by = fmt.Sprintf("port %s of node %s is taken by service %s/%s", p, site.node, o.Namespace, o.Name)
						break
					}
				}
				if by != "" {
					break
				}
			}
			known[s] = by
			return by
		}
		if by := blocked(s); by == "" {
			plan.addrs = append(plan.addrs, site.addr)
		} else if plan.refused == "" {
			plan.refused = by
		}
	}
	return plan
}

func servicePorts(s *corev1.Service) []balancerPort {
	var out []balancerPort
	for _, p := range s.Spec.Ports {
		out = append(out, balancerPort{p.Port, cmp.Or(p.Protocol, corev1.ProtocolTCP)})
	}
	return out
}

// before orders the services that want an address: those that have it, and each of
// them by age; of two of one second, by name.
func before(a, b *corev1.Service, at netip.Addr) bool {
	has := func(s *corev1.Service) int {
		for _, i := range s.Status.LoadBalancer.Ingress {
			if ip, err := netip.ParseAddr(i.IP); err == nil && ip == at {
				return 0
			}
		}
		return 1
	}
	return cmp.Or(has(a)-has(b), a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name)) < 0
}

func hasFamily(s *corev1.Service, a netip.Addr) bool {
	f := corev1.IPv4Protocol
	if a.Is6() {
		f = corev1.IPv6Protocol
	}
	return slices.Contains(s.Spec.IPFamilies, f)
}
