package build

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// dockerfile is a parsed Dockerfile.
type dockerfile struct {
	name   string
	source []byte
	escape rune
	lex    *shell.Lex
	stages []instructions.Stage
	args   []instructions.ArgCommand // before the first FROM
}

func readDockerfile(req Request) (*dockerfile, error) {
	f := &dockerfile{name: req.Dockerfile, source: req.Content}
	if f.name == "" {
		f.name = "Dockerfile"
	}
	if f.source == nil {
		path := f.name
		if !filepath.IsAbs(path) {
			path = filepath.Join(req.Context, path)
		}
		var err error
		if f.source, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("failed to read dockerfile: %w", err)
		}
	}
	ast, err := parser.Parse(bytes.NewReader(f.source))
	if err != nil {
		return nil, f.parseError(err)
	}
	for _, w := range ast.Warnings {
		line := 0
		if w.Location != nil {
			line = w.Location.Start.Line
		}
		req.progress().Warn(f.name, line, w.Short)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, _, _, msg string, location []parser.Range) {
		req.progress().Warn(f.name, firstLine(location), rule+": "+msg)
	}})
	if f.stages, f.args, err = instructions.Parse(ast.AST, lint); err != nil {
		return nil, f.parseError(err)
	}
	if len(f.stages) == 0 {
		return nil, &Error{File: f.name, Err: errors.New("file with no instructions: no build stage (FROM)")}
	}
	f.escape, f.lex = ast.EscapeToken, shell.NewLex(ast.EscapeToken)
	return f, nil
}

func (r Request) progress() Progress {
	if r.Progress == nil {
		return silent{}
	}
	return r.Progress
}

func firstLine(location []parser.Range) int {
	if len(location) == 0 {
		return 0
	}
	return location[0].Start.Line
}

func (f *dockerfile) parseError(err error) error {
	var le *parser.LocationError
	if errors.As(err, &le) && len(le.Locations) > 0 {
		return f.at(le.Locations[0], err)
	}
	return &Error{File: f.name, Err: err}
}

// at is err as of an instruction's place.
func (f *dockerfile) at(location []parser.Range, err error) error {
	var e *Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	line := firstLine(location)
	last := line
	for _, l := range location {
		last = max(last, l.End.Line)
	}
	return &Error{File: f.name, Line: line, Excerpt: f.excerpt(line, last), Err: err}
}

// excerpt shows lines first to last, marked, with two around.
func (f *dockerfile) excerpt(first, last int) string {
	if first == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSuffix(string(f.source), "\n"), "\n")
	const rule = "--------------------\n"
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d\n%s", f.name, first, rule)
	for n := max(first-2, 1); n <= min(last+2, len(lines)); n++ {
		mark := "   "
		if n >= first && n <= last {
			mark = ">>>"
		}
		fmt.Fprintf(&b, "%4d | %s %s\n", n, mark, strings.TrimSuffix(lines[n-1], "\r"))
	}
	return b.String() + rule
}

// target finds the stage to build.
func (f *dockerfile) target(name string) (int, error) {
	if name == "" {
		return len(f.stages) - 1, nil
	}
	if i, ok := instructions.HasStage(f.stages, name); ok {
		return i, nil
	}
	if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(f.stages) {
		return i, nil
	}
	return 0, &Error{File: f.name, Err: fmt.Errorf("target stage %q could not be found", name)}
}

// stageBefore finds the stage that name means to stage i: an earlier one, by
// name, or with numbers also by its number.
func (f *dockerfile) stageBefore(i int, name string, numbers bool) (int, bool) {
	for k := i - 1; k >= 0; k-- { // the latest of that name
		if f.stages[k].Name != "" && strings.EqualFold(f.stages[k].Name, name) {
			return k, true
		}
	}
	if k, err := strconv.Atoi(name); numbers && err == nil && k >= 0 && k < i {
		return k, true
	}
	return 0, false
}

// platformArgs are the ARGs that exist before the first FROM by themselves.
func platformArgs() map[string]string {
	out := map[string]string{}
	for _, side := range []string{"TARGET", "BUILD"} {
		out[side+"PLATFORM"] = "linux/" + runtime.GOARCH
		out[side+"OS"] = "linux"
		out[side+"ARCH"] = runtime.GOARCH
		out[side+"VARIANT"] = ""
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
	vars := platformArgs()
	for k := range vars {
		if v, ok := r.req.Args[k]; ok {
			vars[k] = v
		}
	}
	for _, cmd := range r.file.args {
		for _, a := range cmd.Args {
			env := envOf(vars)
			name, _, err := r.file.lex.ProcessWord(a.Key, env)
			if err != nil {
				return nil, r.file.at(cmd.Location(), err)
			}
			if v, ok := r.req.Args[name]; ok {
				vars[name] = v
				r.usedArgs[name] = true
			} else if a.Value != nil {
				v, _, err := r.file.lex.ProcessWord(*a.Value, env)
				if err != nil {
					return nil, r.file.at(cmd.Location(), err)
				}
				vars[name] = v
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

// plan finds which stages the target needs and sets r.order.
func (r *run) plan(target int) error {
	var err error
	if r.globals, err = r.globalArgs(); err != nil {
		return err
	}
	r.bases = make([]base, len(r.file.stages))
	seen := map[int]bool{}
	var visit func(i int) error
	visit = func(i int) error {
		if seen[i] {
			return nil
		}
		seen[i] = true
		needs, err := r.needs(i)
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		r.order = append(r.order, i)
		return nil
	}
	if err := visit(target); err != nil {
		return err
	}
	for _, i := range r.order {
		r.total += 1 + countSteps(r.file.stages[i].Commands)
	}
	return nil
}

// base is what a stage starts from.
type base struct {
	stage int // -1 for an image
	name  string
}

// needs returns the stages that stage i needs and sets its base.
func (r *run) needs(i int) ([]int, error) {
	st := r.file.stages[i]
	word := func(w string) (string, error) {
		v, _, err := r.file.lex.ProcessWord(w, envOf(r.globals))
		return v, err
	}
	name, err := word(st.BaseName)
	if err == nil && name == "" {
		err = fmt.Errorf("base name (%s) should not be blank", st.BaseName)
	}
	if err != nil {
		return nil, r.file.at(st.Location, err)
	}
	platform, err := word(st.Platform)
	if err != nil {
		return nil, r.file.at(st.Location, err)
	}
	if platform != "" && platform != "linux/"+runtime.GOARCH {
		return nil, r.file.at(st.Location, fmt.Errorf("platform %q: %w: this machine builds linux/%s", platform, ErrUnsupported, runtime.GOARCH))
	}
	var needs []int
	r.bases[i] = base{-1, name}
	if k, ok := r.file.stageBefore(i, name, false); ok {
		r.bases[i] = base{k, name}
		needs = append(needs, k)
	}
	for _, cmd := range st.Commands {
		for _, from := range sourcesOf(cmd) {
			if k, ok := r.file.stageBefore(i, from, true); ok {
				needs = append(needs, k)
			}
		}
	}
	return needs, nil
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
		if isStep(c) {
			n++
		}
	}
	return n
}

// isStep tells whether an instruction changes files.
func isStep(c instructions.Command) bool {
	switch c.(type) {
	case *instructions.RunCommand, *instructions.CopyCommand, *instructions.AddCommand, *instructions.WorkdirCommand:
		return true
	}
	return false
}
