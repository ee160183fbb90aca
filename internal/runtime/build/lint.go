package build

import (
	"bytes"
	"context"
	"errors"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/util/suggest"

	"skiff/internal/runtime/image"
)

// checker applies BuildKit's build checks. The rules and their words are those of
// its linter package, which itself applies only some of them.
type checker struct {
	*run
	lint *linter.Linter
}

// newLinter has the rules that the file's check directive, or the build argument
// for it, leaves on.
func newLinter(req Request, name string, source []byte) (*linter.Linter, error) {
	option, given := req.Args[argCheck]
	var location []parser.Range
	if !given {
		option, _, location, _ = parser.ParseDirective("check", source)
	}
	conf, err := linter.ParseLintOptions(option)
	if err != nil {
		return nil, &Error{File: name, Line: firstLine(location), Err: err}
	}
	conf.Warn = func(rule, _, _, msg string, location []parser.Range) {
		req.progress().Warn(name, firstLine(location), rule+": "+msg)
	}
	return linter.New(conf), nil
}

// Check applies the build checks to all stages, or to those that the target
// needs: what they find is a warning of req.Progress, and an error where the
// Dockerfile asks for that. Nothing is built or pulled.
func (b *Builder) Check(ctx context.Context, req Request) error {
	if req.Progress == nil {
		req.Progress = silent{}
	}
	r, err := b.start(req)
	if err != nil {
		return err
	}
	defer r.lease.Release()
	defer r.close()
	target, err := r.file.target(req.Target)
	if err != nil {
		return err
	}
	if r.globals, err = r.globalArgs(); err != nil {
		return err
	}
	r.bases = make([]base, len(r.file.stages))
	for i := range r.file.stages {
		if err := r.base(i); err != nil {
			return err
		}
		if bs := &r.bases[i]; bs.stage < 0 && bs.dir == "" && bs.name != "scratch" {
			img, err := b.deps.Images.Resolve(ctx, bs.name)
			if err == nil {
				bs.image = img
			} else if !errors.Is(err, image.ErrNotFound) {
				return r.file.at(r.file.stages[i].Location, err)
			}
		}
		if req.Target == "" || i <= target {
			r.order = append(r.order, i)
		}
	}
	return r.check()
}

