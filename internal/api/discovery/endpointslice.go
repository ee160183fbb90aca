// Package discovery declares the resources of discovery.k8s.io.
package discovery

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"skiff/internal/api/resource"
)

// EndpointSlice declares discovery.k8s.io/v1 endpointslices.
func EndpointSlice() *resource.Resource {
	doc := discoveryv1.EndpointSlice{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: discoveryv1.SchemeGroupVersion, Kind: "EndpointSlice", Plural: "endpointslices", Singular: "endpointslice",
		Namespaced: true, Prefix: "/registry/endpointslices/",
		New:     func() resource.Object { return &discoveryv1.EndpointSlice{} },
		NewList: func() runtime.Object { return &discoveryv1.EndpointSliceList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("AddressType", "string", doc["addressType"], 0),
			resource.Column("Ports", "string", doc["ports"], 0),
			resource.Column("Endpoints", "string", doc["endpoints"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*discoveryv1.EndpointSlice]{
		UnconditionalUpdate: true,
		Default: func(s *discoveryv1.EndpointSlice) {
			for i := range s.Ports {
				p := &s.Ports[i]
				if p.Name == nil {
					p.Name = new("")
				}
				if p.Protocol == nil {
					p.Protocol = new(corev1.ProtocolTCP)
				}
			}
		},
		PrepareCreate: func(env resource.Env, s *discoveryv1.EndpointSlice) {
			s.Generation = 1
			dropNodeHints(env, s, nil)
			dropTopology(s, nil)
		},
		PrepareUpdate: func(env resource.Env, s, old *discoveryv1.EndpointSlice) {
			same := apiequality.Semantic.DeepEqual
			if !same(s.Labels, old.Labels) || s.AddressType != old.AddressType || !same(s.Endpoints, old.Endpoints) || !same(s.Ports, old.Ports) {
				s.Generation = old.Generation + 1
			}
			dropNodeHints(env, s, old)
			dropTopology(s, old)
		},
		ValidateCreate: func(env resource.Env, s *discoveryv1.EndpointSlice) field.ErrorList { return validate(env, s, nil) },
		ValidateUpdate: func(env resource.Env, s, old *discoveryv1.EndpointSlice) field.ErrorList {
			return validate(env, s, old)
		},
		Warnings: warnings,
		Row: func(s *discoveryv1.EndpointSlice, now time.Time) []any {
			var ports, addresses []string
			for _, p := range s.Ports {
				switch {
				case p.Port != nil:
					ports = append(ports, strconv.Itoa(int(*p.Port)))
				case p.Name != nil:
					ports = append(ports, *p.Name)
				default:
					ports = append(ports, "*")
				}
			}
			for _, e := range s.Endpoints {
				addresses = append(addresses, e.Addresses...)
			}
			return []any{s.Name, string(s.AddressType), firstThree(ports), firstThree(addresses), resource.Age(s.CreationTimestamp, now)}
		},
	})
}

func firstThree(list []string) string {
	const most = 3
	switch n := len(list); {
	case n == 0:
		return "<unset>"
	case n > most:
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:most], ","), n-most)
	}
	return strings.Join(list, ",")
}

// dropNodeHints takes hints for nodes out while their feature is off, unless the
// object had some.
func dropNodeHints(env resource.Env, s, old *discoveryv1.EndpointSlice) {
	if env.Features.Enabled("PreferSameTrafficDistribution") {
		return
	}
	has := func(e discoveryv1.Endpoint) bool { return e.Hints != nil && e.Hints.ForNodes != nil }
	if old != nil && slices.ContainsFunc(old.Endpoints, has) {
		return
	}
	for i := range s.Endpoints {
		if h := s.Endpoints[i].Hints; h != nil {
			h.ForNodes = nil
		}
	}
}

