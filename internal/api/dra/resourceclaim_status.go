package dra

import (
	"slices"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/dra/rules"
	"skiff/internal/api/resource"
)

// device is one that was allocated, or a share of one. Messages show it.
type device struct{ Driver, Pool, Device, ShareID string }

func statusDevice(d resourcev1.AllocatedDeviceStatus) device {
	out := device{d.Driver, d.Pool, d.Device, ""}
	if d.ShareID != nil {
		out.ShareID = *d.ShareID
	}
	return out
}

func allocated(a *resourcev1.AllocationResult) sets.Set[device] {
	out := sets.New[device]()
	if a == nil {
		return out
	}
	for _, r := range a.Devices.Results {
		d := device{r.Driver, r.Pool, r.Device, ""}
		if r.ShareID != nil {
			d.ShareID = string(*r.ShareID)
		}
		out.Insert(d)
	}
	return out
}

func prepareClaimStatus(env resource.Env, c, old *claim) {
	c.Spec = *old.Spec.DeepCopy()
	metav1.ResetObjectMetaForStatus(&c.ObjectMeta, old.ObjectMeta.DeepCopy())
	if a := c.Status.Allocation; a != nil && !env.Features.Enabled("DRAOptionalNodeOperations") && !skipsUsed(old) {
		for i := range a.Devices.Results {
			a.Devices.Results[i].SkipNodeOperations = nil
		}
	}
	// What is said of devices goes with their allocation: clients that do not know
	// of it need not do it.
	gone := allocated(old.Status.Allocation).Difference(allocated(c.Status.Allocation))
	c.Status.Devices = slices.DeleteFunc(c.Status.Devices, func(d resourcev1.AllocatedDeviceStatus) bool { return gone.Has(statusDevice(d)) })
	if len(c.Status.Devices) == 0 {
		c.Status.Devices = nil
	}
}

func skipsUsed(c *claim) bool {
	return c.Status.Allocation != nil && slices.ContainsFunc(c.Status.Allocation.Devices.Results,
		func(r resourcev1.DeviceRequestAllocationResult) bool { return len(r.SkipNodeOperations) > 0 })
}

func validateClaimStatus(env resource.Env, cl, old *claim) field.ErrorList {
	c := &check{errs: resource.ValidateMetaUpdate(cl, old)}
	s, names := &cl.Status, requestsOf(&cl.Spec.Devices)
	rp := statusPath.Child("reservedFor")
	if within(len(s.ReservedFor), resourcev1.ResourceClaimReservedForMaxSize) {
		for i, r := range s.ReservedFor {
			for _, f := range []struct{ name, value string }{{"resource", r.Resource}, {"name", r.Name}, {"uid", string(r.UID)}} {
				if f.value == "" {
					c.required(rp.Index(i).Child(f.name), "")
				}
			}
		}
	}
	have := allocated(s.Allocation)
	for i := range s.Devices {
		c.deviceStatus(statusPath.Child("devices").Index(i), &s.Devices[i], have)
	}
	if len(s.ReservedFor) > 0 {
		if s.Allocation == nil {
			c.add(field.Forbidden(rp, "may not be specified when `allocated` is not set"))
		} else if cl.DeletionTimestamp != nil && len(sets.New(s.ReservedFor...).Difference(sets.New(old.Status.ReservedFor...))) > 0 {
			c.add(field.Forbidden(rp, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"))
		}
	}
	// An allocation does not change; whether it was right is asked once.
	if s.Allocation != nil && old.Status.Allocation == nil {
		c.allocation(statusPath.Child("allocation"), s.Allocation, names)
	}
	return append(c.errs, marked(env.Features, rules.Validate_ResourceClaim, cl, old)...)
}

func (c *check) allocation(p *field.Path, a *resourcev1.AllocationResult, names requests) {
	dp := p.Child("devices")
	if within(len(a.Devices.Results), resourcev1.AllocationResultsMaxSize) {
		for i, r := range a.Devices.Results {
			ip := dp.Child("results").Index(i)
			c.ref(ip.Child("request"), r.Request, names)
			c.label(ip.Child("device"), r.Device)
			c.bindings(ip, r.BindingConditions, r.BindingFailureConditions)
			for j, t := range r.Tolerations {
				c.toleration(ip.Child("tolerations").Index(j), t)
			}
		}
	}
	// Those of the class and those of the claim.
	if within(len(a.Devices.Config), 2*resourcev1.DeviceConfigMaxSize) {
		for i, g := range a.Devices.Config {
			gp := dp.Child("config").Index(i)
			c.refs(gp.Child("requests"), g.Requests, names)
			c.configuration(gp, g.DeviceConfiguration)
		}
	}
	if a.NodeSelector != nil {
		c.add(pod.ValidateNodeSelector(p.Child("nodeSelector"), a.NodeSelector)...)
	}
}

func (c *check) deviceStatus(p *field.Path, d *resourcev1.AllocatedDeviceStatus, have sets.Set[device]) {
	c.driver(p.Child("driver"), d.Driver)
	c.pool(p.Child("pool"), d.Pool)
	c.label(p.Child("device"), d.Device)
	if id := statusDevice(*d); !have.Has(id) {
		c.invalid(p, id, "must be an allocated device in the claim")
	}
	cp := p.Child("conditions")
	if n := len(d.Conditions); n > resourcev1.AllocatedDeviceStatusMaxConditions {
		c.add(field.TooMany(cp, n, resourcev1.AllocatedDeviceStatusMaxConditions))
	}
	c.add(metavalidation.ValidateConditions(d.Conditions, cp)...)
	if d.Data != nil && len(d.Data.Raw) > 0 {
		c.raw(p.Child("data"), *d.Data, resourcev1.AllocatedDeviceStatusDataMaxLength, false)
	}
	if n := d.NetworkData; n != nil && within(len(n.IPs), resourcev1.NetworkDeviceDataMaxIPs) {
		for i, ip := range n.IPs {
			c.add(validation.IsValidInterfaceAddress(p.Child("networkData", "ips").Index(i), ip)...)
		}
	}
}
