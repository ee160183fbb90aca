package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
	"skiff/internal/store"
)

// delete removes an object, or marks it for removal. It returns the answer (the
// object, or a Status) and whether the object is gone.
func (s *Server) delete(ctx context.Context, rq *request, o *metav1.DeleteOptions) (runtime.Object, bool, error) {
	if errs := metav1validation.ValidateDeleteOptions(o); len(errs) > 0 {
		return nil, false, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "DeleteOptions"}, "", errs)
	}
	warnOfDelete(rq, o)
	cur, err := s.base(ctx, rq, o.DryRun)
	if err != nil {
		return nil, false, err
	}
	// What this request marked is its to answer for, though another, who saw the mark,
	// removes it first.
	var marked Object
	for {
		if marked != nil && ctx.Err() != nil {
			// Nobody else comes to remove what was marked.
			var cancel context.CancelFunc
			ctx, cancel = abandoned(ctx)
			defer cancel()
		}
		if marked != nil && (cur.obj == nil || cur.obj.GetUID() != marked.GetUID()) {
			return s.deleted(rq, marked), true, nil
		}
		// The rules write to the options: each try gets its own.
		out, gone, err := s.deleteOnce(ctx, rq, o.DeepCopy(), cur, &marked)
		var conflict *store.ConflictError
		switch {
		case err == nil:
			return out, gone, nil
		case errors.As(err, &conflict):
			if cur, err = s.decodeCurrent(rq.kind, conflict.Current); err != nil {
				return nil, false, err
			}
		case errors.Is(err, store.ErrNotFound):
			cur = current{fresh: true}
		case !cur.fresh:
			now, lerr := s.live(ctx, rq.kind, rq.key())
			if lerr != nil {
				return nil, false, lerr
			}
			if now.rev == cur.rev {
				return nil, false, storeError(err)
			}
			cur = now
		default:
			return nil, false, storeError(err)
		}
		if err := ctx.Err(); err != nil && marked == nil {
			return nil, false, storeError(err)
		}
	}
}

// finishDelete is how long the removal of what was marked may take, whoever asked for
// it being gone.
const finishDelete = 10 * time.Second

// abandoned goes on where ctx ends, for that long.
func abandoned(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), finishDelete)
}

func warnOfDelete(rq *request, o *metav1.DeleteOptions) {
	if f := rq.kind.DeleteWarnings; f != nil {
		for _, w := range f(o) {
			rq.warn(w)
		}
	}
}

// deleteOnce does it for one state of the object; marked is set to the object as it
// is marked in the store, where it is to go at once.
func (s *Server) deleteOnce(ctx context.Context, rq *request, o *metav1.DeleteOptions, cur current, marked *Object) (runtime.Object, bool, error) {
	k := rq.kind
	if cur.obj == nil {
		return nil, false, rq.notFound()
	}
	dry := dryRun(o.DryRun)
	env := s.env(rq, dry)
	if p := o.Preconditions; p != nil {
		if k.StoredPreconditions {
			if err := rq.stored(p, cur.obj); err != nil {
				return nil, false, err
			}
		}
		gr := schema.GroupResource{Group: k.stored.GroupVersion.Group, Resource: k.Kind}
		if p.UID != nil && *p.UID != cur.obj.GetUID() {
			return nil, false, apierrors.NewConflict(gr, rq.name, fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *p.UID, cur.obj.GetUID()))
		}
		if p.ResourceVersion != nil && *p.ResourceVersion != cur.obj.GetResourceVersion() {
			return nil, false, apierrors.NewConflict(gr, rq.name, fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *p.ResourceVersion, cur.obj.GetResourceVersion()))
		}
	}
	a := &Attributes{
		Operation: OpDelete, Resource: k.Resource, Namespace: rq.namespace, Name: rq.name, Old: cur.obj,
		Options: o, User: rq.user, DryRun: dry, Env: env, Warn: rq.warn,
	}
	if err := s.admit(ctx, a); err != nil {
		return nil, false, err
	}
	if err := s.validateAdmission(ctx, a); err != nil {
		return nil, false, err
	}
	obj := cur.obj.DeepCopyObject().(Object)
	graceful, pending, err := s.grace(k, env, obj, o)
	if err != nil {
		return nil, false, err
	}
	if pending {
		return s.deleted(rq, cur.obj), false, nil
	}
	finalizers, changed := gcFinalizers(k, obj, o)
	if changed {
		obj.SetFinalizers(finalizers)
	}
	held := len(obj.GetFinalizers()) > 0 || (k.Held != nil && k.Held(obj))
	if !held && (!graceful || *o.GracePeriodSeconds == 0) {
		if dry {
			return s.deleted(rq, obj), true, nil
		}
		if graceful {
			// Watchers see that the object is about to go before it goes.
			if cur, err = s.marked(ctx, k, rq.key(), obj, cur.rev); err != nil {
				return nil, false, err
			}
			*marked = cur.obj
			// The request may have ended with that: the mark must not stay.
			var cancel context.CancelFunc
			ctx, cancel = abandoned(ctx)
			defer cancel()
		}
		rev, err := s.Store.Delete(ctx, s.storeKey(k, rq.key()), cur.rev)
		if err != nil {
			return nil, false, err
		}
		obj = cur.obj.DeepCopyObject().(Object)
		obj.SetResourceVersion(strconv.FormatInt(rev, 10))
		if k.Deleted != nil {
			k.Deleted(ctx, env, obj)
		}
		return s.deleted(rq, obj), true, nil
	}
	if !graceful {
		s.markDeleting(obj)
	}
	if k.DeletePrepare != nil {
		k.DeletePrepare(env, obj)
	}
	if dry {
		return obj, false, nil
	}
	value, err := s.encodeStored(k, obj)
	if err != nil {
		return nil, false, err
	}
	if same, err := s.unchanged(ctx, k, rq.key(), &cur, value); err != nil {
		return nil, false, err
	} else if same {
		return cur.obj, false, nil
	}
	rev, err := s.Store.Update(ctx, s.storeKey(k, rq.key()), value, cur.rev, store.WriteOptions{})
	if err != nil {
		return nil, false, err
	}
	out, err := s.written(k, rq.key(), value, rev)
	return out, false, err
}

