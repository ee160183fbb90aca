package apiserver

import (
	"hash/maphash"
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// shared has parts of stored objects that templates repeat. A decoded object never
// changes, so that those which are equal may be the same: of a pod in memory, the
// maps of its containers' resources are a quarter.
type shared struct {
	mu           sync.Mutex
	requirements recent[string, corev1.ResourceRequirements] // by their bytes
	labels       recent[uint64, map[string]string]           // by hash
	seed         maphash.Seed
}

// keepShared bounds each of two generations.
const keepShared = 1024

// recent keeps what came last, two generations of it.
type recent[K comparable, V any] struct{ now, old map[K]V }

// first returns what came first under a key and is kept: v, where nothing is.
func (r *recent[K, V]) first(k K, v V) V {
	known, ok := r.now[k]
	if ok {
		return known
	}
	if known, ok = r.old[k]; !ok {
		known = v
	}
	if len(r.now) >= keepShared {
		r.old, r.now = r.now, nil
	}
	if r.now == nil {
		r.now = make(map[K]V)
	}
	r.now[k] = known
	return known
}

// in replaces the parts of an object, which was just decoded, by those known.
func (s *shared) in(obj Object) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	pod.Labels = s.labelled(pod.Labels)
	for i := range pod.Spec.Containers {
		s.resources(&pod.Spec.Containers[i].Resources)
	}
	for i := range pod.Spec.InitContainers {
		s.resources(&pod.Spec.InitContainers[i].Resources)
	}
}

// labelled returns the labels that were known first of those that equal l.
func (s *shared) labelled(l map[string]string) map[string]string {
	if len(l) == 0 {
		return l
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seed == (maphash.Seed{}) {
		s.seed = maphash.MakeSeed()
	}
	var sum uint64 // of any order
	for k, v := range l {
		var h maphash.Hash
		h.SetSeed(s.seed)
		_, _ = h.WriteString(k)
		_ = h.WriteByte(0)
		_, _ = h.WriteString(v)
		sum += h.Sum64()
	}
	known := s.labels.first(sum, l)
	if maps.Equal(known, l) { // and not of the same hash by chance
		return known
	}
	return l
}

func (s *shared) resources(r *corev1.ResourceRequirements) {
	if len(r.Limits) == 0 && len(r.Requests) == 0 {
		return
	}
	// Its keys are sorted, and nil and empty lists are told apart below.
	key, err := r.Marshal()
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.requirements.first(string(key), *r)
	if (known.Limits == nil) == (r.Limits == nil) && (known.Requests == nil) == (r.Requests == nil) {
		r.Limits, r.Requests = known.Limits, known.Requests
	}
}
