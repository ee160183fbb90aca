package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
	"skiff/internal/codec"
	"skiff/internal/store"
)

const modified = "the object has been modified; please apply your changes to the latest version and try again"

func dryRun(o []string) bool { return len(o) > 0 }

// current is the state that a write starts from.
type current struct {
	obj   Object // shared; nil: there is none
	rev   int64
	raw   []byte // stored bytes, where known
	fresh bool   // read from the store, not from the cache
}

func (s *Server) storeKey(k *kind, key string) string { return k.stored.Prefix + key }

// cached returns what the cache holds: perhaps old.
func (s *Server) cached(k *kind, key string) current {
	it := k.col.Get(key)
	if it == nil {
		return current{}
	}
	obj := it.Object()
	if obj == nil {
		return current{}
	}
	return current{obj: s.fromStored(k, obj), rev: it.Rev}
}

// live reads the store.
func (s *Server) live(ctx context.Context, k *kind, key string) (current, error) {
	kv, err := s.Store.Get(ctx, s.storeKey(k, key), 0)
	if errors.Is(err, store.ErrNotFound) {
		return current{fresh: true}, nil
	}
	if err != nil {
		return current{}, storeError(err)
	}
	return s.decodeCurrent(k, kv)
}

func (s *Server) decodeCurrent(k *kind, kv store.KV) (current, error) {
	obj, err := s.decodeStored(k.stored, kv.Value, kv.ModRev)
	if err != nil {
		return current{}, apierrors.NewInternalError(fmt.Errorf("decode %q: %w", kv.Key, err))
	}
	return current{obj: s.fromStored(k, obj), rev: kv.ModRev, raw: kv.Value, fresh: true}, nil
}

func (s *Server) decodeStored(r *resource.Resource, value []byte, rev int64) (Object, error) {
	obj := r.New()
	if err := codec.FromStored(value, rev, obj); err != nil {
		return nil, err
	}
	if r.Default != nil {
		r.Default(obj)
	}
	return obj, nil
}

// fromStored and toStored pass a resource shown under another version through its
// conversion.
func (s *Server) fromStored(k *kind, obj Object) Object {
	if k.Twin == nil {
		return obj
	}
	return k.Twin.FromStored(obj)
}

func (s *Server) encodeStored(k *kind, obj Object) ([]byte, error) {
	if k.Twin != nil {
		obj = k.Twin.ToStored(obj)
	}
	gv := k.stored.GroupVersion
	if !k.stored.Stored.Empty() {
		gv = k.stored.Stored
	}
	b, err := codec.Stored(gv.WithKind(k.stored.Kind), obj)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return b, nil
}

// written makes the answer to a write: what the stored bytes decode to. The cache
// gets the same object.
func (s *Server) written(k *kind, key string, value []byte, rev int64) (Object, error) {
	obj, err := s.decodeStored(k.stored, value, rev)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	s.cache.Written(s.storeKey(k, key), rev, obj)
	return s.fromStored(k, obj), nil
}

func checkNamespace(k *kind, requested string, obj Object) error {
	want := requested
	if !k.Namespaced {
		want = ""
	}
	switch got := obj.GetNamespace(); {
	case got == want:
	case got == "" && k.Namespaced:
		obj.SetNamespace(want)
	case !k.Namespaced:
		obj.SetNamespace("")
	default:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// plain is upstream's answer to an error that is none of the API's.
func plain(message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: message}}
}

func invalid(k *kind, name string, errs field.ErrorList) error {
	gk := k.gvk.GroupKind()
	if k.Twin != nil {
		gk = k.stored.GVK().GroupKind()
	}
	return apierrors.NewInvalid(gk, name, distinct(errs))
}

// distinct leaves every mistake out that reads like one before it.
func distinct(errs field.ErrorList) field.ErrorList {
	if len(errs) < 2 {
		return errs
	}
	seen := make(map[string]bool, len(errs))
	out := make(field.ErrorList, 0, len(errs))
	for _, e := range errs {
		if text := e.Error(); !seen[text] {
			seen[text] = true
			out = append(out, e)
		}
	}
	return out
}

