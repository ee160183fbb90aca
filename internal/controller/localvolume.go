package controller

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/control"
)

// LocalProvisioner is the provisioner of volumes that are directories of a node.
const LocalProvisioner = "skiff.io/local"

const (
	// localFinalizer keeps a volume's object until its directory is gone.
	localFinalizer = "skiff.io/local-volume"
	// annLocalNode is the node that has a volume's directory.
	annLocalNode = "skiff.io/node"
)

// LocalVolumes makes and removes the directories of volumes on nodes. Both may be
// repeated. name is that of the PersistentVolume.
type LocalVolumes interface {
	Make(ctx context.Context, node *corev1.Node, name string) (path string, err error)
	Remove(ctx context.Context, node *corev1.Node, name string) error
}

// localVolumes provisions, expands and deletes volumes of classes of LocalProvisioner,
// as an external provisioner beside the binder would: a volume is a directory below
// the data directory of one node, and is bound to that node by its affinity. Its
// capacity is what was asked for and is not enforced. Keys with a namespace are
// claims, those without are volumes.
type localVolumes struct {
	*control.Controller
	dirs    LocalVolumes
	volumes *client.Informer[*corev1.PersistentVolume]
	claims  *client.Informer[*corev1.PersistentVolumeClaim]
	classes *client.Informer[*storagev1.StorageClass]
	nodes   *client.Informer[*corev1.Node]
}

func newLocalVolume(d Deps) *control.Controller {
	c := control.New("local-volume-provisioner", d.Deps)
	c.ReportAs(LocalProvisioner)
	l := &localVolumes{Controller: c, dirs: d.LocalVolumes}
	l.claims = control.Watch(c, func(ch client.Change[*corev1.PersistentVolumeClaim]) {
		if !ch.Deleted() && ch.New.Annotations[storage.StorageProvisioner] == LocalProvisioner {
			c.Queue.Add(control.KeyOf(ch.New))
		}
	})
	l.volumes = control.Watch(c, func(ch client.Change[*corev1.PersistentVolume]) {
		if !ch.Deleted() && ch.New.Annotations[storage.ProvisionedBy] == LocalProvisioner {
			c.Queue.Add(control.KeyOf(ch.New))
		}
	})
	l.classes = control.Watch[*storagev1.StorageClass](c, nil)
	l.nodes = control.Watch[*corev1.Node](c, nil)
	c.Writes = append(c.Writes,
		control.Rule("", []string{"persistentvolumes"}, "create", "delete", "update"),
		control.Rule("", []string{"persistentvolumeclaims", "persistentvolumeclaims/status"}, "update"),
	)
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		if k.Namespace == "" {
			return control.Result{}, l.reclaim(ctx, k)
		}
		p, ok := l.claims.Get(k.Namespace, k.Name)
		switch {
		case !ok || p.Annotations[storage.StorageProvisioner] != LocalProvisioner:
			return control.Result{}, nil
		case p.Spec.VolumeName == "":
			return control.Result{}, l.provision(ctx, k, p)
		}
		return control.Result{}, l.expand(ctx, k, p)
	}
	return c
}

// errElsewhere tells that a claim cannot have its volume on the node that was
// chosen: another is to be chosen.
var errElsewhere = errors.New("another node is needed")

func (l *localVolumes) provision(ctx context.Context, k control.Key, p *corev1.PersistentVolumeClaim) error {
	name := "pvc-" + string(p.UID)
	class, ok := l.classes.Get("", storage.ClaimClass(p))
	if !ok || class.Provisioner != LocalProvisioner || p.DeletionTimestamp != nil {
		return nil
	}
	if _, made := l.volumes.Get("", name); made {
		return nil
	}
	if _, chosen := p.Annotations[storage.SelectedNode]; storage.Delays(class) && !chosen {
		return nil
	}
	err := l.make(ctx, k, p, class, name)
	if err == nil {
		l.Events.Event(p, corev1.EventTypeNormal, "ProvisioningSucceeded", "Successfully provisioned volume %s", name)
		return nil
	}
	l.Events.Event(p, corev1.EventTypeWarning, "ProvisioningFailed", "failed to provision volume with StorageClass %q: %v", class.Name, err)
	if _, chosen := p.Annotations[storage.SelectedNode]; chosen && errors.Is(err, errElsewhere) {
		next := p.DeepCopy()
		delete(next.Annotations, storage.SelectedNode)
		got, uerr := client.For[*corev1.PersistentVolumeClaim](l.Client).Update(ctx, next)
		if uerr != nil {
			return ignoreGone(uerr)
		}
		control.Wrote(l.Pending, k, l.claims, got)
		return nil
	}
	return err
}

