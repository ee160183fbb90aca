package framework

import (
	"cmp"
	"encoding/binary"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/nodedeclaredfeatures"
	declared "k8s.io/component-helpers/nodedeclaredfeatures/features"
	resourcehelper "k8s.io/component-helpers/resource"

	"skiff/internal/api/storage"
)

// HostPort is a port that a pod takes on its node.
type HostPort struct {
	IP       string // "0.0.0.0" means every address
	Protocol corev1.Protocol
	Port     int32
}

// Class is what all pods of a template have in common for scheduling. Classes
// are interned: two pods are alike exactly when their *Class is the same.
type Class struct {
	// Template is one pod of the class; plugins read from it fields that are
	// part of the key, and no others.
	Template *corev1.Pod
	// Requests is what a pod of this class asks of a node, overhead included.
	Requests Resource
	// NonZero is CPU and memory for scoring: containers that request none
	// count as 100m and 200 MiB.
	NonZero Resource
	// Scored is what NodeResourcesFit scores by: NonZero and the other requests of
	// the containers. Requests of the pod as a whole do not count there, as with
	// upstream.
	Scored Resource
	// HostPorts are the ports taken on the node.
	HostPorts []HostPort
	Priority  int32
	// NodeName is the only node that will do; see Classes.Held.
	NodeName string
	// NoPreemption is preemptionPolicy Never.
	NoPreemption bool
	// Images are the normalized names of the images, in order of containers.
	Images []string
	// Spreads are the topology spread constraints.
	Spreads []Spread
	// Claims are the volume claims, as namespace/name.
	Claims []string
	// Features are what a node must declare to be able to run the pods; nil for none.
	Features []string

	// terms are the pod affinity terms by the pod's namespace; nil where the
	// class has none.
	terms    map[string]*PodTerms
	mentions map[string]bool

	key  string
	used uint64
}

// Pod is a pod and its class.
type Pod struct {
	*corev1.Pod
	Class *Class
	// usage is nil where the pod uses what its class requests; a pod that is
	// resized in place has its own.
	usage *usage
	// Ending tells that this pod is being evicted, though the API may not say
	// so yet.
	Ending bool
	// Doomed tells that another pod was nominated to the place that this one leaves:
	// it goes, and may make room for more than that one pod.
	Doomed bool
	Kin    *Kin
	// Terms are nil where the pod has no pod affinity.
	Terms *PodTerms
	// Group is what the pod is spread among by default; the scheduler sets it.
	Group *Group

	classes  *Classes
	asked    *Kin // the last answer of Snapshot.Subject, and what it was for
	askedAt  uint64
	askedOf  *Snapshot
	askedFor *Group
}

func (p *Pod) use() *usage {
	if p.usage != nil {
		return p.usage
	}
	return &usage{requested: p.Class.Requests, nonZero: p.Class.NonZero}
}

// Uses is what the pod takes of its node.
func (p *Pod) Uses() *Resource {
	u := p.use()
	return &u.requested
}

// Key is what a pod is known by: a pod that is deleted and created anew under its
// name is another pod.
func (p *Pod) Key() types.UID { return p.UID }

// Classes interns classes.
type Classes struct {
	byKey  map[string]*Class
	kins   map[string]*Kin
	groups map[string]*Group
	buf    []byte
	tick   uint64
}

// NewClasses returns an empty set.
func NewClasses() *Classes {
	return &Classes{byKey: map[string]*Class{}, kins: map[string]*Kin{}, groups: map[string]*Group{}}
}

// maxClasses bounds the set: beyond it, classes unused for longest are forgotten.
// A forgotten class still works; its pods and later ones are alike no more.
const maxClasses = 20_000

// Pod wraps a pod. It is never nil.
func (c *Classes) Pod(p *corev1.Pod) *Pod {
	out := &Pod{Pod: p, Class: c.classOf(p), classes: c}
	out.Kin = c.kin(p.Namespace, p.Labels, nil)
	out.Terms = out.Class.termsIn(p.Namespace)
	if p.Spec.NodeName != "" && resized(p) {
		u := computeUsage(p, true)
		out.usage = &u
	}
	return out
}

