package plugins

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/framework"
)

// NodeResourcesFit refuses nodes that have not enough of a resource left, and
// prefers some by how much of their resources is taken. The zero value prefers
// those with most left of CPU and memory (LeastAllocated).
type NodeResourcesFit struct {
	// ignored are extended resources, and groups the prefixes of such, that are
	// somebody else's to judge.
	ignored, groups map[string]bool
	scoring         *scoring
	// Devices says which extended resources device classes stand for: nodes that
	// have none of such a resource themselves are left to DynamicResources. It may
	// be nil.
	Devices interface {
		Backs(name corev1.ResourceName) bool
	}
}

// NewNodeResourcesFit returns the plugin with arguments that were defaulted and
// validated.
func NewNodeResourcesFit(args *config.NodeResourcesFitArgs) NodeResourcesFit {
	f := NodeResourcesFit{ignored: setOf(args.IgnoredResources), groups: setOf(args.IgnoredResourceGroups)}
	if s := args.ScoringStrategy; s != nil && !usual(s) {
		f.scoring = newScoring(s)
	}
	return f
}

// usual tells whether a strategy is the one of the zero value, which is faster.
func usual(s *config.ScoringStrategy) bool {
	return s.Type == config.LeastAllocated &&
		slices.Equal(s.Resources, []config.ResourceSpec{{Name: string(corev1.ResourceCPU), Weight: 1}, {Name: string(corev1.ResourceMemory), Weight: 1}})
}

func setOf(names []string) map[string]bool {
	if len(names) == 0 {
		return nil
	}
	out := make(map[string]bool, len(names))
	for _, n := range names {
		out[n] = true
	}
	return out
}

// ignores tells whether a resource is not to be looked at.
func (f NodeResourcesFit) ignores(name corev1.ResourceName) bool {
	if f.ignored == nil && f.groups == nil || !extended(name) {
		return false
	}
	group, _, _ := strings.Cut(string(name), "/")
	return f.ignored[string(name)] || f.groups[group]
}

// extended tells whether a resource is an extended one: of a domain that is not
// Kubernetes' own.
func extended(name corev1.ResourceName) bool {
	n := string(name)
	return strings.Contains(n, "/") && !strings.Contains(n, corev1.ResourceDefaultNamespacePrefix) &&
		!strings.HasPrefix(n, corev1.DefaultResourceRequestsPrefix)
}

// delegated tells that what a node has of a resource is for DynamicResources to say.
func (f NodeResourcesFit) delegated(name corev1.ResourceName, allocatable int64) bool {
	return allocatable == 0 && f.Devices != nil && f.Devices.Backs(name)
}

// The four resources that every node has, as bits; a fifth says that no eviction
// could help.
const (
	lackPods = 1 << iota
	lackCPU
	lackMemory
	lackStorage
	lackAlways
	lackEnd
)

var lacks = makeLacks()

func makeLacks() [lackEnd]*framework.Status {
	var out [lackEnd]*framework.Status
	for bits := 1; bits < lackEnd; bits++ {
		st := &framework.Status{Code: framework.Unschedulable, Plugin: "NodeResourcesFit"}
		if bits&lackAlways != 0 {
			st.Code = framework.Unresolvable
		}
		for _, r := range []struct {
			bit    int
			reason string
		}{{lackPods, "Too many pods"}, {lackCPU, "Insufficient cpu"}, {lackMemory, "Insufficient memory"}, {lackStorage, "Insufficient ephemeral-storage"}} {
			if bits&r.bit != 0 {
				st.Reasons = append(st.Reasons, r.reason)
			}
		}
		out[bits] = st
	}
	return out
}

// Name implements framework.Plugin.
func (NodeResourcesFit) Name() string { return "NodeResourcesFit" }

// Filter implements framework.Filterer.
func (f NodeResourcesFit) Filter(_ any, c *framework.Class, n *framework.Node) *framework.Status {
	bits := 0
	want, have, used := &c.Requests, &n.Allocatable, &n.Requested
	if int64(len(n.Pods))+1 > have.Pods {
		bits |= lackPods
	}
	for _, r := range [...]struct {
		want, have, used int64
		bit              int
	}{
		{want.MilliCPU, have.MilliCPU, used.MilliCPU, lackCPU},
		{want.Memory, have.Memory, used.Memory, lackMemory},
		{want.EphemeralStorage, have.EphemeralStorage, used.EphemeralStorage, lackStorage},
	} {
		if r.want > 0 && r.want > r.have-r.used {
			bits |= r.bit
			if r.want > r.have {
				bits |= lackAlways
			}
		}
	}
	if len(want.Scalar) == 0 {
		return lacks[bits]
	}
	var names []string
	for name, w := range want.Scalar {
		if w > 0 && w > have.Scalar[name]-used.Scalar[name] && !f.ignores(name) && !f.delegated(name, have.Scalar[name]) {
			names = append(names, string(name))
			if w > have.Scalar[name] {
				bits |= lackAlways
			}
		}
	}
	if len(names) == 0 {
		return lacks[bits]
	}
	slices.Sort(names)
	st := &framework.Status{Code: framework.Unschedulable, Plugin: "NodeResourcesFit"}
	if bits&lackAlways != 0 {
		st.Code = framework.Unresolvable
	}
	if known := lacks[bits]; known != nil {
		st.Reasons = append(st.Reasons, known.Reasons...)
	}
	for _, name := range names {
		st.Reasons = append(st.Reasons, "Insufficient "+name)
	}
	return st
}

