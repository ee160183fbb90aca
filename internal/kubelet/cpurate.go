package kubelet

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// The window of usageNanoCores: from the last time that somebody asked, if that was
// not too short or too long a time ago, or a moment from now.
const (
	leastWindow = 200 * time.Millisecond
	mostWindow  = time.Minute
	askedWindow = 500 * time.Millisecond
)

// cpuRates makes processor usage of the cumulative counters of two readings. Nothing
// is read while nobody asks.
type cpuRates struct {
	mu   sync.Mutex
	last map[string]cpuStats
}

// fill sets the usage in s where it is not told by the runtime and there is a reading
// before. It tells whether that was so everywhere.
func (r *cpuRates) fill(s *summary) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	next, whole := map[string]cpuStats{}, true
	set := func(key string, c *cpuStats) {
		if c == nil || c.UsageCoreNanoSeconds == nil {
			return
		}
		old, ok := r.last[key]
		window := c.Time.Sub(old.Time.Time)
		if ok && window >= 0 && window < leastWindow {
			next[key] = old // too short: the older one remains the base
		} else {
			next[key] = cpuStats{Time: c.Time, UsageCoreNanoSeconds: c.UsageCoreNanoSeconds}
		}
		switch {
		case c.UsageNanoCores != nil:
		case ok && window >= leastWindow && window <= mostWindow && *c.UsageCoreNanoSeconds >= *old.UsageCoreNanoSeconds:
			n := uint64(float64(*c.UsageCoreNanoSeconds-*old.UsageCoreNanoSeconds) / window.Seconds())
			c.UsageNanoCores = &n
		default:
			whole = false
		}
	}
	set("", s.Node.CPU)
	for i := range s.Pods {
		p := &s.Pods[i]
		for j := range p.Containers {
			c := &p.Containers[j]
			set(c.id, c.CPU)
			if c.CPU != nil {
				add(&p.CPU.UsageNanoCores, c.CPU.UsageNanoCores)
			}
		}
	}
	r.last = next
	return whole
}

// serveStats answers with the summary; where there was no reading from which a rate
// can be made, it takes one and waits.
func (k *Kubelet) serveStats(w http.ResponseWriter, r *http.Request) {
	s, err := k.summarizeRates(r.Context())
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

func (k *Kubelet) summarizeRates(ctx context.Context) (*summary, error) {
	s, err := k.summarize(ctx)
	if err != nil || k.rates.fill(s) {
		return s, err
	}
	t := time.NewTimer(askedWindow)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s, err = k.summarize(ctx); err != nil {
		return nil, err
	}
	k.rates.fill(s)
	return s, nil
}
