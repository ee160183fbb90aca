package core

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func testEnv() resource.Env {
	return resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
}

func check(t *testing.T, errs field.ErrorList, want ...string) {
	t.Helper()
	var got []string
	for _, e := range errs {
		got = append(got, e.Error())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func amounts(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = apiresource.MustParse(pairs[i+1])
	}
	return out
}

func replicationController() *corev1.ReplicationController {
	rc := &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Name: "rc", Namespace: "default", ResourceVersion: "5", Generation: 3},
		Spec: corev1.ReplicationControllerSpec{Template: &corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}},
	}
	defaultReplicationController(rc)
	return rc
}

func TestReplicationController(t *testing.T) {
	r := ReplicationController()
	rc := replicationController()
	if rc.Labels["a"] != "b" || rc.Spec.Selector["a"] != "b" || *rc.Spec.Replicas != 1 {
		t.Errorf("defaulted to %+v", rc)
	}
	check(t, r.ValidateCreate(testEnv(), rc))

	rc.Spec.Selector, rc.Spec.Template.Spec.ActiveDeadlineSeconds, rc.Spec.MinReadySeconds = map[string]string{"x": "y"}, new(int64(1)), -1
	check(t, r.ValidateCreate(testEnv(), rc),
		`spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0`,
		"spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
		`spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicationController is not Supported`)
	empty := &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: "rc", Namespace: "default"}}
	defaultReplicationController(empty)
	r.PrepareCreate(testEnv(), empty)
	check(t, r.ValidateCreate(testEnv(), empty), `spec.selector: Required value`, `spec.template: Required value`)
	if got := r.Row(empty, time.Now())[5:]; !reflect.DeepEqual(got, []any{"", "", "<none>"}) {
		t.Errorf("cells %v", got)
	}

	long := replicationController()
	long.Name = strings.Repeat("x", 254)
	check(t, r.ValidateCreate(testEnv(), long), `metadata.name: Invalid value: "`+long.Name+`": must be no more than 253 bytes`)

	old := replicationController()
	old.Annotations = map[string]string{"non-convertible.kubernetes.io/selector": "x", "non-convertible.kubernetes.io/y": "z"}
	rc = old.DeepCopy()
	rc.Spec.Selector = map[string]string{}
	maps.Copy(rc.Spec.Selector, map[string]string{"a": "b", "c": "d"})
	rc.Spec.Template.Labels = rc.Spec.Selector
	r.PrepareUpdate(testEnv(), rc, old)
	check(t, r.ValidateUpdate(testEnv(), rc, old),
		`spec.selector: Invalid value: {"a":"b","c":"d"}: cannot update non-convertible selector`,
		`y: Not found: "z": unknown non-convertible field`)
	if rc.Generation != 4 {
		t.Errorf("generation %d", rc.Generation)
	}
	rc.Status = corev1.ReplicationControllerStatus{Replicas: 1, ReadyReplicas: 2, AvailableReplicas: 3}
	check(t, r.Subresource("status").Status.ValidateUpdate(testEnv(), rc, old),
		`status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas`,
		`status.availableReplicas: Invalid value: 3: cannot be greater than status.replicas`,
		`status.availableReplicas: Invalid value: 3: cannot be greater than readyReplicas`)
}

