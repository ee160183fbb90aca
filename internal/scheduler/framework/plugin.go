package framework

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"

	"skiff/internal/client"
)

// Code says what a plugin decided.
type Code int8

const (
	// Success is also what a nil *Status means.
	Success Code = iota
	// Unschedulable: not now; evicting pods might help.
	Unschedulable
	// Unresolvable: not now, and evicting pods cannot help.
	Unresolvable
	// Skip, from PreFilter or PreScore: this plugin has nothing to say of this
	// class, and is not asked again.
	Skip
)

// Status is a plugin's refusal. Statuses are shared and never changed: a plugin
// makes one for each reason, once.
type Status struct {
	Code   Code
	Plugin string
	// Reasons are what people and programs read in events and conditions.
	Reasons []string
}

// Refused tells whether a status is a refusal.
func (s *Status) Refused() bool {
	return s != nil && (s.Code == Unschedulable || s.Code == Unresolvable)
}

// Plugin is any plugin. Each implements some of the interfaces below.
type Plugin interface{ Name() string }

// PreFilterer prepares a class. state is handed to Filter. nodes, where not nil,
// are the only nodes that can do.
type PreFilterer interface {
	PreFilter(c *Class) (state any, nodes []string, st *Status)
}

// Surveyor is a PreFilterer that for some classes looks at more than the class:
// at the snapshot, or at objects that are neither nodes nor pods. For those Survey
// is called in place of PreFilter, and what it and Filter say holds for this one
// decision.
type Surveyor interface {
	Surveys(c *Class) bool
	Survey(c *Class, s *Snapshot) (state any, nodes []string, st *Status)
}

// Filterer says whether a node can take a pod of a class; nil if it can. It must
// depend on nothing but the class and the node: the answer is kept until the node
// changes. A plugin that looks at other nodes' pods is Topological.
type Filterer interface {
	Filter(state any, c *Class, n *Node) *Status
}

// PreScorer prepares a class for scoring; state is handed to Score.
type PreScorer interface {
	PreScore(c *Class) (state any, st *Status)
}

// Scorer says how well a node suits, 0 to MaxScore. Like Filter it judges the
// node alone; see Global.
type Scorer interface {
	Score(state any, c *Class, n *Node, s *Snapshot) int64
}

// MaxScore is the best score.
const MaxScore = 100

// Normalizer maps the raw values that Score returned to 0..MaxScore, given the
// least and the greatest over the nodes that can take the pod.
type Normalizer interface {
	Normalize(raw, least, greatest int64) int64
}

// Global is implemented by a plugin whose Score depends on more than the node: a
// new fingerprint means that all nodes must be scored anew.
type Global interface {
	Fingerprint(c *Class, s *Snapshot) uint64
}

// PostFilterer is asked when no node can take a pod. What it answers is added to
// the explanation; node, where not empty, is one that the pod shall wait for
// while the victims end.
type PostFilterer interface {
	PostFilter(p *Pod, s *Snapshot, judged Judged) PostFilterResult
}

// Judged is what the filters said of the nodes.
type Judged interface {
	// Status of the node in a slot; nil where the node can take the pod.
	Status(slot int) *Status
	// Refilter judges a node as it would be.
	Refilter(n *Node) *Status
	// Memo keeps what a plugin found out for pods that are alike: it may rely on it
	// for a node of the same generation. It is nil where what holds for a node
	// depends on others.
	Memo() *any
	// Random is a number below n, which follows from the seed.
	Random(n int) int
}

// PostFilterResult is what a PostFilterer found.
type PostFilterResult struct {
	Message string
	Node    string
	Victims []*Pod
	// Violations is the number of victims that a disruption budget would keep.
	Violations int
}

// Reserver takes note of a decision, before other pods of the batch are judged.
// A refusal undoes the decision; Unreserve is called on every plugin then, and
// whenever a later step fails; n.Obj is nil then where the node is gone.
type Reserver interface {
	Reserve(p *Pod, n *Node) *Status
	Unreserve(p *Pod, n *Node)
}

