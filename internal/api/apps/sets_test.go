package apps

import (
	"reflect"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func statefulSet(change ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	s := &appsv1.StatefulSet{ObjectMeta: meta(), Spec: appsv1.StatefulSetSpec{Selector: &metav1.LabelSelector{MatchLabels: app}, Template: template()}}
	for _, f := range change {
		f(s)
	}
	defaultStatefulSet(s)
	return s
}

func daemonSet(change ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	d := &appsv1.DaemonSet{ObjectMeta: meta(), Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: app}, Template: template()}}
	for _, f := range change {
		f(d)
	}
	defaultDaemonSet(d)
	return d
}

func claimTemplate(name string) corev1.PersistentVolumeClaim {
	return corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: apiresource.MustParse("1Gi")}},
	}}
}

func TestStatefulSetRules(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(*appsv1.StatefulSet)
		want []string
	}{
		{"valid", func(s *appsv1.StatefulSet) {
			s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{claimTemplate("data")}
			s.Spec.Template.Spec.Hostname = "not valid, and the controller's"
			s.Spec.Template.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		}, nil},
		{"name", func(s *appsv1.StatefulSet) { s.Name = "a.b" }, []string{
			`metadata.name: Invalid value: "a.b": must not contain dots`}},
		{"claims", func(s *appsv1.StatefulSet) {
			s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
		}, []string{
			`spec.volumeClaimTemplates[0].spec.accessModes: Required value: at least 1 access mode is required`,
			`spec.volumeClaimTemplates[0].spec.resources[storage]: Required value`}},
		{"strategy", func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.Type = "Recreate" }, []string{
			`spec.updateStrategy: Invalid value: {"Type":"Recreate","RollingUpdate":null}: must be 'RollingUpdate' or 'OnDelete'`}},
		{"rolling", func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: "RollingUpdate", RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{
				Partition: new(int32(-1)), MaxUnavailable: new(intstr.FromString("0%"))}}
		}, []string{
			`spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0`,
			`spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: "0%": cannot be 0`}},
		{"on delete", func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: "OnDelete", RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{}}
		}, []string{`spec.updateStrategy.rollingUpdate: Invalid value: {"Partition":0,"MaxUnavailable":null}: only allowed for updateStrategy 'RollingUpdate'`}},
		{"rest", func(s *appsv1.StatefulSet) {
			s.Spec.PodManagementPolicy, s.Spec.ServiceName, s.Spec.Ordinals = "Best", "a.b", &appsv1.StatefulSetOrdinals{Start: -1}
			s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenScaled: "Never"}
		}, []string{
			`spec.podManagementPolicy: Invalid value: "Best": must be 'OrderedReady' or 'Parallel'`,
			`spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: "Never": supported values: "Retain", "Delete"`,
			`spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0`,
			`spec.serviceName: Invalid value: "a.b": must not contain dots`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := statefulSet(c.set)
			r := StatefulSet()
			r.PrepareCreate(testEnv(), s)
			same(t, r.ValidateCreate(testEnv(), s), c.want)
		})
	}
}

func TestStatefulSetUpdate(t *testing.T) {
	r := StatefulSet()
	old := statefulSet(func(s *appsv1.StatefulSet) {
		s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{claimTemplate("data")}
	})
	s := old.DeepCopy()
	s.Spec.Template.Spec.Containers[0].Image, s.Spec.Replicas = "x", new(int32(7))
	r.PrepareUpdate(testEnv(), s, old)
	same(t, r.ValidateUpdate(testEnv(), s, old), nil)
	if s.Generation != 4 {
		t.Errorf("generation %d", s.Generation)
	}
	s = old.DeepCopy()
	s.Spec.ServiceName, s.Spec.PodManagementPolicy, s.Spec.VolumeClaimTemplates = "other", appsv1.ParallelPodManagement, nil
	same(t, r.ValidateUpdate(testEnv(), s, old), []string{
		`spec.volumeClaimTemplates: Invalid value: null: field is immutable`,
		`spec.serviceName: Invalid value: "other": field is immutable`,
		`spec.podManagementPolicy: Invalid value: "Parallel": field is immutable`,
	})
	// What was stored before a rule may be changed elsewhere.
	old.Spec.Template.Spec.Containers[0].Name = "NOT VALID"
	s = old.DeepCopy()
	s.Spec.Replicas = new(int32(2))
	same(t, r.ValidateUpdate(testEnv(), s, old), nil)

	st := r.Subresource("status").Status
	s = old.DeepCopy()
	s.Status = appsv1.StatefulSetStatus{Replicas: 1, ReadyReplicas: 1, CurrentReplicas: 2, AvailableReplicas: -1}
	same(t, st.ValidateUpdate(testEnv(), s, old), []string{
		`status.availableReplicas: Invalid value: -1: must be greater than or equal to 0`,
		`status.currentReplicas: Invalid value: 2: cannot be greater than status.replicas`,
	})
	if w := r.Warnings(testEnv(), statefulSet(func(s *appsv1.StatefulSet) { s.Spec.RevisionHistoryLimit = new(int32(-1)) }), nil); !slices.Equal(w,
		[]string{"spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"}) {
		t.Errorf("warnings %q", w)
	}
}

