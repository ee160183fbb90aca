package app

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/admin"
	"skiff/internal/host"
	"skiff/internal/runtime"
	"skiff/internal/runtime/build"
	"skiff/internal/runtime/image"
	"skiff/internal/runtime/image/registry"
	"skiff/internal/runtime/snapshot"
)

// imageHandler serves /images and /build.
type imageHandler struct {
	images  *image.Store
	builder *build.Builder
	// users tells which containers need an image, by its ID.
	users func() (map[string][]runtime.ImageUser, error)
	asks  asks
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
	mux.HandleFunc("POST /build/answers/{id}", h.asks.answer)
	mux.HandleFunc("POST /build/prune", h.pruneBuild)
	return mux
}

func describe(i *image.Image) admin.Image {
	out := admin.Image{ID: i.ID, Digest: i.Digest.String(), Names: i.RepoTags, Digests: i.RepoDigests, Size: i.Size}
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

func (im *images) close() error { return errors.Join(im.snapshots.Close(), im.store.Close()) }
