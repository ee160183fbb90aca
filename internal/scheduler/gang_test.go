package scheduler

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

func podGroup(name string, least int32) *schedulingv1beta1.PodGroup {
	g := &schedulingv1beta1.PodGroup{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("group-" + name)}}
	if least > 0 {
		g.Spec.SchedulingPolicy.Gang = &schedulingv1beta1.GangSchedulingPolicy{MinCount: least}
	} else {
		g.Spec.SchedulingPolicy.Basic = &schedulingv1beta1.BasicSchedulingPolicy{}
	}
	return g
}

func member(group string, i int, requests ...string) *corev1.Pod {
	p := pod(fmt.Sprintf("%s-%d", group, i), requests...)
	p.Spec.SchedulingGroup = &corev1.PodSchedulingGroup{PodGroupName: &group}
	return p
}

func TestGangWaitsForItsPods(t *testing.T) {
	qu, classes := testQueue()
	now := time.Unix(1000, 0)
	qu.flush(now)
	set := func(i int) { qu.set(classes.Pod(member("g", i)), now) }
	set(0)
	set(1)
	g := qu.gangs[gangKey{"default", "g"}]
	if got := g.refusal(); got != `waiting for pods's pod group "g" to appear in scheduling queue` {
		t.Errorf("without a group: %q", got)
	}
	qu.setGang(g.key, podGroup("g", 3), now)
	if got := g.refusal(); got != "waiting for minCount pods from a gang to appear in scheduling queue: 2 of 3 pods of the group exist" {
		t.Errorf("with two: %q", got)
	}
	if got := qu.take(9); got != nil || qu.gated != 2 {
		t.Errorf("took %q of an incomplete group, %d gated", names(got), qu.gated)
	}
	if got := qu.next(); !got.Equal(now.Add(tellAfter)) {
		t.Errorf("next is %v", got)
	}
	if got := qu.told(now.Add(tellAfter)); len(got) != 1 || got[0] != g {
		t.Errorf("to be told: %v", got)
	}
	set(2)
	if got := qu.told(now.Add(time.Hour)); got != nil {
		t.Errorf("a complete group is told that it waits")
	}
	// One more goes with them, and a batch is no bound.
	set(3)
	got := qu.take(1)
	if names(got) != "g-0 g-1 g-2 g-3" {
		t.Fatalf("took %q", names(got))
	}
	for _, q := range got {
		qu.failed(q, []string{"NodeResourcesFit"}, now)
	}
	// Two are deleted while they wait: the rest waits for others.
	qu.remove(got[0].pod.UID)
	qu.remove(got[1].pod.UID)
	qu.happened(framework.Event{Kind: framework.NodeAdded, Node: node("a")}, now.Add(time.Minute))
	if got := qu.take(9); got != nil {
		t.Errorf("took %q", names(got))
	}
	// Fewer pods do.
	qu.setGang(g.key, podGroup("g", 2), now)
	if got := qu.take(9); names(got) != "g-2 g-3" {
		t.Errorf("took %q", names(got))
	}
	qu.remove(got[2].pod.UID)
	qu.remove(got[3].pod.UID)
	qu.setGang(g.key, nil, now)
	if len(qu.gangs)+len(qu.untold)+len(qu.pods) != 0 {
		t.Errorf("left: %v %v %v", qu.gangs, qu.untold, qu.pods)
	}
}

func TestGangRequeuedTogether(t *testing.T) {
	qu, classes := testQueue()
	now := time.Unix(1000, 0)
	qu.setGang(gangKey{"default", "g"}, podGroup("g", 2), now)
	qu.set(classes.Pod(member("g", 0, "cpu", "8")), now)
	qu.set(classes.Pod(member("g", 1, "cpu", "1")), now)
	for _, q := range qu.take(9) {
		qu.failed(q, []string{"NodeResourcesFit"}, now)
	}
	// Room for the small one alone: both are tried, after their wait or when nothing
	// else is to be done.
	qu.happened(framework.Event{Kind: framework.NodeAdded, Node: node("a", "cpu", "1", "memory", "1Gi", "pods", "9")}, now)
	if got := qu.take(9); names(got) != "g-0 g-1" {
		t.Errorf("took %q", names(got))
	}
}

