package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"skiff/internal/runtime/snapshot"
)

func (s *step) runCommand(ctx context.Context, c *instructions.RunCommand, text string) error {
	n := s.begin(text)
	cached, err := s.execute(ctx, c, text, n)
	s.end(ctx, n, cached, err)
	return err
}

func (s *step) execute(ctx context.Context, c *instructions.RunCommand, text string, n int) (bool, error) {
	insecure := instructions.GetSecurity(c) == instructions.SecurityInsecure
	if insecure && !s.req.Insecure {
		return false, errors.New("security.insecure is not allowed: the build must be given --allow security.insecure")
	}
	if len(instructions.GetDevices(c)) > 0 {
		return false, fmt.Errorf("RUN --device: %w: builds have no devices but those of /dev", ErrUnsupported)
	}
	if p := s.imagePlatform(); !p.runs() {
		return false, fmt.Errorf("RUN on %s: %w: this machine runs %s, and binfmt_misc has no interpreter", p, ErrUnsupported, machinePlatform())
	}
	args, scripts, err := s.runArgs(c)
	if err != nil {
		return false, err
	}
	m := &mounts{step: s}
	defer m.close()
	if err := m.plan(ctx, instructions.GetMounts(c)); err != nil {
		return false, err
	}
	network := instructions.GetNetwork(c)
	if network == instructions.NetworkDefault && s.req.Network != "" {
		network = s.req.Network
	}
	conf := s.config.Config
	key := digestOf("run", s.chain, digestOf(args...), digestOf(s.vars...), conf.WorkingDir, conf.User, network,
		digestOf(m.key...), fmt.Sprint(scripts, insecure, s.req.Hosts, s.req.Args[argHostname]))
	return s.cachedOr(ctx, key, s.historyOf(args), s.image(), func(rootfs snapshot.Rootfs) error {
		// Waits for caches that others have locked, and for agents.
		if err := m.open(ctx); err != nil {
			return err
		}
		u, stubs, err := s.inspect(rootfs, m.list)
		if err != nil {
			return err
		}
		env := s.commandEnv(u, m.env)
		rootfs.Lower = append(append([]string{}, rootfs.Lower...), s.b.stub)
		out := &stepOutput{p: s.req.Progress, n: n}
		code, err := s.b.deps.Executor.Run(ctx, ExecSpec{
			Rootfs: rootfs, Args: args, Env: env, Cwd: conf.WorkingDir, User: u, Stdout: out, Stderr: out,
			NoNetwork: network == instructions.NetworkNone, Scripts: scripts, Mounts: m.list, Insecure: insecure,
			Hostname: s.req.Args[argHostname], Hosts: s.req.Hosts, ShmSize: s.req.ShmSize,
		})
		if err != nil {
			return fmt.Errorf("process %q: %w", strings.Join(args, " "), err)
		}
		if code != 0 {
			return &ExitError{Command: strings.Join(args, " "), Code: code, Step: text, Log: out.last()}
		}
		// What was made only to mount on, deepest first; what is not empty stays.
		for i := len(stubs) - 1; i >= 0; i-- {
			os.Remove(filepath.Join(rootfs.Upper, stubs[i]))
		}
		return nil
	})
}

func (s *step) imagePlatform() platform {
	return platform{s.config.OS, s.config.Architecture, s.config.Variant}.normal()
}

// historyOf is a command as image histories have it, with the arguments that it
// saw.
func (s *step) historyOf(args []string) string {
	text := "RUN "
	if len(s.args) > 0 {
		text += fmt.Sprintf("|%d ", len(s.args))
		for _, name := range s.args {
			v, _ := lookupEnv(s.vars, name)
			text += name + "=" + v + " "
		}
	}
	return text + strings.Join(args, " ") + " # buildkit"
}

// commandEnv is a command's environment: proxies, which do not count for the
// cache, have both their names.
func (s *step) commandEnv(u User, secrets []string) []string {
	env := slices.Clone(s.vars)
	for name, value := range s.req.Args {
		if !isProxyArg(name) {
			continue
		}
		for _, n := range []string{name, strings.ToUpper(name), strings.ToLower(name)} {
			if _, ok := lookupEnv(env, n); !ok {
				env = append(env, n+"="+value)
			}
		}
	}
	for _, secret := range secrets {
		k, v, _ := strings.Cut(secret, "=")
		env = setEnv(env, k, v)
	}
	if _, ok := lookupEnv(env, "HOME"); !ok {
		env = append(env, "HOME="+u.Home)
	}
	return env
}

// maxOutput is how much a command may write to the progress, bytes, as with
// BuildKit; it goes on, and its last lines are kept for the error.
const maxOutput = 2 << 20

// stepOutput passes a command's output to the progress.
type stepOutput struct {
	p    Progress
	n    int
	sent int
	tail []byte
}

func (o *stepOutput) Write(b []byte) (int, error) {
	if room := maxOutput - o.sent; room > 0 {
		part := b[:min(room, len(b))]
		o.p.Output(o.n, part)
		if o.sent += len(part); o.sent == maxOutput {
			o.p.Output(o.n, fmt.Appendf(nil, "\n[output clipped, log limit %d MiB reached]\n", maxOutput>>20))
		}
	}
	o.tail = append(o.tail, b[max(0, len(b)-maxTail):]...)
	if len(o.tail) > 2*maxTail {
		o.tail = append([]byte{}, o.tail[len(o.tail)-maxTail:]...)
	}
	return len(b), nil
}

// maxTail bounds what is kept of an output for the error, bytes; lastLines of it
// are shown.
const (
	maxTail   = 8 << 10
	lastLines = 10
)

// last are the output's last lines.
func (o *stepOutput) last() []string {
	lines := strings.Split(strings.TrimRight(string(o.tail[max(0, len(o.tail)-maxTail):]), "\n"), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return nil
	}
	lines = lines[max(0, len(lines)-lastLines):]
	for i, l := range lines {
		lines[i] = clean([]byte(l))
	}
	return lines
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
