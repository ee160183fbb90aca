package resource

import (
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"
)

// ValidateEndpointIP is the rule of addresses that traffic is sent to: in
// Endpoints, EndpointSlices, and a Service's externalIPs.
func ValidateEndpointIP(address string, path *field.Path) field.ErrorList {
	ip := netutils.ParseIPSloppy(address)
	if ip == nil {
		return field.ErrorList{field.Invalid(path, address, "must be a valid IP address")}
	}
	var errs field.ErrorList
	refuse := func(bad bool, text string) {
		if bad {
			errs = append(errs, field.Invalid(path, address, text))
		}
	}
	refuse(ip.IsUnspecified(), fmt.Sprintf("may not be unspecified (%v)", address))
	refuse(ip.IsLoopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	refuse(ip.IsLinkLocalUnicast(), "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	refuse(ip.IsLinkLocalMulticast(), "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	return errs
}

// WarnIP returns the warning about an address in an unusual form. What is no
// address at all is for validation.
func WarnIP(path *field.Path, address string) []string {
	if netutils.ParseIPSloppy(address) == nil {
		return nil
	}
	return validation.GetWarningsForIP(path, address)
}

// WarnCIDR is WarnIP for a range.
func WarnCIDR(path *field.Path, cidr string) []string {
	if _, _, err := netutils.ParseCIDRSloppy(cidr); err != nil {
		return nil
	}
	return validation.GetWarningsForCIDR(path, cidr)
}
