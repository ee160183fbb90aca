package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

type phase int

const (
	syncing phase = iota
	terminating
	terminated
)

// waiting is why a container could not be started.
type waiting struct{ reason, message string }

// verdict is a final status that overrides what the containers say: the pod was
// refused or ended by the kubelet.
type verdict struct {
	reason, message string
	// rejected: the node did not take the pod in.
	rejected bool
	// grace, in seconds, overrides the pod's where not nil.
	grace *int64
	// disruption: the pod ends for the node's sake, which a condition tells.
	disruption bool
}

// worker drives one pod. See the package's documentation.
type worker struct {
	left bool // Leave was called
	k    *Kubelet
	uid  types.UID
	wake chan struct{}

	mu sync.Mutex
	// pod is the newest the API had, or what an orphan's labels tell.
	pod *corev1.Pod
	// gone: the API has no such pod any more.
	gone bool
	// cancel ends what the worker is doing, where something changed that must
	// not wait for it.
	cancel context.CancelFunc
	// condemned is a verdict that others passed.
	condemned *verdict
	// refresh: what a volume or variable refers to has changed.
	refresh bool

	status *statusWriter
	probes *probes

	// The rest belongs to the worker's goroutine.
	phase phase
	// allocation is changed, and read by others, while Kubelet.admission is held.
	allocation allocation
	resize     resize
	verdict    *verdict
	admitted   bool
	waiting    map[string]waiting
	blocked    map[string]time.Time // start no earlier
	crash      map[string]backoff
	pulls      map[string]*pull
	failures   int // sandbox and volume failures in a row
	volumes    volumeState
	killed     map[string]bool // Killing was told, hook was run
	deleted    bool
	cleaned    bool

	// seen is when the pod came.
	seen time.Time
	// cleanup is closed when nothing of the pod takes the node's room any more.
	cleanup chan struct{}
}

type volumeState struct {
	ready   bool
	stale   bool // what they refer to has changed
	paths   map[string]string
	refresh time.Time
	retry   time.Time
	delay   time.Duration
	// attachBy is when it is told that the pod waits for volumes to be attached.
	attachBy time.Time
}

func newWorker(k *Kubelet, pod *corev1.Pod) *worker {
	w := &worker{
		k: k, uid: pod.UID, pod: pod, seen: k.d.Now(), wake: make(chan struct{}, 1), cleanup: make(chan struct{}),
		waiting: map[string]waiting{}, blocked: map[string]time.Time{}, crash: map[string]backoff{},
		pulls: map[string]*pull{}, killed: map[string]bool{},
		allocation: recordedAllocation(pod), resize: resumeResize(pod),
	}
	// What kept containers from starting before a restart still does until it is
	// tried again.
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, st := range list {
			if x := st.State.Waiting; x != nil && x.Reason != "" && x.Reason != reasonCreating && x.Reason != reasonInitializing {
				w.waiting[st.Name] = waiting{x.Reason, x.Message}
			}
		}
	}
	w.status = newStatusWriter(k, pod)
	w.probes = newProbes(w)
	w.wake <- struct{}{}
	return w
}

func (w *worker) log() *slog.Logger {
	p, _ := w.current()
	return w.k.d.Log.With("pod", p.Name, "ns", p.Namespace)
}

func (w *worker) current() (pod *corev1.Pod, gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod, w.gone
}

// kick wakes the worker.
func (w *worker) kick() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// setGone tells that the API has no such pod any more.
func (w *worker) setGone() {
	w.mu.Lock()
	w.gone = true
	w.interrupt()
	w.mu.Unlock()
	w.kick()
}

// interrupt ends what the worker is doing. w.mu is held.
func (w *worker) interrupt() {
	if w.cancel != nil {
		w.cancel()
	}
}

// condemn has the pod ended with a verdict; the first one counts.
func (w *worker) condemn(v *verdict) {
	w.mu.Lock()
	if w.condemned == nil {
		w.condemned = v
		w.interrupt()
	}
	w.mu.Unlock()
	w.kick()
}

// sentence is the verdict that others passed, nil for none.
func (w *worker) sentence() *verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.condemned
}

// refChanged tells that an object to which the pod refers has changed.
func (w *worker) refChanged() {
	w.mu.Lock()
	w.refresh = true
	w.mu.Unlock()
	w.kick()
}

