package controller

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

func claimTemplate(name string) *resourcev1.ResourceClaimTemplate {
	return &resourcev1.ResourceClaimTemplate{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: resourcev1.ResourceClaimTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "x"}},
			Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{
				Name: "gpu", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gpu", Count: 1},
			}}}},
		},
	}
}

func podWithTemplates(name string, refs ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("pod-" + name)}}
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "x"}}
	for _, r := range refs {
		p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, corev1.PodResourceClaim{Name: r, ResourceClaimTemplateName: ptr.To("template")})
	}
	return p
}

// allocateTo gives a claim a device for pods, as the scheduler does.
func allocateTo(w *world, claim string, pods ...*corev1.Pod) {
	edit(w, "ns", claim, "", func(c *resourcev1.ResourceClaim) {
		if !slices.Contains(c.Finalizers, resourcev1.Finalizer) {
			c.Finalizers = append(c.Finalizers, resourcev1.Finalizer)
		}
	})
	edit(w, "ns", claim, "status", func(c *resourcev1.ResourceClaim) {
		c.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{{
			Request: "gpu", Driver: "gpu.example.com", Pool: "node", Device: "d0",
		}}}}
		for _, p := range pods {
			c.Status.ReservedFor = append(c.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p.Name, UID: p.UID})
		}
	})
}

func claimControllers(d Deps) []*control.Controller {
	return []*control.Controller{newResourceClaim(d), newResourceClaimRelease(d)}
}

// Claims are made from templates, once, and named in the pod's status.
func TestClaimsComeFromTemplates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		long := strings.Repeat("p", 50)
		w := newWorld(t, claimControllers, podWithTemplates("p", "b", "a"), podWithTemplates(long, "a-claim-of-a-long-name"))
		defer w.stop()
		w.until("an event says what is missing", func() bool {
			return slices.ContainsFunc(list[*corev1.Event](w, "ns"), func(e *corev1.Event) bool {
				return e.Reason == "FailedResourceClaimCreation" && e.Source.Component == "resource_claim" &&
					e.Message == `PodResourceClaim b: resource claim template "template": resourceclaimtemplate.resource.k8s.io "template" not found`
			})
		})
		w.api.Put(claimTemplate("template"))
		w.until("the status names both claims", func() bool { return len(get[*corev1.Pod](w, "ns", "p").Status.ResourceClaimStatuses) == 2 })
		w.until("the status of the other pod names its claim", func() bool { return len(get[*corev1.Pod](w, "ns", long).Status.ResourceClaimStatuses) == 1 })
		if n := len(list[*resourcev1.ResourceClaim](w, "ns")); n != 3 {
			t.Errorf("%d claims, want 3", n)
		}
		p := get[*corev1.Pod](w, "ns", "p")
		for _, s := range p.Status.ResourceClaimStatuses {
			c := get[*resourcev1.ResourceClaim](w, "ns", *s.ResourceClaimName)
			if c.Annotations[resourcev1.PodResourceClaimAnnotation] != s.Name || !metav1.IsControlledBy(c, p) || c.Labels["app"] != "x" ||
				!strings.HasPrefix(c.Name, "p-"+s.Name+"-") || c.Spec.Devices.Requests[0].Name != "gpu" {
				t.Errorf("claim for %s: %+v", s.Name, c)
			}
		}
		c := *get[*corev1.Pod](w, "ns", long).Status.ResourceClaimStatuses[0].ResourceClaimName
		if !strings.HasPrefix(c, long[:50*57/74]+"-"+"a-claim-of-a-long-name"[:22*57/74]) || len(c) > 63 {
			t.Errorf("the claim of long names is called %q (%d)", c, len(c))
		}

		// A claim that goes away under the pod is made anew.
		name := *p.Status.ResourceClaimStatuses[0].ResourceClaimName
		if err := client.For[*resourcev1.ResourceClaim](w.c).In("ns").Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("another claim is named", func() bool {
			st := get[*corev1.Pod](w, "ns", "p").Status.ResourceClaimStatuses
			return len(st) == 2 && *st[0].ResourceClaimName != name
		})
	})
}

