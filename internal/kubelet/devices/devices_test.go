package devices

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	healthapi "k8s.io/kubelet/pkg/apis/dra-health/v1"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testDriver is a driver that gives each claim the CDI device named after it.
type testDriver struct {
	draapi.UnimplementedDRAPluginServer
	healthapi.UnimplementedDRAResourceHealthServer
	registerapi.UnimplementedRegistrationServer
	endpoint string
	versions []string
	told     chan *registerapi.RegistrationStatus
	reports  chan *healthapi.NodeWatchResourcesResponse

	mu    sync.Mutex
	calls []string
	fail  string
}

func (d *testDriver) note(verb string, claims []*draapi.Claim) {
	for _, c := range claims {
		d.calls = append(d.calls, verb+" "+c.Name)
	}
}

func (d *testDriver) NodePrepareResources(_ context.Context, r *draapi.NodePrepareResourcesRequest) (*draapi.NodePrepareResourcesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("prepare", r.Claims)
	out := &draapi.NodePrepareResourcesResponse{Claims: map[string]*draapi.NodePrepareResourceResponse{}}
	for _, c := range r.Claims {
		out.Claims[c.Uid] = &draapi.NodePrepareResourceResponse{Error: d.fail, Devices: []*draapi.Device{{
			RequestNames: []string{"gpu"}, PoolName: "node", DeviceName: "d0", CdiDeviceIds: []string{"example.com/gpu=" + c.Name},
		}}}
	}
	return out, nil
}

func (d *testDriver) NodeUnprepareResources(_ context.Context, r *draapi.NodeUnprepareResourcesRequest) (*draapi.NodeUnprepareResourcesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.note("unprepare", r.Claims)
	out := &draapi.NodeUnprepareResourcesResponse{Claims: map[string]*draapi.NodeUnprepareResourceResponse{}}
	for _, c := range r.Claims {
		out.Claims[c.Uid] = &draapi.NodeUnprepareResourceResponse{Error: d.fail}
	}
	return out, nil
}

func (d *testDriver) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.DRAPlugin, Name: "gpu.example.com", Endpoint: d.endpoint, SupportedVersions: d.versions}, nil
}

func (d *testDriver) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	d.told <- s
	return &registerapi.RegistrationStatusResponse{}, nil
}

func (d *testDriver) NodeWatchResources(_ *healthapi.NodeWatchResourcesRequest, s grpc.ServerStreamingServer[healthapi.NodeWatchResourcesResponse]) error {
	for {
		select {
		case r := <-d.reports:
			if err := s.Send(r); err != nil {
				return err
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

// takeCalls returns the calls since the last time.
func (d *testDriver) takeCalls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.calls
	d.calls = nil
	return out
}

// node is Devices at work, and the directory that drivers know.
type node struct {
	t    *testing.T
	dir  string
	boot string
	gone time.Duration
	api  *clienttest.API
	x    *Devices
	stop func()
	// changed takes the pods whose devices' health changed.
	changed chan types.UID
	active  map[types.UID]bool
}

func newNode(t *testing.T, api *clienttest.API) *node {
	dir, err := os.MkdirTemp("", "dra") // sockets need short paths
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "registry"), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, boot: "first", gone: 50 * time.Millisecond, api: api, changed: make(chan types.UID, 16)}
	n.start()
	t.Cleanup(func() { n.stop(); os.RemoveAll(dir) })
	return n
}

func (n *node) start() {
	n.t.Helper()
	x, err := New(Deps{
		Client: n.api.Client(), NodeName: "node", Registry: filepath.Join(n.dir, "registry"), State: filepath.Join(n.dir, "state"), Boot: n.boot,
		Active: func() map[types.UID]bool { return n.active }, Changed: func(p types.UID) { n.changed <- p }, Gone: n.gone,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := x.Run(ctx); err != nil {
			n.t.Errorf("Run: %v", err)
		}
	})
	n.x, n.stop = x, func() { cancel(); wg.Wait() }
}

// drive starts a driver, and waits until it is told what becomes of it.
func (n *node) drive(versions ...string) (d *testDriver, stop func(), st *registerapi.RegistrationStatus) {
	n.t.Helper()
	d = &testDriver{
		endpoint: filepath.Join(n.dir, "dra.sock"), versions: versions,
		told: make(chan *registerapi.RegistrationStatus, 16), reports: make(chan *healthapi.NodeWatchResourcesResponse),
	}
	serve := func(path string, register func(*grpc.Server)) func() {
		ln, err := net.Listen("unix", path)
		if err != nil {
			n.t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(ln) }()
		return func() { s.Stop(); <-done }
	}
	stopDriver := serve(d.endpoint, func(s *grpc.Server) {
		draapi.RegisterDRAPluginServer(s, d)
		healthapi.RegisterDRAResourceHealthServer(s, d)
	})
	stopRegistrar := serve(filepath.Join(n.dir, "registry", "gpu-reg.sock"), func(s *grpc.Server) { registerapi.RegisterRegistrationServer(s, d) })
	return d, func() { stopRegistrar(); stopDriver() }, n.await(d)
}

func (n *node) await(d *testDriver) *registerapi.RegistrationStatus {
	n.t.Helper()
	select {
	case st := <-d.told:
		return st
	case <-time.After(30 * time.Second):
		n.t.Fatal("the driver is not told of its registration")
		return nil
	}
}

func claimFor(name string, pods ...*corev1.Pod) *resourcev1.ResourceClaim {
	c := &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("claim-" + name)}}
	c.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{{
		Request: "gpu", Driver: "gpu.example.com", Pool: "node", Device: "d0",
	}}}}
	for _, p := range pods {
		c.Status.ReservedFor = append(c.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p.Name, UID: p.UID})
	}
	return c
}

