package controller

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

func subset(ports []corev1.EndpointPort, ready, notReady []string) corev1.EndpointSubset { //nolint:staticcheck // served as upstream serves it
	s := corev1.EndpointSubset{Ports: ports} //nolint:staticcheck // as above
	for _, ip := range ready {
		s.Addresses = append(s.Addresses, corev1.EndpointAddress{IP: ip}) //nolint:staticcheck // as above
	}
	for _, ip := range notReady {
		s.NotReadyAddresses = append(s.NotReadyAddresses, corev1.EndpointAddress{IP: ip}) //nolint:staticcheck // as above
	}
	return s
}

func port(name string, n int32) corev1.EndpointPort { //nolint:staticcheck // as above
	return corev1.EndpointPort{Name: name, Port: n, Protocol: corev1.ProtocolTCP} //nolint:staticcheck // as above
}

// sliceText writes a slice as: family ports: address(!ready)...
func sliceText(es *discoveryv1.EndpointSlice) string {
	var ports, eps []string
	for _, p := range es.Ports {
		ports = append(ports, fmt.Sprintf("%s=%d", *p.Name, *p.Port))
	}
	for _, e := range es.Endpoints {
		s := e.Addresses[0]
		if !*e.Conditions.Ready {
			s = "!" + s
		}
		eps = append(eps, s)
	}
	return fmt.Sprintf("%s %s: %s", es.AddressType, strings.Join(ports, ","), strings.Join(eps, " "))
}

func TestMirrorPlan(t *testing.T) {
	many := func(n int) []string {
		var out []string
		for i := range n {
			out = append(out, fmt.Sprintf("10.%d.%d.1", i/250, i%250))
		}
		return out
	}
	http := []corev1.EndpointPort{port("http", 80)}                     //nolint:staticcheck // as above
	both := []corev1.EndpointPort{port("http", 80), port("https", 443)} //nolint:staticcheck // as above
	for _, c := range []struct {
		name             string
		subsets          []corev1.EndpointSubset //nolint:staticcheck // as above
		want             []string
		invalid, skipped int
	}{
		{name: "one", subsets: []corev1.EndpointSubset{subset(http, []string{"10.0.0.1"}, []string{"10.0.0.2"})}, want: []string{"IPv4 http=80: 10.0.0.1 !10.0.0.2"}},                     //nolint:staticcheck // as above
		{name: "families apart", subsets: []corev1.EndpointSubset{subset(http, []string{"10.0.0.1", "fd00::1"}, nil)}, want: []string{"IPv4 http=80: 10.0.0.1", "IPv6 http=80: fd00::1"}}, //nolint:staticcheck // as above
		{name: "no ports", subsets: []corev1.EndpointSubset{subset(nil, []string{"10.0.0.1"}, nil)}, want: []string{"IPv4 : 10.0.0.1"}},                                                   //nolint:staticcheck // as above
		{name: "ports with the same addresses", want: []string{"IPv4 http=80,https=443: 10.0.0.1"},
			subsets: []corev1.EndpointSubset{subset(http, []string{"10.0.0.1"}, nil), subset([]corev1.EndpointPort{port("https", 443)}, []string{"10.0.0.1"}, nil)}}, //nolint:staticcheck // as above
		{name: "ports with other addresses", want: []string{"IPv4 http=80: 10.0.0.1 10.0.0.2", "IPv4 https=443: 10.0.0.1"},
			subsets: []corev1.EndpointSubset{subset(both, []string{"10.0.0.1"}, nil), subset(http, []string{"10.0.0.2"}, nil)}}, //nolint:staticcheck // as above
		{name: "not ready wins", want: []string{"IPv4 http=80: !10.0.0.1"},
			subsets: []corev1.EndpointSubset{subset(http, []string{"10.0.0.1"}, nil), subset(http, nil, []string{"10.0.0.1"})}}, //nolint:staticcheck // as above
		{name: "odd spellings", subsets: []corev1.EndpointSubset{subset(http, []string{"010.000.0.01", "::ffff:10.0.0.2"}, nil)}, want: []string{"IPv4 http=80: 10.0.0.1 10.0.0.2"}}, //nolint:staticcheck // as above
		{name: "no address", subsets: []corev1.EndpointSubset{subset(http, []string{"10.0.0.1", "mars"}, nil)}, want: []string{"IPv4 http=80: 10.0.0.1"}, invalid: 1, skipped: 1},    //nolint:staticcheck // as above
		{name: "too many", subsets: []corev1.EndpointSubset{subset(http, many(998), []string{"10.9.0.1", "10.9.0.2", "10.9.0.3"})}, //nolint:staticcheck // as above
			want: []string{"IPv4 http=80: " + strings.Join(slices.Sorted(slices.Values(many(998))), " ") + " !10.9.0.1 !10.9.0.2"}, skipped: 1},
		{name: "none"},
	} {
		e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "ext", UID: "u"}, Subsets: c.subsets} //nolint:staticcheck // as above
		p := planMirror(e, nil)
		var got []string
		for _, es := range p.create {
			got = append(got, sliceText(es))
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) || p.invalid != c.invalid || p.skipped != c.skipped || len(p.update)+len(p.remove) > 0 {
			t.Errorf("%s: %d invalid, %d skipped, slices\n%s\nwant\n%s", c.name, p.invalid, p.skipped, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
		if again := planMirror(e, made(p.slicePlan)); len(again.create)+len(again.update)+len(again.remove) > 0 {
			t.Errorf("%s: writes where nothing changed: %+v", c.name, again)
		}
	}
}

