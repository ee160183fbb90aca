package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/api/storage"
	"skiff/internal/client"
)

const (
	// statusPeriod is how often the node is looked at, reportPeriod how often its
	// status is written although nothing changed.
	statusPeriod = 10 * time.Second
	reportPeriod = 5 * time.Minute
	// startPeriod is statusPeriod until the node is Ready for the first time.
	startPeriod = 100 * time.Millisecond

	leaseNamespace = "kube-node-lease"
	leaseSeconds   = 40
	leasePeriod    = 10 * time.Second
)

// nodeState is what the node's status is made of that others set or read.
type nodeState struct {
	mu      sync.Mutex
	version *runtimeapi.VersionResponse
	node    *corev1.Node // as last seen in the API
	podCIDR string       // as last told to the runtime
	// look asks for a look at the node at once.
	look chan struct{}
}

func newNodeState() *nodeState { return &nodeState{look: make(chan struct{}, 1)} }

// RuntimeChanged tells that the runtime's own status may be another now: the
// node's status follows at once.
func (k *Kubelet) RuntimeChanged() { k.node.lookNow() }

// lookNow has the node looked at at once. It does not block.
func (n *nodeState) lookNow() {
	select {
	case n.look <- struct{}{}:
	default:
	}
}

func (n *nodeState) setRuntime(v *runtimeapi.VersionResponse) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.version = v
}

func (n *nodeState) setNode(node *corev1.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.node = node
}

// seen is the node as last seen in the API, nil while it was not.
func (n *nodeState) seen() *corev1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node
}

// allocatable is what pods may use of the node, nil while it is not known.
func (n *nodeState) allocatable() corev1.ResourceList {
	if node := n.seen(); node != nil {
		return node.Status.Allocatable
	}
	return nil
}

func (k *Kubelet) nodeEvent(eventType, reason, message string) {
	k.d.Events.Event(&corev1.ObjectReference{
		Kind: "Node", APIVersion: "v1", Name: k.d.NodeName, UID: types.UID(k.d.NodeName),
	}, eventType, reason, message)
}

// runNode registers the node and keeps its status.
func (k *Kubelet) runNode(ctx context.Context) error {
	k.nodeEvent(corev1.EventTypeNormal, "Starting", "Starting kubelet.")
	var reported time.Time
	ready := false
	for wait := startPeriod; ; {
		now := k.d.Now()
		node, wrote, err := k.reportNode(ctx, now.Sub(reported) >= reportPeriod)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			k.d.Log.Warn("report node status", "node", k.d.NodeName, "err", err)
			wait = min(wait*2, statusPeriod)
		default:
			if wrote {
				reported = now
			}
			ready = ready || isReady(node)
			wait = startPeriod
			if ready {
				wait = statusPeriod
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-k.node.look:
			t.Stop()
			wait = startPeriod
		case <-t.C:
		}
	}
}

func isReady(n *corev1.Node) bool {
	c := nodeCondition(n.Status.Conditions, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

func nodeCondition(list []corev1.NodeCondition, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range list {
		if list[i].Type == t {
			return &list[i]
		}
	}
	return nil
}

// reportNode brings the node's object up to date, making it where it is missing.
func (k *Kubelet) reportNode(ctx context.Context, due bool) (node *corev1.Node, wrote bool, err error) {
	nodes := client.For[*corev1.Node](k.d.Client)
	node, err = nodes.Get(ctx, k.d.NodeName)
	if apierrors.IsNotFound(err) {
		fresh := k.initialNode()
		k.setNodeStatus(ctx, fresh, nil)
		if node, err = nodes.Create(ctx, fresh); err == nil {
			k.d.Log.Info("node registered", "node", k.d.NodeName)
			// A server that resets the status of new objects gets it below.
			due = true
		}
	}
	if err != nil {
		return nil, false, err
	}
	if node, err = k.patchLabels(ctx, node); err != nil {
		return nil, false, err
	}
	k.takePodCIDR(ctx, node)
	want := node.DeepCopy()
	k.setNodeStatus(ctx, want, node)
	k.sources.used.inherit(node.Status.VolumesInUse)
	used := k.sources.used.begin()
	want.Status.VolumesInUse = used
	if !due && sameNodeStatus(&want.Status, &node.Status) {
		k.node.setNode(node)
		k.sources.used.done(used)
		return node, false, nil
	}
	p, err := statusPatch(node, want)
	if err != nil {
		return nil, false, err
	}
	if node, err = nodes.Patch(ctx, k.d.NodeName, types.StrategicMergePatchType, p, "status"); err != nil {
		return nil, false, fmt.Errorf("patch node status: %w", err)
	}
	k.node.setNode(node)
	k.sources.used.done(used)
	return node, true, nil
}

// sameNodeStatus compares without heartbeats.
func sameNodeStatus(a, b *corev1.NodeStatus) bool {
	if len(a.Conditions) != len(b.Conditions) {
		return false
	}
	x, y := a.DeepCopy(), b.DeepCopy()
	for i := range x.Conditions {
		x.Conditions[i].LastHeartbeatTime = metav1.Time{}
		y.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	return equality.Semantic.DeepEqual(x, y)
}

func statusPatch(old, now *corev1.Node) ([]byte, error) {
	type object struct {
		Status corev1.NodeStatus `json:"status"`
	}
	a, err := json.Marshal(object{old.Status})
	if err != nil {
		return nil, fmt.Errorf("encode node status: %w", err)
	}
	b, err := json.Marshal(object{now.Status})
	if err != nil {
		return nil, fmt.Errorf("encode node status: %w", err)
	}
	p, err := strategicpatch.CreateTwoWayMergePatch(a, b, corev1.Node{})
	if err != nil {
		return nil, fmt.Errorf("make patch of node status: %w", err)
	}
	// The list of addresses is replaced whole: merging by type would mix up two of
	// one type.
	if bytes.Contains(p, []byte(`"addresses"`)) {
		var m map[string]map[string]any
		if err := json.Unmarshal(p, &m); err != nil {
			return nil, fmt.Errorf("make patch of node status: %w", err)
		}
		list := []any{map[string]any{"$patch": "replace"}}
		for _, x := range now.Status.Addresses {
			list = append(list, map[string]any{"type": string(x.Type), "address": x.Address})
		}
		m["status"]["addresses"] = list
		delete(m["status"], "$setElementOrder/addresses")
		if p, err = json.Marshal(m); err != nil {
			return nil, fmt.Errorf("make patch of node status: %w", err)
		}
	}
	return p, nil
}

// defaultLabels are those that every kubelet gives its node.
func (k *Kubelet) defaultLabels() map[string]string {
	return map[string]string{
		corev1.LabelHostname: k.d.Hostname, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
		"beta.kubernetes.io/os": runtime.GOOS, "beta.kubernetes.io/arch": runtime.GOARCH,
	}
}

func (k *Kubelet) initialNode() *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: k.d.NodeName, Labels: k.defaultLabels(),
			Annotations: map[string]string{storage.ManagedAttach: "true"},
		},
		Spec: corev1.NodeSpec{Taints: k.d.Taints, ProviderID: k.d.ProviderID},
	}
	maps.Copy(n.Labels, k.d.Labels)
	return n
}

