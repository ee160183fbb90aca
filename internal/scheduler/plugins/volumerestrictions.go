package plugins

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/scheduler/framework"
)

// VolumeRestrictions keeps pods apart that cannot use a disk together: disks named
// in the pods themselves on one node, and a claim with the access mode
// ReadWriteOncePod anywhere.
type VolumeRestrictions struct{ s *Storage }

// NewVolumeRestrictions returns the plugin.
func NewVolumeRestrictions(s *Storage) *VolumeRestrictions { return &VolumeRestrictions{s} }

var (
	diskConflict = &framework.Status{
		Code: framework.Unschedulable, Plugin: "VolumeRestrictions", Reasons: []string{"node(s) had no available disk"},
	}
	singleClaimInUse = &framework.Status{
		Code: framework.Unschedulable, Plugin: "VolumeRestrictions",
		Reasons: []string{"node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod"},
	}
)

// restricted is the state of a class: its disks, and its claims that one pod may use
// with how many do, by node.
type restricted struct {
	disks []*corev1.Volume
	used  map[string]map[string]int
}

// Name implements framework.Plugin.
func (*VolumeRestrictions) Name() string { return "VolumeRestrictions" }

// Watch implements framework.Watcher.
func (v *VolumeRestrictions) Watch(tell func(framework.Event)) []<-chan struct{} {
	return v.s.watch(tell)
}

// PreFilter implements framework.PreFilterer.
func (*VolumeRestrictions) PreFilter(c *framework.Class) (any, []string, *framework.Status) {
	st := restricted{disks: disks(c)}
	if len(st.disks) == 0 {
		return nil, nil, skip
	}
	return st, nil, nil
}

// disks are a class's volumes that may conflict with another pod's.
func disks(c *framework.Class) []*corev1.Volume {
	var out []*corev1.Volume
	for i := range c.Template.Spec.Volumes {
		v := &c.Template.Spec.Volumes[i]
		if v.GCEPersistentDisk != nil || v.AWSElasticBlockStore != nil || v.ISCSI != nil || v.RBD != nil {
			out = append(out, v)
		}
	}
	return out
}

// Surveys implements framework.Surveyor.
func (*VolumeRestrictions) Surveys(c *framework.Class) bool { return len(c.Claims) > 0 }

// Survey implements framework.Surveyor.
func (v *VolumeRestrictions) Survey(c *framework.Class, s *framework.Snapshot) (any, []string, *framework.Status) {
	st := restricted{disks: disks(c)}
	for _, name := range c.Claims {
		if !persistent(c, name) {
			continue
		}
		ns, short, _ := strings.Cut(name, "/")
		claim, ok := v.s.claims.Get(ns, short)
		if !ok {
			return nil, nil, &framework.Status{Code: framework.Unresolvable, Plugin: v.Name(), Reasons: []string{claimNotFound(short)}}
		}
		if !slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) {
			continue
		}
		for n, pods := range s.ClaimUsers(name) {
			if st.used == nil {
				st.used = map[string]map[string]int{}
			}
			if st.used[name] == nil {
				st.used[name] = map[string]int{}
			}
			st.used[name][n.Name] = pods
		}
	}
	if len(st.disks) == 0 && len(st.used) == 0 {
		return nil, nil, skip
	}
	return st, nil, nil
}

func claimNotFound(name string) string {
	return fmt.Sprintf("persistentvolumeclaim %q not found", name)
}

// persistent tells whether a class's pods name a claim themselves; those of
// ephemeral volumes belong to one pod each.
func persistent(c *framework.Class, name string) bool {
	_, short, _ := strings.Cut(name, "/")
	return slices.ContainsFunc(c.Template.Spec.Volumes, func(v corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == short
	})
}

// Filter implements framework.Filterer. A pod that leaves the node in question may
// free a claim; what is used on other nodes stays so.
func (*VolumeRestrictions) Filter(state any, _ *framework.Class, n *framework.Node) *framework.Status {
	st := state.(restricted)
	for _, d := range st.disks {
		for _, p := range n.Pods {
			if conflicts(d, p.Spec.Volumes) {
				return diskConflict
			}
		}
	}
	for name, on := range st.used {
		for other := range on {
			if other != n.Name {
				return singleClaimInUse
			}
		}
		if slices.ContainsFunc(n.Pods, func(p *framework.Pod) bool { return slices.Contains(p.Class.Claims, name) }) {
			return singleClaimInUse
		}
	}
	return nil
}

// conflicts tells whether a disk cannot be used on one node together with others. Of
// most kinds several pods may read one, if none writes.
func conflicts(d *corev1.Volume, others []corev1.Volume) bool {
	return slices.ContainsFunc(others, func(o corev1.Volume) bool {
		switch {
		case d.GCEPersistentDisk != nil && o.GCEPersistentDisk != nil:
			a, b := d.GCEPersistentDisk, o.GCEPersistentDisk
			return a.PDName == b.PDName && !(a.ReadOnly && b.ReadOnly)
		case d.AWSElasticBlockStore != nil && o.AWSElasticBlockStore != nil:
			return d.AWSElasticBlockStore.VolumeID == o.AWSElasticBlockStore.VolumeID
		case d.ISCSI != nil && o.ISCSI != nil:
			return d.ISCSI.IQN == o.ISCSI.IQN && !(d.ISCSI.ReadOnly && o.ISCSI.ReadOnly)
		case d.RBD != nil && o.RBD != nil:
			a, b := d.RBD, o.RBD
			return a.RBDPool == b.RBDPool && a.RBDImage == b.RBDImage && !(a.ReadOnly && b.ReadOnly) &&
				slices.ContainsFunc(a.CephMonitors, func(m string) bool { return slices.Contains(b.CephMonitors, m) })
		}
		return false
	})
}

// Explain implements framework.Explainer.
func (*VolumeRestrictions) Explain(c *framework.Class, n *framework.Node) string {
	for _, d := range disks(c) {
		for _, p := range n.Pods {
			if conflicts(d, p.Spec.Volumes) {
				return fmt.Sprintf("the disk of volume %s is in use on node %s by pod %s/%s", d.Name, n.Name, p.Namespace, p.Name)
			}
		}
	}
	return "a claim of the pod may be used by one pod alone (ReadWriteOncePod), and another pod uses it"
}

// Events implements framework.Hinter.
func (*VolumeRestrictions) Events() framework.EventKind {
	return framework.NodeAdded | framework.PodDeleted | framework.ClaimChanged
}

// Hint implements framework.Hinter.
func (*VolumeRestrictions) Hint(p *framework.Pod, e framework.Event) bool {
	switch {
	case e.Kind&framework.NodeAdded != 0:
		return true
	case e.Kind&framework.ClaimChanged != 0:
		_, ours := claimChanged(p, e)
		return ours && e.OldObject == nil
	}
	if e.Pod.Kin.Namespace != p.Kin.Namespace {
		return false
	}
	for _, d := range disks(p.Class) {
		if conflicts(d, e.Pod.Spec.Volumes) {
			return true
		}
	}
	return slices.ContainsFunc(p.Class.Claims, func(name string) bool {
		return persistent(p.Class, name) && slices.Contains(e.Pod.Class.Claims, name)
	})
}
