package kubelet

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// startRetry is how long a container that could not be made or started is held
// back.
const startRetry = 10 * time.Second

// errMessage is an error's own text, without what gRPC adds.
func errMessage(err error) string { return status.Convert(err).Message() }

// errText is an error as upstream prints it in events.
func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// hold notes why a container does not start, and until when not to try again.
func (w *worker) hold(name, reason, message string, until time.Time) {
	w.waiting[name] = waiting{reason, message}
	w.blocked[name] = until
}

// crashKey makes a changed container start without its predecessor's back-off.
func crashKey(c *corev1.Container) string { return fmt.Sprintf("%s %x", c.Name, containerHash(c)) }

// backingOff applies the back-off of a container that keeps ending.
func (w *worker) backingOff(pod *corev1.Pod, o *observed, c *corev1.Container) bool {
	var last *container
	for i := range o.containers {
		if o.containers[i].name == c.Name && o.containers[i].exited() {
			last = &o.containers[i]
			break
		}
	}
	if last == nil {
		return false
	}
	now := w.k.d.Now()
	key := crashKey(c)
	b, known := w.crash[key]
	if !known && last.restarts > 0 && last.created.Before(w.k.started) {
		// Restarted by a former kubelet: its back-off follows from how often.
		b = backoff{backoffAfter(last.restarts, w.k.d.MaxRestartPeriod), last.started}
		w.crash[key] = b
	}
	until, on := b.active(last.finished, now)
	if on {
		w.hold(c.Name, "CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", b.delay, c.Name, podNameFull(pod)), until)
		w.containerEvent(pod, c.Name, corev1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s", c.Name, podNameFull(pod)))
		return true
	}
	w.crash[key] = b.next(last.finished, now, w.k.d.MaxRestartPeriod)
	return false
}

// backoffAfter is the back-off of a container that was restarted so often in a row.
func backoffAfter(restarts int, longest time.Duration) time.Duration {
	d := backoffInitial
	for ; restarts > 1 && d < longest; restarts-- {
		d *= 2
	}
	return min(d, longest)
}

// start pulls the image where needed, creates and starts one container and runs
// its postStart hook. What fails is told in an event and shown as the reason why
// the container waits.
func (w *worker) start(ctx context.Context, pod *corev1.Pod, o *observed, s start, sandboxID string, sc *runtimeapi.PodSandboxConfig, ips []string) {
	c := s.container
	fail := func(reason, message string) {
		w.k.figures.notStarted(s, reason)
		w.hold(c.Name, reason, message, w.k.d.Now().Add(startRetry))
	}
	warn := func(message string) {
		w.containerEvent(pod, c.Name, corev1.EventTypeWarning, "Failed", message)
	}
	id := s.id
	if id == "" && w.backingOff(pod, o, c) {
		return
	}
	w.k.figures.started(s)
	if id == "" {
		volumes, problem := w.imageVolumes(ctx, pod, c, sc)
		var ref string
		if problem == nil {
			ref, problem = w.ensureImage(ctx, pod, c, sc)
		}
		if problem != nil {
			if ctx.Err() != nil {
				return
			}
			w.k.figures.notStarted(s, problem.reason)
			w.hold(c.Name, problem.reason, problem.message, problem.until)
			warn("Error: " + problem.reason)
			return
		}
		restarts := w.restartCount(pod, o, c)
		config, err := w.containerConfig(ctx, pod, o, s, restarts, ref, volumes, ips)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			fail("CreateContainerConfigError", errMessage(err))
			warn("Error: " + errMessage(err))
			return
		}
		if id, err = w.create(ctx, sandboxID, config, sc); err != nil {
			fail("CreateContainerError", errMessage(err))
			warn("Error: " + errMessage(err))
			return
		}
		w.containerEvent(pod, c.Name, corev1.EventTypeNormal, "Created", "Container created")
	}
	if w.awaitsClient(pod, o, c, id) {
		return
	}
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTimeout)
	defer cancel()
	if err := w.k.d.Runtime.StartContainer(cctx, id); err != nil {
		m := strings.ReplaceAll(errMessage(err), id, c.Name)
		fail("RunContainerError", errMessage(err))
		warn("Error: " + m)
		return
	}
	delete(w.waiting, c.Name)
	delete(w.blocked, c.Name)
	w.containerEvent(pod, c.Name, corev1.EventTypeNormal, "Started", "Container started")
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		if msg, err := w.runHook(ctx, pod, c, id, ips, c.Lifecycle.PostStart); err != nil && ctx.Err() == nil {
			w.log().Debug("postStart hook failed", "container", c.Name, "err", err)
			w.containerEvent(pod, c.Name, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
			fail("PostStartHookError", msg)
			now := &observed{containers: []container{{id: id, name: c.Name, state: runtimeapi.ContainerState_CONTAINER_RUNNING}}}
			if err := w.killForRestart(ctx, pod, now, kill{id: id, name: c.Name, message: "FailedPostStartHook"}); err != nil {
				w.log().Warn("end container after its hook failed", "container", c.Name, "err", err)
			}
		}
	}
}

// create makes a container. Where the answer is lost although the container is
// made, the next look at the pod finds it.
func (w *worker) create(ctx context.Context, sandboxID string, config *runtimeapi.ContainerConfig, sc *runtimeapi.PodSandboxConfig) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTimeout)
	defer cancel()
	return w.k.d.Runtime.CreateContainer(ctx, sandboxID, config, sc)
}

// restartCount is that of the container to be made: one more than the last one's,
// or than what its logs show where the runtime forgot it.
func (w *worker) restartCount(pod *corev1.Pod, o *observed, c *corev1.Container) int {
	if last := o.latest(c.Name); last != nil {
		return last.restarts + 1
	}
	return restartsByLogs(w.k.containerLogDir(pod, c.Name))
}
