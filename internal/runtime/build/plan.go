package build

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"skiff/internal/runtime/image"
)

// base is what a stage starts from, and what it does before its own
// instructions.
type base struct {
	stage    int    // an earlier stage; -1 for none
	name     string // as FROM says it, expanded
	image    *image.Image
	dir      string // a directory that --build-context named
	platform platform
	// replaced stages are an image or directory of --build-context; their
	// instructions do not count.
	replaced bool
	triggers []instructions.Command
}

// platformArgs are the ARGs that exist before the first FROM by themselves.
func (r *run) platformArgs() map[string]string {
	stage := r.req.Target
	if stage == "" {
		stage = r.file.stages[len(r.file.stages)-1].Name
	}
	if stage == "" {
		stage = "default"
	}
	out := map[string]string{"TARGETSTAGE": stage}
	for side, p := range map[string]platform{"TARGET": r.platform, "BUILD": machinePlatform()} {
		out[side+"PLATFORM"] = p.String()
		out[side+"OS"] = p.os
		out[side+"OSVERSION"] = ""
		out[side+"ARCH"] = p.arch
		out[side+"VARIANT"] = p.variant
	}
	return out
}

// proxyArgs may be given for RUN without ARG; they do not count for the cache.
var proxyArgs = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

func isProxyArg(name string) bool {
	for _, p := range proxyArgs {
		if strings.EqualFold(p, name) {
			return true
		}
	}
	return false
}

// globalArgs evaluates the ARGs before the first FROM.
func (r *run) globalArgs() (map[string]string, error) {
	vars := r.platformArgs()
	for k := range vars {
		if v, ok := r.req.Args[k]; ok {
			vars[k] = v
		}
	}
	for _, cmd := range r.file.args {
		for _, a := range cmd.Args {
			if v, ok := r.req.Args[a.Key]; ok {
				vars[a.Key] = v
				r.usedArgs[a.Key] = true
			} else if a.Value != nil {
				v, _, err := r.file.lex.ProcessWord(*a.Value, envOf(vars))
				if err != nil {
					return nil, r.file.at(cmd.Location(), err)
				}
				vars[a.Key] = v
			}
		}
	}
	return vars, nil
}

func envOf(vars map[string]string) shell.EnvGetter {
	list := make([]string, 0, len(vars))
	for k, v := range vars {
		list = append(list, k+"="+v)
	}
	return shell.EnvsFromSlice(list)
}

// plan finds which stages the target needs, and their bases and triggers. What a
// stage needs stands before it, so the order is that of the file.
func (r *run) plan(ctx context.Context, target int) error {
	var err error
	if r.globals, err = r.globalArgs(); err != nil {
		return err
	}
	r.bases = make([]base, len(r.file.stages))
	needed := map[int]bool{}
	var mark func(i int) error
	mark = func(i int) error {
		if needed[i] {
			return nil
		}
		needed[i] = true
		r.total += 1
		if err := r.base(i); err != nil {
			return err
		}
		if r.bases[i].replaced {
			return nil
		}
		r.total += countSteps(r.file.stages[i].Commands)
		if k := r.bases[i].stage; k >= 0 {
			if err := mark(k); err != nil {
				return err
			}
		}
		return r.markSources(i, r.file.stages[i].Commands, mark)
	}
	if err := mark(target); err != nil {
		return err
	}
	for i := target; i >= 0; i-- {
		if !needed[i] {
			continue
		}
		if err := r.load(ctx, i); err != nil {
			return err
		}
		r.total += countSteps(r.bases[i].triggers)
		if err := r.markSources(i, r.bases[i].triggers, mark); err != nil {
			return err
		}
	}
	for i := range r.bases {
		if needed[i] {
			r.order = append(r.order, i)
		}
	}
	return nil
}

