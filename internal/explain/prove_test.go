package explain

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"skiff/internal/api/explanation"
	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/control"
	"skiff/internal/controller"
	"skiff/internal/scheduler"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// proveAll applies each proven remedy to a cluster of its own, in which the pod does
// not run before.
func proveAll(t *testing.T, w *World, p *corev1.Pod, e *explanation.Explanation) {
	t.Helper()
	m := newSim(w, p)
	var first []change
	if len(p.Spec.SchedulingGates) > 0 {
		first = []change{{key: "gates", edit: func(s *corev1.PodSpec) { s.SchedulingGates = nil }}}
	}
	var found []solution
	if _, ok := m.place(p, first); !ok {
		found = m.search(p, first, m.refusals(p, first))
	}
	proven := 0
	for i, r := range e.Remedies {
		if !r.Proven {
			continue
		}
		proven++
		t.Run(fmt.Sprintf("remedy %d", i), func(t *testing.T) {
			// What is not in the answer: the node that would join, the volume that an
			// administrator would make, the pod that would leave.
			var others []change
			if i < len(found) && len(r.Evicts) == 0 {
				others = found[i].changes
			}
			prove(t, w, p, r, others)
		})
	}
	if e.State == explanation.Failing && proven == 0 {
		t.Error("nothing is proposed that was proven")
	}
}

// specPatch is what a patch of a pod, or of the template that it is made from, does to
// its spec.
func specPatch(t *testing.T, c explanation.Change) json.RawMessage {
	t.Helper()
	var m struct {
		Spec json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(c.Patch, &m); err != nil {
		t.Fatal(err)
	}
	if c.Target.Kind == "Pod" {
		return m.Spec
	}
	var outer struct {
		Template struct {
			Spec json.RawMessage `json:"spec"`
		} `json:"template"`
	}
	if err := json.Unmarshal(m.Spec, &outer); err != nil {
		t.Fatal(err)
	}
	return outer.Template.Spec
}

func prove(t *testing.T, w *World, p *corev1.Pod, r explanation.Remedy, others []change) {
	t.Helper()
	var objects []client.Object
	for _, list := range w.byType {
		for _, o := range list {
			if _, event := o.(*corev1.Event); !event {
				objects = append(objects, o.DeepCopyObject().(client.Object))
			}
		}
	}
	api := clienttest.New(objects...)
	c := startCluster(t, api)
	c.wait(p, "is refused", func(now *corev1.Pod) bool {
		return now.Spec.NodeName != "" || len(p.Spec.SchedulingGates) > 0 || p.Spec.SchedulerName != corev1.DefaultSchedulerName ||
			condition(now, corev1.PodScheduled) == corev1.PodReasonUnschedulable
	})
	if now, _ := c.pods.Get(p.Namespace, p.Name); now.Spec.NodeName != "" {
		t.Fatalf("the pod runs on %s before the remedy", now.Spec.NodeName)
	}
	next := p.DeepCopy()
	next.Status = corev1.PodStatus{Phase: corev1.PodPending}
	for _, ch := range r.Changes {
		if ch.Target == nil || len(ch.Patch) == 0 || ch.Target.Kind == "Node" || ch.Target.Kind == "StorageClass" {
			continue
		}
		before, err := json.Marshal(next.Spec)
		if err != nil {
			t.Fatal(err)
		}
		after, err := strategicpatch.StrategicMergePatch(before, specPatch(t, ch), corev1.PodSpec{})
		if err != nil {
			t.Fatalf("patch %s: %v", ch.Patch, err)
		}
		next.Spec = corev1.PodSpec{}
		if err := json.Unmarshal(after, &next.Spec); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.Evicts) > 0 {
		// The priority admission plugin would write the number of the class.
		next.Spec.Priority = priorityOf(w, next.Spec.PriorityClassName)
	}
	for _, ch := range others {
		for _, n := range ch.nodes {
			api.Put(n.DeepCopy())
		}
		for _, o := range ch.pods {
			api.Put(o.DeepCopy())
		}
		for _, o := range ch.gone {
			remove(t, api, o)
		}
		for _, o := range ch.storage {
			if claim, ok := o.(*corev1.PersistentVolumeClaim); ok {
				remove(t, api, claim)
			}
			api.Put(o.DeepCopyObject().(client.Object))
		}
	}
	remove(t, api, p)
	next.UID, next.ResourceVersion = next.UID+"-again", ""
	api.Put(next)
	// Nodes come one after the other: a pod that is more important may find but this
	// one's place before the last has come. Who owns this one makes it anew.
	c.gone = func() {
		next = next.DeepCopy()
		next.UID, next.ResourceVersion = next.UID+"-again", ""
		api.Put(next)
	}
	c.wait(next, "runs", func(now *corev1.Pod) bool { return now.UID == next.UID && now.Spec.NodeName != "" })
	now, _ := c.pods.Get(p.Namespace, p.Name)
	if r.Node != "the new node" && len(r.Evicts) > 0 && now.Spec.NodeName != r.Node {
		t.Errorf("the pod runs on %s, said was %s", now.Spec.NodeName, r.Node)
	}
	for _, v := range r.Evicts {
		if _, there := c.pods.Get(v.Namespace, v.Name); there {
			t.Errorf("pod %s was not evicted", v.Name)
		}
	}
}

// remove takes an object out of the API at once.
func remove(t *testing.T, api *clienttest.API, o client.Object) {
	t.Helper()
	for _, k := range client.Kinds {
		if reflect.TypeOf(k.New()) == reflect.TypeOf(o) {
			ref := client.Ref{GVR: k.GVR, Namespace: o.GetNamespace(), Name: o.GetName()}
			if _, err := api.Delete(context.Background(), ref, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil && !apierrors.IsNotFound(err) {
				t.Error(err)
			}
		}
	}
}

func priorityOf(w *World, class string) *int32 {
	c, _ := get[*schedulingv1.PriorityClass](w, "", class)
	return &c.Value
}

func condition(p *corev1.Pod, kind corev1.PodConditionType) string {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Reason
		}
	}
	return ""
}

