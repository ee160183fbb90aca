package plugins

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/scheduler/framework"
)

func list(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func node(change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a", "disk": "ssd"}},
		Status:     corev1.NodeStatus{Allocatable: list("cpu", "4", "memory", "8Gi", "pods", "10")},
	}
	for _, c := range change {
		c(n)
	}
	return n
}

func pod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "d", UID: "p"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "app"}}}}
	for _, c := range change {
		c(p)
	}
	return p
}

func requests(pairs ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list(pairs...) }
}

func hostPort(ip string, protocol corev1.Protocol, port int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{HostIP: ip, Protocol: protocol, HostPort: port, ContainerPort: port})
	}
}

func tainted(effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "dedicated", Value: "gpu", Effect: effect})
	}
}

func tolerating(t corev1.Toleration) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Tolerations = append(p.Spec.Tolerations, t) }
}

func required(terms ...corev1.NodeSelectorTerm) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms},
		}}
	}
}

func expression(key string, op corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}
}

func named(values ...string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: values}}}
}

// filter asks a plugin as the cycle does.
func filter(p framework.Plugin, c *framework.Class, n *framework.Node) *framework.Status {
	var state any
	if pre, ok := p.(framework.PreFilterer); ok {
		var st *framework.Status
		if state, _, st = pre.PreFilter(c); st != nil {
			if st.Code == framework.Skip {
				return nil
			}
			return st
		}
	}
	return p.(framework.Filterer).Filter(state, c, n)
}

