package networking

import (
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"skiff/internal/api/resource"
)

// NetworkPolicy declares networking.k8s.io/v1 networkpolicies.
func NetworkPolicy() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: networkingv1.SchemeGroupVersion, Kind: "NetworkPolicy", Plural: "networkpolicies", Singular: "networkpolicy",
		ShortNames: []string{"netpol"}, Namespaced: true, Prefix: "/registry/networkpolicies/",
		New:     func() resource.Object { return &networkingv1.NetworkPolicy{} },
		NewList: func() runtime.Object { return &networkingv1.NetworkPolicyList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Pod-Selector", "string", networkingv1.NetworkPolicySpec{}.SwaggerDoc()["podSelector"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*networkingv1.NetworkPolicy]{
		UnconditionalUpdate: true,
		Default:             defaultPolicy,
		PrepareCreate:       func(_ resource.Env, n *networkingv1.NetworkPolicy) { n.Generation = 1 },
		PrepareUpdate: func(_ resource.Env, n, old *networkingv1.NetworkPolicy) {
			// Upstream takes an empty list for another one than none.
			if !reflect.DeepEqual(n.Spec, old.Spec) {
				n.Generation = old.Generation + 1
			}
		},
		ValidateCreate: func(env resource.Env, n *networkingv1.NetworkPolicy) field.ErrorList {
			c := policyCheck{strict: env.Features.Enabled("StrictIPCIDRValidation")}
			return append(resource.ValidateMeta(n, true, resource.DNSSubdomain), c.spec(&n.Spec)...)
		},
		ValidateUpdate: func(env resource.Env, n, old *networkingv1.NetworkPolicy) field.ErrorList {
			c := policyCheck{strict: env.Features.Enabled("StrictIPCIDRValidation")}
			// What is stored already stays allowed.
			c.selectors.AllowInvalidLabelValueInSelector = len(metavalidation.ValidateLabelSelector(&old.Spec.PodSelector, c.selectors, nil)) > 0
			eachBlock(&old.Spec, func(_ *field.Path, b *networkingv1.IPBlock) {
				c.had = append(append(c.had, b.CIDR), b.Except...)
			})
			return append(resource.ValidateMetaUpdate(n, old), c.spec(&n.Spec)...)
		},
		Warnings: func(_ resource.Env, n, _ *networkingv1.NetworkPolicy) []string {
			var out []string
			eachBlock(&n.Spec, func(p *field.Path, b *networkingv1.IPBlock) {
				out = append(out, resource.WarnCIDR(p.Child("cidr"), b.CIDR)...)
				for i, e := range b.Except {
					out = append(out, resource.WarnCIDR(p.Child("except").Index(i), e)...)
				}
			})
			return out
		},
		Row: func(n *networkingv1.NetworkPolicy, now time.Time) []any {
			return []any{n.Name, metav1.FormatLabelSelector(&n.Spec.PodSelector), resource.Age(n.CreationTimestamp, now)}
		},
	})
}

