package apiserver

import (
	"context"
	"errors"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
	"skiff/internal/store"
)

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
	wipeSystemFields(obj)
	rq.distinctOwners(obj, false)
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
	rq.distinctOwners(obj, true)
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
	obj.SetUID(types.UID(uuid.NewUUID()))
	obj.SetCreationTimestamp(s.now())
	if st.PrepareCreate != nil {
		st.PrepareCreate(env, obj)
	}
	var errs field.ErrorList
	if st.Check != nil {
		errs = st.Check(ctx, env, obj, nil)
	}
	if st.ValidateCreate != nil {
		errs = append(errs, st.ValidateCreate(env, obj)...)
	}
	if len(errs) > 0 {
		return nil, invalid(k, obj.GetName(), errs)
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