func TestFilters(t *testing.T) {
	sidecar := corev1.ContainerRestartPolicyAlways
	tests := []struct {
		name   string
		plugin framework.Plugin
		pod    *corev1.Pod
		node   *corev1.Node
		on     []*corev1.Pod
		want   string // reasons, joined; empty for none
		always bool   // no eviction can help
		says   string // part of the sentence for a person
	}{
		{name: "fits", plugin: NodeResourcesFit{}, pod: pod(requests("cpu", "4", "memory", "8Gi")), node: node()},
		{name: "cpu", plugin: NodeResourcesFit{}, pod: pod(requests("cpu", "3")), node: node(), on: []*corev1.Pod{pod(requests("cpu", "2"))},
			want: "Insufficient cpu", says: "requests 3 of cpu and node n has 2 of 4 left: 1 less would fit"},
		{name: "cpu and memory, beyond the node", plugin: NodeResourcesFit{}, pod: pod(requests("cpu", "5", "memory", "9Gi")), node: node(),
			want: "Insufficient cpu;Insufficient memory", always: true, says: "1 less would fit"},
		{name: "ephemeral storage", plugin: NodeResourcesFit{}, pod: pod(requests("ephemeral-storage", "1Gi")), node: node(),
			want: "Insufficient ephemeral-storage", always: true, says: "1Gi less"},
		{name: "extended", plugin: NodeResourcesFit{}, pod: pod(requests("example.com/gpu", "2")),
			node: node(func(n *corev1.Node) { n.Status.Allocatable["example.com/gpu"] = resource.MustParse("2") }),
			on:   []*corev1.Pod{pod(requests("example.com/gpu", "1"))}, want: "Insufficient example.com/gpu", says: "has 1 of 2 left"},
		{name: "extended, unknown to the node", plugin: NodeResourcesFit{}, pod: pod(requests("cpu", "5", "example.com/b", "1", "example.com/a", "1")), node: node(),
			want: "Insufficient cpu;Insufficient example.com/a;Insufficient example.com/b", always: true, says: "cpu"},
		{name: "number of pods", plugin: NodeResourcesFit{}, pod: pod(), node: node(func(n *corev1.Node) { n.Status.Allocatable["pods"] = resource.MustParse("1") }),
			on: []*corev1.Pod{pod()}, want: "Too many pods", says: "runs 1 of at most 1 pods"},
		{name: "init container is a maximum", plugin: NodeResourcesFit{}, pod: pod(requests("cpu", "1"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Resources: corev1.ResourceRequirements{Requests: list("cpu", "4")}}}
		}), node: node()},
		{name: "sidecar adds up", plugin: NodeResourcesFit{}, pod: pod(requests("cpu", "1"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", RestartPolicy: &sidecar, Resources: corev1.ResourceRequirements{Requests: list("cpu", "4")}}}
		}), node: node(), want: "Insufficient cpu", always: true, says: "5 of cpu"},
		{name: "overhead", plugin: NodeResourcesFit{}, pod: pod(requests("cpu", "4"), func(p *corev1.Pod) { p.Spec.Overhead = list("cpu", "1m") }), node: node(),
			want: "Insufficient cpu", always: true, says: "1m less"},
		{name: "pod-level requests replace the sum", plugin: NodeResourcesFit{}, pod: pod(requests("cpu", "2"), func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("cpu", "5")}
		}), node: node(), want: "Insufficient cpu", always: true, says: "5 of cpu"},

		{name: "selector", plugin: NodeAffinity{}, pod: pod(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "a"} }), node: node()},
		{name: "selector, other value", plugin: NodeAffinity{}, pod: pod(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }), node: node(),
			want: "node(s) didn't match Pod's node affinity/selector", always: true, says: "zone=b, and node n has zone=a"},
		{name: "selector, no label", plugin: NodeAffinity{}, pod: pod(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"gpu": "1"} }), node: node(),
			want: "node(s) didn't match Pod's node affinity/selector", always: true, says: "gpu=1, which node n lacks"},
		{name: "affinity, one of two terms", plugin: NodeAffinity{}, pod: pod(required(expression("zone", "In", "x"), expression("disk", "Exists"))), node: node()},
		{name: "affinity, none", plugin: NodeAffinity{}, pod: pod(required(expression("zone", "NotIn", "a"))), node: node(),
			want: "node(s) didn't match Pod's node affinity/selector", always: true, says: "matches no term"},
		{name: "affinity Gt", plugin: NodeAffinity{}, pod: pod(required(expression("cores", "Gt", "8"))), node: node(func(n *corev1.Node) { n.Labels["cores"] = "16" })},
		{name: "names that exclude each other", plugin: NodeAffinity{}, pod: pod(required(corev1.NodeSelectorTerm{MatchFields: append(named("a").MatchFields, named("b").MatchFields...)})), node: node(),
			want: "pod affinity terms conflict", always: true, says: "matches no term"},

		{name: "no taint", plugin: TaintToleration{}, pod: pod(), node: node()},
		{name: "taint", plugin: TaintToleration{}, pod: pod(), node: node(tainted("NoSchedule")), want: "node(s) had untolerated taint(s)", always: true, says: "dedicated=gpu:NoSchedule"},
		{name: "taint NoExecute", plugin: TaintToleration{}, pod: pod(), node: node(tainted("NoExecute")), want: "node(s) had untolerated taint(s)", always: true, says: "NoExecute"},
		{name: "taint PreferNoSchedule does not refuse", plugin: TaintToleration{}, pod: pod(), node: node(tainted("PreferNoSchedule"))},
		{name: "tolerated", plugin: TaintToleration{}, pod: pod(tolerating(corev1.Toleration{Key: "dedicated", Value: "gpu", Effect: "NoSchedule"})), node: node(tainted("NoSchedule"))},
		{name: "tolerated by Exists", plugin: TaintToleration{}, pod: pod(tolerating(corev1.Toleration{Operator: "Exists"})), node: node(tainted("NoExecute"))},
		{name: "other value", plugin: TaintToleration{}, pod: pod(tolerating(corev1.Toleration{Key: "dedicated", Value: "x"})), node: node(tainted("NoSchedule")), want: "node(s) had untolerated taint(s)", always: true, says: "dedicated"},

		{name: "any node", plugin: NodeName{}, pod: pod(), node: node()},
		{name: "this node", plugin: NodeName{}, pod: pod(func(p *corev1.Pod) { p.Spec.NodeName = "n" }), node: node()},
		{name: "another node", plugin: NodeName{}, pod: pod(func(p *corev1.Pod) { p.Spec.NodeName = "m" }), node: node(), want: "node(s) didn't match the requested node name", always: true, says: `asks for node "m"`},

		{name: "cordoned", plugin: NodeUnschedulable{}, pod: pod(), node: node(func(n *corev1.Node) { n.Spec.Unschedulable = true }), want: "node(s) were unschedulable", always: true, says: "kubectl uncordon n"},
		{name: "cordoned, tolerated", plugin: NodeUnschedulable{}, pod: pod(tolerating(corev1.Toleration{Key: "node.kubernetes.io/unschedulable", Operator: "Exists"})), node: node(func(n *corev1.Node) { n.Spec.Unschedulable = true })},

		{name: "port free", plugin: NodePorts{}, pod: pod(hostPort("", "TCP", 80)), node: node(), on: []*corev1.Pod{pod(hostPort("", "TCP", 81))}},
		{name: "port taken", plugin: NodePorts{}, pod: pod(hostPort("", "TCP", 80)), node: node(), on: []*corev1.Pod{pod(hostPort("", "TCP", 80))},
			want: "node(s) didn't have free ports for the requested pod ports", says: "80/TCP"},
		{name: "other protocol", plugin: NodePorts{}, pod: pod(hostPort("", "UDP", 80)), node: node(), on: []*corev1.Pod{pod(hostPort("", "TCP", 80))}},
		{name: "other address", plugin: NodePorts{}, pod: pod(hostPort("127.0.0.1", "TCP", 80)), node: node(), on: []*corev1.Pod{pod(hostPort("127.0.0.2", "TCP", 80))}},
		{name: "one address of all taken", plugin: NodePorts{}, pod: pod(hostPort("0.0.0.0", "TCP", 80)), node: node(), on: []*corev1.Pod{pod(hostPort("127.0.0.2", "TCP", 80))},
			want: "node(s) didn't have free ports for the requested pod ports", says: "80/TCP"},
		{name: "all addresses taken", plugin: NodePorts{}, pod: pod(hostPort("127.0.0.2", "TCP", 80)), node: node(), on: []*corev1.Pod{pod(hostPort("", "TCP", 80))},
			want: "node(s) didn't have free ports for the requested pod ports", says: "80/TCP"},
	}
	for _, tt := range tests {
		t.Run(tt.plugin.Name()+"/"+tt.name, func(t *testing.T) {
			classes := framework.NewClasses()
			n := framework.NodeOf(tt.node)
			for i, p := range tt.on {
				p.UID = types.UID(rune('a' + i))
				n = n.With(classes.Pod(p))
			}
			c := classes.Held(tt.pod).Class
			st := filter(tt.plugin, c, n)
			var got string
			if st != nil {
				got = strings.Join(st.Reasons, ";")
				if st.Plugin != tt.plugin.Name() {
					t.Errorf("status names plugin %q", st.Plugin)
				}
				if always := st.Code == framework.Unresolvable; always != tt.always {
					t.Errorf("beyond eviction: %t, want %t", always, tt.always)
				}
				if says := tt.plugin.(framework.Explainer).Explain(c, n); !strings.Contains(says, tt.says) {
					t.Errorf("says %q, want %q in it", says, tt.says)
				}
			}
			if got != tt.want {
				t.Errorf("refused for %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPreFilterNames(t *testing.T) {
	tests := []struct {
		name string
		pod  *corev1.Pod
		want []string
	}{
		{"no affinity", pod(), nil},
		{"named", pod(required(named("b", "a"))), []string{"a", "b"}},
		{"two terms", pod(required(named("b"), named("a"))), []string{"a", "b"}},
		{"one term names none", pod(required(named("b"), expression("zone", "Exists"))), nil},
	}
	for _, tt := range tests {
		_, names, _ := NodeAffinity{}.PreFilter(framework.NewClasses().Pod(tt.pod).Class)
		if !slices.Equal(names, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, names, tt.want)
		}
	}
}

func TestScores(t *testing.T) {
	weighed := func(weight int32, term corev1.NodeSelectorTerm) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: weight, Preference: term}},
			}}
		}
	}
	image := func(size int64) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.Status.Images = []corev1.ContainerImage{{Names: []string{"app:latest"}, SizeBytes: size}}
		}
	}
	tests := []struct {
		name   string
		plugin framework.Plugin
		pod    *corev1.Pod
		node   *corev1.Node
		on     []*corev1.Pod
		want   int64
	}{
		{"empty node, half asked", NodeResourcesFit{}, pod(requests("cpu", "2", "memory", "4Gi")), node(), nil, 50},
		{"requests nothing: counts as 100m and 200Mi", NodeResourcesFit{}, pod(), node(), nil, 97},
		{"what runs counts", NodeResourcesFit{}, pod(requests("cpu", "1", "memory", "2Gi")), node(), []*corev1.Pod{pod(requests("cpu", "2", "memory", "4Gi"))}, 25},
		{"over-committed counts 0 for cpu", NodeResourcesFit{}, pod(requests("cpu", "4", "memory", "4Gi")), node(), []*corev1.Pod{pod(requests("cpu", "2"))}, 23},
		{"absurd amounts", NodeResourcesFit{}, pod(requests("cpu", "9e15", "memory", "4Ei")),
			node(func(n *corev1.Node) { n.Status.Allocatable = list("cpu", "9e15", "memory", "7Ei", "pods", "10") }), nil, 21},
		{"absurd amounts, twice", NodeResourcesFit{}, pod(requests("cpu", "9e15", "memory", "7Ei")),
			node(), []*corev1.Pod{pod(requests("cpu", "9e15", "memory", "7Ei"))}, 0},
		{"even stays even", BalancedAllocation{}, pod(requests("cpu", "2", "memory", "4Gi")), node(), nil, 75},
		{"even becomes uneven", BalancedAllocation{}, pod(requests("cpu", "4")), node(), nil, 50},
		{"uneven becomes even", BalancedAllocation{}, pod(requests("memory", "8Gi")), node(), []*corev1.Pod{pod(requests("cpu", "4"))}, 100},
		{"preferred matches", NodeAffinity{}, pod(weighed(7, expression("zone", "In", "a"))), node(), nil, 7},
		{"preferred does not match", NodeAffinity{}, pod(weighed(7, expression("zone", "In", "b"))), node(), nil, 0},
		{"taint to avoid", TaintToleration{}, pod(), node(tainted("PreferNoSchedule")), nil, 1},
		{"taint to avoid, tolerated", TaintToleration{}, pod(tolerating(corev1.Toleration{Operator: "Exists"})), node(tainted("PreferNoSchedule")), nil, 0},
		{"small image", ImageLocality{}, pod(), node(image(1 << 20)), nil, 0},
		{"large image", ImageLocality{}, pod(), node(image(2000 << 20)), nil, 100},
		{"image between", ImageLocality{}, pod(), node(image(511 << 20)), nil, 49},
		{"other image", ImageLocality{}, pod(func(p *corev1.Pod) { p.Spec.Containers[0].Image = "other" }), node(image(511 << 20)), nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.plugin.Name()+"/"+tt.name, func(t *testing.T) {
			classes := framework.NewClasses()
			s := framework.NewSnapshot()
			s.SetNode(tt.node)
			for i, p := range tt.on {
				p.UID = types.UID(rune('a' + i))
				s.SetPod(classes.Pod(p), "n")
			}
			c := classes.Pod(tt.pod).Class
			var state any
			if pre, ok := tt.plugin.(framework.PreScorer); ok {
				state, _ = pre.PreScore(c)
			}
			if got := tt.plugin.(framework.Scorer).Score(state, c, s.Node("n"), s); got != tt.want {
				t.Errorf("score %d, want %d", got, tt.want)
			}
		})
	}
}

