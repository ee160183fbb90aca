package scheduler

import (
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// binding is a decision that is to be written.
type binding struct {
	pod  *framework.Pod
	node string
	// doubt, where set, is the error that a binding ended in without telling
	// whether it was done: it is to be found out, not to be done again.
	doubt error
}

// bound is what became of it.
type bound struct {
	binding
	err error
	// unsure tells that err leaves open whether the pod was bound, and that it
	// could not be found out.
	unsure bool
	// gone tells that the pod pends no more: it was deleted, or bound by another.
	gone bool
}

// bindAll writes decisions: all that wait, as one batch, one batch at a time. Those
// for which a plugin waits are bound each by itself.
func (s *Scheduler) bindAll(ctx context.Context) error {
	var waiting sync.WaitGroup
	defer waiting.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.binder.wake:
		}
		todo := s.binder.take()
		todo = slices.DeleteFunc(todo, func(b binding) bool {
			if b.doubt != nil || !s.waits(b.pod) {
				return false
			}
			waiting.Go(func() { s.bind(ctx, []binding{b}) })
			return true
		})
		if len(todo) > 0 {
			s.bind(ctx, todo)
		}
	}
}

func (s *Scheduler) waits(p *framework.Pod) bool {
	return slices.ContainsFunc(s.profileOf(p).preBind, func(b framework.PreBinder) bool {
		w, ok := b.(framework.Waiter)
		return ok && w.Waits(p)
	})
}

func (s *Scheduler) bind(ctx context.Context, todo []binding) {
	results := make([]bound, len(todo))
	objects := make([]*corev1.Binding, 0, len(todo))
	index := make([]int, 0, len(todo))
	for i, b := range todo {
		results[i].binding = b
		if b.doubt != nil {
			s.settle(ctx, &results[i], b.doubt)
			continue
		}
		if results[i].err = s.prepare(ctx, b); results[i].err != nil {
			continue
		}
		if e := s.extenders.binder(b.pod.Pod); e != nil {
			err := e.bind(ctx, b.pod.Pod, b.node)
			if err == nil || !e.c.Ignorable {
				if err != nil {
					s.settle(ctx, &results[i], err)
				}
				continue
			}
		}
		objects = append(objects, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: b.pod.Namespace, Name: b.pod.Name, UID: b.pod.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: b.node},
		})
		index = append(index, i)
	}
	if len(objects) > 0 {
		for j, err := range s.d.Client.Bind(ctx, objects) {
			if err != nil {
				s.settle(ctx, &results[index[j]], fmt.Errorf("running Bind plugin %q: %w", "DefaultBinder", err))
			}
		}
	}
	in := make([]input, len(results))
	for i := range results {
		in[i].bound = &results[i]
	}
	s.in.put(in...)
	for _, r := range results {
		if r.err == nil {
			p := r.pod.Pod
			s.d.Events.Event(p, nil, corev1.EventTypeNormal, "Scheduled", "Binding",
				fmt.Sprintf("Successfully assigned %s/%s to %s", p.Namespace, p.Name, r.node))
		} else if ctx.Err() == nil && !r.gone {
			s.d.Log.Info("binding failed", "ns", r.pod.Namespace, "pod", r.pod.Name, "node", r.node, "err", r.err)
		}
	}
}

// settle takes an error of a binding. An error may come after the binding was
// done (a timeout, a lost answer): if its place were given to another pod then,
// the node would be over-committed. So the API is asked.
func (s *Scheduler) settle(ctx context.Context, r *bound, err error) {
	r.err = err
	if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		return
	}
	now, getErr := client.For[*corev1.Pod](s.d.Client).In(r.pod.Namespace).Get(ctx, r.pod.Name)
	switch {
	case apierrors.IsNotFound(getErr):
		r.gone = true
	case getErr != nil:
		r.unsure = true
	case now.UID != r.pod.UID:
		r.gone = true
	case now.Spec.NodeName == r.node:
		r.err = nil
	default:
		r.gone = now.Spec.NodeName != ""
	}
}

// prepare runs the PreBind plugins.
func (s *Scheduler) prepare(ctx context.Context, b binding) error {
	for _, p := range s.profileOf(b.pod).preBind {
		if err := p.PreBind(ctx, b.pod, b.node); err != nil {
			name := "?"
			if n, ok := p.(framework.Plugin); ok {
				name = n.Name()
			}
			return fmt.Errorf("running PreBind plugin %q: %w", name, err)
		}
	}
	return nil
}
