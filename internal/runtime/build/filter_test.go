package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skiff/internal/runtime/runtimetest"
)

// Commands of a build have the filter that containers have, and a cgroup that is
// gone when they are.
func TestRunFiltered(t *testing.T) {
	set := runtimetest.Programs(t)
	e := setup(t)
	e.busybox(t)
	kept := t.TempDir()
	group := fmt.Sprintf("/skiff-build-test-%d/build", os.Getpid())
	filter := DefaultFilter(func() (string, error) { return set.Start, nil }, kept)
	x := &NamespaceExecutor{Filter: filter, Cgroup: group}
	b, err := New(Deps{Images: e.images, Snapshots: e.snaps, Executor: x, Dir: filepath.Join(e.dir, "build-filtered")})
	if err != nil {
		t.Fatal(err)
	}
	e.builder = b
	img := e.mustBuild(t, `FROM busybox
RUN grep Seccomp: /proc/self/status > /out; cat /proc/self/cgroup >> /out; (busybox unshare -U true || echo no namespace) >> /out 2>&1; mkdir /a && chown 1:1 /a
RUN (sleep 98764 &) && echo left > /left
USER app
RUN grep Seccomp: /proc/self/status > /tmp/out
`, nil)
	out := e.read(t, img, "/out")
	for _, want := range []string{"Seccomp:\t2\n", ":" + group + "/", "no namespace"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	if got := e.read(t, img, "/tmp/out"); got != "Seccomp:\t2\n" {
		t.Errorf("a user's command: %q", got)
	}
	if names, _ := filepath.Glob(kept + "/*.bpf"); len(names) != 1 {
		t.Errorf("kept filters: %v", names)
	}
	for _, dir := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		if left, _ := filepath.Glob(dir + filepath.Dir(group)); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	}
	broken := DefaultFilter(func() (string, error) { return "", errors.New("no starter") }, kept)
	if code, err := (&NamespaceExecutor{Filter: broken}).Run(context.Background(), ExecSpec{Args: []string{"true"}}); err == nil {
		t.Errorf("a command ran without its filter: exit code %d", code)
	}
	if err := loadFilter(make([]byte, 9)); err == nil {
		t.Error("half a filter was loaded")
	}
}
