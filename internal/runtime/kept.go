package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"skiff/internal/cri"
	"skiff/internal/host"
	"skiff/internal/runtime/pod"
)

// What is kept: a container whose config has cri.AnnotationKeep writes what another may
// begin with (inherit.go), after a reboot too. The records of containers are gone then,
// and what has no record is swept: so those of such a container, and of its sandbox, are
// in the data directory as well, in the same order of files. The next runtime finds them
// where the pod's own directory is not, and has a pod that ended with the machine.

// keptDir has a directory for each sandbox of which something is kept.
func keptDir(i host.Instance) string { return i.Data("runtime", "kept") }

func (r *Runtime) keptSandbox(s *sandbox) string { return filepath.Join(keptDir(r.Instance), s.id) }

func (r *Runtime) keptContainer(c *container) string {
	return filepath.Join(r.keptSandbox(c.sb), "containers", c.id)
}

// keeps tells that another may begin with what the container writes.
func (c *container) keeps() bool { return c.config.GetAnnotations()[cri.AnnotationKeep] == "true" }

// keep records a new container so that it outlives the machine.
func (r *Runtime) keep(c *container) error {
	if !c.keeps() {
		return nil
	}
	if err := os.MkdirAll(r.keptContainer(c), 0o700); err != nil {
		return fmt.Errorf("keep container: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(r.keptSandbox(c.sb), sandboxFile)); err != nil {
		r.mu.Lock()
		rec := c.sb.rec
		r.mu.Unlock()
		rec.PID, rec.NSInit, rec.IPs = 0, 0, nil // nothing of these is there after a reboot
		if err := writeSynced(r.keptSandbox(c.sb), sandboxFile, rec); err != nil {
			return err
		}
	}
	return writeSynced(r.keptContainer(c), containerFile, c.rec)
}

// keepStart notes that a container was started, keepEnd how it ended. They are not
// synced: what is lost of them is known less exactly after a crash of the machine.
func (r *Runtime) keepStart(c *container) error {
	if !c.keeps() {
		return nil
	}
	return os.WriteFile(filepath.Join(r.keptContainer(c), startedFile), nil, 0o600)
}

func (r *Runtime) keepEnd(c *container, p pod.Process) {
	if !c.keeps() {
		return
	}
	if err := pod.WriteExit(r.keptSandbox(c.sb), p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.Log.Warn("record the end of a container", "container", c.id, "err", err)
	}
}

// dropKept forgets a container, before what it wrote goes.
func (r *Runtime) dropKept(c *container) error {
	if err := os.RemoveAll(r.keptContainer(c)); err != nil {
		return err
	}
	return pod.RemoveExit(r.keptSandbox(c.sb), c.id)
}

// restore makes the pods' directories that a reboot has taken, of what is kept.
func (r *Runtime) restore() error {
	entries, err := os.ReadDir(keptDir(r.Instance))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		dir := filepath.Join(podsDir(r.Instance), e.Name())
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return err
			}
			continue // skiff alone was away
		}
		half := filepath.Join(podsDir(r.Instance), ".gone-"+e.Name()) // until it is whole
		err := os.RemoveAll(half)
		if err == nil {
			err = os.CopyFS(half, os.DirFS(filepath.Join(keptDir(r.Instance), e.Name())))
		}
		if err == nil {
			err = os.Chmod(half, 0o700)
		}
		if err == nil {
			err = os.MkdirAll(filepath.Join(half, "containers"), 0o700)
		}
		if err == nil {
			err = os.Rename(half, dir)
		}
		if err != nil {
			return fmt.Errorf("restore sandbox %s: %w", e.Name(), err)
		}
	}
	return nil
}
