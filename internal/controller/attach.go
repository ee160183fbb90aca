package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/control"
)

// attachDetach has volumes attached to the nodes of the pods that want them, and
// detached when they do not. Drivers do it: each reads its VolumeAttachments, and
// says in their status how far it is. Where nodes attach a volume themselves, iSCSI
// say, all there is to do is the list in the node's status.
//
// # What keeps data whole
//
// A kubelet lists a volume in its node's status.volumesInUse, and then mounts it only
// if status.volumesAttached has it. Here a volume leaves volumesAttached first, then
// the node is read, and only if it does not list the volume as in use is the
// VolumeAttachment deleted. Whoever of the two is later sees the other. The list of a
// node and the deletion are never worked on at a time.
//
// # Keys
//
// A key without a namespace is a node, whose list is to be brought up to date.
// Otherwise the namespace is the unique name of a volume, and the name is a node; it
// is empty for volumes that one node at a time may have, which are decided about as a
// whole.
//
// What is decided from are objects alone; what is remembered beside them are times
// and what was said already.
type attachDetach struct {
	*control.Controller
	pods    *client.Informer[*corev1.Pod]
	claims  *client.Informer[*corev1.PersistentVolumeClaim]
	volumes *client.Informer[*corev1.PersistentVolume]
	nodes   *client.Informer[*corev1.Node]
	objects *client.Informer[*storagev1.VolumeAttachment]
	drivers *client.Informer[*storagev1.CSIDriver]
	now     func() time.Time
	forced  *prometheus.CounterVec

	// listing are locks of nodes, by hash: see above.
	listing [64]sync.Mutex
	seed    maphash.Seed

	mu      sync.Mutex
	places  map[corev1.UniqueVolumeName]map[string]attachmentMemory // by node
	onNode  map[string]map[corev1.UniqueVolumeName]bool             // the same by node
	owners  map[string]corev1.UniqueVolumeName                      // by the names of objects
	retries map[control.Key]attachRetries
	// left is what nodes that are gone had in use when they were last seen.
	left map[string][]corev1.UniqueVolumeName
}

func newAttachDetach(d Deps) *control.Controller { return makeAttachDetach(d).Controller }

func makeAttachDetach(d Deps) *attachDetach {
	c := control.New("attachdetach-controller", d.Deps)
	a := &attachDetach{
		Controller: c, now: d.Clock(), seed: maphash.MakeSeed(),
		places: map[corev1.UniqueVolumeName]map[string]attachmentMemory{}, onNode: map[string]map[corev1.UniqueVolumeName]bool{},
		owners: map[string]corev1.UniqueVolumeName{}, retries: map[control.Key]attachRetries{}, left: map[string][]corev1.UniqueVolumeName{},
		forced: prometheus.NewCounterVec(prometheus.CounterOpts{
			Subsystem: "attach_detach_controller", Name: "attachdetach_controller_forced_detaches",
			Help: "Number of volumes that were detached although their node may have had them mounted, by why (timeout, out-of-service).",
		}, []string{"reason"}),
	}
	c.Metrics = append(c.Metrics, a.forced)
	a.pods = control.Watch(c, a.onPod)
	indexPodClaims(a.pods)
	indexNodes(a.pods)
	a.pods.AddIndex(byVolume, inlineNames)
	a.claims = control.Watch(c, a.onClaim)
	a.volumes = control.Watch(c, a.onVolume)
	indexVolumeClaims(a.volumes)
	a.volumes.AddIndex(byVolume, func(v *corev1.PersistentVolume) []string {
		if x, ok := storage.AttachableVolume(v); ok {
			return []string{string(x.Name)}
		}
		return nil
	})
	a.nodes = control.Watch(c, a.onNodeChange)
	a.nodes.AddIndex(byVolume, func(n *corev1.Node) []string {
		var out []string
		for _, v := range n.Status.VolumesAttached {
			out = append(out, string(v.Name))
		}
		return out
	})
	a.objects = control.Watch(c, a.onObject)
	a.objects.AddIndex(bySource, func(o *storagev1.VolumeAttachment) []string { return []string{sourceKey(o)} })
	a.drivers = control.Watch(c, a.onDriver)
	c.Writes = append(c.Writes,
		control.Rule("", []string{"nodes/status"}, "patch"),
		control.Rule("storage.k8s.io", []string{"volumeattachments"}, "create", "delete"),
	)
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		if k.Namespace == "" {
			return a.reconcileNode(ctx, k)
		}
		return a.reconcileVolume(ctx, k), nil
	}
	return a
}

