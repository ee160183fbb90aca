package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/patternmatcher"

	"skiff/internal/runtime/image"
)

// copySpec is a COPY or ADD after expansion.
type copySpec struct {
	instructions.SourcesAndDest
	name, text    string // COPY or ADD; the whole instruction
	from          string
	chown, chmod  string
	exclude       []string
	parents, link bool
	// unpack says whether archives are unpacked; nil is the rule of ADD: local
	// ones are.
	unpack     *bool
	checksum   string
	keepGitDir *bool
}

// open returns the tree that an instruction copies from.
func (s *step) open(ctx context.Context, from string) (*tree, error) {
	if from == "" {
		return s.contextTree()
	}
	img, dir, err := s.sourceOf(ctx, from)
	if err != nil {
		return nil, err
	}
	if dir != "" {
		return s.dirTree(dir)
	}
	chain := chainOf(img.DiffIDs)
	if root := s.viewed(chain); root != nil {
		return &tree{root: fdPath(root), owners: true}, nil
	}
	rootfs, done, err := s.b.deps.Snapshots.View(ctx, img)
	if err != nil {
		return nil, err
	}
	f, err := rootfs.Open()
	if err != nil {
		done()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.views = append(s.views, view{chain: chain, root: f, done: done})
	return &tree{root: fdPath(f), owners: true}, nil
}

// viewed is the root of a view that the build has of these layers already; nil where it
// has none.
func (r *run) viewed(chain string) *os.File {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.IndexFunc(r.views, func(v view) bool { return v.chain == chain }); i >= 0 {
		return r.views[i].root
	}
	return nil
}

// sourceOf is the stage, image or directory that --from names.
func (s *step) sourceOf(ctx context.Context, from string) (*image.Image, string, error) {
	if k, ok := s.file.stageBefore(s.index, from, true); ok {
		return s.stages[k].image(), "", nil
	}
	name := from
	if source, ok := s.namedContext(from); ok {
		ref, dir, err := contextSource(source)
		if err != nil || dir != "" {
			return nil, dir, err
		}
		name = ref
	}
	if name == "scratch" {
		return scratch(s.platform).image(), "", nil
	}
	img, err := s.baseImage(ctx, name, nil)
	return img, "", err
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func (s *step) copyCommand(ctx context.Context, c copySpec) error {
	n := s.begin(c.text)
	cached, err := s.copyFiles(ctx, c)
	s.end(ctx, n, cached, err)
	return err
}

// check finds what is wrong with an instruction whatever it copies.
func (c *copySpec) check() error {
	if c.link {
		for part := range strings.SplitSeq(c.chown, ":") {
			if _, err := strconv.ParseUint(part, 10, 32); err != nil && part != "" {
				return fmt.Errorf("--chown=%s: user and group names can't be resolved when used with --link, use numeric uid[:gid] instead", c.chown)
			}
		}
	}
	for _, p := range c.SourcePaths {
		switch {
		case c.name == "COPY" && isGit(p):
			return errors.New("source can't be a git ref for COPY")
		case c.name == "COPY" && isHTTP(p):
			return errors.New("source can't be a URL for COPY")
		}
	}
	switch {
	case c.checksum == "":
	case len(c.SourcePaths) != 1:
		return errors.New("checksum can't be specified for multiple sources")
	case !isGit(c.SourcePaths[0]) && !isHTTP(c.SourcePaths[0]):
		return errors.New("checksum requires HTTP(S) or Git sources")
	}
	return nil
}

// find lists what an instruction copies.
func (s *step) find(ctx context.Context, c copySpec) ([]source, error) {
	var exclude *patternmatcher.PatternMatcher
	if len(c.exclude) > 0 {
		var err error
		if exclude, err = patternmatcher.New(c.exclude); err != nil {
			return nil, fmt.Errorf("%s --exclude: %w", c.name, err)
		}
	}
	var out []source
	for _, p := range c.SourcePaths {
		var found []source
		switch {
		case isGit(p):
			src, err := s.gitSource(ctx, p, c, exclude)
			if err != nil {
				return nil, fmt.Errorf("ADD %s: %w", p, err)
			}
			found = []source{*src}
		case isHTTP(p):
			src, err := s.httpSource(ctx, p, c.checksum)
			if err != nil {
				return nil, fmt.Errorf("ADD %s: %w", p, err)
			}
			src.unpack = c.unpack != nil && *c.unpack
			found = []source{*src}
		default:
			t, err := s.open(ctx, c.from)
			if err != nil {
				return nil, err
			}
			if found, err = t.find(ctx, p, exclude, c.parents); err != nil {
				return nil, err
			}
			for i := range found {
				found[i].key = t.digest(found[i])
				found[i].unpack = c.name == "ADD" && (c.unpack == nil || *c.unpack)
			}
			if c.parents {
				keepParents(found, p)
				for i := range found {
					found[i].key = digestOf(found[i].key, found[i].keep)
				}
			}
		}
		out = append(out, found...)
	}
	return out, nil
}

func (s *step) copyFiles(ctx context.Context, c copySpec) (bool, error) {
	mode, err := parseChmod(c.chmod)
	if err == nil {
		err = c.check()
	}
	if err != nil {
		return false, err
	}
	sources, err := s.find(ctx, c)
	if err != nil {
		return false, err
	}
	intoDir := c.parents || strings.HasSuffix(c.DestPath, "/") || path.Base(c.DestPath) == "." || path.Base(c.DestPath) == ".."
	if len(sources)+len(c.SourceContents) > 1 && !intoDir {
		return false, fmt.Errorf("when using %s with more than one source file, the destination must be a directory and end with a /", c.name)
	}
	dest := c.DestPath
	if !path.IsAbs(dest) {
		dest = path.Join("/", s.config.Config.WorkingDir, dest)
	}
	dest = path.Clean(dest)

	on := s.chain
	if c.link {
		on = "link" // whatever is below
	}
	parts := []string{"copy", c.name, on, dest, fmt.Sprint(intoDir), c.chown, c.chmod, fmt.Sprint(c.from != "")}
	for _, src := range sources {
		parts = append(parts, src.key, fmt.Sprint(src.unpack))
	}
	for _, content := range c.SourceContents {
		parts = append(parts, content.Path, content.Data)
	}
	fill := func(w *writer) error {
		cp := &copier{writer: w, ctx: ctx, mode: mode, uid: -1, gid: -1, intoDir: intoDir, chown: c.chown}
		if c.from == "" {
			cp.uid, cp.gid = 0, 0
		}
		if c.chown != "" {
			var err error
			if cp.uid, cp.gid, err = w.owner(c.chown); err != nil {
				return err
			}
		}
		for _, src := range sources {
			if src.fetch != nil {
				if err := src.fetch(ctx, &src); err != nil {
					return fmt.Errorf("ADD %s: %w", src.name, err)
				}
			}
			if err := cp.source(src, dest); err != nil {
				return err
			}
		}
		for _, content := range c.SourceContents {
			if err := cp.content(content, dest); err != nil {
				return err
			}
		}
		return nil
	}
	text := c.historyText()
	if c.link {
		return s.linked(ctx, digestOf(parts...), text, fill)
	}
	return s.change(ctx, digestOf(parts...), text, fill)
}

// wholeContext is the stage that FROM a directory is: its files on nothing.
func (s *step) wholeContext(ctx context.Context, dir string) (bool, error) {
	t, err := s.dirTree(dir)
	if err != nil {
		return false, err
	}
	src, err := t.source(ctx, ".", nil)
	if err != nil {
		return false, err
	}
	return s.change(ctx, digestOf("context", s.chain, t.digest(*src)), "COPY . / # buildkit", func(w *writer) error {
		return (&copier{writer: w, ctx: ctx}).source(*src, "/")
	})
}

// historyText is the instruction as image histories have it.
func (c *copySpec) historyText() string {
	text := c.name
	if c.parents {
		text += " --parents"
	}
	if c.chown != "" {
		text += " --chown=" + c.chown
	}
	if c.chmod != "" {
		text += " --chmod=" + c.chmod
	}
	for _, p := range c.SourcePaths {
		text += " " + p
	}
	for _, content := range c.SourceContents {
		text += " <<" + content.Path
	}
	return text + " " + c.DestPath + " # buildkit"
}

// keepParents gives sources the path that COPY --parents keeps of them: all of
// it, or what comes after "/./" in the pattern.
func keepParents(sources []source, pattern string) {
	pivot := ""
	if before, _, ok := strings.Cut(pattern, "/./"); ok {
		pivot = strings.TrimPrefix(path.Clean("/"+before), "/")
	}
	skip := 0
	if pivot != "" {
		skip = strings.Count(pivot, "/") + 1
	}
	for i := range sources {
		parts := strings.Split(sources[i].name, "/")
		sources[i].keep = path.Join(parts[min(skip, len(parts)):]...)
	}
}
