package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"skiff/internal/api/storage"
)

// Times of upstream's.
const (
	// unmountWait is how long a node that is not ready is waited for before what it
	// may still have mounted is detached all the same.
	unmountWait = 6 * time.Minute
	// attacherWait is how long a driver has for one try to attach or detach.
	attacherWait = 2 * time.Minute
	// A try that failed is made again after attachRetry, twice that the next time,
	// and attachRetryMost at the most.
	attachRetry     = 500 * time.Millisecond
	attachRetryMost = 2*time.Minute + 2*time.Second
)

// attachedVolume is a volume and what it has to do with nodes, at one moment.
type attachedVolume struct {
	storage.Attachable
	// nodes are all where the volume is exclusive; the one that is looked at
	// otherwise.
	nodes   []attachment
	retries attachRetries
}

// attachment is a volume on one node.
type attachment struct {
	node string
	// pods on the node that want the volume, by name.
	pods []*corev1.Pod
	// there tells that the node exists and has its volumes attached by the control
	// plane.
	there bool
	// ready and outOfService are what the node's condition and taints say.
	ready, outOfService bool
	// inUse tells that the node may have it mounted, listed that its status says it
	// is attached.
	inUse, listed bool
	// object asks the driver to attach it; nil where there is none, and always
	// where nodes attach the volume themselves.
	object *storagev1.VolumeAttachment
	attachmentMemory
}

// attachmentMemory is what is known of an attachment beside the objects. A
// controller that starts anew does without.
type attachmentMemory struct {
	unwanted time.Time // since when no pod of the node wants it
	since    time.Time // when the try to attach it began that goes on
	tried    time.Time // when the last one failed
	// attached and blocked tell that this was said to the pods.
	attached, blocked bool
}

// attachRetries is when a volume may be attached or detached again after that went
// wrong. The first failure of the one forgets those of the other.
type attachRetries struct {
	detach bool
	delay  time.Duration
	until  time.Time
}

// failed returns the state after a failure.
func (r attachRetries) failed(detach bool, now time.Time) attachRetries {
	d := attachRetry
	if r.delay > 0 && r.detach == detach {
		d = min(2*r.delay, attachRetryMost)
	}
	return attachRetries{detach: detach, delay: d, until: now.Add(d)}
}

// waits tells that it is too early for another try.
func (r attachRetries) waits(detach bool, now time.Time) bool {
	return r.delay > 0 && r.detach == detach && now.Before(r.until)
}

// attachStep is what is to be done about an attachment.
type attachStep int

const (
	attachNothing attachStep = iota
	attachCreate             // make its object
	attachDelete             // delete its object
)

// attachPlan is what is decided about an attachment.
type attachPlan struct {
	node string
	step attachStep
	// object is the one to be deleted; with unsafe although the node may have the
	// volume mounted.
	object *storagev1.VolumeAttachment
	unsafe bool
	// relist tells that the node's list of attached volumes is not as it is to be.
	relist bool
	say    []podWord
	// again is when to look again although nothing changes; zero for never.
	again time.Time
	attachmentMemory
}

// podWord is an event about a pod.
type podWord struct {
	pod *corev1.Pod
	word
}

// attached tells that the volume is attached to the node for sure.
func (v *attachedVolume) attached(x *attachment) bool {
	if v.Driver == "" {
		return x.listed
	}
	return x.object != nil && x.object.Status.Attached && x.object.DeletionTimestamp == nil
}

// overdue tells that the node has had its time to let the volume go.
func (x *attachment) overdue(now time.Time) bool {
	return !x.unwanted.IsZero() && !now.Before(x.unwanted.Add(unmountWait))
}

// releasable tells that the volume may be detached from the node: nobody there wants
// it, and the node does not use it, or cannot be waited for.
func (x *attachment) releasable(now time.Time) bool {
	return len(x.pods) == 0 && (!x.inUse || x.outOfService || !x.ready && x.overdue(now))
}

// listing tells whether the volume is to be in the node's list of attached ones: pods
// may mount what is listed. A volume that is to be detached leaves the list first.
func (v *attachedVolume) listing(x *attachment, now time.Time) bool {
	if v.attached(x) {
		return !x.releasable(now)
	}
	if v.Driver != "" || len(x.pods) == 0 || !x.there {
		return false
	}
	blocked, _ := v.blocked(x, now)
	return !blocked
}

