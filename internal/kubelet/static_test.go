package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

const webManifest = `
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  containers:
  - name: a
    image: nginx
    imagePullPolicy: IfNotPresent
`

func TestManifest(t *testing.T) {
	seen := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	p, err := manifest([]byte(webManifest), "/etc/pods/web.yaml", "node-1", seen)
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "web-node-1" || p.Namespace != "default" || p.Spec.NodeName != "node-1" || p.Status.Phase != corev1.PodPending {
		t.Errorf("%s/%s on %s, %s", p.Namespace, p.Name, p.Spec.NodeName, p.Status.Phase)
	}
	if p.Annotations[annotationConfigHash] != string(p.UID) || p.Annotations[annotationConfigSource] != "file" || p.Annotations[annotationConfigSeen] != "2026-01-02T03:04:05Z" {
		t.Errorf("annotations: %v", p.Annotations)
	}
	if p.Spec.RestartPolicy != corev1.RestartPolicyAlways || p.Spec.Containers[0].TerminationMessagePath == "" || p.Spec.TerminationGracePeriodSeconds == nil {
		t.Errorf("defaults: %+v", p.Spec)
	}
	if n := len(p.Spec.Tolerations); n != 1 || p.Spec.Tolerations[0].Effect != corev1.TaintEffectNoExecute {
		t.Errorf("tolerations: %v", p.Spec.Tolerations)
	}
	if !isStatic(p) || isMirror(p) {
		t.Error("it is no static pod")
	}
	uid := func(text, path, node string) types.UID {
		p, err := manifest([]byte(text), path, node, seen.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		return p.UID
	}
	if uid(webManifest, "/etc/pods/web.yaml", "node-1") != p.UID {
		t.Error("the same manifest makes another pod")
	}
	for _, other := range []types.UID{
		uid(strings.Replace(webManifest, "nginx", "busybox", 1), "/etc/pods/web.yaml", "node-1"),
		uid(webManifest, "/etc/pods/other.yaml", "node-1"), uid(webManifest, "/etc/pods/web.yaml", "node-2"),
	} {
		if other == p.UID {
			t.Error("another manifest makes the same pod")
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"{", "couldn't parse as pod("},
		{"apiVersion: apps/v1\nkind: Deployment", "couldn't parse as pod(apps/v1 Deployment), please check config file"},
		{"apiVersion: v1\nkind: Pod", "invalid pod: name is needed for the pod"},
		{"apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}", "invalid pod: [spec.containers: Required value"},
		{webManifest + "  serviceAccountName: me\n", "static pods may not reference serviceaccounts"},
		{webManifest + "    envFrom: [{configMapRef: {name: c}}]\n", "static pods may not reference configmaps"},
		{webManifest + "    env: [{name: A, valueFrom: {secretKeyRef: {name: c, key: k}}}]\n", "static pods may not reference secrets"},
		{webManifest + "  volumes: [{name: v, secret: {secretName: s}}]\n", "static pods may not reference secrets"},
		{webManifest + "  volumes: [{name: v, persistentVolumeClaim: {claimName: s}}]\n", "static pods may not reference persistentvolumeclaims"},
		{webManifest + "  volumes: [{name: v, csi: {driver: d.example.com}}]\n", "static pods may not reference csidrivers (via CSI volumes)"},
	} {
		if _, err := manifest([]byte(tt.text), "/f", "n", seen); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %s", tt.text, err, tt.want)
		}
	}
	for _, fine := range []string{"  volumes: [{name: v, hostPath: {path: /etc}}, {name: e, emptyDir: {}}]\n", "  volumes: [{name: v, projected: {sources: [{downwardAPI: {items: []}}]}}]\n"} {
		if _, err := manifest([]byte(webManifest+fine), "/f", "n", seen); err != nil {
			t.Errorf("%q: %v", fine, err)
		}
	}
}

// withStatics gives a kubelet a directory of manifests.
func withStatics(dir string) func(*world) {
	return func(w *world) {
		w.api.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, UID: "node-uid"}})
		w.deps = func(d *Deps) {
			d.StaticPods = dir
			// The kernel does not know of the tests' time.
			d.notify = func(string) (<-chan struct{}, func(), error) { return nil, func() {}, nil }
		}
	}
}

// mirrorOf awaits what the API shows of the static pod web.
func (w *world) mirrorOf() *corev1.Pod {
	w.t.Helper()
	return w.pod("web-" + node)
}

