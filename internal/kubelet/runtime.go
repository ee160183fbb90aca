package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
)

// Runtime is what the kubelet uses of a CRI runtime service. The remote client of
// k8s.io/cri-client and a runtime in process both have it.
type Runtime interface {
	Version(ctx context.Context, apiVersion string) (*runtimeapi.VersionResponse, error)
	Status(ctx context.Context, verbose bool) (*runtimeapi.StatusResponse, error)
	UpdateRuntimeConfig(ctx context.Context, c *runtimeapi.RuntimeConfig) error

	RunPodSandbox(ctx context.Context, c *runtimeapi.PodSandboxConfig, handler string) (string, error)
	StopPodSandbox(ctx context.Context, id string) error
	RemovePodSandbox(ctx context.Context, id string) error
	PodSandboxStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.PodSandboxStatusResponse, error)
	ListPodSandbox(ctx context.Context, f *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error)
	PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error)

	CreateContainer(ctx context.Context, sandboxID string, c *runtimeapi.ContainerConfig, s *runtimeapi.PodSandboxConfig) (string, error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, timeout int64) error
	RemoveContainer(ctx context.Context, id string) error
	ListContainers(ctx context.Context, f *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error)
	ContainerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error)
	UpdateContainerResources(ctx context.Context, id string, r *runtimeapi.ContainerResources) error
	ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, err error)
	Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error)
	Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error)
	ReopenContainerLog(ctx context.Context, id string) error
	ListContainerStats(ctx context.Context, f *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error)
	ListPodSandboxStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error)
	GetContainerEvents(ctx context.Context, ch chan *runtimeapi.ContainerEventResponse, connected func(runtimeapi.RuntimeService_GetContainerEventsClient)) error
}

// Images is what the kubelet uses of a CRI image service.
type Images interface {
	ListImages(ctx context.Context, f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error)
	ImageStatus(ctx context.Context, i *runtimeapi.ImageSpec, verbose bool) (*runtimeapi.ImageStatusResponse, error)
	PullImage(ctx context.Context, i *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, s *runtimeapi.PodSandboxConfig) (string, error)
	RemoveImage(ctx context.Context, i *runtimeapi.ImageSpec) error
}

// Labels and annotations by which a kubelet knows its own again; upstream's.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"

	annotationHash               = "io.kubernetes.container.hash"
	annotationRestartCount       = "io.kubernetes.container.restartCount"
	annotationMessagePath        = "io.kubernetes.container.terminationMessagePath"
	annotationMessagePolicy      = "io.kubernetes.container.terminationMessagePolicy"
	annotationPreStop            = "io.kubernetes.container.preStopHandler"
	annotationPorts              = "io.kubernetes.container.ports"
	annotationResources          = "skiff.io/container.resources"
	annotationDeletionGrace      = "io.kubernetes.pod.deletionGracePeriod"
	annotationTerminationGrace   = "io.kubernetes.pod.terminationGracePeriod"
	maxTerminationMessage        = 4096
	maxTerminationMessageLogSize = 2048
	maxTerminationMessageLines   = 80
)

// sandbox is a pod sandbox as the runtime has it.
type sandbox struct {
	id        string
	attempt   uint32
	ready     bool
	created   int64
	hostNet   bool
	ips       []string
	networked bool // the runtime reports network status
}

// container is a container as the runtime has it.
type container struct {
	id, name, sandboxID         string
	state                       runtimeapi.ContainerState
	restarts                    int
	hash                        uint64
	image, imageRef             string
	created, started, finished  time.Time
	exitCode                    int32
	reason, message             string
	user                        *runtimeapi.ContainerUser
	logPath                     string
	preStop                     *corev1.LifecycleHandler
	ports                       []corev1.ContainerPort
	deletionGrace, terminateGra *int64
	// resources it runs with, nil where the runtime does not tell; made are those it
	// was made with, where its resizePolicy needs them.
	resources *runtimeapi.LinuxContainerResources
	made      *corev1.ResourceRequirements
	// attached: it is not started yet and has a client.
	attached bool
}

func (c *container) running() bool {
	return c.state == runtimeapi.ContainerState_CONTAINER_RUNNING
}
func (c *container) exited() bool { return c.state == runtimeapi.ContainerState_CONTAINER_EXITED }

// observed is what the runtime has of one pod; newest first.
type observed struct {
	sandboxes  []sandbox
	containers []container
}

// latest returns the newest container of that name, nil where there is none.
func (o *observed) latest(name string) *container {
	for i := range o.containers {
		if o.containers[i].name == name {
			return &o.containers[i]
		}
	}
	return nil
}

// anyRunning tells whether a container runs.
func (o *observed) anyRunning() bool {
	return slices.ContainsFunc(o.containers, func(c container) bool { return c.running() })
}

