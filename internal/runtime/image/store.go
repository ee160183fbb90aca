package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// Options of Open; the zero value is right for most.
type Options struct {
	// Now is the clock; time.Now where nil.
	Now func() time.Time
	// Log gets what is found wrong at Open; discarded where nil.
	Log *slog.Logger
	// LockWait is how long Open waits for another process to let go of the
	// store; 2 seconds where zero.
	LockWait time.Duration
	// Registry reaches registries; without one Pull fails.
	Registry Registry
}

// Store is an open image store.
type Store struct {
	dir      string
	now      func() time.Time
	log      *slog.Logger
	registry Registry
	lock     *os.File
	pulls    flights

	mu      sync.Mutex
	leases  map[*Lease]bool
	entries []v1.Descriptor // of index.json
	records map[v1.Hash]*record
	images  map[string]*Image // by ID, derived from entries
	names   map[string]string // name to ID, derived from entries
	layers  Layers
	// compressions are what compress made, as far as it is stored.
	compressions map[compression]v1.Descriptor
}

// Layers is what the store tells about and asks of the unpacked layers.
type Layers interface {
	// Collect deletes what no image and no container needs.
	Collect(ctx context.Context) error
	// LayersUsage is what all unpacked layers take on disk.
	LayersUsage() (bytes, inodes uint64)
	// Unpack makes the layers of an image ready to be used. They stay while images
	// or a lease name their diff IDs.
	Unpack(ctx context.Context, img *Image) error
}

// record is a manifest with its config, by the manifest's digest. Immutable.
type record struct {
	id       string
	manifest *v1.Manifest
	config   *v1.ConfigFile
}

// Annotations of entries in index.json.
const (
	annName   = "io.containerd.image.name"          // the canonical name
	annRef    = "org.opencontainers.image.ref.name" // its tag
	annSize   = "dev.skiff.image.size"              // unpacked bytes
	annPulled = "dev.skiff.image.digest"            // what the registry called it: an index, maybe
	annPinned = "dev.skiff.image.pinned"
	annRemote = "dev.skiff.image.remote"
	annGiven  = "dev.skiff.image.given" // the name was given here, whatever brought the image
)

// Open opens the store in dir and makes it where there is none. It removes what
// a killed process left under way. The error wraps ErrLocked where another
// process has the store.
func Open(dir string, opts Options) (*Store, error) {
	s := &Store{
		dir: dir, now: opts.Now, log: opts.Log, registry: opts.Registry,
		leases: map[*Lease]bool{}, records: map[v1.Hash]*record{},
		compressions: map[compression]v1.Descriptor{},
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []string{"", "blobs/sha256", "ingest", "refs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	var err error
	if s.lock, err = lockDir(dir, opts.LockWait); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		s.lock.Close()
		return nil, err
	}
	return s, nil
}

// Close lets go of the store. It must not be used afterwards.
func (s *Store) Close() error { return s.lock.Close() }

// Dir is the directory of the store.
func (s *Store) Dir() string { return s.dir }

func lockDir(dir string, wait time.Duration) (*os.File, error) {
	if wait == 0 {
		wait = 2 * time.Second
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	deadline := time.Now().Add(wait)
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock image store %s: %w", dir, err)
		}
		if time.Now().After(deadline) {
			owner, _ := io.ReadAll(io.LimitReader(f, 32))
			f.Close()
			return nil, fmt.Errorf("%s: %w (process %s)", dir, ErrLocked, strings.TrimSpace(string(owner)))
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock image store %s: %w", dir, err)
	}
	return f, nil
}

// layoutText is the content of a layout's file oci-layout (OCI image spec, image layout).
const layoutText = `{"imageLayoutVersion":"1.0.0"}` + "\n"

func (s *Store) load() error {
	left, err := os.ReadDir(filepath.Join(s.dir, "ingest"))
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(s.dir, "ingest", e.Name())); err != nil {
			return fmt.Errorf("image store: clean up: %w", err)
		}
	}
	layout := filepath.Join(s.dir, "oci-layout")
	if _, err := os.Stat(layout); errors.Is(err, fs.ErrNotExist) {
		if err := writeAtomic(layout, []byte(layoutText)); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(filepath.Join(s.dir, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		s.derive()
		return nil
	}
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(data, &index); err != nil {
		return fmt.Errorf("image store %s is damaged: index.json: %w; remove the directory to start with no images", s.dir, err)
	}
	for _, e := range index.Manifests {
		if err := s.loadRecord(e.Digest); err != nil {
			s.log.Warn("image dropped: the store lacks parts of it", "image", e.Annotations[annName], "digest", e.Digest.String(), "err", err)
			continue
		}
		s.entries = append(s.entries, e)
	}
	s.derive()
	return nil
}

// loadRecord reads a manifest and its config, once, and checks that its layers
// are there.
func (s *Store) loadRecord(digest v1.Hash) error {
	if s.records[digest] != nil {
		return nil
	}
	raw, err := s.ReadBlob(digest)
	if err != nil {
		return err
	}
	m, err := parseManifest(raw)
	if err != nil {
		return err
	}
	rawConfig, err := s.ReadBlob(m.Config.Digest)
	if err != nil {
		return err
	}
	config, err := parseConfig(rawConfig)
	if err != nil {
		return err
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return fmt.Errorf("%w: manifest has %d layers, config %d", ErrCorrupt, len(m.Layers), len(config.RootFS.DiffIDs))
	}
	for _, l := range m.Layers {
		if !s.HasBlob(l.Digest) {
			return fmt.Errorf("layer %s: %w", l.Digest, fs.ErrNotExist)
		}
	}
	s.records[digest] = &record{id: m.Config.Digest.String(), manifest: m, config: config}
	return nil
}

func parseManifest(raw []byte) (*v1.Manifest, error) {
	var m v1.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("manifest: %w: %w", ErrCorrupt, err)
	}
	if m.SchemaVersion != 2 || validHash(m.Config.Digest) != nil {
		return nil, fmt.Errorf("manifest: %w: want schema version 2 with a config", ErrCorrupt)
	}
	for _, l := range m.Layers {
		if err := validHash(l.Digest); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
	}
	return &m, nil
}

