package controller

import (
	"testing"
	"testing/synctest"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

func serviceRange(name string, cidrs ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
}

func address(ip, managedBy string) *networkingv1.IPAddress {
	return &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: ip, Labels: map[string]string{networkingv1.LabelManagedBy: managedBy, networkingv1.LabelIPAddressFamily: "IPv4"}},
		Spec:       networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: "web"}},
	}
}

func TestServiceRangesAreReadyAndHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(d Deps) []*control.Controller { return []*control.Controller{newServiceCIDR(d)} },
			serviceRange("kubernetes", "10.96.0.0/16"))
		defer w.stop()
		ready := func(name string, status metav1.ConditionStatus, reason, message string) {
			t.Helper()
			w.until(name+" says "+message, func() bool {
				c := apimeta.FindStatusCondition(get[*networkingv1.ServiceCIDR](w, "", name).Status.Conditions, "Ready")
				return c != nil && c.Status == status && c.Reason == reason && c.Message == message
			})
		}
		there := func(name string) bool {
			_, err := client.For[*networkingv1.ServiceCIDR](w.c).Get(t.Context(), name)
			if err != nil && !apierrors.IsNotFound(err) {
				t.Fatal(err)
			}
			return err == nil
		}
		remove := func(name string) {
			t.Helper()
			if err := client.For[*networkingv1.ServiceCIDR](w.c).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		const isReady, isUsed = "Kubernetes Service CIDR is ready", "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"
		ready("kubernetes", "True", "", isReady)
		w.api.Put(serviceRange("more", "10.97.0.0/24"))
		ready("more", "True", "", isReady)
		if f := get[*networkingv1.ServiceCIDR](w, "", "more").Finalizers; len(f) != 1 || f[0] != "networking.k8s.io/service-cidr-finalizer" {
			t.Errorf("finalizers are %v", f)
		}

		// An address keeps the range, one that somebody else manages does not.
		w.api.Put(address("10.97.0.5", "ipallocator.k8s.io"))
		w.api.Put(address("10.97.0.6", "somebody"))
		remove("more")
		ready("more", "False", "Terminating", isUsed)
		time.Sleep(time.Hour)
		if !there("more") {
			t.Fatal("a range went while an address of it was in use")
		}
		// When the address goes the range goes, long after its deletion.
		if err := client.For[*networkingv1.IPAddress](w.c).Delete(t.Context(), "10.97.0.5", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("the range is gone", func() bool { return !there("more") })

		// One without addresses goes when every server has heard of it.
		w.api.Put(serviceRange("idle", "10.98.0.0/24"))
		ready("idle", "True", "", isReady)
		remove("idle")
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if !there("idle") {
			t.Error("a range went before its time")
		}
		w.until("the idle range is gone", func() bool { return !there("idle") })

		// A larger range takes over the addresses of one that is to go.
		w.api.Put(serviceRange("part", "10.99.0.0/24"))
		w.api.Put(address("10.99.0.9", "ipallocator.k8s.io"))
		ready("part", "True", "", isReady)
		remove("part")
		ready("part", "False", "Terminating", isUsed)
		w.api.Put(serviceRange("whole", "10.99.0.0/16"))
		w.until("the part is gone", func() bool { return !there("part") })
		if !there("whole") || !there("kubernetes") {
			t.Error("a range that nobody deleted is gone")
		}
	})
}

func TestLastRangeOf(t *testing.T) {
	ip := []*networkingv1.IPAddress{address("10.0.1.5", allocatedBy)}
	r := serviceRange("r", "10.0.1.0/24")
	for _, tt := range []struct {
		what   string
		others []*networkingv1.ServiceCIDR
		want   string
	}{
		{"alone", nil, "10.0.1.5"},
		{"beside another", []*networkingv1.ServiceCIDR{serviceRange("o", "10.0.2.0/24")}, "10.0.1.5"},
		{"within another", []*networkingv1.ServiceCIDR{serviceRange("o", "10.0.0.0/16")}, ""},
		{"equal to another", []*networkingv1.ServiceCIDR{serviceRange("o", "10.0.1.0/24")}, ""},
		{"the address in a smaller one", []*networkingv1.ServiceCIDR{serviceRange("o", "10.0.1.0/28")}, ""},
		{"the address not in a smaller one", []*networkingv1.ServiceCIDR{serviceRange("o", "10.0.1.16/28")}, "10.0.1.5"},
	} {
		if got := lastRangeOf(r, append(tt.others, r), ip); got != tt.want {
			t.Errorf("%s: kept by %q, want %q", tt.what, got, tt.want)
		}
	}
}
