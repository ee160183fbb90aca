package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/client"
)

// stepTimeout bounds a single call that makes or removes something in the
// runtime: it is not interrupted by a deletion, so that no answer is lost.
const stepTimeout = 4 * time.Minute

// sandboxKey stands for the sandbox among the names in worker.blocked.
const sandboxKey = "\x00sandbox"

// do carries out what plan said. acted tells that something was tried, so that
// the pod is to be looked at again; next is when what is held back may be tried.
func (w *worker) do(ctx context.Context, pod *corev1.Pod, o *observed, a actions, st *corev1.PodStatus) (acted bool, next time.Time) {
	now := w.k.d.Now()
	if len(a.reset) > 0 {
		if err := w.resetAll(ctx, pod, a.reset); err != nil {
			if ctx.Err() == nil {
				w.log().Warn("restart all containers", "err", err)
			}
			return false, now.Add(time.Second)
		}
		return true, time.Time{}
	}
	if len(a.kill) > 0 {
		acted = true
		g, kctx := errgroup.WithContext(ctx)
		for _, x := range a.kill {
			g.Go(func() error { return w.killForRestart(kctx, pod, o, x) })
		}
		if err := g.Wait(); err != nil {
			if ctx.Err() == nil {
				w.log().Warn("end containers", "err", err)
			}
			return false, now.Add(time.Second)
		}
	}
	if !a.killPod {
		resized, at := w.applyResize(ctx, pod, o, a)
		acted, next = acted || resized, at
	}
	if a.killPod && !a.newSandbox {
		if len(o.containers) == 0 {
			return acted, next
		}
		// Done although the status does not say so yet.
		w.endAll(ctx, pod, o, nil)
		return acted, now.Add(time.Second)
	}
	if !a.newSandbox && len(a.start) == 0 {
		return acted, next
	}
	starts, at := w.due(o, a, now)
	next = earliest(next, at)
	if now.Before(w.blocked[sandboxKey]) || !w.volumes.ready && now.Before(w.volumes.retry) {
		return acted, earliest(next, earliest(w.blocked[sandboxKey], w.volumes.retry))
	}
	if !a.newSandbox && len(starts) == 0 {
		return acted, next
	}
	sandboxID, ips, config, err := w.ready(ctx, pod, o, a)
	if err != nil {
		return true, time.Time{}
	}
	for _, s := range starts {
		if ctx.Err() != nil {
			return true, time.Time{}
		}
		w.start(ctx, pod, o, s, sandboxID, config, ips)
	}
	return true, time.Time{}
}

// due returns the starts that are not held back, and when the first of the others
// may be tried.
func (w *worker) due(o *observed, a actions, now time.Time) (starts []start, next time.Time) {
	for _, s := range a.start {
		if at := w.blocked[s.container.Name]; now.Before(at) && !o.attachedFirst(s.id) {
			next = earliest(next, at)
			continue
		}
		starts = append(starts, s)
	}
	return starts, next
}

// takeRefresh takes note that something to which the pod refers has changed: what
// failed for the lack of it is tried again at once.
func (w *worker) takeRefresh() {
	w.mu.Lock()
	r := w.refresh
	w.refresh = false
	w.mu.Unlock()
	if !r {
		return
	}
	w.volumes.stale = true
	w.volumes.retry = time.Time{}
	for name, x := range w.waiting {
		if x.reason == "CreateContainerConfigError" {
			delete(w.blocked, name)
		}
	}
}

// ready makes volumes and sandbox, side by side. What fails is told in an event
// and held back for a while.
func (w *worker) ready(ctx context.Context, pod *corev1.Pod, o *observed, a actions) (string, []string, *runtimeapi.PodSandboxConfig, error) {
	var sandboxID string
	var ips []string
	var config *runtimeapi.PodSandboxConfig
	var g errgroup.Group
	if err := w.makeDirs(pod); err != nil {
		w.event(pod, corev1.EventTypeWarning, "Failed", fmt.Sprintf("error making pod data directories: %v", err))
		w.holdSandbox()
		return "", nil, nil, err
	}
	g.Go(func() error { return w.ensureVolumes(ctx, pod) })
	g.Go(func() error {
		if a.newSandbox {
			if err := w.k.devices.Prepare(ctx, pod); err != nil {
				w.holdSandbox()
				if ctx.Err() == nil {
					w.event(pod, corev1.EventTypeWarning, "FailedPrepareDynamicResources", fmt.Sprintf("Failed to prepare dynamic resources: %v", err))
				}
				return err
			}
		}
		var err error
		if config, err = w.sandboxConfig(ctx, pod, a.attempt); err != nil {
			if c := (*cgroupError)(nil); errors.As(err, &c) {
				w.event(pod, corev1.EventTypeWarning, "FailedCreatePodContainer", fmt.Sprintf("unable to ensure pod container exists: %v", err))
			} else {
				w.event(pod, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+errText(err))
			}
			w.holdSandbox()
			return err
		}
		if !a.newSandbox {
			sandboxID, ips = a.sandboxID, o.ips()
			return nil
		}
		sandboxID, ips, err = w.createSandbox(ctx, pod, o, a, config)
		return err
	})
	err := g.Wait()
	return sandboxID, ips, config, err
}

