// Package kubelet is the node half: it makes the pods that are bound to this node
// run, and tells the API what became of them.
//
// It knows the runtime only as CRI and the API only through package client; every
// write is a patch (of a status or of the node) or a create or delete, never an
// update.
//
// # How a pod is driven
//
// Each pod has one worker, a goroutine that sleeps until something concerns its
// pod: a change in the API, an event of the runtime, a probe's result, a timer. It
// then observes what the runtime has, asks the pure core (plan) what to do, does
// it, and goes on until nothing is left to do. There is no polling.
//
// A worker is in one of three states and never goes back:
//
//	syncing      the pod is to run: sandbox, volumes, init containers, containers
//	terminating  the pod is to end, because it is deleted or its containers are
//	             done: hooks, grace period, sandbox stopped
//	terminated   nothing runs: final status, volumes and cgroups gone, then, where
//	             the pod is deleted, its object and what the runtime has of it
//
// # Recovery
//
// Nothing of a pod is kept in files of the kubelet: after a restart its state is
// read from the runtime (labels and annotations under upstream's keys) and from
// the status in the API. A restart starts, stops and reports nothing that would
// not have been without it; the back-off of a container that keeps ending follows
// from its restarts. What is forgotten is the back-off of images.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/host"
	"skiff/internal/kubelet/cgroup"
	"skiff/internal/kubelet/devices"
	"skiff/internal/kubelet/eviction"
	"skiff/internal/kubelet/pullrecord"
	"skiff/internal/kubelet/userns"
)

// Events records events about objects. It does not block.
type Events interface {
	Event(ref *corev1.ObjectReference, eventType, reason, message string)
	// AnnotatedEvent is Event with annotations of the event.
	AnnotatedEvent(ref *corev1.ObjectReference, annotations map[string]string, eventType, reason, message string)
}

// Volumes makes the volumes of pods. Setup and Teardown are idempotent.
type Volumes interface {
	// Setup makes every volume of the pod present with its current content and
	// returns their host paths by volume name. A zero refresh means that the
	// content changes only with what it refers to.
	Setup(ctx context.Context, pod *corev1.Pod) (paths map[string]string, refresh time.Time, err error)
	// SubPath returns a host path for the part of a volume that a container
	// mounts, safe against symbolic links in the volume; index is that of the
	// volume mount.
	SubPath(ctx context.Context, pod *corev1.Pod, container string, index int, mount corev1.VolumeMount, subPath string) (string, error)
	// Teardown removes the volumes of a pod.
	Teardown(ctx context.Context, pod types.UID) error
	// Pods lists the pods that have volumes here.
	Pods() ([]types.UID, error)
	// LocalDirs are the directories on the node's disk of those of a pod's volumes
	// that count as its own storage, by name.
	LocalDirs(pod *corev1.Pod) map[string]string
}

// LocalVolumes makes and removes the directories of local volumes that skiff
// provisions, by the names of their PersistentVolumes.
type LocalVolumes interface {
	MakeLocal(name string) (path string, err error)
	RemoveLocal(name string) error
}

// Cgroups makes and removes the cgroups of pods.
type Cgroups interface {
	// Ensure makes the pod's cgroup, within its QoS class, and returns the
	// parent for CRI.
	Ensure(pod *corev1.Pod) (parent string, err error)
	// Remove ends what runs in the pod's cgroup and removes it.
	Remove(pod types.UID) error
	// Pods lists the pods that have a cgroup.
	Pods() ([]types.UID, error)
	// LimitAll sets what all pods together may use. It fails where they have more memory
	// already.
	LimitAll(cgroup.Limits) error
	// Memory is what they have, in bytes, without file pages that can go at once; 0
	// before there was a pod.
	Memory() (int64, error)
	// Version is that of the hierarchy with the controllers: 1 or 2.
	Version() int
}

