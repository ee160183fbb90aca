package alloc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/alloc"
	"skiff/internal/apiserver/fields"
	"skiff/internal/client"
	"skiff/internal/codec"
	"skiff/internal/store"
	"skiff/internal/store/etcd"
	"skiff/internal/store/mem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open lets everybody in as an administrator.
type open struct{}

func (open) Authenticate(*http.Request) (*resource.User, error) {
	return &resource.User{Name: "admin", Groups: []string{"system:masters"}}, nil
}

func (open) Token(context.Context, string, []string) (*resource.User, []string, error) {
	return nil, nil, nil
}

func (open) Authorize(context.Context, resource.Attributes) (resource.Decision, error) {
	return resource.Decision{Allowed: true}, nil
}

func (open) Rules(context.Context, resource.User, string) (resource.RuleList, error) {
	return resource.RuleList{}, nil
}

type config struct {
	store       store.Store // nil: one of its own
	cidrs       []string
	first, last int32
	now         func() time.Time
}

type fixture struct {
	t     *testing.T
	alloc *alloc.Allocator
	store store.Store
	c     *client.Client
	stop  func()
}

// start runs an API server with an allocator; stop ends it before the test's end.
func start(t *testing.T, cfg config) *fixture {
	t.Helper()
	if cfg.store == nil {
		st := mem.New(mem.Config{})
		t.Cleanup(func() {
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		})
		cfg.store = st
	}
	if cfg.cidrs == nil {
		cfg.cidrs = []string{"10.96.0.0/24"}
	}
	if cfg.last == 0 {
		cfg.first, cfg.last = 30000, 32767
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	var srv *apiserver.Server
	d := alloc.Deps{Client: func() *client.Client { return srv.System() }, Store: cfg.store, FirstPort: cfg.first, LastPort: cfg.last, Now: cfg.now, Log: log}
	for _, c := range cfg.cidrs {
		d.ServiceCIDRs = append(d.ServiceCIDRs, netip.MustParsePrefix(c))
	}
	a, err := alloc.New(d)
	if err != nil {
		t.Fatal(err)
	}
	srv, err = apiserver.New(apiserver.Deps{
		Store: cfg.store, Resources: api.All(), Log: log, Authenticator: open{}, Authorizer: open{}, Services: a, VerifyCache: true, Now: cfg.now,
		FieldManagers: fields.New(api.All()),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-srv.Ready():
	case <-time.After(30 * time.Second):
		t.Fatal("server is not ready")
	}
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return &fixture{t: t, alloc: a, store: cfg.store, stop: stop, c: client.New(srv.Local(resource.User{Name: "me"}), "me")}
}

func (f *fixture) services() client.Resource[*corev1.Service] {
	return client.For[*corev1.Service](f.c).In("default")
}

// service makes a service of one port.
func service(name string, change ...func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 80}},
	}}
	for _, c := range change {
		c(&s.Spec)
	}
	return s
}

func ofType(t corev1.ServiceType) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.Type = t }
}

func withIP(ip string) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.ClusterIP = ip }
}

func withPort(p int32) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, p }
}

func (f *fixture) create(s *corev1.Service) *corev1.Service {
	f.t.Helper()
	out, err := f.services().Create(f.t.Context(), s)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *fixture) patch(name, patch string) (*corev1.Service, error) {
	return f.services().Patch(f.t.Context(), name, types.MergePatchType, []byte(patch), "")
}

func (f *fixture) patched(name, patch string) *corev1.Service {
	f.t.Helper()
	s, err := f.patch(name, patch)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fixture) remove(name string) {
	f.t.Helper()
	if err := f.services().Delete(f.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		f.t.Fatal(err)
	}
}

