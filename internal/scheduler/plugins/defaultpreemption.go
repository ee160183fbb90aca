package plugins

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/scheduler/framework"
)

// DefaultPreemption looks for pods of lower priority whose end would let a pod
// run, when no node can take it as things are.
type DefaultPreemption struct{}

const (
	noHelp    = "Preemption is not helpful for scheduling"
	noVictims = "No preemption victims found for incoming pod"
)

// Name implements framework.Plugin.
func (DefaultPreemption) Name() string { return "DefaultPreemption" }

// candidate is a node and the pods that would have to leave it, most important first.
type candidate struct {
	node    *framework.Node
	victims []*framework.Pod
}

// PostFilter implements framework.PostFilterer.
func (DefaultPreemption) PostFilter(p *framework.Pod, s *framework.Snapshot, judged framework.Judged) framework.PostFilterResult {
	if p.Class.NoPreemption {
		return framework.PostFilterResult{Message: "preemption: not eligible due to preemptionPolicy=Never."}
	}
	if name := s.NominatedNode(p.UID); name != "" {
		if slot, ok := s.SlotOf(name); ok {
			if st := judged.Status(slot); st == nil || st.Code != framework.Unresolvable {
				for _, o := range s.At(slot).Pods {
					if o.Class.Priority < p.Class.Priority && endingByPreemption(o) {
						return framework.PostFilterResult{Node: name, Message: "preemption: not eligible due to a terminating pod on the nominated node."}
					}
				}
			}
		}
	}
	reasons := framework.Reasons{}
	var best *candidate
	for slot, n := range s.All() {
		st := judged.Status(slot)
		if st == nil || st.Code != framework.Unschedulable {
			reasons.Add(noHelp)
			continue
		}
		c, why := victimsOn(p, n, judged)
		if why != nil {
			for _, r := range why {
				reasons.Add(r)
			}
			continue
		}
		if best == nil || better(c, best) {
			best = c
		}
	}
	if best == nil {
		return framework.PostFilterResult{Message: "preemption: " + reasons.Message(s.NumNodes())}
	}
	return framework.PostFilterResult{
		Node: best.node.Name, Victims: best.victims,
		Message: fmt.Sprintf("preemption: found a potential placement for pod on node %v, preempting %d victims", best.node.Name, len(best.victims)),
	}
}

// victimsOn returns the least important pods that would have to leave a node, or
// the reasons why no such pods would do.
func victimsOn(p *framework.Pod, n *framework.Node, judged framework.Judged) (*candidate, []string) {
	var lower []*framework.Pod
	for _, o := range n.Pods {
		if o.Class.Priority < p.Class.Priority {
			lower = append(lower, o)
		}
	}
	if len(lower) == 0 {
		return nil, []string{noVictims}
	}
	rest := n.Without(lower...)
	if st := judged.Refilter(rest); st.Refused() {
		return nil, st.Reasons
	}
	// The most important are spared first.
	slices.SortFunc(lower, moreImportant)
	c := &candidate{node: n}
	for _, o := range lower {
		with := rest.With(o)
		if judged.Refilter(with).Refused() {
			c.victims = append(c.victims, o)
			continue
		}
		rest = with
	}
	return c, nil
}

func moreImportant(a, b *framework.Pod) int {
	return cmp.Or(
		cmp.Compare(b.Class.Priority, a.Class.Priority),
		started(a).Compare(started(b)),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name),
	)
}

// better tells whether evicting a's victims does less harm: a less important
// most important victim, a smaller sum of priorities, fewer victims, younger ones.
func better(a, b *candidate) bool {
	sum := func(c *candidate) (n int64) {
		for _, v := range c.victims {
			n += int64(v.Class.Priority) + 1<<31
		}
		return n
	}
	oldest := func(c *candidate) int64 {
		t := int64(1<<63 - 1)
		for _, v := range c.victims {
			if v.Class.Priority == c.victims[0].Class.Priority {
				t = min(t, started(v).UnixNano())
			}
		}
		return t
	}
	if len(a.victims) == 0 || len(b.victims) == 0 {
		return len(a.victims) < len(b.victims)
	}
	return cmp.Or(
		cmp.Compare(a.victims[0].Class.Priority, b.victims[0].Class.Priority),
		cmp.Compare(sum(a), sum(b)),
		cmp.Compare(len(a.victims), len(b.victims)),
		cmp.Compare(oldest(b), oldest(a)),
		cmp.Compare(a.node.Name, b.node.Name),
	) < 0
}

func endingByPreemption(p *framework.Pod) bool {
	if p.Ending {
		return true
	}
	if p.DeletionTimestamp == nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.DisruptionTarget {
			return c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
		}
	}
	return false
}

// started is when a pod began to run; one that has not yet counts as the youngest.
func started(p *framework.Pod) time.Time {
	if p.Status.StartTime != nil {
		return p.Status.StartTime.Time
	}
	return time.Unix(1<<33, 0)
}
