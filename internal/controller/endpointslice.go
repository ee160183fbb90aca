package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	sliceManager    = "endpointslice-controller.k8s.io"
	maxPerSlice     = 100
	byServiceLabel  = "service"
	byNode          = "node"
	zoneLabel       = corev1.LabelTopologyZone
	triggerTimeNote = corev1.EndpointsLastChangeTriggerTime
)

// endpointSlices keeps the EndpointSlices of every service with a selector.
// Endpoints stay in the slice that they are in, so that a change of one pod writes
// one slice.
type endpointSlices struct {
	*control.Controller
	services *client.Informer[*corev1.Service]
	pods     *client.Informer[*corev1.Pod]
	nodes    *client.Informer[*corev1.Node]
	slices   *client.Informer[*discoveryv1.EndpointSlice]

	mu    sync.Mutex
	shown map[control.Key]*triggers
}

func newEndpointSlice(d Deps) *control.Controller {
	c := control.New("endpointslice-controller", d.Deps)
	c.ReportAs("endpoint-slice-controller")
	e := &endpointSlices{Controller: c, shown: map[control.Key]*triggers{}}
	e.services = control.Watch(c, func(ch client.Change[*corev1.Service]) {
		k := control.KeyOf(ch.Object())
		if ch.Deleted() {
			e.mu.Lock()
			delete(e.shown, k)
			e.mu.Unlock()
			return // its slices are collected with it
		}
		c.Queue.Add(k)
	})
	indexSelectors(e.services)
	e.pods = control.Watch(c, enqueueServices(c, e.services))
	indexNodes(e.pods)
	e.nodes = control.Watch(c, e.nodeChanged)
	e.slices = control.Watch(c, func(ch client.Change[*discoveryv1.EndpointSlice]) {
		s := ch.Object()
		if name := s.Labels[discoveryv1.LabelServiceName]; name != "" && managed(s) || ch.Old != nil && managed(ch.Old) {
			c.Queue.Add(control.Key{Namespace: s.Namespace, Name: cmp.Or(name, labelOf(ch.Old, discoveryv1.LabelServiceName))})
		}
	})
	e.slices.AddIndex(byServiceLabel, func(s *discoveryv1.EndpointSlice) []string {
		if !managed(s) {
			return nil
		}
		return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}
	})
	c.Writes = append(c.Writes,
		control.Rule("", []string{"services/finalizers"}, "update"),
		control.Rule("discovery.k8s.io", []string{"endpointslices"}, "get", "list", "create", "update", "delete"),
	)
	c.Reconcile = e.reconcile
	return c
}

func labelOf(s *discoveryv1.EndpointSlice, k string) string {
	if s == nil {
		return ""
	}
	return s.Labels[k]
}

func managed(s *discoveryv1.EndpointSlice) bool {
	return s.Labels[discoveryv1.LabelManagedBy] == sliceManager
}

// nodeChanged brings back the services with pods on a node that came, went, or
// changed its zone.
func (e *endpointSlices) nodeChanged(ch client.Change[*corev1.Node]) {
	if ch.Old != nil && ch.New != nil && ch.Old.Labels[zoneLabel] == ch.New.Labels[zoneLabel] {
		return
	}
	for _, p := range e.pods.ByIndex(byNode, ch.Object().Name) {
		for _, s := range servicesOf(e.services, p) {
			e.Queue.Add(control.KeyOf(s))
		}
	}
}

func (e *endpointSlices) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	s, ok := e.services.Get(k.Namespace, k.Name)
	if !ok || s.Spec.Selector == nil || s.Spec.Type == corev1.ServiceTypeExternalName {
		return control.Result{}, nil
	}
	pods := e.pods.List(s.Namespace, labels.Set(s.Spec.Selector).AsSelectorPreValidated())
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	e.mu.Lock()
	shown, trigger := e.shown[k].next(s, pods)
	e.shown[k] = shown
	e.mu.Unlock()
	var existing []*discoveryv1.EndpointSlice
	for _, es := range e.slices.ByIndex(byServiceLabel, k.String()) {
		if es.DeletionTimestamp == nil {
			existing = append(existing, es)
		}
	}
	slices.SortFunc(existing, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	plan, planErr := planSlices(s, pods, func(name string) *corev1.Node { n, _ := e.nodes.Get("", name); return n }, existing)
	err := errors.Join(planErr, e.apply(ctx, k, s, plan, trigger))
	if err != nil {
		e.Events.Event(s, corev1.EventTypeWarning, "FailedToUpdateEndpointSlices", "Error updating Endpoint Slices for Service %s/%s: %v", s.Namespace, s.Name, err)
	}
	return control.Result{}, err
}

