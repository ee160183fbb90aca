package explain

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/scheduler/framework"
)

// hypothetical is in the names of nodes that are not there, and in no other.
const hypothetical = "+"

// passing tells that a taint says what state a node is in: it goes when that does.
func passing(t *corev1.Taint) bool {
	return t.Key == corev1.TaintNodeUnschedulable || strings.HasPrefix(t.Key, "node.kubernetes.io/") || strings.HasPrefix(t.Key, "node.cloudprovider.kubernetes.io/")
}

// shape is what makes nodes alike for a pod.
func shape(n *corev1.Node) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(n.Status.Allocatable)) {
		q := n.Status.Allocatable[name]
		fmt.Fprintf(&b, "%s=%s ", name, q.String())
	}
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		if k != corev1.LabelHostname {
			fmt.Fprintf(&b, "%s=%s ", k, n.Labels[k])
		}
	}
	for i := range n.Spec.Taints {
		if t := &n.Spec.Taints[i]; !passing(t) {
			b.WriteString(t.ToString() + " ")
		}
	}
	return b.String()
}

// shapes are nodes of which no two are alike, the smallest first.
func (m *sim) shapes() []*corev1.Node {
	seen := map[string]bool{}
	var out []*corev1.Node
	for _, n := range all[*corev1.Node](m.w) {
		if k := shape(n); !seen[k] {
			seen[k] = true
			out = append(out, n)
		}
	}
	slices.SortStableFunc(out, func(a, b *corev1.Node) int {
		return cmp.Or(a.Status.Allocatable.Cpu().Cmp(*b.Status.Allocatable.Cpu()), a.Status.Allocatable.Memory().Cmp(*b.Status.Allocatable.Memory()))
	})
	return out
}

// oneMore is a node like another, as it would be when it has just joined: it has the
// pods of that one's daemon sets.
func (m *sim) oneMore(like *corev1.Node, number int) (*corev1.Node, []*corev1.Pod) {
	n := like.DeepCopy()
	n.Name = fmt.Sprintf("%s%s%d", like.Name, hypothetical, number)
	n.UID = types.UID(n.Name)
	if _, ok := n.Labels[corev1.LabelHostname]; ok {
		n.Labels[corev1.LabelHostname] = n.Name
	}
	n.Spec.Unschedulable = false
	n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool { return passing(&t) })
	var pods []*corev1.Pod
	on := m.s.Node(like.Name)
	if on == nil {
		return n, nil
	}
	for _, p := range on.Pods {
		if o := metav1.GetControllerOfNoCopy(p.Pod); o != nil && o.Kind == "DaemonSet" {
			c := p.Pod.DeepCopy()
			c.Name, c.UID, c.Spec.NodeName = c.Name+n.Name, c.UID+types.UID("-"+n.Name), n.Name
			pods = append(pods, c)
		}
	}
	return n, pods
}

// maxMore is how many nodes at most are added before giving up.
const maxMore = 10

// moreNodes is the smallest number of nodes like one of those there are, the smallest
// of those, that lets the pod run after other changes; where it is larger than any,
// a larger one.
func (m *sim) moreNodes(p *corev1.Pod, cs []change) (change, string, bool) {
	shapes := m.shapes()
	most := 1
	if len(m.ahead) > 0 {
		most = maxMore
	}
	for number := 1; number <= most; number++ {
		for _, like := range shapes {
			c := change{key: "node", costly: true}
			for i := range number {
				n, pods := m.oneMore(like, i+1)
				c.nodes, c.pods = append(c.nodes, n), append(c.pods, pods...)
			}
			if node, ok := m.place(p, join(cs, c)); ok {
				c.message = fmt.Sprintf("one more node like %s (%s)", like.Name, size(like))
				if number > 1 {
					c.message = fmt.Sprintf("%d more nodes like %s (%s each): %s", number, like.Name, size(like), before(len(m.ahead)))
				}
				return c, named(node), true
			}
		}
	}
	for _, like := range slices.Backward(shapes) {
		n, pods := m.oneMore(like, 1)
		var need []string
		c := m.classes.Pod(changed(p, cs)).Class
		bare := framework.NodeOf(n)
		held := bare.With(each(pods, m.classes.Pod)...)
		for _, name := range lacking(c, held) {
			v := held.Requested.Of(name) + c.Requests.Of(name)
			n.Status.Allocatable[name] = quantity(name, v)
			need = append(need, rough(name, v)+" "+called(name))
		}
		ch := change{key: "node", costly: true, nodes: []*corev1.Node{n}, pods: pods}
		if len(need) == 0 {
			continue
		}
		if node, ok := m.place(p, join(cs, ch)); ok {
			ch.message = fmt.Sprintf("a larger node: like %s, but with %s", like.Name, and(need))
			return ch, named(node), true
		}
	}
	return change{}, "", false
}

func before(pods int) string {
	if pods == 1 {
		return "1 other pending pod comes first"
	}
	return fmt.Sprintf("%d other pending pods come first", pods)
}

// named is the name of a node for a person: one that is not there has none.
func named(node string) string {
	if strings.Contains(node, hypothetical) {
		return "the new node"
	}
	return node
}

func size(n *corev1.Node) string {
	a := n.Status.Allocatable
	parts := []string{a.Cpu().String() + " CPU", rough(corev1.ResourceMemory, a.Memory().Value()) + " memory"}
	for _, name := range slices.Sorted(maps.Keys(a)) {
		switch {
		case name == corev1.ResourceCPU, name == corev1.ResourceMemory, name == corev1.ResourcePods, name == corev1.ResourceEphemeralStorage:
		case strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
		default:
			q := a[name]
			parts = append(parts, q.String()+" "+string(name))
		}
	}
	return strings.Join(parts, ", ")
}

func join(cs []change, more ...change) []change { return append(slices.Clone(cs), more...) }

func each[T, U any](list []T, f func(T) U) []U {
	out := make([]U, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}

// and joins words as a sentence does.
func and(words []string) string {
	switch n := len(words); n {
	case 0:
		return ""
	case 1:
		return words[0]
	default:
		return strings.Join(words[:n-1], ", ") + " and " + words[n-1]
	}
}
