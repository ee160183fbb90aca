package build

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// clean fails the test where a build has left something under way.
func (e *env) clean(t *testing.T, what string) {
	t.Helper()
	for _, d := range []string{"snapshots/keys", "snapshots/tmp", "images/ingest", "build/tmp"} {
		if left, err := os.ReadDir(filepath.Join(e.dir, d)); err != nil || len(left) > 0 {
			t.Errorf("%s: %s: %v %v", what, d, left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(e.dir+"/build")) || bytes.Contains(mounts, []byte(e.dir+"/snapshots")) {
		t.Errorf("%s: mounts are left: %v", what, err)
	}
}

// A command that fails is shown with its last lines and its place.
func TestFailure(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	_, err := e.build(t, "FROM busybox\nRUN for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i; done; \\\n    echo broken >&2; exit 42\n", nil)
	var exit *ExitError
	var at *Error
	if !errors.As(err, &exit) || !errors.As(err, &at) || exit.Code != 42 || at.Line != 2 {
		t.Fatalf("got %v", err)
	}
	var want strings.Builder
	for i := 4; i <= 12; i++ {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got := exit.LogExcerpt(); !strings.HasPrefix(got, "------\n > RUN for i in") || !strings.HasSuffix(got, ":\n"+want.String()+"broken\n------\n") {
		t.Errorf("got\n%s", got)
	}
	if !strings.Contains(at.Excerpt, "   2 | >>> RUN for") || !strings.Contains(at.Excerpt, "   3 | >>>     echo broken") {
		t.Errorf("excerpt:\n%s", at.Excerpt)
	}
	if _, err := e.build(t, "FROM busybox\nRUN sh -c 'kill -9 $$'; exit $?", nil); !errors.As(err, &exit) || exit.Code != 137 {
		t.Errorf("a killed command: %v", err)
	}
	e.clean(t, "failures")
}

// A command may write as much as it wants: what is passed on ends, and what
// stays in memory is small.
func TestOutputClipped(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	_, err := e.build(t, "FROM busybox\nRUN busybox yes 0123456789012345678901234567890123456789 | head -c 50000000; echo; echo the end; exit 3", nil)
	var exit *ExitError
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if n := e.log.out.Len(); n < maxOutput || n > maxOutput+200 || !strings.Contains(e.log.out.String()[maxOutput:], "output clipped, log limit 2 MiB reached") {
		t.Errorf("%d bytes were shown, at the end %q", n, e.log.out.String()[max(0, n-100):])
	}
	if l := exit.Log; len(l) != lastLines || l[len(l)-1] != "the end" {
		t.Errorf("last lines: %q", l)
	}
	// One line without an end.
	_, err = e.build(t, "FROM busybox\nRUN head -c 30000000 /dev/zero | tr '\\000' x; exit 3", nil)
	if !errors.As(err, &exit) || len(exit.Log) != 1 || len(exit.Log[0]) > maxTail {
		t.Errorf("one line: %d lines", len(exit.Log))
	}
}

// Daemons end with the command that left them, though they hold its output.
func TestDaemons(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	word := fmt.Sprintf("3600%d", os.Getpid())
	img := e.mustBuild(t, "FROM busybox\nRUN (busybox setsid sleep "+word+" &) ; (busybox nohup sleep "+word+" >/dev/null 2>&1 &) ; echo done > /out", nil)
	if got := e.read(t, img, "/out"); got != "done\n" {
		t.Errorf("got %q", got)
	}
	if left := processes(word); len(left) > 0 {
		t.Errorf("still running: %v", left)
	}
	e.clean(t, "daemons")
}

// A full disk is an error that says so, in whatever step it comes; nothing
// half-done is left, and with room again the build goes on where it was.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small file system")
	}
	e := &env{dir: t.TempDir()}
	mount := func(flags uintptr, size string) {
		t.Helper()
		if err := unix.Mount("tmpfs", e.dir, "tmpfs", unix.MS_NODEV|flags, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
	mount(0, "16m")
	t.Cleanup(func() {
		if err := unix.Unmount(e.dir, 0); err != nil {
			t.Error(err)
		}
	})
	e.open(t)
	t.Cleanup(func() { e.close(t) })
	e.busybox(t)
	big := map[string]string{"big": strings.Repeat("x", 14<<20)}
	small := "FROM busybox\nRUN echo small > /small\n"
	e.mustBuild(t, small, nil)
	if _, err := e.build(t, small+"COPY big /big", big); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("COPY: %v", err)
	}
	e.clean(t, "COPY")
	_, err := e.build(t, small+"RUN cat /dev/zero > /big", nil)
	var exit *ExitError
	if !errors.As(err, &exit) || !strings.Contains(strings.Join(exit.Log, "\n"), "No space left") {
		t.Errorf("RUN: %v, log %q", err, e.log.out.String())
	}
	e.clean(t, "RUN")
	// There is room for the files, and none for the layer's tar.
	if _, err := e.build(t, small+"RUN head -c 6500000 /dev/zero > /big", nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the layer: %v", err)
	}
	e.clean(t, "the layer")
	mount(unix.MS_REMOUNT, "80m")
	img := e.mustBuild(t, small+"COPY big /big", big)
	if len(e.log.cached) != 1 || len(e.read(t, img, "/big")) != 14<<20 {
		t.Errorf("cached: %v", e.log.cached)
	}
}

// Builds that come to the same step at once run it once; where the first fails,
// the others try for themselves.
func TestSameStepOnce(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	var wg sync.WaitGroup
	ran := make([]int, 4)
	for i := range ran {
		wg.Go(func() {
			log := &recorder{}
			_, err := e.builder.Build(t.Context(), Request{Progress: log, Content: []byte(
				"FROM busybox\nRUN --mount=type=cache,id=once,target=/c echo x >> /c/n; wc -l < /c/n > /n; sleep 0.2\nRUN cat /n > /m\n")})
			if err != nil {
				t.Error(err)
			}
			ran[i] = len(log.steps) - len(log.cached)
		})
	}
	wg.Wait()
	total := 0
	for _, n := range ran {
		total += n
	}
	if total != 2 {
		t.Errorf("two steps ran %d times: %v", total, ran)
	}
	errs := make([]error, 2)
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = e.builder.Build(t.Context(), Request{Content: []byte("FROM busybox\nRUN sleep 0.1; exit 7\n")})
		})
	}
	wg.Wait()
	for _, err := range errs {
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Code != 7 {
			t.Errorf("got %v", err)
		}
	}
	e.clean(t, "the same at once")
}
