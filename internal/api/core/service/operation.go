package service

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// operation is the allocation for one write of a service. What it takes it takes
// at once; what the service no longer needs is given back when the write happened.
type operation struct {
	ctx context.Context
	env resource.Env
	s   *corev1.Service

	tookIPs, freeIPs     []string
	tookPorts, freePorts []int32
}

func (o *operation) finish(ctx context.Context, committed bool) {
	if o.env.DryRun {
		return
	}
	ips, ports := o.tookIPs, o.tookPorts
	if committed {
		ips, ports = o.freeIPs, o.freePorts
	}
	// What cannot be given back now is found by the allocator's repair.
	for _, ip := range ips {
		if err := o.env.Services.ReleaseIP(ctx, ip); err != nil {
			warnKept(o.s, "ip", ip, err)
		}
	}
	for _, p := range ports {
		if err := o.env.Services.ReleasePort(ctx, p); err != nil {
			warnKept(o.s, "port", p, err)
		}
	}
}

// addresses allocates and releases cluster addresses.
func (o *operation) addresses(old *corev1.Service) error {
	s := o.s
	switch {
	case old == nil:
		return o.allAddresses()
	case sameDualStack(s, old):
		return nil
	case isExternalName(old) && !isExternalName(s):
		return o.allAddresses()
	case headless(old):
		return nil
	case !isExternalName(old) && isExternalName(s):
		o.freeIPs = append(o.freeIPs, old.Spec.ClusterIPs...)
		return nil
	}
	switch before, now := len(old.Spec.IPFamilies), len(s.Spec.IPFamilies); {
	case before == 1 && now == 2:
		if len(s.Spec.ClusterIPs) < 2 {
			s.Spec.ClusterIPs = append(slices.Clone(s.Spec.ClusterIPs), "")
		}
		return o.address(1)
	case before == 2 && now == 1 && len(old.Spec.ClusterIPs) == 2:
		o.freeIPs = append(o.freeIPs, old.Spec.ClusterIPs[1])
	}
	return nil
}

func (o *operation) allAddresses() error {
	spec := &o.s.Spec
	if isExternalName(o.s) || len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] == corev1.ClusterIPNone {
		return nil
	}
	for i := range spec.IPFamilies {
		if i == len(spec.ClusterIPs) {
			spec.ClusterIPs = append(spec.ClusterIPs, "")
		}
		if err := o.address(i); err != nil {
			return err
		}
	}
	return nil
}

