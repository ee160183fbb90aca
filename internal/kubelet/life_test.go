package kubelet

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/client"
)

func ptr[T any](v T) *T { return &v }

func TestCrashLoop(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a"))
		w.exit("a", 1) // the first time it starts again at once
		if s := w.pod("web").Status.ContainerStatuses[0]; s.RestartCount != 1 || s.State.Running == nil || s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != 1 {
			t.Fatalf("after the first crash: %+v", s)
		}
		for i, want := range []string{"10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"} {
			w.exit("a", 1)
			w.wantWaiting("web", "a", "CrashLoopBackOff", "back-off "+want+" restarting failed container=a pod=web_default(web-uid)")
			w.wantPhase("web", corev1.PodRunning)
			if c := condIs(w.pod("web"), corev1.PodReady); c != "False ContainersNotReady containers with unready status: [a]" {
				t.Errorf("Ready: %s", c)
			}
			d, err := time.ParseDuration(want)
			if err != nil {
				t.Fatal(err)
			}
			w.after(d - time.Second)
			if s := w.pod("web").Status.ContainerStatuses[0]; s.State.Running != nil {
				t.Fatalf("crash %d: started before %s were over", i, want)
			}
			w.after(2 * time.Second)
			if s := w.pod("web").Status.ContainerStatuses[0]; s.State.Running == nil || int(s.RestartCount) != i+2 {
				t.Fatalf("crash %d: %+v", i, s)
			}
		}
		w.wantEvent("spec.containers{a} BackOff: Back-off restarting failed container a in pod web_default(web-uid)")
		if n := len(w.rt.Containers("a")); n != 2 {
			t.Errorf("%d containers are kept, want the running one and the last", n)
		}
		// After ten minutes without a crash all is forgiven.
		w.after(11 * time.Minute)
		w.exit("a", 1)
		if s := w.pod("web").Status.ContainerStatuses[0]; s.State.Running == nil {
			t.Errorf("after eleven quiet minutes: %+v", s.State)
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy corev1.RestartPolicy
		code   int32
		phase  corev1.PodPhase
		ready  string
	}{
		{corev1.RestartPolicyNever, 0, corev1.PodSucceeded, "False PodCompleted"},
		{corev1.RestartPolicyNever, 3, corev1.PodFailed, "False PodFailed"},
		{corev1.RestartPolicyOnFailure, 0, corev1.PodSucceeded, "False PodCompleted"},
		{corev1.RestartPolicyOnFailure, 3, corev1.PodRunning, "True"},
		{corev1.RestartPolicyAlways, 0, corev1.PodRunning, "True"},
	} {
		run(t, nil, func(w *world) {
			p := newPod("job", "a")
			p.Spec.RestartPolicy = c.policy
			w.create(p)
			w.exit("a", c.code)
			w.wantPhase("job", c.phase)
			if got := condIs(w.pod("job"), corev1.PodReady); got != c.ready {
				t.Errorf("%s, %d: Ready %s, want %s", c.policy, c.code, got, c.ready)
			}
			if final(c.phase) {
				if s := w.rt.Sandboxes()[0].Status; s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
					t.Errorf("the sandbox of an ended pod runs")
				}
				if ip := w.pod("job").Status.PodIP; ip == "" {
					t.Error("an ended pod lost its address")
				}
				w.delete("job", 30)
				if w.exists("job") || len(w.rt.Containers("")) > 0 {
					t.Error("something is left of the deleted pod")
				}
			}
		})
	}
}

