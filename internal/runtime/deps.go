package runtime

import (
	"context"
	"net/netip"

	"skiff/internal/runtime/image"
	"skiff/internal/runtime/snapshot"
)

// Network gives sandboxes their addresses. network/pod and network/cni
// implement it; the app passes one in.
type Network interface {
	// Attach connects the network namespace at NetNS to the pod network. A
	// second call for the same ID finds the first one's work and returns the
	// same addresses.
	Attach(ctx context.Context, s NetworkSandbox) (NetworkResult, error)
	// Detach releases links and addresses. It works when the namespace is gone,
	// and a second time.
	Detach(ctx context.Context, s NetworkSandbox) error
	// Ready tells why pods cannot be attached now; nil when they can. It is the
	// CRI condition NetworkReady.
	Ready() error
}

// NetworkSandbox names a sandbox to the network.
type NetworkSandbox struct {
	ID, Namespace, Name, UID string
	// NetNS is the path of the network namespace, /proc/<pid>/ns/net say.
	NetNS string
	// HostPorts to map to the pod.
	HostPorts []HostPort
}

// HostPort maps a port of the host to a sandbox.
type HostPort struct {
	Protocol      string // TCP, UDP, SCTP
	HostIP        netip.Addr
	HostPort      uint16
	ContainerPort uint16
}

// NetworkResult is what a sandbox got: its addresses, the primary one first.
type NetworkResult struct {
	IPs []netip.Addr
}

// Images is what the runtime needs of the image store (image.Store has it).
type Images interface {
	// Resolve finds an image by name, digest, ID or unique ID prefix;
	// image.ErrNotFound, image.ErrInvalidName.
	Resolve(ctx context.Context, ref string) (*image.Image, error)
	List(ctx context.Context) ([]*image.Image, error)
	// Pull fetches ref from its registry, with the credentials given, unless
	// already complete, and returns the image.
	Pull(ctx context.Context, ref string, auth *Auth) (*image.Image, error)
	Remove(ctx context.Context, ref string) error
	// Usage returns bytes and inodes used by the store and the directory they
	// are in.
	Usage(ctx context.Context) (dir string, bytes, inodes uint64, err error)
}

// Auth are a registry's credentials, as CRI's AuthConfig has them.
type Auth = image.Auth

// Snapshots is what the runtime needs of the snapshotter (snapshot.Store has
// it). Layers are held by a lease from Prepare to Remove, so that garbage
// collection never takes them from under a container.
type Snapshots interface {
	// Prepare unpacks the image's layers that are not yet and makes a writable
	// rootfs under key (a container ID). A second call with the same key returns
	// the same.
	Prepare(ctx context.Context, key string, img *image.Image) (snapshot.Rootfs, error)
	// Inherit returns the rootfs that the key to has once Move has given it what is
	// under the key from, with the layers of img; snapshot.ErrNotFound,
	// snapshot.ErrOtherImage.
	Inherit(ctx context.Context, from, to string, img *image.Image) (snapshot.Rootfs, error)
	// Move gives all that is under the key from to the key to, at once.
	Move(ctx context.Context, from, to string) error
	// Remove forgets key and deletes what the container wrote. A key that is not
	// there is no error.
	Remove(ctx context.Context, key string) error
	// Usage returns bytes and inodes that the container wrote.
	Usage(ctx context.Context, key string) (bytes, inodes uint64, err error)
	// Keys lists what exists, for adoption and garbage collection.
	Keys(ctx context.Context) ([]string, error)
}
