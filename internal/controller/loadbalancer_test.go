package controller

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

// balancedService is one of the age given: the older the smaller.
func balancedService(name string, age int, ports ...int32) *corev1.Service {
	s := service(name)
	s.CreationTimestamp = metav1.NewTime(time.Unix(int64(age), 0))
	s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.Ports = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyCluster, nil
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", p), Port: p, Protocol: corev1.ProtocolTCP})
	}
	return s
}

func local(s *corev1.Service) *corev1.Service {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	return s
}

func having(s *corev1.Service, addrs ...string) *corev1.Service {
	for _, a := range addrs {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
	}
	return s
}

func TestPlanBalancer(t *testing.T) {
	at := func(node, addr string, taken ...int32) balancerSite {
		s := balancerSite{node, netip.MustParseAddr(addr), map[balancerPort]string{}}
		for _, p := range taken {
			s.taken[balancerPort{p, corev1.ProtocolTCP}] = "pod ns/p"
		}
		return s
	}
	two := []balancerSite{at("a", "192.0.2.1"), at("b", "192.0.2.2")}
	udp := balancedService("udp", 1, 80)
	udp.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	six := balancedService("web", 2, 80)
	six.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
	for _, c := range []struct {
		name    string
		s       *corev1.Service
		sites   []balancerSite
		others  []*corev1.Service
		ready   map[string]string // nodes by service
		want    string
		refused string
	}{
		{name: "alone", s: balancedService("web", 2, 80), sites: two, want: "192.0.2.1 192.0.2.2"},
		{name: "no nodes", s: balancedService("web", 2, 80)},
		{name: "a port that an older one has", s: balancedService("web", 2, 80), sites: two, others: []*corev1.Service{balancedService("old", 1, 443, 80)},
			refused: "port 80/TCP of node a is taken by service ns/old"},
		{name: "a port that a younger one has", s: balancedService("web", 2, 80), sites: two, others: []*corev1.Service{balancedService("new", 3, 80)}, want: "192.0.2.1 192.0.2.2"},
		{name: "of one second", s: balancedService("web", 2, 80), sites: two, others: []*corev1.Service{balancedService("abc", 2, 80)}, refused: "port 80/TCP of node a is taken by service ns/abc"},
		{name: "that it has, of an older one", s: having(balancedService("web", 2, 80), "192.0.2.1"), sites: two, others: []*corev1.Service{balancedService("old", 1, 80)}, want: "192.0.2.1",
			refused: "port 80/TCP of node b is taken by service ns/old"},
		{name: "that both have", s: having(balancedService("web", 2, 80), "192.0.2.1"), sites: two, others: []*corev1.Service{having(balancedService("old", 1, 80), "192.0.2.1")},
			refused: "port 80/TCP of node a is taken by service ns/old"},
		{name: "another protocol", s: balancedService("web", 2, 80), sites: two, others: []*corev1.Service{udp}, want: "192.0.2.1 192.0.2.2"},
		{name: "the older one cannot have it", s: balancedService("web", 3, 80), sites: two, want: "192.0.2.1 192.0.2.2",
			others: []*corev1.Service{balancedService("middle", 2, 80, 443), balancedService("old", 1, 443)}},
		{name: "a port that a pod has", s: balancedService("web", 2, 80), sites: []balancerSite{at("a", "192.0.2.1", 80), at("b", "192.0.2.2", 81)}, want: "192.0.2.2",
			refused: "port 80/TCP of node a is taken by pod ns/p"},
		{name: "local", s: local(balancedService("web", 2, 80)), sites: two, ready: map[string]string{"web": "b"}, want: "192.0.2.2"},
		{name: "local, of nothing", s: local(balancedService("web", 2, 80)), sites: two},
		{name: "beside a local one", s: balancedService("web", 2, 80), sites: two, others: []*corev1.Service{local(balancedService("old", 1, 80))}, ready: map[string]string{"old": "b"}, want: "192.0.2.1",
			refused: "port 80/TCP of node b is taken by service ns/old"},
		{name: "of another family", s: six, sites: append([]balancerSite{at("a", "fd00::1")}, two...), want: "fd00::1"},
	} {
		plan := planBalancer(c.s, c.sites, append(c.others, c.s), func(s *corev1.Service) map[string]bool { return map[string]bool{c.ready[s.Name]: true} })
		var got []string
		for _, a := range plan.addrs {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != c.want || plan.refused != c.refused || plan.noNodes != (len(c.sites) == 0) {
			t.Errorf("%s: gets %v, refused %q, want %s, %q", c.name, got, plan.refused, c.want, c.refused)
		}
	}
}

func balancerNode(name, addr string) *corev1.Node {
	n := node(name, "z")
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}, {Type: corev1.NodeHostName, Address: name}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = 10250
	return n
}

func TestLoadBalancersLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		excluded := balancerNode("x", "192.0.2.9")
		excluded.Labels[corev1.LabelNodeExcludeBalancers] = ""
		classed := balancedService("classed", 1, 80)
		classed.Spec.LoadBalancerClass = ptr.To("example.com/x")
		w := newWorld(t, func(d Deps) []*control.Controller {
			d.ReservedPorts = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6443")}
			return []*control.Controller{newLoadBalancer(d)}
		}, balancerNode("a", "192.0.2.1"), balancerNode("b", "192.0.2.2"), excluded, classed,
			balancedService("first", 2, 80), balancedService("second", 3, 80), balancedService("api", 4, 6443), balancedService("kubelet", 4, 10250),
			local(balancedService("local", 5, 8080)))
		defer w.stop()
		addrs := func(name string) string {
			var out []string
			for _, i := range get[*corev1.Service](w, "ns", name).Status.LoadBalancer.Ingress {
				if *i.IPMode != corev1.LoadBalancerIPModeVIP {
					t.Errorf("mode %s", *i.IPMode)
				}
				out = append(out, i.IP)
			}
			return strings.Join(out, " ")
		}
		is := func(name, want string) {
			t.Helper()
			w.until(name+" at "+want, func() bool { return addrs(name) == want })
		}
		event := func(name, reason, message string) {
			t.Helper()
			w.until(name+": "+reason, func() bool {
				return slices.ContainsFunc(list[*corev1.Event](w, "ns"), func(e *corev1.Event) bool {
					return e.InvolvedObject.Name == name && e.Reason == reason && e.Message == message && e.Source.Component == "service-controller"
				})
			})
		}
		is("first", "192.0.2.1 192.0.2.2")
		event("first", "EnsuringLoadBalancer", "Ensuring load balancer")
		event("first", "EnsuredLoadBalancer", "Ensured load balancer")
		event("second", "SyncLoadBalancerFailed", "Error syncing load balancer: failed to ensure load balancer: port 80/TCP of node a is taken by service ns/first")
		is("second", "")
		is("api", "192.0.2.2")
		event("api", "SyncLoadBalancerFailed", "Error syncing load balancer: failed to ensure load balancer: port 6443/TCP of node a is taken by the API server")
		is("kubelet", "")
		is("local", "")
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "local-1", Labels: map[string]string{discoveryv1.LabelServiceName: "local"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.1.0.1"}, NodeName: ptr.To("b")}, {Addresses: []string{"10.1.0.2"}, NodeName: ptr.To("a"), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}}},
		}
		w.api.Put(slice)
		is("local", "192.0.2.2")
		edit(w, "ns", "local-1", "", func(s *discoveryv1.EndpointSlice) { s.Endpoints[1].Conditions.Ready = ptr.To(true) })
		is("local", "192.0.2.1 192.0.2.2")
		event("local", "UpdatedLoadBalancer", "Updated load balancer with new hosts")
		if s := get[*corev1.Service](w, "ns", "classed"); len(s.Finalizers)+len(s.Status.LoadBalancer.Ingress) > 0 {
			t.Errorf("another's: %v %v", s.Finalizers, s.Status)
		}
		edit(w, "", "b", "status", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })
		is("first", "192.0.2.1")
		edit(w, "", "b", "status", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionTrue })
		is("first", "192.0.2.1 192.0.2.2")
		holder := webPod(1, true)
		holder.Spec.NodeName, holder.Spec.Containers = "b", []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: 8080, Protocol: corev1.ProtocolTCP}}}}
		w.api.Put(holder)
		is("local", "192.0.2.1")
		if err := client.For[*corev1.Service](w.c).In("ns").Delete(t.Context(), "first", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("first is gone", func() bool {
			return !slices.ContainsFunc(list[*corev1.Service](w, "ns"), func(s *corev1.Service) bool { return s.Name == "first" })
		})
		event("first", "DeletedLoadBalancer", "Deleted load balancer")
		is("second", "192.0.2.1 192.0.2.2")
		edit(w, "ns", "second", "", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
		is("second", "")
		w.until("second is free", func() bool { return len(get[*corev1.Service](w, "ns", "second").Finalizers) == 0 })
	})
}
