package plugins

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"skiff/internal/api/storage"
	"skiff/internal/scheduler/framework"
)

// VolumeZone places pods in the zones and regions that the labels of their volumes
// name.
type VolumeZone struct{ s *Storage }

// NewVolumeZone returns the plugin.
func NewVolumeZone(s *Storage) *VolumeZone { return &VolumeZone{s} }

var zoneConflict = &framework.Status{
	Code: framework.Unresolvable, Plugin: "VolumeZone", Reasons: []string{"node(s) had no available volume zone"},
}

// zoneLabels are those of nodes and volumes; betas have their successor.
var zoneLabels = []struct{ key, successor string }{
	{corev1.LabelFailureDomainBetaZone, corev1.LabelTopologyZone},
	{corev1.LabelFailureDomainBetaRegion, corev1.LabelTopologyRegion},
	{corev1.LabelTopologyZone, corev1.LabelTopologyZone},
	{corev1.LabelTopologyRegion, corev1.LabelTopologyRegion},
}

// zoneOf is what a label of a volume says: one of several values.
type zoneOf struct {
	volume, key, successor string
	values                 []string
}

// Name implements framework.Plugin.
func (*VolumeZone) Name() string { return "VolumeZone" }

// Watch implements framework.Watcher.
func (v *VolumeZone) Watch(tell func(framework.Event)) []<-chan struct{} { return v.s.watch(tell) }

// PreFilter implements framework.PreFilterer.
func (*VolumeZone) PreFilter(*framework.Class) (any, []string, *framework.Status) {
	return nil, nil, skip
}

// Surveys implements framework.Surveyor.
func (*VolumeZone) Surveys(c *framework.Class) bool { return len(c.Claims) > 0 }

// Survey implements framework.Surveyor.
func (v *VolumeZone) Survey(c *framework.Class, _ *framework.Snapshot) (any, []string, *framework.Status) {
	var zones []zoneOf
	no := func(reason string) (any, []string, *framework.Status) {
		return nil, nil, &framework.Status{Code: framework.Unresolvable, Plugin: v.Name(), Reasons: []string{reason}}
	}
	for _, name := range c.Claims {
		if !persistent(c, name) {
			continue
		}
		ns, short, _ := strings.Cut(name, "/")
		claim, ok := v.s.claims.Get(ns, short)
		if !ok {
			return no(claimNotFound(short))
		}
		if claim.Spec.VolumeName != "" {
			pv, ok := v.s.volumes.Get("", claim.Spec.VolumeName)
			if !ok {
				return no(fmt.Sprintf("persistentvolume %q not found", claim.Spec.VolumeName))
			}
			zones = append(zones, zonesOf(pv)...)
			continue
		}
		className := storage.ClaimClass(claim)
		if className == "" {
			return no("PersistentVolumeClaim had no pv name and storageClass name")
		}
		class, ok := v.s.classes.Get("", className)
		switch {
		case !ok:
			return no(fmt.Sprintf("storageclass.storage.k8s.io %q not found", className))
		case class.VolumeBindingMode == nil:
			return no(fmt.Sprintf("VolumeBindingMode not set for StorageClass %q", className))
		case !storage.Delays(class):
			return no("PersistentVolume had no name")
		}
	}
	if len(zones) == 0 {
		return nil, nil, skip
	}
	return zones, nil, nil
}

func zonesOf(pv *corev1.PersistentVolume) []zoneOf {
	var out []zoneOf
	for _, l := range zoneLabels {
		value, ok := pv.Labels[l.key]
		if !ok {
			continue
		}
		values := strings.Split(value, "__")
		for i := range values {
			values[i] = strings.TrimSpace(values[i])
		}
		if slices.Contains(values, "") {
			continue // malformed: says nothing
		}
		out = append(out, zoneOf{pv.Name, l.key, l.successor, values})
	}
	return out
}

// refusing returns the label by which a node is in a wrong zone. A node without any
// zone is in all.
func refusing(zones []zoneOf, n *corev1.Node) (zoneOf, bool) {
	zoned := false
	for _, l := range zoneLabels {
		_, ok := n.Labels[l.key]
		zoned = zoned || ok
	}
	if !zoned {
		return zoneOf{}, false
	}
	for _, z := range zones {
		v, ok := n.Labels[z.key]
		if !ok {
			v, ok = n.Labels[z.successor]
		}
		if !ok || !slices.Contains(z.values, v) {
			return z, true
		}
	}
	return zoneOf{}, false
}

// Filter implements framework.Filterer.
func (*VolumeZone) Filter(state any, _ *framework.Class, n *framework.Node) *framework.Status {
	if _, no := refusing(state.([]zoneOf), n.Obj); no {
		return zoneConflict
	}
	return nil
}

// Explain implements framework.Explainer.
func (v *VolumeZone) Explain(c *framework.Class, n *framework.Node) string {
	state, _, st := v.Survey(c, nil)
	if zones, ok := state.([]zoneOf); ok && st == nil {
		if z, no := refusing(zones, n.Obj); no {
			return fmt.Sprintf("volume %s of the pod is in %s=%s, and node %s is not", z.volume, z.key, strings.Join(z.values, " or "), n.Name)
		}
	}
	return fmt.Sprintf("the volumes of the pod can be used in the zone of node %s", n.Name)
}

// Events implements framework.Hinter.
func (*VolumeZone) Events() framework.EventKind {
	return framework.NodeAdded | framework.NodeLabels | framework.ClaimChanged | framework.VolumeChanged | framework.StorageClassChanged
}

// Hint implements framework.Hinter.
func (*VolumeZone) Hint(p *framework.Pod, e framework.Event) bool {
	switch {
	case e.Kind&framework.ClaimChanged != 0:
		c, ours := claimChanged(p, e)
		return ours && persistent(p.Class, c.Namespace+"/"+c.Name)
	case e.Kind&framework.StorageClassChanged != 0:
		class, ok := e.Object.(*storagev1.StorageClass)
		return ok && e.OldObject == nil && storage.Delays(class)
	case e.Kind&framework.VolumeChanged != 0:
		now, ok := e.Object.(*corev1.PersistentVolume)
		if !ok {
			return false
		}
		was, had := e.OldObject.(*corev1.PersistentVolume)
		return !had || !slices.EqualFunc(zonesOf(was), zonesOf(now), func(a, b zoneOf) bool {
			return a.key == b.key && slices.Equal(a.values, b.values)
		})
	}
	return true
}
