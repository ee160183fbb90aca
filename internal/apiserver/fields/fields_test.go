package fields

import (
	"reflect"
	"runtime"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api"
	"skiff/internal/api/resource"
)

func pods(t testing.TB) (*Managers, *resource.Resource) {
	t.Helper()
	all := api.All()
	for _, r := range all {
		if r.Plural == "pods" {
			return New(all), r
		}
	}
	t.Fatal("pods are not declared")
	return nil, nil
}

func pod(r *resource.Resource) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}},
	}
	r.Default(p)
	return p
}

// Every door of every resource has a manager: its filters parse and its kind has a
// schema.
func TestEveryDoor(t *testing.T) {
	all := api.All()
	m := New(all)
	for _, r := range all {
		if r.Prefix == "" && r.Twin == nil {
			continue
		}
		obj, err := m.Update(r, "", nil, r.New(), "m")
		if err != nil {
			t.Errorf("%s: %v", r.GVR(), err)
			continue
		}
		if k := obj.GetObjectKind().GroupVersionKind(); !k.Empty() {
			t.Errorf("%s: the object keeps its type %s", r.GVR(), k)
		}
		for i := range r.Subresources {
			s := &r.Subresources[i]
			if s.Status == nil && s.NewView == nil {
				continue
			}
			if _, err := m.at(r, s); err != nil {
				t.Errorf("%s/%s: %v", r.GVR(), s.Name, err)
			}
		}
	}
}

// The live object is shared: it must stay as it is.
func TestLiveIsNotChanged(t *testing.T) {
	m, r := pods(t)
	live, err := m.Update(r, "", nil, pod(r), "one")
	if err != nil {
		t.Fatal(err)
	}
	live.SetUID("u")
	before := live.DeepCopyObject()
	config := map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "p", "labels": map[string]any{"x": "y"}}}
	out, err := m.Apply(r, "", live, config, "two", false)
	if err != nil {
		t.Fatal(err)
	}
	if got := out.GetLabels(); got["x"] != "y" || got["a"] != "b" {
		t.Errorf("labels after apply: %v", got)
	}
	if !reflect.DeepEqual(before, live) {
		t.Errorf("live changed:\n%v\n%v", before, live)
	}
	if n := len(out.GetManagedFields()); n != 2 {
		t.Errorf("%d managers, want 2", n)
	}
}

// TestSchemaCost keeps what the schema holds in memory within its budget.
func TestSchemaCost(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	p, err := loadSchema()
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if kib := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / 1024; kib > 2048 {
		t.Errorf("the schema holds %d KiB, want at most 2048", kib)
	} else {
		t.Logf("the schema of %d types holds %d KiB", len(p.Schema.Types), kib)
	}
	runtime.KeepAlive(p)
}

func BenchmarkLoadSchema(b *testing.B) {
	for b.Loop() {
		if _, err := loadSchema(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPodCreate(b *testing.B) {
	m, r := pods(b)
	p := pod(r)
	for b.Loop() {
		p.ManagedFields = nil
		if _, err := m.Update(r, "", nil, p, "m"); err != nil {
			b.Fatal(err)
		}
	}
}
