// Package api lists the built-in API resources. Each is declared in one file (or,
// for the few large ones, one folder) below.
package api

import (
	"skiff/internal/api/apps"
	"skiff/internal/api/coordination"
	"skiff/internal/api/core"
	"skiff/internal/api/core/pod"
	"skiff/internal/api/core/service"
	"skiff/internal/api/discovery"
	"skiff/internal/api/networking"
	"skiff/internal/api/resource"
)

// All returns the built-in resources, in the order of discovery.
func All() []*resource.Resource {
	events, newEvents := core.Events()
	return []*resource.Resource{
		pod.Binding(),
		core.ConfigMap(),
		core.Endpoints(),
		events,
		core.Namespace(),
		core.Node(),
		pod.Pod(),
		core.Secret(),
		core.ServiceAccount(),
		service.Service(),
		apps.Deployment(),
		apps.ReplicaSet(),
		coordination.Lease(),
		discovery.EndpointSlice(),
		newEvents,
		networking.IPAddress(),
		networking.ServiceCIDR(),
	}
}
