package controller

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	endpointsManagedBy = "endpoints.kubernetes.io/managed-by"
	endpointsManager   = "endpoint-controller"
	// maxEndpoints is how many addresses an Endpoints object holds.
	maxEndpoints = 1000
)

// endpoints keeps the Endpoints object of every service with a selector, for
// those who do not know EndpointSlices.
type endpoints struct {
	*control.Controller
	services *client.Informer[*corev1.Service]
	pods     *client.Informer[*corev1.Pod]
	all      *client.Informer[*corev1.Endpoints] //nolint:staticcheck // served as upstream serves it

	mu      sync.Mutex
	shown   map[control.Key]*triggers
	removed map[control.Key]bool // services seen to go
}

func newEndpoints(d Deps) *control.Controller {
	c := control.New("endpoint-controller", d.Deps)
	e := &endpoints{Controller: c, shown: map[control.Key]*triggers{}, removed: map[control.Key]bool{}}
	e.services = control.Watch(c, func(ch client.Change[*corev1.Service]) {
		k := control.KeyOf(ch.Object())
		if ch.Deleted() {
			e.mu.Lock()
			e.removed[k] = true
			e.mu.Unlock()
		}
		c.Queue.Add(k)
	})
	indexSelectors(e.services)
	e.pods = control.Watch(c, enqueueServices(c, e.services))
	e.all = control.Watch(c, control.Enqueue[*corev1.Endpoints](c)) //nolint:staticcheck // as above
	c.Writes = append(c.Writes,
		control.Rule("", []string{"endpoints"}, "get", "list", "create", "update", "delete"),
		control.Rule("", []string{"endpoints/restricted"}, "create"),
	)
	c.Reconcile = e.reconcile
	return c
}

func (e *endpoints) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	api := client.For[*corev1.Endpoints](e.Client).In(k.Namespace) //nolint:staticcheck // as above
	old, exists := e.all.Get(k.Namespace, k.Name)
	s, ok := e.services.Get(k.Namespace, k.Name)
	if !ok {
		e.mu.Lock()
		delete(e.shown, k)
		removed := e.removed[k]
		e.mu.Unlock()
		// Endpoints go with their service. Those that never had one are not
		// this controller's to delete, unless it made them.
		if exists && (removed || old.Labels[endpointsManagedBy] == endpointsManager) {
			if err := api.Delete(ctx, k.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return control.Result{}, err
			}
			control.Removed(e.Pending, k, e.all, old)
		}
		e.mu.Lock()
		delete(e.removed, k)
		e.mu.Unlock()
		return control.Result{}, nil
	}
	if s.Spec.Selector == nil || s.Spec.Type == corev1.ServiceTypeExternalName || s.DeletionTimestamp != nil {
		return control.Result{}, nil
	}
	pods := e.pods.List(s.Namespace, labels.Set(s.Spec.Selector).AsSelectorPreValidated())
	e.mu.Lock()
	shown, trigger := e.shown[k].next(s, pods)
	e.shown[k] = shown
	e.mu.Unlock()
	subsets := endpointSubsets(s, pods)
	truncated := truncate(subsets)
	lbls := maps.Clone(s.Labels)
	if lbls == nil {
		lbls = map[string]string{}
	}
	delete(lbls, corev1.IsHeadlessService)
	if headless(s) {
		lbls[corev1.IsHeadlessService] = ""
	}
	lbls[endpointsManagedBy] = endpointsManager
	if exists {
		_, marked := old.Annotations[corev1.EndpointsOverCapacity]
		if maps.Equal(old.Labels, lbls) && marked == truncated && equality.Semantic.DeepEqual(old.Subsets, subsets) {
			return control.Result{}, nil
		}
	}
	next := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name}} //nolint:staticcheck // as above
	if exists {
		next = old.DeepCopy()
	}
	next.Labels, next.Subsets = lbls, subsets
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	delete(next.Annotations, triggerTimeNote)
	if !trigger.IsZero() {
		next.Annotations[triggerTimeNote] = trigger.UTC().Format(time.RFC3339Nano)
	}
	delete(next.Annotations, corev1.EndpointsOverCapacity)
	if truncated {
		next.Annotations[corev1.EndpointsOverCapacity] = "truncated"
	}
	write, verb, reason := api.Create, "Failed to create endpoint for service", "FailedToCreateEndpoint"
	if exists {
		write, verb, reason = api.Update, "Failed to update endpoint", "FailedToUpdateEndpoint"
	}
	got, err := write(ctx, next)
	if err != nil {
		if !exists && apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return control.Result{}, nil
		}
		e.Events.Event(next, corev1.EventTypeWarning, reason, "%s %v/%v: %v", verb, k.Namespace, k.Name, err)
		return control.Result{}, err
	}
	control.Wrote(e.Pending, k, e.all, got)
	return control.Result{}, nil
}

// subsetPort is a port as it groups addresses; none stands for a headless service
// without ports.
type subsetPort struct {
	name, protocol, app string
	port                int32
	hasApp              bool
}

