// Package volume makes the volumes of pods on a node: one file per type, listed in
// all.go.
//
// A volume is a directory (or, for hostPath, any path of the host) that containers
// mount. Its content comes from Sources; the package knows neither the API nor the
// kubelet.
//
// # Where things are
//
//	<data>/kubelet/pods/<pod UID>/volumes/<type>/<name>        volumes on disk
//	<data>/volumes/<PersistentVolume>                          local volumes that
//	                                                           skiff provisions
//	<data>/kubelet/pods/<pod UID>/volume-subpaths/<name>/<container>/<index>
//	                                                           bind mounts of parts
//	<run>/volumes/<pod UID>/<type>/<name>                      what must not touch a
//	                                                           disk, on one tmpfs
//
// # Invariants
//
// Setup and Teardown may be repeated, and interrupted anywhere: the next call goes
// on. Content of configMap, secret, downwardAPI and projected volumes changes all
// at once, by the swap of one symbolic link, and a volume whose content is as it
// should be is not touched. Teardown removes nothing while anything is mounted
// below what it removes: a directory of the host that was mounted there cannot be
// lost.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/host"
)

// Sources give volumes their content. Errors for what does not exist are
// apierrors of reason NotFound.
type Sources interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
	// Token returns a token of the pod's service account and when to ask for the
	// next one.
	Token(ctx context.Context, pod *corev1.Pod, audience string, expirationSeconds int64) (string, time.Time, error)
	// TrustBundles returns the bundles, in PEM, of the ClusterTrustBundle that p
	// names, or of those that it selects: maybe none.
	TrustBundles(ctx context.Context, p *corev1.ClusterTrustBundleProjection) ([]string, error)
	// Certificate returns the key and the chain of certificates, in PEM, of the
	// source that p is, by its index, of a projected volume, and when to ask again.
	// held returns what the volume holds already: after a restart, that is known
	// nowhere else.
	Certificate(ctx context.Context, pod *corev1.Pod, p *corev1.PodCertificateProjection, volume string, source int,
		held func() (key, chain []byte)) (key, chain []byte, refresh time.Time, err error)
	// PersistentVolume returns the volume that the claim of v, a
	// persistentVolumeClaim or an ephemeral volume of the pod, is bound to.
	PersistentVolume(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (*corev1.PersistentVolume, error)
	// Attached returns the CSI driver of a volume, pv or one that stands in the pod,
	// and what events call it. A volume that is attached to nodes is attached to
	// this one then; until it is, the answer is an error.
	Attached(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, pv *corev1.PersistentVolume) (driver, label string, err error)
	// Field and Resource resolve the downward API.
	Field(ctx context.Context, pod *corev1.Pod, f *corev1.ObjectFieldSelector) (string, error)
	Resource(ctx context.Context, pod *corev1.Pod, container string, f *corev1.ResourceFieldSelector) (string, error)
}

// Deps is what a Set needs. Journal may be nil, in tests.
type Deps struct {
	Host    host.Instance
	Journal *host.Journal
	Sources Sources
	Log     *slog.Logger
	// Types are the types there are; All() by default.
	Types []Type
}

// Type is a kind of volume.
type Type interface {
	// Name is the directory of this type's volumes, upstream's:
	// kubernetes.io~empty-dir.
	Name() string
	// Has tells whether v is of this type.
	Has(v *corev1.Volume) bool
	// Setup makes the volume and returns its path, and when to call it again.
	Setup(ctx context.Context, m *Mount) (path string, refresh time.Time, err error)
}

// Persistent is a Type that serves PersistentVolumes too.
type Persistent interface {
	Type
	// HasPersistent tells whether a PersistentVolume is of this type.
	HasPersistent(s *corev1.PersistentVolumeSource) bool
}

// Mount is a volume to be made for a pod.
type Mount struct {
	Pod     *corev1.Pod
	Volume  *corev1.Volume
	Sources Sources
	// PV is what the volume's claim is bound to; nil where the volume stands in the
	// pod itself.
	PV *corev1.PersistentVolume
	// Dir is the volume's own directory on disk; it may not exist yet.
	Dir string
	// Memory is the same on a file system in memory; it is made by Memory().
	memory func() (string, error)
}

// Memory returns the volume's own directory in memory.
func (m *Mount) Memory() (string, error) { return m.memory() }

// Set makes and removes the volumes of this node's pods. It is safe for concurrent
// use for different pods.
type Set struct {
	d Deps

	mu     sync.Mutex
	tmpfs  bool // the file system in memory is mounted
	noted  bool // the journal knows of mounts
	perPod map[types.UID]*sync.Mutex
}

// New returns the volumes of an instance.
func New(d Deps) *Set {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Types == nil {
		d.Types = All()
	}
	return &Set{d: d, perPod: map[types.UID]*sync.Mutex{}}
}

func (s *Set) podsDir() string { return s.d.Host.Data("kubelet", "pods") }
func (s *Set) podDir(uid types.UID) string {
	return s.d.Host.Data("kubelet", "pods", string(uid))
}
func (s *Set) memoryDir() string { return s.d.Host.Run("volumes") }

