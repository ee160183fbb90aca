package apiserver

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skiff/internal/store"
)

// ops are the writes of a subresource's Post.
type ops struct {
	s  *Server
	rq *request
}

func (o ops) Get(ctx context.Context, namespace, name string) (Object, error) {
	cur, err := o.s.live(ctx, o.rq.kind, keyOf(o.rq.kind.Namespaced, namespace, name))
	if err != nil {
		return nil, err
	}
	if cur.obj == nil {
		return nil, apierrors.NewNotFound(o.rq.gr(), name)
	}
	return cur.obj, nil
}

func (o ops) Mutate(ctx context.Context, namespace, name string, dry bool, change func(Object) error) (Object, error) {
	k, key := o.rq.kind, keyOf(o.rq.kind.Namespaced, namespace, name)
	cur := o.s.cached(k, key)
	if dry {
		var err error
		if cur, err = o.s.live(ctx, k, key); err != nil {
			return nil, err
		}
	}
	for {
		out, err := o.s.mutateOnce(ctx, o.rq, key, name, dry, cur, change)
		var conflict *store.ConflictError
		switch {
		case err == nil:
			return out, nil
		case errors.As(err, &conflict):
			if cur, err = o.s.decodeCurrent(k, conflict.Current); err != nil {
				return nil, err
			}
		case !cur.fresh:
			now, lerr := o.s.live(ctx, k, key)
			if lerr != nil {
				return nil, lerr
			}
			if now.rev == cur.rev && now.obj != nil {
				return nil, storeError(err)
			}
			cur = now
		case errors.Is(err, store.ErrNotFound):
			return nil, apierrors.NewNotFound(o.rq.gr(), name)
		default:
			return nil, storeError(err)
		}
	}
}

func (s *Server) mutateOnce(ctx context.Context, rq *request, key, name string, dry bool, cur current, change func(Object) error) (Object, error) {
	if cur.obj == nil {
		return nil, apierrors.NewNotFound(rq.gr(), name)
	}
	obj := cur.obj.DeepCopyObject().(Object)
	if err := change(obj); err != nil {
		return nil, err
	}
	value, err := s.encodeStored(rq.kind, obj)
	if err != nil {
		return nil, err
	}
	if dry {
		return obj, nil
	}
	// A write of what is there already is none, and no event.
	if same, err := s.unchanged(ctx, rq.kind, key, &cur, value); err != nil {
		return nil, err
	} else if same {
		return cur.obj, nil
	}
	rev, err := s.Store.Update(ctx, s.storeKey(rq.kind, key), value, cur.rev, store.WriteOptions{})
	if err != nil {
		return nil, err
	}
	return s.written(rq.kind, key, value, rev)
}
