package controller

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

func TestNodesGetTheirPartOfEachRange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := node("kept", "")
		kept.Spec.PodCIDR, kept.Spec.PodCIDRs = "10.244.0.0/24", []string{"10.244.0.0/24", "fd00:0:0:5::/64"}
		w := newWorld(t, func(d Deps) []*control.Controller {
			d.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22"), netip.MustParsePrefix("fd00::/56")}
			d.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
			return []*control.Controller{newNodeIPAM(d)}
		}, kept)
		defer w.stop()
		for i := range 3 {
			w.api.Put(node(fmt.Sprint("n", i), ""))
			time.Sleep(time.Second)
		}
		// Of four parts one is taken and one the services': two nodes get one.
		for name, want := range map[string]string{
			"kept": "[10.244.0.0/24 fd00:0:0:5::/64]",
			"n0":   "[10.244.2.0/24 fd00::/64]",
			"n1":   "[10.244.3.0/24 fd00:0:0:1::/64]",
			"n2":   "[]",
		} {
			n := get[*corev1.Node](w, "", name)
			if got := fmt.Sprint(n.Spec.PodCIDRs); got != want {
				t.Errorf("%s has %s, want %s", name, got, want)
			}
			if len(n.Spec.PodCIDRs) > 0 && n.Spec.PodCIDR != n.Spec.PodCIDRs[0] {
				t.Errorf("%s: podCIDR is %q", name, n.Spec.PodCIDR)
			}
		}
		told := false
		for _, e := range list[*corev1.Event](w, "") {
			told = told || e.Reason == "CIDRNotAvailable" && e.InvolvedObject.Name == "n2" && e.Source.Component == "cidrAllocator"
		}
		if !told {
			t.Error("no event tells that the range is used up")
		}
		if err := client.For[*corev1.Node](w.c).Delete(t.Context(), "n0", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("the part given back is given on", func() bool {
			n := get[*corev1.Node](w, "", "n2")
			return len(n.Spec.PodCIDRs) == 2 && n.Spec.PodCIDRs[0] == "10.244.2.0/24"
		})
	})
}

func TestManyNodesNeverShareAPart(t *testing.T) {
	p := newCIDRPool(netip.MustParsePrefix("10.0.0.0/12"), nil)
	seen := map[netip.Prefix]bool{}
	for i := range 4096 {
		part, ok := p.take(fmt.Sprint(i))
		if !ok || seen[part] || !p.cidr.Overlaps(part) || part.Bits() != 24 {
			t.Fatalf("part %d is %v, %v", i, part, ok)
		}
		seen[part] = true
	}
	if part, ok := p.take("one more"); ok {
		t.Fatalf("a used up pool gave %v", part)
	}
}
