package apiserver

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/api/resource"
	"skiff/internal/codec"
)

// columns of a resource that declares none: upstream's default table.
func defaultColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		resource.NameColumn(),
		{Name: "Created At", Type: "date", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]},
	}
}

// table makes the Table of some objects.
func (s *Server) table(k *kind, objs []Object, include metav1.IncludeObjectPolicy, gv schema.GroupVersion, head bool) (*metav1.Table, error) {
	t := &metav1.Table{Rows: make([]metav1.TableRow, 0, len(objs))}
	if head {
		t.ColumnDefinitions = k.Columns
		if k.Row == nil {
			t.ColumnDefinitions = defaultColumns()
		}
	}
	now := s.Now()
	for _, o := range objs {
		row := metav1.TableRow{}
		if k.Row != nil {
			row.Cells = k.Row(o, now)
		} else {
			row.Cells = []any{o.GetName(), o.GetCreationTimestamp().UTC().Format("2006-01-02T15:04:05Z")}
		}
		if k.RowConditions != nil {
			row.Conditions = k.RowConditions(o)
		}
		switch include {
		case metav1.IncludeNone:
		case metav1.IncludeObject:
			b, err := codec.Object(o)
			if err != nil {
				return nil, err
			}
			row.Object = runtime.RawExtension{Raw: codec.WithType(k.gvk, b)}
		default:
			b, err := json.Marshal(partial(o, gv))
			if err != nil {
				return nil, err
			}
			row.Object = runtime.RawExtension{Raw: b}
		}
		t.Rows = append(t.Rows, row)
	}
	return t, nil
}

// partial is an object's metadata alone.
func partial(o Object, gv schema.GroupVersion) *metav1.PartialObjectMetadata {
	p := &metav1.PartialObjectMetadata{ObjectMeta: *metaOf(o)}
	p.SetGroupVersionKind(gv.WithKind("PartialObjectMetadata"))
	return p
}

func metaOf(o Object) *metav1.ObjectMeta {
	if a, ok := o.(metav1.ObjectMetaAccessor); ok {
		if m, ok := a.GetObjectMeta().(*metav1.ObjectMeta); ok {
			return m
		}
	}
	return &metav1.ObjectMeta{
		Name: o.GetName(), Namespace: o.GetNamespace(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(),
		Labels: o.GetLabels(), Annotations: o.GetAnnotations(), CreationTimestamp: o.GetCreationTimestamp(),
	}
}

func includePolicy(v string) (metav1.IncludeObjectPolicy, error) {
	switch p := metav1.IncludeObjectPolicy(v); p {
	case "", metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
		return p, nil
	}
	return "", apierrors.NewBadRequest("Unable to convert to Table as requested: includeObject: Invalid value: \"" + v + "\": must be 'Metadata', 'Object', 'None', or empty")
}

// writeTransformed answers with an object as a Table or as its metadata.
func (s *Server) writeTransformed(w http.ResponseWriter, r *http.Request, rq *request, a answer, code int, obj Object) error {
	gv := schema.GroupVersion{Group: metav1.GroupName, Version: a.v}
	s.writeWarnings(w, rq)
	if a.as == "PartialObjectMetadata" {
		p := partial(obj, gv)
		s.send(w, a, code, p, gv.WithKind(a.as))
		return nil
	}
	if a.as != "Table" {
		return wrongForm(a.as, rq.kind.gvk, false)
	}
	include, err := includePolicy(r.URL.Query().Get("includeObject"))
	if err != nil {
		return err
	}
	k := rq.kind
	if sub := rq.sub; sub != nil && sub.Row != nil {
		k = &kind{Resource: &resource.Resource{Columns: sub.Columns, Strategy: resource.Strategy{Row: sub.Row}}, gvk: sub.Kind}
	}
	t, err := s.table(k, []Object{obj}, include, gv, true)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	t.ResourceVersion = obj.GetResourceVersion()
	s.send(w, jsonOnly(a), code, t, gv.WithKind("Table"))
	return nil
}

// jsonOnly: Tables have no protobuf encoding.
func jsonOnly(a answer) answer {
	if a.media == codec.Protobuf {
		a.media = codec.JSON
	}
	return a
}

func notAcceptable() error { return onlyAccepted(accepted) }

func onlyAccepted(types []string) error {
	return notAcceptableFor("only the following media types are accepted: " + strings.Join(types, ", "))
}

func notAcceptableFor(message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable, Message: message,
	}}
}

