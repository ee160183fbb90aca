package controller

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// daemonTolerations are a template's own and those that keep a daemon on a node in
// trouble.
func daemonTolerations(spec *corev1.PodSpec) []corev1.Toleration {
	add := []corev1.Toleration{
		{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeDiskPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodePIDPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule},
	}
	if spec.HostNetwork {
		add = append(add, corev1.Toleration{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule})
	}
	out := slices.Clone(spec.Tolerations)
	for _, t := range add {
		t.Operator = corev1.TolerationOpExists
		if i := slices.IndexFunc(out, func(o corev1.Toleration) bool { return t.MatchToleration(&o) }); i >= 0 {
			out[i] = t
		} else {
			out = append(out, t)
		}
	}
	return out
}

// daemonPod is the pod for a node: bound to it by an affinity to the node's name.
func daemonPod(ds *appsv1.DaemonSet, hash, node string) *corev1.Pod {
	p := podFromTemplate(&ds.Spec.Template, ds, daemonSetKind)
	p.Spec.Tolerations = daemonTolerations(&p.Spec)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	if n, ok := daemonGeneration(ds); ok {
		p.Labels[daemonGenerationLabel] = n
	}
	p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	term := corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	if p.Spec.Affinity.NodeAffinity == nil {
		p.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	// The template's own terms were asked when the node was chosen.
	p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{term}}
	return p
}

// daemonGenerationLabel has the number of the template, as versions before apps/v1
// had it.
const daemonGenerationLabel = "pod-template-generation"

func daemonGeneration(ds *appsv1.DaemonSet) (string, bool) {
	n, err := strconv.ParseInt(ds.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	return strconv.FormatInt(n, 10), err == nil
}

// daemonNode is the node that a daemon's pod is on, or meant for.
func daemonNode(p *corev1.Pod) (string, bool) {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName, true
	}
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return "", false
	}
	for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range t.MatchFields {
			if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn {
				if len(f.Values) != 1 {
					return "", false
				}
				return f.Values[0], true
			}
		}
	}
	return "", false
}

// daemonFit tells where a DaemonSet's pods belong.
type daemonFit struct {
	node        string // the only one, where the template names one
	tolerations []corev1.Toleration
	affinity    nodeaffinity.RequiredNodeAffinity
}

func fitOf(ds *appsv1.DaemonSet) daemonFit {
	s := &ds.Spec.Template.Spec
	return daemonFit{s.NodeName, daemonTolerations(s), nodeaffinity.NewRequiredNodeAffinity(s.NodeSelector, s.Affinity)}
}

// on tells whether a pod should be started on n, and whether one that is there may
// stay.
func (f daemonFit) on(n *corev1.Node) (start, stay bool) {
	if f.node != "" && f.node != n.Name {
		return false, false
	}
	if ok, _ := f.affinity.Match(n); !ok {
		return false, false
	}
	start, stay = true, true
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule || f.tolerates(t) {
			continue
		}
		start = false
		if t.Effect == corev1.TaintEffectNoExecute {
			stay = false
		}
	}
	return start, stay
}

func (f daemonFit) tolerates(t *corev1.Taint) bool {
	return slices.ContainsFunc(f.tolerations, func(o corev1.Toleration) bool { return o.ToleratesTaint(klog.Logger{}, t, false) })
}

// daemonView is what a DaemonSet's next steps follow from.
type daemonView struct {
	ds   *appsv1.DaemonSet
	fit  daemonFit
	hash string
	// nodes are all nodes, by name; pods those of the set, by node, the one that
	// counts first.
	nodes []*corev1.Node
	pods  map[string][]*corev1.Pod
	now   time.Time
}

func newDaemonView(ds *appsv1.DaemonSet, hash string, nodes []*corev1.Node, pods []*corev1.Pod, now time.Time) *daemonView {
	v := &daemonView{ds: ds, fit: fitOf(ds), hash: hash, nodes: slices.Clone(nodes), pods: map[string][]*corev1.Pod{}, now: now}
	slices.SortFunc(v.nodes, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range pods {
		// A pod that has ended and is being deleted is in nobody's way.
		if podTerminal(p) && p.DeletionTimestamp != nil {
			continue
		}
		if n, ok := daemonNode(p); ok {
			v.pods[n] = append(v.pods[n], p)
		}
	}
	for _, l := range v.pods {
		slices.SortFunc(l, func(a, b *corev1.Pod) int {
			if (a.Spec.NodeName == "") != (b.Spec.NodeName == "") {
				if a.Spec.NodeName != "" {
					return -1
				}
				return 1
			}
			if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
				return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
			}
			return strings.Compare(a.Name, b.Name)
		})
	}
	return v
}

func (v *daemonView) available(p *corev1.Pod) bool {
	return podAvailable(p, v.ds.Spec.MinReadySeconds, v.now)
}

func (v *daemonView) updated(p *corev1.Pod) bool {
	if n, ok := daemonGeneration(v.ds); ok && p.Labels[daemonGenerationLabel] == n {
		return true
	}
	return v.hash != "" && p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == v.hash
}

