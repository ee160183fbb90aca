package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	podresource "k8s.io/component-helpers/resource"
	schedulingcorev1 "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"skiff/internal/client"
)

// lag is how long a decision may rest on a state that is past: watches stall,
// requests are slow. What only somebody else's change within it made wrong is not
// held against who decided.
const lag = 15 * time.Second

// invariants are what holds after every step. Their state is of the history's
// goroutine.
type invariants struct {
	h      *history
	fail   func(format string, args ...any)
	nodes  map[string][]nodeVersion     // the newest last
	on     map[string]map[string]string // pods by node: keys
	seen   map[string]time.Time         // pods, by key: when last ready
	jobs   map[types.UID]*jobTruth
	pdbs   map[string]*budgetTruth
	quotas map[string]time.Time // when a quota's limits were last changed
	leads  time.Time            // since when the process leads that does
	// checked counts the checks that could have failed.
	checked map[string]int
}

type nodeVersion struct {
	at   time.Time
	node *corev1.Node // nil: gone
}

// jobTruth is what pods of a job did.
type jobTruth struct {
	succeeded map[types.UID]string // with the finalizer on: their names
	lost      map[types.UID]bool   // counted as failed
	failed    map[types.UID]bool   // or went before they ended
	all       map[types.UID]bool
	indexes   map[string]bool // that succeeded
	counted   int32
}

type budgetTruth struct{ other, written time.Time }

func newInvariants() *invariants {
	return &invariants{
		nodes: map[string][]nodeVersion{}, on: map[string]map[string]string{}, seen: map[string]time.Time{},
		jobs: map[types.UID]*jobTruth{}, pdbs: map[string]*budgetTruth{}, quotas: map[string]time.Time{}, checked: map[string]int{},
	}
}

func (v *invariants) step(c *change) {
	switch o := c.object().(type) {
	case *corev1.Node:
		n, _ := c.new.(*corev1.Node)
		v.node(o.Name, c.at, n)
	case *corev1.Pod:
		v.pod(c)
	case *batchv1.Job:
		v.job(c)
	case *policyv1.PodDisruptionBudget:
		if c.new != nil {
			b := v.budget(c.key)
			old, _ := c.old.(*policyv1.PodDisruptionBudget)
			now := c.new.(*policyv1.PodDisruptionBudget)
			if old == nil || len(now.Status.DisruptedPods) <= len(old.Status.DisruptedPods) {
				b.written = c.at
			}
			if now.Status.DisruptionsAllowed < 0 {
				v.fail("%s allows %d disruptions", c.key, now.Status.DisruptionsAllowed)
			}
			if old == nil || old.Generation != now.Generation {
				b.other = c.at
			}
		}
	case *corev1.ResourceQuota:
		// It holds from the moment that its controller has taken it up.
		old, _ := c.old.(*corev1.ResourceQuota)
		if _, ok := c.new.(*corev1.ResourceQuota); ok && (old == nil || c.recreated() || !takenUp(old)) {
			v.quotas[c.key] = c.at
		}
	}
}

func (v *invariants) node(name string, at time.Time, n *corev1.Node) {
	old := v.nodes[name]
	// The version that was true at the start of the lag, and all after it.
	for len(old) > 1 && at.Sub(old[1].at) > lag {
		old = old[1:]
	}
	v.nodes[name] = append(old, nodeVersion{at, n})
}

// versions are the states of a node that a decision of now may rest on.
func (v *invariants) versions(name string, at time.Time) []*corev1.Node {
	list := v.nodes[name]
	for len(list) > 1 && at.Sub(list[1].at) > lag {
		list = list[1:]
	}
	var out []*corev1.Node
	for _, x := range list {
		if x.node != nil {
			out = append(out, x.node)
		}
	}
	return out
}

