package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"skiff/internal/client"
	"skiff/internal/control"
	"skiff/internal/controller"
)

// RunAPI runs the API server of an instance alone, wired as in a whole process:
// store, certificates, allocators, admission and the objects that every cluster
// has, but no controllers, no scheduler and no node. Nothing but its clients
// changes an object, which is what comparing it with another server needs. It
// listens on loopback only, and returns when ctx ends or a part fails; ready is
// called when it answers.
func RunAPI(ctx context.Context, set *Settings, log *slog.Logger, ready func()) error {
	g := newGroup(log)
	defer g.stop()
	s := &server{set: set, log: log, g: g}
	var eg errgroup.Group
	eg.Go(func() error { return s.openStore(ctx) })
	eg.Go(func() error { return s.openPKI(ctx) })
	if err := eg.Wait(); err != nil {
		return err
	}
	if err := s.newAPI(); err != nil {
		return err
	}
	select {
	case <-s.api.Ready():
	case err := <-g.failed:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.alloc.Start(ctx); err != nil {
		return err
	}
	g.start("service allocations", s.alloc.Run)
	// The controllers do not run: what they declare makes their roles.
	idle := controller.All(controller.Deps{Deps: control.Deps{
		Informers: client.NewInformers(s.local("system:kube-controller-manager", "kube-controller-manager"), log), Log: log, Now: time.Now,
		ClientFor: func(name string) *client.Client { return s.local("system:serviceaccount:kube-system:"+name, name) },
	}, Resources: s.resources})
	if err := s.bootstrap(ctx, idle); err != nil {
		return err
	}
	close(s.bootstrapped)
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", set.APIPort))
	if err != nil {
		return portError("apiPort", set.APIPort, err)
	}
	s.serve(l)
	ready()
	return g.wait(ctx)
}
