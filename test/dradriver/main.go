// Command dradriver is a driver of devices that do not exist, for tests: it
// publishes them, and a container that is given some finds their names, separated
// by commas, in the variable DEVICES. It is written with the library that real
// drivers are written with, and is a module of its own, so that skiff does not
// depend on that.
//
// It prints a line for each call: "prepare NAMESPACE/CLAIM", "unprepare
// NAMESPACE/CLAIM". SIGUSR1 makes its devices unhealthy.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

const cdiDir = "/var/run/cdi"

type driver struct {
	name, pool string
	devices    int
	sick       chan struct{} // closed when the devices become unhealthy
}

func main() {
	var (
		kubeconfig = flag.String("kubeconfig", "", "how to reach the API")
		name       = flag.String("name", "", "of the driver")
		node       = flag.String("node", "", "of the node")
		registry   = flag.String("registry", "", "the kubelet's registry of plugins")
		data       = flag.String("data", "", "where the driver has its socket")
		devices    = flag.Int("devices", 1, "how many there are")
	)
	flag.Parse()
	if err := run(*kubeconfig, *name, *node, *registry, *data, *devices); err != nil {
		log.Fatal(err)
	}
}

func run(kubeconfig, name, node, registry, data string, devices int) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(data, 0o750), os.MkdirAll(cdiDir, 0o755)); err != nil {
		return err
	}
	d := &driver{name: name, pool: node, devices: devices, sick: make(chan struct{})}
	usr := make(chan os.Signal, 1)
	signal.Notify(usr, syscall.SIGUSR1)
	go func() {
		<-usr
		close(d.sick)
	}()
	plugin, err := kubeletplugin.Start(ctx, d, kubeletplugin.DriverName(name), kubeletplugin.NodeName(node), kubeletplugin.KubeClient(c),
		kubeletplugin.RegistrarDirectoryPath(registry), kubeletplugin.PluginDataDirectoryPath(data))
	if err != nil {
		return err
	}
	defer plugin.Stop()
	var slice resourceslice.Slice
	for i := range devices {
		slice.Devices = append(slice.Devices, resourcev1.Device{Name: fmt.Sprintf("d%d", i)})
	}
	if err := plugin.PublishResources(ctx, resourceslice.DriverResources{
		Pools: map[string]resourceslice.Pool{node: {Slices: []resourceslice.Slice{slice}}},
	}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (d *driver) kind() string { return d.name + "/device" }

func (d *driver) spec(claim types.UID) string {
	return filepath.Join(cdiDir, strings.ReplaceAll(d.name, "/", "_")+"-"+string(claim)+".json")
}

// PrepareResourceClaims implements kubeletplugin.DRAPlugin.
func (d *driver) PrepareResourceClaims(_ context.Context, claims []*resourcev1.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	out := map[types.UID]kubeletplugin.PrepareResult{}
	for _, c := range claims {
		fmt.Printf("prepare %s/%s\n", c.Namespace, c.Name)
		out[c.UID] = d.prepare(c)
	}
	return out, nil
}

func (d *driver) prepare(c *resourcev1.ResourceClaim) kubeletplugin.PrepareResult {
	var r kubeletplugin.PrepareResult
	var names []string
	for _, a := range c.Status.Allocation.Devices.Results {
		if a.Driver != d.name {
			continue
		}
		names = append(names, a.Device)
		r.Devices = append(r.Devices, kubeletplugin.Device{
			Requests: []string{a.Request}, PoolName: a.Pool, DeviceName: a.Device, CDIDeviceIDs: []string{d.kind() + "=" + string(c.UID)},
		})
	}
	spec, err := json.Marshal(map[string]any{
		"cdiVersion": "0.6.0", "kind": d.kind(),
		"devices": []any{map[string]any{
			"name": string(c.UID), "containerEdits": map[string]any{"env": []string{"DEVICES=" + strings.Join(names, ",")}},
		}},
	})
	if err == nil {
		err = os.WriteFile(d.spec(c.UID), spec, 0o644)
	}
	r.Err = err
	return r
}

// UnprepareResourceClaims implements kubeletplugin.DRAPlugin.
func (d *driver) UnprepareResourceClaims(_ context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	out := map[types.UID]error{}
	for _, c := range claims {
		fmt.Printf("unprepare %s/%s\n", c.Namespace, c.Name)
		err := os.Remove(d.spec(c.UID))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		out[c.UID] = err
	}
	return out, nil
}

// WatchHealthStatus implements kubeletplugin.DRAPlugin.
func (d *driver) WatchHealthStatus(ctx context.Context, reports chan<- kubeletplugin.DeviceHealthReport) error {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	status, message, sick := kubeletplugin.HealthStatusHealthy, "", d.sick
	for {
		var r kubeletplugin.DeviceHealthReport
		for i := range d.devices {
			r.Devices = append(r.Devices, kubeletplugin.DeviceHealth{
				PoolName: d.pool, DeviceName: fmt.Sprintf("d%d", i), Health: status, Message: message, LastUpdated: time.Now(),
			})
		}
		select {
		case reports <- r:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-tick.C:
		case <-sick:
			status, message, sick = kubeletplugin.HealthStatusUnhealthy, "too hot", nil
		case <-ctx.Done():
			return nil
		}
	}
}

// HandleError implements kubeletplugin.DRAPlugin.
func (d *driver) HandleError(_ context.Context, err error, what string) {
	log.Printf("%s: %v", what, err)
}
