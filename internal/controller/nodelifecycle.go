package controller

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

// Times of node monitoring, upstream's defaults.
const (
	nodeMonitorPeriod = 5 * time.Second
	nodeGrace         = 50 * time.Second // without a heartbeat, of a node that had one
	nodeStartupGrace  = 60 * time.Second // without a first one
	evictionInterval  = 10 * time.Second // between two nodes of a zone that lose their pods
	slowInterval      = 100 * time.Second
	largeZone         = 50
	partialShare      = 0.55 // of a zone's nodes not ready: something else is wrong
)

// nodeLifecycle watches the nodes' heartbeats (leases, or their status), says so
// in the conditions of nodes that fall silent, and keeps the taints that follow
// from conditions: NoSchedule at once, NoExecute, by which pods are evicted, one
// node of a zone after the other. Where every node is silent it is more likely that
// the control plane is cut off than that all have died: then no pod is evicted.
type nodeLifecycle struct {
	*control.Controller
	now    func() time.Time
	nodes  *client.Informer[*corev1.Node]
	pods   *client.Informer[*corev1.Pod]
	leases *client.Informer[*coordinationv1.Lease]

	// Of the monitor's loop alone.
	known map[string]*nodeHealth
	zones map[string]*zone
	// allDown: every node of every zone is not ready.
	allDown bool
}

// nodeHealth is when a node was last heard of, by this process's clock: nodes'
// clocks differ.
type nodeHealth struct {
	uid       types.UID
	heartbeat metav1.Time
	renewed   metav1.MicroTime
	hasReady  bool
	probe     time.Time
}

// zone limits how fast its nodes are given NoExecute taints.
type zone struct {
	interval time.Duration // 0: not at all
	last     time.Time
}

const nodeLeases = corev1.NamespaceNodeLease

func newNodeLifecycle(d Deps) *control.Controller {
	c := control.New("node-controller", d.Deps)
	n := &nodeLifecycle{Controller: c, now: d.Clock(), known: map[string]*nodeHealth{}, zones: map[string]*zone{}}
	n.nodes = control.Watch(c, func(ch client.Change[*corev1.Node]) {
		if !ch.Deleted() {
			c.Queue.Add(control.Key{Name: ch.New.Name})
		}
	})
	n.pods = control.Watch[*corev1.Pod](c, nil)
	indexNodes(n.pods)
	n.leases = control.Watch[*coordinationv1.Lease](c, nil)
	c.Writes = append(c.Writes,
		control.Rule("", []string{"nodes"}, "get", "update", "delete", "patch"),
		control.Rule("", []string{"nodes/status"}, "patch", "update"),
		control.Rule("", []string{"pods/status"}, "patch", "update"),
		control.Rule("", []string{"pods"}, "get", "delete"),
	)
	c.Reconcile = n.reconcile
	c.Loop = func(ctx context.Context) error {
		t := time.NewTicker(nodeMonitorPeriod)
		defer t.Stop()
		for {
			n.monitor(ctx)
			select {
			case <-ctx.Done():
				return nil
			case <-t.C:
			}
		}
	}
	return c
}

// indexNodes lets pods be found by their node.
func indexNodes(pods *client.Informer[*corev1.Pod]) {
	pods.AddIndex(byNode, func(p *corev1.Pod) []string {
		if p.Spec.NodeName == "" {
			return nil
		}
		return []string{p.Spec.NodeName}
	})
}

func nodeCondition(s *corev1.NodeStatus, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

func nodeReady(n *corev1.Node) corev1.ConditionStatus {
	if c := nodeCondition(&n.Status, corev1.NodeReady); c != nil {
		return c.Status
	}
	return ""
}

// reconcile keeps what follows from one node's conditions at once: NoSchedule
// taints, the end of NoExecute taints, and the old names of its labels.
func (n *nodeLifecycle) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	node, ok := n.nodes.Get("", k.Name)
	if !ok {
		return control.Result{}, nil
	}
	taints := noScheduleTaints(node, n.now())
	taints = noExecuteTaints(node, taints, false, n.now())
	if err := n.setTaints(ctx, k, node, taints); err != nil {
		return control.Result{}, err
	}
	want := map[string]string{}
	for stable, old := range map[string]string{corev1.LabelOSStable: "beta.kubernetes.io/os", corev1.LabelArchStable: "beta.kubernetes.io/arch"} {
		if v, ok := node.Labels[stable]; ok && node.Labels[old] != v {
			want[old] = v
		}
	}
	if len(want) > 0 {
		return control.Result{}, n.patchNode(ctx, k, node.Name, map[string]any{"metadata": map[string]any{"labels": want}})
	}
	return control.Result{}, nil
}

