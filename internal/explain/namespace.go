package explain

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/explanation"
	"skiff/internal/client"
)

// explainNamespace says why a namespace does not go away.
func (w *World) explainNamespace(ns *corev1.Namespace) *explanation.Explanation {
	out := begin("Namespace", "v1", ns)
	if ns.DeletionTimestamp == nil {
		out.State, out.Summary = explanation.Fine, "it is active"
		return out
	}
	out.State = explanation.Ending
	resources := make([]schema.GroupVersionResource, 0, len(w.Left))
	for r, objects := range w.Left {
		if len(objects) > 0 {
			resources = append(resources, r)
		}
	}
	slices.SortFunc(resources, func(a, b schema.GroupVersionResource) int {
		return cmp.Or(cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Group, b.Group))
	})
	total, held := 0, false
	for _, r := range resources {
		objects := w.Left[r]
		total += len(objects)
		name := r.GroupResource().String()
		by := map[string][]client.Object{}
		for _, o := range objects {
			for _, f := range o.GetFinalizers() {
				by[f] = append(by[f], o)
			}
			if len(o.GetFinalizers()) == 0 {
				by[""] = append(by[""], o)
			}
		}
		for _, f := range sorted(by) {
			names := few(each(by[f], func(o client.Object) string { return o.GetName() }))
			if f == "" {
				cause(out, "ContentRemaining", "%s: %s", name, names)
				continue
			}
			held = true
			cause(out, "FinalizersRemaining", "%s: %s, held by finalizer %s", name, names, f)
			first := by[f][0]
			advise(out, fmt.Sprintf("let the owner of finalizer %s do its work, or take the finalizer off %s", f, first.GetName()),
				&explanation.Reference{APIVersion: r.GroupVersion().String(), Kind: r.Resource, Namespace: ns.Name, Name: first.GetName()},
				fmt.Sprintf(`kubectl patch %s %s -n %s --type merge -p '{"metadata":{"finalizers":null}}'`, name, first.GetName(), ns.Name))
		}
	}
	for _, group := range sorted(w.Broken) {
		cause(out, "DiscoveryFailed", "API group %s does not answer: %s", group, w.Broken[group])
		advise(out, fmt.Sprintf("mend what serves %s, or delete its APIService: nobody knows whether objects of it remain", group), nil, "kubectl get apiservices")
	}
	for _, c := range ns.Status.Conditions {
		if c.Status == corev1.ConditionTrue && (c.Type == corev1.NamespaceDeletionContentFailure || c.Type == corev1.NamespaceDeletionDiscoveryFailure && len(w.Broken) == 0) {
			cause(out, c.Reason, "%s", c.Message)
		}
	}
	age := since(w.Now.Sub(ns.DeletionTimestamp.Time))
	var foreign []string
	for _, f := range ns.Spec.Finalizers {
		if f != corev1.FinalizerKubernetes {
			foreign = append(foreign, string(f))
		}
	}
	foreign = append(foreign, ns.Finalizers...)
	switch {
	case total > 0:
		out.Summary = fmt.Sprintf("it is being deleted for %s, and %s %s left in it", age, count(total, "object"), isAre(total))
		if !held {
			out.Summary += " that are being deleted too"
			if total == 1 {
				out.Summary = fmt.Sprintf("it is being deleted for %s, and 1 object in it still is too", age)
			}
		}
	case len(w.Broken) > 0:
		out.Summary = fmt.Sprintf("it is being deleted for %s, and %s of the API does not answer", age, count(len(w.Broken), "group"))
	case len(foreign) > 0:
		out.Summary = fmt.Sprintf("it is empty, and held by %s", some("finalizer", foreign, ""))
		for _, f := range foreign {
			cause(out, "Finalizer", "finalizer %s: whoever set it is to take it off", f)
		}
	default:
		out.Summary = fmt.Sprintf("it is being deleted for %s, and empty: it is about to go", age)
	}
	return out
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}
