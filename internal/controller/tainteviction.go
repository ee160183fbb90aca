package controller

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

// taintEviction deletes pods that do not tolerate a NoExecute taint of their node,
// at once or when the time that they tolerate it is over.
type taintEviction struct {
	*control.Controller
	now   func() time.Time
	nodes *client.Informer[*corev1.Node]
	pods  *client.Informer[*corev1.Pod]

	mu      sync.Mutex
	waiting map[control.Key]tolerated
}

// tolerated is a pod whose time is running.
type tolerated struct {
	uid   types.UID
	since time.Time
}

func newTaintEviction(d Deps) *control.Controller {
	c := control.New("node-controller", d.Deps)
	c.ReportAs("taint-eviction-controller")
	e := &taintEviction{Controller: c, now: d.Clock(), waiting: map[control.Key]tolerated{}}
	e.pods = control.Watch(c, func(ch client.Change[*corev1.Pod]) {
		if ch.Old != nil && ch.New != nil && ch.Old.UID == ch.New.UID && ch.Old.Spec.NodeName == ch.New.Spec.NodeName &&
			equality.Semantic.DeepEqual(ch.Old.Spec.Tolerations, ch.New.Spec.Tolerations) {
			return
		}
		c.Queue.Add(control.KeyOf(ch.Object()))
	})
	indexNodes(e.pods)
	e.nodes = control.Watch(c, func(ch client.Change[*corev1.Node]) {
		if ch.Old != nil && ch.New != nil && equality.Semantic.DeepEqual(noExecute(ch.Old), noExecute(ch.New)) {
			return
		}
		for _, p := range e.pods.ByIndex(byNode, ch.Object().Name) {
			c.Queue.Add(control.KeyOf(p))
		}
	})
	c.Writes = append(c.Writes,
		control.Rule("", []string{"pods"}, "get", "delete"),
		control.Rule("", []string{"pods/status"}, "patch"),
	)
	c.Reconcile = e.reconcile
	return c
}

func noExecute(n *corev1.Node) []corev1.Taint {
	return slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Effect != corev1.TaintEffectNoExecute })
}

func (e *taintEviction) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	p, ok := e.pods.Get(k.Namespace, k.Name)
	var taints []corev1.Taint
	if ok && p.DeletionTimestamp == nil {
		if n, ok := e.nodes.Get("", p.Spec.NodeName); ok {
			taints = noExecute(n)
		}
	}
	e.mu.Lock()
	w, waits := e.waiting[k]
	if waits && (!ok || w.uid != p.UID) {
		delete(e.waiting, k)
		waits = false
	}
	e.mu.Unlock()
	if !ok {
		return control.Result{}, nil
	}
	left, forever := tolerance(taints, p.Spec.Tolerations)
	if forever {
		if waits {
			e.forget(k)
			if p.DeletionTimestamp == nil {
				e.report(k, "Cancelling deletion of Pod %s")
			}
		}
		return control.Result{}, nil
	}
	now := e.now()
	if !waits {
		w = tolerated{p.UID, now}
		e.mu.Lock()
		e.waiting[k] = w
		e.mu.Unlock()
	}
	if wait := w.since.Add(left).Sub(now); wait > 0 {
		return control.Result{After: wait}, nil
	}
	if err := e.evict(ctx, k, p.UID); err != nil {
		return control.Result{}, err
	}
	e.forget(k)
	return control.Result{}, nil
}

func (e *taintEviction) forget(k control.Key) {
	e.mu.Lock()
	delete(e.waiting, k)
	e.mu.Unlock()
}

func (e *taintEviction) report(k control.Key, format string) {
	ref := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: k.Namespace, Name: k.Name}
	e.Events.EventRef(ref, corev1.EventTypeNormal, "TaintManagerEviction", format, k.String())
}

// evict marks a pod as disrupted and deletes it.
func (e *taintEviction) evict(ctx context.Context, k control.Key, uid types.UID) error {
	_, err := endDisrupted(ctx, e.Client, k, uid, func(p *corev1.Pod) func(*corev1.PodStatus) {
		e.report(k, "Marking for deletion Pod %s")
		return func(s *corev1.PodStatus) {
			disrupt(s, p.Generation, e.now(), "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
		}
	})
	return err
}

// endDisrupted deletes the very pod after it has been marked as mark says; a pod that
// is gone or on its way is left alone.
func endDisrupted(ctx context.Context, c *client.Client, k control.Key, uid types.UID, mark func(*corev1.Pod) func(*corev1.PodStatus)) (ended bool, err error) {
	pods := client.For[*corev1.Pod](c).In(k.Namespace)
	p, err := pods.Get(ctx, k.Name)
	if err != nil {
		return false, ignoreGone(err)
	}
	if p.UID != uid || p.DeletionTimestamp != nil {
		return false, nil
	}
	if err := patchPodStatus(ctx, c, p, mark(p)); err != nil {
		return false, ignoreGone(err)
	}
	if err := pods.Delete(ctx, k.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil {
		return false, ignoreGone(err)
	}
	return true, nil
}

// disrupt sets the condition DisruptionTarget.
func disrupt(s *corev1.PodStatus, generation int64, now time.Time, reason, message string) {
	c := corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message,
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
	}
	for i := range s.Conditions {
		if old := &s.Conditions[i]; old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}

// tolerance is how long taints are tolerated together: the shortest time of the
// tolerations that apply, zero where a taint is not tolerated at all.
func tolerance(taints []corev1.Taint, tolerations []corev1.Toleration) (d time.Duration, forever bool) {
	forever = true
	for i := range taints {
		j := slices.IndexFunc(tolerations, func(t corev1.Toleration) bool { return tolerates(&t, &taints[i]) })
		if j < 0 {
			return 0, false
		}
		s := tolerations[j].TolerationSeconds
		if s == nil {
			continue
		}
		if t := time.Duration(max(*s, 0)) * time.Second; forever || t < d {
			d, forever = t, false
		}
	}
	return d, forever
}

func tolerates(t *corev1.Toleration, taint *corev1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	switch t.Operator {
	case "", corev1.TolerationOpEqual:
		return t.Key != "" && t.Value == taint.Value
	case corev1.TolerationOpExists:
		return true
	}
	return false
}
