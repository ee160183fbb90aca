package pod

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// affinity checks a pod's affinities, which may be nil.
func (c *check) affinity(p *field.Path, a *corev1.Affinity) {
	if a == nil {
		return
	}
	const required, preferred = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
	if n := a.NodeAffinity; n != nil {
		np := p.Child("nodeAffinity")
		if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
			c.nodeSelector(np.Child(required), r, c.badNodeAffinityValues)
		}
		for i, t := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			tp := np.Child(preferred).Index(i)
			c.weight(tp, t.Weight)
			// A preference with a bad value is one that no node meets.
			c.nodeTerm(tp.Child("preference"), t.Preference, true)
		}
	}
	pods := func(p *field.Path, must []corev1.PodAffinityTerm, may []corev1.WeightedPodAffinityTerm) {
		for i := range must {
			c.podTerm(p.Child(required).Index(i), &must[i])
		}
		for i := range may {
			tp := p.Child(preferred).Index(i)
			c.weight(tp, may[i].Weight)
			c.podTerm(tp.Child("podAffinityTerm"), &may[i].PodAffinityTerm)
		}
	}
	if n := a.PodAffinity; n != nil {
		pods(p.Child("podAffinity"), n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if n := a.PodAntiAffinity; n != nil {
		pods(p.Child("podAntiAffinity"), n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

func (c *check) weight(p *field.Path, w int32) {
	if w < 1 || w > 100 {
		c.invalid(p.Child("weight"), w, "must be in the range 1-100")
	}
}

// ValidateNodeSelector checks what selects nodes.
func ValidateNodeSelector(p *field.Path, s *corev1.NodeSelector) field.ErrorList {
	c := &check{}
	c.nodeSelector(p, s, false)
	return c.errs
}

func (c *check) nodeSelector(p *field.Path, s *corev1.NodeSelector, laxValues bool) {
	terms := p.Child("nodeSelectorTerms")
	if len(s.NodeSelectorTerms) == 0 {
		c.required(terms, "must have at least one node selector term")
	}
	for i, t := range s.NodeSelectorTerms {
		c.nodeTerm(terms.Index(i), t, laxValues)
	}
}

// nodeTerm checks a term that selects nodes; laxValues lets values that no label
// can have pass.
func (c *check) nodeTerm(p *field.Path, t corev1.NodeSelectorTerm, laxValues bool) {
	for i, r := range t.MatchExpressions {
		rp := p.Child("matchExpressions").Index(i)
		switch r.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(r.Values) == 0 {
				c.required(rp.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
			}
		case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				c.forbidden(rp.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
			}
		case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
			if len(r.Values) != 1 {
				c.required(rp.Child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'")
			}
		default:
			c.invalid(rp.Child("operator"), r.Operator, "not a valid selector operator")
		}
		c.add(metavalidation.ValidateLabelName(r.Key, rp.Child("key"))...)
		if laxValues {
			continue
		}
		for j, v := range r.Values {
			c.all(rp.Child("values").Index(j), v, validation.IsValidLabelValue(v))
		}
	}
	for i, r := range t.MatchFields {
		rp := p.Child("matchFields").Index(i)
		switch r.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(r.Values) != 1 {
				c.required(rp.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
			}
		default:
			c.invalid(rp.Child("operator"), r.Operator, "not a valid selector operator")
		}
		if r.Key != metav1.ObjectNameField {
			c.invalid(rp.Child("key"), r.Key, "not a valid field selector key")
			continue
		}
		for j, v := range r.Values {
			c.all(rp.Child("values").Index(j), v, resource.DNSSubdomain(v, false))
		}
	}
}

func badNodeAffinityValues(a *corev1.Affinity) bool {
	return a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil &&
		badTermValues(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms)
}

func badTermValues(terms []corev1.NodeSelectorTerm) bool {
	bad := func(v string) bool { return len(validation.IsValidLabelValue(v)) > 0 }
	return slices.ContainsFunc(terms, func(t corev1.NodeSelectorTerm) bool {
		return slices.ContainsFunc(t.MatchExpressions, func(r corev1.NodeSelectorRequirement) bool { return slices.ContainsFunc(r.Values, bad) })
	})
}

func (c *check) podTerm(p *field.Path, t *corev1.PodAffinityTerm) {
	c.podTermSelectors(p, t)
	for _, ns := range t.Namespaces {
		c.all(p.Child("namespace"), ns, resource.DNSLabel(ns, false))
	}
	c.labelKeys(p, t.MatchLabelKeys, t.MismatchLabelKeys, t.LabelSelector)
	if t.TopologyKey == "" {
		c.required(p.Child("topologyKey"), "can not be empty")
	}
	c.add(metavalidation.ValidateLabelName(t.TopologyKey, p.Child("topologyKey"))...)
}

func (c *check) podTermSelectors(p *field.Path, t *corev1.PodAffinityTerm) {
	c.selector(p.Child("labelSelector"), t.LabelSelector, c.badAffinityValues)
	c.selector(p.Child("namespaceSelector"), t.NamespaceSelector, c.badAffinityValues)
}

// affinitySelectors checks only the selectors, of every term.
func (c *check) affinitySelectors(a *corev1.Affinity) {
	if a == nil {
		return
	}
	each := func(must []corev1.PodAffinityTerm, may []corev1.WeightedPodAffinityTerm) {
		for i := range must {
			c.podTermSelectors(nil, &must[i])
		}
		for i := range may {
			c.podTermSelectors(nil, &may[i].PodAffinityTerm)
		}
	}
	if n := a.PodAffinity; n != nil {
		each(n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if n := a.PodAntiAffinity; n != nil {
		each(n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

// labelKeys checks the keys whose values are taken from the pod and merged into
// a selector. After the merge the selector has a key that stands in match: one
// more of the same key means that the client had set it too.
func (c *check) labelKeys(p *field.Path, match, mismatch []string, s *metav1.LabelSelector) {
	list := func(p *field.Path, keys []string) {
		if len(keys) > 0 && s == nil {
			c.forbidden(p, "must not be specified when labelSelector is not set")
			return
		}
		for i, k := range keys {
			c.add(metavalidation.ValidateLabelName(k, p.Index(i))...)
		}
	}
	list(p.Child("matchLabelKeys"), match)
	list(p.Child("mismatchLabelKeys"), mismatch)
	if s != nil {
		in := map[string]bool{}
		for k := range s.MatchLabels {
			in[k] = true
		}
		last := map[string]int{}
		for i, k := range match {
			last[k] = i
		}
		for _, e := range s.MatchExpressions {
			if i, ok := last[e.Key]; ok && in[e.Key] {
				c.invalid(p.Index(i), e.Key, "exists in both matchLabelKeys and labelSelector")
			}
			in[e.Key] = true
		}
	}
	for i, k := range match {
		if slices.Contains(mismatch, k) {
			c.invalid(p.Child("matchLabelKeys").Index(i), k, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
}

// spreadLabelKeys are the rules before keys were merged into the selector, which
// still hold for a pod that breaks the newer ones.
func (c *check) spreadLabelKeys(p *field.Path, keys []string, s *metav1.LabelSelector) {
	if len(keys) == 0 {
		return
	}
	in := map[string]bool{}
	if s == nil {
		c.forbidden(p, "must not be specified when labelSelector is not set")
	} else {
		for k := range s.MatchLabels {
			in[k] = true
		}
		for _, e := range s.MatchExpressions {
			in[e.Key] = true
		}
	}
	for i, k := range keys {
		c.add(metavalidation.ValidateLabelName(k, p.Index(i))...)
		if in[k] {
			c.invalid(p.Index(i), k, "exists in both matchLabelKeys and labelSelector")
		}
	}
}

func (c *check) spread(p *field.Path, list []corev1.TopologySpreadConstraint) {
	for i, s := range list {
		sp := p.Index(i)
		c.positive(sp.Child("maxSkew"), int64(s.MaxSkew))
		if s.TopologyKey == "" {
			c.required(sp.Child("topologyKey"), "can not be empty")
		}
		oneOf(c, sp.Child("whenUnsatisfiable"), s.WhenUnsatisfiable, corev1.DoNotSchedule, corev1.ScheduleAnyway)
		if slices.ContainsFunc(list[i+1:], func(o corev1.TopologySpreadConstraint) bool {
			return o.TopologyKey == s.TopologyKey && o.WhenUnsatisfiable == s.WhenUnsatisfiable
		}) {
			c.duplicate(sp.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", s.TopologyKey, s.WhenUnsatisfiable))
		}
		if m := s.MinDomains; m != nil {
			c.positive(sp.Child("minDomains"), int64(*m))
			if s.WhenUnsatisfiable != corev1.DoNotSchedule {
				c.invalid(sp.Child("minDomains"), m, fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, s.WhenUnsatisfiable))
			}
		}
		policy := func(p *field.Path, v *corev1.NodeInclusionPolicy) {
			if v != nil {
				oneOf(c, p, *v, corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore)
			}
		}
		policy(sp.Child("nodeAffinityPolicy"), s.NodeAffinityPolicy)
		policy(sp.Child("nodeTaintsPolicy"), s.NodeTaintsPolicy)
		merged := c.features.Enabled("MatchLabelKeysInPodTopologySpread") && c.features.Enabled("MatchLabelKeysInPodTopologySpreadSelectorMerge")
		if merged != c.badSpreadKeys {
			c.labelKeys(sp, s.MatchLabelKeys, nil, s.LabelSelector)
		} else {
			c.spreadLabelKeys(sp.Child("matchLabelKeys"), s.MatchLabelKeys, s.LabelSelector)
		}
		if !c.badSpreadSelector {
			c.selector(sp.Child("labelSelector"), s.LabelSelector, false)
		}
	}
}
