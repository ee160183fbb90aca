package authz

import (
	"context"
	"slices"
	"sync"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/podrefs"
	"skiff/internal/client"
)

type vertexKind uint8

const (
	pods vertexKind = iota
	secrets
	configMaps
	accounts
	claims
	resourceClaims
	volumes
	attachments
	slicesOfNode
	certificateRequests
)

type vertex struct {
	kind     vertexKind
	ns, name string
}

// graph knows which objects belong to which node: the pods bound to it, what they
// refer to, and the volumes behind their claims with the secrets of those.
type graph struct {
	objects Objects

	mu      sync.RWMutex
	feeds   []*feed
	version int
	// nodes are the nodes of a vertex, with how many pods connect them.
	nodes map[vertex]map[string]int
	// edges are what was entered for an object: the node and the vertices that
	// it connects with it.
	edges map[vertex]edge
	// claimOf is the claim of a volume, volumesOf the volumes by secret.
	claimOf   map[string]vertex
	secretsOf map[string][]vertex
	volumesOf map[vertex][]string
}

type edge struct {
	node     string
	vertices []vertex
}

func newGraph(objects Objects) *graph {
	g := &graph{
		objects: objects, nodes: map[vertex]map[string]int{}, edges: map[vertex]edge{},
		claimOf: map[string]vertex{}, secretsOf: map[string][]vertex{}, volumesOf: map[vertex][]string{},
	}
	// direct follows objects that belong to a node by themselves.
	direct := func(gvr schema.GroupVersionResource, kind vertexKind, of func(client.Object) (string, []vertex)) {
		g.feeds = append(g.feeds, &feed{
			gvr: gvr,
			set: func(ns, name string, o client.Object) {
				self := vertex{kind, ns, name}
				if o == nil {
					g.connect(self, "", nil)
					return
				}
				node, with := of(o)
				g.connect(self, node, with)
			},
			reset: func() {
				for self := range g.edges {
					if self.kind == kind {
						g.connect(self, "", nil)
					}
				}
			},
		})
	}
	direct(corev1.SchemeGroupVersion.WithResource("pods"), pods, func(o client.Object) (string, []vertex) {
		p, ok := o.(*corev1.Pod)
		if !ok {
			return "", nil
		}
		return p.Spec.NodeName, verticesOf(p)
	})
	direct(storagev1.SchemeGroupVersion.WithResource("volumeattachments"), attachments, func(o client.Object) (string, []vertex) {
		a, ok := o.(*storagev1.VolumeAttachment)
		if !ok {
			return "", nil
		}
		return a.Spec.NodeName, nil
	})
	direct(resourcev1.SchemeGroupVersion.WithResource("resourceslices"), slicesOfNode, func(o client.Object) (string, []vertex) {
		s, ok := o.(*resourcev1.ResourceSlice)
		if !ok || s.Spec.NodeName == nil {
			return "", nil
		}
		return *s.Spec.NodeName, nil
	})
	direct(certificatesv1.SchemeGroupVersion.WithResource("podcertificaterequests"), certificateRequests, func(o client.Object) (string, []vertex) {
		r, ok := o.(*certificatesv1.PodCertificateRequest)
		if !ok {
			return "", nil
		}
		return string(r.Spec.NodeName), nil
	})
	g.feeds = append(g.feeds, &feed{
		gvr: corev1.SchemeGroupVersion.WithResource("persistentvolumes"),
		set: func(_, name string, o client.Object) {
			pv, ok := o.(*corev1.PersistentVolume)
			if !ok {
				pv = nil
			}
			g.volume(name, pv)
		},
		reset: func() { clear(g.claimOf); clear(g.secretsOf); clear(g.volumesOf) },
	})
	return g
}

var vertexOf = map[podrefs.Kind]vertexKind{
	podrefs.Secret: secrets, podrefs.ConfigMap: configMaps, podrefs.ServiceAccount: accounts,
	podrefs.PersistentVolumeClaim: claims, podrefs.ResourceClaim: resourceClaims,
}

func verticesOf(p *corev1.Pod) []vertex {
	if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		// A node makes these itself: they must not give it anything.
		return nil
	}
	refs := podrefs.Of(p)
	out := make([]vertex, 0, len(refs))
	for _, r := range refs {
		if v := (vertex{vertexOf[r.Kind], p.Namespace, r.Name}); !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// connect replaces what an object connects with a node.
func (g *graph) connect(self vertex, node string, with []vertex) {
	old, had := g.edges[self]
	if had && old.node == node && slices.Equal(old.vertices, with) {
		return
	}
	if had {
		for _, v := range append(old.vertices, self) {
			m := g.nodes[v]
			if m[old.node]--; m[old.node] <= 0 {
				delete(m, old.node)
			}
			if len(m) == 0 {
				delete(g.nodes, v)
			}
		}
		delete(g.edges, self)
	}
	if node == "" {
		return
	}
	g.edges[self] = edge{node, slices.Clip(with)}
	for _, v := range append(slices.Clip(with), self) {
		m := g.nodes[v]
		if m == nil {
			m = map[string]int{}
			g.nodes[v] = m
		}
		m[node]++
	}
}

// volume enters a persistent volume, or takes it out.
func (g *graph) volume(name string, pv *corev1.PersistentVolume) {
	for _, s := range g.secretsOf[name] {
		if left := slices.DeleteFunc(g.volumesOf[s], func(v string) bool { return v == name }); len(left) == 0 {
			delete(g.volumesOf, s)
		} else {
			g.volumesOf[s] = left
		}
	}
	delete(g.secretsOf, name)
	delete(g.claimOf, name)
	if pv == nil || pv.Spec.ClaimRef == nil {
		return
	}
	g.claimOf[name] = vertex{claims, pv.Spec.ClaimRef.Namespace, pv.Spec.ClaimRef.Name}
	for _, s := range podrefs.VolumeSecrets(pv) {
		v := vertex{secrets, s.Namespace, s.Name}
		g.secretsOf[name] = append(g.secretsOf[name], v)
		g.volumesOf[v] = append(g.volumesOf[v], name)
	}
}

// connects tells whether an object belongs to a node. Before it says no it waits
// for everything written before the call.
func (g *graph) connects(ctx context.Context, node string, k vertexKind, ns, name string) (bool, error) {
	v := vertex{k, ns, name}
	seen, err := g.pull(ctx)
	if err != nil || g.has(node, v) {
		return err == nil, err
	}
	if err := g.objects.Fresh(ctx); err != nil {
		return false, err
	}
	now, err := g.pull(ctx)
	if err != nil || now == seen {
		return false, err
	}
	return g.has(node, v), nil
}

func (g *graph) pull(ctx context.Context) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.feeds {
		changed, err := f.pull(ctx, g.objects)
		if err != nil {
			return 0, err
		}
		if changed {
			g.version++
		}
	}
	return g.version, nil
}

func (g *graph) has(node string, v vertex) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.nodes[v][node] > 0 {
		return true
	}
	switch v.kind {
	case volumes:
		return g.nodes[g.claimOf[v.name]][node] > 0
	case secrets:
		for _, pv := range g.volumesOf[v] {
			if g.nodes[g.claimOf[pv]][node] > 0 {
				return true
			}
		}
	}
	return false
}