func (e *endpointSlices) apply(ctx context.Context, k control.Key, s *corev1.Service, plan slicePlan, trigger time.Time) error {
	api := client.For[*discoveryv1.EndpointSlice](e.Client).In(s.Namespace)
	note := func(es *discoveryv1.EndpointSlice) {
		if trigger.IsZero() {
			delete(es.Annotations, triggerTimeNote)
			return
		}
		metav1.SetMetaDataAnnotation(&es.ObjectMeta, triggerTimeNote, trigger.UTC().Format(time.RFC3339Nano))
	}
	if s.DeletionTimestamp == nil {
		for _, es := range plan.create {
			note(es)
			got, err := api.Create(ctx, es)
			if err != nil {
				if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
					return nil
				}
				return fmt.Errorf("failed to create EndpointSlice for Service %s/%s: %w", s.Namespace, s.Name, err)
			}
			control.Wrote(e.Pending, k, e.slices, got)
		}
	}
	for _, es := range plan.update {
		note(es)
		got, err := api.Update(ctx, es)
		if err != nil {
			return fmt.Errorf("failed to update %s EndpointSlice for Service %s/%s: %w", es.Name, s.Namespace, s.Name, err)
		}
		control.Wrote(e.Pending, k, e.slices, got)
	}
	for _, es := range plan.remove {
		if err := api.Delete(ctx, es.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("failed to delete %s EndpointSlice for Service %s/%s: %w", es.Name, s.Namespace, s.Name, err)
		}
		control.Removed(e.Pending, k, e.slices, es)
	}
	return nil
}

// slicePlan is what to write so that a service's slices are right.
type slicePlan struct {
	create, update, remove []*discoveryv1.EndpointSlice
}

// planSlices compares the slices there are with what the pods make. Its error
// names pods that were left out because their node is unknown; the plan holds for
// the others.
func planSlices(s *corev1.Service, pods []*corev1.Pod, node func(string) *corev1.Node, existing []*discoveryv1.EndpointSlice) (slicePlan, error) {
	var plan slicePlan
	var errs []error
	families := addressTypes(s)
	for _, es := range existing {
		if !slices.Contains(families, es.AddressType) {
			plan.remove = append(plan.remove, es)
		}
	}
	for _, t := range families {
		var mine []*discoveryv1.EndpointSlice
		for _, es := range existing {
			if es.AddressType == t {
				mine = append(mine, es)
			}
		}
		p, err := planFamily(s, pods, node, mine, t)
		if err != nil {
			errs = append(errs, err)
		}
		plan.create = append(plan.create, p.create...)
		plan.update = append(plan.update, p.update...)
		plan.remove = append(plan.remove, p.remove...)
	}
	return plan, errors.Join(errs...)
}

func addressTypes(s *corev1.Service) []discoveryv1.AddressType {
	var out []discoveryv1.AddressType
	for _, f := range s.Spec.IPFamilies {
		switch f {
		case corev1.IPv4Protocol:
			out = append(out, discoveryv1.AddressTypeIPv4)
		case corev1.IPv6Protocol:
			out = append(out, discoveryv1.AddressTypeIPv6)
		}
	}
	switch {
	case len(out) > 0:
	case headless(s):
		out = []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	case strings.Contains(s.Spec.ClusterIP, ":"):
		out = []discoveryv1.AddressType{discoveryv1.AddressTypeIPv6}
	default:
		out = []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
	}
	return out
}

