package apiserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// Local returns the transport of a part of skiff in the same process: requests
// enter the pipeline after decoding, under user's identity.
func (s *Server) Local(user resource.User) client.Transport { return &local{s: s, user: user} }

type local struct {
	s    *Server
	user resource.User
}

// written is what of the options of a write tells how it is counted.
type written struct {
	manager string
	apply   bool
	dryRun  []string
}

// begin resolves what a request is for and authorizes it; the options are those of
// a list or a watch. It is counted from here on: whoever begins it ends it.
func (l *local) begin(ctx context.Context, verb string, ref client.Ref, w written, o ...metav1.ListOptions) (*request, running, error) {
	since := time.Now()
	k := l.s.kinds[ref.GVR]
	if k == nil {
		return nil, running{}, apierrors.NewGenericServerResponse(404, verb, ref.GVR.GroupResource(), ref.Name, "", 0, true)
	}
	rq := &request{verb: verb, kind: k, namespace: ref.Namespace, name: ref.Name, user: l.user, manager: w.manager}
	if !k.Namespaced {
		rq.namespace = ""
	}
	if ref.Subresource != "" {
		if rq.sub = k.Subresource(ref.Subresource); rq.sub == nil {
			return nil, running{}, apierrors.NewGenericServerResponse(404, verb, ref.GVR.GroupResource(), ref.Name, "", 0, true)
		}
	}
	attr := rq.attributes()
	for i := range o {
		attr.FieldSelector, attr.LabelSelector = o[i].FieldSelector, o[i].LabelSelector
		if name, ok := exactName(attr.FieldSelector); ok && attr.Name == "" {
			attr.Name = name
		}
	}
	if err := l.s.authorize(ctx, attr); err != nil {
		return nil, running{}, err
	}
	return rq, l.s.requests.begin(rq.countedAs(w.apply, dryRunLabel(w.dryRun)), since), nil
}

func (l *local) Get(ctx context.Context, ref client.Ref, o metav1.GetOptions) (_ client.Object, err error) {
	rq, run, err := l.begin(ctx, "get", ref, written{})
	if err != nil {
		return nil, err
	}
	defer func() { run.ended(err) }()
	if rq.kind.Live != nil {
		return l.s.measure(ctx, rq)
	}
	it, err := l.s.get(ctx, rq, &o)
	if err != nil {
		return nil, err
	}
	obj := it.Object()
	if obj == nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("stored object %q does not decode", it.Key))
	}
	obj = l.s.fromStored(rq.kind, obj)
	if rq.sub != nil && rq.sub.View != nil {
		return rq.sub.View(obj)
	}
	return obj, nil
}

func (l *local) List(ctx context.Context, ref client.Ref, o metav1.ListOptions) (_ *client.List, err error) {
	rq, run, err := l.begin(ctx, "list", ref, written{}, o)
	if err != nil {
		return nil, err
	}
	defer func() { run.ended(err) }()
	if rq.kind.Live != nil {
		objs, err := l.s.measureAll(ctx, rq, &o)
		if err != nil {
			return nil, err
		}
		return &client.List{Items: objs}, nil
	}
	res, err := l.s.list(ctx, rq, &o)
	if err != nil {
		return nil, err
	}
	out := &client.List{ListMeta: res.meta(), Items: make([]client.Object, 0, len(res.items))}
	for _, it := range res.items {
		if obj := it.Object(); obj != nil {
			out.Items = append(out.Items, l.s.fromStored(rq.kind, obj))
		}
	}
	return out, nil
}

type localWatch struct{ out chan client.Event }

func (w *localWatch) Events() <-chan client.Event { return w.out }

func (l *local) Watch(ctx context.Context, ref client.Ref, o metav1.ListOptions) (client.Watch, error) {
	rq, run, err := l.begin(ctx, "watch", ref, written{}, o)
	if err != nil {
		return nil, err
	}
	st, err := l.s.openWatch(ctx, rq, &o)
	if err != nil {
		run.ended(err)
		return nil, err
	}
	w := &localWatch{out: make(chan client.Event, 64)}
	go func() {
		defer run.ended(nil)
		l.pump(ctx, rq, st, w.out)
	}()
	return w, nil
}

