package controller

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
)

// set is a ReplicaSet of a test: its age is its place in the alphabet.
func set(name string, replicas, available int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(time.Unix(int64(name[0]), 0)), Annotations: map[string]string{}},
		Spec:       appsv1.ReplicaSetSpec{Replicas: &replicas},
		Status:     appsv1.ReplicaSetStatus{Replicas: replicas, ReadyReplicas: available, AvailableReplicas: available},
	}
}

func sized(replicas int32, surge, unavailable string) *appsv1.Deployment {
	d := deployment("web", replicas, "v1")
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	d.Spec.Strategy.RollingUpdate.MaxSurge, d.Spec.Strategy.RollingUpdate.MaxUnavailable = &s, &u
	return d
}

func TestFence(t *testing.T) {
	for _, c := range []struct {
		n                  int32
		surge, unavailable string
		s, u               int32
	}{
		{10, "25%", "25%", 3, 2}, // surge rounds up, unavailability down
		{1, "25%", "25%", 1, 0},
		{0, "25%", "25%", 0, 0},
		{10, "0", "0%", 0, 1}, // otherwise nothing moves
		{3, "0", "10%", 0, 1},
		{2, "1", "5", 1, 2}, // never more than there are
	} {
		d := sized(c.n, c.surge, c.unavailable)
		if s, u := maxSurge(d), maxUnavailable(d); s != c.s || u != c.u {
			t.Errorf("%d with %s, %s: surge %d, unavailable %d, want %d, %d", c.n, c.surge, c.unavailable, s, u, c.s, c.u)
		}
	}
	d := sized(10, "25%", "25%")
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	if maxSurge(d) != 0 || maxUnavailable(d) != 0 {
		t.Error("recreation has a surge")
	}
}

