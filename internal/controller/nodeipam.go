package controller

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

// Sizes of a node's part of a cluster range.
const (
	nodeBits4 = 24
	nodeBits6 = 64
)

// nodeIPAM gives every node its part of each cluster range: spec.podCIDRs. What a
// node has once it keeps until the node is deleted.
type nodeIPAM struct {
	*control.Controller
	nodes *client.Informer[*corev1.Node]

	mu    sync.Mutex
	pools []*cidrPool
}

func newNodeIPAM(d Deps) *control.Controller {
	c := control.New("node-controller", d.Deps)
	c.ReportAs("cidrAllocator")
	n := &nodeIPAM{Controller: c}
	for _, cidr := range d.ClusterCIDRs {
		n.pools = append(n.pools, newCIDRPool(cidr, d.ServiceCIDRs))
	}
	n.nodes = control.Watch(c, n.changed)
	c.Workers = 1
	c.Writes = append(c.Writes, control.Rule("", []string{"nodes"}, "get", "patch"))
	c.Reconcile = n.reconcile
	return c
}

func (n *nodeIPAM) changed(ch client.Change[*corev1.Node]) {
	n.mu.Lock()
	defer n.mu.Unlock()
	node := ch.Object()
	for i, p := range podCIDRs(node) {
		if i >= len(n.pools) {
			break
		}
		if ch.Deleted() {
			n.pools[i].release(p, node.Name)
		} else {
			n.pools[i].occupy(p, node.Name)
		}
	}
	if !ch.Deleted() && len(podCIDRs(node)) == 0 {
		n.Queue.Add(control.Key{Name: node.Name})
	}
}

func podCIDRs(n *corev1.Node) []netip.Prefix {
	all := n.Spec.PodCIDRs
	if len(all) == 0 && n.Spec.PodCIDR != "" {
		all = []string{n.Spec.PodCIDR}
	}
	var out []netip.Prefix
	for _, s := range all {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil
		}
		out = append(out, p.Masked())
	}
	return out
}

func (n *nodeIPAM) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	node, ok := n.nodes.Get("", k.Name)
	if !ok || len(podCIDRs(node)) > 0 {
		return control.Result{}, nil
	}
	var got []string
	n.mu.Lock()
	for _, pool := range n.pools {
		p, ok := pool.take(k.Name)
		if !ok {
			for _, pool := range n.pools {
				pool.releaseAll(k.Name)
			}
			n.mu.Unlock()
			n.Events.Event(node, corev1.EventTypeNormal, "CIDRNotAvailable", "Node %s status is now: %s", k.Name, "CIDRNotAvailable")
			return control.Result{}, fmt.Errorf("no part of cluster range %s is free for node %s", pool.cidr, k.Name)
		}
		got = append(got, p.String())
	}
	n.mu.Unlock()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"podCIDR": got[0], "podCIDRs": got}})
	if err != nil {
		return control.Result{}, err
	}
	next, err := client.For[*corev1.Node](n.Client).Patch(ctx, k.Name, types.StrategicMergePatchType, patch, "")
	if err != nil {
		n.mu.Lock()
		for _, pool := range n.pools {
			pool.releaseAll(k.Name)
		}
		n.mu.Unlock()
		if err := ignoreGone(err); err != nil {
			n.Events.Event(node, corev1.EventTypeNormal, "CIDRAssignmentFailed", "Node %s status is now: %s", k.Name, "CIDRAssignmentFailed")
			return control.Result{}, err
		}
		return control.Result{}, nil
	}
	control.Wrote(n.Pending, k, n.nodes, next)
	return control.Result{}, nil
}

// cidrPool hands out the parts of one cluster range, going round, so that a part
// just given back is not the next.
type cidrPool struct {
	cidr   netip.Prefix
	bits   int
	next   uint64
	count  uint64
	owners map[netip.Prefix]string
	// closed are ranges that are not for pods: those of services, where they
	// overlap.
	closed []netip.Prefix
}

func newCIDRPool(cidr netip.Prefix, closed []netip.Prefix) *cidrPool {
	bits := nodeBits4
	if cidr.Addr().Is6() {
		bits = nodeBits6
	}
	bits = max(bits, cidr.Bits())
	return &cidrPool{cidr: cidr.Masked(), bits: bits, count: 1 << min(bits-cidr.Bits(), 16), owners: map[netip.Prefix]string{}, closed: closed}
}

func (p *cidrPool) occupy(part netip.Prefix, node string) { p.owners[part] = node }

func (p *cidrPool) release(part netip.Prefix, node string) {
	if p.owners[part] == node {
		delete(p.owners, part)
	}
}

func (p *cidrPool) releaseAll(node string) {
	for part, owner := range p.owners {
		if owner == node {
			delete(p.owners, part)
		}
	}
}

func (p *cidrPool) take(node string) (netip.Prefix, bool) {
	for range p.count {
		part := p.part(p.next)
		p.next = (p.next + 1) % p.count
		if p.free(part) {
			p.owners[part] = node
			return part, true
		}
	}
	return netip.Prefix{}, false
}

func (p *cidrPool) free(part netip.Prefix) bool {
	for _, c := range p.closed {
		if c.Overlaps(part) {
			return false
		}
	}
	if _, ok := p.owners[part]; ok {
		return false
	}
	// A node may have a range of another size, from an earlier configuration.
	for o := range p.owners {
		if o.Bits() != part.Bits() && o.Overlaps(part) {
			return false
		}
	}
	return true
}

// part is the i-th part of the range.
func (p *cidrPool) part(i uint64) netip.Prefix {
	if p.cidr.Addr().Is4() {
		b := p.cidr.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(i<<(32-p.bits)))
		return netip.PrefixFrom(netip.AddrFrom4(b), p.bits)
	}
	b := p.cidr.Addr().As16()
	if p.bits <= 64 {
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+i<<(64-p.bits))
	} else {
		binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+i<<(128-p.bits))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), p.bits)
}