// check finds what is doubtful in the file; r.bases and r.order are known.
func (r *run) check() error {
	c := &checker{run: r, lint: r.file.lint}
	// A copy, whose words are expanded.
	ast, err := parser.Parse(bytes.NewReader(r.file.source))
	if err != nil {
		return r.file.parseError(err)
	}
	stages, _, err := instructions.Parse(ast.AST, linter.New(&linter.Config{}))
	if err != nil {
		return r.file.parseError(err)
	}
	for _, w := range ast.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL && w.Location != nil {
			c.lint.Run(&linter.RuleNoEmptyContinuation, []parser.Range{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	c.names(stages)
	c.casing(stages)
	c.defaultBases(stages)
	for _, st := range stages {
		c.from(st)
	}
	states := make([]*lintState, len(stages))
	for _, i := range r.order {
		states[i] = c.stage(i, stages[i], states)
	}
	if err := c.lint.Error(); err != nil {
		return &Error{File: r.file.name, Err: err}
	}
	return nil
}

func (c *checker) names(stages []instructions.Stage) {
	seen := map[string]bool{}
	for _, st := range stages {
		if st.Name == "scratch" || st.Name == "context" {
			c.lint.Run(&linter.RuleReservedStageName, st.Location, linter.RuleReservedStageName.Format(st.Name))
		}
		if st.Name != "" && seen[st.Name] {
			c.lint.Run(&linter.RuleDuplicateStageName, st.Location, linter.RuleDuplicateStageName.Format(st.Name))
		}
		seen[st.Name] = true
	}
}

// casing wants all instructions as most of them are.
func (c *checker) casing(stages []instructions.Stage) {
	type word struct {
		text string
		at   []parser.Range
	}
	var words []word
	for _, st := range stages {
		words = append(words, word{st.OrigCmd, st.Location})
		for _, cmd := range st.Commands {
			words = append(words, word{cmd.Name(), cmd.Location()})
		}
	}
	lower, upper := 0, 0
	for _, w := range words {
		switch w.text {
		case strings.ToLower(w.text):
			lower++
		case strings.ToUpper(w.text):
			upper++
		}
	}
	for _, w := range words {
		want, name := strings.ToUpper(w.text), "uppercase"
		if lower > upper {
			want, name = strings.ToLower(w.text), "lowercase"
		}
		if w.text != want {
			c.lint.Run(&linter.RuleConsistentInstructionCasing, w.at, linter.RuleConsistentInstructionCasing.Format(w.text, name))
		}
	}
}

// defaultBases wants base names that stand without build arguments too.
func (c *checker) defaultBases(stages []instructions.Stage) {
	bare := &run{req: c.req, file: c.file, platform: c.platform, usedArgs: map[string]bool{}}
	bare.req.Args = nil
	vars, err := bare.globalArgs()
	if err != nil {
		return // its default is an error, which the build tells
	}
	for i, st := range stages {
		name, _, err := c.file.lex.ProcessWord(st.BaseName, envOf(vars))
		if err != nil {
			continue
		}
		if _, ok := c.file.stageBefore(i, name, false); ok || name == "scratch" {
			continue
		}
		if _, err := image.ParseName(name); err != nil {
			c.lint.WithMergedConfigFromComments(st.Comments).Run(&linter.RuleInvalidDefaultArgInFrom, st.Location, linter.RuleInvalidDefaultArgInFrom.Format(st.BaseName))
		}
	}
}

// from checks FROM's variables and its platform.
func (c *checker) from(st instructions.Stage) {
	lint := c.lint.WithMergedConfigFromComments(st.Comments)
	declared := map[string]bool{}
	for name := range c.globals {
		declared[name] = true
	}
	for _, cmd := range c.file.args {
		for _, a := range cmd.Args {
			declared[a.Key] = true
		}
	}
	undeclared := func(unmatched map[string]struct{}) {
		for name := range unmatched {
			if declared[name] {
				continue
			}
			near, _ := suggest.Search(name, keysOf(declared), true)
			lint.Run(&linter.RuleUndefinedArgInFrom, st.Location, linter.RuleUndefinedArgInFrom.Format(name, near))
		}
	}
	name, err := c.file.lex.ProcessWordWithMatches(st.BaseName, envOf(c.globals))
	if err != nil {
		return
	}
	undeclared(name.Unmatched)
	if st.Platform == "" {
		return
	}
	p, err := c.file.lex.ProcessWordWithMatches(st.Platform, envOf(c.globals))
	if err != nil {
		return
	}
	undeclared(p.Unmatched)
	if _, ok := p.Matched["TARGETPLATFORM"]; ok && len(p.Matched) == 1 && len(p.Unmatched) == 0 && p.Result == c.globals["TARGETPLATFORM"] {
		lint.Run(&linter.RuleRedundantTargetPlatform, st.Location, linter.RuleRedundantTargetPlatform.Format(st.Platform))
	}
	if len(p.Matched)+len(p.Unmatched) > 0 {
		return
	}
	parsed, err := parsePlatform(p.Result)
	if err == nil && !strings.Contains(st.Name, parsed.os) && !strings.Contains(st.Name, parsed.arch) {
		lint.Run(&linter.RuleFromPlatformFlagConstDisallowed, st.Location, linter.RuleFromPlatformFlagConstDisallowed.Format(p.Result))
	}
}

func keysOf(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// lintState is what a stage's instructions have set.
type lintState struct {
	vars    []string
	args    map[string]bool
	unknown bool // the base's environment is not known
	shell   bool
	workdir bool
	once    map[string][]parser.Range // of CMD, ENTRYPOINT, HEALTHCHECK
}

// stage checks the instructions of stage i.
func (c *checker) stage(i int, st instructions.Stage, done []*lintState) *lintState {
	s := &lintState{args: map[string]bool{}, once: map[string][]parser.Range{}}
	b := c.bases[i]
	switch {
	case b.stage >= 0 && done[b.stage] != nil:
		base := done[b.stage]
		s.vars, s.unknown, s.shell, s.workdir = slices.Clone(base.vars), base.unknown, base.shell, base.workdir
		for k := range base.args {
			s.args[k] = true
		}
	case b.image != nil:
		conf := b.image.Config
		s.vars, s.shell = slices.Clone(conf.Config.Env), len(conf.Config.Shell) > 0
		have := platformOf(conf)
		want := c.platform
		if st.Platform != "" {
			want = b.platform
		}
		if conf.Architecture != "" && !have.same(want) {
			c.lint.Run(&linter.RuleInvalidBaseImagePlatform, st.Location, linter.RuleInvalidBaseImagePlatform.Format(b.name, want.String(), have.String()))
		}
	case b.name != "scratch" && b.dir == "":
		s.unknown = true
	}
	if _, ok := lookupEnv(s.vars, "PATH"); !ok {
		s.vars = append(s.vars, "PATH="+defaultPath)
	}
	if b.replaced {
		return s
	}
	for _, cmd := range st.Commands {
		c.command(s, cmd)
	}
	return s
}

func (c *checker) command(s *lintState, cmd instructions.Command) {
	lint, at := c.lint.WithMergedConfigFromComments(cmd.Comments()), cmd.Location()
	undefined := func(unmatched map[string]struct{}) {
		for name := range unmatched {
			if s.args[name] || s.unknown {
				continue
			}
			near, _ := suggest.Search(name, shell.EnvsFromSlice(s.vars).Keys(), true)
			lint.Run(&linter.RuleUndefinedVar, at, linter.RuleUndefinedVar.Format(name, near))
		}
	}
	expand := func(w string) (string, error) {
		v, unmatched, err := c.file.lex.ProcessWord(w, shell.EnvsFromSlice(s.vars))
		undefined(unmatched)
		return v, err
	}
	_, isArg := cmd.(*instructions.ArgCommand)
	if e, ok := cmd.(instructions.SupportsSingleWordExpansion); ok && !isArg {
		if e.Expand(expand) != nil {
			return // the build tells
		}
	}
	secret := func(kind, name string) {
		if secretName.MatchString(name) && !harmlessName.MatchString(name) {
			lint.Run(&linter.RuleSecretsUsedInArgOrEnv, at, linter.RuleSecretsUsedInArgOrEnv.Format(kind, name))
		}
	}
	legacy := func(kvs instructions.KeyValuePairs) {
		for _, kv := range kvs {
			if kv.NoDelim {
				lint.Run(&linter.RuleLegacyKeyValueFormat, at, linter.RuleLegacyKeyValueFormat.Format(cmd.Name()))
			}
		}
	}
	once := func() {
		if before := s.once[cmd.Name()]; before != nil {
			lint.Run(&linter.RuleMultipleInstructionsDisallowed, before, linter.RuleMultipleInstructionsDisallowed.Format(cmd.Name()))
		}
		s.once[cmd.Name()] = at
	}
	exec := func(prepend bool) {
		once()
		if prepend && !s.shell {
			lint.Run(&linter.RuleJSONArgsRecommended, at, linter.RuleJSONArgsRecommended.Format(cmd.Name()))
		}
	}
	switch cmd := cmd.(type) {
	case *instructions.ArgCommand:
		for _, a := range cmd.Args {
			secret("ARG", a.Key)
			value, given := c.req.Args[a.Key]
			if !given && a.Value != nil {
				v, err := expand(*a.Value)
				value, given = v, err == nil
			} else if !given {
				value, given = c.globals[a.Key]
			}
			if given {
				s.vars = setEnv(s.vars, a.Key, value)
			}
			s.args[a.Key] = true
		}
	case *instructions.EnvCommand:
		legacy(cmd.Env)
		for _, kv := range cmd.Env {
			secret("ENV", kv.Key)
			s.vars = setEnv(s.vars, kv.Key, kv.Value)
		}
	case *instructions.LabelCommand:
		legacy(cmd.Labels)
	case *instructions.ShellCommand:
		s.shell = true
	case *instructions.WorkdirCommand:
		if !s.workdir && !path.IsAbs(cmd.Path) {
			lint.Run(&linter.RuleWorkdirRelativePath, at, linter.RuleWorkdirRelativePath.Format(cmd.Path))
		}
		s.workdir = true
	case *instructions.CmdCommand:
		exec(cmd.PrependShell)
	case *instructions.EntrypointCommand:
		exec(cmd.PrependShell)
	case *instructions.HealthCheckCommand:
		once()
	case *instructions.ExposeCommand:
		for _, word := range cmd.Ports {
			if v, err := expand(word); err == nil {
				c.port(lint, at, v)
			}
		}
	case *instructions.CopyCommand:
		if cmd.From == "" {
			c.ignored(lint, at, "Copy", cmd.SourcePaths)
		}
	case *instructions.AddCommand:
		c.ignored(lint, at, "Add", cmd.SourcePaths)
	}
}

// Names of variables that look like secrets, and what makes them harmless:
// whole words between underscores.
var (
	secretName   = regexp.MustCompile(`(?i)(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)`)
	harmlessName = regexp.MustCompile(`(?i)(?:_|^)(?:public|file|version)(?:_|$)`)
)

func (c *checker) port(lint *linter.Linter, at []parser.Range, spec string) {
	_, proto, _ := strings.Cut(spec, "/")
	if proto != strings.ToLower(proto) {
		lint.Run(&linter.RuleExposeProtoCasing, at, linter.RuleExposeProtoCasing.Format(spec))
	}
	if strings.Contains(spec, ":") {
		lint.Run(&linter.RuleExposeInvalidFormat, at, linter.RuleExposeInvalidFormat.Format(spec))
	}
}

// ignored finds sources that .dockerignore leaves out; with exceptions in it,
// nothing can be said.
func (c *checker) ignored(lint *linter.Linter, at []parser.Range, what string, sources []string) {
	if c.req.Context == "" {
		return
	}
	t, err := c.contextTree()
	if err != nil || t.ignore == nil || t.ignore.Exclusions() {
		return
	}
	for _, src := range sources {
		if isGit(src) || isHTTP(src) {
			continue
		}
		name := path.Clean(src)
		if name == "." || name == "/" {
			all := slices.ContainsFunc([]string{"*", "**", "**/*"}, func(p string) bool {
				for _, have := range t.ignore.Patterns() {
					if have.String() == p {
						return true
					}
				}
				return false
			})
			if !all {
				continue
			}
		}
		if skip, err := t.ignore.MatchesOrParentMatches(strings.TrimPrefix(name, "/")); err == nil && skip {
			lint.Run(&linter.RuleCopyIgnoredFile, at, linter.RuleCopyIgnoredFile.Format(what, name))
		}
	}
}
