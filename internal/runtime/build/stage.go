package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"sort"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
)

// run is one build.
type run struct {
	b     *Builder
	req   Request
	file  *dockerfile
	lease *image.Lease

	globals map[string]string // ARGs before the first FROM
	bases   []base
	order   []int // stages to build
	stages  map[int]*stage
	images  map[string]*image.Image // that COPY --from named
	views   []view
	context *tree // lazily

	step, total int
	usedArgs    map[string]bool
}

// view is a mounted rootfs that lives as long as the build.
type view struct {
	chain string
	root  *os.File
	done  func()
}

func (r *run) close() {
	for _, v := range r.views {
		v.root.Close()
		v.done()
	}
}

func (r *run) warnUnusedArgs() {
	var unused []string
	for name := range r.req.Args {
		if _, platform := platformArgs()[name]; !r.usedArgs[name] && !isProxyArg(name) && !platform {
			unused = append(unused, name)
		}
	}
	if len(unused) > 0 {
		sort.Strings(unused)
		r.req.Progress.Warn(r.file.name, 0, fmt.Sprintf("one or more build-args %v were not consumed", unused))
	}
}

// baseImage finds an image that FROM or --from names.
func (r *run) baseImage(ctx context.Context, name string) (*image.Image, error) {
	if img := r.images[name]; img != nil {
		return img, nil
	}
	var img *image.Image
	var err error
	if !r.req.Pull {
		img, err = r.b.deps.Images.Resolve(ctx, name)
	}
	if r.req.Pull || errors.Is(err, image.ErrNotFound) {
		var auth *image.Auth
		if r.req.Auth != nil {
			auth = r.req.Auth(name)
		}
		img, err = r.b.deps.Images.Pull(ctx, name, auth)
	}
	if err != nil {
		return nil, err
	}
	for _, l := range img.Layers {
		r.lease.Hold(l.Digest)
	}
	if r.images == nil {
		r.images = map[string]*image.Image{}
	}
	r.images[name] = img
	return img, nil
}

func (r *run) buildStage(ctx context.Context, i int) error {
	def := r.file.stages[i]
	n := r.begin("FROM " + r.bases[i].name)
	var st *stage
	switch b := r.bases[i]; {
	case b.stage >= 0:
		st = r.stages[b.stage].next()
	case b.name == "scratch":
		st = scratch()
	default:
		img, err := r.baseImage(ctx, b.name)
		if err != nil {
			r.req.Progress.Done(n, false, err)
			return r.file.at(def.Location, fmt.Errorf("%s: %w", b.name, err))
		}
		st = from(img)
	}
	r.req.Progress.Done(n, false, nil)
	r.stages[i] = st
	s := &step{run: r, stage: st, index: i}
	triggers, err := r.triggers(st)
	if err != nil {
		return r.file.at(def.Location, err)
	}
	r.total += countSteps(triggers)
	for _, cmd := range append(triggers, def.Commands...) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		location := cmd.Location()
		if len(location) == 0 {
			location = def.Location // an ONBUILD trigger
		}
		if err := s.dispatch(ctx, cmd); err != nil {
			return r.file.at(location, err)
		}
	}
	return nil
}

// triggers are the base image's ONBUILD instructions, which end with it.
func (r *run) triggers(st *stage) ([]instructions.Command, error) {
	var out []instructions.Command
	for _, expr := range st.config.Config.OnBuild {
		ast, err := parser.Parse(strings.NewReader(expr))
		if err != nil {
			return nil, fmt.Errorf("ONBUILD %s: %w", expr, err)
		}
		for _, node := range ast.AST.Children {
			cmd, err := instructions.ParseCommand(node)
			if err != nil {
				return nil, fmt.Errorf("ONBUILD %s: %w", expr, err)
			}
			for _, name := range sourcesOf(cmd) {
				if _, ok := r.file.stageBefore(0, name, false); ok {
					return nil, fmt.Errorf("ONBUILD %s: %w: --from of a stage", expr, ErrUnsupported)
				}
			}
			out = append(out, cmd)
		}
	}
	st.config.Config.OnBuild = nil
	return out, nil
}

// begin tells the progress of a step and returns its number.
func (r *run) begin(name string) int {
	r.step++
	r.req.Progress.Start(r.step, r.total, name)
	return r.step
}

// step applies instructions to a stage.
type step struct {
	*run
	*stage
	index int
}

// env is what expansion sees: ENV wins over ARG.
func (s *step) env() []string {
	env := append([]string{}, s.args...)
	for _, e := range s.config.Config.Env {
		k, v, _ := strings.Cut(e, "=")
		env = setEnv(env, k, v)
	}
	return env
}