func defaultPolicy(n *networkingv1.NetworkPolicy) {
	eachRule(&n.Spec, func(_ *field.Path, ports []networkingv1.NetworkPolicyPort, _ string, _ []networkingv1.NetworkPolicyPeer) {
		for i := range ports {
			if ports[i].Protocol == nil {
				tcp := corev1.ProtocolTCP
				ports[i].Protocol = &tcp
			}
		}
	})
	if len(n.Spec.PolicyTypes) == 0 {
		n.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(n.Spec.Egress) > 0 {
			n.Spec.PolicyTypes = append(n.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

// eachRule visits the rules of both directions: where each stands, its ports, and
// its peers with the name of their field.
func eachRule(s *networkingv1.NetworkPolicySpec, visit func(p *field.Path, ports []networkingv1.NetworkPolicyPort, name string, peers []networkingv1.NetworkPolicyPeer)) {
	for i, r := range s.Ingress {
		visit(field.NewPath("spec", "ingress").Index(i), r.Ports, "from", r.From)
	}
	for i, r := range s.Egress {
		visit(field.NewPath("spec", "egress").Index(i), r.Ports, "to", r.To)
	}
}

func eachBlock(s *networkingv1.NetworkPolicySpec, visit func(*field.Path, *networkingv1.IPBlock)) {
	eachRule(s, func(p *field.Path, _ []networkingv1.NetworkPolicyPort, name string, peers []networkingv1.NetworkPolicyPeer) {
		for i, peer := range peers {
			if peer.IPBlock != nil {
				visit(p.Child(name).Index(i).Child("ipBlock"), peer.IPBlock)
			}
		}
	})
}

// policyCheck collects the mistakes of a policy.
type policyCheck struct {
	strict    bool
	selectors metavalidation.LabelSelectorValidationOptions
	// had are the ranges of the old object, which are not judged again.
	had  []string
	errs field.ErrorList
}

func (c *policyCheck) add(errs ...*field.Error) { c.errs = append(c.errs, errs...) }

func (c *policyCheck) spec(s *networkingv1.NetworkPolicySpec) field.ErrorList {
	c.add(metavalidation.ValidateLabelSelector(&s.PodSelector, c.selectors, field.NewPath("spec", "podSelector"))...)
	eachRule(s, func(p *field.Path, ports []networkingv1.NetworkPolicyPort, name string, peers []networkingv1.NetworkPolicyPeer) {
		for i := range ports {
			c.port(p.Child("ports").Index(i), &ports[i])
		}
		for i := range peers {
			c.peer(p.Child(name).Index(i), &peers[i])
		}
	})
	c.types(field.NewPath("spec", "policyTypes"), s.PolicyTypes)
	// What markers on the type require comes last.
	eachBlock(s, func(p *field.Path, b *networkingv1.IPBlock) {
		if b.CIDR == "" {
			c.add(field.Required(p.Child("cidr"), ""))
		}
	})
	return c.errs
}

func (c *policyCheck) types(p *field.Path, types []networkingv1.PolicyType) {
	known := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	if len(types) > len(known) {
		c.add(field.Invalid(p, types, "may not specify more than two policyTypes"))
		return
	}
	for i, t := range types {
		if t != known[0] && t != known[1] {
			c.add(field.NotSupported(p.Index(i), t, known))
		}
	}
}

func (c *policyCheck) port(p *field.Path, port *networkingv1.NetworkPolicyPort) {
	if v := port.Protocol; v != nil && *v != corev1.ProtocolTCP && *v != corev1.ProtocolUDP && *v != corev1.ProtocolSCTP {
		c.add(field.NotSupported(p.Child("protocol"), *v, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}))
	}
	end := p.Child("endPort")
	switch {
	case port.Port == nil:
		if port.EndPort != nil {
			c.add(field.Invalid(end, *port.EndPort, "may not be specified when `port` is not specified"))
		}
	case port.Port.Type == intstr.Int:
		n := port.Port.IntVal
		c.add(resource.Invalid(p.Child("port"), n, validation.IsValidPortNum(int(n)))...)
		if port.EndPort != nil {
			if *port.EndPort < n {
				c.add(field.Invalid(end, *port.EndPort, "must be greater than or equal to `port`"))
			}
			c.add(resource.Invalid(end, *port.EndPort, validation.IsValidPortNum(int(*port.EndPort)))...)
		}
	default:
		if port.EndPort != nil {
			c.add(field.Invalid(end, *port.EndPort, "may not be specified when `port` is non-numeric"))
		}
		c.add(resource.Invalid(p.Child("port"), port.Port.StrVal, validation.IsValidPortName(port.Port.StrVal))...)
	}
}

func (c *policyCheck) peer(p *field.Path, peer *networkingv1.NetworkPolicyPeer) {
	if peer.PodSelector != nil {
		c.add(metavalidation.ValidateLabelSelector(peer.PodSelector, c.selectors, p.Child("podSelector"))...)
	}
	if peer.NamespaceSelector != nil {
		c.add(metavalidation.ValidateLabelSelector(peer.NamespaceSelector, c.selectors, p.Child("namespaceSelector"))...)
	}
	selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
	if peer.IPBlock != nil {
		c.block(p.Child("ipBlock"), peer.IPBlock)
		if selects {
			c.add(field.Forbidden(p, "may not specify both ipBlock and another peer"))
		}
	} else if !selects {
		c.add(field.Required(p, "must specify a peer"))
	}
}

func (c *policyCheck) block(p *field.Path, b *networkingv1.IPBlock) {
	if b.CIDR == "" {
		return // required, which is told last
	}
	c.add(validation.IsValidCIDRForLegacyField(p.Child("cidr"), b.CIDR, c.strict, c.had)...)
	_, whole, err := netutils.ParseCIDRSloppy(b.CIDR)
	if err != nil {
		return // told already
	}
	size, _ := whole.Mask.Size()
	for i, e := range b.Except {
		ep := p.Child("except").Index(i)
		c.add(validation.IsValidCIDRForLegacyField(ep, e, c.strict, c.had)...)
		_, part, err := netutils.ParseCIDRSloppy(e)
		if err != nil {
			continue
		}
		if n, _ := part.Mask.Size(); !whole.Contains(part.IP) || size >= n {
			c.add(field.Invalid(ep, e, "must be a strict subset of `cidr`"))
		}
	}
}