// blocked tells that an exclusive volume cannot be attached to a node since another
// has it, or is getting it or losing it. by are the attachments that stay unless
// somebody gives way.
func (v *attachedVolume) blocked(x *attachment, now time.Time) (blocked bool, by []*attachment) {
	if !v.Exclusive {
		return false, nil
	}
	for i := range v.nodes {
		o := &v.nodes[i]
		if o.node == x.node {
			continue
		}
		switch {
		case v.attached(o):
			blocked = true
			if !o.releasable(now) {
				by = append(by, o)
			}
		case v.Driver == "":
			blocked = blocked || o.there && len(o.pods) > 0 && attachedFirst(o, x)
		case o.object != nil && o.object.DeletionTimestamp != nil:
			blocked = blocked || !detachFailed(o.object, now)
		case o.object != nil:
			blocked = blocked || o.trying(now) || len(o.pods) == 0 && o.releasable(now)
		}
	}
	return blocked, by
}

// trying tells that a try to attach the volume goes on.
func (x *attachment) trying(now time.Time) bool {
	return x.object.Status.AttachError == nil && !x.since.IsZero() && now.Before(x.since.Add(attacherWait))
}

// detachFailed tells that a driver did not manage to detach, or said nothing for too
// long: then the volume may be attached or not, and another node is tried.
func detachFailed(a *storagev1.VolumeAttachment, now time.Time) bool {
	return a.Status.DetachError != nil || !now.Before(a.DeletionTimestamp.Add(attacherWait))
}

// attachedFirst is the order in which nodes that want an exclusive volume have their try:
// first those whose last one is longest ago, then those of the oldest pods.
func attachedFirst(a, b *attachment) bool {
	oldest := func(x *attachment) time.Time {
		var t time.Time
		for _, p := range x.pods {
			if c := p.CreationTimestamp.Time; t.IsZero() || c.Before(t) {
				t = c
			}
		}
		return t
	}
	return cmp.Or(a.tried.Compare(b.tried), oldest(a).Compare(oldest(b)), cmp.Compare(a.node, b.node)) < 0
}

// planVolume decides about the attachments of a volume: first those that are to end,
// so that others can begin. At most one try to attach an exclusive volume begins.
func planVolume(v *attachedVolume, now time.Time) ([]attachPlan, attachRetries) {
	var order []*attachment
	for i := range v.nodes {
		order = append(order, &v.nodes[i])
	}
	slices.SortFunc(order, func(a, b *attachment) int {
		switch {
		case (len(a.pods) == 0) != (len(b.pods) == 0):
			return len(a.pods) - len(b.pods)
		case attachedFirst(a, b):
			return -1
		}
		return 1
	})
	w := attachPlanner{attachedVolume: v, now: now}
	var out []attachPlan
	for _, x := range order {
		p := attachPlan{node: x.node, attachmentMemory: x.attachmentMemory}
		if len(x.pods) == 0 {
			w.release(x, &p)
		} else {
			w.want(x, &p)
		}
		x.attachmentMemory = p.attachmentMemory
		p.relist = x.there && v.listing(x, now) != x.listed
		out = append(out, p)
	}
	return out, v.retries
}

// attachPlanner is a decision in progress.
type attachPlanner struct {
	*attachedVolume
	now time.Time
	// began tells that a try to attach began in this decision.
	began bool
}

// release decides about an attachment that no pod wants any more.
func (w *attachPlanner) release(x *attachment, p *attachPlan) {
	p.attachmentMemory = attachmentMemory{unwanted: x.unwanted}
	if x.object == nil && !x.listed {
		p.attachmentMemory = attachmentMemory{}
		if w.retries.detach {
			w.retries = attachRetries{}
		}
		return
	}
	if p.unwanted.IsZero() {
		p.unwanted = w.now
	}
	x.unwanted = p.unwanted
	switch {
	case !x.releasable(w.now):
		if !x.ready {
			p.again = p.unwanted.Add(unmountWait)
		}
	case x.listed: // it leaves the list first
	case x.object.DeletionTimestamp != nil: // the driver is at it
		if !detachFailed(x.object, w.now) {
			p.again = x.object.DeletionTimestamp.Add(attacherWait)
		}
	case w.retries.waits(true, w.now):
		p.again = w.retries.until
	default:
		p.step, p.object, p.unsafe = attachDelete, x.object, x.outOfService || !x.ready && x.overdue(w.now)
	}
}