// Held wraps a pod for questions about nodes other than the one that its spec
// names: it is of a class of its own, which that node alone can take.
func (c *Classes) Held(p *corev1.Pod) *Pod {
	out := c.Pod(p)
	if p.Spec.NodeName != "" {
		own := *out.Class
		own.NodeName = p.Spec.NodeName
		out.Class = &own
	}
	return out
}

func (c *Classes) classOf(p *corev1.Pod) *Class {
	c.tick++
	c.buf = appendClassKey(c.buf[:0], p)
	if cl, ok := c.byKey[string(c.buf)]; ok {
		cl.used = c.tick
		return cl
	}
	if len(c.byKey) >= maxClasses {
		c.trim()
	}
	u := computeUsage(p, false)
	cl := &Class{
		Template: p, Requests: u.requested, NonZero: u.nonZero, Scored: scored(p, &u),
		HostPorts: hostPorts(p), Images: images(p), Spreads: SpreadsOf(p.Spec.TopologySpreadConstraints),
		Claims: claims(p), Features: features(p), key: string(c.buf), used: c.tick,
	}
	if a := p.Spec.Affinity; a != nil && (a.PodAffinity != nil || a.PodAntiAffinity != nil) {
		cl.terms = map[string]*PodTerms{}
	}
	cl.mentions = cl.mentioned()
	if p.Spec.Priority != nil {
		cl.Priority = *p.Spec.Priority
	}
	cl.NoPreemption = p.Spec.PreemptionPolicy != nil && *p.Spec.PreemptionPolicy == corev1.PreemptNever
	c.byKey[cl.key] = cl
	return cl
}

func (c *Classes) trim() {
	ticks := make([]uint64, 0, len(c.byKey))
	for _, cl := range c.byKey {
		ticks = append(ticks, cl.used)
	}
	slices.Sort(ticks)
	limit := ticks[len(ticks)/2]
	for k, cl := range c.byKey {
		if cl.used < limit {
			delete(c.byKey, k)
		}
	}
}

// appendClassKey writes every field that a plugin may judge by, each list after
// its length, so that no two sets of fields write the same. Amounts are written
// as numbers: 1 and 1000m are alike.
func appendClassKey(b []byte, p *corev1.Pod) []byte {
	s := &p.Spec
	var priority int32
	if s.Priority != nil {
		priority = *s.Priority
	}
	b = appendString(b, s.SchedulerName)
	b = binary.AppendVarint(b, int64(priority))
	b = appendBool(b, s.PreemptionPolicy != nil && *s.PreemptionPolicy == corev1.PreemptNever)
	b = binary.AppendUvarint(b, uint64(len(s.NodeSelector)))
	if len(s.NodeSelector) > 0 {
		keys := make([]string, 0, len(s.NodeSelector))
		for k := range s.NodeSelector {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			b = appendString(appendString(b, k), s.NodeSelector[k])
		}
	}
	var affinity []byte
	if s.Affinity != nil {
		affinity, _ = s.Affinity.Marshal()
	}
	b = appendString(b, string(affinity))
	b = binary.AppendUvarint(b, uint64(len(s.TopologySpreadConstraints)))
	for i := range s.TopologySpreadConstraints {
		constraint, _ := s.TopologySpreadConstraints[i].Marshal()
		b = appendString(b, string(constraint))
	}
	b = binary.AppendUvarint(b, uint64(len(s.Tolerations)))
	for i := range s.Tolerations {
		t := &s.Tolerations[i]
		// TolerationSeconds says how long a pod stays, not where it may go.
		b = appendString(b, t.Key)
		b = appendString(b, string(t.Operator))
		b = appendString(b, t.Value)
		b = appendString(b, string(t.Effect))
	}
	b = appendResources(b, s.Overhead)
	b = appendBool(b, s.Resources != nil)
	if s.Resources != nil {
		b = appendResources(b, s.Resources.Requests)
		b = appendResources(b, s.Resources.Limits)
	}
	b = appendContainers(b, s.InitContainers)
	b = appendContainers(b, s.Containers)
	for i := range s.Volumes {
		v := &s.Volumes[i]
		if v.Image != nil {
			b = appendString(append(b, 'i'), v.Image.Reference)
		}
		if claim := storage.ClaimOf(p, v); claim != "" {
			b = appendString(appendString(append(b, 'c'), p.Namespace), claim)
		}
		if Attaches(v) {
			source, _ := v.VolumeSource.Marshal()
			b = appendString(append(b, 'v'), string(source))
		}
	}
	for _, f := range features(p) {
		b = appendString(append(b, 'f'), f)
	}
	if len(s.ResourceClaims) > 0 {
		// Claims are reserved for one pod: no other is like it.
		b = appendString(append(b, 'd'), string(p.UID))
		for i := range p.Status.ResourceClaimStatuses {
			st := &p.Status.ResourceClaimStatuses[i]
			b = appendBool(appendString(b, st.Name), st.ResourceClaimName != nil)
			if st.ResourceClaimName != nil {
				b = appendString(b, *st.ResourceClaimName)
			}
		}
	}
	return b
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendResources(b []byte, list corev1.ResourceList) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	if len(list) == 0 {
		return b
	}
	var names [8]corev1.ResourceName
	keys := names[:0]
	for n := range list {
		keys = append(keys, n)
	}
	slices.Sort(keys)
	for _, n := range keys {
		q := list[n]
		b = appendString(b, string(n))
		if n == corev1.ResourceCPU {
			b = binary.AppendVarint(b, q.MilliValue())
		} else {
			b = binary.AppendVarint(b, q.Value())
		}
	}
	return b
}

