package kubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/api/storage"
	"skiff/internal/client"
)

// attachWait is after how long, again and again, a pod says that it waits for volumes.
const attachWait = 2*time.Minute + 3*time.Second

// usedVolumes are the volumes of this node's pods that the control plane attaches, from
// the moment that a pod wants one until nothing of the pod is mounted any more. The
// node's status lists them (volumesInUse) before the node looks whether they are
// attached: who detaches one looks at that list after it has taken the volume from the
// list of attached ones.
type usedVolumes struct {
	// changed asks for a report of the node; reported tells a pod that a volume of
	// it was reported. Neither blocks.
	changed  func()
	reported func(pod types.UID)

	mu    sync.Mutex
	users map[corev1.UniqueVolumeName]map[types.UID]bool
	// listed are those that the node's status has for sure.
	listed map[corev1.UniqueVolumeName]bool
	// before is what a former kubelet reported. It stays until each pod that it left
	// has been looked at, those of unseen.
	before []corev1.UniqueVolumeName
	read   bool
	unseen map[types.UID]bool
}

func newUsedVolumes() *usedVolumes {
	return &usedVolumes{
		changed: func() {}, reported: func(types.UID) {},
		users: map[corev1.UniqueVolumeName]map[types.UID]bool{}, listed: map[corev1.UniqueVolumeName]bool{},
	}
}

// use notes that a pod has a volume in use, and tells whether the node's status has it.
func (u *usedVolumes) use(v corev1.UniqueVolumeName, pod types.UID) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.users[v] == nil {
		u.users[v] = map[types.UID]bool{}
	}
	if !u.users[v][pod] {
		u.users[v][pod] = true
		u.changed()
	}
	return u.listed[v]
}

// drop notes that a pod has nothing mounted any more.
func (u *usedVolumes) drop(pod types.UID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.see(pod)
	for v, pods := range u.users {
		if !pods[pod] {
			continue
		}
		if delete(pods, pod); len(pods) == 0 {
			delete(u.users, v)
			u.changed()
		}
	}
}

// inherit takes over what a former kubelet reported, the first time.
func (u *usedVolumes) inherit(list []corev1.UniqueVolumeName) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.read {
		u.before, u.read = slices.Clone(list), true
	}
}

// expect names the pods that a former kubelet may have left.
func (u *usedVolumes) expect(pods []types.UID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.unseen = map[types.UID]bool{}
	for _, p := range pods {
		u.unseen[p] = true
	}
	u.changed()
}

// seen notes that all the volumes of a pod were looked at.
func (u *usedVolumes) seen(pod types.UID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.see(pod)
}

func (u *usedVolumes) see(pod types.UID) {
	if !u.unseen[pod] {
		return
	}
	if delete(u.unseen, pod); len(u.unseen) == 0 {
		u.changed()
	}
}

// begin returns what is to be reported. What is not among it counts as not reported
// from now on; after the write, done follows.
func (u *usedVolumes) begin() []corev1.UniqueVolumeName {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.read && u.unseen != nil && len(u.unseen) == 0 {
		u.before = nil
	}
	list := slices.AppendSeq(slices.Clone(u.before), maps.Keys(u.users))
	slices.Sort(list)
	list = slices.Compact(list)
	maps.DeleteFunc(u.listed, func(v corev1.UniqueVolumeName, _ bool) bool { return !slices.Contains(list, v) })
	return list
}

// done notes that the node's status has the list.
func (u *usedVolumes) done(list []corev1.UniqueVolumeName) {
	u.mu.Lock()
	var wake []types.UID
	for _, v := range list {
		if !u.listed[v] {
			u.listed[v] = true
			wake = slices.AppendSeq(wake, maps.Keys(u.users[v]))
		}
	}
	u.mu.Unlock()
	for _, p := range wake {
		u.reported(p)
	}
}

// notAttached is of a volume that is not attached to this node yet.
type notAttached struct{ volume string }