// ManifestType is the media type that a manifest or index says it has; "" where it
// says none.
func ManifestType(raw []byte) types.MediaType {
	var m struct {
		MediaType types.MediaType `json:"mediaType"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return ""
	}
	return m.MediaType
}

func parseConfig(raw []byte) (*v1.ConfigFile, error) {
	var c v1.ConfigFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("image config: %w: %w", ErrCorrupt, err)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := validHash(d); err != nil {
			return nil, fmt.Errorf("image config: %w", err)
		}
	}
	return &c, nil
}

// derive computes images and names from entries; s.mu is held, or nobody else
// knows s.
func (s *Store) derive() {
	s.images, s.names = map[string]*Image{}, map[string]string{}
	for _, e := range s.entries {
		r := s.records[e.Digest]
		img := s.images[r.id]
		if img == nil {
			img = &Image{
				ID: r.id, Digest: e.Digest, Config: r.config,
				DiffIDs: r.config.RootFS.DiffIDs, Layers: r.manifest.Layers,
			}
			fmt.Sscan(e.Annotations[annSize], &img.Size)
			s.images[r.id] = img
		}
		img.Pinned = img.Pinned || e.Annotations[annPinned] == "true"
		img.Remote = img.Remote || e.Annotations[annRemote] == "true"
		full := e.Annotations[annName]
		if full == "" {
			continue
		}
		s.names[full] = r.id
		n, err := ParseName(full)
		if err != nil {
			continue // a foreign index: reachable by ID
		}
		if n.Digest == "" {
			img.RepoTags = append(img.RepoTags, full)
		}
		if e.Annotations[annRemote] == "" || e.Annotations[annGiven] != "" {
			img.given = append(img.given, full)
		}
		n.Tag, n.Digest = "", e.Digest.String()
		if d := e.Annotations[annPulled]; d != "" {
			n.Digest = d
		}
		if !contains(img.RepoDigests, n.String()) {
			img.RepoDigests = append(img.RepoDigests, n.String())
		}
	}
	for digest := range s.records {
		if !s.hasEntry(digest) {
			delete(s.records, digest)
		}
	}
}

func (s *Store) hasEntry(digest v1.Hash) bool {
	for _, e := range s.entries {
		if e.Digest == digest {
			return true
		}
	}
	return false
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// save makes entries the index, on disk first; s.mu is held.
func (s *Store) save(entries []v1.Descriptor) error {
	data, err := json.MarshalIndent(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: append([]v1.Descriptor{}, entries...),
	}, "", " ")
	if err != nil {
		return err
	}
	// The blobs' directory entries must be durable before something names them.
	if err := syncDir(filepath.Join(s.dir, "blobs/sha256")); err != nil {
		return err
	}
	if err := writeAtomic(filepath.Join(s.dir, "index.json"), data); err != nil {
		return err
	}
	s.entries = entries
	s.derive()
	return nil
}

// writeAtomic replaces a file whole.
func writeAtomic(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	f.Close()
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("image store: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("image store: sync %s: %w", dir, err)
	}
	return nil
}

// diskUsage walks a directory; what vanishes meanwhile does not count.
func diskUsage(dir string) (bytes, inodes uint64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			var fi fs.FileInfo
			if fi, err = d.Info(); err == nil {
				inodes++
				if st, ok := fi.Sys().(*syscall.Stat_t); ok {
					bytes += uint64(st.Blocks) * 512
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return bytes, inodes, err
}
