package runtime

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"skiff/internal/cri"
	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/startspec"
)

// sizeTime is how long a client that attaches before the start has to tell the size
// of its terminal.
const sizeTime = 2 * time.Second

// firstClient is attached to a container that is not started yet. The files are the
// ends that the process's output is written to.
type firstClient struct {
	out, err *os.File
	size     *remotecommand.TerminalSize
}

func (f *firstClient) close() {
	if f == nil {
		return
	}
	for _, file := range []*os.File{f.out, f.err} {
		if file != nil {
			file.Close()
		}
	}
}

// into has a start connect the client, and give a terminal its size.
func (f *firstClient) into(c *container, start *pod.Start) error {
	if f == nil {
		return nil
	}
	start.Stdout, start.Stderr = f.out, f.err
	if f.size == nil {
		return nil
	}
	file := filepath.Join(c.dir, startspec.File)
	var spec startspec.Spec
	err := startspec.Read(file, &spec)
	if err == nil && spec.OCI != nil && spec.OCI.Process != nil {
		spec.OCI.Process.ConsoleSize = &specs.Box{Height: uint(f.size.Height), Width: uint(f.size.Width)}
		err = startspec.Write(file, &spec)
	}
	if err != nil {
		f.close()
		return fmt.Errorf("size of the terminal: %w", err)
	}
	return nil
}

// takeFirst takes the client that waits for the start; nobody else may come then.
func (r *Runtime) takeFirst(c *container) *firstClient {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := c.first
	c.first = nil
	return f
}

// begin tells that the container is no longer only created. Runtime.mu is held.
func (c *container) begin() {
	select {
	case <-c.begun:
	default:
		close(c.begun)
	}
}

// annotations are the config's, and whether a client waits for the start. Runtime.mu
// is held.
func (c *container) annotations() map[string]string {
	if c.first == nil {
		return c.config.GetAnnotations()
	}
	out := maps.Clone(c.config.GetAnnotations())
	if out == nil {
		out = map[string]string{}
	}
	out[cri.AnnotationAttached] = "true"
	return out
}

// attachFirst has a client wait for the start of a container that is only created,
// and returns when it is started, or has ended. The files are the runtime's from
// here on. attached false means that the container was started before: the client
// is to be attached as to any that runs, with its files.
func (r *Runtime) attachFirst(ctx context.Context, c *container, f *firstClient, resize <-chan remotecommand.TerminalSize) (attached bool, err error) {
	created := func() bool { return c.state == runtimeapi.ContainerState_CONTAINER_CREATED }
	r.mu.Lock()
	waits := created()
	r.mu.Unlock()
	if waits && c.config.GetTty() && resize != nil {
		t := time.NewTimer(sizeTime)
		select {
		case s, ok := <-resize:
			if ok {
				f.size = &s
			}
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	r.mu.Lock()
	switch {
	case !created():
		r.mu.Unlock()
		return false, nil
	case c.first != nil:
		r.mu.Unlock()
		f.close()
		return true, status.Errorf(codes.FailedPrecondition, "container %q has a client that waits for its start already", c.id)
	}
	c.first = f
	r.mu.Unlock()
	r.notify(c.sb, c.id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	select {
	case <-c.begun:
		return true, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-r.stopping:
		err = errors.New("the runtime stops")
	}
	r.mu.Lock()
	mine := c.first == f
	if mine {
		c.first = nil
	}
	r.mu.Unlock()
	if mine {
		f.close() // or the start has them
	}
	return true, err
}

// attachable finds a container that runs, or is to.
func (r *Runtime) attachable(id string) (*container, error) {
	c, err := r.findContainer(id)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.state != runtimeapi.ContainerState_CONTAINER_RUNNING && c.state != runtimeapi.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "container %q is not running: it is in %s state", c.id, c.state)
	}
	return c, nil
}
