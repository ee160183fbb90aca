package controller

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}},
		Status:     corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
	}
}

func doomed(name string) *corev1.Namespace {
	ns := namespace(name)
	now := metav1.Now()
	ns.DeletionTimestamp = &now
	return ns
}

func nsCondition(ns *corev1.Namespace, t corev1.NamespaceConditionType) corev1.NamespaceCondition {
	for _, c := range ns.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return corev1.NamespaceCondition{}
}

func TestNamespaceIsEmptiedPodsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := webPod(0, true)
		pod.Spec.TerminationGracePeriodSeconds = new(int64)
		*pod.Spec.TerminationGracePeriodSeconds = 30
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "used-by-pod"}}
		held := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "held", Finalizers: []string{"example.com/hold"}}}
		elsewhere := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "stays"}}
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newNamespace(d)} },
			doomed("ns"), namespace("other"), pod, secret, held, elsewhere)
		defer w.stop()
		w.until("the pod terminates", func() bool { return get[*corev1.Pod](w, "ns", "web-000").DeletionTimestamp != nil })
		time.Sleep(3 * time.Second)
		if n := len(list[*corev1.Secret](w, "ns")); n != 1 {
			t.Error("the secret went before the pod that uses it")
		}
		ns := get[*corev1.Namespace](w, "", "ns")
		if ns.Status.Phase != corev1.NamespaceTerminating {
			t.Errorf("phase is %v", ns.Status.Phase)
		}
		if c := nsCondition(ns, corev1.NamespaceContentRemaining); c.Status != corev1.ConditionTrue || c.Reason != "SomeResourcesRemain" || c.Message != "Some resources are remaining: pods. has 1 resource instances" {
			t.Errorf("condition is %v", c)
		}
		zero := int64(0)
		if err := client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), "web-000", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		w.until("the secret goes", func() bool { return len(list[*corev1.Secret](w, "ns")) == 0 })
		if d := time.Since(start); d > time.Second {
			t.Errorf("the rest went %v after the last pod", d)
		}
		w.until("finalizers are reported", func() bool {
			c := nsCondition(get[*corev1.Namespace](w, "", "ns"), corev1.NamespaceFinalizersRemaining)
			return c.Status == corev1.ConditionTrue && c.Reason == "SomeFinalizersRemain" &&
				c.Message == "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
		})
		if len(get[*corev1.Namespace](w, "", "ns").Spec.Finalizers) == 0 {
			t.Error("finalized while content remains")
		}
		edit(w, "ns", "held", "", func(c *corev1.ConfigMap) { c.Finalizers = nil })
		w.until("finalized", func() bool { return len(get[*corev1.Namespace](w, "", "ns").Spec.Finalizers) == 0 })
		for _, c := range get[*corev1.Namespace](w, "", "ns").Status.Conditions {
			if c.Status != corev1.ConditionFalse {
				t.Errorf("condition is %v", c)
			}
		}
		if len(list[*corev1.Secret](w, "other")) != 1 || len(get[*corev1.Namespace](w, "", "other").Spec.Finalizers) != 1 {
			t.Error("another namespace was touched")
		}
	})
}

func TestNamespaceIsKeptWhileResourcesAreUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fail atomic.Bool
		fail.Store(true)
		w := newWorld(t, func(d Deps) []*control.Controller {
			all := d
			d.Resources = func(ctx context.Context) ([]Resource, error) {
				r, _ := all.resources(ctx)
				if fail.Load() {
					return r, errors.New("group example.com does not answer")
				}
				return r, nil
			}
			return []*control.Controller{newNamespace(d)}
		}, doomed("ns"))
		defer w.stop()
		time.Sleep(10 * time.Second)
		ns := get[*corev1.Namespace](w, "", "ns")
		if c := nsCondition(ns, corev1.NamespaceDeletionDiscoveryFailure); c.Status != corev1.ConditionTrue || c.Reason != "DiscoveryFailed" {
			t.Errorf("condition is %v", c)
		}
		if len(ns.Spec.Finalizers) == 0 {
			t.Error("finalized although content may remain")
		}
		fail.Store(false)
		w.until("finalized", func() bool { return len(get[*corev1.Namespace](w, "", "ns").Spec.Finalizers) == 0 })
	})
}

func TestNamespacesGetAccountAndCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(d Deps) []*control.Controller {
			d.RootCA = []byte("PEM")
			return []*control.Controller{newServiceAccount(d), newRootCA(d)}
		}, namespace("a"), doomed("going"))
		defer w.stop()
		ok := func(ns string) bool {
			sa := list[*corev1.ServiceAccount](w, ns)
			cm := list[*corev1.ConfigMap](w, ns)
			return len(sa) == 1 && sa[0].Name == "default" && len(cm) == 1 && cm[0].Name == "kube-root-ca.crt" && cm[0].Data["ca.crt"] == "PEM" &&
				cm[0].Annotations["kubernetes.io/description"] != ""
		}
		w.until("both exist", func() bool { return ok("a") })
		w.api.Put(namespace("b"))
		w.until("both exist in a new one", func() bool { return ok("b") })
		edit(w, "a", "kube-root-ca.crt", "", func(c *corev1.ConfigMap) { c.Data["ca.crt"] = "forged" })
		if err := client.For[*corev1.ServiceAccount](w.c).In("a").Delete(t.Context(), "default", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("both are restored", func() bool { return ok("a") })
		if err := client.For[*corev1.ConfigMap](w.c).In("a").Delete(t.Context(), "kube-root-ca.crt", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("the bundle is restored", func() bool { return ok("a") })
		if len(list[*corev1.ServiceAccount](w, "going"))+len(list[*corev1.ConfigMap](w, "going")) != 0 {
			t.Error("something was made in a namespace that is going")
		}
	})
}