// Deps is what a kubelet needs. Volumes, Cgroups, Events and Log may be nil in
// tests; Now defaults to time.Now, MaxPods to 110.
type Deps struct {
	Client  *client.Client
	Runtime Runtime
	Images  Images
	Volumes Volumes
	// Sources are those that Volumes take their content from; own ones by default.
	Sources *Sources
	Cgroups Cgroups
	// LocalVolumes may be nil: the node then has none.
	LocalVolumes LocalVolumes
	Events       Events
	Log          *slog.Logger
	Now          func() time.Time

	Host     host.Instance
	NodeName string
	// Hostname is the label kubernetes.io/hostname and the address of that type;
	// NodeName by default.
	Hostname      string
	NodeIPs       []net.IP
	ClusterDNS    []net.IP
	ClusterDomain string
	Labels        map[string]string
	Taints        []corev1.Taint
	ProviderID    string
	MaxPods       int
	// Port is the one that the server of Handler listens on; it stands in the
	// node's daemonEndpoints.
	Port int32
	// Version is the kubelet's version in nodeInfo.
	Version string
	// Authorize, where set, is asked before the server answers a request;
	// a non-nil error is the answer.
	Authorize Authorizer
	// Leave, where set, is called once for a pod that is deleted with a grace
	// period, before its containers are told to end. It returns when services
	// send no new connection to the pod any more, or when ctx ends: after
	// leaveAtMost, or the grace period where that is shorter.
	Leave func(ctx context.Context, pod *corev1.Pod)
	// ResolvConf is the host's resolver configuration; /etc/resolv.conf by default.
	ResolvConf string
	// Plugins is the directory in which the node's plugins register, drivers of
	// devices say; "" for none.
	Plugins string
	// PodLogDir is where pod logs are; Host.Data("logs") by default.
	PodLogDir string
	// RegisterNode off leaves node, status and lease alone, for tests.
	NoNode bool
	// LogMaxSize and LogMaxFiles rule the rotation of container logs; 10 MiB and 5. A
	// negative size is none.
	LogMaxSize  int64
	LogMaxFiles int
	// Eviction is what the node must have left; by default nothing is asked.
	Eviction eviction.Config
	// Reserved is what is kept from the pods.
	Reserved Reserved
	// Observe measures that; by default the machine.
	Observe func() eviction.Observations
	// ImageDir is a directory on the file system of images and of what containers
	// write; Host.DataDir by default.
	ImageDir string
	// StaticPods is a directory of manifests of pods that run here whether there is an
	// API server or not; "" for none.
	StaticPods string
	// ImageGC rules when images are removed; by default never.
	ImageGC ImageGC
	// FreeCache, where set, frees so many bytes of the disk of images, of what is kept
	// for builds to come, the longest unused first, and tells how many it could.
	FreeCache func(ctx context.Context, bytes int64) (freed int64, err error)
	// PullPolicy says for which images that are present pods must show credentials.
	PullPolicy pullrecord.Policy
	// ParallelPulls is how many images are pulled at once; 0 for any number.
	ParallelPulls int
	// DockerConfigs are files in the form of docker's config.json, of which the
	// first that is there has the node's own registry credentials: every pod's
	// images are pulled with them.
	DockerConfigs []string

	// notify tells of changes in a directory; tests replace it.
	notify func(dir string) (changed <-chan struct{}, stop func(), err error)
	// AllowedUnsafeSysctls are sysctls, or prefixes of such that end in *, that pods
	// may set beside the safe ones.
	AllowedUnsafeSysctls []string
	// IDsPerPod is how many IDs a pod with a user namespace of its own has, a multiple of
	// 65536, which is the default.
	IDsPerPod uint32
	// MaxRestartPeriod is the longest back-off of a container that keeps ending
	// (KEP-4603); 5 minutes by default.
	MaxRestartPeriod time.Duration
}

// Kubelet is the node half. See New.
type Kubelet struct {
	d           Deps
	informers   *client.Informers
	pods        *client.Informer[*corev1.Pod]
	services    *client.Informer[*corev1.Service]
	sources     *Sources
	refs        *references
	devices     *devices.Devices
	users       *userns.Allocator
	runtimeName string
	memory      int64 // capacity in bytes
	node        *nodeState
	started     time.Time
	rates       cpuRates
	pressure    pressure
	du          du
	gc          *imageCollector
	statics     *statics
	figures     *figures
	known       chan struct{} // closed when the informers have synced

	// exits are those who wait for the end of a container, by its ID.
	exitMu sync.Mutex
	exits  map[string]map[chan struct{}]bool

	// records say with whose credentials images were pulled.
	records *pullrecord.Records
	// pulling has a place for each image that may be pulled at once; nil for any.
	pulling chan struct{}

	// admission is held while a pod is judged by what the others take.
	admission sync.Mutex

	mu      sync.Mutex
	workers map[types.UID]*worker
	closed  bool
	spawn   func(func(context.Context))
}