// portSet is the endpoints with the same ports: they share slices.
type portSet struct {
	ports     []discoveryv1.EndpointPort
	endpoints map[endpointID]discoveryv1.Endpoint
	order     []endpointID
}

func planFamily(s *corev1.Service, pods []*corev1.Pod, node func(string) *corev1.Node, existing []*discoveryv1.EndpointSlice, t discoveryv1.AddressType) (slicePlan, error) {
	var plan slicePlan
	var errs []error
	have := map[string][]*discoveryv1.EndpointSlice{}
	for _, es := range existing {
		if !ownedByService(es, s) {
			plan.remove = append(plan.remove, es)
			continue
		}
		k := portsKey(es.Ports)
		have[k] = append(have[k], es)
	}
	want := map[string]*portSet{}
	var order []string
	for _, p := range pods {
		if !hasEndpoint(p) {
			continue
		}
		n := node(p.Spec.NodeName)
		if n == nil && !s.Spec.PublishNotReadyAddresses {
			errs = append(errs, fmt.Errorf("skipping Pod %s for Service %s/%s: Node %s Not Found", p.Name, s.Namespace, s.Name, p.Spec.NodeName))
			continue
		}
		ep := endpointOf(s, p, n, t)
		if len(ep.Addresses) == 0 {
			continue
		}
		ports := slicePorts(s, p)
		k := portsKey(ports)
		set := want[k]
		if set == nil {
			set = &portSet{ports: ports, endpoints: map[endpointID]discoveryv1.Endpoint{}}
			want[k] = set
			order = append(order, k)
		}
		id := idOf(&ep)
		if _, ok := set.endpoints[id]; !ok {
			set.order = append(set.order, id)
		}
		set.endpoints[id] = ep
	}
	for _, k := range order {
		p := fillSlices(s, have[k], want[k], t)
		plan.create = append(plan.create, p.create...)
		plan.update = append(plan.update, p.update...)
		plan.remove = append(plan.remove, p.remove...)
	}
	for _, k := range slices.Sorted(maps.Keys(have)) {
		if want[k] == nil {
			plan.remove = append(plan.remove, have[k]...)
		}
	}
	// A service without endpoints has one empty slice, so that its consumers can
	// tell none from not yet known.
	if len(plan.create) == 0 && len(plan.remove) == len(existing) {
		empty := newSlice(s, t, []discoveryv1.EndpointPort{})
		if i := slices.IndexFunc(plan.remove, func(es *discoveryv1.EndpointSlice) bool {
			return len(es.Endpoints) == 0 && len(es.Ports) == 0 && ownedByService(es, s) && maps.Equal(es.Labels, empty.Labels)
		}); i >= 0 {
			plan.remove = slices.Delete(plan.remove, i, i+1)
		} else {
			plan.create = append(plan.create, empty)
		}
	}
	// An update costs watchers less than a deletion and a creation.
	plan.remove = slices.DeleteFunc(plan.remove, func(es *discoveryv1.EndpointSlice) bool {
		if len(plan.create) == 0 || !ownedByService(es, s) {
			return false
		}
		last := plan.create[len(plan.create)-1]
		plan.create = plan.create[:len(plan.create)-1]
		next := es.DeepCopy()
		next.Labels, next.Endpoints, next.Ports = last.Labels, last.Endpoints, last.Ports
		plan.update = append(plan.update, next)
		return true
	})
	setHints(s, &plan, existing)
	return plan, errors.Join(errs...)
}

