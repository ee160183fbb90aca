// Package eviction decides when a node is short of something and which pod goes for
// it, as upstream's kubelet does. It is a pure core: measurements come in, decisions
// go out; who measures and who ends pods is the kubelet.
//
// The order of a round is
//
//	Config.Next      which thresholds are crossed, and the node's conditions
//	Local            pods that went beyond limits of their own
//	Config.Crossed   whether freeing the node's own things (images, dead
//	                 containers) was enough
//	Rank, Message    who goes, and what is said
//
// Upstream's signals containerfs.* have no threshold of their own here: what
// containers write is always on the file system of images, so that they would repeat
// imagefs.*; upstream derives them, too, whatever is configured.
package eviction

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is something of which a node has a known amount left.
type Signal string

// The signals, under upstream's names.
const (
	MemoryAvailable            Signal = "memory.available"
	AllocatableMemoryAvailable Signal = "allocatableMemory.available"
	NodeFsAvailable            Signal = "nodefs.available"
	NodeFsInodesFree           Signal = "nodefs.inodesFree"
	ImageFsAvailable           Signal = "imagefs.available"
	ImageFsInodesFree          Signal = "imagefs.inodesFree"
	ContainerFsAvailable       Signal = "containerfs.available"
	ContainerFsInodesFree      Signal = "containerfs.inodesFree"
	PIDAvailable               Signal = "pid.available"
)

// Resources that no API type names: they are in messages alone.
const (
	inodes corev1.ResourceName = "inodes"
	pids   corev1.ResourceName = "pids"
)

// Resource is what a signal is about; "" for none.
func (s Signal) Resource() corev1.ResourceName {
	switch s {
	case MemoryAvailable, AllocatableMemoryAvailable:
		return corev1.ResourceMemory
	case NodeFsAvailable, ImageFsAvailable, ContainerFsAvailable:
		return corev1.ResourceEphemeralStorage
	case NodeFsInodesFree, ImageFsInodesFree, ContainerFsInodesFree:
		return inodes
	case PIDAvailable:
		return pids
	}
	return ""
}

// condition is what the node has while a threshold of the signal is crossed.
func (s Signal) condition() corev1.NodeConditionType {
	switch s.Resource() {
	case corev1.ResourceMemory:
		return corev1.NodeMemoryPressure
	case pids:
		return corev1.NodePIDPressure
	}
	return corev1.NodeDiskPressure
}

// Value is an amount, or a share of what there is in all.
type Value struct {
	Quantity *resource.Quantity
	// Percentage is a share, from 0 to 1, where Quantity is nil.
	Percentage float32
	// AtMost, where not 0, bounds what a share comes to.
	AtMost int64
}

// Of is the amount, of a capacity.
func (v Value) Of(capacity resource.Quantity) resource.Quantity {
	if v.Quantity != nil {
		return v.Quantity.DeepCopy()
	}
	n := int64(float64(capacity.Value()) * float64(v.Percentage))
	if v.AtMost != 0 {
		n = min(n, v.AtMost)
	}
	return *resource.NewQuantity(n, resource.BinarySI)
}

// Threshold is crossed while less than Value is left.
type Threshold struct {
	Signal Signal
	Value  Value
	// Grace is how long it must have been crossed before pods go; 0 is a hard one.
	Grace time.Duration
	// Reclaim, where not nil, must be left beyond Value before a threshold that was
	// acted on counts as no longer crossed.
	Reclaim *Value
}

// Config is what a node holds to.
type Config struct {
	Thresholds []Threshold
	// Transition is how long a condition stays after its last cause.
	Transition time.Duration
	// MaxPodGrace bounds, in seconds, the grace period of pods that go for a soft
	// threshold.
	MaxPodGrace int64
}

// Observation is what is left of something, of what there is.
type Observation struct{ Available, Capacity resource.Quantity }

// Observations are those of one moment. A signal that could not be measured is not in
// it: its thresholds are not crossed.
type Observations map[Signal]Observation

// State is what a round must know of the ones before. The zero value is that of a node
// that was never short.
type State struct {
	// first is when a threshold, by its index, was seen crossed; met are those whose
	// grace was over.
	first map[int]time.Time
	met   []int
	// last is when a condition last had a cause.
	last map[corev1.NodeConditionType]time.Time
	// Conditions the node has now, sorted.
	Conditions []corev1.NodeConditionType
}

// crossed tells whether less is left than the threshold wants, and its reclaim where
// that counts.
func (o Observations) crossed(t Threshold, reclaim bool) bool {
	seen, ok := o[t.Signal]
	if !ok {
		return false
	}
	want := t.Value.Of(seen.Capacity)
	if reclaim && t.Reclaim != nil {
		want.Add(t.Reclaim.Of(seen.Capacity))
	}
	return want.Cmp(seen.Available) > 0
}

// Crossed tells whether any threshold is crossed, its reclaim included and without
// regard to grace: whether what was freed was not enough.
func (c Config) Crossed(o Observations) bool {
	return slices.ContainsFunc(c.Thresholds, func(t Threshold) bool { return o.crossed(t, true) })
}

// DiskCrossed is Crossed for what is short of disk.
func (c Config) DiskCrossed(o Observations) bool {
	return slices.ContainsFunc(c.Thresholds, func(t Threshold) bool { return DiskSignal(t.Signal) && o.crossed(t, true) })
}

// Next takes in what was measured at now. due are the thresholds for which pods must
// go, the most urgent first: memory before everything else, hard before soft.
func (c Config) Next(s State, o Observations, now time.Time) (next State, due []Threshold) {
	next = State{first: map[int]time.Time{}, last: maps.Clone(s.last)}
	if next.last == nil {
		next.last = map[corev1.NodeConditionType]time.Time{}
	}
	for i, t := range c.Thresholds {
		if !o.crossed(t, false) && !(slices.Contains(s.met, i) && o.crossed(t, true)) {
			continue
		}
		at, ok := s.first[i]
		if !ok {
			at = now
		}
		next.first[i], next.last[t.Signal.condition()] = at, now
		if now.Sub(at) >= t.Grace {
			next.met, due = append(next.met, i), append(due, t)
		}
	}
	for cond, at := range next.last {
		if now.Sub(at) < c.Transition {
			next.Conditions = append(next.Conditions, cond)
		}
	}
	slices.Sort(next.Conditions)
	rank := func(t Threshold) int {
		n := 0
		if t.Signal.Resource() != corev1.ResourceMemory {
			n += 2
		}
		if t.Grace > 0 {
			n++
		}
		return n
	}
	slices.SortStableFunc(due, func(a, b Threshold) int { return rank(a) - rank(b) })
	return next, due
}

// Grace is how many seconds a pod that goes for t has.
func (c Config) Grace(t Threshold, pod *corev1.Pod) int64 {
	if t.Grace == 0 {
		return Immediately
	}
	grace := c.MaxPodGrace
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = min(grace, *g)
	}
	return max(grace, 1)
}

// Immediately is the grace period, in seconds, of pods that must go at once.
const Immediately = 1
