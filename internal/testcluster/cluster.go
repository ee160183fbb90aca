// Package testcluster runs a whole control plane in one process for tests and
// simulation: the real API server over any store, the real controllers and
// scheduler, and hollow nodes, which are kubelets without containers.
//
// Everything works inside testing/synctest where the store does (store/mem).
// Faults wrap the transports of its parts and do to requests and watches what
// networks and dying processes do.
package testcluster

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/api/scheduling"
	"skiff/internal/api/storage"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/admission"
	"skiff/internal/apiserver/fields"
	"skiff/internal/client"
	"skiff/internal/control"
	"skiff/internal/controller"
	"skiff/internal/scheduler"
	"skiff/internal/store"
)

// rootCA is an authority of which nobody has the key.
//
//go:embed ca.pem
var rootCA []byte

// Config is what a Cluster is made from.
type Config struct {
	Store store.Store
	Log   *slog.Logger
	// Now is the wall clock of every part; time.Now where nil.
	Now func() time.Time
	// Verify makes the cache detect modified objects, at the cost of a hash of
	// every object.
	Verify bool
}

// Cluster is an API server with admission and managed fields, without
// authentication: whoever has the process has the cluster.
type Cluster struct {
	API *apiserver.Server
	cfg Config
}

// New returns a cluster whose server works while Run runs.
func New(cfg Config) (*Cluster, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	all := api.All()
	srv, err := apiserver.New(apiserver.Deps{
		Store: cfg.Store, Resources: all, Log: cfg.Log, Now: cfg.Now, VerifyCache: cfg.Verify,
		AddToScheme: []func(*runtime.Scheme) error{
			corev1.AddToScheme, appsv1.AddToScheme, autoscalingv1.AddToScheme, policyv1.AddToScheme, policyv1beta1.AddToScheme,
		},
		Authenticator: everybody{}, Authorizer: everybody{}, Admission: admission.Default(), FieldManagers: fields.New(all),
	})
	if err != nil {
		return nil, err
	}
	return &Cluster{API: srv, cfg: cfg}, nil
}

// Run serves until ctx ends.
func (c *Cluster) Run(ctx context.Context) error { return c.API.Run(ctx) }

// Bootstrap waits for the server and makes what every cluster has and these tests
// need: namespaces, system priority classes, the default storage class.
func (c *Cluster) Bootstrap(ctx context.Context) error {
	select {
	case <-c.API.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		if err := create(ctx, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	for _, pc := range scheduling.SystemClasses() {
		if err := create(ctx, c, pc); err != nil {
			return err
		}
	}
	wait, policy := storagev1.VolumeBindingWaitForFirstConsumer, corev1.PersistentVolumeReclaimDelete
	return create(ctx, c, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "local", Annotations: map[string]string{storage.DefaultClassAnnotation: "true"}},
		Provisioner: controller.LocalProvisioner, VolumeBindingMode: &wait, ReclaimPolicy: &policy,
	})
}

func create[T client.Object](ctx context.Context, c *Cluster, o T) error {
	if _, err := client.For[T](c.API.System()).Create(ctx, o); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %T %q: %w", o, o.GetName(), err)
	}
	return nil
}

// Client returns a client in process under a user's name, which is the manager of
// its fields too.
func (c *Cluster) Client(user string) *client.Client { return client.New(c.Transport(user), user) }

// Transport returns the transport of Client.
func (c *Cluster) Transport(user string) client.Transport {
	return c.API.Local(resource.User{Name: user, Groups: []string{"system:masters", "system:authenticated"}})
}

// Control is one process of controllers and scheduler.
type Control struct {
	// Identity is unique among the processes.
	Identity string
	// Transport returns how the part with that name reaches the API; the
	// cluster's Transport where nil.
	Transport func(part string) client.Transport
	// Seed makes the scheduler's choices repeatable.
	Seed uint64
	// Alone leads without a lease.
	Alone bool
}

// RunControl runs a process of controllers and scheduler: it waits for the lease,
// reads the cluster anew and works until ctx ends or leadership is lost.
func (c *Cluster) RunControl(ctx context.Context, p Control) error {
	transport := p.Transport
	if transport == nil {
		transport = c.Transport
	}
	var lead control.Leadership = control.Alone{}
	if !p.Alone {
		lead = control.NewLease(control.LeaseDeps{
			Client:    client.New(transport("lease"), "kube-controller-manager"),
			Namespace: metav1.NamespaceSystem, Name: "kube-controller-manager", Identity: p.Identity, Now: c.cfg.Now, Log: c.cfg.Log,
		})
	}
	return lead.Lead(ctx, func(ctx context.Context) error {
		informers := client.NewInformers(client.New(transport("informers"), "kube-controller-manager"), c.cfg.Log)
		deps := controller.Deps{
			Deps: control.Deps{
				Informers: informers, Log: c.cfg.Log, Now: c.cfg.Now,
				ClientFor: func(name string) *client.Client { return client.New(transport(name), "kube-controller-manager") },
			},
			RootCA: rootCA, Resources: c.resources, LocalVolumes: directories{},
		}
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return informers.Run(ctx) })
		g.Go(func() error { return control.Run(ctx, deps.Deps, controller.All(deps)) })
		sc := client.New(transport("scheduler"), "kube-scheduler")
		events := scheduler.NewEventWriter(scheduler.EventWriterDeps{Client: sc, Log: c.cfg.Log, Now: c.cfg.Now})
		g.Go(func() error { return events.Run(ctx) })
		s, err := scheduler.New(scheduler.Deps{Client: sc, Informers: informers, Events: events, Log: c.cfg.Log, Now: c.cfg.Now, Seed: p.Seed})
		if err != nil {
			return err
		}
		g.Go(func() error { return s.Run(ctx) })
		if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	})
}

// resources lists what the API serves, for the controllers of all kinds.
func (c *Cluster) resources(context.Context) ([]controller.Resource, error) {
	var out []controller.Resource
	for _, r := range c.API.Served() {
		if r.Prefix != "" && r.Twin == nil {
			out = append(out, controller.Resource{GVR: r.GVR(), Kind: r.Kind, Namespaced: r.Namespaced, Verbs: r.ServedVerbs()})
		}
	}
	return out, nil
}

// directories are those of local volumes on nodes that have no disk.
type directories struct{}

func (directories) Make(_ context.Context, node *corev1.Node, name string) (string, error) {
	return "/" + node.Name + "/" + name, nil
}

func (directories) Remove(context.Context, *corev1.Node, string) error { return nil }

// everybody lets everybody in as an administrator.
type everybody struct{}

func (everybody) Authenticate(*http.Request) (*resource.User, error) {
	return &resource.User{Name: "admin", Groups: []string{"system:masters", "system:authenticated"}}, nil
}

func (everybody) Token(context.Context, string, []string) (*resource.User, []string, error) {
	return nil, nil, nil
}

func (everybody) Authorize(context.Context, resource.Attributes) (resource.Decision, error) {
	return resource.Decision{Allowed: true}, nil
}

func (everybody) Rules(context.Context, resource.User, string) (resource.RuleList, error) {
	return resource.RuleList{}, nil
}
