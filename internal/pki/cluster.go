package pki

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Groups and users of the identities that a cluster begins with.
const (
	// AdminGroup is the group of people who administer a cluster. It has the
	// rights that a ClusterRoleBinding of this name gives it, so that they can be
	// taken away.
	AdminGroup = "kubeadm:cluster-admins"
	// MastersGroup may do everything whatever the cluster's roles say: for the
	// way out of a locked cluster.
	MastersGroup = "system:masters"
	NodesGroup   = "system:nodes"

	AdminUser             = "kubernetes-admin"
	SuperAdminUser        = "kubernetes-super-admin"
	ControllerManagerUser = "system:kube-controller-manager"
	SchedulerUser         = "system:kube-scheduler"
	nodeUserPrefix        = "system:node:"
)

// Server describes a server for ServerSpec.
type Server struct {
	// NodeName is the host's name in the cluster; may be empty.
	NodeName string
	// ServiceIPs are the addresses of the kubernetes Service: the first of each
	// service CIDR.
	ServiceIPs []netip.Addr
	// IPs the server is reached at, besides loopback.
	IPs []netip.Addr
	// ExtraSANs are further names and addresses, as people write them.
	ExtraSANs []string
	// ClusterDomain, "cluster.local" where empty.
	ClusterDomain string
	// Etcd asks for etcd's authority and certificates, for members that talk to
	// each other.
	Etcd bool
}

// ServerSpec is what a server needs: its own certificate and those of the
// identities it acts as.
func ServerSpec(s Server) (Spec, error) {
	domain := s.ClusterDomain
	if domain == "" {
		domain = "cluster.local"
	}
	api := Leaf{
		Name: "apiserver", CA: ClusterCA, User: "kube-apiserver", Server: true,
		DNSNames: []string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + domain,
		},
		IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")},
	}
	if s.NodeName != "" {
		api.addName(s.NodeName)
	}
	for _, ip := range slices.Concat(s.ServiceIPs, s.IPs) {
		if !ip.IsValid() {
			return Spec{}, fmt.Errorf("server certificate: an address is not set")
		}
		api.addIP(ip)
	}
	for _, san := range s.ExtraSANs {
		if ip, err := netip.ParseAddr(san); err == nil {
			api.addIP(ip)
		} else if validDNSName(san) {
			api.addName(san)
		} else {
			return Spec{}, fmt.Errorf("server certificate: %q: must be an IP address or a DNS name", san)
		}
	}
	client := func(name, ca, user string, groups ...string) Leaf {
		return Leaf{Name: name, CA: ca, User: user, Groups: groups, Client: true}
	}
	spec := Spec{
		ServiceAccount: true,
		Leaves: []Leaf{
			api,
			client("apiserver-kubelet-client", ClusterCA, "kube-apiserver-kubelet-client", AdminGroup),
			client("front-proxy-client", FrontProxyCA, "front-proxy-client"),
			client("admin", ClusterCA, AdminUser, AdminGroup),
			client("super-admin", ClusterCA, SuperAdminUser, MastersGroup),
			client("controller-manager", ClusterCA, ControllerManagerUser),
			client("scheduler", ClusterCA, SchedulerUser),
		},
	}
	if s.Etcd {
		name := s.NodeName
		if name == "" {
			name = "localhost"
		}
		member := func(file string) Leaf {
			l := Leaf{Name: file, CA: EtcdCA, User: name, Server: true, Client: true, DNSNames: []string{"localhost"}, IPs: api.IPs[:2:2]}
			l.addName(name)
			for _, ip := range s.IPs {
				l.addIP(ip)
			}
			return l
		}
		spec.Leaves = append(spec.Leaves, member("etcd/server"), member("etcd/peer"),
			client("etcd/healthcheck-client", EtcdCA, "kube-etcd-healthcheck-client"),
			client("apiserver-etcd-client", EtcdCA, "kube-apiserver-etcd-client"))
	}
	return spec, nil
}

// NodeLeaves are a kubelet's certificates: the one it serves with and the one it
// talks to the API server with.
func NodeLeaves(nodeName string, ips []netip.Addr) ([]Leaf, error) {
	if !validDNSName(nodeName) {
		return nil, fmt.Errorf("node name %q: must be a lower case DNS name", nodeName)
	}
	serving := Leaf{
		Name: "kubelet", CA: ClusterCA, User: nodeUserPrefix + nodeName, Groups: []string{NodesGroup}, Server: true,
		DNSNames: []string{nodeName},
	}
	for _, ip := range ips {
		serving.addIP(ip)
	}
	client := NodeClient(nodeName)
	client.Name = "kubelet-client"
	return []Leaf{serving, client}, nil
}

// NodeClient is the identity of a node.
func NodeClient(nodeName string) Leaf {
	return Leaf{Name: "node " + nodeName, CA: ClusterCA, User: nodeUserPrefix + nodeName, Groups: []string{NodesGroup}, Client: true}
}

func (l *Leaf) addName(name string) {
	if !slices.Contains(l.DNSNames, name) {
		l.DNSNames = append(l.DNSNames, name)
	}
}

func (l *Leaf) addIP(ip netip.Addr) {
	if ip = ip.Unmap().WithZone(""); !slices.Contains(l.IPs, ip) {
		l.IPs = append(l.IPs, ip)
	}
}

// validDNSName accepts what may stand in a certificate: labels of lower case
// letters, digits and '-', the first of which may be "*".
func validDNSName(name string) bool {
	name = strings.TrimPrefix(name, "*.")
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range label {
			if c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
				return false
			}
		}
	}
	return true
}
