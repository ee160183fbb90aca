package build

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/snapshot"
)

// mounts are those of one command.
type mounts struct {
	*step
	list []Mount
	env  []string // of secrets and agents
	key  []string // what counts for the cache

	later []func(context.Context) error // what is done only if the command runs
	// takes are the caches to take, which is done in the order of their names: who wants
	// two that are locked must not wait for who has the other.
	takes []take
	undo  []func()
}

// take is a cache mount, which list[at] becomes.
type take struct {
	spec cacheSpec
	at   int
}

func (m *mounts) close() {
	for i := len(m.undo) - 1; i >= 0; i-- {
		m.undo[i]()
	}
}

func (m *mounts) open(ctx context.Context) error {
	slices.SortFunc(m.takes, func(a, b take) int { return strings.Compare(a.spec.name, b.spec.name) })
	for _, t := range m.takes {
		dir, release, err := m.b.caches.take(ctx, t.spec)
		if err != nil {
			return err
		}
		m.undo = append(m.undo, release)
		m.list[t.at].Source = dir
	}
	for _, f := range m.later {
		if err := f(ctx); err != nil {
			return err
		}
	}
	return nil
}

// plan reads RUN --mount.
func (m *mounts) plan(ctx context.Context, list []*instructions.Mount) error {
	agents := 0
	for _, mt := range list {
		var err error
		if mt.Type == instructions.MountTypeSecret {
			if err = m.secret(mt); err != nil {
				return err
			}
			continue
		}
		if mt.Type == instructions.MountTypeSSH {
			if err = m.ssh(mt, agents); err != nil {
				return err
			}
			agents++
			continue
		}
		target := m.target(mt.Target)
		if target == "/" {
			return fmt.Errorf("invalid mount target %q", target)
		}
		m.key = append(m.key, string(mt.Type), target, mt.Source, fmt.Sprint(mt.ReadOnly))
		switch mt.Type {
		case instructions.MountTypeTmpfs:
			m.list = append(m.list, Mount{Target: target, Size: mt.SizeLimit})
		case instructions.MountTypeCache:
			err = m.cache(ctx, mt, target)
		case instructions.MountTypeBind:
			err = m.bind(ctx, mt, target)
		default:
			err = fmt.Errorf("RUN --mount=type=%s: %w", mt.Type, ErrUnsupported)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *mounts) target(t string) string {
	if !path.IsAbs(t) {
		t = path.Join("/", m.config.Config.WorkingDir, t)
	}
	return path.Clean(t)
}

// secret is a file or a variable of RUN --mount=type=secret. Neither it nor that
// it is there counts for the cache.
func (m *mounts) secret(mt *instructions.Mount) error {
	id := mt.CacheID
	if mt.Source != "" {
		id = mt.Source
	}
	if id == "" {
		id = path.Base(mt.Target)
	}
	value, ok := m.req.Secrets[id]
	if !ok && mt.Required {
		return fmt.Errorf("secret %s: not found", id)
	}
	if !ok {
		return nil
	}
	target := mt.Target
	if mt.Env != nil {
		name := *mt.Env
		if name == "" {
			name = id
		}
		m.env = append(m.env, name+"="+string(value))
	} else if target == "" {
		target = path.Join("/run/secrets", path.Base(id))
	}
	if target == "" {
		return nil
	}
	file := &MemoryFile{Content: value, Mode: 0o400}
	set(&file.Mode, mt.Mode)
	file.Mode &= 0o777
	set(&file.UID, mt.UID)
	set(&file.GID, mt.GID)
	m.list = append(m.list, Mount{Target: m.target(target), File: file})
	return nil
}

// set is *to = *from where from is given.
func set[T int | uint32 | os.FileMode](to *T, from *uint64) {
	if from != nil {
		*to = T(*from)
	}
}

// ssh makes an agent of the request reachable. The command talks to a socket of
// the build, so that its owner and mode can be what the mount says.
func (m *mounts) ssh(mt *instructions.Mount, n int) error {
	if mt.Source != "" {
		return fmt.Errorf("ssh does not support source")
	}
	id := mt.CacheID
	if id == "" {
		id = "default"
	}
	agent, ok := m.req.SSH[id]
	if !ok {
		if mt.Required {
			return fmt.Errorf("unset ssh forward key %s: the build must be given --ssh %s", id, id)
		}
		return nil
	}
	target := mt.Target
	if target == "" {
		target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", n)
	}
	target = m.target(target)
	m.key = append(m.key, "ssh", target)
	if n == 0 {
		m.env = append(m.env, "SSH_AUTH_SOCK="+target)
	}
	mode, uid, gid := os.FileMode(0o600), 0, 0
	set(&mode, mt.Mode)
	set(&uid, mt.UID)
	set(&gid, mt.GID)
	dir, err := m.tempDir()
	if err != nil {
		return err
	}
	socket := filepath.Join(dir, "agent")
	m.list = append(m.list, Mount{Target: target, Source: socket})
	m.later = append(m.later, func(ctx context.Context) error {
		stop, err := forward(ctx, socket, agent)
		if err != nil {
			return fmt.Errorf("ssh agent %s: %w", id, err)
		}
		m.undo = append(m.undo, stop)
		if err := os.Chown(socket, uid, gid); err != nil {
			return err
		}
		return os.Chmod(socket, mode&0o777)
	})
	return nil
}

// forward listens at socket and passes connections to the socket at to, until
// stop is called.
func forward(ctx context.Context, socket, to string) (stop func(), err error) {
	if fi, err := os.Stat(to); err != nil {
		return nil, err
	} else if fi.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("%s is no socket: %w: give an agent's socket, not a key", to, ErrUnsupported)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			wg.Go(func() {
				defer in.Close()
				out, err := (&net.Dialer{}).DialContext(ctx, "unix", to)
				if err != nil {
					return // the command sees its connection end
				}
				defer out.Close()
				defer context.AfterFunc(ctx, func() { in.Close(); out.Close() })()
				ended := make(chan struct{})
				go func() { // ends when out is closed
					io.Copy(in, out)
					in.Close()
					close(ended)
				}()
				io.Copy(out, in)
				out.Close()
				<-ended
			})
		}
	})
	return func() {
		cancel()
		l.Close()
		wg.Wait()
	}, nil
}