func (v *invariants) pod(c *change) {
	old, _ := c.old.(*corev1.Pod)
	p, _ := c.new.(*corev1.Pod)
	if old != nil && ready(old) {
		v.seen[c.key] = c.at // until now
	}
	if c.recreated() {
		v.podGone(c, old)
		old = nil
	}
	if p == nil {
		v.podGone(c, old)
		return
	}
	if ready(p) {
		v.seen[c.key] = c.at
	}
	if old == nil {
		v.created(c, p)
	}
	if old != nil && old.Spec.NodeName != "" && old.Spec.NodeName != p.Spec.NodeName {
		v.fail("%s moved from %s to %s", c.key, old.Spec.NodeName, p.Spec.NodeName)
	}
	if p.Spec.NodeName != "" && (old == nil || old.Spec.NodeName == "") {
		v.bound(c, p)
	}
	if p.Spec.NodeName != "" && !ended(p) {
		if v.on[p.Spec.NodeName] == nil {
			v.on[p.Spec.NodeName] = map[string]string{}
		}
		v.on[p.Spec.NodeName][c.key] = c.key
	} else if p.Spec.NodeName != "" {
		delete(v.on[p.Spec.NodeName], c.key)
	}
	v.jobPod(old, p)
	v.disrupted(c, old, p)
}

func (v *invariants) podGone(c *change, p *corev1.Pod) {
	delete(v.on[p.Spec.NodeName], c.key)
	v.disrupted(c, p, nil)
}

func (v *invariants) podsOn(node string) []*corev1.Pod {
	var out []*corev1.Pod
	for k := range v.on[node] {
		out = append(out, v.h.state[k].(*corev1.Pod))
	}
	return out
}

func requests(p *corev1.Pod) corev1.ResourceList {
	return podresource.PodRequests(p, podresource.PodResourcesOptions{})
}

func add(sum, more corev1.ResourceList) {
	for k, q := range more {
		s := sum[k]
		s.Add(q)
		sum[k] = s
	}
}

// bound: a pod comes to a node that can take it.
func (v *invariants) bound(c *change, p *corev1.Pod) {
	node := p.Spec.NodeName
	versions := v.versions(node, c.at)
	if len(versions) == 0 {
		v.fail("%s is bound to node %s, which is not there", c.key, node)
		return
	}
	v.checked["bind"]++
	sum := requests(p)
	count := int64(1)
	others := v.podsOn(node)
	for _, o := range others {
		add(sum, requests(o))
		count++
	}
	if !slices.ContainsFunc(versions, func(n *corev1.Node) bool { return fits(sum, count, n) }) {
		v.fail("%s over-commits node %s: %v and %d pods of %v", c.key, node, sum, count, versions[len(versions)-1].Status.Allocatable)
	}
	if !slices.ContainsFunc(versions, func(n *corev1.Node) bool { return accepts(n, p) }) {
		n := versions[len(versions)-1]
		v.fail("%s is bound to node %s, which refuses it: taints %v, unschedulable %v, labels %v; selector %v, tolerations %v",
			c.key, node, n.Spec.Taints, n.Spec.Unschedulable, n.Labels, p.Spec.NodeSelector, p.Spec.Tolerations)
	}
	for _, o := range others {
		if port := conflict(p, o); port != 0 {
			v.fail("port %d of %s is taken on %s by %s", port, c.key, node, o.Name)
		}
	}
	v.apart(c, p)
}

func fits(sum corev1.ResourceList, count int64, n *corev1.Node) bool {
	for k, q := range sum {
		if a, ok := n.Status.Allocatable[k]; (!ok && !q.IsZero()) || q.Cmp(a) > 0 {
			return false
		}
	}
	return count <= n.Status.Allocatable.Pods().Value()
}

// accepts: what a node demands of a pod, and a pod of a node, by themselves.
func accepts(n *corev1.Node, p *corev1.Pod) bool {
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n); err != nil || !ok {
		return false
	}
	_, untolerated := schedulingcorev1.FindMatchingUntoleratedTaint(klog.Background(), n.Spec.Taints, p.Spec.Tolerations, func(t *corev1.Taint) bool {
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	}, false)
	if untolerated {
		return false
	}
	cordon := corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
	return !n.Spec.Unschedulable || schedulingcorev1.TolerationsTolerateTaint(klog.Background(), p.Spec.Tolerations, &cordon, false)
}

