// Package build makes images from Dockerfiles, straight into the image store.
//
// The language is BuildKit's: its parser reads it. Stages that the target does
// not need are not built. Every instruction that changes files (RUN, COPY, ADD,
// WORKDIR of a new directory) makes a layer from the upper directory of an
// overlay, which becomes the unpacked layer without being copied; all others
// change only the image's config.
//
// # Cache
//
// A layer is found again by what made it: the layers below, the instruction
// after expansion, the environment, user and arguments of a command, and the
// contents of what is copied (names, modes, bytes; not times). Records are
// files of the image store that keep the layers' blobs, so the cache survives
// restarts and the removal of images; Prune drops those long unused. An image
// whose steps all come from the cache has the same ID as before.
//
// The keys are the same wherever the same is built, so that a cache can travel: in the
// config of an image, or of a manifest that is nothing else, the keys stand beside the
// layers that they found (CacheTo), and a store that lacks a record takes it and its
// layer from there (CacheFrom).
//
// # Different from Docker
//
// docs/dockerfile.md lists every instruction and flag, and what is refused and
// why.
//
// # Side by side
//
// Stages are built as soon as those that they start from or read are there, as many
// at once as there are processors. A build's result does not depend on their order.
package build

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
)

// Deps of a Builder.
type Deps struct {
	Images    *image.Store
	Snapshots *snapshot.Store
	// Executor runs RUN instructions.
	Executor Executor
	// Dir keeps what belongs to builds alone, the directories of cache mounts.
	Dir string
	// Now is the clock; time.Now where nil.
	Now func() time.Time
	// HTTP fetches what ADD names by URL; http.DefaultTransport where nil.
	HTTP http.RoundTripper
}

// Builder builds images. Builds may run concurrently.
type Builder struct {
	deps Deps
	now  func() time.Time
	refs string // directory of the cache records
	stub string // an image's lowest layer while a command runs
	tmp  string // what builds use while they run

	atOnce int // stages of one build

	caches *caches
	steps  keyed // steps under way, by cache key
	sums   *sums
	http   *http.Client

	tidyMu sync.Mutex
	tidied time.Time
}

