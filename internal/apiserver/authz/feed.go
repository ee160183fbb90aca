package authz

import (
	"context"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/cache"
	"skiff/internal/client"
)

// Objects is what deciders know of the API's objects; the API server is one.
type Objects interface {
	// Follow returns the objects of a resource and a watcher of their changes,
	// nil where the resource is not served.
	Follow(ctx context.Context, gvr schema.GroupVersionResource) (*cache.Snapshot, *cache.Watcher, error)
	// Fresh waits until the watchers have every write acknowledged so far.
	Fresh(ctx context.Context) error
}

// feed brings the changes of one resource into an index when it is asked to:
// nothing runs between two decisions, and a decision knows all that the server
// knows. Its caller serializes the calls.
type feed struct {
	gvr schema.GroupVersionResource
	// set enters an object; nil takes it out.
	set func(namespace, name string, o client.Object)
	// reset empties the index of this resource.
	reset func()

	w       *cache.Watcher
	unknown bool // the resource is not served
}

// pull applies what changed, and tells whether anything did.
func (f *feed) pull(ctx context.Context, from Objects) (bool, error) {
	if f.unknown {
		return false, nil
	}
	changed := false
	for f.w != nil {
		events, err := f.w.Poll()
		if err != nil {
			// Changes were missed: start over.
			f.w.Stop()
			f.w = nil
			break
		}
		if len(events) == 0 {
			return changed, nil
		}
		changed = true
		for _, e := range events {
			if e.New == nil {
				f.enter(e.Key, nil)
			} else {
				f.enter(e.Key, e.New.Object())
			}
		}
	}
	snap, w, err := from.Follow(ctx, f.gvr)
	if err != nil {
		return changed, err
	}
	if w == nil {
		f.unknown = true
		return changed, nil
	}
	f.w = w
	f.reset()
	snap.Ascend("", "", func(it *cache.Item) bool {
		f.enter(it.Key, it.Object())
		return true
	})
	return true, nil
}

func (f *feed) enter(key string, o client.Object) {
	ns, name, ok := strings.Cut(key, "/")
	if !ok {
		ns, name = "", key
	}
	f.set(ns, name, o)
}
