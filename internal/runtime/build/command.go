package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"skiff/internal/runtime/snapshot"
)

func (s *step) runCommand(ctx context.Context, c *instructions.RunCommand, text string) error {
	n := s.begin(text)
	cached, err := s.execute(ctx, c, text, n)
	s.req.Progress.Done(n, cached, err)
	return err
}

func (s *step) execute(ctx context.Context, c *instructions.RunCommand, text string, n int) (bool, error) {
	if sec := instructions.GetSecurity(c); sec != "" && sec != instructions.SecuritySandbox {
		return false, fmt.Errorf("RUN --security=%s: %w", sec, ErrUnsupported)
	}
	if len(instructions.GetDevices(c)) > 0 {
		return false, fmt.Errorf("RUN --device: %w", ErrUnsupported)
	}
	args, scripts, err := s.runArgs(c)
	if err != nil {
		return false, err
	}
	mounts, mountKey, err := s.mounts(ctx, instructions.GetMounts(c))
	if err != nil {
		return false, err
	}
	env := s.env()
	secretMounts, secretEnv, err := s.secrets(instructions.GetMounts(c))
	if err != nil {
		return false, err
	}
	mounts = append(mounts, secretMounts...)
	network := instructions.GetNetwork(c)
	conf := s.config.Config
	key := digestOf("run", s.chain, digestOf(args...), digestOf(env...), conf.WorkingDir, conf.User, string(network),
		digestOf(mountKey...), fmt.Sprint(scripts))
	for name, value := range s.req.Args {
		if _, declared := lookupEnv(env, name); isProxyArg(name) && !declared {
			env = append(env, name+"="+value)
		}
	}
	env = append(env, secretEnv...)
	return s.cachedOr(ctx, key, text, func(rootfs snapshot.Rootfs) error {
		u, stubs, err := s.inspect(rootfs, mounts)
		if err != nil {
			return err
		}
		if _, ok := lookupEnv(env, "HOME"); !ok {
			env = append(env, "HOME="+u.Home)
		}
		rootfs.Lower = append(append([]string{}, rootfs.Lower...), s.b.stub)
		out := stepOutput{s.req.Progress, n}
		code, err := s.b.deps.Executor.Run(ctx, ExecSpec{
			Rootfs: rootfs, Args: args, Env: env, Cwd: conf.WorkingDir, User: u, Stdout: out, Stderr: out,
			NoNetwork: network == instructions.NetworkNone, Scripts: scripts, Mounts: mounts,
		})
		if err != nil {
			return fmt.Errorf("process %q: %w", strings.Join(args, " "), err)
		}
		if code != 0 {
			return &ExitError{Command: strings.Join(args, " "), Code: code}
		}
		// What was made only to mount on, deepest first; what is not empty stays.
		for i := len(stubs) - 1; i >= 0; i-- {
			os.Remove(filepath.Join(rootfs.Upper, stubs[i]))
		}
		return nil
	})
}

// stepOutput passes a command's output to the progress.
type stepOutput struct {
	p Progress
	n int
}

func (o stepOutput) Write(b []byte) (int, error) {
	o.p.Output(o.n, b)
	return len(b), nil
}

// inspect looks into the image before a command runs: who its user is, and which
// files and directories will be made for mounts, parents first.
func (s *step) inspect(rootfs snapshot.Rootfs, mounts []Mount) (User, []string, error) {
	f, err := (snapshot.Rootfs{Lower: rootfs.Lower}).Open()
	if err != nil {
		return User{}, nil, err
	}
	defer f.Close()
	w := &writer{root: fdPath(f)}
	u, err := w.user(s.config.Config.User)
	if err != nil {
		return User{}, nil, err
	}
	var stubs []string
	for _, m := range mounts {
		full, err := w.path(m.Target)
		if err != nil {
			return User{}, nil, err
		}
		var missing []string
		for full != w.root {
			if _, err := os.Lstat(full); err == nil {
				break
			}
			missing = append(missing, strings.TrimPrefix(full, w.root))
			full = filepath.Dir(full)
		}
		for i := len(missing) - 1; i >= 0; i-- {
			stubs = append(stubs, missing[i])
		}
	}
	return u, stubs, nil
}

// secrets are the files and variables of RUN --mount=type=secret.
func (s *step) secrets(list []*instructions.Mount) (mounts []Mount, env []string, err error) {
	for _, m := range list {
		if m.Type != instructions.MountTypeSecret {
			continue
		}
		id := m.CacheID
		if m.Source != "" {
			id = m.Source
		}
		if id == "" {
			id = path.Base(m.Target)
		}
		value, ok := s.req.Secrets[id]
		if !ok && m.Required {
			return nil, nil, fmt.Errorf("secret %s: not found", id)
		}
		if !ok {
			continue
		}
		if m.Env != nil {
			name := *m.Env
			if name == "" {
				name = id
			}
			env = append(env, name+"="+string(value))
		}
		target := m.Target
		if target == "" && m.Env == nil {
			target = path.Join("/run/secrets", path.Base(id))
		}
		if target == "" {
			continue
		}
		if !path.IsAbs(target) {
			target = path.Join("/", s.config.Config.WorkingDir, target)
		}
		file := &MemoryFile{Content: value, Mode: 0o400}
		if m.Mode != nil {
			file.Mode = uint32(*m.Mode & 0o777)
		}
		if m.UID != nil {
			file.UID = int(*m.UID)
		}
		if m.GID != nil {
			file.GID = int(*m.GID)
		}
		mounts = append(mounts, Mount{Target: target, File: file})
	}
	return mounts, env, nil
}

