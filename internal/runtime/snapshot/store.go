package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/image"
)

// Images is where layers come from (image.Store has it).
type Images interface {
	// OpenLayer opens layer i of img as an uncompressed tar.
	OpenLayer(img *image.Image, i int) (io.ReadCloser, error)
	// Needed are the diff IDs of the layers worth keeping unpacked.
	Needed(ctx context.Context) (map[v1.Hash]bool, error)
	// Lease keeps blobs while layers are read.
	Lease() *image.Lease
	// Attach makes images' garbage collection include layers.
	Attach(image.Layers)
}

// EphemeralPrefix starts keys that end with the process: the next Open removes
// them, and Keys leaves them out.
const EphemeralPrefix = "tmp-"

// Store is an open snapshot store. Its methods may be called concurrently.
type Store struct {
	dir    string
	images Images
	lock   *os.File
	boot   string

	mu     sync.Mutex
	layers map[string]*layer // by ID
	keys   map[string][]string
	busy   map[string]chan struct{} // layers being unpacked, and keys being made
	pins   map[string]int           // layers that a call is using
}

// layer is one unpacked layer, as its record says.
type layer struct {
	// ID is the diff ID, or, for a layer that depends on those below, the chain
	// ID.
	ID        string
	DiffID    string
	Dependent bool `json:",omitempty"`
	Bytes     uint64
	Inodes    uint64
	// Boot is the kernel's boot in which it was written; Synced tells that it
	// outlives a crash of the machine.
	Boot   string
	Synced bool `json:",omitempty"`

	name string // of its directory
}

// Open opens the store in dir, makes it where there is none, and removes what a
// killed process left under way. The error wraps ErrLocked where another process
// has it.
func Open(dir string, images Images) (*Store, error) {
	s := &Store{
		dir: dir, images: images, layers: map[string]*layer{}, keys: map[string][]string{},
		busy: map[string]chan struct{}{}, pins: map[string]int{},
	}
	for _, d := range []string{"", "layers", "keys", "tmp", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("snapshot store: %w", err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "empty"), 0o755); err != nil {
		return nil, fmt.Errorf("snapshot store: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("snapshot store: %w", err)
	}
	s.boot = string(bytes.TrimSpace(boot))
	if s.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		s.lock.Close()
		return nil, fmt.Errorf("snapshot store: %w", err)
	}
	images.Attach(s)
	return s, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("snapshot store: %w", err)
	}
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("%s: %w: %w", dir, ErrLocked, err)
		}
	}
}

// Close makes the layers outlive a crash of the machine and lets go of the
// store.
func (s *Store) Close() error {
	err := s.Sync()
	return errors.Join(err, s.lock.Close())
}