// setPod takes a newer state of the pod from the API.
func (w *worker) setPod(pod *corev1.Pod) {
	w.mu.Lock()
	old := w.pod
	if !newer(pod, old) {
		w.mu.Unlock()
		return
	}
	w.pod = pod
	relevant := old == pod || pod.DeletionTimestamp != nil || w.gone ||
		!equality.Semantic.DeepEqual(old.Spec, pod.Spec) ||
		!equality.Semantic.DeepEqual(old.Labels, pod.Labels) ||
		!equality.Semantic.DeepEqual(old.Annotations, pod.Annotations) ||
		!sameForeignConditions(old, pod)
	if pod.DeletionTimestamp != nil {
		shorter := old.DeletionGracePeriodSeconds != nil && pod.DeletionGracePeriodSeconds != nil &&
			*pod.DeletionGracePeriodSeconds < *old.DeletionGracePeriodSeconds
		if old.DeletionTimestamp == nil || shorter {
			w.interrupt()
		}
	}
	if !equality.Semantic.DeepEqual(old.Labels, pod.Labels) || !equality.Semantic.DeepEqual(old.Annotations, pod.Annotations) {
		w.refresh = true // the downward API shows them
	}
	w.mu.Unlock()
	w.status.setBase(pod)
	if relevant {
		w.kick()
	}
}

// op returns a context for work that a deletion interrupts.
func (w *worker) op(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	w.cancel = cancel
	w.mu.Unlock()
	return ctx, func() {
		w.mu.Lock()
		w.cancel = nil
		w.mu.Unlock()
		cancel()
	}
}

func (w *worker) run(ctx context.Context) {
	defer w.k.forget(w)
	defer w.probes.stopAll()
	defer w.k.refs.drop(w)
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		done, next := w.step(ctx)
		if done {
			return
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(max(next.Sub(w.k.d.Now()), time.Millisecond))
		}
	}
}

// A pod with many containers takes some rounds to start; one that takes more than
// maxRounds in a row rests.
const (
	maxRounds       = 200
	restAfterRounds = 5 * time.Second
)

// step does what is to be done now. done ends the worker; next, where not zero,
// is when to come back.
func (w *worker) step(ctx context.Context) (done bool, next time.Time) {
	for round := 0; ctx.Err() == nil; round++ {
		if round == maxRounds {
			// What is done has no effect: something lies, and is given time.
			w.log().Warn("pod does not come to rest")
			return false, w.k.d.Now().Add(restAfterRounds)
		}
		pod, gone := w.current()
		if w.verdict == nil && w.phase == syncing {
			w.verdict = w.sentence()
		}
		if w.phase == syncing && (gone || pod.DeletionTimestamp != nil || w.verdict != nil) {
			w.phase = terminating
		}
		var again bool
		switch w.phase {
		case syncing:
			again, next = w.sync(ctx, pod)
		case terminating:
			again, next = w.terminate(ctx, pod, gone)
		default:
			again, done, next = w.finish(ctx, pod, gone)
		}
		if done || !again {
			return done, next
		}
	}
	return false, time.Time{}
}

// sync brings a pod that is to run one round further. again asks for another
// round at once.
func (w *worker) sync(ctx context.Context, pod *corev1.Pod) (again bool, next time.Time) {
	now := w.k.d.Now()
	w.takeRefresh()
	o, err := w.k.observe(ctx, w.uid)
	if err != nil {
		w.log().Warn("observe pod", "err", err)
		return false, now.Add(time.Second)
	}
	if !w.admitted && !w.admit(pod, o) {
		return true, time.Time{}
	}
	pod = w.allocate(pod)
	w.followResize(pod, o)
	st := w.generate(pod, o, false)
	if final(st.Phase) {
		if err := w.giveBack(ctx, o); err != nil {
			return false, now.Add(retryDelay(w.failures))
		}
	}
	if st.Phase == corev1.PodRunning && w.status.current().Phase == corev1.PodPending {
		w.k.figures.podStart.Observe(now.Sub(w.seen).Seconds())
	}
	w.status.set(st)
	if st.Phase == corev1.PodSucceeded || st.Phase == corev1.PodFailed {
		w.phase = terminating
		return true, time.Time{}
	}
	if at := deadline(pod, &st); !at.IsZero() {
		if !now.Before(at) {
			w.verdict = &verdict{reason: "DeadlineExceeded", message: "Pod was active on the node longer than the specified deadline"}
			w.event(pod, corev1.EventTypeNormal, "DeadlineExceeded", w.verdict.message)
			return true, time.Time{}
		}
		next = at
	}
	w.probes.follow(pod, o, &st)

	opctx, end := w.op(ctx)
	defer end()
	if p, gone := w.current(); gone || p.DeletionTimestamp != nil || w.sentence() != nil {
		return true, time.Time{}
	}
	var a actions
	if c := condition(st.Conditions, corev1.AllContainersRestarting); c != nil && c.Status == corev1.ConditionTrue {
		a.reset = planReset(pod, o)
	} else {
		a = plan(pod, o, w.probes)
	}
	acted, at := w.do(opctx, pod, o, a, &st)
	if acted {
		return true, time.Time{}
	}
	next = earliest(next, at)
	next = earliest(next, w.refreshVolumes(opctx, pod))
	w.collect(ctx, pod, o)
	return false, next
}

