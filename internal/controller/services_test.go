package controller

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

func service(name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name + "-uid"), Labels: map[string]string{"tier": "front"}, CreationTimestamp: metav1.NewTime(time.Unix(1000, 0))},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.0.0.1", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}},
		},
	}
}

func webPod(i int, ready bool) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("web-%03d", i), UID: types.UID(fmt.Sprint("u", i)), Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{NodeName: "node"},
		Status:     corev1.PodStatus{PodIP: fmt.Sprintf("10.1.%d.%d", i/250, i%250+1), PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.1.%d.%d", i/250, i%250+1)}, {IP: fmt.Sprintf("fd00::%x", i+1)}}},
	}
	setReady(p, ready, time.Unix(2000, 0))
	return p
}

func node(name, zone string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
}

func knownNode(name string) *corev1.Node {
	if name == "node" {
		return node("node", "z1")
	}
	return nil
}

func webPods(n int) []*corev1.Pod {
	var out []*corev1.Pod
	for i := range n {
		out = append(out, webPod(i, true))
	}
	return out
}

// made gives planned slices names, as the server does.
func made(plan slicePlan) []*discoveryv1.EndpointSlice {
	out := slices.Clone(plan.update)
	for i, es := range plan.create {
		es.Name = fmt.Sprint(es.GenerateName, i)
		out = append(out, es)
	}
	return out
}

