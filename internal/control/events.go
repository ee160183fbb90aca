package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/lru"

	"skiff/internal/client"
)

// Limits of the recorder, upstream's.
const (
	eventQueue      = 1000             // events that wait to be written; more are dropped
	eventCache      = 4096             // objects and events remembered
	similarLimit    = 10               // different messages for one object and reason before they are combined
	similarWindow   = 10 * time.Minute // silence that ends combining and counting
	spamBurst       = 25               // events for one object at once
	spamRefill      = 5 * time.Minute  // one more event each
	eventTries      = 12
	eventRetryPause = 10 * time.Second
	maxEventName    = 253
)

// Recorder writes core/v1 Events. The same event again within ten minutes counts
// up instead of being written anew; more than ten different messages for the same
// object and reason are combined into one event; an object about which more than
// 25 events come at once is held to one in five minutes. Event never blocks: what
// comes while 1000 events wait is dropped and counted.
type Recorder struct {
	d       RecorderDeps
	in      chan *corev1.Event
	dropped atomic.Uint64
	last    atomic.Int64

	// Used by Run's goroutine alone.
	similar, seen, spam *lru.Cache
}

// RecorderDeps is what a Recorder is made from.
type RecorderDeps struct {
	Client *client.Client
	// Component is the event's source and reporting component; Host is set by
	// those who report from a node.
	Component, Host string
	Now             func() time.Time
	Log             *slog.Logger
}

// NewRecorder returns a Recorder; it writes while Run runs.
func NewRecorder(d RecorderDeps) *Recorder {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.Default()
	}
	return &Recorder{d: d, in: make(chan *corev1.Event, eventQueue), similar: lru.New(eventCache), seen: lru.New(eventCache), spam: lru.New(eventCache)}
}

// Dropped is the number of events that were dropped because too many waited.
func (r *Recorder) Dropped() uint64 { return r.dropped.Load() }

// Event records an event of type (corev1.EventTypeNormal or Warning) about obj.
func (r *Recorder) Event(obj client.Object, eventType, reason, format string, args ...any) {
	r.EventRef(Reference(obj), eventType, reason, format, args...)
}

// EventRef records an event about what ref names.
func (r *Recorder) EventRef(ref corev1.ObjectReference, eventType, reason, format string, args ...any) {
	r.AnnotatedEventRef(ref, nil, eventType, reason, format, args...)
}

// AnnotatedEventRef is EventRef with annotations of the event.
func (r *Recorder) AnnotatedEventRef(ref corev1.ObjectReference, annotations map[string]string, eventType, reason, format string, args ...any) {
	now := r.d.Now()
	ns := ref.Namespace
	if ns == "" {
		ns = metav1.NamespaceDefault
	}
	at := metav1.NewTime(now)
	message := format
	if len(args) > 0 {
		message = fmt.Sprintf(format, args...)
	}
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: ns, Name: r.name(ref.Name, now), Annotations: annotations},
		InvolvedObject: ref, Reason: reason, Message: message, Type: eventType, Count: 1,
		FirstTimestamp: at, LastTimestamp: at,
		Source:              corev1.EventSource{Component: r.d.Component, Host: r.d.Host},
		ReportingController: r.d.Component, ReportingInstance: r.d.Host,
	}
	select {
	case r.in <- e:
	default:
		r.dropped.Add(1)
	}
}

// name makes names from a time that never repeats within this recorder.
func (r *Recorder) name(object string, now time.Time) string {
	n := now.UnixNano()
	for {
		last := r.last.Load()
		if n <= last {
			n = last + 1
		}
		if r.last.CompareAndSwap(last, n) {
			break
		}
	}
	suffix := fmt.Sprintf(".%x", n)
	if len(object)+len(suffix) > maxEventName {
		object = strings.TrimRight(object[:maxEventName-len(suffix)], ".-")
	}
	return object + suffix
}

// kindOfType are the built-in kinds by their Go type: objects carry no kind in
// process.
var kindOfType = func() map[reflect.Type]schema.GroupVersionKind {
	m := make(map[reflect.Type]schema.GroupVersionKind, len(client.Kinds))
	for _, k := range client.Kinds {
		m[reflect.TypeOf(k.New())] = k.GVK
	}
	return m
}()

