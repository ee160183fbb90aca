package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/wire"
)

// adopt carries out the recovery table (see the package doc).
func (r *Runtime) adopt(ctx context.Context) error {
	if err := r.restore(); err != nil {
		return err
	}
	entries, err := os.ReadDir(podsDir(r.Instance))
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.SetLimit(8)
	for _, e := range entries {
		dir := filepath.Join(podsDir(r.Instance), e.Name())
		if strings.HasPrefix(e.Name(), ".gone-") {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			continue
		}
		g.Go(func() error { return r.adoptSandbox(ctx, e.Name(), dir) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := r.adoptInherited(ctx); err != nil {
		return err
	}
	if err := r.adoptHolds(ctx); err != nil {
		return fmt.Errorf("holds: %w", err)
	}
	return r.sweep(ctx)
}

func (r *Runtime) adoptSandbox(ctx context.Context, id, dir string) error {
	s := &sandbox{id: id, dir: dir, config: &runtimeapi.PodSandboxConfig{}}
	err := readRecord(dir, sandboxFile, &s.rec)
	if err == nil {
		err = proto.Unmarshal(s.rec.Config, s.config)
	}
	if err == nil {
		s.users, err = usersOf(s.config)
	}
	if err != nil || s.rec.Phase == phaseCreating {
		// Nobody knows its ID: RunPodSandbox never answered.
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			r.Log.Warn("a sandbox without a readable record is removed", "sandbox", id, "err", err)
		}
		s.rec.ID, s.rec.Phase = id, phaseCreating
		if err := r.demolish(ctx, s); err != nil {
			return fmt.Errorf("remove half-made sandbox %s: %w", id, err)
		}
		return nil
	}
	known := map[string]pod.Process{}
	if s.rec.Boot == r.boot {
		if known, err = r.reconnect(ctx, s); err != nil {
			return err
		}
	}
	r.mu.Lock()
	r.sandboxes[id] = s
	r.names[sandboxName(s.config.GetMetadata())] = id
	r.mu.Unlock()
	if err := r.adoptContainers(ctx, s, known); err != nil {
		return err
	}
	if s.client != nil {
		r.watchPod(s)
	}
	return nil
}

// reconnect subscribes to the pod process, if it lives, and returns what it
// knows. Events may come before that list is looked at: they tell the same.
func (r *Runtime) reconnect(ctx context.Context, s *sandbox) (map[string]pod.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	known := map[string]pod.Process{}
	for {
		client, err := pod.Adopt(ctx, s.dir, func(p pod.Process) { r.processChanged(s, p) })
		if errors.Is(err, pod.ErrGone) {
			return known, nil
		}
		if err != nil {
			return nil, fmt.Errorf("sandbox %s: %w", s.id, err)
		}
		err = client.Subscribe(ctx)
		var list []pod.Process
		if err == nil {
			list, err = client.List(ctx)
		}
		if err == nil {
			r.mu.Lock()
			s.client = client
			r.mu.Unlock()
			for _, p := range list {
				known[p.ID] = p
				if p.Exec { // whoever asked for it is gone
					_ = client.Signal(ctx, p.ID, syscall.SIGKILL, false) // it may have ended
				}
			}
			return known, nil
		}
		client.Close()
		if !errors.Is(err, wire.ErrClosed) {
			return nil, fmt.Errorf("sandbox %s: %w", s.id, err)
		}
		// It was just ending: a dying process's socket still takes connections.
	}
}

func (r *Runtime) adoptContainers(ctx context.Context, s *sandbox, known map[string]pod.Process) error {
	top := filepath.Join(s.dir, "containers")
	entries, err := os.ReadDir(top)
	if err != nil {
		return err
	}
	for _, e := range entries {
		c := &container{
			id: e.Name(), sb: s, dir: filepath.Join(top, e.Name()), config: &runtimeapi.ContainerConfig{},
			state: runtimeapi.ContainerState_CONTAINER_CREATED, ended: make(chan struct{}), begun: make(chan struct{}),
		}
		err := readRecord(c.dir, containerFile, &c.rec)
		if err == nil {
			err = proto.Unmarshal(c.rec.Config, c.config)
		}
		if err != nil {
			// Nobody knows its ID: CreateContainer never answered.
			if strings.HasPrefix(c.id, ".gone-") {
				err = os.RemoveAll(c.dir)
			} else {
				err = r.removeFiles(ctx, c)
			}
			if err != nil {
				return fmt.Errorf("remove half-made container %s: %w", c.id, err)
			}
			continue
		}
		r.mu.Lock()
		r.conts[c.id] = c
		m := c.config.GetMetadata()
		r.names[m.GetName()+"_"+fmt.Sprint(m.GetAttempt())+"_"+s.id] = c.id
		alive := s.client != nil
		r.mu.Unlock()
		if p, ok := known[c.id]; ok {
			r.processChanged(s, p)
			continue
		}
		if p, err := pod.ReadExit(s.dir, c.id); err == nil {
			r.processChanged(s, p)
			continue
		}
		if _, err := os.Stat(filepath.Join(c.dir, startedFile)); err != nil {
			continue // created, never started
		}
		if alive {
			// The request did not reach the pod process: it can be made again.
			if err := os.Remove(filepath.Join(c.dir, startedFile)); err != nil {
				return err
			}
			continue
		}
		if err := r.loseContainer(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// loseContainer ends a container whose pod process is gone: its processes are
// killed, and how it ended is unknown unless the pod process left a record.
func (r *Runtime) loseContainer(ctx context.Context, c *container) error {
	if err := r.cg.Kill(ctx, c.rec.Cgroup); err != nil {
		return err
	}
	p, err := pod.ReadExit(c.sb.dir, c.id)
	if err != nil {
		r.mu.Lock()
		p = c.proc
		r.mu.Unlock()
		p.ID, p.State, p.ExitCode, p.Finished, p.Lost = c.id, pod.Exited, 255, r.Now(), true
		if err := pod.WriteExit(c.sb.dir, p); err != nil {
			return fmt.Errorf("record the end of %s: %w", c.id, err)
		}
	}
	r.processChanged(c.sb, p)
	return nil
}

// watchPod notices the end of the pod process.
func (r *Runtime) watchPod(s *sandbox) {
	r.mu.Lock()
	client := s.client
	r.mu.Unlock()
	if client == nil {
		return
	}
	r.background(func() {
		select {
		case <-r.stopping:
			return
		case <-client.Done():
		}
		r.mu.Lock()
		ours := s.closing || s.client != client
		r.mu.Unlock()
		if ours || r.isStopping() {
			return
		}
		client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
		defer cancel()
		if err := r.podLost(ctx, s); err != nil {
			r.Log.Error("a pod process ended", "sandbox", s.id, "err", err)
		}
	})
}

// podLost reconnects where only the connection broke (a subscriber that lags is
// cut off); otherwise the pod is over.
func (r *Runtime) podLost(ctx context.Context, s *sandbox) error {
	r.mu.Lock()
	s.client = nil
	r.mu.Unlock()
	known, err := r.reconnect(ctx, s)
	if err != nil {
		return err
	}
	for _, p := range known {
		r.processChanged(s, p)
	}
	r.mu.Lock()
	alive := s.client != nil
	r.mu.Unlock()
	if alive {
		r.watchPod(s)
		return nil
	}
	r.Log.Error("a pod process was killed: its containers end", "sandbox", s.id)
	for _, c := range r.containersOf(s) {
		r.mu.Lock()
		running := c.state == runtimeapi.ContainerState_CONTAINER_RUNNING
		r.mu.Unlock()
		if running {
			err = errors.Join(err, r.loseContainer(ctx, c))
		}
	}
	r.notify(s, s.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return err
}

// sweep removes what belongs to no container or sandbox: a step was cut off
// before it was recorded, or after its record was removed.
func (r *Runtime) sweep(ctx context.Context) error {
	keys, err := r.Snapshots.Keys(ctx)
	if err != nil {
		return fmt.Errorf("list root file systems: %w", err)
	}
	for _, k := range keys {
		if id := keyOwner(k); r.conts[id] == nil && r.holds[k] == nil && len(id) == len(newID()) {
			if err := r.Snapshots.Remove(ctx, k); err != nil {
				return fmt.Errorf("remove root file system %s: %w", k, err)
			}
		}
	}
	entries, err := os.ReadDir(mountsDir(r.Instance))
	if err != nil {
		return err
	}
	for _, e := range entries {
		kind, id, _ := strings.Cut(e.Name(), "-")
		_, c := r.conts[keyOwner(id)]
		_, s := r.sandboxes[id]
		if (kind == "rootfs" || kind == "image") && !c || kind == "shm" && !s {
			if err := unmount(filepath.Join(mountsDir(r.Instance), e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