func conflict(p, o *corev1.Pod) int32 {
	for _, a := range p.Spec.Containers {
		for _, x := range a.Ports {
			for _, b := range o.Spec.Containers {
				for _, y := range b.Ports {
					if x.HostPort != 0 && x.HostPort == y.HostPort {
						return x.HostPort
					}
				}
			}
		}
	}
	return 0
}

// apart: required anti-affinity, of the pod and of those that are there. Only
// labels that no operation changes are used in its terms.
func (v *invariants) apart(c *change, p *corev1.Pod) {
	// A leader whose clock has jumped does not know yet that another one leads.
	if !v.leads.IsZero() && c.at.Sub(v.leads) < lag {
		return
	}
	for name := range v.on {
		for _, o := range v.podsOn(name) {
			if o.Name == p.Name && o.Namespace == p.Namespace {
				continue
			}
			if refuses(p, o) || refuses(o, p) {
				for _, key := range []string{corev1.LabelHostname} {
					a, b := v.latest(p.Spec.NodeName), v.latest(name)
					if a != nil && b != nil && a.Labels[key] == b.Labels[key] {
						v.checked["apart"]++
						v.fail("%s is on %s beside %s, against their anti-affinity", c.key, p.Spec.NodeName, o.Name)
					}
				}
			}
		}
	}
}

// tookOver notes that another process leads now.
func (v *invariants) tookOver() {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	v.leads = time.Now()
}

func (v *invariants) latest(name string) *corev1.Node {
	l := v.nodes[name]
	for i := len(l) - 1; i >= 0; i-- {
		if l[i].node != nil {
			return l[i].node
		}
	}
	return nil
}

func refuses(p, o *corev1.Pod) bool {
	if p.Spec.Affinity == nil || p.Spec.Affinity.PodAntiAffinity == nil || p.Namespace != o.Namespace {
		return false
	}
	for _, t := range p.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
		if s, err := metav1.LabelSelectorAsSelector(t.LabelSelector); err == nil && s.Matches(labels.Set(o.Labels)) {
			return true
		}
	}
	return false
}

// created: of a StatefulSet in order, its predecessors are ready; of a namespace
// with a quota, there is room.
func (v *invariants) created(c *change, p *corev1.Pod) {
	v.inQuota(c)
	if p.DeletionTimestamp != nil {
		return
	}
	i := strings.LastIndexByte(p.Name, '-')
	set, ok := v.h.state["statefulsets/"+p.Namespace+"/"+p.Name[:max(i, 0)]].(*appsv1.StatefulSet)
	if !ok || owner(p) != set.UID || set.Spec.PodManagementPolicy == appsv1.ParallelPodManagement {
		return
	}
	n, err := strconv.Atoi(p.Name[i+1:])
	if err != nil {
		v.fail("%s has no ordinal", c.key)
		return
	}
	first := 0
	if set.Spec.Ordinals != nil {
		first = int(set.Spec.Ordinals.Start)
	}
	for k := first; k < n; k++ {
		v.checked["order"]++
		before := fmt.Sprintf("pods/%s/%s-%d", p.Namespace, set.Name, k)
		o, there := v.h.state[before].(*corev1.Pod)
		if there && ready(o) {
			continue
		}
		if at, ok := v.seen[before]; !ok || c.at.Sub(at) > lag {
			v.fail("%s was made before %s was ready", c.key, before)
		}
	}
}

// inQuota: what there is fits into the quotas of its namespace, unless they were
// changed just now.
func (v *invariants) inQuota(c *change) {
	ns := c.object().GetNamespace()
	for _, q := range all[*corev1.ResourceQuota](v.h) {
		key := "resourcequotas/" + q.Namespace + "/" + q.Name
		if q.Namespace != ns || !takenUp(q) || c.at.Sub(v.quotas[key]) < lag {
			continue
		}
		v.checked["quota"]++
		used := corev1.ResourceList{}
		for _, o := range v.h.state {
			if o.GetNamespace() != ns {
				continue
			}
			switch o := o.(type) {
			case *corev1.Pod:
				// What ends is counted until its grace is over: it may be, here.
				if !ended(o) && o.DeletionTimestamp == nil {
					r := requests(o)
					add(used, corev1.ResourceList{corev1.ResourcePods: *one, corev1.ResourceRequestsCPU: r[corev1.ResourceCPU]})
				}
			case *batchv1.Job:
				add(used, corev1.ResourceList{"count/jobs.batch": *one})
			}
		}
		for k, most := range q.Spec.Hard {
			// What was there before the quota counts, and is not held against it.
			if u, ok := used[k]; ok && uses(c.object(), k) && u.Cmp(most) > 0 {
				v.fail("%s: %s of %s where quota %s allows %s", c.key, u.String(), k, q.Name, most.String())
			}
		}
	}
}

