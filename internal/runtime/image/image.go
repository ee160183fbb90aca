// Package image is the content-addressed image store of the runtime: blobs by
// digest, images by name; import and export of docker and OCI archives, OCI
// layouts and root file system tars; pull from registries.
//
// # On disk
//
// The directory is an OCI image layout that other programs can read:
//
//	oci-layout, index.json      names and manifests; index.json is replaced whole
//	blobs/sha256/<hex>          manifests, configs, layers; written once, read only
//	ingest/                     blobs under way; whatever is here at Open is removed
//	refs/<owner>/<name>.json    records that keep blobs without an image ("keep")
//	lock                        held by the one process that has the store open
//
// A blob is hashed while it is written to ingest, synced, and renamed to its
// digest, so that a blob that can be seen is whole. An image can be seen when
// index.json names it, which is written (synced, renamed) after all its blobs. A
// process killed anywhere in between leaves blobs that nothing names, which the
// next Collect removes.
//
// # Sharing
//
// One process owns the store: Open locks it and a second one gets ErrLocked
// with the owner's process id. Within the process every method may be called
// concurrently.
//
// # Garbage collection
//
// Collect deletes blobs that no image, no record below refs and no live lease
// names. Who writes or reads blobs that nothing names yet adds them to a Lease
// first; a lease ends by Release or, should its holder forget, by itself.
// Leases live in memory: they end with the process, and so does the work they
// protect.
package image

import (
	"errors"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Image is one stored image. It must not be modified.
type Image struct {
	// ID is the digest of the image's config, "sha256:...".
	ID string
	// Digest is the digest of its manifest.
	Digest v1.Hash
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
	// Layers are the blobs of the layers, in the order of DiffIDs.
	Layers []v1.Descriptor
	// Pinned images are never garbage collected.
	Pinned bool
	// Remote images came from a registry, and can be had from there again: not those
	// that were imported or built here.
	Remote bool
	// given are the names, canonical, that were given here: see GivenHere.
	given []string
}

// GivenHere tells whether the image has a name, canonical or not, because somebody
// imported, built, tagged or pulled it under that by hand, and not because a pod did.
func (i *Image) GivenHere(name string) bool {
	n, err := ParseName(name)
	return err == nil && contains(i.given, n.String())
}

// Errors of the image store.
var (
	ErrNotFound     = errors.New("image not found")
	ErrInvalidName  = errors.New("invalid reference format")
	ErrInUse        = errors.New("image is in use")
	ErrLocked       = errors.New("image store is in use by another process")
	ErrUnauthorized = errors.New("authorization failed")
	// ErrUnavailable: the registry did not answer.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrCorrupt: content does not have the digest it must have, or an archive
	// is not what it says.
	ErrCorrupt = errors.New("corrupt content")
	// ErrNoRoom: the image is larger than what is free on the disk.
	ErrNoRoom = errors.New("no space left for the image")
	// ErrFormat: what was given is no archive that can be imported.
	ErrFormat = errors.New("unknown archive format")
)

// Auth are a registry's credentials (CRI's AuthConfig).
type Auth struct {
	Username, Password, Auth, IdentityToken, RegistryToken, ServerAddress string
}
