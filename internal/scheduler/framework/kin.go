package framework

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Kin is what label selectors see of a pod. Kins are interned: pods of the same
// namespace and labels share one.
type Kin struct {
	Namespace string
	Labels    labels.Set
}

// maxKins bounds the interned kins; beyond it all are forgotten, which costs
// their pods no more than being counted as strangers that look alike.
const maxKins = 100_000

func (c *Classes) kin(namespace string, set map[string]string, only map[string]bool) *Kin {
	var names [16]string
	keys := names[:0]
	for k := range set {
		if only == nil || only[k] {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	c.buf = appendString(c.buf[:0], namespace)
	for _, k := range keys {
		c.buf = appendString(appendString(c.buf, k), set[k])
	}
	if k, ok := c.kins[string(c.buf)]; ok {
		return k
	}
	if len(c.kins) >= maxKins {
		clear(c.kins)
	}
	k := &Kin{Namespace: namespace, Labels: make(labels.Set, len(keys))}
	for _, name := range keys {
		k.Labels[name] = set[name]
	}
	c.kins[string(c.buf)] = k
	return k
}

// Group is the pods that a pod without spread constraints is spread among: those
// of its services and its owner. Groups are interned.
type Group struct {
	Selector labels.Selector
	mentions map[string]bool
}

// Group returns the group that a selector stands for; nil for an empty one.
func (c *Classes) Group(s labels.Selector) *Group {
	if s == nil || s.Empty() {
		return nil
	}
	key := s.String()
	if g, ok := c.groups[key]; ok {
		return g
	}
	if len(c.groups) >= maxClasses {
		clear(c.groups)
	}
	g := &Group{Selector: s, mentions: map[string]bool{}}
	mention(g.mentions, s)
	c.groups[key] = g
	return g
}

// PodTerm is a term of pod affinity.
type PodTerm struct {
	Key string
	// Weight is 0 for a required term, positive for a preferred one, negative
	// for a preferred one of anti-affinity.
	Weight     int64
	namespaces map[string]bool
	any        labels.Selector // of namespaces
	selector   labels.Selector
}

// Matches tells whether a term selects pods of a kin; namespace are the labels of
// their namespace.
func (t *PodTerm) Matches(k *Kin, namespace labels.Set) bool {
	return (t.namespaces[k.Namespace] || t.any.Matches(namespace)) && t.selector.Matches(k.Labels)
}

// MaySelect tells whether a term selects pods of a kin if it selects their
// namespace by its labels, which the caller does not know.
func (t *PodTerm) MaySelect(k *Kin) bool {
	return (t.namespaces[k.Namespace] || !labelsNothing(t.any)) && t.selector.Matches(k.Labels)
}

func labelsNothing(s labels.Selector) bool {
	_, selectable := s.Requirements()
	return !selectable
}

// PodTerms are the terms of the pods of one class in one namespace. They are
// interned as long as their class is.
type PodTerms struct {
	// Near and Apart are required, of affinity and of anti-affinity.
	Near, Apart []*PodTerm
	Preferred   []*PodTerm
	// mentions are the labels that the terms look at.
	mentions map[string]bool
}

// termsIn returns the terms of the class's pods in a namespace, nil where there
// are none.
func (c *Class) termsIn(namespace string) *PodTerms {
	if c.terms == nil {
		return nil
	}
	if t, ok := c.terms[namespace]; ok {
		return t
	}
	t := podTerms(c.Template.Spec.Affinity, namespace)
	c.terms[namespace] = t
	return t
}

func podTerms(a *corev1.Affinity, namespace string) *PodTerms {
	out := &PodTerms{mentions: map[string]bool{}}
	add := func(to *[]*PodTerm, t *corev1.PodAffinityTerm, weight int64) {
		term := &PodTerm{Key: t.TopologyKey, Weight: weight, any: selectorOf(t.NamespaceSelector), selector: selectorOf(t.LabelSelector)}
		of := t.Namespaces
		if len(of) == 0 && t.NamespaceSelector == nil {
			of = []string{namespace}
		}
		term.namespaces = make(map[string]bool, len(of))
		for _, ns := range of {
			term.namespaces[ns] = true
		}
		mention(out.mentions, term.selector)
		*to = append(*to, term)
	}
	if p := a.PodAffinity; p != nil {
		for i := range p.RequiredDuringSchedulingIgnoredDuringExecution {
			add(&out.Near, &p.RequiredDuringSchedulingIgnoredDuringExecution[i], 0)
		}
		for i := range p.PreferredDuringSchedulingIgnoredDuringExecution {
			w := &p.PreferredDuringSchedulingIgnoredDuringExecution[i]
			add(&out.Preferred, &w.PodAffinityTerm, int64(w.Weight))
		}
	}
	if p := a.PodAntiAffinity; p != nil {
		for i := range p.RequiredDuringSchedulingIgnoredDuringExecution {
			add(&out.Apart, &p.RequiredDuringSchedulingIgnoredDuringExecution[i], 0)
		}
		for i := range p.PreferredDuringSchedulingIgnoredDuringExecution {
			w := &p.PreferredDuringSchedulingIgnoredDuringExecution[i]
			add(&out.Preferred, &w.PodAffinityTerm, -int64(w.Weight))
		}
	}
	return out
}

// selectorOf parses a selector. One that cannot be parsed selects nothing, as
// does none at all.
func selectorOf(s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return out
}

func mention(into map[string]bool, s labels.Selector) {
	requirements, _ := s.Requirements()
	for _, r := range requirements {
		into[r.Key()] = true
	}
}

// Spread is a topology spread constraint of a class.
type Spread struct {
	Key        string
	Required   bool // DoNotSchedule
	MaxSkew    int64
	MinDomains int
	// SkipAffinity and SkipTaints count nodes that the pod's node affinity, or
	// their taints, keep it from.
	SkipAffinity, SkipTaints bool
	// Selector is what the constraint says; SameAs are the labels whose values
	// must be the pod's own as well.
	Selector labels.Selector
	SameAs   []string
}

// SpreadsOf converts constraints; defaults that the API leaves to the scheduler are
// filled in.
func SpreadsOf(cs []corev1.TopologySpreadConstraint) []Spread {
	var out []Spread
	for i := range cs {
		c := &cs[i]
		s := Spread{
			Key: c.TopologyKey, Required: c.WhenUnsatisfiable == corev1.DoNotSchedule, MaxSkew: int64(c.MaxSkew), MinDomains: 1,
			SkipAffinity: c.NodeAffinityPolicy != nil && *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyIgnore,
			SkipTaints:   c.NodeTaintsPolicy == nil || *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyIgnore,
			Selector:     selectorOf(c.LabelSelector), SameAs: c.MatchLabelKeys,
		}
		if c.MinDomains != nil {
			s.MinDomains = int(*c.MinDomains)
		}
		out = append(out, s)
	}
	return out
}

// mentioned returns the labels of its own that decide where a pod of the class may go.
func (c *Class) mentioned() map[string]bool {
	out := map[string]bool{}
	for i := range c.Spreads {
		mention(out, c.Spreads[i].Selector)
		for _, k := range c.Spreads[i].SameAs {
			out[k] = true
		}
	}
	if c.terms != nil {
		for k := range podTerms(c.Template.Spec.Affinity, "").mentions {
			out[k] = true
		}
	}
	return out
}

// Subject is what pods have in common that are alike to every plugin, those
// included that look at other pods.
type Subject struct {
	*Class
	// Kin has the labels alone that a selector somewhere asks for; nil where
	// none does.
	Kin   *Kin
	Terms *PodTerms
	Group *Group
}

// Subject returns what p is to the plugins in s, as a value that is the same for
// pods that are alike.
func (s *Snapshot) Subject(p *Pod) Subject {
	out := Subject{Class: p.Class, Terms: p.Terms, Group: p.Group}
	if p.Terms == nil && p.Group == nil && len(p.Class.Spreads) == 0 && len(s.terms) == 0 {
		return out
	}
	if p.asked != nil && p.askedAt == s.termsVersion && p.askedOf == s && p.askedFor == p.Group {
		out.Kin = p.asked
		return out
	}
	if s.mentions == nil {
		s.mentions = map[string]bool{}
		for t := range s.terms {
			for k := range t.mentions {
				s.mentions[k] = true
			}
		}
	}
	only := union(s.mentions, p.Class.mentions)
	if p.Group != nil {
		only = union(only, p.Group.mentions)
	}
	out.Kin = p.classes.kin(p.Namespace, p.Labels, only)
	p.asked, p.askedAt, p.askedOf, p.askedFor = out.Kin, s.termsVersion, s, p.Group
	return out
}

// union returns one of two sets where it has all of the other.
func union(a, b map[string]bool) map[string]bool {
	if len(a) < len(b) {
		a, b = b, a
	}
	for k := range b {
		if a[k] {
			continue
		}
		both := make(map[string]bool, len(a)+len(b))
		maps.Copy(both, a)
		maps.Copy(both, b)
		return both
	}
	return a
}