func (n *nodeLifecycle) setTaints(ctx context.Context, k control.Key, node *corev1.Node, taints []corev1.Taint) error {
	if slices.EqualFunc(node.Spec.Taints, taints, func(a, b corev1.Taint) bool { return a.MatchTaint(&b) }) {
		return nil
	}
	return n.patchNode(ctx, k, node.Name, map[string]any{
		"metadata": map[string]any{"resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"taints": taints},
	})
}

func (n *nodeLifecycle) patchNode(ctx context.Context, k control.Key, name string, patch map[string]any) error {
	b, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	got, err := client.For[*corev1.Node](n.Client).Patch(ctx, name, types.MergePatchType, b, "")
	if err != nil {
		return ignoreGone(err)
	}
	control.Wrote(n.Pending, k, n.nodes, got)
	return nil
}

// conditionTaints are the taints of conditions.
var conditionTaints = map[corev1.NodeConditionType]map[corev1.ConditionStatus]string{
	corev1.NodeReady:              {corev1.ConditionFalse: corev1.TaintNodeNotReady, corev1.ConditionUnknown: corev1.TaintNodeUnreachable},
	corev1.NodeMemoryPressure:     {corev1.ConditionTrue: corev1.TaintNodeMemoryPressure},
	corev1.NodeDiskPressure:       {corev1.ConditionTrue: corev1.TaintNodeDiskPressure},
	corev1.NodeNetworkUnavailable: {corev1.ConditionTrue: corev1.TaintNodeNetworkUnavailable},
	corev1.NodePIDPressure:        {corev1.ConditionTrue: corev1.TaintNodePIDPressure},
}

func managedTaint(key string) bool {
	switch key {
	case corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure,
		corev1.TaintNodeNetworkUnavailable, corev1.TaintNodePIDPressure, corev1.TaintNodeUnschedulable:
		return true
	}
	return false
}

// noScheduleTaints are node's taints with those of effect NoSchedule as its
// conditions, and spec.unschedulable, want them. A node that has never reported
// keeps the taint it was admitted with.
func noScheduleTaints(node *corev1.Node, now time.Time) []corev1.Taint {
	want := map[string]bool{}
	for _, c := range node.Status.Conditions {
		if key := conditionTaints[c.Type][c.Status]; key != "" {
			want[key] = true
		}
	}
	if node.Spec.Unschedulable {
		want[corev1.TaintNodeUnschedulable] = true
	}
	if nodeReady(node) == "" {
		want[corev1.TaintNodeNotReady] = hasTaint(node.Spec.Taints, corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule)
	}
	return applyTaints(node.Spec.Taints, corev1.TaintEffectNoSchedule, managedTaint, want, now)
}

// noExecuteTaints are taints with those of effect NoExecute as node's readiness
// wants them. A new one comes only with evict; one that is there already changes
// its name when the reason changes, and goes when the node is ready.
func noExecuteTaints(node *corev1.Node, taints []corev1.Taint, evict bool, now time.Time) []corev1.Taint {
	managed := func(key string) bool { return key == corev1.TaintNodeNotReady || key == corev1.TaintNodeUnreachable }
	tainted := slices.ContainsFunc(taints, func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute && managed(t.Key) })
	status := nodeReady(node)
	want := map[string]bool{}
	if key := conditionTaints[corev1.NodeReady][status]; key != "" && (evict || tainted) {
		want[key] = true
	}
	if status == "" {
		return taints
	}
	return applyTaints(taints, corev1.TaintEffectNoExecute, managed, want, now)
}

func hasTaint(taints []corev1.Taint, key string, effect corev1.TaintEffect) bool {
	return slices.ContainsFunc(taints, func(t corev1.Taint) bool { return t.Key == key && t.Effect == effect })
}