// daemonPlan is what to do: nodes that need a pod, pods to delete, and of those the
// ones that ended by themselves.
type daemonPlan struct {
	create []string
	delete []*corev1.Pod
	ended  []*corev1.Pod
	// after is when a failed pod may be replaced that has failed a moment ago.
	after time.Duration
}

func (p daemonPlan) empty() bool { return len(p.create) == 0 && len(p.delete) == 0 }

// manage keeps one pod on every node that should have one; during an update with
// surge one of either revision.
func (v *daemonView) manage(failures *daemonFailures) daemonPlan {
	var plan daemonPlan
	known := map[string]bool{}
	surge := v.surge(1) > 0
	for _, n := range v.nodes {
		known[n.Name] = true
		start, stay := v.fit.on(n)
		pods, exists := v.pods[n.Name]
		switch {
		case start && !exists:
			plan.create = append(plan.create, n.Name)
		case stay:
			running := v.running(n.Name, pods, failures, &plan)
			switch {
			case !surge && len(running) > 1:
				plan.delete = append(plan.delete, running[1:]...)
			case surge && len(running) == 0 && start:
				plan.create = append(plan.create, n.Name)
			case surge && len(running) > 1:
				plan.delete = append(plan.delete, v.surplus(running)...)
			}
		case exists:
			for _, p := range pods {
				if p.DeletionTimestamp == nil {
					plan.delete = append(plan.delete, p)
				}
			}
		}
	}
	// Pods that wait for a node that is gone.
	for node, pods := range v.pods {
		if known[node] {
			continue
		}
		for _, p := range pods {
			if p.Spec.NodeName == "" && p.DeletionTimestamp == nil {
				plan.delete = append(plan.delete, p)
			}
		}
	}
	return plan
}

// running are the pods of a node that run or are going to; those that ended are
// deleted, failed ones not faster than their back-off allows.
func (v *daemonView) running(node string, pods []*corev1.Pod, failures *daemonFailures, plan *daemonPlan) (running []*corev1.Pod) {
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		switch p.Status.Phase {
		case corev1.PodFailed:
			if wait := failures.next(v.ds, node, v.now); wait > 0 {
				if plan.after == 0 || wait < plan.after {
					plan.after = wait
				}
				continue
			}
			plan.ended, plan.delete = append(plan.ended, p), append(plan.delete, p)
		case corev1.PodSucceeded:
			plan.ended, plan.delete = append(plan.ended, p), append(plan.delete, p)
		default:
			running = append(running, p)
		}
	}
	return running
}

// surplus are the pods of a node beyond one of either revision, and the old one when
// the new one can do without it.
func (v *daemonView) surplus(running []*corev1.Pod) (out []*corev1.Pod) {
	var fresh, old *corev1.Pod
	for _, p := range running {
		which := &old
		if p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == v.hash {
			which = &fresh
		}
		if *which == nil {
			*which = p
		} else {
			out = append(out, p)
		}
	}
	if fresh != nil && old != nil && (!podReady(old) || v.available(fresh)) {
		out = append(out, old)
	}
	return out
}

func (v *daemonView) limit(of func(*appsv1.RollingUpdateDaemonSet) *intstr.IntOrString, nodes int) int {
	u := v.ds.Spec.UpdateStrategy
	if u.Type != appsv1.RollingUpdateDaemonSetStrategyType || u.RollingUpdate == nil || of(u.RollingUpdate) == nil {
		return 0
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(of(u.RollingUpdate), nodes, true)
	if err != nil {
		return 0
	}
	return n
}

func (v *daemonView) surge(nodes int) int {
	return v.limit(func(u *appsv1.RollingUpdateDaemonSet) *intstr.IntOrString { return u.MaxSurge }, nodes)
}

func (v *daemonView) unavailableLimit(nodes int) int {
	return v.limit(func(u *appsv1.RollingUpdateDaemonSet) *intstr.IntOrString { return u.MaxUnavailable }, nodes)
}

// pair is the new and the old pod of a node; ok is false where there are two of one.
func (v *daemonView) pair(pods []*corev1.Pod) (fresh, old *corev1.Pod, ok bool) {
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		which := &old
		if v.updated(p) {
			which = &fresh
		}
		if *which != nil {
			return nil, nil, false
		}
		*which = p
	}
	return fresh, old, true
}

// roll replaces pods of older templates: by deleting as many as may be unavailable,
// or by starting as many beside them as may surge. An old pod that is not available
// anyway is always replaced.
func (v *daemonView) roll() daemonPlan {
	starts := map[string]bool{}
	var places []string
	for _, n := range v.nodes {
		if start, _ := v.fit.on(n); start {
			starts[n.Name] = true
			places = append(places, n.Name)
		}
	}
	desired := len(places)
	var others []string
	for node := range v.pods {
		if !starts[node] {
			others = append(others, node)
		}
	}
	slices.Sort(others)
	places = append(places, others...)
	surge, unavailable := v.surge(desired), v.unavailableLimit(desired)
	if desired > 0 && surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	if surge == 0 {
		return v.rollByDeleting(places, unavailable)
	}
	return v.rollBySurge(places, starts, desired, surge)
}

