package eviction

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Disk is what something takes on a file system.
type Disk struct{ Bytes, Inodes int64 }

func (d *Disk) add(o Disk) { d.Bytes, d.Inodes = d.Bytes+o.Bytes, d.Inodes+o.Inodes }

// Container is what a running container uses. Memory is its working set, nil where it
// was not measured; Root what it wrote, Logs its log files.
type Container struct {
	Name       string
	Memory     *int64
	Root, Logs *Disk
}

// Usage is what a pod uses. Volumes are its local ones, by name.
type Usage struct {
	Memory     *int64
	Processes  int64
	Containers []Container
	Volumes    map[string]Disk
}

// Usages gives a pod's usage; false where nothing is known of it.
type Usages func(*corev1.Pod) (Usage, bool)

// Layout tells whether images, and what containers write, are on another file system
// than the rest of what pods have on the node.
type Layout struct{ ImageFs bool }

// parts are the ones of a pod's disk usage that count for a signal.
type parts struct{ root, logs, volumes bool }

func (l Layout) parts(s Signal) parts {
	switch {
	case !l.ImageFs:
		return parts{true, true, true}
	case s == ImageFsAvailable || s == ImageFsInodesFree:
		return parts{root: true}
	}
	return parts{logs: true, volumes: true}
}

// DiskSignal tells whether pods are ranked by their disks for the signal, so that
// those must be measured.
func DiskSignal(s Signal) bool {
	r := s.Resource()
	return r == corev1.ResourceEphemeralStorage || r == inodes
}

// Rank orders pods, those first that go first: who uses more than it requested, then by
// priority, then by how much more it uses. A pod of which nothing is known goes before
// others.
func Rank(pods []*corev1.Pod, usages Usages, s Signal, l Layout) {
	name := s.Resource()
	use := map[*corev1.Pod]int64{}
	known := map[*corev1.Pod]bool{}
	for _, p := range pods {
		u, ok := usages(p)
		known[p] = ok
		switch {
		case !ok:
		case name == corev1.ResourceMemory:
			if u.Memory != nil {
				use[p] = *u.Memory
			}
		case name == pids:
			use[p] = u.Processes
		default:
			d := u.disk(p, l.parts(s))
			use[p] = d.Bytes
			if name == inodes {
				use[p] = d.Inodes
			}
		}
	}
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int {
		if name != pids {
			if c := trueFirst(!known[a] || use[a] > request(a, name), !known[b] || use[b] > request(b, name)); c != 0 {
				return c
			}
			if c := trueFirst(!known[a], !known[b]); c != 0 {
				return c
			}
		}
		if c := int(priority(a)) - int(priority(b)); c != 0 {
			return c
		}
		if c := trueFirst(!known[a], !known[b]); c != 0 {
			return c
		}
		// How much more a pod uses: of inodes nothing can be requested, and upstream
		// takes off the bytes that are.
		base := name
		if name == inodes {
			base = corev1.ResourceEphemeralStorage
		}
		over := func(p *corev1.Pod) int64 {
			if name == pids {
				return use[p]
			}
			return use[p] - request(p, base)
		}
		switch x, y := over(a), over(b); {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
}

func trueFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority != nil {
		return *p.Spec.Priority
	}
	return 0
}

// request is what a pod asked for, in the resource's unit.
func request(p *corev1.Pod, name corev1.ResourceName) int64 {
	all := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{
		SkipContainerLevelResources: resourcehelper.IsPodLevelResourcesSet(p), ExcludeOverhead: true,
	})
	q := all[name]
	if over, ok := p.Spec.Overhead[name]; ok && !q.IsZero() {
		q.Add(over)
	}
	return q.Value()
}

// disk sums the parts of a pod's disk usage.
func (u Usage) disk(p *corev1.Pod, of parts) Disk {
	var d Disk
	for _, c := range u.Containers {
		if of.root && c.Root != nil {
			d.add(*c.Root)
		}
		if of.logs && c.Logs != nil {
			d.add(*c.Logs)
		}
	}
	if of.volumes {
		for i := range p.Spec.Volumes {
			d.add(u.Volumes[p.Spec.Volumes[i].Name])
		}
	}
	return d
}

// Ephemeral is what a pod has on the node's disk in all, as its limits count it.
func (u Usage) Ephemeral(p *corev1.Pod) Disk {
	d := u.disk(p, parts{root: true, logs: true})
	for i := range p.Spec.Volumes {
		if v := &p.Spec.Volumes[i]; LocalEphemeral(v) {
			d.add(u.Volumes[v.Name])
		}
	}
	return d
}

// LocalEphemeral tells whether a volume counts as ephemeral storage.
func LocalEphemeral(v *corev1.Volume) bool {
	return v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault || v.ConfigMap != nil || v.GitRepo != nil
}

// Critical tells whether a pod is never evicted: static pods, mirror pods, and those
// of the priority of system-cluster-critical or above.
func Critical(p *corev1.Pod) bool {
	if source, ok := p.Annotations["kubernetes.io/config.source"]; ok && source != "api" {
		return true
	}
	if _, ok := p.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		return true
	}
	return priority(p) >= systemCritical
}

// systemCritical is the least priority of what a cluster cannot do without.
const systemCritical = 2 * 1000 * 1000 * 1000

func bytes(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }
