package kubelet

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/kubelet/cgroup"
)

func TestPodRunsAndEnds(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a", "b"))
		p := w.pod("web")
		if p.Status.Phase != corev1.PodRunning {
			t.Fatalf("phase %s: %+v", p.Status.Phase, p.Status)
		}
		w.wantOps("RunPodSandbox web", "CreateContainer web/a", "StartContainer web/a", "CreateContainer web/b", "StartContainer web/b")
		for _, c := range ours {
			if got := condIs(p, c); got != "True" {
				t.Errorf("condition %s: %s", c, got)
			}
		}
		if p.Status.PodIP != "10.244.0.2" || p.Status.HostIP != "192.168.7.1" || p.Status.QOSClass != corev1.PodQOSBestEffort || p.Status.StartTime == nil {
			t.Errorf("status: %+v", p.Status)
		}
		for _, s := range p.Status.ContainerStatuses {
			if !s.Ready || s.Started == nil || !*s.Started || s.State.Running == nil || s.ContainerID == "" || s.ImageID == "" || s.RestartCount != 0 {
				t.Errorf("container status: %+v", s)
			}
		}
		for _, e := range []string{
			`spec.containers{a} Pulled: Container image "nginx" already present on machine and can be accessed by the pod`,
			"spec.containers{a} Created: Container created", "spec.containers{b} Started: Container started",
		} {
			w.wantEvent(e)
		}
		w.rt.ClearCalls()
		w.delete("web", 30)
		if w.exists("web") {
			t.Errorf("the pod is still there: %+v", w.pod("web").Status)
		}
		w.wantEvent("spec.containers{a} Killing: Stopping container a")
		if n := len(w.rt.Sandboxes()); n != 0 {
			t.Errorf("%d sandboxes are left", n)
		}
		// The last status stood in the API before the object went.
		var last corev1.PodPhase
		reqs := w.api.Requests()
		if reqs[len(reqs)-1].Verb != "delete" {
			t.Errorf("the last request is %s", reqs[len(reqs)-1].Verb)
		}
		_ = last
		if len(w.volumes.gone) != 1 {
			t.Errorf("volumes were removed %d times", len(w.volumes.gone))
		}
	})
}

func TestFinalStatusOfADeletedPod(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("web", "a")
		p.Finalizers = []string{"example.com/hold"}
		w.create(p)
		w.delete("web", 30)
		got := w.pod("web")
		if got.Status.Phase != corev1.PodFailed {
			t.Errorf("phase %s, want Failed for an exit code of 143", got.Status.Phase)
		}
		s := got.Status.ContainerStatuses[0].State.Terminated
		if s == nil || s.ExitCode != 143 || s.Reason != "Error" {
			t.Errorf("state: %+v", got.Status.ContainerStatuses[0].State)
		}
		if c := condIs(got, corev1.PodReady); c != "False PodFailed" {
			t.Errorf("Ready: %s", c)
		}
		deletes := 0
		for _, r := range w.api.Requests() {
			if r.Verb == "delete" {
				deletes++
			}
		}
		w.after(time.Minute)
		if deletes != 2 { // the user's and the kubelet's
			t.Errorf("%d deletes", deletes)
		}
	})
}

func TestNothingHappensOnRestart(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("web", "a")
		p.Spec.InitContainers = []corev1.Container{{Name: "init", Image: "busybox"}}
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}, PeriodSeconds: 10}
		w.create(p)
		w.exit("init", 0)
		w.after(time.Second)
		before := w.pod("web")
		if c := condIs(before, corev1.PodReady); c != "True" {
			t.Fatalf("Ready: %s", c)
		}
		w.kill()
		w.rt.ClearCalls()
		writes := len(w.api.Requests())
		for range 3 {
			w.start()
			w.after(30 * time.Second)
			w.kill()
		}
		w.wantOps()
		for _, r := range w.api.Requests()[writes:] {
			t.Errorf("a restart wrote: %s %s %s", r.Verb, r.Ref.Name, r.Data)
		}
		if got := w.pod("web"); got.ResourceVersion != before.ResourceVersion {
			t.Errorf("the pod has changed")
		}
	})
}