// markSources marks the stages that instructions of stage i read.
func (r *run) markSources(i int, cmds []instructions.Command, mark func(int) error) error {
	for _, cmd := range cmds {
		for _, from := range sourcesOf(cmd) {
			k, err := r.stageNamed(i, from)
			if err != nil {
				return r.file.at(r.place(i, cmd), err)
			}
			if k < 0 {
				continue
			}
			if err := mark(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// place is where an instruction of stage i stands: a trigger of its base has the
// place of FROM.
func (r *run) place(i int, cmd instructions.Command) []parser.Range {
	if r.triggering[cmd] {
		return r.file.stages[i].Location
	}
	return cmd.Location()
}

// stageNamed is the stage before i that --from means; -1 where it means an image
// or a context.
func (r *run) stageNamed(i int, from string) (int, error) {
	if k, ok := r.file.stageBefore(i, from, true); ok {
		return k, nil
	}
	if n, err := strconv.Atoi(from); err == nil && (n < 0 || n >= len(r.file.stages)) {
		return 0, fmt.Errorf("invalid stage index %d", n)
	}
	if _, ok := r.namedContext(from); ok {
		return -1, nil
	}
	for k := i; k < len(r.file.stages); k++ {
		if name := r.file.stages[k].Name; name != "" && strings.EqualFold(name, from) || strconv.Itoa(k) == from {
			return 0, fmt.Errorf("cannot copy from stage %q, it needs to be defined before current stage %q", from, r.file.stageName(i))
		}
	}
	if word, _, err := r.file.lex.ProcessWord(from, envOf(nil)); err != nil || word != from {
		return 0, errors.New("variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround")
	}
	return -1, nil
}

// base finds what stage i starts from, as far as the file and the request say.
func (r *run) base(i int) error {
	st := r.file.stages[i]
	b := &r.bases[i]
	*b = base{stage: -1, platform: r.platform}
	word := func(w string) (string, error) {
		v, _, err := r.file.lex.ProcessWord(w, envOf(r.globals))
		return v, err
	}
	var err error
	if b.name, err = word(st.BaseName); err == nil && b.name == "" {
		err = fmt.Errorf("base name (%s) should not be blank", st.BaseName)
	}
	if err != nil {
		return r.file.at(st.Location, err)
	}
	if st.Platform != "" {
		p, err := word(st.Platform)
		if err == nil && p == "" {
			err = fmt.Errorf("empty platform value from expression %s", st.Platform)
		}
		if err == nil {
			b.platform, err = parsePlatform(p)
		}
		if err != nil {
			return r.file.at(st.Location, err)
		}
	}
	if b.platform.os != "linux" {
		return r.file.at(st.Location, fmt.Errorf("platform %q: %w: only linux images are built", b.platform, ErrUnsupported))
	}
	source, named := "", false
	if st.Name != "" {
		source, named = r.namedContext(st.Name)
		b.replaced = named
	}
	if !named {
		if k, ok := r.file.stageBefore(i, b.name, false); ok {
			b.stage = k
			return nil
		}
		source, named = r.namedContext(b.name)
	}
	if !named {
		return nil
	}
	if b.name, b.dir, err = contextSource(source); err != nil {
		return r.file.at(st.Location, err)
	}
	return nil
}

// namedContext is what --build-context gives for a name; "scratch" and "context"
// have their meaning.
func (r *run) namedContext(name string) (string, bool) {
	if strings.EqualFold(name, "scratch") || strings.EqualFold(name, "context") {
		return "", false
	}
	n, err := image.ParseName(name)
	for k, v := range r.req.Contexts {
		if strings.EqualFold(k, name) {
			return v, true
		}
		// A context for an image counts however FROM spells its name.
		if kn, kerr := image.ParseName(k); err == nil && kerr == nil && kn == n {
			return v, true
		}
	}
	return "", false
}

// contextSource reads the value of a --build-context: an image, or a directory.
func contextSource(v string) (name, dir string, err error) {
	if ref, ok := strings.CutPrefix(v, "docker-image://"); ok {
		return ref, "", nil
	}
	if kind, _, ok := strings.Cut(v, "://"); ok {
		return "", "", fmt.Errorf("build context %q: %s: %w: give a directory, or docker-image://NAME", v, kind, ErrUnsupported)
	}
	if !filepath.IsAbs(v) {
		return "", "", fmt.Errorf("build context %q: must be an absolute path", v)
	}
	return v, v, nil
}

// load finds the image that stage i starts from, and the triggers of its base.
func (r *run) load(ctx context.Context, i int) error {
	def, b := r.file.stages[i], &r.bases[i]
	var exprs []string
	switch {
	case b.stage >= 0:
		for _, cmd := range r.file.stages[b.stage].Commands {
			if c, ok := cmd.(*instructions.OnbuildCommand); ok && !r.bases[b.stage].replaced {
				exprs = append(exprs, c.Expression)
			}
		}
	case b.name == "scratch" || b.dir != "":
		return nil
	default:
		n := r.begin("FROM " + b.name)
		var want *platform
		if def.Platform != "" || r.req.Platform != "" {
			want = &b.platform
		}
		img, err := r.baseImage(ctx, b.name, want)
		if err == nil {
			b.platform = platformOf(img.Config)
		}
		r.end(ctx, n, false, err)
		if err != nil {
			return r.file.at(def.Location, fmt.Errorf("%s: %w", b.name, err))
		}
		b.image, exprs = img, img.Config.Config.OnBuild
	}
	if b.replaced {
		return nil
	}
	for _, expr := range exprs {
		cmd, err := parseTrigger(expr)
		if err != nil {
			return r.file.at(def.Location, fmt.Errorf("ONBUILD %s: %w", expr, err))
		}
		r.triggering[cmd] = true
		b.triggers = append(b.triggers, cmd)
	}
	return nil
}

func parseTrigger(expr string) (instructions.Command, error) {
	ast, err := parser.Parse(strings.NewReader(expr))
	if err != nil {
		return nil, err
	}
	if len(ast.AST.Children) != 1 {
		return nil, errors.New("onbuild trigger should be a single expression")
	}
	// Comments may ask for checks: there must be a linter to hear of it.
	v, err := instructions.ParseInstructionWithLinter(ast.AST.Children[0], linter.New(&linter.Config{}))
	if err != nil {
		return nil, err
	}
	cmd, ok := v.(instructions.Command)
	if !ok {
		return nil, errors.New("FROM isn't allowed as an ONBUILD trigger")
	}
	return cmd, nil
}

// sourcesOf are the stages or images that an instruction reads.
func sourcesOf(cmd instructions.Command) []string {
	var out []string
	switch c := cmd.(type) {
	case *instructions.CopyCommand:
		if c.From != "" {
			out = append(out, c.From)
		}
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(c) {
			if m.From != "" {
				out = append(out, m.From)
			}
		}
	}
	return out
}

// countSteps counts the instructions that progress shows.
func countSteps(cmds []instructions.Command) int {
	n := 0
	for _, c := range cmds {
		switch c.(type) {
		case *instructions.RunCommand, *instructions.CopyCommand, *instructions.AddCommand, *instructions.WorkdirCommand:
			n++
		}
	}
	return n
}
