package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/client"
)

// lives records when the pods of a namespace became Ready and when they were gone,
// as a watch told.
type lives struct {
	mu      sync.Mutex
	ready   map[string]time.Time
	gone    map[string]time.Time
	state   map[string]string // for the error that names what is missing
	changed chan struct{}
}

func newLives() *lives {
	return &lives{ready: map[string]time.Time{}, gone: map[string]time.Time{}, state: map[string]string{}, changed: make(chan struct{})}
}

func (l *lives) observe(t watch.EventType, p *corev1.Pod) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state[p.Name] = podState(p)
	_, was := l.ready[p.Name]
	switch {
	case t == watch.Deleted:
		l.gone[p.Name] = now
	case !was && isReady(p):
		l.ready[p.Name] = now
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func podState(p *corev1.Pod) string {
	s := string(p.Status.Phase)
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			s += " " + w.Reason + " " + w.Message
		}
		if t := c.State.Terminated; t != nil {
			s += " exited " + strconv.Itoa(int(t.ExitCode))
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			s += " " + c.Message
		}
	}
	return s
}

// wait until all names are in which (l.ready or l.gone).
func (l *lives) wait(ctx context.Context, which map[string]time.Time, names []string) error {
	for {
		l.mu.Lock()
		missing := ""
		for _, n := range names {
			if _, ok := which[n]; !ok {
				missing = n
				break
			}
		}
		state, changed := l.state[missing], l.changed
		l.mu.Unlock()
		if missing == "" {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("pod %s is %s: %w", missing, state, context.Cause(ctx))
		}
	}
}

// took is the time of each name from begin to which.
func (l *lives) took(begin, which map[string]time.Time, names []string) []float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]float64, len(names))
	for i, n := range names {
		out[i] = millis(which[n].Sub(begin[n]))
	}
	return out
}

func (l *lives) lastOf(which map[string]time.Time, names []string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	var last time.Time
	for _, n := range names {
		if t := which[n]; t.After(last) {
			last = t
		}
	}
	return last
}

func (l *lives) run(ctx context.Context, s *side, ns string, open func()) error {
	w, err := client.For[*corev1.Pod](s.slow).In(ns).Watch(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	open()
	for e := range w.Events() {
		if e.Err != nil {
			return fmt.Errorf("watch: %w", e.Err)
		}
		if p, ok := e.Object.(*corev1.Pod); ok && e.Type != watch.Bookmark {
			l.observe(e.Type, p)
		}
	}
	if ctx.Err() == nil {
		return errors.New("the watch of pods ended")
	}
	return nil
}

func preparePodStart(_ context.Context, s *side, z sizes) (runner, error) {
	return simple{do: func(ctx context.Context) (fs []figure, err error) {
		err = inNamespace(ctx, s, "podstart", func(ns string) error {
			ctx, cancel := context.WithTimeoutCause(ctx, z.Patience, errLate)
			defer cancel()
			l := newLives()
			g, ctx := errgroup.WithContext(ctx)
			wctx, stop := context.WithCancel(ctx)
			defer stop()
			open := make(chan struct{})
			g.Go(func() error { return l.run(wctx, s, ns, func() { close(open) }) })
			g.Go(func() error {
				defer stop()
				select {
				case <-open:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				fs, err = podStartRound(ctx, s, z, ns, l)
				return err
			})
			return g.Wait()
		})
		return fs, err
	}}, nil
}

func podStartRound(ctx context.Context, s *side, z sizes, ns string, l *lives) ([]figure, error) {
	root := "/api/v1/namespaces/" + ns + "/pods"
	var mu sync.Mutex
	created, deleted := map[string]time.Time{}, map[string]time.Time{}
	begin := func(m map[string]time.Time, name string) {
		mu.Lock()
		defer mu.Unlock()
		m[name] = time.Now()
	}
	create := func(name string) request {
		begin(created, name)
		return request{http.MethodPost, root, asJSON, asJSON, realPod(name, z.Image, z.Command)}
	}
	remove := func(name string) request {
		begin(deleted, name)
		return request{Method: http.MethodDelete, Path: root + "/" + name, Accept: asJSON}
	}
	c := s.caller()
	defer c.close()
	var serial []string
	for i := range z.Serial {
		name := "serial-" + strconv.Itoa(i)
		serial = append(serial, name)
		if _, err := must(ctx, c, create(name)); err != nil {
			return nil, err
		}
		if err := l.wait(ctx, l.ready, serial[i:]); err != nil {
			return nil, fmt.Errorf("to Ready: %w", err)
		}
		if _, err := must(ctx, c, remove(name)); err != nil {
			return nil, err
		}
		if err := l.wait(ctx, l.gone, serial[i:]); err != nil {
			return nil, fmt.Errorf("to gone: %w", err)
		}
	}
	burst := make([]string, z.Burst)
	for i := range burst {
		burst[i] = "burst-" + strconv.Itoa(i)
	}
	all := func(r func(string) request, which map[string]time.Time) (time.Duration, error) {
		o, err := load{Clients: others, Count: len(burst), For: z.Patience, Request: func(i int) request { return r(burst[i]) }}.run(ctx, s)
		if err == nil && o.Errors > 0 {
			err = o.First
		}
		if err == nil {
			err = l.wait(ctx, which, burst)
		}
		if err != nil {
			return 0, err
		}
		return l.lastOf(which, burst).Sub(o.Start), nil
	}
	up, err := all(create, l.ready)
	if err != nil {
		return nil, fmt.Errorf("burst to Ready: %w", err)
	}
	var running memory
	if s.knowsServer() {
		if running, err = s.memory(); err != nil {
			return nil, err
		}
	}
	down, err := all(remove, l.gone)
	if err != nil {
		return nil, fmt.Errorf("burst to gone: %w", err)
	}
	starts, ends := l.took(created, l.ready, serial), l.took(deleted, l.gone, serial)
	out := []figure{
		{"pod created to Ready, one by one, p50", "ms", true, percentile(starts, 50)},
		{"pod created to Ready, one by one, p99", "ms", true, percentile(starts, 99)},
		{"pod deleted to gone, one by one, p50", "ms", true, percentile(ends, 50)},
		{"pod deleted to gone, one by one, p99", "ms", true, percentile(ends, 99)},
		{fmt.Sprintf("%d pods at once, all Ready", z.Burst), "s", true, up.Seconds()},
		{fmt.Sprintf("%d pods at once, Ready, p99 of each", z.Burst), "ms", true, percentile(l.took(created, l.ready, burst), 99)},
		{fmt.Sprintf("%d pods at once, all gone", z.Burst), "s", true, down.Seconds()},
		{fmt.Sprintf("%d pods at once, gone, p99 of each", z.Burst), "ms", true, percentile(l.took(deleted, l.gone, burst), 99)},
	}
	if s.knowsServer() {
		out = append(out, figure{fmt.Sprintf("memory with %d pods", z.Burst), "MiB", true, mib(running.rss())})
	}
	return out, nil
}