// want decides about an attachment that pods want.
func (w *attachPlanner) want(x *attachment, p *attachPlan) {
	p.unwanted = time.Time{}
	x.unwanted = time.Time{}
	if w.attached(x) {
		w.succeeded(x, p)
		return
	}
	p.attached = false
	if !x.there {
		return
	}
	if w.began && w.Exclusive {
		return // whose object will be seen the next time
	}
	blocked, by := w.blocked(x, w.now)
	if len(by) > 0 && !x.blocked {
		p.say, p.blocked = waitsForDetach(&w.Attachable, x.pods, by), true
	}
	if blocked {
		p.since = time.Time{}
		return // what the others do brings the volume back
	}
	if w.Driver == "" {
		w.succeeded(x, p)
		return
	}
	if w.retries.waits(false, w.now) {
		p.again = w.retries.until
		return
	}
	a := x.object
	switch {
	case a == nil:
		w.began = true
		p.step, p.since, p.again = attachCreate, w.now, w.now.Add(attacherWait)
	case a.DeletionTimestamp != nil && !detachFailed(a, w.now):
		p.again = a.DeletionTimestamp.Add(attacherWait)
	case a.DeletionTimestamp != nil:
		w.failed(x, p, "volume attachment is being deleted")
	case a.Status.AttachError != nil:
		w.failed(x, p, a.Status.AttachError.Message)
	case p.since.IsZero():
		p.since, p.again = w.now, w.now.Add(attacherWait)
	case w.now.Before(p.since.Add(attacherWait)):
		p.again = p.since.Add(attacherWait)
	default:
		w.failed(x, p, fmt.Sprintf("timed out waiting for external-attacher of %s CSI driver to attach volume %s", w.Driver, w.Handle))
	}
}

// succeeded is of a volume that is attached: the pods hear of it once.
func (w *attachPlanner) succeeded(x *attachment, p *attachPlan) {
	p.since, p.tried = time.Time{}, time.Time{}
	if !w.retries.detach {
		w.retries = attachRetries{}
	}
	if !x.listed && !p.attached && x.there {
		p.say = tellAll(x.pods, corev1.EventTypeNormal, "SuccessfulAttachVolume", fmt.Sprintf("AttachVolume.Attach succeeded for volume %q ", w.Label))
	}
	p.attached = true
}

// failed ends a try to attach.
func (w *attachPlanner) failed(x *attachment, p *attachPlan, why string) {
	w.retries = w.retries.failed(false, w.now)
	p.since, p.tried, p.again = time.Time{}, w.now, w.retries.until
	p.say = append(p.say, attachFailure(&w.Attachable, x.pods, why)...)
}

func attachFailure(v *storage.Attachable, pods []*corev1.Pod, why string) []podWord {
	return tellAll(pods, corev1.EventTypeWarning, "FailedAttachVolume", fmt.Sprintf("AttachVolume.Attach failed for volume %q : %s", v.Label, why))
}

func tellAll(pods []*corev1.Pod, kind, reason, message string) []podWord {
	var out []podWord
	for _, p := range pods {
		out = append(out, podWord{p, word{kind, reason, message}})
	}
	return out
}

// waitsForDetach tells pods why they wait for a volume that others have. Pods of
// other namespaces are counted, not named.
func waitsForDetach(v *storage.Attachable, pods []*corev1.Pod, by []*attachment) []podWord {
	say := func(why string) word {
		return word{corev1.EventTypeWarning, "FailedAttachVolume", fmt.Sprintf("Waiting for detach for volume %q %s", v.Label, why)}
	}
	var out []podWord
	for _, p := range pods {
		var names []string
		strangers := 0
		for _, o := range by {
			for _, q := range o.pods {
				if q.Namespace == p.Namespace {
					names = append(names, q.Name)
				} else {
					strangers++
				}
			}
		}
		slices.Sort(names)
		var why string
		switch {
		case len(names) == 0 && strangers == 0:
			why = "Volume is already exclusively attached to one node, waiting on detach before it can be attached to another node"
		case len(names) == 0:
			why = fmt.Sprintf("Volume is already used by %d pod(s) in different namespaces", strangers)
		case strangers == 0:
			why = "Volume is already used by pod(s) " + strings.Join(names, ", ")
		default:
			why = fmt.Sprintf("Volume is already used by pod(s) %s and %d pod(s) in different namespaces", strings.Join(names, ", "), strangers)
		}
		out = append(out, podWord{p, say(why)})
	}
	return out
}
