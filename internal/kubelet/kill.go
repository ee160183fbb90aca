package kubelet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// minGrace is what every container gets between TERM and KILL.
const minGrace = 2

// graceFor is a container's grace period in seconds.
func graceFor(pod *corev1.Pod, c *corev1.Container, have *container, reason killReason) int64 {
	if g := pod.DeletionGracePeriodSeconds; g != nil {
		return *g
	}
	if c != nil {
		switch {
		case reason == killStartup && c.StartupProbe != nil && c.StartupProbe.TerminationGracePeriodSeconds != nil:
			return *c.StartupProbe.TerminationGracePeriodSeconds
		case reason == killLiveness && c.LivenessProbe != nil && c.LivenessProbe.TerminationGracePeriodSeconds != nil:
			return *c.LivenessProbe.TerminationGracePeriodSeconds
		}
	}
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		return *g
	}
	if have != nil && have.deletionGrace != nil {
		return *have.deletionGrace
	}
	if have != nil && have.terminateGra != nil {
		return *have.terminateGra
	}
	return minGrace
}

// killForRestart ends one container of a pod that goes on.
func (w *worker) killForRestart(ctx context.Context, pod *corev1.Pod, o *observed, x kill) error {
	have := o.byID(x.id)
	c := findContainer(pod, x.name)
	return w.endContainer(ctx, pod, c, have, graceFor(pod, c, have, x.reason), x.message, o.ips(), nil)
}