func TestRestartBetweenSteps(t *testing.T) {
	// The answer to a step is lost with the kubelet that asked; the next one goes
	// on from there.
	for _, op := range []string{"RunPodSandbox", "CreateContainer", "StartContainer"} {
		t.Run(op, func(t *testing.T) {
			run(t, func(w *world) { w.rt.LoseAnswer(op, 1, errors.New("connection lost")) }, func(w *world) {
				w.create(newPod("web", "a"))
				w.kill()
				w.start()
				w.after(15 * time.Second)
				w.wantPhase("web", corev1.PodRunning)
				if n := len(w.rt.Containers("a")); n != 1 {
					t.Errorf("%d containers were made", n)
				}
				if n := len(w.rt.Sandboxes()); n != 1 {
					t.Errorf("%d sandboxes were made", n)
				}
				if s := w.pod("web").Status.ContainerStatuses[0]; s.RestartCount != 0 || s.State.Running == nil {
					t.Errorf("status: %+v", s)
				}
			})
		})
	}
}

func TestRestartWhileEnding(t *testing.T) {
	for _, op := range []string{"StopContainer", "StopPodSandbox", "RemovePodSandbox", "RemoveContainer"} {
		for _, lose := range []bool{true, false} {
			run(t, nil, func(w *world) {
				w.create(newPod("web", "a"))
				if lose {
					w.rt.LoseAnswer(op, 1, errors.New("connection lost"))
				} else {
					w.rt.Fail(op, 1, errors.New("connection refused"))
				}
				w.delete("web", 30)
				w.kill()
				w.start()
				w.after(15 * time.Second)
				if w.exists("web") || len(w.rt.Sandboxes())+len(w.rt.Containers("")) > 0 {
					t.Errorf("%s: something is left", op)
				}
			})
		}
	}
}

// A write that was overtaken by others is tried again; one that meets another pod
// under the name is not.
func TestStatusConflicts(t *testing.T) {
	run(t, nil, func(w *world) {
		n := 0
		w.api.Intercept = func(verb string, ref client.Ref, _ client.Object) error {
			if verb == "patch" && ref.Subresource == "status" {
				if n++; n <= 3 {
					return apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, errors.New("the object has been modified; please apply your changes to the latest version and try again"))
				}
			}
			return nil
		}
		w.create(newPod("web", "a"))
		w.after(5 * time.Second)
		w.wantPhase("web", corev1.PodRunning)
	})
}

// cgroups is a Cgroups that fails while told to.
type cgroups struct {
	fail   atomic.Bool
	calls  atomic.Int64
	memory atomic.Int64 // what all pods have
	all    atomic.Pointer[cgroup.Limits]
}

func (c *cgroups) Ensure(*corev1.Pod) (string, error) {
	c.calls.Add(1)
	if c.fail.Load() {
		return "", errors.New("no space left on device")
	}
	return "/x", nil
}
func (c *cgroups) Remove(types.UID) error     { return nil }
func (c *cgroups) Pods() ([]types.UID, error) { return nil, nil }
func (c *cgroups) Version() int               { return 2 }
func (c *cgroups) Memory() (int64, error)     { return c.memory.Load(), nil }
func (c *cgroups) LimitAll(l cgroup.Limits) error {
	if c.memory.Load() > l.Memory {
		return errors.New("device or resource busy")
	}
	c.all.Store(&l)
	return nil
}

