package devices

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	healthapi "k8s.io/kubelet/pkg/apis/dra-health/v1"
	healthalpha "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"
	drabeta "k8s.io/kubelet/pkg/apis/dra/v1beta1"

	"skiff/internal/client"
)

// callTimeout bounds one call of a driver (upstream's).
const callTimeout = 45 * time.Second

// services are the versions that the kubelet speaks with drivers, best first.
var services = []string{draapi.DRAPluginService, drabeta.DRAPluginService}

// driver is one process that serves a driver: while one is replaced, two may be
// registered.
type driver struct {
	name, endpoint string
	client         draapi.DRAPluginClient
	conn           *grpc.ClientConn
	cancel         context.CancelFunc
	connected      bool // under Devices.mu
}

// Register implements registration.Handler.
func (x *Devices) Register(name, endpoint string, versions []string) error {
	if len(versions) == 0 {
		return fmt.Errorf("invalid supported gRPC versions of DRA driver plugin %s at endpoint %s: %w", name, endpoint,
			errors.New("empty list of supported gRPC services (aka supported versions)"))
	}
	i := slices.IndexFunc(versions, func(v string) bool { return slices.Contains(services, v) })
	if i < 0 {
		return fmt.Errorf("invalid supported gRPC versions of DRA driver plugin %s at endpoint %s: none of services supported by the plugin (%q) are supported by the kubelet (%q)",
			name, endpoint, versions, services)
	}
	conn, err := grpc.NewClient("unix:"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("create gRPC connection to DRA driver %s plugin at endpoint %s: %w", name, endpoint, err)
	}
	v := &driver{name: name, endpoint: endpoint, conn: conn, client: draapi.NewDRAPluginClient(conn)}
	if versions[i] == drabeta.DRAPluginService {
		v.client = drabeta.V1Beta1ClientWrapper{DRAPluginClient: drabeta.NewDRAPluginClient(conn)}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.spawn == nil || slices.ContainsFunc(x.drivers[name], func(o *driver) bool { return o.endpoint == endpoint }) {
		_ = conn.Close() // nothing went over it
		return fmt.Errorf("endpoint %s already registered for DRA driver plugin %s", endpoint, name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	x.drivers[name] = append(x.drivers[name], v)
	x.spawn(func(run context.Context) {
		defer context.AfterFunc(run, cancel)()
		x.follow(ctx, v)
	})
	if h := healthClient(conn, versions); h != nil {
		x.spawn(func(run context.Context) {
			defer context.AfterFunc(run, cancel)()
			x.watchHealth(ctx, v, h)
		})
	}
	x.wipeIfAway(name)
	return nil
}

// Deregister implements registration.Handler.
func (x *Devices) Deregister(name, endpoint string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := slices.IndexFunc(x.drivers[name], func(o *driver) bool { return o.endpoint == endpoint })
	if i < 0 {
		return
	}
	x.drivers[name][i].cancel()
	if x.drivers[name] = slices.Delete(x.drivers[name], i, i+1); len(x.drivers[name]) == 0 {
		delete(x.drivers, name)
	}
	x.wipeIfAway(name)
}

// follow keeps a driver's connection up and notes whether it is.
func (x *Devices) follow(ctx context.Context, v *driver) {
	defer v.conn.Close()
	for {
		state := v.conn.GetState()
		if state == connectivity.Idle {
			v.conn.Connect()
		}
		x.mu.Lock()
		v.connected = state == connectivity.Ready
		x.wipeIfAway(v.name)
		x.mu.Unlock()
		if !v.conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// driver returns the newest process of a driver that is connected, or the newest.
func (x *Devices) driver(name string) (*driver, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.drivers[name]
	if len(all) == 0 {
		return nil, fmt.Errorf("DRA driver %s is not registered", name)
	}
	for _, v := range slices.Backward(all) {
		if v.connected {
			return v, nil
		}
	}
	return all[len(all)-1], nil
}

// wipeIfAway has a driver's slices deleted after a while where no process of it is
// connected, and ends that where one is. x.mu is held.
func (x *Devices) wipeIfAway(name string) {
	here := slices.ContainsFunc(x.drivers[name], func(v *driver) bool { return v.connected })
	cancel, planned := x.wipes[name]
	switch {
	case here && planned:
		cancel()
		delete(x.wipes, name)
	case !here && !planned && x.spawn != nil:
		ctx, cancel := context.WithCancel(context.Background())
		x.wipes[name] = cancel
		x.spawn(func(run context.Context) {
			defer cancel()
			defer context.AfterFunc(run, cancel)()
			if wait(ctx, x.d.Gone) {
				x.wipe(ctx, name)
			}
			x.mu.Lock()
			if ctx.Err() == nil {
				delete(x.wipes, name) // the next time that it is away counts anew
			}
			x.mu.Unlock()
		})
	}
}

// Bounds of the wait between two tries to list or delete slices.
const (
	firstWipe = time.Second
	lastWipe  = 5 * time.Minute
)

// expect notes the drivers that have published devices of this node: those that do not
// come are away.
func (x *Devices) expect(ctx context.Context) {
	sel := fields.Set{resourcev1.ResourceSliceSelectorNodeName: x.d.NodeName}
	for d := firstWipe; ; d = min(d*2, lastWipe) {
		list, _, err := client.For[*resourcev1.ResourceSlice](x.d.Client).List(ctx, metav1.ListOptions{FieldSelector: sel.String()})
		if err == nil {
			x.mu.Lock()
			for _, s := range list {
				x.wipeIfAway(s.Spec.Driver)
			}
			x.mu.Unlock()
			return
		}
		if ctx.Err() != nil {
			return
		}
		x.d.Log.Warn("list resource slices of this node", "err", err)
		if !wait(ctx, d) {
			return
		}
	}
}

// wipe deletes what a driver published of this node.
func (x *Devices) wipe(ctx context.Context, name string) {
	sel := fields.Set{resourcev1.ResourceSliceSelectorNodeName: x.d.NodeName, resourcev1.ResourceSliceSelectorDriver: name}
	for d := firstWipe; ; d = min(d*2, lastWipe) {
		err := client.For[*resourcev1.ResourceSlice](x.d.Client).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: sel.String()})
		if err == nil || apierrors.IsNotFound(err) || ctx.Err() != nil {
			return
		}
		x.d.Log.Warn("delete resource slices of a driver that is not there", "driver", name, "err", err)
		if !wait(ctx, d) {
			return
		}
	}
}

// healthClient returns a client for the health of a driver's devices, nil where the
// driver does not tell.
func healthClient(conn *grpc.ClientConn, versions []string) healthapi.DRAResourceHealthClient {
	switch {
	case slices.Contains(versions, healthapi.DRAResourceHealthService):
		return healthapi.NewDRAResourceHealthClient(conn)
	case slices.Contains(versions, healthalpha.DRAResourceHealthService):
		return healthapi.V1Alpha1ClientWrapper{Client: healthalpha.NewDRAResourceHealthClient(conn)}
	}
	return nil
}

// healthRetry is how long after its end a stream of health is opened again.
const healthRetry = 5 * time.Second

// watchHealth takes what a driver tells of its devices' health.
func (x *Devices) watchHealth(ctx context.Context, v *driver, c healthapi.DRAResourceHealthClient) {
	for {
		err := x.healthOf(ctx, v.name, c)
		if status.Code(err) == codes.Unimplemented || !wait(ctx, healthRetry) {
			return
		}
	}
}

func (x *Devices) healthOf(ctx context.Context, driver string, c healthapi.DRAResourceHealthClient) error {
	stream, err := c.NodeWatchResources(ctx, &healthapi.NodeWatchResourcesRequest{})
	if err != nil {
		return err
	}
	defer x.health.forget(driver)
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, device := range x.health.update(driver, r.GetDevices(), time.Now()) {
			for _, pod := range x.podsOf(driver, device) {
				x.d.Changed(pod)
			}
		}
	}
}