func sizes(rs []resize) string {
	var out []string
	for _, s := range rs {
		out = append(out, fmt.Sprint(s.rs.Name, "=", s.to))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestNewSetGrowsWithinTheSurge(t *testing.T) {
	for _, c := range []struct {
		n                   int32
		surge               string
		newSize, old, wants int32
	}{
		{10, "25%", 0, 10, 3},
		{10, "25%", 3, 8, 5},
		{10, "25%", 3, 10, 3},
		{10, "0", 0, 10, 0},
		{10, "100%", 0, 10, 10},
		{10, "100%", 0, 0, 10}, // never more than wanted
	} {
		newSet := set("n", c.newSize, 0)
		if got, err := newSetSize(sized(c.n, c.surge, "1"), []*appsv1.ReplicaSet{newSet, set("a", c.old, c.old)}, newSet); err != nil || got != c.wants {
			t.Errorf("%+v: %d, %v", c, got, err)
		}
	}
}

func TestOldSetsShrinkWithinTheUnavailability(t *testing.T) {
	for name, c := range map[string]struct {
		unavailable string
		newSet      *appsv1.ReplicaSet
		old         []*appsv1.ReplicaSet
		want        string
	}{
		"at the start":                      {"25%", set("n", 3, 0), []*appsv1.ReplicaSet{set("a", 10, 10)}, "a=8"},
		"none may go":                       {"0", set("n", 3, 0), []*appsv1.ReplicaSet{set("a", 10, 10)}, ""},
		"one came":                          {"0", set("n", 3, 1), []*appsv1.ReplicaSet{set("a", 10, 10)}, "a=9"},
		"the sick go first":                 {"20%", set("n", 0, 0), []*appsv1.ReplicaSet{set("a", 8, 8), set("b", 5, 0)}, "b=0"},
		"the oldest first":                  {"20%", set("n", 3, 3), []*appsv1.ReplicaSet{set("a", 5, 5), set("b", 5, 5)}, "a=0"},
		"a new set that crashes holds back": {"20%", set("n", 5, 0), []*appsv1.ReplicaSet{set("a", 8, 8)}, ""},
		"pods about to go are not counted":  {"20%", set("n", 2, 2), []*appsv1.ReplicaSet{set("a", 6, 10)}, ""},
		"all new ones are there":            {"0", set("n", 10, 10), []*appsv1.ReplicaSet{set("a", 3, 3)}, "a=0"},
	} {
		if got := sizes(shrinkOld(sized(10, "30%", c.unavailable), c.newSet, c.old)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestScalingIsProportional(t *testing.T) {
	at := func(rs *appsv1.ReplicaSet, desired, most int32) *appsv1.ReplicaSet {
		annotateSizes(rs, desired, most)
		return rs
	}
	for name, c := range map[string]struct {
		n      int32
		newSet *appsv1.ReplicaSet
		old    []*appsv1.ReplicaSet
		want   string
	}{
		"one in use takes all":          {12, set("n", 10, 10), []*appsv1.ReplicaSet{set("a", 0, 0)}, "n=12"},
		"the old one in use":            {12, set("n", 0, 0), []*appsv1.ReplicaSet{set("a", 10, 10)}, "a=12"},
		"none in use: the new":          {5, set("n", 0, 0), []*appsv1.ReplicaSet{set("a", 0, 0)}, "n=5"},
		"none in use: the youngest":     {5, nil, []*appsv1.ReplicaSet{set("a", 0, 0), set("b", 0, 0)}, "b=5"},
		"nothing there":                 {5, nil, nil, ""},
		"up, both in use":               {15, at(set("n", 5, 0), 10, 13), []*appsv1.ReplicaSet{at(set("a", 8, 8), 10, 13)}, "a=12 n=7"},
		"down":                          {5, at(set("n", 5, 5), 10, 10), []*appsv1.ReplicaSet{at(set("a", 5, 5), 10, 10)}, "a=3 n=4"},
		"to nothing":                    {0, at(set("n", 5, 5), 10, 10), []*appsv1.ReplicaSet{at(set("a", 5, 5), 10, 10)}, "a=0 n=0"},
		"a finished rollout drops old":  {10, at(set("n", 10, 10), 10, 13), []*appsv1.ReplicaSet{at(set("a", 3, 3), 10, 13)}, "a=0"},
		"as it is":                      {10, at(set("n", 5, 5), 10, 13), []*appsv1.ReplicaSet{at(set("a", 8, 8), 10, 13)}, "a=8 n=5"},
		"no annotation: from the count": {20, set("n", 5, 5), []*appsv1.ReplicaSet{set("a", 5, 5)}, "a=12 n=13"},
	} {
		d := sized(c.n, "25%", "25%")
		d.Status.Replicas = 10
		if got := sizes(proportionalSizes(d, c.newSet, c.old)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		total := int32(0)
		for _, s := range proportionalSizes(d, c.newSet, c.old) {
			if s.to < 0 {
				t.Errorf("%s: %s to %d", name, s.rs.Name, s.to)
			}
			total += s.to
		}
		if total > c.n+maxSurge(d) {
			t.Errorf("%s: %d in all", name, total)
		}
	}
}

func TestHistory(t *testing.T) {
	revised := func(name, revision string, replicas int32) *appsv1.ReplicaSet {
		rs := set(name, replicas, 0)
		rs.Annotations[revisionAnnotation] = revision
		return rs
	}
	old := []*appsv1.ReplicaSet{revised("d", "9", 0), revised("a", "10", 0), revised("c", "2", 0), revised("b", "1", 1)}
	d := sized(1, "1", "1")
	d.Spec.RevisionHistoryLimit = ptr.To(int32(2))
	var got []string
	for _, rs := range beyondHistory(d, old) {
		got = append(got, rs.Name)
	}
	// Of the two oldest revisions, one still has a pod.
	if !slices.Equal(got, []string{"c"}) {
		t.Errorf("dropped are %v", got)
	}
	if maxRevision(old) != 10 || previousRevision(old) != 9 {
		t.Errorf("revisions are %d, %d", maxRevision(old), previousRevision(old))
	}
	rs := revised("n", "3", 0)
	rs.Annotations[historyAnnotation] = "1"
	d.Annotations = map[string]string{"note": "x", corev1.LastAppliedConfigAnnotation: "{}", revisionAnnotation: "3"}
	if !annotateNew(d, rs, 11, true) {
		t.Error("nothing changed")
	}
	want := map[string]string{"note": "x", revisionAnnotation: "11", historyAnnotation: "1,3"}
	if !maps.Equal(rs.Annotations, want) {
		t.Errorf("annotations are %v, want %v", rs.Annotations, want)
	}
	if annotateNew(d, rs, 11, true) {
		t.Error("changed again")
	}
	long, ok := appendHistory(strings.Repeat("1000,", 399)+"1000", "1001")
	if !ok || len(long) > historyLength || !strings.HasSuffix(long, "1000,1001") {
		t.Errorf("history of %d bytes", len(long))
	}
}

func TestTemplateHashIgnoresHowTheStructCameToBe(t *testing.T) {
	template := func() *corev1.PodTemplateSpec {
		d := deployment("web", 1, "nginx")
		d.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}
		return &d.Spec.Template
	}
	plain := templateHash(template(), nil)
	if len(plain) == 0 || strings.ContainsAny(plain, "aeiou013") {
		t.Errorf("hash %q is not of the safe alphabet", plain)
	}
	touched := template()
	q := touched.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU]
	_ = q.String() // caches its text
	touched.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = q
	touched.Spec.Tolerations = []corev1.Toleration{}
	if got := templateHash(touched, nil); got != plain {
		t.Errorf("hash is %s, of the same template %s", got, plain)
	}
	other := template()
	other.Spec.Containers[0].Image = "nginx:2"
	if templateHash(other, nil) == plain || templateHash(template(), ptr.To(int32(1))) == plain || templateHash(template(), ptr.To(int32(0))) == plain {
		t.Error("hashes that must differ do not")
	}
}

func TestRolloutConditions(t *testing.T) {
	now := time.Unix(10000, 0)
	progressing := func(reason string, status corev1.ConditionStatus, ago time.Duration) appsv1.DeploymentCondition {
		return newCondition(now.Add(-ago), appsv1.DeploymentProgressing, status, reason, "before")
	}
	for name, c := range map[string]struct {
		was     []appsv1.DeploymentCondition
		status  appsv1.DeploymentStatus
		newSet  *appsv1.ReplicaSet
		old     []*appsv1.ReplicaSet
		no      bool // without deadline
		reason  string
		value   corev1.ConditionStatus
		message string
		after   time.Duration
	}{
		"progress": {was: []appsv1.DeploymentCondition{progressing("NewReplicaSetCreated", "True", time.Minute)}, newSet: set("n", 4, 1),
			reason: "ReplicaSetUpdated", value: "True", message: `ReplicaSet "n" is progressing.`, after: 601 * time.Second},
		"done": {was: []appsv1.DeploymentCondition{progressing("ReplicaSetUpdated", "True", time.Minute)}, newSet: set("n", 4, 4),
			reason: "NewReplicaSetAvailable", value: "True", message: `ReplicaSet "n" has successfully progressed.`},
		"stuck, not yet late": {was: []appsv1.DeploymentCondition{progressing("ReplicaSetUpdated", "True", 599*time.Second)}, newSet: set("n", 4, 1), status: appsv1.DeploymentStatus{Replicas: 4, UpdatedReplicas: 4, ReadyReplicas: 1, AvailableReplicas: 1},
			reason: "ReplicaSetUpdated", value: "True", message: "before", after: 2 * time.Second},
		"stuck, late": {was: []appsv1.DeploymentCondition{progressing("ReplicaSetUpdated", "True", 601*time.Second)}, newSet: set("n", 4, 1), status: appsv1.DeploymentStatus{Replicas: 4, UpdatedReplicas: 4, ReadyReplicas: 1, AvailableReplicas: 1},
			reason: "ProgressDeadlineExceeded", value: "False", message: `ReplicaSet "n" has timed out progressing.`},
		"late, then a step": {was: []appsv1.DeploymentCondition{progressing("ProgressDeadlineExceeded", "False", time.Hour)}, newSet: set("n", 4, 2), status: appsv1.DeploymentStatus{Replicas: 4, UpdatedReplicas: 4, ReadyReplicas: 1, AvailableReplicas: 1},
			reason: "ReplicaSetUpdated", value: "True", message: `ReplicaSet "n" is progressing.`, after: 601 * time.Second},
		"done, then a pod fails": {was: []appsv1.DeploymentCondition{progressing("NewReplicaSetAvailable", "True", time.Hour)}, newSet: set("n", 4, 3), status: appsv1.DeploymentStatus{Replicas: 4, UpdatedReplicas: 4, ReadyReplicas: 4, AvailableReplicas: 4},
			reason: "NewReplicaSetAvailable", value: "True", message: "before"},
		"no deadline": {was: []appsv1.DeploymentCondition{progressing("ReplicaSetUpdated", "True", time.Hour)}, newSet: set("n", 4, 3), no: true},
	} {
		d := sized(4, "1", "1")
		d.Status = c.status
		d.Status.Conditions = c.was
		if c.no {
			d.Spec.ProgressDeadlineSeconds = nil
		}
		s := rolloutStatus(d, c.newSet, append(c.old, c.newSet), now)
		got := condition(&s, appsv1.DeploymentProgressing)
		if c.no {
			if got != nil {
				t.Errorf("%s: condition is %v", name, got)
			}
			continue
		}
		if got.Reason != c.reason || got.Status != c.value || got.Message != c.message {
			t.Errorf("%s: condition is %v", name, got)
		}
		if after := progressCheck(d, &s, now); after != c.after {
			t.Errorf("%s: looked at again after %v, want %v", name, after, c.after)
		}
	}
}

func TestStatusCounts(t *testing.T) {
	a, n := set("a", 3, 2), set("n", 4, 1)
	a.Status.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: "True", Reason: "FailedCreate", Message: "old"}}
	n.Status.TerminatingReplicas, a.Status.TerminatingReplicas = ptr.To(int32(2)), ptr.To(int32(1))
	d := sized(5, "1", "1")
	d.Generation = 7
	s := rolloutStatus(d, n, []*appsv1.ReplicaSet{a, n}, time.Unix(1, 0))
	if s.Replicas != 7 || s.UpdatedReplicas != 4 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.UnavailableReplicas != 4 || *s.TerminatingReplicas != 3 || s.ObservedGeneration != 7 {
		t.Errorf("status is %+v", s)
	}
	if c := condition(&s, appsv1.DeploymentAvailable); c.Status != "False" || c.Reason != "MinimumReplicasUnavailable" || c.Message != "Deployment does not have minimum availability." {
		t.Errorf("condition is %v", c)
	}
	if c := condition(&s, appsv1.DeploymentReplicaFailure); c == nil || c.Reason != "FailedCreate" || c.Message != "old" {
		t.Errorf("condition is %v", c)
	}
	n.Status.AvailableReplicas, a.Status.Conditions = 2, nil
	d.Status = s
	s = rolloutStatus(d, n, []*appsv1.ReplicaSet{a, n}, time.Unix(1, 0))
	if c := condition(&s, appsv1.DeploymentAvailable); c.Status != "True" || c.Reason != "MinimumReplicasAvailable" {
		t.Errorf("condition is %v", c)
	}
	if condition(&s, appsv1.DeploymentReplicaFailure) != nil {
		t.Error("a failure that is over is still reported")
	}
}

func owned(w *world, image string) *appsv1.ReplicaSet {
	for _, rs := range list[*appsv1.ReplicaSet](w, "ns") {
		if rs.Spec.Template.Spec.Containers[0].Image == image {
			return rs
		}
	}
	w.t.Fatalf("no ReplicaSet with image %s", image)
	return nil
}

func setImage(w *world, image string) {
	edit(w, "ns", "web", "", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image })
}

func TestDeploymentLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, rolloutControllers)
		defer w.stop()
		w.kubelet(100*time.Millisecond, newRand(1), func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image == "broken" })
		d := deployment("web", 3, "v1")
		d.Annotations = map[string]string{"note": "kept"}
		w.api.Put(d)
		w.until("v1", func() bool { return w.rolledOut("web") })
		rs := owned(w, "v1")
		hash := rs.Labels["pod-template-hash"]
		if hash == "" || rs.Name != "web-"+hash || rs.Spec.Selector.MatchLabels["pod-template-hash"] != hash || rs.Spec.Template.Labels["pod-template-hash"] != hash || rs.Spec.Selector.MatchLabels["app"] != "web" {
			t.Errorf("ReplicaSet is %v", rs)
		}
		want := map[string]string{"note": "kept", revisionAnnotation: "1", desiredAnnotation: "3", maxAnnotation: "4"}
		if !maps.Equal(rs.Annotations, want) {
			t.Errorf("annotations are %v", rs.Annotations)
		}
		for _, p := range list[*corev1.Pod](w, "ns") {
			if !strings.HasPrefix(p.Name, rs.Name+"-") || p.Labels["pod-template-hash"] != hash {
				t.Errorf("pod is %v", p.ObjectMeta)
			}
		}
		revision := func() string { return get[*appsv1.Deployment](w, "ns", "web").Annotations[revisionAnnotation] }
		if revision() != "1" {
			t.Errorf("revision is %s", revision())
		}
		setImage(w, "v2")
		w.until("v2", func() bool { return w.rolledOut("web") })
		if revision() != "2" || *owned(w, "v1").Spec.Replicas != 0 {
			t.Errorf("revision is %s, the old set has %d", revision(), *owned(w, "v1").Spec.Replicas)
		}
		// kubectl rollout undo patches the former template back in.
		setImage(w, "v1")
		w.until("v1 again", func() bool { return w.rolledOut("web") })
		if rs := owned(w, "v1"); revision() != "3" || rs.Annotations[revisionAnnotation] != "3" || rs.Annotations[historyAnnotation] != "1" {
			t.Errorf("revision is %s, annotations are %v", revision(), rs.Annotations)
		}
		if n := len(list[*appsv1.ReplicaSet](w, "ns")); n != 2 {
			t.Errorf("%d ReplicaSets, want 2", n)
		}
		// The deprecated way, by annotation.
		edit(w, "ns", "web", "", func(d *appsv1.Deployment) { d.Annotations[appsv1.DeprecatedRollbackTo] = "2" })
		w.until("v2 by annotation", func() bool {
			d := get[*appsv1.Deployment](w, "ns", "web")
			_, left := d.Annotations[appsv1.DeprecatedRollbackTo]
			return !left && d.Spec.Template.Spec.Containers[0].Image == "v2" && w.rolledOut("web")
		})
		// Paused: scaled, not rolled.
		edit(w, "ns", "web", "", func(d *appsv1.Deployment) { d.Spec.Paused = true })
		setImage(w, "v3")
		edit(w, "ns", "web", "", func(d *appsv1.Deployment) { *d.Spec.Replicas = 5 })
		w.until("scaled while paused", func() bool { return owned(w, "v2").Status.AvailableReplicas == 5 })
		time.Sleep(time.Minute)
		if n := len(list[*appsv1.ReplicaSet](w, "ns")); n != 2 {
			t.Errorf("%d ReplicaSets while paused, want 2", n)
		}
		got := get[*appsv1.Deployment](w, "ns", "web")
		if c := condition(&got.Status, appsv1.DeploymentProgressing); c.Reason != "DeploymentPaused" || c.Status != "Unknown" || c.Message != "Deployment is paused" {
			t.Errorf("condition is %v", c)
		}
		edit(w, "ns", "web", "", func(d *appsv1.Deployment) { d.Spec.Paused = false })
		w.until("v3", func() bool { return w.rolledOut("web") })
		// A template whose pods never become ready.
		setImage(w, "broken")
		w.until("the deadline passes", func() bool {
			d := get[*appsv1.Deployment](w, "ns", "web")
			c := condition(&d.Status, appsv1.DeploymentProgressing)
			return c != nil && c.Reason == "ProgressDeadlineExceeded" && c.Status == "False"
		})
		if rs := owned(w, "v3"); rs.Status.AvailableReplicas < 4 {
			t.Errorf("%d of the old pods are left, maxUnavailable demands 4", rs.Status.AvailableReplicas)
		}
		setImage(w, "v3")
		w.until("undone", func() bool { return w.rolledOut("web") })
		edit(w, "ns", "web", "", func(d *appsv1.Deployment) { *d.Spec.Replicas = 0 })
		w.until("scaled to nothing", func() bool { return len(list[*corev1.Pod](w, "ns")) == 0 && w.rolledOut("web") })
		var messages []string
		for _, e := range list[*corev1.Event](w, "ns") {
			if e.InvolvedObject.Kind == "Deployment" {
				messages = append(messages, e.Reason+": "+e.Message)
			}
		}
		for _, m := range []string{
			"ScalingReplicaSet: Scaled up replica set web-" + hash + " from 0 to 3",
			"ScalingReplicaSet: Scaled down replica set web-" + hash + " from 1 to 0",
			`DeploymentRollback: Rolled back deployment "web" to revision 2`,
		} {
			if !slices.Contains(messages, m) {
				t.Errorf("no event %q in %q", m, messages)
			}
		}
	})
}

