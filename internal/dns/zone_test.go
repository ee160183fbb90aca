package dns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func ips(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func testIndex() *Index {
	x := NewIndex()
	for _, n := range []string{"default", "kube-system", "empty"} {
		x.SetNamespace(n, true)
	}
	web := []Port{{"http", "TCP", 80}, {"", "UDP", 81}}
	x.Set(&Service{Namespace: "kube-system", Name: "kube-dns", ClusterIPs: ips("10.96.0.10"), Ports: []Port{{"dns", "UDP", 53}}})
	x.Set(&Service{Namespace: "default", Name: "web", ClusterIPs: ips("10.96.0.20", "fd00::20"), Ports: web,
		Endpoints: []Endpoint{{Addr: netip.MustParseAddr("10.244.0.9"), Ports: []Port{{"http", "TCP", 8080}}}}})
	x.Set(&Service{Namespace: "default", Name: "v4", ClusterIPs: ips("10.96.0.21"), Ports: web[:1]})
	x.Set(&Service{Namespace: "default", Name: "db", Endpoints: []Endpoint{
		{Addr: netip.MustParseAddr("10.244.0.5"), Hostname: "db-0", Ports: []Port{{"sql", "TCP", 5432}}},
		{Addr: netip.MustParseAddr("10.244.0.6"), Ports: []Port{{"sql", "TCP", 5432}}},
		{Addr: netip.MustParseAddr("fd00::6"), Ports: []Port{{"sql", "TCP", 5432}}},
	}})
	x.Set(&Service{Namespace: "default", Name: "noports", Endpoints: []Endpoint{{Addr: netip.MustParseAddr("10.244.0.7")}}})
	x.Set(&Service{Namespace: "default", Name: "none"})
	x.Set(&Service{Namespace: "default", Name: "ext", ExternalName: "www.example.com"})
	x.Set(&Service{Namespace: "default", Name: "ext-in", ExternalName: "web.default.svc.cluster.local"})
	x.Set(&Service{Namespace: "default", Name: "loop", ExternalName: "loop.default.svc.cluster.local"})
	x.MarkSynced()
	return x
}

// resolvConf writes a file that names the resolvers.
func resolvConf(t testing.TB, servers ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newServer(t testing.TB, x Records) *Server {
	t.Helper()
	s, err := New(Deps{Records: x, ResolvConf: resolvConf(t)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// show returns a message's records without spaces and TTLs, sorted by section.
func show(m *dns.Msg) string {
	line := func(rrs []dns.RR) string {
		var out []string
		for _, rr := range rrs {
			f := strings.Fields(rr.String())
			if rr.Header().Rrtype == dns.TypeSOA {
				f = f[:6]
			}
			out = append(out, strings.Join(slices.Delete(f, 1, 3), " "))
		}
		slices.Sort(out)
		return strings.Join(out, "; ")
	}
	s := dns.RcodeToString[m.Rcode]
	if len(m.Answer) > 0 {
		s += ": " + line(m.Answer)
	}
	if len(m.Extra) > 0 {
		s += " + " + line(m.Extra)
	}
	return s
}

func TestZone(t *testing.T) {
	s := newServer(t, testIndex())
	const svc = ".svc.cluster.local."
	for _, c := range []struct {
		name string
		typ  uint16
		want string
	}{
		{"web.default" + svc, dns.TypeA, "NOERROR: web.default.svc.cluster.local. A 10.96.0.20"},
		{"web.default" + svc, dns.TypeAAAA, "NOERROR: web.default.svc.cluster.local. AAAA fd00::20"},
		{"WEB.Default.SVC.cluster.LOCAL.", dns.TypeA, "NOERROR: WEB.Default.SVC.cluster.LOCAL. A 10.96.0.20"},
		{"v4.default" + svc, dns.TypeAAAA, "NOERROR"},
		{"web.default" + svc, dns.TypeMX, "NOERROR"},
		{"nothing.default" + svc, dns.TypeA, "NXDOMAIN"},
		{"web.nowhere" + svc, dns.TypeA, "NXDOMAIN"},
		{"_http._tcp.web.default" + svc, dns.TypeSRV, "NOERROR: _http._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local." +
			" + web.default.svc.cluster.local. A 10.96.0.20; web.default.svc.cluster.local. AAAA fd00::20"},
		{"_http._tcp.web.default" + svc, dns.TypeA, "NOERROR: _http._tcp.web.default.svc.cluster.local. A 10.96.0.20"},
		{"_http._udp.web.default" + svc, dns.TypeSRV, "NXDOMAIN"},
		{"_https._tcp.web.default" + svc, dns.TypeSRV, "NXDOMAIN"},
		{"http.tcp.web.default" + svc, dns.TypeSRV, "NXDOMAIN"},
		{"v4.default" + svc, dns.TypeSRV, "NOERROR: v4.default.svc.cluster.local. SRV 0 100 80 v4.default.svc.cluster.local. + v4.default.svc.cluster.local. A 10.96.0.21"},
		// Headless.
		{"db.default" + svc, dns.TypeA, "NOERROR: db.default.svc.cluster.local. A 10.244.0.5; db.default.svc.cluster.local. A 10.244.0.6"},
		{"db.default" + svc, dns.TypeAAAA, "NOERROR: db.default.svc.cluster.local. AAAA fd00::6"},
		{"db-0.db.default" + svc, dns.TypeA, "NOERROR: db-0.db.default.svc.cluster.local. A 10.244.0.5"},
		{"db-0.db.default" + svc, dns.TypeAAAA, "NOERROR"},
		{"10-244-0-6.db.default" + svc, dns.TypeA, "NOERROR: 10-244-0-6.db.default.svc.cluster.local. A 10.244.0.6"},
		{"fd00--6.db.default" + svc, dns.TypeAAAA, "NOERROR: fd00--6.db.default.svc.cluster.local. AAAA fd00::6"},
		{"db-1.db.default" + svc, dns.TypeA, "NXDOMAIN"},
		{"_sql._tcp.db.default" + svc, dns.TypeSRV, "NOERROR: _sql._tcp.db.default.svc.cluster.local. SRV 0 33 5432 10-244-0-6.db.default.svc.cluster.local.; " +
			"_sql._tcp.db.default.svc.cluster.local. SRV 0 33 5432 db-0.db.default.svc.cluster.local.; " +
			"_sql._tcp.db.default.svc.cluster.local. SRV 0 33 5432 fd00--6.db.default.svc.cluster.local." +
			" + 10-244-0-6.db.default.svc.cluster.local. A 10.244.0.6; db-0.db.default.svc.cluster.local. A 10.244.0.5; fd00--6.db.default.svc.cluster.local. AAAA fd00::6"},
		{"noports.default" + svc, dns.TypeA, "NOERROR: noports.default.svc.cluster.local. A 10.244.0.7"},
		{"none.default" + svc, dns.TypeA, "NXDOMAIN"},
		{"10-244-0-9.web.default" + svc, dns.TypeA, "NOERROR: 10-244-0-9.web.default.svc.cluster.local. A 10.244.0.9"},
		// External names.
		{"ext.default" + svc, dns.TypeCNAME, "NOERROR: ext.default.svc.cluster.local. CNAME www.example.com."},
		{"ext.default" + svc, dns.TypeMX, "NOERROR"},
		{"a.ext.default" + svc, dns.TypeA, "NXDOMAIN"},
		{"ext-in.default" + svc, dns.TypeA, "NOERROR: ext-in.default.svc.cluster.local. CNAME web.default.svc.cluster.local.; web.default.svc.cluster.local. A 10.96.0.20"},
		// Names in between, which exist without records.
		{"default" + svc, dns.TypeA, "NOERROR"},
		{"empty" + svc, dns.TypeA, "NOERROR"},
		{"nowhere" + svc, dns.TypeA, "NXDOMAIN"},
		{"svc.cluster.local.", dns.TypeA, "NOERROR"},
		{"pod.cluster.local.", dns.TypeA, "NOERROR"},
		{"other.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"a.b.c.d.web.default" + svc, dns.TypeA, "NXDOMAIN"},
		// Pods.
		{"10-244-7-8.default.pod.cluster.local.", dns.TypeA, "NOERROR: 10-244-7-8.default.pod.cluster.local. A 10.244.7.8"},
		{"fd00--8.default.pod.cluster.local.", dns.TypeAAAA, "NOERROR: fd00--8.default.pod.cluster.local. AAAA fd00::8"},
		{"10-244-7-8.default.pod.cluster.local.", dns.TypeAAAA, "NOERROR"},
		{"10-244-7-8.nowhere.pod.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"name.default.pod.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"default.pod.cluster.local.", dns.TypeA, "NOERROR"},
		// The domain itself.
		{"dns-version.cluster.local.", dns.TypeTXT, `NOERROR: dns-version.cluster.local. TXT "1.1.0"`},
		{"dns-version.cluster.local.", dns.TypeA, "NOERROR"},
		{"cluster.local.", dns.TypeSOA, "NOERROR: cluster.local. SOA ns.dns.cluster.local. hostmaster.cluster.local."},
		{"cluster.local.", dns.TypeNS, "NOERROR: cluster.local. NS ns.dns.cluster.local. + ns.dns.cluster.local. A 10.96.0.10"},
		{"ns.dns.cluster.local.", dns.TypeA, "NOERROR: ns.dns.cluster.local. A 10.96.0.10"},
		{"cluster.local.", dns.TypeA, "NOERROR"},
		{"cluster.local.", dns.TypeAXFR, "REFUSED"},
		// Addresses.
		{"20.0.96.10.in-addr.arpa.", dns.TypePTR, "NOERROR: 20.0.96.10.in-addr.arpa. PTR web.default.svc.cluster.local."},
		{"5.0.244.10.in-addr.arpa.", dns.TypePTR, "NOERROR: 5.0.244.10.in-addr.arpa. PTR db-0.db.default.svc.cluster.local."},
		{"9.0.244.10.in-addr.arpa.", dns.TypePTR, "NOERROR: 9.0.244.10.in-addr.arpa. PTR 10-244-0-9.web.default.svc.cluster.local."},
		{"0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR,
			"NOERROR: 0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. PTR web.default.svc.cluster.local."},
		// Nobody to ask, and aliases that turn round.
		{"8.8.8.8.in-addr.arpa.", dns.TypePTR, "SERVFAIL"},
		{"www.example.com.", dns.TypeA, "SERVFAIL"},
		{"loop.default" + svc, dns.TypeA, "SERVFAIL"},
	} {
		q := new(dns.Msg)
		q.SetQuestion(c.name, c.typ)
		m := s.Answer(t.Context(), q)
		got := show(m)
		if strings.HasPrefix(c.name, "loop.") {
			got = dns.RcodeToString[m.Rcode]
		}
		if got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.name, dns.TypeToString[c.typ], got, c.want)
		}
		for _, rr := range append(m.Answer, m.Extra...) {
			if rr.Header().Ttl != TTL {
				t.Errorf("%s: TTL %d", c.name, rr.Header().Ttl)
			}
		}
		if inZone := strings.HasSuffix(strings.ToLower(c.name), "cluster.local."); inZone && c.typ != dns.TypeAXFR {
			if !m.Authoritative {
				t.Errorf("%s: not authoritative", c.name)
			}
			if soa := len(m.Ns) == 1 && m.Ns[0].Header().Rrtype == dns.TypeSOA; soa != (len(m.Answer) == 0) {
				t.Errorf("%s: %d answers, authority %v", c.name, len(m.Answer), m.Ns)
			}
		}
	}
}

func TestIndexChanges(t *testing.T) {
	x := testIndex()
	s := newServer(t, x)
	ask := func(name string, typ uint16) string {
		q := new(dns.Msg)
		q.SetQuestion(name, typ)
		return show(s.Answer(t.Context(), q))
	}
	x.Set(&Service{Namespace: "default", Name: "web", ClusterIPs: ips("10.96.0.99")})
	if got := ask("web.default.svc.cluster.local.", dns.TypeA); !strings.HasSuffix(got, "10.96.0.99") {
		t.Error(got)
	}
	if got := ask("20.0.96.10.in-addr.arpa.", dns.TypePTR); got != "SERVFAIL" {
		t.Errorf("the former address: %s", got)
	}
	if got := ask("9.0.244.10.in-addr.arpa.", dns.TypePTR); got != "SERVFAIL" {
		t.Errorf("the former endpoint: %s", got)
	}
	x.Delete("default", "web")
	if got := ask("web.default.svc.cluster.local.", dns.TypeA); got != "NXDOMAIN" {
		t.Error(got)
	}
	x.SetNamespace("empty", false)
	if got := ask("empty.svc.cluster.local.", dns.TypeA); got != "NXDOMAIN" {
		t.Error(got)
	}
}

func TestBadQueries(t *testing.T) {
	s := newServer(t, testIndex())
	none := new(dns.Msg)
	two := new(dns.Msg)
	two.SetQuestion("a.", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	chaos := new(dns.Msg)
	chaos.SetQuestion("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	edns1 := new(dns.Msg)
	edns1.SetQuestion("cluster.local.", dns.TypeA)
	edns1.SetEdns0(4096, false)
	edns1.IsEdns0().SetVersion(1)
	for _, c := range []struct {
		what string
		q    *dns.Msg
		want int
	}{
		{"no question", none, dns.RcodeFormatError}, {"two questions", two, dns.RcodeFormatError},
		{"another class", chaos, dns.RcodeRefused}, {"EDNS version 1", edns1, dns.RcodeBadVers},
	} {
		if got := s.Answer(t.Context(), c.q).Rcode; got != c.want {
			t.Errorf("%s: %s, want %s", c.what, dns.RcodeToString[got], dns.RcodeToString[c.want])
		}
	}
}

func FuzzZone(f *testing.F) {
	for _, s := range []string{"web.default.svc.cluster.local.", "cluster.local.", ".", "a..b.", "\\000.svc.cluster.local.", "0.ip6.arpa.",
		strings.Repeat("z.", 32) + "ip6.arpa."} {
		f.Add(s, uint16(dns.TypeA))
	}
	s := newServer(f, testIndex())
	f.Fuzz(func(t *testing.T, name string, typ uint16) {
		q := new(dns.Msg)
		q.SetQuestion(name, typ)
		m := s.Answer(t.Context(), q)
		if m == nil || !m.Response {
			t.Fatal("no answer")
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	s := newServer(b, testIndex())
	q := new(dns.Msg)
	q.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	for b.Loop() {
		if m := s.Answer(b.Context(), q); len(m.Answer) != 1 {
			b.Fatal(m)
		}
	}
}
