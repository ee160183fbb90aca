package app

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/admin"
	"skiff/internal/host"
	"skiff/internal/runtime"
	"skiff/internal/runtime/build"
	"skiff/internal/runtime/image"
	"skiff/internal/runtime/image/registry"
	"skiff/internal/runtime/programs"
	"skiff/internal/runtime/snapshot"
)

// imageHandler serves /images and /build.
type imageHandler struct {
	images  *image.Store
	builder *build.Builder
	// users tells which containers need an image, by its ID.
	users func() (map[string][]runtime.ImageUser, error)
}

func (h *imageHandler) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /images", h.list)
	mux.HandleFunc("DELETE /images", h.remove)
	mux.HandleFunc("POST /images/import", h.importTar)
	mux.HandleFunc("GET /images/export", h.export)
	mux.HandleFunc("POST /images/tag", h.tag)
	mux.HandleFunc("POST /images/pull", h.pull)
	mux.HandleFunc("POST /images/push", h.push)
	mux.HandleFunc("POST /images/prune", h.prune)
	mux.HandleFunc("GET /images/inspect", h.inspect)
	mux.HandleFunc("GET /images/history", h.history)
	mux.HandleFunc("POST /build", h.build)
	return mux
}

func describe(i *image.Image) admin.Image {
	out := admin.Image{ID: i.ID, Names: i.RepoTags, Digests: i.RepoDigests, Size: i.Size}
	if i.Config != nil {
		out.Created, out.Labels = i.Config.Created.Time, i.Config.Config.Labels
		out.Platform = image.PlatformOf(i.Config).String()
	}
	return out
}

func imageError(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch {
	case errors.Is(err, image.ErrNotFound):
		code = http.StatusNotFound
	case errors.Is(err, image.ErrInvalidName):
		code = http.StatusBadRequest
	case errors.Is(err, image.ErrInUse):
		code = http.StatusConflict
	}
	http.Error(w, err.Error(), code)
}

func sendJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// A client that is gone needs no answer.
	_ = json.NewEncoder(w).Encode(v)
}

func (h *imageHandler) list(w http.ResponseWriter, r *http.Request) {
	all, err := h.images.List(r.Context())
	if err != nil {
		imageError(w, err)
		return
	}
	users, err := h.users()
	if err != nil {
		imageError(w, err)
		return
	}
	out := make([]admin.Image, 0, len(all))
	for _, i := range all {
		d := describe(i)
		for _, u := range users[i.ID] {
			d.Users = append(d.Users, describeUser(u))
		}
		out = append(out, d)
	}
	sendJSON(w, out)
}

func (h *imageHandler) tag(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if err := h.images.Tag(r.Context(), q.Get("ref"), q.Get("name")); err != nil {
		imageError(w, err)
	}
}

func (h *imageHandler) importTar(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	made, err := h.images.Import(r.Context(), r.Body, image.ImportOptions{
		Names: q["name"], RootFS: q.Get("rootfs") == "true",
		Config: v1.Config{Entrypoint: q["entrypoint"], Cmd: q["cmd"], Env: q["env"], WorkingDir: q.Get("workdir"), User: q.Get("user")},
	})
	if err != nil {
		imageError(w, err)
		return
	}
	out := make([]admin.Image, 0, len(made))
	for _, i := range made {
		out = append(out, describe(i))
	}
	sendJSON(w, out)
}

func (h *imageHandler) export(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	for _, ref := range q["ref"] {
		if _, err := h.images.Resolve(r.Context(), ref); err != nil {
			imageError(w, err)
			return
		}
	}
	w.Header().Set("Trailer", "Skiff-Error")
	w.Header().Set("Content-Type", "application/x-tar")
	format := image.Format(q.Get("format"))
	if format == "" {
		format = image.FormatDocker
	}
	if err := h.images.Export(r.Context(), w, q["ref"], format); err != nil {
		w.Header().Set("Skiff-Error", err.Error())
	}
}

// buildStream sends progress as lines of JSON.
type buildStream struct {
	mu  sync.Mutex
	enc *json.Encoder
	f   http.Flusher
}