func TestRecreateStopsTheOldBeforeItStartsTheNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, rolloutControllers)
		defer w.stop()
		w.kubelet(5*time.Second, newRand(2), nil)
		d := deployment("web", 4, "v1")
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
		w.api.Put(d)
		w.until("v1", func() bool { return w.rolledOut("web") })
		client.InformerFor[*corev1.Pod](w.deps.Informers).OnChange(func(ch client.Change[*corev1.Pod]) {
			images := map[string]bool{}
			for _, p := range client.InformerFor[*corev1.Pod](w.deps.Informers).List("ns", nil) {
				images[p.Spec.Containers[0].Image] = true
			}
			if len(images) > 1 {
				t.Errorf("pods of %v at a time", images)
			}
		})
		setImage(w, "v2")
		w.until("v2", func() bool { return w.rolledOut("web") })
	})
}

func TestHashCollision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := deployment("web", 1, "v1")
		squatter := newReplicaSetFor(d)
		squatter.OwnerReferences = nil
		squatter.Labels = map[string]string{"other": "x"}
		squatter.Spec.Template.Spec.Containers[0].Image = "other"
		w := newWorld(t, rolloutControllers, squatter)
		defer w.stop()
		w.kubelet(time.Second, newRand(3), nil)
		w.api.Put(d)
		w.until("rolled out beside it", func() bool { return w.rolledOut("web") })
		got := get[*appsv1.Deployment](w, "ns", "web")
		if got.Status.CollisionCount == nil || *got.Status.CollisionCount != 1 {
			t.Errorf("collision count is %v", got.Status.CollisionCount)
		}
		if rs := owned(w, "v1"); rs.Name == squatter.Name {
			t.Error("the names are the same")
		}
	})
}

func TestFailureToCreateIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, rolloutControllers)
		defer w.stop()
		w.kubelet(time.Second, newRand(4), nil)
		refuse := func(what string) {
			w.api.refuse(func(verb string, ref client.Ref) error {
				if verb == "create" && ref.GVR.Resource == what {
					return errors.New("quota exceeded")
				}
				return nil
			})
		}
		refuse("pods")
		w.api.Put(deployment("web", 3, "v1"))
		w.until("the failure shows", func() bool {
			d := get[*appsv1.Deployment](w, "ns", "web")
			c := condition(&d.Status, appsv1.DeploymentReplicaFailure)
			return c != nil && c.Reason == "FailedCreate" && c.Message == "quota exceeded" && c.Status == "True"
		})
		refuse("")
		w.until("it is over", func() bool {
			d := get[*appsv1.Deployment](w, "ns", "web")
			return w.rolledOut("web") && condition(&d.Status, appsv1.DeploymentReplicaFailure) == nil
		})
		refuse("replicasets")
		setImage(w, "v2")
		w.until("the failure shows", func() bool {
			d := get[*appsv1.Deployment](w, "ns", "web")
			c := condition(&d.Status, appsv1.DeploymentProgressing)
			return c != nil && c.Reason == "ReplicaSetCreateError" && c.Status == "False" && strings.HasPrefix(c.Message, `Failed to create new replica set "web-`) && strings.HasSuffix(c.Message, `": quota exceeded`)
		})
		refuse("")
		w.until("it is over", func() bool { return w.rolledOut("web") })
	})
}
