// Package controller has the controllers, one file each. Each declares what it
// watches and writes (see package control) and keeps its decisions in functions of
// a snapshot; All lists them.
package controller

import (
	"context"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1 "k8s.io/metrics/pkg/apis/metrics/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

// Deps is what controllers are made from. The zero values of the fields below are
// sound, but for RootCA.
type Deps struct {
	control.Deps

	// RootCA is the PEM bundle by which pods know the API server.
	RootCA []byte
	// Resources lists what the API serves, custom resources included; the
	// built-in kinds where nil. It is asked again and again and must be cheap.
	Resources func(ctx context.Context) ([]Resource, error)
	// ClusterCIDRs are the ranges of pod addresses, one per family; where there
	// are none, nodes are given no podCIDRs. ServiceCIDRs are kept out of them.
	ClusterCIDRs, ServiceCIDRs []netip.Prefix
	// TerminatedPods is how many ended pods are kept, 12500 where zero, all where
	// negative.
	TerminatedPods int
	// NamespaceSettle is how long after its deletion a namespace goes at the
	// earliest, so that every server knows of the deletion and admits nothing
	// more into it; 2 s where zero.
	NamespaceSettle time.Duration
	// Get asks the API for a path, not escaped, as the controller named, for groups
	// that extensions serve; nil where there are none.
	Get func(ctx context.Context, controller, path string, q url.Values) (code int, body []byte, err error)
	// LocalVolumes reaches the nodes for the directories of local volumes; where it
	// is nil, class local is not provisioned.
	LocalVolumes LocalVolumes
	// Authority signs certificate requests; where it is nil, none are signed.
	Authority Authority
	// Tokens signs the tokens of Secrets; where it is nil, none are filled in.
	Tokens LegacyTokens
	// ReservedPorts are those of nodes that no load balancer may take: the API
	// server's. Who took them would lock everybody out.
	ReservedPorts []netip.AddrPort
	// NoLoadBalancers leaves services of type LoadBalancer to others.
	NoLoadBalancers bool
}

// Resource is a resource as the controllers that handle all kinds see it.
type Resource struct {
	GVR        schema.GroupVersionResource
	Kind       string
	Namespaced bool
	Verbs      []string
}

func (r Resource) can(verb string) bool { return slices.Contains(r.Verbs, verb) }

// resources is Deps.Resources with its default.
func (d Deps) resources(ctx context.Context) ([]Resource, error) {
	if d.Resources != nil {
		return d.Resources(ctx)
	}
	all := []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	var out []Resource
	for _, k := range client.Kinds {
		r := Resource{GVR: k.GVR, Kind: k.GVK.Kind, Namespaced: k.Namespaced, Verbs: all}
		switch {
		case k.GVR.Resource == "tokenreviews" || k.GVR.Resource == "subjectaccessreviews":
			r.Verbs = []string{"create"}
		case k.GVR.Group == metricsv1.GroupName:
			r.Verbs = []string{"get", "list"}
		}
		out = append(out, r)
	}
	return out, nil
}

// All returns every controller, to be run by control.Run.
func All(d Deps) []*control.Controller {
	cs := []*control.Controller{
		newAttachDetach(d),
		newAutoscaler(d),
		newBootstrapSigner(d),
		newCertificateApproval(d),
		newCertificateCleaner(d),
		newClusterRoleAggregation(d),
		newCollector(d),
		newCronJob(d),
		newDaemonSet(d),
		newDeployment(d),
		newDeviceTaintEviction(d),
		newDisruption(d),
		newEndpoints(d),
		newEndpointSlice(d),
		newEndpointSliceMirroring(d),
		newEphemeralVolume(d),
		newExpand(d),
		newJob(d),
		newLegacyTokenCleaner(d),
		newNamespace(d),
		newNodeLifecycle(d),
		newPodCertificateCleaner(d),
		newPodGC(d),
		newPodGroupProtection(d),
		newPVBinder(d),
		newPVCProtection(d),
		newPVProtection(d),
		newReplicaSet(d),
		newReplicationController(d),
		newResourceClaim(d),
		newResourceClaimRelease(d),
		newResourceQuota(d),
		newRootCA(d),
		newServiceAccount(d),
		newServiceCIDR(d),
		newStatefulSet(d),
		newTaintEviction(d),
		newTTLAfterFinished(d),
		newTokenCleaner(d),
		newTokenTracking(d),
		newTrustBundle(d),
		newVACProtection(d),
	}
	if len(d.ClusterCIDRs) > 0 {
		cs = append(cs, newNodeIPAM(d))
	}
	if d.Authority != nil {
		cs = append(cs, newCertificateSigning(d))
	}
	if d.Tokens != nil {
		cs = append(cs, newLegacyTokens(d))
	}
	if !d.NoLoadBalancers {
		cs = append(cs, newLoadBalancer(d))
	}
	if d.LocalVolumes != nil {
		cs = append(cs, newLocalVolume(d))
	}
	names := queueNames()
	for _, c := range cs {
		c.QueueName = names[c.Name]
	}
	return cs
}