func TestPodTemplate(t *testing.T) {
	r := PodTemplate()
	old := &corev1.PodTemplate{ObjectMeta: metav1.ObjectMeta{Name: "t", Namespace: "default", ResourceVersion: "5", Generation: 3},
		Template: *replicationController().Spec.Template}
	tpl := old.DeepCopy()
	r.PrepareUpdate(testEnv(), tpl, old)
	check(t, r.ValidateUpdate(testEnv(), tpl, old))
	if tpl.Generation != 3 {
		t.Errorf("generation %d", tpl.Generation)
	}
	tpl.Template.Spec.Containers[0].Name = ""
	r.PrepareUpdate(testEnv(), tpl, old)
	check(t, r.ValidateUpdate(testEnv(), tpl, old), `template.spec.containers[0].name: Required value`)
	if tpl.Generation != 4 {
		t.Errorf("generation %d", tpl.Generation)
	}
	if got, want := r.Row(old, time.Now()), []any{"t", "c", "i", "a=b"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestResourceQuota(t *testing.T) {
	r := ResourceQuota()
	quota := func(hard corev1.ResourceList, scopes ...corev1.ResourceQuotaScope) *corev1.ResourceQuota {
		return &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q", Namespace: "default", ResourceVersion: "5"},
			Spec: corev1.ResourceQuotaSpec{Hard: hard, Scopes: scopes}}
	}
	check(t, r.ValidateCreate(testEnv(), quota(amounts("pods", "2", "requests.example.com/gpu", "1", "count/x.y", "1", "hugepages-2Mi", "1"))))
	check(t, r.ValidateCreate(testEnv(), quota(amounts("pods", "1500m", "storage", "1", "unknown", "1", "cpu", "-1"), "BestEffort", "NotBestEffort", "X")),
		`spec.hard[cpu]: Invalid value: "-1": must be greater than or equal to 0`,
		`spec.hard[pods]: Invalid value: "1500m": must be an integer`,
		`spec.hard[storage]: Invalid value: "storage": must be a standard resource for quota`,
		`spec.hard[unknown]: Invalid value: "unknown": must be a standard resource type or fully qualified`,
		`spec.hard[unknown]: Invalid value: "unknown": must be a standard resource for quota`,
		`spec.scopes: Invalid value: ["BestEffort","NotBestEffort","X"]: unsupported scope applied to resource`,
		`spec.scopes: Invalid value: ["BestEffort","NotBestEffort","X"]: unsupported scope`,
		`spec.scopes: Invalid value: ["BestEffort","NotBestEffort","X"]: conflicting scopes`)
	q := quota(amounts("pods", "1"))
	q.Spec.ScopeSelector = &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
		{ScopeName: "PriorityClass", Operator: "In"}, {ScopeName: "Terminating", Operator: "DoesNotExist", Values: []string{"x"}}}}
	check(t, r.ValidateCreate(testEnv(), q),
		"spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
		`spec.scopeSelector.matchExpressions.operator: Invalid value: "DoesNotExist": must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity`,
		"spec.scopeSelector.matchExpressions.values: Invalid value: [\"x\"]: must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")
	check(t, r.ValidateUpdate(testEnv(), quota(nil, "Terminating", "NotBestEffort"), quota(nil, "NotBestEffort", "Terminating", "Terminating")))
	check(t, r.ValidateUpdate(testEnv(), quota(nil, "Terminating"), quota(nil)), `spec.scopes: Invalid value: ["Terminating"]: field is immutable`)

	q = quota(amounts("cpu", "2", "limits.cpu", "1"))
	q.Status = corev1.ResourceQuotaStatus{Hard: amounts("pods", "3", "limits.cpu", "1", "cpu", "2"), Used: amounts("cpu", "500m")}
	if w := r.Warnings(testEnv(), q, nil); !slices.Equal(w, []string{"ResourceQuota cpu (2) should be less than limits.cpu (1)"}) {
		t.Errorf("warnings %q", w)
	}
	if got, want := r.Row(q, time.Now()), []any{"q", "cpu: 500m/2, pods: 0/3", "limits.cpu: 0/1", "<unknown>"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLimitRange(t *testing.T) {
	r := LimitRange()
	limits := func(items ...corev1.LimitRangeItem) *corev1.LimitRange {
		l := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "l", Namespace: "default"}, Spec: corev1.LimitRangeSpec{Limits: items}}
		defaultLimitRange(l)
		return l
	}
	l := limits(corev1.LimitRangeItem{Type: "Container", Max: amounts("cpu", "2"), Min: amounts("memory", "1")})
	if d := l.Spec.Limits[0]; !equal(d.Default, amounts("cpu", "2")) || !equal(d.DefaultRequest, amounts("cpu", "2", "memory", "1")) {
		t.Errorf("defaulted to %+v", d)
	}
	check(t, r.ValidateCreate(testEnv(), l))
	check(t, r.ValidateCreate(testEnv(), limits(
		corev1.LimitRangeItem{Type: "Pod", Default: amounts("cpu", "1"), Min: amounts("cpu", "2"), Max: amounts("cpu", "1")},
		corev1.LimitRangeItem{Type: "PersistentVolumeClaim"},
		corev1.LimitRangeItem{Type: "Pod", Max: amounts("pods", "1")},
		corev1.LimitRangeItem{Type: "X", MaxLimitRequestRatio: amounts("cpu", "500m")},
		corev1.LimitRangeItem{Type: "Container", Max: amounts("cpu", "2", "e.com/x", "3"), Min: amounts("cpu", "1"), Default: amounts("e.com/x", "2"),
			DefaultRequest: amounts("e.com/x", "1"), MaxLimitRequestRatio: amounts("cpu", "3")},
	)),
		"spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
		`spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1`,
		`spec.limits[1].limits: Required value: either minimum or maximum storage value is required, but neither was provided`,
		`spec.limits[2].type: Duplicate value: "Pod"`,
		`spec.limits[2].max[pods]: Invalid value: "pods": must be a standard resource for containers`,
		`spec.limits[3].type: Invalid value: "X": must be a standard limit type or fully qualified`,
		`spec.limits[3].maxLimitRequestRatio[cpu]: Invalid value: "500m": ratio 500m is less than 1`,
		`spec.limits[4].maxLimitRequestRatio[cpu]: Invalid value: "3": ratio 3 is greater than max/min = 2.000000`,
		`spec.limits[4].defaultRequest[e.com/x]: Invalid value: "1": default value 2 must equal to defaultRequest value 1 in e.com/x`)
	l.Name = ""
	r.PrepareCreate(testEnv(), l)
	if len(l.Name) != 36 {
		t.Errorf("name %q", l.Name)
	}
}