func (l *localVolumes) make(ctx context.Context, k control.Key, p *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, name string) error {
	if why := cannotProvision(p, class); why != "" {
		return errors.New(why)
	}
	node, err := l.nodeFor(p, class)
	if err != nil {
		return err
	}
	l.Events.Event(p, corev1.EventTypeNormal, "Provisioning", "External provisioner is provisioning volume for claim %q", claimKey(p))
	path, err := l.dirs.Make(ctx, node, name)
	if err != nil {
		return fmt.Errorf("make directory on node %q: %w", node.Name, err)
	}
	got, err := client.For[*corev1.PersistentVolume](l.Client).Create(ctx, localVolume(p, class, node, name, path))
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("create volume %s: %w", name, err)
	}
	control.Wrote(l.Pending, k, l.volumes, got)
	return nil
}

// cannotProvision says what a claim or its class wants that a directory cannot be.
func cannotProvision(p *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) string {
	switch {
	case ptr.Deref(p.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) != corev1.PersistentVolumeFilesystem:
		return "a local volume is a directory: volumeMode Block is not supported"
	case p.Spec.DataSource != nil || p.Spec.DataSourceRef != nil:
		return "a local volume starts empty: dataSource is not supported"
	case p.Spec.Selector != nil:
		return "claim.Spec.Selector is not supported for dynamic provisioning"
	case len(class.MountOptions) > 0:
		return fmt.Sprintf("Mount options are not supported by the provisioner but StorageClass %q has mount options %v", class.Name, class.MountOptions)
	}
	return ""
}

// nodeFor is the node that the scheduler chose or, where a class does not wait for
// it, one that is ready and that the class allows: the same for a claim at every
// try, and spread over claims.
func (l *localVolumes) nodeFor(p *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (*corev1.Node, error) {
	if name, chosen := p.Annotations[storage.SelectedNode]; chosen {
		n, ok := l.nodes.Get("", name)
		if !ok {
			return nil, fmt.Errorf("node %q not found: %w", name, errElsewhere)
		}
		return n, nil
	}
	return pickNode(l.nodes.List("", nil), class, string(p.UID))
}

func pickNode(all []*corev1.Node, class *storagev1.StorageClass, seed string) (*corev1.Node, error) {
	var fit []*corev1.Node
	for _, n := range all {
		if nodeReady(n) == corev1.ConditionTrue && !n.Spec.Unschedulable && storage.Allows(class.AllowedTopologies, n.Labels) {
			fit = append(fit, n)
		}
	}
	if len(fit) == 0 {
		return nil, errors.New("no node is ready that the class allows")
	}
	slices.SortFunc(fit, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	h := fnv.New32a()
	_, _ = h.Write([]byte(seed))
	return fit[h.Sum32()%uint32(len(fit))], nil
}

// localVolume is the volume of a claim that is a directory of a node.
func localVolume(p *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node, name, path string) *corev1.PersistentVolume {
	host := node.Labels[corev1.LabelHostname]
	if host == "" {
		host = node.Name
	}
	policy := ptr.Deref(class.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{storage.ProvisionedBy: LocalProvisioner, annLocalNode: node.Name}},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: p.Spec.AccessModes, Capacity: corev1.ResourceList{corev1.ResourceStorage: *p.Spec.Resources.Requests.Storage()},
			ClaimRef: storage.Reference(p), StorageClassName: class.Name, PersistentVolumeReclaimPolicy: policy, VolumeMode: p.Spec.VolumeMode,
			VolumeAttributesClassName: p.Spec.VolumeAttributesClassName,
			PersistentVolumeSource:    corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
			}}}},
		},
	}
	if policy == corev1.PersistentVolumeReclaimDelete {
		v.Finalizers = []string{localFinalizer}
	}
	return v
}

