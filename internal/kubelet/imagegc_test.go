package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/kubelet/eviction"
)

func TestToFree(t *testing.T) {
	const g = 1 << 30
	usual := ImageGC{High: 85, Low: 80, KeepHigh: 15 * g, KeepLow: 20 * g}
	for _, tt := range []struct {
		p                   ImageGC
		capacity, available int64
		want                int64
	}{
		{ImageGC{High: 85, Low: 80}, 100, 16, 0},
		{ImageGC{High: 85, Low: 80}, 100, 15, 5},
		{ImageGC{High: 85, Low: 80}, 100, 0, 20},
		{ImageGC{High: 100, Low: 80}, 100, 0, 0},
		{ImageGC{}, 100, 0, 0},
		{ImageGC{High: 85, Low: 80}, 1000 * g, 140 * g, 60 * g},
		{usual, 1000 * g, 140 * g, 0}, // much room, although a small share
		{usual, 1000 * g, 15 * g, 5 * g},
		{usual, 50 * g, 7 * g, 3 * g},
		{usual, 50 * g, 8 * g, 0},
	} {
		if got := tt.p.toFree(tt.capacity, tt.available); got != tt.want {
			t.Errorf("%+v of %d with %d: %d, want %d", tt.p, tt.capacity, tt.available, got, tt.want)
		}
	}
}

