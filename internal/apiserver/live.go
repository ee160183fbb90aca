package apiserver

import (
	"context"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// measureAll makes the objects of a live resource that a list asks for. Of the
// options only the selectors count: there is no version to read at.
func (s *Server) measureAll(ctx context.Context, rq *request, o *metav1.ListOptions) ([]Object, error) {
	of := *rq
	of.kind = s.kinds[rq.kind.Live.Of]
	l, err := s.list(ctx, &of, &metav1.ListOptions{LabelSelector: o.LabelSelector, FieldSelector: o.FieldSelector, ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	objs := make([]Object, 0, len(l.items))
	for _, it := range l.items {
		if obj := it.Object(); obj != nil {
			objs = append(objs, obj)
		}
	}
	return rq.kind.Live.Measure(ctx, s.env(rq, false), objs)
}

// measure makes the one object that a get asks for.
func (s *Server) measure(ctx context.Context, rq *request) (Object, error) {
	of := *rq
	of.kind = s.kinds[rq.kind.Live.Of]
	it, err := s.get(ctx, &of, &metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	obj := it.Object()
	if obj == nil {
		return nil, of.notFound()
	}
	out, err := rq.kind.Live.Measure(ctx, s.env(rq, false), []Object{obj})
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, rq.notFound()
	}
	return out[0], nil
}

// httpLive answers a get or a list of a live resource.
func (s *Server) httpLive(ctx context.Context, w http.ResponseWriter, r *http.Request, rq *request, q url.Values) error {
	if rq.verb == "get" {
		obj, err := s.measure(ctx, rq)
		if err != nil {
			return err
		}
		return s.writeObject(w, r, rq, http.StatusOK, obj, rq.kind.gvk)
	}
	var o metav1.ListOptions
	if err := metav1.Convert_url_Values_To_v1_ListOptions(&q, &o, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	objs, err := s.measureAll(ctx, rq, &o)
	if err != nil {
		return err
	}
	a, err := negotiate(r)
	if err != nil {
		return err
	}
	s.writeWarnings(w, rq)
	if a.as != "" {
		return s.writeTransformedObjects(w, r, rq.kind, a, objs, metav1.ListMeta{})
	}
	list := rq.kind.NewList()
	items := make([]runtime.Object, len(objs))
	for i, obj := range objs {
		items[i] = obj
	}
	if err := meta.SetList(list, items); err != nil {
		return apierrors.NewInternalError(err)
	}
	s.send(w, a, http.StatusOK, list, rq.kind.GroupVersion.WithKind(rq.kind.Kind+"List"))
	return nil
}