// create makes a new object. obj is the caller's to give away.
func (s *Server) create(ctx context.Context, rq *request, obj Object, o *metav1.CreateOptions) (Object, error) {
	k := rq.kind
	// A version that is no number is no version: it is overwritten.
	if rv, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64); err == nil && rv != 0 {
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	obj.SetResourceVersion("")
	dry := dryRun(o.DryRun)
	env := s.env(rq, dry)
	if err := checkNamespace(k, rq.namespace, obj); err != nil {
		return nil, err
	}
	st := &k.Strategy
	if k.Default != nil {
		k.Default(obj)
	}
	obj.SetSelfLink("")
	obj, err := s.manage(rq, nil, obj, o.FieldManager)
	if err != nil {
		return nil, err
	}
	a := &Attributes{
		Operation: OpCreate, Resource: k.Resource, Namespace: rq.namespace, Name: obj.GetName(), Object: obj,
		Options: o, User: rq.user, DryRun: dry, Env: env, Warn: rq.warn,
	}
	if err := s.admitManaged(ctx, a); err != nil {
		return nil, err
	}
	obj = a.Object
	if k.Post != nil {
		return k.Post(ctx, env, obj)
	}
	return s.insert(ctx, rq, st, env, obj, a)
}

// insert does the part of a creation after mutating admission.
func (s *Server) insert(ctx context.Context, rq *request, st *resource.Strategy, env resource.Env, obj Object, a *Attributes) (Object, error) {
	generate := obj.GetName() == "" && obj.GetGenerateName() != ""
	for try := 0; ; try++ {
		o := obj
		if generate {
			o = obj.DeepCopyObject().(Object)
			o.SetName(generateName(obj.GetGenerateName()))
		}
		out, err := s.insertOnce(ctx, rq, st, env, o, a)
		if generate && apierrors.IsAlreadyExists(err) && try < 7 {
			continue
		}
		if generate && apierrors.IsAlreadyExists(err) {
			return nil, apierrors.NewGenerateNameConflict(rq.gr(), o.GetName(), 1)
		}
		return out, err
	}
}

const maxGeneratedName = 63 - 5

func generateName(base string) string {
	if len(base) > maxGeneratedName {
		base = base[:maxGeneratedName]
	}
	return base + rand.String(5)
}

func (s *Server) insertOnce(ctx context.Context, rq *request, st *resource.Strategy, env resource.Env, obj Object, a *Attributes) (out Object, err error) {
	k := rq.kind
	wipeSystemFields(obj)
	if st.BeginFirst {
		end, berr := begin(ctx, st, env, obj, nil)
		if berr != nil {
			return nil, berr
		}
		defer func() { end(err) }()
	}
	if st.PrepareCreate != nil {
		st.PrepareCreate(env, obj)
	}
	obj.SetUID(types.UID(uuid.NewUUID()))
	obj.SetCreationTimestamp(s.now())
	if st.ValidateCreate != nil {
		if errs := st.ValidateCreate(env, obj); len(errs) > 0 {
			return nil, invalid(k, obj.GetName(), errs)
		}
	}
	// What holds for every kind, where its own rules do not say it.
	if errs := apivalidation.ValidateObjectMetaAccessor(obj, k.Namespaced, resource.PathSegment, field.NewPath("metadata")); len(errs) > 0 {
		return nil, invalid(k, obj.GetName(), errs)
	}
	if st.Warnings != nil {
		for _, w := range st.Warnings(env, obj, nil) {
			rq.warn(w)
		}
	}
	if st.Canonicalize != nil {
		st.Canonicalize(obj)
	}
	a.Object = obj
	a.Name = obj.GetName()
	if err := s.validateAdmission(ctx, a); err != nil {
		return nil, err
	}
	key := keyOf(k.Namespaced, obj.GetNamespace(), obj.GetName())
	if !st.BeginFirst {
		end, berr := begin(ctx, st, env, obj, nil)
		if berr != nil {
			return nil, berr
		}
		defer func() { end(err) }()
	}
	value, err := s.encodeStored(k, obj)
	if err != nil {
		return nil, err
	}
	if env.DryRun {
		if cur, err := s.live(ctx, k, key); err != nil {
			return nil, err
		} else if cur.obj != nil {
			return nil, apierrors.NewAlreadyExists(rq.gr(), obj.GetName())
		}
		out, err := s.decodeStored(k.stored, value, 0)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		out.SetResourceVersion("")
		return s.fromStored(k, out), nil
	}
	var wo store.WriteOptions
	if st.TTL != nil {
		wo.TTL = st.TTL(obj)
	}
	rev, err := s.Store.Create(ctx, s.storeKey(k, key), value, wo)
	if err != nil {
		var exists *store.ExistsError
		if errors.As(err, &exists) {
			return nil, alreadyExists(rq, obj.GetName(), exists, k, s)
		}
		return nil, storeError(err)
	}
	return s.written(k, key, value, rev)
}