func TestInitContainers(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("web", "a")
		p.Spec.InitContainers = []corev1.Container{{Name: "one", Image: "busybox"}, {Name: "two", Image: "busybox"}}
		w.create(p)
		if c := condIs(w.pod("web"), corev1.PodInitialized); c != "False ContainersNotInitialized containers with incomplete status: [one two]" {
			t.Errorf("Initialized: %s", c)
		}
		w.wantWaiting("web", "a", "PodInitializing", "")
		w.exit("one", 1)
		if s := w.pod("web").Status.InitContainerStatuses[0]; s.RestartCount != 1 {
			t.Errorf("a failed init container was not run again: %+v", s)
		}
		w.exit("one", 0)
		w.wantPhase("web", corev1.PodPending)
		w.exit("two", 0)
		w.wantPhase("web", corev1.PodRunning)
		for _, s := range w.pod("web").Status.InitContainerStatuses {
			if !s.Ready || s.State.Terminated == nil || s.State.Terminated.Reason != "Completed" {
				t.Errorf("init status: %+v", s)
			}
		}
		w.wantOps("RunPodSandbox web", "CreateContainer web/one", "StartContainer web/one", "CreateContainer web/one", "StartContainer web/one",
			"CreateContainer web/two", "StartContainer web/two", "RemoveContainer web/one", "CreateContainer web/a", "StartContainer web/a")
	})
	run(t, nil, func(w *world) {
		p := newPod("job", "a")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.InitContainers = []corev1.Container{{Name: "one", Image: "busybox"}}
		w.create(p)
		w.exit("one", 2)
		w.wantPhase("job", corev1.PodFailed)
		if n := len(w.rt.Containers("a")); n != 0 {
			t.Error("the pod's container was started although initialization failed")
		}
	})
}

func TestSidecar(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("web", "a")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.InitContainers = []corev1.Container{
			{Name: "side", Image: "busybox", RestartPolicy: ptr(corev1.ContainerRestartPolicyAlways)},
			{Name: "init", Image: "busybox"},
		}
		w.create(p)
		w.exit("init", 0)
		w.wantPhase("web", corev1.PodRunning)
		w.exit("side", 1)
		if s := w.pod("web").Status.InitContainerStatuses[0]; s.State.Running == nil || s.RestartCount != 1 {
			t.Errorf("the sidecar was not started again: %+v", s)
		}
		w.wantPhase("web", corev1.PodRunning)
		w.rt.ClearCalls()
		w.exit("a", 0)
		w.wantPhase("web", corev1.PodSucceeded)
		if len(w.rt.Calls()) == 0 || w.rt.Calls()[0].Name != "web/side" || w.rt.Calls()[0].Op != "StopContainer" {
			t.Errorf("the sidecar outlived its pod: %v", w.rt.Calls())
		}
	})
}

func TestImages(t *testing.T) {
	for _, c := range []struct {
		image           string
		policy          corev1.PullPolicy
		reason, message string
		events          []string
	}{
		{"nothere", corev1.PullIfNotPresent, "ErrImagePull", `failed to resolve reference "nothere:latest": not found`,
			[]string{`Pulling: Pulling image "nothere"`, `Failed: Failed to pull image "nothere": failed to resolve`, "Failed: Error: ErrImagePull"}},
		{"nothere", corev1.PullNever, "ErrImageNeverPull", `Container image "nothere" is not present with pull policy of Never`,
			[]string{`ErrImageNeverPull: Container image "nothere" is not present with pull policy of Never`, "Failed: Error: ErrImageNeverPull"}},
		{"Bad Name", corev1.PullIfNotPresent, "InvalidImageName", `Failed to apply default image tag "Bad Name": couldn't parse image name "Bad Name": invalid reference format`,
			[]string{"InspectFailed: Failed to apply default image tag", "Failed: Error: InvalidImageName"}},
	} {
		run(t, nil, func(w *world) {
			p := newPod("web", "a")
			p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = c.image, c.policy
			w.create(p)
			w.wantWaiting("web", "a", c.reason, c.message)
			w.wantPhase("web", corev1.PodPending)
			for _, e := range c.events {
				w.wantEvent(e)
			}
			if c.reason == "ErrImagePull" {
				w.after(3 * time.Second)
				w.wantWaiting("web", "a", "ImagePullBackOff", `Back-off pulling image "nothere": ErrImagePull: failed to resolve`)
				w.wantEvent(`BackOff: Back-off pulling image "nothere"`)
				w.rt.SetPullable("nothere:latest")
				w.after(15 * time.Second)
				w.wantPhase("web", corev1.PodRunning)
				w.wantEvent(`Pulled: Successfully pulled image "nothere" in `)
			}
		})
	}
}

