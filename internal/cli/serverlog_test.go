package cli

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skiff/internal/host"
)

func rec(minute int, level, msg string) string {
	return time.Date(2026, 1, 2, 15, minute, 0, 0, time.UTC).Format("time="+time.RFC3339Nano) + " level=" + level + " msg=" + msg + "\n"
}

// writeLogs makes a log and the one that was moved away before it.
func writeLogs(t *testing.T, old, log string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), host.LogFile)
	for p, content := range map[string]string{path + host.OldLog: old, path: log} {
		if content == "" {
			continue
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestServerLog(t *testing.T) {
	now := time.Date(2026, 1, 2, 15, 10, 0, 0, time.UTC)
	path := writeLogs(t, rec(0, "INFO", "oldest")+rec(1, "DEBUG", "detail"),
		rec(5, "WARN", "odd")+rec(6, "ERROR", "broken")+"panic: at once\n\tgoroutine 1\n"+rec(7, "INFO", "fine")+"time=2026-01-02T15:08:00Z level=INFO msg=unfini")
	all := []string{"oldest", "detail", "odd", "broken", "panic: at once", "\tgoroutine 1", "fine"}
	for _, tt := range []struct {
		name string
		o    serverLog
		want []string
	}{
		{"all", serverLog{Tail: -1}, all},
		{"level", serverLog{Tail: -1, Level: "warn"}, []string{"odd", "broken", "panic: at once", "\tgoroutine 1"}},
		{"since a while", serverLog{Tail: -1, Since: "4m"}, []string{"broken", "panic: at once", "\tgoroutine 1", "fine"}},
		{"since a time", serverLog{Tail: -1, Since: "2026-01-02T15:07:00Z"}, []string{"fine"}},
		{"tail", serverLog{Tail: 2}, []string{"\tgoroutine 1", "fine"}},
		{"tail of a level", serverLog{Tail: 1, Level: "debug", Since: "2026-01-02T15:00:00Z"}, []string{"fine"}},
		{"no tail", serverLog{Tail: 0}, nil},
	} {
		keep, err := tt.o.filter(now)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		if err := showLog(t.Context(), &out, path, tt.o, keep); err != nil {
			t.Fatal(err)
		}
		var got []string
		for l := range strings.Lines(out.String()) {
			_, msg, ok := strings.Cut(l, "msg=")
			if !ok {
				msg = l
			}
			got = append(got, strings.TrimSuffix(msg, "\n"))
		}
		if strings.Join(got, "|") != strings.Join(tt.want, "|") {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestServerLogWrong(t *testing.T) {
	for want, o := range map[string]serverLog{
		`--level "loud": must be debug, info, warn or error`:                                     {Level: "loud"},
		`--since "noon": must be a duration such as 10m, or a time such as 2026-01-02T15:04:05Z`: {Since: "noon"},
		`--since "-5m": must be a duration such as 10m, or a time such as 2026-01-02T15:04:05Z`:  {Since: "-5m"},
	} {
		if _, err := o.filter(time.Now()); err == nil || err.Error() != want {
			t.Errorf("%+v: %v, want %s", o, err, want)
		}
	}
}

// What is written while the log is followed is shown once, a line at a time, also
// across the move of a log that grew too long.
func TestServerLogFollow(t *testing.T) {
	path := writeLogs(t, "", "first\nsec")
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	o := serverLog{Tail: -1, Follow: true}
	keep, err := o.filter(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		err := showLog(ctx, w, path, o, keep)
		w.Close()
		done <- err
	}()
	got := bufio.NewScanner(r)
	next := func(want string) {
		t.Helper()
		if !got.Scan() || got.Text() != want {
			t.Fatalf("%q, want %q (%v)", got.Text(), want, got.Err())
		}
	}
	write := func(s string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	next("first")
	write("ond\nthird\nlast ")
	next("second")
	next("third")
	write("of it\n")
	if err := os.Rename(path, path+host.OldLog); err != nil {
		t.Fatal(err)
	}
	write("new\n")
	next("last of it")
	next("new")
	cancel()
	if got.Scan() {
		t.Errorf("more: %q", got.Text())
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
