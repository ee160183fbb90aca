package app

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/admin"
	"skiff/internal/runtime"
	"skiff/internal/runtime/image"
)

// inspected is an image in the form of docker's API (Engine API: ImageInspect).
type inspected struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Comment      string
	Created      time.Time
	Author       string
	Config       v1.Config
	Architecture string
	Variant      string `json:",omitempty"`
	OS           string `json:"Os"`
	Size         int64
	RootFS       struct {
		Type   string
		Layers []v1.Hash
	}
	Descriptor v1.Descriptor
	// Layers are the blobs; docker has no such field.
	Layers []v1.Descriptor
	// UsedBy are the containers that need the image; docker has no such field.
	UsedBy []string `json:",omitempty"`
}

func describeUser(u runtime.ImageUser) string {
	if u.Pod != "" {
		return fmt.Sprintf("container %s of pod %s", u.Name, u.Pod)
	}
	id := u.Container
	if len(id) > 12 {
		id = id[:12]
	}
	if u.Name == "" {
		return "container " + id
	}
	return fmt.Sprintf("container %s (%s)", u.Name, id)
}

func (h *imageHandler) inspect(w http.ResponseWriter, r *http.Request) {
	img, err := h.images.Resolve(r.Context(), r.URL.Query().Get("ref"))
	if err != nil {
		imageError(w, err)
		return
	}
	users, err := h.users()
	if err != nil {
		imageError(w, err)
		return
	}
	c := img.Config
	out := inspected{
		ID: img.ID, RepoTags: familiar(img.RepoTags), RepoDigests: familiar(img.RepoDigests), Created: c.Created.Time, Author: c.Author,
		Config: c.Config, Architecture: c.Architecture, Variant: c.Variant, OS: c.OS, Size: img.Size, Layers: img.Layers,
	}
	if n := len(c.History); n > 0 {
		out.Comment = c.History[n-1].Comment
	}
	out.RootFS.Type, out.RootFS.Layers = c.RootFS.Type, img.DiffIDs
	if raw, err := h.images.ReadBlob(img.Digest); err == nil {
		out.Descriptor = v1.Descriptor{MediaType: image.ManifestType(raw), Digest: img.Digest, Size: int64(len(raw))}
	}
	for _, u := range users[img.ID] {
		out.UsedBy = append(out.UsedBy, describeUser(u))
	}
	sendJSON(w, out)
}

// familiar are names as people write them; never nil, as docker's are not.
func familiar(names []string) []string {
	out := make([]string, 0, len(names))
	for _, full := range names {
		if n, err := image.ParseName(full); err == nil {
			full = n.Familiar()
		}
		out = append(out, full)
	}
	return out
}

func (h *imageHandler) history(w http.ResponseWriter, r *http.Request) {
	img, err := h.images.Resolve(r.Context(), r.URL.Query().Get("ref"))
	if err != nil {
		imageError(w, err)
		return
	}
	steps, err := h.images.History(r.Context(), img)
	if err != nil {
		imageError(w, err)
		return
	}
	out := make([]admin.Step, 0, len(steps))
	for _, s := range steps {
		out = append(out, admin.Step{Created: s.Created, CreatedBy: s.CreatedBy, Comment: s.Comment, Size: s.Size})
	}
	sendJSON(w, out)
}

func (h *imageHandler) remove(w http.ResponseWriter, r *http.Request) {
	ref := r.URL.Query().Get("ref")
	img, err := h.images.Resolve(r.Context(), ref)
	if err != nil {
		imageError(w, err)
		return
	}
	before := h.images.Named(img.ID)
	// A name more or less hurts nobody; the last one takes the image along.
	last := takesLast(ref, before)
	if last && r.URL.Query().Get("force") != "true" {
		users, err := h.users()
		if err != nil {
			imageError(w, err)
			return
		}
		if of := users[img.ID]; len(of) > 0 {
			names := make([]string, 0, len(of))
			for _, u := range of {
				names = append(names, describeUser(u))
			}
			imageError(w, fmt.Errorf("unable to remove %q (must force): %w by %s", ref, image.ErrInUse, strings.Join(names, ", ")))
			return
		}
	}
	if last {
		ref = img.ID
	}
	if err := h.images.Remove(r.Context(), ref); err != nil {
		imageError(w, err)
		return
	}
	var out admin.Removed
	after := h.images.Named(img.ID)
	for _, n := range before {
		if !slices.Contains(after, n) {
			out.Untagged = append(out.Untagged, n)
		}
	}
	if _, err := h.images.Resolve(r.Context(), img.ID); err != nil {
		out.Deleted = []string{img.ID}
	}
	sendJSON(w, out)
}

// takesLast tells whether to remove ref leaves an image of these names without
// any: what is no name means the image with all of them.
func takesLast(ref string, names []string) bool {
	n, err := image.ParseName(ref)
	if err != nil || n.Digest == "" && !slices.Contains(names, n.String()) {
		return true
	}
	return !slices.ContainsFunc(names, func(name string) bool {
		// The digests of a repository go with its tag, and its tags with the digest.
		other, err := image.ParseName(name)
		sameImage := other.Repository() == n.Repository() && (n.Digest != "" || other.Digest != "")
		return err == nil && name != n.String() && !sameImage
	})
}

func (h *imageHandler) prune(w http.ResponseWriter, r *http.Request) {
	var req admin.PruneRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, "request: "+err.Error(), http.StatusBadRequest)
		return
	}
	users, err := h.users()
	if err != nil {
		imageError(w, err)
		return
	}
	_, before, _, err := h.images.Usage(r.Context())
	if err != nil {
		imageError(w, err)
		return
	}
	gone, err := h.images.Prune(r.Context(), func(i *image.Image) bool { return len(users[i.ID]) == 0 && prunable(i, req) })
	if err != nil {
		imageError(w, err)
		return
	}
	out := admin.Removed{}
	for _, i := range gone {
		out.Untagged = append(out.Untagged, i.RepoTags...)
		out.Deleted = append(out.Deleted, i.ID)
	}
	slices.Sort(out.Untagged)
	slices.Sort(out.Deleted)
	if _, after, _, err := h.images.Usage(r.Context()); err == nil && after < before {
		out.Reclaimed = before - after
	}
	sendJSON(w, out)
}

// prunable tells whether a request means an image.
func prunable(i *image.Image, req admin.PruneRequest) bool {
	if !req.All && !i.Dangling() {
		return false
	}
	if !req.Until.IsZero() && !i.Config.Created.Time.Before(req.Until) {
		return false
	}
	has := func(want string) bool {
		k, v, valued := strings.Cut(want, "=")
		got, ok := i.Config.Config.Labels[k]
		return ok && (!valued || got == v)
	}
	for _, l := range req.Labels {
		if !has(l) {
			return false
		}
	}
	return !slices.ContainsFunc(req.NoLabels, has)
}
