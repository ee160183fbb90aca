package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"skiff/internal/host"
	"skiff/internal/runtime/cgroup"
	"skiff/internal/runtime/keeper"
	"skiff/internal/runtime/pod"
)

// Reset ends every pod of an instance and its keeper, and removes its mounts, cgroups and
// runtime directory. It needs no running skiff, must not have one beside it,
// and can be repeated. Links in the pods' namespaces go with these; the rest of
// the network is the network's to undo.
func Reset(ctx context.Context, i host.Instance) error {
	cg, err := cgroup.Detect()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(podsDir(i))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reset pods: %w", err)
	}
	var g errgroup.Group
	for _, e := range entries {
		g.Go(func() error {
			c, err := pod.Adopt(ctx, filepath.Join(podsDir(i), e.Name()), nil)
			if errors.Is(err, pod.ErrGone) {
				return nil
			}
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Shutdown(ctx)
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("reset pods: %w", err)
	}
	if _, err := keeper.End(ctx, keeper.Dir(i)); err != nil {
		return fmt.Errorf("reset: end the keeper: %w", err)
	}
	if err := os.RemoveAll(keeper.Dir(i)); err != nil {
		return err
	}
	if i.CgroupParent != "" {
		if err := cg.Kill(ctx, i.CgroupParent); err != nil {
			return err
		}
		if err := cg.Remove(ctx, i.CgroupParent); err != nil {
			return err
		}
	}
	if err := unmountBelow(mountsDir(i)); err != nil {
		return fmt.Errorf("reset mounts: %w", err)
	}
	return os.RemoveAll(i.Run("runtime"))
}

// unmountBelow unmounts what is mounted in the entries of dir, and dir itself.
func unmountBelow(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := unmount(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return unmount(dir)
}