// A volume that is an image is pulled by its own policy, before the container's,
// and mounted by the runtime.
func TestImageVolume(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("web", "a")
		p.Spec.Volumes = []corev1.Volume{{Name: "model", VolumeSource: corev1.VolumeSource{
			Image: &corev1.ImageVolumeSource{Reference: "model", PullPolicy: corev1.PullAlways}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "model", MountPath: "/model", SubPath: "weights"}}
		w.create(p)
		w.wantWaiting("web", "a", "ErrImagePull", `failed to resolve reference "model:latest": not found`)
		w.wantEvent(`Failed: Failed to pull image "model": failed to resolve`)
		w.rt.SetPullable("model:latest")
		w.after(15 * time.Second)
		w.wantPhase("web", corev1.PodRunning)
		w.wantEvent(`Pulled: Successfully pulled image "model" in `)
		m := w.container("a").Config.Mounts[0]
		if m.GetImage().GetUserSpecifiedImage() != "model" || m.ImageSubPath != "weights" || m.ContainerPath != "/model" || m.HostPath != "" || !m.Readonly {
			t.Errorf("the image is mounted as %v", m)
		}
	})
}

func TestFailures(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		op, reason, message, event string
	}{
		{"CreateContainer", "CreateContainerError", "boom", "Failed: Error: boom"},
		{"StartContainer", "RunContainerError", "boom", "Failed: Error: boom"},
		{"RunPodSandbox", "ContainerCreating", "", "FailedCreatePodSandBox: Failed to create pod sandbox: boom"},
	} {
		run(t, func(w *world) { w.rt.FailAlways(c.op, boom) }, func(w *world) {
			w.create(newPod("web", "a"))
			w.wantWaiting("web", "a", c.reason, c.message)
			w.wantEvent(c.event)
			w.rt.Heal(c.op)
			w.after(30 * time.Second)
			w.wantPhase("web", corev1.PodRunning)
		})
	}
	run(t, func(w *world) {
		w.volumes.fail = errors.Join(errors.New(`MountVolume.SetUp failed for volume "v" : no`))
	}, func(w *world) {
		p := newPod("web", "a")
		p.Spec.Volumes = []corev1.Volume{{Name: "v"}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
		w.create(p)
		w.wantEvent(`FailedMount: MountVolume.SetUp failed for volume "v" : no`)
		w.wantWaiting("web", "a", "ContainerCreating", "")
		w.volumes.mu.Lock()
		w.volumes.fail = nil
		w.volumes.mu.Unlock()
		w.after(time.Second)
		w.wantPhase("web", corev1.PodRunning)
	})
}

func TestMissingReferences(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("web", "a")
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Key: "k"}}}}
		w.create(p)
		w.wantWaiting("web", "a", "CreateContainerConfigError", `configmap "cm" not found`)
		w.wantEvent(`Failed: Error: configmap "cm" not found`)
		w.api.Put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "default"}})
		synctest.Wait()
		w.wantWaiting("web", "a", "CreateContainerConfigError", "couldn't find key k in ConfigMap default/cm")
		w.api.Put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "default"}, Data: map[string]string{"k": "v"}})
		synctest.Wait() // the change itself wakes the pod
		w.wantPhase("web", corev1.PodRunning)
		if env := w.container("a").Config.Envs; len(env) != 1 || env[0].Key != "X" || string(env[0].Value) != "v" {
			t.Errorf("environment: %v", env)
		}
		sets := w.volumes.sets
		w.api.Put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "default"}, Data: map[string]string{"k": "w"}})
		synctest.Wait()
		if w.volumes.sets <= sets {
			t.Error("a changed config map did not reach the volume")
		}
	})
}

