package service

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestCompile(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")
	ext := netip.MustParseAddr("203.0.113.1")
	ready := func(a string, local bool) Endpoint {
		return Endpoint{Addr: ap(a), Local: local, Ready: true, Serving: true}
	}
	ending := func(a string, local bool) Endpoint {
		return Endpoint{Addr: ap(a), Local: local, Serving: true, Terminating: true}
	}
	starting := Endpoint{Addr: ap("10.0.0.9:80")}
	for _, c := range []struct {
		name string
		svc  Service
		want []string
	}{
		{"no endpoints", Service{ClusterIPs: []netip.Addr{v4}, Ports: []Port{{Port: 80}}},
			[]string{"10.96.0.1 6 80 refuse"}},
		{"none ready", Service{ClusterIPs: []netip.Addr{v4}, Ports: []Port{{Port: 80, Endpoints: []Endpoint{starting}}}},
			[]string{"10.96.0.1 6 80 refuse"}},
		{"ready before terminating", Service{ClusterIPs: []netip.Addr{v4}, Ports: []Port{{Port: 80, Protocol: "UDP",
			Endpoints: []Endpoint{ending("10.0.0.1:8", true), ready("10.0.0.2:8", false), starting}}}},
			[]string{"10.96.0.1 17 80 to-1-outside 10.0.0.2:8"}},
		{"terminating where none is ready", Service{ClusterIPs: []netip.Addr{v4}, Ports: []Port{{Port: 80, Protocol: "SCTP",
			Endpoints: []Endpoint{ending("10.0.0.1:8", true), starting}}}},
			[]string{"10.96.0.1 132 80 to-1-outside 10.0.0.1:8"}},
		{"an endpoint twice", Service{ClusterIPs: []netip.Addr{v4}, Ports: []Port{{Port: 80,
			Endpoints: []Endpoint{ready("10.0.0.1:8", true), ready("10.0.0.1:8", true)}}}},
			[]string{"10.96.0.1 6 80 to-1-outside 10.0.0.1:8"}},
		{"two families", Service{ClusterIPs: []netip.Addr{v4, v6}, Ports: []Port{{Port: 80, NodePort: 30000,
			Endpoints: []Endpoint{ready("10.0.0.1:8", true), ready("[fd00::8]:8", true)}}}},
			[]string{"10.96.0.1 6 80 to-1-outside 10.0.0.1:8", "0.0.0.0 6 30000 node-1-masq 10.0.0.1:8",
				"fd00::1 6 80 to-1-outside [fd00::8]:8", ":: 6 30000 node-1-masq [fd00::8]:8"}},
		{"node port of the service's family alone", Service{ClusterIPs: []netip.Addr{v4}, Ports: []Port{{Port: 80, NodePort: 30000}}},
			[]string{"10.96.0.1 6 80 refuse", "0.0.0.0 6 30000 refuse"}},
		{"external Local", Service{ClusterIPs: []netip.Addr{v4}, ExternalIPs: []netip.Addr{ext}, ExternalLocal: true,
			Ports: []Port{{Port: 80, Endpoints: []Endpoint{ready("10.0.0.1:8", true), ready("10.0.0.2:8", false)}}}},
			[]string{"10.96.0.1 6 80 to-2-outside 10.0.0.1:8 10.0.0.2:8",
				"203.0.113.1 6 80 to-2-local-1 10.0.0.1:8 10.0.0.2:8 | 10.0.0.1:8"}},
		{"internal Local, elsewhere alone", Service{ClusterIPs: []netip.Addr{v4}, InternalLocal: true,
			Ports: []Port{{Port: 80, Endpoints: []Endpoint{ready("10.0.0.2:8", false)}}}},
			[]string{"10.96.0.1 6 80 discard"}},
		{"load balancer's ranges", Service{ClusterIPs: []netip.Addr{v4}, LoadBalancerIPs: []netip.Addr{ext},
			LoadBalancerRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/8"), netip.MustParsePrefix("fd00::/8")},
			Ports:              []Port{{Port: 80, Endpoints: []Endpoint{ready("10.0.0.1:8", true)}}}},
			[]string{"10.96.0.1 6 80 to-1-outside 10.0.0.1:8",
				"203.0.113.1 6 80 " + chain{cluster: 1, masq: masqAlways, from: "10.0.0.0/8"}.name() + " 10.0.0.1:8"}},
		{"load balancer's ranges of the other family", Service{ClusterIPs: []netip.Addr{v4}, LoadBalancerIPs: []netip.Addr{ext},
			LoadBalancerRanges: []netip.Prefix{netip.MustParsePrefix("fd00::/8")}, Ports: []Port{{Port: 80, Endpoints: []Endpoint{ready("10.0.0.1:8", true)}}}},
			[]string{"10.96.0.1 6 80 to-1-outside 10.0.0.1:8", "203.0.113.1 6 80 to-1-masq 10.0.0.1:8"}},
		{"affinity", Service{ClusterIPs: []netip.Addr{v4}, Affinity: 3 * time.Hour,
			Ports: []Port{{Port: 80, Endpoints: []Endpoint{ready("10.0.0.2:8", false)}}}},
			[]string{"10.96.0.1 6 80 to-1-outside-10800s 10.0.0.2:8"}},
		{"node local", Service{ClusterIPs: []netip.Addr{v4}, Affinity: time.Hour,
			Ports: []Port{{Port: 53, NodeLocal: []netip.AddrPort{ap("169.254.1.1:5353")},
				Endpoints: []Endpoint{ready("10.0.0.2:8", false)}}}},
			[]string{"10.96.0.1 6 53 to-1 169.254.1.1:5353"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.svc.Key = "ns/name"
			frag, err := compile(c.svc, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range frag.fronts {
				s := fmt.Sprintf("%s %d %d %s", f.addr, f.proto, f.port, f.chain.name())
				for _, e := range f.cluster {
					s += " " + e.String()
				}
				for i, e := range f.local {
					if i == 0 {
						s += " |"
					}
					s += " " + e.String()
				}
				got = append(got, s)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestCompileReportsWhatIsWrong(t *testing.T) {
	frag, err := compile(Service{Key: "ns/name", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []Port{
		{Name: "a", Protocol: "ICMP", Port: 1}, {Name: "b"}, {Name: "c", Port: 80}}}, nil)
	if err == nil || !strings.Contains(err.Error(), `service ns/name, port "a": protocol "ICMP": must be TCP, UDP or SCTP`) ||
		!strings.Contains(err.Error(), `port "b": port 0`) {
		t.Errorf("got %v", err)
	}
	if len(frag.fronts) != 1 {
		t.Errorf("the port that is right is not in %v", frag.fronts)
	}
}

func TestPlace(t *testing.T) {
	list := func(s string) (out []netip.AddrPort) {
		for _, c := range s {
			out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(c)}), 1))
		}
		return out
	}
	for _, c := range []struct{ prev, next, want string }{
		{"", "", ""}, {"", "ab", "ab"}, {"abc", "abc", "abc"}, {"abc", "cba", "abc"},
		{"abc", "bc", "cb"}, {"abc", "ab", "ab"}, {"abc", "abd", "abd"}, {"abc", "acd", "adc"},
		{"abc", "", ""}, {"abc", "xyz", "xyz"}, {"ab", "xabc", "abxc"},
	} {
		if got := place(list(c.prev), list(c.next)); !reflect.DeepEqual(got, list(c.want)) {
			t.Errorf("place(%q, %q) = %v, want %q", c.prev, c.next, got, c.want)
		}
	}
}

// TestChangesAddUp makes random changes, many of which claim the same node
// ports, and compares the sum of the differences with the whole.
func TestChangesAddUp(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newState()
		sum := newDelta()
		ips, pairs := map[netip.Addr]bool{}, map[netip.Addr]bool{}
		for range 60 {
			next := map[string]*fragment{}
			for range 1 + r.IntN(4) {
				key := fmt.Sprintf("ns/%d", r.IntN(8))
				if r.IntN(4) == 0 {
					next[key] = nil
					continue
				}
				frag, err := compile(randomService(r, key), s.fragments[key])
				if err != nil {
					t.Fatal(err)
				}
				next[key] = frag
			}
			d := s.change(next, false)
			merge(t, sum.addFronts, d.addFronts, d.delFronts)
			merge(t, sum.addSlots, d.addSlots, d.delSlots)
			merge(t, sum.addPins, d.addPins, d.delPins)
			mergeAddrs(t, ips, d.addIPs, d.delIPs)
			mergeAddrs(t, pairs, d.addPairs, d.delPairs)
			all := newDelta()
			_, whole := s.all()
			maps.Insert(all.addFronts, whole.fronts)
			maps.Insert(all.addSlots, whole.slots)
			maps.Insert(all.addPins, whole.pins)
			all.addIPs, all.addPairs = slices.Collect(whole.ips), slices.Collect(whole.pairs)
			if !reflect.DeepEqual(sum.addFronts, all.addFronts) || !reflect.DeepEqual(sum.addSlots, all.addSlots) ||
				!reflect.DeepEqual(sum.addPins, all.addPins) || len(ips) != len(all.addIPs) || len(pairs) != len(all.addPairs) {
				t.Fatalf("seed %d: the changes add up to\n%v\nwant\n%v", seed, sum, all)
			}
			// Whoever claims a frontend that has no owner would be unreachable.
			for key, frag := range s.fragments {
				for _, f := range frag.fronts {
					if s.owner[f.frontend] == "" {
						t.Fatalf("seed %d: nobody has %v, which %s claims", seed, f.frontend, key)
					}
				}
			}
		}
	}
}

func randomService(r *rand.Rand, key string) Service {
	s := Service{Key: key, ExternalLocal: r.IntN(3) == 0}
	var n byte
	fmt.Sscanf(key, "ns/%d", &n)
	s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, n})}
	if r.IntN(3) == 0 {
		s.Affinity = time.Minute
	}
	for i := range 1 + r.IntN(2) {
		p := Port{Port: uint16(80 + i), NodePort: uint16(30000 + r.IntN(3))}
		for range r.IntN(5) {
			p.Endpoints = append(p.Endpoints, Endpoint{Ready: true, Local: r.IntN(2) == 0,
				Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(6))}), 80)})
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

