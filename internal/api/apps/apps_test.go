package apps

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func testEnv() resource.Env {
	return resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
}

func same(t *testing.T, errs field.ErrorList, want []string) {
	t.Helper()
	var got []string
	for _, e := range errs {
		got = append(got, e.Error())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u1", ResourceVersion: "5", Generation: 3}
}

var app = map[string]string{"app": "web"}

func template() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: app},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "nginx"}, {Name: "b", Image: "redis:7"}}},
	}
}

func deployment(change ...func(*appsv1.Deployment)) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: meta(), Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: app}, Template: template()}}
	for _, f := range change {
		f(d)
	}
	defaultDeployment(d)
	return d
}

func replicaSet(change ...func(*appsv1.ReplicaSet)) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{ObjectMeta: meta(), Spec: appsv1.ReplicaSetSpec{Selector: &metav1.LabelSelector{MatchLabels: app}, Template: template()}}
	for _, f := range change {
		f(rs)
	}
	defaultReplicaSet(rs)
	return rs
}

func TestDeploymentRules(t *testing.T) {
	rolling := func(unavailable, surge intstr.IntOrString) func(*appsv1.Deployment) {
		return func(d *appsv1.Deployment) {
			d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxUnavailable: &unavailable, MaxSurge: &surge}
		}
	}
	for _, c := range []struct {
		name string
		set  func(*appsv1.Deployment)
		want []string
	}{
		{"valid", func(*appsv1.Deployment) {}, nil},
		{"selector", func(d *appsv1.Deployment) { d.Spec.Selector.MatchLabels = map[string]string{"app": "db"} }, []string{
			"spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"}},
		{"no selector", func(d *appsv1.Deployment) { d.Spec.Selector = nil }, []string{`spec.selector: Required value`,
			"spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`"}},
		{"empty selector", func(d *appsv1.Deployment) { d.Spec.Selector = &metav1.LabelSelector{} }, []string{
			`spec.selector: Invalid value: {}: empty selector is invalid for deployment`}},
		{"numbers", func(d *appsv1.Deployment) {
			d.Spec.Replicas, d.Spec.MinReadySeconds, d.Spec.ProgressDeadlineSeconds = new(int32(-1)), 5, new(int32(5))
		}, []string{
			`spec.replicas: Invalid value: -1: must be greater than or equal to 0`,
			`spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds`}},
		{"recreate", func(d *appsv1.Deployment) {
			d.Spec.Strategy = appsv1.DeploymentStrategy{Type: "Recreate", RollingUpdate: &appsv1.RollingUpdateDeployment{}}
		}, []string{"spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"}},
		{"strategy", func(d *appsv1.Deployment) { d.Spec.Strategy.Type = "Slow" }, []string{
			`spec.strategy: Unsupported value: {"Type":"Slow","RollingUpdate":null}: supported values: "Recreate", "RollingUpdate"`}},
		{"nothing may change", rolling(intstr.FromInt32(0), intstr.FromString("0%")), []string{
			"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"}},
		{"too much", rolling(intstr.FromString("101%"), intstr.FromString("x")), []string{
			`spec.strategy.rollingUpdate.maxSurge: Invalid value: "x": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')`,
			`spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "101%": must not be greater than 100%`}},
		{"template", func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.RestartPolicy, d.Spec.Template.Spec.ActiveDeadlineSeconds = corev1.RestartPolicyNever, new(int64(5))
			d.Spec.Template.Spec.Containers[0].Name = "A"
		}, []string{
			`spec.template.spec.containers[0].name: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`,
			`spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`,
			`spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicaSet is not Supported`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := deployment(c.set)
			r := Deployment()
			r.PrepareCreate(testEnv(), d)
			same(t, r.ValidateCreate(testEnv(), d), c.want)
		})
	}
}

func TestDeploymentUpdate(t *testing.T) {
	for _, c := range []struct {
		name       string
		set        func(*appsv1.Deployment)
		generation int64
		want       []string
	}{
		{"nothing", func(*appsv1.Deployment) {}, 3, nil},
		{"status", func(d *appsv1.Deployment) { d.Status.Replicas = 5 }, 3, nil},
		{"labels", func(d *appsv1.Deployment) { d.Labels = app }, 3, nil},
		{"annotations", func(d *appsv1.Deployment) { d.Annotations = app }, 4, nil},
		{"image", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "x" }, 4, nil},
		{"selector", func(d *appsv1.Deployment) {
			d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
			d.Spec.Template.Labels = map[string]string{"a": "b"}
		}, 4, []string{`spec.selector: Invalid value: {"matchLabels":{"a":"b"}}: field is immutable`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			old := deployment()
			before := old.DeepCopy()
			d := old.DeepCopy()
			c.set(d)
			r := Deployment()
			r.PrepareUpdate(testEnv(), d, old)
			same(t, r.ValidateUpdate(testEnv(), d, old), c.want)
			if d.Generation != c.generation || d.Status.Replicas != 0 || !equal(before, old) {
				t.Errorf("generation %d, status %+v", d.Generation, d.Status)
			}
		})
	}
}