// dropTopology takes out what v1 does not write any more. A node that only the
// old topology named stays known by nodeName.
func dropTopology(s, old *discoveryv1.EndpointSlice) {
	if old != nil && apiequality.Semantic.DeepEqual(old.Endpoints, s.Endpoints) {
		return
	}
	had := map[string]bool{}
	if old != nil {
		for _, e := range old.Endpoints {
			had[e.DeprecatedTopology[corev1.LabelHostname]] = true
		}
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if n := e.DeprecatedTopology[corev1.LabelHostname]; n != "" && e.NodeName == nil && had[n] && len(resource.DNSSubdomain(n, false)) == 0 {
			e.NodeName = &n
		}
		e.DeprecatedTopology = nil
	}
}

func warnings(_ resource.Env, s, old *discoveryv1.EndpointSlice) []string {
	var out []string
	if old == nil && s.AddressType == discoveryv1.AddressTypeFQDN {
		out = append(out, "spec.addressType: FQDN endpoints are deprecated")
	}
	switch s.Labels[discoveryv1.LabelManagedBy] {
	case "endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io":
		return out // they write addresses in their usual form
	}
	for i, e := range s.Endpoints {
		for j, a := range e.Addresses {
			out = append(out, resource.WarnIP(field.NewPath("endpoints").Index(i).Child("addresses").Index(j), a)...)
		}
	}
	return out
}

// validate leaves endpoints alone that did not change: upstream once allowed
// more.
func validate(env resource.Env, s, old *discoveryv1.EndpointSlice) field.ErrorList {
	errs := resource.ValidateMeta(s, true, resource.DNSSubdomain)
	errs = append(errs, validatePorts(s.Ports)...)
	found, shape := validateEndpoints(env, s), validateShape(s, old)
	if len(found) > 0 && old != nil && apiequality.Semantic.DeepEqual(old.Endpoints, s.Endpoints) {
		found = nil
	}
	return append(append(errs, found...), shape...)
}

// validateShape holds the rules that upstream generates; they come last.
func validateShape(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	var errs field.ErrorList
	path, types := field.NewPath("addressType"), []discoveryv1.AddressType{discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	moved := old != nil && s.AddressType != old.AddressType
	if s.AddressType == "" {
		errs = append(errs, field.Required(path, ""))
	}
	if s.AddressType != "" && !slices.Contains(types, s.AddressType) {
		errs = append(errs, field.NotSupported(path, s.AddressType, types))
	}
	if moved {
		errs = append(errs, field.Invalid(path, nil, apivalidation.FieldImmutableErrorMsg))
	}
	if old != nil && apiequality.Semantic.DeepEqual(old.Endpoints, s.Endpoints) || len(s.Endpoints) > maxEndpoints {
		return errs
	}
	for i, e := range s.Endpoints {
		list := field.NewPath("endpoints").Index(i).Child("addresses")
		if n := len(e.Addresses); n == 0 {
			errs = append(errs, field.Required(list, ""))
		} else if n > maxAddresses {
			errs = append(errs, field.TooMany(list, n, maxAddresses))
		}
	}
	return errs
}

const (
	maxPorts     = 20000
	maxEndpoints = 1000
	maxAddresses = 100
	maxTopology  = 16
	maxHints     = 8
)

func validatePorts(ports []discoveryv1.EndpointPort) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("ports")
	if len(ports) > maxPorts {
		return append(errs, field.TooMany(path, len(ports), maxPorts))
	}
	protocols := []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}
	names := map[string]bool{}
	for i, p := range ports {
		path := path.Index(i)
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		if name != "" {
			errs = append(errs, resource.Invalid(path.Child("name"), name, validation.IsDNS1123Label(name))...)
		}
		if names[name] {
			errs = append(errs, field.Duplicate(path.Child("name"), name))
		}
		names[name] = true
		if p.Protocol == nil {
			errs = append(errs, field.Required(path.Child("protocol"), ""))
		} else if !slices.Contains(protocols, *p.Protocol) {
			errs = append(errs, field.NotSupported(path.Child("protocol"), *p.Protocol, protocols))
		}
		if p.AppProtocol != nil {
			errs = append(errs, resource.Invalid(path.Child("appProtocol"), *p.AppProtocol, validation.IsQualifiedName(*p.AppProtocol))...)
		}
	}
	return errs
}

