package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/runtime/image"
)

// CacheFrom is a cache that a build reads: what instructions made elsewhere.
type CacheFrom struct {
	// Type is "registry" (the image or cache Ref, of the store if that has an image
	// of that name with a cache in it, else of its registry) or "local" (the OCI
	// image layout Src).
	Type string
	Ref  string
	// Src is an absolute path. The manifest in it is that with Digest, or else with
	// Tag; DefaultTag where empty.
	Src, Tag, Digest string
}

// DefaultTag is what caches in a layout directory are known by.
const DefaultTag = "latest"

func (c CacheFrom) String() string {
	if c.Type == "local" {
		return c.Src
	}
	return c.Ref
}

func (c CacheFrom) check() error {
	switch c.Type {
	case "registry":
		if _, err := image.ParseName(c.Ref); err != nil {
			return fmt.Errorf("--cache-from: ref %w", err)
		}
	case "local":
		if !filepath.IsAbs(c.Src) {
			return fmt.Errorf("--cache-from: src %q: must be an absolute path", c.Src)
		}
	default:
		return fmt.Errorf("--cache-from: type %q: %w: must be registry or local", c.Type, ErrUnsupported)
	}
	return nil
}

// cacheField is where a config says what made its layers. It is this builder's own:
// keys mean nothing to another, nor to one that makes them otherwise.
const cacheField = "dev.skiff.build.cache.v1"

// travelling is the cache as a config has it.
type travelling struct {
	Steps []travelStep `json:"steps"`
}

// travelStep is a record without the blob's descriptor, which the manifest has.
type travelStep struct {
	Key string `json:"key"`
	// Layer is the place in the lists of layers and of diff IDs; nil where the
	// instruction changed nothing.
	Layer   *int      `json:"layer,omitempty"`
	Created time.Time `json:"created"`
}

var keyRE = regexp.MustCompile(`^[0-9a-f]{64}$`)

// errNoCache is that an image carries no cache.
var errNoCache = errors.New("it carries no cache: build it with --cache-to")

// remoteCache is a cache that was read.
type remoteCache struct {
	*image.Elsewhere
	name    string
	steps   []travelStep
	diffIDs []v1.Hash // of its layers
	lost    bool      // it is not asked any more; imports.mu guards it
}

// newRemoteCache reads what an image elsewhere carries of a cache.
func newRemoteCache(name string, e *image.Elsewhere) (*remoteCache, error) {
	steps, diffIDs, err := parseCache(e.Config, len(e.Layers))
	return &remoteCache{Elsewhere: e, name: name, steps: steps, diffIDs: diffIDs}, err
}

// parseCache reads the cache that a config carries, and its layers' diff IDs, of which
// there must be so many. Whatever the config says, steps name none but these.
func parseCache(config []byte, layers int) ([]travelStep, []v1.Hash, error) {
	var c struct {
		RootFS struct {
			DiffIDs []v1.Hash `json:"diff_ids"`
		} `json:"rootfs"`
		Cache *travelling `json:"dev.skiff.build.cache.v1"` // cacheField
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, nil, fmt.Errorf("%w: config: %w", image.ErrCorrupt, err)
	}
	if c.Cache == nil {
		return nil, nil, errNoCache
	}
	if len(c.RootFS.DiffIDs) != layers {
		return nil, nil, fmt.Errorf("%w: manifest has %d layers, config %d", image.ErrCorrupt, layers, len(c.RootFS.DiffIDs))
	}
	for _, s := range c.Cache.Steps {
		if !keyRE.MatchString(s.Key) {
			return nil, nil, fmt.Errorf("%w: key %.80q: must be 64 hexadecimal digits", image.ErrCorrupt, s.Key)
		}
		if s.Layer != nil && (*s.Layer < 0 || *s.Layer >= layers) {
			return nil, nil, fmt.Errorf("%w: there is no layer %d", image.ErrCorrupt, *s.Layer)
		}
	}
	return c.Cache.Steps, c.RootFS.DiffIDs, nil
}

// imports are what the caches from elsewhere know. The zero value knows nothing.
type imports struct {
	mu      sync.Mutex
	offers  map[string][]offer // by key, in the order of the flags
	refused bool               // something was fetched and not taken, or may have been
}

// offer is what one cache has for a key.
type offer struct {
	from    *remoteCache
	layer   int // -1 where the instruction changed nothing
	created time.Time
}