func TestStaticPod(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web.yaml")
	writeFile(t, path, webManifest)
	writeFile(t, filepath.Join(dir, ".hidden.yaml"), strings.Replace(webManifest, "web", "hidden", 1))
	run(t, withStatics(dir), func(w *world) {
		w.after(time.Second)
		m := w.mirrorOf()
		static := m.Annotations[annotationConfigHash]
		if m.Annotations[annotationConfigMirror] != static || m.Annotations[annotationConfigSource] != "file" || string(m.UID) == static {
			t.Errorf("annotations: %v", m.Annotations)
		}
		if o := m.OwnerReferences; len(o) != 1 || o[0].Kind != "Node" || o[0].UID != "node-uid" || o[0].Controller == nil || !*o[0].Controller {
			t.Errorf("owners: %v", o)
		}
		w.wantPhase(m.Name, corev1.PodRunning)
		if got := condIs(m, corev1.PodReady); got != "True" {
			t.Errorf("Ready: %s", got)
		}
		w.wantOps("RunPodSandbox web-node-1", "CreateContainer web-node-1/a", "StartContainer web-node-1/a")
		w.rt.ClearCalls()

		// Who deletes the mirror ends nothing: it comes back.
		w.delete(m.Name, 30)
		w.after(time.Second)
		again := w.mirrorOf()
		if again.UID == m.UID || again.Status.Phase != corev1.PodRunning {
			t.Errorf("the mirror: %s, %s", again.UID, again.Status.Phase)
		}
		// A restart neither.
		w.kill()
		w.start()
		w.after(30 * time.Second)
		w.wantOps()
		if now := w.mirrorOf(); now.UID != again.UID || now.Status.Phase != corev1.PodRunning || !now.Status.StartTime.Equal(again.Status.StartTime) {
			t.Errorf("after a restart: %+v", now.Status)
		}

		// A file that makes no pod changes nothing; one that makes another replaces it.
		writeFile(t, path, "apiVersion: v1")
		w.after(30 * time.Second)
		w.wantOps()
		writeFile(t, path, strings.Replace(webManifest, "nginx", "busybox", 1))
		w.after(50 * time.Second)
		now := w.mirrorOf()
		if now.UID == again.UID || now.Spec.Containers[0].Image != "busybox" || now.Status.Phase != corev1.PodRunning {
			t.Errorf("after a change: %s %+v", now.Spec.Containers[0].Image, now.Status)
		}
		if n := len(w.rt.Sandboxes()); n != 1 {
			t.Errorf("%d sandboxes", n)
		}

		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		w.after(50 * time.Second)
		if w.exists(now.Name) {
			t.Errorf("the mirror is still there")
		}
		if n := len(w.rt.Sandboxes()); n != 0 {
			t.Errorf("%d sandboxes are left", n)
		}
	})
}

// A static pod runs before the API server answers, and is shown when it does.
func TestStaticPodWithoutServer(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "web.yaml"), webManifest)
	var down atomic.Bool
	run(t, func(w *world) {
		withStatics(dir)(w)
		down.Store(true)
		w.api.Intercept = func(string, client.Ref, client.Object) error {
			if down.Load() {
				return apierrors.NewServiceUnavailable("down")
			}
			return nil
		}
	}, func(w *world) {
		w.after(time.Second)
		w.wantOps("RunPodSandbox web-node-1", "CreateContainer web-node-1/a", "StartContainer web-node-1/a")
		down.Store(false)
		w.after(time.Minute)
		w.wantPhase("web-node-1", corev1.PodRunning)
	})
}

// Whoever shows nothing any more is removed: a mirror whose file went while nobody
// looked.
func TestOrphanedMirror(t *testing.T) {
	run(t, func(w *world) {
		withStatics(t.TempDir())(w)
		p := newPod("old-"+node, "a")
		p.Annotations = map[string]string{annotationConfigMirror: "abc", annotationConfigHash: "abc", annotationConfigSource: "file"}
		w.api.Put(p)
	}, func(w *world) {
		w.after(time.Second)
		if w.exists("old-" + node) {
			t.Error("the mirror is still there")
		}
		w.wantOps()
	})
}

// What people ask of a mirror is answered of the pod that it shows.
func TestStaticPodByName(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "web.yaml"), webManifest)
	run(t, withStatics(dir), func(w *world) {
		w.after(time.Second)
		id, err := w.k.runningContainer(context.Background(), "default", "web-"+node, "", "a", false)
		if err != nil || id != w.container("a").Status.Id {
			t.Errorf("%s, %v", id, err)
		}
	})
}