// stored checks preconditions as upstream's store does.
func (rq *request) stored(p *metav1.Preconditions, obj Object) error {
	const text = "Precondition failed: %[1]s in precondition: %[2]v, %[1]s in object meta: %[3]v"
	if p.UID != nil && *p.UID != obj.GetUID() {
		return apierrors.NewConflict(rq.gr(), rq.name, fmt.Errorf(text, "UID", *p.UID, obj.GetUID()))
	}
	if rv := obj.GetResourceVersion(); p.ResourceVersion != nil && *p.ResourceVersion != rv {
		return apierrors.NewConflict(rq.gr(), rq.name, fmt.Errorf(text, "ResourceVersion", *p.ResourceVersion, rv))
	}
	return nil
}

// marked writes an object that a deletion marked, and returns its new state.
func (s *Server) marked(ctx context.Context, k *kind, key string, obj Object, rev int64) (current, error) {
	value, err := s.encodeStored(k, obj)
	if err != nil {
		return current{}, err
	}
	if rev, err = s.Store.Update(ctx, s.storeKey(k, key), value, rev, store.WriteOptions{}); err != nil {
		return current{}, err
	}
	out, err := s.written(k, key, value, rev)
	return current{obj: out, rev: rev, fresh: true}, err
}

// grace decides whether a deletion waits for a grace period, and sets deletion
// timestamp and period on obj. pending: it waits already, and this request
// changes nothing.
func (s *Server) grace(k *kind, env resource.Env, obj Object, o *metav1.DeleteOptions) (graceful, pending bool, err error) {
	if g := o.GracePeriodSeconds; g != nil && *g < 0 {
		one := int64(1)
		o.GracePeriodSeconds = &one
	}
	if g := obj.GetDeletionGracePeriodSeconds(); g != nil && *g < 0 {
		one := int64(1)
		obj.SetDeletionGracePeriodSeconds(&one)
	}
	if k.Grace == nil {
		return false, false, nil
	}
	if obj.GetDeletionTimestamp() != nil {
		have := obj.GetDeletionGracePeriodSeconds()
		if have == nil || *have == 0 {
			return false, false, nil
		}
		if o.GracePeriodSeconds == nil || *o.GracePeriodSeconds >= *have {
			return false, true, nil
		}
		want := *o.GracePeriodSeconds
		at := metav1.NewTime(obj.GetDeletionTimestamp().Add(time.Duration(want-*have) * time.Second))
		if now := s.now(); at.Before(&now) {
			at = now
			if want != 0 {
				want = 1
			}
		}
		o.GracePeriodSeconds = &want
		obj.SetDeletionTimestamp(&at)
		obj.SetDeletionGracePeriodSeconds(&want)
		return true, false, nil
	}
	if !k.Grace(env, obj, o) {
		return false, false, nil
	}
	if o.GracePeriodSeconds == nil {
		return false, false, apierrors.NewInternalError(errors.New("options.GracePeriodSeconds should not be nil"))
	}
	at := metav1.NewTime(s.now().Add(time.Duration(*o.GracePeriodSeconds) * time.Second))
	g := *o.GracePeriodSeconds
	obj.SetDeletionTimestamp(&at)
	obj.SetDeletionGracePeriodSeconds(&g)
	if obj.GetGeneration() > 0 {
		obj.SetGeneration(obj.GetGeneration() + 1)
	}
	return true, false, nil
}