// admit asks once whether the node has room. The status, with its start time, is
// set under the same lock: it is what later ones see of this pod.
func (w *worker) admit(pod *corev1.Pod, o *observed) bool {
	w.k.admission.Lock()
	defer w.k.admission.Unlock()
	if !w.k.ranBefore(pod, o) {
		w.allocation = allocationOf(pod)
		w.verdict = w.k.admit(pod)
	}
	w.admitted = w.verdict == nil
	w.status.set(w.generate(pod, o, !w.admitted))
	if !w.admitted {
		w.k.figures.reject(w.verdict.reason)
		w.event(pod, corev1.EventTypeWarning, w.verdict.reason, w.verdict.message)
	}
	return w.admitted
}

func deadline(pod *corev1.Pod, st *corev1.PodStatus) time.Time {
	if pod.Spec.ActiveDeadlineSeconds == nil || st.StartTime == nil {
		return time.Time{}
	}
	return st.StartTime.Add(time.Duration(*pod.Spec.ActiveDeadlineSeconds) * time.Second)
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// finish leaves nothing of a pod that has ended but its record, and not even
// that where it is deleted.
func (w *worker) finish(ctx context.Context, pod *corev1.Pod, gone bool) (again, done bool, next time.Time) {
	retry := func(what string, err error) (bool, bool, time.Time) {
		w.log().Warn(what, "err", err)
		w.failures++
		return false, false, w.k.d.Now().Add(retryDelay(w.failures))
	}
	if !w.cleaned {
		if err := w.k.d.Volumes.Teardown(ctx, w.uid); err != nil {
			return retry("remove volumes", err)
		}
		w.k.sources.used.drop(w.uid)
		w.k.sources.certificates.Forget(w.uid)
		if w.k.d.Cgroups != nil {
			if err := w.k.d.Cgroups.Remove(w.uid); err != nil {
				return retry("remove cgroup", err)
			}
		}
		if err := w.k.users.Release(w.uid); err != nil {
			return retry("release IDs", err)
		}
		w.k.refs.drop(w)
		w.cleaned = true
		close(w.cleanup)
		w.failures = 0
	}
	if !gone && !w.deleted {
		// The final status must be in the API before the object goes.
		if err := w.status.flush(ctx); err != nil {
			return retry("write final status", err)
		}
		if pod.DeletionTimestamp == nil {
			return false, false, time.Time{}
		}
		if err := w.deleteObject(ctx, pod); err != nil {
			return retry("delete pod object", err)
		}
		w.deleted = true
	}
	if err := w.k.removeRuntime(ctx, w.uid); err != nil {
		return retry("remove sandbox", err)
	}
	w.k.removePodDirs(pod)
	w.k.retryResizes(w)
	// Where finalizers hold the object, the worker waits for its end.
	if _, gone = w.current(); gone {
		return false, true, time.Time{}
	}
	return false, false, time.Time{}
}

// giveBack has the pod's devices unprepared, once nothing of it runs. A pod does not
// show a final status before that: it frees the devices for others.
func (w *worker) giveBack(ctx context.Context, o *observed) error {
	if !w.k.devices.Holds(w.uid) {
		return nil
	}
	for i := range o.containers {
		if o.containers[i].running() {
			return fmt.Errorf("container %s still runs", o.containers[i].name)
		}
	}
	if err := w.k.devices.Unprepare(ctx, w.uid); err != nil {
		w.failures++
		w.log().Warn("give devices back", "err", err)
		return err
	}
	return nil
}

func (w *worker) deleteObject(ctx context.Context, pod *corev1.Pod) error {
	zero := int64(0)
	err := client.For[*corev1.Pod](w.k.d.Client).In(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero,
		Preconditions:      &metav1.Preconditions{UID: &w.uid},
	})
	if apierrors.IsNotFound(err) || isOther(err) {
		return nil
	}
	return err
}

// retryDelay grows from half a second to ten seconds.
func retryDelay(failures int) time.Duration {
	d := 500 * time.Millisecond
	for i := 1; i < failures && d < 10*time.Second; i++ {
		d *= 2
	}
	return min(d, 10*time.Second)
}

func (w *worker) event(pod *corev1.Pod, eventType, reason, message string) {
	w.k.d.Events.Event(podRef(pod), eventType, reason, message)
}

func podRef(pod *corev1.Pod) *corev1.ObjectReference {
	return &corev1.ObjectReference{
		Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion,
	}
}

// containerEvent records an event about a container of a pod.
func (w *worker) containerEvent(pod *corev1.Pod, name, eventType, reason, message string) {
	ref := podRef(pod)
	ref.FieldPath = fieldPath(pod, name)
	w.k.d.Events.Event(ref, eventType, reason, message)
}

func fieldPath(pod *corev1.Pod, name string) string {
	for _, c := range pod.Spec.InitContainers {
		if c.Name == name {
			return fmt.Sprintf("spec.initContainers{%s}", name)
		}
	}
	for _, c := range pod.Spec.EphemeralContainers {
		if c.Name == name {
			return fmt.Sprintf("spec.ephemeralContainers{%s}", name)
		}
	}
	return fmt.Sprintf("spec.containers{%s}", name)
}