func (s *step) dispatch(ctx context.Context, cmd instructions.Command) error {
	env := shell.EnvsFromSlice(s.env())
	expand := func(word string) (string, error) {
		v, _, err := s.file.lex.ProcessWord(word, env)
		return v, err
	}
	if c, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		if err := c.Expand(expand); err != nil {
			return err
		}
	}
	if c, ok := cmd.(instructions.SupportsSingleWordExpansionRaw); ok {
		raw := shell.NewLex(s.file.escape)
		raw.RawQuotes, raw.RawEscapes = true, true
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
			exclude: c.ExcludePatterns, parents: c.Parents,
		})
	case *instructions.AddCommand:
		if c.Checksum != "" || c.KeepGitDir != nil && *c.KeepGitDir {
			return fmt.Errorf("ADD --checksum, --keep-git-dir: %w: remote sources are not fetched", ErrUnsupported)
		}
		return s.copyCommand(ctx, copySpec{
			name: "ADD", text: text, SourcesAndDest: c.SourcesAndDest, chown: c.Chown, chmod: c.Chmod,
			exclude: c.ExcludePatterns, unpack: c.Unpack == nil || *c.Unpack,
		})
	case *instructions.WorkdirCommand:
		return s.workdir(ctx, c, text)
	case *instructions.EnvCommand:
		for _, kv := range c.Env {
			conf.Env = setEnv(conf.Env, kv.Key, kv.Value)
		}
	case *instructions.ArgCommand:
		return s.arg(c, text)
	case *instructions.LabelCommand:
		if conf.Labels == nil {
			conf.Labels = map[string]string{}
		}
		for _, kv := range c.Labels {
			conf.Labels[kv.Key] = kv.Value
		}
	case *instructions.MaintainerCommand:
		s.config.Author = c.Maintainer
	case *instructions.UserCommand:
		conf.User = c.User
	case *instructions.CmdCommand:
		conf.Cmd = s.commandLine(c.ShellDependantCmdLine)
		s.cmdSet = true
	case *instructions.EntrypointCommand:
		conf.Entrypoint = s.commandLine(c.ShellDependantCmdLine)
		if !s.cmdSet {
			conf.Cmd = nil // the base image's command was for its entrypoint
		}
	case *instructions.ShellCommand:
		conf.Shell = c.Shell
	case *instructions.HealthCheckCommand:
		conf.Healthcheck = &v1.HealthConfig{
			Test: c.Health.Test, Interval: c.Health.Interval, Timeout: c.Health.Timeout,
			StartPeriod: c.Health.StartPeriod, Retries: c.Health.Retries,
		}
	case *instructions.OnbuildCommand:
		conf.OnBuild = append(conf.OnBuild, c.Expression)
	case *instructions.StopSignalCommand:
		if _, err := parseSignal(c.Signal); err != nil {
			return err
		}
		conf.StopSignal = c.Signal
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
	case *instructions.ExposeCommand:
		if err := s.expose(c, env); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%s: %w", strings.ToUpper(cmd.Name()), ErrUnsupported)
	}
	s.addHistory(text, true)
	return nil
}

func (s *step) addHistory(text string, empty bool) {
	s.history = append(s.history, v1.History{
		Created: v1.Time{Time: s.created.UTC()}, CreatedBy: text, EmptyLayer: empty,
	})
	if s.created.IsZero() {
		s.history[len(s.history)-1].Created = v1.Time{}
	}
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

func (s *step) arg(c *instructions.ArgCommand, text string) error {
	for _, a := range c.Args {
		value, given := s.req.Args[a.Key]
		if given {
			s.usedArgs[a.Key] = true
		} else if a.Value != nil {
			value, given = *a.Value, true
		} else {
			value, given = s.globals[a.Key]
		}
		if given {
			s.args = setEnv(s.args, a.Key, value)
		}
	}
	s.addHistory(text, true)
	return nil
}

func (s *step) expose(c *instructions.ExposeCommand, env shell.EnvGetter) error {
	for _, word := range c.Ports {
		words, err := s.file.lex.ProcessWords(word, env)
		if err != nil {
			return err
		}
		for _, spec := range words {
			ports, err := parsePorts(spec)
			if err != nil {
				return err
			}
			for _, p := range ports {
				if s.config.Config.ExposedPorts == nil {
					s.config.Config.ExposedPorts = map[string]struct{}{}
				}
				s.config.Config.ExposedPorts[p] = struct{}{}
			}
		}
	}
	return nil
}

// parsePorts reads "80", "80/udp", "8000-8010/tcp".
func parsePorts(spec string) ([]string, error) {
	rng, proto, ok := strings.Cut(spec, "/")
	if !ok {
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
	cached, err := s.change(ctx, digestOf("workdir", s.chain, dir), text, func(w *writer) error {
		_, err := w.mkdirAll(dir)
		return err
	})
	s.req.Progress.Done(n, cached, err)
	return err
}