// What a pod does not need any more is given back: a claim made for it goes, one that
// others made is free.
func TestClaimsAreReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		named := func(name string) *corev1.Pod {
			p := podWithTemplates(name)
			p.Spec.NodeName = "n"
			p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimName: ptr.To("shared")}}
			return p
		}
		made, one, two := podWithTemplates("made", "gpu"), named("one"), named("two")
		shared := &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "shared", UID: "shared"}}
		w := newWorld(t, claimControllers, claimTemplate("template"), made, one, two, shared)
		defer w.stop()
		w.until("the claim is made", func() bool { return len(get[*corev1.Pod](w, "ns", "made").Status.ResourceClaimStatuses) == 1 })
		own := *get[*corev1.Pod](w, "ns", "made").Status.ResourceClaimStatuses[0].ResourceClaimName
		allocateTo(w, own, made)

		// A pod that was put on its node past the scheduler gets its reservation.
		allocateTo(w, "shared", one)
		claim := func() *resourcev1.ResourceClaim { return get[*resourcev1.ResourceClaim](w, "ns", "shared") }
		w.until("the claim is reserved for both", func() bool { return len(claim().Status.ReservedFor) == 2 })

		finish := func(name string) {
			edit(w, "ns", name, "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		}
		finish("one")
		w.until("one reservation is left", func() bool { return len(claim().Status.ReservedFor) == 1 })
		if c := claim(); c.Status.ReservedFor[0].Name != "two" || c.Status.Allocation == nil {
			t.Errorf("claim %+v", c.Status)
		}
		zero := int64(0)
		if err := client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), "two", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		w.until("the claim is free", func() bool {
			c := claim()
			return len(c.Status.ReservedFor) == 0 && c.Status.Allocation == nil && len(c.Finalizers) == 0
		})

		finish("made")
		w.until("the claim that was made is gone", func() bool { return len(list[*resourcev1.ResourceClaim](w, "ns")) == 1 })
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(list[*resourcev1.ResourceClaim](w, "ns")); n != 1 {
			t.Errorf("%d claims a minute later: one was made for a finished pod", n)
		}

		// An allocated claim that nobody uses goes when it is deleted.
		allocateTo(w, "shared")
		if err := client.For[*resourcev1.ResourceClaim](w.c).In("ns").Delete(t.Context(), "shared", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("the deleted claim is gone", func() bool { return len(list[*resourcev1.ResourceClaim](w, "ns")) == 0 })
	})
}

// Pods leave devices with a taint that they do not tolerate, when their time is up;
// rules say what they do.
func TestDeviceTaintEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := func(name string) (*corev1.Pod, *resourcev1.ResourceClaim) {
			p := podWithTemplates(name)
			p.Spec.NodeName = "n"
			p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimName: ptr.To("claim-" + name)}}
			return p, &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "claim-" + name, UID: types.UID("claim-" + name)}}
		}
		a, claimA := pod("a")
		b, claimB := pod("b")
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newDeviceTaintEviction(d)} }, a, claimA, b, claimB)
		defer w.stop()
		allocateTo(w, "claim-a", a)
		allocateTo(w, "claim-b", b)
		edit(w, "ns", "claim-b", "status", func(c *resourcev1.ResourceClaim) {
			c.Status.Allocation.Devices.Results[0].Tolerations = []resourcev1.DeviceToleration{{
				Operator: resourcev1.DeviceTolerationOpExists, Effect: resourcev1.DeviceTaintEffectNoExecute, TolerationSeconds: ptr.To[int64](60),
			}}
		})
		rule := &resourcev1.DeviceTaintRule{ObjectMeta: metav1.ObjectMeta{Name: "broken", UID: "rule", Generation: 1}, Spec: resourcev1.DeviceTaintRuleSpec{
			DeviceSelector: &resourcev1.DeviceTaintSelector{Driver: ptr.To("gpu.example.com")},
			Taint:          resourcev1.DeviceTaint{Key: "broken", Effect: resourcev1.DeviceTaintEffectNone, TimeAdded: ptr.To(metav1.Now())},
		}}
		w.api.Put(rule)
		condition := func(reason, message string) func() bool {
			return func() bool {
				c := get[*resourcev1.DeviceTaintRule](w, "", "broken").Status.Conditions
				return len(c) == 1 && c[0].Type == "EvictionInProgress" && c[0].Reason == reason && c[0].Message == message
			}
		}
		w.until("the rule says what it would do", condition("NoEffect", "0 published devices selected. 2 allocated devices selected. "+
			"2 pods would be evicted in 1 namespace if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update."))

		started := time.Now()
		edit(w, "", "broken", "", func(r *resourcev1.DeviceTaintRule) {
			r.Spec.Taint.Effect, r.Spec.Taint.TimeAdded = resourcev1.DeviceTaintEffectNoExecute, ptr.To(metav1.Now())
		})
		ending := func(name string) func() bool {
			return func() bool { return get[*corev1.Pod](w, "ns", name).DeletionTimestamp != nil }
		}
		w.until("the pod without toleration ends", ending("a"))
		if c := podCondition(get[*corev1.Pod](w, "ns", "a"), corev1.DisruptionTarget); c == nil || c.Reason != "DeletionByDeviceTaintManager" {
			t.Errorf("condition %+v", c)
		}
		if ending("b")() {
			t.Fatal("the pod that tolerates it for a minute ends at once")
		}
		w.until("the rule says what it does", condition("PodsPendingEviction", "1 pod needs to be evicted in 1 namespace. 1 pod evicted since starting the controller."))
		w.until("the other pod ends", ending("b"))
		if d := time.Since(started); d < 59*time.Second || d > 62*time.Second {
			t.Errorf("it ended after %v, want 60 s", d)
		}
		w.until("the rule is done", condition("Completed", "2 pods evicted since starting the controller."))
	})
}
