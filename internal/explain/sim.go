package explain

import (
	"log/slog"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/explanation"
	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/scheduler"
	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// change is one thing that would be otherwise.
type change struct {
	// key is the same for the same change, message says it to a person.
	key, message string
	// edit changes the pod's spec; it is applied to the template of its owner too.
	edit func(*corev1.PodSpec)
	// nodes are new, or as they would be; pods come with a new node, gone are gone.
	nodes []*corev1.Node
	pods  []*corev1.Pod
	gone  []*corev1.Pod
	// storage are volumes, claims and classes that are new, or as they would be.
	storage []client.Object
	// create is the object to be made, target the one to be changed, where it is
	// not the pod.
	create  client.Object
	target  *explanation.Reference
	command string
	// costly: this is proposed, but what is less than it is looked for further.
	costly bool
}

// sim asks the scheduler's core about a pod in a world.
type sim struct {
	w       *World
	classes *framework.Classes
	s       *framework.Snapshot
	cycle   *scheduler.Cycle // without preemption
	// ahead are the pending pods that the scheduler tries before.
	ahead []*framework.Pod
}

// maxAhead bounds the pending pods that are tried before.
const maxAhead = 1000

func finished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func newSim(w *World, of *corev1.Pod) *sim {
	m := &sim{w: w, classes: framework.NewClasses(), s: framework.NewSnapshot(), cycle: newCycle(w, false)}
	for _, n := range all[*corev1.Node](w) {
		m.s.SetNode(n)
	}
	for _, ns := range all[*corev1.Namespace](w) {
		m.s.SetNamespace(ns.Name, ns.Labels)
	}
	me := m.classes.Pod(of)
	for _, p := range all[*corev1.Pod](w) {
		switch {
		case finished(p) || p.UID == of.UID:
		case p.Spec.NodeName != "":
			m.s.SetPod(m.classes.Pod(p), p.Spec.NodeName)
		case p.Status.NominatedNodeName != "":
			m.s.Nominate(m.classes.Pod(p), p.Status.NominatedNodeName)
		case p.Spec.SchedulerName == of.Spec.SchedulerName && len(p.Spec.SchedulingGates) == 0 && p.DeletionTimestamp == nil:
			if o := m.classes.Pod(p); framework.ComparePods(o, me) < 0 {
				m.ahead = append(m.ahead, o)
			}
		}
	}
	slices.SortFunc(m.ahead, framework.ComparePods)
	m.ahead = m.ahead[:min(len(m.ahead), maxAhead)]
	return m
}

// newCycle has the plugins that the scheduler has, reading w.
func newCycle(w *World, preempts bool) *scheduler.Cycle {
	var objects []client.Object
	for t, list := range w.byType {
		// Pods are in the snapshot; no plugin reads these.
		if t != reflect.TypeFor[*corev1.Pod]() && t != reflect.TypeFor[*corev1.Event]() {
			objects = append(objects, list...)
		}
	}
	enabled := plugins.Live(plugins.Deps{Informers: client.Still(objects...), Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if !preempts {
		enabled = slices.DeleteFunc(enabled, func(e plugins.Enabled) bool {
			_, post := e.Plugin.(framework.PostFilterer)
			return post
		})
	}
	return scheduler.NewCycle(enabled, 1)
}

// cycleWith is the cycle that judges after changes: what volumes a node has is not
// in the snapshot.
func (m *sim) cycleWith(p *corev1.Pod, cs []change, preempts bool) *scheduler.Cycle {
	var objects []client.Object
	claims := slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return storage.ClaimOf(p, &v) != "" })
	moved := false
	for i := range cs {
		objects = append(objects, cs[i].storage...)
		moved = moved || len(cs[i].storage) > 0
		for _, n := range cs[i].nodes {
			objects = append(objects, n)
			moved = moved || claims
		}
	}
	switch {
	case moved:
		return newCycle(m.w.with(objects...).settled(), preempts)
	case preempts:
		return newCycle(m.w, true)
	}
	return m.cycle
}

// settled is the world after the binder has given claims what it can: those of
// classes that do not wait for a pod are bound to a volume there is, or to one that
// their provisioner made.
func (w *World) settled() *World {
	next := w
	for _, c := range all[*corev1.PersistentVolumeClaim](w) {
		if _, done := c.Annotations[storage.BindCompleted]; done {
			continue
		}
		class, known := get[*storagev1.StorageClass](w, "", storage.ClaimClass(c))
		delay := known && storage.Delays(class)
		v, err := storage.Match(c, all[*corev1.PersistentVolume](next), delay)
		if err != nil || v == nil && (delay || !known || !provisions(class)) {
			continue
		}
		if v == nil {
			v = &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "made-for-" + c.Namespace + "-" + c.Name}}
		}
		bound, taken := c.DeepCopy(), v.DeepCopy()
		metav1.SetMetaDataAnnotation(&bound.ObjectMeta, storage.BindCompleted, "yes")
		bound.Spec.VolumeName, bound.Status.Phase = v.Name, corev1.ClaimBound
		taken.Spec.ClaimRef, taken.Status.Phase = storage.Reference(c), corev1.VolumeBound
		next = next.with(bound, taken)
	}
	return next
}