// fillSlices places the endpoints of one set of ports: first where they are, then
// into slices that are written anyway, then into the fullest other slice that takes
// them all, then into new ones.
func fillSlices(s *corev1.Service, existing []*discoveryv1.EndpointSlice, want *portSet, t discoveryv1.AddressType) slicePlan {
	var plan slicePlan
	var same []*discoveryv1.EndpointSlice
	placed := map[endpointID]bool{}
	for _, es := range existing {
		kept := []discoveryv1.Endpoint{}
		changed := false
		for i := range es.Endpoints {
			id := idOf(&es.Endpoints[i])
			ep, ok := want.endpoints[id]
			if !ok || placed[id] {
				changed = true
				continue
			}
			placed[id] = true
			ep.Hints = es.Endpoints[i].Hints
			changed = changed || !sameSliceEndpoint(&ep, &es.Endpoints[i])
			kept = append(kept, ep)
		}
		lbls, relabelled := sliceLabels(es.Labels, s)
		switch {
		case len(kept) == 0 && len(es.Endpoints) > 0:
			plan.remove = append(plan.remove, es)
		case changed || relabelled:
			next := es.DeepCopy()
			next.Labels = lbls
			if changed {
				next.Endpoints = kept
			}
			plan.update = append(plan.update, next)
		default:
			same = append(same, es)
		}
	}
	var rest []discoveryv1.Endpoint
	for _, id := range want.order {
		if !placed[id] {
			rest = append(rest, want.endpoints[id])
		}
	}
	fill := func(es *discoveryv1.EndpointSlice) {
		n := min(len(rest), maxPerSlice-len(es.Endpoints))
		es.Endpoints = append(es.Endpoints, rest[:n]...)
		rest = rest[n:]
	}
	byLength := slices.Clone(plan.update)
	slices.SortStableFunc(byLength, func(a, b *discoveryv1.EndpointSlice) int { return len(b.Endpoints) - len(a.Endpoints) })
	for _, es := range byLength {
		fill(es)
	}
	for len(rest) > 0 {
		best := -1
		for i, es := range same {
			if room := maxPerSlice - len(es.Endpoints) - len(rest); room >= 0 && len(rest) < maxPerSlice &&
				(best < 0 || len(es.Endpoints) > len(same[best].Endpoints)) {
				best = i
			}
		}
		if best >= 0 {
			next := same[best].DeepCopy()
			same = slices.Delete(same, best, best+1)
			fill(next)
			plan.update = append(plan.update, next)
			continue
		}
		es := newSlice(s, t, want.ports)
		fill(es)
		plan.create = append(plan.create, es)
	}
	return plan
}

// setHints directs traffic where the service wants it near: each ready endpoint is
// hinted for its own zone, or node.
func setHints(s *corev1.Service, plan *slicePlan, existing []*discoveryv1.EndpointSlice) {
	dist := ptr.Deref(s.Spec.TrafficDistribution, "")
	near := dist == corev1.ServiceTrafficDistributionPreferClose || dist == corev1.ServiceTrafficDistributionPreferSameZone || dist == corev1.ServiceTrafficDistributionPreferSameNode
	hint := func(es *discoveryv1.EndpointSlice) {
		for i := range es.Endpoints {
			ep := &es.Endpoints[i]
			if !near {
				ep.Hints = nil
				continue
			}
			if !ptr.Deref(ep.Conditions.Ready, false) {
				continue
			}
			var h discoveryv1.EndpointHints
			if ep.Zone != nil {
				h.ForZones = []discoveryv1.ForZone{{Name: *ep.Zone}}
			}
			if ep.NodeName != nil && dist == corev1.ServiceTrafficDistributionPreferSameNode {
				h.ForNodes = []discoveryv1.ForNode{{Name: *ep.NodeName}}
			}
			ep.Hints = nil
			if h.ForZones != nil || h.ForNodes != nil {
				ep.Hints = &h
			}
		}
	}
	for _, es := range append(slices.Clone(plan.create), plan.update...) {
		hint(es)
	}
	for _, es := range existing {
		named := func(o *discoveryv1.EndpointSlice) bool { return o.Name == es.Name }
		if slices.ContainsFunc(plan.update, named) || slices.ContainsFunc(plan.remove, named) {
			continue
		}
		next := es.DeepCopy()
		hint(next)
		if !equality.Semantic.DeepEqual(next.Endpoints, es.Endpoints) {
			plan.update = append(plan.update, next)
		}
	}
}

// endpointID is what makes two endpoints the same one.
type endpointID struct {
	addresses, hostname, namespace, name string
}

func idOf(ep *discoveryv1.Endpoint) endpointID {
	id := endpointID{addresses: strings.Join(ep.Addresses, ","), hostname: ptr.Deref(ep.Hostname, "")}
	if ep.TargetRef != nil {
		id.namespace, id.name = ep.TargetRef.Namespace, ep.TargetRef.Name
	}
	return id
}