func teamPods(classes *framework.Classes, group string, n int, requests ...string) []*framework.Pod {
	var out []*framework.Pod
	for i := range n {
		out = append(out, classes.Pod(member(group, i, requests...)))
	}
	return out
}

func TestTogetherOrNotAtAll(t *testing.T) {
	s, classes := framework.NewSnapshot(), framework.NewClasses()
	for i := range 2 {
		s.SetNode(node(fmt.Sprintf("n%d", i), "cpu", "1", "memory", "1Gi", "pods", "9"))
	}
	c := NewCycle(plugins.All(), 1)
	pods := teamPods(classes, "g", 3, "cpu", "1")
	v := c.Together(s, pods, Team{Least: 3})
	if v.Placed || s.NumPods() != 0 {
		t.Fatalf("placed %v, %d pods left in place", v.Placed, s.NumPods())
	}
	want := "minCount (3) cannot be satisfied: 2 scheduled, 0 remaining, pod group preemption: No preemption victims found for incoming preemptor"
	if v.Message != want {
		t.Errorf("message %q", v.Message)
	}
	for i, d := range v.Decisions {
		says := want
		if i == 2 {
			says = "0/2 nodes are available: 2 Insufficient cpu."
		}
		if d.Failure == nil || d.Failure.Message != says || strings.Join(d.Failure.Plugins, " ") != "NodeResourcesFit" || d.Node != "" {
			t.Errorf("pod %d: %+v", i, d.Failure)
		}
	}
	// With one bound already, two are enough; and a group that needs two of three
	// leaves one behind.
	s.SetNode(node("n2", "cpu", "1", "memory", "1Gi", "pods", "9"))
	s.SetPod(pods[0], "n2")
	if v := c.Together(s, pods[1:], Team{Least: 3, Placed: 1}); !v.Placed || s.NumPods() != 3 {
		t.Errorf("the rest of a group that is bound in part: %+v", v)
	}
	if v := c.Together(s, teamPods(classes, "late", 1, "cpu", "1"), Team{Least: 1, Placed: 3}); v.Placed ||
		v.Message != "pod group preemption: No preemption victims found for incoming preemptor" ||
		v.Decisions[0].Failure.Message != "0/3 nodes are available: 3 Insufficient cpu." {
		t.Errorf("one more of a complete group: %+v, %+v", v, v.Decisions[0].Failure)
	}
	for _, p := range pods {
		s.RemovePod(p.UID)
	}
	more := teamPods(classes, "h", 5, "cpu", "1")
	v = c.Together(s, more, Team{Least: 2})
	if !v.Placed || s.NumPods() != 3 || v.Decisions[4].Failure == nil {
		t.Errorf("five pods where three fit and two must: %d placed, %+v", s.NumPods(), v)
	}
}

func TestGangPreemptsAsAWhole(t *testing.T) {
	s, classes := framework.NewSnapshot(), framework.NewClasses()
	low := map[string]*framework.Pod{}
	for i := range 4 {
		name := fmt.Sprintf("n%d", i)
		s.SetNode(node(name, "cpu", "1", "memory", "1Gi", "pods", "9"))
		p := classes.Pod(withPriority(member("low", i, "cpu", "1"), 1))
		low[name] = p
		s.SetPod(p, name)
	}
	c := NewCycle(plugins.All(), 1)
	two := teamPods(classes, "g", 2, "cpu", "1")
	for i := range two {
		two[i] = classes.Pod(withPriority(two[i].Pod.DeepCopy(), 5))
	}
	team := Team{Least: 2, Priority: 5}
	v := c.Together(s, two, team)
	var victims int
	for _, d := range v.Decisions {
		if d.Failure == nil || d.Failure.Nominated == "" || s.NominatedNode(d.Pod.UID) != d.Failure.Nominated {
			t.Errorf("%+v", d.Failure)
			continue
		}
		victims += len(d.Failure.Victims)
		for _, o := range d.Failure.Victims {
			if low[d.Failure.Nominated] != o {
				t.Errorf("%s has to leave %s", o.Name, d.Failure.Nominated)
			}
		}
	}
	if victims != 2 || !strings.HasSuffix(v.Message, "pod group preemption: found a placement for podgroup, preempting 2 victims") {
		t.Errorf("%d victims; %s", victims, v.Message)
	}
	if s.NumPods() != 4 {
		t.Errorf("%d pods in place", s.NumPods())
	}
	// While they end, nobody else has to.
	for _, d := range v.Decisions {
		for _, o := range d.Failure.Victims {
			o.Ending = true
		}
	}
	v = c.Together(s, two, team)
	if !strings.HasSuffix(v.Message, "pod group preemption: ongoing preemption on nominated nodes") || len(v.Decisions[0].Failure.Victims) != 0 {
		t.Errorf("while they end: %s", v.Message)
	}
	for _, d := range v.Decisions {
		for _, o := range s.Node(d.Failure.Nominated).Pods {
			s.RemovePod(o.UID)
		}
	}
	if v = c.Together(s, two, team); !v.Placed {
		t.Errorf("after they ended: %+v", v)
	}
}

