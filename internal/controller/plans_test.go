package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"skiff/internal/control"
)

// setSnapshot reads pods as "ordinal:revision:state" with the states of podState.
func setSnapshot(set *appsv1.StatefulSet, pods string) *setView {
	v := &setView{
		set: set, now: jobEpoch, claim: func(string) *corev1.PersistentVolumeClaim { return nil },
		current:         &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Name: "old"}},
		update:          &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Name: "new"}},
		currentTemplate: &set.Spec.Template, updateTemplate: &set.Spec.Template,
	}
	for _, text := range strings.Fields(pods) {
		parts := strings.Split(text, ":")
		var n int
		_, _ = fmt.Sscan(parts[0], &n)
		p := setPod(set, &set.Spec.Template, parts[1], n)
		p.UID = types.UID(text)
		podState(p, parts[2])
		v.pods = append(v.pods, p)
	}
	return v
}

// podState: ready, sick, pending, failed, done, and going (a ready pod that is being
// deleted).
func podState(p *corev1.Pod, state string) {
	long := jobEpoch.Add(-time.Hour)
	switch state {
	case "ready":
		setReady(p, true, long)
	case "sick":
		setReady(p, false, long)
	case "pending":
		p.Status.Phase = corev1.PodPending
	case "failed":
		p.Status.Phase = corev1.PodFailed
	case "done":
		p.Status.Phase = corev1.PodSucceeded
	case "going":
		setReady(p, true, long)
		p.DeletionTimestamp = ptr.To(metav1.NewTime(jobEpoch))
	default:
		panic(state)
	}
}

// shown are a plan's steps, a phase in brackets.
func shown(plan setPlan) string {
	var out []string
	for _, phase := range plan.phases {
		var steps []string
		for _, s := range phase {
			_, n := ordinalOf(s.pod.Name)
			step := fmt.Sprintf("%s %d", s.action, n)
			if s.action == makePod {
				step += " " + setPodRevision(s.pod)
			}
			steps = append(steps, step)
		}
		out = append(out, "["+strings.Join(steps, ", ")+"]")
	}
	return strings.Join(out, " ")
}