func TestCgroupsFail(t *testing.T) {
	c := &cgroups{}
	run(t, func(w *world) { w.deps = func(d *Deps) { d.Cgroups = c } }, func(w *world) {
		w.create(newPod("web", "a"))
		if p := w.rt.Sandboxes()[0].Config.Linux.CgroupParent; p != "/x" {
			t.Errorf("cgroup parent %q", p)
		}
		c.fail.Store(true)
		before := c.calls.Load()
		w.exit("a", 1)
		w.after(10 * time.Second)
		w.wantEvent("FailedCreatePodContainer: unable to ensure pod container exists: no space left on device")
		if n := c.calls.Load() - before; n > 10 {
			t.Errorf("%d tries within ten seconds", n)
		}
		c.fail.Store(false)
		w.after(15 * time.Second)
		if s := w.pod("web").Status.ContainerStatuses[0]; s.State.Running == nil {
			t.Errorf("status: %+v", s)
		}
	})
}

// A runtime that says that a container was stopped and goes on to show it running
// does not keep the kubelet busy.
func TestRuntimeLies(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a"))
		w.rt.FailAlways("StopContainer", status.Error(codes.NotFound, "no such container"))
		w.rt.FailAlways("CreateContainer", errors.New("exists"))
		q := w.pod("web").DeepCopy()
		q.Spec.Containers[0].Image = "busybox"
		w.rt.ClearCalls()
		if _, err := client.For[*corev1.Pod](w.api.Client()).Update(context.Background(), q); err != nil {
			t.Fatal(err)
		}
		w.after(time.Second)
		if n := len(w.rt.Calls()); n > 2*maxRounds {
			t.Errorf("%d calls within a second", n)
		}
	})
}

// TestRuntimeClass: the pod waits for its class, then runs with the class's handler.
func TestRuntimeClass(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("web", "a")
		p.Spec.RuntimeClassName = ptr("gvisor")
		w.create(p)
		w.wantEvent(`FailedCreatePodSandBox: Failed to create pod sandbox: runtimeclass.node.k8s.io "gvisor" not found`)
		w.wantPhase("web", corev1.PodPending)
		if _, err := client.For[*nodev1.RuntimeClass](w.api.Client()).Create(context.Background(), &nodev1.RuntimeClass{
			ObjectMeta: metav1.ObjectMeta{Name: "gvisor"}, Handler: "runsc"}); err != nil {
			t.Fatal(err)
		}
		w.after(time.Minute)
		w.wantPhase("web", corev1.PodRunning)
		list, err := w.rt.ListPodSandbox(context.Background(), nil)
		if err != nil || len(list) != 1 || list[0].RuntimeHandler != "runsc" {
			t.Errorf("sandboxes %v, %v, want one of the handler runsc", list, err)
		}
	})
}

func TestOrphansEnd(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a"))
		w.kill()
		w.delete("web", 0)
		w.start()
		w.after(5 * time.Second)
		if n := len(w.rt.Sandboxes()) + len(w.rt.Containers("")); n != 0 {
			t.Errorf("%d things are left of a pod that the API does not know", n)
		}
	})
}

// What a kubelet that was killed left of pods that nobody knows goes; what belongs
// to a pod stays.
func TestLeftovers(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a"))
		w.kill()
		pods, logs := w.k.d.Host.Data("kubelet", "pods"), w.k.d.PodLogDir
		for _, d := range []string{pods + "/gone-uid/containers/a", logs + "/default_gone_gone-uid/a", logs + "/unrelated"} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		w.start()
		if got := dirs(pods); !slices.Equal(got, []string{"web-uid"}) {
			t.Errorf("pod directories: %q", got)
		}
		if got := dirs(logs); !slices.Equal(got, []string{"default_web_web-uid", "unrelated"}) {
			t.Errorf("log directories: %q", got)
		}
		if !slices.Contains(w.volumes.gone, "gone-uid") || slices.Contains(w.volumes.gone, "web-uid") {
			t.Errorf("volumes were removed of %q", w.volumes.gone)
		}
		w.delete("web", 30)
		if got := append(dirs(pods), dirs(logs)...); !slices.Equal(got, []string{"unrelated"}) {
			t.Errorf("left: %q", got)
		}
	})
}