// key is that under which the attachment of a volume to a node is decided about.
func attachKey(v *storage.Attachable, node string) control.Key {
	if v.Exclusive {
		node = ""
	}
	return control.Key{Namespace: string(v.Name), Name: node}
}

// reconcileVolume brings the attachments of a volume nearer to what pods want. What
// fails is tried again by the volume's own retries.
func (a *attachDetach) reconcileVolume(ctx context.Context, k control.Key) control.Result {
	v := a.look(corev1.UniqueVolumeName(k.Namespace), k.Name)
	switch {
	case v.Exclusive && k.Name != "":
		a.Queue.Add(attachKey(&v.Attachable, "")) // it was not when this was asked for
		return control.Result{}
	case !v.Exclusive && k.Name == "":
		a.keepRetries(k, attachRetries{})
		for i := range v.nodes {
			a.Queue.Add(attachKey(&v.Attachable, v.nodes[i].node))
		}
		return control.Result{}
	}
	now := a.now()
	v.retries = a.retriesOf(k)
	plans, retries := planVolume(v, now)
	var again time.Time
	for _, p := range plans {
		a.remember(v, p.node, p.attachmentMemory)
		for _, s := range p.say {
			a.Events.Event(s.pod, s.kind, s.reason, "%s", s.message)
		}
		again = sooner(again, p.again)
		var err error
		detach := p.step == attachDelete
		if p.relist {
			a.Queue.Add(control.Key{Name: p.node})
		}
		switch p.step {
		case attachCreate:
			if err = a.attach(ctx, k, v, p.node); err != nil {
				err = fmt.Errorf("kubernetes.io/csi: attacher.Attach failed: %w", err)
				for _, s := range attachFailure(&v.Attachable, a.wanting(v, p.node), err.Error()) {
					a.Events.Event(s.pod, s.kind, s.reason, "%s", s.message)
				}
			}
		case attachDelete:
			err = a.detach(ctx, k, v, p)
		}
		if err != nil && ctx.Err() == nil {
			a.Log.Warn("volume is not attached or detached", "volume", v.Name, "node", p.node, "detach", detach, "err", err)
			retries = retries.failed(detach, now)
			again = sooner(again, retries.until)
		}
	}
	a.keepRetries(k, retries)
	if again.IsZero() {
		return control.Result{}
	}
	return control.Result{After: max(again.Sub(now), time.Millisecond)}
}

// attach asks the driver to attach a volume.
func (a *attachDetach) attach(ctx context.Context, k control.Key, v *attachedVolume, node string) error {
	got, err := client.For[*storagev1.VolumeAttachment](a.Client).Create(ctx, &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: storage.AttachmentName(v.Driver, v.Handle, node)},
		Spec:       storagev1.VolumeAttachmentSpec{Attacher: v.Driver, NodeName: node, Source: v.Source},
	})
	if apierrors.IsAlreadyExists(err) {
		return nil // the informer will show it
	}
	if err == nil {
		control.Wrote(a.Pending, k, a.objects, got)
	}
	return err
}

// detach asks the driver to detach a volume, after a look at what its node says now.
func (a *attachDetach) detach(ctx context.Context, k control.Key, v *attachedVolume, p attachPlan) error {
	lock := a.lock(p.node)
	lock.Lock()
	defer lock.Unlock()
	if len(a.wanting(v, p.node)) > 0 {
		return nil // since just now: that brings the key back
	}
	node, err := client.For[*corev1.Node](a.Client).Get(ctx, p.node)
	switch {
	case apierrors.IsNotFound(err): // it has nothing mounted any more
	case err != nil:
		return fmt.Errorf("read node: %w", err)
	case slices.ContainsFunc(node.Status.VolumesAttached, func(l corev1.AttachedVolume) bool { return l.Name == v.Name }):
		return fmt.Errorf("volume is still in the list of attached ones of node %s", p.node)
	case !p.unsafe && slices.Contains(node.Status.VolumesInUse, v.Name):
		return fmt.Errorf("volume is still in use by node %s, according to its status", p.node)
	}
	err = client.For[*storagev1.VolumeAttachment](a.Client).Delete(ctx, p.object.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &p.object.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	control.Removed(a.Pending, k, a.objects, p.object)
	control.Removed(a.Pending, control.Key{Name: p.node}, a.objects, p.object)
	if p.unsafe {
		reason := "out-of-service"
		if !a.now().Before(p.unwanted.Add(unmountWait)) {
			reason = "timeout"
		}
		a.forced.WithLabelValues(reason).Inc()
		a.Log.Info("volume is detached from a node that may have it mounted", "volume", v.Name, "node", p.node, "reason", reason)
	}
	return nil
}

// listAgain is how soon a node's list is looked at again that could not be made yet.
const listAgain = 20 * time.Millisecond

// reconcileNode brings a node's list of attached volumes up to date.
func (a *attachDetach) reconcileNode(ctx context.Context, k control.Key) (control.Result, error) {
	lock := a.lock(k.Name)
	lock.Lock()
	defer lock.Unlock()
	if !a.Pending.Settled(k) { // something was detached while this waited
		return control.Result{After: listAgain}, nil
	}
	node, ok := a.nodes.Get("", k.Name)
	if !ok {
		return control.Result{}, nil
	}
	want := a.attachedTo(node)
	if equality.Semantic.DeepEqual(want, node.Status.VolumesAttached) {
		return control.Result{}, nil
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"volumesAttached": want}})
	if err != nil {
		return control.Result{}, fmt.Errorf("make patch of node status: %w", err)
	}
	got, err := client.For[*corev1.Node](a.Client).Patch(ctx, k.Name, types.StrategicMergePatchType, patch, "status")
	if apierrors.IsNotFound(err) {
		return control.Result{}, nil
	}
	if err != nil {
		return control.Result{}, fmt.Errorf("patch list of attached volumes: %w", err)
	}
	control.Wrote(a.Pending, k, a.nodes, got)
	return control.Result{}, nil
}

