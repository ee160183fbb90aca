package apiserver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/cache"
)

// frame is one event of a watch, before encoding. For a bookmark Item is nil.
type frame struct {
	typ     watch.EventType
	event   *cache.Event // nil for an initial event and a bookmark
	item    *cache.Item
	rev     int64
	initial bool // the bookmark that ends the initial events
}

// stream is a running watch of a request.
type stream struct {
	s         *Server
	f         *filter
	w         *cache.Watcher
	snap      *cache.Snapshot // initial events not yet sent
	mark      bool            // end them with a bookmark
	bookmarks bool
	nextMark  time.Time
	seen      int64
	after     int64 // what happened until then is known to the client
	deadline  time.Time
	timer     *time.Timer // for next
}

const bookmarkEvery = time.Minute

// openWatch starts a watch. close must be called.
func (s *Server) openWatch(ctx context.Context, rq *request, o *metav1.ListOptions) (*stream, error) {
	o.Watch = true
	if err := validateListOptions(o); err != nil {
		return nil, err
	}
	f, err := parseFilter(rq, o)
	if err != nil {
		return nil, err
	}
	st := &stream{s: s, f: f, bookmarks: o.AllowWatchBookmarks}
	timeout := time.Duration(float64(30*time.Minute) * (1 + rand.Float64()))
	if o.TimeoutSeconds != nil {
		timeout = time.Duration(*o.TimeoutSeconds) * time.Second
	}
	st.deadline = time.Now().Add(timeout)
	st.nextMark = time.Now().Add(bookmarkEvery - time.Duration(rand.Int64N(int64(5*time.Second))))
	if !f.kind.Namespaced {
		f.scope.Namespace = ""
	}
	rv := o.ResourceVersion
	streaming := o.SendInitialEvents != nil && *o.SendInitialEvents
	silent := o.SendInitialEvents != nil && !*o.SendInitialEvents
	switch {
	case streaming:
		if err := s.await(ctx, rv); err != nil {
			return nil, err
		}
		st.snap, st.w = rq.kind.col.WatchFrom(f.scope)
		st.mark = o.AllowWatchBookmarks
	case rv == "" || rv == "0":
		if err := s.await(ctx, rv); err != nil {
			return nil, err
		}
		st.snap, st.w = rq.kind.col.WatchFrom(f.scope)
		// A watch from nowhere begins with all there is: the end of that is told, too.
		st.mark = o.AllowWatchBookmarks && !silent && o.ResourceVersionMatch == ""
		if silent {
			st.snap = nil
		}
	default:
		n, err := parseRV(rv)
		if err != nil {
			return nil, err
		}
		// What is to come begins after n, even where the server is not there yet.
		st.after, st.seen = n, n
		st.w, err = rq.kind.col.Watch(f.scope, min(n, s.cache.Revision()))
		if errors.Is(err, cache.ErrExpired) {
			return nil, apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", n, rq.kind.col.WindowStart()))
		}
		if err != nil {
			return nil, storeError(err)
		}
	}
	return st, nil
}

func (st *stream) close() {
	st.w.Stop()
	if st.timer != nil {
		st.timer.Stop()
	}
}

// initial returns the initial events, once.
func (st *stream) initial() []frame {
	if st.snap == nil {
		return nil
	}
	snap := st.snap
	st.snap = nil
	st.seen = snap.Rev
	prefix := ""
	if st.f.kind.Namespaced && st.f.scope.Namespace != "" {
		prefix = st.f.scope.Namespace + "/"
	}
	var out []frame
	snap.Ascend(prefix, "", func(it *cache.Item) bool {
		if st.f.matches(it) {
			out = append(out, frame{typ: watch.Added, item: it, rev: it.Rev})
		}
		return true
	})
	if st.mark {
		out = append(out, frame{typ: watch.Bookmark, rev: snap.Rev, initial: true})
	}
	return out
}

// next waits for events. It returns nil and no error at the watch's deadline.
func (st *stream) next(ctx context.Context) ([]frame, error) {
	if out := st.initial(); len(out) > 0 {
		return out, nil
	}
	for {
		q, err := st.w.Poll()
		if err != nil {
			return nil, watchError(err)
		}
		if out := st.frames(q); len(out) > 0 {
			return out, nil
		}
		until := st.deadline
		if st.bookmarks && st.nextMark.Before(until) {
			until = st.nextMark
		}
		// One timer for as long as nothing but changes end the wait.
		if st.timer == nil {
			st.timer = time.NewTimer(time.Until(until))
		}
		select {
		case <-st.w.Wake():
		case <-ctx.Done():
			return nil, ctx.Err()
		case now := <-st.timer.C:
			st.timer = nil
			if !now.Before(st.deadline) {
				return nil, nil
			}
			st.nextMark = now.Add(bookmarkEvery)
			if rev := st.w.Progress(); rev > 0 && rev >= st.seen {
				return []frame{{typ: watch.Bookmark, rev: rev}}, nil
			}
		}
	}
}

// frames turns changes into what this watch shows of them.
func (st *stream) frames(q []*cache.Event) []frame {
	out := make([]frame, 0, len(q))
	for _, e := range q {
		if e.Rev <= st.after {
			continue
		}
		st.seen = e.Rev
		was, is := st.f.matches(e.Old), st.f.matches(e.New)
		switch {
		case is && was:
			out = append(out, frame{typ: watch.Modified, event: e, item: e.New, rev: e.Rev})
		case is:
			out = append(out, frame{typ: watch.Added, event: e, item: e.New, rev: e.Rev})
		case was:
			if it := e.Gone(); it != nil {
				out = append(out, frame{typ: watch.Deleted, event: e, item: it, rev: e.Rev})
			}
		}
	}
	return out
}

func watchError(err error) error {
	if errors.Is(err, cache.ErrExpired) || errors.Is(err, cache.ErrSlow) {
		return apierrors.NewResourceExpired("The resourceVersion for the provided watch is too old.")
	}
	return storeError(err)
}

// bookmark makes the object of a bookmark frame.
func (st *stream) bookmark(f frame) Object {
	obj := st.f.kind.New()
	obj.SetResourceVersion(strconv.FormatInt(f.rev, 10))
	if f.initial {
		obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	return obj
}
