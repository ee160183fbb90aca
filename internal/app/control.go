package app

import (
	"context"
	"net/netip"
	"net/url"
	"time"

	"skiff/internal/api/resource"
	"skiff/internal/client"
	"skiff/internal/control"
	"skiff/internal/controller"
	"skiff/internal/pki"
	"skiff/internal/scheduler"
)

// startControl starts the controllers and the scheduler, in process.
func (s *server) startControl(ctx context.Context) error {
	informers := client.NewInformers(s.local("system:kube-controller-manager", "kube-controller-manager"), s.log)
	deps := controller.Deps{
		Deps: control.Deps{
			Informers: informers, Log: s.log, Now: time.Now,
			ClientFor: func(name string) *client.Client {
				switch name {
				case controller.TokensController:
					return s.local("system:kube-controller-manager", name)
				case controller.TokenTrackingController:
					return s.api.System()
				}
				return client.New(s.api.Local(controllerUser(name)), name)
			},
		},
		RootCA:    s.pki.CA(pki.ClusterCA).CertPEM,
		Resources: s.resources,
		Get: func(ctx context.Context, name, path string, q url.Values) (int, []byte, error) {
			return s.api.Ask(ctx, controllerUser(name), path, q)
		},
		LocalVolumes: localVolumes{s.nodes},
		Tokens:       s.tokens,
		ClusterCIDRs: s.set.PodRanges, ServiceCIDRs: s.set.ServiceRanges,
		NoLoadBalancers: s.set.LoadBalancers == "none",
	}
	for _, a := range s.set.NodeAddrs {
		deps.ReservedPorts = append(deps.ReservedPorts, netip.AddrPortFrom(a, uint16(s.set.APIPort)))
	}
	if ca := s.pki.CA(pki.ClusterCA); ca.CanSign() {
		deps.Authority = ca
	}
	all := controller.All(deps)
	// What follows acts under its own identity: it needs its role.
	if err := s.bootstrap(ctx, all); err != nil {
		return err
	}
	close(s.bootstrapped)
	if err := control.Register(s.metrics, all); err != nil {
		return err
	}
	s.g.start("informers", informers.Run)
	s.g.start("controllers", func(ctx context.Context) error { return control.Run(ctx, deps.Deps, all) })

	c := s.local("system:kube-scheduler", "kube-scheduler")
	events := scheduler.NewEventWriter(scheduler.EventWriterDeps{Client: c, Log: s.log, Now: time.Now})
	s.g.start("scheduler events", events.Run)
	sched, err := scheduler.New(scheduler.Deps{
		Client: c, Informers: informers, Events: events, Log: s.log, Now: time.Now, Seed: uint64(time.Now().UnixNano()),
		Config: s.set.Scheduler, Metrics: s.metrics,
	})
	if err != nil {
		return err
	}
	s.g.start("scheduler", sched.Run)
	return nil
}

// controllerUser is the service account of a controller.
func controllerUser(name string) resource.User {
	return resource.User{
		Name:   "system:serviceaccount:kube-system:" + name,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"},
	}
}

// resources lists what the API serves, for the controllers of all kinds.
func (s *server) resources(context.Context) ([]controller.Resource, error) {
	var out []controller.Resource
	for _, r := range s.api.Served() {
		if r.Prefix == "" || r.Twin != nil {
			continue
		}
		out = append(out, controller.Resource{GVR: r.GVR(), Kind: r.Kind, Namespaced: r.Namespaced, Verbs: r.ServedVerbs()})
	}
	return out, nil
}
