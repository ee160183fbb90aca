// Package cri is what the node half and container runtimes share: the services
// that a kubelet consumes, reached inside the process (InProcess) or over a
// socket (Dial), behind the same interfaces. Package critest holds the contract
// that every runtime must keep.
//
// Messages that come from a service are shared with it and must not be modified.
package cri

import (
	"context"
	"errors"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
)

// AnnotationAttached, with the value "true", stands in the status of a container that
// is created, not started, and has a client attached already: skiff's runtime takes
// such clients, who see what the process writes from its first byte on. Other
// runtimes refuse them.
const AnnotationAttached = "cri.skiff.io/attached"

// AnnotationNetwork, with the value NetworkNone in a sandbox's configuration, asks
// skiff's runtime for a network namespace that nothing but the loopback device is in.
// The sandbox's status has no network then.
const (
	AnnotationNetwork = "cri.skiff.io/network"
	NetworkNone       = "none"
)

// AnnotationKeep, with the value "true" in a container's configuration, tells skiff's
// runtime that another container may begin with what this one writes (AnnotationRootfs):
// what it has synced outlives a crash of the machine, and the container's record a
// reboot.
const AnnotationKeep = "cri.skiff.io/keep"

// AnnotationRootfs in a container's configuration is the ID of one that has ended: the
// new container begins with all that it wrote, and it loses that. It must be of the same
// pod, or held for it by the runtime's administrator; otherwise, and where it runs, the
// container is refused with FailedPrecondition. Where it is not there any more, or was
// made of another image, the container begins like any other.
const AnnotationRootfs = "cri.skiff.io/rootfs"

// AnnotationPreloaded, with the value "true" in the Spec of an image's status, says that
// the name that was asked for was given to the image here: somebody imported, built,
// tagged or pulled it by hand.
const AnnotationPreloaded = "cri.skiff.io/preloaded"

// RuntimeService is CRI's runtime half as a kubelet calls it.
type RuntimeService = internalapi.RuntimeService

// ImageService is CRI's image half as a kubelet calls it.
type ImageService = internalapi.ImageManagerService

// Server is a runtime that implements both halves.
type Server interface {
	runtimeapi.RuntimeServiceServer
	runtimeapi.ImageServiceServer
}

// Services are both halves of one runtime.
type Services struct {
	Runtime RuntimeService
	Images  ImageService
}

// Close ends the connections of both.
func (s Services) Close(ctx context.Context) error {
	return errors.Join(s.Runtime.Close(ctx), s.Images.Close(ctx))
}

// ErrCommandTimedOut is what ExecSync returns when its time is over, from either
// kind of service.
var ErrCommandTimedOut = criclient.ErrCommandTimedOut

// Dial connects to the runtime at an endpoint ("unix:///run/..."). timeout is
// the time of one request.
func Dial(ctx context.Context, endpoint string, timeout time.Duration) (Services, error) {
	rt, err := criclient.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(timeout).
		WithTracerProvider(nil).WithUseStreaming(true).Build(ctx)
	if err != nil {
		return Services{}, err
	}
	im, err := criclient.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(timeout).
		WithTracerProvider(nil).WithUseStreaming(true).Build(ctx)
	if err != nil {
		return Services{}, errors.Join(err, rt.Close(ctx))
	}
	return Services{rt, im}, nil
}
