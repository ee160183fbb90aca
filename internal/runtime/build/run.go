package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"skiff/internal/runtime/image"
)

// run is one build.
type run struct {
	b        *Builder
	req      Request
	file     *dockerfile
	lease    *image.Lease
	platform platform

	globals    map[string]string // ARGs before the first FROM
	bases      []base
	triggering map[instructions.Command]bool // instructions that are triggers
	order      []int                         // stages to build
	stages     []*stage                      // each is written by who builds it alone
	finding    keyed                         // images that are looked for, by name
	total      int                           // steps, as far as known

	imports imports // what caches from elsewhere know

	mu       sync.Mutex              // guards what follows: stages are built side by side
	images   map[string]*image.Image // that FROM and --from named
	views    []view
	contexts map[string]*contextDir // by directory
	undo     []func()               // when the build ends, in turn
	step     int                    // the number of the last one that was begun
	usedArgs map[string]bool
}

// view is a mounted rootfs that lives as long as the build.
type view struct {
	chain string
	root  *os.File
	done  func()
}

func (r *run) close() {
	for _, v := range r.views {
		v.root.Close()
		v.done()
	}
	for _, f := range slices.Backward(r.undo) {
		f()
	}
}

// keepLease prolongs the lease until the function that it returns is called: a
// command may take longer than a lease lasts.
func (r *run) keepLease() (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(ended)
		t := time.NewTicker(image.LeaseTime / 3)
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				r.lease.Hold()
			}
		}
	}()
	return func() { close(done); <-ended }
}

