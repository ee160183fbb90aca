package service

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"skiff/internal/api/resource"
)

var (
	ipsPath      = specPath.Child("clusterIPs")
	familiesPath = specPath.Child("ipFamilies")
	policyPath   = specPath.Child("ipFamilyPolicy")
)

// validateAddresses validates clusterIP, clusterIPs, ipFamilies and
// ipFamilyPolicy: what they may be, and how they go together.
func validateAddresses(env resource.Env, s, old *corev1.Service) field.ErrorList {
	if isExternalName(s) {
		return nil // may have none of them
	}
	spec := &s.Spec
	ips := spec.ClusterIPs
	var errs field.ErrorList
	switch {
	case spec.ClusterIP == "" && len(ips) > 0:
		errs = append(errs, field.Invalid(ipsPath, ips, "must be empty when `clusterIP` is not specified"))
	case spec.ClusterIP != "" && len(ips) == 0:
		errs = append(errs, field.Required(ipsPath, ""))
	case spec.ClusterIP != "" && ips[0] != spec.ClusterIP:
		errs = append(errs, field.Invalid(ipsPath, ips, "first value must match `clusterIP`"))
	}

	families := []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	for i, f := range spec.IPFamilies {
		if !slices.Contains(families, f) {
			errs = append(errs, field.NotSupported(familiesPath.Index(i), f, families))
		}
		if slices.Contains(spec.IPFamilies[:i], f) {
			errs = append(errs, field.Duplicate(familiesPath.Index(i), f))
		}
	}
	policies := []corev1.IPFamilyPolicy{corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack}
	if p := spec.IPFamilyPolicy; p != nil && !slices.Contains(policies, *p) {
		errs = append(errs, field.NotSupported(policyPath, p, policies))
	}

	var had []string
	if old != nil {
		had = old.Spec.ClusterIPs
	}
	bad := false
	for i, ip := range ips {
		if i == 0 && ip == corev1.ClusterIPNone {
			if len(ips) > 1 {
				bad = true
				errs = append(errs, field.Invalid(ipsPath, ips, "'None' must be the first and only value"))
			}
			continue
		}
		wrong := legacyIP(env, ipsPath.Index(i), ip, had)
		bad = bad || len(wrong) > 0
		errs = append(errs, wrong...)
	}
	if len(ips) > 2 {
		errs = append(errs, field.Invalid(ipsPath, ips, "may only hold up to 2 values"))
	}
	if bad {
		return errs // what follows would only repeat it in other words
	}
	if len(ips) > 1 {
		dual, err := netutils.IsDualStackIPStrings(ips)
		if err != nil {
			errs = append(errs, field.InternalError(ipsPath, fmt.Errorf("failed to check for dual stack with error:%w", err)))
		}
		if !dual {
			errs = append(errs, field.Invalid(ipsPath, ips, "may specify no more than one IP for each IP family"))
		}
	}
	if headless(s) {
		return errs
	}
	for i, ip := range ips[:min(len(ips), len(spec.IPFamilies))] {
		switch f, six := spec.IPFamilies[i], netutils.IsIPv6String(ip); {
		case f == corev1.IPv4Protocol && six, f == corev1.IPv6Protocol && !six:
			errs = append(errs, field.Invalid(ipsPath.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%v]`", f, i)))
		}
	}
	return errs
}

// validateAddressChange: the first address stays; a second one may come, and go
// with the policy SingleStack.
func validateAddressChange(s, old *corev1.Service) field.ErrorList {
	if isExternalName(s) || isExternalName(old) || headless(s) && headless(old) {
		return nil
	}
	var errs field.ErrorList
	ips, was := s.Spec.ClusterIPs, old.Spec.ClusterIPs
	if len(ips) == len(was) {
		for i, ip := range was {
			if ip != ips[i] {
				errs = append(errs, field.Invalid(ipsPath.Index(i), ips, changed))
			}
		}
		return errs
	}
	if len(ips) == 0 {
		return field.ErrorList{field.Invalid(ipsPath.Index(0), ips, "primary clusterIP can not be unset")}
	}
	if len(was) > 0 && ips[0] != was[0] {
		errs = append(errs, field.Invalid(ipsPath.Index(0), ips, changed))
	}
	if len(ips) == 1 && len(was) > 1 && policy(s) != corev1.IPFamilyPolicySingleStack {
		errs = append(errs, field.Invalid(policyPath, s.Spec.IPFamilyPolicy, "must be set to 'SingleStack' when releasing the secondary clusterIP"))
	}
	return errs
}

// validateFamilyChange is the same for families. Its paths and values are
// upstream's, odd as some are.
func validateFamilyChange(s, old *corev1.Service) field.ErrorList {
	if isExternalName(s) || isExternalName(old) || headless(s) || headless(old) {
		return nil
	}
	var errs field.ErrorList
	families, was := s.Spec.IPFamilies, old.Spec.IPFamilies
	first := familiesPath.Index(0)
	if len(families) == len(was) {
		for i, f := range was {
			if f != families[i] {
				errs = append(errs, field.Invalid(first, families, changed))
			}
		}
		return errs
	}
	fewer := len(families) < len(was)
	if fewer && len(s.Spec.ClusterIPs) == 0 {
		errs = append(errs, field.Invalid(first, families, "primary ipFamily can not be unset"))
	}
	if len(was) > 0 && len(families) > 0 && families[0] != was[0] {
		errs = append(errs, field.Invalid(first, s.Spec.ClusterIPs, changed))
	}
	if fewer && len(families) == 1 && policy(s) != corev1.IPFamilyPolicySingleStack {
		errs = append(errs, field.Invalid(policyPath, s.Spec.IPFamilyPolicy, "must be set to 'SingleStack' when releasing the secondary ipFamily"))
	}
	return errs
}
