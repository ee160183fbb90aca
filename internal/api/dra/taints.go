package dra

import (
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/utils/ptr"
)

// Tainted returns a slice whose devices have the taints of the rules that select
// them beside their own; s itself where no rule does. A rule without a selector
// selects nothing (KEP-5055).
func Tainted(s *resourcev1.ResourceSlice, rules []*resourcev1.DeviceTaintRule) *resourcev1.ResourceSlice {
	out := s
	for _, rule := range rules {
		sel := rule.Spec.DeviceSelector
		if sel == nil || ptr.Deref(sel.Driver, s.Spec.Driver) != s.Spec.Driver || ptr.Deref(sel.Pool, s.Spec.Pool.Name) != s.Spec.Pool.Name {
			continue
		}
		for i := range s.Spec.Devices {
			if ptr.Deref(sel.Device, s.Spec.Devices[i].Name) != s.Spec.Devices[i].Name {
				continue
			}
			if out == s {
				out = s.DeepCopy()
			}
			out.Spec.Devices[i].Taints = append(out.Spec.Devices[i].Taints, rule.Spec.Taint)
		}
	}
	return out
}
