package controller

import (
	"math"
	"sort"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"skiff/internal/client"
)

func podCondition(p *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == t {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func podReady(p *corev1.Pod) bool {
	c := podCondition(p, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// podAvailable tells whether p has been ready for minReady seconds.
func podAvailable(p *corev1.Pod, minReady int32, now time.Time) bool {
	if !podReady(p) {
		return false
	}
	since := podCondition(p, corev1.PodReady).LastTransitionTime
	return minReady == 0 || !since.IsZero() && !since.Add(time.Duration(minReady)*time.Second).After(now)
}

func podTerminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

func podActive(p *corev1.Pod) bool { return !podTerminal(p) && p.DeletionTimestamp == nil }

func podTerminating(p *corev1.Pod) bool { return !podTerminal(p) && p.DeletionTimestamp != nil }

// nextAvailable is the time until the next of pods becomes available by having
// been ready long enough; zero where none waits for that.
func nextAvailable(pods []*corev1.Pod, minReady int32, now time.Time) time.Duration {
	var next time.Duration
	for _, p := range pods {
		if minReady <= 0 || !podReady(p) {
			continue
		}
		since := podCondition(p, corev1.PodReady).LastTransitionTime
		if since.IsZero() {
			continue
		}
		if d := since.Add(time.Duration(minReady) * time.Second).Sub(now); d > 0 && (next == 0 || d < next) {
			next = d
		}
	}
	return next
}

// victims orders pods so that those to be deleted first come first: not yet
// scheduled, in an earlier phase, not ready, of lower deletion cost, on a node with
// more related pods, ready for a shorter time, restarted more often, younger. Times
// are compared by their logarithm, so that pods of about the same age are taken at
// random (by UID) and not always the youngest.
type victims struct {
	pods []*corev1.Pod
	rank []int
	now  time.Time
}

var phaseOrder = map[corev1.PodPhase]int{corev1.PodPending: 0, corev1.PodUnknown: 1, corev1.PodRunning: 2}

func (v victims) Len() int { return len(v.pods) }

func (v victims) Swap(i, j int) {
	v.pods[i], v.pods[j] = v.pods[j], v.pods[i]
	v.rank[i], v.rank[j] = v.rank[j], v.rank[i]
}

func (v victims) Less(i, j int) bool {
	a, b := v.pods[i], v.pods[j]
	if (a.Spec.NodeName == "") != (b.Spec.NodeName == "") {
		return a.Spec.NodeName == ""
	}
	if x, y := phaseOrder[a.Status.Phase], phaseOrder[b.Status.Phase]; x != y {
		return x < y
	}
	ready := podReady(a)
	if ready != podReady(b) {
		return !ready
	}
	if x, y := deletionCost(a), deletionCost(b); x != y {
		return x < y
	}
	if v.rank[i] != v.rank[j] {
		return v.rank[i] > v.rank[j]
	}
	if ready {
		x, y := podCondition(a, corev1.PodReady).LastTransitionTime, podCondition(b, corev1.PodReady).LastTransitionTime
		if !x.Equal(&y) {
			return v.younger(a, b, x, y)
		}
	}
	ar, as := restarts(a)
	br, bs := restarts(b)
	if ar != br {
		return ar > br
	}
	if as != bs {
		return as > bs
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return v.younger(a, b, a.CreationTimestamp, b.CreationTimestamp)
	}
	return false
}

func (v victims) younger(a, b *corev1.Pod, x, y metav1.Time) bool {
	if x.IsZero() || y.IsZero() {
		return x.IsZero()
	}
	if d := magnitude(v.now.Sub(x.Time)) - magnitude(v.now.Sub(y.Time)); d != 0 {
		return d < 0
	}
	return a.UID < b.UID
}

func magnitude(d time.Duration) int64 {
	if d <= 0 {
		return -1
	}
	return int64(math.Log2(float64(d)))
}

// deletionCost is the pod's own wish; an unparsable one counts as none.
func deletionCost(p *corev1.Pod) int32 {
	s, ok := p.Annotations[corev1.PodDeletionCost]
	if !ok || s == "" || s[0] == '+' || len(s) > 1 && s[0] == '0' {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

// restarts is the highest number of restarts of a container, and of a sidecar.
func restarts(p *corev1.Pod) (regular, sidecar int32) {
	for _, c := range p.Status.ContainerStatuses {
		regular = max(regular, c.RestartCount)
	}
	for _, c := range p.Status.InitContainerStatuses {
		for i := range p.Spec.InitContainers {
			ic := &p.Spec.InitContainers[i]
			if ic.Name == c.Name && ic.RestartPolicy != nil && *ic.RestartPolicy == corev1.ContainerRestartPolicyAlways {
				sidecar = max(sidecar, c.RestartCount)
			}
		}
	}
	return regular, sidecar
}

// chooseVictims picks n of pods to delete. related are the pods that count for
// the ranking by node.
func chooseVictims(pods, related []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n >= len(pods) {
		return pods
	}
	onNode := map[string]int{}
	for _, p := range related {
		if podActive(p) {
			onNode[p.Spec.NodeName]++
		}
	}
	v := victims{pods: append([]*corev1.Pod(nil), pods...), rank: make([]int, len(pods)), now: now}
	for i, p := range v.pods {
		v.rank[i] = onNode[p.Spec.NodeName]
	}
	sort.Sort(v)
	return v.pods[:n]
}

// podFromTemplate is a new pod of an owner.
func podFromTemplate(t *corev1.PodTemplateSpec, owner client.Object, kind schema.GroupVersionKind) *corev1.Pod {
	prefix := owner.GetName() + "-"
	if len(prefix) > validation.DNS1123SubdomainMaxLength {
		prefix = owner.GetName()
	}
	t = t.DeepCopy()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: prefix, Namespace: owner.GetNamespace(),
			Labels: t.Labels, Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)},
		},
		Spec: t.Spec,
	}
}