var none = subsetPort{port: -1}

// endpointSubsets groups the pods' addresses: ports that have the same addresses,
// ready and not, share a subset.
//
//nolint:staticcheck // as above
func endpointSubsets(s *corev1.Service, pods []*corev1.Pod) []corev1.EndpointSubset {
	type entry struct {
		addr  corev1.EndpointAddress
		ready bool
	}
	byPort := map[subsetPort][]entry{}
	for _, p := range pods {
		if !hasEndpoint(p) || p.DeletionTimestamp != nil && !s.Spec.PublishNotReadyAddresses {
			continue
		}
		a, ok := endpointAddress(s, p)
		if !ok {
			continue
		}
		en := entry{a, s.Spec.PublishNotReadyAddresses || podReady(p)}
		if len(s.Spec.Ports) == 0 {
			if s.Spec.ClusterIP == corev1.ClusterIPNone {
				byPort[none] = append(byPort[none], en)
			}
			continue
		}
		for i := range s.Spec.Ports {
			sp := &s.Spec.Ports[i]
			n, err := targetPort(p, sp)
			if err != nil {
				continue
			}
			port := subsetPort{name: sp.Name, protocol: string(sp.Protocol), port: n}
			if sp.AppProtocol != nil {
				port.app, port.hasApp = *sp.AppProtocol, true
			}
			byPort[port] = append(byPort[port], en)
		}
	}
	type group struct {
		entries []entry
		ports   []corev1.EndpointPort
	}
	groups := map[string]*group{}
	for port, entries := range byPort {
		slices.SortFunc(entries, func(a, b entry) int {
			if c := bytes.Compare([]byte(a.addr.IP), []byte(b.addr.IP)); c != 0 {
				return c
			}
			return strings.Compare(string(a.addr.TargetRef.UID), string(b.addr.TargetRef.UID))
		})
		key := ""
		for _, en := range entries {
			key += fmt.Sprintf("%s/%s/%v;", en.addr.IP, en.addr.TargetRef.UID, en.ready)
		}
		g := groups[key]
		if g == nil {
			g = &group{entries: entries}
			groups[key] = g
		}
		if port != none {
			ep := corev1.EndpointPort{Name: port.name, Port: port.port, Protocol: corev1.Protocol(port.protocol)}
			if port.hasApp {
				ep.AppProtocol = &port.app
			}
			g.ports = append(g.ports, ep)
		}
	}
	var out []corev1.EndpointSubset
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := groups[key]
		slices.SortFunc(g.ports, func(a, b corev1.EndpointPort) int {
			if a.Port != b.Port {
				return int(a.Port - b.Port)
			}
			return strings.Compare(a.Name+"/"+string(a.Protocol), b.Name+"/"+string(b.Protocol))
		})
		sub := corev1.EndpointSubset{Ports: g.ports}
		for _, en := range g.entries {
			if en.ready {
				sub.Addresses = append(sub.Addresses, en.addr)
			} else {
				sub.NotReadyAddresses = append(sub.NotReadyAddresses, en.addr)
			}
		}
		out = append(out, sub)
	}
	return out
}

// endpointAddress is a pod's address in the service's (first) family.
//
//nolint:staticcheck // as above
func endpointAddress(s *corev1.Service, p *corev1.Pod) (corev1.EndpointAddress, bool) {
	v6 := false
	switch {
	case len(s.Spec.IPFamilies) > 0:
		v6 = s.Spec.IPFamilies[0] == corev1.IPv6Protocol
	case !headless(s):
		v6 = strings.Contains(s.Spec.ClusterIP, ":")
	default:
		v6 = strings.Contains(p.Status.PodIP, ":")
	}
	ips := podAddresses(p, v6)
	if len(ips) == 0 {
		return corev1.EndpointAddress{}, false
	}
	node := p.Spec.NodeName
	a := corev1.EndpointAddress{
		IP: ips[0], NodeName: &node,
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if setsHostname(p, s) {
		a.Hostname = p.Spec.Hostname
	}
	return a, true
}

// truncate cuts subsets to maxEndpoints addresses, those that are not ready first,
// evenly over the subsets; it tells whether it had to.
//
//nolint:staticcheck // as above
func truncate(subsets []corev1.EndpointSubset) bool {
	ready, notReady := 0, 0
	for i := range subsets {
		ready += len(subsets[i].Addresses)
		notReady += len(subsets[i].NotReadyAddresses)
	}
	if ready+notReady <= maxEndpoints {
		return false
	}
	room, of := maxEndpoints-ready, notReady
	cutReady := ready > maxEndpoints
	if cutReady {
		room, of = maxEndpoints, ready
	}
	left := room
	for i := range subsets {
		list := &subsets[i].NotReadyAddresses
		if cutReady {
			subsets[i].NotReadyAddresses = nil
			list = &subsets[i].Addresses
		}
		n := min((len(*list)*room+of-1)/of, left, len(*list))
		*list = (*list)[:n]
		left -= n
	}
	return true
}