func TestGangVictimsOfOneGroup(t *testing.T) {
	s, classes := framework.NewSnapshot(), framework.NewClasses()
	whole := &Unit{Priority: 1}
	for i := range 4 {
		name := fmt.Sprintf("n%d", i)
		s.SetNode(node(name, "cpu", "1", "memory", "1Gi", "pods", "9"))
		p := classes.Pod(withPriority(member("low", i, "cpu", "1"), 9))
		whole.Pods = append(whole.Pods, p)
		s.SetPod(p, name)
	}
	c := NewCycle(plugins.All(), 1)
	one := []*framework.Pod{classes.Pod(withPriority(member("g", 0, "cpu", "1"), 5))}
	// The group's priority counts, not its pods', and they end together.
	v := c.Together(s, one, Team{Least: 1, Priority: 5, Of: func(*framework.Pod) *Unit { return whole }})
	if f := v.Decisions[0].Failure; f == nil || len(f.Victims) != 4 {
		t.Errorf("victims: %+v", f)
	}
	if v := c.Together(s, one, Team{Least: 1, Priority: 1, Of: func(*framework.Pod) *Unit { return whole }}); len(v.Decisions[0].Failure.Victims) != 0 {
		t.Errorf("a group of the same priority has to end")
	}
}

// TestGangsRandom holds, over random groups in random clusters: no group is placed in
// part, no node holds more than it can, a refusal leaves nothing, and what one pass
// refuses a pass alone in the same cluster refuses too (nobody holds places).
func TestGangsRandom(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		s, classes := framework.NewSnapshot(), framework.NewClasses()
		for i := range 1 + r.IntN(8) {
			s.SetNode(randomNode(r, i))
		}
		c := NewCycle(plugins.All(), seed)
		for g := range 12 {
			n := 1 + r.IntN(6)
			var pods []*framework.Pod
			for i := range n {
				p := randomPod(r, i)
				p.Name = fmt.Sprintf("g%d-%d", g, i)
				p.UID = types.UID(p.Name)
				pods = append(pods, classes.Pod(p))
			}
			team := Team{Least: 1 + r.IntN(n), Priority: int32(r.IntN(3))}
			before := s.NumPods()
			v := c.Together(s, pods, team)
			placed := 0
			for _, d := range v.Decisions {
				if d.Node != "" {
					placed++
				} else if d.Failure == nil {
					t.Fatalf("seed %d: neither a node nor a reason", seed)
				}
			}
			if v.Placed != (placed >= team.Least) || !v.Placed && placed != 0 || s.NumPods() != before+placed {
				t.Fatalf("seed %d: %d of %d placed, least %d, %v", seed, placed, n, team.Least, v.Placed)
			}
			if !v.Placed {
				for _, p := range pods {
					s.Nominate(p, "")
				}
				if again := NewCycle(plugins.All(), seed).team(s.Fork(), pods, team); again.Placed && len(pods) == 1 {
					t.Fatalf("seed %d: refused, and would fit", seed)
				}
			}
			for _, n := range s.All() {
				if n.Requested.MilliCPU > n.Allocatable.MilliCPU || n.Requested.Memory > n.Allocatable.Memory {
					t.Fatalf("seed %d: node %s holds too much", seed, n.Name)
				}
			}
		}
	}
}