func takenUp(q *corev1.ResourceQuota) bool {
	return apiequality.Semantic.DeepEqual(q.Spec.Hard, q.Status.Hard)
}

func uses(o client.Object, k corev1.ResourceName) bool {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return k == "count/jobs.batch"
	}
	r := requests(p)
	return k == corev1.ResourcePods || k == corev1.ResourceRequestsCPU && !r.Cpu().IsZero()
}

func (v *invariants) truth(uid types.UID) *jobTruth {
	t := v.jobs[uid]
	if t == nil {
		t = &jobTruth{succeeded: map[types.UID]string{}, failed: map[types.UID]bool{}, lost: map[types.UID]bool{}, all: map[types.UID]bool{}, indexes: map[string]bool{}}
		v.jobs[uid] = t
	}
	return t
}

func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) }

func (v *invariants) jobPod(old, p *corev1.Pod) {
	if !tracked(p) {
		return
	}
	t := v.truth(owner(p))
	t.all[p.UID] = true
	switch {
	case p.Status.Phase == corev1.PodSucceeded:
		if !t.lost[p.UID] {
			t.succeeded[p.UID] = p.Namespace + "/" + p.Name
		}
		if i, ok := p.Annotations[batchv1.JobCompletionIndexAnnotation]; ok {
			t.indexes[i] = true
		}
	case p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil:
		t.failed[p.UID] = true
	}
	if old != nil && old.Status.Phase == corev1.PodSucceeded && p.Status.Phase != corev1.PodSucceeded {
		v.fail("pod %s/%s succeeded and is %s", p.Namespace, p.Name, p.Status.Phase)
	}
}

func finished(j *batchv1.Job) bool {
	return slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
		return (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue
	})
}

func indexed(j *batchv1.Job) bool {
	return j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion
}

func (v *invariants) job(c *change) {
	j, _ := c.new.(*batchv1.Job)
	old, _ := c.old.(*batchv1.Job)
	if j == nil {
		return
	}
	if old == nil || c.recreated() {
		v.inQuota(c)
		v.alone(c, j)
		return
	}
	t := v.truth(j.UID)
	s := &j.Status
	v.checked["job"]++
	waiting := int32(0)
	if s.UncountedTerminatedPods != nil {
		waiting = int32(len(s.UncountedTerminatedPods.Succeeded))
		for _, u := range s.UncountedTerminatedPods.Succeeded {
			if t.succeeded[u] == "" {
				v.fail("%s counts %s, which has not succeeded", c.key, u)
			}
		}
	}
	ending := slices.ContainsFunc(s.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == batchv1.JobFailureTarget || c.Type == batchv1.JobFailed
	})
	if s.UncountedTerminatedPods != nil && !ending {
		for _, u := range s.UncountedTerminatedPods.Failed {
			// A pod on its way out counts as failed, whatever it comes to (upstream's rule).
			if !t.failed[u] {
				v.fail("%s counts %s as failed, which has not", c.key, u)
			}
			t.lost[u] = true
			delete(t.succeeded, u)
		}
	}
	if !indexed(j) && int(s.Succeeded+waiting) > len(t.succeeded) {
		v.fail("%s counts %d and %d completions; %d pods succeeded", c.key, s.Succeeded, waiting, len(t.succeeded))
	}
	if s.Succeeded < t.counted {
		v.fail("%s counted %d completions and counts %d now", c.key, t.counted, s.Succeeded)
	}
	t.counted = s.Succeeded
	// Of a job that failed, every pod that ran counts as failed, though it may end
	// well after that (upstream's rule).
	failures := len(t.failed)
	if ending {
		failures = len(t.all)
	}
	if int(s.Failed) > failures {
		v.fail("%s counts %d failures of %d", c.key, s.Failed, failures)
	}
	if indexed(j) {
		n := int32(0)
		for i := range indexes(s.CompletedIndexes) {
			n++
			if !t.indexes[strconv.Itoa(i)] {
				v.fail("%s has index %d completed, and no pod of it succeeded", c.key, i)
			}
		}
		if n != s.Succeeded {
			v.fail("%s has %d indexes (%s) and %d completions", c.key, n, s.CompletedIndexes, s.Succeeded)
		}
	}
	if finished(old) && !finished(j) {
		v.fail("%s was finished and is not", c.key)
	}
	if finished(j) && !finished(old) {
		for _, p := range all[*corev1.Pod](v.h) {
			if owner(p) == j.UID && !ended(p) && p.DeletionTimestamp == nil {
				v.checked["job end"]++
				v.fail("%s is finished and %s still runs", c.key, p.Name)
			}
		}
	}
}

