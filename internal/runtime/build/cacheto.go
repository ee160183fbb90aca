package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skiff/internal/runtime/image"
)

// CacheTo is where a build's results go, for other stores to take them from.
type CacheTo struct {
	// Type is "inline" (into the image itself), "registry" (a manifest of their own,
	// pushed as Ref) or "local" (the same, in the OCI image layout Dest).
	Type string
	Ref  string
	// Dest is an absolute path, Tag what the manifest is known by in it; DefaultTag
	// where empty.
	Dest, Tag string
	// Mode is "min" (also for ""), what is in the image, or "max", the results of
	// all stages. Inline is min.
	Mode string
	// Compression of layers that have none: gzip (also for ""), zstd, or none.
	Compression string
	// IgnoreError makes a failure a warning.
	IgnoreError bool
}

func (c CacheTo) String() string {
	switch c.Type {
	case "inline":
		return "inline"
	case "local":
		return "local " + c.Dest
	}
	return "registry " + c.Ref
}

func (c CacheTo) check() error {
	switch c.Type {
	case "inline":
	case "registry":
		n, err := image.ParseName(c.Ref)
		if err == nil && n.Digest != "" {
			err = fmt.Errorf("%q: %w: it is pushed under a tag, not a digest", c.Ref, image.ErrInvalidName)
		}
		if err != nil {
			return fmt.Errorf("--cache-to: ref %w", err)
		}
	case "local":
		if !filepath.IsAbs(c.Dest) {
			return fmt.Errorf("--cache-to: dest %q: must be an absolute path", c.Dest)
		}
	default:
		return fmt.Errorf("--cache-to: type %q: %w: must be inline, registry or local", c.Type, ErrUnsupported)
	}
	switch {
	case c.Mode != "" && c.Mode != "min" && c.Mode != "max":
		return fmt.Errorf("--cache-to: mode %q: must be min or max", c.Mode)
	case c.Mode == "max" && c.Type == "inline":
		return errors.New("--cache-to: type=inline has mode=min alone: an image carries what its own layers came from")
	}
	switch c.Compression {
	case "", "gzip", "zstd", "none":
		return nil
	}
	return fmt.Errorf("--cache-to: compression %q: must be gzip, zstd or none", c.Compression)
}

// checkCaches tells what is wrong with the caches of a request.
func (r *Request) checkCaches() error {
	for _, c := range r.CacheFrom {
		if err := c.check(); err != nil {
			return err
		}
	}
	for _, c := range r.CacheTo {
		if err := c.check(); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(r.CacheTo, inline) && r.Output.filesOnly() {
		return fmt.Errorf("--cache-to: type=inline needs an image to be in, and output type %s has none", r.Output.Type)
	}
	return nil
}

// cacheSteps is how many steps of the build's progress caches are.
func (r *Request) cacheSteps() int {
	n := 0
	if !r.NoCache {
		n = len(r.CacheFrom)
	}
	for _, c := range r.CacheTo {
		if !inline(c) {
			n++
		}
	}
	return n
}

func inline(c CacheTo) bool { return c.Type == "inline" }

// inlineCache tells whether the image gets its cache: also by the argument that docker
// has for it.
func (r *Request) inlineCache() bool {
	arg, err := strconv.ParseBool(r.Args[argInline])
	return slices.ContainsFunc(r.CacheTo, inline) || err == nil && arg
}

// travel lists results, each key once, with layers by their place in diffIDs.
func travel(made []madeBy, diffIDs []v1.Hash) travelling {
	at := map[v1.Hash]int{}
	for i, d := range diffIDs {
		at[d] = i
	}
	out := travelling{Steps: []travelStep{}}
	seen := map[string]bool{}
	for _, m := range made {
		if seen[m.key] {
			continue
		}
		seen[m.key] = true
		s := travelStep{Key: m.key, Created: m.Created}
		if m.Layer != nil {
			i := at[m.diffID()]
			s.Layer = &i
		}
		out.Steps = append(out.Steps, s)
	}
	return out
}

// withCache puts a cache into a config; diffIDs are the config's.
func withCache(config []byte, made []madeBy, diffIDs []v1.Hash) ([]byte, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(config, &all); err != nil {
		return nil, err
	}
	var err error
	if all[cacheField], err = json.Marshal(travel(made, diffIDs)); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// cacheConfig is the media type of the config of a cache that is no image: nobody is
// to run it.
const cacheConfig types.MediaType = "application/vnd.skiff.build.cache.config.v1+json"

// parcel is results as a manifest of their own.
func (r *run) parcel(made []madeBy) (image.Parcel, error) {
	p := image.Parcel{ConfigType: cacheConfig, DiffIDs: []v1.Hash{}}
	seen := map[v1.Hash]bool{}
	for _, m := range made {
		if m.Layer == nil || seen[m.diffID()] {
			continue
		}
		seen[m.diffID()] = true
		p.Layers, p.DiffIDs = append(p.Layers, *m.Layer), append(p.DiffIDs, m.diffID())
	}
	config, err := json.Marshal(v1.ConfigFile{
		OS: r.platform.os, Architecture: r.platform.arch, Variant: r.platform.variant,
		RootFS: v1.RootFS{Type: "layers", DiffIDs: p.DiffIDs},
	})
	if err != nil {
		return p, err
	}
	p.Config, err = withCache(config, made, p.DiffIDs)
	return p, err
}

// writeCaches brings the results of the build where --cache-to says; st is the stage
// that the image is.
func (r *run) writeCaches(ctx context.Context, st *stage) error {
	for _, c := range r.req.CacheTo {
		if inline(c) {
			continue // the config has it
		}
		n := r.begin("exporting cache to " + c.String())
		err := r.writeCache(ctx, c, st)
		r.end(ctx, n, false, err)
		if err == nil {
			continue
		}
		if err = fmt.Errorf("--cache-to %s: %w", c, err); !c.IgnoreError || ctx.Err() != nil {
			return err
		}
		r.req.Progress.Warn("--cache-to", 0, err.Error())
	}
	return nil
}

func (r *run) writeCache(ctx context.Context, c CacheTo, st *stage) error {
	made := st.made
	if c.Mode == "max" {
		made = nil
		for _, i := range r.order {
			made = append(made, r.stages[i].made...)
		}
	}
	p, err := r.parcel(made)
	if err != nil {
		return err
	}
	o := image.PushOptions{Compression: c.Compression}
	if c.Type == "local" {
		tag := c.Tag
		if tag == "" {
			tag = DefaultTag
		}
		return r.b.deps.Images.WriteParcel(ctx, c.Dest, tag, p, o)
	}
	if o.Access, err = r.access(ctx, c.Ref); err != nil {
		return err
	}
	return r.b.deps.Images.PushParcel(ctx, c.Ref, p, o)
}