func TestGangRuns(t *testing.T) {
	api := clienttest.New()
	api.Put(node("a", "cpu", "2", "memory", "2Gi", "pods", "9"))
	api.Put(podGroup("g", 3))
	for i := range 3 {
		api.Put(member("g", i, "cpu", "1"))
	}
	r := run(t, api)
	groups := client.InformerFor[*schedulingv1beta1.PodGroup](r.sched.d.Informers)
	condition := func(want string) {
		t.Helper()
		r.until("the group", func() bool {
			g, ok := groups.Get("default", "g")
			if !ok {
				return false
			}
			c := apimeta.FindStatusCondition(g.Status.Conditions, schedulingv1beta1.PodGroupInitiallyScheduled)
			return c != nil && string(c.Status)+" "+c.Reason+" "+c.Message == want
		})
	}
	condition("False Unschedulable minCount (3) cannot be satisfied: 2 scheduled, 0 remaining, pod group preemption: No preemption victims found for incoming preemptor")
	for i := range 3 {
		p, _ := r.pods.Get("default", fmt.Sprintf("g-%d", i))
		if p.Spec.NodeName != "" {
			t.Errorf("%s is bound", p.Name)
		}
	}
	api.Put(node("b", "cpu", "1", "memory", "2Gi", "pods", "9"))
	condition("True Scheduled ")
	for i := range 3 {
		r.until("the group", func() bool {
			p, ok := r.pods.Get("default", fmt.Sprintf("g-%d", i))
			return ok && p.Spec.NodeName != ""
		})
	}
}

// TestGangHalfBoundFirst: the rest of a group that is bound in part goes before what
// came earlier, in whatever order the scheduler hears of them.
func TestGangHalfBoundFirst(t *testing.T) {
	now := time.Unix(1000, 0)
	for order := range 4 {
		qu, classes := testQueue()
		placed := classes.Pod(member("g", 0))
		steps := []func(){
			func() { qu.setGang(gangKey{"default", "g"}, podGroup("g", 3), now) },
			func() { qu.set(classes.Pod(pod("early")), now) },
			func() { qu.set(classes.Pod(member("g", 1)), now); qu.set(classes.Pod(member("g", 2)), now) },
			func() { qu.setPlaced(placed, true) },
		}
		for i := range steps {
			steps[(i+order)%4]()
		}
		if got := names(qu.take(1)); got != "g-1 g-2" {
			t.Errorf("order %d: took %q", order, got)
		}
	}
}

// TestGangHalfBound: a scheduler that finds a group bound in part binds the rest, of
// which there are fewer than belong together.
func TestGangHalfBound(t *testing.T) {
	api := clienttest.New()
	api.Put(node("a", "cpu", "4", "memory", "2Gi", "pods", "9"))
	api.Put(podGroup("g", 3))
	api.Put(pod("early", "cpu", "1"))
	for i := range 3 {
		p := member("g", i, "cpu", "1")
		if i == 0 {
			p.Spec.NodeName = "a"
		}
		api.Put(p)
	}
	r := run(t, api)
	r.until("the group", func() bool {
		n := 0
		for i := range 3 {
			if p, ok := r.pods.Get("default", fmt.Sprintf("g-%d", i)); ok && p.Spec.NodeName == "a" {
				n++
			}
		}
		return n == 3
	})
}

func TestGangWithPodsThatDiffer(t *testing.T) {
	api := clienttest.New()
	api.Put(node("a"))
	api.Put(podGroup("g", 2))
	api.Put(member("g", 0))
	api.Put(withPriority(member("g", 1), 7))
	r := run(t, api)
	r.until("the group", func() bool {
		p, ok := r.pods.Get("default", "g-1")
		return ok && len(p.Status.Conditions) == 1 && p.Status.Conditions[0].Reason == corev1.PodReasonSchedulerError &&
			p.Status.Conditions[0].Message == "all pods in a single pod group should have the same priority as the pod group's priority, got 7 and 0"
	})
}
