package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// tree is what COPY and ADD read from: the build context or a root file system.
// Links lead nowhere outside it.
type tree struct {
	root   string
	ignore *patternmatcher.PatternMatcher // of .dockerignore; nil for none
	owners bool                           // whether owners are copied
	sums   *sums                          // of files that may be read again; nil for none
}

// contextTree opens the build context.
func (r *run) contextTree() (*tree, error) {
	if r.req.Context == "" {
		return nil, errors.New("there is no build context to copy from")
	}
	return r.dirTree(r.req.Context)
}

// contextDir is a directory that is a context, with what its .dockerignore says.
type contextDir struct{ ignore []string }

// dirTree opens a directory with its .dockerignore.
func (r *run) dirTree(dir string) (*tree, error) {
	r.mu.Lock()
	c := r.contexts[dir]
	r.mu.Unlock()
	if c == nil {
		var err error
		if c, err = r.readContext(dir); err != nil {
			return nil, err
		}
		r.mu.Lock()
		r.contexts[dir] = c
		r.mu.Unlock()
	}
	t := &tree{root: dir, sums: r.b.sums}
	if len(c.ignore) > 0 {
		// A matcher is one goroutine's: it compiles its patterns as it goes.
		var err error
		if t.ignore, err = patternmatcher.New(c.ignore); err != nil {
			return nil, fmt.Errorf(".dockerignore: %w", err)
		}
	}
	return t, nil
}

// readContext reads the .dockerignore of a directory; the main context may have one
// that belongs to the Dockerfile.
func (r *run) readContext(dir string) (*contextDir, error) {
	fi, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("build context: %w", err)
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("build context: %s is not a directory", dir)
	}
	names := []string{filepath.Join(dir, ".dockerignore")}
	if dir == r.req.Context {
		own := r.file.name + ".dockerignore"
		if !filepath.IsAbs(own) {
			own = filepath.Join(dir, own)
		}
		names = append([]string{own}, names...)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		patterns, err := ignorefile.ReadAll(f)
		f.Close()
		if err == nil {
			_, err = patternmatcher.New(patterns)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
		return &contextDir{ignore: patterns}, nil
	}
	return &contextDir{}, nil
}

// source is a file or directory that is copied.
type source struct {
	name  string // as given or matched, clean, relative to the tree; "." is its root
	keep  string // the path below the destination; "" for the ordinary rules
	dir   bool
	files []file // of a directory: its content, parents first; of a file: itself
	key   string // what of it counts for the cache
	// unpack tells that it is unpacked if it is an archive.
	unpack bool
	// fetch brings the files of a remote source, when they are needed.
	fetch func(context.Context, *source) error
}

// file is one file of a source.
type file struct {
	rel  string // relative to the source
	full string
	info fs.FileInfo
	link string // of a symbolic link
	sum  string // digest of a regular file's content
}

// errNoSource is for a source that is not there.
func errNoSource(name string) error {
	return fmt.Errorf("%q: not found, or excluded by .dockerignore", name)
}

