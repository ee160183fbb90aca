package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/patternmatcher"
)

// gitRef is a git source of ADD: REMOTE[#REF[:DIR]], or with a query.
type gitRef struct {
	remote, ref, dir string
	commit           string // that ref must be
	keep             *bool
	submodules       bool
}

var scpRemote = regexp.MustCompile(`^[a-zA-Z0-9_.-]+@[a-zA-Z0-9_.-]+:.+`)

// isGit tells git sources from URLs of files, as BuildKit does: by their scheme,
// or the .git at the end of the path.
func isGit(src string) bool {
	if strings.HasPrefix(src, "git://") || strings.HasPrefix(src, "ssh://") || scpRemote.MatchString(src) {
		return true
	}
	if !strings.HasPrefix(src, "http://") && !strings.HasPrefix(src, "https://") {
		return false
	}
	u, err := url.Parse(src)
	return err == nil && strings.HasSuffix(u.Path, ".git")
}

func parseGit(src string) (*gitRef, error) {
	remote, fragment, _ := strings.Cut(src, "#")
	g := &gitRef{submodules: true}
	var query string
	remote, query, _ = strings.Cut(remote, "?")
	g.remote = remote
	g.ref, g.dir, _ = strings.Cut(fragment, ":")
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	flag := func(v string) (bool, error) {
		if v == "" {
			return true, nil
		}
		return strconv.ParseBool(v)
	}
	for k := range values {
		v := values.Get(k)
		switch k {
		case "ref", "branch", "tag":
			ref := v
			if k == "branch" {
				ref = "refs/heads/" + v
			} else if k == "tag" {
				ref = "refs/tags/" + v
			}
			if g.ref != "" && g.ref != ref {
				return nil, fmt.Errorf("ref conflicts: %q vs %q", g.ref, ref)
			}
			g.ref = ref
		case "subdir":
			g.dir = v
		case "checksum", "commit":
			g.commit = v
		case "keep-git-dir":
			keep, err := flag(v)
			if err != nil {
				return nil, fmt.Errorf("invalid keep-git-dir value: %q", v)
			}
			g.keep = &keep
		case "submodules":
			if g.submodules, err = flag(v); err != nil {
				return nil, fmt.Errorf("invalid submodules value: %q", v)
			}
		default:
			return nil, fmt.Errorf("unexpected query %q", k)
		}
	}
	if strings.HasPrefix(g.ref, "-") || strings.HasPrefix(g.remote, "-") {
		return nil, fmt.Errorf("ref %q: must not start with -", g.ref)
	}
	return g, nil
}

var commitID = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)

// gitSource is a checkout that ADD makes: of what the remote has under the ref
// now. It is fetched only if the layer is not cached.
func (r *run) gitSource(ctx context.Context, src string, c copySpec, exclude *patternmatcher.PatternMatcher) (*source, error) {
	g, err := parseGit(src)
	if err != nil {
		return nil, err
	}
	keep := c.keepGitDir != nil && *c.keepGitDir
	if g.keep != nil {
		if c.keepGitDir != nil && *c.keepGitDir != *g.keep {
			return nil, errors.New("inconsistent keep-git-dir configuration")
		}
		keep = *g.keep
	}
	if c.checksum != "" {
		if g.commit != "" && g.commit != c.checksum {
			return nil, fmt.Errorf("checksum mismatch %q != %q", c.checksum, g.commit)
		}
		g.commit = c.checksum
	}
	if _, err := exec.LookPath("git"); err != nil {
		return nil, fmt.Errorf("git sources need the program git on this machine: %w", err)
	}
	commit := g.ref
	if !commitID.MatchString(g.ref) {
		if commit, err = g.resolve(ctx); err != nil {
			return nil, err
		}
	}
	if g.commit != "" && !strings.HasPrefix(commit, g.commit) {
		return nil, fmt.Errorf("expected checksum to match %s, got %s", g.commit, commit)
	}
	s := &source{name: ".", dir: true}
	s.key = digestOf("git", g.remote, commit, g.dir, fmt.Sprint(keep, g.submodules, c.exclude))
	s.fetch = func(ctx context.Context, s *source) error {
		dir, err := r.tempDir()
		if err != nil {
			return err
		}
		if err := g.checkout(ctx, dir, commit); err != nil {
			return err
		}
		if !keep {
			if err := removeGitDirs(dir); err != nil {
				return err
			}
		}
		t := &tree{root: dir}
		found, err := t.source(ctx, strings.TrimPrefix(path.Join("/", g.dir), "/"), exclude)
		if err != nil {
			return fmt.Errorf("directory %q of the repository: %w", g.dir, err)
		}
		s.files = found.files
		return nil
	}
	return s, nil
}

// resolve asks the remote which commit the ref is.
func (g *gitRef) resolve(ctx context.Context) (string, error) {
	ref := g.ref
	if ref == "" {
		ref = "HEAD"
	}
	out, err := git(ctx, "", "ls-remote", "--", g.remote, ref, ref+"^{}")
	if err != nil {
		return "", err
	}
	found := map[string]string{}
	for line := range strings.Lines(out) {
		if id, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			found[name] = id
		}
	}
	for _, name := range []string{ref + "^{}", ref, "refs/heads/" + ref, "refs/tags/" + ref + "^{}", "refs/tags/" + ref} {
		if id := found[name]; commitID.MatchString(id) {
			return id, nil
		}
	}
	return "", fmt.Errorf("repository does not contain ref %s", ref)
}

// checkout fetches one commit into an empty directory.
func (g *gitRef) checkout(ctx context.Context, dir, commit string) error {
	if _, err := git(ctx, dir, "init", "--quiet", "."); err != nil {
		return err
	}
	if _, err := git(ctx, dir, "remote", "add", "origin", g.remote); err != nil {
		return err
	}
	if _, err := git(ctx, dir, "fetch", "--quiet", "--depth=1", "origin", commit); err != nil {
		// A server that gives only what it has a name for.
		if _, err := git(ctx, dir, "fetch", "--quiet", "--tags", "origin"); err != nil {
			return err
		}
	}
	if _, err := git(ctx, dir, "checkout", "--quiet", "--detach", commit); err != nil {
		return err
	}
	if g.submodules {
		if _, err := os.Stat(filepath.Join(dir, ".gitmodules")); err == nil {
			_, err := git(ctx, dir, "submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")
			return err
		}
	}
	return nil
}

// removeGitDirs removes the repository's and its submodules' .git.
func removeGitDirs(dir string) error {
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != ".git" {
			return err
		}
		if err := os.RemoveAll(p); err != nil || !d.IsDir() {
			return err
		}
		return filepath.SkipDir
	})
}

// git runs git without the machine's configuration and without questions.
func git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "protocol.ext.allow=never", "-c", "protocol.file.allow=never", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_TERMINAL_PROMPT=0", "GIT_SSH_COMMAND=ssh -o BatchMode=yes", "LC_ALL=C")
	// What git starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out, why bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &why
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(why.String()))
	}
	return out.String(), nil
}
