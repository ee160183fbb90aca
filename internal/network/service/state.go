package service

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// state is what the rules should be: fragments by service, and who owns what
// several services claim.
type state struct {
	complete  bool
	fragments map[string]*fragment
	// owner of a frontend. Two services may claim the same external address or
	// node port: the first in order of keys among those that came at once, else
	// the first to come, has it until it goes.
	owner   map[frontend]string
	waiting map[frontend][]string
	// users count the services that have a cluster IP, and the slots that have an
	// endpoint's address.
	clusterIPs map[netip.Addr]int
	hairpin    map[netip.Addr]int
	// kinds are those that the rules have a chain for, with how many fronts are of
	// each. One that lost its last front goes a little later (idle).
	kinds map[chain]int
}

func newState() *state {
	return &state{
		fragments: map[string]*fragment{}, owner: map[frontend]string{}, waiting: map[frontend][]string{},
		clusterIPs: map[netip.Addr]int{}, hairpin: map[netip.Addr]int{}, kinds: fixedKinds(),
	}
}

// fixedKinds are always there: those of fronts that need no endpoint.
func fixedKinds() map[chain]int {
	return map[chain]int{{verdict: verdictReject}: 0, {verdict: verdictDrop}: 0}
}

// kind notes a front of a kind, and tells whether the kind is new.
func (s *state) kind(c chain) (fresh bool) {
	_, known := s.kinds[c]
	s.kinds[c]++
	return !known
}

// idle tells the kinds apart that have fronts, or always stay, and those of which
// there is no front any more.
func (s *state) idle() (used, idle []chain) {
	for c, n := range s.kinds {
		if n > 0 || c.verdict != "" {
			used = append(used, c)
		} else {
			idle = append(idle, c)
		}
	}
	return used, idle
}

// slot is a key of the map of endpoints.
type slot struct {
	frontend
	index uint32
}

// localSlot is the first slot of the endpoints of this node.
const localSlot = 1 << 31

// pinned says that an endpoint may be a client's, by session affinity.
type pinned struct {
	frontend
	local bool
	to    netip.AddrPort
}

// delta is a change of the rules' sets. A key whose value changes is in both
// halves.
type delta struct {
	// discard counts and drops the rest: everything is going to be written anew.
	discard              bool
	chains               []chain
	addFronts, delFronts map[frontend]chain
	addSlots, delSlots   map[slot]netip.AddrPort
	addPins, delPins     map[pinned]bool
	addIPs, delIPs       []netip.Addr
	addPairs, delPairs   []netip.Addr
	// udp says that flows may be stale, idle that kinds may be.
	udp, idle bool
}

func newDelta() *delta {
	return &delta{
		addFronts: map[frontend]chain{}, delFronts: map[frontend]chain{},
		addSlots: map[slot]netip.AddrPort{}, delSlots: map[slot]netip.AddrPort{},
		addPins: map[pinned]bool{}, delPins: map[pinned]bool{},
	}
}

func (d *delta) empty() bool {
	return len(d.addFronts)+len(d.delFronts)+len(d.addSlots)+len(d.delSlots)+len(d.addPins)+len(d.delPins)+
		len(d.addIPs)+len(d.delIPs)+len(d.addPairs)+len(d.delPairs) == 0
}

// content is what goes into the sets, or out of them.
type content struct {
	fronts     iter.Seq2[frontend, chain]
	slots      iter.Seq2[slot, netip.AddrPort]
	pins       iter.Seq2[pinned, bool]
	ips, pairs iter.Seq[netip.Addr]
}

func (d *delta) adds() content {
	return content{maps.All(d.addFronts), maps.All(d.addSlots), maps.All(d.addPins), slices.Values(d.addIPs), slices.Values(d.addPairs)}
}

func (d *delta) dels() content {
	return content{maps.All(d.delFronts), maps.All(d.delSlots), maps.All(d.delPins), slices.Values(d.delIPs), slices.Values(d.delPairs)}
}

