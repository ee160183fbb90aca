package kubelet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

const (
	// manifestPeriod is how often manifests are read although nothing changed.
	manifestPeriod = 20 * time.Second
	// mostManifest is the largest file that is read.
	mostManifest = 10 << 20
)

// statics runs the pods of a directory of manifests, with or without an API server, and
// shows each in the API as a mirror: a pod of the same name, owned by the node, whose
// deletion ends nothing. A file that cannot be read, or makes no pod, leaves the pod that
// it made before as it is.
type statics struct {
	k   *Kubelet
	dir string

	// wake asks for another round.
	wake chan struct{}

	mu sync.Mutex
	// mirrors are those of the API, by namespace/name.
	mirrors map[string]*corev1.Pod
	// files are the pods by their manifest's path.
	files map[string]*corev1.Pod
}

func newStatics(k *Kubelet) *statics {
	return &statics{k: k, dir: k.d.StaticPods, wake: make(chan struct{}, 1), mirrors: map[string]*corev1.Pod{}, files: map[string]*corev1.Pod{}}
}

func (s *statics) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func fullName(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

// onMirror takes a change of a mirror in the API. It is called by the informer.
func (s *statics) onMirror(c client.Change[*corev1.Pod]) {
	s.mu.Lock()
	if c.Deleted() {
		// Another of the name may be there by now.
		if have := s.mirrors[fullName(c.Old)]; have != nil && have.UID == c.Old.UID {
			delete(s.mirrors, fullName(c.Old))
		}
	} else {
		s.mirrors[fullName(c.New)] = c.New
	}
	s.mu.Unlock()
	s.kick()
}

// run follows the directory. The pods that are there at the start are known before it
// is called: see read.
func (s *statics) run(ctx context.Context) error {
	var changed <-chan struct{}
	if s.dir != "" {
		c, stop, err := s.k.d.notify(s.dir)
		if err != nil {
			s.k.d.Log.Warn("watch the manifests of static pods", "path", s.dir, "err", err)
		} else {
			defer stop()
			changed = c
		}
	}
	t := time.NewTicker(manifestPeriod)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			s.read()
		case <-changed:
			s.read()
		case <-s.wake:
		}
		s.follow()
		s.mirror(ctx)
	}
}

// read reads the manifests.
func (s *statics) read() {
	if s.dir == "" {
		return
	}
	paths, err := filepath.Glob(filepath.Join(s.dir, "[^.]*"))
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	files := map[string]*corev1.Pod{}
	names := map[string]string{}
	for _, path := range paths {
		p, err := s.load(path, s.files[path])
		if err != nil {
			s.k.d.Log.Warn("read the manifest of a static pod", "path", path, "err", err)
			p = s.files[path]
		}
		if p == nil {
			continue
		}
		if other, ok := names[fullName(p)]; ok {
			s.k.d.Log.Warn("two manifests name the same pod", "path", path, "other", other, "pod", p.Name, "ns", p.Namespace)
			continue
		}
		files[path], names[fullName(p)] = p, path
	}
	s.files = files
}

// load reads one manifest; have is what it made before. What is no file makes no pod.
func (s *statics) load(path string, have *corev1.Pod) (*corev1.Pod, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil || !info.Mode().IsRegular() {
		return nil, err
	}
	if info.Size() > mostManifest {
		return have, fmt.Errorf("larger than %d bytes", mostManifest)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p, err := manifest(data, path, s.k.d.NodeName, s.k.d.Now())
	if err != nil {
		return nil, err
	}
	if have != nil && have.UID == p.UID {
		return have, nil // seen before
	}
	return p, nil
}

// wanted are the static pods there are to be, by namespace/name.
func (s *statics) wanted() map[string]*corev1.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]*corev1.Pod{}
	for _, p := range s.files {
		out[fullName(p)] = p
	}
	return out
}

// running are the workers of static pods, by namespace/name.
func (s *statics) running() map[string]*worker {
	out := map[string]*worker{}
	for _, w := range s.k.allWorkers() {
		if p, _ := w.current(); isStatic(p) {
			out[fullName(p)] = w
		}
	}
	return out
}

