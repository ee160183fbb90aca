package apiserver

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/cache"
)

// Follow returns the objects of a resource, and a watcher that has every change
// after them; nil where the resource is not served. It waits until the server
// can answer. What the watcher has polled is as new as any read of the server
// was when it returned.
func (s *Server) Follow(ctx context.Context, gvr schema.GroupVersionResource) (*cache.Snapshot, *cache.Watcher, error) {
	select {
	case <-s.cache.Ready():
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	k := s.kinds[gvr]
	if k == nil || k.col == nil {
		return nil, nil, nil
	}
	snap, w := k.col.WatchFrom(cache.Scope{})
	return snap, w, nil
}

// Fresh waits until what Follow's watchers poll includes every write that was
// acknowledged before the call.
func (s *Server) Fresh(ctx context.Context) error {
	_, err := s.cache.Fresh(ctx)
	return err
}
