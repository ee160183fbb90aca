package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
	"skiff/internal/store"
)

// produce makes the new object from the current one; cur is nil where there is
// none. The object returned is the caller's to change.
type produce func(ctx context.Context, cur Object) (Object, error)

// update writes an object over the current one; with create, also where there is
// none. It tells whether it created.
func (s *Server) update(ctx context.Context, rq *request, o *metav1.UpdateOptions, create bool, make produce) (Object, bool, error) {
	cur, err := s.base(ctx, rq, o.DryRun)
	if err != nil {
		return nil, false, err
	}
	for tries := 0; ; tries++ {
		out, created, err := s.updateOnce(ctx, rq, o, create, cur, make)
		var conflict *store.ConflictError
		var exists *store.ExistsError
		switch {
		case err == nil:
			return out, created, nil
		case errors.As(err, &conflict):
			if cur, err = s.decodeCurrent(rq.kind, conflict.Current); err != nil {
				return nil, false, err
			}
		case errors.As(err, &exists):
			if cur, err = s.decodeCurrent(rq.kind, exists.Current); err != nil {
				return nil, false, err
			}
		case errors.Is(err, store.ErrNotFound):
			cur = current{fresh: true}
		case !cur.fresh:
			// The refusal may come from an old state: look again.
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
		if tries > 100 {
			return nil, false, apierrors.NewConflict(rq.gr(), rq.name, errors.New(modified))
		}
		if err := ctx.Err(); err != nil {
			return nil, false, storeError(err)
		}
	}
}

// base returns the state that a write starts from: the cached one, since the
// compare-and-swap finds out where that is old. A dry run has none, and reads.
func (s *Server) base(ctx context.Context, rq *request, dry []string) (current, error) {
	if dryRun(dry) {
		return s.live(ctx, rq.kind, rq.key())
	}
	return s.cached(rq.kind, rq.key()), nil
}

func (s *Server) updateOnce(ctx context.Context, rq *request, o *metav1.UpdateOptions, create bool, cur current, make produce) (out Object, created bool, err error) {
	k, st := rq.kind, rq.strategy()
	dry := dryRun(o.DryRun)
	env := s.env(rq, dry)
	if cur.obj == nil && !create {
		return nil, false, rq.notFound()
	}
	obj, err := make(ctx, cur.obj)
	if err != nil {
		return nil, false, err
	}
	if cur.obj == nil {
		// Who may update may not create for that.
		attr := rq.attributes()
		attr.Verb = "create"
		if err := s.authorize(ctx, attr); err != nil {
			return nil, false, err
		}
		obj.SetResourceVersion("")
		obj.SetUID("")
		a := &Attributes{
			Operation: OpCreate, Resource: k.Resource, Namespace: rq.namespace, Name: rq.name, Object: obj,
			Options: &metav1.CreateOptions{DryRun: o.DryRun, FieldManager: o.FieldManager, FieldValidation: o.FieldValidation},
			User:    rq.user, DryRun: dry, Env: env, Warn: rq.warn,
		}
		if err := checkNamespace(k, rq.namespace, obj); err != nil {
			return nil, false, err
		}
		if err := s.admitManaged(ctx, a); err != nil {
			return nil, false, err
		}
		rq.distinctOwners(a.Object, true)
		out, err := s.insertOnce(ctx, rq, &k.Strategy, env, a.Object, a)
		return out, true, err
	}
	a := &Attributes{
		Operation: OpUpdate, Resource: k.Resource, Subresource: rq.subName(), Namespace: rq.namespace, Name: rq.name,
		Object: obj, Old: cur.obj, Options: o, User: rq.user, DryRun: dry, Env: env, Warn: rq.warn,
	}
	if err := s.admitManaged(ctx, a); err != nil {
		return nil, false, err
	}
	obj = a.Object
	rq.distinctOwners(obj, true)
	switch rv := obj.GetResourceVersion(); {
	case (rv == "" || rv == "0") && st.UnconditionalUpdate || (rv == "" || rv == "0") && rq.sub != nil && k.UnconditionalUpdate:
	case rv == "" || rv == "0":
		return nil, false, apierrors.NewInvalid(schema.GroupKind{Group: k.gvk.Group, Kind: k.Plural}, rq.name, field.ErrorList{
			field.Invalid(field.NewPath("metadata", "resourceVersion"), uint64(0), "must be specified for an update"),
		})
	case rv != strconv.FormatInt(cur.rev, 10):
		if _, err := strconv.ParseUint(rv, 10, 64); err != nil {
			return nil, false, plain(err.Error())
		}
		return nil, false, apierrors.NewConflict(rq.gr(), rq.name, errors.New(modified))
	}
	obj.SetResourceVersion(cur.obj.GetResourceVersion())
	if err := checkNamespace(k, rq.namespace, obj); err != nil {
		return nil, false, err
	}
	if st.BeginFirst {
		end, berr := begin(ctx, st, env, obj, cur.obj)
		if berr != nil {
			return nil, false, berr
		}
		defer func() { end(err) }()
	}
	if err := prepareUpdate(st, env, obj, cur.obj); err != nil {
		return nil, false, err
	}
	errs := apivalidation.ValidateObjectMetaAccessor(obj, k.Namespaced, resource.PathSegment, field.NewPath("metadata"))
	errs = append(errs, apivalidation.ValidateObjectMetaAccessorUpdate(obj, cur.obj, field.NewPath("metadata"))...)
	if st.Check != nil {
		errs = append(errs, st.Check(ctx, env, obj, cur.obj)...)
	}
	if st.ValidateUpdate != nil {
		errs = append(errs, st.ValidateUpdate(env, obj, cur.obj)...)
	}
	if len(errs) > 0 {
		return nil, false, invalid(k, obj.GetName(), errs)
	}
	if st.Warnings != nil {
		for _, w := range st.Warnings(env, obj, cur.obj) {
			rq.warn(w)
		}
	}
	if st.Canonicalize != nil {
		st.Canonicalize(obj)
	}
	keepManagedTimes(obj, cur.obj)
	a.Object = obj
	if err := s.validateAdmission(ctx, a); err != nil {
		return nil, false, err
	}
	if !st.BeginFirst {
		end, berr := begin(ctx, st, env, obj, cur.obj)
		if berr != nil {
			return nil, false, berr
		}
		defer func() { end(err) }()
	}
	key := rq.key()
	// The last finalizer is gone from a deleted object: the update deletes it.
	if s.emptied(k, obj, cur.obj) {
		if dry {
			return obj, false, nil
		}
		rev, err := s.Store.Delete(ctx, s.storeKey(k, key), cur.rev)
		if err != nil {
			return nil, false, err
		}
		obj.SetResourceVersion(strconv.FormatInt(rev, 10))
		if k.Deleted != nil {
			k.Deleted(ctx, env, obj)
		}
		return obj, false, nil
	}
	value, err := s.encodeStored(k, obj)
	if err != nil {
		return nil, false, err
	}
	if dry {
		out, err := s.decodeStored(k.stored, value, cur.rev)
		if err != nil {
			return nil, false, apierrors.NewInternalError(err)
		}
		return s.fromStored(k, out), false, nil
	}
	if same, err := s.unchanged(ctx, k, key, &cur, value); err != nil {
		return nil, false, err
	} else if same {
		return cur.obj, false, nil
	}
	var wo store.WriteOptions
	if k.TTL != nil {
		wo.TTL = k.TTL(obj)
	}
	rev, err := s.Store.Update(ctx, s.storeKey(k, key), value, cur.rev, wo)
	if err != nil {
		return nil, false, err
	}
	out, err = s.written(k, key, value, rev)
	return out, false, err
}

// unchanged tells that value is what the store holds already. A cached state is
// confirmed first: the answer must not claim a write that a newer state undid.
func (s *Server) unchanged(ctx context.Context, k *kind, key string, cur *current, value []byte) (bool, error) {
	raw := cur.raw
	if raw == nil {
		if cur.size > 0 && cur.size != len(value) {
			return false, nil
		}
		enc, err := s.encodeStored(k, shallow(cur.obj))
		if err != nil {
			return false, err
		}
		raw = enc
	}
	if !bytes.Equal(raw, value) {
		return false, nil
	}
	if cur.fresh {
		return true, nil
	}
	kv, err := s.Store.Get(ctx, s.storeKey(k, key), 0)
	if err != nil {
		return false, err
	}
	if kv.ModRev != cur.rev {
		return false, &store.ConflictError{Current: kv}
	}
	return bytes.Equal(kv.Value, value), nil
}

// shallow copies the outermost struct of an object, whose metadata may then be
// set. What lies below is shared.
func shallow(obj Object) Object {
	v := reflect.New(reflect.TypeOf(obj).Elem())
	v.Elem().Set(reflect.ValueOf(obj).Elem())
	return v.Interface().(Object)
}

// prepareUpdate applies the rules of every update of metadata, then the door's.
func prepareUpdate(st *resource.Strategy, env resource.Env, obj, old Object) error {
	obj.SetGeneration(old.GetGeneration())
	if st.PrepareUpdate != nil {
		st.PrepareUpdate(env, obj, old)
	}
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	}
	if t := old.GetCreationTimestamp(); !t.IsZero() {
		obj.SetCreationTimestamp(t)
	}
	if t := old.GetDeletionTimestamp(); !t.IsZero() {
		obj.SetDeletionTimestamp(t)
	}
	if g := old.GetDeletionGracePeriodSeconds(); g != nil && obj.GetDeletionGracePeriodSeconds() == nil {
		obj.SetDeletionGracePeriodSeconds(g)
	}
	return nil
}

