package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
)

// Output takes a build's result elsewhere than into the image store.
type Output struct {
	// Type is "local" (the files, into the directory Dest), "tar" (the files, as
	// the archive Dest), "oci" or "docker" (the image, as the archive Dest; it is
	// in the store too).
	Type string
	// Dest is an absolute path.
	Dest string
}

// Check tells what is wrong with it.
func (o *Output) Check() error {
	switch o.Type {
	case "local", "tar", "oci", "docker":
	default:
		return fmt.Errorf("output type %q: %w: must be image, local, tar, oci or docker", o.Type, ErrUnsupported)
	}
	if !filepath.IsAbs(o.Dest) {
		return fmt.Errorf("output %s: dest %q: must be an absolute path", o.Type, o.Dest)
	}
	return nil
}

// filesOnly tells whether no image is made.
func (o *Output) filesOnly() bool { return o != nil && (o.Type == "local" || o.Type == "tar") }

// writeFiles puts the files of a stage where Output says.
func (r *run) writeFiles(ctx context.Context, st *stage) error {
	o := r.req.Output
	rootfs, done, err := r.b.deps.Snapshots.View(ctx, st.image())
	if err != nil {
		return err
	}
	defer done()
	f, err := rootfs.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	n := r.begin("exporting to " + o.Type + " " + o.Dest)
	if o.Type == "tar" {
		err = writeFile(o.Dest, func(w *os.File) error { return snapshot.WriteLayer(ctx, w, fdPath(f)+"/.") })
	} else {
		err = copyOut(ctx, fdPath(f), o.Dest)
	}
	r.end(ctx, n, false, err)
	if err != nil {
		return fmt.Errorf("output %s: %w", o.Dest, err)
	}
	return nil
}

// copyOut copies a whole root file system into a directory, which may have
// content already.
func copyOut(ctx context.Context, root, dest string) error {
	if err := os.MkdirAll(dest, 0o755); err != nil {
		return err
	}
	src, err := (&tree{root: root, owners: true}).source(ctx, ".", nil)
	if err != nil {
		return err
	}
	w := &writer{root: dest, times: map[string]time.Time{}}
	if err := (&copier{writer: w, ctx: ctx, uid: -1, gid: -1}).source(*src, "/"); err != nil {
		return err
	}
	return w.setTimes()
}

// writeFile makes a file whole, or leaves what was there. What is no regular file
// is written to.
func writeFile(name string, fn func(*os.File) error) error {
	if fi, err := os.Stat(name); err == nil && !fi.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(fn(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".skiff-")
	if err != nil {
		return err
	}
	err = fn(f)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// writeImage writes the image as an archive, where Output says so.
func (r *run) writeImage(ctx context.Context, img *image.Image) error {
	o := r.req.Output
	if o == nil {
		return nil
	}
	refs := r.req.Tags
	if len(refs) == 0 {
		refs = []string{img.ID}
	}
	n := r.begin("exporting to " + o.Type + " " + o.Dest)
	err := writeFile(o.Dest, func(w *os.File) error {
		return r.b.deps.Images.Export(ctx, w, refs, image.Format(o.Type))
	})
	r.end(ctx, n, false, err)
	if err != nil {
		return fmt.Errorf("output %s: %w", o.Dest, err)
	}
	return nil
}