// New returns a builder.
func New(d Deps) (*Builder, error) {
	b := &Builder{
		deps: d, now: d.Now, stub: filepath.Join(d.Dir, "stub"), tmp: filepath.Join(d.Dir, "tmp"),
		caches: &caches{dir: filepath.Join(d.Dir, "cache"), users: map[string]int{}}, sums: newSums(), atOnce: max(1, runtime.NumCPU()), http: &http.Client{Transport: d.HTTP},
	}
	if b.now == nil {
		b.now = time.Now
	}
	// The store that the images are in is locked: what is here, a killed
	// process left.
	err := os.RemoveAll(b.tmp)
	if err == nil {
		err = os.MkdirAll(b.tmp, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	if b.refs, err = d.Images.RefDir("build"); err != nil {
		return nil, err
	}
	// What a command's mounts need to be there, so that they leave no trace in
	// its layer.
	for _, dir := range []string{"proc", "sys", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(b.stub, dir), 0o755); err != nil {
			return nil, fmt.Errorf("build: %w", err)
		}
	}
	for _, f := range []string{"resolv.conf", "hosts", "hostname"} {
		if err := os.WriteFile(filepath.Join(b.stub, "etc", f), nil, 0o644); err != nil {
			return nil, fmt.Errorf("build: %w", err)
		}
	}
	return b, nil
}

// Request says what to build.
type Request struct {
	// Context is the directory that COPY and ADD see; none where empty.
	Context string
	// Contexts are further contexts by name, as --build-context gives them: a
	// directory's absolute path, or docker-image://NAME. A name goes before
	// stages and images of that name.
	Contexts map[string]string
	// Dockerfile is its path, relative to Context; "Dockerfile" where empty. An
	// ignore file of its own is looked for beside it.
	Dockerfile string
	// Content is used in place of the Dockerfile where not nil.
	Content []byte
	// Tags are the names that the image gets.
	Tags []string
	// Target is the stage to build, by name or number; the last where empty.
	Target string
	// Platform is that of the image, os/arch[/variant]; the machine's where empty.
	Platform string
	// Args are the --build-arg values.
	Args map[string]string
	// Secrets are what RUN --mount=type=secret shows to a command, by ID. They
	// come into no layer and do not count for the cache.
	Secrets map[string][]byte
	// SSH are sockets of agents on this host that RUN --mount=type=ssh reaches,
	// by ID.
	SSH map[string]string
	// Labels are added to the image, Annotations to its manifest.
	Labels, Annotations map[string]string
	// NoCache runs every instruction, NoCacheFilter those of the named stages;
	// Pull asks the registries for base images even where they are stored.
	NoCache       bool
	NoCacheFilter []string
	Pull          bool
	// Insecure permits RUN --security=insecure.
	Insecure bool
	// Network is that of commands which do not say: "default" or "", "host",
	// "none".
	Network string
	// Hosts are further lines of a command's /etc/hosts: name to address.
	Hosts map[string]string
	// ShmSize is the size of a command's /dev/shm, bytes; 64 MiB where 0.
	ShmSize int64
	// Output takes the result elsewhere than into the image store; may be nil.
	Output *Output
	// CacheFrom are further caches, which are asked in turn for what the store's own
	// lacks; CacheTo are where the build's results go for others.
	CacheFrom []CacheFrom
	CacheTo   []CacheTo
	// Auth finds credentials for the registry of an image, nil for none; may be nil.
	Auth func(ctx context.Context, ref string) (*image.Auth, error)
	// Progress hears what happens; may be nil.
	Progress Progress
}

// Error is an instruction's failure.
type Error struct {
	File string
	// Line is where the instruction starts, and Excerpt what stands there with
	// some lines around, as docker build prints it.
	Line    int
	Excerpt string
	Err     error
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// ExitError is a RUN command that ended with another code than 0.
type ExitError struct {
	Command string
	Code    int
	Step    string   // the instruction
	Log     []string // the last lines that it wrote
}

// LogExcerpt is what stands above the error on a terminal: the instruction with
// its last lines of output.
func (e *ExitError) LogExcerpt() string {
	var b strings.Builder
	fmt.Fprintf(&b, "------\n > %s:\n", oneLine(e.Step))
	for _, l := range e.Log {
		fmt.Fprintln(&b, l)
	}
	return b.String() + "------\n"
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("process %q did not complete successfully: exit code: %d", e.Command, e.Code)
}

// ErrUnsupported is wrapped by errors about parts of the language that are
// refused.
var ErrUnsupported = errors.New("not supported")

// Build builds the image and returns it; nil where Output takes the files alone.
// An error in the Dockerfile or of one of its instructions is an *Error.
func (b *Builder) Build(ctx context.Context, req Request) (*image.Image, error) {
	if req.Progress == nil {
		req.Progress = silent{}
	}
	if req.Output != nil {
		if err := req.Output.Check(); err != nil {
			return nil, err
		}
	}
	if err := req.checkCaches(); err != nil {
		return nil, err
	}
	for _, t := range req.Tags {
		n, err := image.ParseName(t)
		if err != nil {
			return nil, fmt.Errorf("tag %w", err)
		}
		if n.Digest != "" {
			return nil, fmt.Errorf("tag %q: %w: a digest cannot be given as a tag", t, image.ErrInvalidName)
		}
	}
	r, err := b.start(req)
	if err != nil {
		return nil, err
	}
	defer r.dropRefused(ctx)
	defer r.lease.Release()
	defer r.close()
	defer r.keepLease()()
	epoch, err := epochOf(req.Args)
	if err != nil {
		return nil, err
	}
	target, err := r.file.target(req.Target)
	if err != nil {
		return nil, err
	}
	if err := r.plan(ctx, target); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	if err := r.readCaches(ctx); err != nil {
		return nil, err
	}
	if err := r.buildStages(ctx); err != nil {
		return nil, err
	}
	r.warnUnusedArgs()
	st := r.stages[target]
	for k, v := range req.Labels {
		if st.config.Config.Labels == nil {
			st.config.Config.Labels = map[string]string{}
		}
		st.config.Config.Labels[k] = v
	}
	if err := b.tidy(); err != nil {
		return nil, err
	}
	if req.Output.filesOnly() {
		if err := r.writeFiles(ctx, st); err != nil {
			return nil, err
		}
		return nil, r.writeCaches(ctx, st)
	}
	config, err := st.finish(b.now(), epoch, req.inlineCache())
	if err != nil {
		return nil, err
	}
	img, err := b.deps.Images.PutConfig(ctx, r.lease, image.Parts{
		Names: req.Tags, Config: config, Layers: st.layers, Size: st.size, Annotations: req.Annotations,
	})
	if err != nil {
		return nil, fmt.Errorf("store image: %w", err)
	}
	if err := r.writeImage(ctx, img); err != nil {
		return img, err
	}
	return img, r.writeCaches(ctx, st)
}

// start reads the Dockerfile. The caller releases the lease and closes the run.
func (b *Builder) start(req Request) (*run, error) {
	file, err := readDockerfile(req)
	if err != nil {
		return nil, err
	}
	r := &run{
		b: b, req: req, file: file, platform: machinePlatform(), stages: make([]*stage, len(file.stages)), usedArgs: map[string]bool{},
		images: map[string]*image.Image{}, contexts: map[string]*contextDir{}, triggering: map[instructions.Command]bool{},
		total: req.cacheSteps(),
	}
	if req.Platform != "" {
		if r.platform, err = parsePlatform(req.Platform); err != nil {
			return nil, err
		}
	}
	r.lease = b.deps.Images.Lease()
	return r, nil
}

// epochOf is the time of SOURCE_DATE_EPOCH; zero where it is not given.
func epochOf(args map[string]string) (time.Time, error) {
	v := args[argEpoch]
	if v == "" {
		return time.Time{}, nil
	}
	sec, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("invalid SOURCE_DATE_EPOCH: %s: must be seconds since 1970", v)
	}
	return time.Unix(sec, 0), nil
}

func chainOf(diffIDs []v1.Hash) string {
	parts := make([]string, len(diffIDs))
	for i, d := range diffIDs {
		parts[i] = d.String()
	}
	if len(parts) == 0 {
		return "scratch"
	}
	return digestOf(parts...)
}

func lookupEnv(env []string, name string) (string, bool) {
	for _, e := range env {
		if k, v, _ := strings.Cut(e, "="); k == name {
			return v, true
		}
	}
	return "", false
}

func setEnv(env []string, name, value string) []string {
	for i, e := range env {
		if k, _, _ := strings.Cut(e, "="); k == name {
			env[i] = name + "=" + value
			return env
		}
	}
	return append(env, name+"="+value)
}