// Sync writes the layers to the disk, so that a crash of the machine does not
// cost unpacking them anew.
func (s *Store) Sync() error {
	s.mu.Lock()
	var todo []*layer
	for _, l := range s.layers {
		if !l.Synced {
			todo = append(todo, l)
		}
	}
	s.mu.Unlock()
	if len(todo) == 0 {
		return nil
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("snapshot store: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("snapshot store: sync: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range todo {
		if s.layers[l.ID] != l {
			continue
		}
		l.Synced = true
		if err := s.writeRecord(l); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) load() error {
	if err := removeChildren(s.path("tmp")); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	recorded := map[string]bool{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		l := &layer{name: name}
		data, err := os.ReadFile(s.path("layers", e.Name()))
		if err != nil {
			return err
		}
		// Lost in a crash of the machine, half written, or without its directory:
		// the blob has it all.
		ok = json.Unmarshal(data, l) == nil && l.ID != "" && (l.Synced || l.Boot == s.boot)
		if ok {
			_, err := os.Stat(s.path("layers", name))
			ok = err == nil
		}
		if !ok {
			if err := os.Remove(s.path("layers", e.Name())); err != nil {
				return err
			}
			continue
		}
		recorded[name] = true
		s.layers[l.ID] = l
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") && !recorded[e.Name()] {
			if err := os.RemoveAll(s.path("layers", e.Name())); err != nil {
				return err
			}
		}
	}
	keys, err := os.ReadDir(s.path("keys"))
	if err != nil {
		return err
	}
	for _, e := range keys {
		if strings.HasPrefix(e.Name(), EphemeralPrefix) {
			if err := os.RemoveAll(s.path("keys", e.Name())); err != nil {
				return err
			}
			continue
		}
		var ids []string
		data, err := os.ReadFile(s.path("keys", e.Name(), "layers.json"))
		if err == nil {
			err = json.Unmarshal(data, &ids)
		}
		if err != nil {
			ids = nil // a damaged record: the key can be listed and removed
		}
		s.keys[e.Name()] = ids
	}
	return nil
}

func removeChildren(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) writeRecord(l *layer) error {
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(s.path("tmp"), "record-")
	if err != nil {
		return fmt.Errorf("snapshot store: %w", err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), s.path("layers", l.name+".json"))
	}
	if err != nil {
		os.Remove(tmp.Name())
		return fmt.Errorf("snapshot store: %w", err)
	}
	return nil
}

// publish makes an unpacked directory a layer; s.mu is held. Where the layer is
// there already, the directory stays where it is and the old one is returned.
func (s *Store) publish(dir string, l *layer) (*layer, error) {
	if old := s.layers[l.ID]; old != nil {
		return old, nil
	}
	_, hexDigits, _ := strings.Cut(l.ID, ":")
	for _, n := range []int{12, 24, len(hexDigits)} {
		l.name = hexDigits[:min(n, len(hexDigits))]
		if _, err := os.Lstat(s.path("layers", l.name)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	l.Boot = s.boot
	if err := os.Rename(dir, s.path("layers", l.name)); err != nil {
		return nil, fmt.Errorf("snapshot store: %w", err)
	}
	if err := s.writeRecord(l); err != nil {
		return nil, err
	}
	s.layers[l.ID] = l
	return l, nil
}

// chainID is the identity of a layer on top of those below.
func chainID(below string, diffID v1.Hash) string {
	if below == "" {
		return diffID.String()
	}
	sum := sha256.Sum256([]byte(below + " " + diffID.String()))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// acquire waits until name is not busy, or ready holds, and makes it busy. With
// s.mu held; it is released while waiting. It returns false, when ready held.
func (s *Store) acquire(ctx context.Context, name string, ready func() bool) (bool, error) {
	for !ready() {
		ch := s.busy[name]
		if ch == nil {
			s.busy[name] = make(chan struct{})
			return true, nil
		}
		s.mu.Unlock()
		var err error
		select {
		case <-ch:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		s.mu.Lock()
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

func (s *Store) release(name string) {
	close(s.busy[name])
	delete(s.busy, name)
}

// ensure unpacks what is missing of img and returns its layers, lowest first.
// They are pinned: the caller must call unpin with the result.
func (s *Store) ensure(ctx context.Context, img *image.Image) (layers []*layer, err error) {
	defer func() {
		if err != nil {
			s.unpin(layers)
			layers = nil
		}
	}()
	var lease *image.Lease
	chain := ""
	for i, diffID := range img.DiffIDs {
		chain = chainID(chain, diffID)
		find := func() *layer {
			if l := s.layers[diffID.String()]; l != nil && (!l.Dependent || i == 0) {
				return l
			}
			return s.layers[chain]
		}
		s.mu.Lock()
		mine, err := s.acquire(ctx, "layer "+diffID.String(), func() bool { return find() != nil })
		if err != nil {
			s.mu.Unlock()
			return layers, err
		}
		if !mine {
			l := find()
			s.pins[l.ID]++
			layers = append(layers, l)
			s.mu.Unlock()
			continue
		}
		s.mu.Unlock()
		if lease == nil {
			lease = s.images.Lease()
			defer lease.Release()
		}
		lease.Hold(img.Layers[i].Digest, diffID)
		l, err := s.unpackLayer(ctx, img, i, chain, layers)
		s.mu.Lock()
		s.release("layer " + diffID.String())
		if err == nil {
			s.pins[l.ID]++
			layers = append(layers, l)
		}
		s.mu.Unlock()
		if err != nil {
			return layers, fmt.Errorf("unpack layer %s: %w", diffID, err)
		}
	}
	return layers, nil
}

func (s *Store) unpin(layers []*layer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range layers {
		if s.pins[l.ID]--; s.pins[l.ID] == 0 {
			delete(s.pins, l.ID)
		}
	}
}

func (s *Store) unpackLayer(ctx context.Context, img *image.Image, i int, chain string, below []*layer) (*layer, error) {
	r, err := s.images.OpenLayer(img, i)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	tmp, err := os.MkdirTemp(s.path("tmp"), "layer-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	dir := filepath.Join(tmp, "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		return nil, err
	}
	l := &layer{ID: img.DiffIDs[i].String(), DiffID: img.DiffIDs[i].String()}
	if l.Dependent, err = unpack(ctx, r, dir, s.lower(below)); err != nil {
		return nil, err
	}
	if l.Dependent {
		l.ID = chain
	}
	if l.Bytes, l.Inodes, err = usage(dir); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.publish(dir, l)
}

// lower are the layers' directories, uppermost first.
func (s *Store) lower(layers []*layer) []string {
	out := make([]string, 0, len(layers)+1)
	for i := len(layers) - 1; i >= 0; i-- {
		out = append(out, s.path("layers", layers[i].name))
	}
	return out
}

func checkKey(key string) error {
	if key == "" || len(key) > 128 || key[0] == '.' || strings.ContainsAny(key, "/\x00") {
		return fmt.Errorf("key %q: %w", key, ErrInvalidKey)
	}
	return nil
}

// Prepare unpacks the image's layers that are not yet and makes a writable
// rootfs under key. A second call with the same key returns the same.
func (s *Store) Prepare(ctx context.Context, key string, img *image.Image) (Rootfs, error) {
	if err := checkKey(key); err != nil {
		return Rootfs{}, err
	}
	s.mu.Lock()
	if _, err := s.acquire(ctx, "key "+key, func() bool { return s.rootfsOf(key) != nil }); err != nil {
		s.mu.Unlock()
		return Rootfs{}, fmt.Errorf("prepare %s: %w", key, err)
	}
	if r := s.rootfsOf(key); r != nil {
		s.mu.Unlock()
		return *r, nil
	}
	s.mu.Unlock()
	err := s.makeKey(ctx, key, img)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release("key " + key)
	if err != nil {
		return Rootfs{}, fmt.Errorf("prepare %s: %w", key, err)
	}
	return *s.rootfsOf(key), nil
}

// makeKey does Prepare's work; the key is busy.
func (s *Store) makeKey(ctx context.Context, key string, img *image.Image) error {
	layers, err := s.ensure(ctx, img)
	if err != nil {
		return err
	}
	defer s.unpin(layers)
	ids := []string{}
	for _, l := range layers {
		ids = append(ids, l.ID)
	}
	record, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	s.mu.Lock()
	_, old := s.keys[key]
	s.mu.Unlock()
	if old {
		// Its record was damaged, or its layers were lost in a crash of the
		// machine. What the container wrote stays.
		if err := os.WriteFile(s.path("keys", key, "layers.json"), record, 0o600); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.keys[key] = ids
		return nil
	}
	tmp, err := os.MkdirTemp(s.path("tmp"), "key-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Mkdir(filepath.Join(tmp, "work"), 0o700); err != nil {
		return err
	}
	upper := filepath.Join(tmp, "fs")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	// The overlay's root is the upper directory's: it must look like the image's.
	top := s.path("empty")
	if low := s.lower(layers); len(low) > 0 {
		top = low[0]
	}
	if err := copyDirMeta(top, upper); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "layers.json"), record, 0o600); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(tmp, s.path("keys", key)); err != nil {
		return err
	}
	s.keys[key] = ids
	return nil
}

func copyDirMeta(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	ts := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, ts, 0); err != nil {
		return &os.PathError{Op: "utimes", Path: to, Err: err}
	}
	return nil
}

// rootfsOf returns what key has, nil where it has none or lacks a layer; s.mu is
// held.
func (s *Store) rootfsOf(key string) *Rootfs {
	ids := s.keys[key]
	if ids == nil {
		return nil
	}
	layers := make([]*layer, len(ids))
	for i, id := range ids {
		if layers[i] = s.layers[id]; layers[i] == nil {
			return nil
		}
	}
	r := &Rootfs{Lower: s.lower(layers), Upper: s.path("keys", key, "fs"), Work: s.path("keys", key, "work")}
	if len(r.Lower) == 0 {
		r.Lower = []string{s.path("empty")}
	}
	return r
}

// View unpacks the image's layers that are not yet and returns a read-only
// rootfs. Its layers stay until done is called.
func (s *Store) View(ctx context.Context, img *image.Image) (r Rootfs, done func(), err error) {
	layers, err := s.ensure(ctx, img)
	if err != nil {
		return Rootfs{}, nil, err
	}
	r.Lower = s.lower(layers)
	if len(r.Lower) == 0 {
		r.Lower = []string{s.path("empty")}
	}
	var once sync.Once
	return r, func() { once.Do(func() { s.unpin(layers) }) }, nil
}

// Commit makes what was written under key the layer with that diff ID, without
// copying, and forgets the key. Nothing may have it mounted. The blob of the
// layer must be stored and held.
func (s *Store) Commit(ctx context.Context, key string, diffID v1.Hash) error {
	l := &layer{ID: diffID.String(), DiffID: diffID.String()}
	upper := s.path("keys", key, "fs")
	var err error
	if l.Bytes, l.Inodes, err = usage(upper); err != nil {
		return fmt.Errorf("commit %s: %w", key, err)
	}
	s.mu.Lock()
	if s.keys[key] == nil {
		s.mu.Unlock()
		return fmt.Errorf("commit %s: %w", key, ErrNotFound)
	}
	_, err = s.publish(upper, l)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("commit %s: %w", key, err)
	}
	return s.Remove(ctx, key)
}

// Remove forgets key and deletes what the container wrote. A key that is not
// there is no error.
func (s *Store) Remove(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	s.mu.Lock()
	if _, ok := s.keys[key]; !ok {
		s.mu.Unlock()
		return nil
	}
	tmp, err := os.MkdirTemp(s.path("tmp"), "gone-")
	if err == nil {
		err = os.Rename(s.path("keys", key), filepath.Join(tmp, "key"))
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		delete(s.keys, key)
		err = nil
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	return nil
}

// Usage returns bytes and inodes that the container wrote.
func (s *Store) Usage(ctx context.Context, key string) (bytes, inodes uint64, err error) {
	s.mu.Lock()
	_, ok := s.keys[key]
	s.mu.Unlock()
	if !ok {
		return 0, 0, fmt.Errorf("usage of %s: %w", key, ErrNotFound)
	}
	if bytes, inodes, err = usage(s.path("keys", key, "fs")); err != nil {
		return 0, 0, fmt.Errorf("usage of %s: %w", key, err)
	}
	return bytes, inodes, nil
}

// Keys lists what exists, without ephemeral keys.
func (s *Store) Keys(ctx context.Context) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]string, 0, len(s.keys))
	for k := range s.keys {
		if !strings.HasPrefix(k, EphemeralPrefix) {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return out, nil
}

// LayersUsage is what all unpacked layers take on disk.
func (s *Store) LayersUsage() (bytes, inodes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		bytes += l.Bytes
		inodes += l.Inodes
	}
	return bytes, inodes
}

// Collect deletes layers that no image, key or call needs.
func (s *Store) Collect(ctx context.Context) error {
	need, err := s.images.Needed(ctx)
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	for d := range need {
		needed[d.String()] = true
	}
	tmp, err := os.MkdirTemp(s.path("tmp"), "gone-")
	if err != nil {
		return fmt.Errorf("snapshot store: collect: %w", err)
	}
	s.mu.Lock()
	used := map[string]bool{}
	for _, ids := range s.keys {
		for _, id := range ids {
			used[id] = true
		}
	}
	for id, l := range s.layers {
		if needed[l.DiffID] || used[id] || s.pins[id] > 0 {
			continue
		}
		// Without its record the directory is nothing, should this end here.
		if err = os.Remove(s.path("layers", l.name+".json")); err == nil {
			err = os.Rename(s.path("layers", l.name), filepath.Join(tmp, l.name))
		}
		if err != nil {
			break
		}
		delete(s.layers, id)
	}
	s.mu.Unlock()
	if err = errors.Join(err, os.RemoveAll(tmp)); err != nil {
		return fmt.Errorf("snapshot store: collect: %w", err)
	}
	return nil
}

// usage walks a directory: disk blocks and inodes, a hard-linked file once. What
// vanishes meanwhile does not count.
func usage(dir string) (bytes, inodes uint64, err error) {
	type inode struct{ dev, ino uint64 }
	linked := map[inode]bool{}
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		var fi fs.FileInfo
		if err == nil {
			fi, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			if st.Nlink > 1 && !fi.IsDir() {
				if n := (inode{st.Dev, st.Ino}); linked[n] {
					return nil
				} else {
					linked[n] = true
				}
			}
			bytes += uint64(st.Blocks) * 512
			inodes++
		}
		return nil
	})
	return bytes, inodes, err
}
