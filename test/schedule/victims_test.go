package schedule

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	configv1 "k8s.io/kube-scheduler/config/v1"
	extenderv1 "k8s.io/kube-scheduler/extender/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultpreemption"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/scheduler"
	skiff "skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// rank is what one choice of victims is better by than another.
type rank struct {
	violations, top, sum, count int64
	youngest                    int64
}

func rankOf(v *extenderv1.Victims) rank {
	r := rank{violations: v.NumPDBViolations, top: int64(*v.Pods[0].Spec.Priority), count: int64(len(v.Pods)), youngest: math.MaxInt64}
	for _, p := range v.Pods {
		r.sum += int64(*p.Spec.Priority) + math.MaxInt32 + 1
		if int64(*p.Spec.Priority) == r.top {
			r.youngest = min(r.youngest, p.Status.StartTime.UnixNano())
		}
	}
	return r
}

// victims returns upstream's candidates, and the rank of the one that it chooses.
func (u *upstream) victims(p *corev1.Pod, nodes []*corev1.Node, pods []*corev1.Pod, budgets []*policyv1.PodDisruptionBudget) (map[string]*extenderv1.Victims, rank) {
	u.t.Helper()
	s := cache.NewSnapshot(pods, nodes)
	f := u.framework(s)
	pl, err := defaultpreemption.New(u.ctx, &config.DefaultPreemptionArgs{MinCandidateNodesPercentage: 100, MinCandidateNodesAbsolute: 100}, f,
		feature.NewSchedulerFeaturesFromGates(utilfeature.DefaultFeatureGate))
	if err != nil {
		u.t.Fatal(err)
	}
	state := framework.NewCycleState()
	only, st, _ := f.RunPreFilterPlugins(u.ctx, state, p)
	if !st.IsSuccess() {
		return nil, rank{}
	}
	infos, err := s.NodeInfos().List()
	if err != nil {
		u.t.Fatal(err)
	}
	var may []fwk.NodeInfo
	for _, n := range infos {
		if !only.AllNodes() && !only.NodeNames.Has(n.Node().Name) {
			continue
		}
		if st := f.RunFilterPlugins(u.ctx, state, p, n); st.Code() == fwk.Unschedulable {
			may = append(may, n)
		}
	}
	if len(may) == 0 {
		return nil, rank{}
	}
	found, _, err := pl.Evaluator.DryRunPreemption(u.ctx, state, p, may, budgets, 0, int32(len(may)))
	if err != nil {
		u.t.Fatal(err)
	}
	if len(found) == 0 {
		return nil, rank{}
	}
	return pl.CandidatesToVictimsMap(found), rankOf(pl.Evaluator.SelectCandidate(u.ctx, found).Victims())
}

// In random full clusters, with budgets: skiff makes room by victims where upstream
// does; it ends those that upstream would end on that node, on one of the nodes that
// upstream ranks best.
func TestVictims(t *testing.T) {
	preempted, hopeless := 0, 0
	for seed := range uint64(120) {
		r := source{rand.New(rand.NewPCG(seed, 41))}
		var budgets []*policyv1.PodDisruptionBudget
		var objects []runtime.Object
		api := clienttest.New()
		for i := range r.IntN(3) {
			b := &policyv1.PodDisruptionBudget{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("b%d", i)},
				Spec:       policyv1.PodDisruptionBudgetSpec{Selector: r.selector()}, Status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: int32(r.IntN(3))},
			}
			budgets, objects = append(budgets, b), append(objects, b)
			api.Put(b)
		}
		u := newUpstream(t, alone, objects...)
		s, classes := skiff.NewSnapshot(), skiff.NewClasses()
		s.SetNamespace("default", nil)
		s.SetNamespace("other", nil)
		c := scheduler.NewCycle(preempting(t, api), seed)
		var nodes []*corev1.Node
		for i := range 3 + r.IntN(6) {
			n := r.node(i)
			n.Status.Allocatable["pods"] = amounts("pods", "4")["pods"]
			nodes = append(nodes, n)
			s.SetNode(n)
		}
		var pods []*corev1.Pod
		for i := range 40 {
			p := r.pod(i)
			p.Spec.Priority = new(int32)
			*p.Spec.Priority = int32(r.IntN(4)) - 1
			p.Status.StartTime = &metav1.Time{Time: time.Unix(int64(1000+r.IntN(500)), 0)}
			p.Spec.NodeName = nodes[r.IntN(len(nodes))].Name
			s.SetPod(classes.Pod(p), p.Spec.NodeName)
			pods = append(pods, p)
		}
		for i := range 6 {
			p := r.pod(100 + i)
			p.Spec.Priority = new(int32)
			*p.Spec.Priority = 2
			w := classes.Pod(p)
			f := s.Fork()
			d := c.Schedule(f, []*skiff.Pod{w})[0]
			if d.Failure == nil {
				continue
			}
			for _, v := range d.Failure.Victims {
				v.Doomed = false // for the next, nothing has happened
			}
			want, best := u.victims(p, nodes, pods, budgets)
			if len(want) == 0 {
				hopeless++
				if d.Failure.Nominated != "" {
					t.Errorf("seed %d: %s preempts on %s, upstream nowhere: %s", seed, p.Name, d.Failure.Nominated, d.Failure.Message)
				}
				continue
			}
			preempted++
			there := want[d.Failure.Nominated]
			if there == nil {
				t.Errorf("seed %d: %s: %q is no candidate of upstream's %v: %s", seed, p.Name, d.Failure.Nominated, slices.Sorted(maps.Keys(want)), d.Failure.Message)
				continue
			}
			if got, up := namesOf(d.Failure.Victims), podNames(there.Pods); !slices.Equal(got, up) || int64(d.Failure.Violations) != there.NumPDBViolations {
				t.Errorf("seed %d: %s on %s ends %v (%d violations), upstream %v (%d)", seed, p.Name, d.Failure.Nominated, got, d.Failure.Violations, up, there.NumPDBViolations)
			}
			if got := rankOf(there); got != best {
				t.Errorf("seed %d: %s chooses %s of rank %+v, upstream %+v", seed, p.Name, d.Failure.Nominated, got, best)
			}
		}
	}
	t.Logf("%d preempted as upstream does, %d could not", preempted, hopeless)
	if preempted == 0 || hopeless == 0 {
		t.Error("the clusters are of no use")
	}
}

// preempting are skiff's plugins, with the budgets of an API.
func preempting(t *testing.T, api *clienttest.API) []plugins.Enabled {
	t.Helper()
	inf := client.NewInformers(api.Client(), slog.New(slog.DiscardHandler))
	d := plugins.NewDefaultPreemption(inf, &configv1.DefaultPreemptionArgs{MinCandidateNodesAbsolute: new(int32), MinCandidateNodesPercentage: hundred()})
	ready := d.Watch(nil)
	var wg sync.WaitGroup
	wg.Go(func() { _ = inf.Run(t.Context()) })
	t.Cleanup(wg.Wait)
	for _, c := range ready {
		<-c
	}
	all := plugins.All()
	for i := range all {
		if all[i].Name() == d.Name() {
			all[i].Plugin = d
		}
	}
	return all
}

func hundred() *int32 { v := int32(100); return &v }

func namesOf(pods []*skiff.Pod) (out []string) {
	for _, p := range pods {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}

func podNames(pods []*corev1.Pod) (out []string) {
	for _, p := range pods {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}