func applyTaints(taints []corev1.Taint, effect corev1.TaintEffect, managed func(string) bool, want map[string]bool, now time.Time) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range taints {
		if t.Effect == effect && managed(t.Key) && !want[t.Key] {
			continue
		}
		out = append(out, t)
	}
	var missing []string
	for key, ok := range want {
		if ok && !hasTaint(taints, key, effect) {
			missing = append(missing, key)
		}
	}
	slices.Sort(missing)
	at := metav1.NewTime(now.Truncate(time.Second))
	for _, key := range missing {
		out = append(out, corev1.Taint{Key: key, Effect: effect, TimeAdded: &at})
	}
	return out
}

// monitor looks at every node once.
func (n *nodeLifecycle) monitor(ctx context.Context) {
	nodes := n.nodes.List("", nil)
	there := map[string]bool{}
	for _, node := range nodes {
		there[node.Name] = true
		if h := n.known[node.Name]; h == nil || h.uid != node.UID {
			n.Events.EventRef(nodeRef(node.Name, node.UID), corev1.EventTypeNormal, "RegisteredNode", "Node %s event: %s", node.Name, "Registered Node "+node.Name+" in Controller")
			n.known[node.Name] = &nodeHealth{uid: node.UID}
		}
	}
	for name, h := range n.known {
		if !there[name] {
			n.Events.EventRef(nodeRef(name, h.uid), corev1.EventTypeNormal, "RemovingNode", "Node %s event: %s", name, "Removing Node "+name+" from Controller")
			delete(n.known, name)
		}
	}
	byZone := map[string][]*corev1.Node{}
	for _, node := range nodes {
		node = n.check(ctx, node)
		if nodeReady(node) == corev1.ConditionUnknown {
			n.markPods(ctx, node)
		}
		if _, excluded := node.Labels["node.kubernetes.io/exclude-disruption"]; !excluded {
			byZone[zoneOf(node)] = append(byZone[zoneOf(node)], node)
		}
	}
	n.evict(ctx, byZone)
}

// nodeRef names a node in events, by its own UID.
func nodeRef(name string, uid types.UID) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: uid}
}

func zoneOf(n *corev1.Node) string {
	return n.Labels[corev1.LabelTopologyRegion] + ":\x00:" + n.Labels[corev1.LabelTopologyZone]
}

// check notes a node's signs of life and, where they have ceased, says so in its
// status. It returns the node as it is then.
func (n *nodeLifecycle) check(ctx context.Context, node *corev1.Node) *corev1.Node {
	h := n.known[node.Name]
	now := n.now()
	ready := nodeCondition(&node.Status, corev1.NodeReady)
	grace := nodeGrace
	if ready == nil {
		grace = nodeStartupGrace
		if h.probe.IsZero() {
			h.probe = node.CreationTimestamp.Time
		}
	}
	switch {
	case h.probe.IsZero(), ready != nil && (!h.hasReady || !h.heartbeat.Equal(&ready.LastHeartbeatTime)):
		h.probe = now
	case ready == nil && h.hasReady:
		h.probe = now
	}
	h.hasReady = ready != nil
	if ready != nil {
		h.heartbeat = ready.LastHeartbeatTime
	}
	if l, ok := n.leases.Get(nodeLeases, node.Name); ok && l.Spec.RenewTime != nil && h.renewed.Before(l.Spec.RenewTime) {
		h.renewed = *l.Spec.RenewTime
		h.probe = now
	}
	if !now.After(h.probe.Add(grace)) {
		return node
	}
	// The informer may be what is silent.
	l, err := client.For[*coordinationv1.Lease](n.Client).In(nodeLeases).Get(ctx, node.Name)
	switch {
	case err == nil && l.Spec.RenewTime != nil && h.renewed.Before(l.Spec.RenewTime):
		h.renewed, h.probe = *l.Spec.RenewTime, now
		return node
	case err != nil && !apierrors.IsNotFound(err):
		n.Log.Warn("cannot read the lease of a silent node", "node", node.Name, "err", err)
		return node
	}
	next := node.DeepCopy()
	if !silence(next, now) {
		return node
	}
	got, err := client.For[*corev1.Node](n.Client).UpdateStatus(ctx, next)
	if err != nil {
		n.Log.Debug("cannot mark a silent node", "node", node.Name, "err", err)
		return node
	}
	control.Wrote(n.Pending, control.Key{Name: node.Name}, n.nodes, got)
	if nodeReady(node) == corev1.ConditionTrue {
		n.Events.EventRef(nodeRef(node.Name, node.UID), corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: %s", node.Name, "NodeNotReady")
	}
	return got
}

// silence marks the conditions that a kubelet reports as unknown; it tells whether
// any was not yet.
func silence(node *corev1.Node, now time.Time) bool {
	changed := false
	at := metav1.NewTime(now.Truncate(time.Second))
	for _, t := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		c := nodeCondition(&node.Status, t)
		switch {
		case c == nil:
			node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{
				Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.",
				LastHeartbeatTime: node.CreationTimestamp, LastTransitionTime: at,
			})
			changed = true
		case c.Status != corev1.ConditionUnknown:
			c.Status, c.Reason, c.Message, c.LastTransitionTime = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status.", at
			changed = true
		}
	}
	return changed
}

