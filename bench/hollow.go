package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/client"
)

// runLabel tells the hollow nodes of one run from another's.
const runLabel = "bench.skiff/run"

// zones are what hollow nodes are spread over, evenly.
const zones = 3

// closedTaint keeps pods off a node.
const closedTaint = "bench.skiff/closed"

// podWriter is how hollow kubelets write, one request at a time.
type podWriter interface {
	// patchStatus merges a strategic patch into a pod's status.
	patchStatus(ctx context.Context, ns, name string, patch []byte) error
	// remove deletes a pod that ended: with no grace left.
	remove(ctx context.Context, ns, name, uid string) error
	close()
}

// hollowDeps is what hollow kubelets need.
type hollowDeps struct {
	Client    *client.Client
	NewWriter func() podWriter
	// Run names the nodes.
	Run   string
	Nodes int
	// Namespace is where the pods are that they run.
	Namespace string
	// Writers write pod status at once; Heartbeat is the time between two
	// renewals of one node's lease, 10 s as a kubelet's.
	Writers   int
	Heartbeat time.Duration
	// Closed registers the nodes with a taint that no pod tolerates, until they are opened.
	Closed bool
	Now    func() time.Time
}

// hollow is many kubelets without containers: they register nodes, renew leases,
// and say of each pod bound to one of them that it runs and is Ready, at once, or
// that it succeeded, where it has the label endsLabel.
// One watch serves all of them.
type hollow struct {
	d    hollowDeps
	mine map[string]bool // nodes

	mu      sync.Mutex
	pods    map[types.UID]*hollowPod
	bound   int
	ready   int
	boundAt time.Time // of the last one
	readyAt time.Time
	changed chan struct{} // closed and replaced with each change
}

type hollowPod struct{ bound, ready, ending bool }

// task is a write that a pod needs.
type task struct {
	pod    *corev1.Pod
	remove bool
}

func newHollow(d hollowDeps) *hollow {
	h := &hollow{d: d, mine: map[string]bool{}, pods: map[types.UID]*hollowPod{}, changed: make(chan struct{})}
	for i := range d.Nodes {
		h.mine[h.node(i)] = true
	}
	return h
}

func (h *hollow) node(i int) string { return fmt.Sprintf("bench-%s-%04d", h.d.Run, i) }

func (h *hollow) labels() map[string]string {
	return map[string]string{hollowLabel: "true", runLabel: h.d.Run}
}

// register makes nodes and leases, and waits until pods may be bound to them.
func (h *hollow) register(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range h.d.Nodes {
		g.Go(func() error {
			if _, err := client.For[*corev1.Node](h.d.Client).Create(gctx, h.nodeObject(i)); err != nil {
				return fmt.Errorf("register node: %w", err)
			}
			now := metav1.NewMicroTime(h.d.Now())
			name, seconds := h.node(i), int32(4*h.d.Heartbeat/time.Second)
			_, err := client.For[*coordinationv1.Lease](h.d.Client).Create(gctx, &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease, Labels: h.labels()},
				Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now},
			})
			if err != nil {
				return fmt.Errorf("register lease: %w", err)
			}
			return nil
		})
	}
	return g.Wait()
}

// schedulable waits until no node of ours carries a taint but closedTaint:
// the controllers take the first one away when they have seen the node Ready.
func (h *hollow) schedulable(ctx context.Context, most time.Duration) error {
	var tainted int
	err := poll(ctx, most, 200*time.Millisecond, func() (bool, error) {
		nodes, _, err := client.For[*corev1.Node](h.d.Client).List(ctx, metav1.ListOptions{LabelSelector: runLabel + "=" + h.d.Run})
		if err != nil {
			return false, err
		}
		tainted = h.d.Nodes - len(nodes)
		for _, n := range nodes {
			for _, t := range n.Spec.Taints {
				if t.Key != closedTaint {
					tainted++
					break
				}
			}
		}
		return tainted == 0, nil
	})
	if err != nil {
		return fmt.Errorf("hollow nodes: %d of %d are not schedulable (is a controller manager running?): %w", tainted, h.d.Nodes, err)
	}
	return nil
}

// open is the request that takes closedTaint off a node.
func (h *hollow) open(i int) request {
	return request{
		http.MethodPatch, "/api/v1/nodes/" + h.node(i), "application/merge-patch+json", asProtobuf, []byte(`{"spec":{"taints":null}}`),
	}
}

func (h *hollow) nodeObject(i int) *corev1.Node {
	list := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("256Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"), corev1.ResourcePods: resource.MustParse("110"),
	}
	labels := h.labels()
	labels[corev1.LabelTopologyZone] = "zone-" + strconv.Itoa(i%zones)
	labels[corev1.LabelHostname], labels[corev1.LabelOSStable], labels[corev1.LabelArchStable] = h.node(i), "linux", "amd64"
	now := metav1.NewTime(h.d.Now())
	cond := func(t corev1.NodeConditionType, s corev1.ConditionStatus, reason string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: s, Reason: reason, LastHeartbeatTime: now, LastTransitionTime: now}
	}
	var spec corev1.NodeSpec
	if h.d.Closed {
		spec.Taints = []corev1.Taint{{Key: closedTaint, Effect: corev1.TaintEffectNoSchedule}}
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: h.node(i), Labels: labels},
		Spec:       spec,
		Status: corev1.NodeStatus{
			Capacity: list, Allocatable: list,
			Conditions: []corev1.NodeCondition{
				cond(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory"),
				cond(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure"),
				cond(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID"),
				cond(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady"),
			},
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("198.18.%d.%d", i/250, 1+i%250)}},
			NodeInfo: corev1.NodeSystemInfo{
				OperatingSystem: "linux", Architecture: "amd64", KubeletVersion: "v1.37.2", ContainerRuntimeVersion: "hollow://1",
			},
		},
	}
}