func TestDeploymentStatus(t *testing.T) {
	s := Deployment().Subresource("status").Status
	old := deployment(func(d *appsv1.Deployment) { d.Status.CollisionCount = new(int32(2)) })
	d := old.DeepCopy()
	d.Labels, d.Spec.Replicas = app, new(int32(9))
	d.Status = appsv1.DeploymentStatus{Replicas: 1, UpdatedReplicas: 2, ReadyReplicas: -1, AvailableReplicas: 1}
	s.PrepareUpdate(testEnv(), d, old)
	if *d.Spec.Replicas != 1 || d.Labels != nil {
		t.Errorf("the door wrote %+v", d)
	}
	same(t, s.ValidateUpdate(testEnv(), d, old), []string{
		`status.readyReplicas: Invalid value: -1: must be greater than or equal to 0`,
		`status.updatedReplicas: Invalid value: 2: cannot be greater than status.replicas`,
		`status.availableReplicas: Invalid value: 1: cannot be greater than readyReplicas`,
		`status.collisionCount: Invalid value: 0: cannot be decremented`,
	})
}

func TestReplicaSetRules(t *testing.T) {
	r := ReplicaSet()
	same(t, r.ValidateCreate(testEnv(), replicaSet()), nil)
	old := replicaSet()
	rs := replicaSet(func(rs *appsv1.ReplicaSet) {
		rs.Spec.Replicas, rs.Spec.MinReadySeconds = new(int32(-1)), -1
		rs.Spec.Selector.MatchLabels, rs.Spec.Template.Labels = map[string]string{"a": "b"}, map[string]string{"a": "b"}
	})
	r.PrepareUpdate(testEnv(), rs, old)
	if rs.Generation != 4 {
		t.Errorf("generation %d", rs.Generation)
	}
	same(t, r.ValidateUpdate(testEnv(), rs, old), []string{
		`spec.replicas: Invalid value: -1: must be greater than or equal to 0`,
		`spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0`,
		`spec.selector: Invalid value: {"matchLabels":{"a":"b"}}: field is immutable`,
	})
	s := r.Subresource("status").Status
	rs = replicaSet(func(rs *appsv1.ReplicaSet) {
		rs.Status = appsv1.ReplicaSetStatus{Replicas: 1, FullyLabeledReplicas: 2, ReadyReplicas: 2, AvailableReplicas: 3}
	})
	same(t, s.ValidateUpdate(testEnv(), rs, old), []string{
		`status.fullyLabeledReplicas: Invalid value: 2: cannot be greater than status.replicas`,
		`status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas`,
		`status.availableReplicas: Invalid value: 3: cannot be greater than status.replicas`,
		`status.availableReplicas: Invalid value: 3: cannot be greater than readyReplicas`,
	})
}

func TestScale(t *testing.T) {
	sub := Deployment().Subresource("scale")
	d := deployment(func(d *appsv1.Deployment) { d.Status.Replicas = 2 })
	view, err := sub.View(d)
	if err != nil {
		t.Fatal(err)
	}
	scale := view.(*autoscalingv1.Scale)
	if scale.Spec.Replicas != 1 || scale.Status.Replicas != 2 || scale.Status.Selector != "app=web" || scale.UID != "u1" || scale.ResourceVersion != "5" {
		t.Errorf("scale is %+v", scale)
	}
	scale.Spec.Replicas = 4
	if err := sub.SetView(d, scale); err != nil || *d.Spec.Replicas != 4 {
		t.Errorf("replicas %d, %v", *d.Spec.Replicas, err)
	}
	scale.Spec.Replicas = -1
	const want = `Scale.autoscaling "web" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0`
	if err := sub.SetView(d, scale); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestRows(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := deployment(func(d *appsv1.Deployment) {
		d.CreationTimestamp = metav1.NewTime(now.Add(-time.Minute))
		d.Status = appsv1.DeploymentStatus{ReadyReplicas: 1, UpdatedReplicas: 2, AvailableReplicas: 1}
	})
	if got, want := Deployment().Row(d, now), []any{"web", "1/1", int64(2), int64(1), "60s", "a,b", "nginx,redis:7", "app=web"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	rs := replicaSet(func(rs *appsv1.ReplicaSet) { rs.Status = appsv1.ReplicaSetStatus{Replicas: 2, ReadyReplicas: 1} })
	if got, want := ReplicaSet().Row(rs, now), []any{"web", int64(1), int64(2), int64(1), "<unknown>", "a,b", "nginx,redis:7", "app=web"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestWarnings(t *testing.T) {
	d := deployment(func(d *appsv1.Deployment) {
		d.Name = "web.x"
		d.Spec.Template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{}}
	})
	w := Deployment().Warnings
	want := []string{
		`metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]`,
		`spec.template.spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod`,
	}
	if got := w(testEnv(), d, nil); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := w(testEnv(), d, d); got != nil {
		t.Errorf("an update that changes nothing warns: %q", got)
	}
	old := d.DeepCopy()
	old.Generation--
	if got := w(testEnv(), d, old); !slices.Equal(got, want[1:]) {
		t.Errorf("got %q", got)
	}
}
