package build

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"skiff/internal/runtime/image"
)

// dockerfile is a parsed Dockerfile.
type dockerfile struct {
	name   string
	source []byte
	escape rune
	lex    *shell.Lex
	stages []instructions.Stage
	args   []instructions.ArgCommand // before the first FROM
	lint   *linter.Linter
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
	if err := f.checkSyntax(); err != nil {
		return nil, err
	}
	ast, err := parser.Parse(bytes.NewReader(f.source))
	if err != nil {
		return nil, f.parseError(err)
	}
	for _, w := range ast.Warnings {
		if w.URL != linter.RuleNoEmptyContinuation.URL { // a check; see lint.go
			line := 0
			if w.Location != nil {
				line = w.Location.Start.Line
			}
			req.progress().Warn(f.name, line, w.Short)
		}
	}
	if f.lint, err = newLinter(req, f.name, f.source); err != nil {
		return nil, err
	}
	if f.stages, f.args, err = instructions.Parse(ast.AST, f.lint); err != nil {
		return nil, f.parseError(err)
	}
	if len(f.stages) == 0 {
		return nil, &Error{File: f.name, Err: errors.New("file with no instructions: no build stage (FROM)")}
	}
	f.escape, f.lex = ast.EscapeToken, shell.NewLex(ast.EscapeToken)
	return f, nil
}

// checkSyntax refuses a frontend that is another program: the language here is
// that of docker/dockerfile, of whatever version.
func (f *dockerfile) checkSyntax() error {
	ref, _, location, ok := parser.DetectSyntax(f.source)
	if !ok {
		return nil
	}
	name, err := image.ParseName(ref)
	if err == nil && name.Domain == "docker.io" && (name.Path == "docker/dockerfile" || name.Path == "docker/dockerfile-upstream") {
		return nil
	}
	return f.at(location, fmt.Errorf("syntax=%s: frontends other than docker/dockerfile: %w", ref, ErrUnsupported))
}

// stageName is how messages call stage i.
func (f *dockerfile) stageName(i int) string {
	if name := f.stages[i].Name; name != "" {
		return name
	}
	return fmt.Sprintf("stage-%d", i)
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