func TestProbes(t *testing.T) {
	exec := func(cmd string) corev1.ProbeHandler {
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{cmd}}}
	}
	var bad [3]atomic.Bool // startup, ready, live
	setup := func(w *world) {
		for i := range bad {
			bad[i].Store(false)
		}
		w.rt.OnExec = func(_ context.Context, _ string, cmd []string) (string, string, int, error) {
			if bad[slices.Index([]string{"startup", "ready", "live"}, cmd[0])].Load() {
				return "not " + cmd[0], "", 1, nil
			}
			return "", "", 0, nil
		}
	}
	probed := func() *corev1.Pod {
		p := newPod("web", "a")
		c := &p.Spec.Containers[0]
		c.StartupProbe = &corev1.Probe{ProbeHandler: exec("startup"), PeriodSeconds: 1, FailureThreshold: 5, SuccessThreshold: 1, TimeoutSeconds: 1}
		c.ReadinessProbe = &corev1.Probe{ProbeHandler: exec("ready"), PeriodSeconds: 2, FailureThreshold: 2, SuccessThreshold: 1, TimeoutSeconds: 1}
		c.LivenessProbe = &corev1.Probe{ProbeHandler: exec("live"), PeriodSeconds: 5, FailureThreshold: 2, SuccessThreshold: 1, TimeoutSeconds: 1, TerminationGracePeriodSeconds: ptr(int64(7))}
		return p
	}
	run(t, setup, func(w *world) {
		bad[0].Store(true)
		bad[1].Store(true)
		w.create(probed())
		s := w.pod("web").Status.ContainerStatuses[0]
		if s.State.Running == nil || *s.Started || s.Ready {
			t.Errorf("before the startup probe: %+v", s)
		}
		w.wantEvent("spec.containers{a} Unhealthy: Startup probe failed: not startup")
		bad[0].Store(false)
		w.after(2 * time.Second)
		if s := w.pod("web").Status.ContainerStatuses[0]; !*s.Started || s.Ready {
			t.Errorf("after the startup probe: %+v", s)
		}
		bad[1].Store(false)
		w.after(3 * time.Second)
		if c := condIs(w.pod("web"), corev1.PodReady); c != "True" {
			t.Errorf("Ready: %s", c)
		}
		bad[1].Store(true)
		w.after(6 * time.Second)
		if c := condIs(w.pod("web"), corev1.PodReady); !strings.HasPrefix(c, "False ContainersNotReady") {
			t.Errorf("Ready: %s", c)
		}
		w.wantEvent("Unhealthy: Readiness probe failed: not ready")
		if s := w.pod("web").Status.ContainerStatuses[0]; s.RestartCount != 0 {
			t.Error("a failed readiness probe restarted the container")
		}
		bad[2].Store(true)
		w.after(11 * time.Second)
		bad[2].Store(false)
		w.wantEvent("Killing: Container a failed liveness probe, will be restarted")
		w.after(2 * time.Second)
		if s := w.pod("web").Status.ContainerStatuses[0]; s.RestartCount != 1 || s.State.Running == nil {
			t.Errorf("after the liveness probe failed: %+v", s)
		}
		for _, c := range w.rt.Containers("a") {
			if c.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED && !slices.Equal(c.StopTimeouts, []int64{7}) {
				t.Errorf("the probe's grace period was not kept: %v", c.StopTimeouts)
			}
		}
	})
	run(t, setup, func(w *world) {
		bad[0].Store(true)
		w.create(probed())
		w.after(5 * time.Second)
		w.wantEvent("Killing: Container a failed startup probe, will be restarted")
	})
	// While this kubelet is away the container stays Ready, and after its return
	// until a probe says otherwise.
	run(t, setup, func(w *world) {
		w.create(probed())
		w.after(5 * time.Second)
		w.kill()
		bad[1].Store(true)
		writes := len(w.api.Requests())
		w.start()
		if c := condIs(w.pod("web"), corev1.PodReady); c != "True" {
			t.Errorf("a restart made the pod unready: %s", c)
		}
		if n := len(w.api.Requests()); n != writes {
			t.Errorf("a restart wrote %d times", n-writes)
		}
		w.after(5 * time.Second)
		if c := condIs(w.pod("web"), corev1.PodReady); !strings.HasPrefix(c, "False") {
			t.Errorf("after failed probes: %s", c)
		}
	})
}

