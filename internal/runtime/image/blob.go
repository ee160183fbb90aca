package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// LeaseTime is how long a lease lasts after its last use.
const LeaseTime = 30 * time.Minute

// Lease keeps blobs from garbage collection until Release, or until LeaseTime
// after its last Hold.
type Lease struct {
	store   *Store
	expires time.Time
	blobs   map[v1.Hash]bool
}

// Lease returns a new lease that holds nothing yet.
func (s *Store) Lease() *Lease {
	l := &Lease{store: s, blobs: map[v1.Hash]bool{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.expires = s.now().Add(LeaseTime)
	s.leases[l] = true
	return l
}

// Hold adds blobs and prolongs the lease. A blob that is there when Hold
// returns stays there.
func (l *Lease) Hold(blobs ...v1.Hash) {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	l.hold(blobs...)
}

// hold is Hold with the store's mu held.
func (l *Lease) hold(blobs ...v1.Hash) {
	for _, b := range blobs {
		l.blobs[b] = true
	}
	l.expires = l.store.now().Add(LeaseTime)
	l.store.leases[l] = true
}

// Release ends the lease; a second call does nothing.
func (l *Lease) Release() {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	delete(l.store.leases, l)
}

func (s *Store) blobPath(h v1.Hash) string {
	return filepath.Join(s.dir, "blobs", h.Algorithm, h.Hex)
}

func validHash(h v1.Hash) error {
	if h.Algorithm != "sha256" || !hex64RE.MatchString(h.Hex) {
		return fmt.Errorf("digest %q: %w: must be sha256 and 64 hexadecimal digits", h.String(), ErrCorrupt)
	}
	return nil
}

// HasBlob tells whether the blob is stored. Without a lease on it the answer
// may be old when it arrives.
func (s *Store) HasBlob(h v1.Hash) bool {
	if validHash(h) != nil {
		return false
	}
	_, err := os.Stat(s.blobPath(h))
	return err == nil
}

// OpenBlob opens a blob for reading; os.ErrNotExist where there is none.
func (s *Store) OpenBlob(h v1.Hash) (*os.File, error) {
	if err := validHash(h); err != nil {
		return nil, err
	}
	return os.Open(s.blobPath(h))
}

// ReadBlob reads a whole blob and verifies it; it is for manifests and configs.
func (s *Store) ReadBlob(h v1.Hash) ([]byte, error) {
	f, err := s.OpenBlob(h)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readJSONBlob(f, h)
}

// MaxJSON bounds manifests, configs and indexes, which are read into memory.
const MaxJSON = 8 << 20

func readJSONBlob(r io.Reader, want v1.Hash) ([]byte, error) {
	data, err := readLimited(r)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", want, err)
	}
	sum := sha256.Sum256(data)
	if got := hex.EncodeToString(sum[:]); got != want.Hex {
		return nil, fmt.Errorf("blob %s: %w: its content has digest sha256:%s", want, ErrCorrupt, got)
	}
	return data, nil
}

func readLimited(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxJSON+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxJSON {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrCorrupt, MaxJSON)
	}
	return data, nil
}

// BlobWriter writes one blob. It cannot be seen before Commit.
type BlobWriter struct {
	store *Store
	lease *Lease
	file  *os.File
	hash  hash.Hash
	size  int64
	done  bool
}

// NewBlob starts a blob that lease will hold. Close must be called in any case.
func (s *Store) NewBlob(lease *Lease) (*BlobWriter, error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "ingest"), "blob-")
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return &BlobWriter{store: s, lease: lease, file: f, hash: sha256.New()}, nil
}

func (w *BlobWriter) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	return n, err
}

// Size is how many bytes were written.
func (w *BlobWriter) Size() int64 { return w.size }

// Digest is the digest of what was written so far.
func (w *BlobWriter) Digest() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(w.hash.Sum(nil))}
}

// Commit makes the blob seen under its digest. Where want is given and is not
// the digest, the blob is dropped and the error wraps ErrCorrupt.
func (w *BlobWriter) Commit(want v1.Hash) (v1.Hash, error) {
	got := w.Digest()
	if want != (v1.Hash{}) && want != got {
		return v1.Hash{}, fmt.Errorf("blob %s: %w: its content has digest %s", want, ErrCorrupt, got)
	}
	w.lease.Hold(got)
	if w.store.HasBlob(got) {
		return got, nil // Close drops the copy
	}
	if err := w.file.Sync(); err != nil {
		return v1.Hash{}, fmt.Errorf("blob %s: %w", got, err)
	}
	if err := w.file.Chmod(0o444); err != nil {
		return v1.Hash{}, fmt.Errorf("blob %s: %w", got, err)
	}
	if err := os.Rename(w.file.Name(), w.store.blobPath(got)); err != nil {
		return v1.Hash{}, fmt.Errorf("blob %s: %w", got, err)
	}
	w.done = true
	return got, nil
}

// Close drops what was not committed.
func (w *BlobWriter) Close() error {
	err := w.file.Close()
	if !w.done {
		err = errors.Join(err, os.Remove(w.file.Name()))
		w.done = true
	}
	return err
}

// WriteBlob stores what r yields. Where want is given and already stored, r is
// not read.
func (s *Store) WriteBlob(ctx context.Context, lease *Lease, r io.Reader, want v1.Hash) (v1.Hash, int64, error) {
	if want != (v1.Hash{}) {
		if err := validHash(want); err != nil {
			return v1.Hash{}, 0, err
		}
		lease.Hold(want)
		if fi, err := os.Stat(s.blobPath(want)); err == nil {
			return want, fi.Size(), nil
		}
	}
	w, err := s.NewBlob(lease)
	if err != nil {
		return v1.Hash{}, 0, err
	}
	defer w.Close()
	if _, err := io.Copy(w, contextReader{ctx, r}); err != nil {
		return v1.Hash{}, 0, err
	}
	h, err := w.Commit(want)
	return h, w.size, err
}

// contextReader ends a copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
