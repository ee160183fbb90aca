package main

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"time"
)

// memory of the side's processes, all of them.
func (s *side) memory() (memory, error) {
	for try := 0; ; try++ {
		pids, err := s.pids()
		if err != nil {
			return memory{}, err
		}
		m, err := memoryOf(pids)
		// Between the two a process that starts a container may have ended.
		gone := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
		if !gone || s.DataDir == "" && s.Bin == "" || try == 10 {
			return m, err
		}
	}
}

func prepareIdle(ctx context.Context, s *side, z sizes) (runner, error) {
	if !s.knowsServer() {
		return simple{}, errors.New("idle needs the server's processes: --pid, --peer-pid or --data-dir")
	}
	if err := sleep(ctx, z.Settle); err != nil {
		return simple{}, err
	}
	return simple{do: func(ctx context.Context) ([]figure, error) { return idleRound(ctx, s, z) }}, nil
}

func idleRound(ctx context.Context, s *side, z sizes) ([]figure, error) {
	pids, err := s.pids()
	if err != nil {
		return nil, err
	}
	before, err := cpuOf(pids)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := sleep(ctx, z.Window); err != nil {
		return nil, err
	}
	after, err := cpuOf(pids)
	if err != nil {
		return nil, err
	}
	busy := (after - before).Seconds() / time.Since(start).Seconds()
	m, err := memoryOf(pids)
	if err != nil {
		return nil, err
	}
	return []figure{
		{"memory, idle", "MiB", true, mib(m.rss())},
		{"memory, idle, anonymous", "MiB", true, mib(m.Anon)},
		{"memory, idle, file-backed", "MiB", true, mib(m.File)},
		{"memory, idle, proportional", "MiB", true, mib(m.Pss)},
		{"CPU, idle", "% of a core", true, 100 * busy},
		{"processes", "", true, float64(len(pids))},
	}, nil
}

// sleep until d is over or ctx ends: here time itself is what is measured.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
