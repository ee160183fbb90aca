package explain

import (
	"fmt"
	"slices"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"skiff/internal/api/explanation"
)

// explainService says why nobody answers behind a service.
func (w *World) explainService(s *corev1.Service) *explanation.Explanation {
	out := begin("Service", "v1", s)
	ref := &out.Regarding
	ready := 0
	for _, e := range in[*discoveryv1.EndpointSlice](w, s.Namespace) {
		if e.Labels[discoveryv1.LabelServiceName] != s.Name {
			continue
		}
		for _, p := range e.Endpoints {
			if ptr.Deref(p.Conditions.Ready, true) {
				ready += len(p.Addresses)
			}
		}
	}
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		out.State, out.Summary = explanation.Fine, fmt.Sprintf("it is another name of %s", s.Spec.ExternalName)
		return out
	case len(s.Spec.Selector) == 0 && ready > 0:
		out.State, out.Summary = explanation.Fine, fmt.Sprintf("it has %s", count(ready, "endpoint"))
		return out
	case len(s.Spec.Selector) == 0 && s.Namespace == metav1.NamespaceSystem && s.Name == "kube-dns":
		out.State, out.Summary = explanation.Fine, "each node answers it for its own pods: it needs no endpoints"
		return out
	case len(s.Spec.Selector) == 0:
		out.State, out.Summary = explanation.Failing, "it has no selector, and nobody has given it endpoints"
		cause(out, "NoSelector", "spec.selector is empty: EndpointSlices are to be made by hand")
		advise(out, "a selector, or an EndpointSlice with the label kubernetes.io/service-name="+s.Name, ref)
		return out
	}
	selector := labels.SelectorFromSet(s.Spec.Selector)
	var selected []*corev1.Pod
	for _, p := range in[*corev1.Pod](w, s.Namespace) {
		if !finished(p) && p.DeletionTimestamp == nil && selector.Matches(labels.Set(p.Labels)) {
			selected = append(selected, p)
		}
	}
	if noPort := w.noPort(out, s, selected); ready > 0 && !noPort {
		out.State, out.Summary = explanation.Fine, fmt.Sprintf("it has %s that are ready", count(ready, "endpoint"))
		w.pendingBalancer(out, s)
		return out
	}
	out.State = explanation.Failing
	switch {
	case len(selected) == 0:
		out.Summary = "no pod has the labels that it selects"
		cause(out, "NoPods", "no pod in namespace %s has %s", s.Namespace, pairs(s.Spec.Selector))
		w.nearMiss(out, s)
	case out.Summary != "":
	default:
		bad, why := w.worst(selected)
		if bad == nil {
			out.State, out.Summary = explanation.Waiting, fmt.Sprintf("%s selected and ready: its endpoints are about to be written", arePods(len(selected)))
			break
		}
		out.Summary = fmt.Sprintf("none of the %s that it selects is ready", count(len(selected), "pod"))
		cause(out, "NotReady", "pod %s: %s", bad.Name, why.Summary)
		out.Because = append(out.Because, *why)
	}
	return out
}

func arePods(n int) string { return areIs(n, "pod") }

// noPort tells of named target ports that no pod has.
func (w *World) noPort(out *explanation.Explanation, s *corev1.Service, pods []*corev1.Pod) bool {
	found := false
	for _, port := range s.Spec.Ports {
		if port.TargetPort.Type != intstr.String || len(pods) == 0 {
			continue
		}
		var names []string
		has := slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
			for _, c := range p.Spec.Containers {
				for _, o := range c.Ports {
					if o.Name == port.TargetPort.StrVal {
						return true
					}
					if o.Name != "" && !slices.Contains(names, o.Name) {
						names = append(names, o.Name)
					}
				}
			}
			return false
		})
		if !has {
			found = true
			out.State, out.Summary = explanation.Failing, fmt.Sprintf("its target port %s is on none of its pods", port.TargetPort.StrVal)
			cause(out, "NoPort", "no container port is named %s (%s)", port.TargetPort.StrVal, some("there are", names, "none has a name"))
			ref := out.Regarding
			advise(out, fmt.Sprintf("the right targetPort for port %d, or that name on the container's port", port.Port), &ref)
		}
	}
	return found
}

