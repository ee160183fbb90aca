package framework

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Node is a node and what the pods on it take. Nodes in a Snapshot are read-only:
// the snapshot replaces or changes them.
type Node struct {
	// Obj is nil while only pods name this node.
	Obj         *corev1.Node
	Name        string
	Allocatable Resource
	Requested   Resource
	// NonZero is CPU and memory requested as scores count them.
	NonZero Resource
	Pods    []*Pod
	// Nominated are pending pods that wait here for victims to end. A pod of no
	// higher priority must fit beside them.
	Nominated []*Pod
	// Images are the sizes of the images that the node holds, by normalized name.
	Images map[string]int64
	// Generation grows with every change of this node, within its snapshot.
	Generation uint64

	// ports counts the pods that take a host port; nil until the first.
	ports map[HostPort]int
	// owner is the snapshot that may change this value in place.
	owner *Snapshot
}

func (n *Node) clone() *Node {
	c := *n
	c.Pods = slices.Clone(n.Pods)
	c.Nominated = slices.Clone(n.Nominated)
	c.ports = maps.Clone(n.ports)
	c.Requested.Scalar = maps.Clone(n.Requested.Scalar)
	return &c
}

func (n *Node) setObj(o *corev1.Node) {
	n.Obj = o
	n.Images = nil
	n.Allocatable = Resource{}
	if o == nil {
		return
	}
	n.Allocatable = ResourceOf(o.Status.Allocatable)
	for _, img := range o.Status.Images {
		for _, name := range img.Names {
			if n.Images == nil {
				n.Images = make(map[string]int64, len(o.Status.Images)*2)
			}
			n.Images[name] = img.SizeBytes
		}
	}
}

func (n *Node) account(p *Pod, sign int64) {
	u := p.use()
	n.Requested.add(&u.requested, sign)
	n.NonZero.add(&u.nonZero, sign)
	for _, h := range p.Class.HostPorts {
		if n.ports == nil {
			n.ports = map[HostPort]int{}
		}
		n.ports[h] += int(sign)
		if n.ports[h] <= 0 {
			delete(n.ports, h)
		}
	}
}

func (n *Node) add(p *Pod) {
	n.Pods = append(n.Pods, p)
	n.account(p, 1)
}

func (n *Node) remove(p *Pod) {
	i := slices.IndexFunc(n.Pods, func(o *Pod) bool { return o.UID == p.UID })
	if i < 0 {
		return
	}
	n.account(n.Pods[i], -1)
	last := len(n.Pods) - 1
	n.Pods[i] = n.Pods[last]
	n.Pods[last] = nil
	n.Pods = n.Pods[:last]
}

// Put and Drop change a copy that Without or With made.
func (n *Node) Put(p *Pod) { n.add(p) }

// Drop is described at Put.
func (n *Node) Drop(p *Pod) { n.remove(p) }

// Without returns a copy of the node that does not hold the pods given.
func (n *Node) Without(pods ...*Pod) *Node {
	c := n.clone()
	c.owner = nil
	for _, p := range pods {
		c.remove(p)
	}
	return c
}

// With returns a copy of the node that holds the pods given too.
func (n *Node) With(pods ...*Pod) *Node {
	c := n.clone()
	c.owner = nil
	for _, p := range pods {
		c.add(p)
	}
	return c
}

// NodeOf returns a node that holds nothing.
func NodeOf(o *corev1.Node) *Node {
	n := &Node{Name: o.Name}
	n.setObj(o)
	return n
}

// PortTaken tells whether a host port conflicts with one in use: the same port
// and protocol, on the same address or with one of the two on all addresses.
func (n *Node) PortTaken(h HostPort) bool {
	if len(n.ports) == 0 {
		return false
	}
	if h.IP != "0.0.0.0" {
		return n.ports[h] > 0 || n.ports[HostPort{"0.0.0.0", h.Protocol, h.Port}] > 0
	}
	for o := range n.ports {
		if o.Port == h.Port && o.Protocol == h.Protocol {
			return true
		}
	}
	return false
}