// disposable tells whether a volume is to be deleted: its policy wants that and its
// claim is gone, or somebody deleted it before it was bound.
func disposable(v *corev1.PersistentVolume) bool {
	return v.Annotations[storage.ProvisionedBy] == LocalProvisioner && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete &&
		(v.Status.Phase == corev1.VolumeReleased || v.Status.Phase == corev1.VolumeFailed ||
			v.DeletionTimestamp != nil && v.Status.Phase != corev1.VolumeBound)
}

// reclaim removes the directory of a disposable volume and then its object. A node
// that is gone took its directories along.
func (l *localVolumes) reclaim(ctx context.Context, k control.Key) error {
	v, ok := l.volumes.Get("", k.Name)
	if !ok {
		return nil
	}
	held := slices.Contains(v.Finalizers, localFinalizer)
	if !disposable(v) {
		if held && v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
			return l.letGo(ctx, k, v) // it is to be kept: its object may go without it
		}
		return nil
	}
	if node, ok := l.nodes.Get("", v.Annotations[annLocalNode]); ok {
		if err := l.dirs.Remove(ctx, node, v.Name); err != nil {
			l.Events.Event(v, corev1.EventTypeWarning, "VolumeFailedDelete", "%v", err)
			return fmt.Errorf("remove directory of volume %s: %w", v.Name, err)
		}
	}
	if v.DeletionTimestamp == nil {
		err := client.For[*corev1.PersistentVolume](l.Client).Delete(ctx, v.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &v.UID}})
		if err != nil {
			return ignoreGone(err)
		}
		control.Removed(l.Pending, k, l.volumes, v)
		l.Queue.Add(k)
		return nil
	}
	if held {
		return l.letGo(ctx, k, v)
	}
	return nil
}

func (l *localVolumes) letGo(ctx context.Context, k control.Key, v *corev1.PersistentVolume) error {
	next := v.DeepCopy()
	next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == localFinalizer })
	got, err := client.For[*corev1.PersistentVolume](l.Client).Update(ctx, next)
	if err != nil {
		return ignoreGone(err)
	}
	control.Wrote(l.Pending, k, l.volumes, got)
	return nil
}

// expand gives a claim that wants more the size that it wants: there is nothing to
// be done for it on the node.
func (l *localVolumes) expand(ctx context.Context, k control.Key, p *corev1.PersistentVolumeClaim) error {
	want := p.Spec.Resources.Requests.Storage()
	v, ok := l.volumes.Get("", p.Spec.VolumeName)
	if !ok || p.Status.Phase != corev1.ClaimBound || v.Annotations[storage.ProvisionedBy] != LocalProvisioner ||
		v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != p.UID || want.Cmp(*p.Status.Capacity.Storage()) <= 0 {
		return nil
	}
	if v.Spec.Capacity.Storage().Cmp(*want) < 0 {
		l.Events.Event(p, corev1.EventTypeNormal, "Resizing", "External resizer is resizing volume %s", v.Name)
		next := v.DeepCopy()
		next.Spec.Capacity[corev1.ResourceStorage] = *want
		got, err := client.For[*corev1.PersistentVolume](l.Client).Update(ctx, next)
		if err != nil {
			return ignoreGone(err)
		}
		control.Wrote(l.Pending, k, l.volumes, got)
		v = got
	}
	got, err := client.For[*corev1.PersistentVolumeClaim](l.Client).UpdateStatus(ctx, expanded(p, v))
	if err != nil {
		return ignoreGone(err)
	}
	control.Wrote(l.Pending, k, l.claims, got)
	l.Events.Event(p, corev1.EventTypeNormal, "VolumeResizeSuccessful", "Resize volume succeeded")
	return nil
}

// expanded is a claim whose volume has grown to its size.
func expanded(p *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) *corev1.PersistentVolumeClaim {
	next := p.DeepCopy()
	if next.Status.Capacity == nil {
		next.Status.Capacity = corev1.ResourceList{}
	}
	next.Status.Capacity[corev1.ResourceStorage] = *v.Spec.Capacity.Storage()
	delete(next.Status.AllocatedResourceStatuses, corev1.ResourceStorage)
	next.Status.Conditions = slices.DeleteFunc(next.Status.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimResizing || c.Type == corev1.PersistentVolumeClaimFileSystemResizePending ||
			c.Type == corev1.PersistentVolumeClaimControllerResizeError || c.Type == corev1.PersistentVolumeClaimNodeResizeError
	})
	return next
}
