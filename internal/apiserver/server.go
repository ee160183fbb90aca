// Package apiserver serves the Kubernetes API: HTTP, the request pipeline, the
// verbs over cache and store, discovery, OpenAPI, streaming.
//
// A request is the same whether it came by HTTP or from a part of skiff in the
// same process (Local): authenticated, authorized, decoded, then one of the verbs
// of this package. What is particular to a resource is declared in internal/api.
package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"

	"skiff/internal/api/resource"
	"skiff/internal/cache"
	"skiff/internal/client"
	"skiff/internal/codec"
	"skiff/internal/store"
)

// Object is an API object.
type Object = resource.Object

// Deps is what a Server needs.
type Deps struct {
	Store     store.Store
	Resources []*resource.Resource
	// AddToScheme registers the Go types of bodies that are not resources
	// (options, Scale, Binding, TokenRequest).
	AddToScheme []func(*runtime.Scheme) error
	Log         *slog.Logger
	Now         func() time.Time
	Features    resource.Features

	// Authenticator tells who asks; Authorizer whether it may. Admission may
	// change or refuse writes.
	Authenticator Authenticator
	Authorizer    Authorizer
	Admission     []Admission
	// FieldManagers keeps managedFields; nil keeps none.
	FieldManagers FieldManagers
	// OpenAPI serves /openapi; nil answers 404.
	OpenAPI http.Handler
	// Nodes reaches kubelets, for logs, exec and proxies.
	Nodes NodeConnector

	Tokens resource.TokenIssuer
	// Issuer serves how others verify the tokens; nil answers 404.
	Issuer   http.Handler
	Services resource.ServiceAllocator
	// Usage tells what nodes and pods use; nil where nobody knows.
	Usage resource.UsageSource

	// Metrics is what /metrics shows, to which the server adds its own; nil is a
	// registry that has nothing else.
	Metrics *prometheus.Registry

	// PublicAddress is the host:port that discovery names; where empty, the one
	// that the request went to.
	PublicAddress string
	// Version is the answer of /version.
	Version Version
	// Bootstrapped is closed when the objects that every cluster has are there,
	// default roles before all; /readyz waits for it. Nil waits for nothing.
	Bootstrapped <-chan struct{}
	// VerifyCache makes the cache detect modified objects: for tests.
	VerifyCache bool
}

// compactEvery is how often the store is relieved of its history, as upstream does.
const compactEvery = 5 * time.Minute

// Authenticator tells who sent a request: nil and no error when it presents no
// credentials, an error when it presents bad ones.
type Authenticator interface {
	Authenticate(r *http.Request) (*resource.User, error)
	// Token checks a bearer token for the audiences given (nil: the server's).
	Token(ctx context.Context, token string, audiences []string) (*resource.User, []string, error)
}

// Authorizer decides on a request.
type Authorizer interface {
	Authorize(ctx context.Context, a resource.Attributes) (resource.Decision, error)
	Rules(ctx context.Context, u resource.User, namespace string) (resource.RuleList, error)
}

// FieldManagers maintains metadata.managedFields.
type FieldManagers interface {
	// Update notes that manager made obj out of live (nil on creation) through
	// the door sub. It may change obj and returns it.
	Update(r *resource.Resource, sub string, live, obj Object, manager string) (Object, error)
	// Apply merges a server-side apply configuration, as decoded, into live (an
	// empty object on creation) and returns a new object.
	Apply(r *resource.Resource, sub string, live Object, config map[string]any, manager string, force bool) (Object, error)
	// Valid tells whether managed fields can be read.
	Valid(entries []metav1.ManagedFieldsEntry) error
}

// kind is a resource as the server holds it.
type kind struct {
	*resource.Resource
	// stored is the resource whose objects are kept: itself, or its twin's.
	stored *resource.Resource
	col    *cache.Collection
	gvk    schema.GroupVersionKind
	// watched counts the events that its watches sent over the network.
	watched atomic.Uint64
}

// hasObjects tells whether there are objects to name: kept, or measured.
func (k *kind) hasObjects() bool { return k.col != nil || k.Live != nil }