// run renews leases and serves pods until ctx ends. ready is called once the watch
// is open: no pod that is made afterwards is missed.
func (h *hollow) run(ctx context.Context, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	tasks := newTasks()
	g.Go(func() error { return h.heartbeats(ctx) })
	for range h.d.Writers {
		g.Go(func() error { return h.write(ctx, tasks) })
	}
	g.Go(func() error { return h.follow(ctx, tasks, ready) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// follow watches the pods. A server may end a watch at any time (upstream's does
// when a client falls behind): as a kubelet would, it goes on with the next.
func (h *hollow) follow(ctx context.Context, tasks *tasks, ready func()) error {
	pods := client.For[*corev1.Pod](h.d.Client).In(h.d.Namespace)
	for first := true; ctx.Err() == nil; first = false {
		existing, meta, err := pods.List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("hollow kubelets: %w", err)
		}
		w, err := pods.Watch(ctx, metav1.ListOptions{ResourceVersion: meta.ResourceVersion})
		if err != nil {
			return fmt.Errorf("hollow kubelets: %w", err)
		}
		for _, p := range existing {
			h.offer(tasks, watch.Added, p)
		}
		if first {
			ready()
		}
		for e := range w.Events() {
			if e.Err != nil {
				break
			}
			if p, ok := e.Object.(*corev1.Pod); ok {
				h.offer(tasks, e.Type, p)
			}
		}
	}
	return ctx.Err()
}

// offer takes note of a pod's state and hands out the write that it needs. It
// never blocks: who does not read a watch loses it.
func (h *hollow) offer(q *tasks, t watch.EventType, p *corev1.Pod) {
	if next := h.observe(t, p); next != nil {
		q.put(*next)
	}
}

// tasks is an unbounded queue of writes.
type tasks struct {
	mu    sync.Mutex
	items []task
	more  chan struct{}
}

func newTasks() *tasks { return &tasks{more: make(chan struct{}, 1)} }

func (q *tasks) put(t task) {
	q.mu.Lock()
	q.items = append(q.items, t)
	q.mu.Unlock()
	q.wake()
}

func (q *tasks) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// take waits for a write to do.
func (q *tasks) take(ctx context.Context) (task, error) {
	for {
		q.mu.Lock()
		if len(q.items) > 0 {
			t := q.items[0]
			q.items = q.items[1:]
			left := len(q.items)
			q.mu.Unlock()
			if left > 0 {
				q.wake()
			}
			return t, nil
		}
		q.mu.Unlock()
		select {
		case <-q.more:
		case <-ctx.Done():
			return task{}, ctx.Err()
		}
	}
}

// observe is what a kubelet decides on a pod: to report it running (or succeeded)
// when it is first seen bound, to remove it when it is first seen ending, and otherwise
// nothing.
func (h *hollow) observe(t watch.EventType, p *corev1.Pod) *task {
	if !h.mine[p.Spec.NodeName] || t == watch.Bookmark {
		return nil
	}
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if t == watch.Deleted {
		delete(h.pods, p.UID)
		return nil
	}
	s := h.pods[p.UID]
	if s == nil {
		s = &hollowPod{}
		h.pods[p.UID] = s
	}
	var out *task
	switch {
	case p.DeletionTimestamp != nil:
		if !s.ending {
			s.ending = true
			out = &task{pod: p, remove: true}
		}
		return out
	case !s.bound:
		s.bound = true
		h.bound++
		h.boundAt = now
		out = &task{pod: p}
	case !s.ready && (isReady(p) || p.Status.Phase == corev1.PodSucceeded):
		s.ready = true
		h.ready++
		h.readyAt = now
	default:
		return nil
	}
	close(h.changed)
	h.changed = make(chan struct{})
	return out
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// state is how many pods were bound and Ready, and when the last of each was.
func (h *hollow) state() (bound, ready int, boundAt, readyAt time.Time, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bound, h.ready, h.boundAt, h.readyAt, h.changed
}

// wait until n pods are bound and Ready (or Succeeded), and say when the last of each was.
func (h *hollow) wait(ctx context.Context, n int) (boundAt, readyAt time.Time, err error) {
	for {
		bound, ready, boundAt, readyAt, changed := h.state()
		if bound >= n && ready >= n {
			return boundAt, readyAt, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return boundAt, readyAt, fmt.Errorf("%d of %d pods bound, %d Ready: %w", bound, n, ready, context.Cause(ctx))
		}
	}
}

func (h *hollow) write(ctx context.Context, q *tasks) error {
	w := h.d.NewWriter()
	defer w.close()
	for {
		t, err := q.take(ctx)
		if err != nil {
			return err
		}
		if t.remove {
			err = w.remove(ctx, t.pod.Namespace, t.pod.Name, string(t.pod.UID))
		} else {
			err = w.patchStatus(ctx, t.pod.Namespace, t.pod.Name, statusPatch(t.pod, h.d.Now()))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("hollow kubelets: %w", err)
		}
	}
}

// heartbeats renews every node's lease once per interval, evenly spread.
func (h *hollow) heartbeats(ctx context.Context) error {
	if h.d.Nodes == 0 {
		return nil
	}
	leases := client.For[*coordinationv1.Lease](h.d.Client).In(corev1.NamespaceNodeLease)
	const slices = 100
	t := time.NewTicker(max(h.d.Heartbeat/slices, time.Millisecond))
	defer t.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		// Together, so that thousands of nodes stay in time beside a busy server.
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(16)
		for i := turn % slices; i < h.d.Nodes; i += slices {
			g.Go(func() error {
				patch := fmt.Appendf(nil, `{"spec":{"renewTime":%q}}`, h.d.Now().UTC().Format(metav1.RFC3339Micro))
				if _, err := leases.Patch(gctx, h.node(i), types.MergePatchType, patch, ""); err != nil {
					return fmt.Errorf("hollow kubelets: renew lease: %w", err)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
	}
}

// unregister removes nodes and leases.
func (h *hollow) unregister(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	lo := metav1.ListOptions{LabelSelector: runLabel + "=" + h.d.Run}
	return errors.Join(
		client.For[*corev1.Node](h.d.Client).DeleteCollection(ctx, metav1.DeleteOptions{}, lo),
		client.For[*coordinationv1.Lease](h.d.Client).In(corev1.NamespaceNodeLease).DeleteCollection(ctx, metav1.DeleteOptions{}, lo),
	)
}

// statusPatch is what a kubelet says of a pod whose containers run and are ready, or,
// where it has the label endsLabel, ended with code 0.
func statusPatch(p *corev1.Pod, at time.Time) []byte {
	now := at.UTC().Format(time.RFC3339)
	ends := p.Labels[endsLabel] != ""
	phase := corev1.PodRunning
	if ends {
		phase = corev1.PodSucceeded
	}
	b := fmt.Appendf(nil, `{"metadata":{"uid":%q},"status":{"phase":%q,"startTime":%q,"hostIP":"198.18.0.1","hostIPs":[{"ip":"198.18.0.1"}],`+
		`"podIP":"198.19.0.1","podIPs":[{"ip":"198.19.0.1"}],"conditions":[`, p.UID, phase, now)
	for i, c := range []string{"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"} {
		if i > 0 {
			b = append(b, ',')
		}
		status, reason := "True", ""
		if ends {
			reason = `"reason":"PodCompleted",`
			if c != "Initialized" {
				status = "False"
			}
		}
		b = fmt.Appendf(b, `{"type":%q,"status":%q,%s"lastTransitionTime":%q}`, c, status, reason, now)
	}
	b = append(b, `],"containerStatuses":[`...)
	for i, c := range p.Spec.Containers {
		if i > 0 {
			b = append(b, ',')
		}
		id := "hollow://" + strconv.Itoa(i) + "-" + string(p.UID)
		state := fmt.Sprintf(`{"running":{"startedAt":%q}}`, now)
		if ends {
			state = fmt.Sprintf(`{"terminated":{"exitCode":0,"reason":"Completed","startedAt":%q,"finishedAt":%q,"containerID":%q}}`, now, now, id)
		}
		b = fmt.Appendf(b, `{"name":%q,"image":%q,"imageID":"hollow","containerID":%q,"ready":%t,"started":%t,"restartCount":0,"state":%s}`,
			c.Name, c.Image, id, !ends, !ends, state)
	}
	return append(b, `]}}`...)
}

// wireWriter writes over a connection of its own.
type wireWriter struct{ c caller }

func (w wireWriter) close() { w.c.close() }

func (w wireWriter) patchStatus(ctx context.Context, ns, name string, patch []byte) error {
	return w.write(ctx, request{
		http.MethodPatch, "/api/v1/namespaces/" + ns + "/pods/" + name + "/status?fieldManager=kubelet",
		"application/strategic-merge-patch+json", asProtobuf, patch,
	})
}

func (w wireWriter) remove(ctx context.Context, ns, name, uid string) error {
	return w.write(ctx, request{
		http.MethodDelete, "/api/v1/namespaces/" + ns + "/pods/" + name, asJSON, asJSON,
		fmt.Appendf(nil, `{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0,"preconditions":{"uid":%q}}`, uid),
	})
}

// write takes a pod that is gone already for done.
func (w wireWriter) write(ctx context.Context, r request) error {
	code, body, err := w.c.call(ctx, r)
	if err != nil {
		return err
	}
	if code >= 400 && code != http.StatusNotFound {
		return answerError(r, code, body)
	}
	return nil
}