// A server that opens its port a moment after its start is ready then, not a
// period later, and the tries between are not told.
func TestReadySoon(t *testing.T) {
	var up atomic.Bool
	run(t, func(w *world) {
		w.rt.OnExec = func(context.Context, string, []string) (string, string, int, error) {
			if up.Load() {
				return "", "", 0, nil
			}
			return "", "", 1, nil
		}
	}, func(w *world) {
		p := newPod("web", "a")
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}, PeriodSeconds: 30, FailureThreshold: 3, SuccessThreshold: 1, TimeoutSeconds: 1}
		w.create(p)
		w.after(500 * time.Millisecond)
		up.Store(true)
		w.after(500 * time.Millisecond)
		if c := condIs(w.pod("web"), corev1.PodReady); c != "True" {
			t.Errorf("Ready: %s", c)
		}
		if n := strings.Count(strings.Join(w.events.all(), "\n"), "Unhealthy"); n != 1 {
			t.Errorf("Unhealthy was told %d times", n)
		}
	})
}

func TestProbePortByName(t *testing.T) {
	c := &corev1.Container{Name: "a", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}
	if n, err := containerPort(intstr.FromString("http"), c); n != 8080 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := containerPort(intstr.FromString("none"), c); err == nil || err.Error() != "couldn't find port: none in container: a" {
		t.Errorf("error %v", err)
	}
}

func TestHooks(t *testing.T) {
	hook := func(cmd string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{cmd}}}
	}
	var ran []string
	setup := func(w *world) {
		ran = nil
		w.rt.OnExec = func(_ context.Context, _ string, cmd []string) (string, string, int, error) {
			ran = append(ran, cmd[0])
			if strings.HasPrefix(cmd[0], "bad") {
				return "oops", "", 1, nil
			}
			return "", "", 0, nil
		}
	}
	run(t, setup, func(w *world) {
		p := newPod("web", "a")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: hook("post"), PreStop: hook("bad pre")}
		w.create(p)
		w.delete("web", 30)
		if !slices.Equal(ran, []string{"post", "bad pre"}) {
			t.Errorf("hooks that ran: %q", ran)
		}
		w.wantEvent("FailedPreStopHook: PreStopHook failed")
		if w.exists("web") {
			t.Error("a failed hook kept the pod")
		}
	})
	run(t, setup, func(w *world) {
		p := newPod("web", "a")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: hook("bad post")}
		w.create(p)
		w.wantWaiting("web", "a", "PostStartHookError", `Exec lifecycle hook ([bad post]) for Container "a" in Pod "web_default(web-uid)" failed - error: `)
		w.wantEvent("FailedPostStartHook: PostStartHook failed")
	})
	run(t, setup, func(w *world) {
		p := newPod("web", "a")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}}}
		w.create(p)
		w.delete("web", 30)
		w.after(4 * time.Second)
		if c := w.container("a"); len(c.StopTimeouts) != 0 {
			t.Error("the container was stopped before its hook was done")
		}
		w.after(2 * time.Second)
		if w.exists("web") {
			t.Error("the pod is still there")
		}
	})
}

func TestGrace(t *testing.T) {
	run(t, func(w *world) { w.rt.IgnoreTerm["a"] = true }, func(w *world) {
		w.create(newPod("web", "a"))
		w.delete("web", 300)
		w.after(10 * time.Second)
		if !w.exists("web") {
			t.Fatal("the pod is gone before its grace period")
		}
		if ts := w.container("a").StopTimeouts; !slices.Equal(ts, []int64{300}) {
			t.Errorf("grace periods %v", ts)
		}
		// A second delete shortens it, at once.
		w.delete("web", 4)
		w.after(5 * time.Second)
		if w.exists("web") {
			t.Errorf("the pod outlived its shortened grace period")
		}
		if n := strings.Count(strings.Join(w.events.all(), "\n"), "Killing:"); n != 1 {
			t.Errorf("Killing was told %d times", n)
		}
	})
	// Deleted while an image is pulled: nobody waits for it.
	run(t, func(w *world) { w.rt.Delay("PullImage", time.Hour) }, func(w *world) {
		p := newPod("web", "a")
		p.Spec.Containers[0].Image = "slow"
		w.create(p)
		w.delete("web", 30)
		if w.exists("web") {
			t.Error("the deleted pod waits for its image")
		}
	})
}

