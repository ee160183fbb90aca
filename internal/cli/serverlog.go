package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/spf13/pflag"

	"skiff/internal/admin"
	"skiff/internal/host"
)

// serverLog says what of skiff's own log is shown.
type serverLog struct {
	// Follow waits for more until the context ends.
	Follow bool
	// Since is a duration before now ("10m") or a time (RFC 3339); empty for all.
	Since string
	// Tail is how many lines of what is there are shown; negative for all.
	Tail int
	// Level is the lowest level shown: debug, info, warn or error; empty for all.
	Level string
}

// flags puts the options on a command.
func (o *serverLog) flags(f *pflag.FlagSet) {
	f.BoolVarP(&o.Follow, "follow", "f", false, "show what is logged from now on, too")
	f.StringVar(&o.Since, "since", "", "leave out what is older: a duration (10m) or a time (2026-01-02T15:04:05Z)")
	f.IntVarP(&o.Tail, "tail", "n", -1, "show the last lines only; -1 for all")
	f.StringVar(&o.Level, "level", "", "leave out what is below this level: debug, info, warn or error")
}

// serverLog shows the log of the skiff that c means: the file of one that `skiff
// up` put in the background, or the journal of one that runs as a service.
func (c *command) serverLog(ctx context.Context, o serverLog) error {
	a, i, err := c.existing()
	if err != nil {
		return err
	}
	keep, err := o.filter(time.Now())
	if err != nil {
		return err
	}
	path := i.Run(host.LogFile)
	st, err := a.Status(ctx)
	if err != nil && !errors.Is(err, admin.ErrNotRunning) {
		return err
	}
	_, fileErr := os.Stat(path)
	if st.Unit != "" || errors.Is(fileErr, os.ErrNotExist) && exists(host.UnitPath("/", i)) {
		return c.unitLog(ctx, i, o, keep)
	}
	if errors.Is(fileErr, os.ErrNotExist) {
		return fmt.Errorf("cluster %q has no log: it was not started in the background since this machine was (one in the foreground logs to standard error)", i.Name)
	}
	return showLog(ctx, c.out, path, o, keep)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// logFilter keeps or drops the lines of a log in their order. What is no record
// (the trace of a panic) goes with the record before it.
type logFilter struct {
	since time.Time
	level slog.Level
	show  bool
}

func (o serverLog) filter(now time.Time) (*logFilter, error) {
	f := &logFilter{level: slog.LevelDebug, show: true}
	if o.Level != "" {
		if err := f.level.UnmarshalText([]byte(o.Level)); err != nil {
			return nil, fmt.Errorf("--level %q: must be debug, info, warn or error", o.Level)
		}
	}
	if o.Since == "" {
		return f, nil
	}
	if d, err := time.ParseDuration(o.Since); err == nil && d >= 0 {
		f.since = now.Add(-d)
		return f, nil
	}
	at, err := time.Parse(time.RFC3339, o.Since)
	if err != nil {
		return nil, fmt.Errorf("--since %q: must be a duration such as 10m, or a time such as 2026-01-02T15:04:05Z", o.Since)
	}
	f.since = at
	return f, nil
}

// keep tells whether a line is shown.
func (f *logFilter) keep(line string) bool {
	rest, ok := strings.CutPrefix(line, "time=")
	if !ok {
		return f.show
	}
	stamp, rest, _ := strings.Cut(rest, " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil {
		return f.show
	}
	f.show = !at.Before(f.since)
	var level slog.Level
	if word, ok := strings.CutPrefix(rest, "level="); ok && f.show {
		word, _, _ = strings.Cut(word, " ")
		f.show = level.UnmarshalText([]byte(word)) != nil || level >= f.level
	}
	return f.show
}

// showLog writes what of the log at path is asked for, the one that was moved
// away from there before it included.
func showLog(ctx context.Context, w io.Writer, path string, o serverLog, keep *logFilter) error {
	// Watched from before the first read: nothing falls between the two.
	var changes *fsnotify.Watcher
	if o.Follow {
		var err error
		if changes, err = fsnotify.NewWatcher(); err != nil {
			return fmt.Errorf("follow the log: %w", err)
		}
		defer changes.Close()
		if err := changes.Add(filepath.Dir(path)); err != nil {
			return fmt.Errorf("follow the log: %w", err)
		}
	}
	last := lastLines{n: o.Tail}
	if err := eachLine(path+host.OldLog, keep, last.add); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer func() { f.Close() }()
	r := bufio.NewReader(f)
	partial, err := lines(r, "", keep, last.add)
	if err != nil {
		return err
	}
	out := func(line string) error { _, err := io.WriteString(w, line+"\n"); return err }
	for _, l := range last.lines {
		if err := out(l); err != nil {
			return err
		}
	}
	if !o.Follow {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-changes.Errors:
			return fmt.Errorf("follow the log: %w", err)
		case e := <-changes.Events:
			if e.Name != path {
				continue
			}
			// The rest of the file that is open comes first, also where it was moved.
			if partial, err = lines(r, partial, keep, out); err != nil {
				return err
			}
			if !e.Has(fsnotify.Create) {
				continue
			}
			next, err := os.Open(path)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("log: %w", err)
			}
			f.Close()
			f = next
			r.Reset(f)
			if partial, err = lines(r, "", keep, out); err != nil {
				return err
			}
		}
	}
}

