package volume_test

import (
	"context"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/volume"
	"skiff/internal/volume/volumetest"
)

func src(s corev1.VolumeSource) corev1.Volume { return corev1.Volume{Name: "v", VolumeSource: s} }
func ptr[T any](v T) *T                       { return &v }

func TestContract(t *testing.T) {
	size := resource.MustParse("1Mi")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	maps := func() *volumetest.Sources {
		return &volumetest.Sources{
			Maps:    map[string]map[string]string{"cm": {"a": "1", "b": "2"}},
			Secrets: map[string]map[string]string{"sec": {"user": "u", "pass": "p"}},
		}
	}
	name := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	for what, c := range map[string]volumetest.Case{
		"emptyDir":        {Volume: src(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})},
		"emptyDir memory": {Volume: src(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}})},
		"hostPath": {Volume: src(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir, Type: ptr(corev1.HostPathDirectory)}}),
			Files: map[string]string{"x": "of the host"}, Outside: true},
		"local": {
			Volume:  src(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}),
			Sources: &volumetest.Sources{Volumes: map[string]*corev1.PersistentVolume{"c": {Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: dir}}}}}},
			Files:   map[string]string{"x": "of the host"}, Outside: true,
		},
		"image": {Volume: src(corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "example.com/model:1"}})},
		"configMap": {
			Volume: src(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: name("cm")}}), Sources: maps(),
			Files:  map[string]string{"a": "1", "b": "2"},
			Change: func(s *volumetest.Sources) { s.Maps["cm"] = map[string]string{"a": "new", "c": "3"} },
			After:  map[string]string{"a": "new", "c": "3"},
		},
		"configMap items": {
			Volume: src(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: name("cm"), Items: []corev1.KeyToPath{{Key: "a", Path: "deep/file"}}}}), Sources: maps(),
			Files: map[string]string{"deep/file": "1"},
		},
		"configMap optional": {
			Volume: src(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: name("none"), Optional: ptr(true)}}), Sources: maps(),
			Change: func(s *volumetest.Sources) { s.Maps["none"] = map[string]string{"k": "v"} },
			After:  map[string]string{"k": "v"},
		},
		"secret": {
			Volume: src(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec"}}), Sources: maps(),
			Files:  map[string]string{"user": "u", "pass": "p"},
			Change: func(s *volumetest.Sources) { s.Secrets["sec"] = map[string]string{"user": "w"} },
			After:  map[string]string{"user": "w"},
		},
		"downwardAPI": {
			Volume: src(corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}},
			}}}),
			Files: map[string]string{"name": "pod"},
		},
		"trust bundles": {
			Volume:  trust(&corev1.ClusterTrustBundleProjection{SignerName: ptr("s"), Path: "ca.pem", Optional: ptr(true)}),
			Sources: &volumetest.Sources{Bundles: map[string]string{"x": anchors("b", "a") + "# words\n", "y": anchors("a")}},
			Files:   map[string]string{"ca.pem": anchors("a", "b")},
			Change:  func(s *volumetest.Sources) { s.Bundles = nil },
			After:   map[string]string{"ca.pem": ""},
		},
		"trust bundle": {
			Volume:  trust(&corev1.ClusterTrustBundleProjection{Name: ptr("x"), Path: "ca.pem"}),
			Sources: &volumetest.Sources{Bundles: map[string]string{"x": anchors("b"), "y": anchors("a")}},
			Files:   map[string]string{"ca.pem": anchors("b")},
		},
		"certificate": {
			Volume:  certificate(&corev1.PodCertificateProjection{CredentialBundlePath: "all.pem", KeyPath: "tls/key.pem", CertificateChainPath: "tls/chain.pem"}),
			Sources: &volumetest.Sources{Key: pemKey("1"), Chain: anchors("a", "b")},
			Files:   map[string]string{"all.pem": pemKey("1") + anchors("a", "b"), "tls/key.pem": pemKey("1"), "tls/chain.pem": anchors("a", "b")},
			Change:  func(s *volumetest.Sources) { s.Key, s.Chain = pemKey("2"), anchors("c") },
			After:   map[string]string{"all.pem": pemKey("2") + anchors("c"), "tls/key.pem": pemKey("2"), "tls/chain.pem": anchors("c")},
		},
		"projected": {
			Volume: src(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr(int64(3607))}},
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: name("cm"), Items: []corev1.KeyToPath{{Key: "a", Path: "ca.crt"}}}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}},
			}}}), Sources: maps(),
			Files:  map[string]string{"token": "token-of-pod-for--3607", "ca.crt": "1", "namespace": "pod"},
			Change: func(s *volumetest.Sources) { s.Maps["cm"]["a"] = "9" },
			After:  map[string]string{"token": "token-of-pod-for--3607", "ca.crt": "9", "namespace": "pod"},
		},
	} {
		t.Run(what, func(t *testing.T) { volumetest.Run(t, c) })
	}
}