func TestExitWhileAway(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("job", "a")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		w.create(p)
		w.kill()
		w.exit("a", 7)
		w.start()
		w.after(time.Second)
		got := w.pod("job")
		s := got.Status.ContainerStatuses[0]
		if got.Status.Phase != corev1.PodFailed || s.State.Terminated == nil || s.State.Terminated.ExitCode != 7 || s.RestartCount != 0 {
			t.Errorf("phase %s, status %+v", got.Status.Phase, s)
		}
		if n := len(w.rt.Containers("a")); n != 1 {
			t.Errorf("%d containers, want the ended one kept for its logs", n)
		}
	})
}

func TestCrashLoopOverRestarts(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a"))
		for _, wait := range []time.Duration{0, 11 * time.Second, 21 * time.Second} {
			w.exit("a", 1)
			w.after(wait)
		}
		w.exit("a", 1)
		w.wantWaiting("web", "a", "CrashLoopBackOff", "back-off 40s")
		for range 3 {
			w.kill()
			writes := len(w.api.Requests())
			w.rt.ClearCalls()
			w.start()
			w.after(8 * time.Second)
			w.wantOps()
			w.wantWaiting("web", "a", "CrashLoopBackOff", "back-off 40s")
			if n := len(w.api.Requests()) - writes; n != 0 {
				t.Errorf("a restart wrote %d times", n)
			}
		}
		w.after(20 * time.Second)
		if s := w.pod("web").Status.ContainerStatuses[0]; s.State.Running == nil || s.RestartCount != 4 {
			t.Errorf("after the back-off: %+v", s)
		}
	})
}

func TestEventsLost(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("job", "a")
		p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		w.create(p)
		w.rt.LoseEvents(true)
		w.exit("a", 0)
		w.wantPhase("job", corev1.PodRunning)
		w.after(6 * time.Minute)
		w.wantPhase("job", corev1.PodSucceeded)
	})
}

func TestRuntimeWithoutEvents(t *testing.T) {
	run(t, func(w *world) { w.rt.NoEvents() }, func(w *world) {
		p := newPod("job", "a")
		p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		w.create(p)
		w.after(2 * time.Second)
		w.exit("a", 0)
		w.after(2 * time.Second)
		w.wantPhase("job", corev1.PodSucceeded)
	})
}

// dropping is a server that does not keep a field of statuses.
type dropping struct{ *clienttest.API }

func (d dropping) Patch(ctx context.Context, ref client.Ref, t types.PatchType, p []byte, o metav1.PatchOptions) (client.Object, error) {
	out, err := d.API.Patch(ctx, ref, t, p, o)
	if pod, ok := out.(*corev1.Pod); ok && err == nil {
		pod = pod.DeepCopy()
		pod.Status.ObservedGeneration = 0
		d.Put(pod)
		return d.Get(ctx, client.Ref{GVR: ref.GVR, Namespace: ref.Namespace, Name: ref.Name}, metav1.GetOptions{})
	}
	return out, err
}

// A server that does not keep a field is not asked again and again to.
func TestFieldsThatTheServerDrops(t *testing.T) {
	run(t, func(w *world) {
		w.deps = func(d *Deps) { d.Client = client.New(dropping{w.api}, "test") }
	}, func(w *world) {
		w.create(newPod("web", "a"))
		w.after(time.Second)
		w.wantPhase("web", corev1.PodRunning)
		if n := len(w.api.Requests()); n > 8 {
			t.Errorf("%d writes for one start", n)
		}
		before := len(w.api.Requests())
		w.after(time.Minute)
		if n := len(w.api.Requests()) - before; n != 0 {
			t.Errorf("%d writes for nothing", n)
		}
		// What does change is written all the same.
		w.exit("a", 1)
		w.after(time.Second)
		if s := w.pod("web").Status.ContainerStatuses[0]; s.RestartCount != 1 {
			t.Errorf("status: %+v", s)
		}
		w.delete("web", 30)
		w.after(time.Second)
		if w.exists("web") {
			t.Error("the pod is still there")
		}
	})
}
