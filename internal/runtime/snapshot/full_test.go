package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
)

// A full disk is an error that says so; nothing half-done stays, and with room
// again all goes on.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	d := t.TempDir()
	if err := unix.Mount("tmpfs", d, "tmpfs", unix.MS_NODEV, "size=6m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d, 0); err != nil {
			t.Error(err)
		}
	})
	e := &env{dir: d}
	e.open(t)
	t.Cleanup(func() { e.close(t) })
	clean := func(what string) {
		t.Helper()
		for _, sub := range []string{"images/ingest", "snapshots/tmp", "snapshots/keys"} {
			if left, err := os.ReadDir(filepath.Join(d, sub)); err != nil || len(left) > 0 {
				t.Errorf("%s: %s: %v %v", what, sub, left, err)
			}
		}
	}
	big := makeTar(t, file("big", strings.Repeat("x", 8<<20)))
	if _, err := e.images.Import(t.Context(), bytes.NewReader(big), image.ImportOptions{Names: []string{"big"}}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("import: %v", err)
	}
	clean("import")
	half := makeTar(t, file("half", strings.Repeat("x", 3<<20)), file("more", strings.Repeat("y", 1<<20)))
	imgs, err := e.images.Import(t.Context(), bytes.NewReader(half), image.ImportOptions{Names: []string{"half"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.snaps.Prepare(t.Context(), "c", imgs[0]); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("unpack: %v", err)
	}
	clean("unpack")
	if err := unix.Mount("tmpfs", d, "tmpfs", unix.MS_REMOUNT|unix.MS_NODEV, "size=32m"); err != nil {
		t.Fatal(err)
	}
	r, err := e.snaps.Prepare(t.Context(), "c", imgs[0])
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, r); got != fmt.Sprintf("half 644 0 =%s\nmore 644 0 =%s", strings.Repeat("x", 3<<20), strings.Repeat("y", 1<<20)) {
		t.Errorf("%d bytes", len(got))
	}
	if _, err := e.images.Import(t.Context(), bytes.NewReader(big), image.ImportOptions{Names: []string{"big"}}); err != nil {
		t.Error(err)
	}
}