func appendContainers(b []byte, cs []corev1.Container) []byte {
	b = binary.AppendUvarint(b, uint64(len(cs)))
	for i := range cs {
		c := &cs[i]
		b = appendBool(b, c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways)
		b = appendString(b, c.Image)
		b = appendResources(b, c.Resources.Requests)
		ports := 0
		for j := range c.Ports {
			if c.Ports[j].HostPort > 0 {
				ports++
			}
		}
		b = binary.AppendUvarint(b, uint64(ports))
		for j := range c.Ports {
			if p := &c.Ports[j]; p.HostPort > 0 {
				b = appendString(b, p.HostIP)
				b = appendString(b, string(p.Protocol))
				b = binary.AppendVarint(b, int64(p.HostPort))
			}
		}
	}
	return b
}

func hostPorts(p *corev1.Pod) []HostPort {
	var out []HostPort
	add := func(cs []corev1.Container, sidecarsAlone bool) {
		for i := range cs {
			if sidecarsAlone && (cs[i].RestartPolicy == nil || *cs[i].RestartPolicy != corev1.ContainerRestartPolicyAlways) {
				continue
			}
			for _, port := range cs[i].Ports {
				if port.HostPort <= 0 {
					continue
				}
				h := HostPort{IP: port.HostIP, Protocol: port.Protocol, Port: port.HostPort}
				if h.IP == "" {
					h.IP = "0.0.0.0"
				}
				if h.Protocol == "" {
					h.Protocol = corev1.ProtocolTCP
				}
				if !slices.Contains(out, h) {
					out = append(out, h)
				}
			}
		}
	}
	add(p.Spec.InitContainers, true)
	add(p.Spec.Containers, false)
	return out
}

// Attaches tells whether a volume is a disk that is named in the pod itself and
// that a node must attach.
func Attaches(v *corev1.Volume) bool {
	return v.GCEPersistentDisk != nil || v.AWSElasticBlockStore != nil || v.ISCSI != nil || v.RBD != nil ||
		v.AzureDisk != nil || v.Cinder != nil || v.PortworxVolume != nil || v.CSI != nil
}

func claims(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.Volumes {
		if claim := storage.ClaimOf(p, &p.Spec.Volumes[i]); claim != "" {
			out = append(out, p.Namespace+"/"+claim)
		}
	}
	return out
}

// features are the features that a node must declare to be able to run a pod
// (KEP 5328). Most pods need none, and are told so without an allocation.
func features(p *corev1.Pod) []string {
	s := &p.Spec
	info := nodedeclaredfeatures.PodInfo{Spec: s}
	var out []string
	for _, f := range declared.AllFeatures {
		if f.InferForScheduling(&info) {
			out = append(out, f.Name())
		}
	}
	slices.Sort(out)
	return out
}

// NormalizedImage gives an image name the tag that it stands for.
func NormalizedImage(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		switch name[i] {
		case ':':
			return name
		case '/':
			return name + ":latest"
		}
	}
	return name + ":latest"
}