// attachedTo is what a node's list of attached volumes is to be: what stays keeps its
// place, and what is listed of types that are not known here stays.
func (a *attachDetach) attachedTo(node *corev1.Node) []corev1.AttachedVolume {
	now := a.now()
	is := func(name corev1.UniqueVolumeName) bool {
		v := a.look(name, node.Name)
		i := slices.IndexFunc(v.nodes, func(x attachment) bool { return x.node == node.Name })
		return i >= 0 && v.listing(&v.nodes[i], now)
	}
	var want []corev1.AttachedVolume
	listed := map[corev1.UniqueVolumeName]bool{}
	for _, l := range node.Status.VolumesAttached {
		if _, known := storage.AttachableNamed(l.Name); !listed[l.Name] && (!known || is(l.Name)) {
			want = append(want, l)
		}
		listed[l.Name] = true
	}
	for _, name := range a.volumesOn(node.Name) {
		if !listed[name] && is(name) {
			want = append(want, corev1.AttachedVolume{Name: name})
		}
	}
	return want
}

func (a *attachDetach) lock(node string) *sync.Mutex {
	return &a.listing[maphash.String(a.seed, node)%uint64(len(a.listing))]
}

// remember keeps what was decided about an attachment, for as long as there is
// anything of it.
func (a *attachDetach) remember(v *attachedVolume, node string, m attachmentMemory) {
	i := slices.IndexFunc(v.nodes, func(x attachment) bool { return x.node == node })
	x := &v.nodes[i]
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(x.pods) == 0 && x.object == nil && !x.listed {
		delete(a.places[v.Name], node)
		if len(a.places[v.Name]) == 0 {
			delete(a.places, v.Name)
		}
		delete(a.onNode[node], v.Name)
		if len(a.onNode[node]) == 0 {
			delete(a.onNode, node)
			if !x.there {
				delete(a.left, node)
			}
		}
		if v.Driver != "" {
			delete(a.owners, storage.AttachmentName(v.Driver, v.Handle, node))
		}
		return
	}
	if a.places[v.Name] == nil {
		a.places[v.Name] = map[string]attachmentMemory{}
	}
	a.places[v.Name][node] = m
	if a.onNode[node] == nil {
		a.onNode[node] = map[corev1.UniqueVolumeName]bool{}
	}
	a.onNode[node][v.Name] = true
	if x.object != nil {
		a.owners[x.object.Name] = v.Name
	}
}

// volumesOn are the volumes that have to do with a node, in order.
func (a *attachDetach) volumesOn(node string) []corev1.UniqueVolumeName {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []corev1.UniqueVolumeName
	for v := range a.onNode[node] {
		out = append(out, v)
	}
	slices.SortFunc(out, func(x, y corev1.UniqueVolumeName) int { return strings.Compare(string(x), string(y)) })
	return out
}

func (a *attachDetach) retriesOf(k control.Key) attachRetries {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.retries[k]
}

func (a *attachDetach) keepRetries(k control.Key, r attachRetries) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, there := a.places[corev1.UniqueVolumeName(k.Namespace)]; r.delay == 0 || !there {
		delete(a.retries, k)
		return
	}
	a.retries[k] = r
}
