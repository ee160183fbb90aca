package scheduler

import (
	"context"

	"skiff/internal/scheduler/framework"
)

// extend asks the extenders about the nodes that the plugins would take, and returns
// the slot of the best that is left; -1 with what they said where none is.
func (c *Cycle) extend(s *framework.Snapshot, t *table, p *framework.Pod) (int, map[int]*framework.Status, error) {
	ctx := context.Background() // an extender has its own time
	t.best()                    // judges all
	nominated := s.NominatedNode(p.UID)
	scores := map[string]uint64{}
	slots := map[string]int{}
	var nodes []*framework.Node
	for _, b := range t.buckets.all {
		if b.status != nil {
			continue
		}
		common := uint64(t.common(b)) << 32
		for _, place := range b.nodes {
			slot := t.slotOf(int(place))
			n := s.At(slot)
			scores[n.Name], slots[n.Name] = t.buckets.keys[place]+common, slot
			nodes = append(nodes, n)
		}
	}
	left, said, err := c.extenders.filter(ctx, p.Pod, nodes)
	if err != nil {
		return -1, nil, err
	}
	if len(left) == 0 {
		refused := map[int]*framework.Status{}
		for _, n := range nodes {
			st := said[n.Name]
			if st == nil {
				// Left out without a word.
				st = &framework.Status{Code: framework.Unresolvable, Plugin: extenderName}
			}
			refused[slots[n.Name]] = st
		}
		return -1, refused, nil
	}
	more := map[string]int64{}
	for _, e := range c.extenders {
		if e.interested(p.Pod) {
			e.prioritize(ctx, p.Pod, left, more)
		}
	}
	best, top := "", uint64(0)
	for _, n := range left {
		if n.Name == nominated {
			return slots[n.Name], nil, nil
		}
		if v := scores[n.Name] + uint64(max(more[n.Name], 0))<<32; best == "" || v > top {
			best, top = n.Name, v
		}
	}
	return slots[best], nil, nil
}
