package app

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"skiff/internal/host"
)

const (
	// mostLog is how long the log of a skiff in the background may grow before it is
	// put aside, bytes: /run is often memory, and there are two.
	mostLog = 16 << 20
	// logEvery is how often that is looked at.
	logEvery = time.Minute
)

// tendLog keeps the log in bounds. A skiff in the background writes it, and what Go
// says of a panic, to its standard output and error; what else those are is none of
// its business.
func tendLog(i host.Instance) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		t := time.NewTicker(logEvery)
		defer t.Stop()
		for {
			if err := putAside(i.Run(host.LogFile), mostLog, 1, 2); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
			}
		}
	}
}

// putAside moves the log at path away when it is longer than most, and has the
// descriptors, where they are that file, write to a new one. Who follows the log sees
// the new one appear only when nothing is written to the old one any more.
func putAside(path string, most int64, fds ...int) error {
	st, err := os.Stat(path)
	if err != nil || st.Size() <= most {
		return nil // a log that is not there does not grow
	}
	var ours []int
	for _, fd := range fds {
		var have, want unix.Stat_t
		if unix.Fstat(fd, &have) == nil && unix.Stat(path, &want) == nil && have.Ino == want.Ino && have.Dev == want.Dev {
			ours = append(ours, fd)
		}
	}
	if len(ours) == 0 {
		return nil
	}
	next := path + ".next"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("put the log aside: %w", err)
	}
	defer f.Close()
	for _, fd := range ours {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return fmt.Errorf("put the log aside: %w", err)
		}
	}
	if err := os.Rename(path, path+host.OldLog); err != nil {
		return fmt.Errorf("put the log aside: %w", err)
	}
	return os.Rename(next, path)
}
