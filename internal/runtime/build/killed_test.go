package build

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
)

// killedChild builds until it is killed.
func killedChild(dir string) {
	fail := func(err error) {
		fmt.Println(err)
		os.Exit(1)
	}
	images, err := image.Open(filepath.Join(dir, "images"), image.Options{LockWait: 10 * time.Second})
	if err != nil {
		fail(err)
	}
	snaps, err := snapshot.Open(filepath.Join(dir, "snapshots"), images)
	if err != nil {
		fail(err)
	}
	b, err := New(Deps{Images: images, Snapshots: snaps, Executor: &NamespaceExecutor{}, Dir: filepath.Join(dir, "build")})
	if err != nil {
		fail(err)
	}
	_, err = b.Build(context.Background(), Request{Content: []byte(os.Getenv("SKIFF_TEST_DOCKERFILE")), Progress: &onOutput{
		recorder: &recorder{}, do: func() { fmt.Println("running") },
	}})
	fail(err)
}

// processes lists those whose command line has a word.
func processes(word string) []string {
	var out []string
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(word)) {
			out = append(out, p+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

// kill -9 of the builder ends what it runs, whoever runs it, and leaves nothing
// that the next start does not remove.
func TestKilled(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	e.close(t)
	for _, user := range []string{"root", "app"} {
		word := fmt.Sprintf("%d%s", os.Getpid(), user)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SKIFF_TEST_KILLED="+e.dir, "SKIFF_TEST_DOCKERFILE="+
			"FROM busybox\nRUN echo kept > /kept\nUSER "+user+"\nRUN echo x > /tmp/x; (sleep 3600 "+word+" || sh -c 'sleep 3600; "+word+"') & echo running; wait")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 500)
		if n, _ := out.Read(line); string(line[:n]) != "running\n" {
			t.Fatalf("child: %s", line[:n])
		}
		if len(processes(word)) < 2 {
			t.Errorf("the command does not run: %v", processes(word))
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		// Death spreads through the kernel, at its own pace.
		for deadline := time.Now().Add(20 * time.Second); len(processes(word)) > 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: still running: %v", user, processes(word))
			}
		}
		e.open(t)
		for _, d := range []string{"snapshots/keys", "snapshots/tmp", "images/ingest"} {
			if left, _ := os.ReadDir(filepath.Join(e.dir, d)); len(left) > 0 {
				t.Errorf("%s: %v", d, left)
			}
		}
		img := e.mustBuild(t, "FROM busybox\nRUN echo kept > /kept\n", nil)
		if len(e.log.cached) != 1 || e.read(t, img, "/kept") != "kept\n" {
			t.Errorf("what was done before is lost: %v", e.log.steps)
		}
		e.close(t)
	}
	e.open(t)
}