// address allocates clusterIPs[i]: the address that stands there, or any.
func (o *operation) address(i int) error {
	s, spec := o.s, &o.s.Spec
	if i >= len(spec.ClusterIPs) {
		return nil // the rules will say that there is one too few
	}
	want := spec.ClusterIPs[i]
	got, err := o.env.Services.AllocateIP(o.ctx, s.Namespace, s.Name, string(spec.IPFamilies[i]), want, o.env.DryRun)
	if err != nil {
		switch {
		case want != "":
			return refuse(s, field.Invalid(ipsPath, spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %v: %v", want, err)))
		case !errors.Is(err, resource.ErrRangeFull):
			return refuse(s, field.Invalid(ipsPath, spec.ClusterIPs, fmt.Sprintf("failed to allocate IP: %v", err)))
		}
		return apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP for Service %q: %w", s.Name, err))
	}
	o.tookIPs = append(o.tookIPs, got)
	if want == "" {
		spec.ClusterIPs[i] = got
	}
	if i == 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	return nil
}

func hasNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || isLoadBalancer(s)
}

// allocatesPorts: ports without a node port get one.
func allocatesPorts(s *corev1.Service) bool {
	a := s.Spec.AllocateLoadBalancerNodePorts
	return s.Spec.Type == corev1.ServiceTypeNodePort || isLoadBalancer(s) && (a == nil || *a)
}

// ports allocates and releases node ports.
func (o *operation) ports(old *corev1.Service) error {
	s := o.s
	if old == nil {
		if hasNodePorts(s) {
			if err := o.newPorts(); err != nil {
				return err
			}
		}
		if checksHealth(s) {
			return o.healthPort()
		}
		return nil
	}
	switch {
	case hasNodePorts(s):
		if err := o.changedPorts(old); err != nil {
			return err
		}
	case hasNodePorts(old):
		o.freePorts = append(o.freePorts, nodePorts(old)...)
	}
	switch {
	case !checksHealth(old) && checksHealth(s):
		return o.healthPort()
	case checksHealth(old) && !checksHealth(s):
		o.freePorts = append(o.freePorts, old.Spec.HealthCheckNodePort)
	}
	return nil
}

// newPorts gives ports of one number, which differ in protocol, one node port,
// unless the client says otherwise.
func (o *operation) newPorts() error {
	ports := o.s.Spec.Ports
	given := map[int32]int32{}
	for i := range ports {
		p := &ports[i]
		if p.NodePort == 0 && !allocatesPorts(o.s) {
			continue
		}
		n := given[p.Port]
		if n != 0 {
			if p.NodePort == 0 {
				p.NodePort = n
			} else if p.NodePort != n {
				if err := o.requestedPort(i, p.NodePort); err != nil {
					return err
				}
			}
			continue
		}
		for _, q := range ports {
			if q.Port == p.Port && q.NodePort != 0 {
				n = q.NodePort
				break
			}
		}
		if n != 0 {
			if err := o.requestedPort(i, n); err != nil {
				return err
			}
		} else {
			var err error
			if n, err = o.anyPort(); err != nil {
				return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %w", err))
			}
		}
		p.NodePort = n
		given[p.Port] = n
	}
	return nil
}

func (o *operation) changedPorts(old *corev1.Service) error {
	type pair struct {
		Protocol corev1.Protocol
		NodePort int32
	}
	had := nodePorts(old)
	var seen []pair
	taken := map[int32]bool{}
	for i := range o.s.Spec.Ports {
		p := &o.s.Spec.Ports[i]
		if p.NodePort == 0 {
			if !allocatesPorts(o.s) {
				continue
			}
			n, err := o.anyPort()
			if err != nil {
				return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %w", err))
			}
			p.NodePort = n
		} else if !slices.Contains(had, p.NodePort) && !taken[p.NodePort] {
			if err := o.requestedPort(i, p.NodePort); err != nil {
				return err
			}
			taken[p.NodePort] = true
		}
		now := pair{p.Protocol, p.NodePort}
		if slices.Contains(seen, now) {
			return serverError(fmt.Sprintf("duplicate nodePort: %v", now))
		}
		seen = append(seen, now)
	}
	kept := nodePorts(o.s)
	for _, p := range had {
		if !slices.Contains(kept, p) {
			o.freePorts = append(o.freePorts, p)
		}
	}
	return nil
}

func (o *operation) requestedPort(i int, port int32) error {
	if err := o.takePort(port); err != nil {
		return refuse(o.s, field.Invalid(specPath.Child("ports").Index(i).Child("nodePort"), port, err.Error()))
	}
	return nil
}

func (o *operation) healthPort() error {
	if p := o.s.Spec.HealthCheckNodePort; p != 0 {
		if err := o.takePort(p); err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate requested HealthCheck NodePort %v: %w", p, err))
		}
		return nil
	}
	p, err := o.anyPort()
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to allocate a HealthCheck NodePort %v: %w", p, err))
	}
	o.s.Spec.HealthCheckNodePort = p
	return nil
}

func (o *operation) takePort(port int32) error {
	if o.env.DryRun {
		taken, err := o.env.Services.PortTaken(o.ctx, port)
		if err != nil {
			return err
		}
		if taken || slices.Contains(o.tookPorts, port) {
			return resource.ErrPortAllocated
		}
	} else if _, err := o.env.Services.AllocatePort(o.ctx, port); err != nil {
		return err
	}
	o.tookPorts = append(o.tookPorts, port)
	return nil
}

// anyPort takes a port. A dry run makes one up, as upstream: it is not the one
// that the real run would get.
func (o *operation) anyPort() (int32, error) {
	port := int32(32769)
	if o.env.DryRun {
		if len(o.tookPorts) > 0 {
			port = max(slices.Max(o.tookPorts), 0) + 1
		}
	} else {
		var err error
		if port, err = o.env.Services.AllocatePort(o.ctx, 0); err != nil {
			return 0, err
		}
	}
	o.tookPorts = append(o.tookPorts, port)
	return port, nil
}
