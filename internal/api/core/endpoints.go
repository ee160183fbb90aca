package core

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// endpoints spares the linter its word about the deprecated type everywhere.
type endpoints = corev1.Endpoints //nolint:staticcheck // served as upstream serves it

// Endpoints declares core/v1 endpoints.
func Endpoints() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "Endpoints", Plural: "endpoints", Singular: "endpoints",
		ShortNames: []string{"ep"}, Namespaced: true, Prefix: "/registry/services/endpoints/",
		Deprecated: "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
		New:        func() resource.Object { return &endpoints{} },
		NewList:    func() runtime.Object { return &corev1.EndpointsList{} }, //nolint:staticcheck // served as upstream serves it
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Endpoints", "string", endpoints{}.SwaggerDoc()["subsets"], 0),
			resource.AgeColumn(),
		},
	}, resource.StrategyOf[*endpoints]{
		CreateOnUpdate: true, UnconditionalUpdate: true,
		Default: func(e *endpoints) {
			for i := range e.Subsets {
				for j := range e.Subsets[i].Ports {
					if p := &e.Subsets[i].Ports[j]; p.Protocol == "" {
						p.Protocol = corev1.ProtocolTCP
					}
				}
			}
		},
		ValidateCreate: func(env resource.Env, e *endpoints) field.ErrorList { return validateEndpoints(env, e, nil) },
		ValidateUpdate: func(env resource.Env, e, old *endpoints) field.ErrorList {
			return append(resource.ValidateMetaUpdate(e, old), validateEndpoints(env, e, old)...)
		},
		Warnings: func(_ resource.Env, e, _ *endpoints) []string { return endpointsWarnings(e) },
		Row: func(e *endpoints, now time.Time) []any {
			return []any{e.Name, endpointsCell(e), resource.Age(e.CreationTimestamp, now)}
		},
	})
}

// validateEndpoints leaves subsets alone that did not change: upstream once
// allowed more.
func validateEndpoints(env resource.Env, e, old *endpoints) field.ErrorList {
	errs := resource.ValidateMeta(e, true, resource.DNSSubdomain)
	var found field.ErrorList
	for i := range e.Subsets {
		s, path := &e.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses) == 0 && len(s.NotReadyAddresses) == 0 {
			found = append(found, field.Required(path, "must specify `addresses` or `notReadyAddresses`"))
		}
		for j := range s.Addresses {
			found = append(found, validateEndpointAddress(env, &s.Addresses[j], path.Child("addresses").Index(j))...)
		}
		for j := range s.NotReadyAddresses {
			found = append(found, validateEndpointAddress(env, &s.NotReadyAddresses[j], path.Child("notReadyAddresses").Index(j))...)
		}
		for j := range s.Ports {
			found = append(found, validateEndpointPort(&s.Ports[j], len(s.Ports) > 1, path.Child("ports").Index(j))...)
		}
	}
	if len(found) > 0 && old != nil && equal(old.Subsets, e.Subsets) {
		return errs
	}
	return append(errs, found...)
}

func validateEndpointAddress(env resource.Env, a *corev1.EndpointAddress, path *field.Path) field.ErrorList { //nolint:staticcheck // served as upstream serves it
	errs := validation.IsValidIPForLegacyField(path.Child("ip"), a.IP, env.Features.Enabled("StrictIPCIDRValidation"), nil)
	if a.Hostname != "" {
		errs = append(errs, resource.Invalid(path.Child("hostname"), a.Hostname, validation.IsDNS1123Label(a.Hostname))...)
	}
	if a.NodeName != nil {
		errs = append(errs, resource.Invalid(path.Child("nodeName"), *a.NodeName, resource.DNSSubdomain(*a.NodeName, false))...)
	}
	return append(errs, resource.ValidateEndpointIP(a.IP, path.Child("ip"))...)
}

func validateEndpointPort(p *corev1.EndpointPort, named bool, path *field.Path) field.ErrorList { //nolint:staticcheck // served as upstream serves it
	var errs field.ErrorList
	if p.Name != "" {
		errs = append(errs, resource.Invalid(path.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))...)
	} else if named {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	errs = append(errs, resource.Invalid(path.Child("port"), p.Port, validation.IsValidPortNum(int(p.Port)))...)
	protocols := []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}
	if p.Protocol == "" {
		errs = append(errs, field.Required(path.Child("protocol"), ""))
	} else if !slices.Contains(protocols, p.Protocol) {
		errs = append(errs, field.NotSupported(path.Child("protocol"), p.Protocol, protocols))
	}
	if p.AppProtocol != nil {
		errs = append(errs, resource.Invalid(path.Child("appProtocol"), *p.AppProtocol, validation.IsQualifiedName(*p.AppProtocol))...)
	}
	return errs
}

func endpointsWarnings(e *endpoints) []string {
	// The controller writes addresses in their usual form.
	if e.Labels["endpoints.kubernetes.io/managed-by"] == "endpoint-controller" {
		return nil
	}
	var out []string
	for i, s := range e.Subsets {
		path := field.NewPath("subsets").Index(i)
		for j, a := range s.Addresses {
			out = append(out, resource.WarnIP(path.Child("addresses").Index(j).Child("ip"), a.IP)...)
		}
		for j, a := range s.NotReadyAddresses {
			out = append(out, resource.WarnIP(path.Child("notReadyAddresses").Index(j).Child("ip"), a.IP)...)
		}
	}
	return out
}

// endpointsCell shows the first three endpoints that are ready.
func endpointsCell(e *endpoints) string {
	if len(e.Subsets) == 0 {
		return "<none>"
	}
	const most = 3
	var shown []string
	n := 0
	put := func(text string) {
		if n++; n <= most {
			shown = append(shown, text)
		}
	}
	for _, s := range e.Subsets {
		for _, p := range s.Ports {
			for _, a := range s.Addresses {
				put(net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
			}
		}
		if len(s.Ports) == 0 {
			for _, a := range s.Addresses {
				put(a.IP)
			}
		}
	}
	out := strings.Join(shown, ",")
	if n > most {
		out += fmt.Sprintf(" + %d more...", n-most)
	}
	return out
}
