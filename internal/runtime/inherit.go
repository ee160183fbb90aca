package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
	"skiff/internal/runtime/startspec"
)

// A container may begin with what another one wrote, which loses it
// (cri.AnnotationRootfs). The order makes it safe to be killed anywhere: the new
// container is recorded, with the old one's ID, and the files move last. A runtime that
// finds such a record without files moves them.

// rootfs prepares the root file system that c is to begin with. Where that is another
// container's, it is c's only after takeOver.
func (r *Runtime) rootfs(ctx context.Context, c *container, img *image.Image) (*startspec.Overlay, error) {
	root, err := r.inherit(ctx, c, img)
	if errors.Is(err, errFresh) {
		r.Log.Warn("a container begins with a new file system", "container", c.id, "from", c.config.GetAnnotations()[cri.AnnotationRootfs], "err", err)
		err = nil
	}
	if err == nil && c.rec.From == "" {
		if root, err = r.Snapshots.Prepare(ctx, c.id, img); err != nil {
			err = fmt.Errorf("prepare root file system: %w", err)
		}
	}
	if err != nil {
		return nil, err
	}
	return &startspec.Overlay{Lower: root.Lower, Upper: root.Upper, Work: root.Work, Durable: c.keeps()}, nil
}

// errFresh: there is nothing that a container could begin with, which is no error.
var errFresh = errors.New("nothing to begin with")

// inherit returns the root file system that c takes over, and notes whose it is, or
// nothing where c names none.
func (r *Runtime) inherit(ctx context.Context, c *container, img *image.Image) (snapshot.Rootfs, error) {
	from := c.config.GetAnnotations()[cri.AnnotationRootfs]
	if from == "" {
		return snapshot.Rootfs{}, nil
	}
	r.mu.Lock()
	_, _, err := r.mayTake(c.sb, from)
	r.mu.Unlock()
	if err != nil {
		return snapshot.Rootfs{}, err
	}
	root, err := r.Snapshots.Inherit(ctx, from, c.id, img)
	switch {
	case errors.Is(err, snapshot.ErrNotFound), errors.Is(err, snapshot.ErrOtherImage), errors.Is(err, snapshot.ErrInvalidKey):
		return snapshot.Rootfs{}, fmt.Errorf("%w: %w", errFresh, err)
	case err != nil:
		return snapshot.Rootfs{}, fmt.Errorf("root file system of container %q: %w", from, err)
	}
	c.rec.From = from
	return root, nil
}

// mayTake tells whether a container of s may begin with what the container from wrote,
// which has ended and is of the same pod, or held for it. The error wraps errFresh where
// there is nothing to take. r.mu is held.
func (r *Runtime) mayTake(s *sandbox, from string) (*container, *hold, error) {
	old, h := r.conts[from], r.holds[from]
	switch {
	case old == nil && h == nil:
		return nil, nil, fmt.Errorf("%w: no container %q", errFresh, from)
	case h != nil && h.is(s.config.GetMetadata()) && r.Now().Before(h.Until):
	case old != nil && samePod(old.sb.config.GetMetadata(), s.config.GetMetadata()):
		h = nil
	default:
		return nil, nil, status.Errorf(codes.FailedPrecondition, "the file system of container %q belongs to another pod", from)
	}
	if old != nil && old.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "container %q is running: nobody else may have its file system", from)
	}
	durable, users := h != nil && h.durable(r.boot), false
	if old != nil {
		durable, users = old.keeps() || old.sb.rec.Boot == r.boot, old.sb.users != nil
	}
	switch {
	case !durable:
		return nil, nil, fmt.Errorf("%w: container %q was not synced before the machine restarted", errFresh, from)
	case users || s.users != nil:
		return nil, nil, fmt.Errorf("%w: the owners in a user namespace are another pod's", errFresh)
	}
	return old, h, nil
}

func samePod(a, b *runtimeapi.PodSandboxMetadata) bool {
	return a.GetUid() == b.GetUid() && a.GetNamespace() == b.GetNamespace() && a.GetName() == b.GetName()
}

// takeOver records c and gives it what the container that it follows wrote. The sandbox's
// op is held, and nobody knows c yet.
func (r *Runtime) takeOver(ctx context.Context, c *container) error {
	from := c.rec.From
	if from == "" {
		return r.record(c)
	}
	r.mu.Lock()
	old := r.conts[from]
	r.mu.Unlock()
	if old != nil { // it is neither started nor removed meanwhile
		old.op.Lock()
		defer old.op.Unlock()
	}
	r.mu.Lock()
	now, h, err := r.mayTake(c.sb, from)
	if h != nil {
		h.taken = true
	}
	r.mu.Unlock()
	if err == nil && now != old {
		err = fmt.Errorf("container %q has just been removed", from)
	}
	if err == nil && old != nil { // of its processes only the first has surely ended
		err = r.cg.Kill(ctx, old.rec.Cgroup)
	}
	if err == nil {
		err = r.record(c)
	}
	if err == nil {
		if err = r.Snapshots.Move(ctx, from, c.id); err != nil {
			err = fmt.Errorf("take over the root file system of container %q: %w", from, err)
		}
	}
	if err != nil {
		if h != nil {
			r.mu.Lock()
			h.taken = false
			r.mu.Unlock()
			r.holdChanged()
		}
		return err
	}
	r.Step("container-inherited")
	if h != nil {
		r.forgetHold(h)
	}
	return nil
}

// record makes c exist for the next runtime.
func (r *Runtime) record(c *container) error {
	if err := r.keep(c); err != nil {
		return err
	}
	if err := writeRecord(c.dir, containerFile, c.rec); err != nil {
		return err
	}
	r.Step("container-recorded")
	return nil
}

// adoptInherited moves what a killed runtime was about to.
func (r *Runtime) adoptInherited(ctx context.Context) error {
	keys, err := r.Snapshots.Keys(ctx)
	if err != nil {
		return fmt.Errorf("list root file systems: %w", err)
	}
	for _, c := range r.conts {
		if from := c.rec.From; from != "" && !slices.Contains(keys, c.id) && slices.Contains(keys, from) {
			if err := r.Snapshots.Move(ctx, from, c.id); err != nil {
				return fmt.Errorf("root file system of %s: %w", c.id, err)
			}
		}
	}
	return nil
}