// patchLabels puts the labels and annotation that every node has on an existing
// one, and its provider ID where it has none.
func (k *Kubelet) patchLabels(ctx context.Context, node *corev1.Node) (*corev1.Node, error) {
	patch, meta := map[string]any{}, map[string]any{}
	want := map[string]string{}
	for key, v := range k.defaultLabels() {
		if o, ok := k.d.Labels[key]; ok {
			v = o
		}
		if node.Labels[key] != v {
			want[key] = v
		}
	}
	if len(want) > 0 {
		meta["labels"] = want
	}
	if _, ok := node.Annotations[storage.ManagedAttach]; !ok {
		meta["annotations"] = map[string]string{storage.ManagedAttach: "true"}
	}
	if len(meta) > 0 {
		patch["metadata"] = meta
	}
	if node.Spec.ProviderID == "" && k.d.ProviderID != "" {
		patch["spec"] = map[string]any{"providerID": k.d.ProviderID}
	}
	if len(patch) == 0 {
		return node, nil
	}
	p, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("make patch of node labels: %w", err)
	}
	out, err := client.For[*corev1.Node](k.d.Client).Patch(ctx, k.d.NodeName, types.StrategicMergePatchType, p, "")
	if err != nil {
		return nil, fmt.Errorf("patch node labels: %w", err)
	}
	return out, nil
}

// takePodCIDR tells the runtime the address range of this node's pods.
func (k *Kubelet) takePodCIDR(ctx context.Context, node *corev1.Node) {
	cidr := strings.Join(node.Spec.PodCIDRs, ",")
	if cidr == "" {
		cidr = node.Spec.PodCIDR
	}
	k.node.mu.Lock()
	known := k.node.podCIDR == cidr || k.node.version == nil
	k.node.mu.Unlock()
	if cidr == "" || known {
		return
	}
	err := k.d.Runtime.UpdateRuntimeConfig(ctx, &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}})
	if err != nil {
		k.d.Log.Warn("tell the runtime the pods' address range", "node", k.d.NodeName, "err", err)
		return
	}
	k.node.mu.Lock()
	k.node.podCIDR = cidr
	k.node.mu.Unlock()
}

// runLease keeps the node's lease, by which the control plane sees that it lives.
func (k *Kubelet) runLease(ctx context.Context) error {
	wait := 100 * time.Millisecond
	for {
		if err := k.renewLease(ctx); err == nil {
			wait = leasePeriod
		} else {
			if ctx.Err() != nil {
				return nil
			}
			k.d.Log.Debug("renew node lease", "node", k.d.NodeName, "err", err)
			wait = min(max(wait*2, 200*time.Millisecond), 7*time.Second)
			if wait > leasePeriod/2 {
				wait = leasePeriod / 2
			}
		}
		if !sleep(ctx, wait) {
			return nil
		}
		if wait == leasePeriod {
			wait = 100 * time.Millisecond
		}
	}
}

func (k *Kubelet) renewLease(ctx context.Context) error {
	leases := client.For[*coordinationv1.Lease](k.d.Client).In(leaseNamespace)
	now := metav1.NewMicroTime(k.d.Now())
	p, err := json.Marshal(map[string]any{"spec": map[string]any{
		"holderIdentity": k.d.NodeName, "leaseDurationSeconds": leaseSeconds, "renewTime": now,
	}})
	if err != nil {
		return fmt.Errorf("make patch of lease: %w", err)
	}
	_, err = leases.Patch(ctx, k.d.NodeName, types.MergePatchType, p, "")
	if !apierrors.IsNotFound(err) {
		return err
	}
	node, err := client.For[*corev1.Node](k.d.Client).Get(ctx, k.d.NodeName)
	if err != nil {
		return fmt.Errorf("lease before its node: %w", err)
	}
	holder, seconds := k.d.NodeName, int32(leaseSeconds)
	_, err = leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: k.d.NodeName, Namespace: leaseNamespace,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &now},
	})
	return err
}
