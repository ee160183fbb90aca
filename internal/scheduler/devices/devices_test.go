package devices

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func claim(name, rv string, devices ...resourcev1.DeviceRequestAllocationResult) *resourcev1.ResourceClaim {
	c := &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), ResourceVersion: rv}}
	if len(devices) > 0 {
		c.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: devices}}
	}
	return c
}

func dev(name string) resourcev1.DeviceRequestAllocationResult {
	return resourcev1.DeviceRequestAllocationResult{Driver: "d", Pool: "p", Device: name}
}

// taken writes what a ledger counts.
func taken(l *Ledger) string {
	var out []string
	st := l.Taken()
	for id := range st.AllocatedDevices {
		out = append(out, id.Device.String())
	}
	for id := range st.AllocatedSharedDeviceIDs {
		out = append(out, id.Device.String()+"#"+id.ShareID.String())
	}
	for id, c := range st.AggregatedCapacity {
		for name, q := range c {
			out = append(out, fmt.Sprintf("%s.%s=%s", id.Device.String(), name, q))
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestLedger(t *testing.T) {
	l := NewLedger()
	step := func(what, want string) {
		t.Helper()
		if got := taken(l); got != want {
			t.Fatalf("%s: taken are %q, want %q", what, got, want)
		}
	}
	l.Put(claim("a", "5", dev("d0")))
	step("an allocated claim", "d0")
	l.Put(claim("a", "4"))
	step("an older state of it", "d0")
	l.Put(claim("b", "6"))
	l.Decide("b", claim("b", "", dev("d1")).Status.Allocation)
	step("a decision", "d0 d1")
	l.Put(claim("b", "7"))
	if step("the claim changes meanwhile", "d0 d1"); !l.Pending("b") {
		t.Fatal("the decision is forgotten")
	}
	l.Put(claim("b", "8", dev("d1")))
	if step("the decision is written", "d0 d1"); l.Pending("b") {
		t.Fatal("the decision is still pending")
	}
	l.Revoke("b")
	step("a decision that was written is taken back", "d0 d1")
	l.Decide("c", claim("c", "", dev("d2")).Status.Allocation)
	l.Revoke("c")
	step("a decision is taken back", "d0 d1")
	l.Put(claim("a", "9"))
	step("a claim is deallocated", "d1")
	l.Drop(claim("b", "8", dev("d1")))
	step("a claim is gone", "")

	admin := dev("d0")
	admin.AdminAccess = ptr.To(true)
	l.Put(claim("admin", "1", admin))
	step("admin access takes nothing", "")
	share := func(id, amount string) resourcev1.DeviceRequestAllocationResult {
		d := dev("big")
		d.ShareID, d.ConsumedCapacity = ptr.To(types.UID(id)), map[resourcev1.QualifiedName]resource.Quantity{"mem": resource.MustParse(amount)}
		return d
	}
	l.Put(claim("x", "1", share("s1", "2")))
	l.Put(claim("y", "1", share("s2", "3")))
	step("two share a device", "big#s1 big#s2 big.mem=5")
	l.Drop(claim("x", "1"))
	step("one share is given back", "big#s2 big.mem=3")

	// A claim of the same name is another claim.
	other := claim("y", "2", dev("d9"))
	other.UID = "another"
	l.Put(other)
	step("a claim made anew", "d9")

	// What was decided for a pod becomes the claim's that is made for it; that it was
	// written may be heard before the decision is taken back, and again after it.
	l.Decide("extended", claim("", "", dev("d5")).Status.Allocation)
	made := claim("made", "3", dev("d5"))
	l.Put(made)
	l.Revoke("extended")
	step("a device changes hands", "d5 d9")
	l.Put(made)
	step("it is told again", "d5 d9")
	l.Drop(made)
	step("it is free", "d9")
}

func TestClasses(t *testing.T) {
	class := func(name, stands string, age time.Duration) *resourcev1.DeviceClass {
		c := &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1000, 0).Add(-age))}}
		if stands != "" {
			c.Spec.ExtendedResourceName = &stands
		}
		return c
	}
	list := []*resourcev1.DeviceClass{class("plain", "", 0), class("old", "example.com/gpu", time.Hour), class("new", "example.com/gpu", 0), class("b", "example.com/nic", 0), class("a", "example.com/nic", 0)}
	c := NewClasses(func() []*resourcev1.DeviceClass { return list })
	for resource, want := range map[corev1.ResourceName]string{
		"example.com/gpu": "new", "example.com/nic": "a", "example.com/none": "", "cpu": "", "deviceclass.resource.kubernetes.io/plain": "plain",
	} {
		got := ""
		if x := c.For(resource); x != nil {
			got = x.Name
		}
		if got != want {
			t.Errorf("%s is class %q, want %q", resource, got, want)
		}
	}
	list = nil
	if c.Changed(); c.For("example.com/gpu") != nil {
		t.Error("a class that is gone still stands for its resource")
	}
}