// taken returns the addresses that exist, each with the service that it is for.
func (f *fixture) taken() map[string]string {
	f.t.Helper()
	list, _, err := client.For[*networkingv1.IPAddress](f.c).List(f.t.Context(), metav1.ListOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	out := map[string]string{}
	for _, ip := range list {
		out[ip.Name] = ip.Spec.ParentRef.Name
	}
	return out
}

// ports returns how many node ports the stored map has as taken.
func (f *fixture) ports() int {
	f.t.Helper()
	kv, err := f.store.Get(f.t.Context(), alloc.PortsKey, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	var r corev1.RangeAllocation
	if err := codec.FromStored(kv.Value, kv.ModRev, &r); err != nil {
		f.t.Fatal(err)
	}
	n := 0
	for _, b := range r.Data {
		for ; b != 0; b &= b - 1 {
			n++
		}
	}
	return n
}

func (f *fixture) wantTaken(ips, ports int) {
	f.t.Helper()
	if got := f.taken(); len(got) != ips {
		f.t.Errorf("%d addresses are taken, want %d: %v", len(got), ips, got)
	}
	if got := f.ports(); got != ports {
		f.t.Errorf("%d node ports are taken, want %d", got, ports)
	}
}

func TestServiceGetsItsAddress(t *testing.T) {
	f := start(t, config{})
	s := f.create(service("web"))
	ip := netip.MustParseAddr(s.Spec.ClusterIP)
	if !netip.MustParsePrefix("10.96.0.0/24").Contains(ip) || len(s.Spec.ClusterIPs) != 1 || s.Spec.ClusterIPs[0] != s.Spec.ClusterIP {
		t.Errorf("addresses %q, %q", s.Spec.ClusterIP, s.Spec.ClusterIPs)
	}
	if ip.As4()[3] <= 16 {
		t.Errorf("%s is of the part for addresses that were asked for", ip)
	}
	if fmt.Sprint(s.Spec.IPFamilies) != "[IPv4]" || *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
		t.Errorf("families %v, policy %s", s.Spec.IPFamilies, *s.Spec.IPFamilyPolicy)
	}
	obj, err := client.For[*networkingv1.IPAddress](f.c).Get(t.Context(), s.Spec.ClusterIP)
	if err != nil {
		t.Fatal(err)
	}
	if want := (networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: "web"}); *obj.Spec.ParentRef != want {
		t.Errorf("parent %+v", *obj.Spec.ParentRef)
	}
	if obj.Labels["ipaddress.kubernetes.io/ip-family"] != "IPv4" || obj.Labels["ipaddress.kubernetes.io/managed-by"] != "ipallocator.k8s.io" {
		t.Errorf("labels %v", obj.Labels)
	}
	f.remove("web")
	f.wantTaken(0, 0)
}

