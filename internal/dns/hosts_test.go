package dns

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// named is an upstream that answers every name with one address.
func named(t *testing.T, ip string) *upstream {
	t.Helper()
	return newUpstream(t, "127.0.0.1", func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if r.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{rr(t, r.Question[0].Name+" 20 IN A "+ip)}
		} else {
			m.Answer = []dns.RR{rr(t, r.Question[0].Name+" 20 IN PTR from."+ip+".")}
		}
		_ = w.WriteMsg(m)
	})
}

func TestStubDomainsAndHosts(t *testing.T) {
	rest, corp, deep, back := named(t, "192.0.2.1"), named(t, "192.0.2.2"), named(t, "192.0.2.3"), named(t, "192.0.2.4")
	x := testIndex()
	x.Set(&Service{Namespace: "default", Name: "ext-corp", ExternalName: "www.corp.example"})
	x.Set(&Service{Namespace: "default", Name: "ext-host", ExternalName: "DB.corp.example"})
	s, err := New(Deps{
		Records: x, Upstreams: []string{rest.addr},
		StubDomains: map[string][]string{"Corp.Example": {corp.addr}, "deep.corp.example.": {deep.addr}, "30.172.in-addr.arpa": {back.addr},
			"local": {"127.0.0.1:1"}},
		Hosts: map[string][]netip.Addr{"db.corp.example": ips("10.7.0.1", "10.7.0.2", "fd00::7"), "web.default.svc.cluster.local": ips("10.7.0.3")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		typ  uint16
		want string
	}{
		{"www.example.com.", dns.TypeA, "NOERROR: www.example.com. A 192.0.2.1"},
		{"corp.example.", dns.TypeA, "NOERROR: corp.example. A 192.0.2.2"},
		{"www.CORP.example.", dns.TypeA, "NOERROR: www.CORP.example. A 192.0.2.2"},
		{"notcorp.example.", dns.TypeA, "NOERROR: notcorp.example. A 192.0.2.1"},
		{"a.deep.corp.example.", dns.TypeA, "NOERROR: a.deep.corp.example. A 192.0.2.3"},
		{"5.0.30.172.in-addr.arpa.", dns.TypePTR, "NOERROR: 5.0.30.172.in-addr.arpa. PTR from.192.0.2.4."},
		{"5.0.31.172.in-addr.arpa.", dns.TypePTR, "NOERROR: 5.0.31.172.in-addr.arpa. PTR from.192.0.2.1."},
		{"ext-corp.default.svc.cluster.local.", dns.TypeA, "NOERROR: ext-corp.default.svc.cluster.local. CNAME www.corp.example.; www.corp.example. A 192.0.2.2"},
		// The cluster's own domain is never asked about elsewhere.
		{"nothing.default.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		// Hosts.
		{"Db.corp.example.", dns.TypeA, "NOERROR: Db.corp.example. A 10.7.0.1; Db.corp.example. A 10.7.0.2"},
		{"db.corp.example.", dns.TypeAAAA, "NOERROR: db.corp.example. AAAA fd00::7"},
		{"db.corp.example.", dns.TypeMX, "NOERROR"},
		{"web.default.svc.cluster.local.", dns.TypeA, "NOERROR: web.default.svc.cluster.local. A 10.7.0.3"},
		{"1.0.7.10.in-addr.arpa.", dns.TypePTR, "NOERROR: 1.0.7.10.in-addr.arpa. PTR db.corp.example."},
		{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR,
			"NOERROR: 7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. PTR db.corp.example."},
		{"ext-host.default.svc.cluster.local.", dns.TypeAAAA, "NOERROR: DB.corp.example. AAAA fd00::7; ext-host.default.svc.cluster.local. CNAME DB.corp.example."},
	} {
		q := new(dns.Msg)
		q.SetQuestion(c.name, c.typ)
		if got := show(s.Answer(t.Context(), q)); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.name, dns.TypeToString[c.typ], got, c.want)
		}
	}
}

func TestBadResolvers(t *testing.T) {
	for want, d := range map[string]Deps{
		`dns: resolver "here": must be an IP address`:                        {Upstreams: []string{"here"}},
		`dns: resolver "192.0.2.1:0": must be an IP address`:                 {StubDomains: map[string][]string{"a": {"192.0.2.1:0"}}},
		`dns: stub domain "a..b": must be a domain name with resolvers`:      {StubDomains: map[string][]string{"a..b": {"192.0.2.1"}}},
		`dns: stub domain "a.example": must be a domain name with resolvers`: {StubDomains: map[string][]string{"a.example": nil}},
		`dns: host "": must be a domain name`:                                {Hosts: map[string][]netip.Addr{"": ips("192.0.2.1")}},
	} {
		d.Records = NewIndex()
		if _, err := New(d); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
