package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// rest is how long a server is left alone before its memory is measured again.
const rest = 20 * time.Second

func prepareList(ctx context.Context, s *side, z sizes) (runner, error) {
	ns, err := s.namespace(ctx, "list")
	end := func(ctx context.Context) error { return s.drop(ctx, ns) }
	if err != nil {
		return simple{end: end}, err
	}
	root := "/api/v1/namespaces/" + ns + "/pods"
	o, err := load{Clients: others, Count: z.Pods, For: z.Patience, Request: func(i int) request {
		return request{http.MethodPost, root, asJSON, asJSON, pod("pod-"+strconv.Itoa(i), nobody, shape{})}
	}}.run(ctx, s)
	if err == nil && o.Done != z.Pods {
		err = fmt.Errorf("made %d of %d pods in %v; %d errors, the first: %v", o.Done, z.Pods, o.Took, o.Errors, o.First)
	}
	if err != nil {
		return simple{end: end}, err
	}
	return simple{end: end, do: func(ctx context.Context) ([]figure, error) {
		var out []figure
		for _, enc := range []struct {
			name, accept string
			count        func([]byte) (int, error)
		}{{"JSON", asJSON, countJSON}, {"protobuf", asProtobuf, countProtobuf}} {
			fs, err := listRound(ctx, s, z, root, enc.name, enc.accept, enc.count)
			if err != nil {
				return out, fmt.Errorf("LIST %s: %w", enc.name, err)
			}
			out = append(out, fs...)
		}
		if s.knowsServer() {
			m, err := s.memory()
			if err != nil {
				return out, err
			}
			out = append(out, figure{"memory after LIST", "MiB", true, mib(m.rss())})
			select {
			case <-time.After(rest):
			case <-ctx.Done():
				return out, ctx.Err()
			}
			if m, err = s.memory(); err != nil {
				return out, err
			}
			out = append(out,
				figure{"memory at rest after LIST", "MiB", true, mib(m.rss())},
				figure{"memory at rest after LIST, anonymous", "MiB", true, mib(m.Anon)},
				figure{"memory at rest after LIST, file", "MiB", true, mib(m.File)})
		}
		return out, nil
	}}, nil
}

func listRound(ctx context.Context, s *side, z sizes, path, name, accept string, count func([]byte) (int, error)) ([]figure, error) {
	c := s.caller()
	defer c.close()
	// The first is not timed: it connects, grows the buffer, and is looked into.
	body, err := must(ctx, c, request{Method: http.MethodGet, Path: path, Accept: accept})
	if err != nil {
		return nil, err
	}
	size := len(body)
	if n, err := count(body); err != nil || n != z.Pods {
		return nil, fmt.Errorf("%d pods in the answer, want %d (%v)", n, z.Pods, err)
	}
	before, err := s.cpu()
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for range z.Lists {
		t := time.Now()
		if _, err := must(ctx, c, request{Method: http.MethodGet, Path: path, Accept: accept}); err != nil {
			return nil, err
		}
		took = append(took, time.Since(t))
	}
	after, err := s.cpu()
	if err != nil {
		return nil, err
	}
	title := fmt.Sprintf("LIST %d pods, %s", z.Pods, name)
	out := []figure{
		{title + ", p50", "ms", true, percentile(millisOf(took), 50)},
		{title + ", p99", "ms", true, percentile(millisOf(took), 99)},
		{title + ", size", "MB", true, float64(size) / 1e6},
	}
	if s.knowsServer() {
		out = append(out, figure{title + ", server CPU", "ms", true, millis(after-before) / float64(z.Lists)})
	}
	return out, nil
}

func countJSON(b []byte) (int, error) {
	var l struct{ Items []struct{} }
	err := json.Unmarshal(b, &l)
	return len(l.Items), err
}

func countProtobuf(b []byte) (int, error) {
	if len(b) < 4 || string(b[:4]) != "k8s\x00" {
		return 0, fmt.Errorf("not protobuf: %.20q", b)
	}
	var u runtime.Unknown
	if err := u.Unmarshal(b[4:]); err != nil {
		return 0, err
	}
	var l corev1.PodList
	err := l.Unmarshal(u.Raw)
	return len(l.Items), err
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
