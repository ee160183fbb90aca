package dra

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// adminNamespace asks that a namespace lets its claims reach devices in use, as
// administrators do.
func adminNamespace(ctx context.Context, env resource.Env, p *field.Path, namespace string) field.ErrorList {
	ns, err := client.For[*corev1.Namespace](env.Client).Get(ctx, namespace)
	if err != nil {
		return field.ErrorList{field.InternalError(p, fmt.Errorf("could not retrieve namespace to verify admin access: %w", err))}
	}
	if ns.Labels[resourcev1.DRAAdminNamespaceLabelKey] != "true" {
		return field.ErrorList{field.Forbidden(p, fmt.Sprintf("admin access to devices requires the `%s: true` label on the containing namespace", resourcev1.DRAAdminNamespaceLabelKey))}
	}
	return nil
}

func isTrue(b *bool) bool { return b != nil && *b }

// checkAdminRequests: the first request for the access of an administrator needs a
// namespace for it.
func checkAdminRequests(ctx context.Context, env resource.Env, d *resourcev1.DeviceClaim, namespace string) field.ErrorList {
	i := slices.IndexFunc(d.Requests, func(r resourcev1.DeviceRequest) bool { return r.Exactly != nil && isTrue(r.Exactly.AdminAccess) })
	if i < 0 {
		return nil
	}
	return adminNamespace(ctx, env, specPath.Child("devices", "requests").Index(i).Child("adminAccess"), namespace)
}

// mayCreateClaim is asked once: the spec never changes.
func mayCreateClaim(ctx context.Context, env resource.Env, c, old *claim) field.ErrorList {
	if old != nil {
		return nil
	}
	return checkAdminRequests(ctx, env, &c.Spec.Devices, c.Namespace)
}

// mayWriteStatus asks for the right to write each part of a status: the scheduler
// binds claims, drivers report on their devices (KEP 4817).
func mayWriteStatus(ctx context.Context, env resource.Env, c, old *claim) field.ErrorList {
	var errs field.ErrorList
	s, was := &c.Status, &old.Status
	if i := adminResult(s.Allocation); i >= 0 && adminResult(was.Allocation) < 0 {
		errs = adminNamespace(ctx, env, statusPath.Child("allocation", "devices", "results").Index(i).Child("adminAccess"), c.Namespace)
	}
	if !equal(s.Allocation, was.Allocation) || !equal(s.ReservedFor, was.ReservedFor) {
		if refusal := holds(ctx, env, env.Verb, resourcev1.SubresourceBinding, "", ""); refusal != "" {
			errs = append(errs, field.Forbidden(statusPath.Child("allocation"),
				fmt.Sprintf(`changing status.allocation or status.reservedFor requires resource="resourceclaims/binding", verb="%s" permission: %s`, env.Verb, refusal)))
		}
	}
	if s.Allocation == nil {
		return errs
	}
	verbs := []string{resourcev1.VerbPrefixArbitraryNode + env.Verb}
	if onNode(env.User, s.Allocation) {
		verbs = slices.Insert(verbs, 0, resourcev1.VerbPrefixAssociatedNode+env.Verb)
	}
	for _, driver := range sets.List(changedDrivers(s.Devices, was.Devices)) {
		first := ""
		for i, v := range verbs {
			refusal := holds(ctx, env, v, resourcev1.SubresourceDriver, c.Namespace, driver)
			if refusal == "" {
				first = ""
				break
			}
			if i == 0 {
				first = refusal
			}
		}
		if first != "" {
			errs = append(errs, field.Forbidden(statusPath.Child("devices"),
				fmt.Sprintf(`changing status.devices requires resource="resourceclaims/driver", verb="%s" permission: %s`, verbs, first)))
		}
	}
	return errs
}

func adminResult(a *resourcev1.AllocationResult) int {
	if a == nil {
		return -1
	}
	return slices.IndexFunc(a.Devices.Results, func(r resourcev1.DeviceRequestAllocationResult) bool { return isTrue(r.AdminAccess) })
}

// holds returns why the user may not do something with a part of claims, in the
// words of a refusal; empty where it may.
func holds(ctx context.Context, env resource.Env, verb, part, namespace, name string) string {
	d, err := env.Authorize(ctx, resource.Attributes{
		User: env.User, Verb: verb, Group: resourcev1.GroupName, Version: resourcev1.SchemeGroupVersion.Version,
		Resource: "resourceclaims", Subresource: part, Namespace: namespace, Name: name,
	})
	if err == nil && d.Allowed {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "resourceclaims.%s", resourcev1.GroupName)
	if name != "" {
		fmt.Fprintf(&b, " %q", name)
	}
	fmt.Fprintf(&b, " is forbidden: User %q cannot %s resource \"resourceclaims/%s\" in API group %q", env.User.Name, verb, part, resourcev1.GroupName)
	if namespace != "" {
		fmt.Fprintf(&b, " in the namespace %q", namespace)
	} else {
		b.WriteString(" at the cluster scope")
	}
	if err != nil {
		fmt.Fprintf(&b, ": %v", err)
	}
	if d.Reason != "" {
		b.WriteString(": " + d.Reason)
	}
	return b.String()
}

// changedDrivers are the drivers of the devices of which anything else is said.
func changedDrivers(is, was []resourcev1.AllocatedDeviceStatus) sets.Set[string] {
	out, old := sets.New[string](), map[device]resourcev1.AllocatedDeviceStatus{}
	for _, d := range was {
		old[statusDevice(d)] = d
	}
	for _, d := range is {
		o, ok := old[statusDevice(d)]
		delete(old, statusDevice(d))
		if !ok || !equal(o, d) {
			out.Insert(d.Driver)
		}
	}
	for d := range old {
		out.Insert(d.Driver)
	}
	return out
}

// nodeNameExtra is where a service account's token says which node its pod is on.
const nodeNameExtra = "authentication.kubernetes.io/node-name"

// onNode tells whether the user is a pod on the one node that an allocation is for.
func onNode(u resource.User, a *resourcev1.AllocationResult) bool {
	if a.NodeSelector == nil || len(a.NodeSelector.NodeSelectorTerms) != 1 || !strings.HasPrefix(u.Name, "system:serviceaccount:") {
		return false
	}
	t := a.NodeSelector.NodeSelectorTerms[0]
	if len(t.MatchExpressions) > 0 || len(t.MatchFields) != 1 {
		return false
	}
	f, nodes := t.MatchFields[0], u.Extra[nodeNameExtra]
	return f.Key == "metadata.name" && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 && f.Values[0] != "" &&
		len(nodes) == 1 && nodes[0] == f.Values[0]
}
