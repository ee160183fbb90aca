package kubelet

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

func (w *world) node() *corev1.Node {
	w.t.Helper()
	n, err := client.For[*corev1.Node](w.api.Client()).Get(context.Background(), node)
	if err != nil {
		w.t.Fatalf("get node: %v", err)
	}
	return n
}

func withNode(w *world) {
	w.deps = func(d *Deps) {
		d.NoNode = false
		d.Labels = map[string]string{"zone": "a"}
		d.Taints = []corev1.Taint{{Key: "t", Effect: corev1.TaintEffectNoSchedule}}
		d.Port = 10250
		d.Version = "v1.37.2"
	}
	w.api.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: leaseNamespace}})
}

func TestNode(t *testing.T) {
	run(t, withNode, func(w *world) {
		w.after(time.Second)
		n := w.node()
		for k, v := range map[string]string{"kubernetes.io/hostname": node, "kubernetes.io/os": "linux", "zone": "a"} {
			if n.Labels[k] != v {
				t.Errorf("label %s is %q", k, n.Labels[k])
			}
		}
		if len(n.Spec.Taints) != 1 {
			t.Errorf("taints: %v", n.Spec.Taints)
		}
		s := n.Status
		for typ, want := range map[corev1.NodeConditionType][3]string{
			corev1.NodeReady:          {"True", "KubeletReady", "kubelet is posting ready status"},
			corev1.NodeMemoryPressure: {"False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"},
			corev1.NodePIDPressure:    {"False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"},
		} {
			c := nodeCondition(s.Conditions, typ)
			if c == nil || [3]string{string(c.Status), c.Reason, c.Message} != want {
				t.Errorf("condition %s: %+v", typ, c)
			}
		}
		if len(s.Conditions) != 4 || s.DaemonEndpoints.KubeletEndpoint.Port != 10250 || s.NodeInfo.KubeletVersion != "v1.37.2" || s.NodeInfo.ContainerRuntimeVersion != "fake://1.0.0" {
			t.Errorf("status: %+v", s)
		}
		if len(s.Addresses) != 2 || s.Addresses[0].Address != "192.168.7.1" || s.Addresses[1].Type != corev1.NodeHostName {
			t.Errorf("addresses: %v", s.Addresses)
		}
		for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourcePods, corev1.ResourceEphemeralStorage} {
			if q := s.Capacity[r]; q.IsZero() {
				t.Errorf("no capacity of %s", r)
			}
			if q := s.Allocatable[r]; q.IsZero() {
				t.Errorf("no allocatable %s", r)
			}
		}
		w.wantEvent("Starting: Starting kubelet.")

		lease, err := client.For[*coordinationv1.Lease](w.api.Client()).In(leaseNamespace).Get(context.Background(), node)
		if err != nil {
			t.Fatal(err)
		}
		if *lease.Spec.HolderIdentity != node || *lease.Spec.LeaseDurationSeconds != 40 || len(lease.OwnerReferences) != 1 || lease.OwnerReferences[0].UID != n.UID {
			t.Errorf("lease: %+v", lease)
		}
		before := *lease.Spec.RenewTime
		w.after(21 * time.Second)
		lease, err = client.For[*coordinationv1.Lease](w.api.Client()).In(leaseNamespace).Get(context.Background(), node)
		if err != nil || lease.Spec.RenewTime.Sub(before.Time) < 10*time.Second {
			t.Errorf("the lease is from %v, was from %v", lease.Spec.RenewTime, before)
		}
	})
}

// What others declare, as administrators do with extended resources, stays.
func TestNodeKeepsExtendedResources(t *testing.T) {
	run(t, withNode, func(w *world) {
		w.after(time.Second)
		n := w.node().DeepCopy()
		n.Status.Capacity["example.com/dongle"] = resource.MustParse("4")
		w.api.Put(n)
		w.rt.SetNetworkReady(false) // so that something is written
		w.after(11 * time.Second)
		s := w.node().Status
		if isReady(w.node()) {
			t.Fatal("the status was not written")
		}
		for what, l := range map[string]corev1.ResourceList{"capacity": s.Capacity, "allocatable": s.Allocatable} {
			if q := l["example.com/dongle"]; q.Value() != 4 {
				t.Errorf("%s of the extended resource is %v", what, q)
			}
		}
	})
}

func TestNodeStatusOnChange(t *testing.T) {
	run(t, withNode, func(w *world) {
		w.after(time.Second)
		writes := func() (n int) {
			for _, r := range w.api.Requests() {
				if r.Ref.GVR.Resource == "nodes" {
					n++
				}
			}
			return n
		}
		before := writes()
		w.after(4 * time.Minute)
		// The machine's own figures may change once; silence is the rule.
		if n := writes() - before; n > 2 {
			t.Errorf("%d writes of an unchanged node within four minutes", n)
		}
		w.after(2 * time.Minute)
		if writes() == before {
			t.Error("no report within five minutes")
		}
		w.rt.SetNetworkReady(false)
		w.after(11 * time.Second)
		c := nodeCondition(w.node().Status.Conditions, corev1.NodeReady)
		if c.Status != corev1.ConditionFalse || c.Reason != "KubeletNotReady" ||
			c.Message != "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:cni plugin not initialized" {
			t.Errorf("Ready: %+v", c)
		}
		w.wantEvent("NodeNotReady: Node node-1 status is now: NodeNotReady")
		// What is said to have changed is looked at without waiting.
		w.rt.SetNetworkReady(true)
		w.k.RuntimeChanged()
		w.after(time.Millisecond)
		if !isReady(w.node()) {
			t.Errorf("Ready: %+v", nodeCondition(w.node().Status.Conditions, corev1.NodeReady))
		}
		// A node that somebody deleted comes back.
		if err := client.For[*corev1.Node](w.api.Client()).Delete(context.Background(), node, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.after(11 * time.Second)
		w.node()
	})
}

func TestNodeWaitsForTheAPI(t *testing.T) {
	run(t, func(w *world) {
		withNode(w)
		start := time.Now()
		w.api.Intercept = func(string, client.Ref, client.Object) error {
			if time.Since(start) < 30*time.Second {
				return errors.New("connection refused")
			}
			return nil
		}
	}, func(w *world) {
		w.after(45 * time.Second)
		if !isReady(w.node()) {
			t.Errorf("node: %+v", w.node().Status.Conditions)
		}
		synctest.Wait()
	})
}
