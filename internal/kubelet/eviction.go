package kubelet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"skiff/internal/kubelet/eviction"
)

const (
	// pressurePeriod is how often it is looked whether the node is short of something.
	pressurePeriod = 10 * time.Second
	// cleanupAtMost bounds how long the next look waits for evicted pods to be gone.
	cleanupAtMost = 30 * time.Second
)

// pressure is what the node was found short of, and what was done about it.
type pressure struct {
	mu    sync.Mutex
	state eviction.State
	// evicted counts pods by what they went for.
	evicted map[string]uint64
}

func (p *pressure) conditions() []corev1.NodeConditionType {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Conditions
}

func (p *pressure) count(signal string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.evicted == nil {
		p.evicted = map[string]uint64{}
	}
	p.evicted[signal]++
}

// watchPressure evicts pods while the node is short of something.
func (k *Kubelet) watchPressure(ctx context.Context) error {
	for {
		wait := pressurePeriod
		if gone := k.relieve(ctx); len(gone) > 0 {
			// What they had is measured again when it is free.
			k.awaitCleanup(ctx, gone)
			wait = 0
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

func (k *Kubelet) awaitCleanup(ctx context.Context, gone []*worker) {
	t := time.NewTimer(cleanupAtMost)
	defer t.Stop()
	for _, w := range gone {
		select {
		case <-w.cleanup:
		case <-ctx.Done():
			return
		case <-t.C:
			k.d.Log.Warn("evicted pods are not gone yet")
			return
		}
	}
}

// look measures the node and takes down what it is short of.
func (k *Kubelet) look() (eviction.Observations, []eviction.Threshold) {
	seen := k.d.Observe()
	k.pressure.mu.Lock()
	next, due := k.d.Eviction.Next(k.pressure.state, seen, k.d.Now())
	changed := !slices.Equal(next.Conditions, k.pressure.state.Conditions)
	k.pressure.state = next
	k.pressure.mu.Unlock()
	if changed {
		k.node.lookNow()
	}
	return seen, due
}

// relieve looks at the node once and evicts pods where it must: those that are beyond
// limits of their own, or else one for what the node is short of.
func (k *Kubelet) relieve(ctx context.Context) []*worker {
	seen, due := k.look()
	candidates := k.evictable()
	layout := eviction.Layout{ImageFs: k.imageFs()}
	if gone := k.evictLimited(ctx, candidates, layout); len(gone) > 0 || len(due) == 0 {
		return gone
	}
	t := due[0]
	k.nodeEvent(corev1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", t.Signal.Resource()))
	if k.reclaim(ctx, t.Signal, layout) && !k.d.Eviction.Crossed(k.d.Observe()) {
		return nil
	}
	pods := make([]*corev1.Pod, 0, len(candidates))
	for p := range candidates {
		pods = append(pods, p)
	}
	if len(pods) == 0 {
		k.d.Log.Warn("the node is short and has no pods to evict", "signal", t.Signal)
		return nil
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	usages := k.usages(ctx, pods, eviction.DiskSignal(t.Signal))
	eviction.Rank(pods, usages, t.Signal, layout)
	for _, p := range pods {
		message, annotations := eviction.Message(t, due, seen, p, usages)
		grace := k.d.Eviction.Grace(t, p)
		v := &verdict{reason: eviction.Reason, message: message, grace: &grace, disruption: true}
		if k.evict(candidates[p], p, v, annotations) {
			k.pressure.count(string(t.Signal))
			return []*worker{candidates[p]}
		}
	}
	k.d.Log.Warn("no pod can be evicted", "signal", t.Signal)
	return nil
}

// evictable are the pods that run here and are not on their way out, with their workers.
func (k *Kubelet) evictable() map[*corev1.Pod]*worker {
	out := map[*corev1.Pod]*worker{}
	for _, w := range k.allWorkers() {
		p, gone := w.current()
		if st := w.status.current(); gone || p.DeletionTimestamp != nil || p.Spec.Containers == nil || st.StartTime == nil || final(st.Phase) || w.sentence() != nil {
			continue
		}
		out[p] = w
	}
	return out
}

// evictLimited evicts every pod that is beyond a limit of its own.
func (k *Kubelet) evictLimited(ctx context.Context, candidates map[*corev1.Pod]*worker, layout eviction.Layout) []*worker {
	var limited []*corev1.Pod
	for p := range candidates {
		if eviction.Limited(p) {
			limited = append(limited, p)
		}
	}
	if len(limited) == 0 {
		return nil
	}
	var gone []*worker
	usages := k.usages(ctx, limited, true)
	for _, p := range limited {
		u, ok := usages(p)
		if !ok {
			continue
		}
		x := eviction.Local(p, u, layout)
		if x == nil {
			continue
		}
		grace := int64(eviction.Immediately)
		if k.evict(candidates[p], p, &verdict{reason: eviction.Reason, message: x.Message, grace: &grace}, nil) {
			k.pressure.count(x.Signal)
			gone = append(gone, candidates[p])
		}
	}
	return gone
}

// evict has a pod ended, unless the cluster cannot do without it.
func (k *Kubelet) evict(w *worker, pod *corev1.Pod, v *verdict, annotations map[string]string) bool {
	if eviction.Critical(pod) {
		k.d.Log.Warn("a critical pod is not evicted", "pod", pod.Name, "ns", pod.Namespace)
		return false
	}
	k.d.Events.AnnotatedEvent(podRef(pod), annotations, corev1.EventTypeWarning, v.reason, v.message)
	k.d.Log.Info("pod is evicted", "pod", pod.Name, "ns", pod.Namespace, "message", v.message)
	w.condemn(v)
	return true
}

// refuse tells why the node, short of something, does not take a pod in.
func (k *Kubelet) refuse(pod *corev1.Pod) *verdict {
	m := eviction.Refusal(k.pressure.conditions(), pod, qosClass(pod), func(t corev1.Taint) bool {
		return slices.ContainsFunc(pod.Spec.Tolerations, func(o corev1.Toleration) bool { return o.ToleratesTaint(klog.Logger{}, &t, false) })
	})
	if m == "" {
		return nil
	}
	return &verdict{reason: eviction.Reason, message: m, rejected: true}
}

// cacheStep is how much of the cache is freed before the disk is looked at again, bytes.
const cacheStep = 256 << 20

// reclaim frees what is the node's own: containers that have ended, images that
// nothing uses and then, as far as it must be, what is kept for later. It tells whether there was anything to try.
func (k *Kubelet) reclaim(ctx context.Context, s eviction.Signal, l eviction.Layout) bool {
	nodeAlone := l.ImageFs && (s == eviction.NodeFsAvailable || s == eviction.NodeFsInodesFree)
	if !eviction.DiskSignal(s) || nodeAlone {
		return false
	}
	k.removeDead(ctx)
	if err := k.gc.free(ctx, allUnused); err != nil {
		k.d.Log.Warn("remove unused images", "err", err)
	}
	for k.d.FreeCache != nil && k.d.Eviction.DiskCrossed(k.d.Observe()) {
		freed, err := k.d.FreeCache(ctx, cacheStep)
		if err != nil {
			k.d.Log.Warn("free the build cache", "err", err)
		}
		if err != nil || freed == 0 {
			break
		}
		k.d.Log.Info("build cache is freed", "bytes", freed)
	}
	return true
}

// removeDead has every worker remove the containers of its pod that have ended. Those
// whose records or logs somebody may still want are among them: the node is short.
func (k *Kubelet) removeDead(ctx context.Context) {
	for _, w := range k.allWorkers() {
		o, err := k.observe(ctx, w.uid)
		if err != nil {
			k.d.Log.Warn("observe pod", "err", err)
			continue
		}
		pod, _ := w.current()
		st := w.status.current()
		for i := range o.containers {
			// Of a pod that goes on, the last attempt of a container is what the next
			// follows from; so it is where somebody may start it again.
			c := &o.containers[i]
			if !c.exited() || (!final(st.Phase) || keepsFiles(pod)) && o.latest(c.name) == c {
				continue
			}
			if err := k.d.Runtime.RemoveContainer(ctx, c.id); err != nil {
				k.d.Log.Warn("remove dead container", "pod", pod.Name, "ns", pod.Namespace, "err", err)
				continue
			}
			k.removeLogs(c.logPath)
		}
	}
}

// observeMachine measures what the machine has left.
func (k *Kubelet) observeMachine() eviction.Observations {
	out := eviction.Observations{}
	set := func(s eviction.Signal, f resource.Format, available, capacity int64) {
		out[s] = eviction.Observation{Available: *resource.NewQuantity(available, f), Capacity: *resource.NewQuantity(capacity, f)}
	}
	if m := k.measureNode(metav1.NewTime(k.d.Now())).Memory; k.memory > 0 {
		set(eviction.MemoryAvailable, resource.BinarySI, int64(*m.AvailableBytes), int64(*m.AvailableBytes+*m.WorkingSetBytes))
	}
	if left, may, ok := k.podsMemory(); ok {
		set(eviction.AllocatableMemoryAvailable, resource.BinarySI, left, may)
	}
	disks := func(d disk, bytes, inodes eviction.Signal) {
		if d.size > 0 {
			set(bytes, resource.BinarySI, d.free, d.size)
		}
		if d.inodes > 0 {
			set(inodes, resource.DecimalSI, d.inodesFree, d.inodes)
		}
	}
	disks(diskOf(k.d.Host.DataDir), eviction.NodeFsAvailable, eviction.NodeFsInodesFree)
	disks(diskOf(k.d.ImageDir), eviction.ImageFsAvailable, eviction.ImageFsInodesFree)
	if used, all, ok := processes(); ok {
		set(eviction.PIDAvailable, resource.DecimalSI, all-used, all)
	}
	return out
}

// imageFs tells whether images are on a file system of their own.
func (k *Kubelet) imageFs() bool { return deviceOf(k.d.ImageDir) != deviceOf(k.d.Host.DataDir) }

// usages measures pods; with disks, what they have on them too.
func (k *Kubelet) usages(ctx context.Context, pods []*corev1.Pod, disks bool) eviction.Usages {
	s, err := k.summarize(ctx)
	if err != nil {
		k.d.Log.Warn("measure pods", "err", err)
		s = &summary{}
	}
	counts := k.processCounts(ctx)
	out := map[types.UID]eviction.Usage{}
	for i := range s.Pods {
		p := &s.Pods[i]
		u := eviction.Usage{Processes: counts[p.PodRef.UID]}
		if p.Memory != nil && p.Memory.WorkingSetBytes != nil {
			u.Memory = signed(p.Memory.WorkingSetBytes)
		}
		for j := range p.Containers {
			c := &p.Containers[j]
			x := eviction.Container{Name: c.Name}
			if c.Memory != nil {
				x.Memory = signed(c.Memory.WorkingSetBytes)
			}
			if c.written != nil {
				x.Root = &eviction.Disk{Bytes: int64(c.written.GetUsedBytes().GetValue()), Inodes: int64(c.written.GetInodesUsed().GetValue())}
			}
			u.Containers = append(u.Containers, x)
		}
		out[types.UID(p.PodRef.UID)] = u
	}
	for _, p := range pods {
		u, ok := out[p.UID]
		if !ok || !disks {
			continue
		}
		for i := range u.Containers {
			logs := k.du.of(k.containerLogDir(p, u.Containers[i].Name), k.d.Now())
			u.Containers[i].Logs = &logs
		}
		u.Volumes = map[string]eviction.Disk{}
		for name, dir := range k.d.Volumes.LocalDirs(p) {
			u.Volumes[name] = k.du.of(dir, k.d.Now())
		}
		out[p.UID] = u
	}
	return func(p *corev1.Pod) (eviction.Usage, bool) {
		u, ok := out[p.UID]
		return u, ok
	}
}

func signed(n *uint64) *int64 {
	if n == nil {
		return nil
	}
	v := int64(*n)
	return &v
}

// processCounts are the pods' numbers of processes, by their UIDs; none where the
// runtime does not tell.
func (k *Kubelet) processCounts(ctx context.Context) map[string]int64 {
	list, err := k.d.Runtime.ListPodSandboxStats(ctx, nil)
	if err != nil {
		return nil
	}
	out := map[string]int64{}
	for _, s := range list {
		out[s.GetAttributes().GetMetadata().GetUid()] += int64(s.GetLinux().GetProcess().GetProcessCount().GetValue())
	}
	return out
}
