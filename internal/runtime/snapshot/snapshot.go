// Package snapshot keeps unpacked layers, shared between images, and gives each
// container a writable view of its image with overlayfs.
package snapshot

// Rootfs is a container's root file system: an overlay that the caller mounts
// (once, in the mount namespace it wants) and unmounts.
type Rootfs struct {
	// Lower are the unpacked layers' directories, uppermost first.
	Lower []string
	// Upper and Work are the writable directory and overlay's work directory;
	// both are empty for a read-only view.
	Upper, Work string
}