// Score implements framework.Scorer.
func (f NodeResourcesFit) Score(_ any, c *framework.Class, n *framework.Node, _ *framework.Snapshot) int64 {
	if f.scoring != nil {
		return f.scoring.score(c, n)
	}
	var sum, count int64
	for _, r := range [...][2]int64{
		{n.NonZero.MilliCPU + c.Scored.MilliCPU, n.Allocatable.MilliCPU},
		{n.NonZero.Memory + c.Scored.Memory, n.Allocatable.Memory},
	} {
		if r[1] > 0 {
			count++
			sum += leastAllocated(r[0], r[1])
		}
	}
	if count == 0 {
		return 0
	}
	return sum / count
}

// share is part of whole, of MaxScore. Absurd amounts are computed less exactly,
// since they would overflow.
func share(part, whole int64) int64 {
	if whole >= 1<<56 {
		return int64(float64(part) / float64(whole) * framework.MaxScore)
	}
	return part * framework.MaxScore / whole
}

// Explain implements framework.Explainer.
func (NodeResourcesFit) Explain(c *framework.Class, n *framework.Node) string {
	if int64(len(n.Pods))+1 > n.Allocatable.Pods {
		return fmt.Sprintf("node %s runs %d of at most %d pods", n.Name, len(n.Pods), n.Allocatable.Pods)
	}
	names := []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}
	for name := range c.Requests.Scalar {
		names = append(names, name)
	}
	slices.Sort(names[3:])
	for _, name := range names {
		want, have, used := c.Requests.Of(name), n.Allocatable.Of(name), n.Requested.Of(name)
		if want > 0 && want > have-used {
			return fmt.Sprintf("the pod requests %s of %s and node %s has %s of %s left: %s less would fit",
				amount(name, want), name, n.Name, amount(name, max(have-used, 0)), amount(name, have), amount(name, want-max(have-used, 0)))
		}
	}
	return fmt.Sprintf("node %s has what the pod requests", n.Name)
}

func amount(name corev1.ResourceName, v int64) string {
	switch name {
	case corev1.ResourceCPU:
		return resource.NewMilliQuantity(v, resource.DecimalSI).String()
	case corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return resource.NewQuantity(v, resource.BinarySI).String()
	}
	return resource.NewQuantity(v, resource.DecimalSI).String()
}

// Events implements framework.Hinter.
func (NodeResourcesFit) Events() framework.EventKind {
	return framework.NodeAdded | framework.NodeAllocatable | framework.PodDeleted | framework.PodShrunk | framework.PodRequests | framework.DeviceClasses
}

// Hint implements framework.Hinter.
func (f NodeResourcesFit) Hint(p *framework.Pod, e framework.Event) bool {
	c := p.Class
	switch {
	case e.Kind&framework.PodDeleted != 0:
		return true // its place, at least, is free
	case e.Kind&framework.PodShrunk != 0:
		return e.OldPod != nil && less(c, e.OldPod.Uses(), e.Pod.Uses())
	case e.Kind&framework.PodRequests != 0:
		return e.OldPod == nil || less(e.OldPod.Class, &e.OldPod.Class.Requests, &c.Requests)
	}
	if e.Kind&framework.DeviceClasses != 0 {
		return f.Devices != nil && len(c.Requests.Scalar) > 0
	}
	now := framework.NodeOf(e.Node)
	if f.Filter(nil, c, now) != nil {
		return false
	}
	if e.OldNode == nil {
		return true
	}
	was := framework.ResourceOf(e.OldNode.Status.Allocatable)
	if now.Allocatable.Pods > was.Pods {
		return true
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if c.Requests.Of(name) > 0 && now.Allocatable.Of(name) > was.Of(name) {
			return true
		}
	}
	for name, want := range c.Requests.Scalar {
		if want > 0 && now.Allocatable.Scalar[name] > was.Scalar[name] {
			return true
		}
	}
	return false
}

// less tells whether of a resource that a class requests less is taken now.
func less(c *framework.Class, was, now *framework.Resource) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		if c.Requests.Of(name) > 0 && was.Of(name) > now.Of(name) {
			return true
		}
	}
	for name, v := range c.Requests.Scalar {
		if v > 0 && was.Scalar[name] > now.Scalar[name] {
			return true
		}
	}
	return false
}