func (v *daemonView) rollByDeleting(places []string, limit int) daemonPlan {
	var plan daemonPlan
	var candidates []*corev1.Pod
	down := 0
	for _, node := range places {
		fresh, old, ok := v.pair(v.pods[node])
		switch {
		case !ok || (fresh == nil) == (old == nil):
			down++
		case fresh != nil:
			if !v.available(fresh) {
				down++
			}
		case !v.available(old):
			plan.delete = append(plan.delete, old)
			down++
		default:
			candidates = append(candidates, old)
		}
	}
	plan.delete = append(plan.delete, candidates[:min(len(candidates), max(0, limit-down))]...)
	return plan
}

func (v *daemonView) rollBySurge(places []string, starts map[string]bool, desired, limit int) daemonPlan {
	var plan daemonPlan
	var candidates []string
	var leaving []*corev1.Pod // available, on nodes where none is wanted any more
	surging, available := 0, 0
	for _, node := range places {
		fresh, old, ok := v.pair(v.pods[node])
		if !ok {
			surging++
			continue
		}
		if old != nil && v.available(old) || old == nil && fresh != nil && v.available(fresh) {
			available++
		}
		switch {
		case old == nil:
		case fresh != nil:
			if v.available(fresh) {
				plan.delete = append(plan.delete, old)
			} else {
				surging++
			}
		case !v.available(old):
			if starts[node] {
				plan.create = append(plan.create, node)
			} else {
				plan.delete = append(plan.delete, old)
			}
		case starts[node]:
			candidates = append(candidates, node)
		default:
			leaving = append(leaving, old)
		}
	}
	plan.delete = append(plan.delete, leaving[:min(len(leaving), max(0, available-desired))]...)
	plan.create = append(plan.create, candidates[:min(len(candidates), max(0, limit-surging))]...)
	return plan
}

// status is the status that follows from nodes and pods.
func (v *daemonView) status() appsv1.DaemonSetStatus {
	s := *v.ds.Status.DeepCopy()
	s.DesiredNumberScheduled, s.CurrentNumberScheduled, s.NumberMisscheduled, s.NumberReady, s.UpdatedNumberScheduled, s.NumberAvailable = 0, 0, 0, 0, 0, 0
	for _, n := range v.nodes {
		start, _ := v.fit.on(n)
		pods := v.pods[n.Name]
		if !start {
			if len(pods) > 0 {
				s.NumberMisscheduled++
			}
			continue
		}
		s.DesiredNumberScheduled++
		if len(pods) == 0 {
			continue
		}
		s.CurrentNumberScheduled++
		if podReady(pods[0]) {
			s.NumberReady++
			if v.available(pods[0]) {
				s.NumberAvailable++
			}
		}
		if v.updated(pods[0]) {
			s.UpdatedNumberScheduled++
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
	s.ObservedGeneration = v.ds.Generation
	return s
}

// Back-off of failed daemons, upstream's.
const (
	firstDaemonRetry = time.Second
	lastDaemonRetry  = 15 * time.Minute
)

// daemonFailures remembers, by set and node, how long a failed pod stays before it is
// replaced: a second, twice as long each time, up to 15 minutes. A new generation of
// the set starts anew. It belongs to one reconciliation of a set at a time.
type daemonFailures struct {
	uid        types.UID
	generation int64
	nodes      map[string]*daemonFailure
}

type daemonFailure struct {
	wait time.Duration
	at   time.Time
}

// next returns how long a failed pod must still stay; zero tells to replace it now,
// and counts that.
func (f *daemonFailures) next(ds *appsv1.DaemonSet, node string, now time.Time) time.Duration {
	if f.uid != ds.UID || f.generation != ds.Status.ObservedGeneration || f.nodes == nil {
		*f = daemonFailures{ds.UID, ds.Status.ObservedGeneration, map[string]*daemonFailure{}}
	}
	e := f.nodes[node]
	if e == nil || now.Sub(e.at) > 2*lastDaemonRetry {
		f.nodes[node] = &daemonFailure{firstDaemonRetry, now}
		return 0
	}
	if left := e.wait - now.Sub(e.at); left > 0 {
		return left
	}
	e.wait, e.at = min(2*e.wait, lastDaemonRetry), now
	return 0
}

// daemonEndedEvent tells of a pod that ended by itself.
func daemonEndedEvent(p *corev1.Pod, node string) (eventType, reason, message string) {
	if p.Status.Phase == corev1.PodFailed {
		return corev1.EventTypeWarning, "FailedDaemonPod", fmt.Sprintf("Found failed daemon pod %s/%s on node %s, will try to kill it", p.Namespace, p.Name, node)
	}
	return corev1.EventTypeNormal, "SucceededDaemonPod", fmt.Sprintf("Found succeeded daemon pod %s/%s on node %s, will try to delete it", p.Namespace, p.Name, node)
}
