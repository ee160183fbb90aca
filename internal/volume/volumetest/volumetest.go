// Package volumetest is the contract that every volume type keeps, as a test
// suite, and sources in memory for it.
package volumetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/host"
	"skiff/internal/volume"
)

// Sources is a volume.Sources in memory.
type Sources struct {
	mu      sync.Mutex
	Maps    map[string]map[string]string
	Secrets map[string]map[string]string
	// Volumes are what claims are bound to, by the claim's name.
	Volumes map[string]*corev1.PersistentVolume
	// Bundles are trust bundles, by name; a signer has them all.
	Bundles map[string]string
	// Key and Chain are what certificates of pods consist of; none where Key is "".
	Key, Chain string
	// Held is what the volume held when it was last asked for its certificate.
	Held    []string
	Tokens  int // handed out so far
	Refresh time.Time
}

// Change changes sources under their lock.
func (s *Sources) Change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// ConfigMap implements volume.Sources.
func (s *Sources) ConfigMap(_ context.Context, ns, name string) (*corev1.ConfigMap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.Maps[name]
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("configmap"), name)
	}
	data := map[string]string{}
	for k, v := range m {
		data[k] = v
	}
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}, Data: data}, nil
}

// Secret implements volume.Sources.
func (s *Sources) Secret(_ context.Context, ns, name string) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.Secrets[name]
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("secret"), name)
	}
	data := map[string][]byte{}
	for k, v := range m {
		data[k] = []byte(v)
	}
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}, Data: data}, nil
}

// Token implements volume.Sources.
func (s *Sources) Token(_ context.Context, pod *corev1.Pod, audience string, seconds int64) (string, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Tokens++
	return fmt.Sprintf("token-of-%s-for-%s-%d", pod.Name, audience, seconds), s.Refresh, nil
}

// TrustBundles implements volume.Sources.
func (s *Sources) TrustBundles(_ context.Context, p *corev1.ClusterTrustBundleProjection) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Name == nil {
		return slices.Sorted(maps.Values(s.Bundles)), nil
	}
	b, ok := s.Bundles[*p.Name]
	if !ok {
		return nil, apierrors.NewNotFound(certificatesv1.Resource("clustertrustbundles"), *p.Name)
	}
	return []string{b}, nil
}

// Certificate implements volume.Sources.
func (s *Sources) Certificate(_ context.Context, _ *corev1.Pod, _ *corev1.PodCertificateProjection, _ string, _ int, held func() (key, chain []byte)) (key, chain []byte, refresh time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key, chain = held()
	s.Held = []string{string(key), string(chain)}
	if s.Key == "" {
		return nil, nil, time.Time{}, errors.New("credential bundle is not issued yet")
	}
	return []byte(s.Key), []byte(s.Chain), s.Refresh, nil
}

// PersistentVolume implements volume.Sources.
func (s *Sources) PersistentVolume(_ context.Context, _ *corev1.Pod, v *corev1.Volume) (*corev1.PersistentVolume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.PersistentVolumeClaim != nil {
		if pv, ok := s.Volumes[v.PersistentVolumeClaim.ClaimName]; ok {
			return pv, nil
		}
	}
	return nil, apierrors.NewNotFound(corev1.Resource("persistentvolume"), v.Name)
}

// Attached implements volume.Sources: what has a driver is attached.
func (s *Sources) Attached(_ context.Context, _ *corev1.Pod, v *corev1.Volume, pv *corev1.PersistentVolume) (driver, label string, err error) {
	if pv == nil || pv.Spec.CSI == nil {
		return "", "", fmt.Errorf("volume %q has no CSI driver", v.Name)
	}
	return pv.Spec.CSI.Driver, pv.Name, nil
}

