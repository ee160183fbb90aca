package build

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"golang.org/x/sys/unix"
)

// step applies instructions to a stage.
type step struct {
	*run
	*stage
	index   int
	noCache bool
	lex     *shell.Lex // one of its own: it is one goroutine's
}

func (r *run) buildStage(ctx context.Context, i int) error {
	def, b := r.file.stages[i], r.bases[i]
	st := scratch(b.platform)
	switch {
	case b.stage >= 0:
		st = r.stages[b.stage].next()
	case b.image != nil:
		var err error
		if st, err = r.from(b.image); err != nil {
			return r.file.at(def.Location, err)
		}
	}
	r.stages[i] = st
	s := &step{run: r, stage: st, index: i, noCache: r.req.NoCache || r.noCacheFilter(i), lex: shell.NewLex(r.file.escape)}
	if b.image == nil {
		n := r.begin("FROM " + b.name)
		cached, err := false, error(nil)
		if b.dir != "" {
			cached, err = s.wholeContext(ctx, b.dir)
		}
		r.end(ctx, n, cached, err)
		if err != nil {
			return r.file.at(def.Location, err)
		}
	}
	if b.replaced {
		return nil
	}
	for _, cmd := range append(slices.Clone(b.triggers), def.Commands...) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := s.dispatch(ctx, cmd); err != nil {
			return r.file.at(r.place(i, cmd), err)
		}
	}
	return nil
}

func (r *run) noCacheFilter(i int) bool {
	name := r.file.stages[i].Name
	return slices.ContainsFunc(r.req.NoCacheFilter, func(f string) bool { return name != "" && strings.EqualFold(f, name) })
}

func (s *step) dispatch(ctx context.Context, cmd instructions.Command) error {
	env := shell.EnvsFromSlice(s.vars)
	if c, ok := cmd.(*instructions.ArgCommand); ok {
		return s.arg(c)
	}
	if c, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		if err := c.Expand(func(word string) (string, error) { v, _, err := s.lex.ProcessWord(word, env); return v, err }); err != nil {
			return err
		}
	}
	if c, ok := cmd.(instructions.SupportsSingleWordExpansionRaw); ok {
		// Quotes in a here document are text.
		raw := shell.NewLex('\\')
		raw.SkipProcessQuotes = true
		if err := c.ExpandRaw(func(w string) (string, error) { v, _, err := raw.ProcessWord(w, env); return v, err }); err != nil {
			return err
		}
	}
	conf := &s.config.Config
	text := fmt.Sprint(cmd)
	switch c := cmd.(type) {
	case *instructions.RunCommand:
		return s.runCommand(ctx, c, text)
	case *instructions.CopyCommand:
		return s.copyCommand(ctx, copySpec{
			name: "COPY", text: text, SourcesAndDest: c.SourcesAndDest, from: c.From, chown: c.Chown, chmod: c.Chmod,
			exclude: c.ExcludePatterns, parents: c.Parents, link: c.Link,
		})
	case *instructions.AddCommand:
		return s.copyCommand(ctx, copySpec{
			name: "ADD", text: text, SourcesAndDest: c.SourcesAndDest, chown: c.Chown, chmod: c.Chmod,
			exclude: c.ExcludePatterns, link: c.Link, unpack: c.Unpack, checksum: c.Checksum, keepGitDir: c.KeepGitDir,
		})
	case *instructions.WorkdirCommand:
		return s.workdir(ctx, c, text)
	case *instructions.OnbuildCommand:
		conf.OnBuild = append(conf.OnBuild, c.Expression)
		return nil
	case *instructions.EnvCommand:
		text = "ENV"
		for _, kv := range c.Env {
			conf.Env = setEnv(conf.Env, kv.Key, kv.Value)
			s.vars = setEnv(s.vars, kv.Key, kv.Value)
			text += " " + kv.String()
		}
	case *instructions.LabelCommand:
		if conf.Labels == nil {
			conf.Labels = map[string]string{}
		}
		text = "LABEL"
		for _, kv := range c.Labels {
			conf.Labels[kv.Key] = kv.Value
			text += " " + kv.String()
		}
	case *instructions.MaintainerCommand:
		s.config.Author = c.Maintainer
		text = "MAINTAINER " + c.Maintainer
	case *instructions.UserCommand:
		conf.User = c.User
		text = "USER " + c.User
	case *instructions.CmdCommand:
		conf.Cmd = s.commandLine(c.ShellDependantCmdLine)
		s.cmdSet = true
		text = fmt.Sprintf("CMD %q", conf.Cmd)
	case *instructions.EntrypointCommand:
		conf.Entrypoint = s.commandLine(c.ShellDependantCmdLine)
		if !s.cmdSet {
			conf.Cmd = nil // the base image's command was for its entrypoint
		}
		text = fmt.Sprintf("ENTRYPOINT %q", conf.Entrypoint)
	case *instructions.ShellCommand:
		conf.Shell = c.Shell
		text = fmt.Sprintf("SHELL %v", c.Shell)
	case *instructions.HealthCheckCommand:
		conf.Healthcheck = &v1.HealthConfig{
			Test: c.Health.Test, Interval: c.Health.Interval, Timeout: c.Health.Timeout,
			StartPeriod: c.Health.StartPeriod, Retries: c.Health.Retries,
		}
		s.startInterval = c.Health.StartInterval
		text = fmt.Sprintf("HEALTHCHECK %+v", *c.Health)
	case *instructions.StopSignalCommand:
		if _, err := parseSignal(c.Signal); err != nil {
			return err
		}
		conf.StopSignal = c.Signal
		text = "STOPSIGNAL " + c.Signal
	case *instructions.VolumeCommand:
		if conf.Volumes == nil {
			conf.Volumes = map[string]struct{}{}
		}
		for _, v := range c.Volumes {
			if strings.TrimSpace(v) == "" {
				return errors.New("VOLUME specified can not be an empty string")
			}
			conf.Volumes[v] = struct{}{}
		}
		text = fmt.Sprintf("VOLUME %v", c.Volumes)
	case *instructions.ExposeCommand:
		ports, err := s.expose(c, env)
		if err != nil {
			return err
		}
		text = fmt.Sprintf("EXPOSE %v", ports)
	default:
		return fmt.Errorf("%s: %w", strings.ToUpper(cmd.Name()), ErrUnsupported)
	}
	s.addHistory(text, true)
	return nil
}

