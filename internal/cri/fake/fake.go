// Package fake is a CRI runtime and image service in memory, for the tests of
// those who consume CRI.
//
// Containers are records: they run from StartContainer until Exit, StopContainer
// or the removal of their sandbox. Every call can be made to fail, to be late, or
// to lose its answer after it took effect (what a caller sees when one of the two
// sides dies between the steps); events can be lost or be missing altogether.
package fake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Call is one call that reached the fake. Name is the pod's name, or POD/CONTAINER,
// or an image.
type Call struct {
	Op   string
	Name string
}

// Container is a container of the fake.
type Container struct {
	Config    *runtimeapi.ContainerConfig
	SandboxID string
	Status    *runtimeapi.ContainerStatus
	// StopTimeouts are the grace periods of the StopContainer calls so far.
	StopTimeouts []int64

	stopped chan struct{}
}

// Sandbox is a pod sandbox of the fake.
type Sandbox struct {
	Config *runtimeapi.PodSandboxConfig
	Status *runtimeapi.PodSandboxStatus
}

// Runtime implements internalapi.RuntimeService and ImageManagerService.
type Runtime struct {
	// OnStart, where set, is called when a container has started; Exit may be
	// called from it.
	OnStart func(id string, c *runtimeapi.ContainerConfig)
	// OnExec answers ExecSync; by default every command succeeds silently.
	OnExec func(ctx context.Context, container string, cmd []string) (stdout, stderr string, exitCode int, err error)
	// IgnoreTerm names containers that end by SIGKILL alone.
	IgnoreTerm map[string]bool
	// StreamURL is the base of the URLs that Exec, Attach and PortForward return.
	StreamURL string

	mu         sync.Mutex
	seq        int
	containers map[string]*Container
	sandboxes  map[string]*Sandbox
	images     map[string]*runtimeapi.Image
	pullable   map[string]bool
	private    map[string]string // image -> who may pull it
	calls      []Call
	faults     map[string][]*fault
	noEvents   bool
	loseEvents bool
	streams    map[chan *runtimeapi.ContainerEventResponse]bool
	nextIP     int
	networkUp  bool
	userns     bool
}

type fault struct {
	skip  int // calls to let through first
	times int // calls to hit; < 0 for all
	err   error
	after bool // do the work, then fail
	delay time.Duration
}

// New returns an empty runtime that has the images named.
func New(images ...string) *Runtime {
	r := &Runtime{
		containers: map[string]*Container{}, sandboxes: map[string]*Sandbox{},
		images: map[string]*runtimeapi.Image{}, pullable: map[string]bool{}, private: map[string]string{},
		faults: map[string][]*fault{}, streams: map[chan *runtimeapi.ContainerEventResponse]bool{},
		IgnoreTerm: map[string]bool{}, nextIP: 2, networkUp: true,
	}
	for _, i := range images {
		r.AddImage(i)
	}
	return r
}

// AddImage puts an image on the machine.
func (r *Runtime) AddImage(name string) *runtimeapi.Image {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addImage(name)
}

func (r *Runtime) addImage(name string) *runtimeapi.Image {
	i := &runtimeapi.Image{Id: "sha256:" + fmt.Sprintf("%064x", hash(name)), RepoTags: []string{name}, Size: 1000}
	r.images[name] = i
	return i
}

func hash(s string) (h uint64) {
	for _, b := range []byte(s) {
		h = h*1099511628211 + uint64(b)
	}
	return h
}

// SetPullable makes PullImage of these images succeed.
func (r *Runtime) SetPullable(names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		r.pullable[n] = true
	}
}

// SetPrivate makes PullImage of these images succeed for a user alone.
func (r *Runtime) SetPrivate(user string, names ...string) {
	r.SetPullable(names...)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		r.private[n] = user
	}
}

// Fail makes the nth call (1 is the next) of op return err without effect.
func (r *Runtime) Fail(op string, nth int, err error) {
	r.addFault(op, &fault{skip: nth - 1, times: 1, err: err})
}

// FailAlways makes every call of op return err, until Heal.
func (r *Runtime) FailAlways(op string, err error) {
	r.addFault(op, &fault{times: -1, err: err})
}

// LoseAnswer makes the nth call of op take effect and return err all the same.
func (r *Runtime) LoseAnswer(op string, nth int, err error) {
	r.addFault(op, &fault{skip: nth - 1, times: 1, err: err, after: true})
}

// Delay makes every call of op take d longer.
func (r *Runtime) Delay(op string, d time.Duration) {
	r.addFault(op, &fault{times: -1, delay: d})
}

// Heal ends the faults of op.
func (r *Runtime) Heal(op string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.faults, op)
}

