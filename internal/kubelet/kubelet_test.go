package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/cri/fake"
	"skiff/internal/host"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const node = "node-1"

// recorded keeps events as lines "REASON MESSAGE".
type recorded struct {
	mu     sync.Mutex
	events []string
}

func (r *recorded) Event(ref *corev1.ObjectReference, _, reason, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, strings.TrimSpace(ref.FieldPath+" "+reason+": "+message))
}

func (r *recorded) AnnotatedEvent(ref *corev1.ObjectReference, annotations map[string]string, kind, reason, message string) {
	r.Event(ref, kind, reason, message)
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		r.Event(ref, kind, reason, k+"="+annotations[k])
	}
}

func (r *recorded) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *recorded) has(part string) bool {
	return slices.ContainsFunc(r.all(), func(e string) bool { return strings.Contains(e, part) })
}

// volumes is a Volumes without a disk.
type volumes struct {
	mu    sync.Mutex
	fail  error
	sets  int
	last  []string
	gone  []types.UID
	local map[string]string
}

func (v *volumes) Setup(_ context.Context, pod *corev1.Pod) (map[string]string, time.Time, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.sets++
	out := map[string]string{}
	v.last = nil
	for _, x := range pod.Spec.Volumes {
		v.last = append(v.last, x.Name)
		out[x.Name] = "/volumes/" + x.Name
	}
	return out, time.Time{}, v.fail
}

// made are the names of the volumes that were made last, sorted.
func (v *volumes) made() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(slices.Values(v.last))
}

func (v *volumes) SubPath(_ context.Context, _ *corev1.Pod, _ string, _ int, m corev1.VolumeMount, sub string) (string, error) {
	return "/volumes/" + m.Name + "/" + sub, nil
}

func (v *volumes) Teardown(_ context.Context, uid types.UID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.gone = append(v.gone, uid)
	return nil
}
func (v *volumes) Pods() ([]types.UID, error) { return nil, nil }
func (v *volumes) LocalDirs(*corev1.Pod) map[string]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.local
}

// world is a kubelet with everything around it.
type world struct {
	t       *testing.T
	api     *clienttest.API
	rt      *fake.Runtime
	events  *recorded
	volumes *volumes
	dir     string
	deps    func(*Deps)

	stop func()
	k    *Kubelet
}

// run runs f in a bubble of its own time, with a kubelet over the objects given.
func run(t *testing.T, setup func(*world), f func(*world)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, api: clienttest.New(), rt: fake.New("nginx", "busybox"), events: &recorded{}, volumes: &volumes{}, dir: dir}
		if setup != nil {
			setup(w)
		}
		w.start()
		defer w.kill()
		f(w)
	})
}

func (w *world) start() {
	w.t.Helper()
	inst, err := host.New("kubelet-test", filepath.Join(w.dir, "data"))
	if err != nil {
		w.t.Fatal(err)
	}
	inst.RunDir = filepath.Join(w.dir, "run")
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() && os.Getenv("KUBELET_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	d := Deps{
		Client: w.api.Client(), Runtime: w.rt, Images: w.rt, Volumes: w.volumes, Events: w.events, Log: log,
		Host: inst, NodeName: node, NodeIPs: []net.IP{net.ParseIP("192.168.7.1")}, ClusterDNS: []net.IP{net.ParseIP("10.96.0.10")},
		ClusterDomain: "cluster.local", NoNode: true, ResolvConf: filepath.Join(w.dir, "none"),
	}
	if w.deps != nil {
		w.deps(&d)
	}
	if w.k, err = New(d); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	k := w.k
	go func() { done <- k.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}
	synctest.Wait()
}

// kill ends the kubelet; containers go on.
func (w *world) kill() {
	if w.stop != nil {
		w.stop()
		w.stop = nil
	}
}

// after lets time pass.
func (w *world) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) pod(name string) *corev1.Pod {
	w.t.Helper()
	p, err := client.For[*corev1.Pod](w.api.Client()).In("default").Get(context.Background(), name)
	if err != nil {
		w.t.Fatalf("get pod: %v", err)
	}
	return p
}

func (w *world) exists(name string) bool {
	_, err := client.For[*corev1.Pod](w.api.Client()).In("default").Get(context.Background(), name)
	return err == nil
}

func (w *world) create(p *corev1.Pod) {
	w.t.Helper()
	w.api.Put(p)
	synctest.Wait()
}

func (w *world) delete(name string, grace int64) {
	w.t.Helper()
	if err := client.For[*corev1.Pod](w.api.Client()).In("default").Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		w.t.Fatalf("delete pod: %v", err)
	}
	synctest.Wait()
}

// container returns the newest container of that name.
func (w *world) container(name string) fake.Container {
	w.t.Helper()
	cs := w.rt.Containers(name)
	if len(cs) == 0 {
		w.t.Fatalf("the runtime has no container %q", name)
	}
	return cs[0]
}

func (w *world) exit(name string, code int32) {
	w.t.Helper()
	w.rt.Exit(w.container(name).Status.Id, code, "")
	synctest.Wait()
}

func (w *world) wantOps(want ...string) {
	w.t.Helper()
	var got []string
	for _, c := range w.rt.Calls() {
		got = append(got, c.Op+" "+c.Name)
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("runtime calls:\n got %q\nwant %q", got, want)
	}
}

func (w *world) wantPhase(name string, p corev1.PodPhase) {
	w.t.Helper()
	if got := w.pod(name).Status.Phase; got != p {
		w.t.Errorf("phase of %s is %q, want %q", name, got, p)
	}
}

func (w *world) wantEvent(part string) {
	w.t.Helper()
	if !w.events.has(part) {
		w.t.Errorf("no event has %q; events:\n%s", part, strings.Join(w.events.all(), "\n"))
	}
}

func (w *world) wantWaiting(pod, container, reason, message string) {
	w.t.Helper()
	p := w.pod(pod)
	st := oldStatus(append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...), container)
	if st == nil || st.State.Waiting == nil {
		w.t.Fatalf("container %s is not waiting: %+v", container, st)
	}
	if st.State.Waiting.Reason != reason || !strings.Contains(st.State.Waiting.Message, message) {
		w.t.Errorf("waiting: %+v, want %s with %q", st.State.Waiting, reason, message)
	}
}

func condIs(p *corev1.Pod, t corev1.PodConditionType) string {
	c := condition(p.Status.Conditions, t)
	if c == nil {
		return "missing"
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message))
}

// newPod is a pod with one container per name, bound to the node.
func newPod(name string, containers ...string) *corev1.Pod {
	grace := int64(30)
	links := true
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name + "-uid"), Generation: 1},
		Spec: corev1.PodSpec{
			NodeName: node, RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace,
			DNSPolicy: corev1.DNSClusterFirst, EnableServiceLinks: &links,
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	for _, c := range containers {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
			Name: c, Image: "nginx", ImagePullPolicy: corev1.PullIfNotPresent,
			TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		})
	}
	return p
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
