package networking

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"skiff/internal/api/resource"
)

// ingressCheck collects the mistakes of an Ingress.
type ingressCheck struct {
	// What older versions let through stays allowed where it is stored: names of
	// secrets, and the rules of hosts with a wildcard.
	anySecret, anyWildcardRule bool

	errs field.ErrorList
}

func (c *ingressCheck) add(errs ...*field.Error) { c.errs = append(c.errs, errs...) }

// validateIngress checks all but the change of metadata; old is nil on create.
func validateIngress(i, old *networkingv1.Ingress) field.ErrorList {
	c := &ingressCheck{}
	if old != nil {
		for _, t := range old.Spec.TLS {
			c.anySecret = c.anySecret || len(secretName(t.SecretName)) > 0
		}
		for _, r := range old.Spec.Rules {
			was := &ingressCheck{}
			was.http(nil, r.HTTP)
			c.anyWildcardRule = c.anyWildcardRule || strings.Contains(r.Host, "*") && len(was.errs) > 0
		}
	}
	c.spec(field.NewPath("spec"), &i.Spec)
	return append(resource.ValidateMeta(i, true, resource.DNSSubdomain), c.errs...)
}

func (c *ingressCheck) spec(p *field.Path, s *networkingv1.IngressSpec) {
	if len(s.Rules) == 0 && s.DefaultBackend == nil {
		c.add(field.Invalid(p, s.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if s.DefaultBackend != nil {
		c.backend(p.Child("defaultBackend"), s.DefaultBackend)
	}
	for i, r := range s.Rules {
		rp := p.Child("rules").Index(i)
		if r.Host != "" && netutils.ParseIPSloppy(r.Host) != nil {
			c.add(field.Invalid(rp.Child("host"), r.Host, "must be a DNS name, not an IP address"))
		}
		if r.Host != "" {
			c.host(rp.Child("host"), r.Host)
		}
		if !strings.Contains(r.Host, "*") || !c.anyWildcardRule {
			c.http(rp.Child("http"), r.HTTP)
		}
	}
	for i, t := range s.TLS {
		tp := p.Child("tls").Index(i)
		for j, h := range t.Hosts {
			c.host(tp.Child("hosts").Index(j), h)
		}
		if !c.anySecret {
			c.add(resource.Invalid(tp.Child("secretName"), t.SecretName, secretName(t.SecretName))...)
		}
	}
	if n := s.IngressClassName; n != nil {
		c.add(resource.Invalid(p.Child("ingressClassName"), *n, resource.DNSSubdomain(*n, false))...)
	}
}

// secretName is the rule of a Secret's name, which may be left out.
func secretName(name string) []string {
	if name == "" {
		return nil
	}
	return resource.DNSSubdomain(name, false)
}

func (c *ingressCheck) host(p *field.Path, host string) {
	rule := validation.IsDNS1123Subdomain
	if strings.Contains(host, "*") {
		rule = validation.IsWildcardDNS1123Subdomain
	}
	c.add(resource.Invalid(p, host, rule(host))...)
}

func (c *ingressCheck) http(p *field.Path, v *networkingv1.HTTPIngressRuleValue) {
	if v == nil {
		return
	}
	if len(v.Paths) == 0 {
		c.add(field.Required(p.Child("paths"), ""))
	}
	for i := range v.Paths {
		c.path(p.Child("paths").Index(i), &v.Paths[i])
	}
}

func (c *ingressCheck) path(p *field.Path, v *networkingv1.HTTPIngressPath) {
	if v.PathType == nil {
		c.add(field.Required(p.Child("pathType"), "pathType must be specified"))
		return
	}
	path := p.Child("path")
	refuse := func(bad bool, format string, args ...any) {
		if bad {
			c.add(field.Invalid(path, v.Path, fmt.Sprintf(format, args...)))
		}
	}
	relative := !strings.HasPrefix(v.Path, "/")
	switch *v.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		refuse(relative, "must be an absolute path")
		for _, s := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			refuse(strings.Contains(v.Path, s), "must not contain '%s'", s)
		}
		for _, s := range []string{"/..", "/."} {
			refuse(strings.HasSuffix(v.Path, s), "cannot end with '%s'", s)
		}
	case networkingv1.PathTypeImplementationSpecific:
		refuse(v.Path != "" && relative, "must be an absolute path")
	default:
		c.add(field.NotSupported(p.Child("pathType"), *v.PathType,
			[]networkingv1.PathType{networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix}))
	}
	c.backend(p.Child("backend"), &v.Backend)
}

func (c *ingressCheck) backend(p *field.Path, b *networkingv1.IngressBackend) {
	switch {
	case b.Resource != nil && b.Service != nil:
		c.add(field.Invalid(p, "", "cannot set both resource and service backends"))
	case b.Resource != nil:
		c.reference(p.Child("resource"), b.Resource)
	case b.Service != nil:
		c.service(p, b.Service)
	default:
		c.add(field.Invalid(p, "", "resource or service backend is required"))
	}
}

// service checks a backend at p that is a Service.
func (c *ingressCheck) service(p *field.Path, s *networkingv1.IngressServiceBackend) {
	sp := p.Child("service")
	if s.Name == "" {
		c.add(field.Required(sp.Child("name"), ""))
	} else {
		c.add(resource.Invalid(sp.Child("name"), s.Name, resource.DNSLabel(s.Name, false))...)
	}
	switch port := s.Port; {
	case port.Name != "" && port.Number != 0:
		c.add(field.Invalid(p, "", "cannot set both port name & port number"))
	case port.Name != "":
		c.add(resource.Invalid(sp.Child("port", "name"), port.Name, validation.IsValidPortName(port.Name))...)
	case port.Number != 0:
		c.add(resource.Invalid(sp.Child("port", "number"), port.Number, validation.IsValidPortNum(int(port.Number)))...)
	default:
		c.add(field.Required(p, "port name or number is required"))
	}
}

func (c *ingressCheck) reference(p *field.Path, r *corev1.TypedLocalObjectReference) {
	c.add(validateGroup(p, r.APIGroup)...)
	for _, f := range []struct{ name, value string }{{"kind", r.Kind}, {"name", r.Name}} {
		if f.value == "" {
			c.add(field.Required(p.Child(f.name), ""))
		}
		c.add(validateSegment(p.Child(f.name), f.value)...)
	}
}

func validateIngressStatus(env resource.Env, i, old *networkingv1.Ingress) field.ErrorList {
	var had []string
	for _, in := range old.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			had = append(had, in.IP)
		}
	}
	var errs field.ErrorList
	for n, in := range i.Status.LoadBalancer.Ingress {
		p := field.NewPath("status", "loadBalancer", "ingress").Index(n)
		if in.IP != "" {
			errs = append(errs, validation.IsValidIPForLegacyField(p.Child("ip"), in.IP, env.Features.Enabled("StrictIPCIDRValidation"), had)...)
		}
		if h := in.Hostname; h != "" {
			errs = append(errs, resource.Invalid(p.Child("hostname"), h, validation.IsDNS1123Subdomain(h))...)
			if netutils.ParseIPSloppy(h) != nil {
				errs = append(errs, field.Invalid(p.Child("hostname"), h, "must be a DNS name, not an IP address"))
			}
		}
	}
	return errs
}
