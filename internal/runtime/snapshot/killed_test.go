package snapshot

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"skiff/internal/runtime/image"
)

// killedChild prepares, or moves, without end until it is killed.
func killedChild() {
	d := os.Getenv("SKIFF_TEST_KILLED")
	images, err := image.Open(filepath.Join(d, "images"), image.Options{LockWait: 10 * time.Second})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	snaps, err := Open(filepath.Join(d, "snapshots"), images)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if os.Getenv("SKIFF_TEST_MOVES") != "" {
		fmt.Println(movingChild(images, snaps))
		os.Exit(1)
	}
	ctx := context.Background()
	fmt.Println("ready")
	for i := 0; ; i++ {
		img, err := images.Resolve(ctx, "base")
		if err == nil {
			_, err = snaps.Prepare(ctx, fmt.Sprintf("c%d", i), img)
		}
		if err == nil {
			err = snaps.Remove(ctx, fmt.Sprintf("c%d", i-2))
		}
		if err == nil {
			snaps.mu.Lock() // as if nothing were unpacked yet
			for id, l := range snaps.layers {
				if snaps.pins[id] == 0 {
					os.Remove(snaps.path("layers", l.name+".json"))
					os.Rename(snaps.path("layers", l.name), snaps.path("tmp", fmt.Sprintf("old%d%s", i, l.name)))
					delete(snaps.layers, id)
				}
			}
			snaps.mu.Unlock()
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

// killed has a process work with the closed store for that long, until it is killed.
func (e *env) killed(t *testing.T, after time.Duration, environ ...string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(environ, "SKIFF_TEST_KILLED="+e.dir)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 200)
	n, _ := out.Read(line)
	if string(line[:n]) != "ready\n" {
		t.Fatalf("child: %s", line[:n])
	}
	time.Sleep(after) // not waiting for anything: the moment to kill
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
}

// kill -9 at any moment: what is seen afterwards is whole.
func TestKilled(t *testing.T) {
	e := setup(t)
	var entries []entry
	for i := range 200 {
		entries = append(entries, file(fmt.Sprintf("f%03d", i), "content"))
	}
	e.image(t, "base", makeTar(t, entries...), makeTar(t, file("last", "last")))
	want := view(t, e, e.mustResolve(t, "base"))
	e.close(t)
	for round := range 15 {
		e.killed(t, time.Duration(3+round*2)*time.Millisecond)
		e.open(t)
		if left, _ := os.ReadDir(e.snaps.path("tmp")); len(left) != 0 {
			t.Errorf("left in tmp: %v", left)
		}
		keys, err := e.snaps.Keys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		img := e.mustResolve(t, "base")
		for _, k := range append(keys, "new") {
			r, err := e.snaps.Prepare(t.Context(), k, img)
			if err != nil {
				t.Fatal(err)
			}
			if got := tree(t, r); got != want {
				t.Fatalf("round %d: key %s shows\n%s", round, k, got)
			}
			if err := e.snaps.Remove(t.Context(), k); err != nil {
				t.Fatal(err)
			}
		}
		e.close(t)
	}
	e.open(t)
}

func (e *env) mustResolve(t testing.TB, name string) *image.Image {
	t.Helper()
	img, err := e.images.Resolve(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func BenchmarkPrepare(b *testing.B) {
	e := setup(b)
	var layers [][]byte
	for i := range 10 {
		layers = append(layers, makeTar(b, dir("d"), file(fmt.Sprintf("d/f%d", i), "x")))
	}
	img := e.image(b, "base", layers...)
	if _, err := e.snaps.Prepare(b.Context(), "first", img); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		if _, err := e.snaps.Prepare(b.Context(), fmt.Sprint("c", i), img); err != nil {
			b.Fatal(err)
		}
	}
}