func TestForceDelete(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a"))
		w.delete("web", 0)
		w.after(time.Second)
		if n := len(w.rt.Containers("")) + len(w.rt.Sandboxes()); n != 0 {
			t.Errorf("%d things are left", n)
		}
		// The same name, another pod.
		q := newPod("web", "b")
		q.UID = "other"
		w.create(q)
		w.wantPhase("web", corev1.PodRunning)
	})
}

func TestDeadline(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("job", "a")
		p.Spec.ActiveDeadlineSeconds = ptr(int64(60))
		w.create(p)
		w.after(58 * time.Second)
		w.wantPhase("job", corev1.PodRunning)
		w.after(3 * time.Second)
		s := w.pod("job").Status
		if s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" || s.Message != "Pod was active on the node longer than the specified deadline" {
			t.Errorf("status: %s %s %s", s.Phase, s.Reason, s.Message)
		}
	})
}

func TestSandboxDies(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a"))
		w.rt.KillSandbox(w.rt.Sandboxes()[0].Status.Id)
		w.after(time.Second)
		w.wantEvent("SandboxChanged: Pod sandbox changed, it will be killed and re-created.")
		w.wantPhase("web", corev1.PodRunning)
		s := w.pod("web").Status
		if s.ContainerStatuses[0].RestartCount != 1 || s.PodIP != "10.244.0.3" {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestImageChange(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a", "b"))
		q := w.pod("web").DeepCopy()
		q.Spec.Containers[0].Image = "busybox"
		if _, err := client.For[*corev1.Pod](w.api.Client()).Update(context.Background(), q); err != nil {
			t.Fatal(err)
		}
		w.after(time.Second)
		w.wantEvent("spec.containers{a} Killing: Container a definition changed, will be restarted")
		for _, s := range w.pod("web").Status.ContainerStatuses {
			want := map[string]int32{"a": 1, "b": 0}[s.Name]
			if s.RestartCount != want || s.State.Running == nil {
				t.Errorf("%s: %+v", s.Name, s)
			}
		}
		if g := w.pod("web"); g.Status.ObservedGeneration != g.Generation {
			t.Errorf("observedGeneration %d of %d", g.Status.ObservedGeneration, g.Generation)
		}
	})
}

func TestReadinessGate(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("web", "a")
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/lb"}}
		w.create(p)
		if c := condIs(w.pod("web"), corev1.PodReady); c != `False ReadinessGatesNotReady corresponding condition of pod readiness gate "example.com/lb" does not exist.` {
			t.Errorf("Ready: %s", c)
		}
		if c := condIs(w.pod("web"), corev1.ContainersReady); c != "True" {
			t.Errorf("ContainersReady: %s", c)
		}
		_, err := client.For[*corev1.Pod](w.api.Client()).In("default").Patch(context.Background(), "web", "application/strategic-merge-patch+json",
			[]byte(`{"status":{"conditions":[{"type":"example.com/lb","status":"True"}]}}`), "status")
		if err != nil {
			t.Fatal(err)
		}
		w.after(time.Second)
		if c := condIs(w.pod("web"), corev1.PodReady); c != "True" {
			t.Errorf("Ready: %s", c)
		}
		if c := condIs(w.pod("web"), "example.com/lb"); c != "True" {
			t.Errorf("another's condition: %s", c)
		}
	})
}

func TestStatusIsPutRight(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(newPod("web", "a"))
		_, err := client.For[*corev1.Pod](w.api.Client()).In("default").Patch(context.Background(), "web", "application/merge-patch+json",
			[]byte(`{"status":{"podIP":"1.2.3.4","phase":"Pending"}}`), "status")
		if err != nil {
			t.Fatal(err)
		}
		w.after(time.Second)
		w.wantPhase("web", corev1.PodRunning)
	})
}