func TestDaemonSet(t *testing.T) {
	r := DaemonSet()
	d := daemonSet(func(d *appsv1.DaemonSet) {
		d.Annotations = map[string]string{appsv1.DeprecatedTemplateGeneration: "-3"}
	})
	r.PrepareCreate(testEnv(), d)
	same(t, r.ValidateCreate(testEnv(), d), nil)
	if templateGeneration(d) != 1 || d.Generation != 1 {
		t.Errorf("generations %d, %d", templateGeneration(d), d.Generation)
	}

	// The template's number is the server's, and counts changes of the template.
	old := daemonSet(func(d *appsv1.DaemonSet) { d.Annotations = map[string]string{appsv1.DeprecatedTemplateGeneration: "5"} })
	for _, c := range []struct {
		set                  func(*appsv1.DaemonSet)
		generation, template int64
	}{
		{func(d *appsv1.DaemonSet) { d.Annotations[appsv1.DeprecatedTemplateGeneration] = "9" }, 3, 5},
		{func(d *appsv1.DaemonSet) { d.Annotations = nil }, 3, 5},
		{func(d *appsv1.DaemonSet) { d.Spec.MinReadySeconds = 1 }, 4, 5},
		{func(d *appsv1.DaemonSet) { d.Spec.Template.Spec.Containers[0].Image = "x" }, 4, 6},
	} {
		d := old.DeepCopy()
		c.set(d)
		r.PrepareUpdate(testEnv(), d, old)
		if d.Generation != c.generation || templateGeneration(d) != c.template {
			t.Errorf("generations %d, %d, want %d, %d", d.Generation, templateGeneration(d), c.generation, c.template)
		}
	}

	d = daemonSet(func(d *appsv1.DaemonSet) {
		d.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxSurge: new(intstr.FromString("101%"))}
		d.Spec.Selector = &metav1.LabelSelector{}
		d.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	})
	same(t, r.ValidateCreate(testEnv(), d), []string{
		`spec.selector: Invalid value: {}: empty selector is invalid for daemonset`,
		`spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`,
		`spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: "101%": must not be greater than 100%`,
		`spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: "101%": may not be set when maxUnavailable is non-zero`,
	})
	d = daemonSet(func(d *appsv1.DaemonSet) { d.Spec.UpdateStrategy.Type = "Now" })
	same(t, r.ValidateCreate(testEnv(), d), []string{
		`spec.updateStrategy: Unsupported value: {"Type":"Now","RollingUpdate":null}: supported values: "RollingUpdate", "OnDelete"`})
	st := r.Subresource("status").Status
	d = old.DeepCopy()
	d.Status, old.Status.CollisionCount = appsv1.DaemonSetStatus{NumberReady: -1}, new(int32(1))
	same(t, st.ValidateUpdate(testEnv(), d, old), []string{
		`status.numberReady: Invalid value: -1: must be greater than or equal to 0`,
		`status.collisionCount: Invalid value: 0: cannot be decremented`,
	})
}

func TestControllerRevision(t *testing.T) {
	revision := func(data string) *appsv1.ControllerRevision {
		r := &appsv1.ControllerRevision{ObjectMeta: meta(), Revision: 1}
		if data != "" {
			r.Data = runtime.RawExtension{Raw: []byte(data)}
		}
		return r
	}
	r := ControllerRevision()
	for data, want := range map[string][]string{
		`{"a":1}`: nil, "": {`data: Required value: data is mandatory`}, "null": {`data: Required value: data is mandatory`},
		"[]": {`data: Required value: data must be a valid JSON object`},
	} {
		same(t, r.ValidateCreate(testEnv(), revision(data)), want)
	}
	old, changed := revision(`{"a":1}`), revision(`{"a":2}`)
	changed.Revision = -1
	same(t, r.ValidateUpdate(testEnv(), changed, old), []string{
		`revision: Invalid value: -1: must be greater than or equal to 0`,
		`data: Invalid value: {"a":2}: field is immutable`,
	})
	old.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "d", Controller: new(true)}}
	if got, want := r.Row(old, time.Now()), []any{"web", "daemonset.apps/d", int64(1), "<unknown>"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
