package dns

import (
	"net/netip"
	"slices"
	"sync"
)

// Records is what the server knows of the cluster. Names are as in the API; they
// are asked for in lower case. Index is one.
type Records interface {
	// Synced is closed when the records are complete.
	Synced() <-chan struct{}
	Namespace(name string) bool
	// Service returns a service, which nobody may change.
	Service(namespace, name string) (*Service, bool)
	// Owners returns the services that have the address as a cluster IP or, where
	// none has, as an endpoint.
	Owners(ip netip.Addr) []*Service
}

// Service is a Service with its endpoints.
type Service struct {
	Namespace, Name string
	// ExternalName, where not empty, is all there is.
	ExternalName string
	// ClusterIPs is empty for a headless service.
	ClusterIPs []netip.Addr
	Ports      []Port
	// Endpoints are those that may be told: the ready ones, or all where the
	// service publishes addresses that are not ready.
	Endpoints []Endpoint
}

// Port is a named port.
type Port struct {
	Name     string
	Protocol string // TCP, UDP, SCTP
	Port     uint16
}

// Endpoint is an endpoint's address, with its own port numbers.
type Endpoint struct {
	Addr     netip.Addr
	Hostname string
	Ports    []Port
}

// Headless tells that the service's name stands for its endpoints.
func (s *Service) Headless() bool { return s.ExternalName == "" && len(s.ClusterIPs) == 0 }

// Index is Records in memory, for a feeder that knows every change. The zero
// value is not ready for use.
type Index struct {
	synced chan struct{}
	once   sync.Once

	mu         sync.RWMutex
	namespaces map[string]bool
	services   map[[2]string]*Service
	clusterIPs map[netip.Addr][]*Service
	endpoints  map[netip.Addr][]*Service
}

// NewIndex returns an empty index.
func NewIndex() *Index {
	return &Index{
		synced: make(chan struct{}), namespaces: map[string]bool{}, services: map[[2]string]*Service{},
		clusterIPs: map[netip.Addr][]*Service{}, endpoints: map[netip.Addr][]*Service{},
	}
}

// MarkSynced says that everything has been set that there is.
func (x *Index) MarkSynced() { x.once.Do(func() { close(x.synced) }) }

// Synced is closed by MarkSynced.
func (x *Index) Synced() <-chan struct{} { return x.synced }

// SetNamespace adds a namespace, or takes it out.
func (x *Index) SetNamespace(name string, exists bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if exists {
		x.namespaces[name] = true
	} else {
		delete(x.namespaces, name)
	}
}

// Set adds or replaces a service, which is the index's from then on.
func (x *Index) Set(s *Service) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unlink(s.Namespace, s.Name)
	x.services[[2]string{s.Namespace, s.Name}] = s
	for _, ip := range s.ClusterIPs {
		x.clusterIPs[ip] = append(x.clusterIPs[ip], s)
	}
	for _, e := range s.Endpoints {
		if !slices.Contains(x.endpoints[e.Addr], s) {
			x.endpoints[e.Addr] = append(x.endpoints[e.Addr], s)
		}
	}
}

// Delete takes a service out.
func (x *Index) Delete(namespace, name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.unlink(namespace, name)
}

func (x *Index) unlink(namespace, name string) {
	s, ok := x.services[[2]string{namespace, name}]
	if !ok {
		return
	}
	delete(x.services, [2]string{namespace, name})
	for _, ip := range s.ClusterIPs {
		drop(x.clusterIPs, ip, s)
	}
	for _, e := range s.Endpoints {
		drop(x.endpoints, e.Addr, s)
	}
}

// drop leaves the former slice as it is: a query may be reading it.
func drop(m map[netip.Addr][]*Service, ip netip.Addr, s *Service) {
	var rest []*Service
	for _, o := range m[ip] {
		if o != s {
			rest = append(rest, o)
		}
	}
	if rest == nil {
		delete(m, ip)
	} else {
		m[ip] = rest
	}
}

// Namespace tells whether there is such a namespace.
func (x *Index) Namespace(name string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.namespaces[name]
}

// Service returns a service.
func (x *Index) Service(namespace, name string) (*Service, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s, ok := x.services[[2]string{namespace, name}]
	return s, ok
}

// Owners returns the services that have the address.
func (x *Index) Owners(ip netip.Addr) []*Service {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if s := x.clusterIPs[ip]; len(s) > 0 {
		return s
	}
	return x.endpoints[ip]
}
