package scheduler

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

// deviceClass selects the devices of driver gpu.example.com by CEL.
func deviceClass(name string) *resourcev1.DeviceClass {
	return &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: resourcev1.DeviceClassSpec{
		Selectors: []resourcev1.DeviceSelector{{CEL: &resourcev1.CELDeviceSelector{Expression: `device.driver == "gpu.example.com"`}}},
	}}
}

// slice publishes devices of a node.
func slice(node string, names ...string) *resourcev1.ResourceSlice {
	s := &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: "slice-" + node, UID: types.UID("slice-" + node)}, Spec: resourcev1.ResourceSliceSpec{
		Driver: "gpu.example.com", NodeName: &node, Pool: resourcev1.ResourcePool{Name: node, ResourceSliceCount: 1},
	}}
	for _, n := range names {
		s.Spec.Devices = append(s.Spec.Devices, resourcev1.Device{Name: n})
	}
	return s
}

// deviceClaim asks for one device of class gpu.
func deviceClaim(name string) *resourcev1.ResourceClaim {
	return &resourcev1.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("claim-" + name)},
		Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{
			Name: "gpu", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gpu", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: 1},
		}}}},
	}
}

// withDevice makes a pod use a claim.
func withDevice(p *corev1.Pod, claim string) *corev1.Pod {
	p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, corev1.PodResourceClaim{Name: claim, ResourceClaimName: &claim})
	return p
}

func (r *running) deviceClaim(name string) *resourcev1.ResourceClaim {
	r.t.Helper()
	c, err := client.For[*resourcev1.ResourceClaim](r.api.Client()).In("default").Get(r.ctx, name)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// changeClaim writes the status of a claim.
func (r *running) changeClaim(name string, change func(*resourcev1.ResourceClaimStatus)) {
	r.t.Helper()
	for {
		c := r.deviceClaim(name).DeepCopy()
		change(&c.Status)
		_, err := client.For[*resourcev1.ResourceClaim](r.api.Client()).UpdateStatus(r.ctx, c)
		if err == nil {
			return
		}
		if !apierrors.IsConflict(err) {
			r.t.Fatal(err)
		}
	}
}

func device(t *testing.T, c *resourcev1.ResourceClaim) string {
	t.Helper()
	if c.Status.Allocation == nil || len(c.Status.Allocation.Devices.Results) != 1 {
		t.Fatalf("claim %s is allocated %v, want one device", c.Name, c.Status.Allocation)
	}
	d := c.Status.Allocation.Devices.Results[0]
	return d.Pool + "/" + d.Device
}

const noDeviceLeft = "Unschedulable: 0/2 nodes are available: 2 cannot allocate all claims. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."

// Claims are allocated where the devices are, each device once, also within a batch;
// who gets none waits until one is given back.
func TestDevicesDecideTheNode(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), deviceClass("gpu"), slice("b", "d0", "d1"), deviceClaim("one"), deviceClaim("two"), deviceClaim("three"),
		withDevice(pod("p1"), "one"), withDevice(pod("p2"), "two"), withDevice(pod("p3"), "three"))
	r := run(t, api)
	names := []string{"p1", "p2", "p3"}
	claims := map[string]string{"p1": "one", "p2": "two", "p3": "three"}
	var bound []string
	r.until("two pods are bound and one is refused", func() bool {
		bound = nil
		waiting := ""
		for _, n := range names {
			if r.node(n) == "b" {
				bound = append(bound, n)
			} else if r.message(n) != "" {
				waiting = n
			}
		}
		return len(bound) == 2 && waiting != ""
	})
	i := slices.IndexFunc(names, func(n string) bool { return !slices.Contains(bound, n) })
	waiting := names[i]
	if got := r.message(waiting); got != noDeviceLeft {
		t.Errorf("refused with %q, want %q", got, noDeviceLeft)
	}
	first, second := r.deviceClaim(claims[bound[0]]), r.deviceClaim(claims[bound[1]])
	if a, b := device(t, first), device(t, second); a == b {
		t.Fatalf("both claims have device %s", a)
	}
	if got := first.Status.ReservedFor; len(got) != 1 || got[0].UID != types.UID("pod-"+bound[0]) || got[0].Resource != "pods" {
		t.Errorf("claim is reserved for %v", got)
	}
	if !slices.Contains(first.Finalizers, resourcev1.Finalizer) || first.Status.Allocation.NodeSelector == nil || first.Status.Allocation.AllocationTimestamp == nil {
		t.Errorf("claim lacks finalizer, node selector or time: %+v", first)
	}

	// One is given back.
	r.changeClaim(claims[bound[0]], func(s *resourcev1.ResourceClaimStatus) { *s = resourcev1.ResourceClaimStatus{} })
	r.until("the waiting pod is bound", func() bool { return r.node(waiting) == "b" })
	if a, b := device(t, r.deviceClaim(claims[waiting])), device(t, first); a != b {
		t.Errorf("got device %s, want the one given back, %s", a, b)
	}
}