// cache is a directory that builds share. What it holds does not count for the
// layer cache; what it begins with, and its owner, are part of its identity.
func (m *mounts) cache(ctx context.Context, mt *instructions.Mount, target string) error {
	id := mt.CacheID
	if id == "" {
		id = path.Clean(mt.Target)
	}
	spec := cacheSpec{sharing: mt.CacheSharing, mode: 0o755, owned: mt.Mode != nil || mt.UID != nil || mt.GID != nil}
	set(&spec.mode, mt.Mode)
	spec.mode &= 0o777
	set(&spec.uid, mt.UID)
	set(&spec.gid, mt.GID)
	identity := []string{m.req.Args[argCacheNamespace], id}
	if spec.owned {
		identity = append(identity, fmt.Sprintf("%o %d:%d", spec.mode, spec.uid, spec.gid))
	}
	if mt.From != "" && mt.From != "scratch" {
		t, err := m.step.open(ctx, mt.From)
		if err != nil {
			return err
		}
		src, err := t.one(ctx, mt.Source)
		if err != nil {
			return err
		}
		if !src.dir {
			return fmt.Errorf("RUN --mount=type=cache source %q: must be a directory", mt.Source)
		}
		digest := t.digest(*src)
		identity = append(identity, digest)
		m.key = append(m.key, digest)
		spec.seed = func(dir string) error {
			w := &writer{root: dir, times: map[string]time.Time{}}
			cp := &copier{writer: w, ctx: ctx, uid: -1, gid: -1}
			if err := cp.source(*src, "/"); err != nil {
				return err
			}
			return w.setTimes()
		}
	} else if mt.Source != "" {
		identity = append(identity, "below "+path.Clean("/"+mt.Source))
	}
	spec.name = digestOf(identity...)[:32]
	m.takes = append(m.takes, take{spec, len(m.list)})
	m.list = append(m.list, Mount{Target: target, ReadOnly: mt.ReadOnly})
	return nil
}