// apply makes the snapshot what it would be and returns how to undo that.
func (m *sim) apply(cs []change) (undo func()) {
	var back []func()
	for i := range cs {
		for _, n := range cs[i].nodes {
			if old := m.s.Node(n.Name); old != nil {
				obj := old.Obj
				back = append(back, func() { m.s.SetNode(obj) })
			} else {
				back = append(back, func() { m.s.RemoveNode(n.Name) })
			}
			m.s.SetNode(n)
		}
		for _, p := range cs[i].pods {
			m.s.SetPod(m.classes.Pod(p), p.Spec.NodeName)
			back = append(back, func() { m.s.RemovePod(p.UID) })
		}
		for _, p := range cs[i].gone {
			if old, node, ok := m.s.Placed(p.UID); ok {
				m.s.RemovePod(p.UID)
				back = append(back, func() { m.s.SetPod(old, node) })
			}
		}
	}
	return func() {
		for _, f := range slices.Backward(back) {
			f()
		}
	}
}

// changed is the pod after changes.
func changed(p *corev1.Pod, cs []change) *corev1.Pod {
	out := p.DeepCopy()
	for i := range cs {
		if cs[i].edit != nil {
			cs[i].edit(&out.Spec)
		}
	}
	return out
}

// within calls f with the snapshot as it is after changes and after the pods ahead
// have taken what they can.
func (m *sim) within(p *corev1.Pod, cs []change, preempts bool, f func(c *scheduler.Cycle, p *framework.Pod)) {
	p = changed(p, cs)
	cycle := m.cycleWith(p, cs, preempts)
	undo := m.apply(cs)
	defer undo()
	var taken []scheduler.Decision
	me := m.classes.Pod(p)
	for _, o := range m.ahead {
		if framework.ComparePods(o, me) < 0 {
			taken = append(taken, m.cycle.Schedule(m.s, []*framework.Pod{o})...)
		}
	}
	f(cycle, me)
	for _, d := range slices.Backward(taken) {
		if d.Failure == nil {
			m.cycle.Undo(m.s, d.Pod, d.Node)
		}
	}
}

// place says where the pod would run after changes.
func (m *sim) place(p *corev1.Pod, cs []change) (node string, ok bool) {
	if len(p.Spec.SchedulingGates) > 0 && len(changed(p, cs).Spec.SchedulingGates) > 0 {
		return "", false
	}
	m.within(p, cs, false, func(c *scheduler.Cycle, me *framework.Pod) {
		d := c.Schedule(m.s, []*framework.Pod{me})[0]
		if d.Failure == nil {
			node, ok = d.Node, true
			c.Undo(m.s, me, d.Node)
		}
	})
	return node, ok
}

// refusals are the nodes' answers after changes.
func (m *sim) refusals(p *corev1.Pod, cs []change) (out []scheduler.Refusal) {
	m.within(p, cs, false, func(c *scheduler.Cycle, me *framework.Pod) { out = c.Explain(m.s, me) })
	return out
}

// preempt says whom the scheduler would evict for the pod after changes.
func (m *sim) preempt(p *corev1.Pod, cs []change) (node string, victims []*corev1.Pod) {
	m.within(p, cs, true, func(c *scheduler.Cycle, me *framework.Pod) {
		d := c.Schedule(m.s, []*framework.Pod{me})[0]
		if d.Failure == nil {
			c.Undo(m.s, me, d.Node)
			return
		}
		node = d.Failure.Nominated
		for _, v := range d.Failure.Victims {
			victims = append(victims, v.Pod)
		}
		m.s.Nominate(me, "")
	})
	return node, victims
}

// provisions tells whether volumes of a class are made on demand.
func provisions(class *storagev1.StorageClass) bool {
	return class.Provisioner != "" && class.Provisioner != "kubernetes.io/no-provisioner"
}