func newSet(t *testing.T, s *volumetest.Sources) *volume.Set {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	inst := volumetest.Instance(t)
	t.Cleanup(func() { volumetest.Unmount(t, inst) })
	return volume.New(volume.Deps{Host: inst, Sources: s})
}

func TestRefusals(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	hp := func(path string, ty corev1.HostPathType) corev1.Volume {
		return src(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &ty}})
	}
	set := newSet(t, &volumetest.Sources{Maps: map[string]map[string]string{"cm": {}}})
	for _, c := range []struct {
		v    corev1.Volume
		want string
	}{
		{hp(file, corev1.HostPathDirectory), "hostPath type check failed: " + file + " is not a directory"},
		{hp(file+"x", corev1.HostPathFile), "hostPath type check failed: " + file + "x is not a file"},
		{hp(file, corev1.HostPathSocket), "is not a socket file"},
		{hp(file, corev1.HostPathCharDev), "is not a character device"},
		{hp("/dev/null", corev1.HostPathBlockDev), "is not a block device"},
		{src(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}), `configmap "none" not found`},
		{src(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none"}}), `secret "none" not found`},
		{src(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}, Items: []corev1.KeyToPath{{Key: "k", Path: "p"}}}}), "configmap references non-existent config key: k"},
		{src(corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}), "no volume plugin matched"},
	} {
		_, _, err := set.Setup(context.Background(), volumetest.Pod(c.v))
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), `MountVolume.SetUp failed for volume "v" : `) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}

func TestOwnership(t *testing.T) {
	s := &volumetest.Sources{Secrets: map[string]map[string]string{"sec": {"k": "v"}}, Refresh: time.Unix(1000, 0)}
	set := newSet(t, s)
	pod := volumetest.Pod(
		corev1.Volume{Name: "dir", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		corev1.Volume{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "sec", DefaultMode: ptr(int32(0o400))}}},
		corev1.Volume{Name: "tok", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}},
	)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(2000)), RunAsUser: ptr(int64(1000))}
	paths, refresh, err := set.Setup(context.Background(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if !refresh.Equal(s.Refresh) {
		t.Errorf("refresh at %v, want %v", refresh, s.Refresh)
	}
	for _, c := range []struct {
		path     string
		mode     os.FileMode
		uid, gid uint32
	}{
		{paths["dir"], 0o777 | os.ModeDir | os.ModeSetgid, 0, 2000},
		{paths["sec"] + "/k", 0o440, 0, 2000},
		{paths["tok"] + "/token", 0o640, 1000, 2000},
	} {
		st, err := os.Stat(c.path)
		if err != nil {
			t.Fatal(err)
		}
		sys := st.Sys().(*syscall.Stat_t)
		if st.Mode() != c.mode || sys.Uid != c.uid || sys.Gid != c.gid {
			t.Errorf("%s: mode %v uid %d gid %d, want %v %d %d", c.path, st.Mode(), sys.Uid, sys.Gid, c.mode, c.uid, c.gid)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(paths["sec"], &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Errorf("the secret is on file system %x, %v", fs.Type, err)
	}
}

func TestMemorySize(t *testing.T) {
	set := newSet(t, nil)
	size := resource.MustParse("1Mi")
	pod := volumetest.Pod(src(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}}))
	paths, _, err := set.Setup(context.Background(), pod)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := set.Teardown(context.Background(), pod.UID); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(paths["v"], "big"), make([]byte, 2<<20), 0o644); err == nil {
		t.Error("2 MiB fit into an emptyDir of 1 MiB")
	}
}