func TestAPIAway(t *testing.T) {
	run(t, nil, func(w *world) {
		var down atomic.Bool
		w.api.Intercept = func(verb string, _ client.Ref, _ client.Object) error {
			if down.Load() && verb != "watch" && verb != "list" {
				return errors.New("connection refused")
			}
			return nil
		}
		w.create(newPod("web", "a"))
		down.Store(true)
		w.exit("a", 0)
		w.after(time.Minute)
		down.Store(false)
		w.after(20 * time.Second)
		if s := w.pod("web").Status.ContainerStatuses[0]; s.RestartCount != 1 || s.State.Running == nil {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestAdmission(t *testing.T) {
	setup := func(w *world) {
		w.deps = func(d *Deps) { d.NoNode = false; d.MaxPods = 3 }
		w.api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: leaseNamespace}})
	}
	run(t, setup, func(w *world) {
		w.after(time.Second)
		n, err := client.For[*corev1.Node](w.api.Client()).Get(context.Background(), node)
		if err != nil {
			t.Fatal(err)
		}
		p := newPod("big", "a")
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1000")}
		w.create(p)
		s := w.pod("big").Status
		capacity := n.Status.Allocatable.Cpu().MilliValue()
		want := "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: 0, capacity: " + resource.NewQuantity(capacity, resource.DecimalSI).AsDec().String()
		if s.Phase != corev1.PodFailed || s.Reason != "OutOfcpu" || s.Message != want {
			t.Errorf("status: %s %s %q, want %q", s.Phase, s.Reason, s.Message, want)
		}
		w.wantEvent("OutOfcpu: Node didn't have enough resource: cpu")
		for _, name := range []string{"x", "y", "z"} {
			w.create(newPod(name, "a"))
		}
		w.create(newPod("toomany", "a"))
		if s := w.pod("toomany").Status; s.Reason != "OutOfpods" {
			t.Errorf("status: %+v", s)
		}
		w.wantPhase("z", corev1.PodRunning)
	})
}

func TestTerminationMessage(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("job", "a")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		w.create(p)
		c := w.container("a")
		for _, m := range c.Config.Mounts {
			if m.ContainerPath == "/dev/termination-log" {
				writeFile(t, m.HostPath, "out of luck")
			}
		}
		w.exit("a", 1)
		if s := w.pod("job").Status.ContainerStatuses[0].State.Terminated; s == nil || s.Message != "out of luck" {
			t.Errorf("state: %+v", s)
		}
	})
	run(t, nil, func(w *world) {
		p := newPod("job", "a")
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
		w.create(p)
		writeFile(t, w.container("a").Status.LogPath, "2026-01-01T00:00:00.0Z stdout F one\n2026-01-01T00:00:00.0Z stderr P tw\n2026-01-01T00:00:00.0Z stderr F o\n")
		w.rt.Exit(w.container("a").Status.Id, 137, "OOMKilled")
		synctest.Wait()
		if s := w.pod("job").Status.ContainerStatuses[0].State.Terminated; s == nil || s.Message != "one\ntwo\n" || s.Reason != "OOMKilled" {
			t.Errorf("state: %+v", s)
		}
	})
}

// A volume that no container mounts is not made, and holds nothing up; one that a
// container mounts that joins later is made then.
func TestVolumesNobodyMounts(t *testing.T) {
	run(t, nil, func(w *world) {
		p := newPod("web", "a")
		for _, name := range []string{"spare", "own"} {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "own", MountPath: "/own"}}
		w.create(p)
		w.wantPhase("web", corev1.PodRunning)
		if got := w.volumes.made(); !slices.Equal(got, []string{"own"}) {
			t.Errorf("volumes made: %v", got)
		}
		p = w.pod("web").DeepCopy()
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
			Name: "debug", Image: "busybox", ImagePullPolicy: corev1.PullIfNotPresent,
			VolumeMounts: []corev1.VolumeMount{{Name: "spare", MountPath: "/spare"}},
		}}}
		w.create(p)
		if c := w.container("debug"); len(c.Config.Mounts) == 0 || c.Config.Mounts[0].HostPath != "/volumes/spare" {
			t.Errorf("mounts: %v", c.Config.Mounts)
		}
		if got := w.volumes.made(); !slices.Equal(got, []string{"own", "spare"}) {
			t.Errorf("volumes made: %v", got)
		}
	})
}
