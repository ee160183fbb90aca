package app

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestBalancerHealth(t *testing.T) {
	// A port that nobody has, and one that somebody has.
	hold, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port, taken := int32(free.Addr().(*net.TCPAddr).Port), int32(hold.Addr().(*net.TCPAddr).Port)
	free.Close()

	var failed error
	b := newBalancerHealth([]netip.Addr{netip.MustParseAddr("127.0.0.1")}, slog.New(slog.DiscardHandler), func(_ *corev1.Service, p int32, err error) {
		failed = fmt.Errorf("port %d: %w", p, err)
	})
	defer b.close()
	svc := func(port int32) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{HealthCheckNodePort: port}}
	}
	here, there, no := "here", "there", false
	eps := func(of ...discoveryv1.Endpoint) []*discoveryv1.EndpointSlice {
		return []*discoveryv1.EndpointSlice{{Endpoints: of}, {Endpoints: of}} // in two slices, of two ports say
	}
	ask := func() (int, string, string) {
		t.Helper()
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", port))
		if err != nil {
			return 0, "", err.Error()
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, r.Header.Get("X-Load-Balancing-Endpoint-Weight"), string(body)
	}
	text := func(n int, ok bool) string {
		return fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}", n, ok)
	}
	both := eps(
		discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, NodeName: &here}, discoveryv1.Endpoint{Addresses: []string{"10.0.0.2"}, NodeName: &there},
		discoveryv1.Endpoint{Addresses: []string{"10.0.0.3"}, NodeName: &here, Conditions: discoveryv1.EndpointConditions{Ready: &no}})
	for _, c := range []struct {
		what    string
		written bool
		eps     []*discoveryv1.EndpointSlice
		code    int
		weight  string
		body    string
	}{
		{"before the rules are written", false, both, 503, "1", text(1, false)},
		{"with an endpoint here", true, both, 200, "1", text(1, true)},
		{"with none here", true, eps(discoveryv1.Endpoint{Addresses: []string{"10.0.0.2"}, NodeName: &there}), 503, "0", text(0, true)},
	} {
		b.written.Store(c.written)
		b.set(svc(port), c.eps, here)
		if code, weight, body := ask(); code != c.code || weight != c.weight || body != c.body {
			t.Errorf("%s: %d, weight %s, %s", c.what, code, weight, body)
		}
	}
	b.set(svc(taken), both, here)
	if !errors.Is(failed, syscall.EADDRINUSE) {
		t.Errorf("a port that is in use: %v", failed)
	}
	if code, _, body := ask(); code != 0 {
		t.Errorf("the former port answers %d %s", code, body)
	}
	hold.Close()
	b.set(svc(taken), both, here)
	b.set(svc(0), both, here)
	if len(b.by) != 0 {
		t.Errorf("a service without such a port has %v", b.by)
	}
}