func TestSubPath(t *testing.T) {
	set := newSet(t, &volumetest.Sources{Maps: map[string]map[string]string{"cm": {"f": "content"}}})
	pod := volumetest.Pod(
		corev1.Volume{Name: "dir", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		corev1.Volume{Name: "cm", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cm"}}}},
	)
	ctx := context.Background()
	paths, _, err := set.Setup(ctx, pod)
	if err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"abs": outside, "up": "../../../../../..", "in": "real"} {
		if err := os.Symlink(to, filepath.Join(paths["dir"], link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(paths["dir"], "real"), 0o755); err != nil {
		t.Fatal(err)
	}
	sub := func(vol, path string, i int) (string, error) {
		return set.SubPath(ctx, pod, "c", i, corev1.VolumeMount{Name: vol}, path)
	}
	for i, bad := range []string{"abs", "abs/secret", "up", "up/etc", "../x", "/etc", "abs/new"} {
		if p, err := sub("dir", bad, 10+i); err == nil {
			t.Errorf("subPath %q was given out as %s", bad, p)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "new")); err == nil {
		t.Error("a directory was made outside of the volume")
	}
	p, err := sub("dir", "new/deep", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p, "x"), []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(paths["dir"], "new/deep/x")); err != nil {
		t.Error("what was written to the subPath is not in the volume")
	}
	if st, err := os.Stat(filepath.Join(paths["dir"], "new")); err != nil || st.Mode().Perm() != 0o777 {
		t.Errorf("made directory: %v %v", st.Mode(), err)
	}
	if p, err = sub("dir", "in", 1); err != nil {
		t.Fatalf("a link inside of the volume: %v", err)
	}
	for range 2 { // a second instance of the container
		if p, err = sub("cm", "f", 2); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(p); err != nil || string(b) != "content" {
			t.Errorf("file: %q, %v", b, err)
		}
	}
	if err := set.Teardown(ctx, pod.UID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err == nil {
		t.Error("Teardown left the subPath")
	}
}

// A directory of the host that is mounted below a pod's volumes outlives them.
func TestTeardownSparesTheHost(t *testing.T) {
	set := newSet(t, nil)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub/precious"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	pod := volumetest.Pod(src(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}))
	if _, _, err := set.Setup(context.Background(), pod); err != nil {
		t.Fatal(err)
	}
	if _, err := set.SubPath(context.Background(), pod, "c", 0, corev1.VolumeMount{Name: "v"}, "sub"); err != nil {
		t.Fatal(err)
	}
	if err := set.Teardown(context.Background(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "sub/precious")); err != nil {
		t.Error("Teardown removed a file of the host")
	}
}

func trust(p *corev1.ClusterTrustBundleProjection) corev1.Volume {
	return corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ClusterTrustBundle: p}}}}}
}

func certificate(p *corev1.PodCertificateProjection) corev1.Volume {
	return corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{PodCertificate: p}}}}}
}

func pemKey(k string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte(k)}))
}

// anchors are PEM blocks.
func anchors(all ...string) string {
	var out []byte
	for _, a := range all {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(a)})...)
	}
	return string(out)
}