// Reference names an object in events.
func Reference(obj client.Object) corev1.ObjectReference {
	gvk := obj.GetObjectKind().GroupVersionKind()
	if gvk.Kind == "" {
		gvk = kindOfType[reflect.TypeOf(obj)]
	}
	return corev1.ObjectReference{
		APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Namespace: obj.GetNamespace(), Name: obj.GetName(),
		UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion(),
	}
}

// Run writes events until ctx ends; what waits then is lost.
func (r *Recorder) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-r.in:
			r.write(ctx, e)
		}
	}
}

type similarEvents struct {
	messages map[string]bool
	last     time.Time
}

type seenEvent struct {
	count int32
	first metav1.Time
	last  time.Time
	name  string
}

type spamBucket struct {
	tokens float64
	at     time.Time
}

func objectKey(e *corev1.Event) string {
	o := e.InvolvedObject
	return strings.Join([]string{o.APIVersion, o.Kind, o.Namespace, o.Name, string(o.UID), o.FieldPath, e.Type}, "\x00")
}

// correlate combines and counts. It returns the event to write, with the patch
// where it is written already, or nil where there are too many.
func (r *Recorder) correlate(e *corev1.Event) (*corev1.Event, string, []byte) {
	now := e.LastTimestamp.Time
	object := objectKey(e)
	similarKey := object + "\x00" + e.Reason
	key := similarKey + "\x00" + e.Message
	var s *similarEvents
	if v, ok := r.similar.Get(similarKey); ok {
		s = v.(*similarEvents)
	}
	if s == nil || now.Sub(s.last) > similarWindow {
		s = &similarEvents{messages: map[string]bool{}}
		r.similar.Add(similarKey, s)
	}
	s.last = now
	if len(s.messages) < similarLimit {
		s.messages[e.Message] = true
	}
	if len(s.messages) >= similarLimit {
		key = similarKey
		e = e.DeepCopy()
		e.Message = "(combined from similar events): " + e.Message
		e.ReportingController, e.ReportingInstance = "", ""
	}
	var patch []byte
	if v, ok := r.seen.Get(key); ok && now.Sub(v.(*seenEvent).last) <= similarWindow {
		old := v.(*seenEvent)
		e = e.DeepCopy()
		e.Name, e.FirstTimestamp, e.Count = old.name, old.first, old.count+1
		patch, _ = json.Marshal(map[string]any{"count": e.Count, "lastTimestamp": e.LastTimestamp, "message": e.Message})
	}
	var b *spamBucket
	if v, ok := r.spam.Get(object); ok {
		b = v.(*spamBucket)
		b.tokens = min(spamBurst, b.tokens+float64(now.Sub(b.at))/float64(spamRefill))
	} else {
		b = &spamBucket{tokens: spamBurst}
		r.spam.Add(object, b)
	}
	b.at = now
	r.remember(key, e)
	if b.tokens < 1 {
		return nil, "", nil
	}
	b.tokens--
	return e, key, patch
}

func (r *Recorder) remember(key string, e *corev1.Event) {
	r.seen.Add(key, &seenEvent{count: e.Count, first: e.FirstTimestamp, last: e.LastTimestamp.Time, name: e.Name})
}

// write writes one event. An answer from the server is final, but for an event
// that has expired meanwhile: it is written anew. Without an answer it is tried
// again.
func (r *Recorder) write(ctx context.Context, e *corev1.Event) {
	e, key, patch := r.correlate(e)
	if e == nil {
		return
	}
	events := client.For[*corev1.Event](r.d.Client).In(e.Namespace)
	for range eventTries {
		var err error
		if patch != nil {
			_, err = events.Patch(ctx, e.Name, types.StrategicMergePatchType, patch, "")
			if apierrors.IsNotFound(err) {
				patch = nil
				e = e.DeepCopy()
				e.Name = r.name(e.InvolvedObject.Name, r.d.Now())
				r.remember(key, e)
			}
		}
		if patch == nil {
			_, err = events.Create(ctx, e)
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		var status apierrors.APIStatus
		if errors.As(err, &status) {
			if !apierrors.IsAlreadyExists(err) {
				r.d.Log.Debug("event rejected", "ns", e.Namespace, "event", e.Name, "reason", e.Reason, "err", err)
			}
			return
		}
		if !sleep(ctx, eventRetryPause) {
			return
		}
	}
	r.d.Log.Warn("event given up", "ns", e.Namespace, "event", e.Name, "reason", e.Reason)
}
