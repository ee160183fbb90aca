package networking

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// IngressClassAnnotation named the class of an Ingress before
// spec.ingressClassName did.
const IngressClassAnnotation = "kubernetes.io/ingress.class"

// Ingress declares networking.k8s.io/v1 ingresses.
func Ingress() *resource.Resource {
	status := resource.StatusOf(resource.StrategyOf[*networkingv1.Ingress]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"spec"},
		PrepareUpdate: func(_ resource.Env, i, old *networkingv1.Ingress) {
			i.Spec = *old.Spec.DeepCopy()
		},
		ValidateUpdate: func(env resource.Env, i, old *networkingv1.Ingress) field.ErrorList {
			return append(resource.ValidateMetaUpdate(i, old), validateIngressStatus(env, i, old)...)
		},
		Warnings: func(_ resource.Env, i, _ *networkingv1.Ingress) []string {
			var out []string
			for n, in := range i.Status.LoadBalancer.Ingress {
				out = append(out, resource.WarnIP(field.NewPath("status", "loadBalancer", "ingress").Index(n), in.IP)...)
			}
			return out
		},
	})
	return resource.Define(resource.Resource{
		GroupVersion: networkingv1.SchemeGroupVersion, Kind: "Ingress", Plural: "ingresses", Singular: "ingress",
		ShortNames: []string{"ing"}, Namespaced: true, Prefix: "/registry/ingress/",
		New:     func() resource.Object { return &networkingv1.Ingress{} },
		NewList: func() runtime.Object { return &networkingv1.IngressList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Class", "string", "The name of the IngressClass resource that should be used for additional configuration", 0),
			resource.Column("Hosts", "string", "Hosts that incoming requests are matched against before the ingress rule", 0),
			resource.Column("Address", "string", "Address is a list containing ingress points for the load-balancer", 0),
			resource.Column("Ports", "string", "Ports of TLS configurations that open", 0),
			resource.AgeColumn(),
		},
		Subresources: []resource.Subresource{status},
	}, resource.StrategyOf[*networkingv1.Ingress]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(_ resource.Env, i *networkingv1.Ingress) {
			i.Status, i.Generation = networkingv1.IngressStatus{}, 1
		},
		PrepareUpdate: func(_ resource.Env, i, old *networkingv1.Ingress) {
			i.Status = *old.Status.DeepCopy()
			if !apiequality.Semantic.DeepEqual(i.Spec, old.Spec) {
				i.Generation = old.Generation + 1
			}
		},
		ValidateCreate: func(_ resource.Env, i *networkingv1.Ingress) field.ErrorList {
			errs := validateIngress(i, nil)
			class, annotated := i.Annotations[IngressClassAnnotation]
			if annotated && i.Spec.IngressClassName != nil && class != *i.Spec.IngressClassName {
				errs = append(errs, field.Invalid(field.NewPath("annotations").Child(IngressClassAnnotation), class,
					"must match `ingressClassName` when both are specified"))
			}
			return errs
		},
		ValidateUpdate: func(_ resource.Env, i, old *networkingv1.Ingress) field.ErrorList {
			return append(resource.ValidateMetaUpdate(i, old), validateIngress(i, old)...)
		},
		Warnings: func(_ resource.Env, i, old *networkingv1.Ingress) []string {
			if _, annotated := i.Annotations[IngressClassAnnotation]; old == nil && annotated && i.Spec.IngressClassName == nil {
				return []string{fmt.Sprintf("annotation %q is deprecated, please use 'spec.ingressClassName' instead", IngressClassAnnotation)}
			}
			return nil
		},
		Row: func(i *networkingv1.Ingress, now time.Time) []any {
			class, ports := "<none>", "80"
			if i.Spec.IngressClassName != nil {
				class = *i.Spec.IngressClassName
			}
			if len(i.Spec.TLS) > 0 {
				ports = "80, 443"
			}
			return []any{i.Name, class, hostsCell(i.Spec.Rules), addressCell(i.Status.LoadBalancer.Ingress), ports, resource.Age(i.CreationTimestamp, now)}
		},
	})
}

// hostsCell shows the first three hosts. How many more there are counts rules, of
// which some have no host.
func hostsCell(rules []networkingv1.IngressRule) string {
	const most = 3
	var hosts []string
	for _, r := range rules {
		if len(hosts) == most {
			return fmt.Sprintf("%s + %d more...", strings.Join(hosts, ","), len(rules)-most)
		}
		if r.Host != "" {
			hosts = append(hosts, r.Host)
		}
	}
	if len(hosts) == 0 {
		return "*"
	}
	return strings.Join(hosts, ",")
}

func addressCell(list []networkingv1.IngressLoadBalancerIngress) string {
	all := map[string]bool{}
	for _, in := range list {
		if in.IP != "" {
			all[in.IP] = true
		} else if in.Hostname != "" {
			all[in.Hostname] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(all)), ",")
}
