package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// fetchFunc yields the content of a blob.
type fetchFunc func(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)

// fetched is an image whose blobs are all stored.
type fetched struct {
	manifest *v1.Manifest
	config   *v1.ConfigFile
	size     int64 // of the layers unpacked
}

// fetchImage stores the manifest desc, its config and layers under lease, as far
// as they are not stored, and verifies every digest. Where a platform is wanted
// and the image is of another, the error wraps ErrNotFound.
func (s *Store) fetchImage(ctx context.Context, lease *Lease, desc v1.Descriptor, fetch fetchFunc, parallel int, want *v1.Platform, tell Progress) (*fetched, error) {
	rawManifest, err := s.fetchJSON(ctx, lease, desc, fetch)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	m, err := parseManifest(rawManifest)
	if err != nil {
		return nil, err
	}
	rawConfig, err := s.fetchJSON(ctx, lease, m.Config, fetch)
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	config, err := parseConfig(rawConfig)
	if err != nil {
		return nil, err
	}
	if want != nil && (config.OS != "" && config.OS != want.OS || config.Architecture != "" && config.Architecture != want.Architecture) {
		return nil, &PlatformError{Want: *want, There: []v1.Platform{PlatformOf(config)}}
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("%w: manifest has %d layers, config %d", ErrCorrupt, len(m.Layers), len(config.RootFS.DiffIDs))
	}
	for _, l := range m.Layers {
		tell(Event{Digest: l.Digest, Stage: Waiting})
	}
	var total atomic.Int64
	room := s.room()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, l := range m.Layers {
		g.Go(func() error {
			there := s.HasBlob(l.Digest)
			if err := s.fetchBlob(ctx, lease, l, fetch, tell); err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			tell(Event{Digest: l.Digest, Stage: Verifying})
			n, err := s.verifyLayer(ctx, l.Digest, config.RootFS.DiffIDs[i], room)
			total.Add(n)
			stage := Downloaded
			if there {
				stage = Exists
			}
			tell(Event{Digest: l.Digest, Stage: stage})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return &fetched{m, config, total.Load()}, nil
}

func silent(Event) {}

func (s *Store) fetchJSON(ctx context.Context, lease *Lease, d v1.Descriptor, fetch fetchFunc) ([]byte, error) {
	if d.Size > MaxJSON {
		return nil, fmt.Errorf("%s: %w: longer than %d bytes", d.Digest, ErrCorrupt, MaxJSON)
	}
	if err := s.fetchBlob(ctx, lease, d, fetch, silent); err != nil {
		return nil, err
	}
	return s.ReadBlob(d.Digest)
}

func (s *Store) fetchBlob(ctx context.Context, lease *Lease, d v1.Descriptor, fetch fetchFunc, tell Progress) error {
	if err := validHash(d.Digest); err != nil {
		return err
	}
	lease.Hold(d.Digest)
	if s.HasBlob(d.Digest) {
		return nil
	}
	r, err := fetch(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	// No more than the manifest says, so that a server cannot fill the disk.
	limited := io.LimitReader(r, d.Size+1)
	_, n, err := s.WriteBlob(ctx, lease, Counted(limited, Event{Digest: d.Digest, Stage: Downloading, Total: d.Size}, tell), d.Digest)
	if errors.Is(err, ErrCorrupt) && n > d.Size {
		return fmt.Errorf("blob %s: %w: it is longer than the %d bytes that the manifest says", d.Digest, ErrCorrupt, d.Size)
	}
	return err
}

// PullError is why a pull failed. Its text is what users of other runtimes
// know; errors.Is finds ErrNotFound, ErrUnauthorized, ErrUnavailable or
// ErrCorrupt in it.
type PullError struct {
	Ref string // canonical
	Err error
}

func (e *PullError) Error() string {
	return fmt.Sprintf("failed to pull and unpack image %q: %v", e.Ref, e.Err)
}

func (e *PullError) Unwrap() error { return e.Err }

// PullOptions say how an image is pulled; the zero value pulls for this machine,
// without credentials.
type PullOptions struct {
	Access
	// Platform in place of this machine's.
	Platform *v1.Platform
	// Progress may be nil.
	Progress Progress
}

// parallelLayers is how many layers of one image are fetched at once.
const parallelLayers = 3

// Pull is PullWith for this machine's platform.
func (s *Store) Pull(ctx context.Context, ref string, auth *Auth) (*Image, error) {
	return s.PullWith(ctx, ref, PullOptions{Access: Access{Auth: auth}})
}

// PullWith fetches ref from its registry, unpacks it where it is for this machine,
// and returns the image. What is stored already is not fetched again; a digest
// that is stored is not asked for. Callers that want the same at once share the
// work, which goes on as long as one of them waits for it. Errors are PullErrors,
// or wrap ErrInvalidName.
func (s *Store) PullWith(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	n, err := ParseName(ref)
	if err != nil {
		return nil, err
	}
	full := n.String()
	if s.registry == nil {
		return nil, &PullError{Ref: full, Err: fmt.Errorf("%w: this store has no access to registries", ErrUnavailable)}
	}
	if n.Digest != "" && o.Auth == nil && o.Platform == nil {
		if img, err := s.Resolve(ctx, full); err == nil {
			return img, nil
		}
	}
	key, err := json.Marshal([]any{full, o.Access, o.Platform})
	if err != nil {
		return nil, err
	}
	if o.Progress == nil {
		o.Progress = silent
	}
	img, err := s.pulls.do(ctx, string(key), o.Progress, func(ctx context.Context, tell Progress) (*Image, error) {
		return s.pull(ctx, n, o, tell)
	})
	if err != nil {
		return nil, &PullError{Ref: full, Err: err}
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, n Name, o PullOptions, tell Progress) (*Image, error) {
	platform := Host()
	if o.Platform != nil {
		platform = *o.Platform
	}
	found, err := s.registry.Find(ctx, n, platform, o.Access)
	if err != nil {
		return nil, fmt.Errorf("failed to resolve reference %q: %w", n, err)
	}
	lease := s.Lease()
	img, err := s.fetchAndUnpack(ctx, lease, n, found, platform, tell)
	lease.Release()
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrUnavailable) {
		return img, err // whole layers serve the next try
	}
	// Nobody will want what this left.
	if cerr := s.Collect(ctx); cerr != nil {
		s.log.Warn("what a failed pull left was not removed", "image", n.String(), "err", cerr)
	}
	return nil, err
}

func (s *Store) fetchAndUnpack(ctx context.Context, lease *Lease, n Name, found *RemoteImage, platform v1.Platform, tell Progress) (*Image, error) {
	there := map[v1.Hash]bool{} // and so are done with when they are found
	var mu sync.Mutex
	got, err := s.fetchImage(ctx, lease, found.Manifest, found.Fetch, parallelLayers, &platform, func(e Event) {
		if e.Stage == Exists {
			mu.Lock()
			there[e.Digest] = true
			mu.Unlock()
		}
		tell(e)
	})
	if err != nil {
		return nil, fmt.Errorf("failed to copy: %w", err)
	}
	tellNew := func(stage Stage) {
		for _, l := range got.manifest.Layers {
			if !there[l.Digest] {
				tell(Event{Digest: l.Digest, Stage: stage})
			}
		}
	}
	if platform.Equals(Host()) {
		if err := s.unpack(ctx, lease, got, func() { tellNew(Extracting) }); err != nil {
			return nil, fmt.Errorf("failed to extract layer: %w", err)
		}
	}
	tellNew(Pulled)
	return s.publish(lease, found.Manifest, []string{n.String()}, publication{size: got.size, pulled: found.Digest.String()})
}

// unpack makes the layers ready for containers: a layer that cannot be unpacked
// fails the pull, not what runs later.
func (s *Store) unpack(ctx context.Context, lease *Lease, got *fetched, begins func()) error {
	s.mu.Lock()
	layers := s.layers
	s.mu.Unlock()
	if layers == nil {
		return nil
	}
	lease.Hold(got.config.RootFS.DiffIDs...)
	begins()
	return layers.Unpack(ctx, &Image{
		ID: got.manifest.Config.Digest.String(), Config: got.config, DiffIDs: got.config.RootFS.DiffIDs, Layers: got.manifest.Layers,
	})
}

// flights are pulls under way, by what they are for.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
}

// flight is a pull that several may wait for.
type flight struct {
	cancel  context.CancelFunc
	done    chan struct{}
	img     *Image
	err     error
	waiting map[*Progress]bool
}

// do runs f, or joins the call of it that is under way. f's context ends when
// nobody waits any more.
func (fs *flights) do(ctx context.Context, key string, tell Progress, f func(context.Context, Progress) (*Image, error)) (*Image, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	me := &tell
	fs.mu.Lock()
	if fs.all == nil {
		fs.all = map[string]*flight{}
	}
	fl := fs.all[key]
	if fl == nil {
		fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight{cancel: cancel, done: make(chan struct{}), waiting: map[*Progress]bool{}}
		fs.all[key] = fl
		go func() { // ends with fctx; do waits for its end, or cancels it
			img, err := f(fctx, func(e Event) { fs.tell(fl, e) })
			fs.mu.Lock()
			if fs.all[key] == fl {
				delete(fs.all, key)
			}
			fs.mu.Unlock()
			cancel()
			fl.img, fl.err = img, err
			close(fl.done)
		}()
	}
	fl.waiting[me] = true
	fs.mu.Unlock()
	select {
	case <-fl.done:
		return fl.img, fl.err
	case <-ctx.Done():
	}
	fs.mu.Lock()
	delete(fl.waiting, me)
	last := len(fl.waiting) == 0
	if last && fs.all[key] == fl {
		delete(fs.all, key) // who comes now starts anew
	}
	fs.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.done // nothing of it goes on
	}
	return nil, context.Cause(ctx)
}

func (fs *flights) tell(fl *flight, e Event) {
	fs.mu.Lock()
	all := make([]*Progress, 0, len(fl.waiting))
	for p := range fl.waiting {
		all = append(all, p)
	}
	fs.mu.Unlock()
	for _, p := range all {
		(*p)(e)
	}
}
