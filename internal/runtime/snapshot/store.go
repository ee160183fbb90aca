package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
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
	// Alone layers hide all that is below.
	Alone  bool `json:",omitempty"`
	Bytes  uint64
	Inodes uint64
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