// Server is the API server. Use New.
type Server struct {
	Deps
	cache  *cache.Cache
	codec  *codec.Codec
	kinds  map[schema.GroupVersionResource]*kind
	order  []*kind
	system *client.Client

	requests  *requests
	recorders sync.Pool // of *recorder

	impersonation *impersonation
	buffers       buffers
	shared        shared
}

// New builds a server; Run fills its cache.
func New(d Deps) (*Server, error) {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.Default()
	}
	if d.Features == nil {
		d.Features = resource.DefaultFeatures()
	}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	utilruntime.Must(metav1.AddMetaToScheme(scheme))
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	for _, r := range d.Resources {
		metav1.AddToGroupVersion(scheme, r.GroupVersion)
	}
	for _, add := range d.AddToScheme {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register types: %w", err)
		}
	}
	if d.Metrics == nil {
		d.Metrics = prometheus.NewRegistry()
	}
	timed := measureStore(d.Store, d.Resources)
	d.Store = timed
	s := &Server{
		Deps: d, requests: newRequests(), codec: codec.New(scheme), kinds: map[schema.GroupVersionResource]*kind{},
		cache:         cache.New(cache.Config{Store: d.Store, Log: d.Log, Verify: d.VerifyCache, CompactEvery: compactEvery}),
		impersonation: newImpersonation(d.Authorizer),
	}
	cols := map[*resource.Resource]*cache.Collection{}
	for _, r := range d.Resources {
		k := &kind{Resource: r, stored: r, gvk: r.GVK()}
		if r.Twin != nil {
			k.stored = r.Twin.Of
		}
		if k.stored.Prefix != "" {
			if cols[k.stored] == nil {
				cols[k.stored] = s.cache.Add(s.collection(k.stored))
			}
			k.col = cols[k.stored]
		}
		s.kinds[r.GVR()] = k
		s.order = append(s.order, k)
		if r.New != nil {
			scheme.AddKnownTypeWithName(r.GVK(), r.New())
		}
		if r.NewList != nil {
			scheme.AddKnownTypeWithName(r.GroupVersion.WithKind(r.Kind+"List"), r.NewList())
		}
	}
	for _, c := range []prometheus.Collector{collector{s, newDescs()}, timed} {
		if err := d.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	s.system = client.New(s.Local(resource.User{Name: "system:apiserver", Groups: []string{"system:masters", "system:authenticated"}}), "kube-apiserver")
	return s, nil
}

func (s *Server) collection(r *resource.Resource) cache.CollectionConfig {
	cfg := cache.CollectionConfig{
		Prefix: r.Prefix,
		Lazy:   r.Plural == "events",
		Decode: func(_ string, value []byte, rev int64) (client.Object, error) { return s.decodeStored(r, value, rev) },
	}
	if r.Plural == "pods" {
		cfg.Node = nodeOf
	}
	return cfg
}

// nodeOf is the node of a pod.
func nodeOf(o client.Object) string {
	if p, ok := o.(*corev1.Pod); ok {
		return p.Spec.NodeName
	}
	return ""
}

// Run follows the store until ctx ends.
func (s *Server) Run(ctx context.Context) error { return s.cache.Run(ctx) }

// Ready is closed when the server can answer.
func (s *Server) Ready() <-chan struct{} { return s.cache.Ready() }

// System returns a client with the API server's own identity.
func (s *Server) System() *client.Client { return s.system }

func (s *Server) env(rq *request, dryRun bool) resource.Env {
	return resource.Env{
		Now: s.Now, Features: s.Features, User: rq.user, Verb: rq.verb, DryRun: dryRun, Warn: rq.warn, Client: s.system,
		Authorize: s.Authorizer.Authorize, Authenticate: s.Authenticator.Token, Rules: s.Authorizer.Rules,
		Tokens: s.Tokens, Services: s.Services, Usage: s.Usage,
	}
}

func (s *Server) now() metav1.Time { return metav1.NewTime(s.Now().UTC().Truncate(time.Second)) }

// Served returns the resources served.
func (s *Server) Served() []*resource.Resource {
	out := make([]*resource.Resource, 0, len(s.order))
	for _, k := range s.order {
		out = append(out, k.Resource)
	}
	return out
}