// New returns a kubelet; Run makes it work.
func New(d Deps) (*Kubelet, error) {
	if d.Client == nil || d.Runtime == nil || d.Images == nil {
		return nil, errors.New("kubelet: Client, Runtime and Images are required")
	}
	if d.NodeName == "" {
		return nil, errors.New("kubelet: NodeName is required")
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Events == nil {
		d.Events = noEvents{}
	}
	if d.Volumes == nil {
		d.Volumes = noVolumes{}
	}
	if d.MaxPods == 0 {
		d.MaxPods = 110
	}
	if d.Hostname == "" {
		d.Hostname = d.NodeName
	}
	if d.ResolvConf == "" {
		d.ResolvConf = "/etc/resolv.conf"
	}
	if d.PodLogDir == "" {
		d.PodLogDir = d.Host.Data("logs")
	}
	if d.MaxRestartPeriod == 0 {
		d.MaxRestartPeriod = backoffMax
	}
	if d.LogMaxSize == 0 {
		d.LogMaxSize = 10 << 20
	}
	if d.LogMaxFiles == 0 {
		d.LogMaxFiles = 5
	}
	k := &Kubelet{d: d, workers: map[types.UID]*worker{}, memory: memoryCapacity()}
	if k.d.ImageDir == "" {
		k.d.ImageDir = d.Host.DataDir
	}
	if k.d.Observe == nil {
		k.d.Observe = k.observeMachine
	}
	all, _ := k.capacity(diskOf(d.Host.DataDir))
	if err := d.Reserved.check(all, d.Eviction.Reserved(all)); err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	if d.notify == nil {
		k.d.notify = k.notify
	}
	k.figures = newFigures()
	k.d.Runtime, k.d.Images = counted{d.Runtime, k.figures}, countedImages{d.Images, k.figures}
	k.gc = newImageCollector(k)
	k.statics, k.known = newStatics(k), make(chan struct{})
	if d.ParallelPulls > 0 {
		k.pulling = make(chan struct{}, d.ParallelPulls)
	}
	k.informers = client.NewInformers(d.Client, d.Log)
	k.pods = client.InformerOf[*corev1.Pod](k.informers, "", metav1.ListOptions{FieldSelector: "spec.nodeName=" + d.NodeName})
	k.services = client.InformerFor[*corev1.Service](k.informers)
	if k.sources = d.Sources; k.sources == nil {
		k.sources = NewSources(SourcesDeps{Client: d.Client, Now: d.Now, NodeName: d.NodeName, Events: d.Events, Log: d.Log})
	}
	k.sources.changed = func(pod types.UID) {
		if w := k.worker(pod); w != nil {
			w.refChanged()
		}
	}
	k.refs = newReferences(d.Client, d.Log)
	k.node = newNodeState()
	if err := k.newUserNamespaces(); err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	k.sources.used.changed = k.node.lookNow
	k.sources.used.reported = k.sources.changed
	var err error
	if k.records, err = pullrecord.Open(d.Host.Data("kubelet", "image_manager"), d.PullPolicy, d.Now, d.Log); err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	k.devices, err = devices.New(devices.Deps{
		Client: d.Client, NodeName: d.NodeName, Registry: d.Plugins, State: d.Host.Data("kubelet", "dra_manager_state"),
		Boot: line("/proc/sys/kernel/random/boot_id"), Log: d.Log, Active: k.active,
		Changed: func(pod types.UID) {
			if w := k.worker(pod); w != nil {
				w.kick()
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	return k, nil
}

// Run drives the node's pods until ctx ends. Containers go on running then.
func (k *Kubelet) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	k.mu.Lock()
	k.started = k.d.Now()
	k.spawn = func(f func(context.Context)) {
		g.Go(func() error { f(ctx); return nil })
	}
	k.mu.Unlock()
	g.Go(func() error { return k.informers.Run(ctx) })
	g.Go(func() error { return k.sources.certificates.Run(ctx) })
	g.Go(func() error { return k.run(ctx) })
	if !k.d.NoNode {
		g.Go(func() error { return k.runNode(ctx) })
		g.Go(func() error { return k.runLease(ctx) })
		if k.d.Cgroups != nil {
			g.Go(func() error { k.limitPods(ctx); return nil })
		}
	}
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

func (k *Kubelet) run(ctx context.Context) error {
	if err := k.connect(ctx); err != nil {
		return err
	}
	defer k.close()
	k.adoptPulls(ctx)
	k.look()
	k.statics.read()
	k.statics.follow()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return k.statics.run(ctx) })
	g.Go(func() error { return k.watchRuntime(ctx) })
	g.Go(func() error { return k.runPods(ctx) })
	return g.Wait()
}

// synced tells whether it is known what the API has.
func (k *Kubelet) synced() bool {
	select {
	case <-k.known:
		return true
	default:
		return false
	}
}

// runPods drives the pods of the API.
func (k *Kubelet) runPods(ctx context.Context) error {
	if err := k.informers.WaitSynced(ctx); err != nil {
		return nil
	}
	if err := k.adopt(ctx); err != nil {
		return nil
	}
	// Nobody is given room before all are known who have some.
	k.admission.Lock()
	k.pods.OnChange(k.onPod)
	k.admission.Unlock()
	close(k.known)
	k.statics.kick()
	var left []types.UID
	for _, w := range k.allWorkers() {
		left = append(left, w.uid)
	}
	k.sources.used.expect(left)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return k.housekeep(ctx) })
	g.Go(func() error { return k.watchPressure(ctx) })
	g.Go(func() error { return k.gc.run(ctx) })
	if k.d.Plugins != "" {
		g.Go(func() error { return k.devices.Run(ctx) })
	}
	return g.Wait()
}

// active are the pods that a worker cares for: it gives their devices back itself.
func (k *Kubelet) active() map[types.UID]bool {
	out := map[types.UID]bool{}
	for _, w := range k.allWorkers() {
		out[w.uid] = true
	}
	return out
}

// connect waits for the runtime to answer.
func (k *Kubelet) connect(ctx context.Context) error {
	for wait := 50 * time.Millisecond; ; wait = min(wait*2, 2*time.Second) {
		v, err := k.d.Runtime.Version(ctx, "v1")
		if err == nil {
			k.runtimeName = v.RuntimeName
			k.node.setRuntime(v)
			return nil
		}
		k.d.Log.Warn("container runtime does not answer", "err", err)
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// close keeps new workers from starting; the running ones end with Run's context.
func (k *Kubelet) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
}

// onPod hands a change of a pod to its worker. It is called by the informer and
// does not block.
func (k *Kubelet) onPod(c client.Change[*corev1.Pod]) {
	if c.Old != nil && isMirror(c.Old) || c.New != nil && isMirror(c.New) {
		k.statics.onMirror(c)
		return
	}
	if c.Deleted() {
		if w := k.worker(c.Old.UID); w != nil {
			w.setGone()
		}
		return
	}
	if c.Old != nil && c.Old.UID != c.New.UID {
		if w := k.worker(c.Old.UID); w != nil {
			w.setGone()
		}
	}
	w := k.ensureWorker(c.New)
	if w != nil {
		w.setPod(c.New)
	}
}

func (k *Kubelet) worker(uid types.UID) *worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.workers[uid]
}

// ensureWorker returns the worker of a pod, starting one where there is none.
func (k *Kubelet) ensureWorker(pod *corev1.Pod) *worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.workers[pod.UID]
	if w == nil {
		if k.closed {
			return nil
		}
		w = newWorker(k, pod)
		k.workers[pod.UID] = w
		k.spawn(w.run)
	}
	return w
}

