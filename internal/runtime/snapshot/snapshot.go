// Package snapshot keeps unpacked layers, shared between images, and gives each
// container a writable view of its image with overlayfs.
//
// # On disk
//
//	layers/<name>        a layer, unpacked in overlayfs's own form: whiteouts are
//	                     character devices 0/0, opaque directories have the
//	                     attribute trusted.overlay.opaque
//	layers/<name>.json   its record; a layer without one is not complete
//	keys/<key>/          a container's fs (upper), work, layers.json
//	empty/               the lower directory of an image without layers
//	tmp/                 under way; whatever is here at Open is removed
//	lock                 held by the one process that has the store open
//
// A layer is unpacked below tmp, renamed, and then recorded. Layers are a cache
// of blobs: one that was written before a reboot and never synced is unpacked
// anew, since its files may have been lost.
//
// # What a layer's directory depends on
//
// There is one directory per diff ID, so that images share a layer whatever is
// below it. Some layers cannot be unpacked alone: their tar leaves out parent
// directories (whose owner and mode the layer below knows), goes through a
// symbolic link of a lower layer, or has a hard link to a file there. Such a
// layer gets one directory per chain ID.
//
// # Untrusted tars
//
// All paths are resolved inside the layer's directory by the kernel
// (openat2, RESOLVE_IN_ROOT): absolute names and links lead into it. A name
// that leaves it by ".." is refused. Attributes that overlayfs or the security
// modules of the host would believe are not taken from a tar; security.capability,
// user.* and POSIX ACLs are. Device nodes are made where the kernel permits;
// what may be opened in a container is its device cgroup's business.
//
// # Many layers
//
// Paths of layers are short (a dozen hex digits below one directory). Rootfs.Mount
// and Rootfs.Open hand layers to the kernel one by one where it can
// (lowerdir+, Linux 6.7), and otherwise relative to a descriptor of their
// directory, so that 120 layers fit the page that mount(2) copies.
package snapshot

import "errors"

// Rootfs is a container's root file system: an overlay that the caller mounts
// (once, in the mount namespace it wants) and unmounts.
type Rootfs struct {
	// Lower are the unpacked layers' directories, uppermost first.
	Lower []string
	// Upper and Work are the writable directory and overlay's work directory;
	// both are empty for a read-only view.
	Upper, Work string
}

// Errors of the snapshotter.
var (
	// ErrUnsafe: a layer's tar tries to leave its directory.
	ErrUnsafe = errors.New("unsafe layer")
	ErrLocked = errors.New("snapshot store is in use by another process")
	// ErrInvalidKey: a key is empty, longer than 128 bytes, starts with a dot or
	// has a slash.
	ErrInvalidKey = errors.New("invalid snapshot key")
	ErrNotFound   = errors.New("snapshot not found")
	// ErrOtherImage: what is under a key was written over the layers of another image.
	ErrOtherImage = errors.New("snapshot of another image")
)