// indexes reads "1,3-5".
func indexes(s string) map[int]bool {
	out := map[int]bool{}
	for part := range strings.SplitSeq(s, ",") {
		if part == "" {
			continue
		}
		a, b, ok := strings.Cut(part, "-")
		first, _ := strconv.Atoi(a)
		last := first
		if ok {
			last, _ = strconv.Atoi(b)
		}
		for i := first; i <= last; i++ {
			out[i] = true
		}
	}
	return out
}

// alone: under Forbid a CronJob starts a job when no other of it runs.
func (v *invariants) alone(c *change, j *batchv1.Job) {
	by := owner(j)
	for _, cj := range all[*batchv1.CronJob](v.h) {
		if cj.UID != by || cj.Spec.ConcurrencyPolicy != batchv1.ForbidConcurrent {
			continue
		}
		v.checked["forbid"]++
		for _, o := range all[*batchv1.Job](v.h) {
			if owner(o) == by && o.UID != j.UID && !finished(o) {
				v.fail("%s starts while %s runs, and its CronJob forbids it", c.key, o.Name)
			}
		}
	}
}

func (v *invariants) budget(key string) *budgetTruth {
	b := v.pdbs[key]
	if b == nil {
		b = &budgetTruth{}
		v.pdbs[key] = b
	}
	return b
}

func healthy(p *corev1.Pod) bool {
	return p != nil && ready(p) && p.DeletionTimestamp == nil && !ended(p)
}

func evicted(p *corev1.Pod) bool {
	return p != nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Reason == "EvictionByEvictionAPI" && c.Status == corev1.ConditionTrue
	})
}

// disrupted: an eviction leaves as many healthy pods as its budget demands, unless
// something else took one meanwhile, which no budget prevents.
func (v *invariants) disrupted(c *change, old, p *corev1.Pod) {
	if !healthy(old) || healthy(p) {
		return
	}
	for _, b := range all[*policyv1.PodDisruptionBudget](v.h) {
		if b.Namespace != old.Namespace || b.Spec.MinAvailable == nil {
			continue
		}
		s, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil || !s.Matches(labels.Set(old.Labels)) {
			continue
		}
		t := v.budget("poddisruptionbudgets/" + b.Namespace + "/" + b.Name)
		if p == nil || p.DeletionTimestamp == nil || !evicted(p) {
			t.other = c.at
			continue
		}
		if c.at.Sub(t.other) < lag || t.written.Sub(t.other) < lag && !t.other.IsZero() {
			continue
		}
		v.checked["budget"]++
		left := 0
		for _, o := range all[*corev1.Pod](v.h) {
			if o.Namespace == b.Namespace && healthy(o) && s.Matches(labels.Set(o.Labels)) {
				left++
			}
		}
		if left < b.Spec.MinAvailable.IntValue() {
			v.fail("%s was evicted, %d are left, budget %s demands %d", c.key, left, b.Name, b.Spec.MinAvailable.IntValue())
		}
	}
}
