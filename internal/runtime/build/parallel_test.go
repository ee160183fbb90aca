package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// meet is a command that says it is there and goes on when the other is, too.
func meet(me, other string) string {
	return fmt.Sprintf("RUN --mount=type=cache,target=/meet touch /meet/%s; until [ -e /meet/%s ]; do sleep 0.05; done; echo %s > /%s", me, other, me, me)
}

// TestStagesSideBySide: stages that need nothing of each other run at the same time,
// and what needs them waits.
func TestStagesSideBySide(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	e.builder.atOnce = 2
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	img, err := e.buildIn(ctx, t.TempDir(), "FROM busybox AS a\n"+meet("a", "b")+"\nFROM busybox AS b\n"+meet("b", "a")+
		"\nFROM a\nCOPY --from=b /b /b2\nRUN --mount=type=bind,from=b,target=/from cat /a /b2 /from/b > /all")
	if err != nil {
		t.Fatalf("%v\n%s", err, e.log.out.String())
	}
	if got := e.read(t, img, "/all"); got != "a\nb\nb\n" {
		t.Errorf("the result has %q", got)
	}
}

// TestStageOrder: whether one stage is built at a time or many, keys and result are the
// same.
func TestStageOrder(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	var df strings.Builder
	const stages = 8
	for i := range stages {
		fmt.Fprintf(&df, "FROM busybox AS s%d\nARG A=%d\nCOPY *.txt /in/\nRUN echo $A > /out%d\n", i, i, i)
		if i >= 2 {
			fmt.Fprintf(&df, "COPY --from=s%d /out%d /\n", i/2, i/2)
		}
	}
	df.WriteString("FROM s7\n")
	for i := range stages {
		fmt.Fprintf(&df, "COPY --from=s%d /out%d /all/\n", i, i)
	}
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"a.txt": "a", "no.txt": "b", ".dockerignore": "no*\n"})
	ids := map[string]int{}
	for _, atOnce := range []int{1, 4, 2} {
		e.builder.atOnce = atOnce
		img, err := e.buildIn(t.Context(), dir, df.String())
		if err != nil {
			t.Fatalf("%d at once: %v\n%s", atOnce, err, e.log.out.String())
		}
		ids[img.ID]++
		if atOnce > 1 && len(e.log.cached) != len(e.log.steps) {
			t.Errorf("%d at once: of %d steps %d come from the cache", atOnce, len(e.log.steps), len(e.log.cached))
		}
		if got := e.tree(t, img, "in"); strings.Contains(got, "no.txt") || !strings.Contains(got, "a.txt") {
			t.Errorf("%d at once: %s", atOnce, got)
		}
	}
	if len(ids) != 1 {
		t.Errorf("images: %v", ids)
	}
	// Anew, many at once.
	e.builder.atOnce = 4
	if _, err := e.buildIn(t.Context(), dir, df.String(), func(r *Request) { r.NoCache = true }); err != nil {
		t.Errorf("without the cache: %v", err)
	}
}

// TestStageFails: what fails in one stage ends the others, and is the build's error.
func TestStageFails(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	e.builder.atOnce = 2
	const ends = "RUN --mount=type=cache,target=/meet touch /meet/b; sleep 1000"
	begun := time.Now()
	_, err := e.build(t, "FROM busybox AS a\nRUN --mount=type=cache,target=/meet until [ -e /meet/b ]; do sleep 0.05; done; exit 3\nFROM busybox AS b\n"+ends+
		"\nFROM busybox\nCOPY --from=a / /a\nCOPY --from=b / /b", nil)
	var at *Error
	var exit *ExitError
	if !errors.As(err, &at) || at.Line != 2 || !errors.As(err, &exit) || exit.Code != 3 {
		t.Errorf("the build says %v", err)
	}
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	canceled := 0
	for name, why := range e.log.failed {
		if why == ErrCanceled.Error() {
			canceled++
			if !strings.Contains(name, "sleep 1000") {
				t.Errorf("%s was given up", name)
			}
		}
	}
	if canceled != 1 || len(e.log.failed) != 2 {
		t.Errorf("steps that failed: %v", e.log.failed)
	}
}

// TestProgressOfStages: lines of steps that overlap say whose they are.
func TestProgressOfStages(t *testing.T) {
	steps := func(p Progress) {
		p.Start(1, 3, "RUN a")
		p.Start(2, 3, "RUN b")
		p.Output(1, []byte("one "))
		p.Output(2, []byte("two\n"))
		p.Output(1, []byte("more\nrest"))
		p.Done(2, false, errors.New("bad"))
		p.Done(1, false, errors.New(ErrCanceled.Error())) // as it comes over the wire
	}
	var b bytes.Buffer
	steps(newPlain(&b, func() time.Time { return time.Unix(0, 0) }))
	want := "#1 [1/3] RUN a\n#2 [2/3] RUN b\n#2 0.000 two\n#1 0.000 one more\n#2 ERROR: bad\n\n#1 0.000 rest\n#1 CANCELED\n\n"
	if b.String() != want {
		t.Errorf("plain:\n%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	l := newLive(&b, 60)
	steps(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"+1  0.0s", "✗  [2/3] RUN b", "0.0s\ntwo\n", "✗  [1/3] RUN a", "CANCELED\n"} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("no %q in\n%q", part, b.String())
		}
	}
	if strings.Contains(b.String(), "one more") && strings.Contains(b.String()[strings.Index(b.String(), "CANCELED"):], "one more") {
		t.Errorf("the output of what was given up is shown: %q", b.String())
	}
}

// TestFree: under a shortage the longest unused goes first, and no more than must.
func TestFree(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	now := time.Now()
	e.builder.now = func() time.Time { return now }
	step := func(name string) string {
		return fmt.Sprintf("FROM busybox\nRUN head -c 4000000 /dev/urandom > /%s", name)
	}
	for i := range 16 {
		now = now.Add(time.Minute)
		img := e.mustBuild(t, step(fmt.Sprint("f", i)), nil)
		if err := e.images.Remove(t.Context(), img.ID); err != nil {
			t.Fatal(err)
		}
	}
	freed, err := e.builder.Free(t.Context(), 6_000_000)
	if err != nil || freed < 6_000_000 || freed > 20_000_000 {
		t.Errorf("%d bytes are free, %v", freed, err)
	}
	for name, cached := range map[string]int{"f15": 1, "f8": 1, "f0": 0} {
		e.mustBuild(t, step(name), nil)
		if len(e.log.cached) != cached {
			t.Errorf("%s: %d steps come from the cache", name, len(e.log.cached))
		}
	}
	// All of it, cache mounts as well; then there is nothing.
	e.mustBuild(t, "FROM busybox\nRUN --mount=type=cache,target=/c head -c 4000000 /dev/urandom > /c/x", nil)
	if freed, err = e.builder.Free(t.Context(), 1<<40); err != nil || freed < 4_000_000 {
		t.Errorf("%d bytes are free, %v", freed, err)
	}
	if list, err := e.builder.kept(); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if freed, err = e.builder.Free(t.Context(), 1); err != nil || freed != 0 {
		t.Errorf("of nothing %d bytes are free, %v", freed, err)
	}
}
