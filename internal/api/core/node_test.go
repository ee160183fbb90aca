package core

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
)

func testNode(change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u1", ResourceVersion: "5"},
		Spec:       corev1.NodeSpec{PodCIDR: "10.0.0.0/24"},
		Status:     corev1.NodeStatus{Capacity: corev1.ResourceList{"cpu": apiresource.MustParse("4")}},
	}
	for _, f := range change {
		f(n)
	}
	defaultNode(n)
	return n
}

func TestNodeRules(t *testing.T) {
	env := resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
	r := Node()
	for _, c := range []struct {
		name string
		set  func(*corev1.Node)
		want []string
	}{
		{"valid", func(*corev1.Node) {}, nil},
		{"taints", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "a", Effect: "X"}, {Key: "b"}, {Key: "c", Effect: "NoSchedule"}, {Key: "c", Value: "v", Effect: "NoSchedule"}}
		}, []string{
			`metadata.taints[0].effect: Unsupported value: "X": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"`,
			`metadata.taints[1].effect: Required value`,
			`metadata.taints[3]: Duplicate value: {"Key":"c","Value":"v","Effect":"NoSchedule","TimeAdded":null}: taints must be unique by key and effect pair`}},
		{"capacity", func(n *corev1.Node) {
			n.Status.Capacity = corev1.ResourceList{"pods": apiresource.MustParse("1500m"), "cpu": apiresource.MustParse("-1")}
			n.Status.Allocatable = corev1.ResourceList{}
		}, []string{
			`status.capacity.cpu: Invalid value: "-1": must be greater than or equal to 0`,
			`status.capacity.pods: Invalid value: "1500m": must be an integer`}},
		{"pod networks", func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = "", []string{"10.0.0.0/24", "10.0.1.0/24"} }, []string{
			`spec.podCIDRs: Invalid value: ["10.0.0.0/24","10.0.1.0/24"]: may specify no more than one CIDR for each IP family`}},
		{"features", func(n *corev1.Node) { n.Status.DeclaredFeatures = []string{"B", "A", "A"} }, []string{
			`status.declaredFeatures[1]: Invalid value: "A": list must be sorted alphabetically`,
			`status.declaredFeatures[2]: Duplicate value: "A"`}},
		{"annotations", func(n *corev1.Node) {
			n.Annotations = map[string]string{taintsAnnotation: "x", avoidPodsAnnotation: `{"preferAvoidPods":[{"podSignature":{"podController":{"kind":"X"}}}]}`}
		}, []string{
			`metadata.annotations: Invalid value: "scheduler.alpha.kubernetes.io/taints": invalid character 'x' looking for beginning of value`,
			`metadata.annotations.scheduler.alpha.kubernetes.io/preferAvoidPods[0].PodSignature.PodController.Controller: Invalid value: false: must point to a controller`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := testNode(c.set)
			r.PrepareCreate(env, n)
			var texts []string
			for _, e := range r.ValidateCreate(env, n) {
				texts = append(texts, e.Error())
			}
			if !slices.Equal(texts, c.want) {
				t.Errorf("got %s\nwant %s", strings.Join(texts, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestNodeUpdate(t *testing.T) {
	env := resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
	for _, c := range []struct {
		name, door string
		old, set   func(*corev1.Node)
		want       []string
	}{
		{name: "another network", set: func(n *corev1.Node) { n.Spec.PodCIDR = "10.0.9.0/24" },
			want: []string{`spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid`}},
		{name: "provider", old: func(n *corev1.Node) { n.Spec.ProviderID = "a" }, set: func(n *corev1.Node) { n.Spec.ProviderID = "b" },
			want: []string{`spec.providerID: Invalid value: null: field cannot be modified once set`}},
		{name: "provider cleared", old: func(n *corev1.Node) { n.Spec.ProviderID = "a" }, set: func(n *corev1.Node) { n.Spec.ProviderID = "" },
			want: []string{`spec.providerID: Invalid value: null: field cannot be cleared once set`}},
		{name: "external id", set: func(n *corev1.Node) { n.Spec.DoNotUseExternalID = "x" }, want: []string{`spec.externalID: Forbidden: may not be updated`}},
		{name: "status is not for this door", set: func(n *corev1.Node) { n.Status.Addresses = []corev1.NodeAddress{{}, {}} }},
		{name: "spec is not for the status door", door: "status", set: func(n *corev1.Node) { n.Spec.ProviderID = "x" }},
		{name: "addresses", door: "status", set: func(n *corev1.Node) {
			n.Status.Addresses = []corev1.NodeAddress{{Type: "Hostname", Address: "a"}, {Type: "Hostname", Address: "a"}}
		}, want: []string{`status.addresses[1]: Duplicate value: {"Type":"Hostname","Address":"a"}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &Node().Strategy
			if c.door != "" {
				s = Node().Subresource(c.door).Status
			}
			old := testNode()
			if c.old != nil {
				c.old(old)
			}
			n := old.DeepCopy()
			c.set(n)
			defaultNode(n)
			s.PrepareUpdate(env, n, old)
			errs := s.ValidateUpdate(env, n, old)
			var texts []string
			for _, e := range errs {
				if !slices.Contains(texts, e.Error()) {
					texts = append(texts, e.Error())
				}
			}
			if !slices.Equal(texts, c.want) {
				t.Errorf("got %s\nwant %s", strings.Join(texts, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestNodeDefaults(t *testing.T) {
	n := testNode()
	if !slices.Equal(n.Spec.PodCIDRs, []string{"10.0.0.0/24"}) || n.Status.Allocatable.Cpu().String() != "4" {
		t.Errorf("got %+v", n)
	}
	n.Status.Allocatable["cpu"] = apiresource.MustParse("1")
	if n.Status.Capacity.Cpu().String() != "4" {
		t.Error("allocatable is capacity itself")
	}
	n = testNode(func(n *corev1.Node) { n.Spec.PodCIDR, n.Spec.PodCIDRs = "", []string{"10.0.5.0/24"} })
	if n.Spec.PodCIDR != "10.0.5.0/24" {
		t.Errorf("podCIDR %q", n.Spec.PodCIDR)
	}
	n = testNode(func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"10.0.5.0/24", "fd00::/64"} })
	if !slices.Equal(n.Spec.PodCIDRs, []string{"10.0.0.0/24"}) {
		t.Errorf("podCIDRs %v", n.Spec.PodCIDRs)
	}
}

func TestNodeRow(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n := testNode(func(n *corev1.Node) {
		n.CreationTimestamp = metav1.NewTime(now.Add(-2 * time.Hour))
		n.Labels = map[string]string{"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge"}
		n.Spec.Unschedulable = true
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.1.1.1"}}
		n.Status.NodeInfo = corev1.NodeSystemInfo{KubeletVersion: "v1.37.2", KernelVersion: "6.1", Architecture: "amd64"}
	})
	want := []any{"n1", "Ready,SchedulingDisabled", "edge,worker", "120m", "v1.37.2", "10.1.1.1", "<none>", "<unknown>", "6.1 (amd64)", "<unknown>"}
	if got := Node().Row(n, now); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}