// emptied tells that an update leaves nothing that keeps a deleted object.
func (s *Server) emptied(k *kind, obj, old Object) bool {
	if obj.GetDeletionTimestamp() == nil || len(obj.GetFinalizers()) > 0 {
		return false
	}
	if k.Held != nil && k.Held(obj) {
		return false
	}
	if g := old.GetDeletionGracePeriodSeconds(); g != nil && *g != 0 {
		return false
	}
	wasHeld := len(old.GetFinalizers()) > 0 || (k.Held != nil && k.Held(old))
	return wasHeld || old.GetDeletionGracePeriodSeconds() != nil
}

// keepManagedTimes undoes new timestamps in managedFields when nothing else
// changed, so that an update which changes nothing writes nothing.
func keepManagedTimes(obj, old Object) {
	if len(obj.GetManagedFields()) == 0 {
		return
	}
	was := old.GetManagedFields()
	now := obj.GetManagedFields()
	if len(was) != len(now) {
		return
	}
	for i := range was {
		a, b := was[i], now[i]
		a.Time, b.Time = nil, nil
		if !apiequality.Semantic.DeepEqual(a, b) {
			return
		}
	}
	obj.SetManagedFields(was)
	if !apiequality.Semantic.DeepEqual(obj, old) {
		obj.SetManagedFields(now)
	}
}

