package kubelet

import (
	"context"
	"log/slog"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/client"
)

// references watches the config maps, secrets and trust bundles that pods refer to, and
// the node where pods wait for volumes, each once, and tells the workers of a change.
// Objects that say they are immutable are
// watched too: they can be deleted and made anew.
type references struct {
	c   *client.Client
	log *slog.Logger

	mu      sync.Mutex
	watches map[objectRef]*refWatch
}

type refWatch struct {
	users  map[*worker]bool
	cancel context.CancelFunc
}

func newReferences(c *client.Client, log *slog.Logger) *references {
	return &references{c: c, log: log, watches: map[objectRef]*refWatch{}}
}

// watch makes w hear of changes of what its pod refers to.
func (r *references) watch(w *worker, pod *corev1.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ref := range podRefs(pod) {
		r.add(w, ref)
	}
}

// watchNode makes w hear of changes of the node.
func (r *references) watchNode(w *worker, node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(w, objectRef{kind: "Node", name: node})
}

// add makes w hear of changes of one object. r.mu is held.
func (r *references) add(w *worker, ref objectRef) {
	if x := r.watches[ref]; x != nil {
		x.users[w] = true
		return
	}
	x := &refWatch{users: map[*worker]bool{w: true}}
	r.watches[ref] = x
	w.k.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		r.mu.Lock()
		if len(x.users) == 0 {
			r.mu.Unlock()
			return
		}
		x.cancel = cancel
		r.mu.Unlock()
		r.follow(ctx, ref, x)
	})
}

// drop ends w's interest.
func (r *references) drop(w *worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ref := range r.watches {
		r.remove(w, ref)
	}
}

// dropNode ends w's interest in the node.
func (r *references) dropNode(w *worker, node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(w, objectRef{kind: "Node", name: node})
}

// remove ends w's interest in one object. r.mu is held.
func (r *references) remove(w *worker, ref objectRef) {
	x := r.watches[ref]
	if x == nil || !x.users[w] {
		return
	}
	delete(x.users, w)
	if len(x.users) == 0 {
		delete(r.watches, ref)
		if x.cancel != nil {
			x.cancel()
		}
	}
}

func (r *references) notify(x *refWatch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range x.users {
		w.refChanged()
	}
}

func (r *references) follow(ctx context.Context, ref objectRef, x *refWatch) {
	o := metav1.ListOptions{}
	if ref.name != "" {
		o.FieldSelector = "metadata.name=" + ref.name
	}
	seen := ""
	for wait := 100 * time.Millisecond; ctx.Err() == nil; wait = min(wait*2, 10*time.Second) {
		var err error
		var w client.Watch
		switch ref.kind {
		case "Secret":
			w, err = client.For[*corev1.Secret](r.c).In(ref.ns).Watch(ctx, o)
		case "ClusterTrustBundle":
			w, err = client.For[*certificatesv1.ClusterTrustBundle](r.c).Watch(ctx, o)
		case "Node":
			w, err = client.For[*corev1.Node](r.c).Watch(ctx, o)
		default:
			w, err = client.For[*corev1.ConfigMap](r.c).In(ref.ns).Watch(ctx, o)
		}
		if err == nil {
			for e := range w.Events() {
				if e.Type == watch.Error || e.Type == watch.Bookmark || e.Object == nil {
					continue
				}
				wait = 100 * time.Millisecond
				rv := e.Object.GetResourceVersion()
				if rv != seen || e.Type == watch.Deleted {
					// The state at the start may be newer than what was read.
					r.notify(x)
					seen = rv
				}
			}
		} else {
			r.log.Debug("watch what pods refer to", "kind", ref.kind, "ns", ref.ns, "name", ref.name, "err", err)
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}