func TestMirrorSliceSaysWhatTheEndpointsSay(t *testing.T) {
	e := &corev1.Endpoints{ //nolint:staticcheck // as above
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "ext", UID: "u", Labels: map[string]string{"a": "b"},
			Annotations: map[string]string{"note": "x", corev1.EndpointsLastChangeTriggerTime: "t", corev1.LastAppliedConfigAnnotation: "{}"},
		},
		Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck // as above
			Ports: []corev1.EndpointPort{{Port: 80, Protocol: corev1.ProtocolTCP, AppProtocol: ptr.To("h2c")}}, //nolint:staticcheck // as above
			Addresses: []corev1.EndpointAddress{{ //nolint:staticcheck // as above
				IP: "10.0.0.1", Hostname: "one", NodeName: ptr.To("n"), TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: "p", UID: "p"},
			}},
		}},
	}
	p := planMirror(e, nil)
	if len(p.create) != 1 {
		t.Fatalf("%d slices", len(p.create))
	}
	es := p.create[0]
	if es.GenerateName != "ext-" || !maps.Equal(es.Annotations, map[string]string{"note": "x"}) ||
		!maps.Equal(es.Labels, map[string]string{"a": "b", "kubernetes.io/service-name": "ext", "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io"}) {
		t.Errorf("metadata %+v", es.ObjectMeta)
	}
	if o := es.OwnerReferences[0]; o.Kind != "Endpoints" || o.APIVersion != "v1" || o.UID != "u" || !*o.Controller {
		t.Errorf("owner %+v", o)
	}
	ep := es.Endpoints[0]
	if *ep.Hostname != "one" || *ep.NodeName != "n" || ep.TargetRef.Name != "p" || !*ep.Conditions.Ready || ep.Conditions.Serving != nil || *es.Ports[0].AppProtocol != "h2c" || *es.Ports[0].Name != "" {
		t.Errorf("endpoint %+v, ports %+v", ep, es.Ports)
	}
	for what, change := range map[string]func(*corev1.Endpoints){ //nolint:staticcheck // as above
		"label":      func(e *corev1.Endpoints) { e.Labels = map[string]string{"a": "c"} },                                  //nolint:staticcheck // as above
		"annotation": func(e *corev1.Endpoints) { e.Annotations = nil },                                                     //nolint:staticcheck // as above
		"uid":        func(e *corev1.Endpoints) { e.UID = "other" },                                                         //nolint:staticcheck // as above
		"ready":      func(e *corev1.Endpoints) { s := &e.Subsets[0]; s.NotReadyAddresses, s.Addresses = s.Addresses, nil }, //nolint:staticcheck // as above
		"port":       func(e *corev1.Endpoints) { e.Subsets[0].Ports[0].Port = 81 },                                         //nolint:staticcheck // as above
	} {
		have := made(p.slicePlan)
		have[0].Name, have[0].ResourceVersion = "ext-1", "7"
		next := e.DeepCopy()
		change(next)
		n := planMirror(next, have)
		if len(n.update) != 1 || len(n.create)+len(n.remove) > 0 || n.update[0].Name != "ext-1" || n.update[0].ResourceVersion != "7" || n.update[0].GenerateName != "" {
			t.Errorf("another %s: %+v", what, n.slicePlan)
		}
	}
}

func TestMirrorFollowsServiceAndEndpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := service("ext")
		svc.Spec.Selector = nil
		skip := service("skip")
		skip.Spec.Selector = nil
		eps := func(name string, lbls, notes map[string]string) *corev1.Endpoints { //nolint:staticcheck // as above
			return &corev1.Endpoints{ //nolint:staticcheck // as above
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: lbls, Annotations: notes},
				Subsets:    []corev1.EndpointSubset{subset([]corev1.EndpointPort{port("http", 80)}, []string{"10.0.0.1", "mars"}, nil)}, //nolint:staticcheck // as above
			}
		}
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newEndpointSliceMirroring(d)} },
			svc, skip, service("selects"),
			eps("ext", nil, nil), eps("alone", nil, nil), eps("selects", nil, nil),
			eps("skip", map[string]string{"endpointslice.kubernetes.io/skip-mirror": "true"}, nil))
		defer w.stop()
		mirrors := func() string {
			var out []string
			for _, es := range list[*discoveryv1.EndpointSlice](w, "ns") {
				out = append(out, es.Labels["kubernetes.io/service-name"]+" "+sliceText(es))
			}
			slices.Sort(out)
			return strings.Join(out, "; ")
		}
		is := func(want string) {
			t.Helper()
			w.until(want, func() bool { return mirrors() == want })
		}
		is("ext IPv4 http=80: 10.0.0.1")
		w.until("event", func() bool {
			return slices.ContainsFunc(list[*corev1.Event](w, "ns"), func(e *corev1.Event) bool {
				return e.Reason == "InvalidIPAddress" && e.Type == "Warning" && e.Message == "Skipped 1 invalid IP addresses when mirroring to EndpointSlices" &&
					e.InvolvedObject.Kind == "Endpoints" && e.Source.Component == "endpoint-slice-mirroring-controller"
			})
		})
		edit(w, "ns", "ext", "", func(e *corev1.Endpoints) {
			e.Subsets[0].Addresses = e.Subsets[0].Addresses[:1]
			e.Subsets[0].Addresses[0].IP = "10.0.0.9"
		}) //nolint:staticcheck // as above
		is("ext IPv4 http=80: 10.0.0.9")
		// Whoever meddles with a mirror is put right.
		for _, es := range list[*discoveryv1.EndpointSlice](w, "ns") {
			edit(w, "ns", es.Name, "", func(es *discoveryv1.EndpointSlice) { es.Endpoints = nil })
		}
		is("ext IPv4 http=80: 10.0.0.9")
		edit(w, "ns", "skip", "", func(e *corev1.Endpoints) { e.Labels = nil }) //nolint:staticcheck // as above
		is("ext IPv4 http=80: 10.0.0.9; skip IPv4 http=80: 10.0.0.1")
		edit(w, "ns", "skip", "", func(e *corev1.Endpoints) { //nolint:staticcheck // as above
			e.Annotations = map[string]string{"control-plane.alpha.kubernetes.io/leader": "{}"}
		})
		is("ext IPv4 http=80: 10.0.0.9")
		edit(w, "ns", "ext", "", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"a": "b"} })
		is("")
		edit(w, "ns", "ext", "", func(s *corev1.Service) { s.Spec.Selector = nil })
		is("ext IPv4 http=80: 10.0.0.9")
		if err := client.For[*corev1.Endpoints](w.c).In("ns").Delete(t.Context(), "ext", metav1.DeleteOptions{}); err != nil { //nolint:staticcheck // as above
			t.Fatal(err)
		}
		is("")
	})
}
