package usage

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// maxReading bounds a kubelet's answer, bytes: 250 pods of ten containers have some
// 2 MiB.
const maxReading = 16 << 20

type podKey struct{ ns, name string }

// sample is a counter of processor time in nanoseconds and the bytes of a working set,
// as they were at a time of the node's clock. start is when the container started,
// zero where that is not known.
type sample struct {
	start, at   time.Time
	cpu, memory int64
}

// reading is one answer of a kubelet, which came at read on this process's clock.
type reading struct {
	read time.Time
	node sample
	pods map[podKey]map[string]sample
}

// readAll reads every ready node, those last that did not answer before, and forgets
// nodes that are not ready or gone.
func (s *Source) readAll(ctx context.Context) {
	nodes, err := s.d.Nodes(ctx)
	if err != nil {
		s.d.Log.Warn("list nodes for their usage", "err", err)
		return
	}
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n *corev1.Node) bool { return !ready(n) })
	s.mu.Lock()
	kept := make(map[string]*node, len(nodes))
	for _, n := range nodes {
		k := s.nodes[n.Name]
		if k == nil {
			k = &node{}
		}
		kept[n.Name] = k
	}
	s.nodes = kept
	slices.SortStableFunc(nodes, func(a, b *corev1.Node) int { return cmp.Compare(kept[a.Name].failures, kept[b.Name].failures) })
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { s.readNode(ctx, n, kept[n.Name]) })
	}
	wg.Wait()
	s.mu.Lock()
	s.round = true
	s.tell()
	s.mu.Unlock()
}

// tell wakes those who wait; under s.mu.
func (s *Source) tell() {
	close(s.told)
	s.told = make(chan struct{})
}

// readNode reads a node, and a second time where nothing is known of it.
func (s *Source) readNode(ctx context.Context, n *corev1.Node, k *node) {
	if !s.readOnce(ctx, n, k) {
		return
	}
	s.mu.Lock()
	alone := k.prev == nil
	s.mu.Unlock()
	if !alone {
		return
	}
	t := time.NewTimer(firstWindow)
	defer t.Stop()
	select {
	case <-t.C:
		s.readOnce(ctx, n, k)
	case <-ctx.Done():
	}
}

func (s *Source) readOnce(ctx context.Context, n *corev1.Node, k *node) bool {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	r, err := s.read(ctx, n)
	<-s.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		k.failures++
		if k.failures == 1 && ctx.Err() == nil {
			s.d.Log.Warn("read a node's usage", "node", n.Name, "err", err)
		}
		s.tell()
		return false
	}
	k.failures = 0
	k.take(r)
	s.tell()
	return true
}

// take adds a reading. What a runtime has not measured anew since the last one is kept
// with the sample before it: some measure no more than every 15 seconds.
func (n *node) take(r *reading) {
	old, older := n.last, n.prev
	n.last, n.prev = r, old
	if old == nil {
		return
	}
	if r.node.at.Before(old.node.at) {
		// The node's clock was set back: what it said before is of another time.
		n.prev = nil
		return
	}
	if older == nil {
		return
	}
	if r.node.at.Equal(old.node.at) {
		old.node = older.node
	}
	for p, cs := range r.pods {
		for c, s := range cs {
			if was, ok := old.pods[p][c]; ok && s.at.Equal(was.at) {
				if before, ok := older.pods[p][c]; ok {
					old.pods[p][c] = before
				}
			}
		}
	}
}

func (s *Source) read(ctx context.Context, n *corev1.Node) (*reading, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	u, rt, err := s.d.Kubelets.Kubelet(ctx, n)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.JoinPath("metrics", "resource").String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReading+1))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the kubelet answers %s: %s", resp.Status, bytes.TrimSpace(body[:min(len(body), 200)]))
	}
	if len(body) > maxReading {
		return nil, fmt.Errorf("the kubelet's answer is longer than %d bytes", maxReading)
	}
	return parse(body, s.d.Now())
}

