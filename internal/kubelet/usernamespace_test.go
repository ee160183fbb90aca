package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func usersPod(name string) *corev1.Pod {
	p := newPod(name, "a")
	p.Spec.HostUsers = ptr(false)
	return p
}

// A runtime that gives no user namespaces, or not by the handler that a pod's class
// names, is told of.
func TestUserNamespacesUnsupported(t *testing.T) {
	run(t, nil, func(w *world) {
		w.create(usersPod("web"))
		w.wantEvent("FailedCreatePodSandBox: Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces")
		w.wantPhase("web", corev1.PodPending)
		if left, _ := filepath.Glob(filepath.Join(w.dir, "data", "kubelet", "pods", "*", "userns")); len(left) > 0 {
			t.Errorf("IDs were given: %v", left)
		}
		w.rt.SetUserNamespaces(true)
		w.after(time.Minute)
		w.wantPhase("web", corev1.PodRunning)
	})
}

// A pod's sandbox and containers have the same IDs, whenever they are made, and its
// mounts show them; another pod has others; they are free when the pod is gone.
func TestUserNamespaces(t *testing.T) {
	run(t, func(w *world) { w.rt.SetUserNamespaces(true) }, func(w *world) {
		plain := newPod("plain", "a")
		w.create(plain)
		if u := w.container("a").Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions; u.GetMode() != runtimeapi.NamespaceMode_NODE || len(u.GetUids()) > 0 {
			t.Errorf("without its own: %v", u)
		}
		w.delete("plain", 0)
		w.after(time.Minute)

		p := usersPod("web")
		w.create(p)
		p = w.pod("web")
		record := filepath.Join(w.dir, "data", "kubelet", "pods", string(p.UID), "userns")
		b, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		s := w.rt.Sandboxes()[0].Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
		if s.GetMode() != runtimeapi.NamespaceMode_POD || len(s.Uids) != 1 || len(s.Gids) != 1 {
			t.Fatalf("sandbox: %v", s)
		}
		first := s.Uids[0].HostId
		m := fmt.Sprintf(`[{"hostId":%d,"containerId":0,"length":65536}]`, first)
		if want := `{"uidMappings":` + m + `,"gidMappings":` + m + `}`; string(b) != want || first == 0 || first%65536 != 0 {
			t.Errorf("recorded %s, want %s", b, want)
		}
		same := func(what string, list []*runtimeapi.IDMapping) {
			t.Helper()
			if len(list) != 1 || list[0].HostId != first || list[0].ContainerId != 0 || list[0].Length != 65536 {
				t.Errorf("%s: %v, want 65536 IDs from %d", what, list, first)
			}
		}
		check := func() {
			t.Helper()
			c := w.container("a").Config
			u := c.Linux.SecurityContext.NamespaceOptions.UsernsOptions
			same("container", u.GetUids())
			same("container", u.GetGids())
			if len(c.Mounts) == 0 {
				t.Error("no mounts")
			}
			for _, m := range c.Mounts {
				same(m.ContainerPath, m.UidMappings)
				same(m.ContainerPath, m.GidMappings)
			}
		}
		check()
		other := newPod("other", "b")
		other.Spec.HostUsers = ptr(false)
		w.create(other)
		if o := w.container("b").Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions; len(o.GetUids()) != 1 || o.Uids[0].HostId == first {
			t.Errorf("another pod: %v", o)
		}

		// The next container, after a restart of the kubelet, has them too.
		w.kill()
		w.start()
		w.rt.Exit(w.container("a").Status.Id, 1, "")
		w.after(time.Minute)
		check()

		w.delete("web", 0)
		w.after(time.Minute)
		if _, err := os.Stat(record); !os.IsNotExist(err) {
			t.Errorf("the record of a pod that is gone: %v", err)
		}
		if got, _, err := w.k.users.Get(w.pod("other").UID); err != nil || got == first {
			t.Errorf("the other pod has %d, %v", got, err)
		}
	})
}

// procMount Unmasked hides nothing and lets everything be written.
func TestProcMount(t *testing.T) {
	run(t, func(w *world) { w.rt.SetUserNamespaces(true) }, func(w *world) {
		p := usersPod("web")
		unmasked := corev1.UnmaskedProcMount
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{ProcMount: &unmasked}
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "b", Image: "nginx"})
		w.create(p)
		if s := w.container("a").Config.Linux.SecurityContext; len(s.MaskedPaths)+len(s.ReadonlyPaths) != 0 {
			t.Errorf("unmasked: %v, %v", s.MaskedPaths, s.ReadonlyPaths)
		}
		if s := w.container("b").Config.Linux.SecurityContext; len(s.MaskedPaths) == 0 || len(s.ReadonlyPaths) == 0 {
			t.Errorf("by default: %v, %v", s.MaskedPaths, s.ReadonlyPaths)
		}
	})
}
