package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	netutils "k8s.io/utils/net"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	mirrorManager = "endpointslicemirroring-controller.k8s.io"
	// maxMirrored is how many addresses of one subset are mirrored.
	maxMirrored = 1000
	// leaderNote marks Endpoints that are nothing but a lock.
	leaderNote = "control-plane.alpha.kubernetes.io/leader"
)

// sliceMirror copies Endpoints that people write themselves, for services without
// a selector, into EndpointSlices (KEP-0752): whoever routes reads slices alone.
// Keys are those of the Endpoints, which are their services'.
type sliceMirror struct {
	*control.Controller
	services  *client.Informer[*corev1.Service]
	endpoints *client.Informer[*corev1.Endpoints] //nolint:staticcheck // served as upstream serves it
	slices    *client.Informer[*discoveryv1.EndpointSlice]
}

func newEndpointSliceMirroring(d Deps) *control.Controller {
	c := control.New("endpointslicemirroring-controller", d.Deps)
	c.ReportAs("endpoint-slice-mirroring-controller")
	m := &sliceMirror{Controller: c}
	m.services = control.Watch(c, func(ch client.Change[*corev1.Service]) {
		if ch.Old == nil || ch.New == nil || (ch.Old.Spec.Selector == nil) != (ch.New.Spec.Selector == nil) {
			c.Queue.Add(control.KeyOf(ch.Object()))
		}
	})
	//nolint:staticcheck // as above
	m.endpoints = control.Watch(c, func(ch client.Change[*corev1.Endpoints]) {
		if mirrored(ch.Old) || mirrored(ch.New) {
			c.Queue.Add(control.KeyOf(ch.Object()))
		}
	})
	m.slices = control.Watch(c, func(ch client.Change[*discoveryv1.EndpointSlice]) {
		for _, s := range []*discoveryv1.EndpointSlice{ch.Old, ch.New} {
			if k, ok := mirrorOf(s); ok {
				c.Queue.Add(k)
			}
		}
	})
	m.slices.AddIndex(byMirror, func(s *discoveryv1.EndpointSlice) []string {
		if k, ok := mirrorOf(s); ok {
			return []string{k.String()}
		}
		return nil
	})
	c.Writes = append(c.Writes,
		control.Rule("", []string{"services/finalizers"}, "update"),
		control.Rule("", []string{"endpoints/finalizers"}, "update"),
		control.Rule("discovery.k8s.io", []string{"endpointslices"}, "get", "list", "create", "update", "delete"),
	)
	c.Reconcile = m.reconcile
	return c
}

const byMirror = "mirror"

// mirrorOf returns the key of the Endpoints that a slice was made from.
func mirrorOf(s *discoveryv1.EndpointSlice) (control.Key, bool) {
	if s == nil || s.Labels[discoveryv1.LabelManagedBy] != mirrorManager || s.Labels[discoveryv1.LabelServiceName] == "" {
		return control.Key{}, false
	}
	return control.Key{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}, true
}

// mirrored tells whether Endpoints ask for their mirror: those do not that say so,
// and those that elect a leader.
//
//nolint:staticcheck // as above
func mirrored(e *corev1.Endpoints) bool {
	if e == nil || e.Labels[discoveryv1.LabelSkipMirror] == "true" {
		return false
	}
	_, lock := e.Annotations[leaderNote]
	return !lock
}

func (m *sliceMirror) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	existing := m.slices.ByIndex(byMirror, k.String())
	slices.SortFunc(existing, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	e, found := m.endpoints.Get(k.Namespace, k.Name)
	s, served := m.services.Get(k.Namespace, k.Name)
	if !found || !mirrored(e) || !served || s.Spec.Selector != nil {
		return control.Result{}, m.remove(ctx, k, existing)
	}
	plan := planMirror(e, existing)
	if plan.invalid > 0 {
		m.Events.Event(e, corev1.EventTypeWarning, "InvalidIPAddress", "Skipped %d invalid IP addresses when mirroring to EndpointSlices", plan.invalid)
	}
	if plan.skipped > plan.invalid {
		m.Events.Event(e, corev1.EventTypeWarning, "TooManyAddressesToMirror",
			"A max of %d addresses can be mirrored to EndpointSlices per Endpoints subset. %d addresses were skipped", maxMirrored, plan.skipped)
	}
	api := client.For[*discoveryv1.EndpointSlice](m.Client).In(k.Namespace)
	if e.DeletionTimestamp == nil {
		for _, es := range plan.create {
			got, err := api.Create(ctx, es)
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return control.Result{}, nil
			}
			if err != nil {
				return control.Result{}, fmt.Errorf("failed to create EndpointSlice for Endpoints %s: %w", k, err)
			}
			control.Wrote(m.Pending, k, m.slices, got)
		}
	}
	for _, es := range plan.update {
		got, err := api.Update(ctx, es)
		if err != nil {
			return control.Result{}, fmt.Errorf("failed to update %s EndpointSlice for Endpoints %s: %w", es.Name, k, err)
		}
		control.Wrote(m.Pending, k, m.slices, got)
	}
	return control.Result{}, m.remove(ctx, k, plan.remove)
}