func TestSetPlans(t *testing.T) {
	parallel := func(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }
	limit := func(n int32) func(*appsv1.StatefulSet) {
		return func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(intstr.FromInt32(n))
		}
	}
	partition := func(n int32) func(*appsv1.StatefulSet) {
		return func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = &n }
	}
	start := func(n int32) func(*appsv1.StatefulSet) {
		return func(s *appsv1.StatefulSet) { s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: n} }
	}
	for _, c := range []struct {
		name     string
		replicas int32
		change   []func(*appsv1.StatefulSet)
		pods     string
		want     string
	}{
		{"the first of three", 3, nil, "", "[create 0 new]"},
		{"not before the first is ready", 3, nil, "0:new:sick", ""},
		{"then the next", 3, nil, "0:new:ready", "[create 1 new]"},
		{"all at once", 3, []func(*appsv1.StatefulSet){parallel}, "", "[create 0 new, create 1 new, create 2 new]"},
		{"from a start", 2, []func(*appsv1.StatefulSet){start(5)}, "5:new:ready", "[create 6 new]"},
		{"a moved start scales down below", 2, []func(*appsv1.StatefulSet){start(1)}, "0:new:ready 1:new:ready 2:new:ready", "[delete 0]"},
		{"a failed pod is made anew", 2, nil, "0:new:failed 1:new:ready", "[delete 0]"},
		{"and one that succeeded", 2, []func(*appsv1.StatefulSet){parallel}, "0:new:done 1:new:done", "[delete 0, delete 1]"},
		{"the highest goes first", 1, nil, "0:new:ready 1:new:ready 2:new:ready", "[delete 2]"},
		{"one at a time", 1, nil, "0:new:ready 1:new:ready 2:new:going", ""},
		{"not while another is sick", 1, nil, "0:new:ready 1:new:sick 2:new:ready", "[delete 2]"},
		{"a sick one that stays holds all", 1, nil, "0:new:sick 1:new:ready", ""},
		{"the sick one itself goes", 1, nil, "0:new:ready 1:new:sick", "[delete 1]"},
		{"a higher sick one waits for a lower", 1, nil, "0:new:ready 1:new:sick 2:new:sick", ""},
		{"all go at once", 1, []func(*appsv1.StatefulSet){parallel}, "0:new:sick 1:new:sick 2:new:ready", "[delete 2, delete 1]"},
		{"an update begins at the top", 3, nil, "0:old:ready 1:old:ready 2:old:ready", "[replace 2]"},
		{"and goes on when that is ready", 3, nil, "0:old:ready 1:old:ready 2:new:ready", "[replace 1]"},
		{"not before", 3, nil, "0:old:ready 1:old:ready 2:new:sick", ""},
		{"to the partition", 3, []func(*appsv1.StatefulSet){partition(2)}, "0:old:ready 1:old:ready 2:new:ready", ""},
		{"below it pods stay old", 3, []func(*appsv1.StatefulSet){partition(2)}, "0:old:ready 2:new:ready", "[create 1 old]"},
		{"two at a time", 4, []func(*appsv1.StatefulSet){limit(2)}, "0:old:ready 1:old:ready 2:old:ready 3:old:ready", "[replace 3, replace 2]"},
		{"of which one is down", 4, []func(*appsv1.StatefulSet){limit(2), parallel}, "0:old:ready 1:old:ready 2:old:ready 3:new:sick", "[replace 2]"},
		{"what is sick anyway first", 4, []func(*appsv1.StatefulSet){parallel}, "0:old:sick 1:old:ready 2:old:ready 3:old:ready", "[replace 0]"},
		{"sick ones beyond the limit too", 3, []func(*appsv1.StatefulSet){parallel}, "0:old:sick 1:old:sick 2:new:sick", "[replace 1, replace 0]"},
		{"by hand", 2, []func(*appsv1.StatefulSet){func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
		}}, "0:old:ready 1:old:ready", ""},
		{"by hand, made new", 2, []func(*appsv1.StatefulSet){func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
		}}, "0:old:ready", "[create 1 new]"},
		{"a set being deleted", 2, []func(*appsv1.StatefulSet){func(s *appsv1.StatefulSet) { s.DeletionTimestamp = ptr.To(metav1.NewTime(jobEpoch)) }}, "0:old:ready", ""},
		{"more than anybody has", 1<<31 - 1, []func(*appsv1.StatefulSet){}, "0:new:ready", "[create 1 new]"},
	} {
		set := statefulSet("db", c.replicas, "v")
		for _, f := range c.change {
			f(set)
		}
		if got := shown(planSet(setSnapshot(set, c.pods))); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	huge := statefulSet("db", 1<<31-1, "v")
	parallel(huge)
	if plan := planSet(setSnapshot(huge, "")); len(plan.phases) != 1 || len(plan.phases[0]) != batch {
		t.Errorf("%d phases", len(plan.phases))
	}
	lost := setSnapshot(statefulSet("db", 1, "v"), "0:new:ready")
	delete(lost.pods[0].Labels, appsv1.StatefulSetPodNameLabel)
	if got := shown(planSet(lost)); got != "[repair 0]" {
		t.Errorf("a pod without its label: %s", got)
	}
}

func TestSetStatus(t *testing.T) {
	set := statefulSet("db", 4, "v")
	set.Generation = 7
	v := setSnapshot(set, "0:old:ready 1:old:sick 2:new:ready 3:new:going")
	v.pods[2].Status.Conditions[0].LastTransitionTime = metav1.NewTime(jobEpoch)
	set.Spec.MinReadySeconds = 10
	s := setStatus(v)
	if s.Replicas != 4 || s.ReadyReplicas != 3 || s.AvailableReplicas != 2 || s.CurrentReplicas != 2 || s.UpdatedReplicas != 1 || s.ObservedGeneration != 7 || s.CurrentRevision != "old" || s.UpdateRevision != "new" {
		t.Errorf("status %+v", s)
	}
	settleSet(set, &s)
	if s.CurrentRevision != "old" {
		t.Error("the update has not ended")
	}
	s.ReadyReplicas, s.UpdatedReplicas = 4, 4
	if settleSet(set, &s); s.CurrentRevision != "new" || s.CurrentReplicas != 4 {
		t.Errorf("ended: %+v", s)
	}
}