// nearMiss finds the label in which a selector and the pods differ.
func (w *World) nearMiss(out *explanation.Explanation, s *corev1.Service) {
	ref := out.Regarding
	best, missing := (*corev1.Pod)(nil), 0
	for _, p := range in[*corev1.Pod](w, s.Namespace) {
		if finished(p) {
			continue
		}
		n, shares := 0, 0
		for k, v := range s.Spec.Selector {
			got, has := p.Labels[k]
			switch {
			case got != v:
				n++
				shares += order(has)
			default:
				shares++
			}
		}
		if shares > 0 && (best == nil || n < missing) {
			best, missing = p, n
		}
	}
	if best == nil {
		advise(out, "pods with these labels, or another selector", &ref)
		return
	}
	var differ []string
	for _, k := range sorted(s.Spec.Selector) {
		if got, has := best.Labels[k]; got != s.Spec.Selector[k] {
			if has {
				differ = append(differ, k+"="+got)
			} else {
				differ = append(differ, "no "+k)
			}
		}
	}
	cause(out, "NearMiss", "pod %s has %s", best.Name, strings.Join(differ, ", "))
	next := s.DeepCopy()
	for k := range next.Spec.Selector {
		if v, has := best.Labels[k]; has {
			next.Spec.Selector[k] = v
		} else {
			delete(next.Spec.Selector, k)
		}
	}
	out.Remedies = append(out.Remedies, explanation.Remedy{Changes: []explanation.Change{{
		Message: "selector " + pairs(next.Spec.Selector), Target: &ref, Patch: difference(s, next),
	}}})
}

func (w *World) pendingBalancer(out *explanation.Explanation, s *corev1.Service) {
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && len(s.Status.LoadBalancer.Ingress) == 0 {
		out.State = explanation.Waiting
		out.Summary += ", but no load balancer has given it an address"
		cause(out, "NoLoadBalancer", "status.loadBalancer is empty: whoever makes load balancers has not answered")
	}
}

// explainAutoscaler says why an autoscaler does not scale.
func (w *World) explainAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) *explanation.Explanation {
	out := begin("HorizontalPodAutoscaler", "autoscaling/v2", h)
	out.State, out.Summary = explanation.Fine, fmt.Sprintf("it wants %s of %s/%s, and there are %d", count(int(h.Status.DesiredReplicas), "replica"), strings.ToLower(h.Spec.ScaleTargetRef.Kind), h.Spec.ScaleTargetRef.Name, h.Status.CurrentReplicas)
	if len(h.Status.Conditions) == 0 {
		out.State, out.Summary = explanation.Waiting, "its controller has not looked at it yet"
		return out
	}
	target := &explanation.Reference{Kind: h.Spec.ScaleTargetRef.Kind, APIVersion: h.Spec.ScaleTargetRef.APIVersion, Namespace: h.Namespace, Name: h.Spec.ScaleTargetRef.Name}
	for _, c := range h.Status.Conditions {
		switch {
		case c.Type == autoscalingv2.AbleToScale && c.Status == corev1.ConditionFalse:
			out.State, out.Summary = explanation.Failing, "it cannot scale its target"
			cause(out, c.Reason, "%s", c.Message)
		case c.Type == autoscalingv2.ScalingActive && c.Status == corev1.ConditionFalse:
			out.State, out.Summary = explanation.Failing, "it cannot tell how many replicas are needed"
			cause(out, c.Reason, "%s", c.Message)
			switch {
			case strings.Contains(c.Message, "missing request for"):
				advise(out, "requests of that resource in every container of the target: use is measured as a share of them", target)
			case c.Reason == "ScalingDisabled":
				advise(out, "at least one replica: an autoscaler leaves what is scaled to 0 alone", target)
			case strings.Contains(c.Message, "no metrics returned"), strings.Contains(c.Message, "unable to get metrics"), strings.Contains(c.Message, "unable to fetch metrics"):
				advise(out, "a source for that metric (kubectl top pods shows whether there is one)", nil)
			}
		case c.Type == autoscalingv2.ScalingLimited && c.Status == corev1.ConditionTrue && out.State == explanation.Fine:
			out.State, out.Summary = explanation.Waiting, fmt.Sprintf("it is held at %s", count(int(h.Status.DesiredReplicas), "replica"))
			cause(out, c.Reason, "%s", c.Message)
			if c.Reason == "TooManyReplicas" {
				ref := out.Regarding
				advise(out, fmt.Sprintf("more than maxReplicas %d", h.Spec.MaxReplicas), &ref)
			}
		}
	}
	return out
}
