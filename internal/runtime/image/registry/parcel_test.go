package registry

import (
	"errors"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skiff/internal/runtime/image"
)

// A parcel is found where it was pushed, and its layer is what it was; the store that
// pushed it has no image more. What was compressed for it is not compressed again for
// an image, as long as it is there.
func TestParcel(t *testing.T) {
	srv, s, other := serve(t), open(t), open(t)
	img := stored(t, s, srv.host+"/team/app:1", strings.Repeat("words that repeat ", 10_000))
	p := image.Parcel{Config: []byte(`{"a":1}`), ConfigType: "application/vnd.example+json", Layers: img.Layers, DiffIDs: img.DiffIDs}
	ref := srv.host + "/team/parcel:1"
	prepared := func(push func(image.PushOptions) error) int {
		t.Helper()
		n := 0
		err := push(image.PushOptions{Progress: func(e image.Event) {
			if e.Stage == image.Preparing {
				n++
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := prepared(func(o image.PushOptions) error { return s.PushParcel(t.Context(), ref, p, o) }); n != 1 {
		t.Errorf("%d layers were compressed", n)
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 1 {
		t.Errorf("%d images, %v", len(all), err)
	}
	srv.blobs.Store(0)
	e, err := other.Look(t.Context(), ref, image.Host(), image.Access{})
	if err != nil {
		t.Fatal(err)
	}
	if n := srv.blobs.Load(); n != 1 || string(e.Config) != `{"a":1}` || len(e.Layers) != 1 {
		t.Errorf("%d blobs were fetched; %+v", n, e)
	}
	lease := other.Lease()
	defer lease.Release()
	d, size, err := e.Layer(t.Context(), lease, 0, img.DiffIDs[0])
	if err != nil || size != img.Size || d.MediaType != types.OCILayer || d.Size > size/10 || !other.HasBlob(d.Digest) {
		t.Errorf("%+v, %d bytes, %v", d, size, err)
	}
	again := func(o image.PushOptions) error { _, err := s.Push(t.Context(), srv.host+"/team/app:1", o); return err }
	if n := prepared(again); n != 0 {
		t.Errorf("%d layers were compressed again", n)
	}
	if err := s.Remove(t.Context(), srv.host+"/team/app:1"); err != nil {
		t.Fatal(err)
	}
	stored(t, s, srv.host+"/team/app:1", strings.Repeat("words that repeat ", 10_000))
	if n := prepared(again); n != 1 {
		t.Errorf("after the blob was removed, %d layers were compressed", n)
	}

	if err := s.PushParcel(t.Context(), srv.host+"/x@sha256:"+strings.Repeat("0", 64), p, image.PushOptions{}); !errors.Is(err, image.ErrInvalidName) {
		t.Error(err)
	}
	if _, err := other.Look(t.Context(), srv.host+"/none:1", image.Host(), image.Access{}); !errors.Is(err, image.ErrNotFound) {
		t.Error(err)
	}
	srv.damage.Store(true)
	third := open(t)
	if _, err := third.Look(t.Context(), ref, image.Host(), image.Access{}); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("a damaged config: %v", err)
	}
	srv.damage.Store(false)
	if e, err = third.Look(t.Context(), ref, image.Host(), image.Access{}); err != nil {
		t.Fatal(err)
	}
	srv.damage.Store(true)
	lease = third.Lease()
	defer lease.Release()
	if _, _, err := e.Layer(t.Context(), lease, 0, img.DiffIDs[0]); !errors.Is(err, image.ErrCorrupt) || third.HasBlob(e.Layers[0].Digest) {
		t.Errorf("a damaged layer: %v", err)
	}
	srv.damage.Store(false)
	if _, _, err := e.Layer(t.Context(), lease, 0, v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("another diff ID: %v", err)
	}
}