func sameSliceEndpoint(a, b *discoveryv1.Endpoint) bool {
	var x, y types.UID
	if a.TargetRef != nil {
		x = a.TargetRef.UID
	}
	if b.TargetRef != nil {
		y = b.TargetRef.UID
	}
	return x == y && ptr.Equal(a.NodeName, b.NodeName) && ptr.Equal(a.Zone, b.Zone) &&
		ptr.Equal(a.Conditions.Ready, b.Conditions.Ready) && ptr.Equal(a.Conditions.Serving, b.Conditions.Serving) &&
		ptr.Equal(a.Conditions.Terminating, b.Conditions.Terminating)
}

func endpointOf(s *corev1.Service, p *corev1.Pod, node *corev1.Node, t discoveryv1.AddressType) discoveryv1.Endpoint {
	serving, terminating := podReady(p), p.DeletionTimestamp != nil
	ready := s.Spec.PublishNotReadyAddresses || serving && !terminating
	ep := discoveryv1.Endpoint{
		Addresses:  podAddresses(p, t == discoveryv1.AddressTypeIPv6),
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if p.Spec.NodeName != "" {
		ep.NodeName = ptr.To(p.Spec.NodeName)
	}
	if node != nil && node.Labels[zoneLabel] != "" {
		ep.Zone = ptr.To(node.Labels[zoneLabel])
	}
	if setsHostname(p, s) {
		ep.Hostname = ptr.To(p.Spec.Hostname)
	}
	return ep
}

func slicePorts(s *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	out := []discoveryv1.EndpointPort{}
	for i := range s.Spec.Ports {
		sp := &s.Spec.Ports[i]
		n, err := targetPort(p, sp)
		if err != nil {
			continue
		}
		out = append(out, discoveryv1.EndpointPort{Name: ptr.To(sp.Name), Port: ptr.To(n), Protocol: ptr.To(sp.Protocol), AppProtocol: sp.AppProtocol})
	}
	return out
}

// portsKey is equal for equal sets of ports, whatever their order.
func portsKey(ports []discoveryv1.EndpointPort) string {
	var keys []string
	for _, p := range ports {
		keys = append(keys, fmt.Sprintf("%q/%d/%s/%q", ptr.Deref(p.Name, ""), ptr.Deref(p.Port, 0), ptr.Deref(p.Protocol, corev1.ProtocolTCP), ptr.Deref(p.AppProtocol, "")))
	}
	slices.Sort(keys)
	return strings.Join(keys, ";")
}

func ownedByService(es *discoveryv1.EndpointSlice, s *corev1.Service) bool {
	return slices.ContainsFunc(es.OwnerReferences, func(o metav1.OwnerReference) bool {
		return o.UID == s.UID && o.Kind == "Service" && o.APIVersion == "v1"
	})
}

func newSlice(s *corev1.Service, t discoveryv1.AddressType, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	prefix := s.Name + "-"
	if len(prefix) > validation.DNS1123SubdomainMaxLength {
		prefix = s.Name
	}
	lbls, _ := sliceLabels(nil, s)
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: prefix, Namespace: s.Namespace, Labels: lbls,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(s, corev1.SchemeGroupVersion.WithKind("Service"))},
		},
		AddressType: t, Ports: ports, Endpoints: []discoveryv1.Endpoint{},
	}
}

// sliceLabels are the service's labels and the slice's own; it tells whether they
// differ from what the slice has.
func sliceLabels(have map[string]string, s *corev1.Service) (map[string]string, bool) {
	want := map[string]string{}
	for k, v := range s.Labels {
		switch k {
		case discoveryv1.LabelServiceName, discoveryv1.LabelManagedBy, corev1.IsHeadlessService:
		default:
			want[k] = v
		}
	}
	if headless(s) {
		want[corev1.IsHeadlessService] = ""
	}
	want[discoveryv1.LabelServiceName] = s.Name
	want[discoveryv1.LabelManagedBy] = sliceManager
	return want, !maps.Equal(want, have)
}
