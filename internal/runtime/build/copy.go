package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
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
	for _, v := range s.views {
		if v.chain == chain {
			return &tree{root: fdPath(v.root), owners: true}, nil
		}
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
	s.views = append(s.views, view{chain: chain, root: f, done: done})
	return &tree{root: fdPath(f), owners: true}, nil
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
	img, err := s.baseImage(ctx, name)
	return img, "", err
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func (s *step) copyCommand(ctx context.Context, c copySpec) error {
	n := s.begin(c.text)
	cached, err := s.copyFiles(ctx, c)
	s.req.Progress.Done(n, cached, err)
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

// copier writes files into a root file system.
type copier struct {
	*writer
	ctx      context.Context // of the one copy that the copier is for
	mode     *chmod          // nil keeps the files'
	uid, gid int             // for all files; -1 keeps theirs
	chown    string
	intoDir  bool
}

// owners of directories that copying makes.
func (c *copier) dirOwner() (int, int) { return max(c.uid, 0), max(c.gid, 0) }

func (c *copier) source(src source, dest string) error {
	uid, gid := c.dirOwner()
	if src.dir {
		dest = path.Join(dest, src.keep)
		if _, err := c.mkdirAllAs(dest, uid, gid); err != nil {
			return err
		}
		for _, f := range src.files {
			if err := c.file(f, path.Join(dest, f.rel)); err != nil {
				return fmt.Errorf("copy %s: %w", path.Join(src.name, f.rel), err)
			}
		}
		return nil
	}
	f := src.files[0]
	if src.unpack {
		done, err := c.extract(f, dest)
		if done || err != nil {
			return err
		}
	}
	switch {
	case src.keep != "":
		dest = path.Join(dest, src.keep)
	case c.intoDir || c.isDir(dest):
		dest = path.Join(dest, path.Base(src.name))
	}
	if err := c.file(f, dest); err != nil {
		return fmt.Errorf("copy %s: %w", src.name, err)
	}
	return nil
}

// extract unpacks f into dest, if it is an archive.
func (c *copier) extract(f file, dest string) (bool, error) {
	if !f.info.Mode().IsRegular() {
		return false, nil
	}
	open := func() (*os.File, io.ReadCloser, error) {
		file, err := os.Open(f.full)
		if err != nil {
			return nil, nil, err
		}
		r, err := image.Decompress(file)
		if err != nil {
			file.Close()
			return nil, nil, err
		}
		return file, r, nil
	}
	file, r, err := open()
	if errors.Is(err, image.ErrFormat) {
		return false, fmt.Errorf("ADD %s: %w", f.rel, err)
	}
	if err != nil {
		return false, nil // no archive: something that looks compressed
	}
	_, err = tar.NewReader(r).Next()
	r.Close()
	file.Close()
	if err != nil {
		return false, nil
	}
	if file, r, err = open(); err != nil {
		return false, err
	}
	defer file.Close()
	defer r.Close()
	full, err := c.mkdirAll(dest)
	if err != nil {
		return false, err
	}
	if err := c.keepTime(full); err != nil {
		return false, err
	}
	var content io.Reader = r
	if c.chown != "" {
		owned := c.withOwner(r)
		defer owned.Close()
		content = owned
	}
	if err := snapshot.Extract(c.ctx, content, full); err != nil {
		return false, fmt.Errorf("ADD %s: %w", f.rel, err)
	}
	return true, nil
}

// withOwner is the archive r with all files the copier's owner's. The reader
// must be closed.
func (c *copier) withOwner(r io.Reader) io.ReadCloser {
	pr, pw := io.Pipe()
	go func() { // ends with the archive, or when pr is closed
		in, out := tar.NewReader(r), tar.NewWriter(pw)
		for {
			h, err := in.Next()
			if errors.Is(err, io.EOF) {
				pw.CloseWithError(out.Close())
				return
			}
			if err == nil {
				h.Uid, h.Gid, h.Uname, h.Gname = c.uid, c.gid, "", ""
				err = out.WriteHeader(h)
			}
			if err == nil {
				_, err = io.Copy(out, in)
			}
			if err != nil {
				pw.CloseWithError(err)
				return
			}
		}
	}()
	return pr
}

// file copies one file to a path of the image.
func (c *copier) file(f file, name string) error {
	if err := c.ctx.Err(); err != nil {
		return context.Cause(c.ctx)
	}
	st, ok := f.info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("no owner known")
	}
	uid, gid := c.uid, c.gid
	if uid < 0 {
		uid, gid = int(st.Uid), int(st.Gid)
	}
	dirUID, dirGID := c.dirOwner()
	if f.info.IsDir() {
		full, err := c.path(name)
		if err != nil {
			return err
		}
		if fi, err := os.Lstat(full); err == nil && fi.IsDir() {
			return nil // what is there keeps its owner and mode
		}
		if full, err = c.mkdirAllAs(name, dirUID, dirGID); err != nil {
			return err
		}
		c.times[full] = f.info.ModTime()
		return c.meta(f, st, full, uid, gid)
	}
	full, err := c.place(name, dirUID, dirGID)
	if err != nil {
		return err
	}
	switch f.info.Mode() & fs.ModeType {
	case 0:
		err = copyContent(f.full, full)
	case fs.ModeSymlink:
		err = os.Symlink(f.link, full)
	case fs.ModeNamedPipe, fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		err = unix.Mknod(full, st.Mode, int(st.Rdev))
	default:
		return fmt.Errorf("a file of kind %s cannot be copied", f.info.Mode().Type())
	}
	if err != nil {
		return err
	}
	return c.meta(f, st, full, uid, gid)
}

func copyContent(from, to string) error {
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// meta sets owner, mode, attributes and time.
func (c *copier) meta(f file, st *syscall.Stat_t, full string, uid, gid int) error {
	if err := os.Lchown(full, uid, gid); err != nil {
		return err
	}
	if f.info.Mode()&fs.ModeSymlink == 0 {
		mode := c.mode.apply(st.Mode&0o7777, f.info.IsDir())
		if err := unix.Chmod(full, mode); err != nil {
			return &fs.PathError{Op: "chmod", Path: full, Err: err}
		}
	}
	if err := snapshot.CopyXattrs(f.full, full); err != nil {
		return err
	}
	ts := unix.NsecToTimespec(f.info.ModTime().UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, full, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// content writes a here document.
func (c *copier) content(src instructions.SourceContent, dest string) error {
	if c.intoDir || c.isDir(dest) {
		dest = path.Join(dest, src.Path)
	}
	uid, gid := c.dirOwner()
	full, err := c.place(dest, uid, gid)
	if err != nil {
		return err
	}
	mode := c.mode.apply(0o644, false)
	if err := os.WriteFile(full, []byte(src.Data), 0o600); err != nil {
		return err
	}
	if err := os.Lchown(full, uid, gid); err != nil {
		return err
	}
	if err := unix.Chmod(full, mode); err != nil {
		return err
	}
	return os.Chtimes(full, time.Unix(0, 0), time.Unix(0, 0))
}

// readInside opens a file of the image.
func (w *writer) readInside(name string) (*os.File, error) {
	full, err := w.path(name)
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(full)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: no regular file", name)
	}
	return os.Open(filepath.Clean(full))
}
