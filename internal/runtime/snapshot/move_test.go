package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
)

// written leaves a file in the rootfs of a key, by way of its overlay.
func written(t testing.TB, r Rootfs, name, content string) {
	t.Helper()
	d, err := r.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What one key wrote is another's, and no longer the first one's.
func TestMove(t *testing.T) {
	e := setup(t)
	img := e.image(t, "base", makeTar(t, dir("etc"), file("etc/gone", "1"), file("etc/stays", "2")))
	other := e.image(t, "other", makeTar(t, dir("etc"), file("etc/other", "1")))
	ctx := t.Context()
	r, err := e.snaps.Prepare(ctx, "a", img)
	if err != nil {
		t.Fatal(err)
	}
	written(t, r, "etc/new", "kept")
	d, err := r.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(fmt.Sprintf("/proc/self/fd/%d/etc/gone", d.Fd())); err != nil {
		t.Fatal(err)
	}
	d.Close()
	want := tree(t, r)

	if _, err := e.snaps.Inherit(ctx, "a", "b", other); !errors.Is(err, ErrOtherImage) {
		t.Errorf("of another image: %v", err)
	}
	if _, err := e.snaps.Inherit(ctx, "nobody", "b", img); !errors.Is(err, ErrNotFound) {
		t.Errorf("of nobody: %v", err)
	}
	if _, err := e.snaps.Inherit(ctx, "a", "../b", img); !errors.Is(err, ErrInvalidKey) {
		t.Errorf("for no key: %v", err)
	}
	next, err := e.snaps.Inherit(ctx, "a", "b", img)
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, r); got != want {
		t.Errorf("before it moved a has\n%s, want\n%s", got, want)
	}
	if err := e.snaps.Move(ctx, "a", "b"); err != nil {
		t.Fatal(err)
	}
	// Mounted without "volatile", as a container does that is to keep it: what was
	// mounted with it before would be refused.
	at := t.TempDir()
	if err := unix.Mount("overlay", at, "overlay", 0, next.Options()); err != nil {
		t.Errorf("mount what moved: %v", err)
	} else if err := unix.Unmount(at, 0); err != nil {
		t.Error(err)
	}
	if got := tree(t, next); got != want {
		t.Errorf("b has\n%s, want\n%s", got, want)
	}
	same, err := e.snaps.Prepare(ctx, "b", img)
	if err != nil || !slices.Equal(same.Lower, next.Lower) || same.Upper != next.Upper || same.Work != next.Work {
		t.Errorf("b is %v, %v; want %v", same, err, next)
	}
	if keys, err := e.snaps.Keys(ctx); err != nil || !slices.Equal(keys, []string{"b"}) {
		t.Errorf("keys: %v, %v", keys, err)
	}
	if err := e.snaps.Move(ctx, "a", "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("what is not there moved: %v", err)
	}
	if _, err := e.snaps.Prepare(ctx, "a", img); err != nil {
		t.Fatal(err)
	}
	if err := e.snaps.Move(ctx, "a", "b"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another one: %v", err)
	}
	e.close(t)
	e.open(t)
	if same, err = e.snaps.Prepare(ctx, "b", e.mustResolve(t, "base")); err != nil || tree(t, same) != want {
		t.Errorf("opened again: %v", err)
	}
}

// A container whose layers a crash of the machine took has them again.
func TestInheritLostLayers(t *testing.T) {
	e := setup(t)
	img := e.image(t, "base", makeTar(t, file("low", "1")))
	ctx := t.Context()
	r, err := e.snaps.Prepare(ctx, "a", img)
	if err != nil {
		t.Fatal(err)
	}
	written(t, r, "new", "kept")
	want := tree(t, r)
	e.snaps.mu.Lock()
	for id, l := range e.snaps.layers {
		if err := errors.Join(os.Remove(e.snaps.path("layers", l.name+".json")), os.RemoveAll(e.snaps.path("layers", l.name))); err != nil {
			t.Error(err)
		}
		delete(e.snaps.layers, id)
	}
	e.snaps.mu.Unlock()
	next, err := e.snaps.Inherit(ctx, "a", "b", img)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.snaps.Move(ctx, "a", "b"); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, next); got != want {
		t.Errorf("it has\n%s, want\n%s", got, want)
	}
}

// movingChild moves one key on and on until it is killed.
func movingChild(images *image.Store, snaps *Store) error {
	ctx := context.Background()
	img, err := images.Resolve(ctx, "base")
	if err != nil {
		return err
	}
	keys, err := snaps.Keys(ctx)
	if err != nil || len(keys) != 1 {
		return fmt.Errorf("keys %v, %w", keys, err)
	}
	fmt.Println("ready")
	for i, at := 0, keys[0]; ; i++ {
		next := fmt.Sprintf("k%d-%d", os.Getpid(), i)
		if _, err := snaps.Inherit(ctx, at, next, img); err != nil {
			return err
		}
		if err := snaps.Move(ctx, at, next); err != nil {
			return err
		}
		at = next
	}
}

// kill -9 while a key moves: there is one with all of it.
func TestMoveKilled(t *testing.T) {
	e := setup(t)
	img := e.image(t, "base", makeTar(t, file("low", "1")))
	r, err := e.snaps.Prepare(t.Context(), "first", img)
	if err != nil {
		t.Fatal(err)
	}
	written(t, r, "new", "kept")
	want := tree(t, r)
	e.close(t)
	moved := map[string]bool{}
	for round := range 15 {
		e.killed(t, time.Duration(1+round)*time.Millisecond, "SKIFF_TEST_MOVES=1")
		e.open(t)
		keys, err := e.snaps.Keys(t.Context())
		if err != nil || len(keys) != 1 {
			t.Fatalf("round %d: keys %v, %v", round, keys, err)
		}
		moved[keys[0]] = true
		if r, err = e.snaps.Prepare(t.Context(), keys[0], e.mustResolve(t, "base")); err != nil || tree(t, r) != want {
			t.Fatalf("round %d: %s, %v", round, keys[0], err)
		}
		if left, _ := filepath.Glob(e.snaps.path("tmp", "*")); len(left) != 0 {
			t.Errorf("left in tmp: %v", left)
		}
		e.close(t)
	}
	e.open(t)
	if len(moved) < 2 {
		t.Errorf("it never moved: %v", moved)
	}
}
