package alloc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// managedBy is the value of the label networking.k8s.io/managed-by of addresses
// that belong to this allocator.
const managedBy = "ipallocator.k8s.io"

// Errors, with the texts that clients see.
var (
	errAllocated = errors.New("provided IP is already allocated")
	errMismatch  = errors.New("the provided network does not match the current range")
	errNoIP      = errors.New("not a valid IP address")
)

// span is a range's addresses that may be given out: [first, last], of which
// [first, upper) are given out unasked only when the rest is taken (KEP-3070).
type span struct {
	prefix       netip.Prefix
	first, upper netip.Addr
	last         netip.Addr
	size, lower  uint64
}

func newSpan(p netip.Prefix) span {
	s := span{prefix: p, first: p.Addr().Next()}
	// How far the last address is from the first one, which is the network's own:
	// also how many there are without it.
	reach := uint64(math.MaxUint64)
	if bits := p.Addr().BitLen() - p.Bits(); bits < 64 {
		reach = 1<<bits - 1
	}
	s.last, s.size = advance(p.Addr(), reach), reach
	if p.Addr().Is4() && reach > 0 {
		// The last one is for broadcasts.
		s.last, s.size = s.last.Prev(), reach-1
	}
	const least, most, part = 16, 256, 16
	if reach >= least {
		s.lower = min(max(least, reach/part+1), most)
		if reach < least*part {
			s.lower = least
		}
	}
	s.upper = advance(s.first, s.lower)
	return s
}

// advance returns the address n after a; n stays within a range's host bits.
func advance(a netip.Addr, n uint64) netip.Addr {
	b := a.As16()
	for i := 15; i >= 0 && n > 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	out := netip.AddrFrom16(b)
	if a.Is4() {
		return out.Unmap()
	}
	return out
}

func (s span) contains(ip netip.Addr) bool { return !ip.Less(s.first) && !s.last.Less(ip) }

// spans lists the ranges of a family that addresses may be taken from, as of a
// resource version as in lists.
func (a *Allocator) spans(ctx context.Context, fam, rv string) ([]span, error) {
	list, _, err := client.For[*networkingv1.ServiceCIDR](a.Client()).List(ctx, metav1.ListOptions{ResourceVersion: rv})
	if err != nil {
		return nil, err
	}
	var out []span
	for _, c := range list {
		if !ready(c) {
			continue
		}
		for _, text := range c.Spec.CIDRs {
			p, err := netip.ParsePrefix(text)
			if err == nil && family(p.Addr()) == fam && !(p.Addr().Is6() && p.Bits() < 64) {
				out = append(out, newSpan(p.Masked()))
			}
		}
	}
	return out, nil
}

// ready: a range is used unless something says otherwise: also where no
// controller looks after it.
func ready(c *networkingv1.ServiceCIDR) bool {
	if c.DeletionTimestamp != nil {
		return false
	}
	for _, cond := range c.Status.Conditions {
		if cond.Type == networkingv1.ServiceCIDRConditionReady {
			return cond.Status == metav1.ConditionTrue
		}
	}
	return true
}

// AllocateIP implements resource.ServiceAllocator.
func (a *Allocator) AllocateIP(ctx context.Context, namespace, name, fam, ip string, dryRun bool) (string, error) {
	got, err := a.allocate(ctx, "0", namespace, name, fam, ip, dryRun)
	if errors.Is(err, resource.ErrRangeFull) || errors.Is(err, errMismatch) {
		// Perhaps the cache has not seen a range yet that somebody just made.
		got, err = a.allocate(ctx, "", namespace, name, fam, ip, dryRun)
	}
	return got, err
}

func (a *Allocator) allocate(ctx context.Context, rv, namespace, name, fam, ip string, dryRun bool) (string, error) {
	spans, err := a.spans(ctx, fam, rv)
	if err != nil {
		return "", err
	}
	if ip != "" {
		return ip, a.allocateOne(ctx, spans, namespace, name, ip, dryRun)
	}
	if dryRun {
		if len(spans) == 0 {
			return "", resource.ErrRangeFull
		}
		// Upstream's answer: an address that nothing ever gets.
		return spans[0].prefix.Addr().String(), nil
	}
	for _, s := range spans {
		got, err := a.allocateAny(ctx, s, namespace, name)
		if err == nil {
			return got.String(), nil
		}
		if !errors.Is(err, resource.ErrRangeFull) {
			return "", err
		}
	}
	return "", resource.ErrRangeFull
}

func (a *Allocator) allocateOne(ctx context.Context, spans []span, namespace, name, ip string, dryRun bool) error {
	want, err := netip.ParseAddr(ip)
	if err != nil {
		return errNoIP
	}
	want = want.Unmap()
	for _, s := range spans {
		if s.contains(want) {
			if dryRun {
				return nil
			}
			return a.create(ctx, want, namespace, name)
		}
	}
	if dryRun && len(spans) > 0 {
		return fmt.Errorf("the provided IP (%v) is not in the valid range. The range of valid IPs is %s", want, spans[0].prefix)
	}
	return errMismatch
}

func (a *Allocator) create(ctx context.Context, ip netip.Addr, namespace, name string) error {
	_, err := client.For[*networkingv1.IPAddress](a.Client()).Create(ctx, &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: ip.String(), Labels: map[string]string{
			networkingv1.LabelIPAddressFamily: family(ip),
			networkingv1.LabelManagedBy:       managedBy,
		}},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: namespace, Name: name}},
	})
	if apierrors.IsAlreadyExists(err) {
		return errAllocated
	}
	return err
}

// allocateAny takes a free address of s, from a random place on: first of the
// upper part, then of the lower.
func (a *Allocator) allocateAny(ctx context.Context, s span, namespace, name string) (netip.Addr, error) {
	parts := []struct {
		from netip.Addr
		size uint64
	}{{s.upper, s.size - min(s.lower, s.size)}, {s.first, min(s.lower, s.size)}}
	// In a range that is not nearly full the first try hits. Only then is it
	// worth knowing what is taken.
	var taken map[string]bool
	for _, part := range parts {
		if part.size == 0 {
			continue
		}
		start := rand.Uint64N(part.size)
		for i := uint64(0); i < part.size; i++ {
			// Both are below part.size: their sum passes the end once at most.
			at := i + start
			if at >= part.size || at < i {
				at = start - (part.size - i)
			}
			ip := advance(part.from, at)
			if taken[ip.String()] {
				continue
			}
			err := a.create(ctx, ip, namespace, name)
			if err == nil {
				return ip, nil
			}
			if !errors.Is(err, errAllocated) {
				return netip.Addr{}, err
			}
			if taken == nil {
				if taken, err = a.takenIPs(ctx); err != nil {
					return netip.Addr{}, err
				}
			}
		}
	}
	return netip.Addr{}, resource.ErrRangeFull
}

func (a *Allocator) takenIPs(ctx context.Context) (map[string]bool, error) {
	list, _, err := client.For[*networkingv1.IPAddress](a.Client()).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(list))
	for _, ip := range list {
		out[ip.Name] = true
	}
	return out, nil
}

// ReleaseIP implements resource.ServiceAllocator.
func (a *Allocator) ReleaseIP(ctx context.Context, ip string) error {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil // a service without a valid address has allocated none
	}
	err = client.For[*networkingv1.IPAddress](a.Client()).Delete(ctx, addr.Unmap().String(), metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