func validateEndpoints(env resource.Env, s *discoveryv1.EndpointSlice) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("endpoints")
	if len(s.Endpoints) > maxEndpoints {
		return append(errs, field.TooMany(path, len(s.Endpoints), maxEndpoints))
	}
	for i := range s.Endpoints {
		e, path := &s.Endpoints[i], path.Index(i)
		list := path.Child("addresses")
		for j, a := range e.Addresses {
			errs = append(errs, validateAddress(env, s.AddressType, a, list, j)...)
		}
		if e.NodeName != nil {
			errs = append(errs, resource.Invalid(path.Child("nodeName"), *e.NodeName, resource.DNSSubdomain(*e.NodeName, false))...)
		}
		topology := path.Child("deprecatedTopology")
		if n := len(e.DeprecatedTopology); n > maxTopology {
			errs = append(errs, field.TooMany(topology, n, maxTopology))
		}
		errs = append(errs, metavalidation.ValidateLabels(e.DeprecatedTopology, topology)...)
		if _, ok := e.DeprecatedTopology[corev1.LabelTopologyZone]; ok {
			errs = append(errs, field.InternalError(topology.Key(corev1.LabelTopologyZone), fmt.Errorf("reserved key was not removed in conversion")))
		}
		if e.Hostname != nil {
			errs = append(errs, resource.Invalid(path.Child("hostname"), *e.Hostname, validation.IsDNS1123Label(*e.Hostname))...)
		}
		if e.Hints != nil {
			errs = append(errs, validateHints(e.Hints, path.Child("hints"))...)
		}
	}
	return errs
}

// validateAddress validates the address at list[j]; types that nobody knows are
// refused elsewhere.
func validateAddress(env resource.Env, t discoveryv1.AddressType, a string, list *field.Path, j int) field.ErrorList {
	path := list.Index(j)
	var errs field.ErrorList
	var fits bool
	switch t {
	case discoveryv1.AddressTypeIPv4:
		errs, fits = validation.IsValidIPForLegacyField(path, a, env.Features.Enabled("StrictIPCIDRValidation"), nil), netutils.IsIPv4String(a)
	case discoveryv1.AddressTypeIPv6:
		errs, fits = validation.IsValidIP(path, a), netutils.IsIPv6String(a)
	case discoveryv1.AddressTypeFQDN:
		return validation.IsFullyQualifiedDomainName(path, a)
	default:
		return nil
	}
	if len(errs) > 0 {
		return errs
	}
	if !fits {
		errs = append(errs, field.Invalid(list, a, fmt.Sprintf("must be an %s address", t)))
	}
	return append(errs, resource.ValidateEndpointIP(a, path)...)
}

func validateHints(h *discoveryv1.EndpointHints, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	zones, nodes := path.Child("forZones"), path.Child("forNodes")
	if n := len(h.ForZones); n > maxHints {
		return append(errs, field.TooMany(zones, n, maxHints))
	}
	seen := map[string]bool{}
	for i, z := range h.ForZones {
		path := zones.Index(i).Child("name")
		if seen[z.Name] {
			errs = append(errs, field.Duplicate(path, z.Name))
		}
		seen[z.Name] = true
		errs = append(errs, resource.Invalid(path, z.Name, validation.IsValidLabelValue(z.Name))...)
	}
	if n := len(h.ForNodes); n > maxHints {
		return append(errs, field.TooMany(nodes, n, maxHints))
	}
	seen = map[string]bool{}
	for i, n := range h.ForNodes {
		path := nodes.Index(i).Child("name")
		if seen[n.Name] {
			errs = append(errs, field.Duplicate(path, n.Name))
		}
		seen[n.Name] = true
		errs = append(errs, resource.Invalid(path, n.Name, resource.DNSSubdomain(n.Name, false))...)
	}
	return errs
}