func (m *sliceMirror) remove(ctx context.Context, k control.Key, gone []*discoveryv1.EndpointSlice) error {
	for _, es := range gone {
		err := client.For[*discoveryv1.EndpointSlice](m.Client).In(k.Namespace).Delete(ctx, es.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("failed to delete %s EndpointSlice for Endpoints %s: %w", es.Name, k, err)
		}
		control.Removed(m.Pending, k, m.slices, es)
	}
	return nil
}

// mirrorPlan is what to write so that the slices show the Endpoints. invalid counts
// the addresses that are none, skipped those and the ones beyond maxMirrored.
type mirrorPlan struct {
	slicePlan
	invalid, skipped int
}

// planMirror gives every set of ports and family of addresses one slice.
//
//nolint:staticcheck // as above
func planMirror(e *corev1.Endpoints, existing []*discoveryv1.EndpointSlice) mirrorPlan {
	var plan mirrorPlan
	have := map[string][]*discoveryv1.EndpointSlice{}
	for _, es := range existing {
		k := mirrorKey(es.AddressType, es.Ports)
		have[k] = append(have[k], es)
	}
	for _, sub := range repack(e.Subsets) {
		ports := mirrorPorts(sub.Ports)
		byType := map[discoveryv1.AddressType][]discoveryv1.Endpoint{}
		seen := map[endpointID]bool{}
		added := 0
		for _, a := range sub.addresses {
			if added >= maxMirrored {
				break
			}
			ep, t, ok := mirrorEndpoint(a.EndpointAddress, a.ready)
			if !ok {
				plan.invalid++
				continue
			}
			added++
			if id := idOf(&ep); !seen[id] {
				seen[id] = true
				byType[t] = append(byType[t], ep)
			}
		}
		plan.skipped += len(sub.addresses) - added
		for _, t := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
			k := mirrorKey(t, ports)
			mine := have[k]
			delete(have, k)
			want := byType[t]
			switch {
			case len(want) == 0:
				plan.remove = append(plan.remove, mine...)
			case len(mine) == 0:
				plan.create = append(plan.create, mirrorSlice(e, t, ports, want))
			default:
				plan.remove = append(plan.remove, mine[1:]...)
				if !showsEndpoints(mine[0], e, want) {
					plan.update = append(plan.update, rewrite(mirrorSlice(e, t, ports, want), mine[0]))
				}
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(have)) {
		plan.remove = append(plan.remove, have[k]...)
	}
	// An update costs watchers less than a deletion and a creation.
	plan.create = slices.DeleteFunc(plan.create, func(es *discoveryv1.EndpointSlice) bool {
		i := slices.IndexFunc(plan.remove, func(o *discoveryv1.EndpointSlice) bool { return o.AddressType == es.AddressType })
		if i < 0 {
			return false
		}
		plan.update = append(plan.update, rewrite(es, plan.remove[i]))
		plan.remove = slices.Delete(plan.remove, i, i+1)
		return true
	})
	return plan
}

// rewrite makes es what the slice old becomes.
func rewrite(es, old *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	es.GenerateName, es.Name, es.UID, es.ResourceVersion = "", old.Name, old.UID, old.ResourceVersion
	return es
}

func mirrorKey(t discoveryv1.AddressType, ports []discoveryv1.EndpointPort) string {
	return string(t) + " " + portsKey(ports)
}

// showsEndpoints tells whether es is what would be written for the endpoints want.
//
//nolint:staticcheck // as above
func showsEndpoints(es *discoveryv1.EndpointSlice, e *corev1.Endpoints, want []discoveryv1.Endpoint) bool {
	if len(es.Endpoints) != len(want) {
		return false
	}
	byID := map[endpointID]*discoveryv1.Endpoint{}
	for i := range want {
		byID[idOf(&want[i])] = &want[i]
	}
	for i := range es.Endpoints {
		w := byID[idOf(&es.Endpoints[i])]
		if w == nil || !sameSliceEndpoint(w, &es.Endpoints[i]) {
			return false
		}
	}
	lbls := maps.Clone(es.Labels)
	delete(lbls, discoveryv1.LabelManagedBy)
	delete(lbls, discoveryv1.LabelServiceName)
	other := slices.ContainsFunc(es.OwnerReferences, func(o metav1.OwnerReference) bool {
		return o.Kind == "Endpoints" && o.Name == e.Name && o.UID != e.UID
	})
	return !other && equality.Semantic.DeepEqual(lbls, e.Labels) && equality.Semantic.DeepEqual(mirrorNotes(e), es.Annotations)
}

//nolint:staticcheck // as above
func mirrorNotes(e *corev1.Endpoints) map[string]string {
	notes := map[string]string{}
	for k, v := range e.Annotations {
		if k != triggerTimeNote && k != corev1.LastAppliedConfigAnnotation {
			notes[k] = v
		}
	}
	return notes
}

//nolint:staticcheck // as above
func mirrorSlice(e *corev1.Endpoints, t discoveryv1.AddressType, ports []discoveryv1.EndpointPort, eps []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	prefix := e.Name + "-"
	if len(prefix) > validation.DNS1123SubdomainMaxLength {
		prefix = e.Name
	}
	lbls := map[string]string{}
	maps.Copy(lbls, e.Labels)
	lbls[discoveryv1.LabelServiceName], lbls[discoveryv1.LabelManagedBy] = e.Name, mirrorManager
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: prefix, Namespace: e.Namespace, Labels: lbls, Annotations: mirrorNotes(e),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(e, corev1.SchemeGroupVersion.WithKind("Endpoints"))},
		},
		AddressType: t, Ports: ports, Endpoints: eps,
	}
}

