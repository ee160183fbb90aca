package build

import (
	"slices"
	"strings"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// Served returns what is served: the declared resources, and those that clients
// know and that are not declared yet.
func Served() []*resource.Resource {
	all := api.All()
	for _, k := range client.Kinds {
		if slices.ContainsFunc(all, func(r *resource.Resource) bool { return r.GVR() == k.GVR }) || strings.HasSuffix(k.GVR.Resource, "reviews") {
			continue
		}
		all = append(all, &resource.Resource{
			GroupVersion: k.GVR.GroupVersion(), Kind: k.GVK.Kind, Plural: k.GVR.Resource, Namespaced: k.Namespaced,
			New: k.New, NewList: k.NewList,
		})
	}
	return all
}
