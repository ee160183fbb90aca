package controller

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/control"
)

func TestEveryControllerHasItsRole(t *testing.T) {
	cl := clienttest.New().Client()
	d := Deps{
		Deps:         control.Deps{Informers: client.NewInformers(cl, slog.New(slog.DiscardHandler)), ClientFor: func(string) *client.Client { return cl }},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
	}
	roles, bindings := control.Roles(All(d))
	var got []string
	for i, r := range roles {
		got = append(got, r.Name)
		if b := bindings[i]; b.RoleRef.Name != r.Name || "system:controller:"+b.Subjects[0].Name != r.Name || b.Subjects[0].Namespace != "kube-system" {
			t.Errorf("binding of %s is %v", r.Name, b)
		}
		if len(r.Rules) < 2 {
			t.Errorf("%s has rules %v", r.Name, r.Rules)
		}
	}
	// The names are upstream's: its bootstrap roles serve as well.
	want := []string{
		"system:controller:attachdetach-controller",
		"system:controller:certificate-controller",
		"system:controller:clusterrole-aggregation-controller",
		"system:controller:cronjob-controller",
		"system:controller:daemon-set-controller",
		"system:controller:deployment-controller",
		"system:controller:device-taint-eviction-controller",
		"system:controller:disruption-controller",
		"system:controller:endpoint-controller",
		"system:controller:endpointslice-controller",
		"system:controller:endpointslicemirroring-controller",
		"system:controller:ephemeral-volume-controller",
		"system:controller:expand-controller",
		"system:controller:generic-garbage-collector",
		"system:controller:horizontal-pod-autoscaler",
		"system:controller:job-controller",
		"system:controller:kube-apiserver-serving-clustertrustbundle-publisher",
		"system:controller:legacy-service-account-token-cleaner",
		"system:controller:namespace-controller",
		"system:controller:node-controller",
		"system:controller:persistent-volume-binder",
		"system:controller:pod-garbage-collector",
		"system:controller:podcertificaterequestcleaner",
		"system:controller:podgroup-protection-controller",
		"system:controller:pv-protection-controller",
		"system:controller:pvc-protection-controller",
		"system:controller:replicaset-controller",
		"system:controller:replication-controller",
		"system:controller:resource-claim-controller",
		"system:controller:resourcequota-controller",
		"system:controller:root-ca-cert-publisher",
		"system:controller:service-account-controller",
		"system:controller:service-cidrs-controller",
		"system:controller:service-controller",
		"system:controller:statefulset-controller",
		"system:controller:ttl-after-finished-controller",
		"system:controller:volumeattributesclass-protection-controller",
	}
	if !slices.Equal(got, want) {
		t.Errorf("roles are %v", got)
	}
}

func TestDefaultResourcesAreTheBuiltInKinds(t *testing.T) {
	all, err := Deps{}.resources(context.Background())
	if err != nil || len(all) != len(client.Kinds) {
		t.Fatalf("%d resources, %v", len(all), err)
	}
	for _, r := range all {
		if r.GVR.Resource == "tokenreviews" && r.can("delete") {
			t.Error("reviews cannot be deleted")
		}
		if r.GVR.Group == "metrics.k8s.io" && (r.can("watch") || r.can("delete") || !r.can("list")) {
			t.Errorf("%s in %s: verbs are %v", r.GVR.Resource, r.GVR.Group, r.Verbs)
		}
	}
}
