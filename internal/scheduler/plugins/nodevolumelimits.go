package plugins

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/component-helpers/storage/ephemeral"
	csi "k8s.io/csi-translation-lib"
	csiplugins "k8s.io/csi-translation-lib/plugins"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/scheduler/framework"
)

// NodeVolumeLimits refuses nodes to which as many volumes of a CSI driver are
// attached as its CSINode allows, and those that lack a driver which wants to be
// waited for.
type NodeVolumeLimits struct {
	s   *Storage
	csi csi.CSITranslator
}

// NewNodeVolumeLimits returns the plugin.
func NewNodeVolumeLimits(s *Storage) *NodeVolumeLimits {
	return &NodeVolumeLimits{s: s, csi: csi.New()}
}

var tooManyVolumes = &framework.Status{
	Code: framework.Unschedulable, Plugin: "NodeVolumeLimits", Reasons: []string{"node(s) exceed max volume count"},
}

// attachable is a volume by driver and handle. A claim that has no volume yet
// stands for the one that it will get.
type attachable struct{ driver, handle string }

// Name implements framework.Plugin.
func (*NodeVolumeLimits) Name() string { return "NodeVolumeLimits" }

// Watch implements framework.Watcher.
func (l *NodeVolumeLimits) Watch(tell func(framework.Event)) []<-chan struct{} {
	return l.s.watch(tell)
}

// PreFilter implements framework.PreFilterer.
func (*NodeVolumeLimits) PreFilter(*framework.Class) (any, []string, *framework.Status) {
	return nil, nil, skip
}

// Surveys implements framework.Surveyor.
func (l *NodeVolumeLimits) Surveys(c *framework.Class) bool {
	if len(c.Claims) > 0 {
		return true
	}
	for i := range c.Template.Spec.Volumes {
		if l.csi.IsInlineMigratable(&c.Template.Spec.Volumes[i]) {
			return true
		}
	}
	return false
}

// Survey implements framework.Surveyor: it finds what would have to be attached.
func (l *NodeVolumeLimits) Survey(c *framework.Class, _ *framework.Snapshot) (any, []string, *framework.Status) {
	wanted := map[attachable]bool{}
	if reason := l.of(c.Template, true, wanted); reason != "" {
		return nil, nil, &framework.Status{Code: framework.Unresolvable, Plugin: l.Name(), Reasons: []string{reason}}
	}
	if len(wanted) == 0 {
		return nil, nil, skip
	}
	return wanted, nil, nil
}

// of adds the volumes of a pod. Of a pod that is to be placed they must be known, or
// the reason is returned.
func (l *NodeVolumeLimits) of(p *corev1.Pod, pending bool, into map[attachable]bool) string {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		name := storage.ClaimOf(p, v)
		if name == "" {
			if a, ok := l.inline(p, v); ok {
				into[a] = true
			}
			continue
		}
		claim, ok := l.s.claims.Get(p.Namespace, name)
		if !ok {
			if pending {
				return fmt.Sprintf("looking up PVC %s/%s: %s", p.Namespace, name, claimNotFound(name))
			}
			continue
		}
		if v.Ephemeral != nil {
			if err := ephemeral.VolumeIsForPod(p, claim); err != nil {
				if pending {
					return err.Error()
				}
				continue
			}
		}
		if a, ok := l.ofClaim(claim); ok {
			into[a] = true
		}
	}
	return ""
}

func (l *NodeVolumeLimits) inline(p *corev1.Pod, v *corev1.Volume) (attachable, bool) {
	if !l.csi.IsInlineMigratable(v) {
		return attachable{}, false
	}
	name, err := l.csi.GetInTreePluginNameFromSpec(nil, v)
	if err != nil || !migrated(name) {
		return attachable{}, false
	}
	pv, err := l.csi.TranslateInTreeInlineVolumeToCSI(klog.Background(), v, p.Namespace)
	if err != nil || pv == nil || pv.Spec.CSI == nil {
		return attachable{}, false
	}
	return attachable{pv.Spec.CSI.Driver, pv.Spec.CSI.VolumeHandle}, true
}

// migrated tells whether a type of volume of old is served by its CSI driver, and
// counted.
func migrated(plugin string) bool {
	switch plugin {
	case csiplugins.AWSEBSInTreePluginName, csiplugins.PortworxVolumePluginName, csiplugins.GCEPDInTreePluginName,
		csiplugins.AzureDiskInTreePluginName, csiplugins.CinderInTreePluginName:
		return true
	}
	return false
}

func (l *NodeVolumeLimits) ofClaim(c *corev1.PersistentVolumeClaim) (attachable, bool) {
	if c.Spec.VolumeName != "" {
		if pv, ok := l.s.volumes.Get("", c.Spec.VolumeName); ok {
			return l.ofVolume(pv)
		}
	}
	class, ok := l.s.classes.Get("", storage.ClaimClass(c))
	if !ok {
		return attachable{}, false
	}
	driver := class.Provisioner
	if l.csi.IsMigratableIntreePluginByName(driver) {
		name, err := l.csi.GetCSINameFromInTreeName(driver)
		if err != nil || !migrated(driver) {
			return attachable{}, false
		}
		driver = name
	}
	// No handle has a space and the claim's name.
	return attachable{driver, "claim " + c.Namespace + "/" + c.Name}, driver != ""
}

