package compile

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// libcontainer compiles a container's seccomp filter in the container's first
// process, for each container again, which costs more than all the rest of a
// start. There is no place for a caller to step in: so skiff-start is built with
// a copy of it in which that place is made. What decides over a filter, and where
// in a start it is loaded, is as upstream has it.

const runc = "github.com/opencontainers/runc"

// edits are the places, each of which must be there exactly once: a new version
// that has changed there does not build.
var edits = []struct{ file, old, new string }{
	{
		"libcontainer/seccomp/seccomp_linux.go",
		"func InitSeccomp(config *configs.Seccomp) (int, error) {",
		"func build(config *configs.Seccomp, finish func(*configs.Seccomp, *libseccomp.ScmpFilter) (int, error)) (int, error) {",
	},
	{
		"libcontainer/seccomp/seccomp_linux.go",
		"patchbpf.PatchAndLoad(config, filter)",
		"finish(config, filter)",
	},
	{
		"libcontainer/seccomp/seccomp_linux.go",
		"\t\"github.com/opencontainers/runc/libcontainer/seccomp/patchbpf\"\n",
		"",
	},
	{
		"libcontainer/configs/config.go",
		"type Seccomp struct {\n",
		"type Seccomp struct {\n\tProgram []byte `json:\"program,omitempty\"`\n",
	},
}

// added are whole files, by their names below patch.
var added = map[string]string{
	"seccomp.go.txt":  "libcontainer/seccomp/compiled_linux.go",
	"patchbpf.go.txt": "libcontainer/seccomp/patchbpf/compiled_linux.go",
}

// patched makes the copy in the module at root, below out, and beside it a go.mod
// of that module which uses it; it returns that file's path. The copy's own path
// says what is in it, and only that: it is recorded in the program, which must be
// the same whenever and wherever it is built.
func patched(root string) (string, error) {
	h := sha256.New()
	fmt.Fprint(h, edits)
	for _, name := range append([]string{"go.mod", "go.sum"}, patches()...) {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n%s", name, len(b), b)
	}
	rel := "out/start/" + hex.EncodeToString(h.Sum(nil)[:8])
	dir := filepath.Join(root, rel)
	modfile := filepath.Join(dir, "start.mod")
	if _, err := os.Stat(modfile); err == nil {
		return modfile, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := fill(root, tmp, "./"+rel+"/runc"); err != nil {
		return "", err
	}
	// Another build may have been quicker, with the same in it.
	if err := os.Rename(tmp, dir); err != nil {
		if _, serr := os.Stat(modfile); serr != nil {
			return "", err
		}
	}
	return modfile, nil
}

const patchDir = "internal/runtime/programs/compile/patch"

func patches() []string {
	var names []string
	for name := range added {
		names = append(names, filepath.Join(patchDir, name))
	}
	slices.Sort(names)
	return names
}

// fill makes what patched promises in dir, for a copy that will be at path.
func fill(root, dir, path string) error {
	from, err := moduleDir(root)
	if err != nil {
		return err
	}
	to := filepath.Join(dir, "runc")
	if err := copySources(from, to); err != nil {
		return fmt.Errorf("copy %s: %w", runc, err)
	}
	for _, e := range edits {
		if err := edit(filepath.Join(to, e.file), e.old, e.new); err != nil {
			return err
		}
	}
	for name, file := range added {
		b, err := os.ReadFile(filepath.Join(root, patchDir, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, file), b, 0o644); err != nil {
			return err
		}
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return err
	}
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		return err
	}
	mod = fmt.Appendf(mod, "\nreplace %s => %s\n", runc, path)
	if err := os.WriteFile(filepath.Join(dir, "start.mod"), mod, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "start.sum"), sum, 0o644)
}

// moduleDir is where libcontainer's module is, fetched where it is not there yet.
func moduleDir(root string) (string, error) {
	for _, args := range [][]string{{"list", "-m", "-f", "{{.Dir}}", runc}, {"mod", "download", runc}, {"list", "-m", "-f", "{{.Dir}}", runc}} {
		cmd := exec.Command("go", args...)
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("%v: %w", cmd.Args, err)
		}
		if dir := strings.TrimSpace(string(out)); args[0] == "list" && dir != "" {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%s is not to be found", runc)
}

// copySources copies what a build reads.
func copySources(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		}
		if strings.HasSuffix(p, "_test.go") || !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o644)
	})
}

// edit replaces a text that must be in the file exactly once.
func edit(file, old, new string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if n := strings.Count(string(b), old); n != 1 {
		return fmt.Errorf("%s has %q %d times, not once: it is another version than skiff-start was made for", file, old, n)
	}
	return os.WriteFile(file, []byte(strings.Replace(string(b), old, new, 1)), 0o644)
}
