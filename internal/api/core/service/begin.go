package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"skiff/internal/api/resource"
)

// begin fills in what the client left to the cluster: families, addresses, node
// ports. On an update it first takes over what old was given, so that the same
// manifest can be sent again.
func begin(ctx context.Context, env resource.Env, s, old *corev1.Service) (func(context.Context, bool), error) {
	if env.Services == nil {
		return nil, apierrors.NewInternalError(errors.New("this server allocates no addresses for services"))
	}
	if old != nil {
		old = asRead(env, old)
		keepAllocated(s, old)
	}
	pairAddresses(s, old)
	if err := settleFamilies(env, s, old); err != nil {
		return nil, err
	}
	op := &operation{ctx: ctx, env: env, s: s}
	err := op.addresses(old)
	if err == nil {
		err = op.ports(old)
	}
	if err != nil {
		op.finish(context.WithoutCancel(ctx), false)
		return nil, err
	}
	return op.finish, nil
}

// asRead completes a service that was stored before some of its fields existed.
func asRead(env resource.Env, s *corev1.Service) *corev1.Service {
	if env.Services == nil {
		return s
	}
	noIPs := s.Spec.ClusterIP != "" && len(s.Spec.ClusterIPs) == 0
	noFamilies := !isExternalName(s) && len(s.Spec.IPFamilies) == 0
	if !noIPs && !noFamilies {
		return s
	}
	s = s.DeepCopy()
	if noIPs {
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	}
	if !noFamilies {
		return s
	}
	single, dual := new(corev1.IPFamilyPolicySingleStack), new(corev1.IPFamilyPolicyRequireDualStack)
	primary := corev1.IPFamily(env.Services.Families()[0])
	switch {
	case s.Spec.ClusterIP != corev1.ClusterIPNone:
		for _, ip := range s.Spec.ClusterIPs {
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, familyOf(ip))
		}
		switch len(s.Spec.IPFamilies) {
		case 1:
			s.Spec.IPFamilyPolicy = single
		case 2:
			s.Spec.IPFamilyPolicy = dual
		}
	case len(s.Spec.Selector) == 0:
		s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = []corev1.IPFamily{primary, other(primary)}, dual
	default:
		s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = []corev1.IPFamily{primary}, single
	}
	return s
}

func familyOf(ip string) corev1.IPFamily {
	switch {
	case netutils.IsIPv4String(ip):
		return corev1.IPv4Protocol
	case netutils.IsIPv6String(ip):
		return corev1.IPv6Protocol
	}
	return "unknown"
}

func other(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// keepAllocated takes over from old what s leaves out and old was allocated.
func keepAllocated(s, old *corev1.Service) {
	spec, was := &s.Spec, &old.Spec
	if !isExternalName(old) && !isExternalName(s) {
		if spec.ClusterIP == "" {
			spec.ClusterIP = was.ClusterIP
		}
		if len(spec.ClusterIPs) == 0 && len(was.ClusterIPs) > 0 {
			spec.ClusterIPs = slices.Clone(was.ClusterIPs)
		}
	}
	wants := func(s *corev1.Service) bool {
		return s.Spec.Type == corev1.ServiceTypeNodePort ||
			isLoadBalancer(s) && (s.Spec.AllocateLoadBalancerNodePorts == nil || *s.Spec.AllocateLoadBalancerNodePorts)
	}
	if wants(old) && wants(s) {
		had := nodePorts(old)
		kept := slices.DeleteFunc(nodePorts(s), func(p int32) bool { return !slices.Contains(had, p) })
		byName := map[string]int32{}
		for _, p := range was.Ports {
			byName[p.Name] = p.NodePort
		}
		for i := range spec.Ports {
			p := &spec.Ports[i]
			if n := byName[p.Name]; p.NodePort == 0 && !slices.Contains(kept, n) {
				p.NodePort = n
			}
		}
	}
	if checksHealth(old) && checksHealth(s) && spec.HealthCheckNodePort == 0 {
		spec.HealthCheckNodePort = was.HealthCheckNodePort
	}
}

// pairAddresses brings clusterIPs in line with clusterIP for clients that know
// only the latter. Where both were changed, the rules decide.
func pairAddresses(s, old *corev1.Service) {
	spec := &s.Spec
	if old == nil {
		if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
			spec.ClusterIPs = []string{spec.ClusterIP}
		}
		return
	}
	was := &old.Spec
	if spec.ClusterIP == was.ClusterIP {
		if len(spec.ClusterIPs) == 0 && len(was.ClusterIPs) > 0 {
			spec.ClusterIPs = slices.Clone(was.ClusterIPs)
		}
		return
	}
	if !slices.Equal(spec.ClusterIPs, was.ClusterIPs) {
		return
	}
	if spec.ClusterIP == "" {
		spec.ClusterIPs = nil
	} else {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
}

func refuse(s *corev1.Service, errs ...*field.Error) error {
	return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), s.Name, errs)
}