// What init containers use is used again by those after them (KEP-5004).
func TestRequestsOfExtendedResources(t *testing.T) {
	container := func(name string, gpus int64, sidecar bool) corev1.Container {
		c := corev1.Container{Name: name}
		c.Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("1")}
		if gpus > 0 {
			c.Resources.Requests["example.com/gpu"] = *resource.NewQuantity(gpus, resource.DecimalSI)
		}
		if sidecar {
			c.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
		}
		return c
	}
	class := &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "gpu"}}
	for _, tc := range []struct {
		name     string
		init     []corev1.Container
		main     []corev1.Container
		requests string
		mappings string
	}{
		{"one", nil, []corev1.Container{container("m", 2, false)}, "container-0-request-1:2", "m=container-0-request-1"},
		{"side by side", nil, []corev1.Container{container("m", 1, false), container("n", 2, false), container("o", 0, false)},
			"container-0-request-1:1 container-1-request-1:2", "m=container-0-request-1 n=container-1-request-1"},
		{"an init container uses the main one's", []corev1.Container{container("i", 2, false)}, []corev1.Container{container("m", 2, false)},
			"container-1-request-1:2", "m=container-1-request-1 i=container-1-request-1"},
		{"an init container needs more", []corev1.Container{container("i", 3, false)}, []corev1.Container{container("m", 2, false)},
			"container-0-request-1:1 container-1-request-1:2", "m=container-1-request-1 i=container-1-request-1 i=container-0-request-1"},
		{"the largest init container counts", []corev1.Container{container("i", 1, false), container("j", 3, false)}, []corev1.Container{container("m", 0, false)},
			"container-1-request-1:3", "i=container-1-request-1 j=container-1-request-1"},
		{"a sidecar keeps its own", []corev1.Container{container("s", 1, true), container("i", 1, false)}, []corev1.Container{container("m", 1, false)},
			"container-0-request-1:1 container-2-request-1:1", "s=container-0-request-1 m=container-2-request-1 i=container-2-request-1"},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{InitContainers: tc.init, Containers: tc.main}}
		requests, mappings := Requests(p, map[corev1.ResourceName]int64{"example.com/gpu": 1}, func(corev1.ResourceName) *resourcev1.DeviceClass { return class })
		var r, m []string
		for _, x := range requests {
			r = append(r, fmt.Sprintf("%s:%d", x.Name, x.Exactly.Count))
		}
		for _, x := range mappings {
			m = append(m, x.ContainerName+"="+x.RequestName)
		}
		if got := strings.Join(r, " "); got != tc.requests {
			t.Errorf("%s: requests %q, want %q", tc.name, got, tc.requests)
		}
		if got := strings.Join(m, " "); got != tc.mappings {
			t.Errorf("%s: mappings %q, want %q", tc.name, got, tc.mappings)
		}
	}
}