func TestClaimOwners(t *testing.T) {
	set := statefulSet("db", 2, "v")
	set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
	const keep, drop = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	for _, c := range []struct {
		deleted, scaled appsv1.PersistentVolumeClaimRetentionPolicyType
		ordinal         int
		want            string
	}{
		{keep, keep, 0, ""}, {keep, keep, 5, ""}, {drop, keep, 0, "StatefulSet"}, {drop, keep, 5, "StatefulSet"},
		{keep, drop, 0, ""}, {keep, drop, 5, "Pod"}, {drop, drop, 0, "StatefulSet"}, {drop, drop, 5, "Pod"},
	} {
		set.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: c.deleted, WhenScaled: c.scaled}
		p := setPod(set, &set.Spec.Template, "r", c.ordinal)
		p.UID = "p"
		claim := setClaims(set, p.Name)[0]
		if claim.Name != fmt.Sprintf("data-db-%d", c.ordinal) || claim.Labels["app"] != "db" || !claimsMounted(set, p) {
			t.Errorf("claim %+v of %+v", claim, p.Spec.Volumes)
		}
		setClaimOwners(claim, set, p)
		got := ""
		for _, r := range claim.OwnerReferences {
			got += r.Kind
		}
		if got != c.want || !claimOwnersRight(claim, set, p) {
			t.Errorf("%+v: owned by %q", c, got)
		}
		// Another's claim is left alone.
		other := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "X", Name: "x", UID: "x", Controller: ptr.To(true)}}}}
		if managed := c.deleted == drop || c.scaled == drop; claimConflict(other, set, p) != managed {
			t.Errorf("%+v: conflict with another controller is not %v", c, managed)
		}
		setClaimOwners(other, set, p)
		if len(other.OwnerReferences) != 1 {
			t.Errorf("owners of another's claim are %v", other.OwnerReferences)
		}
	}
	gone := setPod(set, &set.Spec.Template, "r", 1)
	gone.UID = "before"
	stale := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(gone, podKind)}}}
	v := setSnapshot(set, "0:new:ready")
	v.claim = func(name string) *corev1.PersistentVolumeClaim {
		if name == "data-db-1" {
			return stale
		}
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, statefulSetKind)}}}
	}
	if got := shown(planSet(v)); got != "" {
		t.Errorf("a pod is made although its claim goes with its predecessor: %s", got)
	}
}

func daemonSnapshot(ds *appsv1.DaemonSet, pods string) *daemonView {
	var nodes []*corev1.Node
	for _, n := range []string{"a", "b", "c", "d"} {
		nodes = append(nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{"name": n}}})
	}
	var list []*corev1.Pod
	for i, text := range strings.Fields(pods) {
		parts := strings.Split(text, ":")
		p := daemonPod(ds, parts[1], parts[0])
		delete(p.Labels, daemonGenerationLabel)
		p.Name, p.Spec.NodeName = text, parts[0]
		p.CreationTimestamp = metav1.NewTime(jobEpoch.Add(time.Duration(i) * time.Minute))
		podState(p, parts[2])
		list = append(list, p)
	}
	return newDaemonView(ds, "new", nodes, list, jobEpoch)
}