// A pod whose claim is not there is not tried, and says nothing, until it is.
func TestPodWaitsForItsClaim(t *testing.T) {
	made := pod("made")
	made.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimTemplateName: ptr.To("template")}}
	api := clienttest.New(node("a"), deviceClass("gpu"), slice("a", "d0", "d1"), withDevice(pod("named"), "late"), made)
	r := run(t, api)
	api.Put(pod("plain"))
	r.until("a pod without claims is bound", func() bool { return r.node("plain") != "" })
	for _, n := range []string{"named", "made"} {
		if r.node(n) != "" || r.message(n) != "" {
			t.Errorf("%s: node %q, condition %q before its claim exists", n, r.node(n), r.message(n))
		}
	}
	got, err := r.sched.Explain(r.ctx, made)
	if err != nil || len(got) != 1 || got[0].Reasons[0] != `pod "default/made": ResourceClaim not created yet` {
		t.Errorf("explained as %v, %v", got, err)
	}

	api.Put(deviceClaim("late"))
	r.until("the pod with the named claim is bound", func() bool { return r.node("named") == "a" })

	c := deviceClaim("made-gpu-x")
	c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "made", UID: made.UID, Controller: ptr.To(true)}}
	api.Put(c)
	pods := client.For[*corev1.Pod](api.Client()).In("default")
	if _, err := pods.Patch(r.ctx, "made", types.StrategicMergePatchType,
		[]byte(`{"status":{"resourceClaimStatuses":[{"name":"gpu","resourceClaimName":"made-gpu-x"}]}}`), "status"); err != nil {
		t.Fatal(err)
	}
	r.until("the pod with the claim from a template is bound", func() bool { return r.node("made") == "a" })
}

// Pods that share a claim follow it.
func TestSharedClaim(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), deviceClass("gpu"), slice("b", "d0"), deviceClaim("shared"),
		withDevice(pod("p1"), "shared"), withDevice(pod("p2"), "shared"), withDevice(pod("p3"), "shared"))
	r := run(t, api)
	r.until("all pods are on the claim's node", func() bool { return r.node("p1") == "b" && r.node("p2") == "b" && r.node("p3") == "b" })
	if got := r.deviceClaim("shared").Status.ReservedFor; len(got) != 3 {
		t.Errorf("reserved for %v, want three pods", got)
	}
}