// admitManaged runs mutating admission. Managed fields that a plugin left
// unreadable become what they were.
func (s *Server) admitManaged(ctx context.Context, a *Attributes) error {
	if s.FieldManagers == nil {
		return s.admit(ctx, a)
	}
	before := a.Object.GetManagedFields()
	if err := s.admit(ctx, a); err != nil {
		return err
	}
	after := a.Object.GetManagedFields()
	if len(before) == len(after) && (len(before) == 0 || &before[0] == &after[0]) {
		return nil
	}
	if err := s.FieldManagers.Valid(after); err != nil {
		a.Object.SetManagedFields(before)
		a.Warn(".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: " + err.Error())
	}
	return nil
}

func (s *Server) manage(rq *request, live, obj Object, manager string) (Object, error) {
	if s.FieldManagers == nil {
		return obj, nil
	}
	if manager == "" {
		manager = rq.manager
	}
	out, err := s.FieldManagers.Update(rq.kind.Resource, rq.subName(), live, obj, manager)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return out, nil
}

// put is the update verb: obj is the body, the caller's to give away.
func (s *Server) put(ctx context.Context, rq *request, obj Object, o *metav1.UpdateOptions) (Object, bool, error) {
	if obj.GetName() != "" && obj.GetName() != rq.name {
		return nil, false, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), rq.name))
	}
	if obj.GetName() == "" {
		return nil, false, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", rq.name))
	}
	if rq.kind.Default != nil {
		rq.kind.Default(obj)
	}
	create := rq.sub == nil && rq.kind.CreateOnUpdate
	if rq.sub != nil && rq.sub.SetView != nil {
		return nil, false, apierrors.NewInternalError(errors.New("a projection is written by putView"))
	}
	if err := checkNamespace(rq.kind, rq.namespace, obj); err != nil {
		return nil, false, err
	}
	rq.distinctOwners(obj, false)
	storeKey := s.preconditionKey(rq, o.DryRun)
	return s.update(ctx, rq, o, create, func(_ context.Context, cur Object) (Object, error) {
		// The uid of a body is a precondition; a patch that changes it is invalid.
		if uid := obj.GetUID(); cur != nil && uid != "" && uid != cur.GetUID() {
			return nil, rq.otherUID(storeKey, uid, cur)
		}
		body := obj.DeepCopyObject().(Object)
		return s.manage(rq, cur, body, o.FieldManager)
	})
}