func TestNormalize(t *testing.T) {
	if got := (TaintToleration{}).Normalize(0, 0, 0); got != 100 {
		t.Errorf("no taints anywhere: %d, want 100", got)
	}
	if got := (TaintToleration{}).Normalize(1, 0, 4); got != 75 {
		t.Errorf("one taint of four: %d, want 75", got)
	}
	if got := (NodeAffinity{}).Normalize(5, 0, 10); got != 50 {
		t.Errorf("half the weight: %d, want 50", got)
	}
	if got := (NodeAffinity{}).Normalize(0, 0, 0); got != 0 {
		t.Errorf("nothing preferred matches: %d, want 0", got)
	}
}

func TestHints(t *testing.T) {
	classes := framework.NewClasses()
	wrap := func(p *corev1.Pod) *framework.Pod { return classes.Pod(p) }
	small := node(func(n *corev1.Node) { n.Status.Allocatable = list("cpu", "1", "memory", "8Gi", "pods", "10") })
	cordon := node(func(n *corev1.Node) { n.Spec.Unschedulable = true })
	zoneB := node(func(n *corev1.Node) { n.Labels["zone"] = "b" })
	inB := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }
	tests := []struct {
		name   string
		plugin framework.Hinter
		pod    *corev1.Pod
		event  framework.Event
		want   bool
	}{
		{"new node large enough", NodeResourcesFit{}, pod(requests("cpu", "2")), framework.Event{Kind: framework.NodeAdded, Node: node()}, true},
		{"new node too small", NodeResourcesFit{}, pod(requests("cpu", "2")), framework.Event{Kind: framework.NodeAdded, Node: small}, false},
		{"node grew", NodeResourcesFit{}, pod(requests("cpu", "2")), framework.Event{Kind: framework.NodeAllocatable, Node: node(), OldNode: small}, true},
		{"node shrank", NodeResourcesFit{}, pod(requests("cpu", "1")), framework.Event{Kind: framework.NodeAllocatable, Node: small, OldNode: node()}, false},
		{"a pod left", NodeResourcesFit{}, pod(requests("cpu", "2")), framework.Event{Kind: framework.PodDeleted, Pod: wrap(pod(requests("cpu", "1")))}, true},
		{"a pod shrank in another resource", NodeResourcesFit{}, pod(requests("cpu", "2")), framework.Event{Kind: framework.PodShrunk, Pod: wrap(pod(requests("memory", "1Gi")))}, false},
		{"label appears", NodeAffinity{}, pod(inB), framework.Event{Kind: framework.NodeLabels, Node: zoneB, OldNode: node()}, true},
		{"label goes", NodeAffinity{}, pod(inB), framework.Event{Kind: framework.NodeLabels, Node: node(), OldNode: zoneB}, false},
		{"matching node", NodeAffinity{}, pod(inB), framework.Event{Kind: framework.NodeAdded, Node: zoneB}, true},
		{"other node", NodeAffinity{}, pod(inB), framework.Event{Kind: framework.NodeAdded, Node: node()}, false},
		{"taint goes", TaintToleration{}, pod(), framework.Event{Kind: framework.NodeTaints, Node: node(), OldNode: node(tainted("NoSchedule"))}, true},
		{"taint comes", TaintToleration{}, pod(), framework.Event{Kind: framework.NodeTaints, Node: node(tainted("NoSchedule")), OldNode: node()}, false},
		{"toleration added", TaintToleration{}, pod(), framework.Event{Kind: framework.PodTolerations, Pod: wrap(pod())}, true},
		{"uncordoned", NodeUnschedulable{}, pod(), framework.Event{Kind: framework.NodeTaints, Node: node(), OldNode: cordon}, true},
		{"new node, cordoned", NodeUnschedulable{}, pod(), framework.Event{Kind: framework.NodeAdded, Node: cordon}, false},
		{"unrelated toleration", NodeUnschedulable{}, pod(), framework.Event{Kind: framework.PodTolerations, Pod: wrap(pod(tolerating(corev1.Toleration{Key: "x", Operator: "Exists"})))}, false},
		{"port freed", NodePorts{}, pod(hostPort("", "TCP", 80)), framework.Event{Kind: framework.PodDeleted, Pod: wrap(pod(hostPort("", "TCP", 80)))}, true},
		{"another port freed", NodePorts{}, pod(hostPort("", "TCP", 80)), framework.Event{Kind: framework.PodDeleted, Pod: wrap(pod(hostPort("", "TCP", 81)))}, false},
	}
	for _, tt := range tests {
		if tt.plugin.Events()&tt.event.Kind == 0 {
			t.Errorf("%s: the plugin does not listen to the event", tt.name)
		}
		if got := tt.plugin.Hint(wrap(tt.pod), tt.event); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}

func TestSchedulingGates(t *testing.T) {
	if st := (SchedulingGates{}).PreEnqueue(pod()); st != nil {
		t.Errorf("a pod without gates is kept out: %v", st.Reasons)
	}
	p := pod(func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "a"}, {Name: "b"}} })
	if st := (SchedulingGates{}).PreEnqueue(p); !st.Refused() || st.Reasons[0] != "waiting for scheduling gates: [a b]" {
		t.Errorf("status %+v", st)
	}
}

// Every plugin has a name of its own, and those that refuse say more than reasons.
func TestAll(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range All() {
		if seen[p.Name()] {
			t.Errorf("%s is there twice", p.Name())
		}
		seen[p.Name()] = true
		if _, ok := p.Plugin.(framework.Filterer); !ok {
			continue
		}
		if _, ok := p.Plugin.(framework.Explainer); !ok {
			t.Errorf("%s refuses and does not explain", p.Name())
		}
		if _, ok := p.Plugin.(framework.Hinter); !ok {
			t.Errorf("%s refuses and gives no hints", p.Name())
		}
	}
}