func (k *Kubelet) allWorkers() []*worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]*worker, 0, len(k.workers))
	for _, w := range k.workers {
		out = append(out, w)
	}
	return out
}

func (k *Kubelet) forget(w *worker) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.workers[w.uid] == w {
		delete(k.workers, w.uid)
	}
	k.statics.kick()
}

// adopt starts workers for what the runtime has and the API no longer knows, so
// that it is ended.
func (k *Kubelet) adopt(ctx context.Context) error {
	var sandboxes []orphan
	for wait := 100 * time.Millisecond; ; wait = min(wait*2, 5*time.Second) {
		var err error
		if sandboxes, err = k.listOrphans(ctx); err == nil {
			break
		}
		k.d.Log.Warn("list what the runtime has", "err", err)
		if !sleep(ctx, wait) {
			return ctx.Err()
		}
	}
	known := map[types.UID]bool{}
	for p := range k.pods.All() {
		known[p.UID] = true
	}
	for _, w := range k.allWorkers() { // static pods
		known[w.uid] = true
	}
	for _, o := range sandboxes {
		if !known[o.pod.UID] {
			if w := k.ensureWorker(o.pod); w != nil {
				w.setGone()
			}
			known[o.pod.UID] = true
		}
	}
	k.adoptLeftovers(ctx, known)
	return nil
}