func podUsing(name, claim string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("pod-" + name)}}
	p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "dev", ResourceClaimName: ptr.To(claim)}}
	p.Spec.Containers = []corev1.Container{
		{Name: "with", Resources: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: "dev", Request: "gpu"}}}},
		{Name: "without"},
		{Name: "other", Resources: corev1.ResourceRequirements{Claims: []corev1.ResourceClaim{{Name: "dev", Request: "nic"}}}},
	}
	return p
}

func (n *node) prepare(p *corev1.Pod, want string) {
	n.t.Helper()
	got := ""
	if err := n.x.Prepare(n.t.Context(), p); err != nil {
		got = err.Error()
	}
	if got != want {
		n.t.Fatalf("Prepare(%s): %q, want %q", p.Name, got, want)
	}
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("calls %q, want %q", got, want)
	}
}

// A pod's devices are prepared once, by its driver, whatever restarts; and unprepared
// when the last pod that uses them is gone.
func TestPrepare(t *testing.T) {
	one, two, stranger := podUsing("one", "shared"), podUsing("two", "shared"), podUsing("stranger", "shared")
	n := newNode(t, clienttest.New(claimFor("shared", one, two)))
	n.prepare(one, "prepare dynamic resources: DRA driver gpu.example.com is not registered")
	d, stop, st := n.drive(draapi.DRAPluginService, healthapi.DRAResourceHealthService)
	defer func() { stop() }()
	if !st.PluginRegistered {
		t.Fatalf("registration: %v", st)
	}
	n.prepare(podUsing("lost", "none"), `prepare dynamic resources: fetch ResourceClaim none: resourceclaims.resource.k8s.io "none" not found`)
	n.prepare(stranger, "prepare dynamic resources: pod stranger (pod-stranger) is not allowed to use ResourceClaim shared (claim-shared)")
	expect(t, d.takeCalls())

	d.fail = "no power"
	n.prepare(one, "prepare dynamic resources: NodePrepareResources failed for ResourceClaim shared: no power")
	d.fail = ""
	n.prepare(one, "")
	n.prepare(one, "")
	n.prepare(two, "")
	expect(t, d.takeCalls(), "prepare shared", "prepare shared")
	cdi := func(container int) string {
		names, err := n.x.CDI(one, &one.Spec.Containers[container])
		return fmt.Sprint(names, err)
	}
	if got := cdi(0) + cdi(1) + cdi(2); got != "[example.com/gpu=shared] <nil>[] <nil>[] <nil>" {
		t.Fatalf("CDI devices %s", got)
	}

	// A restart of the kubelet, and one of the machine.
	n.stop()
	n.start()
	n.await(d)
	n.prepare(one, "")
	expect(t, d.takeCalls())
	n.stop()
	n.boot = "second"
	n.start()
	n.await(d)
	n.prepare(one, "")
	expect(t, d.takeCalls(), "prepare shared")
	if cdi(0) != "[example.com/gpu=shared] <nil>" {
		t.Fatalf("CDI devices %s", cdi(0))
	}

	unprepare := func(p *corev1.Pod, want string) {
		t.Helper()
		got := ""
		if err := n.x.Unprepare(t.Context(), p.UID); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Fatalf("Unprepare(%s): %q, want %q", p.Name, got, want)
		}
	}
	unprepare(one, "")
	expect(t, d.takeCalls())
	if n.x.Holds(one.UID) || !n.x.Holds(two.UID) {
		t.Fatal("the claim is not the second pod's alone")
	}
	d.fail = "stuck"
	unprepare(two, "unprepare dynamic resources: NodeUnprepareResources failed for ResourceClaim shared: stuck")
	d.fail = ""
	if !n.x.Holds(two.UID) {
		t.Fatal("the claim is forgotten although it is not unprepared")
	}

	// What nobody knows of any more is unprepared all the same.
	n.x.releaseUnused(t.Context())
	expect(t, d.takeCalls(), "unprepare shared", "unprepare shared")
	if n.x.Holds(two.UID) {
		t.Fatal("the claim is still there")
	}
	n.x.releaseUnused(t.Context())
	expect(t, d.takeCalls())
}

