package scheduler

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

// report is why a pod is pending; without a reason, that its nomination changed.
type report struct {
	pod     *corev1.Pod
	reason  string
	message string
	hint    string // follows the message in the event alone: programs read conditions
	quiet   bool   // no event
	failed  int    // how often it could not be written
	// nominated, where set, is the node that the pod waits for; "" clears it.
	nominated *string
}

// reporter writes the conditions of pending pods and their events. For each pod
// only the newest report is written, the first at once, later ones once a second
// at most: in a busy cluster the counts in the message change all the time.
// Reports are written in the order in which their pods came first.
type reporter struct {
	d Deps

	mu      sync.Mutex
	pending map[types.UID]report
	// order has those to be written now, held those that wait for the next
	// tick; what is not pending any more is passed over.
	order, held []types.UID
	recent      map[types.UID]bool
	wake        chan struct{}
}

// reportWriters is how many conditions are written at once; reportEvery is the
// least time between two for one pod.
const (
	reportWriters = 8
	reportEvery   = time.Second
)

// maxNote is the longest note of an event.
const maxNote = 1024

func newReporter(d Deps) *reporter {
	return &reporter{d: d, pending: map[types.UID]report{}, recent: map[types.UID]bool{}, wake: make(chan struct{}, 1)}
}

func (r *reporter) put(p report) {
	uid := p.pod.UID
	r.mu.Lock()
	old, waits := r.pending[uid]
	switch {
	case !waits:
	case p.reason == "":
		to := p.nominated
		p = old
		p.nominated = to
	case p.nominated == nil:
		p.nominated = old.nominated
	}
	r.pending[uid] = p
	urgent := p.nominated != nil && (!waits || old.nominated == nil)
	switch {
	case urgent:
		r.order = append(r.order, uid)
	case waits:
	case r.recent[uid]:
		r.held = append(r.held, uid)
	default:
		r.order = append(r.order, uid)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// drop forgets what was to be written about a pod.
func (r *reporter) drop(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Its place in order or held is passed over.
	delete(r.pending, uid)
}

func (r *reporter) take(n int) []report {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []report
	for len(out) < n && len(r.order) > 0 {
		uid := r.order[0]
		r.order = r.order[1:]
		p, ok := r.pending[uid]
		if !ok {
			continue
		}
		out = append(out, p)
		delete(r.pending, uid)
		r.recent[uid] = true
	}
	return out
}

// tick lets the held reports go, and tells whether another tick is needed.
func (r *reporter) tick() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order = append(r.order, r.held...)
	r.held = nil
	more := len(r.recent) > 0 || len(r.order) > 0
	clear(r.recent)
	return more
}

func (r *reporter) run(ctx context.Context) error {
	timer := time.NewTimer(reportEvery)
	defer timer.Stop()
	ticking := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
			if !ticking {
				ticking = true
				timer.Reset(reportEvery)
			}
		case <-timer.C:
			if ticking = r.tick(); ticking {
				timer.Reset(reportEvery)
			}
		}
		for ctx.Err() == nil {
			batch := r.take(64)
			if len(batch) == 0 {
				break
			}
			var g errgroup.Group
			g.SetLimit(reportWriters)
			for _, p := range batch {
				g.Go(func() error { r.write(ctx, p); return nil })
			}
			_ = g.Wait()
		}
	}
}

func (r *reporter) write(ctx context.Context, p report) {
	if !p.quiet && p.reason != "" {
		note := p.message
		if p.hint != "" && len(note)+len(p.hint)+len(" Nearest: .") <= maxNote {
			note += " Nearest: " + p.hint + "."
		}
		if len(note) > maxNote {
			note = note[:maxNote-4] + " ..."
		}
		r.d.Events.Event(p.pod, nil, corev1.EventTypeWarning, "FailedScheduling", "Scheduling", note)
	}
	pods := client.For[*corev1.Pod](r.d.Client).In(p.pod.Namespace)
	for range conditionTries {
		patch := conditionPatch(p, metav1.NewTime(r.d.Now()))
		if patch == nil {
			return
		}
		_, err := pods.Patch(ctx, p.pod.Name, types.StrategicMergePatchType, patch, "status")
		if err == nil || apierrors.IsNotFound(err) || ctx.Err() != nil {
			return
		}
		if !apierrors.IsConflict(err) {
			r.again(p, err)
			return
		}
		now, err := pods.Get(ctx, p.pod.Name)
		if err != nil || now.UID != p.pod.UID || now.Spec.NodeName != "" {
			// It pends no more.
			return
		}
		p.pod = now
	}
}

// again has a report written at the next tick, unless there is a newer one.
func (r *reporter) again(p report, err error) {
	p.quiet = true
	if p.failed++; p.failed > reportTries {
		r.d.Log.Warn("pod condition not written", "ns", p.pod.Namespace, "pod", p.pod.Name, "err", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	uid := p.pod.UID
	if old, newer := r.pending[uid]; newer {
		if old.nominated == nil {
			old.nominated = p.nominated
			r.pending[uid] = old
		}
		return
	}
	r.pending[uid] = p
	r.held = append(r.held, uid)
}

// reportTries is how many times, a second apart, a condition is tried while the
// API cannot take it.
const reportTries = 60

// conditionTries bounds how often a condition is written against newer states of
// its pod.
const conditionTries = 5

// conditionPatch returns the patch of a pod's status, nil where it says so already.
func conditionPatch(p report, now metav1.Time) []byte {
	c := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: p.reason, Message: p.message,
		ObservedGeneration: p.pod.Generation, LastTransitionTime: now,
	}
	same := p.reason == ""
	if i := slices.IndexFunc(p.pod.Status.Conditions, func(o corev1.PodCondition) bool { return o.Type == c.Type }); i >= 0 {
		old := p.pod.Status.Conditions[i]
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		c.LastProbeTime = old.LastProbeTime
		same = same || old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message && old.ObservedGeneration == c.ObservedGeneration
	}
	if same && (p.nominated == nil || *p.nominated == p.pod.Status.NominatedNodeName) {
		return nil
	}
	status := map[string]any{}
	if !same {
		status["conditions"] = []corev1.PodCondition{c}
	}
	if p.nominated != nil {
		var v any = *p.nominated
		if v == "" {
			v = nil
		}
		status["nominatedNodeName"] = v
	}
	// The uid keeps a pod that was made anew under this name from being told
	// what befell the old one, the resourceVersion one that was bound meanwhile
	// from being told that it is not scheduled.
	b, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.pod.UID, "resourceVersion": p.pod.ResourceVersion}, "status": status,
	})
	if err != nil {
		return nil
	}
	return b
}