// wrongForm is the answer where metadata of a list is asked of an object (list is
// false), or of an object of a list. It names upstream's internal type.
func wrongForm(as string, gvk schema.GroupVersionKind, list bool) error {
	what, kind := "not a list", gvk.Kind
	if list {
		what, kind = "a list", kind+"List"
	}
	return notAcceptableFor(fmt.Sprintf("you requested %s, but the requested object is %s (*%s.%s)", as, what, internalPackage(gvk.Group), kind))
}

func (s *Server) writeTransformedList(w http.ResponseWriter, r *http.Request, a answer, l *listResult) error {
	objs := make([]Object, 0, len(l.items))
	for _, it := range l.items {
		if o := it.Object(); o != nil {
			objs = append(objs, s.fromStored(l.kind, o))
		}
	}
	return s.writeTransformedObjects(w, r, l.kind, a, objs, l.meta())
}

// writeTransformedObjects answers with a list of objects as a Table or as their
// metadata.
func (s *Server) writeTransformedObjects(w http.ResponseWriter, r *http.Request, k *kind, a answer, objs []Object, lm metav1.ListMeta) error {
	gv := schema.GroupVersion{Group: metav1.GroupName, Version: a.v}
	if a.as == "PartialObjectMetadataList" {
		out := &metav1.PartialObjectMetadataList{ListMeta: lm, Items: make([]metav1.PartialObjectMetadata, 0, len(objs))}
		for _, o := range objs {
			out.Items = append(out.Items, *partial(o, gv))
		}
		s.send(w, a, http.StatusOK, out, gv.WithKind(a.as))
		return nil
	}
	if a.as != "Table" {
		return wrongForm(a.as, k.gvk, true)
	}
	include, err := includePolicy(r.URL.Query().Get("includeObject"))
	if err != nil {
		return err
	}
	t, err := s.table(k, objs, include, gv, true)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if k.ListCells != nil {
		cells := make([][]any, len(t.Rows))
		for i := range t.Rows {
			cells[i] = t.Rows[i].Cells
		}
		k.ListCells(objs, cells)
	}
	t.ListMeta = lm
	s.send(w, jsonOnly(a), http.StatusOK, t, gv.WithKind("Table"))
	return nil
}

// bookmarkRow is the object of a bookmark's row: metadata alone for the one that
// ends the initial events.
func (e *frameWriter) bookmarkRow(f frame, obj Object, gv schema.GroupVersion) (runtime.RawExtension, error) {
	if f.initial {
		b, err := json.Marshal(partial(obj, gv))
		return runtime.RawExtension{Raw: b}, err
	}
	b, err := codec.Object(obj)
	return runtime.RawExtension{Raw: codec.WithType(e.rq.kind.gvk, b)}, err
}

// transformed appends a watch event as a Table or as metadata.
func (e *frameWriter) transformed(f frame) error {
	gv := schema.GroupVersion{Group: metav1.GroupName, Version: e.a.v}
	var obj Object
	if f.item == nil {
		obj = e.st.bookmark(f)
	} else if obj = f.item.Object(); obj == nil {
		return nil
	} else {
		obj = e.s.fromStored(e.rq.kind, obj)
	}
	if e.a.as == "PartialObjectMetadata" {
		p := partial(obj, gv)
		gvk := gv.WithKind(e.a.as)
		if e.a.media == codec.Protobuf {
			bare, err := codec.Bare(p)
			if err != nil {
				return err
			}
			env, err := codec.Envelope(gvk, bare)
			if err != nil {
				return err
			}
			return e.proto(f.typ, env)
		}
		p.SetGroupVersionKind(schema.GroupVersionKind{})
		b, err := codec.Object(p)
		if err != nil {
			return err
		}
		e.json(f.typ, gvk, b)
		return nil
	}
	include, err := includePolicy(e.q)
	if err != nil {
		return err
	}
	t, err := e.s.table(e.rq.kind, []Object{obj}, include, gv, !e.rows)
	if err != nil {
		return err
	}
	if f.typ == watch.Bookmark {
		// A bookmark's row carries the revision and nothing to show.
		if t.Rows[0].Object, err = e.bookmarkRow(f, obj, gv); err != nil {
			return err
		}
	}
	e.rows = true
	t.ResourceVersion = obj.GetResourceVersion()
	b, err := codec.Object(t)
	if err != nil {
		return err
	}
	e.json(f.typ, gv.WithKind("Table"), b)
	return nil
}