func shownDaemon(p daemonPlan) string {
	var out []string
	for _, n := range p.create {
		out = append(out, "+"+n)
	}
	for _, p := range p.delete {
		out = append(out, "-"+p.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestDaemonPlans(t *testing.T) {
	surge := func(ds *appsv1.DaemonSet) {
		ds.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromInt32(1))}
	}
	for _, c := range []struct {
		name         string
		change       func(*appsv1.DaemonSet)
		pods         string
		manage, roll string
	}{
		{"none yet", nil, "", "+a +b +c +d", ""},
		{"one each", nil, "a:new:ready b:new:ready c:new:ready d:new:ready", "", ""},
		{"the older of two stays", nil, "a:new:ready a:new:sick b:new:ready c:new:ready d:new:ready", "-a:new:sick", ""},
		{"what ended goes", nil, "a:new:failed b:new:done c:new:ready d:new:ready", "-a:new:failed -b:new:done", ""},
		{"only some nodes", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeSelector = map[string]string{"name": "c"} }, "a:new:ready", "+c -a:new:ready", ""},
		{"a node that is gone", nil, "a:new:ready b:new:ready c:new:ready d:new:ready x:new:pending", "", ""},
		{"one at a time", nil, "a:old:ready b:old:ready c:old:ready d:old:ready", "", "-a:old:ready"},
		{"the sick ones too", nil, "a:old:ready b:old:sick c:old:ready d:old:sick", "", "-b:old:sick -d:old:sick"},
		{"not while one is down", nil, "a:new:sick b:old:ready c:old:ready d:old:ready", "", ""},
		{"nor while one goes", nil, "a:old:going b:old:ready c:old:ready d:old:ready", "", ""},
		{"by percentage, up", func(ds *appsv1.DaemonSet) {
			ds.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(intstr.FromString("30%"))
		}, "a:old:ready b:old:ready c:old:ready d:old:ready", "", "-a:old:ready -b:old:ready"},
		{"beside the old", surge, "a:old:ready b:old:ready c:old:ready d:old:ready", "", "+a"},
		{"until the new is ready", surge, "a:old:ready a:new:sick b:old:ready c:old:ready d:old:ready", "", ""},
		{"then the old goes", surge, "a:old:ready a:new:ready b:old:ready c:old:ready d:old:ready", "-a:old:ready", "+b -a:old:ready"},
		{"sick ones are replaced beyond the surge", surge, "a:old:sick b:old:sick c:old:ready d:old:ready", "", "+a +b +c"},
	} {
		ds := daemonSet("agent", "v")
		if c.change != nil {
			c.change(ds)
		}
		v := daemonSnapshot(ds, c.pods)
		if got := shownDaemon(v.manage(&daemonFailures{})); got != c.manage {
			t.Errorf("%s: manages %q, want %q", c.name, got, c.manage)
		}
		if c.manage == "" || c.roll != "" {
			if got := shownDaemon(v.roll()); got != c.roll {
				t.Errorf("%s: rolls %q, want %q", c.name, got, c.roll)
			}
		}
	}
	waiting := daemonSnapshot(daemonSet("agent", "v"), "x:new:pending")
	waiting.pods["x"][0].Spec.NodeName = ""
	if got := shownDaemon(waiting.manage(&daemonFailures{})); got != "+a +b +c +d -x:new:pending" {
		t.Errorf("a pod that waits for a node that is gone: %q", got)
	}
}

func TestDaemonFit(t *testing.T) {
	ds := daemonSet("agent", "v")
	ds.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: "mine", Operator: corev1.TolerationOpExists}}
	for _, c := range []struct {
		taint       string
		effect      corev1.TaintEffect
		start, stay bool
	}{
		{"", "", true, true},
		{"x", corev1.TaintEffectPreferNoSchedule, true, true},
		{"x", corev1.TaintEffectNoSchedule, false, true},
		{"x", corev1.TaintEffectNoExecute, false, false},
		{"mine", corev1.TaintEffectNoExecute, true, true},
		{corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule, true, true},
		{corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute, true, true},
		{corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule, false, true},
		{corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule, true, true},
		{corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule, false, true},
	} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
		if c.taint != "" {
			n.Spec.Taints = []corev1.Taint{{Key: c.taint, Effect: c.effect}}
		}
		if start, stay := fitOf(ds).on(n); start != c.start || stay != c.stay {
			t.Errorf("%s:%s: %v, %v", c.taint, c.effect, start, stay)
		}
	}
	ds.Spec.Template.Spec.HostNetwork = true
	n := &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule}}}}
	if start, _ := fitOf(ds).on(n); !start {
		t.Error("a pod of the host's network waits for the network")
	}
	p := daemonPod(ds, "h", "n1")
	if name, ok := daemonNode(p); !ok || name != "n1" || p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] != "h" || p.Labels["pod-template-generation"] != "1" {
		t.Errorf("pod %+v", p)
	}
}

