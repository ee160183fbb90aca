package testcluster

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

// FleetDeps is what hollow nodes need.
type FleetDeps struct {
	Client    *client.Client
	Informers *client.Informers
	Now       func() time.Time
	// Roll is the dice of what pods do: a number below n. The place names who asks.
	Roll func(place string, n int) int
	// Start and Stop bound how long a pod takes to run, and to end.
	Start, Stop time.Duration
	// Workers handle pods at once, Heartbeat is the time between two renewals of a
	// node's lease; 16 and 10 s where zero.
	Workers   int
	Heartbeat time.Duration
}

// Fleet is many kubelets without containers: they renew leases, report pods as
// their annotations tell (see Plan), and end those that are deleted. A fleet's
// memory of a pod survives nothing: like a kubelet's containers, it is on the node.
type Fleet struct {
	d     FleetDeps
	pods  *client.Informer[*corev1.Pod]
	nodes *client.Informer[*corev1.Node]
	queue *control.Queue[control.Key]

	mu     sync.Mutex
	mine   map[string]*hollowNode
	memory map[types.UID]*life
	names  map[control.Key]types.UID
	order  []string // of mine
}

type hollowNode struct {
	silent bool
	slow   int // how many times slower than others
	lease  *coordinationv1.Lease
}

// NewFleet returns a fleet without nodes.
func NewFleet(d FleetDeps) *Fleet {
	if d.Workers == 0 {
		d.Workers = 16
	}
	if d.Heartbeat == 0 {
		d.Heartbeat = 10 * time.Second
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	f := &Fleet{
		d: d, queue: control.NewQueue[control.Key](), mine: map[string]*hollowNode{},
		memory: map[types.UID]*life{}, names: map[control.Key]types.UID{},
		pods: client.InformerFor[*corev1.Pod](d.Informers), nodes: client.InformerFor[*corev1.Node](d.Informers),
	}
	f.pods.AddIndex("fleet", func(p *corev1.Pod) []string {
		if p.Spec.NodeName == "" {
			return nil
		}
		return []string{p.Spec.NodeName}
	})
	return f
}

// Node is a node object as a kubelet registers it.
func Node(name string, list corev1.ResourceList, labels map[string]string, now time.Time) *corev1.Node {
	all := map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"}
	for k, v := range labels {
		all[k] = v
	}
	if _, ok := list[corev1.ResourcePods]; !ok {
		list = list.DeepCopy()
		list[corev1.ResourcePods] = resource.MustParse("110")
	}
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: all},
		Status: corev1.NodeStatus{
			Capacity: list, Allocatable: list,
			NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64", KubeletVersion: "v1.37.2", ContainerRuntimeVersion: "hollow://1"},
		},
	}
	conditions(n, now)
	return n
}

// conditions are those of a healthy node.
func conditions(n *corev1.Node, now time.Time) {
	at := metav1.NewTime(now)
	set := func(t corev1.NodeConditionType, s corev1.ConditionStatus, reason string) {
		for i := range n.Status.Conditions {
			if c := &n.Status.Conditions[i]; c.Type == t {
				if c.Status != s {
					c.LastTransitionTime = at
				}
				c.Status, c.Reason, c.Message, c.LastHeartbeatTime = s, reason, "", at
				return
			}
		}
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: t, Status: s, Reason: reason, LastHeartbeatTime: at, LastTransitionTime: at})
	}
	set(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory")
	set(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure")
	set(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID")
	set(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady")
}

// Add registers a node and begins to serve it.
func (f *Fleet) Add(ctx context.Context, n *corev1.Node) error {
	if _, err := client.For[*corev1.Node](f.d.Client).Create(ctx, n); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("register node: %w", err)
	}
	f.mu.Lock()
	if f.mine[n.Name] == nil {
		f.order = append(f.order, n.Name)
	}
	f.mine[n.Name] = &hollowNode{slow: 1}
	f.mu.Unlock()
	f.wakeNode(n.Name)
	return nil
}

// Stop ends a node's kubelet; its object stays.
func (f *Fleet) Stop(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mine, name)
	for i, n := range f.order {
		if n == name {
			f.order = append(f.order[:i:i], f.order[i+1:]...)
			break
		}
	}
}

// Silence cuts a node off, or ends that: its containers go on, and it says and
// hears nothing meanwhile.
func (f *Fleet) Silence(name string, silent bool) {
	f.mu.Lock()
	if n := f.mine[name]; n != nil {
		n.silent = silent
	}
	f.mu.Unlock()
	if !silent {
		f.wakeNode(name)
	}
}

// Slow makes a node take factor times as long for everything.
func (f *Fleet) Slow(name string, factor int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.mine[name]; n != nil {
		n.slow = factor
	}
}

// Names are the nodes that the fleet serves, in the order of their coming.
func (f *Fleet) Names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.order...)
}

