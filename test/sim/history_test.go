package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/client"
	"skiff/internal/codec"
	"skiff/internal/store"
	"skiff/internal/store/mem"
)

// change is one step: an object before and after; nil where there is none.
type change struct {
	rev      int64
	at       time.Time // of the simulation
	key      string    // kind/namespace/name
	old, new client.Object
}

// history follows the store, keeps the state as of the last step, and hands every
// step to the checks, in order.
type history struct {
	st    *mem.Store
	kinds map[string]*resource.Resource // by prefix of keys
	check func(*change)

	mu     sync.Mutex
	rev    int64
	state  map[string]client.Object
	steps  int
	beats  int // leases and events
	recent []string
	lives  map[string][]string // of the objects that there are, the last steps of each
	next   int
	lastAt time.Time // of the last step
}

const (
	keepRecent = 120
	keepLife   = 15
)

func newHistory(st *mem.Store, check func(*change)) *history {
	h := &history{st: st, kinds: map[string]*resource.Resource{}, check: check, rev: 1, state: map[string]client.Object{}, recent: make([]string, keepRecent), lives: map[string][]string{}}
	for _, r := range api.All() {
		if r.Prefix != "" && r.Twin == nil {
			h.kinds[r.Prefix] = r
		}
	}
	return h
}

// run follows the store until ctx ends.
func (h *history) run(ctx context.Context) error {
	for ctx.Err() == nil {
		w, err := h.st.Watch(ctx, "/registry/", h.rev)
		if err != nil {
			return err
		}
		for b := range w.Batches() {
			for _, e := range b.Events {
				if err := h.apply(e); err != nil {
					return err
				}
			}
		}
		if err := w.Err(); err != nil && errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
	return nil
}

func (h *history) kindOf(key string) (*resource.Resource, string) {
	for i := len(key) - 1; i > 0; i-- {
		if key[i] == '/' {
			if r := h.kinds[key[:i+1]]; r != nil {
				return r, key[i+1:]
			}
		}
	}
	return nil, ""
}

func (h *history) apply(e store.Event) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rev = e.KV.ModRev
	r, name := h.kindOf(e.KV.Key)
	if r == nil || r.Plural == "leases" || r.Plural == "events" {
		h.beats++
		return nil
	}
	c := &change{rev: e.KV.ModRev, at: time.Now(), key: r.Plural + "/" + name, old: h.state[r.Plural+"/"+name]}
	if e.Type == store.Put {
		o := r.New()
		if err := codec.FromStored(e.KV.Value, e.KV.ModRev, o); err != nil {
			return fmt.Errorf("step %d: %s: %w", h.steps, e.KV.Key, err)
		}
		c.new = o
		h.state[c.key] = o
	} else {
		delete(h.state, c.key)
	}
	h.steps++
	h.lastAt = c.at
	h.note(c.String())
	life := append(h.lives[c.key], h.line(c.String()))
	h.lives[c.key] = life[max(0, len(life)-keepLife):]
	if c.new == nil {
		delete(h.lives, c.key)
	}
	h.check(c)
	return nil
}

// unchecked ends the checks.
func (h *history) unchecked() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.check = func(*change) {}
}

// note adds a line to what is printed of a failure. The lock is held.
func (h *history) note(line string) {
	h.recent[h.next%keepRecent] = h.line(line)
	h.next++
}

func (h *history) line(text string) string { return time.Now().Format("02 15:04:05.000 ") + text }

// livesIn is what happened last to each object whose namespace and name a text has.
// The lock is held.
func (h *history) livesIn(text string) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(h.lives)) {
		_, name, _ := strings.Cut(key, "/")
		if strings.Contains(name, "/") && strings.Contains(text, name) {
			b.WriteString(strings.Join(h.lives[key], "\n") + "\n")
		}
	}
	return b.String()
}

// op notes an operation or a fault.
func (h *history) op(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.note(">> " + fmt.Sprintf(format, args...))
}

func (h *history) counts() (steps, beats int, last time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.steps, h.beats, h.lastAt
}

// tail is what happened last. The lock is held.
func (h *history) tail() string {
	var b strings.Builder
	for i := max(0, h.next-keepRecent); i < h.next; i++ {
		b.WriteString(h.recent[i%keepRecent])
		b.WriteByte('\n')
	}
	return b.String()
}

// all returns the objects of a type in the state. The lock is held.
func all[T client.Object](h *history) []T {
	var out []T
	for _, o := range h.state {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

func owner(o client.Object) types.UID {
	for _, r := range o.GetOwnerReferences() {
		if r.Controller != nil && *r.Controller {
			return r.UID
		}
	}
	return ""
}

func (c *change) object() client.Object {
	if c.new != nil {
		return c.new
	}
	return c.old
}

// recreated: the object of that name is another than before.
func (c *change) recreated() bool {
	return c.old != nil && c.new != nil && c.old.GetUID() != c.new.GetUID()
}

func (c *change) String() string {
	verb := "changed"
	switch {
	case c.old == nil:
		verb = "created"
	case c.new == nil:
		verb = "gone"
	}
	extra := ""
	if p, ok := c.object().(*corev1.Pod); ok {
		extra = fmt.Sprintf(" node=%s phase=%s ready=%v", p.Spec.NodeName, p.Status.Phase, ready(p))
	}
	if j, ok := c.object().(*batchv1.Job); ok {
		extra = fmt.Sprintf(" succeeded=%d failed=%d uncounted=%+v", j.Status.Succeeded, j.Status.Failed, ptr.Deref(j.Status.UncountedTerminatedPods, batchv1.UncountedTerminatedPods{}))
	}
	if b, ok := c.object().(*policyv1.PodDisruptionBudget); ok {
		s := b.Status
		extra = fmt.Sprintf(" healthy=%d of %d, %d demanded, allowed=%d disrupted=%v", s.CurrentHealthy, s.ExpectedPods, s.DesiredHealthy, s.DisruptionsAllowed, slices.Sorted(maps.Keys(s.DisruptedPods)))
	}
	if c.object().GetDeletionTimestamp() != nil {
		extra += fmt.Sprintf(" deleting in %d s, held by %v", ptr.Deref(c.object().GetDeletionGracePeriodSeconds(), -1), c.object().GetFinalizers())
	}
	return fmt.Sprintf("%d %s %s%s", c.rev, c.key, verb, extra)
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}