func (s *Server) markDeleting(obj Object) {
	if obj.GetDeletionTimestamp() == nil && obj.GetGeneration() > 0 {
		obj.SetGeneration(obj.GetGeneration() + 1)
	}
	now := s.now()
	if at := obj.GetDeletionTimestamp(); at == nil || at.After(now.Time) {
		obj.SetDeletionTimestamp(&now)
	}
	zero := int64(0)
	obj.SetDeletionGracePeriodSeconds(&zero)
}

// gcFinalizers returns the finalizers that a deletion's propagation policy
// demands, and whether they differ from the object's.
func gcFinalizers(k *kind, obj Object, o *metav1.DeleteOptions) ([]string, bool) {
	orphan, foreground := k.OrphanByDefault, false
	switch {
	case k.NoDependents:
		orphan = false
	case o.OrphanDependents != nil: //nolint:staticcheck // still accepted, as upstream
		orphan = *o.OrphanDependents //nolint:staticcheck // still accepted, as upstream
	case o.PropagationPolicy != nil:
		orphan = *o.PropagationPolicy == metav1.DeletePropagationOrphan
		foreground = *o.PropagationPolicy == metav1.DeletePropagationForeground
	case slices.Contains(obj.GetFinalizers(), metav1.FinalizerOrphanDependents):
		orphan = true
	case slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents):
		orphan, foreground = false, true
	}
	var out []string
	for _, f := range obj.GetFinalizers() {
		if f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents {
			out = append(out, f)
		}
	}
	if orphan {
		out = append(out, metav1.FinalizerOrphanDependents)
	}
	if foreground {
		out = append(out, metav1.FinalizerDeleteDependents)
	}
	a, b := slices.Clone(out), slices.Clone(obj.GetFinalizers())
	slices.Sort(a)
	slices.Sort(b)
	return out, !slices.Equal(slices.Compact(a), slices.Compact(b))
}

// deleted is the answer for an object that is gone.
func (s *Server) deleted(rq *request, obj Object) runtime.Object {
	if rq.kind.ReturnDeleted {
		return obj
	}
	return &metav1.Status{
		Status: metav1.StatusSuccess,
		Details: &metav1.StatusDetails{
			Name: obj.GetName(), Group: rq.kind.GroupVersion.Group, Kind: rq.kind.Plural, UID: obj.GetUID(),
		},
	}
}

// deleteCollection deletes what a list selects, several at a time, and returns
// what it listed.
func (s *Server) deleteCollection(ctx context.Context, rq *request, o *metav1.DeleteOptions, lo *metav1.ListOptions) (*listResult, error) {
	warnOfDelete(rq, o)
	l, err := s.list(ctx, rq, lo)
	if err != nil {
		return nil, err
	}
	const workers = 16
	work := make(chan string)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for range workers {
		wg.Go(func() {
			for key := range work {
				one := *rq
				one.verb = "delete"
				one.warnings = nil
				one.namespace, one.name = splitKey(rq.kind.Namespaced, key)
				if _, _, err := s.delete(ctx, &one, o.DeepCopy()); err != nil && !apierrors.IsNotFound(err) {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, it := range l.items {
		work <- it.Key
	}
	close(work)
	wg.Wait()
	if failed != nil {
		var first *apierrors.StatusError
		if errors.As(failed, &first) {
			return nil, first
		}
		return nil, storeError(failed)
	}
	return l, nil
}

func splitKey(namespaced bool, key string) (ns, name string) {
	if !namespaced {
		return "", key
	}
	for i := range len(key) {
		if key[i] == '/' {
			return key[:i], key[i+1:]
		}
	}
	return "", key
}