// What is used is never among those that may go; of the others who was used last goes
// last, and who came first goes first.
func TestNote(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	records := map[string]*imageRecord{}
	at := func(n int, using string, ids ...string) []string {
		var list []*runtimeapi.Image
		for _, id := range ids {
			list = append(list, &runtimeapi.Image{Id: id, Pinned: id == "pinned"})
		}
		var out []string
		for _, r := range note(records, list, map[string]bool{using: true}, begin.Add(time.Duration(n)*time.Minute)) {
			out = append(out, r.id)
		}
		return out
	}
	for n, step := range []struct {
		using string
		ids   []string
		want  []string
	}{
		{"a", []string{"a", "b", "pinned"}, []string{"b"}},
		{"b", []string{"c", "b", "a", "pinned"}, []string{"c", "a"}},
		{"", []string{"c", "b", "a", "d"}, []string{"c", "d", "a", "b"}},
		{"", []string{"c"}, []string{"c"}},
		{"", []string{"c", "b"}, []string{"c", "b"}}, // back, and new
	} {
		if got := at(n, step.using, step.ids...); !slices.Equal(got, step.want) {
			t.Errorf("step %d: %v, want %v", n, got, step.want)
		}
	}
	if len(records) != 2 {
		t.Errorf("%d records are kept", len(records))
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{1023: "1023 B", 1536: "1.5 KiB", 10 << 20: "10.0 MiB", 3 << 29: "1.5 GiB", 5 << 40: "5.0 TiB", 5 << 52: "20480.0 TiB"} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

// withImageGC gives a kubelet a rule for images.
func withImageGC(m *tank, p ImageGC) func(*world) {
	return func(w *world) {
		withTank(m, eviction.Settings{Hard: map[string]string{}}, false)(w)
		deps := w.deps
		w.deps = func(d *Deps) { deps(d); d.ImageGC = p }
	}
}

func TestImagesAreCollected(t *testing.T) {
	m := &tank{}
	m.set(eviction.ImageFsAvailable, "50Gi", "100Gi")
	run(t, withImageGC(m, ImageGC{High: 85, Low: 80, MinAge: 2 * time.Minute}), func(w *world) {
		w.rt.AddImage("old")
		// A pod that waits to be started again will need its image.
		w.create(newPod("web", "a"))
		w.exit("a", 1)
		w.after(30 * time.Minute)
		if got := w.images(); !slices.Equal(got, []string{"busybox", "nginx", "old"}) {
			t.Fatalf("images before there is a reason: %v", got)
		}
		m.set(eviction.ImageFsAvailable, "10Gi", "100Gi")
		w.rt.AddImage("fresh")
		w.after(5 * time.Minute)
		// All that may go are smaller than what is needed.
		if got := w.images(); !slices.Equal(got, []string{"fresh", "nginx"}) {
			t.Errorf("images: %v", got)
		}
		w.wantEvent("FreeDiskSpaceFailed: Insufficient free disk space on the node's image filesystem (90% of 100.0 GiB used). " +
			"Failed to free sufficient space by deleting unused images (freed 2000 bytes). " +
			"Investigate disk usage, as it could be used by active images, logs, volumes, or other data.")
		if w.events.has("ImageGCFailed") {
			t.Error("one failure is no event")
		}
		w.after(5 * time.Minute)
		w.wantEvent("ImageGCFailed: Insufficient free disk space on the node's image filesystem (90% of 100.0 GiB used). ")
		if got := w.images(); !slices.Equal(got, []string{"nginx"}) {
			t.Errorf("images: %v", got)
		}
	})
}

// What images do not give, the build cache is asked for.
func TestCacheGoesAfterImages(t *testing.T) {
	m := &tank{}
	m.set(eviction.ImageFsAvailable, "10Gi", "100Gi")
	var asked []int64
	run(t, func(w *world) {
		withImageGC(m, ImageGC{High: 85, Low: 80, MinAge: 2 * time.Minute})(w)
		deps := w.deps
		w.deps = func(d *Deps) {
			deps(d)
			d.FreeCache = func(_ context.Context, bytes int64) (int64, error) {
				asked = append(asked, bytes)
				return bytes, nil
			}
		}
	}, func(w *world) {
		w.create(newPod("web", "a"))
		w.after(6 * time.Minute)
		// At first the images are too young; then busybox goes, of 1000 bytes.
		if want := []int64{10 << 30, 10<<30 - 1000}; !slices.Equal(asked, want) {
			t.Errorf("the cache was asked for %v, want %v", asked, want)
		}
		if w.events.has("FreeDiskSpaceFailed") {
			t.Errorf("events: %v", w.events.all())
		}
	})
}

func TestOldImagesGo(t *testing.T) {
	m := &tank{}
	m.set(eviction.ImageFsAvailable, "50Gi", "100Gi")
	run(t, withImageGC(m, ImageGC{High: 85, Low: 80, MinAge: 2 * time.Minute, MaxAge: time.Hour}), func(w *world) {
		w.create(newPod("web", "a"))
		w.after(59 * time.Minute)
		if got := w.images(); !slices.Equal(got, []string{"busybox", "nginx"}) {
			t.Errorf("images: %v", got)
		}
		w.after(10 * time.Minute)
		if got := w.images(); !slices.Equal(got, []string{"nginx"}) {
			t.Errorf("images: %v", got)
		}
	})
}

func TestImageFileSystemUnknown(t *testing.T) {
	run(t, withImageGC(&tank{}, ImageGC{High: 85, Low: 80}), func(w *world) {
		w.after(time.Second)
		w.wantEvent("InvalidDiskCapacity: invalid capacity 0 on image filesystem")
	})
}

func TestImageRemovalFails(t *testing.T) {
	m := &tank{}
	m.set(eviction.ImageFsAvailable, "10Gi", "100Gi")
	run(t, func(w *world) {
		withImageGC(m, ImageGC{High: 85, Low: 80})(w)
		w.rt.Fail("RemoveImage", 1, errors.New("read-only file system"))
		w.rt.Fail("RemoveImage", 3, errors.New("read-only file system"))
	}, func(w *world) {
		w.after(6 * time.Minute)
		if w.events.has("FreeDiskSpaceFailed") {
			t.Errorf("events: %v", w.events.all())
		}
		w.wantEvent(fmt.Sprintf("ImageGCFailed: wanted to free %d bytes, but freed 0 bytes space with errors in image deletion: read-only file system", int64(10<<30)))
	})
}

func TestImagesOf(t *testing.T) {
	p := newPod("web", "a")
	p.Spec.InitContainers = []corev1.Container{{Image: "init"}}
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Image: "debug"}}}
	p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "data"}}}, {}}
	if got := imagesOf(p); len(got) != 4 || !got["nginx"] || !got["init"] || !got["debug"] || !got["data"] {
		t.Errorf("%v", got)
	}
}
