package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	serviceCIDRFinalizer = "networking.k8s.io/service-cidr-finalizer"
	// allocatedBy is the managed-by label of addresses that services were given.
	allocatedBy = "ipallocator.k8s.io"
	// cidrSettle is how long after its deletion a range goes at the earliest: API
	// servers that have not heard of the deletion give out addresses of it.
	cidrSettle = 10 * time.Second
)

// serviceCIDRs says which ranges of services are ready, and keeps those that are
// deleted while addresses have no other range (KEP-1880). Keys are ServiceCIDRs.
type serviceCIDRs struct {
	*control.Controller
	now       func() time.Time
	ranges    *client.Informer[*networkingv1.ServiceCIDR]
	addresses *client.Informer[*networkingv1.IPAddress]
}

func newServiceCIDR(d Deps) *control.Controller {
	c := control.New("service-cidrs-controller", d.Deps)
	s := &serviceCIDRs{Controller: c, now: d.Clock()}
	s.ranges = control.Watch(c, func(ch client.Change[*networkingv1.ServiceCIDR]) {
		c.Queue.Add(control.KeyOf(ch.Object()))
		if ch.Deleted() || ch.Old != nil {
			return
		}
		// A new range may free one that waits to go.
		for _, p := range prefixes(ch.New) {
			s.wake(func(q netip.Prefix) bool { return q.Overlaps(p) })
		}
	})
	s.addresses = control.Watch(c, func(ch client.Change[*networkingv1.IPAddress]) {
		o := ch.Object()
		ip, err := netip.ParseAddr(o.Name)
		if err != nil || o.Labels[networkingv1.LabelManagedBy] != allocatedBy || ch.Old != nil && !ch.Deleted() {
			return
		}
		s.wake(func(q netip.Prefix) bool { return q.Contains(ip) })
	})
	c.Writes = append(c.Writes,
		control.Rule(networkingv1.GroupName, []string{"servicecidrs", "servicecidrs/finalizers"}, "patch", "update"),
		control.Rule(networkingv1.GroupName, []string{"servicecidrs/status"}, "patch", "update"))
	c.Reconcile = s.reconcile
	return c
}

// wake looks again at the ranges that have a part that fits.
func (s *serviceCIDRs) wake(fits func(netip.Prefix) bool) {
	for r := range s.ranges.All() {
		if slices.ContainsFunc(prefixes(r), fits) {
			s.Queue.Add(control.KeyOf(r))
		}
	}
}

func prefixes(r *networkingv1.ServiceCIDR) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range r.Spec.CIDRs {
		if p, err := netip.ParsePrefix(c); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

func (s *serviceCIDRs) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	r, ok := s.ranges.Get("", k.Name)
	if !ok {
		return control.Result{}, nil
	}
	if r.DeletionTimestamp == nil {
		if !slices.Contains(r.Finalizers, serviceCIDRFinalizer) {
			if err := s.patchFinalizers(ctx, k, map[string]any{"finalizers": []string{serviceCIDRFinalizer}}); err != nil {
				return control.Result{}, err
			}
		}
		err := s.setReady(ctx, k, r, metav1.ConditionTrue, "", "Kubernetes Service CIDR is ready")
		if err != nil {
			s.Events.Event(r, corev1.EventTypeWarning, "KubernetesServiceCIDRError", "The ServiceCIDR Status can not be set to Ready=True")
		}
		return control.Result{}, err
	}
	if ip := lastRangeOf(r, slices.Collect(s.ranges.All()), slices.Collect(s.addresses.All())); ip != "" {
		s.Log.Info("range of services is still used", "range", k.Name, "address", ip)
		return control.Result{}, s.setReady(ctx, k, r, metav1.ConditionFalse, networkingv1.ServiceCIDRReasonTerminating,
			"There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR")
	}
	if wait := r.DeletionTimestamp.Add(cidrSettle).Sub(s.now()); wait > 0 {
		return control.Result{After: wait}, nil
	}
	if !slices.Contains(r.Finalizers, serviceCIDRFinalizer) {
		return control.Result{}, nil
	}
	return control.Result{}, s.patchFinalizers(ctx, k, map[string]any{"$deleteFromPrimitiveList/finalizers": []string{serviceCIDRFinalizer}})
}

// lastRangeOf returns an address in use that no other range than r has; empty where
// r can go.
func lastRangeOf(r *networkingv1.ServiceCIDR, all []*networkingv1.ServiceCIDR, addresses []*networkingv1.IPAddress) string {
	others := func(fits func(netip.Prefix) bool) bool {
		return slices.ContainsFunc(all, func(o *networkingv1.ServiceCIDR) bool {
			return o.Name != r.Name && slices.ContainsFunc(prefixes(o), fits)
		})
	}
	within := true
	for _, p := range prefixes(r) {
		within = within && others(func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
	}
	if within {
		return ""
	}
	for _, a := range addresses {
		ip, err := netip.ParseAddr(a.Name)
		if err != nil || a.Labels[networkingv1.LabelManagedBy] != allocatedBy {
			continue
		}
		has := func(p netip.Prefix) bool { return p.Contains(ip) }
		if slices.ContainsFunc(prefixes(r), has) && !others(has) {
			return a.Name
		}
	}
	return ""
}

func (s *serviceCIDRs) patchFinalizers(ctx context.Context, k control.Key, meta map[string]any) error {
	patch, err := json.Marshal(map[string]any{"metadata": meta})
	if err != nil {
		return err
	}
	got, err := client.For[*networkingv1.ServiceCIDR](s.Client).Patch(ctx, k.Name, types.StrategicMergePatchType, patch, "")
	if err != nil {
		return ignoreGone(err)
	}
	control.Wrote(s.Pending, k, s.ranges, got)
	return nil
}

// setReady applies the condition Ready unless it says so already.
func (s *serviceCIDRs) setReady(ctx context.Context, k control.Key, r *networkingv1.ServiceCIDR, status metav1.ConditionStatus, reason, message string) error {
	now := apimeta.FindStatusCondition(r.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
	if now != nil && now.Status == status && now.Reason == reason && now.Message == message {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"apiVersion": networkingv1.SchemeGroupVersion.String(), "kind": "ServiceCIDR", "metadata": map[string]any{"name": k.Name},
		"status": map[string]any{"conditions": []metav1.Condition{{
			Type: networkingv1.ServiceCIDRConditionReady, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(s.now()),
		}}},
	})
	if err != nil {
		return err
	}
	got, err := client.For[*networkingv1.ServiceCIDR](s.Client).Patch(ctx, k.Name, types.ApplyPatchType, patch, "status")
	if err != nil {
		return fmt.Errorf("condition of range %s: %w", k.Name, err)
	}
	control.Wrote(s.Pending, k, s.ranges, got)
	return nil
}
