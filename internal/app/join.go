package app

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"time"

	"sigs.k8s.io/yaml"

	"skiff/internal/client"
	"skiff/internal/host"
	"skiff/internal/pki"
)

// clusterExtension names what a node's kubeconfig says of its cluster besides the
// way to it.
const clusterExtension = "skiff"

// nodeServices is the group of nodes elsewhere: what serves Services and DNS on
// them has no identity of its own there.
const nodeServices = "skiff:node-services"

// clusterFacts are what every node of a cluster has to know.
type clusterFacts struct {
	PodCIDR       string `json:"podCIDR"`
	ServiceCIDR   string `json:"serviceCIDR"`
	NodePorts     string `json:"nodePorts,omitempty"`
	ClusterDomain string `json:"clusterDomain"`
}

// NodeKubeconfig makes the kubeconfig with which a node of that name joins the
// cluster of instance i. Its certificate is the node's towards the API server and
// the kubelet's towards it: the API server knows a kubelet by its node's name, not
// by its address. server replaces the URL where not empty.
func NodeKubeconfig(i host.Instance, node, server string) ([]byte, error) {
	c, err := LoadConfig(configPath(i))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("this cluster was not started yet: run `skiff up`")
	}
	if err != nil {
		return nil, err
	}
	if node == c.NodeName {
		return nil, &ConfigError{"node", fmt.Sprintf("%q is the node of this cluster's server; choose another name", node)}
	}
	leaves, err := pki.NodeLeaves(node, nil)
	if err != nil {
		return nil, &ConfigError{"node", err.Error()}
	}
	leaf := leaves[0]
	leaf.Client = true
	leaf.Groups = append(leaf.Groups, nodeServices)
	ca, err := pki.LoadAuthority(i.Data("pki"), pki.ClusterCA)
	if err != nil {
		return nil, err
	}
	cert, key, err := ca.NewPair(leaf, time.Now())
	if err != nil {
		return nil, err
	}
	if server == "" {
		server = "https://" + net.JoinHostPort(list(c.NodeIP)[0], strconv.Itoa(c.APIPort))
	}
	name := "skiff"
	if i.Name != host.DefaultName {
		name += "-" + i.Name
	}
	return pki.Kubeconfig{
		Cluster: name, User: leaf.User, Server: server, CA: ca.CertPEM, ClientCert: cert, ClientKey: key,
		Extensions: map[string]any{clusterExtension: clusterFacts{c.PodCIDR, c.ServiceCIDR, c.NodePorts, c.ClusterDomain}},
	}.Marshal()
}

// readFacts finds the cluster's facts in a node's kubeconfig; none is no error.
func readFacts(file string) (clusterFacts, error) {
	var k struct {
		Clusters []struct {
			Cluster struct {
				Extensions []struct {
					Name      string       `json:"name"`
					Extension clusterFacts `json:"extension"`
				} `json:"extensions"`
			} `json:"cluster"`
		} `json:"clusters"`
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return clusterFacts{}, fmt.Errorf("kubeconfig: %w", err)
	}
	if err := yaml.Unmarshal(b, &k); err != nil {
		return clusterFacts{}, fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	for _, c := range k.Clusters {
		for _, e := range c.Cluster.Extensions {
			if e.Name == clusterExtension {
				return e.Extension, nil
			}
		}
	}
	return clusterFacts{}, nil
}

// into fills in what was not said otherwise.
func (f clusterFacts) into(c *Config) {
	for _, v := range []struct {
		to   *string
		from string
	}{{&c.PodCIDR, f.PodCIDR}, {&c.ServiceCIDR, f.ServiceCIDR}, {&c.NodePorts, f.NodePorts}, {&c.ClusterDomain, f.ClusterDomain}} {
		if *v.to == "" {
			*v.to = v.from
		}
	}
}

// join is a node's way to its server, and its own proof of who it is.
type join struct {
	server string
	https  []*client.HTTPS
	// node acts as the node, services as what serves Services and DNS on it.
	node, services *client.Client
	serving        *tls.Config
}

// openJoin reads the kubeconfig of a node named name.
func openJoin(file, name string) (*join, error) {
	cfg, err := client.LoadKubeconfig(file)
	if err != nil {
		return nil, err
	}
	if cfg.Certificate == nil || cfg.CA == nil {
		return nil, fmt.Errorf("kubeconfig %s: a node needs a certificate of its own and its cluster's authority: `skiff kubeconfig --node NAME` makes one", file)
	}
	pair, err := cfg.Certificate(nil)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	if want := "system:node:" + name; leaf.Subject.CommonName != want {
		return nil, &ConfigError{"nodeName", fmt.Sprintf("is %q, but the kubeconfig is of %q, not of %q", name, leaf.Subject.CommonName, want)}
	}
	if now := time.Now(); now.After(leaf.NotAfter) {
		return nil, fmt.Errorf("kubeconfig %s: its certificate ended on %s: make a new one with `skiff kubeconfig --node %s`", file, leaf.NotAfter.Format(time.DateOnly), name)
	}
	if leaf.VerifyHostname(name) != nil {
		return nil, fmt.Errorf("kubeconfig %s: its certificate is not for a kubelet of the name %s: `skiff kubeconfig --node %s` makes one", file, name, name)
	}
	j := &join{server: cfg.Server, serving: &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair, nil },
		ClientCAs:      cfg.CA, MinVersion: tls.VersionTLS12,
	}}
	for _, c := range []struct {
		to      **client.Client
		manager string
	}{{&j.node, "kubelet"}, {&j.services, "kube-proxy"}} {
		cfg.UserAgent = c.manager + "/" + version().GitVersion
		h, err := client.NewHTTPS(cfg)
		if err != nil {
			return nil, err
		}
		j.https = append(j.https, h)
		*c.to = client.New(h, c.manager)
	}
	return j, nil
}

func (j *join) close() error {
	for _, h := range j.https {
		h.Close()
	}
	return nil
}

// nodeNameOf reads the node's name from the certificate of its kubeconfig; empty
// where it has none.
func nodeNameOf(file string) string {
	const prefix = "system:node:"
	cfg, err := client.LoadKubeconfig(file)
	if err != nil || cfg.Certificate == nil {
		return ""
	}
	pair, err := cfg.Certificate(nil)
	if err != nil {
		return ""
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil || len(leaf.Subject.CommonName) <= len(prefix) || leaf.Subject.CommonName[:len(prefix)] != prefix {
		return ""
	}
	return leaf.Subject.CommonName[len(prefix):]
}