func (o *observed) byID(id string) *container {
	for i := range o.containers {
		if o.containers[i].id == id {
			return &o.containers[i]
		}
	}
	return nil
}

// ips are the addresses of the newest ready sandbox.
func (o *observed) ips() []string {
	if len(o.sandboxes) > 0 && o.sandboxes[0].ready {
		return o.sandboxes[0].ips
	}
	return nil
}

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }

// observe reads what the runtime has of a pod.
func (k *Kubelet) observe(ctx context.Context, uid types.UID) (*observed, error) {
	sel := map[string]string{labelPodUID: string(uid)}
	o := &observed{}
	list, err := k.d.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: sel})
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	for _, s := range list {
		resp, err := k.d.Runtime.PodSandboxStatus(ctx, s.Id, false)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("status of sandbox %s: %w", s.Id, err)
		}
		o.sandboxes = append(o.sandboxes, toSandbox(resp.Status))
	}
	sort.Slice(o.sandboxes, func(i, j int) bool {
		a, b := o.sandboxes[i], o.sandboxes[j]
		if a.created != b.created {
			return a.created > b.created
		}
		return a.attempt > b.attempt
	})
	cs, err := k.d.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: sel})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range cs {
		resp, err := k.d.Runtime.ContainerStatus(ctx, c.Id, false)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("status of container %s: %w", c.Id, err)
		}
		o.containers = append(o.containers, k.toContainer(resp.Status, c.PodSandboxId))
	}
	sort.Slice(o.containers, func(i, j int) bool {
		a, b := &o.containers[i], &o.containers[j]
		if !a.created.Equal(b.created) {
			return a.created.After(b.created)
		}
		return a.restarts > b.restarts
	})
	k.noteExits(o)
	return o, nil
}

func toSandbox(s *runtimeapi.PodSandboxStatus) sandbox {
	out := sandbox{
		id: s.Id, attempt: s.Metadata.GetAttempt(), created: s.CreatedAt,
		ready:     s.State == runtimeapi.PodSandboxState_SANDBOX_READY,
		hostNet:   s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE,
		networked: s.Network != nil,
	}
	if s.Network != nil && net.ParseIP(s.Network.Ip) != nil {
		out.ips = append(out.ips, s.Network.Ip)
		for _, a := range s.Network.AdditionalIps {
			if net.ParseIP(a.Ip) != nil {
				out.ips = append(out.ips, a.Ip)
			}
		}
	}
	return out
}

func (k *Kubelet) toContainer(s *runtimeapi.ContainerStatus, sandboxID string) container {
	c := container{
		id: s.Id, name: s.Labels[labelContainerName], sandboxID: sandboxID, state: s.State,
		image: imageShown(s.GetImage()), imageRef: s.ImageRef, created: time.Unix(0, s.CreatedAt),
		user: s.User, logPath: s.LogPath, resources: s.GetResources().GetLinux(),
	}
	c.hash, _ = strconv.ParseUint(s.Annotations[annotationHash], 16, 64)
	c.attached = s.Annotations[cri.AnnotationAttached] == "true"
	c.restarts, _ = strconv.Atoi(s.Annotations[annotationRestartCount])
	c.deletionGrace = intAnnotation(s.Annotations, annotationDeletionGrace)
	c.terminateGra = intAnnotation(s.Annotations, annotationTerminationGrace)
	if v := s.Annotations[annotationPreStop]; v != "" {
		h := &corev1.LifecycleHandler{}
		if json.Unmarshal([]byte(v), h) == nil {
			c.preStop = h
		}
	}
	if v := s.Annotations[annotationResources]; v != "" {
		made := &corev1.ResourceRequirements{}
		if json.Unmarshal([]byte(v), made) == nil {
			c.made = made
		}
	}
	if v := s.Annotations[annotationPorts]; v != "" {
		_ = json.Unmarshal([]byte(v), &c.ports)
	}
	if s.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		c.started = time.Unix(0, s.StartedAt)
	}
	if s.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		c.finished, c.exitCode = time.Unix(0, s.FinishedAt), s.ExitCode
		c.reason, c.message = s.Reason, s.Message
		if m := k.terminationMessage(s); m != "" {
			if c.message != "" {
				c.message += ": "
			}
			c.message += m
		}
	}
	return c
}

// imageShown is the name of a container's image, empty where the runtime knows it
// by its ID alone.
func imageShown(i *runtimeapi.ImageSpec) string {
	for _, name := range []string{i.GetImage(), i.GetUserSpecifiedImage()} {
		if name != "" && !strings.HasPrefix(name, "sha256:") {
			return name
		}
	}
	return ""
}

