package alloc

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/store"
)

const (
	// leakRuns is in how many repairs a port must have been without an owner
	// before it is given back: its service may be about to be written.
	leakRuns = 3
	// leakAge is how old an address without an owner must be.
	leakAge = time.Minute
)

func (a *Allocator) services(ctx context.Context) ([]*corev1.Service, error) {
	// Linearizable: a service that the list does not show has no right to what it
	// was given.
	list, _, err := client.For[*corev1.Service](a.Client()).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	return list, nil
}

// addresses lists the cluster addresses of a service.
func addresses(s *corev1.Service) []netip.Addr {
	list := s.Spec.ClusterIPs
	if len(list) == 0 {
		list = []string{s.Spec.ClusterIP}
	}
	var out []netip.Addr
	for _, text := range list {
		// "None", and no address, are none.
		if ip, err := netip.ParseAddr(text); err == nil {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

// repairAddresses makes the missing IPAddress of every service, and deletes those
// whose service is gone or uses another address.
func (a *Allocator) repairAddresses(ctx context.Context) error {
	ips := client.For[*networkingv1.IPAddress](a.Client())
	have, _, err := ips.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list IP addresses: %w", err)
	}
	// After the addresses: a service written in between keeps its own.
	list, err := a.services(ctx)
	if err != nil {
		return err
	}
	owner := map[string]*corev1.Service{}
	for _, s := range list {
		for _, ip := range addresses(s) {
			owner[ip.String()] = s
		}
	}
	var errs []error
	known := map[string]bool{}
	for _, ip := range have {
		known[ip.Name] = true
		if ip.Labels[networkingv1.LabelManagedBy] != managedBy || a.Now().Sub(ip.CreationTimestamp.Time) < leakAge {
			continue
		}
		if ref, s := ip.Spec.ParentRef, owner[ip.Name]; s != nil && ref != nil && ref.Namespace == s.Namespace && ref.Name == s.Name {
			continue
		}
		a.Log.Warn("address without its service is given back", "ip", ip.Name)
		uid := types.UID(ip.UID)
		if err := ips.Delete(ctx, ip.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
		delete(known, ip.Name)
	}
	for ip, s := range owner {
		if known[ip] {
			continue
		}
		a.Log.Warn("address of a service was free and is taken", "ns", s.Namespace, "service", s.Name, "ip", ip)
		if _, err := a.AllocateIP(ctx, s.Namespace, s.Name, family(netip.MustParseAddr(ip)), ip, false); err != nil && !errors.Is(err, errAllocated) {
			errs = append(errs, fmt.Errorf("service %s/%s: address %s: %w", s.Namespace, s.Name, ip, err))
		}
	}
	return errors.Join(errs...)
}

// repairPorts brings the map of node ports in line with the services: makes it
// where there is none, takes ports that services use, and gives back those that
// were without an owner for several runs.
func (a *Allocator) repairPorts(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := newPortMap(a.FirstPort, a.LastPort)
	same := false
	kv, err := a.Store.Get(ctx, PortsKey, 0)
	switch {
	case err == nil:
		if same, err = now.read(kv); err != nil {
			return err
		}
	case !errors.Is(err, store.ErrNotFound):
		return fmt.Errorf("read the map of node ports: %w", err)
	}
	// After the map: a service written since is in the list, or its port in the
	// next map.
	list, err := a.services(ctx)
	if err != nil {
		return err
	}
	used := new(big.Int)
	take := func(s *corev1.Service, port int32) {
		if i, ok := now.offset(port); ok {
			used.SetBit(used, i, 1)
		} else if port != 0 {
			a.Log.Warn("node port is out of the range", "ns", s.Namespace, "service", s.Name, "port", port)
		}
	}
	for _, s := range list {
		for _, p := range s.Spec.Ports {
			take(s, p.NodePort)
		}
		take(s, s.Spec.HealthCheckNodePort)
	}
	leaked := map[int32]int{}
	next := new(big.Int).Set(used)
	if same {
		for i := range now.size {
			port := int32(now.first + i)
			if now.has(i) && used.Bit(i) == 0 {
				if leaked[port] = a.leakedPorts[port] + 1; leaked[port] < leakRuns {
					next.SetBit(next, i, 1)
				} else {
					a.Log.Warn("node port without a service is given back", "port", port)
					delete(leaked, port)
				}
			}
		}
	}
	a.leakedPorts = leaked
	if same && next.Cmp(now.bits) == 0 {
		a.ports = now
		return nil
	}
	now.bits = next
	value, err := now.encode()
	if err != nil {
		return err
	}
	if now.rev == 0 {
		now.rev, err = a.Store.Create(ctx, PortsKey, value, store.WriteOptions{})
	} else {
		now.rev, err = a.Store.Update(ctx, PortsKey, value, now.rev, store.WriteOptions{})
	}
	var exists *store.ExistsError
	var conflict *store.ConflictError
	if errors.As(err, &exists) || errors.As(err, &conflict) {
		// Another API server wrote it: the next run looks again.
		a.ports.rev = 0
		return nil
	}
	if err != nil {
		a.ports.rev = 0
		return fmt.Errorf("write the map of node ports: %w", err)
	}
	a.ports = now
	return nil
}
