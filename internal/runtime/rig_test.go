package runtime_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"go.uber.org/goleak"

	"skiff/internal/cri"
	"skiff/internal/cri/critest"
	"skiff/internal/host"
	"skiff/internal/runtime"
	"skiff/internal/runtime/image"
	"skiff/internal/runtime/programs"
	"skiff/internal/runtime/runtimetest"
	"skiff/internal/runtime/snapshot"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
		return
	}
	code := runtimetest.Main(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const (
	testImage = "docker.io/library/busybox:test"
	// otherImage has the same files.
	otherImage = "docker.io/library/busybox:other"
)

// images has two images, and nothing to pull from.
type images struct{ dir string }

func (i images) image() *image.Image { return i.named(testImage) }

func (images) named(name string) *image.Image {
	sum := sha256.Sum256([]byte(name))
	id := "sha256:" + hex.EncodeToString(sum[:])
	return &image.Image{ID: id, RepoTags: []string{name}, Size: 1 << 20, Config: &v1.ConfigFile{Config: v1.Config{Env: []string{"PATH=/bin", "IMAGE=yes"}}}}
}

func (i images) Resolve(_ context.Context, ref string) (*image.Image, error) {
	img := i.image()
	if ref == testImage || ref == img.ID {
		return img, nil
	}
	if ref == otherImage {
		return i.named(otherImage), nil
	}
	return nil, image.ErrNotFound
}
func (i images) List(context.Context) ([]*image.Image, error) { return []*image.Image{i.image()}, nil }
func (i images) Pull(ctx context.Context, ref string, _ *runtime.Auth) (*image.Image, error) {
	return i.Resolve(ctx, ref)
}
func (i images) Remove(_ context.Context, ref string) error {
	if ref == testImage {
		return image.ErrInUse
	}
	return image.ErrNotFound
}
func (i images) Usage(context.Context) (string, uint64, uint64, error) { return i.dir, 1, 1, nil }

// snapshots keeps each container's writes in a directory, over one root file
// system that all share.
type snapshots struct{ dir string }

func (s snapshots) lower() string { return filepath.Join(s.dir, "lower") }

func (s snapshots) rootfs(key string) snapshot.Rootfs {
	return snapshot.Rootfs{Lower: []string{s.lower()}, Upper: filepath.Join(s.dir, "keys", key, "upper"), Work: filepath.Join(s.dir, "keys", key, "work")}
}
func (s snapshots) imageFile(key string) string { return filepath.Join(s.dir, "keys", key, "image") }

func (s snapshots) Prepare(_ context.Context, key string, img *image.Image) (snapshot.Rootfs, error) {
	r := s.rootfs(key)
	return r, errors.Join(os.MkdirAll(r.Upper, 0o755), os.MkdirAll(r.Work, 0o700), os.WriteFile(s.imageFile(key), []byte(img.ID), 0o600))
}
func (s snapshots) Inherit(_ context.Context, from, to string, img *image.Image) (snapshot.Rootfs, error) {
	id, err := os.ReadFile(s.imageFile(from))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return snapshot.Rootfs{}, snapshot.ErrNotFound
	case err == nil && string(id) != img.ID:
		return snapshot.Rootfs{}, snapshot.ErrOtherImage
	}
	return s.rootfs(to), err
}
func (s snapshots) Move(_ context.Context, from, to string) error {
	if err := os.RemoveAll(filepath.Join(s.rootfs(from).Work, "work/incompat")); err != nil {
		return err
	}
	return os.Rename(filepath.Join(s.dir, "keys", from), filepath.Join(s.dir, "keys", to))
}
func (s snapshots) Remove(_ context.Context, key string) error {
	return os.RemoveAll(filepath.Join(s.dir, "keys", key))
}
func (s snapshots) Usage(_ context.Context, key string) (bytes, inodes uint64, err error) {
	err = filepath.WalkDir(filepath.Join(s.dir, "keys", key, "upper"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err == nil && i.Mode().IsRegular() {
			bytes += uint64(i.Size())
		}
		inodes++
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = snapshot.ErrNotFound
	}
	return bytes, inodes, err
}
func (s snapshots) Keys(context.Context) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "keys"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, err
}

