package compile

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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

// patched makes the copy in dir, and beside it a go.mod of the module at root
// that uses it; it returns that file's path.
func patched(root, dir string) (string, error) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", runc)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", runc, err)
	}
	from, to := strings.TrimSpace(string(out)), filepath.Join(dir, "runc")
	if from == "" { // not there yet
		cmd := exec.Command("go", "mod", "download", runc)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("download %s: %w\n%s", runc, err, out)
		}
		return patched(root, dir)
	}
	if err := copySources(from, to); err != nil {
		return "", fmt.Errorf("copy %s: %w", runc, err)
	}
	for _, e := range edits {
		if err := edit(filepath.Join(to, e.file), e.old, e.new); err != nil {
			return "", err
		}
	}
	for name, file := range added {
		b, err := os.ReadFile(filepath.Join(root, "internal/runtime/programs/compile/patch", name))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(to, file), b, 0o644); err != nil {
			return "", err
		}
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		return "", err
	}
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		return "", err
	}
	modfile := filepath.Join(dir, "start.mod")
	mod = fmt.Appendf(mod, "\nreplace %s => %s\n", runc, to)
	if err := os.WriteFile(modfile, mod, 0o644); err != nil {
		return "", err
	}
	return modfile, os.WriteFile(filepath.Join(dir, "start.sum"), sum, 0o644)
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
