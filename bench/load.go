package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// load is a bounded run of requests by several clients at once, each on its own
// connection and without a pause between requests.
type load struct {
	Clients int
	// Count bounds the requests of all clients together, For the time in which
	// they are begun; whichever is met first.
	Count int
	For   time.Duration
	// Request makes request i, which is below Count and given out once.
	Request func(i int) request
}

// outcome of a load.
type outcome struct {
	Done    int // answered with a code below 400
	Errors  int
	First   error     // of the errors
	Start   time.Time // of the first request: all clients are connected
	Took    time.Duration
	CPU     time.Duration // of the server's processes; 0 where they are not known
	Latency []time.Duration

	cpuBefore time.Duration
}

func (o outcome) perSecond() float64 { return float64(o.Done) / o.Took.Seconds() }

// cpuMicros is the server's CPU time per request.
func (o outcome) cpuMicros() float64 {
	return float64(o.CPU.Microseconds()) / float64(max(o.Done, 1))
}

// run connects every client first, so that handshakes are not counted.
func (l load) run(ctx context.Context, s *side) (outcome, error) {
	callers := make([]caller, l.Clients)
	for i := range callers {
		callers[i] = s.caller()
		defer callers[i].close()
		if _, err := must(ctx, callers[i], request{Method: "GET", Path: "/version", Accept: asJSON}); err != nil {
			return outcome{}, fmt.Errorf("connect client %d: %w", i, err)
		}
	}
	var (
		out  outcome
		next atomic.Int64
		mu   sync.Mutex
		wg   sync.WaitGroup
	)
	before, err := s.cpu()
	if err != nil {
		return out, err
	}
	start := time.Now()
	out.Start, out.cpuBefore = start, before
	for _, c := range callers {
		wg.Go(func() {
			var latency []time.Duration
			var errs int
			var first error
			for ctx.Err() == nil && time.Since(start) < l.For {
				i := int(next.Add(1)) - 1
				if i >= l.Count {
					break
				}
				r := l.Request(i)
				t := time.Now()
				if _, err := must(ctx, c, r); err != nil {
					errs++
					if first == nil {
						first = err
					}
					continue
				}
				latency = append(latency, time.Since(t))
			}
			mu.Lock()
			defer mu.Unlock()
			out.Latency = append(out.Latency, latency...)
			out.Errors += errs
			if out.First == nil {
				out.First = first
			}
		})
	}
	wg.Wait()
	out.Took = time.Since(start)
	out.Done = len(out.Latency)
	after, err := s.cpu()
	if err != nil {
		return out, err
	}
	out.CPU = after - before
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	if out.Done == 0 {
		return out, fmt.Errorf("no request succeeded; the first: %w", out.First)
	}
	return out, nil
}