// A claim that was deleted and made anew is not taken for its predecessor.
func TestPrepareTakesNoPredecessor(t *testing.T) {
	one, two := podUsing("one", "c"), podUsing("two", "c")
	api := clienttest.New(claimFor("c", one))
	n := newNode(t, api)
	_, stop, _ := n.drive(draapi.DRAPluginService)
	defer stop()
	n.prepare(one, "")
	next := claimFor("c", two)
	next.UID = "another"
	api.Put(next)
	n.prepare(two, "prepare dynamic resources: old ResourceClaim with same name c and different UID claim-c still exists (previous pod force-deleted?!)")
}

func TestRegistrationRefused(t *testing.T) {
	n := newNode(t, clienttest.New())
	_, stop, st := n.drive("v7.DRAPlugin")
	defer stop()
	if st.PluginRegistered || !strings.Contains(st.Error, `none of services supported by the plugin (["v7.DRAPlugin"]) are supported by the kubelet (["v1.DRAPlugin" "v1beta1.DRAPlugin"])`) {
		t.Errorf("registration: %v", st)
	}
}

// The slices of a driver that stays away are deleted, those of others are not.
func TestSlicesGoWithTheDriver(t *testing.T) {
	slice := func(name, driver string) *resourcev1.ResourceSlice {
		return &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: resourcev1.ResourceSliceSpec{NodeName: ptr.To("node"), Driver: driver}}
	}
	api := clienttest.New(slice("old", "gpu.example.com"))
	all := client.For[*resourcev1.ResourceSlice](api.Client())
	w, err := all.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	gone := func(name string) {
		t.Helper()
		for {
			select {
			case e := <-w.Events():
				if e.Type == watch.Deleted && e.Object.GetName() == name {
					return
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("slice %s is still there", name)
			}
		}
	}
	n := newNode(t, api)
	// What was there before the kubelet goes where no driver comes.
	gone("old")
	_, stop, _ := n.drive(draapi.DRAPluginService)
	api.Put(slice("mine", "gpu.example.com"))
	api.Put(slice("other", "nic.example.com"))
	stop()
	gone("mine")
	if _, err := all.Get(t.Context(), "other"); err != nil {
		t.Errorf("the slice of another driver: %v", err)
	}

	// A restart takes away the slices alone whose driver does not register again.
	d, stop, _ := n.drive(draapi.DRAPluginService)
	defer func() { stop() }()
	api.Put(slice("kept", "gpu.example.com"))
	n.stop()
	n.gone = 2 * time.Second
	n.start()
	n.await(d)
	gone("other")
	if _, err := all.Get(t.Context(), "kept"); err != nil {
		t.Errorf("the slice of a driver that registered again: %v", err)
	}
}

// What a driver tells of its devices is in the status of the containers that have them.
func TestHealth(t *testing.T) {
	one := podUsing("one", "c")
	n := newNode(t, clienttest.New(claimFor("c", one)))
	d, stop, _ := n.drive(draapi.DRAPluginService, healthapi.DRAResourceHealthService)
	defer stop()
	n.prepare(one, "")
	status := func() string {
		st := n.x.Status(one, &one.Spec.Containers[0])
		if len(st) != 1 || len(st[0].Resources) != 1 {
			t.Fatalf("status %+v", st)
		}
		r := st[0].Resources[0]
		return fmt.Sprint(st[0].Name, " ", r.ResourceID, " ", r.Health, " ", ptr.Deref(r.Message, ""))
	}
	if got := status(); got != "claim:dev/gpu example.com/gpu=c Unknown " {
		t.Errorf("status %q", got)
	}
	tell := func(h healthapi.HealthStatus, message, want string) {
		t.Helper()
		d.reports <- &healthapi.NodeWatchResourcesResponse{Devices: []*healthapi.DeviceHealth{{
			Device: &healthapi.DeviceIdentifier{PoolName: "node", DeviceName: "d0"}, Health: h, Message: message, LastUpdatedTime: time.Now().Unix(),
		}}}
		select {
		case p := <-n.changed:
			if p != one.UID {
				t.Errorf("changed: %s", p)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("nobody is told of the change")
		}
		if got := status(); got != want {
			t.Errorf("status %q, want %q", got, want)
		}
	}
	tell(healthapi.HealthStatus_HEALTHY, "", "claim:dev/gpu example.com/gpu=c Healthy ")
	tell(healthapi.HealthStatus_UNHEALTHY, "too hot", "claim:dev/gpu example.com/gpu=c Unhealthy too hot")
	if st := n.x.Status(one, &one.Spec.Containers[1]); st != nil {
		t.Errorf("status of a container without devices %+v", st)
	}
}