// distinctOwners leaves each owner reference once, and warns where one stood twice.
func (rq *request) distinctOwners(obj Object, admitted bool) {
	refs := obj.GetOwnerReferences()
	if len(refs) < 2 {
		return
	}
	var once []metav1.OwnerReference
	var twice []string
	for _, r := range refs {
		if slices.ContainsFunc(once, func(o metav1.OwnerReference) bool { return apiequality.Semantic.DeepEqual(o, r) }) {
			twice = append(twice, string(r.UID))
			continue
		}
		once = append(once, r)
	}
	if len(twice) == 0 {
		return
	}
	when := ""
	if admitted {
		when = " after mutating admission happens"
	}
	rq.warn(fmt.Sprintf(".metadata.ownerReferences contains duplicate entries%s; API server dedups owner references in 1.20+, "+
		"and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: %s", when, strings.Join(twice, ", ")))
	obj.SetOwnerReferences(once)
}

// otherUID refuses to replace an object by one that says it is another, as
// upstream's store does.
func (rq *request) otherUID(key string, uid types.UID, cur Object) error {
	return apierrors.NewConflict(rq.gr(), rq.name, fmt.Errorf(
		"StorageError: invalid object, Code: 4, Key: %s, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: %v, UID in object meta: %v",
		key, uid, cur.GetUID()))
}

// preconditionKey is the key that refusals name: upstream's store of dry runs knows
// no prefix.
func (s *Server) preconditionKey(rq *request, dry []string) string {
	key := s.storeKey(rq.kind, rq.key())
	if dryRun(dry) {
		return strings.TrimPrefix(key, "/registry")
	}
	return key
}

// putView is the update verb of a projection (scale).
func (s *Server) putView(ctx context.Context, rq *request, o *metav1.UpdateOptions, make func(view Object) (Object, error)) (Object, error) {
	parent := *rq
	parent.sub = nil
	out, _, err := s.update(ctx, &parent, o, false, func(_ context.Context, cur Object) (Object, error) {
		view, err := rq.sub.View(cur)
		if err != nil {
			return nil, err
		}
		want, err := make(view)
		if err != nil {
			return nil, err
		}
		if rv := want.GetResourceVersion(); rv != "" && rv != cur.GetResourceVersion() {
			return nil, apierrors.NewConflict(rq.gr(), rq.name, errors.New(modified))
		}
		if uid := want.GetUID(); uid != "" && uid != cur.GetUID() {
			return nil, rq.otherUID(s.preconditionKey(&parent, o.DryRun), uid, cur)
		}
		obj := cur.DeepCopyObject().(Object)
		if err := rq.sub.SetView(obj, want); err != nil {
			return nil, err
		}
		return s.manage(rq, cur, obj, o.FieldManager)
	})
	if err != nil {
		return nil, err
	}
	return rq.sub.View(out)
}