func TestSlicesHoldEveryEndpointOnceAndAHundredAtMost(t *testing.T) {
	s := service("web")
	plan, err := planSlices(s, webPods(250), knownNode, nil)
	if err != nil || len(plan.create) != 3 || len(plan.update)+len(plan.remove) != 0 {
		t.Fatalf("plan creates %d, updates %d, removes %d: %v", len(plan.create), len(plan.update), len(plan.remove), err)
	}
	seen := map[string]bool{}
	for _, es := range plan.create {
		if len(es.Endpoints) > 100 {
			t.Errorf("a slice has %d endpoints", len(es.Endpoints))
		}
		for _, ep := range es.Endpoints {
			if seen[ep.Addresses[0]] {
				t.Errorf("%s is there twice", ep.Addresses[0])
			}
			seen[ep.Addresses[0]] = true
		}
	}
	if len(seen) != 250 {
		t.Errorf("%d endpoints, want 250", len(seen))
	}
	es := plan.create[0]
	if es.GenerateName != "web-" || es.Namespace != "ns" || es.AddressType != discoveryv1.AddressTypeIPv4 {
		t.Errorf("slice is %v", es.ObjectMeta)
	}
	want := map[string]string{"tier": "front", "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}
	if !maps.Equal(es.Labels, want) {
		t.Errorf("labels are %v", es.Labels)
	}
	if o := es.OwnerReferences[0]; o.Kind != "Service" || o.UID != "web-uid" || !*o.Controller || !*o.BlockOwnerDeletion {
		t.Errorf("owner is %v", o)
	}
	p := es.Ports[0]
	if *p.Name != "http" || *p.Port != 8080 || *p.Protocol != corev1.ProtocolTCP {
		t.Errorf("port is %v", p)
	}
	ep := es.Endpoints[0]
	if *ep.NodeName != "node" || *ep.Zone != "z1" || ep.TargetRef.Kind != "Pod" || ep.TargetRef.Name != "web-000" || ep.TargetRef.UID != "u0" || !*ep.Conditions.Ready || !*ep.Conditions.Serving || *ep.Conditions.Terminating {
		t.Errorf("endpoint is %v", ep)
	}
}

func TestSliceChangesAreMinimal(t *testing.T) {
	s := service("web")
	pods := webPods(150)
	plan, _ := planSlices(s, pods, knownNode, nil)
	have := made(plan)
	again, _ := planSlices(s, pods, knownNode, have)
	if n := len(again.create) + len(again.update) + len(again.remove); n != 0 {
		t.Fatalf("%d writes where nothing changed", n)
	}
	for name, c := range map[string]struct {
		pods                   []*corev1.Pod
		s                      *corev1.Service
		create, update, remove int
	}{
		"a pod turns unready":                 {pods: append(webPods(149), webPod(149, false)), update: 1},
		"a pod goes":                          {pods: webPods(149), update: 1},
		"a pod comes":                         {pods: webPods(151), update: 1},
		"a slice's pods go":                   {pods: webPods(100), remove: 1},
		"all go: one becomes the placeholder": {pods: nil, update: 1, remove: 1},
		"eighty come: none takes them all":    {pods: webPods(230), create: 1},
		"the port changes": {pods: pods, update: 2, s: func() *corev1.Service {
			s := service("web")
			s.Spec.Ports[0].TargetPort = intstr.FromInt32(9090)
			return s
		}()},
		"the family changes": {pods: pods, create: 2, remove: 2, s: func() *corev1.Service {
			s := service("web")
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
			return s
		}()},
		"a label changes": {pods: pods, update: 2, s: func() *corev1.Service {
			s := service("web")
			s.Labels["tier"] = "back"
			return s
		}()},
	} {
		if c.s == nil {
			c.s = s
		}
		got, err := planSlices(c.s, c.pods, knownNode, have)
		if err != nil || len(got.create) != c.create || len(got.update) != c.update || len(got.remove) != c.remove {
			t.Errorf("%s: creates %d, updates %d, removes %d, want %d, %d, %d: %v", name, len(got.create), len(got.update), len(got.remove), c.create, c.update, c.remove, err)
		}
	}
}

func TestEndpointConditions(t *testing.T) {
	now := metav1.NewTime(time.Unix(3000, 0))
	for name, c := range map[string]struct {
		edit                        func(*corev1.Pod)
		publish                     bool
		ready, serving, terminating bool
		absent                      bool
	}{
		"ready":                        {ready: true, serving: true},
		"not ready":                    {edit: func(p *corev1.Pod) { setReady(p, false, time.Now()) }},
		"not ready, published":         {edit: func(p *corev1.Pod) { setReady(p, false, time.Now()) }, publish: true, ready: true},
		"terminating":                  {edit: func(p *corev1.Pod) { p.DeletionTimestamp = &now }, serving: true, terminating: true},
		"failed":                       {edit: func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, absent: true},
		"without address":              {edit: func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil }, absent: true},
		"of the other family":          {edit: func(p *corev1.Pod) { p.Status.PodIPs = p.Status.PodIPs[1:] }, absent: true},
		"with podIP alone (old nodes)": {edit: func(p *corev1.Pod) { p.Status.PodIPs = nil }, ready: true, serving: true},
	} {
		s, p := service("web"), webPod(0, true)
		s.Spec.PublishNotReadyAddresses = c.publish
		if c.edit != nil {
			c.edit(p)
		}
		plan, err := planSlices(s, []*corev1.Pod{p}, knownNode, nil)
		if err != nil || len(plan.create) != 1 {
			t.Fatalf("%s: %v, %d slices", name, err, len(plan.create))
		}
		eps := plan.create[0].Endpoints
		if c.absent {
			if len(eps) != 0 || len(plan.create[0].Ports) != 0 {
				t.Errorf("%s: slice is %v, want the empty one", name, plan.create[0])
			}
			continue
		}
		if got := eps[0].Conditions; *got.Ready != c.ready || *got.Serving != c.serving || *got.Terminating != c.terminating {
			t.Errorf("%s: conditions are %v %v %v", name, *got.Ready, *got.Serving, *got.Terminating)
		}
	}
}

func TestPodOnUnknownNodeIsLeftOutAndTriedAgain(t *testing.T) {
	p := webPod(0, true)
	p.Spec.NodeName = "gone"
	plan, err := planSlices(service("web"), []*corev1.Pod{p, webPod(1, true)}, knownNode, nil)
	if err == nil || err.Error() != "skipping Pod web-000 for Service ns/web: Node gone Not Found" {
		t.Errorf("err is %v", err)
	}
	if len(plan.create) != 1 || len(plan.create[0].Endpoints) != 1 {
		t.Errorf("plan is %v", plan)
	}
}

