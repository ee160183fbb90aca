package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

// steps are those of a pod's start, then of its end, as the runtime names them (its
// package doc says what each leaves behind).
var (
	startSteps = []string{
		"sandbox-recorded", "sandbox-mounted", "sandbox-spawned", "sandbox-attached", "sandbox-ready",
		"container-prepared", "container-recorded", "container-starting", "container-started",
	}
	endSteps = []string{
		"stop-recorded", "stop-killed", "stop-detached", "stop-ended", "remove-forgotten", "remove-removed", "remove-emptied",
	}
)

// worn is a cluster that is killed again and again, in namespaces of its own.
type worn struct {
	*cluster
	pods client.Resource[*corev1.Pod]
	// starts is a directory in which every container writes a line when it starts, to
	// a file of its pod's name.
	starts string
	steady string
	quiet  hostState
}

// wear starts a cluster with pods that are to go on all the time.
func wear(t *testing.T, name string, args ...string) *worn {
	t.Helper()
	// What tests build is built where there is a network.
	w := &worn{starts: t.TempDir(), cluster: own(t, name, "/var/lib/skiff/NAME")}
	w.args = args
	w.up()
	w.importBusybox()
	cfg, err := client.LoadKubeconfig(w.data + "/admin.kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	h, err := client.NewHTTPS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	w.pods = client.For[*corev1.Pod](client.New(h, "wear")).In("churn")
	w.kubectl("create", "namespace", "churn")
	w.kubectl("create", "configmap", "conf", "-n", "churn", "--from-literal=k=v")
	w.apply(web(2, "steady"))
	w.rollout("web")
	w.apply(`
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:1", command: [sleep, "100000"]}]
`)
	w.is("pod/host", readyPath, "True")
	// One that comes and goes leaves what the first of its kind leaves: a namespace's
	// token, an empty directory.
	w.create("first")
	w.runs("first")
	w.delete("first")
	w.gone("first")
	w.steady = w.running()
	w.quiet = w.look()
	return w
}

// look takes a picture of what pods have on the host.
func (w *worn) look() hostState {
	w.t.Helper()
	s := observe(w.t, w.name)
	delete(s, "sysctls")
	// Processes: not skiff itself, whose program may be another one.
	s["processes"] = slices.DeleteFunc(s["processes"], func(args string) bool { return strings.Contains(args, " up --report ") })
	own := regexp.MustCompile(`^(/var/lib/skiff/` + w.name + `/(kubelet/pods|images)|/run/skiff/` + w.name + `/(runtime/pods|runtime/mnt|cni))`)
	s["files"] = slices.DeleteFunc(s["files"], func(path string) bool { return !own.MatchString(path) })
	s["namespaces"] = namespaces(w.t)
	s["nftables"] = elements(s["nftables"])
	return s
}

// elements takes the lists of maps and sets apart: nft prints several in a line, in
// the order in which the kernel has them. Which of a service's endpoints has which
// number is left out: a skiff that starts gives them out anew.
func elements(lines []string) []string {
	var out []string
	number := regexp.MustCompile(` \. 0x[0-9a-f]{8} : `)
	for _, l := range lines {
		for e := range strings.SplitSeq(number.ReplaceAllString(l, " : "), ",") {
			if e = strings.Trim(strings.TrimPrefix(e, "elements = "), " {}"); e != "" {
				out = append(out, e)
			}
		}
	}
	slices.Sort(out)
	return out
}

// namespaces lists those that any process is in or holds open, by their kind.
func namespaces(t *testing.T) []string {
	t.Helper()
	ids := map[string]bool{}
	for _, pattern := range []string{"/proc/[0-9]*/ns/*", "/proc/[0-9]*/fd/*"} {
		links, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			to, err := os.Readlink(l)
			kind, _, ok := strings.Cut(to, ":[")
			if err == nil && ok && slices.Contains([]string{"net", "ipc", "uts", "pid", "mnt", "user", "cgroup", "time"}, kind) {
				ids[to] = true
			}
		}
	}
	var out []string
	for id := range ids {
		kind, _, _ := strings.Cut(id, ":")
		out = append(out, kind)
	}
	slices.Sort(out)
	return out
}

// create makes a pod that notes its start, and differs from others by edits.
func (w *worn) create(name string, edits ...func(*corev1.Pod)) {
	w.t.Helper()
	grace := int64(1)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "main", Image: "busybox:1", Command: []string{"sh", "-c", "echo started >> /starts/$NAME; exec sleep 100000"},
				Env:          []corev1.EnvVar{{Name: "NAME", Value: name}},
				VolumeMounts: []corev1.VolumeMount{{Name: "starts", MountPath: "/starts"}, {Name: "memory", MountPath: "/memory"}, {Name: "conf", MountPath: "/conf"}},
			}},
			Volumes: []corev1.Volume{
				{Name: "starts", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: w.starts}}},
				{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
				{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}},
			},
		},
	}
	for _, edit := range edits {
		edit(p)
	}
	if _, err := w.pods.Create(w.t.Context(), p); err != nil {
		w.t.Fatalf("create pod %s: %v", name, err)
	}
}

func (w *worn) delete(name string) {
	w.t.Helper()
	if err := w.pods.Delete(w.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		w.t.Fatalf("delete pod %s: %v", name, err)
	}
}