// lock serializes what is done for one pod.
func (s *Set) lock(uid types.UID) func() {
	s.mu.Lock()
	m := s.perPod[uid]
	if m == nil {
		m = &sync.Mutex{}
		s.perPod[uid] = m
	}
	s.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// Setup makes every volume of the pod and brings its content up to date. refresh,
// where not zero, is when that must be done again although nothing changed. The
// error, of volumes that cannot be made, unwraps to one for each.
func (s *Set) Setup(ctx context.Context, pod *corev1.Pod) (paths map[string]string, refresh time.Time, err error) {
	defer s.lock(pod.UID)()
	paths = map[string]string{}
	var errs []error
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, at, err := s.setup(ctx, pod, v)
		if err != nil {
			if named := namesVolume(nil); !errors.As(err, &named) {
				err = fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err)
			}
			errs = append(errs, err)
			continue
		}
		paths[v.Name] = path
		if !at.IsZero() && (refresh.IsZero() || at.Before(refresh)) {
			refresh = at
		}
	}
	return paths, refresh, errors.Join(errs...)
}

func (s *Set) setup(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, time.Time, error) {
	pv, t, err := s.typeOf(ctx, pod, v)
	if err != nil {
		return "", time.Time{}, err
	}
	m := &Mount{
		Pod: pod, Volume: v, Sources: s.d.Sources, PV: pv,
		Dir: filepath.Join(s.podDir(pod.UID), "volumes", t.Name(), v.Name),
		memory: func() (string, error) {
			if err := s.mountMemory(); err != nil {
				return "", err
			}
			return filepath.Join(s.memoryDir(), string(pod.UID), t.Name(), v.Name), nil
		},
	}
	if v.EmptyDir != nil && v.EmptyDir.Medium != corev1.StorageMediumDefault {
		if err := s.note(); err != nil {
			return "", time.Time{}, err
		}
	}
	return t.Setup(ctx, m)
}

// typeOf finds the type of a volume, and the PersistentVolume behind it.
func (s *Set) typeOf(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (*corev1.PersistentVolume, Type, error) {
	var pv *corev1.PersistentVolume
	has := func(t Type) bool { return t.Has(v) }
	if v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
		var err error
		if pv, err = s.d.Sources.PersistentVolume(ctx, pod, v); err != nil {
			return nil, nil, err
		}
		has = func(t Type) bool {
			p, ok := t.(Persistent)
			return ok && p.HasPersistent(&pv.Spec.PersistentVolumeSource)
		}
	}
	i := slices.IndexFunc(s.d.Types, has)
	if i < 0 {
		return nil, nil, errors.New("no volume plugin matched")
	}
	return pv, s.d.Types[i], nil
}

// note writes to the journal, before the first mount, where mounts will be.
func (s *Set) note() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noted || s.d.Journal == nil {
		return nil
	}
	for _, dir := range []string{s.podsDir(), s.memoryDir()} {
		if err := s.d.Journal.Record(host.Entry{Kind: host.KindMounts, Name: dir}); err != nil {
			return err
		}
	}
	s.noted = true
	return nil
}

// mountMemory mounts the file system in memory, once for all pods. One that a
// former process mounted is used as it is.
func (s *Set) mountMemory() error {
	if err := s.note(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tmpfs {
		return nil
	}
	if err := os.MkdirAll(s.memoryDir(), 0o755); err != nil {
		return fmt.Errorf("make directory for volumes in memory: %w", err)
	}
	mounted, err := isMountPoint(s.memoryDir())
	if err != nil {
		return err
	}
	if !mounted {
		if err := mountTmpfs(s.memoryDir(), unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount file system for volumes in memory: %w", err)
		}
	}
	s.tmpfs = true
	return nil
}

// LocalDirs are the directories on the node's disk of those of a pod's volumes that
// live with it: emptyDirs and config maps. Those in memory count as memory.
func (s *Set) LocalDirs(pod *corev1.Pod) map[string]string {
	out := map[string]string{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.ConfigMap == nil && (v.EmptyDir == nil || v.EmptyDir.Medium != corev1.StorageMediumDefault) {
			continue
		}
		if j := slices.IndexFunc(s.d.Types, func(t Type) bool { return t.Has(v) }); j >= 0 {
			out[v.Name] = filepath.Join(s.podDir(pod.UID), "volumes", s.d.Types[j].Name(), v.Name)
		}
	}
	return out
}

// Pods lists the pods that have volumes here, or traces of them.
func (s *Set) Pods() ([]types.UID, error) {
	var out []types.UID
	for _, dir := range []string{s.podsDir(), s.memoryDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list volumes: %w", err)
		}
		for _, e := range entries {
			if uid := types.UID(e.Name()); e.IsDir() && !slices.Contains(out, uid) {
				out = append(out, uid)
			}
		}
	}
	return out, nil
}

// Teardown removes the volumes of a pod.
func (s *Set) Teardown(ctx context.Context, uid types.UID) error {
	if uid == "" || filepath.Base(string(uid)) != string(uid) || uid == ".." || uid == "." {
		return fmt.Errorf("pod UID %q: must be a plain name", uid)
	}
	unlock := s.lock(uid)
	defer func() {
		unlock()
		s.mu.Lock()
		delete(s.perPod, uid)
		s.mu.Unlock()
	}()
	for _, dir := range []string{
		filepath.Join(s.podDir(uid), "volume-subpaths"),
		filepath.Join(s.podDir(uid), "volumes"),
		filepath.Join(s.memoryDir(), string(uid)),
	} {
		if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := unmountBelow(dir); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove volumes: %w", err)
		}
	}
	return ctx.Err()
}
