package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"skiff/internal/client"
)

// statusWriter brings a pod's status to the API: as a strategic merge patch of
// what differs, with the pod's UID as a precondition, one at a time; statuses that
// follow while one is under way are written as one.
type statusWriter struct {
	k   *Kubelet
	uid types.UID

	mu      sync.Mutex
	base    *corev1.Pod // newest state of the API
	want    *corev1.PodStatus
	writing bool
	gone    bool
	// static: the pod is not in the API. Its mirror may be; while there is none the
	// writer is gone.
	static bool
	// futile is a patch that the API took and that changed nothing: fields that
	// it does not keep.
	futile []byte
	// done is closed and replaced whenever a round of writing ends.
	done chan struct{}
	err  error
}

func newStatusWriter(k *Kubelet, pod *corev1.Pod) *statusWriter {
	return &statusWriter{k: k, uid: pod.UID, base: pod, static: isStatic(pod), gone: isStatic(pod), done: make(chan struct{})}
}

// newer tells whether a was written after b; states of unknown age are taken.
func newer(a, b *corev1.Pod) bool {
	if b == nil || a == b {
		return true
	}
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errX != nil || errY != nil || x >= y
}

// current is the last status that was set, or the API's where none was.
func (s *statusWriter) current() corev1.PodStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.want != nil {
		return *s.want
	}
	return s.base.Status
}

// setBase takes a newer state of the API. A status that somebody else changed is
// put right.
func (s *statusWriter) setBase(pod *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.static || !newer(pod, s.base) {
		return
	}
	s.base = pod
	if s.want != nil {
		s.begin()
	}
}

// setMirror takes the mirror of a static pod in the API, nil where there is none.
func (s *statusWriter) setMirror(m *corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m == nil {
		s.gone = true
		return
	}
	if s.uid == m.UID && !newer(m, s.base) {
		return
	}
	if s.uid != m.UID {
		s.futile = nil
	}
	s.base, s.uid, s.gone = m, m.UID, false
	if s.want == nil {
		return
	}
	s.keepStart()
	s.begin()
}

// keepStart takes the start time that the mirror of a static pod has: that of a former
// process, of which this one learns when the API does. s.mu is held.
func (s *statusWriter) keepStart() {
	if at := s.base.Status.StartTime; s.static && at != nil {
		s.want.StartTime = at
	}
}

// set takes the status to be written and returns at once.
func (s *statusWriter) set(st corev1.PodStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want = &st
	s.keepStart() // the status may be of before the mirror was seen
	s.begin()
}

// begin starts a round of writing where one is needed. s.mu is held.
func (s *statusWriter) begin() {
	if s.writing || s.gone {
		return
	}
	if s.futile == nil {
		// The usual case needs no patch to be made to see that there is nothing
		// to write.
		if want, ok := s.merged(); !ok || sameStatus(&want, &s.base.Status) {
			return
		}
	} else if p, err := s.patch(); err == nil && p == nil {
		return
	}
	s.writing = true
	s.k.spawn(s.write)
}

func (s *statusWriter) write(ctx context.Context) {
	wait := 100 * time.Millisecond
	for {
		s.mu.Lock()
		p, err := s.patch()
		if err != nil || p == nil || s.gone || ctx.Err() != nil {
			if err == nil {
				err = ctx.Err()
			}
			s.writing, s.err = false, err
			close(s.done)
			s.done = make(chan struct{})
			s.mu.Unlock()
			if err != nil && ctx.Err() == nil {
				s.k.d.Log.Error("make status patch", "err", err)
			}
			return
		}
		name, ns := s.base.Name, s.base.Namespace
		s.mu.Unlock()
		got, err := client.For[*corev1.Pod](s.k.d.Client).In(ns).Patch(ctx, name, types.StrategicMergePatchType, p, "status")
		s.mu.Lock()
		switch {
		case err == nil:
			wait = 100 * time.Millisecond
			if newer(got, s.base) {
				s.base = got
			}
			if want, ok := s.merged(); !ok || sameStatus(&want, &s.base.Status) {
				s.futile = nil
			} else if again, err := s.patch(); err == nil && bytes.Equal(again, p) {
				s.futile = p
			}
		case apierrors.IsNotFound(err):
			s.gone = true
		case isOther(err):
			s.gone = true
		}
		gone := s.gone
		s.mu.Unlock()
		if err != nil && !gone && ctx.Err() == nil {
			s.k.d.Log.Warn("write pod status", "pod", name, "ns", ns, "err", err)
			sleep(ctx, wait)
			wait = min(wait*2, 10*time.Second)
		}
	}
}