func TestErrors(t *testing.T) {
	f := start(t, config{})
	f.create(service("a", withIP("10.96.0.5"), withPort(30007)))
	for name, c := range map[string]struct {
		s    *corev1.Service
		want string
	}{
		"taken": {service("b", withIP("10.96.0.5")),
			`Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.5"]: failed to allocate IP 10.96.0.5: provided IP is already allocated`},
		"elsewhere": {service("b", withIP("10.97.0.5")),
			`Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.97.0.5"]: failed to allocate IP 10.97.0.5: the provided network does not match the current range`},
		"broadcast": {service("b", withIP("10.96.0.255")),
			`Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.255"]: failed to allocate IP 10.96.0.255: the provided network does not match the current range`},
		"other family": {service("b", withIP("fd00::1")),
			`Service "b" is invalid: spec.clusterIPs[0]: Invalid value: ["fd00::1"]: IPv6 is not configured on this cluster`},
		"port taken": {service("b", withPort(30007)),
			`Service "b" is invalid: spec.ports[0].nodePort: Invalid value: 30007: provided port is already allocated`},
		"port range": {service("b", withPort(80)),
			`Service "b" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767`},
		"not dual": {service("b", func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack) }),
			`Service "b" is invalid: spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		"rules": {service("b", func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].Port = corev1.ServiceTypeNodePort, 0 }),
			`Service "b" is invalid: [spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive, spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive]`},
		"exists": {service("a", ofType(corev1.ServiceTypeNodePort)), `services "a" already exists`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.services().Create(t.Context(), c.s)
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
	// None of the failures took anything.
	f.wantTaken(1, 1)
}

func TestConcurrentCreates(t *testing.T) {
	t.Run("mem", func(t *testing.T) {
		st := mem.New(mem.Config{})
		t.Cleanup(func() { closeStore(t, st) })
		concurrentCreates(t, st)
	})
	t.Run("etcd", func(t *testing.T) {
		st, err := etcd.Open(t.Context(), etcd.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeStore(t, st) })
		concurrentCreates(t, st)
	})
}

func closeStore(t *testing.T, st store.Store) {
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}

// concurrentCreates has two API servers over one store, and room for all but few.
func concurrentCreates(t *testing.T, st store.Store) {
	f := start(t, config{store: st, cidrs: []string{"10.96.0.0/26"}, first: 30000, last: 30063})
	g := start(t, config{store: f.store, cidrs: []string{"10.96.0.0/26"}, first: 30000, last: 30063})
	const n = 60
	var mu sync.Mutex
	ips, ports := map[string]string{}, map[int32]string{}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			name, at := fmt.Sprintf("s%d", i), f
			if i%2 == 1 {
				at = g
			}
			s, err := at.services().Create(t.Context(), service(name, ofType(corev1.ServiceTypeNodePort)))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if who := ips[s.Spec.ClusterIP]; who != "" {
				t.Errorf("%s and %s have %s", who, name, s.Spec.ClusterIP)
			}
			if who := ports[s.Spec.Ports[0].NodePort]; who != "" {
				t.Errorf("%s and %s have port %d", who, name, s.Spec.Ports[0].NodePort)
			}
			ips[s.Spec.ClusterIP], ports[s.Spec.Ports[0].NodePort] = name, name
		})
	}
	wg.Wait()
	f.wantTaken(n, n)
	// A service written by one server and deleted by the other is given back whole.
	waitFor(t, func() bool {
		err := g.services().Delete(t.Context(), "s0", metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	})
	f.wantTaken(n-1, n-1)
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !cond() {
		select {
		case <-deadline:
			t.Fatal("did not come true")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestFullRange(t *testing.T) {
	f := start(t, config{cidrs: []string{"10.96.0.0/28"}, first: 30000, last: 30001})
	for i := range 14 {
		f.create(service(fmt.Sprintf("s%d", i)))
	}
	_, err := f.services().Create(t.Context(), service("more"))
	if want := `Internal error occurred: failed to allocate a serviceIP for Service "more": range is full`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	f.patched("s0", `{"spec":{"type":"NodePort"}}`)
	f.patched("s1", `{"spec":{"type":"NodePort"}}`)
	_, err = f.patch("s2", `{"spec":{"type":"NodePort"}}`)
	if want := `Internal error occurred: failed to allocate a nodePort: range is full`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	// A second range makes room.
	if _, err := client.For[*networkingv1.ServiceCIDR](f.c).Create(t.Context(), &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "second"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.97.0.0/28"}},
	}); err != nil {
		t.Fatal(err)
	}
	if s := f.create(service("more")); !strings.HasPrefix(s.Spec.ClusterIP, "10.97.0.") {
		t.Errorf("address %s", s.Spec.ClusterIP)
	}
}

func TestTypeChanges(t *testing.T) {
	f := start(t, config{})
	s := f.create(service("web"))
	ip := s.Spec.ClusterIP
	f.wantTaken(1, 0)

	s = f.patched("web", `{"spec":{"type":"NodePort"}}`)
	port := s.Spec.Ports[0].NodePort
	if s.Spec.ClusterIP != ip || port < 30086 || port > 32767 {
		t.Errorf("address %s, port %d", s.Spec.ClusterIP, port)
	}
	f.wantTaken(1, 1)

	// The same manifest again keeps what was allocated.
	again := service("web", ofType(corev1.ServiceTypeNodePort))
	s, err := f.services().Update(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	if s.Spec.ClusterIP != ip || s.Spec.Ports[0].NodePort != port {
		t.Errorf("after the same manifest: address %s, port %d", s.Spec.ClusterIP, s.Spec.Ports[0].NodePort)
	}

	s = f.patched("web", `{"spec":{"type":"LoadBalancer","externalTrafficPolicy":"Local"}}`)
	if s.Spec.HealthCheckNodePort == 0 || s.Spec.Ports[0].NodePort != port {
		t.Errorf("ports %d, %d", s.Spec.HealthCheckNodePort, s.Spec.Ports[0].NodePort)
	}
	f.wantTaken(1, 2)

	s = f.patched("web", `{"spec":{"type":"ClusterIP"}}`)
	if s.Spec.HealthCheckNodePort != 0 || s.Spec.Ports[0].NodePort != 0 || s.Spec.ExternalTrafficPolicy != "" || s.Spec.AllocateLoadBalancerNodePorts != nil {
		t.Errorf("left over: %+v", s.Spec)
	}
	f.wantTaken(1, 0)

	s = f.patched("web", `{"spec":{"type":"ExternalName","externalName":"example.com"}}`)
	if s.Spec.ClusterIP != "" || s.Spec.ClusterIPs != nil || s.Spec.IPFamilies != nil || s.Spec.IPFamilyPolicy != nil {
		t.Errorf("left over: %+v", s.Spec)
	}
	f.wantTaken(0, 0)

	s = f.patched("web", `{"spec":{"type":"ClusterIP","externalName":null}}`)
	if s.Spec.ClusterIP == "" {
		t.Error("no address after the way back")
	}
	f.wantTaken(1, 0)

	_, err = f.patch("web", `{"spec":{"clusterIP":"10.96.0.9","clusterIPs":["10.96.0.9"]}}`)
	if want := `Service "web" is invalid: spec.clusterIPs[0]: Invalid value: ["10.96.0.9"]: may not change once set`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	f.remove("web")
	f.wantTaken(0, 0)
}

func TestDualStack(t *testing.T) {
	f := start(t, config{cidrs: []string{"10.96.0.0/24", "fd00:96::/112"}})
	s := f.create(service("web", func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = new(corev1.IPFamilyPolicyPreferDualStack) }))
	if len(s.Spec.ClusterIPs) != 2 || fmt.Sprint(s.Spec.IPFamilies) != "[IPv4 IPv6]" || !strings.HasPrefix(s.Spec.ClusterIPs[1], "fd00:96::") {
		t.Fatalf("%v %v", s.Spec.ClusterIPs, s.Spec.IPFamilies)
	}
	f.wantTaken(2, 0)
	s = f.patched("web", `{"spec":{"ipFamilyPolicy":"SingleStack"}}`)
	if len(s.Spec.ClusterIPs) != 1 || len(s.Spec.IPFamilies) != 1 {
		t.Errorf("%v %v", s.Spec.ClusterIPs, s.Spec.IPFamilies)
	}
	f.wantTaken(1, 0)
	s = f.patched("web", `{"spec":{"ipFamilyPolicy":"RequireDualStack"}}`)
	if len(s.Spec.ClusterIPs) != 2 {
		t.Errorf("%v", s.Spec.ClusterIPs)
	}
	f.wantTaken(2, 0)
	f.create(service("none", withIP("None")))
	f.wantTaken(2, 0)
	f.remove("web")
	f.wantTaken(0, 0)
}

func TestDryRunTakesNothing(t *testing.T) {
	f := start(t, config{})
	f.create(service("a", withPort(30007)))
	ref := client.Ref{GVR: corev1.SchemeGroupVersion.WithResource("services"), Namespace: "default"}
	dry := metav1.CreateOptions{DryRun: []string{"All"}}
	if _, err := f.c.Transport().Create(t.Context(), ref, service("b", ofType(corev1.ServiceTypeNodePort)), dry); err != nil {
		t.Fatal(err)
	}
	_, err := f.c.Transport().Create(t.Context(), ref, service("b", withPort(30007)), dry)
	if want := `Service "b" is invalid: spec.ports[0].nodePort: Invalid value: 30007: provided port is already allocated`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	f.wantTaken(1, 1)
}

func TestRestartKeepsAllocations(t *testing.T) {
	f := start(t, config{})
	s := f.create(service("web", ofType(corev1.ServiceTypeNodePort)))
	f.stop()
	f = start(t, config{store: f.store})
	_, err := f.services().Create(t.Context(), service("b", withPort(s.Spec.Ports[0].NodePort)))
	if err == nil || !strings.HasSuffix(err.Error(), "provided port is already allocated") {
		t.Errorf("the port was given out again: %v", err)
	}
	_, err = f.services().Create(t.Context(), service("b", withIP(s.Spec.ClusterIP)))
	if err == nil || !strings.HasSuffix(err.Error(), "provided IP is already allocated") {
		t.Errorf("the address was given out again: %v", err)
	}
	f.wantTaken(1, 1)
	// Also where the map is lost, or is that of another range.
	f.stop()
	kv, err := f.store.Get(t.Context(), alloc.PortsKey, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.Delete(t.Context(), alloc.PortsKey, kv.ModRev); err != nil {
		t.Fatal(err)
	}
	f = start(t, config{store: f.store})
	f.wantTaken(1, 1)
	f.stop()
	f = start(t, config{store: f.store, first: 30000, last: 32000})
	if _, err := f.services().Create(t.Context(), service("b", withPort(30001))); err != nil {
		t.Error(err)
	}
}

func TestRepair(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	f := start(t, config{now: clock})
	s := f.create(service("web", ofType(corev1.ServiceTypeNodePort)))
	ctx := t.Context()
	// What a process left that ended before it wrote its service.
	ip, err := f.alloc.AllocateIP(ctx, "default", "gone", "IPv4", "", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.alloc.AllocatePort(ctx, 0); err != nil {
		t.Fatal(err)
	}
	// What somebody deleted under a service.
	if err := client.For[*networkingv1.IPAddress](f.c).Delete(ctx, s.Spec.ClusterIP, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := f.alloc.ReleasePort(ctx, s.Spec.Ports[0].NodePort); err != nil {
		t.Fatal(err)
	}
	if err := f.alloc.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	if got := f.taken(); got[s.Spec.ClusterIP] != "web" || got[ip] != "gone" {
		t.Errorf("a young leak is gone, or the service's address is not back: %v", got)
	}
	if got := f.ports(); got != 2 {
		t.Errorf("%d ports are taken after one run, want 2", got)
	}
	mu.Lock()
	now = now.Add(2 * time.Minute)
	mu.Unlock()
	for range 2 {
		if err := f.alloc.Repair(ctx); err != nil {
			t.Fatal(err)
		}
	}
	f.wantTaken(1, 1)
}

func TestDefaultServiceCIDR(t *testing.T) {
	f := start(t, config{})
	get := func() *networkingv1.ServiceCIDR {
		c, err := client.For[*networkingv1.ServiceCIDR](f.c).Get(t.Context(), alloc.DefaultServiceCIDR)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := get()
	if len(c.Status.Conditions) != 1 {
		t.Fatalf("conditions %+v", c.Status.Conditions)
	}
	if r := c.Status.Conditions[0]; fmt.Sprint(c.Spec.CIDRs) != "[10.96.0.0/24]" || r.Type != "Ready" || r.Status != "True" || r.Message != "Kubernetes default Service CIDR is ready" {
		t.Errorf("%v %+v", c.Spec.CIDRs, r)
	}
	// A range that is not ready, or on its way out, gives no addresses.
	c = c.DeepCopy()
	c.Status.Conditions[0].Status = metav1.ConditionFalse
	if _, err := client.For[*networkingv1.ServiceCIDR](f.c).UpdateStatus(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		_, err := f.services().Create(t.Context(), service("web"))
		if err == nil {
			f.remove("web")
		}
		return err != nil && strings.HasSuffix(err.Error(), "range is full")
	})
	f.stop()
	// The cluster becomes dual-stack.
	f = start(t, config{store: f.store, cidrs: []string{"10.96.0.0/24", "fd00:96::/112"}})
	if got := fmt.Sprint(get().Spec.CIDRs); got != "[10.96.0.0/24 fd00:96::/112]" {
		t.Errorf("ranges %s", got)
	}
	f.stop()
	// Another range than the stored one changes nothing.
	f = start(t, config{store: f.store, cidrs: []string{"10.97.0.0/24"}})
	if got := fmt.Sprint(get().Spec.CIDRs); got != "[10.96.0.0/24 fd00:96::/112]" {
		t.Errorf("ranges %s", got)
	}
}

func TestNewRefusesRanges(t *testing.T) {
	p := netip.MustParsePrefix
	for name, d := range map[string]alloc.Deps{
		"no range":       {FirstPort: 1, LastPort: 2},
		"same family":    {FirstPort: 1, LastPort: 2, ServiceCIDRs: []netip.Prefix{p("10.0.0.0/24"), p("10.1.0.0/24")}},
		"large IPv6":     {FirstPort: 1, LastPort: 2, ServiceCIDRs: []netip.Prefix{p("fd00::/48")}},
		"ports reversed": {FirstPort: 3, LastPort: 2, ServiceCIDRs: []netip.Prefix{p("10.0.0.0/24")}},
		"port 0":         {FirstPort: 0, LastPort: 2, ServiceCIDRs: []netip.Prefix{p("10.0.0.0/24")}},
	} {
		if _, err := alloc.New(d); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A service that is held by a finalizer keeps what it has until it goes, through
// whichever door the finalizer is taken away.
func TestHeldServiceKeepsItsAddress(t *testing.T) {
	f := start(t, config{})
	s := service("web", withPort(30007))
	s.Finalizers = []string{"example.com/hold"}
	f.create(s)
	f.remove("web")
	f.wantTaken(1, 1)
	if _, err := f.services().Patch(t.Context(), "web", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), "status"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.services().Get(t.Context(), "web"); !apierrors.IsNotFound(err) {
		t.Fatalf("the service is still there: %v", err)
	}
	f.wantTaken(0, 0)
}

// broken fails writes of services, as a store does that is out of reach.
type broken struct {
	store.Store
	err error
}

func (b *broken) Create(ctx context.Context, key string, value []byte, o store.WriteOptions) (int64, error) {
	if strings.HasPrefix(key, "/registry/services/specs/") {
		return 0, b.err
	}
	return b.Store.Create(ctx, key, value, o)
}

func TestFailedWriteGivesBack(t *testing.T) {
	st := mem.New(mem.Config{})
	defer func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}()
	b := &broken{Store: st, err: errors.New("no")}
	f := start(t, config{store: b})
	if _, err := f.services().Create(t.Context(), service("web", ofType(corev1.ServiceTypeNodePort))); err == nil {
		t.Fatal("created")
	}
	f.wantTaken(0, 0)
	// Where nobody knows whether the service was written, nothing is given out
	// twice: the repair finds out later.
	b.err = store.ErrUnknown
	if _, err := f.services().Create(t.Context(), service("web", ofType(corev1.ServiceTypeNodePort))); err == nil {
		t.Fatal("created")
	}
	f.wantTaken(1, 1)
	f.stop()
}
