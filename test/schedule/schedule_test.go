package schedule

import (
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"skiff/internal/scheduler"
	"skiff/internal/scheduler/config"
	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// In random clusters, of every node: refused by both or by neither, for the same
// reasons, with the same hope that evictions help; and the node that skiff takes is one
// of those that upstream scores highest.
func TestVerdicts(t *testing.T) {
	for name, args := range map[string]string{
		"default": "",
		"packing": `
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 3}, {name: memory}, {name: x.io/gpu, weight: 5}]}}
  - name: NodeResourcesBalancedAllocation
    args: {resources: [{name: cpu}, {name: memory}, {name: ephemeral-storage}, {name: x.io/gpu}]}`,
		"ratio": `
  - name: NodeResourcesFit
    args:
      ignoredResources: [x.io/gpu]
      scoringStrategy:
        type: RequestedToCapacityRatio
        resources: [{name: cpu, weight: 2}, {name: ephemeral-storage}]
        requestedToCapacityRatio: {shape: [{utilization: 10, score: 1}, {utilization: 60, score: 10}, {utilization: 100, score: 3}]}`,
		"affinity": `
  - name: NodeAffinity
    args:
      addedAffinity:
        requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: Exists}]}]}
        preferredDuringSchedulingIgnoredDuringExecution: [{weight: 7, preference: {matchExpressions: [{key: cores, operator: Exists}]}}]
  - name: InterPodAffinity
    args: {hardPodAffinityWeight: 40, ignorePreferredTermsOfExistingPods: true}`,
		"spread": `
  - name: PodTopologySpread
    args:
      defaultingType: List
      defaultConstraints: [{topologyKey: topology.kubernetes.io/zone, maxSkew: 1, whenUnsatisfiable: DoNotSchedule}, {topologyKey: disk, maxSkew: 2, whenUnsatisfiable: ScheduleAnyway}]`,
	} {
		t.Run(name, func(t *testing.T) {
			yaml := alone
			if args != "" {
				yaml += "  pluginConfig:" + args + "\n"
			}
			verdicts(t, yaml)
		})
	}
}

func verdicts(t *testing.T, yaml string) {
	clusters, steps := uint64(30), 40
	if testing.Short() {
		clusters = 5
	}
	judged, refused, placed := 0, 0, 0
	for seed := range clusters {
		r := source{rand.New(rand.NewPCG(seed, 37))}
		spaces := map[string]map[string]string{"default": {}, "other": {"team": "x"}}
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}}}
		u := newUpstream(t, yaml, service,
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: spaces["other"]}})
		s, classes, c := framework.NewSnapshot(), framework.NewClasses(), cycle(t, yaml, seed)
		for name, set := range spaces {
			s.SetNamespace(name, set)
		}
		var nodes []*corev1.Node
		for i := range 3 + r.IntN(10) {
			n := r.node(i)
			nodes = append(nodes, n)
			s.SetNode(n)
		}
		var pods []*corev1.Pod
		for step := range steps {
			p := r.pod(step)
			w := classes.Pod(p)
			if p.Namespace == "default" && p.Labels["app"] == "web" && len(p.Spec.TopologySpreadConstraints) == 0 {
				w.Group = classes.Group(labels.Set(service.Spec.Selector).AsSelector())
			}
			want := u.judge(p, nodes, pods)
			got := map[string]scheduler.Refusal{}
			for _, f := range c.Explain(s, w) {
				got[f.Node] = f
			}
			best, feasible := int64(-1), false
			for name, v := range want {
				judged++
				f, no := got[name]
				if no != (len(v.reasons) > 0) {
					t.Fatalf("seed %d step %d: %s on %s: refused %t (%s %v), upstream %v", seed, step, p.Name, name, no, f.Plugin, f.Reasons, v.reasons)
				}
				if !no {
					feasible = true
					best = max(best, v.score)
					continue
				}
				refused++
				if v.named {
					continue
				}
				slices.Sort(v.reasons)
				said := slices.Sorted(slices.Values(f.Reasons))
				if !slices.Equal(said, v.reasons) || f.Resolvable != v.resolvable {
					t.Errorf("seed %d step %d: %s on %s: %q (resolvable %t), upstream %q (%t)", seed, step, p.Name, name, said, f.Resolvable, v.reasons, v.resolvable)
				}
			}
			d := c.Schedule(s, []*framework.Pod{w})[0]
			if (d.Failure == nil) != feasible {
				t.Fatalf("seed %d step %d: %s: %+v, upstream feasible %t", seed, step, p.Name, d.Failure, feasible)
			}
			if d.Failure != nil {
				continue
			}
			placed++
			if score := want[d.Node].score; score != best {
				t.Errorf("seed %d step %d: %s goes to %s, which upstream scores %d, its best %d: %+v", seed, step, p.Name, d.Node, score, best, want[d.Node].by)
			}
			p = p.DeepCopy()
			p.Spec.NodeName = d.Node
			s.SetPod(classes.Pod(p), d.Node)
			pods = append(pods, p)
		}
	}
	t.Logf("%d verdicts, %d of them refusals; %d pods placed", judged, refused, placed)
	if refused == 0 || placed == 0 {
		t.Error("the clusters are of no use")
	}
}

// cycle is skiff's cycle of a configuration.
func cycle(t *testing.T, yaml string, seed uint64) *scheduler.Cycle {
	t.Helper()
	c, err := config.Load([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	p, err := (&plugins.Factory{}).Profile(&c.Profiles[0])
	if err != nil {
		t.Fatal(err)
	}
	return scheduler.NewProfileCycle(p, seed)
}
