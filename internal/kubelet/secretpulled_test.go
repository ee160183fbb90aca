package kubelet

import (
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pulls counts what was asked of registries.
func (w *world) pulls() int {
	n := 0
	for _, c := range w.rt.Calls() {
		if c.Op == "PullImage" {
			n++
		}
	}
	return n
}

// TestSecretPulledImages: an image that one pod's secret brought is another pod's only
// with credentials of its own (KEP-2535).
func TestSecretPulledImages(t *testing.T) {
	const image = "r.example/app:1"
	user := func(name, user string) *corev1.Secret {
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)}, Type: corev1.SecretTypeDockerConfigJson,
			Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{"r.example":{"username":"` + user + `","password":"p"}}}`)},
		}
	}
	setup := func(w *world) {
		w.rt.SetPrivate("joe", image)
		w.api.Put(user("joe", "joe"))
		w.api.Put(user("copy", "joe"))
		w.api.Put(user("wrong", "eve"))
	}
	run(t, setup, func(w *world) {
		pod := func(name string, policy corev1.PullPolicy, secrets ...string) {
			t.Helper()
			p := newPod(name, "a")
			p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = image, policy
			for _, s := range secrets {
				p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
			}
			w.create(p)
		}
		uses := func(name string, pulls int) {
			t.Helper()
			w.wantPhase(name, corev1.PodRunning)
			if got := w.pulls(); got != pulls {
				t.Errorf("%s: %d pulls, want %d", name, got, pulls)
			}
		}
		pod("first", corev1.PullIfNotPresent, "joe")
		uses("first", 1)
		pod("same", corev1.PullIfNotPresent, "joe")
		uses("same", 1)
		w.wantEvent(`Pulled: Container image "r.example/app:1" already present on machine and can be accessed by the pod`)
		pod("copy", corev1.PullNever, "copy")
		uses("copy", 1)
		w.k.figures.mu.Lock()
		first := maps.Clone(w.k.figures.images)
		w.k.figures.mu.Unlock()
		for _, again := range []bool{false, true} {
			before := w.pulls()
			suffix := ""
			if again { // what is known outlives the kubelet
				w.kill()
				w.start()
				suffix = "-again"
			}
			pod("none"+suffix, corev1.PullIfNotPresent)
			w.wantWaiting("none"+suffix, "a", "ErrImagePull", "pull access denied")
			pod("wrong"+suffix, corev1.PullIfNotPresent, "wrong")
			w.wantWaiting("wrong"+suffix, "a", "ErrImagePull", "pull access denied")
			pod("never"+suffix, corev1.PullNever, "wrong")
			w.wantWaiting("never"+suffix, "a", "ErrImageNeverPull", `Container image "r.example/app:1" is not present with pull policy of Never`)
			if got := w.pulls() - before; got < 2 {
				t.Errorf("%d pulls were tried", got)
			}
			n := w.pulls()
			pod("later"+suffix, corev1.PullIfNotPresent, "joe")
			uses("later"+suffix, n)
		}
		want := map[[3]string]uint64{{"ifnotpresent", "false", "true"}: 1, {"ifnotpresent", "true", "false"}: 1, {"never", "true", "false"}: 1}
		got := map[[3]string]uint64{}
		for key := range want {
			got[key] = first[key]
		}
		if !maps.Equal(got, want) {
			t.Errorf("images that were asked for: %v", first)
		}
		// What nobody pulled is everybody's.
		w.create(newPod("preloaded", "b"))
		w.wantPhase("preloaded", corev1.PodRunning)
		// Who is refused backs off.
		w.after(10 * time.Minute)
		if all := strings.Join(w.events.all(), "\n"); !strings.Contains(all, "Back-off pulling image") {
			t.Errorf("no back-off is told:\n%s", all)
		}
	})
}