func (f *Fleet) wakeNode(name string) {
	for _, p := range f.pods.ByIndex("fleet", name) {
		f.queue.Add(control.KeyOf(p))
	}
}

// Run serves the nodes until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	f.pods.OnChange(func(ch client.Change[*corev1.Pod]) {
		if p := ch.Object(); p.Spec.NodeName != "" {
			f.queue.Add(control.KeyOf(p))
		}
	})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.heartbeats(ctx) })
	g.Go(func() error {
		f.queue.Work(ctx, f.d.Workers, func(ctx context.Context, k control.Key) (time.Duration, error) { return 0, f.sync(ctx, k) })
		return nil
	})
	return g.Wait()
}

// served returns the node while it is there and hears something.
func (f *Fleet) served(name string) (slow int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.mine[name]
	if n == nil || n.silent {
		return 0, false
	}
	return n.slow, true
}

// sync takes a pod's next step.
func (f *Fleet) sync(ctx context.Context, k control.Key) error {
	p, there := f.pods.Get(k.Namespace, k.Name)
	f.mu.Lock()
	if old, ok := f.names[k]; ok && (!there || old != p.UID) {
		delete(f.memory, old)
		delete(f.names, k)
	}
	f.mu.Unlock()
	if !there {
		return nil
	}
	slow, ok := f.served(p.Spec.NodeName)
	if !ok {
		return nil
	}
	f.mu.Lock()
	l := f.memory[p.UID]
	if l == nil {
		l = f.begin(p, time.Duration(slow))
		f.memory[p.UID], f.names[k] = l, p.UID
	}
	f.mu.Unlock()
	s := l.next(p, time.Now())
	if s.wait > 0 {
		f.queue.AddAfter(k, s.wait)
	}
	var err error
	switch {
	case s.remove:
		err = client.For[*corev1.Pod](f.d.Client).In(k.Namespace).Delete(ctx, k.Name, metav1.DeleteOptions{
			GracePeriodSeconds: ptr.To(int64(0)), Preconditions: &metav1.Preconditions{UID: &p.UID},
		})
	case s.report != nil:
		next := p.DeepCopy()
		s.report(next, metav1.NewTime(f.d.Now()))
		_, err = client.For[*corev1.Pod](f.d.Client).UpdateStatus(ctx, next)
	}
	switch {
	case err == nil || apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err):
		// Its next state is on its way, or this one was put off by a fault.
		f.queue.AddAfter(k, 50*time.Millisecond)
		return nil
	case ctx.Err() != nil:
		return nil
	}
	return err
}

// heartbeats renews every node's lease once per interval, evenly spread, and
// brings back the conditions of a node that was given up.
func (f *Fleet) heartbeats(ctx context.Context) error {
	const slices = 10
	t := time.NewTicker(f.d.Heartbeat / slices)
	defer t.Stop()
	for turn := 0; ; turn++ {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		names := f.Names()
		// One after the other where they are few: simulation wants an order.
		var g errgroup.Group
		g.SetLimit(1 + min(len(names)/100, 31))
		for i := turn % slices; i < len(names); i += slices {
			if _, ok := f.served(names[i]); ok {
				g.Go(func() error { f.beat(ctx, names[i]); return nil })
			}
		}
		_ = g.Wait()
	}
}