func (s *buildStream) send(e admin.BuildEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The build goes on though its client is gone; its context tells it.
	_ = s.enc.Encode(e)
	if s.f != nil {
		s.f.Flush()
	}
}

func (s *buildStream) Start(n, total int, name string) {
	s.send(admin.BuildEvent{Start: &admin.BuildStart{N: n, Total: total, Name: name}})
}

func (s *buildStream) Output(n int, data []byte) {
	s.send(admin.BuildEvent{Output: &admin.BuildOutput{N: n, Data: data}})
}

func (s *buildStream) Done(n int, cached bool, err error) {
	d := &admin.BuildDone{N: n, Cached: cached}
	if err != nil {
		d.Error = err.Error()
	}
	s.send(admin.BuildEvent{Done: d})
}

func (s *buildStream) Warn(file string, line int, text string) {
	s.send(admin.BuildEvent{Warn: &admin.BuildWarn{File: file, Line: line, Text: text}})
}

func (h *imageHandler) build(w http.ResponseWriter, r *http.Request) {
	var req admin.BuildRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, "build request: "+err.Error(), http.StatusBadRequest)
		return
	}
	f, _ := w.(http.Flusher)
	s := &buildStream{enc: json.NewEncoder(w), f: f}
	made, err := h.builder.Build(r.Context(), build.Request{
		Context: req.Context, Dockerfile: req.Dockerfile, Content: req.Content, Tags: req.Tags, Target: req.Target,
		Args: req.Args, Labels: req.Labels, NoCache: req.NoCache, Pull: req.Pull, Progress: s,
	})
	if err != nil {
		s.send(admin.BuildEvent{Error: err.Error()})
		return
	}
	i := describe(made)
	s.send(admin.BuildEvent{Image: &i})
}

// images is the image half of a process.
type images struct {
	store     *image.Store
	snapshots *snapshot.Store
	handler   *imageHandler
}

func openImages(i host.Instance, log *slog.Logger) (*images, error) {
	// The image store may be opened without anything having been started here.
	c, err := LoadConfig(configPath(i))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	st, err := image.Open(i.Data("images"), image.Options{Log: log, Registry: registry.New(registryDeps(c))})
	if err != nil {
		return nil, err
	}
	sn, err := snapshot.Open(i.Data("snapshots"), st)
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	b, err := build.New(build.Deps{Images: st, Snapshots: sn, Executor: executor(i), Dir: i.Data("build")})
	if err != nil {
		return nil, errors.Join(err, sn.Close(), st.Close())
	}
	h := &imageHandler{images: st, builder: b, users: func() (map[string][]runtime.ImageUser, error) { return runtime.ImageUsers(i) }}
	return &images{store: st, snapshots: sn, handler: h}, nil
}

// dockerConfigs are where the node's own registry credentials may be: upstream's
// kubelet looks below its root, and where docker keeps those of root.
func dockerConfigs(i host.Instance) []string {
	out := []string{i.Data("kubelet", "config.json")}
	if home, err := os.UserHomeDir(); err == nil {
		out = append(out, filepath.Join(home, ".docker", "config.json"))
	}
	return append(out, "/.docker/config.json")
}

// registryDeps are how registries are reached, as configured.
func registryDeps(c Config) registry.Deps {
	return registry.Deps{
		Mirrors: c.RegistryMirrors, Insecure: c.InsecureRegistries,
		Certs: []string{"/etc/docker/certs.d", "/etc/containers/certs.d"},
	}
}

// executor runs the commands of builds: with the default filter of containers,
// and below a cgroup of the instance.
func executor(i host.Instance) *build.NamespaceExecutor {
	starter := func() (string, error) {
		return programs.UnpackOne(programs.Embedded(), i.Data("bin"), "skiff-start")
	}
	return &build.NamespaceExecutor{
		Filter: build.DefaultFilter(starter, i.Run("runtime", "filters")),
		Cgroup: filepath.Join(i.CgroupParent, "build"),
	}
}

func (im *images) close() error { return errors.Join(im.snapshots.Close(), im.store.Close()) }
