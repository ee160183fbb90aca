package explain

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/client"
)

// Remote reads over HTTPS what a Reader needs besides the client.
func Remote(h *client.HTTPS) Reader {
	r := remote{h}
	return Reader{Client: client.New(h, "skiff-explain"), Logs: r.logs, Resources: r.resources, Objects: r.objects}
}

type remote struct{ h *client.HTTPS }

// logLines is how much of a log is read.
const logLines = "5"

func (r remote) logs(ctx context.Context, ns, pod, container string, previous bool) (string, error) {
	q := url.Values{"container": {container}, "tailLines": {logLines}, "previous": {fmt.Sprint(previous)}}
	b, err := r.h.Raw(ctx, "/api/v1/namespaces/"+ns+"/pods/"+pod+"/log", q, "")
	return string(b), err
}

// resources reads what the server has, and which groups it cannot ask.
func (r remote) resources(ctx context.Context) ([]schema.GroupVersionResource, map[string]string, error) {
	broken := map[string]string{}
	var out []schema.GroupVersionResource
	for _, root := range []string{"/api", "/apis"} {
		b, err := r.h.Raw(ctx, root, nil, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
		if err != nil {
			return nil, nil, err
		}
		var list apidiscoveryv2.APIGroupDiscoveryList
		if err := json.Unmarshal(b, &list); err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", root, err)
		}
		for _, g := range list.Items {
			for i, v := range g.Versions {
				if v.Freshness == apidiscoveryv2.DiscoveryFreshnessStale {
					broken[g.Name+"/"+v.Version] = "its server cannot be asked what it serves"
					continue
				}
				if i > 0 {
					continue // the same objects again
				}
				for _, res := range v.Resources {
					if res.Scope == apidiscoveryv2.ScopeNamespace && slices.Contains(res.Verbs, "list") && slices.Contains(res.Verbs, "delete") {
						out = append(out, schema.GroupVersionResource{Group: g.Name, Version: v.Version, Resource: res.Resource})
					}
				}
			}
		}
	}
	return out, broken, nil
}

// objects reads the metadata of what is in a namespace.
func (r remote) objects(ctx context.Context, gvr schema.GroupVersionResource, ns string) ([]client.Object, error) {
	p := "/apis/" + gvr.Group + "/" + gvr.Version
	if gvr.Group == "" {
		p = "/api/" + gvr.Version
	}
	b, err := r.h.Raw(ctx, p+"/namespaces/"+ns+"/"+gvr.Resource, nil, "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json")
	if err != nil {
		return nil, err
	}
	var list metav1.PartialObjectMetadataList
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read %s: %w", gvr.Resource, err)
	}
	out := make([]client.Object, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
	}
	return out, nil
}
