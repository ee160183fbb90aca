package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/admission"
	"skiff/internal/apiserver/alloc"
	"skiff/internal/apiserver/authn"
	"skiff/internal/apiserver/authz"
	"skiff/internal/apiserver/fields"
	"skiff/internal/apiserver/openapi"
	"skiff/internal/apiserver/policy"
	"skiff/internal/client"
	"skiff/internal/metrics"
	"skiff/internal/pki"
	"skiff/internal/store"
	"skiff/internal/store/etcd"
	"skiff/internal/usage"
)

// KubernetesVersion is the version whose API skiff serves.
const KubernetesVersion = "1.37.2"

// server is the control plane of a process.
type server struct {
	set   *Settings
	log   *slog.Logger
	g     *group
	store store.Store
	pki   *pki.PKI
	api   *apiserver.Server
	alloc *alloc.Allocator
	nodes *nodeConnector
	usage *usage.Source
	// metrics are those of all parts of the control plane.
	metrics *prometheus.Registry
	// tokens signs and knows service account tokens.
	tokens *authn.Tokens
	// bootstrapped is closed when the objects that every cluster has are there.
	bootstrapped chan struct{}
}

func (s *server) openStore(ctx context.Context) error {
	if len(s.set.Etcd) > 0 {
		cfg, err := s.set.etcdTLS()
		if err != nil {
			return err
		}
		st, err := etcd.Dial(ctx, etcd.DialConfig{Endpoints: s.set.Etcd, TLS: cfg, Log: s.log})
		if err != nil {
			return fmt.Errorf("etcd at %s: %w", strings.Join(s.set.Etcd, ", "), err)
		}
		s.store = st
		s.g.atStop("store", st.Close)
		return nil
	}
	dir := s.set.Instance.Data("etcd")
	st, err := etcd.Open(ctx, etcd.Config{Dir: dir, Name: s.set.NodeName, Log: s.log})
	if err != nil && ctx.Err() == nil {
		return &StartError{err.Error(), fmt.Sprintf("put a copy of %s back, or move it away to begin with an empty cluster", dir)}
	}
	if err != nil {
		return err
	}
	s.store = st
	s.g.atStop("store", st.Close)
	return nil
}

func (s *server) openPKI(ctx context.Context) error {
	spec, err := pki.ServerSpec(pki.Server{
		NodeName: s.set.NodeName, ServiceIPs: []netip.Addr{s.set.APIServiceIP}, IPs: s.set.NodeAddrs,
		ExtraSANs: s.set.ExtraSANs, ClusterDomain: s.set.ClusterDomain,
	})
	if err != nil {
		return err
	}
	leaves, err := pki.NodeLeaves(s.set.NodeName, slices.Concat(s.set.NodeAddrs, []netip.Addr{netip.MustParseAddr("127.0.0.1")}))
	if err != nil {
		return err
	}
	spec.Leaves = append(spec.Leaves, leaves...)
	p, err := pki.Ensure(ctx, s.set.Instance.Data("pki"), spec, pki.Deps{Now: time.Now, Log: s.log})
	if err != nil {
		return err
	}
	s.pki = p
	return nil
}

// issuer of service account tokens.
func (s *server) issuer() string { return "https://kubernetes.default.svc." + s.set.ClusterDomain }