// parse reads Prometheus' text format. A line without a time is of now; a value that
// is not a number, negative or too large counts as not there. What has not both
// counters is left out.
func parse(body []byte, now time.Time) (*reading, error) {
	r := &reading{read: now, pods: map[podKey]map[string]sample{}}
	type seen struct {
		sample
		parts int
	}
	var own seen
	all := map[podKey]map[string]*seen{}
	sc := bufio.NewScanner(bytes.NewReader(body))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		name, labels, value, at, ok := parseLine(sc.Text())
		if !ok {
			continue
		}
		if at.IsZero() {
			at = now
		}
		to, part := &own, strings.TrimPrefix(name, "node_")
		if p, ok := strings.CutPrefix(name, "container_"); ok {
			k := podKey{labels["namespace"], labels["pod"]}
			c := labels["container"]
			if k.ns == "" || k.name == "" || c == "" {
				continue
			}
			if all[k] == nil {
				all[k] = map[string]*seen{}
			}
			if all[k][c] == nil {
				all[k][c] = &seen{}
			}
			to, part = all[k][c], p
		} else if part == name {
			continue
		}
		switch part {
		case "cpu_usage_seconds_total":
			if n, ok := integer(value * 1e9); ok {
				to.cpu, to.at = n, at
				to.parts |= 1
			}
		case "memory_working_set_bytes":
			if n, ok := integer(value); ok {
				to.memory = n
				to.parts |= 2
			}
		case "start_time_seconds":
			if n, ok := integer(value * 1e3); ok {
				to.start = time.UnixMilli(n)
			}
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("the kubelet's answer: %w", err)
	}
	if own.parts != 3 {
		return nil, fmt.Errorf("the kubelet's answer does not say what the node uses")
	}
	r.node = own.sample
	for k, cs := range all {
		whole := map[string]sample{}
		for name, c := range cs {
			if c.parts != 3 {
				// A pod is told whole or not at all.
				whole = nil
				break
			}
			whole[name] = c.sample
		}
		if whole != nil {
			r.pods[k] = whole
		}
	}
	return r, nil
}

func integer(v float64) (int64, bool) {
	return int64(v), v >= 0 && v < math.MaxInt64 // NaN is neither
}

// parseLine takes NAME{LABEL="VALUE",...} VALUE [MILLISECONDS] apart; it is not ok for
// comments and for what is not of this form.
func parseLine(line string) (name string, labels map[string]string, value float64, at time.Time, ok bool) {
	line = strings.TrimSpace(line)
	end := strings.IndexAny(line, "{ \t")
	if end <= 0 || line[0] == '#' {
		return "", nil, 0, time.Time{}, false
	}
	name, line = line[:end], line[end:]
	if line[0] == '{' {
		if labels, line, ok = parseLabels(line[1:]); !ok {
			return "", nil, 0, time.Time{}, false
		}
	}
	f := strings.Fields(line)
	if len(f) != 1 && len(f) != 2 {
		return "", nil, 0, time.Time{}, false
	}
	value, err := strconv.ParseFloat(f[0], 64)
	if err != nil {
		return "", nil, 0, time.Time{}, false
	}
	if len(f) == 2 {
		ms, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return "", nil, 0, time.Time{}, false
		}
		at = time.UnixMilli(ms)
	}
	return name, labels, value, at, true
}

// parseLabels reads up to the closing brace and returns what follows it.
func parseLabels(s string) (labels map[string]string, rest string, ok bool) {
	labels = map[string]string{}
	for {
		s = strings.TrimLeft(s, ", \t")
		if s == "" {
			return nil, "", false
		}
		if s[0] == '}' {
			return labels, s[1:], true
		}
		name, after, found := strings.Cut(s, "=")
		if !found || len(after) < 2 || after[0] != '"' {
			return nil, "", false
		}
		end := 1
		for end < len(after) && after[end] != '"' {
			if after[end] == '\\' {
				end++
			}
			end++
		}
		if end >= len(after) {
			return nil, "", false
		}
		v := after[1:end]
		if strings.ContainsRune(v, '\\') {
			v = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n").Replace(v)
		}
		labels[strings.TrimSpace(name)] = v
		s = after[end+1:]
	}
}
