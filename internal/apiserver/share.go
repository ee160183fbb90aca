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
	mu       sync.Mutex
	now, old map[string]corev1.ResourceRequirements

	labels, oldLabels map[uint64]map[string]string // by hash
	seed              maphash.Seed
}

// keepShared bounds each of two generations.
const keepShared = 1024

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
	if s.labels == nil && s.oldLabels == nil {
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
	known, ok := s.labels[sum]
	if !ok {
		if known, ok = s.oldLabels[sum]; !ok {
			known = l
		}
		if len(s.labels) >= keepShared {
			s.oldLabels, s.labels = s.labels, nil
		}
		if s.labels == nil {
			s.labels = make(map[uint64]map[string]string)
		}
		s.labels[sum] = known
	}
	if maps.Equal(known, l) {
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
	known, ok := s.now[string(key)]
	if !ok {
		if known, ok = s.old[string(key)]; !ok {
			known = *r
		}
		if len(s.now) >= keepShared {
			s.old, s.now = s.now, nil
		}
		if s.now == nil {
			s.now = make(map[string]corev1.ResourceRequirements)
		}
		s.now[string(key)] = known
	}
	if (known.Limits == nil) == (r.Limits == nil) && (known.Requests == nil) == (r.Requests == nil) {
		r.Limits, r.Requests = known.Limits, known.Requests
	}
}