// isOther tells that a write was refused because another pod has the name now. A
// server that is overtaken by other writers refuses too, and may be asked again.
func isOther(err error) bool {
	return apierrors.IsConflict(err) && strings.Contains(err.Error(), "UID")
}

// flush waits until what was set is written, or the pod is gone.
func (s *statusWriter) flush(ctx context.Context) error {
	for {
		s.mu.Lock()
		p, err := s.patch()
		if s.gone || err == nil && p == nil && !s.writing {
			s.mu.Unlock()
			return nil
		}
		if err != nil {
			s.mu.Unlock()
			return err
		}
		s.begin()
		done := s.done
		s.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// merged is the status to be written. Conditions of others are as the API has
// them, whatever they were when the status was made. s.mu is held.
func (s *statusWriter) merged() (corev1.PodStatus, bool) {
	if s.want == nil {
		return corev1.PodStatus{}, false
	}
	want := *s.want
	conds := foreign(s.base.Status.Conditions)
	if c := condition(want.Conditions, corev1.DisruptionTarget); c != nil && ourDisruption(*c) {
		conds = slices.DeleteFunc(conds, func(x corev1.PodCondition) bool { return x.Type == c.Type })
	}
	for _, c := range want.Conditions {
		if condition(conds, c.Type) == nil && len(foreign([]corev1.PodCondition{c})) == 0 {
			conds = append(conds, c)
		}
	}
	want.Conditions = conds
	if s.static {
		// The file knows no generations; the mirror has one.
		want.ObservedGeneration = s.base.Generation
		want.Conditions = slices.Clone(conds)
		for i := range want.Conditions {
			if want.Conditions[i].ObservedGeneration == 0 {
				want.Conditions[i].ObservedGeneration = s.base.Generation
			}
		}
	}
	return want, true
}

// patch returns what must be sent, nil where the API has it all. s.mu is held.
func (s *statusWriter) patch() ([]byte, error) {
	want, ok := s.merged()
	if !ok || sameStatus(&want, &s.base.Status) {
		return nil, nil
	}
	type object struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Status   corev1.PodStatus  `json:"status"`
	}
	meta := metav1.ObjectMeta{UID: s.uid}
	old, err := json.Marshal(object{meta, s.base.Status})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	now, err := json.Marshal(object{meta, want})
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	p, err := strategicpatch.CreateTwoWayMergePatch(old, now, corev1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("make patch: %w", err)
	}
	if bytes.Equal(p, []byte("{}")) {
		return nil, nil
	}
	// The UID is in both and so not in the patch: it goes with every patch, as
	// the precondition.
	p = append([]byte(`{"metadata":{"uid":`+strconv.Quote(string(s.uid))+`},`), p[1:]...)
	if bytes.Equal(p, s.futile) {
		return nil, nil
	}
	return p, nil
}

// sameStatus compares without the order of conditions.
func sameStatus(a, b *corev1.PodStatus) bool {
	if len(a.Conditions) != len(b.Conditions) {
		return false
	}
	x, y := *a, *b
	x.Conditions, y.Conditions = nil, nil
	if !equality.Semantic.DeepEqual(x, y) {
		return false
	}
	for i := range a.Conditions {
		c := condition(b.Conditions, a.Conditions[i].Type)
		if c == nil || !equality.Semantic.DeepEqual(*c, a.Conditions[i]) {
			return false
		}
	}
	return true
}