// runArgs is the command line, and the scripts that it runs.
func (s *step) runArgs(c *instructions.RunCommand) ([]string, map[string]string, error) {
	args := append([]string{}, c.CmdLine...)
	if len(c.Files) > 0 {
		if len(args) != 1 || !c.PrependShell {
			return nil, nil, errors.New("here documents need the shell form of RUN")
		}
		if doc, err := parser.ParseHeredoc(args[0]); err == nil && doc != nil {
			content := c.Files[0].Data
			if c.Files[0].Chomp {
				content = parser.ChompHeredocContent(content)
			}
			if strings.HasPrefix(content, "#!") {
				name := path.Base(c.Files[0].Name)
				return []string{path.Join(ScriptDir, name)}, map[string]string{name: content}, nil
			}
			args[0] = content
		} else {
			// The shell reads the documents itself.
			for _, f := range c.Files {
				args[0] += "\n" + f.Data + f.Name
			}
		}
	}
	if c.PrependShell {
		args = append(s.shell(), args...)
	}
	if len(args) == 0 {
		return nil, nil, errors.New("RUN needs a command")
	}
	return args, nil, nil
}

// mounts are those of RUN --mount, and what of them counts for the cache.
func (s *step) mounts(ctx context.Context, list []*instructions.Mount) ([]Mount, []string, error) {
	var out []Mount
	var key []string
	for _, m := range list {
		target := m.Target
		if !path.IsAbs(target) {
			target = path.Join("/", s.config.Config.WorkingDir, target)
		}
		key = append(key, string(m.Type), target, m.Source, fmt.Sprint(m.ReadOnly))
		switch m.Type {
		case instructions.MountTypeTmpfs:
			out = append(out, Mount{Target: target, Size: m.SizeLimit})
		case instructions.MountTypeCache:
			if m.From != "" {
				return nil, nil, fmt.Errorf("RUN --mount=type=cache,from: %w", ErrUnsupported)
			}
			dir, err := s.cacheMount(m, target)
			if err != nil {
				return nil, nil, err
			}
			out = append(out, Mount{Target: target, Source: dir, ReadOnly: m.ReadOnly})
		case instructions.MountTypeBind:
			mt, digest, err := s.bindMount(ctx, m, target)
			if err != nil {
				return nil, nil, err
			}
			out = append(out, mt)
			key = append(key, digest)
		case instructions.MountTypeSecret: // see secrets
		default:
			return nil, nil, fmt.Errorf("RUN --mount=type=%s: %w", m.Type, ErrUnsupported)
		}
	}
	return out, key, nil
}

// cacheMount is the directory of a cache, which all builds share.
func (s *step) cacheMount(m *instructions.Mount, target string) (string, error) {
	id := m.CacheID
	if id == "" {
		id = path.Clean(target)
	}
	dir := filepath.Join(s.b.deps.Dir, "cache", digestOf(id)[:32])
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cache mount: %w", err)
	}
	mode, uid, gid := uint64(0o755), uint64(0), uint64(0)
	for from, to := range map[*uint64]*uint64{m.Mode: &mode, m.UID: &uid, m.GID: &gid} {
		if from != nil {
			*to = *from
		}
	}
	return dir, errors.Join(os.Chmod(dir, os.FileMode(mode)&0o777), os.Chown(dir, int(uid), int(gid)))
}

// bindMount is a directory or file of the context, a stage or an image. It
// cannot be written to: Docker's writes would be lost anyway.
func (s *step) bindMount(ctx context.Context, m *instructions.Mount, target string) (Mount, string, error) {
	t, err := s.open(ctx, m.From)
	if err != nil {
		return Mount{}, "", err
	}
	source := m.Source
	if source == "" {
		source = "/"
	}
	found, err := t.find(ctx, source, nil)
	if err != nil {
		return Mount{}, "", err
	}
	if len(found) != 1 {
		return Mount{}, "", fmt.Errorf("RUN --mount source %q: matches %d files, must be one", source, len(found))
	}
	digest := t.digest(found[0])
	mt := Mount{Target: target, Source: source, ReadOnly: true}
	if m.From == "" {
		// Not through links of the context, and whole: .dockerignore does not
		// hide from a mount.
		full, err := (&writer{root: t.root}).path(source)
		if err != nil {
			return Mount{}, "", err
		}
		mt.Source = full
		return mt, digest, nil
	}
	rootfs, err := s.viewOf(ctx, m.From)
	if err != nil {
		return Mount{}, "", err
	}
	mt.Rootfs = rootfs
	return mt, digest, nil
}

// viewOf is the read-only rootfs of a stage or image; its layers stay for as
// long as the view that open made.
func (s *step) viewOf(ctx context.Context, from string) (*snapshot.Rootfs, error) {
	img, err := s.imageOf(ctx, from)
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