// endContainer runs the preStop hook of a container and stops it. turn, where set,
// is waited for between the two.
func (w *worker) endContainer(ctx context.Context, pod *corev1.Pod, c *corev1.Container, have *container, grace int64, message string, ips []string, turn <-chan struct{}) error {
	if have == nil {
		return nil
	}
	deadline := w.k.d.Now().Add(time.Duration(grace) * time.Second)
	first := w.noteKilled(have.id)
	if first {
		if message == "" {
			message = "Stopping container " + have.name
		}
		w.containerEvent(pod, have.name, corev1.EventTypeNormal, "Killing", message)
	}
	hook := have.preStop
	if c != nil && c.Lifecycle != nil {
		hook = c.Lifecycle.PreStop
	}
	if c == nil {
		c = &corev1.Container{Name: have.name, Ports: have.ports}
	}
	if first && hook != nil && grace > 0 && have.running() {
		hctx, cancel := context.WithDeadline(ctx, deadline)
		_, err := w.runHook(hctx, pod, c, have.id, ips, hook)
		cancel()
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
			w.log().Debug("preStop hook failed", "container", have.name, "err", err)
			w.containerEvent(pod, have.name, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
		}
	}
	if turn != nil {
		t := time.NewTimer(max(deadline.Sub(w.k.d.Now()), 0))
		select {
		case <-turn:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	left := int64(deadline.Sub(w.k.d.Now()).Seconds() + 0.999)
	err := w.k.d.Runtime.StopContainer(ctx, have.id, max(left, minGrace))
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("stop container %s: %w", have.name, err)
	}
	return nil
}

// noteKilled tells whether a container is being ended for the first time.
func (w *worker) noteKilled(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.killed[id] {
		return false
	}
	w.killed[id] = true
	return true
}

// endAll ends all containers of a pod, sidecars last and in reverse order, and
// stops its sandboxes. grace overrides the pod's.
func (w *worker) endAll(ctx context.Context, pod *corev1.Pod, o *observed, grace *int64) error {
	type target struct {
		c    *corev1.Container
		have *container
		rank int // higher ranks end first
		done chan struct{}
	}
	var targets []*target
	for i := range o.containers {
		have := &o.containers[i]
		if have.exited() || have.state == runtimeapi.ContainerState_CONTAINER_CREATED {
			continue
		}
		t := &target{c: findContainer(pod, have.name), have: have, rank: len(pod.Spec.InitContainers) + 1, done: make(chan struct{})}
		for j := range pod.Spec.InitContainers {
			if ic := &pod.Spec.InitContainers[j]; ic.Name == have.name && isSidecar(ic) {
				t.rank = j
			}
		}
		targets = append(targets, t)
	}
	var g errgroup.Group
	for _, t := range targets {
		seconds := graceFor(pod, t.c, t.have, killUnknown)
		if grace != nil {
			seconds = *grace
		}
		var before []chan struct{}
		for _, u := range targets {
			if u.rank > t.rank {
				before = append(before, u.done)
			}
		}
		var turn chan struct{}
		if len(before) > 0 {
			turn = make(chan struct{})
			g.Go(func() error {
				for _, b := range before {
					<-b
				}
				close(turn)
				return nil
			})
		}
		g.Go(func() error {
			defer close(t.done)
			return w.endContainer(ctx, pod, t.c, t.have, seconds, "", o.ips(), turn)
		})
	}
	err := g.Wait()
	if err != nil {
		return err
	}
	for _, s := range o.sandboxes {
		if err := w.k.d.Runtime.StopPodSandbox(ctx, s.id); err != nil && !isNotFound(err) {
			return fmt.Errorf("stop sandbox: %w", err)
		}
	}
	return nil
}

// leaveAtMost bounds how long the end of a pod waits for services to let go of it.
const leaveAtMost = 5 * time.Second

// leave waits until no service sends new connections to a pod that was deleted: a
// server that was told to end refuses them.
func (w *worker) leave(ctx context.Context, pod *corev1.Pod) {
	if w.k.d.Leave == nil || w.left || pod.DeletionTimestamp == nil || pod.DeletionGracePeriodSeconds == nil || *pod.DeletionGracePeriodSeconds <= 0 {
		return
	}
	w.left = true
	ctx, cancel := context.WithTimeout(ctx, min(leaveAtMost, time.Duration(*pod.DeletionGracePeriodSeconds)*time.Second))
	defer cancel()
	w.k.d.Leave(ctx, pod)
}

// terminate ends a pod's containers. A shorter grace period from the API
// interrupts it, and it begins anew with that.
func (w *worker) terminate(ctx context.Context, pod *corev1.Pod, gone bool) (again bool, next time.Time) {
	opctx, end := w.op(ctx)
	defer end()
	// What interrupted the last round is seen before this one begins.
	pod, gone = w.current()
	o, err := w.k.observe(opctx, w.uid)
	if err != nil {
		if opctx.Err() != nil {
			return true, time.Time{}
		}
		w.log().Warn("observe pod", "err", err)
		return false, w.k.d.Now().Add(time.Second)
	}
	if !gone {
		if st := w.generate(pod, o, false); !final(st.Phase) || w.giveBack(opctx, o) == nil {
			w.status.set(st)
		}
	}
	w.probes.stopLiveness()
	var grace *int64
	if w.verdict != nil && pod.DeletionTimestamp == nil {
		grace = w.verdict.grace
	}
	if gone && pod.Spec.Containers == nil {
		// Known from labels alone: nobody waits for it any more.
		one := int64(1)
		grace = &one
	}
	w.leave(opctx, pod)
	if err := w.endAll(opctx, pod, o, grace); err != nil {
		if opctx.Err() != nil {
			return true, time.Time{}
		}
		w.event(pod, corev1.EventTypeWarning, "FailedKillPod", "error killing pod: "+errText(err))
		w.failures++
		return false, w.k.d.Now().Add(retryDelay(w.failures))
	}
	w.probes.stopAll()
	if o, err = w.k.observe(ctx, w.uid); err != nil {
		w.log().Warn("observe pod", "err", err)
		return false, w.k.d.Now().Add(time.Second)
	}
	for i := range o.containers {
		if o.containers[i].running() {
			w.failures++
			return false, w.k.d.Now().Add(retryDelay(w.failures))
		}
	}
	if err := w.giveBack(ctx, o); err != nil {
		return false, w.k.d.Now().Add(retryDelay(w.failures))
	}
	w.failures = 0
	pod, _ = w.current()
	w.status.set(w.generate(pod, o, true))
	w.phase = terminated
	return true, time.Time{}
}
