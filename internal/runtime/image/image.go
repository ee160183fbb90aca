// Package image is the content-addressed image store of the runtime: blobs by
// digest, images by name, import and export of docker and OCI archives and of
// root file system tars, pull from registries.
package image

import (
	"errors"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Image is one stored image. It must not be modified.
type Image struct {
	// ID is the digest of the image's config, "sha256:...".
	ID string
	// RepoTags are its names with tags, canonical ("docker.io/library/web:1").
	RepoTags []string
	// RepoDigests are its names with manifest digests.
	RepoDigests []string
	// Size of its layers on disk, bytes, unpacked.
	Size int64
	// Config is the OCI image config: user, env, entrypoint, command, working
	// directory, stop signal, volumes, exposed ports, history.
	Config *v1.ConfigFile
	// DiffIDs are the layers, lowest first, by the digest of their uncompressed
	// tar.
	DiffIDs []v1.Hash
	// Pinned images are never garbage collected.
	Pinned bool
}

// Errors of the image store.
var (
	ErrNotFound    = errors.New("image not found")
	ErrInvalidName = errors.New("invalid reference format")
	ErrInUse       = errors.New("image is in use")
)

// Auth are a registry's credentials (CRI's AuthConfig).
type Auth struct {
	Username, Password, Auth, IdentityToken, RegistryToken, ServerAddress string
}