func (l *NodeVolumeLimits) ofVolume(pv *corev1.PersistentVolume) (attachable, bool) {
	source := pv.Spec.CSI
	if source == nil {
		if !l.csi.IsPVMigratable(pv) {
			return attachable{}, false
		}
		name, err := l.csi.GetInTreePluginNameFromSpec(pv, nil)
		if err != nil || !migrated(name) {
			return attachable{}, false
		}
		translated, err := l.csi.TranslateInTreePVToCSI(klog.Background(), pv)
		if err != nil || translated.Spec.CSI == nil {
			return attachable{}, false
		}
		source = translated.Spec.CSI
	}
	return attachable{source.Driver, source.VolumeHandle}, source.Driver != "" && source.VolumeHandle != ""
}

// Filter implements framework.Filterer.
func (l *NodeVolumeLimits) Filter(state any, _ *framework.Class, n *framework.Node) *framework.Status {
	wanted := state.(map[attachable]bool)
	limits, installed := map[string]int64{}, map[string]bool{}
	if node, ok := l.s.nodes.Get("", n.Name); ok {
		for _, d := range node.Spec.Drivers {
			installed[d.Name] = true
			if d.Allocatable != nil && d.Allocatable.Count != nil {
				limits[d.Name] = int64(*d.Allocatable.Count)
			}
		}
	}
	for a := range wanted {
		if driver, ok := l.s.drivers.Get("", a.driver); ok && ptr.Deref(driver.Spec.PreventPodSchedulingIfMissing, false) && !installed[a.driver] {
			return &framework.Status{
				Code: framework.Unschedulable, Plugin: l.Name(), Reasons: []string{a.driver + " CSI driver is not installed on the node"},
			}
		}
	}
	if len(limits) == 0 {
		return nil
	}
	there := map[attachable]bool{}
	for _, p := range n.Pods {
		if len(p.Spec.Volumes) > 0 {
			l.of(p.Pod, false, there)
		}
	}
	more := map[string]int64{}
	for a := range wanted {
		if !there[a] {
			more[a.driver]++
		}
	}
	for _, a := range l.s.attachments.ByIndex(byNode, n.Name) {
		if a.Spec.Attacher == "" || a.Spec.Source.PersistentVolumeName == nil {
			continue
		}
		if pv, ok := l.s.volumes.Get("", *a.Spec.Source.PersistentVolumeName); ok && pv.Spec.CSI != nil {
			there[attachable{a.Spec.Attacher, pv.Spec.CSI.VolumeHandle}] = true
		}
	}
	attached := map[string]int64{}
	for a := range there {
		attached[a.driver]++
	}
	for driver, count := range more {
		if limit, ok := limits[driver]; ok && attached[driver]+count > limit {
			return tooManyVolumes
		}
	}
	return nil
}

// Explain implements framework.Explainer.
func (l *NodeVolumeLimits) Explain(c *framework.Class, n *framework.Node) string {
	wanted := map[attachable]bool{}
	l.of(c.Template, false, wanted)
	var drivers []string
	for a := range wanted {
		drivers = append(drivers, a.driver)
	}
	return fmt.Sprintf("node %s cannot attach the pod's volumes of %s beside those that it has", n.Name, strings.Join(drivers, ", "))
}

// Events implements framework.Hinter.
func (*NodeVolumeLimits) Events() framework.EventKind {
	return framework.CSINodeChanged | framework.PodDeleted | framework.ClaimChanged | framework.AttachmentGone
}

// Hint implements framework.Hinter.
func (l *NodeVolumeLimits) Hint(p *framework.Pod, e framework.Event) bool {
	switch {
	case e.Kind&framework.CSINodeChanged != 0:
		now, ok := e.Object.(*storagev1.CSINode)
		was, had := e.OldObject.(*storagev1.CSINode)
		return ok && (!had || raised(was, now))
	case e.Kind&framework.ClaimChanged != 0:
		_, ours := claimChanged(p, e)
		return ours && e.OldObject == nil
	case e.Kind&framework.AttachmentGone != 0:
		gone, ok := e.OldObject.(*storagev1.VolumeAttachment)
		if !ok || len(p.Class.Claims) > 0 {
			return true
		}
		wanted := map[attachable]bool{}
		l.of(p.Pod, false, wanted)
		for a := range wanted {
			if a.driver == gone.Spec.Attacher {
				return true
			}
		}
		return false
	}
	return l.Surveys(e.Pod.Class)
}

// raised tells whether a driver's limit on a node went up.
func raised(was, now *storagev1.CSINode) bool {
	limit := func(d storagev1.CSINodeDriver) int32 {
		if d.Allocatable == nil {
			return 0
		}
		return ptr.Deref(d.Allocatable.Count, 0)
	}
	old := map[string]int32{}
	for _, d := range was.Spec.Drivers {
		old[d.Name] = limit(d)
	}
	for _, d := range now.Spec.Drivers {
		if limit(d) > old[d.Name] {
			return true
		}
	}
	return false
}