// pump lives as long as the watch's context.
func (l *local) pump(ctx context.Context, rq *request, st *stream, out chan<- client.Event) {
	defer close(out)
	defer st.close()
	for {
		frames, err := st.next(ctx)
		if ctx.Err() != nil || (err == nil && frames == nil) {
			return
		}
		if err != nil {
			select {
			case out <- client.Event{Type: watch.Error, Err: err}:
			case <-ctx.Done():
			}
			return
		}
		for _, f := range frames {
			e := client.Event{Type: f.typ}
			if f.item == nil {
				e.Object = st.bookmark(f)
			} else if obj := f.item.Object(); obj != nil {
				e.Object = l.s.fromStored(rq.kind, obj)
			} else {
				continue
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (l *local) Create(ctx context.Context, ref client.Ref, obj client.Object, o metav1.CreateOptions) (_ client.Object, err error) {
	rq, run, err := l.begin(ctx, "create", ref, written{manager: o.FieldManager, dryRun: o.DryRun})
	if err != nil {
		return nil, err
	}
	defer func() { run.ended(err) }()
	body := obj.DeepCopyObject().(Object)
	if rq.sub != nil {
		return l.s.post(ctx, rq, body, o)
	}
	return l.s.create(ctx, rq, body, &o)
}

func (l *local) Update(ctx context.Context, ref client.Ref, obj client.Object, o metav1.UpdateOptions) (_ client.Object, err error) {
	rq, run, err := l.begin(ctx, "update", ref, written{manager: o.FieldManager, dryRun: o.DryRun})
	if err != nil {
		return nil, err
	}
	defer func() { run.ended(err) }()
	body := obj.DeepCopyObject().(Object)
	if rq.sub != nil && rq.sub.SetView != nil {
		return l.s.putView(ctx, rq, &o, func(Object) (Object, error) { return body, nil })
	}
	out, _, err := l.s.put(ctx, rq, body, &o)
	return out, err
}

func (l *local) Patch(ctx context.Context, ref client.Ref, t types.PatchType, patch []byte, o metav1.PatchOptions) (_ client.Object, err error) {
	rq, run, err := l.begin(ctx, "patch", ref, written{o.FieldManager, t == types.ApplyYAMLPatchType, o.DryRun})
	if err != nil {
		return nil, err
	}
	defer func() { run.ended(err) }()
	out, _, err := l.s.patch(ctx, rq, t, patch, &o)
	return out, err
}

func (l *local) Delete(ctx context.Context, ref client.Ref, o metav1.DeleteOptions) (_ client.Object, err error) {
	rq, run, err := l.begin(ctx, "delete", ref, written{dryRun: o.DryRun})
	if err != nil {
		return nil, err
	}
	defer func() { run.ended(err) }()
	out, _, err := l.s.delete(ctx, rq, &o)
	if err != nil {
		return nil, err
	}
	obj, _ := out.(client.Object)
	return obj, nil
}

func (l *local) DeleteCollection(ctx context.Context, ref client.Ref, o metav1.DeleteOptions, lo metav1.ListOptions) (err error) {
	rq, run, err := l.begin(ctx, "deletecollection", ref, written{dryRun: o.DryRun}, lo)
	if err != nil {
		return err
	}
	defer func() { run.ended(err) }()
	_, err = l.s.deleteCollection(ctx, rq, &o, &lo)
	return err
}

// bindAtOnce bounds the bindings of one batch that are in flight together: the
// store commits what waits as one group.
const bindAtOnce = 64

func (l *local) Bind(ctx context.Context, bindings []*corev1.Binding) []error {
	errs := make([]error, len(bindings))
	var wg sync.WaitGroup
	slots := make(chan struct{}, bindAtOnce)
	for i, b := range bindings {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			_, errs[i] = l.Create(ctx, client.Ref{
				GVR: corev1.SchemeGroupVersion.WithResource("pods"), Namespace: b.Namespace, Name: b.Name, Subresource: "binding",
			}, b, metav1.CreateOptions{})
		})
	}
	wg.Wait()
	return errs
}