// Guard tells which pods a disruption budget would keep, were all of them to end, the
// first first.
type Guard interface {
	Guarded(pods []*Pod) (guarded, rest []*Pod)
}

// Permitter may veto a decision.
type Permitter interface {
	Permit(p *Pod, n *Node) *Status
}

// PreBinder does what must be done before the binding is written, I/O included.
// An error undoes the decision and the pod is tried again.
type PreBinder interface {
	PreBind(ctx context.Context, p *Pod, node string) error
}

// Waiter is a PreBinder that waits for others to do something: the pods for which
// it does are bound beside the rest.
type Waiter interface {
	PreBinder
	Waits(p *Pod) bool
}

// Watcher is implemented by a plugin that follows more than nodes and pods. Watch is
// called once, before any other method; tell may be called from any goroutine, from
// then on. The plugin is not asked before the channels are closed.
type Watcher interface {
	Watch(tell func(Event)) []<-chan struct{}
}

// Runner has work of its own beside the cycle, until ctx ends.
type Runner interface {
	Run(ctx context.Context) error
}

// PreEnqueuer keeps a pod from the queue until it allows it. It is asked again
// when the pod changes, and at the events that its Hint, if it is a Hinter, says
// may help.
type PreEnqueuer interface {
	PreEnqueue(p *corev1.Pod) *Status
}

// Explainer says in one sentence, to a person, why a node was refused and what
// would help.
type Explainer interface {
	Explain(c *Class, n *Node) string
}

// EventKind is a set of kinds of change.
type EventKind uint32

const (
	NodeAdded EventKind = 1 << iota
	NodeAllocatable
	NodeLabels
	NodeTaints // and spec.unschedulable
	NodeOther
	NodeRemoved
	PodAdded     // to a node
	PodDeleted   // from a node, or finished there
	PodShrunk    // on a node: resized to less
	PodRelabeled // on a node
	PodTolerations
	PodGates
	PodRequests
	PodLabels
	PodOther            // anything else of the pending pod
	NodeFeatures        // the features that it declares
	ClaimChanged        // a claim; Event.OldObject is nil where it is new
	VolumeChanged       // a volume, likewise
	StorageClassChanged // likewise
	CSINodeChanged      // likewise
	CSIDriverChanged    // likewise
	CapacityChanged     // what a driver can still provision, likewise
	AttachmentGone      // a volume was detached
	PodClaims           // the resource claims made for the pending pod
	DeviceClaims        // a resource claim
	Devices             // a resource slice, or a rule that taints devices
	DeviceClasses       // a device class: what was judged of any class of pods may be wrong now

	NodeChanged    = NodeAdded | NodeAllocatable | NodeLabels | NodeTaints
	VolumesChanged = ClaimChanged | VolumeChanged | StorageClassChanged | CSIDriverChanged | CapacityChanged
)

// Event is a change that may let a refused pod run.
type Event struct {
	Kind EventKind
	// Node is the node as it is now, OldNode as it was.
	Node, OldNode *corev1.Node
	// Pod is the pod that came to a node, left it or changed there, or the pending
	// pod as it is now; OldPod is a relabeled pod, or the pending one, as it was.
	Pod, OldPod *Pod
	// Object is what else changed, nil where it is gone; OldObject is as it was.
	Object, OldObject client.Object
	// Claim is the resource claim as it is now, nil where it is gone; OldClaim as
	// it was, nil where it is new.
	Claim, OldClaim *resourcev1.ResourceClaim
}

// Hinter tells which changes may turn this plugin's refusal of a pod around.
// A plugin without it is tried again at every change.
type Hinter interface {
	// Events is what the plugin wants to be asked about.
	Events() EventKind
	// Hint tells whether the pod should be tried again. Of the pod it looks at
	// Class, Kin, Terms and Group alone.
	Hint(p *Pod, e Event) bool
}