// settleFamilies decides policy and families. A cluster that became dual-stack,
// or is it no longer, changes no service by itself.
func settleFamilies(env resource.Env, s, old *corev1.Service) error {
	if isExternalName(s) || sameDualStack(s, old) {
		return nil
	}
	spec := &s.Spec
	selectorless := spec.ClusterIP == corev1.ClusterIPNone && len(spec.Selector) == 0
	if spec.IPFamilyPolicy == nil {
		switch {
		case old != nil && old.Spec.IPFamilyPolicy != nil:
			spec.IPFamilyPolicy = new(*old.Spec.IPFamilyPolicy)
		case selectorless:
			spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
		default:
			spec.IPFamilyPolicy = new(corev1.IPFamilyPolicySingleStack)
		}
	}
	if errs := validateAddresses(env, s, old); len(errs) > 0 {
		return refuse(s, errs...)
	}
	served := env.Services.Families()
	if errs := settlePolicy(s, old, served); len(errs) > 0 {
		return refuse(s, errs...)
	}
	second := func() {
		if policy(s) != corev1.IPFamilyPolicySingleStack && len(spec.IPFamilies) == 1 {
			spec.IPFamilies = append(spec.IPFamilies, other(spec.IPFamilies[0]))
		}
	}
	// Whoever names the endpoints of a service without address and selector may
	// give it families that the cluster does not serve.
	if selectorless {
		if len(spec.IPFamilies) == 0 {
			spec.IPFamilies = []corev1.IPFamily{corev1.IPFamily(served[0])}
		}
		second()
		return nil
	}
	var errs field.ErrorList
	if policy(s) == corev1.IPFamilyPolicyRequireDualStack && len(served) < 2 {
		errs = append(errs, field.Invalid(policyPath, spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, f := range spec.IPFamilies {
		if !slices.Contains(served, string(f)) {
			errs = append(errs, field.Invalid(familiesPath.Index(i), f, "not configured on this cluster"))
		}
	}
	if len(errs) > 0 {
		return refuse(s, errs...)
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{corev1.IPFamily(served[0])}
	}
	if len(served) == 2 {
		second()
	}
	return nil
}

// settlePolicy holds policy, addresses and families against each other, and
// derives families from addresses.
func settlePolicy(s, old *corev1.Service, served []string) field.ErrorList {
	var errs field.ErrorList
	spec := &s.Spec
	wrong := func(text string) { errs = append(errs, field.Invalid(policyPath, spec.IPFamilyPolicy, text)) }
	single := policy(s) == corev1.IPFamilyPolicySingleStack
	switch {
	case old == nil:
	case single:
		// Asking for one family drops the second of each list that was not touched.
		if len(spec.ClusterIPs) > 1 && slices.Equal(spec.ClusterIPs, old.Spec.ClusterIPs) {
			spec.ClusterIPs = spec.ClusterIPs[:1]
		}
		if len(spec.IPFamilies) > 1 && slices.Equal(spec.IPFamilies, old.Spec.IPFamilies) {
			spec.IPFamilies = spec.IPFamilies[:1]
		}
	default:
		if n := len(spec.ClusterIPs); n > 0 && n < len(old.Spec.ClusterIPs) {
			wrong("must be 'SingleStack' to release the secondary cluster IP")
		}
		if n := len(spec.IPFamilies); n > 0 && n < len(old.Spec.IPFamilies) {
			wrong("must be 'SingleStack' to release the secondary IP family")
		}
	}
	if single && len(spec.ClusterIPs) == 2 {
		wrong("must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified")
	}
	if single && len(spec.IPFamilies) == 2 {
		wrong("must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified")
	}
	for i, ip := range spec.ClusterIPs {
		if ip == corev1.ClusterIPNone {
			break
		}
		if i < len(spec.IPFamilies) {
			continue
		}
		if f := familyOf(ip); slices.Contains(served, string(f)) {
			spec.IPFamilies = append(spec.IPFamilies, f)
		} else {
			errs = append(errs, field.Invalid(ipsPath.Index(i), spec.ClusterIPs, fmt.Sprintf("%s is not configured on this cluster", f)))
		}
	}
	return errs
}

// sameDualStack: an update of a service that prefers two families and asks for
// no other addresses or families than it has.
func sameDualStack(s, old *corev1.Service) bool {
	prefers := corev1.IPFamilyPolicyPreferDualStack
	return old != nil && !isExternalName(s) && s.Spec.Type == old.Spec.Type &&
		slices.Contains([]corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer}, s.Spec.Type) &&
		policy(s) == prefers && (old.Spec.IPFamilyPolicy == nil || policy(old) == prefers) &&
		slices.Equal(s.Spec.ClusterIPs, old.Spec.ClusterIPs) && slices.Equal(s.Spec.IPFamilies, old.Spec.IPFamilies)
}

// serverError is an error that upstream answers without a reason.
func serverError(text string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: text}}
}

func releaseAll(ctx context.Context, env resource.Env, s *corev1.Service) error {
	var errs []error
	s = asRead(env, s)
	if !isExternalName(s) && !headless(s) {
		for _, ip := range s.Spec.ClusterIPs {
			errs = append(errs, env.Services.ReleaseIP(ctx, ip))
		}
	}
	ports := nodePorts(s)
	if p := s.Spec.HealthCheckNodePort; p > 0 && checksHealth(s) {
		ports = append(ports, p)
	}
	for _, p := range ports {
		errs = append(errs, env.Services.ReleasePort(ctx, p))
	}
	return errors.Join(errs...)
}

func warnKept(s *corev1.Service, what string, value any, err error) {
	slog.Warn("allocation stays taken", "ns", s.Namespace, "service", s.Name, what, value, "err", err)
}
