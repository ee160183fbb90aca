package plugins

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	config "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/framework"
)

func specs(pairs ...any) (out []config.ResourceSpec) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, config.ResourceSpec{Name: pairs[i].(string), Weight: int64(pairs[i+1].(int))})
	}
	return out
}

func TestScoringStrategies(t *testing.T) {
	line := &config.RequestedToCapacityRatioParam{Shape: []config.UtilizationShapePoint{{Utilization: 0, Score: 0}, {Utilization: 50, Score: 10}, {Utilization: 100, Score: 2}}}
	both := specs("cpu", 1, "memory", 1)
	for _, tt := range []struct {
		name     string
		strategy config.ScoringStrategy
		requests []string
		on       []string // what runs there
		want     int64
	}{
		{"least", config.ScoringStrategy{Type: config.LeastAllocated, Resources: both}, []string{"cpu", "1", "memory", "2Gi"}, nil, 75},
		{"least, weighed", config.ScoringStrategy{Type: config.LeastAllocated, Resources: specs("cpu", 3, "memory", 1)}, []string{"cpu", "2", "memory", "2Gi"}, nil, (3*50 + 75) / 4},
		{"most", config.ScoringStrategy{Type: config.MostAllocated, Resources: both}, []string{"cpu", "1", "memory", "2Gi"}, []string{"cpu", "1", "memory", "4Gi"}, (50 + 75) / 2},
		{"most, more than there is", config.ScoringStrategy{Type: config.MostAllocated, Resources: both}, []string{"cpu", "9", "memory", "9Gi"}, nil, 100},
		{"most, gpu not asked for", config.ScoringStrategy{Type: config.MostAllocated, Resources: specs("x.io/gpu", 5, "cpu", 1)}, []string{"cpu", "1"}, nil, 25},
		{"most, gpu", config.ScoringStrategy{Type: config.MostAllocated, Resources: specs("x.io/gpu", 3, "cpu", 1)}, []string{"cpu", "1", "x.io/gpu", "1"}, nil, (3*50 + 25) / 4},
		{"most, storage", config.ScoringStrategy{Type: config.MostAllocated, Resources: specs("ephemeral-storage", 1)}, []string{"ephemeral-storage", "1Gi"}, []string{"ephemeral-storage", "1Gi"}, 20},
		{"ratio, rising", config.ScoringStrategy{Type: config.RequestedToCapacityRatio, Resources: specs("cpu", 1), RequestedToCapacityRatio: line}, []string{"cpu", "1"}, nil, 50},
		{"ratio, falling", config.ScoringStrategy{Type: config.RequestedToCapacityRatio, Resources: specs("cpu", 1), RequestedToCapacityRatio: line}, []string{"cpu", "3"}, nil, 60},
		{"ratio, too much", config.ScoringStrategy{Type: config.RequestedToCapacityRatio, Resources: specs("cpu", 1), RequestedToCapacityRatio: line}, []string{"cpu", "9"}, nil, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := NewNodeResourcesFit(&config.NodeResourcesFitArgs{ScoringStrategy: &tt.strategy})
			classes := framework.NewClasses()
			n := framework.NodeOf(node(func(n *corev1.Node) {
				n.Status.Allocatable["x.io/gpu"], n.Status.Allocatable["ephemeral-storage"] = list("q", "2")["q"], list("q", "10Gi")["q"]
			}))
			if tt.on != nil {
				n = n.With(classes.Pod(pod(requests(tt.on...))))
			}
			if got := f.Score(nil, classes.Pod(pod(requests(tt.requests...))).Class, n, nil); got != tt.want {
				t.Errorf("score %d, want %d", got, tt.want)
			}
		})
	}
}