func (s *server) newAPI() error {
	s.bootstrapped = make(chan struct{})
	var srv *apiserver.Server
	objects := &serverObjects{}
	keys, err := s.pki.ServiceAccountPublicKeys()
	if err != nil {
		return err
	}
	tokens, err := authn.NewTokens(authn.TokensConfig{
		Issuer: s.issuer(), Audiences: []string{s.issuer()}, Key: s.pki.ServiceAccountKey(), Verify: keys, Now: time.Now,
		Lookup: func() *client.Client { return srv.System() }, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.tokens = tokens
	discovery, err := tokens.Discovery("https://" + net.JoinHostPort(s.set.NodeAddr().String(), strconv.Itoa(s.set.APIPort)))
	if err != nil {
		return err
	}
	s.alloc, err = alloc.New(alloc.Deps{
		Client: func() *client.Client { return srv.System() }, Store: s.store, ServiceCIDRs: s.set.ServiceRanges,
		FirstPort: int32(s.set.NodePortFirst), LastPort: int32(s.set.NodePortLast), Now: time.Now, Log: s.log,
	})
	if err != nil {
		return err
	}
	s.nodes = newNodeConnector(s.pki)
	s.usage = usage.New(usage.Deps{
		Nodes: func(ctx context.Context) ([]*corev1.Node, error) {
			l, _, err := client.For[*corev1.Node](srv.System()).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
			return l, err
		},
		Kubelets: s.nodes, Now: time.Now, Log: s.log,
	})
	docs, err := openapi.New(time.Now())
	if err != nil {
		return err
	}
	v := version()
	s.metrics, err = metrics.NewRegistry(metrics.Build{
		Major: v.Major, Minor: v.Minor, GitVersion: v.GitVersion, GitCommit: v.GitCommit, GitTreeState: v.GitTreeState,
		BuildDate: v.BuildDate, GoVersion: v.GoVersion, Compiler: v.Compiler, Platform: v.Platform,
	})
	if err != nil {
		return err
	}
	bootstrap := &authn.Bootstrap{Audiences: []string{s.issuer()}, Now: time.Now, Lookup: func() *client.Client { return srv.System() }}
	all := api.All()
	srv, err = apiserver.New(apiserver.Deps{
		Store: s.store, Resources: append(all, s.explanations()...), AddToScheme: bodies(), Log: s.log, Now: time.Now,
		Authenticator: &authn.Authenticator{ClientCAs: s.pki.Pool(pki.ClusterCA), Tokens: tokens, Bootstrap: bootstrap, Now: time.Now},
		Authorizer:    authz.Union{authz.Masters{}, authz.NewNode(objects, policy.NodeRules()), authz.NewRBAC(objects)},
		Admission:     admission.Default(),
		Nodes:         s.nodes,
		Tokens:        tokens,
		Issuer:        discovery,
		FieldManagers: fields.New(all),
		Services:      s.alloc,
		Bootstrapped:  s.bootstrapped,
		OpenAPI:       docs,
		Usage:         s.usage,
		PublicAddress: net.JoinHostPort(s.set.NodeAddr().String(), strconv.Itoa(s.set.APIPort)),
		Metrics:       s.metrics,
		Version:       v,
	})
	if err != nil {
		return err
	}
	objects.Server = srv
	s.api = srv
	s.g.start("cache", srv.Run)
	s.g.start("usage", s.usage.Run)
	return nil
}

// serverObjects are the API's objects, for the deciders: they exist before the
// server that they decide for.
type serverObjects struct{ *apiserver.Server }

// bodies registers the types that requests carry besides resources.
func bodies() []func(*k8sruntime.Scheme) error {
	return []func(*k8sruntime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme,
		autoscalingv1.AddToScheme, policyv1.AddToScheme, policyv1beta1.AddToScheme,
	}
}

func version() apiserver.Version {
	return apiserver.Version{
		Major: "1", Minor: "37", EmulationMajor: "1", EmulationMinor: "37", MinCompatibilityMajor: "1", MinCompatibilityMinor: "36",
		GitVersion: "v" + KubernetesVersion + "+skiff", GitTreeState: "clean", GoVersion: runtime.Version(), Compiler: runtime.Compiler,
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
}

// serve answers HTTPS on l.
func (s *server) serve(l net.Listener) {
	cfg := s.pki.Pair("apiserver").ServerTLS(s.pki.Pool(pki.ClusterCA))
	cfg.NextProtos = []string{"h2", "http/1.1"}
	// Small records at a connection's start are for pages that show while they
	// load: a client of the API needs the whole of an answer.
	cfg.DynamicRecordSizingDisabled = true
	h := &http.Server{
		Handler: s.api.Handler(), TLSConfig: cfg, ReadHeaderTimeout: 32 * time.Second, IdleTimeout: 90 * time.Second,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 1000},
	}
	s.g.start("api", func(ctx context.Context) error {
		failed := make(chan error, 1)
		go func() { failed <- h.Serve(tls.NewListener(l, cfg)) }()
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			// Watches never end on their own: they are cut, and resumed by their
			// clients at the next start.
			wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if err := h.Shutdown(wait); err != nil {
				return errors.Join(h.Close(), ignoreDeadline(err))
			}
			return nil
		}
	})
}

func ignoreDeadline(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// local is a client in process under an identity.
func (s *server) local(user, manager string, groups ...string) *client.Client {
	return client.New(s.api.Local(resource.User{Name: user, Groups: append(groups, "system:authenticated")}), manager)
}

// nodeConnector reaches kubelets by their internal address, and knows them by
// their node's name: an address may be another's tomorrow.
type nodeConnector struct {
	pki *pki.PKI
	mu  sync.Mutex
	by  map[string]*http.Transport
}

func newNodeConnector(p *pki.PKI) *nodeConnector {
	return &nodeConnector{pki: p, by: map[string]*http.Transport{}}
}

func (n *nodeConnector) transport(node string) *http.Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.by[node]
	if t == nil {
		cfg := n.pki.Pair("apiserver-kubelet-client").ClientTLS(n.pki.Pool(pki.ClusterCA), node)
		t = &http.Transport{TLSClientConfig: cfg, TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second}
		n.by[node] = t
	}
	return t
}

func (n *nodeConnector) Kubelet(_ context.Context, node *corev1.Node) (*url.URL, http.RoundTripper, error) {
	host := ""
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			host = a.Address
			break
		}
	}
	if host == "" {
		return nil, nil, fmt.Errorf("node %q has no internal address", node.Name)
	}
	port := int(node.Status.DaemonEndpoints.KubeletEndpoint.Port)
	if port == 0 {
		port = 10250
	}
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(port))}, n.transport(node.Name), nil
}
