package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/apiserver"
)

// localVolumes makes and removes the directories of local volumes: the kubelet of
// the node does it.
type localVolumes struct{ nodes apiserver.NodeConnector }

// localVolumeTimeout bounds one request; a large directory takes time to remove.
const localVolumeTimeout = 2 * time.Minute

// Make implements controller.LocalVolumes.
func (l localVolumes) Make(ctx context.Context, node *corev1.Node, name string) (string, error) {
	return l.ask(ctx, http.MethodPut, node, name)
}

// Remove implements controller.LocalVolumes.
func (l localVolumes) Remove(ctx context.Context, node *corev1.Node, name string) error {
	_, err := l.ask(ctx, http.MethodDelete, node, name)
	return err
}

func (l localVolumes) ask(ctx context.Context, method string, node *corev1.Node, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, localVolumeTimeout)
	defer cancel()
	u, rt, err := l.nodes.Kubelet(ctx, node)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, method, u.JoinPath("localVolumes", name).String(), nil)
	if err != nil {
		return "", err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(body))
	switch resp.StatusCode {
	case http.StatusOK:
		return text, nil
	case http.StatusNotFound:
		return "", fmt.Errorf("the kubelet of node %q has no local volumes", node.Name)
	}
	return "", errors.New(text)
}
