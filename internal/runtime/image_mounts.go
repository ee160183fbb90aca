package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/startspec"
)

// Images as volumes (KEP-4639): read-only, and nothing in them can be executed.
// The layers are held like those of a container's own image, under a key of the
// snapshotter.

// imageKey is the key of the i-th mount of a container: what begins with the
// container's ID is its own.
func imageKey(id string, i int) string { return id + "." + strconv.Itoa(i) }

// keyOwner is the container that a key, or the rest of a mount point's name after
// its kind, belongs to.
func keyOwner(key string) string {
	id, _, _ := strings.Cut(key, ".")
	return id
}

// imageDir is where the image of the i-th mount is, in the container's namespace.
func (r *Runtime) imageDir(id string, i int) string {
	return filepath.Join(mountsDir(r.Instance), "image-"+imageKey(id, i))
}

// imageMount is the OCI mount of an image that will be at dir.
func imageMount(m *runtimeapi.Mount, dir string) (specs.Mount, error) {
	dst := filepath.Clean("/" + m.GetContainerPath())
	if m.GetContainerPath() == "" || dst == "/" {
		return specs.Mount{}, fmt.Errorf("mount of image %q: container_path %q: must name a place below the root", m.GetImage().GetImage(), m.GetContainerPath())
	}
	src := filepath.Join(dir, startspec.ImageRoot)
	if sub := m.GetImageSubPath(); sub != "" {
		if !filepath.IsLocal(sub) {
			return specs.Mount{}, fmt.Errorf("mount at %q: image_sub_path %q: must be a relative path without \"..\"", dst, sub)
		}
		src = filepath.Join(dir, startspec.ImageSub)
	}
	return specs.Mount{Destination: dst, Type: "bind", Source: src, Options: []string{"rbind", "rprivate", "ro", "noexec", "nosuid", "nodev"}}, nil
}

// mountedImages unpacks the images that a container mounts.
func (r *Runtime) mountedImages(ctx context.Context, c *container) ([]startspec.Image, error) {
	var out []startspec.Image
	for i, m := range c.config.GetMounts() {
		if m.GetImage().GetImage() == "" {
			continue
		}
		img, err := r.resolveImage(ctx, m.GetImage())
		if err != nil {
			return nil, err
		}
		root, err := r.Snapshots.Prepare(ctx, imageKey(c.id, i), img)
		if err != nil {
			return nil, fmt.Errorf("prepare image %q: %w", m.GetImage().GetImage(), err)
		}
		dir := r.imageDir(c.id, i)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("image mount: %w", err)
		}
		out = append(out, startspec.Image{Lower: root.Lower, At: dir, Sub: m.GetImageSubPath()})
	}
	return out, nil
}

// removeImageMounts undoes mountedImages.
func (r *Runtime) removeImageMounts(ctx context.Context, c *container) error {
	for i, m := range c.config.GetMounts() {
		if m.GetImage().GetImage() == "" {
			continue
		}
		if err := r.Snapshots.Remove(ctx, imageKey(c.id, i)); err != nil {
			return fmt.Errorf("image mount: %w", err)
		}
		if err := unmount(r.imageDir(c.id, i)); err != nil {
			return err
		}
	}
	return nil
}
