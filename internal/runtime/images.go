package runtime

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/runtime/image"
)

// imageError gives an error of the image store its code.
func imageError(ref string, err error) error {
	switch {
	case errors.Is(err, image.ErrNotFound):
		return status.Errorf(codes.NotFound, "image %q: not found", ref)
	case errors.Is(err, image.ErrInvalidName):
		return status.Errorf(codes.InvalidArgument, "failed to parse image name %q: %v", ref, err)
	case errors.Is(err, image.ErrInUse):
		return status.Errorf(codes.FailedPrecondition, "image %q: %v", ref, err)
	}
	return err
}

// pullError gives an error of a pull the code that containerd gives it; its text
// is what users see of a pod whose image cannot be pulled.
func pullError(ref string, err error) error {
	var failed *image.PullError
	switch {
	case !errors.As(err, &failed):
		return imageError(ref, err)
	case errors.Is(err, image.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	return status.Error(codes.Unknown, err.Error())
}

func (r *Runtime) resolveImage(ctx context.Context, spec *runtimeapi.ImageSpec) (*image.Image, error) {
	ref := spec.GetImage()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "image: required")
	}
	img, err := r.Images.Resolve(ctx, ref)
	if err != nil {
		return nil, imageError(ref, err)
	}
	return img, nil
}

// criImage tells of an image. One that was imported or built here under a name is pinned:
// nothing would bring it back.
func criImage(i *image.Image) *runtimeapi.Image {
	pinned := i.Pinned || !i.Remote && len(i.RepoTags) > 0
	out := &runtimeapi.Image{
		Id: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests, Size: uint64(max(i.Size, 0)), Pinned: pinned,
		Spec: &runtimeapi.ImageSpec{Image: i.ID},
	}
	if i.Config == nil {
		return out
	}
	user, _, _ := strings.Cut(i.Config.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtimeapi.Int64Value{Value: uid}
	} else if user != "" {
		out.Username = user
	} else {
		out.Uid = &runtimeapi.Int64Value{}
	}
	return out
}

// ListImages lists the store's images.
func (r *Runtime) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	if ref := req.GetFilter().GetImage().GetImage(); ref != "" {
		img, err := r.Images.Resolve(ctx, ref)
		if errors.Is(err, image.ErrNotFound) {
			return &runtimeapi.ListImagesResponse{}, nil
		}
		if err != nil {
			return nil, imageError(ref, err)
		}
		return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{criImage(img)}}, nil
	}
	l, err := r.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.ListImagesResponse{}
	for _, i := range l {
		out.Images = append(out.Images, criImage(i))
	}
	return out, nil
}

// StreamImages is ListImages without a limit on the answer's size.
func (r *Runtime) StreamImages(req *runtimeapi.StreamImagesRequest, st grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	l, err := r.ListImages(st.Context(), &runtimeapi.ListImagesRequest{Filter: req.GetFilter()})
	if err != nil {
		return err
	}
	for _, i := range l.GetImages() {
		if err := st.Send(&runtimeapi.StreamImagesResponse{Images: []*runtimeapi.Image{i}}); err != nil {
			return err
		}
	}
	return nil
}

// ImageStatus returns an image, or none.
func (r *Runtime) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := r.resolveImage(ctx, req.GetImage())
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	out := criImage(img)
	if img.GivenHere(req.GetImage().GetImage()) {
		out.Spec.Annotations = map[string]string{cri.AnnotationPreloaded: "true"}
	}
	return &runtimeapi.ImageStatusResponse{Image: out}, nil
}

// PullImage fetches an image from its registry.
func (r *Runtime) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	var auth *Auth
	if a := req.GetAuth(); a != nil {
		auth = &Auth{
			Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(),
			IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(), ServerAddress: a.GetServerAddress(),
		}
	}
	img, err := r.Images.Pull(ctx, ref, auth)
	if err != nil {
		return nil, pullError(ref, err)
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// RemoveImage removes an image; one that is not there is no error.
func (r *Runtime) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	if err := r.Images.Remove(ctx, ref); err != nil && !errors.Is(err, image.ErrNotFound) {
		return nil, imageError(ref, err)
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells what images take on disk.
func (r *Runtime) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	dir, bytes, inodes, err := r.Images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	u := []*runtimeapi.FilesystemUsage{{
		Timestamp: r.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: dir},
		UsedBytes: &runtimeapi.UInt64Value{Value: bytes}, InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
	}}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: u, ContainerFilesystems: u}, nil
}
