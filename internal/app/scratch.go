package app

import (
	"strings"

	"skiff/internal/api"
	"skiff/internal/api/resource"
	"skiff/internal/client"
)

// scratch declares what is not there yet, without rules.
func scratch() []*resource.Resource {
	all := api.All()
	have := map[string]bool{}
	for _, r := range all {
		have[r.GVR().String()] = true
	}
	for _, k := range client.Kinds {
		if have[k.GVR.String()] || strings.HasSuffix(k.GVR.Resource, "reviews") {
			continue
		}
		r := &resource.Resource{GroupVersion: k.GVR.GroupVersion(), Kind: k.GVK.Kind, Plural: k.GVR.Resource, Singular: strings.ToLower(k.GVK.Kind), Namespaced: k.Namespaced, New: k.New, NewList: k.NewList, Prefix: "/registry/" + k.GVR.Resource + "/"}
		r.UnconditionalUpdate = true
		all = append(all, r)
	}
	return all
}