// adoptLeftovers removes volumes, cgroups, directories and logs of pods that
// neither API nor runtime know.
func (k *Kubelet) adoptLeftovers(ctx context.Context, known map[types.UID]bool) {
	uids, err := k.d.Volumes.Pods()
	if err != nil {
		k.d.Log.Warn("list volumes", "err", err)
	}
	pods := k.d.Host.Data("kubelet", "pods")
	found := dirs(pods)
	if _, none := k.d.Volumes.(noVolumes); none {
		found = nil // who knows no volumes cannot tell what is mounted there
	}
	for _, name := range found {
		if !slices.Contains(uids, types.UID(name)) {
			uids = append(uids, types.UID(name))
		}
	}
	for _, uid := range uids {
		if known[uid] {
			continue
		}
		// The directory goes when nothing is mounted in it any more.
		if err := k.d.Volumes.Teardown(ctx, uid); err != nil {
			k.d.Log.Warn("remove volumes of a pod that is gone", "uid", uid, "err", err)
		} else if err := os.RemoveAll(filepath.Join(pods, string(uid))); err != nil {
			k.d.Log.Warn("remove directory of a pod that is gone", "uid", uid, "err", err)
		} else if err := k.users.Release(uid); err != nil {
			k.d.Log.Warn("release the IDs of a pod that is gone", "uid", uid, "err", err)
		}
	}
	for _, name := range dirs(k.d.PodLogDir) {
		f := strings.Split(name, "_")
		if len(f) != 3 || known[types.UID(f[2])] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(k.d.PodLogDir, name)); err != nil {
			k.d.Log.Warn("remove logs of a pod that is gone", "uid", f[2], "err", err)
		}
	}
	if k.d.Cgroups == nil {
		return
	}
	uids, err = k.d.Cgroups.Pods()
	if err != nil {
		k.d.Log.Warn("list cgroups", "err", err)
	}
	for _, uid := range uids {
		if !known[uid] {
			if err := k.d.Cgroups.Remove(uid); err != nil {
				k.d.Log.Warn("remove cgroup of a pod that is gone", "uid", uid, "err", err)
			}
		}
	}
}

// dirs lists the directories in a directory, none where it is missing.
func dirs(path string) []string {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}

// sleep waits for d; false means that ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

type noEvents struct{}

func (noEvents) Event(*corev1.ObjectReference, string, string, string) {}
func (noEvents) AnnotatedEvent(*corev1.ObjectReference, map[string]string, string, string, string) {
}

// noVolumes serves pods without volumes.
type noVolumes struct{}

func (noVolumes) Setup(_ context.Context, pod *corev1.Pod) (map[string]string, time.Time, error) {
	if len(pod.Spec.Volumes) > 0 {
		return nil, time.Time{}, fmt.Errorf("volume %q: this kubelet has no volumes", pod.Spec.Volumes[0].Name)
	}
	return nil, time.Time{}, nil
}

func (noVolumes) SubPath(context.Context, *corev1.Pod, string, int, corev1.VolumeMount, string) (string, error) {
	return "", errors.New("this kubelet has no volumes")
}
func (noVolumes) Teardown(context.Context, types.UID) error { return nil }
func (noVolumes) Pods() ([]types.UID, error)                { return nil, nil }
func (noVolumes) LocalDirs(*corev1.Pod) map[string]string   { return nil }