func merge[K, V comparable](t *testing.T, sum, add, del map[K]V) {
	t.Helper()
	for k, v := range del {
		if have, ok := sum[k]; !ok || have != v {
			t.Fatalf("deletes %v, which has %v (%v)", k, have, ok)
		}
		delete(sum, k)
	}
	for k, v := range add {
		if have, ok := sum[k]; ok {
			t.Fatalf("adds %v, which has %v already", k, have)
		}
		sum[k] = v
	}
}

func mergeAddrs(t *testing.T, sum map[netip.Addr]bool, add, del []netip.Addr) {
	t.Helper()
	a, d := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for _, ip := range add {
		a[ip] = true
	}
	for _, ip := range del {
		d[ip] = true
	}
	merge(t, sum, a, d)
}

// many returns count services of three endpoints.
func many(count int) []Service {
	out := make([]Service, count)
	for i := range out {
		out[i] = Service{Key: fmt.Sprintf("ns/%d", i), ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports: []Port{{Port: 80, Protocol: "TCP"}}}
		for j := range 3 {
			out[i].Ports[0].Endpoints = append(out[i].Ports[0].Endpoints, Endpoint{Ready: true,
				Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244 + byte(j), byte(i >> 8), byte(i)}), 80)})
		}
	}
	return out
}

func BenchmarkSync10000(b *testing.B) {
	tn := newNode(b, "svc-bench-sync")
	svcs := many(10000)
	for b.Loop() {
		tn.restart()
		if err := tn.proxy.Sync(context.Background(), svcs); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApplyOneOf10000(b *testing.B) {
	tn := newNode(b, "svc-bench-apply")
	svcs := many(10000)
	tn.sync(svcs...)
	for i := 0; b.Loop(); i++ {
		s := svcs[5000]
		p := s.Ports[0]
		p.Endpoints = p.Endpoints[:2+i%2]
		s.Ports = []Port{p}
		if err := tn.proxy.Apply(context.Background(), []Service{s}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
