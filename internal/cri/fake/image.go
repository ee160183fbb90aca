package fake

import (
	"context"
	"fmt"
	"strings"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var _ internalapi.ImageManagerService = (*Runtime)(nil)

func (r *Runtime) findImage(name string) *runtimeapi.Image {
	if i := r.images[name]; i != nil {
		return i
	}
	for n, i := range r.images {
		if i.Id == name || n == strings.TrimSuffix(name, ":latest") {
			return i
		}
	}
	return nil
}

// ListImages implements ImageManagerService.
func (r *Runtime) ListImages(context.Context, *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*runtimeapi.Image
	for _, i := range r.images {
		out = append(out, i)
	}
	return out, nil
}

// ImageStatus implements ImageManagerService.
func (r *Runtime) ImageStatus(ctx context.Context, s *runtimeapi.ImageSpec, _ bool) (*runtimeapi.ImageStatusResponse, error) {
	after, err := r.enter(ctx, "ImageStatus", s.Image, false)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.ImageStatusResponse{Image: r.findImage(s.Image)}, after(nil)
}

// PullImage implements ImageManagerService.
func (r *Runtime) PullImage(ctx context.Context, s *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	after, err := r.enter(ctx, "PullImage", s.Image, true)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.pullable[s.Image] {
		return "", fmt.Errorf("failed to resolve reference %q: not found", s.Image)
	}
	if user := r.private[s.Image]; user != "" && auth.GetUsername() != user {
		return "", fmt.Errorf("failed to resolve reference %q: pull access denied", s.Image)
	}
	return r.addImage(s.Image).Id, after(nil)
}

// RemoveImage implements ImageManagerService.
func (r *Runtime) RemoveImage(ctx context.Context, s *runtimeapi.ImageSpec) error {
	after, err := r.enter(ctx, "RemoveImage", s.Image, true)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, i := range r.images {
		if n == s.Image || i.Id == s.Image {
			delete(r.images, n)
		}
	}
	return after(nil)
}

// ImageFsInfo implements ImageManagerService.
func (r *Runtime) ImageFsInfo(context.Context) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}