// commandLine is an exec form, or the shell form with its shell.
func (s *step) commandLine(c instructions.ShellDependantCmdLine) []string {
	if !c.PrependShell {
		return c.CmdLine
	}
	return append(s.shell(), strings.Join(c.CmdLine, " "))
}

func (s *step) shell() []string {
	if sh := s.config.Config.Shell; len(sh) > 0 {
		return append([]string{}, sh...)
	}
	return []string{"/bin/sh", "-c"}
}

// arg declares arguments: each sees those before it.
func (s *step) arg(c *instructions.ArgCommand) error {
	text := "ARG"
	for _, a := range c.Args {
		value, given := s.req.Args[a.Key]
		switch {
		case given:
			s.mu.Lock()
			s.usedArgs[a.Key] = true
			s.mu.Unlock()
		case a.Value != nil:
			v, _, err := s.lex.ProcessWord(*a.Value, shell.EnvsFromSlice(s.vars))
			if err != nil {
				return err
			}
			value, given = v, true
		default:
			value, given = s.globals[a.Key]
		}
		text += " " + a.Key
		if given {
			s.vars = setEnv(s.vars, a.Key, value)
			text += "=" + value
		}
		if !slices.Contains(s.args, a.Key) {
			s.args = append(s.args, a.Key)
		}
	}
	s.addHistory(text, true)
	return nil
}

func (s *step) expose(c *instructions.ExposeCommand, env shell.EnvGetter) ([]string, error) {
	var all []string
	for _, word := range c.Ports {
		words, err := s.lex.ProcessWords(word, env)
		if err != nil {
			return nil, err
		}
		for _, spec := range words {
			ports, err := parsePorts(spec)
			if err != nil {
				return nil, err
			}
			for _, p := range ports {
				if s.config.Config.ExposedPorts == nil {
					s.config.Config.ExposedPorts = map[string]struct{}{}
				}
				s.config.Config.ExposedPorts[p] = struct{}{}
			}
			all = append(all, ports...)
		}
	}
	return all, nil
}

// parsePorts reads "80", "80/udp", "8000-8010/tcp". An address or a port of the
// host before it says nothing to an image.
func parsePorts(spec string) ([]string, error) {
	own := spec
	if i := strings.LastIndexByte(spec, ':'); i >= 0 {
		own = spec[i+1:]
	}
	rng, proto, _ := strings.Cut(own, "/")
	if proto == "" {
		proto = "tcp"
	}
	proto = strings.ToLower(proto)
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return nil, fmt.Errorf("invalid containerPort: %s: protocol must be tcp, udp or sctp", spec)
	}
	first, last, isRange := strings.Cut(rng, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || from > to {
		return nil, fmt.Errorf("invalid containerPort: %s: must be a port from 0 to 65535, or a range of them", spec)
	}
	var out []string
	for p := from; p <= to; p++ {
		out = append(out, fmt.Sprintf("%d/%s", p, proto))
	}
	return out, nil
}

// parseSignal reads a signal's number or name, with or without SIG.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	if strings.HasPrefix(name, "SIGRTMIN") || strings.HasPrefix(name, "SIGRTMAX") {
		base, rest := 34, strings.TrimPrefix(name, "SIGRTMIN")
		if strings.HasPrefix(name, "SIGRTMAX") {
			base, rest = 64, strings.TrimPrefix(name, "SIGRTMAX")
		}
		n, err := strconv.Atoi(rest)
		if rest == "" {
			n, err = 0, nil
		}
		if err == nil && base+n >= 34 && base+n <= 64 {
			return unix.Signal(base + n), nil
		}
	}
	return 0, fmt.Errorf("invalid signal: %s", s)
}

// workdir makes the directory, as the user that the stage has.
func (s *step) workdir(ctx context.Context, c *instructions.WorkdirCommand, text string) error {
	dir := c.Path
	if dir == "" {
		return errors.New("WORKDIR requires a path")
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", s.config.Config.WorkingDir, dir)
	}
	dir = path.Clean(dir)
	s.config.Config.WorkingDir = dir
	n := s.begin(text)
	user := s.config.Config.User
	cached, err := s.change(ctx, digestOf("workdir", s.chain, dir, user), "WORKDIR "+dir, func(w *writer) error {
		var u User
		if user != "" {
			var err error
			if u, err = w.user(user); err != nil {
				return err
			}
		}
		_, err := w.mkdirAllAs(dir, u.UID, u.GID)
		return err
	})
	s.end(ctx, n, cached, err)
	return err
}