// Field implements volume.Sources.
func (s *Sources) Field(_ context.Context, pod *corev1.Pod, f *corev1.ObjectFieldSelector) (string, error) {
	switch f.FieldPath {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.labels":
		return fmt.Sprint(pod.Labels), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", f.FieldPath)
}

// Resource implements volume.Sources.
func (s *Sources) Resource(context.Context, *corev1.Pod, string, *corev1.ResourceFieldSelector) (string, error) {
	return "1", nil
}

// Instance returns an instance below a directory of the test.
func Instance(t *testing.T) host.Instance {
	t.Helper()
	dir := t.TempDir()
	return host.Instance{Name: "volume-test", DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run")}
}

// Pod returns a pod with these volumes.
func Pod(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod", Namespace: "default", UID: types.UID("11111111-2222-3333-4444-555555555555"), Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{Volumes: volumes, Containers: []corev1.Container{{Name: "c"}}},
	}
}

// Case is a volume under test.
type Case struct {
	Volume  corev1.Volume
	Sources *Sources
	// Files are what the volume holds, by path.
	Files map[string]string
	// Change makes the sources other, After are the files then.
	Change func(*Sources)
	After  map[string]string
	// Outside marks volumes whose directory is not the pod's own.
	Outside bool
}

// Run checks the contract: Setup makes the content, may be repeated, also by
// another process, and follows changes; a broken Setup is repaired; Teardown
// leaves nothing, mounts included, and may be repeated.
func Run(t *testing.T, c Case) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	if c.Sources == nil {
		c.Sources = &Sources{}
	}
	inst := Instance(t)
	pod := Pod(c.Volume)
	ctx := context.Background()
	journal, err := host.OpenJournal(inst.JournalPath())
	if err != nil {
		t.Fatal(err)
	}
	deps := volume.Deps{Host: inst, Journal: journal, Sources: c.Sources}
	set := volume.New(deps)
	t.Cleanup(func() { unmount(t, inst) })
	setup := func() string {
		t.Helper()
		paths, _, err := set.Setup(ctx, pod)
		if err != nil {
			t.Fatalf("Setup: %v", err)
		}
		return paths[c.Volume.Name]
	}
	path := setup()
	checkFiles(t, path, c.Files)
	ino := inode(t, path)
	if again := setup(); again != path || inode(t, again) != ino {
		t.Errorf("a second Setup made another volume: %s, then %s", path, again)
	}
	set = volume.New(deps)
	if again := setup(); again != path || inode(t, again) != ino {
		t.Errorf("Setup after a restart made another volume: %s, then %s", path, again)
	}
	checkFiles(t, path, c.Files)
	if c.Change != nil {
		c.Sources.Change(func() { c.Change(c.Sources) })
		setup()
		checkFiles(t, path, c.After)
		if inode(t, path) != ino {
			t.Error("an update replaced the volume's directory: containers would not see it")
		}
	}
	if uids, err := set.Pods(); err != nil || !c.Outside && (len(uids) != 1 || uids[0] != pod.UID) {
		t.Errorf("Pods: %v, %v", uids, err)
	}
	for range 2 {
		if err := set.Teardown(ctx, pod.UID); err != nil {
			t.Fatalf("Teardown: %v", err)
		}
	}
	if _, err := os.Lstat(path); c.Outside != (err == nil) {
		t.Errorf("after Teardown, %s: %v", path, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), string(pod.UID)+"/volume") {
		t.Error("Teardown left a mount")
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	return inodeOf(t, path)
}

func checkFiles(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if rel == "." || strings.HasPrefix(rel, "..") {
			if info.IsDir() && rel != "." {
				return filepath.SkipDir
			}
			return nil
		}
		real, err := os.Stat(path)
		if err != nil {
			return err
		}
		if real.IsDir() {
			if info.Mode()&os.ModeSymlink != 0 {
				entries, err := os.ReadDir(path)
				if err != nil {
					return err
				}
				for _, e := range entries {
					b, err := os.ReadFile(filepath.Join(path, e.Name()))
					if err != nil {
						return err
					}
					got[filepath.Join(rel, e.Name())] = string(b)
				}
			}
			return nil
		}
		b, err := os.ReadFile(path)
		got[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatalf("read volume: %v", err)
	}
	if len(got) != len(want) {
		t.Errorf("the volume holds %v, want %v", got, want)
	}
	for k, v := range want {
		if g, ok := got[k]; !ok || g != v {
			t.Errorf("%s holds %q, want %q", k, g, v)
		}
	}
}
