package framework

import (
	"iter"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Snapshot is what a scheduling cycle judges by: every node and the pods on it,
// those included that were assumed there and are being bound.
//
// It is incremental: a change of one node or pod touches one Node and appends
// the node's slot to a log, which tables of judged nodes replay. Nodes are
// copied on write: Fork shares them.
type Snapshot struct {
	slots  []*Node // by slot; nil where a node was removed
	byName map[string]int
	free   []int
	pods   map[types.UID]placed
	// nominated says where pending pods wait for victims to end.
	nominated map[types.UID]int
	gen       uint64
	nodes     int
	assumed   int

	// log holds the slots changed; logStart is the number of its first entry.
	log      []int32
	logStart uint64

	// images counts the nodes that hold an image.
	images map[string]int
	// use is what the pods of each namespace take; nil while nobody asks.
	use map[string]*Resource
	// claims counts the pods on nodes by the volume claims that they use.
	claims map[string]map[int]int

	// terms counts the pods on nodes, those that wait for one too, by their
	// affinity terms; termsVersion grows
	// when one comes or the last of one goes. mentions are the labels they ask
	// for, nil until asked.
	terms        map[*PodTerms]int
	termsVersion uint64
	mentions     map[string]bool
	// namespaces are the labels of namespaces.
	namespaces        map[string]labels.Set
	namespacesVersion uint64
}

type placed struct {
	pod     *Pod
	slot    int
	assumed bool
}

// NewSnapshot returns an empty snapshot.
func NewSnapshot() *Snapshot {
	return &Snapshot{
		byName: map[string]int{}, pods: map[types.UID]placed{}, nominated: map[types.UID]int{}, images: map[string]int{},
		claims: map[string]map[int]int{},
		terms:  map[*PodTerms]int{}, namespaces: map[string]labels.Set{},
	}
}

// Fork returns a snapshot that may be changed without changing s. It costs a
// copy of the indexes; nodes are shared until changed on either side. Pods are shared
// for good, with what is noted on them (Ending, Doomed).
func (s *Snapshot) Fork() *Snapshot {
	f := &Snapshot{
		slots: slices.Clone(s.slots), byName: maps.Clone(s.byName), free: slices.Clone(s.free),
		pods: maps.Clone(s.pods), nominated: maps.Clone(s.nominated), gen: s.gen, nodes: s.nodes, assumed: s.assumed,
		logStart: s.logStart + uint64(len(s.log)), images: maps.Clone(s.images),
		terms: maps.Clone(s.terms), termsVersion: s.termsVersion,
		namespaces: maps.Clone(s.namespaces), namespacesVersion: s.namespacesVersion,
		claims: make(map[string]map[int]int, len(s.claims)),
	}
	for name, on := range s.claims {
		f.claims[name] = maps.Clone(on)
	}
	for _, n := range s.slots {
		if n != nil {
			n.owner = nil
		}
	}
	return f
}

// NumNodes is the number of nodes that exist.
func (s *Snapshot) NumNodes() int { return s.nodes }

// NumAssumed is the number of pods that are assumed on nodes.
func (s *Snapshot) NumAssumed() int { return s.assumed }

// NumPods is the number of pods on nodes, assumed ones included.
func (s *Snapshot) NumPods() int { return len(s.pods) }

// Slots is the number of slots; a slot may be empty.
func (s *Snapshot) Slots() int { return len(s.slots) }

// At returns the node in a slot, nil where no node is.
func (s *Snapshot) At(slot int) *Node {
	if n := s.slots[slot]; n != nil && n.Obj != nil {
		return n
	}
	return nil
}

// SlotOf returns the slot of a node that exists.
func (s *Snapshot) SlotOf(name string) (int, bool) {
	i, ok := s.byName[name]
	return i, ok && s.slots[i].Obj != nil
}

// Node returns a node that exists, or nil.
func (s *Snapshot) Node(name string) *Node {
	if i, ok := s.byName[name]; ok {
		return s.At(i)
	}
	return nil
}

// All iterates over the nodes that exist, in order of slots.
func (s *Snapshot) All() iter.Seq2[int, *Node] {
	return func(yield func(int, *Node) bool) {
		for i := range s.slots {
			if n := s.At(i); n != nil && !yield(i, n) {
				return
			}
		}
	}
}

// NodesWithImage is the number of nodes that hold an image.
func (s *Snapshot) NodesWithImage(name string) int { return s.images[name] }

// maxLog bounds the log; who is further behind starts over.
const maxLog = 1 << 16

// Changed returns the slots that changed since a position of the log, and the
// position after them. ok is false where the log does not reach back that far:
// then every slot may have changed.
func (s *Snapshot) Changed(since uint64) (slots []int32, now uint64, ok bool) {
	now = s.logStart + uint64(len(s.log))
	if since < s.logStart || since > now {
		return nil, now, false
	}
	return s.log[since-s.logStart:], now, true
}

func (s *Snapshot) touched(slot int) {
	if len(s.log) >= maxLog {
		s.logStart += uint64(len(s.log))
		s.log = s.log[:0]
	}
	s.log = append(s.log, int32(slot))
}

// change returns the node in a slot, to be changed in place.
func (s *Snapshot) change(slot int) *Node {
	n := s.slots[slot]
	if n.owner != s {
		n = n.clone()
		n.owner = s
		s.slots[slot] = n
	}
	s.gen++
	n.Generation = s.gen
	s.touched(slot)
	return n
}

func (s *Snapshot) slotFor(name string) int {
	if i, ok := s.byName[name]; ok {
		return i
	}
	n := &Node{Name: name, owner: s}
	var i int
	if l := len(s.free); l > 0 {
		i, s.free = s.free[l-1], s.free[:l-1]
		s.slots[i] = n
	} else {
		i = len(s.slots)
		s.slots = append(s.slots, n)
	}
	s.byName[name] = i
	return i
}

// SetNode adds or replaces a node.
func (s *Snapshot) SetNode(o *corev1.Node) {
	n := s.change(s.slotFor(o.Name))
	if n.Obj == nil {
		s.nodes++
	}
	s.countImages(n, -1)
	n.setObj(o)
	s.countImages(n, 1)
}

// RefreshNode replaces a node's object by one that differs in nothing that
// plugins look at: what was judged of it holds.
func (s *Snapshot) RefreshNode(o *corev1.Node) {
	i, ok := s.SlotOf(o.Name)
	if !ok {
		return
	}
	n := s.slots[i]
	if n.owner != s {
		n = n.clone()
		n.owner = s
		s.slots[i] = n
	}
	n.Obj = o
}

func (s *Snapshot) countImages(n *Node, by int) {
	for name := range n.Images {
		if s.images[name] += by; s.images[name] <= 0 {
			delete(s.images, name)
		}
	}
}

// RemoveNode forgets a node. The pods on it are kept until they are removed
// themselves, so that a node that comes back is not over-committed.
func (s *Snapshot) RemoveNode(name string) {
	i, ok := s.byName[name]
	if !ok {
		return
	}
	n := s.change(i)
	if n.Obj != nil {
		s.nodes--
	}
	s.countImages(n, -1)
	n.setObj(nil)
	s.release(i)
}

// release frees a slot that has neither a node nor pods.
func (s *Snapshot) release(i int) {
	if n := s.slots[i]; n.Obj == nil && len(n.Pods) == 0 && len(n.Nominated) == 0 {
		delete(s.byName, n.Name)
		s.slots[i] = nil
		s.free = append(s.free, i)
	}
}

// put and take are the two ways in which the pods of a node change.
func (s *Snapshot) put(p *Pod, slot int, assumed bool) {
	s.change(slot).add(p)
	s.pods[p.UID] = placed{pod: p, slot: slot, assumed: assumed}
	if assumed {
		s.assumed++
	}
	s.countTerms(p.Terms, 1)
	s.countClaims(p, slot, 1)
	if s.use != nil {
		s.countUse(p, 1)
	}
}

func (s *Snapshot) take(at placed) {
	delete(s.pods, at.pod.UID)
	if at.assumed {
		s.assumed--
	}
	s.countClaims(at.pod, at.slot, -1)
	if s.use != nil {
		s.countUse(at.pod, -1)
	}
	s.change(at.slot).remove(at.pod)
	s.countTerms(at.pod.Terms, -1)
	s.release(at.slot)
}

// TrackUse has Use answered from now on, or no more. A fork does not answer it.
func (s *Snapshot) TrackUse(on bool) {
	s.use = nil
	if !on {
		return
	}
	s.use = map[string]*Resource{}
	for _, at := range s.pods {
		s.countUse(at.pod, 1)
	}
}

func (s *Snapshot) countUse(p *Pod, sign int64) {
	r := s.use[p.Namespace]
	if r == nil {
		r = &Resource{}
		s.use[p.Namespace] = r
	}
	u := p.use()
	r.add(&u.requested, sign)
	if r.Pods += sign; r.Pods == 0 {
		delete(s.use, p.Namespace)
	}
}

// Use is what the pods of a namespace that are on nodes take; Pods is their number.
func (s *Snapshot) Use(namespace string) Resource {
	r := s.use[namespace]
	if r == nil {
		return Resource{}
	}
	out := *r
	out.Scalar = maps.Clone(r.Scalar)
	return out
}

// Total is what all nodes have to give.
func (s *Snapshot) Total() Resource {
	var out Resource
	for _, n := range s.All() {
		out.add(&n.Allocatable, 1)
		out.Pods += n.Allocatable.Pods
	}
	return out
}

func (s *Snapshot) countClaims(p *Pod, slot, by int) {
	for _, name := range p.Class.Claims {
		on := s.claims[name]
		if on == nil {
			on = map[int]int{}
			s.claims[name] = on
		}
		if on[slot] += by; on[slot] <= 0 {
			delete(on, slot)
		}
		if len(on) == 0 {
			delete(s.claims, name)
		}
	}
}

// ClaimUsers is how many pods use a volume claim (namespace/name) on the nodes
// that there are, by node.
func (s *Snapshot) ClaimUsers(name string) iter.Seq2[*Node, int] {
	return func(yield func(*Node, int) bool) {
		for slot, n := range s.claims[name] {
			if !yield(s.slots[slot], n) {
				return
			}
		}
	}
}

func (s *Snapshot) countTerms(t *PodTerms, by int) {
	if t == nil {
		return
	}
	was := s.terms[t]
	s.terms[t] = was + by
	if was != 0 && was+by != 0 {
		return
	}
	if was+by == 0 {
		delete(s.terms, t)
	}
	s.termsVersion++
	s.mentions = nil
}

// Terms iterates over the affinity terms of the pods on nodes and of those that
// wait for one, each set once, in no order. TermsVersion is another one after the set changed.
func (s *Snapshot) Terms() iter.Seq[*PodTerms] { return maps.Keys(s.terms) }

// TermsVersion is described at Terms.
func (s *Snapshot) TermsVersion() uint64 { return s.termsVersion }

// SetNamespace notes the labels of a namespace; RemoveNamespace forgets it.
func (s *Snapshot) SetNamespace(name string, set map[string]string) {
	if old, ok := s.namespaces[name]; ok && maps.Equal(old, set) {
		return
	}
	s.namespaces[name] = set
	s.namespacesVersion++
}

// RemoveNamespace is described at SetNamespace.
func (s *Snapshot) RemoveNamespace(name string) {
	delete(s.namespaces, name)
	s.namespacesVersion++
}

// Namespace returns the labels of a namespace.
func (s *Snapshot) Namespace(name string) labels.Set { return s.namespaces[name] }

// NamespacesVersion is another one after the labels of a namespace changed.
func (s *Snapshot) NamespacesVersion() uint64 { return s.namespacesVersion }

// SetPod places a pod on a node, as the API says it is; it ends an assumption
// about that pod. It tells what of that is new to plugins: PodAdded where the API
// was not known to place it there, PodShrunk where what it takes changed,
// PodRelabeled where its labels did or its end has begun.
func (s *Snapshot) SetPod(p *Pod, node string) EventKind {
	s.Nominate(p, "")
	news := PodAdded
	if old, ok := s.pods[p.UID]; ok {
		p.Ending, p.Doomed = old.pod.Ending, old.pod.Doomed
		p.Group = old.pod.Group
		if s.slots[old.slot].Name == node {
			if !old.assumed {
				news = 0
			}
			use := old.pod.Class == p.Class && old.pod.use().equal(p.use())
			kin := old.pod.Kin == p.Kin && old.pod.Terms == p.Terms && (old.pod.DeletionTimestamp == nil) == (p.DeletionTimestamp == nil)
			if use && kin {
				s.replace(old.slot, p)
				return news
			}
			if !use {
				news |= PodShrunk
			}
			if !kin {
				news |= PodRelabeled
			}
		}
		s.take(old)
	}
	s.put(p, s.slotFor(node), false)
	return news
}

// replace takes a newer state of a pod that is the same to plugins.
func (s *Snapshot) replace(slot int, p *Pod) {
	n := s.slots[slot]
	if n.owner != s {
		n = n.clone()
		n.owner = s
		s.slots[slot] = n
	}
	if i := slices.IndexFunc(n.Pods, func(o *Pod) bool { return o.UID == p.UID }); i >= 0 {
		n.Pods[i] = p
	}
	if s.pods[p.UID].assumed {
		s.assumed--
	}
	s.pods[p.UID] = placed{pod: p, slot: slot}
}

// Assume places a pod on the node in a slot, as long as neither SetPod nor Forget
// says otherwise.
func (s *Snapshot) Assume(p *Pod, slot int) {
	s.RemovePod(p.UID)
	s.Nominate(p, "")
	s.put(p, slot, true)
}

// Nominate notes that a pending pod waits for a node; "" ends that.
func (s *Snapshot) Nominate(p *Pod, node string) {
	at, ok := s.nominated[p.UID]
	if ok && s.slots[at].Name == node {
		n := s.slots[at]
		if i := slices.IndexFunc(n.Nominated, func(o *Pod) bool { return o.UID == p.UID }); i >= 0 && n.Nominated[i] == p {
			return
		}
	}
	if ok {
		delete(s.nominated, p.UID)
		n := s.change(at)
		n.Nominated = slices.DeleteFunc(n.Nominated, func(o *Pod) bool {
			if o.UID != p.UID {
				return false
			}
			s.countTerms(o.Terms, -1)
			return true
		})
		s.release(at)
	}
	if node == "" {
		return
	}
	i := s.slotFor(node)
	n := s.change(i)
	n.Nominated = append(n.Nominated, p)
	s.countTerms(p.Terms, 1)
	s.nominated[p.UID] = i
}

// NominatedNode is the node that a pending pod waits for, "" for none.
func (s *Snapshot) NominatedNode(uid types.UID) string {
	if at, ok := s.nominated[uid]; ok {
		return s.slots[at].Name
	}
	return ""
}

// Forget ends an assumption; it does nothing to a pod that the API placed.
func (s *Snapshot) Forget(uid types.UID) bool {
	if at, ok := s.pods[uid]; !ok || !at.assumed {
		return false
	}
	s.RemovePod(uid)
	return true
}

// Assumed tells whether a pod is assumed on a node.
func (s *Snapshot) Assumed(uid types.UID) bool {
	at, ok := s.pods[uid]
	return ok && at.assumed
}

// Placed returns the pod and the name of the node that it is on.
func (s *Snapshot) Placed(uid types.UID) (*Pod, string, bool) {
	at, ok := s.pods[uid]
	if !ok {
		return nil, "", false
	}
	return at.pod, s.slots[at.slot].Name, true
}

// RemovePod takes a pod off its node.
func (s *Snapshot) RemovePod(uid types.UID) bool {
	at, ok := s.pods[uid]
	if !ok {
		return false
	}
	s.take(at)
	return true
}
