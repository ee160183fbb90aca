package apiserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/cache"
	"skiff/internal/codec"
)

// httpWatch streams a watch until its end.
func (s *Server) httpWatch(ctx context.Context, w http.ResponseWriter, r *http.Request, rq *request, o *metav1.ListOptions) error {
	a, err := negotiate(r)
	if err != nil {
		return err
	}
	st, err := s.openWatch(ctx, rq, o)
	if err != nil {
		return err
	}
	defer st.close()
	flush, ok := w.(http.Flusher)
	if !ok {
		return apierrors.NewInternalError(fmt.Errorf("unable to start watch - can't get http.Flusher: %#v", w))
	}
	a.pretty = false
	switch a.media {
	case codec.Protobuf:
		w.Header().Set("Content-Type", codec.Protobuf+";stream=watch")
	default:
		a.media = codec.JSON
		w.Header().Set("Content-Type", codec.JSON)
	}
	s.writeWarnings(w, rq)
	w.WriteHeader(http.StatusOK)
	flush.Flush()
	enc := &frameWriter{s: s, rq: rq, st: st, a: a, w: w, q: r.URL.Query().Get("includeObject")}
	pace := pacer{}
	defer pace.stop()
	for {
		frames, err := st.next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.sent(errors.Join(enc.fail(err), enc.flush()))
			flush.Flush()
			return nil
		case frames == nil:
			return nil
		}
		rq.kind.watched.Add(uint64(len(frames)))
		for _, f := range frames {
			if err := enc.write(f); err != nil {
				s.sent(err)
				return nil
			}
		}
		if err := enc.flush(); err != nil {
			s.sent(err)
			return nil
		}
		flush.Flush()
		pace.rest(ctx)
	}
}

// pacer gathers the changes of a burst: after a flush that soon followed another
// it lets a moment pass, in which the next changes come together. A change after
// a quiet time is never held back.
type pacer struct {
	last  time.Time
	timer *time.Timer
}

// gatherFor is how long the changes of a burst are gathered: little beside the
// time that a burst's writes take, and much beside a write to a connection.
const gatherFor = 2 * time.Millisecond

func (p *pacer) rest(ctx context.Context) {
	now := time.Now()
	soon := now.Sub(p.last) < 2*gatherFor
	p.last = now
	if !soon {
		return
	}
	if p.timer == nil {
		p.timer = time.NewTimer(gatherFor)
	} else {
		p.timer.Reset(gatherFor)
	}
	select {
	case <-p.timer.C:
		p.last = time.Now()
	case <-ctx.Done():
	}
}

func (p *pacer) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}

// frameWriter encodes the events of one watch.
type frameWriter struct {
	s    *Server
	rq   *request
	st   *stream
	a    answer
	w    io.Writer
	q    string
	rows bool   // a Table's columns were sent
	buf  []byte // frames not yet written
}

// view is what the bytes of a frame depend on besides its event.
type view struct {
	kind *kind
	typ  watch.EventType
}

func (e *frameWriter) write(f frame) error {
	if err := e.encode(f); err != nil || len(e.buf) < mostBuffered {
		return err
	}
	return e.flush()
}

// encode appends a frame to those that wait: as all watchers with the same view
// share it, where there is an event.
func (e *frameWriter) encode(f frame) error {
	switch {
	case e.a.as != "":
		return e.transformed(f)
	case f.event == nil:
		return e.append(f)
	}
	enc := cache.JSON
	if e.a.media == codec.Protobuf {
		enc = cache.Protobuf
	}
	b, err := f.event.Frame(enc, view{e.rq.kind, f.typ}, func() ([]byte, error) {
		one := frameWriter{s: e.s, rq: e.rq, st: e.st, a: e.a}
		err := one.append(f)
		return one.buf, err
	})
	if err != nil {
		return err
	}
	e.buf = append(e.buf, b...)
	return nil
}

// mostBuffered is how many bytes of frames wait for the end of a batch.
const mostBuffered = 64 << 10

// flush writes the frames that wait.
func (e *frameWriter) flush() error {
	if len(e.buf) == 0 {
		return nil
	}
	_, err := e.w.Write(e.buf)
	if cap(e.buf) > 2*mostBuffered {
		e.buf = nil
	}
	e.buf = e.buf[:0]
	return err
}

// append encodes a frame behind those that wait.
func (e *frameWriter) append(f frame) error {
	k := e.rq.kind
	if e.a.media == codec.Protobuf {
		bare, err := e.object(f, cache.Protobuf)
		if err != nil {
			return err
		}
		env, err := codec.Envelope(k.gvk, bare)
		if err != nil {
			return err
		}
		return e.proto(f.typ, env)
	}
	obj, err := e.object(f, cache.JSON)
	if err != nil {
		return err
	}
	e.json(f.typ, k.gvk, obj)
	return nil
}

// object returns the bytes of a frame's object. Those of a change are not kept for
// lists: the frame is.
func (e *frameWriter) object(f frame, enc cache.Encoding) ([]byte, error) {
	encode, item := codec.Object, e.s.itemJSON
	if enc == cache.Protobuf {
		encode, item = codec.Bare, e.s.itemProto
	}
	switch {
	case f.item == nil:
		return encode(e.st.bookmark(f))
	case f.event != nil && e.rq.kind.Twin == nil && f.item.Kept(enc) == nil:
		if obj := f.item.Object(); obj != nil {
			return encode(obj)
		}
	}
	return item(e.rq.kind, f.item)
}

// json appends one JSON frame; object has no type yet.
func (e *frameWriter) json(t watch.EventType, gvk schema.GroupVersionKind, object []byte) {
	b := append(e.buf, `{"type":"`...)
	b = append(b, t...)
	b = append(b, `","object":`...)
	b = append(b, `{"kind":`...)
	b = strconv.AppendQuote(b, gvk.Kind)
	b = append(b, `,"apiVersion":`...)
	b = strconv.AppendQuote(b, gvk.GroupVersion().String())
	if len(object) > 2 {
		b = append(b, ',')
		b = append(b, object[1:]...)
	} else {
		b = append(b, '}')
	}
	e.buf = append(b, "}\n"...)
}

// proto appends one length-delimited protobuf frame.
func (e *frameWriter) proto(t watch.EventType, envelope []byte) error {
	ev := metav1.WatchEvent{Type: string(t), Object: runtime.RawExtension{Raw: envelope}}
	n := ev.Size()
	at := len(e.buf)
	b := slices.Grow(e.buf, n+4)[:at+n+4]
	binary.BigEndian.PutUint32(b[at:], uint32(n))
	if _, err := ev.MarshalToSizedBuffer(b[at+4:]); err != nil {
		return err
	}
	e.buf = b
	return nil
}

func (e *frameWriter) fail(err error) error {
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		api = apierrors.NewInternalError(err)
	}
	st := api.Status()
	gvk := statusKind
	if e.a.media == codec.Protobuf {
		bare, err := codec.Bare(&st)
		if err != nil {
			return err
		}
		env, err := codec.Envelope(gvk, bare)
		if err != nil {
			return err
		}
		return e.proto(watch.Error, env)
	}
	b, err := codec.Object(&st)
	if err != nil {
		return err
	}
	e.json(watch.Error, gvk, b)
	return nil
}
