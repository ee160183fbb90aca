package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// sentKey is the annotation that tells when a write was begun, in nanoseconds: an
// event carries its own time of origin. It stands before managedFields, which
// names it again, in both encodings.
const sentKey = "bench/sent"

// sentDigits is the length of a time in nanoseconds until the year 2286.
const sentDigits = 19

// sentAt reads the time of origin out of an encoded object; false where it has none.
func sentAt(b []byte) (int64, bool) {
	i := bytes.Index(b, []byte(sentKey))
	if i < 0 {
		return 0, false
	}
	b = b[i+len(sentKey):]
	// Between key and value stand `":"`, or a protobuf tag and a length.
	for skip := 0; skip < 4 && len(b) > 0 && (b[0] < '0' || b[0] > '9'); skip++ {
		b = b[1:]
	}
	if len(b) < sentDigits {
		return 0, false
	}
	n, err := strconv.ParseInt(string(b[:sentDigits]), 10, 64)
	return n, err == nil
}

// frames reads a protobuf watch: each frame is a length of four bytes and as many
// bytes. The frame is valid until the next call.
type frames struct {
	in  *bufio.Reader
	buf []byte
}

// maxFrame bounds one event: an object is at most 1.5 MiB in the store.
const maxFrame = 16 << 20

func (f *frames) next() ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(f.in, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint32(size[:]))
	if n > maxFrame {
		return nil, fmt.Errorf("watch event of %d bytes", n)
	}
	if cap(f.buf) < n {
		f.buf = make([]byte, 2*n)
	}
	f.buf = f.buf[:n]
	_, err := io.ReadFull(f.in, f.buf)
	return f.buf, err
}

func prepareFanout(_ context.Context, s *side, z sizes) (runner, error) {
	return simple{do: func(ctx context.Context) (fs []figure, err error) {
		err = inNamespace(ctx, s, "watch", func(ns string) error {
			fs, err = fanoutRound(ctx, s, z, ns)
			return err
		})
		return fs, err
	}}, nil
}

// writers of the watch scenario.
const writers = 4

// fanoutRound creates z.Events ConfigMaps as fast as the server takes them, while
// z.Watchers connections watch them, and ends when each has seen all.
func fanoutRound(ctx context.Context, s *side, z sizes, ns string) ([]figure, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, z.Patience, errLate)
	defer cancel()
	root := "/api/v1/namespaces/" + ns + "/configmaps"
	var (
		wg      sync.WaitGroup
		seen    atomic.Int64
		last    atomic.Int64 // time of the last event
		mu      sync.Mutex
		latency []time.Duration
		first   error
	)
	open := make(chan error, z.Watchers)
	for range z.Watchers {
		wg.Go(func() {
			w := s.e.wire()
			defer w.close()
			body, err := w.stream(ctx, request{
				Method: http.MethodGet, Path: root + "?watch=1&resourceVersion=0", Accept: asProtobuf + ";stream=watch",
			})
			open <- err
			if err != nil {
				return
			}
			mine := make([]time.Duration, 0, z.Events)
			f := frames{in: bufio.NewReaderSize(body, 64<<10)}
			for len(mine) < z.Events && err == nil {
				var b []byte
				if b, err = f.next(); err == nil {
					now := time.Now().UnixNano()
					// kube-root-ca.crt is a ConfigMap, too, and not ours.
					if at, ok := sentAt(b); ok {
						mine = append(mine, time.Duration(now-at))
						seen.Add(1)
						last.Store(now)
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			latency = append(latency, mine...)
			if err != nil && first == nil {
				first = fmt.Errorf("a watcher ended after %d of %d events: %w", len(mine), z.Events, err)
			}
		})
	}
	for range z.Watchers {
		if err := <-open; err != nil {
			cancel()
			wg.Wait()
			return nil, fmt.Errorf("open watch: %w", err)
		}
	}
	o, err := load{Clients: writers, Count: z.Events, For: z.Patience, Request: func(i int) request {
		return request{http.MethodPost, root, asJSON, asJSON, sentConfigMap("cm-"+strconv.Itoa(i), time.Now())}
	}}.run(ctx, s)
	if err == nil && o.Errors > 0 {
		err = fmt.Errorf("%d writes failed; the first: %w", o.Errors, o.First)
	}
	if err != nil {
		cancel()
		wg.Wait()
		return nil, err
	}
	wg.Wait()
	if first != nil {
		if cause := context.Cause(ctx); cause != nil {
			first = errors.Join(cause, first)
		}
		return nil, first
	}
	after, err := s.cpu()
	if err != nil {
		return nil, err
	}
	took := time.Unix(0, last.Load()).Sub(o.Start)
	n := seen.Load()
	out := []figure{
		{Name: fmt.Sprintf("events delivered, %d watchers", z.Watchers), Unit: "1/s", Value: float64(n) / took.Seconds()},
		{Name: "write begun to event read, p50", Unit: "ms", Lower: true, Value: percentile(millisOf(latency), 50)},
		{Name: "write begun to event read, p99", Unit: "ms", Lower: true, Value: percentile(millisOf(latency), 99)},
	}
	if s.knowsServer() {
		out = append(out, figure{"event delivered, server CPU", "us", true, float64((after - o.cpuBefore).Microseconds()) / float64(n)})
	}
	return out, nil
}

func sentConfigMap(name string, at time.Time) []byte {
	return []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"` + name + `","annotations":{"` + sentKey + `":"` +
		strconv.FormatInt(at.UnixNano(), 10) + `"}},"data":{"payload":"` + kilobyte[:256] + `"}}`)
}