func intAnnotation(a map[string]string, key string) *int64 {
	v, ok := a[key]
	if !ok {
		return nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

// terminationMessage reads what an ended container left in its termination
// message file, or the end of its log where its policy says so.
func (k *Kubelet) terminationMessage(s *runtimeapi.ContainerStatus) string {
	path := s.Annotations[annotationMessagePath]
	fallback := s.Annotations[annotationMessagePolicy] == string(corev1.TerminationMessageFallbackToLogsOnError) &&
		s.ExitCode != 0 && s.Reason != "ContainerCannotRun"
	for _, m := range s.Mounts {
		if path == "" || filepath.Clean(m.ContainerPath) != filepath.Clean(path) {
			continue
		}
		b, err := readTail(m.HostPath, maxTerminationMessage)
		if err != nil {
			if os.IsNotExist(err) {
				return ""
			}
			return fmt.Sprintf("Error on reading termination log %s: %v", m.HostPath, err)
		}
		if len(b) > 0 {
			return string(b)
		}
		break
	}
	if fallback {
		return lastLogLines(s.LogPath, maxTerminationMessageLogSize, maxTerminationMessageLines)
	}
	return ""
}

// orphan is a pod that is known from the runtime alone.
type orphan struct{ pod *corev1.Pod }

// listOrphans returns every pod that the runtime has something of, made up from
// labels.
func (k *Kubelet) listOrphans(ctx context.Context) ([]orphan, error) {
	seen := map[types.UID]bool{}
	var out []orphan
	add := func(l map[string]string) {
		uid := types.UID(l[labelPodUID])
		if uid == "" || seen[uid] {
			return
		}
		seen[uid] = true
		out = append(out, orphan{&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: l[labelPodName], Namespace: l[labelPodNamespace], UID: uid},
			Spec:       corev1.PodSpec{NodeName: k.d.NodeName},
		}})
	}
	sandboxes, err := k.d.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	for _, s := range sandboxes {
		add(s.Labels)
	}
	cs, err := k.d.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range cs {
		add(c.Labels)
	}
	return out, nil
}

// watchRuntime wakes workers on the runtime's events. A runtime without events is
// listed once a second instead; with events, every five minutes, and at every
// break of the stream.
func (k *Kubelet) watchRuntime(ctx context.Context) error {
	ch := make(chan *runtimeapi.ContainerEventResponse, 256)
	lost := make(chan error, 1)
	stream := func() {
		k.spawn(func(ctx context.Context) {
			lost <- k.d.Runtime.GetContainerEvents(ctx, ch, nil)
		})
	}
	stream()
	const slow, fast = 5 * time.Minute, time.Second
	period := slow
	timer := time.NewTimer(period)
	defer timer.Stop()
	seen := map[string]runtimeState{}
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-ch:
			// Who made or started a container looks at it by itself.
			if t := e.ContainerEventType; t == runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT && !attachedTo(e) || t == runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT {
				continue
			}
			uid := types.UID(e.GetPodSandboxStatus().GetMetadata().GetUid())
			if w := k.worker(uid); w != nil {
				w.kick()
			}
		case err := <-lost:
			if ctx.Err() != nil {
				return nil
			}
			if status.Code(err) == codes.Unimplemented {
				period = fast
			} else {
				k.d.Log.Warn("event stream of the runtime ended", "err", err)
				again = time.After(time.Second)
				for _, w := range k.allWorkers() {
					w.kick()
				}
			}
			timer.Reset(period)
		case <-again:
			again = nil
			stream()
		case <-timer.C:
			if now, err := k.relist(ctx); err != nil {
				k.d.Log.Warn("list what the runtime has", "err", err)
			} else {
				k.wakeChanged(seen, now)
				seen = now
			}
			timer.Reset(period)
		}
	}
}

type runtimeState struct {
	uid   types.UID
	state int32
}

// relist returns the state of every sandbox and container by ID.
func (k *Kubelet) relist(ctx context.Context) (map[string]runtimeState, error) {
	now := map[string]runtimeState{}
	sandboxes, err := k.d.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, s := range sandboxes {
		now[s.Id] = runtimeState{types.UID(s.Labels[labelPodUID]), int32(s.State)}
	}
	cs, err := k.d.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, c := range cs {
		now[c.Id] = runtimeState{types.UID(c.Labels[labelPodUID]), int32(c.State)}
	}
	return now, nil
}

func (k *Kubelet) wakeChanged(old, now map[string]runtimeState) {
	wake := map[types.UID]bool{}
	for id, s := range now {
		if o, ok := old[id]; !ok || o != s {
			wake[s.uid] = true
		}
	}
	for id, o := range old {
		if _, ok := now[id]; !ok {
			wake[o.uid] = true
		}
	}
	for uid := range wake {
		if w := k.worker(uid); w != nil {
			w.kick()
		}
	}
}