// follow starts and ends static pods. One takes another's name when that has ended.
func (s *statics) follow() {
	want, have := s.wanted(), s.running()
	for name, w := range have {
		if p := want[name]; p == nil || p.UID != w.uid {
			w.setGone()
		}
	}
	for name, p := range want {
		if have[name] == nil && !s.left(p) {
			s.k.ensureWorker(p)
		}
	}
}

// left tells whether something of a former pod of that name still runs here, known by
// its labels alone.
func (s *statics) left(p *corev1.Pod) bool {
	for _, w := range s.k.allWorkers() {
		if o, gone := w.current(); gone && fullName(o) == fullName(p) && w.uid != p.UID {
			return true
		}
	}
	return false
}

// mirror brings the mirrors in the API in line with the pods there are.
func (s *statics) mirror(ctx context.Context) {
	if !s.k.synced() {
		return
	}
	want, have := s.wanted(), s.running()
	s.mu.Lock()
	mirrors := map[string]*corev1.Pod{}
	for name, m := range s.mirrors {
		mirrors[name] = m
	}
	s.mu.Unlock()
	for name, m := range mirrors {
		p := want[name]
		switch {
		case p == nil && have[name] != nil:
			// It shows that the pod is on its way out.
		case p == nil || m.DeletionTimestamp != nil || m.Annotations[annotationConfigMirror] != p.Annotations[annotationConfigHash]:
			s.remove(ctx, m)
			delete(mirrors, name)
			if w := have[name]; w != nil {
				w.status.setMirror(nil)
			}
		}
	}
	for name, p := range want {
		m := mirrors[name]
		if m == nil {
			var err error
			if m, err = s.make(ctx, p); err != nil {
				if ctx.Err() == nil {
					s.k.d.Log.Warn("make the mirror of a static pod", "pod", p.Name, "ns", p.Namespace, "err", err)
				}
				continue
			}
		}
		if w := have[name]; w != nil && w.uid == p.UID {
			w.status.setMirror(m)
		} else if w := s.k.worker(p.UID); w != nil {
			w.status.setMirror(m)
		}
	}
}

// make makes a mirror. It belongs to the node, as the API demands.
func (s *statics) make(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) {
	node, err := client.For[*corev1.Node](s.k.d.Client).Get(ctx, s.k.d.NodeName)
	if err != nil {
		return nil, fmt.Errorf("failed to get node UID: %w", err)
	}
	m := p.DeepCopy()
	m.UID, m.ResourceVersion = "", ""
	m.Annotations[annotationConfigMirror] = p.Annotations[annotationConfigHash]
	controller := true
	m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: &controller}}
	if m, err = client.For[*corev1.Pod](s.k.d.Client).In(p.Namespace).Create(ctx, m); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.mirrors[fullName(m)]; have == nil || have.UID != m.UID {
		s.mirrors[fullName(m)] = m
	}
	return m, nil
}

// notify tells of changes in a directory until stop is called.
func (k *Kubelet) notify(dir string) (changed <-chan struct{}, stop func(), err error) {
	n, err := newNotifier(dir)
	if err != nil {
		return nil, nil, err
	}
	done := make(chan struct{})
	k.spawn(func(context.Context) { defer close(done); n.run() })
	return n.changed, func() { n.file.Close(); <-done }, nil
}

func (s *statics) remove(ctx context.Context, m *corev1.Pod) {
	zero, uid := int64(0), m.UID
	err := client.For[*corev1.Pod](s.k.d.Client).In(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &uid},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
		s.k.d.Log.Warn("remove the mirror of a static pod", "pod", m.Name, "ns", m.Namespace, "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.mirrors[fullName(m)]; have != nil && have.UID == uid {
		delete(s.mirrors, fullName(m))
	}
}

// of returns the worker of the static pod that a mirror shows, nil where it shows none.
func (s *statics) of(mirror *corev1.Pod) *worker {
	return s.k.worker(types.UID(strings.TrimSpace(mirror.Annotations[annotationConfigMirror])))
}