// change moves the state to new fragments (nil: gone) and returns the
// difference, if it is wanted.
func (s *state) change(next map[string]*fragment, discard bool) *delta {
	d := newDelta()
	d.discard = discard
	ips, pairs := counts{}, counts{}
	keys := make([]string, 0, len(next))
	for key := range next {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	// First everything that goes, so that a frontend can change hands.
	freed := map[frontend]bool{}
	before := map[frontend][]netip.AddrPort{}
	for _, key := range keys {
		old := s.fragments[key]
		if old == nil {
			continue
		}
		for _, ip := range old.clusterIPs {
			ips[ip]--
		}
		keeps := map[frontend]bool{}
		if n := next[key]; n != nil {
			for _, f := range n.fronts {
				keeps[f.frontend] = true
			}
		}
		for _, f := range old.fronts {
			if s.owner[f.frontend] == key {
				d.removeFront(f, pairs)
				before[f.frontend] = f.serving
				if !keeps[f.frontend] {
					delete(s.owner, f.frontend)
					freed[f.frontend] = true
				}
			} else if !keeps[f.frontend] {
				s.unwait(f.frontend, key)
			}
		}
		delete(s.fragments, key)
	}
	for _, key := range keys {
		frag := next[key]
		if frag == nil {
			continue
		}
		s.fragments[key] = frag
		for _, ip := range frag.clusterIPs {
			ips[ip]++
		}
		for _, f := range frag.fronts {
			switch owner, taken := s.owner[f.frontend]; {
			case !taken && len(s.waiting[f.frontend]) > 0:
				// Those that wait are served below.
				s.wait(f.frontend, key)
				freed[f.frontend] = true
			case !taken:
				s.owner[f.frontend] = key
				d.addFront(f, pairs)
			case owner == key:
				d.addFront(f, pairs)
			default:
				s.wait(f.frontend, key)
			}
		}
	}
	for at := range freed {
		if _, taken := s.owner[at]; taken || len(s.waiting[at]) == 0 {
			continue
		}
		key := s.waiting[at][0]
		s.unwait(at, key)
		s.owner[at] = key
		for _, f := range s.fragments[key].fronts {
			if f.frontend == at {
				d.addFront(f, pairs)
			}
		}
	}
	d.addIPs, d.delIPs = ips.applyTo(s.clusterIPs)
	d.addPairs, d.delPairs = pairs.applyTo(s.hairpin)
	d.reduce()
	for at, was := range before {
		if f, ok := s.front(at); ok {
			d.udp = d.udp || !contains(f.serving, was)
		}
	}
	for _, c := range d.delFronts {
		s.kinds[c]--
		d.idle = d.idle || s.kinds[c] == 0 && c.verdict == ""
	}
	for _, c := range d.addFronts {
		if s.kind(c) {
			d.chains = append(d.chains, c)
		}
	}
	return d
}

func (s *state) wait(at frontend, key string) {
	if !slices.Contains(s.waiting[at], key) {
		s.waiting[at] = append(s.waiting[at], key)
	}
}

func (s *state) unwait(at frontend, key string) {
	rest := slices.DeleteFunc(s.waiting[at], func(k string) bool { return k == key })
	if len(rest) == 0 {
		delete(s.waiting, at)
	} else {
		s.waiting[at] = rest
	}
}

// effective yields the fronts that are in effect.
func (s *state) effective(yield func(front) bool) {
	for key, frag := range s.fragments {
		for _, f := range frag.fronts {
			if s.owner[f.frontend] == key && !yield(f) {
				return
			}
		}
	}
}

func (s *state) hasUDP() bool {
	for at := range s.owner {
		if at.proto == unix.IPPROTO_UDP {
			return true
		}
	}
	return false
}

// all returns all that the rules should have, with the kinds that it needs.
func (s *state) all() (chains []chain, c content) {
	s.kinds = fixedKinds()
	for f := range s.effective {
		if s.kind(f.chain) {
			chains = append(chains, f.chain)
		}
	}
	return chains, content{
		fronts: func(yield func(frontend, chain) bool) {
			for f := range s.effective {
				if !yield(f.frontend, f.chain) {
					return
				}
			}
		},
		slots: func(yield func(slot, netip.AddrPort) bool) {
			for f := range s.effective {
				for sl, to := range f.slots {
					if !yield(sl, to) {
						return
					}
				}
			}
		},
		pins: func(yield func(pinned, bool) bool) {
			for f := range s.effective {
				if f.chain.affinity == 0 {
					continue
				}
				for sl, to := range f.slots {
					if !yield(sl.pin(to), true) {
						return
					}
				}
			}
		},
		ips: maps.Keys(s.clusterIPs), pairs: maps.Keys(s.hairpin),
	}
}

// front returns what is in effect for a frontend.
func (s *state) front(at frontend) (front, bool) {
	key, ok := s.owner[at]
	if !ok {
		return front{}, false
	}
	for _, f := range s.fragments[key].fronts {
		if f.frontend == at {
			return f, true
		}
	}
	return front{}, false
}

// contains tells that all of some is in all.
func contains(all, some []netip.AddrPort) bool {
	for _, a := range some {
		if _, ok := slices.BinarySearchFunc(all, a, netip.AddrPort.Compare); !ok {
			return false
		}
	}
	return true
}

func (d *delta) addFront(f front, pairs counts) {
	d.count(f, pairs, 1, d.addFronts, d.addSlots, d.addPins)
}

func (d *delta) removeFront(f front, pairs counts) {
	d.count(f, pairs, -1, d.delFronts, d.delSlots, d.delPins)
}

func (d *delta) count(f front, pairs counts, by int, fronts map[frontend]chain, slots map[slot]netip.AddrPort, pins map[pinned]bool) {
	if !d.discard {
		fronts[f.frontend] = f.chain
	}
	for sl, to := range f.slots {
		pairs[to.Addr()] += by
		if d.discard {
			continue
		}
		slots[sl] = to
		if f.chain.affinity > 0 {
			pins[sl.pin(to)] = true
		}
	}
}

// slots yields the front's slots with their endpoints.
func (f front) slots(yield func(slot, netip.AddrPort) bool) {
	for i, to := range f.cluster {
		if !yield(slot{f.frontend, uint32(i)}, to) {
			return
		}
	}
	for i, to := range f.local {
		if !yield(slot{f.frontend, localSlot + uint32(i)}, to) {
			return
		}
	}
}

func (s slot) pin(to netip.AddrPort) pinned { return pinned{s.frontend, s.index >= localSlot, to} }

// reduce takes out what is removed and added alike.
func (d *delta) reduce() {
	cancel(d.addFronts, d.delFronts)
	cancel(d.addSlots, d.delSlots)
	cancel(d.addPins, d.delPins)
	for at := range d.addFronts {
		d.udp = d.udp || at.proto == unix.IPPROTO_UDP
	}
}

func cancel[K, V comparable](add, del map[K]V) {
	for k, v := range del {
		if w, ok := add[k]; ok && v == w {
			delete(add, k)
			delete(del, k)
		}
	}
}

// counts are changes of numbers of users.
type counts map[netip.Addr]int

func (c counts) applyTo(users map[netip.Addr]int) (add, del []netip.Addr) {
	for ip, n := range c {
		before := users[ip]
		after := before + n
		if after == 0 {
			delete(users, ip)
		} else {
			users[ip] = after
		}
		switch {
		case before == 0 && after > 0:
			add = append(add, ip)
		case before > 0 && after == 0:
			del = append(del, ip)
		}
	}
	return add, del
}