func TestIgnoredResources(t *testing.T) {
	args := &config.NodeResourcesFitArgs{IgnoredResources: []string{"a.io/one", "cpu"}, IgnoredResourceGroups: []string{"b.io"}}
	f, n := NewNodeResourcesFit(args), framework.NodeOf(node())
	for _, tt := range []struct {
		resource string
		refused  bool
	}{{"a.io/one", false}, {"a.io/two", true}, {"b.io/any", false}, {"cpu", true}, {"hugepages-2Mi", true}} {
		c := framework.NewClasses().Pod(pod(requests(tt.resource, "100"))).Class
		if got := f.Filter(nil, c, n).Refused(); got != tt.refused {
			t.Errorf("%s: refused %t, want %t", tt.resource, got, tt.refused)
		}
	}
}

func TestAddedAffinity(t *testing.T) {
	term := func(value string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{value}}}}
	}
	a, err := NewNodeAffinity(&config.NodeAffinityArgs{AddedAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution:  &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{term("a")}},
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 7, Preference: term("a")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	c := framework.NewClasses().Pod(pod()).Class
	state, _, st := a.PreFilter(c)
	if st != nil {
		t.Fatalf("a pod without affinity is passed over: %+v", st)
	}
	in, out := framework.NodeOf(node()), framework.NodeOf(node(func(n *corev1.Node) { n.Labels["zone"] = "b" }))
	if st := a.Filter(state, c, in); st != nil {
		t.Errorf("%+v", st)
	}
	if st := a.Filter(state, c, out); !st.Refused() || st.Reasons[0] != "node(s) didn't match scheduler-enforced node affinity" {
		t.Errorf("%+v", st)
	}
	scored, _ := a.PreScore(c)
	if got := a.Score(scored, c, in, nil); got != 7 {
		t.Errorf("score %d", got)
	}
	if a.Hint(framework.NewClasses().Pod(pod()), framework.Event{Kind: framework.NodeAdded, Node: out.Obj}) {
		t.Error("a node that the configuration forbids woke a pod")
	}
}

func TestDeclaredFeatures(t *testing.T) {
	no := false
	p := pod(func(p *corev1.Pod) { p.Spec.HostNetwork, p.Spec.HostUsers = true, &no })
	c := framework.NewClasses().Pod(p).Class
	f := NodeDeclaredFeatures{}
	if st := f.Filter(nil, c, framework.NodeOf(node())); !st.Refused() || st.Reasons[0] != "node(s) didn't match Pod's required features" {
		t.Errorf("%+v", st)
	}
	able := node(func(n *corev1.Node) {
		n.Status.DeclaredFeatures = []string{"Other", "UserNamespacesHostNetworkSupport"}
	})
	if st := f.Filter(nil, c, framework.NodeOf(able)); st != nil {
		t.Errorf("%+v", st)
	}
	if _, _, st := f.PreFilter(framework.NewClasses().Pod(pod()).Class); st == nil || st.Code != framework.Skip {
		t.Error("a plain pod needs features")
	}
}

// Requests of the pod as a whole decide where it fits, and are not scored.
func TestPodLevelRequestsAreNotScored(t *testing.T) {
	whole := func(p *corev1.Pod) {
		p.Spec.Resources = &corev1.ResourceRequirements{Requests: list("cpu", "3", "memory", "6Gi")}
	}
	n := framework.NodeOf(node())
	plain, pooled := framework.NewClasses().Pod(pod(requests("cpu", "1", "memory", "2Gi"))).Class, framework.NewClasses().Pod(pod(requests("cpu", "1", "memory", "2Gi"), whole)).Class
	for _, f := range []NodeResourcesFit{{}, NewNodeResourcesFit(&config.NodeResourcesFitArgs{ScoringStrategy: &config.ScoringStrategy{Type: config.MostAllocated, Resources: specs("cpu", 1, "memory", 1)}})} {
		if a, b := f.Score(nil, plain, n, nil), f.Score(nil, pooled, n, nil); a != b {
			t.Errorf("scores %d and %d", a, b)
		}
	}
	if pooled.Requests.MilliCPU != 3000 {
		t.Errorf("requests %d", pooled.Requests.MilliCPU)
	}
}