func (w *worker) holdSandbox() {
	w.failures++
	w.blocked[sandboxKey] = w.k.d.Now().Add(retryDelay(w.failures))
}

// createSandbox replaces the pod's sandbox.
func (w *worker) createSandbox(ctx context.Context, pod *corev1.Pod, o *observed, a actions, config *runtimeapi.PodSandboxConfig) (string, []string, error) {
	if len(o.sandboxes) > 0 {
		if a.sandboxID != "" {
			w.event(pod, corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
		}
		if err := w.endAll(ctx, pod, o, nil); err != nil {
			w.holdSandbox()
			return "", nil, err
		}
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTimeout)
	defer cancel()
	var id string
	handler, err := w.k.runtimeHandler(cctx, pod)
	if err == nil {
		id, err = w.k.d.Runtime.RunPodSandbox(cctx, config, handler)
	}
	w.k.figures.podsTotal.Add(1)
	if ownUsers(pod) {
		w.k.figures.usersTotal.Add(1)
		if err != nil {
			w.k.figures.usersErrors.Add(1)
		}
	}
	if err != nil {
		w.k.figures.podErrors.Add(1)
		w.holdSandbox()
		if ctx.Err() == nil {
			w.event(pod, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+errText(err))
		}
		return "", nil, err
	}
	resp, err := w.k.d.Runtime.PodSandboxStatus(cctx, id, false)
	if err != nil || resp.GetStatus() == nil {
		w.holdSandbox()
		w.event(pod, corev1.EventTypeWarning, "FailedPodSandBoxStatus", "Unable to get pod sandbox status: "+errText(err))
		return "", nil, errors.Join(err, errors.New("no sandbox status"))
	}
	w.failures = 0
	delete(w.blocked, sandboxKey)
	w.waiting = map[string]waiting{}
	s := toSandbox(resp.Status)
	// Tell the address and that containers may start before images are pulled.
	now := *o
	now.sandboxes = append([]sandbox{s}, o.sandboxes...)
	for i := 1; i < len(now.sandboxes); i++ {
		now.sandboxes[i].ready = false
	}
	p, _ := w.current()
	w.status.set(w.generate(p, &now, false))
	return id, s.ips, nil
}

// runtimeHandler returns which handler of the container runtime a pod's class
// names; "" is the runtime's default. It is read when a sandbox is made: few pods
// have a class, and classes never change their handler.
func (k *Kubelet) runtimeHandler(ctx context.Context, pod *corev1.Pod) (string, error) {
	name := pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	c, err := client.For[*nodev1.RuntimeClass](k.d.Client).Get(ctx, *name)
	switch {
	case apierrors.IsNotFound(err):
		return "", apierrors.NewNotFound(nodev1.Resource("runtimeclass"), *name)
	case err != nil:
		return "", fmt.Errorf("failed to lookup RuntimeClass %s: %w", *name, err)
	}
	return c.Handler, nil
}

// mounted is a pod without the volumes that none of its containers mounts: they are
// not made, whatever is wrong with them.
func mounted(pod *corev1.Pod) *corev1.Pod {
	used := map[string]bool{}
	add := func(c *corev1.Container) {
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
		}
		for _, d := range c.VolumeDevices {
			used[d.Name] = true
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			add(&list[i])
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		add((*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	out := *pod
	out.Spec.Volumes = nil
	for _, v := range pod.Spec.Volumes {
		if used[v.Name] {
			out.Spec.Volumes = append(out.Spec.Volumes, v)
		}
	}
	return &out
}

// ensureVolumes makes those of the pod's volumes present that are mounted. A container
// that joins later may mount another one.
func (w *worker) ensureVolumes(ctx context.Context, pod *corev1.Pod) error {
	pod = mounted(pod)
	lacking := func(v corev1.Volume) bool { _, ok := w.volumes.paths[v.Name]; return !ok }
	if w.volumes.ready && !slices.ContainsFunc(pod.Spec.Volumes, lacking) {
		return nil
	}
	// Changes from here on are seen: the watch starts before the first read.
	w.k.refs.watch(w, pod)
	paths, refresh, err := w.k.d.Volumes.Setup(ctx, pod)
	if !incomplete(err) && ctx.Err() == nil {
		w.k.sources.used.seen(w.uid)
	}
	if err != nil {
		w.waitForVolumes(pod, err)
		if ctx.Err() == nil {
			w.mountEvents(pod, err)
		}
		return err
	}
	w.k.refs.dropNode(w, w.k.d.NodeName)
	w.volumes = volumeState{ready: true, paths: paths, refresh: refresh}
	return nil
}

// waitForVolumes sets when volumes that could not be made are tried again. What is
// wrong with them may go by itself, but that they are attached the node's status tells.
func (w *worker) waitForVolumes(pod *corev1.Pod, err error) {
	v, now := &w.volumes, w.k.d.Now()
	v.retry = time.Time{}
	names, only := unattached(err)
	if len(names) == 0 {
		v.attachBy = time.Time{}
	} else {
		w.k.refs.watchNode(w, w.k.d.NodeName)
		if !v.attachBy.IsZero() && !now.Before(v.attachBy) {
			w.event(pod, corev1.EventTypeWarning, "FailedMount", notAttachedMessage(names))
			v.attachBy = time.Time{}
		}
		if v.attachBy.IsZero() {
			v.attachBy = now.Add(attachWait)
		}
		v.retry = v.attachBy
	}
	if !only {
		v.delay = min(max(v.delay*2, 500*time.Millisecond), 2*time.Minute)
		v.retry = earliest(v.retry, now.Add(v.delay))
	}
}

// mountEvents tells of each volume that could not be made, but for those that are
// waited for.
func (w *worker) mountEvents(pod *corev1.Pod, err error) {
	var claims []*claimError
	for _, e := range separate(err) {
		var c *claimError
		if errors.As(e, &c) {
			claims = append(claims, c)
			continue
		}
		if n := (*notAttached)(nil); errors.As(e, &n) {
			continue
		}
		w.event(pod, corev1.EventTypeWarning, "FailedMount", e.Error())
	}
	if len(claims) > 0 {
		w.event(pod, corev1.EventTypeWarning, "FailedMount", unmounted(claims))
	}
}

// refreshVolumes renews the content of volumes when what they refer to changed or
// a token gets old; the answer is when to come back.
func (w *worker) refreshVolumes(ctx context.Context, pod *corev1.Pod) time.Time {
	if !w.volumes.ready {
		if len(mounted(pod).Spec.Volumes) == 0 {
			return time.Time{}
		}
		// A kubelet that was started anew finds the pod running: it takes the
		// volumes over without a word when they cannot be read now.
		if w.phase != syncing || !w.admitted {
			return time.Time{}
		}
		if w.k.d.Now().Before(w.volumes.retry) {
			return w.volumes.retry
		}
		if err := w.ensureVolumes(ctx, pod); err != nil {
			return w.volumes.retry
		}
		return w.volumes.refresh
	}
	due := !w.volumes.refresh.IsZero() && !w.k.d.Now().Before(w.volumes.refresh)
	if !w.volumes.stale && !due {
		return w.volumes.refresh
	}
	w.volumes.stale = false
	paths, refresh, err := w.k.d.Volumes.Setup(ctx, mounted(pod))
	if err != nil {
		if ctx.Err() == nil {
			w.mountEvents(pod, err)
			w.log().Warn("refresh volumes", "err", err)
		}
		w.volumes.refresh = w.k.d.Now().Add(time.Minute)
		return w.volumes.refresh
	}
	w.volumes.paths, w.volumes.refresh = paths, refresh
	return refresh
}

// collect removes dead containers beyond the last of each name, and sandboxes
// that the pod has left behind.
func (w *worker) collect(ctx context.Context, pod *corev1.Pod, o *observed) {
	dead := map[string]int{}
	used := map[string]bool{}
	for i := range o.containers {
		c := &o.containers[i]
		if !c.exited() && !(c.state == runtimeapi.ContainerState_CONTAINER_CREATED && len(o.sandboxes) > 0 && c.sandboxID != o.sandboxes[0].id) {
			used[c.sandboxID] = true
			continue
		}
		if dead[c.name]++; dead[c.name] == 1 {
			used[c.sandboxID] = true
			continue
		}
		if err := w.k.d.Runtime.RemoveContainer(ctx, c.id); err != nil {
			w.log().Warn("remove dead container", "err", err)
			used[c.sandboxID] = true
			continue
		}
		w.k.removeLogs(c.logPath)
	}
	for i, s := range o.sandboxes {
		if i == 0 || s.ready || used[s.id] {
			continue
		}
		if err := w.k.d.Runtime.RemovePodSandbox(ctx, s.id); err != nil {
			w.log().Warn("remove old sandbox", "err", err)
		}
	}
}

// removeRuntime removes all that the runtime has of a pod.
func (k *Kubelet) removeRuntime(ctx context.Context, uid types.UID) error {
	sel := map[string]string{labelPodUID: string(uid)}
	cs, err := k.d.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: sel})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, c := range cs {
		if err := k.d.Runtime.RemoveContainer(ctx, c.Id); err != nil && !isNotFound(err) {
			return fmt.Errorf("remove container %s: %w", c.Id, err)
		}
	}
	list, err := k.d.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: sel})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, s := range list {
		if err := k.d.Runtime.RemovePodSandbox(ctx, s.Id); err != nil && !isNotFound(err) {
			return fmt.Errorf("remove sandbox %s: %w", s.Id, err)
		}
	}
	return nil
}

func (w *worker) makeDirs(pod *corev1.Pod) error {
	if err := os.MkdirAll(w.k.podDir(pod.UID), 0o750); err != nil {
		return err
	}
	return os.MkdirAll(w.k.podLogDir(pod.Namespace, pod.Name, pod.UID), 0o755)
}
