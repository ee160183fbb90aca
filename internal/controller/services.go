package controller

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"skiff/internal/client"
	"skiff/internal/control"
)

// What the Endpoints and EndpointSlice controllers share: which services a pod
// belongs to, which pods count, ports, and when a change began.

const bySelector = "selector"

// indexSelectors lets services be found by one of the labels that they select.
func indexSelectors(services *client.Informer[*corev1.Service]) {
	services.AddIndex(bySelector, func(s *corev1.Service) []string {
		if s.Spec.Selector == nil {
			return nil
		}
		for _, k := range slices.Sorted(maps.Keys(s.Spec.Selector)) {
			return []string{s.Namespace + "\x00" + k + "\x00" + s.Spec.Selector[k]}
		}
		return []string{s.Namespace} // selects everything
	})
}

// servicesOf are the services that select a pod.
func servicesOf(services *client.Informer[*corev1.Service], p *corev1.Pod) []*corev1.Service {
	out := services.ByIndex(bySelector, p.Namespace)
	for k, v := range p.Labels {
		for _, s := range services.ByIndex(bySelector, p.Namespace+"\x00"+k+"\x00"+v) {
			if labels.Set(s.Spec.Selector).AsSelectorPreValidated().Matches(labels.Set(p.Labels)) {
				out = append(out, s)
			}
		}
	}
	return out
}

// enqueueServices returns a handler for pods that enqueues the services whose
// endpoints the change may alter.
func enqueueServices(c *control.Controller, services *client.Informer[*corev1.Service]) func(client.Change[*corev1.Pod]) {
	return func(ch client.Change[*corev1.Pod]) {
		enqueue := func(p *corev1.Pod) {
			for _, s := range servicesOf(services, p) {
				c.Queue.Add(control.KeyOf(s))
			}
		}
		switch {
		case ch.Deleted():
			enqueue(ch.Old)
		case ch.Old == nil:
			enqueue(ch.New)
		case !sameEndpoint(ch.Old, ch.New):
			enqueue(ch.New)
			if !maps.Equal(ch.Old.Labels, ch.New.Labels) {
				enqueue(ch.Old)
			}
		}
	}
}

// sameEndpoint tells that two states of a pod make the same endpoint.
func sameEndpoint(a, b *corev1.Pod) bool {
	return a.UID == b.UID && maps.Equal(a.Labels, b.Labels) &&
		a.Spec.NodeName == b.Spec.NodeName && a.Spec.Hostname == b.Spec.Hostname && a.Spec.Subdomain == b.Spec.Subdomain &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		podReady(a) == podReady(b) && podTerminal(a) == podTerminal(b) &&
		a.Status.PodIP == b.Status.PodIP && slices.Equal(a.Status.PodIPs, b.Status.PodIPs)
}

// hasEndpoint tells whether a pod can be an endpoint at all.
func hasEndpoint(p *corev1.Pod) bool {
	return !podTerminal(p) && (p.Status.PodIP != "" || len(p.Status.PodIPs) > 0)
}

// podAddresses are the pod's addresses of one family, in canonical form.
func podAddresses(p *corev1.Pod, v6 bool) []string {
	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	out := []string{}
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip.IP); err == nil && (a.Is6() && !a.Is4In6()) == v6 {
			out = append(out, a.Unmap().String())
		}
	}
	return out
}

// targetPort is the number of a service's port on a pod. Ports of containers and
// sidecars have names.
func targetPort(p *corev1.Pod, sp *corev1.ServicePort) (int32, error) {
	if sp.TargetPort.Type == intstr.Int {
		return sp.TargetPort.IntVal, nil
	}
	find := func(c *corev1.Container) (int32, bool) {
		for _, port := range c.Ports {
			if port.Name == sp.TargetPort.StrVal && port.Protocol == sp.Protocol {
				return port.ContainerPort, true
			}
		}
		return 0, false
	}
	for i := range p.Spec.Containers {
		if n, ok := find(&p.Spec.Containers[i]); ok {
			return n, nil
		}
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		if n, ok := find(c); ok {
			return n, nil
		}
	}
	return 0, fmt.Errorf("no suitable port for manifest: %s", p.UID)
}

func setsHostname(p *corev1.Pod, s *corev1.Service) bool {
	return p.Spec.Hostname != "" && p.Spec.Subdomain == s.Name && s.Namespace == p.Namespace
}

// headless tells that a service has no address of its own.
func headless(s *corev1.Service) bool {
	return s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone
}

// triggers remembers, for one service, the times of the changes that its
// endpoints show already.
type triggers struct {
	service time.Time
	pods    map[string]time.Time
}

// next returns when the oldest change that is new since began, zero for none: a
// service's creation, or a pod's readiness.
func (t *triggers) next(s *corev1.Service, pods []*corev1.Pod) (*triggers, time.Time) {
	now := &triggers{service: s.CreationTimestamp.Time, pods: make(map[string]time.Time, len(pods))}
	var first time.Time
	earlier := func(x time.Time) {
		if first.IsZero() || x.Before(first) {
			first = x
		}
	}
	for _, p := range pods {
		c := podCondition(p, corev1.PodReady)
		if c == nil || c.LastTransitionTime.IsZero() {
			continue
		}
		now.pods[p.Name] = c.LastTransitionTime.Time
		if t != nil && c.LastTransitionTime.After(t.pods[p.Name]) {
			earlier(c.LastTransitionTime.Time)
		}
	}
	if t == nil {
		return now, s.CreationTimestamp.Time
	}
	if now.service.After(t.service) {
		earlier(now.service)
	}
	return now, first
}
