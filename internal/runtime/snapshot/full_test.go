package snapshot

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
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

// Who may not make device nodes unpacks a layer without them; whiteouts, which
// anybody may make, work.
func TestDevicesWithoutPrivilege(t *testing.T) {
	needRoot(t)
	made := make(chan error)
	dir := t.TempDir()
	go func() {
		// The thread goes with this goroutine, and its capabilities with it.
		goruntime.LockOSThread()
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&hdr, &data[0])
		if err == nil {
			data[0].Effective &^= 1 << unix.CAP_MKNOD
			err = unix.Capset(&hdr, &data[0])
		}
		if err == nil {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, h := range []tar.Header{
				{Name: "mem", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 1},
				{Name: "disk", Typeflag: tar.TypeBlock, Mode: 0o666, Devmajor: 8},
				{Name: ".wh.gone", Typeflag: tar.TypeReg, Mode: 0o644},
				{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o644},
			} {
				err = errors.Join(err, w.WriteHeader(&h))
			}
			if err = errors.Join(err, w.Close()); err == nil {
				_, _, err = unpack(t.Context(), &b, dir, nil)
			}
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	var names []string
	l, err := os.ReadDir(dir)
	for _, e := range l {
		names = append(names, e.Name())
	}
	if err != nil || fmt.Sprint(names) != "[gone pipe]" {
		t.Errorf("%v, %v", names, err)
	}
}