func TestTrustBundleMissing(t *testing.T) {
	set := newSet(t, &volumetest.Sources{})
	for _, c := range []struct {
		p    corev1.ClusterTrustBundleProjection
		want string
	}{
		{corev1.ClusterTrustBundleProjection{Name: ptr("x"), Path: "p"}, `while getting ClusterTrustBundle: clustertrustbundles.certificates.k8s.io "x" not found`},
		{corev1.ClusterTrustBundleProjection{SignerName: ptr("x"), Path: "p"}, "combination of signerName and labelSelector matched zero ClusterTrustBundles"},
	} {
		if _, _, err := set.Setup(t.Context(), volumetest.Pod(trust(&c.p))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

// TestCertificateHeld: whoever gives certificates is told what the volume holds.
func TestCertificateHeld(t *testing.T) {
	for name, p := range map[string]*corev1.PodCertificateProjection{
		"bundle":   {CredentialBundlePath: "all.pem"},
		"apart":    {KeyPath: "key.pem", CertificateChainPath: "chain.pem"},
		"together": {CredentialBundlePath: "all.pem", KeyPath: "key.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			sources := &volumetest.Sources{}
			set := newSet(t, sources)
			pod := volumetest.Pod(certificate(p))
			if _, _, err := set.Setup(t.Context(), pod); err == nil || err.Error() != `MountVolume.SetUp failed for volume "v" : credential bundle is not issued yet` {
				t.Error(err)
			}
			if sources.Held[0] != "" || sources.Held[1] != "" {
				t.Errorf("an empty volume holds %q", sources.Held)
			}
			refresh := time.Now().Add(time.Hour)
			sources.Key, sources.Chain, sources.Refresh = pemKey("1"), anchors("a", "b"), refresh
			if _, at, err := set.Setup(t.Context(), pod); err != nil || !at.Equal(refresh) {
				t.Fatal(at, err)
			}
			sources.Key = ""
			_, _, _ = set.Setup(t.Context(), pod)
			if sources.Held[0] != pemKey("1") || sources.Held[1] != anchors("a", "b") {
				t.Errorf("the volume holds %q", sources.Held)
			}
		})
	}
	// A key alone is not enough to go on with.
	sources := &volumetest.Sources{Key: pemKey("1"), Chain: anchors("a")}
	set := newSet(t, sources)
	pod := volumetest.Pod(certificate(&corev1.PodCertificateProjection{KeyPath: "key.pem"}))
	for range 2 {
		if _, _, err := set.Setup(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	if sources.Held[0] != "" {
		t.Errorf("the volume holds %q", sources.Held)
	}
}

// TestCertificateModes: a key is for the pod's user alone where there is one.
func TestCertificateModes(t *testing.T) {
	set := newSet(t, &volumetest.Sources{Key: pemKey("1"), Chain: anchors("a")})
	for name, c := range map[string]struct {
		security *corev1.PodSecurityContext
		mode     os.FileMode
		uid, gid uint32
	}{
		"by default": {mode: 0o640},
		"one user":   {security: &corev1.PodSecurityContext{RunAsUser: ptr(int64(1234))}, mode: 0o600, uid: 1234},
		"a group":    {security: &corev1.PodSecurityContext{FSGroup: ptr(int64(99))}, mode: 0o640, gid: 99},
	} {
		v := certificate(&corev1.PodCertificateProjection{KeyPath: "key.pem", CertificateChainPath: "chain.pem"})
		v.Projected.DefaultMode = ptr(int32(0o640))
		pod := volumetest.Pod(v)
		pod.UID, pod.Spec.SecurityContext = types.UID(strings.ReplaceAll(name, " ", "-")), c.security
		paths, _, err := set.Setup(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"key.pem", "chain.pem"} {
			info, err := os.Stat(filepath.Join(paths["v"], f))
			if err != nil {
				t.Fatal(err)
			}
			st := info.Sys().(*syscall.Stat_t)
			if info.Mode().Perm() != c.mode || st.Uid != c.uid || st.Gid != c.gid {
				t.Errorf("%s: %s has mode %o, owner %d, group %d", name, f, info.Mode().Perm(), st.Uid, st.Gid)
			}
		}
	}
}
