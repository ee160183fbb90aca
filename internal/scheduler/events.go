package scheduler

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

// Limits of an EventWriter.
const (
	eventsWaiting = 10_000           // to be written; more are dropped
	eventWriters  = 4                // at once
	eventSeries   = 6 * time.Minute  // silence that ends a series
	eventRefresh  = 30 * time.Minute // between two writes of a series that goes on
	eventsKnown   = 4096             // events remembered for series
	eventQuiet    = 10 * time.Millisecond
	eventLatest   = time.Second
)

// EventWriter is an EventRecorder that writes events.k8s.io/v1 events. The same
// event about the same object state becomes a series: the second is written as a
// count of two, later ones are counted and written now and then.
type EventWriter struct {
	d       EventWriterDeps
	host    string
	last    atomic.Int64
	dropped atomic.Uint64

	mu    sync.Mutex
	queue []*eventsv1.Event
	known map[eventKey]*knownEvent
	wake  chan struct{}
}

// EventWriterDeps is what an EventWriter needs.
type EventWriterDeps struct {
	Client *client.Client
	// Controller is the reportingController; by default the schedulerName of the pod
	// on whose behalf something happened.
	Controller string
	Now        func() time.Time
	Log        *slog.Logger
}

type eventKey struct {
	eventType, action, reason string
	uid, related              types.UID
	rv                        string
}

type knownEvent struct {
	event   *eventsv1.Event
	count   int32
	at      time.Time // last seen
	written time.Time
}

// NewEventWriter returns an EventWriter; it writes while Run runs.
func NewEventWriter(d EventWriterDeps) *EventWriter {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.Default()
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return &EventWriter{d: d, host: host, known: map[eventKey]*knownEvent{}, wake: make(chan struct{}, 1)}
}

// Dropped is the number of events that were dropped because too many waited.
func (w *EventWriter) Dropped() uint64 { return w.dropped.Load() }

// Event implements EventRecorder.
func (w *EventWriter) Event(regarding, related *corev1.Pod, eventType, reason, action, note string) {
	now := w.d.Now()
	key := eventKey{eventType: eventType, action: action, reason: reason, uid: regarding.UID, rv: regarding.ResourceVersion}
	if related != nil {
		key.related = related.UID
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if k := w.known[key]; k != nil && now.Sub(k.at) < eventSeries {
		k.count++
		k.at = now
		if k.count > 2 && now.Sub(k.written) < eventRefresh {
			return
		}
		k.written = now
		e := k.event.DeepCopy()
		e.Series = &eventsv1.EventSeries{Count: k.count, LastObservedTime: metav1.NewMicroTime(now)}
		w.enqueue(e)
		return
	}
	by := w.controller(regarding, related)
	e := &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: regarding.Namespace, Name: w.name(regarding.Name, now)},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: by, ReportingInstance: by + "-" + w.host,
		Action: action, Reason: reason, Type: eventType, Note: note,
		Regarding: podReference(regarding),
	}
	if related != nil {
		ref := podReference(related)
		e.Related = &ref
	}
	if len(w.known) >= eventsKnown {
		w.forget(now)
	}
	w.known[key] = &knownEvent{event: e, count: 1, at: now, written: now}
	w.enqueue(e)
}

// controller is who reports: the scheduler of the pod that something was done for.
func (w *EventWriter) controller(regarding, related *corev1.Pod) string {
	if related != nil {
		regarding = related
	}
	switch {
	case w.d.Controller != "":
		return w.d.Controller
	case regarding.Spec.SchedulerName != "":
		return regarding.Spec.SchedulerName
	}
	return corev1.DefaultSchedulerName
}

// forget drops the series that are over, and if that leaves many, those of the
// older half: it is called once for many events.
func (w *EventWriter) forget(now time.Time) {
	times := make([]time.Time, 0, len(w.known))
	for k, v := range w.known {
		if now.Sub(v.at) >= eventSeries {
			delete(w.known, k)
			continue
		}
		times = append(times, v.at)
	}
	if len(times) <= eventsKnown/2 {
		return
	}
	slices.SortFunc(times, time.Time.Compare)
	middle := times[len(times)/2]
	for k, v := range w.known {
		if !v.at.After(middle) {
			delete(w.known, k)
		}
	}
}

func podReference(p *corev1.Pod) corev1.ObjectReference {
	return corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion}
}

// name makes names from a time that never repeats within this writer.
func (w *EventWriter) name(object string, now time.Time) string {
	n := now.UnixNano()
	for {
		last := w.last.Load()
		n = max(n, last+1)
		if w.last.CompareAndSwap(last, n) {
			break
		}
	}
	suffix := fmt.Sprintf(".%x", n)
	return object[:min(len(object), 253-len(suffix))] + suffix
}

func (w *EventWriter) enqueue(e *eventsv1.Event) {
	if len(w.queue) >= eventsWaiting {
		w.dropped.Add(1)
		return
	}
	w.queue = append(w.queue, e)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Run writes events until ctx ends. It begins when none has come for eventQuiet,
// or the first has waited for eventLatest: events must not keep the pods waiting
// that they tell of.
func (w *EventWriter) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		}
		if !w.settle(ctx) {
			return nil
		}
		w.mu.Lock()
		batch := w.queue
		w.queue = nil
		w.mu.Unlock()
		var g errgroup.Group
		g.SetLimit(eventWriters)
		for _, e := range batch {
			if ctx.Err() != nil {
				break
			}
			g.Go(func() error { w.write(ctx, e); return nil })
		}
		_ = g.Wait()
	}
}

// settle waits for the end of a burst; false when ctx ended.
func (w *EventWriter) settle(ctx context.Context) bool {
	latest := time.NewTimer(eventLatest)
	defer latest.Stop()
	quiet := time.NewTimer(eventQuiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-w.wake:
			quiet.Reset(eventQuiet)
		case <-quiet.C:
			return true
		case <-latest.C:
			return true
		}
	}
}

func (w *EventWriter) write(ctx context.Context, e *eventsv1.Event) {
	events := client.For[*eventsv1.Event](w.d.Client).In(e.Namespace)
	var err error
	if e.Series != nil {
		var patch []byte
		if patch, err = json.Marshal(map[string]any{"series": e.Series}); err == nil {
			_, err = events.Patch(ctx, e.Name, types.StrategicMergePatchType, patch, "")
		}
		if !apierrors.IsNotFound(err) {
			w.log(ctx, e, err)
			return
		}
	}
	_, err = events.Create(ctx, e)
	w.log(ctx, e, err)
}

// log tells of an event that could not be written; one of a namespace that is
// going away is of no interest.
func (w *EventWriter) log(ctx context.Context, e *eventsv1.Event, err error) {
	if err == nil || ctx.Err() != nil || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || apierrors.IsNotFound(err) {
		return
	}
	w.d.Log.Warn("event not written", "ns", e.Namespace, "pod", e.Regarding.Name, "reason", e.Reason, "err", err)
}