func (im *imports) add(c *remoteCache) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.offers == nil {
		im.offers = map[string][]offer{}
	}
	for _, s := range c.steps {
		o := offer{from: c, layer: -1, created: s.Created}
		if s.Layer != nil {
			o.layer = *s.Layer
		}
		im.offers[s.Key] = append(im.offers[s.Key], o)
	}
}

// next is the first offer for a key of a cache that is still asked.
func (im *imports) next(key string) (offer, bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, o := range im.offers[key] {
		if !o.from.lost {
			return o, true
		}
	}
	return offer{}, false
}

// lose asks a cache no more; first tells whether it was asked until now.
func (im *imports) lose(c *remoteCache) (first bool) {
	im.mu.Lock()
	defer im.mu.Unlock()
	first = !c.lost
	c.lost, im.refused = true, true
	return first
}

// readCaches learns what the caches of --cache-from have. One that cannot be had is
// warned of: the build does without.
func (r *run) readCaches(ctx context.Context) error {
	if r.req.NoCache {
		return nil
	}
	for _, from := range r.req.CacheFrom {
		n := r.begin("importing cache manifest from " + from.String())
		c, err := r.findCache(ctx, from)
		r.end(ctx, n, false, err)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			r.warnCache(from.String(), err)
			continue
		}
		r.imports.add(c)
	}
	return nil
}

func (r *run) warnCache(name string, err error) {
	r.req.Progress.Warn("--cache-from "+name, 0, err.Error())
}

func (r *run) findCache(ctx context.Context, c CacheFrom) (*remoteCache, error) {
	images := r.b.deps.Images
	if c.Type == "local" {
		tag := c.Tag
		if tag == "" {
			tag = DefaultTag
		}
		e, err := images.LookLayout(ctx, c.Src, tag, c.Digest)
		if err != nil {
			return nil, err
		}
		return newRemoteCache(c.String(), e)
	}
	// An image that is here serves only if a cache is in it.
	if img, err := images.Resolve(ctx, c.Ref); err == nil && !r.req.Pull {
		if e, err := images.LookHere(ctx, img); err == nil {
			if known, err := newRemoteCache(c.String(), e); err == nil {
				return known, nil
			}
		}
	}
	access, err := r.access(ctx, c.Ref)
	if err != nil {
		return nil, err
	}
	e, err := images.Look(ctx, c.Ref, v1.Platform{OS: r.platform.os, Architecture: r.platform.arch, Variant: r.platform.variant}, access)
	if err != nil {
		return nil, err
	}
	return newRemoteCache(c.String(), e)
}

// imported is what a cache from elsewhere has for a key: its layer is fetched and
// unpacked on the stage, as an image's is, and from then on in the store's own cache.
// A cache of which that fails is not asked again. The error is that ctx ended, or
// that the store cannot be written.
func (s *step) imported(ctx context.Context, key string) (record, bool, error) {
	for {
		o, ok := s.imports.next(key)
		if !ok {
			return record{}, false, nil
		}
		rec, err := s.accept(ctx, o)
		if err == nil {
			return rec, true, s.b.remember(key, rec)
		}
		if ctx.Err() != nil {
			return record{}, false, context.Cause(ctx)
		}
		if s.imports.lose(o.from) {
			s.warnCache(o.from.name, fmt.Errorf("not asked any more: %w", err))
		}
	}
}

func (s *step) accept(ctx context.Context, o offer) (record, error) {
	rec := record{Created: o.created.UTC()}
	if o.layer < 0 {
		return rec, nil
	}
	diffID := o.from.diffIDs[o.layer]
	s.lease.Hold(diffID)
	d, size, err := o.from.Layer(ctx, s.lease, o.layer, diffID)
	if err != nil {
		return rec, err
	}
	rec.Layer = &d
	if d.Digest != diffID {
		rec.Unpacked = &unpacked{DiffID: diffID, Size: size}
	}
	top := *s.image()
	top.DiffIDs = append(slices.Clone(top.DiffIDs), diffID)
	top.Layers = append(slices.Clone(top.Layers), d)
	return rec, s.b.deps.Snapshots.Unpack(ctx, &top)
}

// dropRefused deletes what a cache brought that was refused then. It is called when
// the build's lease has ended.
func (r *run) dropRefused(ctx context.Context) {
	r.imports.mu.Lock()
	refused := r.imports.refused
	r.imports.mu.Unlock()
	if !refused {
		return
	}
	if err := r.b.deps.Images.Collect(context.WithoutCancel(ctx)); err != nil {
		r.req.Progress.Warn("--cache-from", 0, "what was refused is still there: "+err.Error())
	}
}