//nolint:staticcheck // as above
func mirrorPorts(ports []corev1.EndpointPort) []discoveryv1.EndpointPort {
	out := []discoveryv1.EndpointPort{}
	for _, p := range ports {
		out = append(out, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
	}
	return out
}

// mirrorEndpoint writes an address anew, since Endpoints may hold one in a form
// that slices do not (leading zeros, IPv4 mapped to IPv6).
//
//nolint:staticcheck // as above
func mirrorEndpoint(a corev1.EndpointAddress, ready bool) (discoveryv1.Endpoint, discoveryv1.AddressType, bool) {
	parsed := netutils.ParseIPSloppy(a.IP)
	ip, ok := netip.AddrFromSlice(parsed)
	if !ok {
		return discoveryv1.Endpoint{}, "", false
	}
	ep := discoveryv1.Endpoint{
		Addresses: []string{ip.Unmap().String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		TargetRef: a.TargetRef, NodeName: a.NodeName,
	}
	if a.Hostname != "" {
		ep.Hostname = &a.Hostname
	}
	if ip.Unmap().Is4() {
		return ep, discoveryv1.AddressTypeIPv4, true
	}
	return ep, discoveryv1.AddressTypeIPv6, true
}

// repacked is a subset in which no port occurs that another has too. The ready
// addresses come first, each group in the order of addresses.
//
//nolint:staticcheck // as above
type repacked struct {
	Ports     []corev1.EndpointPort
	addresses []readyAddress
}

//nolint:staticcheck // as above
type readyAddress struct {
	corev1.EndpointAddress
	ready bool
}

// repack brings subsets into one form, however they were written: per port the
// addresses that have it, and ports with the same addresses together. An address
// that is ready in one subset and not in another is not.
//
//nolint:staticcheck // as above
func repack(subsets []corev1.EndpointSubset) []repacked {
	type addressID struct {
		ip  string
		uid types.UID
	}
	known := map[addressID]corev1.EndpointAddress{}
	byPort := map[subsetPort]map[addressID]bool{}
	add := func(p subsetPort, a corev1.EndpointAddress, ready bool) {
		id := addressID{ip: a.IP}
		if a.TargetRef != nil {
			id.uid = a.TargetRef.UID
		}
		if _, ok := known[id]; !ok {
			known[id] = a
		}
		if byPort[p] == nil {
			byPort[p] = map[addressID]bool{}
		}
		if was, ok := byPort[p][id]; !ok || was {
			byPort[p][id] = ready
		}
	}
	for _, sub := range subsets {
		ports := []subsetPort{none}
		if len(sub.Ports) > 0 {
			ports = nil
		}
		for _, p := range sub.Ports {
			sp := subsetPort{name: p.Name, protocol: string(p.Protocol), port: p.Port}
			if p.AppProtocol != nil {
				sp.app, sp.hasApp = *p.AppProtocol, true
			}
			ports = append(ports, sp)
		}
		for _, p := range ports {
			for _, a := range sub.Addresses {
				add(p, a, true)
			}
			for _, a := range sub.NotReadyAddresses {
				add(p, a, false)
			}
		}
	}
	groups := map[string]*repacked{}
	for p, ids := range byPort {
		order := slices.SortedFunc(maps.Keys(ids), func(a, b addressID) int {
			if ids[a] != ids[b] {
				if ids[a] {
					return -1
				}
				return 1
			}
			return cmp.Or(strings.Compare(a.ip, b.ip), cmp.Compare(a.uid, b.uid))
		})
		key := ""
		for _, id := range order {
			key += fmt.Sprintf("%s/%s/%v;", id.ip, id.uid, ids[id])
		}
		g := groups[key]
		if g == nil {
			g = &repacked{}
			for _, id := range order {
				g.addresses = append(g.addresses, readyAddress{known[id], ids[id]})
			}
			groups[key] = g
		}
		if p != none {
			ep := corev1.EndpointPort{Name: p.name, Port: p.port, Protocol: corev1.Protocol(p.protocol)}
			if p.hasApp {
				ep.AppProtocol = &p.app
			}
			g.Ports = append(g.Ports, ep)
		}
	}
	var out []repacked
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := groups[key]
		slices.SortFunc(g.Ports, func(a, b corev1.EndpointPort) int {
			return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol))
		})
		out = append(out, *g)
	}
	return out
}