func (f *Fleet) beat(ctx context.Context, name string) {
	leases := client.For[*coordinationv1.Lease](f.d.Client).In(corev1.NamespaceNodeLease)
	f.mu.Lock()
	n := f.mine[name]
	f.mu.Unlock()
	if n == nil {
		return
	}
	now := metav1.NewMicroTime(f.d.Now())
	var err error
	if n.lease == nil {
		n.lease, err = leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: corev1.NamespaceNodeLease},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: ptr.To(int32(40)), RenewTime: &now},
		})
		if apierrors.IsAlreadyExists(err) {
			n.lease, err = leases.Get(ctx, name)
		}
	} else {
		next := n.lease.DeepCopy()
		next.Spec.RenewTime = &now
		n.lease, err = leases.Update(ctx, next)
	}
	if err != nil {
		n.lease = nil // read, or made, at the next turn
	}
	o, ok := f.nodes.Get("", name)
	if !ok {
		return
	}
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return
		}
	}
	next := o.DeepCopy()
	conditions(next, f.d.Now())
	if _, err := client.For[*corev1.Node](f.d.Client).UpdateStatus(ctx, next); err == nil {
		f.wakeNode(name)
	}
}

// Annotations of a pod say what its containers do; without any they run for ever.
const (
	// Runs is how long the containers run before they end by themselves.
	Runs = "hollow.skiff/runs"
	// Fails is how many of a hundred runs end with the exit code of Exit.
	Fails = "hollow.skiff/fails"
	Exit  = "hollow.skiff/exit"
	// Never is what the pod never does: "start" or "ready".
	Never = "hollow.skiff/never"
)

// life is what a hollow node knows of a pod, and what will happen to it.
type life struct {
	start, end, stop time.Time // of its containers, as planned; end and stop zero: not
	run, stopping    time.Duration
	exit             func() int32 // of the next run
	stopExit         int32
	never            string
	said             bool // that it cannot start
	restarts         int32
}

func (f *Fleet) begin(p *corev1.Pod, slow time.Duration) *life {
	place := "pod on " + p.Spec.NodeName
	roll := func(most time.Duration) time.Duration {
		return slow * time.Duration(f.d.Roll(place, int(most/time.Millisecond)+1)) * time.Millisecond
	}
	l := &life{start: time.Now().Add(roll(f.d.Start)), stopping: roll(f.d.Stop), never: p.Annotations[Never], exit: func() int32 { return 0 }}
	if f.d.Roll(place, 3) > 0 {
		l.stopExit = 143
	}
	if run, err := time.ParseDuration(p.Annotations[Runs]); err == nil {
		l.run = max(roll(2*run), time.Millisecond)
	}
	fails, _ := strconv.Atoi(p.Annotations[Fails])
	code, _ := strconv.Atoi(p.Annotations[Exit])
	if fails > 0 {
		l.exit = func() int32 {
			if f.d.Roll(place, 100) < fails {
				return int32(max(code, 1)) //nolint:gosec // an exit code
			}
			return 0
		}
	}
	// A pod that was running before its node forgot it goes on.
	if p.Status.Phase == corev1.PodRunning {
		l.start = time.Now()
		l.end = l.ending(l.start)
	}
	return l
}

func (l *life) ending(from time.Time) time.Time {
	if l.run == 0 {
		return time.Time{}
	}
	return from.Add(l.run)
}

// step is what a hollow node does next with a pod.
type step struct {
	report func(p *corev1.Pod, now metav1.Time)
	remove bool
	wait   time.Duration
}