// net gives out addresses by file, so that a restarted runtime's network knows
// them still, and links nothing.
type network struct {
	dir string
	mu  *sync.Mutex
}

func (n network) Attach(_ context.Context, s runtime.NetworkSandbox) (runtime.NetworkResult, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := os.Stat(s.NetNS); err != nil {
		return runtime.NetworkResult{}, err
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return runtime.NetworkResult{}, err
	}
	entries, err := os.ReadDir(n.dir)
	if err != nil {
		return runtime.NetworkResult{}, err
	}
	ip := netip.AddrFrom4([4]byte{10, 99, byte(len(entries) >> 8), byte(len(entries) + 1)})
	return runtime.NetworkResult{IPs: []netip.Addr{ip}}, os.WriteFile(filepath.Join(n.dir, s.ID), []byte(ip.String()), 0o600)
}
func (n network) Detach(_ context.Context, s runtime.NetworkSandbox) error {
	err := os.Remove(filepath.Join(n.dir, s.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
func (n network) Ready() error { return nil }

// bench is where a test's runtimes live, one after the other.
type bench struct {
	inst host.Instance
	set  programs.Set
	log  *slog.Logger
}

var benches struct {
	sync.Mutex
	n int
}

func newBench(t testing.TB) bench {
	t.Helper()
	set := runtimetest.Programs(t)
	benches.Lock()
	benches.n++
	name := fmt.Sprintf("rt-test-%d-%d", os.Getpid(), benches.n)
	benches.Unlock()
	dir := t.TempDir()
	inst, err := host.New(name, filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	inst.RunDir = filepath.Join(dir, "run")
	b := bench{inst: inst, set: set, log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	for _, d := range []string{inst.DataDir, filepath.Join(inst.DataDir, "snapshots", "lower")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	runtimetest.Busybox(t, filepath.Join(inst.DataDir, "snapshots", "lower"))
	before := hostState(t, inst)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), critest.Wait)
		defer cancel()
		if err := runtime.Reset(ctx, inst); err != nil {
			t.Errorf("reset: %v", err)
		}
		critest.Until(t, "the host is as it was", func() bool { return hostState(t, inst) == before })
	})
	return b
}

func (b bench) deps() (runtime.Deps, error) {
	j, err := host.OpenJournal(b.inst.JournalPath())
	return runtime.Deps{
		Instance: b.inst, Journal: j, Programs: b.set, Log: b.log, Now: time.Now,
		Images: images{b.inst.DataDir}, Snapshots: snapshots{b.inst.Data("snapshots")}, Network: network{b.inst.Data("net"), &sync.Mutex{}},
		Socket: filepath.Join(b.inst.RunDir, "cri.sock"),
	}, err
}

// start runs a runtime in this process until stop, or the test's end.
func (b bench) start(t testing.TB, change func(*runtime.Deps)) (r *runtime.Runtime, stop func()) {
	t.Helper()
	d, err := b.deps()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if r, err = runtime.New(ctx, d); err != nil {
		cancel()
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	return r, stop
}

func (b bench) fixture(s cri.Services) critest.Fixture {
	return critest.Fixture{Services: s, Image: testImage, CgroupParent: filepath.Join(b.inst.CgroupParent, "kubepods")}
}

// hostState is what an instance can leave behind: mounts, cgroups, processes.
func hostState(t testing.TB, i host.Instance) string {
	var out []string
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); strings.HasPrefix(f[4], i.RunDir) {
			out = append(out, "mount "+f[4])
		}
	}
	for _, where := range []string{"", "/*", "/*/*"} {
		groups, err := filepath.Glob("/sys/fs/cgroup" + where + i.CgroupParent)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, groups...)
	}
	cmds, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, c := range cmds {
		if b, _ := os.ReadFile(c); strings.Contains(string(b), "skiff-pod") && strings.Contains(string(b), i.RunDir) {
			out = append(out, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return strings.Join(out, "\n")
}