// markPods takes the pods of a silent node out of service.
func (n *nodeLifecycle) markPods(ctx context.Context, node *corev1.Node) {
	for _, p := range n.pods.ByIndex(byNode, node.Name) {
		if !podReady(p) {
			continue
		}
		err := patchPodStatus(ctx, n.Client, p, func(s *corev1.PodStatus) {
			for i := range s.Conditions {
				if c := &s.Conditions[i]; c.Type == corev1.PodReady {
					c.Status, c.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(n.now().Truncate(time.Second))
				}
			}
		})
		if err != nil {
			if !apierrors.IsNotFound(err) {
				n.Log.Debug("cannot mark a pod of a silent node", "ns", p.Namespace, "pod", p.Name, "err", err)
			}
			continue
		}
		n.Events.Event(p, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
	}
}

// patchPodStatus changes a pod's status as it was read; a newer state of the
// conditions that change is a conflict.
func patchPodStatus(ctx context.Context, c *client.Client, p *corev1.Pod, change func(*corev1.PodStatus)) error {
	next := p.DeepCopy()
	change(&next.Status)
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID, "resourceVersion": p.ResourceVersion},
		"status":   map[string]any{"conditions": next.Status.Conditions, "phase": next.Status.Phase},
	})
	if err != nil {
		return err
	}
	_, err = client.For[*corev1.Pod](c).In(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, "status")
	return err
}

// evict gives NoExecute taints to nodes that are not ready, as fast as their
// zones allow.
func (n *nodeLifecycle) evict(ctx context.Context, byZone map[string][]*corev1.Node) {
	allDown := len(byZone) > 0
	interval := map[string]time.Duration{}
	for name, nodes := range byZone {
		down := 0
		for _, node := range nodes {
			if nodeReady(node) != corev1.ConditionTrue {
				down++
			}
		}
		if down < len(nodes) {
			allDown = false
		}
		interval[name] = zoneInterval(down, len(nodes))
	}
	if n.allDown && !allDown {
		// The control plane is back. Nodes that could not reach it get the
		// full time to be heard again.
		for _, h := range n.known {
			h.probe = n.now()
		}
		n.allDown = false
		return
	}
	n.allDown = allDown
	for name, nodes := range byZone {
		z := n.zones[name]
		if z == nil {
			z = &zone{}
			n.zones[name] = z
		}
		z.interval = interval[name]
		for _, node := range nodes {
			var taints []corev1.Taint
			switch status := nodeReady(node); {
			case allDown:
				taints = slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool {
					return t.Effect == corev1.TaintEffectNoExecute && (t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable)
				})
			case status == corev1.ConditionTrue || status == "" || hasTaint(node.Spec.Taints, conditionTaints[corev1.NodeReady][status], corev1.TaintEffectNoExecute):
				continue
			case z.interval == 0 || !z.last.IsZero() && n.now().Sub(z.last) < z.interval:
				continue
			default:
				taints = noExecuteTaints(node, node.Spec.Taints, true, n.now())
				z.last = n.now()
			}
			if err := n.setTaints(ctx, control.Key{Name: node.Name}, node, taints); err != nil && !apierrors.IsConflict(err) {
				n.Log.Warn("cannot taint node", "node", node.Name, "err", err)
			}
		}
	}
	for name := range n.zones {
		if byZone[name] == nil {
			delete(n.zones, name)
		}
	}
}

// zoneInterval is the pause between two evicted nodes of a zone: where most of a
// zone is down, a small one stops and a large one slows.
func zoneInterval(down, all int) time.Duration {
	if down == all || down <= 2 || float64(down)/float64(all) < partialShare {
		return evictionInterval
	}
	if all > largeZone {
		return slowInterval
	}
	return 0
}