// one finds the file or directory that a mount's source names; the root where it
// is empty.
func (t *tree) one(ctx context.Context, name string) (*source, error) {
	found, err := t.find(ctx, path.Join("/", name), nil, false)
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("RUN --mount source %q: matches %d files, must be one", name, len(found))
	}
	return &found[0], nil
}

// bind is a directory or file of a context, a stage or an image. What a command
// writes there is lost.
func (m *mounts) bind(ctx context.Context, mt *instructions.Mount, target string) error {
	t, err := m.step.open(ctx, mt.From)
	if err != nil {
		return err
	}
	src, err := t.one(ctx, mt.Source)
	if err != nil {
		return err
	}
	m.key = append(m.key, t.digest(*src))
	mount := Mount{Target: target, ReadOnly: mt.ReadOnly, Scratch: !mt.ReadOnly}
	at := len(m.list)
	m.list = append(m.list, mount)
	if t.owners {
		rootfs, err := m.viewOf(ctx, mt.From)
		if err != nil {
			return err
		}
		m.list[at].Rootfs, m.list[at].Source = rootfs, path.Join("/", mt.Source)
		return nil
	}
	// Not through links of the context.
	full, err := (&writer{root: t.root}).path(mt.Source)
	if err != nil {
		return err
	}
	m.list[at].Source = full
	if t.ignore == nil || !src.dir {
		return nil
	}
	m.later = append(m.later, func(ctx context.Context) error {
		mask, err := m.mask(t, src)
		if err != nil || mask == "" {
			return err
		}
		m.list[at].Rootfs, m.list[at].Source = &snapshot.Rootfs{Lower: []string{mask, full}}, "/"
		return nil
	})
	return nil
}

// mask makes a directory that, as an overlay's upper layer, hides what
// .dockerignore leaves out of a directory of a context; "" where that is nothing.
func (m *mounts) mask(t *tree, src *source) (string, error) {
	full, err := (&writer{root: t.root}).path(src.name)
	if err != nil {
		return "", err
	}
	kept := map[string]bool{}
	for _, f := range src.files {
		kept[f.rel] = true
	}
	dir, err := m.tempDir()
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	hidden := false
	var hide func(rel string) error
	hide = func(rel string) error {
		entries, err := os.ReadDir(filepath.Join(full, rel))
		if err != nil {
			return err
		}
		for _, e := range entries {
			child := path.Join(rel, e.Name())
			switch {
			case !kept[child]:
				hidden = true
				if err := os.MkdirAll(filepath.Join(dir, rel), 0o755); err != nil {
					return err
				}
				if err := unix.Mknod(filepath.Join(dir, child), unix.S_IFCHR, 0); err != nil {
					return &os.PathError{Op: "mknod", Path: child, Err: err}
				}
			case e.IsDir():
				if err := hide(child); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := hide(""); err != nil {
		return "", err
	}
	if !hidden {
		return "", nil
	}
	return dir, nil
}

// viewOf is the read-only rootfs of a stage or image; its layers stay for as
// long as the view that open made.
func (s *step) viewOf(ctx context.Context, from string) (*snapshot.Rootfs, error) {
	img, _, err := s.sourceOf(ctx, from)
	if err != nil {
		return nil, err
	}
	rootfs, done, err := s.b.deps.Snapshots.View(ctx, img)
	if err != nil {
		return nil, err
	}
	done()
	return &rootfs, nil
}
