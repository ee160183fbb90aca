package cache

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"skiff/internal/store"
)

// The store does not grow with time, and a list of the past ends within two
// periods, whether its pages are still in memory or nothing has changed since.
func TestCompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, Config{CompactEvery: 5 * time.Minute})
		defer r.stop()
		r.create("a", "one", "")
		two := r.create("a", "two", "")
		r.fresh()
		kept := r.pods.Snapshot()
		r.pods.Keep(kept)
		quiet := r.maps.Snapshot()
		for i := range 3 {
			r.update("a", "two", "", r.pods.Get("a/two").Rev)
			r.fresh()
			if _, err := r.pods.At(t.Context(), kept.Rev); i == 0 && err != nil {
				t.Errorf("at once: %v", err)
			}
			time.Sleep(5 * time.Minute)
			synctest.Wait()
		}
		got, err := r.st.Compacted(t.Context())
		if err != nil || got <= two || got >= r.c.Revision() {
			t.Errorf("compacted to %d, %v; the list is of %d, now is %d", got, err, two, r.c.Revision())
		}
		for what, at := range map[string]func() error{
			"kept":      func() error { _, err := r.pods.At(t.Context(), kept.Rev); return err },
			"unchanged": func() error { _, err := r.maps.At(t.Context(), quiet.Rev); return err },
		} {
			if err := at(); !errors.Is(err, store.ErrCompacted) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := r.pods.At(t.Context(), r.c.Revision()); err != nil {
			t.Errorf("the newest: %v", err)
		}
	})
}
