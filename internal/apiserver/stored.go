package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
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
	size  int    // of the stored bytes, where known
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
	return current{obj: s.fromStored(k, obj), rev: it.Rev, size: it.Size()}
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
	s.shared.in(obj)
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
