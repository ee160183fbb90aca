package apiserver

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// shared has parts of stored objects that templates repeat. A decoded object never
// changes, so that those which are equal may be the same: of a pod in memory, the
// maps of its containers' resources are a quarter.
type shared struct {
	mu       sync.Mutex
	now, old map[string]corev1.ResourceRequirements
}

// keepShared bounds each of two generations.
const keepShared = 1024

// in replaces the parts of an object, which was just decoded, by those known.
func (s *shared) in(obj Object) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	for i := range pod.Spec.Containers {
		s.resources(&pod.Spec.Containers[i].Resources)
	}
	for i := range pod.Spec.InitContainers {
		s.resources(&pod.Spec.InitContainers[i].Resources)
	}
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