// runs waits until a pod runs, and checks that its container was started once and
// never again.
func (w *worn) runs(name string) {
	w.t.Helper()
	w.eventually("pod "+name+" runs", func() (bool, string) {
		p, err := w.pods.Get(w.t.Context(), name)
		if err != nil {
			return false, err.Error()
		}
		if len(p.Status.ContainerStatuses) != 1 || p.Status.ContainerStatuses[0].State.Running == nil {
			return false, fmt.Sprintf("%+v", p.Status)
		}
		if n := p.Status.ContainerStatuses[0].RestartCount; n != 0 {
			w.t.Fatalf("pod %s was restarted %d times", name, n)
		}
		return true, ""
	})
	var starts string
	w.eventually("pod "+name+" says that it started", func() (bool, string) {
		b, err := os.ReadFile(filepath.Join(w.starts, name))
		starts = string(b)
		return len(b) > 0, fmt.Sprint(err)
	})
	if starts != "started\n" {
		w.t.Errorf("pod %s started %d times", name, strings.Count(starts, "\n"))
	}
}

func (w *worn) gone(name string) {
	w.t.Helper()
	w.eventually("pod "+name+" is gone", func() (bool, string) {
		p, err := w.pods.Get(w.t.Context(), name)
		if err != nil {
			return apierrors.IsNotFound(err), err.Error()
		}
		return false, fmt.Sprintf("%v %+v", p.DeletionTimestamp, p.Status)
	})
}

// dies waits until a process has ended by itself.
func (w *worn) dies(pid int, why string) {
	w.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(fd)
	n := 0
	for n == 0 {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			n = 0
			continue
		}
		if err != nil || n == 0 {
			w.t.Fatalf("skiff did not reach %s within %v: %v", why, patience, err)
		}
	}
}

// unharmed checks that the steady pods went on and that nothing is left of others.
func (w *worn) unharmed() {
	w.t.Helper()
	if now := w.running(); now != w.steady {
		w.t.Errorf("pods were touched:\n%s\nbefore\n%s", now, w.steady)
	}
	// What is there no more is no leak: rules that a killed skiff had no use for any
	// more, mounts of others.
	w.eventually("nothing is left of pods that went", func() (bool, string) {
		now := w.look()
		for kind := range now {
			if left := minus(now[kind], w.quiet[kind]); len(left) > 0 {
				return false, fmt.Sprint(kind, ": ", left)
			}
		}
		return true, ""
	})
}

// TestKillAtEachStep: skiff is killed at each step of a pod's start and of its end.
// The next one brings the pod up, or away; its container is never started twice, and
// nothing is left. So with a pod that has a user namespace of its own.
func TestKillAtEachStep(t *testing.T) {
	if !apart(t) {
		return
	}
	w := wear(t, "steps")
	at := func(step string, do func()) {
		t.Helper()
		w.kill9()
		t.Setenv("SKIFF_KILL_AT", step)
		w.up()
		os.Unsetenv("SKIFF_KILL_AT")
		pid := w.pid()
		do()
		w.dies(pid, step)
		w.up()
	}
	own := false
	for kind, edit := range map[string]func(*corev1.Pod){"": func(*corev1.Pod) {}, "users-": func(p *corev1.Pod) { p.Spec.HostUsers = &own }} {
		for _, step := range startSteps {
			name := kind + "start-" + step
			at(step, func() { w.create(name, edit) })
			w.runs(name)
			w.delete(name)
			w.gone(name)
		}
		w.unharmed()
		for _, step := range endSteps {
			name := kind + "end-" + step
			w.create(name, edit)
			w.runs(name)
			at(step, func() { w.delete(name) })
			w.gone(name)
		}
		w.unharmed()
	}
}

// TestEndure kills skiff, or has another release take over, at random moments while
// pods start and stop and a writer writes: no pod is started twice, no acknowledged
// write is lost, nothing is left behind. SKIFF_ENDURE_ROUNDS (5; make endure: 50)
// sets its length, SKIFF_ENDURE_SEED repeats one.
func TestEndure(t *testing.T) {
	if !apart(t) {
		return
	}
	rounds := envInt("SKIFF_ENDURE_ROUNDS", 5)
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SKIFF_ENDURE_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SKIFF_ENDURE_SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	releases := []string{skiffBin, otherSkiff(t)}
	w := wear(t, "endure")
	wr := w.writer()
	var alive []string // pods that are to run
	var past []string  // pods that were deleted
	kills, upgrades := 0, 0
	for round := range rounds {
		// Something starts, something ends, while skiff is killed.
		for n := range 1 + rnd.IntN(3) {
			name := fmt.Sprintf("p-%d-%d", round, n)
			w.create(name)
			alive = append(alive, name)
		}
		for len(alive) > 3 {
			i := rnd.IntN(len(alive))
			w.delete(alive[i])
			past = append(past, alive[i])
			alive = slices.Delete(alive, i, i+1)
		}
		time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		if round%5 == 4 { // an orderly takeover
			next := releases[0]
			if w.bin == next {
				next = releases[1]
			}
			w.bin = next
			upgrades++
			w.up()
			continue
		}
		w.kill9()
		kills++
		if rnd.IntN(3) == 0 {
			w.bin = releases[rnd.IntN(2)]
		}
		w.up()
	}
	t.Logf("%d kills, %d takeovers, %d pods", kills, upgrades, len(alive)+len(past))
	wr.stop()
	wr.compare()
	for _, name := range alive {
		w.runs(name)
		w.delete(name)
	}
	for _, name := range append(alive, past...) {
		w.gone(name)
		if b, err := os.ReadFile(filepath.Join(w.starts, name)); err != nil && !errors.Is(err, fs.ErrNotExist) || strings.Count(string(b), "\n") > 1 {
			t.Errorf("pod %s started more than once: %q, %v", name, b, err)
		}
	}
	w.unharmed()
}