func (e *notAttached) Error() string { return fmt.Sprintf("volume %q is not attached yet", e.volume) }

// NamesVolume is for package volume: the error says itself of which volume it is.
func (*notAttached) NamesVolume() {}

// mountError is of a step in the making of a volume.
type mountError struct {
	step, volume string
	err          error
}

func (e *mountError) Error() string {
	return fmt.Sprintf("%s failed for volume %q : %v", e.step, e.volume, e.err)
}
func (e *mountError) Unwrap() error { return e.err }

// NamesVolume is for package volume: the error says itself of which volume it is.
func (*mountError) NamesVolume() {}

// unread is an error of a read whose answer may be another soon.
type unread struct{ error }

func (e unread) Unwrap() error { return e.error }

// Attached finds the CSI driver of a volume. Where the control plane attaches it to
// nodes, the node reports it as in use first, and then sees whether it is attached.
func (s *Sources) Attached(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, pv *corev1.PersistentVolume) (driver, label string, err error) {
	x, ok := storage.AttachableInline(pod.Namespace, v)
	if pv != nil {
		x, ok = storage.AttachableVolume(pv)
	}
	if !ok || x.Driver == "" {
		return "", "", errors.New("no volume plugin matched")
	}
	d, err := client.For[*storagev1.CSIDriver](s.d.Client).Get(ctx, x.Driver)
	switch {
	case apierrors.IsNotFound(err): // who says nothing is attached
	case err != nil:
		return "", "", unread{fmt.Errorf("read CSIDriver: %w", err)}
	case d.Spec.AttachRequired != nil && !*d.Spec.AttachRequired:
		return x.Driver, x.Label, nil
	}
	if !s.used.use(x.Name, pod.UID) {
		return "", "", &notAttached{v.Name}
	}
	node, err := client.For[*corev1.Node](s.d.Client).Get(ctx, s.d.NodeName)
	if err != nil {
		return "", "", fmt.Errorf("read node: %w", err)
	}
	if !slices.ContainsFunc(node.Status.VolumesAttached, func(a corev1.AttachedVolume) bool { return a.Name == x.Name }) {
		return "", "", &notAttached{v.Name}
	}
	name := storage.AttachmentName(x.Driver, x.Handle, s.d.NodeName)
	a, err := client.For[*storagev1.VolumeAttachment](s.d.Client).Get(ctx, name)
	switch {
	case err != nil:
		err = fmt.Errorf("volume %s has GET error for volume attachment %s: %w", x.Handle, name, err)
	case a.DeletionTimestamp != nil:
		err = errors.New("volume attachment is being deleted")
	case !a.Status.Attached && a.Status.AttachError != nil:
		err = errors.New(a.Status.AttachError.Message)
	case !a.Status.Attached:
		err = fmt.Errorf("volume %s is not attached for volume attachment %s", x.Handle, name)
	}
	if err != nil {
		return "", "", &mountError{"MountVolume.WaitForAttach", x.Label, err}
	}
	return x.Driver, x.Label, nil
}

// separate are the errors that volumes.Setup has joined.
func separate(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// unattached are the names of a pod's volumes that are waited for, and whether there
// is nothing else that is wrong.
func unattached(err error) (names []string, only bool) {
	only = true
	for _, e := range separate(err) {
		var n *notAttached
		if errors.As(e, &n) {
			names = append(names, n.volume)
		} else {
			only = false
		}
	}
	slices.Sort(names)
	return names, only
}

// incomplete tells that some volumes of a pod could not even be found out.
func incomplete(err error) bool {
	return err != nil && slices.ContainsFunc(separate(err), func(e error) bool {
		var u unread
		return errors.As(e, &u)
	})
}

func notAttachedMessage(names []string) string {
	list := "[" + strings.Join(names, " ") + "]"
	return fmt.Sprintf("Unable to attach or mount volumes: unmounted volumes=%s, unattached volumes=%s, failed to process volumes=[]: %v", list, list, context.DeadlineExceeded)
}