func images(p *corev1.Pod) []string {
	var out []string
	for i := range p.Spec.InitContainers {
		out = append(out, NormalizedImage(p.Spec.InitContainers[i].Image))
	}
	for i := range p.Spec.Containers {
		out = append(out, NormalizedImage(p.Spec.Containers[i].Image))
	}
	for i := range p.Spec.Volumes {
		if v := p.Spec.Volumes[i].Image; v != nil {
			out = append(out, NormalizedImage(v.Reference))
		}
	}
	return out
}

// Amounts that a container which requests none counts for in scores.
const (
	assumedMilliCPU = 100
	assumedMemory   = 200 << 20
)

// computeUsage applies the request arithmetic of the API: containers add up,
// init containers are a maximum, sidecars count from their start on, pod-level
// requests replace the sum, overhead comes on top. For a pod on a node (status)
// what is allocated and in force counts where it is larger than what is wished.
func computeUsage(p *corev1.Pod, status bool) usage {
	o := resourcehelper.PodResourcesOptions{UseStatusResources: status, InPlacePodLevelResourcesVerticalScalingEnabled: status}
	requested := resourcehelper.PodRequests(p, o)
	nonZero := corev1.ResourceList{}
	podLevel := resourcehelper.IsPodLevelRequestsSet(p)
	if _, ok := requested[corev1.ResourceCPU]; !podLevel || !ok {
		nonZero[corev1.ResourceCPU] = *resource.NewMilliQuantity(assumedMilliCPU, resource.DecimalSI)
	}
	if _, ok := requested[corev1.ResourceMemory]; !podLevel || !ok {
		nonZero[corev1.ResourceMemory] = *resource.NewQuantity(assumedMemory, resource.BinarySI)
	}
	u := usage{requested: ResourceOf(requested)}
	u.nonZero = u.requested
	if len(nonZero) > 0 {
		o.NonMissingContainerRequests = nonZero
		u.nonZero = ResourceOf(resourcehelper.PodRequests(p, o))
	}
	u.nonZero = Resource{MilliCPU: u.nonZero.MilliCPU, Memory: u.nonZero.Memory}
	return u
}

func scored(p *corev1.Pod, u *usage) Resource {
	if resourcehelper.IsPodLevelRequestsSet(p) {
		return ResourceOf(resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{
			SkipPodLevelResources: true,
			NonMissingContainerRequests: corev1.ResourceList{
				corev1.ResourceCPU:    *resource.NewMilliQuantity(assumedMilliCPU, resource.DecimalSI),
				corev1.ResourceMemory: *resource.NewQuantity(assumedMemory, resource.BinarySI),
			},
		}))
	}
	out := u.requested
	out.MilliCPU, out.Memory = u.nonZero.MilliCPU, u.nonZero.Memory
	return out
}

// resized tells whether a status reports other resources than the spec wishes.
func resized(p *corev1.Pod) bool {
	if p.Status.AllocatedResources != nil || p.Status.Resources != nil {
		return true
	}
	check := func(cs []corev1.Container, st []corev1.ContainerStatus) bool {
		for i := range st {
			if st[i].AllocatedResources == nil && (st[i].Resources == nil || st[i].Resources.Requests == nil) {
				continue
			}
			j := slices.IndexFunc(cs, func(c corev1.Container) bool { return c.Name == st[i].Name })
			if j < 0 {
				continue
			}
			want := cs[j].Resources.Requests
			if st[i].AllocatedResources != nil && !sameAmounts(want, st[i].AllocatedResources) {
				return true
			}
			if r := st[i].Resources; r != nil && r.Requests != nil && !sameAmounts(want, r.Requests) {
				return true
			}
		}
		return false
	}
	return check(p.Spec.Containers, p.Status.ContainerStatuses) || check(p.Spec.InitContainers, p.Status.InitContainerStatuses)
}

func sameAmounts(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for n, q := range a {
		if r, ok := b[n]; !ok || r.Cmp(q) != 0 {
			return false
		}
	}
	return true
}

// ComparePods orders pods as the queue of pending pods does: priority first,
// then since when they wait, then by name so that the order is total.
func ComparePods(a, b *Pod) int {
	return cmp.Or(
		cmp.Compare(b.Class.Priority, a.Class.Priority),
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name),
	)
}