func TestNamedPortsMakeSlicesOfTheirOwn(t *testing.T) {
	s := service("web")
	s.Spec.Ports[0].TargetPort = intstr.FromString("web")
	pods := webPods(3)
	for i, port := range []int32{8080, 8080, 9090} {
		pods[i].Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: port, Protocol: corev1.ProtocolTCP}}}}
	}
	plan, err := planSlices(s, pods, knownNode, nil)
	if err != nil || len(plan.create) != 2 || len(plan.create[0].Endpoints) != 2 || *plan.create[1].Ports[0].Port != 9090 {
		t.Fatalf("plan is %v, %v", plan, err)
	}
}

func TestHeadlessHostnameDualStackAndHints(t *testing.T) {
	s := service("web")
	s.Spec.ClusterIP, s.Spec.Ports = corev1.ClusterIPNone, nil
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameNode)
	p := webPod(0, true)
	p.Spec.Hostname, p.Spec.Subdomain = "zero", "web"
	plan, err := planSlices(s, []*corev1.Pod{p}, knownNode, nil)
	if err != nil || len(plan.create) != 2 {
		t.Fatalf("plan is %v, %v", plan, err)
	}
	four, six := plan.create[0], plan.create[1]
	if four.Endpoints[0].Addresses[0] != "10.1.0.1" || six.Endpoints[0].Addresses[0] != "fd00::1" || six.AddressType != discoveryv1.AddressTypeIPv6 {
		t.Errorf("slices are %v and %v", four, six)
	}
	if _, ok := four.Labels[corev1.IsHeadlessService]; !ok {
		t.Errorf("labels are %v", four.Labels)
	}
	ep := four.Endpoints[0]
	if *ep.Hostname != "zero" || len(ep.Hints.ForNodes) != 1 || ep.Hints.ForNodes[0].Name != "node" || ep.Hints.ForZones[0].Name != "z1" {
		t.Errorf("endpoint is %v", ep)
	}
	have := made(plan)
	s.Spec.TrafficDistribution = nil
	plan, _ = planSlices(s, []*corev1.Pod{p}, knownNode, have)
	if len(plan.update) != 2 || plan.update[0].Endpoints[0].Hints != nil {
		t.Errorf("hints stay when no longer asked for: %v", plan)
	}
}

func TestTriggerTimeIsThatOfTheOldestNewChange(t *testing.T) {
	s := service("web")
	at := func(i int, sec int64) *corev1.Pod {
		p := webPod(i, true)
		p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(time.Unix(sec, 0))
		return p
	}
	var none *triggers
	first, when := none.next(s, []*corev1.Pod{at(0, 2000)})
	if when.Unix() != 1000 {
		t.Errorf("a service seen first: %v, want its creation", when)
	}
	second, when := first.next(s, []*corev1.Pod{at(0, 2000), at(1, 3000), at(2, 2500)})
	if when.Unix() != 2500 {
		t.Errorf("two new pods: %v, want the earlier", when)
	}
	if _, when = second.next(s, []*corev1.Pod{at(0, 2000)}); !when.IsZero() {
		t.Errorf("a pod less: %v, want none", when)
	}
}

func TestEndpointSubsets(t *testing.T) {
	s := service("web")
	s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "admin", Port: 81, TargetPort: intstr.FromInt32(8081), Protocol: corev1.ProtocolTCP})
	got := endpointSubsets(s, []*corev1.Pod{webPod(1, false), webPod(0, true), webPod(2, true)})
	if len(got) != 1 || len(got[0].Ports) != 2 || len(got[0].Addresses) != 2 || len(got[0].NotReadyAddresses) != 1 {
		t.Fatalf("subsets are %v", got)
	}
	if a := got[0].Addresses[0]; a.IP != "10.1.0.1" || *a.NodeName != "node" || a.TargetRef.Name != "web-000" {
		t.Errorf("address is %v", a)
	}
	s.Spec.Ports[1].TargetPort = intstr.FromString("admin")
	p := webPod(3, true)
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "admin", ContainerPort: 7, Protocol: corev1.ProtocolTCP}}}}
	if got = endpointSubsets(s, []*corev1.Pod{webPod(0, true), p}); len(got) != 2 {
		t.Errorf("one pod has both ports, one only one: %d subsets, want 2", len(got))
	}
	s.Spec.ClusterIP, s.Spec.Ports = corev1.ClusterIPNone, nil
	if got = endpointSubsets(s, webPods(2)); len(got) != 1 || got[0].Ports != nil || len(got[0].Addresses) != 2 {
		t.Errorf("headless without ports: %v", got)
	}
	s = service("web")
	var many []*corev1.Pod
	for i := range 1200 {
		many = append(many, webPod(i, i < 900))
	}
	got = endpointSubsets(s, many)
	if !truncate(got) || len(got[0].Addresses) != 900 || len(got[0].NotReadyAddresses) != 100 {
		t.Errorf("truncated to %d and %d", len(got[0].Addresses), len(got[0].NotReadyAddresses))
	}
}

func TestServiceFollowsItsPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := webPod(7, true)
		other.Name, other.Labels = "other", map[string]string{"app": "other"}
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newEndpointSlice(d), newEndpoints(d)} },
			service("web"), node("node", "z1"), webPod(0, true), other,
			&corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "made-by-hand"}}) //nolint:staticcheck // as served
		defer w.stop()
		addresses := func() (sliced, listed []string) {
			for _, es := range list[*discoveryv1.EndpointSlice](w, "ns") {
				for _, ep := range es.Endpoints {
					if *ep.Conditions.Ready {
						sliced = append(sliced, ep.Addresses...)
					}
				}
			}
			for _, e := range list[*corev1.Endpoints](w, "ns") { //nolint:staticcheck // as served
				for _, s := range e.Subsets {
					for _, a := range s.Addresses {
						listed = append(listed, a.IP)
					}
				}
			}
			slices.Sort(sliced)
			slices.Sort(listed)
			return sliced, listed
		}
		expect := func(what string, want ...string) {
			t.Helper()
			w.until(what, func() bool {
				a, b := addresses()
				return slices.Equal(a, want) && slices.Equal(b, want)
			})
		}
		expect("first", "10.1.0.1")
		w.api.Put(webPod(1, false))
		time.Sleep(time.Second)
		expect("one not ready", "10.1.0.1")
		edit(w, "ns", "web-001", "status", func(p *corev1.Pod) { setReady(p, true, time.Now()) })
		expect("both ready", "10.1.0.1", "10.1.0.2")
		became := podCondition(get[*corev1.Pod](w, "ns", "web-001"), corev1.PodReady).LastTransitionTime
		if got := list[*discoveryv1.EndpointSlice](w, "ns")[0].Annotations[corev1.EndpointsLastChangeTriggerTime]; got != became.UTC().Format(time.RFC3339Nano) {
			t.Errorf("trigger time is %q, the pod was ready at %v", got, became)
		}
		edit(w, "ns", "other", "", func(p *corev1.Pod) { p.Labels["app"] = "web" })
		expect("relabelled", "10.1.0.1", "10.1.0.2", "10.1.0.8")
		edit(w, "ns", "web-000", "", func(p *corev1.Pod) { p.Labels["app"] = "not" })
		expect("labelled away", "10.1.0.2", "10.1.0.8")
		// Somebody else's change of a slice is undone.
		es := list[*discoveryv1.EndpointSlice](w, "ns")[0]
		edit(w, "ns", es.Name, "", func(es *discoveryv1.EndpointSlice) { es.Endpoints = nil })
		expect("emptied by somebody", "10.1.0.2", "10.1.0.8")
		edit(w, "ns", "web", "", func(s *corev1.Service) { s.Spec.Selector["app"] = "none" })
		expect("selects nothing")
		if n := len(list[*discoveryv1.EndpointSlice](w, "ns")); n != 1 {
			t.Errorf("%d slices, want the empty one", n)
		}
		before := len(w.api.Requests())
		time.Sleep(time.Hour)
		if n := len(w.api.Requests()) - before; n != 0 {
			t.Errorf("%d writes while nothing happens", n)
		}
		if err := client.For[*corev1.Service](w.c).In("ns").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("the service's Endpoints go", func() bool { return len(list[*corev1.Endpoints](w, "ns")) == 1 }) //nolint:staticcheck // as served
		if e := list[*corev1.Endpoints](w, "ns")[0]; e.Name != "made-by-hand" {                                  //nolint:staticcheck // as served
			t.Errorf("%s stays", e.Name)
		}
	})
}