// running is a scheduler at work, with the controller that binds claims, one that
// makes volumes, and one that ends pods at once.
type running struct {
	t       *testing.T
	pods    *client.Informer[*corev1.Pod]
	changed chan struct{}
	gone    func() // the pod that is waited for is not there any more; may be nil
}

func startCluster(t *testing.T, api *clienttest.API) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log := slog.New(slog.DiscardHandler)
	c := api.Client()
	infs := client.NewInformers(c, log)
	r := &running{t: t, pods: client.InformerFor[*corev1.Pod](infs), changed: make(chan struct{}, 1)}
	note := func() {
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}
	r.pods.OnChange(func(ch client.Change[*corev1.Pod]) {
		note()
		if !ch.Deleted() && ch.New.DeletionTimestamp != nil {
			remove(t, api, ch.New) // a kubelet has ended it
		}
	})
	claims := client.InformerFor[*corev1.PersistentVolumeClaim](infs)
	classes := client.InformerFor[*storagev1.StorageClass](infs)
	claims.OnChange(func(ch client.Change[*corev1.PersistentVolumeClaim]) {
		if !ch.Deleted() {
			provision(api, classes, ch.New)
		}
	})
	sched, err := scheduler.New(scheduler.Deps{Client: c, Informers: infs, Log: log, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	deps := controller.Deps{Deps: control.Deps{Informers: infs, Log: log, Now: time.Now, ClientFor: func(string) *client.Client { return c }}}
	var binder []*control.Controller
	for _, ctl := range controller.All(deps) {
		if ctl.Name == "persistent-volume-binder" {
			binder = append(binder, ctl)
		}
	}
	if len(binder) != 1 {
		t.Fatal("there is no binder of claims")
	}
	done := make(chan error, 3)
	go func() { done <- infs.Run(ctx) }()
	go func() { done <- sched.Run(ctx) }()
	go func() { done <- control.Run(ctx, deps.Deps, binder) }()
	t.Cleanup(func() {
		cancel()
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// provision makes the volume of a claim that asks for one.
func provision(api *clienttest.API, classes *client.Informer[*storagev1.StorageClass], c *corev1.PersistentVolumeClaim) {
	class, ok := classes.Get("", storage.ClaimClass(c))
	if c.Annotations[storage.StorageProvisioner] == "" || c.Spec.VolumeName != "" || !ok {
		return
	}
	api.Put(&corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + string(c.UID), UID: types.UID("pv-" + c.UID), Annotations: map[string]string{storage.ProvisionedBy: class.Provisioner}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: c.Spec.Resources.Requests, AccessModes: c.Spec.AccessModes, StorageClassName: class.Name, ClaimRef: storage.Reference(c), VolumeMode: c.Spec.VolumeMode,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumePending},
	})
}

func (r *running) wait(p *corev1.Pod, what string, done func(*corev1.Pod) bool) {
	r.t.Helper()
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	for {
		now, ok := r.pods.Get(p.Namespace, p.Name)
		if ok && done(now) {
			return
		}
		if !ok && r.gone != nil {
			r.gone()
		}
		select {
		case <-r.changed:
		case <-late.C:
			r.t.Fatalf("it is not seen that pod %s %s: %+v", p.Name, what, now)
		}
	}
}