// lastLines keeps the last n lines; all where n is negative.
type lastLines struct {
	n     int
	lines []string
}

func (l *lastLines) add(line string) error {
	if l.n == 0 {
		return nil
	}
	if l.n > 0 && len(l.lines) == l.n {
		copy(l.lines, l.lines[1:])
		l.lines = l.lines[:l.n-1]
	}
	l.lines = append(l.lines, line)
	return nil
}

func eachLine(path string, keep *logFilter, do func(string) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer f.Close()
	_, err = lines(bufio.NewReader(f), "", keep, do)
	return err
}

// lines hands on the whole lines that are there, the first of which began with
// partial, and returns the beginning of one that is still being written.
func lines(r *bufio.Reader, partial string, keep *logFilter, do func(string) error) (string, error) {
	for {
		s, err := r.ReadString('\n')
		partial += s
		if errors.Is(err, io.EOF) {
			return partial, nil
		}
		if err != nil {
			return partial, fmt.Errorf("log: %w", err)
		}
		line := strings.TrimSuffix(partial, "\n")
		partial = ""
		if keep.keep(line) {
			if err := do(line); err != nil {
				return "", err
			}
		}
	}
}

// unitLog shows what the journal has of the service of i.
func (c *command) unitLog(ctx context.Context, i host.Instance, o serverLog, keep *logFilter) error {
	journal, err := exec.LookPath("journalctl")
	if err != nil {
		return fmt.Errorf("cluster %q runs as the service %s, whose log is in systemd's journal, and there is no journalctl to read it with", i.Name, i.Unit())
	}
	args := []string{"--unit", i.Unit(), "--output", "cat", "--no-pager"}
	if !keep.since.IsZero() {
		args = append(args, "--since", "@"+strconv.FormatInt(keep.since.Unix(), 10))
	}
	if o.Follow {
		args = append(args, "--follow", "--lines", "all")
	}
	cmd := exec.CommandContext(ctx, journal, args...)
	cmd.Stderr = c.err
	if o.Tail >= 0 && o.Follow {
		// Which lines are the last ones is known of those that pass the filter only
		// when there are no more: what was before is read by itself.
		past := o
		past.Follow = false
		if err := c.unitLog(ctx, i, past, keep); err != nil {
			return err
		}
		cmd.Args = append(cmd.Args[:len(cmd.Args)-1], "0")
		o.Tail = -1
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("journalctl: %w", err)
	}
	out := func(line string) error { _, err := io.WriteString(c.out, line+"\n"); return err }
	last := lastLines{n: o.Tail}
	do := out
	if o.Tail >= 0 {
		do = last.add
	}
	_, err = lines(bufio.NewReader(pipe), "", keep, do)
	for _, l := range last.lines {
		err = errors.Join(err, out(l))
	}
	if werr := cmd.Wait(); werr != nil && ctx.Err() == nil {
		err = errors.Join(err, fmt.Errorf("journalctl: %w", werr))
	}
	return err
}