// tempDir is a directory for as long as the build.
func (r *run) tempDir() (string, error) {
	dir, err := os.MkdirTemp(r.b.tmp, "")
	if err != nil {
		return "", fmt.Errorf("build: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.undo = append(r.undo, func() { os.RemoveAll(dir) })
	return dir, nil
}

// ownArgs are arguments that the builder itself takes, without ARG.
var ownArgs = []string{argCacheNamespace, argHostname, argCheck, argEpoch, argInline}

const (
	argCacheNamespace = "BUILDKIT_CACHE_MOUNT_NS"
	argHostname       = "BUILDKIT_SANDBOX_HOSTNAME"
	argCheck          = "BUILDKIT_DOCKERFILE_CHECK"
	argEpoch          = "SOURCE_DATE_EPOCH"
	argInline         = "BUILDKIT_INLINE_CACHE"
)

func (r *run) warnUnusedArgs() {
	known := r.platformArgs()
	var unused []string
	for name := range r.req.Args {
		if _, platform := known[name]; !r.usedArgs[name] && !isProxyArg(name) && !platform && !slices.Contains(ownArgs, name) {
			unused = append(unused, name)
		}
	}
	if len(unused) > 0 {
		sort.Strings(unused)
		r.req.Progress.Warn(r.file.name, 0, fmt.Sprintf("one or more build-args %v were not consumed", unused))
	}
}

// baseImage finds an image that FROM or --from names: for the platform want, or
// for whatever it is where want is nil.
func (r *run) baseImage(ctx context.Context, name string, want *platform) (*image.Image, error) {
	key := name
	if want != nil {
		key += " " + want.String()
	}
	unlock, err := r.finding.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r.mu.Lock()
	known := r.images[key]
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
	img, err := r.b.deps.Images.Resolve(ctx, name)
	if err != nil && !errors.Is(err, image.ErrNotFound) {
		return nil, err
	}
	there := err == nil && (want == nil || platformOf(img.Config).same(*want))
	if !there || r.req.Pull {
		if img, err = r.pull(ctx, name, img, want); err != nil {
			return nil, err
		}
	}
	for _, l := range img.Layers {
		r.lease.Hold(l.Digest)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.images[key] = img
	return img, nil
}

// access is with what the registry of an image is asked.
func (r *run) access(ctx context.Context, ref string) (a image.Access, err error) {
	if r.req.Auth != nil {
		a.Auth, err = r.req.Auth(ctx, ref)
	}
	return a, err
}

// pull asks the registry. An image for another platform does not take the name
// from the one that had it: that is what pods on this machine mean.
func (r *run) pull(ctx context.Context, name string, had *image.Image, want *platform) (*image.Image, error) {
	access, err := r.access(ctx, name)
	if err != nil {
		return nil, err
	}
	o := image.PullOptions{Access: access}
	if want != nil && !want.same(machinePlatform()) {
		o.Platform = &v1.Platform{OS: want.os, Architecture: want.arch, Variant: want.variant}
	}
	img, err := r.b.deps.Images.PullWith(ctx, name, o)
	if err != nil {
		return nil, err
	}
	for _, l := range img.Layers {
		r.lease.Hold(l.Digest)
	}
	if have := platformOf(img.Config); want != nil && !have.same(*want) {
		return nil, fmt.Errorf("the image is for %s, not %s", have, *want)
	}
	if o.Platform != nil && had != nil && platformOf(had.Config).same(machinePlatform()) {
		if n, err := image.ParseName(name); err == nil && n.Digest == "" {
			return img, r.b.deps.Images.Tag(ctx, had.ID, name)
		}
	}
	return img, nil
}

// platformOf is what an image is for; linux where it does not say, and the
// machine's where it says nothing.
func platformOf(c *v1.ConfigFile) platform {
	p := platform{c.OS, c.Architecture, c.Variant}.normal()
	if p.arch == "" {
		return machinePlatform()
	}
	if p.os == "" {
		p.os = "linux"
	}
	return p
}

// stage is a stage under construction, or done: an image that is not stored.
type stage struct {
	config *v1.ConfigFile
	// startInterval is the health check's, which v1.HealthConfig lacks.
	startInterval time.Duration
	layers        []v1.Descriptor
	size          int64
	// chain identifies the layers, created is when the newest was made.
	chain   string
	created time.Time

	// vars are what expansion and commands see: the environment with the
	// arguments, of each name the latest.
	vars    []string
	args    []string // names of declared ARGs, in order
	cmdSet  bool     // CMD was given in this stage
	history []v1.History
	made    []madeBy // what instructions put on top, of stages below too
}

// madeBy is the result of the instruction with a key.
type madeBy struct {
	key string
	record
}

// image is the stage's layers as snapshots take them.
func (s *stage) image() *image.Image {
	return &image.Image{Config: s.config, DiffIDs: s.config.RootFS.DiffIDs, Layers: s.layers}
}

// finish completes the config. epoch, where not zero, is when all of it was made;
// inline puts the stage's cache into it.
func (s *stage) finish(now, epoch time.Time, inline bool) ([]byte, error) {
	c := s.config.DeepCopy()
	created := s.created
	if created.IsZero() {
		created = now
	}
	if !epoch.IsZero() {
		created = epoch
	}
	c.Created = v1.Time{Time: created.UTC()}
	c.History = nil
	for _, h := range s.history {
		if h.Created.IsZero() || !epoch.IsZero() && h.Comment == historyComment {
			h.Created = c.Created
		}
		c.History = append(c.History, h)
	}
	raw, err := json.Marshal(c)
	if err == nil && s.startInterval != 0 && c.Config.Healthcheck != nil {
		raw, err = s.withStartInterval(raw)
	}
	if err == nil && inline {
		raw, err = withCache(raw, s.made, c.RootFS.DiffIDs)
	}
	return raw, err
}

// withStartInterval puts into a config what v1.HealthConfig lacks.
func (s *stage) withStartInterval(raw []byte) ([]byte, error) {
	var all, conf, check map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(raw, &all), json.Unmarshal(all["config"], &conf), json.Unmarshal(conf["Healthcheck"], &check)); err != nil {
		return nil, err
	}
	check["StartInterval"] = json.RawMessage(fmt.Sprint(int64(s.startInterval)))
	var err error
	if conf["Healthcheck"], err = json.Marshal(check); err != nil {
		return nil, err
	}
	if all["config"], err = json.Marshal(conf); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// defaultPath is the PATH of images that have none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// scratch is the stage of FROM scratch.
func scratch(p platform) *stage {
	env := []string{"PATH=" + defaultPath}
	return &stage{
		chain: "scratch", vars: slices.Clone(env),
		config: &v1.ConfigFile{
			Architecture: p.arch, Variant: p.variant, OS: p.os, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
			Config: v1.Config{Env: env, WorkingDir: "/"},
		},
	}
}

// from is the stage of FROM an image.
func (r *run) from(img *image.Image) (*stage, error) {
	c := img.Config.DeepCopy()
	s := &stage{
		config: c, layers: append([]v1.Descriptor{}, img.Layers...), size: img.Size,
		chain: chainOf(img.DiffIDs), created: c.Created.Time, history: c.History,
	}
	c.Container, c.DockerVersion = "", ""
	c.Config.OnBuild = nil // they run, and end with it
	if c.Config.WorkingDir == "" {
		c.Config.WorkingDir = "/"
	}
	if _, ok := lookupEnv(c.Config.Env, "PATH"); !ok {
		c.Config.Env = append(c.Config.Env, "PATH="+defaultPath)
	}
	s.vars = slices.Clone(c.Config.Env)
	if c.Config.Healthcheck == nil {
		return s, nil
	}
	id, err := v1.NewHash(img.ID)
	if err != nil {
		return nil, err
	}
	raw, err := r.b.deps.Images.ReadBlob(id)
	if err != nil {
		return nil, err
	}
	var more struct {
		Config struct {
			Healthcheck struct{ StartInterval time.Duration }
		} `json:"config"`
	}
	if err := json.Unmarshal(raw, &more); err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	s.startInterval = more.Config.Healthcheck.StartInterval
	return s, nil
}

// next is a stage that goes on where s ended.
func (s *stage) next() *stage {
	n := &stage{
		config: s.config.DeepCopy(), startInterval: s.startInterval, layers: append([]v1.Descriptor{}, s.layers...), size: s.size,
		chain: s.chain, created: s.created, history: append([]v1.History{}, s.history...),
		vars: slices.Clone(s.vars), args: slices.Clone(s.args), made: slices.Clone(s.made),
	}
	n.config.Config.OnBuild = nil
	return n
}

// add puts what an instruction with that key made on top.
func (s *stage) add(key string, l record) {
	s.made = append(s.made, madeBy{key, l})
	if l.Created.After(s.created) {
		s.created = l.Created
	}
	if l.Layer == nil {
		return
	}
	s.config.RootFS.DiffIDs = append(s.config.RootFS.DiffIDs, l.diffID())
	s.layers = append(s.layers, *l.Layer)
	s.size += l.size()
	s.chain = chainOf(s.config.RootFS.DiffIDs)
}

// historyComment marks what BuildKit's kind of builder made.
const historyComment = "buildkit.dockerfile.v0"

func (s *stage) addHistory(text string, empty bool) {
	s.history = append(s.history, v1.History{
		Created: v1.Time{Time: s.created.UTC()}, CreatedBy: text, EmptyLayer: empty, Comment: historyComment,
	})
	if s.created.IsZero() {
		s.history[len(s.history)-1].Created = v1.Time{}
	}
}
