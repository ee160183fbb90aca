package app

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

func TestCountByPart(t *testing.T) {
	got := countByPart(strings.NewReader(`goroutine profile: total 9
4 @ 0x1 0x2
# labels: {"part":"api"}
#	0x1	runtime.gopark+0x1	/proc.go:1

2 @ 0x3
#	0x3	main.main+0x1	/main.go:1

2 @ 0x5
# labels: {"part":"api", "other":"x"}
#	0x5	f+0x1	/f.go:1

1 @ 0x6
# labels: {"part":"node network"}
`))
	if len(got) != 2 || got["api"] != 6 || got["node network"] != 1 {
		t.Errorf("%v", got)
	}
}

// The goroutines of a part, and those that they start, are counted as its own.
func TestGoroutinesByPart(t *testing.T) {
	g := newGroup(slog.New(slog.DiscardHandler))
	up := make(chan struct{})
	g.start("a part of this test", func(ctx context.Context) error {
		done := make(chan struct{})
		go func() { close(up); <-ctx.Done(); close(done) }()
		<-done
		return nil
	})
	<-up
	if n := goroutinesByPart()["a part of this test"]; n != 2 {
		t.Errorf("%d goroutines", n)
	}
	g.stop()
}

func TestCPUMeter(t *testing.T) {
	var m cpuMeter
	at := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	is := func(after, cpu time.Duration, want float64) {
		t.Helper()
		if got := m.share(at.Add(after), cpu); got != want {
			t.Errorf("after %v with %v: %v, want %v", after, cpu, got, want)
		}
	}
	is(0, 0, 0)
	m.sample(at, time.Second)
	is(0, time.Second, 0)
	is(10*time.Second, 2*time.Second, 0.1)
	m.sample(at.Add(30*time.Second), 31*time.Second)
	is(30*time.Second, 31*time.Second, 1)
	m.sample(at.Add(60*time.Second), 31*time.Second)
	is(60*time.Second, 31*time.Second, 0)
}

func TestUsage(t *testing.T) {
	u := (&Process{}).usage()
	if u.Memory < 1<<20 || u.Heap < 1<<10 || u.Goroutines < 2 || u.Private <= 0 || u.Private > u.Memory {
		t.Errorf("%+v", u)
	}
	if kilobytes("\t  12 kB\n") != 12<<10 || kilobytes("") != 0 || kilobytes("x kB") != 0 {
		t.Error("kilobytes")
	}
	if n := helperMemory(t.TempDir() + "/hash/skiff-pod"); n != 0 {
		t.Errorf("no pod process takes %d bytes", n)
	}
	if _, err := sizeBelow(os.DevNull + "/none"); err == nil {
		t.Error("the size of nothing")
	}
}
