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
// # Different from Docker
//
// ADD of a URL or a git repository, RUN --security, RUN --mount of ssh agents,
// symbolic --chmod and other platforms than the machine's are refused by name. HEALTHCHECK's start interval is not stored.
// Stages are built one after another.
package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

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
}

// Builder builds images. Builds may run concurrently.
type Builder struct {
	deps Deps
	now  func() time.Time
	refs string // directory of the cache records
	stub string // an image's lowest layer while a command runs
}

// New returns a builder.
func New(d Deps) (*Builder, error) {
	b := &Builder{deps: d, now: d.Now, stub: filepath.Join(d.Dir, "stub")}
	if b.now == nil {
		b.now = time.Now
	}
	var err error
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
	// Dockerfile is its path, relative to Context; "Dockerfile" where empty.
	Dockerfile string
	// Content is used in place of the Dockerfile where not nil.
	Content []byte
	// Tags are the names that the image gets.
	Tags []string
	// Target is the stage to build, by name or number; the last where empty.
	Target string
	// Args are the --build-arg values.
	Args map[string]string
	// Secrets are what RUN --mount=type=secret shows to a command, by ID. They
	// come into no layer and do not count for the cache.
	Secrets map[string][]byte
	// Labels are added to the image.
	Labels map[string]string
	// NoCache runs every instruction; Pull asks the registries for base images
	// even where they are stored.
	NoCache, Pull bool
	// Auth gives credentials for a registry; may be nil.
	Auth func(ref string) *image.Auth
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
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("process %q did not complete successfully: exit code: %d", e.Command, e.Code)
}

// ErrUnsupported is wrapped by errors about parts of the language that are
// refused.
var ErrUnsupported = errors.New("not supported")

// Build builds the image and returns it. An error in the Dockerfile or of one of
// its instructions is an *Error.
func (b *Builder) Build(ctx context.Context, req Request) (*image.Image, error) {
	if req.Progress == nil {
		req.Progress = silent{}
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
	file, err := readDockerfile(req)
	if err != nil {
		return nil, err
	}
	lease := b.deps.Images.Lease()
	defer lease.Release()
	r := &run{b: b, req: req, file: file, lease: lease, stages: map[int]*stage{}, usedArgs: map[string]bool{}}
	defer r.close()
	target, err := file.target(req.Target)
	if err != nil {
		return nil, err
	}
	if err := r.plan(target); err != nil {
		return nil, err
	}
	for _, i := range r.order {
		if err := r.buildStage(ctx, i); err != nil {
			return nil, err
		}
	}
	r.warnUnusedArgs()
	st := r.stages[target]
	for k, v := range req.Labels {
		if st.config.Config.Labels == nil {
			st.config.Config.Labels = map[string]string{}
		}
		st.config.Config.Labels[k] = v
	}
	img, err := b.deps.Images.Put(ctx, lease, req.Tags, st.finish(b.now()), st.layers, st.size)
	if err != nil {
		return nil, fmt.Errorf("store image: %w", err)
	}
	return img, nil
}

// stage is a stage under construction, or done: an image that is not stored.
type stage struct {
	config *v1.ConfigFile
	layers []v1.Descriptor
	size   int64
	// chain identifies the layers, created is when the newest was made.
	chain   string
	created time.Time

	args    []string // declared ARGs, "name=value", in order
	cmdSet  bool     // CMD was given in this stage
	history []v1.History
}

// image is the stage's layers as snapshots take them.
func (s *stage) image() *image.Image {
	return &image.Image{Config: s.config, DiffIDs: s.config.RootFS.DiffIDs, Layers: s.layers}
}

// finish completes the config.
func (s *stage) finish(now time.Time) *v1.ConfigFile {
	c := s.config.DeepCopy()
	created := s.created
	if created.IsZero() {
		created = now
	}
	c.Created = v1.Time{Time: created.UTC()}
	c.History = nil
	for _, h := range s.history {
		if h.Created.IsZero() {
			h.Created = c.Created
		}
		c.History = append(c.History, h)
	}
	return c
}

// defaultPath is the PATH of images that have none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// scratch is the stage of FROM scratch.
func scratch() *stage {
	return &stage{
		chain: "scratch",
		config: &v1.ConfigFile{
			Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
			Config: v1.Config{Env: []string{"PATH=" + defaultPath}, WorkingDir: "/"},
		},
	}
}

// from is the stage of FROM an image.
func from(img *image.Image) *stage {
	c := img.Config.DeepCopy()
	s := &stage{
		config: c, layers: append([]v1.Descriptor{}, img.Layers...), size: img.Size,
		chain: chainOf(img.DiffIDs), created: c.Created.Time, history: c.History,
	}
	c.Container, c.DockerVersion = "", ""
	if c.Config.WorkingDir == "" {
		c.Config.WorkingDir = "/"
	}
	if _, ok := lookupEnv(c.Config.Env, "PATH"); !ok {
		c.Config.Env = append(c.Config.Env, "PATH="+defaultPath)
	}
	return s
}

// next is a stage that goes on where s ended.
func (s *stage) next() *stage {
	return &stage{
		config: s.config.DeepCopy(), layers: append([]v1.Descriptor{}, s.layers...), size: s.size,
		chain: s.chain, created: s.created, history: append([]v1.History{}, s.history...),
	}
}

// add puts a layer on top; none where diffID is zero.
func (s *stage) add(l record) {
	if l.Created.After(s.created) {
		s.created = l.Created
	}
	if l.Layer == nil {
		return
	}
	s.config.RootFS.DiffIDs = append(s.config.RootFS.DiffIDs, l.Layer.Digest)
	s.layers = append(s.layers, *l.Layer)
	s.size += l.Layer.Size
	s.chain = chainOf(s.config.RootFS.DiffIDs)
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