func (r *Runtime) addFault(op string, f *fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[op] = append(r.faults[op], f)
}

// LoseEvents drops events while on.
func (r *Runtime) LoseEvents(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loseEvents = on
}

// NoEvents makes GetContainerEvents unimplemented, as in runtimes without it.
func (r *Runtime) NoEvents() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noEvents = true
}

// Calls returns the calls so far that change something.
func (r *Runtime) Calls() []Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// ClearCalls forgets the calls so far.
func (r *Runtime) ClearCalls() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = nil
}

// Containers returns copies of the containers with that name ("" for all), newest
// first.
func (r *Runtime) Containers(name string) []Container {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Container
	for _, c := range r.containers {
		if name == "" || c.Config.Metadata.Name == name {
			k := *c
			k.Status = clone(c.Status)
			k.StopTimeouts = slices.Clone(c.StopTimeouts)
			out = append(out, k)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Status.Id > out[j].Status.Id })
	return out
}

// Sandboxes returns copies of the sandboxes, newest first.
func (r *Runtime) Sandboxes() []Sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Sandbox
	for _, s := range r.sandboxes {
		k := *s
		k.Status = cloneSandbox(s.Status)
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Status.Id > out[j].Status.Id })
	return out
}

// Exit ends a running container with that exit code and reason ("" for
// Completed or Error).
func (r *Runtime) Exit(id string, code int32, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exit(id, code, reason)
}

func (r *Runtime) exit(id string, code int32, reason string) {
	c := r.containers[id]
	if c == nil || c.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return
	}
	if reason == "" {
		reason = "Completed"
		if code != 0 {
			reason = "Error"
		}
	}
	s := clone(c.Status)
	s.State = runtimeapi.ContainerState_CONTAINER_EXITED
	s.ExitCode, s.Reason, s.FinishedAt = code, reason, time.Now().UnixNano()
	c.Status = s
	close(c.stopped)
	r.emit(c.SandboxID, id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// KillSandbox makes a sandbox not ready and ends its containers, as when the
// process that holds it dies.
func (r *Runtime) KillSandbox(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopSandbox(id)
}

func (r *Runtime) stopSandbox(id string) {
	s := r.sandboxes[id]
	if s == nil || s.Status.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		return
	}
	for cid, c := range r.containers {
		if c.SandboxID == id {
			r.exit(cid, 137, "")
		}
	}
	st := cloneSandbox(s.Status)
	st.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	s.Status = st
	r.emit(id, id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// SetNetworkReady changes the runtime's NetworkReady condition.
func (r *Runtime) SetNetworkReady(up bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.networkUp = up
}

// SetUserNamespaces has the runtime say that it gives pods user namespaces.
func (r *Runtime) SetUserNamespaces(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.userns = on
}

// enter counts a call and applies its faults; the func it returns must be called
// with the result of the work.
func (r *Runtime) enter(ctx context.Context, op, name string, changes bool) (after func(error) error, err error) {
	r.mu.Lock()
	if changes {
		r.calls = append(r.calls, Call{op, name})
	}
	var delay time.Duration
	var hit, late error
	for _, f := range r.faults[op] {
		if f.delay > 0 {
			delay += f.delay
			continue
		}
		if f.skip > 0 {
			f.skip--
			continue
		}
		if f.times == 0 {
			continue
		}
		f.times--
		if f.after {
			late = f.err
		} else {
			hit = f.err
		}
	}
	r.mu.Unlock()
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if hit != nil {
		return nil, hit
	}
	return func(err error) error {
		if err == nil {
			return late
		}
		return err
	}, nil
}

func notFound(what, id string) error {
	return status.Errorf(codes.NotFound, "%s %q not found", what, id)
}

func clone(s *runtimeapi.ContainerStatus) *runtimeapi.ContainerStatus {
	return &runtimeapi.ContainerStatus{
		Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, StartedAt: s.StartedAt,
		FinishedAt: s.FinishedAt, ExitCode: s.ExitCode, Image: s.Image, ImageRef: s.ImageRef, ImageId: s.ImageId,
		Reason: s.Reason, Message: s.Message, Labels: maps.Clone(s.Labels), Annotations: maps.Clone(s.Annotations),
		Mounts: s.Mounts, LogPath: s.LogPath, Resources: s.Resources, User: s.User, StopSignal: s.StopSignal,
	}
}

func cloneSandbox(s *runtimeapi.PodSandboxStatus) *runtimeapi.PodSandboxStatus {
	return &runtimeapi.PodSandboxStatus{
		Id: s.Id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, Network: s.Network,
		Linux: s.Linux, Labels: maps.Clone(s.Labels), Annotations: maps.Clone(s.Annotations), RuntimeHandler: s.RuntimeHandler,
	}
}