// begin does what belongs to a write besides the object's own key. end takes the
// write's outcome.
func begin(ctx context.Context, st *resource.Strategy, env resource.Env, obj, old Object) (end func(error), err error) {
	if st.Begin == nil {
		return func(error) {}, nil
	}
	finish, err := st.Begin(ctx, env, obj, old)
	if err != nil {
		return nil, err
	}
	return func(err error) {
		if finish != nil && !unknown(err) {
			finish(context.WithoutCancel(ctx), err == nil && !env.DryRun)
		}
	}, nil
}

// unknown tells that a write may or may not have happened.
func unknown(err error) bool {
	return errors.Is(err, store.ErrUnknown) || errors.Is(err, context.DeadlineExceeded) || apierrors.IsTimeout(err)
}

// alreadyExists is the answer to a creation over an object that exists; one that
// is on its way out says so.
func alreadyExists(rq *request, name string, e *store.ExistsError, k *kind, s *Server) error {
	out := apierrors.NewAlreadyExists(rq.gr(), name)
	if cur, err := s.decodeCurrent(k, e.Current); err == nil && cur.obj != nil && cur.obj.GetDeletionTimestamp() != nil {
		out.ErrStatus.Message = "object is being deleted: " + out.ErrStatus.Message
	}
	return out
}

func wipeSystemFields(obj Object) {
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
}

// produce makes the new object from the current one; cur is nil where there is
// none. The object returned is the caller's to change.
type produce func(ctx context.Context, cur Object) (Object, error)

// update writes an object over the current one; with create, also where there is
// none. It tells whether it created.
func (s *Server) update(ctx context.Context, rq *request, o *metav1.UpdateOptions, create bool, make produce) (Object, bool, error) {
	cur := s.cached(rq.kind, rq.key())
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
		enc, err := s.encodeStored(k, cur.obj.DeepCopyObject().(Object))
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
	storeKey := s.storeKey(rq.kind, rq.key())
	if dryRun(o.DryRun) {
		// Upstream's store of dry runs knows no prefix.
		storeKey = strings.TrimPrefix(storeKey, "/registry")
	}
	return s.update(ctx, rq, o, create, func(_ context.Context, cur Object) (Object, error) {
		// The uid of a body is a precondition; a patch that changes it is invalid.
		if uid := obj.GetUID(); cur != nil && uid != "" && uid != cur.GetUID() {
			return nil, apierrors.NewConflict(rq.gr(), rq.name, fmt.Errorf(
				"StorageError: invalid object, Code: 4, Key: %s, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: %v, UID in object meta: %v",
				storeKey, uid, cur.GetUID()))
		}
		body := obj.DeepCopyObject().(Object)
		return s.manage(rq, cur, body, o.FieldManager)
	})
}

// sameUID refuses to replace an object by one that says it is another.
func (rq *request) sameUID(obj, cur Object) error {
	if cur == nil {
		return nil
	}
	if uid := obj.GetUID(); uid != "" && uid != cur.GetUID() {
		return apierrors.NewConflict(rq.gr(), rq.name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", uid, cur.GetUID()))
	}
	return nil
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
		if err := rq.sameUID(want, cur); err != nil {
			return nil, err
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
	rev, err := s.Store.Update(ctx, s.storeKey(rq.kind, key), value, cur.rev, store.WriteOptions{})
	if err != nil {
		return nil, err
	}
	return s.written(rq.kind, key, value, rev)
}

// storeError turns what the store says into what clients see.
func storeError(err error) error {
	var status apierrors.APIStatus
	switch {
	case err == nil, errors.As(err, &status):
		return err
	case errors.Is(err, store.ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError("etcdserver: request is too large")
	case errors.Is(err, store.ErrUnknown), errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError("etcdserver: request timed out", 0)
	case errors.Is(err, store.ErrNoSpace):
		return apierrors.NewInternalError(errors.New("etcdserver: mvcc: database space exceeded"))
	case errors.Is(err, store.ErrCompacted):
		return apierrors.NewResourceExpired("The provided continue parameter is too old to display a consistent list result.")
	case errors.Is(err, store.ErrClosed):
		return apierrors.NewServiceUnavailable("the server is shutting down")
	}
	return apierrors.NewInternalError(err)
}

func optionsManager(userAgent string) string {
	m, _, _ := strings.Cut(userAgent, "/")
	if len(m) > 128 {
		m = m[:128]
	}
	return m
}

var _ runtime.Object = (*metav1.Status)(nil)
var _ = time.Second