// next decides on a pod's next step.
func (l *life) next(p *corev1.Pod, now time.Time) step {
	ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	if p.DeletionTimestamp != nil {
		if l.stop.IsZero() {
			grace := time.Duration(ptr.Deref(p.DeletionGracePeriodSeconds, 30)) * time.Second
			l.stop = now.Add(min(l.stopping, grace))
		}
		switch {
		case now.Before(l.stop):
			return step{wait: l.stop.Sub(now)}
		case !ended:
			return step{report: func(p *corev1.Pod, at metav1.Time) { l.terminated(p, l.stopExit, at) }}
		case ptr.Deref(p.DeletionGracePeriodSeconds, 1) == 0 && len(p.Finalizers) > 0:
			return step{} // they hold it
		}
		return step{remove: true}
	}
	if ended {
		return step{}
	}
	if l.never == "start" {
		if l.said && len(p.Status.ContainerStatuses) > 0 {
			return step{}
		}
		l.said = true
		return step{report: func(p *corev1.Pod, at metav1.Time) { l.waiting(p, at) }}
	}
	if now.Before(l.start) {
		return step{wait: l.start.Sub(now)}
	}
	if l.end.IsZero() {
		l.end = l.ending(now)
	}
	want := l.never != "ready"
	if p.Status.Phase != corev1.PodRunning || isReady(p) != want {
		return step{report: func(p *corev1.Pod, at metav1.Time) { l.running(p, want, at) }}
	}
	if l.end.IsZero() {
		return step{}
	}
	if now.Before(l.end) {
		return step{wait: l.end.Sub(now)}
	}
	code := l.exit()
	again := p.Spec.RestartPolicy == corev1.RestartPolicyAlways || (code != 0 && p.Spec.RestartPolicy == corev1.RestartPolicyOnFailure)
	if again {
		l.restarts++
		l.end = l.ending(now)
		return step{wait: l.run, report: func(p *corev1.Pod, at metav1.Time) { l.running(p, want, at) }}
	}
	l.exit = func() int32 { return code } // until it is told
	return step{report: func(p *corev1.Pod, at metav1.Time) { l.terminated(p, code, at) }}
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func setConditions(p *corev1.Pod, ready bool, reason string, at metav1.Time) {
	for _, t := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady} {
		status := corev1.ConditionTrue
		if !ready && (t == corev1.PodReady || t == corev1.ContainersReady) {
			status = corev1.ConditionFalse
		}
		found := false
		for i := range p.Status.Conditions {
			if c := &p.Status.Conditions[i]; c.Type == t {
				if c.Status != status {
					c.Status, c.LastTransitionTime = status, at
				}
				c.Reason, found = reason, true
			}
		}
		if !found {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: t, Status: status, Reason: reason, LastTransitionTime: at})
		}
	}
	if p.Status.StartTime == nil {
		p.Status.StartTime = &at
	}
}

func (l *life) statuses(p *corev1.Pod, ready bool, s corev1.ContainerState) {
	p.Status.ContainerStatuses = nil
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, ImageID: "hollow", ContainerID: "hollow://" + c.Name, Ready: ready, Started: &ready,
			RestartCount: l.restarts, State: s,
		})
	}
}

func (l *life) waiting(p *corev1.Pod, at metav1.Time) {
	setConditions(p, false, "ContainersNotReady", at)
	l.statuses(p, false, corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}})
}

func (l *life) running(p *corev1.Pod, ready bool, at metav1.Time) {
	reason := ""
	if !ready {
		reason = "ContainersNotReady"
	}
	p.Status.Phase = corev1.PodRunning
	setConditions(p, ready, reason, at)
	l.statuses(p, ready, corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}})
}

func (l *life) terminated(p *corev1.Pod, code int32, at metav1.Time) {
	p.Status.Phase = corev1.PodSucceeded
	reason := "PodCompleted"
	if code != 0 {
		p.Status.Phase, reason = corev1.PodFailed, "PodFailed"
	}
	setConditions(p, false, reason, at)
	l.statuses(p, false, corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, FinishedAt: at}})
}

var errNoNode = errors.New("no such node")

// Resize changes what a node has to give.
func (f *Fleet) Resize(ctx context.Context, name string, list corev1.ResourceList) error {
	o, ok := f.nodes.Get("", name)
	if !ok {
		return errNoNode
	}
	next := o.DeepCopy()
	for k, v := range list {
		next.Status.Capacity[k], next.Status.Allocatable[k] = v, v
	}
	_, err := client.For[*corev1.Node](f.d.Client).UpdateStatus(ctx, next)
	return err
}