func TestDaemonFailures(t *testing.T) {
	f, ds := &daemonFailures{}, daemonSet("agent", "v")
	now := jobEpoch
	for _, c := range []struct {
		after, want time.Duration
	}{{0, 0}, {0, time.Second}, {time.Second, 0}, {time.Second, time.Second}, {time.Second, 0}, {time.Second, 3 * time.Second}, {time.Hour, 0}, {0, time.Second}} {
		now = now.Add(c.after)
		if got := f.next(ds, "n", now); got != c.want {
			t.Errorf("at %v: %v, want %v", now.Sub(jobEpoch), got, c.want)
		}
	}
	ds.Status.ObservedGeneration++
	if got := f.next(ds, "n", now); got != 0 {
		t.Errorf("a new template waits %v", got)
	}
}

// The names of revisions are upstream's: a kubeadm cluster's sets roll nothing when
// skiff takes over.
func TestRevisionNames(t *testing.T) {
	set := statefulSet("web", 1, "nginx")
	data, err := revisionData(&set.Spec.Template)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"image":"nginx","name":"c","resources":{}}]}}}}`
	if string(data) != want {
		t.Errorf("data is %s", data)
	}
	back, err := revisionTemplate(&appsv1.ControllerRevision{Data: runtime.RawExtension{Raw: data}}, nil)
	if err != nil || back.Spec.Containers[0].Image != "nginx" {
		t.Errorf("read back: %v, %v", back, err)
	}
	if a, b := revisionHash(data, 0), revisionHash(data, 1); a == b || len(a) == 0 {
		t.Errorf("hashes %q and %q", a, b)
	}
}

func TestStatefulSetMakesAndOwnsClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newStatefulSet(d)} })
		defer w.stop()
		w.kubelet(time.Second, newRand(1), nil)
		set := statefulSet("db", 3, "v")
		set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
		set.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType}
		w.api.Put(set)
		owners := func() string {
			var out []string
			for _, c := range list[*corev1.PersistentVolumeClaim](w, "ns") {
				text := c.Name
				for _, r := range c.OwnerReferences {
					text += " " + r.Kind
				}
				out = append(out, text)
			}
			slices.Sort(out)
			return strings.Join(out, ", ")
		}
		w.until("three with claims", func() bool {
			return len(live(w)) == 3 && owners() == "data-db-0 StatefulSet, data-db-1 StatefulSet, data-db-2 StatefulSet"
		})
		edit(w, "ns", "db", "", func(s *appsv1.StatefulSet) { *s.Spec.Replicas = 2 })
		w.until("a condemned pod's claim goes with it", func() bool {
			return len(live(w)) == 2 && owners() == "data-db-0 StatefulSet, data-db-1 StatefulSet, data-db-2 Pod"
		})
		edit(w, "ns", "db", "", func(s *appsv1.StatefulSet) {
			s.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
		})
		w.until("a new policy", func() bool { return owners() == "data-db-0, data-db-1, data-db-2 Pod" })
		claims := 0
		for _, e := range list[*corev1.Event](w, "ns") {
			if e.Reason == "SuccessfulCreate" && strings.HasPrefix(e.Message, "Create Claim data-db-") {
				claims++
			}
		}
		if claims != 3 {
			t.Errorf("%d events tell of claims", claims)
		}
	})
}