// find returns what a source path of an instruction means: itself, or what it
// matches. A pattern may match nothing. With deep, "**" matches any directories.
func (t *tree) find(ctx context.Context, pattern string, exclude *patternmatcher.PatternMatcher, deep bool) ([]source, error) {
	clean := strings.TrimPrefix(path.Clean("/"+filepath.ToSlash(pattern)), "/")
	if clean == "" {
		clean = "."
	}
	names := []string{clean}
	wild := strings.ContainsAny(clean, `*?[\`)
	if wild {
		var err error
		if names, err = t.glob(clean, deep); err != nil {
			return nil, fmt.Errorf("%q: %w", pattern, err)
		}
	}
	var out []source
	for _, name := range names {
		s, err := t.source(ctx, name, exclude)
		if errors.Is(err, fs.ErrNotExist) && wild {
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errNoSource(pattern)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, *s)
	}
	return out, nil
}

// glob matches component by component.
func (t *tree) glob(pattern string, deep bool) ([]string, error) {
	names := []string{"."}
	for _, comp := range strings.Split(pattern, "/") {
		var next []string
		for _, n := range names {
			if !strings.ContainsAny(comp, `*?[\`) {
				next = append(next, path.Join(n, comp))
				continue
			}
			full, err := securejoin.SecureJoin(t.root, n)
			if err != nil {
				return nil, err
			}
			if deep && comp == "**" {
				below, err := dirsBelow(full, n)
				if err != nil {
					return nil, err
				}
				next = append(next, below...)
				continue
			}
			entries, err := os.ReadDir(full)
			if err != nil {
				continue // no directory, or gone
			}
			for _, e := range entries {
				ok, err := path.Match(comp, e.Name())
				if err != nil {
					return nil, err
				}
				if ok {
					next = append(next, path.Join(n, e.Name()))
				}
			}
		}
		names = next
	}
	sort.Strings(names)
	return slices.Compact(names), nil
}

// dirsBelow are name, which is at full, and all directories below it.
func dirsBelow(full, name string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(full, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(full, p)
		out = append(out, path.Join(name, rel))
		return err
	})
	return out, err
}

func ignored(m *patternmatcher.PatternMatcher, name string) (bool, error) {
	if m == nil || name == "." {
		return false, nil
	}
	return m.MatchesOrParentMatches(name)
}

// source lists and digests what name is; fs.ErrNotExist where it is not there or
// ignored. A link given by name is followed.
func (t *tree) source(ctx context.Context, name string, exclude *patternmatcher.PatternMatcher) (*source, error) {
	full, err := securejoin.SecureJoin(t.root, name)
	if err != nil {
		return nil, err
	}
	if full == filepath.Clean(t.root) {
		full += "/." // the root may be named by a link of /proc
	}
	fi, err := os.Lstat(full)
	if err != nil {
		return nil, err
	}
	s := &source{name: name, dir: fi.IsDir()}
	if !s.dir {
		for m, n := range map[*patternmatcher.PatternMatcher]string{t.ignore: name, exclude: path.Base(name)} {
			if skip, err := ignored(m, n); err != nil || skip {
				return nil, errors.Join(err, fs.ErrNotExist)
			}
		}
		f, err := t.file(ctx, path.Base(name), full, fi)
		if err != nil {
			return nil, err
		}
		s.files = []file{*f}
		return s, nil
	}
	skip, err := ignored(t.ignore, name)
	if err != nil {
		return nil, err
	}
	if _, err := t.walk(ctx, s, name, "", full, exclude); err != nil {
		return nil, err
	}
	if skip && len(s.files) == 0 {
		return nil, fs.ErrNotExist
	}
	return s, nil
}

// walk adds the content of a directory and tells whether there was any.
func (t *tree) walk(ctx context.Context, s *source, name, rel, full string, exclude *patternmatcher.PatternMatcher) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, context.Cause(ctx)
	}
	entries, err := os.ReadDir(full)
	if err != nil {
		return false, err
	}
	found := false
	for _, e := range entries {
		childName, childRel, childFull := path.Join(name, e.Name()), path.Join(rel, e.Name()), filepath.Join(full, e.Name())
		skip, err := ignored(t.ignore, childName)
		if err == nil && !skip {
			skip, err = ignored(exclude, childRel)
		}
		if err != nil {
			return false, err
		}
		fi, err := os.Lstat(childFull)
		if err != nil {
			return false, err
		}
		if !fi.IsDir() {
			if skip || fi.Mode()&fs.ModeSocket != 0 {
				continue
			}
			f, err := t.file(ctx, childRel, childFull, fi)
			if err != nil {
				return false, err
			}
			s.files = append(s.files, *f)
			found = true
			continue
		}
		if skip && (t.ignore == nil || !t.ignore.Exclusions()) && (exclude == nil || !exclude.Exclusions()) {
			continue
		}
		// An ignored directory is there only for what an exception keeps in it.
		at := len(s.files)
		s.files = append(s.files, file{rel: childRel, full: childFull, info: fi})
		any, err := t.walk(ctx, s, childName, childRel, childFull, exclude)
		if err != nil {
			return false, err
		}
		if skip && !any {
			s.files = s.files[:at]
			continue
		}
		found = true
	}
	return found, nil
}

func (t *tree) file(ctx context.Context, rel, full string, fi fs.FileInfo) (*file, error) {
	f := &file{rel: rel, full: full, info: fi}
	var err error
	switch {
	case fi.Mode().IsRegular():
		f.sum, err = t.sums.of(ctx, full, fi)
	case fi.Mode()&fs.ModeSymlink != 0:
		f.link, err = os.Readlink(full)
	}
	return f, err
}

// digest identifies a source by names, kinds, modes and contents, and by owners
// where they are copied.
func (t *tree) digest(s source) string {
	parts := []string{path.Base(s.name)}
	for _, f := range s.files {
		owner := ""
		st, ok := f.info.Sys().(*syscall.Stat_t)
		if ok && t.owners {
			owner = fmt.Sprintf("%d:%d", st.Uid, st.Gid)
		}
		dev := ""
		if ok && f.info.Mode()&fs.ModeDevice != 0 {
			dev = fmt.Sprint(st.Rdev)
		}
		parts = append(parts, f.rel, f.info.Mode().String(), f.sum, f.link, owner, dev)
	}
	return digestOf(parts...)
}
