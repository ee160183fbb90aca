package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/pprof"
	"sync"
)

// group runs the parts of a process. Parts stop in the opposite order of their
// start; the first that fails stops all.
type group struct {
	log *slog.Logger

	mu     sync.Mutex
	parts  []part
	failed chan error
}

type part struct {
	name string
	stop func()
	done chan struct{}
}

func newGroup(log *slog.Logger) *group { return &group{log: log, failed: make(chan error, 1)} }

// start runs a part until the group stops it. A part that returns on its own, with
// an error or without, ends the process.
func (g *group) start(name string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := part{name: name, stop: cancel, done: make(chan struct{})}
	g.mu.Lock()
	g.parts = append(g.parts, p)
	g.mu.Unlock()
	go func() {
		defer close(p.done)
		var err error
		// What it starts is its own, for who looks where goroutines and time go.
		pprof.Do(ctx, pprof.Labels(partLabel, name), func(ctx context.Context) { err = run(ctx) })
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) {
				g.log.Warn("stopped with an error", "part", name, "err", err)
			}
			return
		}
		if err == nil {
			err = errors.New("ended on its own")
		}
		select {
		case g.failed <- fmt.Errorf("%s: %w", name, err):
		default:
		}
	}()
}

// atStop calls f when the group stops, in its place among the parts.
func (g *group) atStop(name string, f func() error) {
	done := make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parts = append(g.parts, part{name: name, done: done, stop: func() {
		defer close(done)
		if err := f(); err != nil {
			g.log.Warn("stopped with an error", "part", name, "err", err)
		}
	}})
}

// wait returns when ctx ends or a part fails, with that part's error.
func (g *group) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.failed:
		return err
	}
}

// stop ends all parts, last started first.
func (g *group) stop() {
	g.mu.Lock()
	parts := g.parts
	g.parts = nil
	g.mu.Unlock()
	for i := len(parts) - 1; i >= 0; i-- {
		parts[i].stop()
		<-parts[i].done
	}
}