// What is missing is said; what brings it wakes the pod.
func TestDeviceClassAndTaints(t *testing.T) {
	rule := &resourcev1.DeviceTaintRule{ObjectMeta: metav1.ObjectMeta{Name: "broken"}, Spec: resourcev1.DeviceTaintRuleSpec{
		DeviceSelector: &resourcev1.DeviceTaintSelector{Driver: ptr.To("gpu.example.com")},
		Taint:          resourcev1.DeviceTaint{Key: "broken", Effect: resourcev1.DeviceTaintEffectNoSchedule},
	}}
	api := clienttest.New(node("a"), node("b"), slice("b", "d0"), rule, deviceClaim("one"), withDevice(pod("p"), "one"))
	r := run(t, api)
	const missing = "Unschedulable: 0/2 nodes are available: request gpu: device class gpu does not exist. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
	r.until("the pod is refused", func() bool { return r.message("p") != "" })
	if got := r.message("p"); got != missing {
		t.Errorf("refused with %q, want %q", got, missing)
	}
	api.Put(deviceClass("gpu"))
	r.until("the pod is refused for the taint", func() bool { return r.message("p") == noDeviceLeft })
	if err := client.For[*resourcev1.DeviceTaintRule](api.Client()).Delete(r.ctx, "broken", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("the pod is bound", func() bool { return r.node("p") == "b" })
}

// An extended resource that a node does not have is asked of devices.
func TestExtendedResourceOfDevices(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), node("c", "cpu", "4", "memory", "8Gi", "pods", "110", "example.com/fpga", "1"), slice("b", "d0"))
	r := run(t, api)
	api.Put(pod("first", "example.com/gpu", "1"))
	const lacks = "Unschedulable: 0/3 nodes are available: 3 Insufficient example.com/gpu. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
	r.until("the pod is refused", func() bool { return r.message("first") == lacks })

	class := deviceClass("gpu")
	class.Spec.ExtendedResourceName = ptr.To("example.com/gpu")
	api.Put(class)
	r.until("the pod is bound", func() bool { return r.node("first") == "b" })
	p, err := client.For[*corev1.Pod](api.Client()).In("default").Get(r.ctx, "first")
	if err != nil {
		t.Fatal(err)
	}
	st := p.Status.ExtendedResourceClaimStatus
	want := corev1.ContainerExtendedResourceRequest{ContainerName: "c", ResourceName: "example.com/gpu", RequestName: "container-0-request-0"}
	if st == nil || len(st.RequestMappings) != 1 || st.RequestMappings[0] != want {
		t.Fatalf("status %+v, want the mapping %+v", st, want)
	}
	c := r.deviceClaim(st.ResourceClaimName)
	if device(t, c) != "b/d0" || c.Annotations[resourcev1.ExtendedResourceClaimAnnotation] != "true" || !metav1.IsControlledBy(c, p) ||
		len(c.Status.ReservedFor) != 1 || c.Status.ReservedFor[0].UID != p.UID {
		t.Errorf("claim %+v", c)
	}

	api.Put(pod("second", "example.com/gpu", "1"))
	const none = "Unschedulable: 0/3 nodes are available: 3 cannot allocate all claims. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
	r.until("the second is refused", func() bool { return r.message("second") == none })
	api.Put(pod("native", "example.com/fpga", "1"))
	r.until("a pod whose resource the node has is bound there", func() bool { return r.node("native") == "c" })
}

// A device that fails to become ready is given back, and another one is chosen.
func TestBindingConditions(t *testing.T) {
	s := slice("a", "d0", "d1")
	for i := range s.Spec.Devices {
		s.Spec.Devices[i].BindingConditions = []string{"attached"}
		s.Spec.Devices[i].BindingFailureConditions = []string{"broken"}
	}
	api := clienttest.New(node("a"), deviceClass("gpu"), s, deviceClaim("one"), withDevice(pod("p"), "one"))
	r := run(t, api)
	status := func(condition string) func(*resourcev1.ResourceClaimStatus) {
		return func(st *resourcev1.ResourceClaimStatus) {
			d := st.Allocation.Devices.Results[0]
			st.Devices = []resourcev1.AllocatedDeviceStatus{{Driver: d.Driver, Pool: d.Pool, Device: d.Device, Conditions: []metav1.Condition{{
				Type: condition, Status: metav1.ConditionTrue, Reason: "Test", Message: "so it is", LastTransitionTime: metav1.NewTime(time.Now()),
			}}}}
		}
	}
	r.until("the pod waits for the device", func() bool {
		return r.events.has(recorded{"p", corev1.EventTypeNormal, "BindingConditionsPending", "Scheduling", "waiting for binding conditions for device on node a"})
	})
	if n := r.node("p"); n != "" {
		t.Fatalf("the pod is on %q before its device is ready", n)
	}
	first := r.deviceClaim("one").Status.Allocation.AllocationTimestamp
	r.changeClaim("one", status("broken"))
	r.until("the claim is allocated anew", func() bool {
		a := r.deviceClaim("one").Status
		return a.Allocation != nil && len(a.Devices) == 0 && len(a.ReservedFor) == 1 && first != nil
	})
	r.changeClaim("one", status("attached"))
	r.until("the pod is bound", func() bool { return r.node("p") == "a" })
}
