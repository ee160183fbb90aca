package core

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// Node declares core/v1 nodes. spec.configSource and status.config, whose
// feature is gone, are dropped before any rule sees them.
func Node() *resource.Resource {
	info, status := corev1.NodeSystemInfo{}.SwaggerDoc(), corev1.NodeStatus{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "Node", Plural: "nodes", Singular: "node",
		ShortNames: []string{"no"}, Prefix: "/registry/minions/",
		New:     func() resource.Object { return &corev1.Node{} },
		NewList: func() runtime.Object { return &corev1.NodeList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("Status", "string", "The status of the node", 0),
			resource.Column("Roles", "string", "The roles of the node", 0),
			resource.AgeColumn(),
			resource.Column("Version", "string", info["kubeletVersion"], 0),
			resource.Column("Internal-IP", "string", status["addresses"], 1),
			resource.Column("External-IP", "string", status["addresses"], 1),
			resource.Column("OS-Image", "string", info["osImage"], 1),
			resource.Column("Kernel-Version", "string", info["kernelVersion"], 1),
			resource.Column("Container-Runtime", "string", info["containerRuntimeVersion"], 1),
		},
		Subresources: []resource.Subresource{
			{Name: "proxy", Kind: corev1.SchemeGroupVersion.WithKind("NodeProxyOptions"), Connect: true,
				Verbs: []string{"create", "delete", "get", "patch", "update"}},
			resource.StatusOf(resource.StrategyOf[*corev1.Node]{
				Default:             defaultNode,
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec"},
				PrepareUpdate: func(_ resource.Env, n, old *corev1.Node) {
					n.Spec = old.Spec
					if old.Status.Config == nil {
						n.Status.Config = nil
					}
				},
				ValidateUpdate: func(_ resource.Env, n, old *corev1.Node) field.ErrorList { return validateNodeUpdate(n, old) },
			}),
		},
	}, resource.StrategyOf[*corev1.Node]{
		Default:             defaultNode,
		UnconditionalUpdate: true,
		ResetFields:         []string{"status"},
		PrepareCreate: func(env resource.Env, n *corev1.Node) {
			n.Spec.ConfigSource, n.Status.Config = nil, nil
			dropNode(env.Features, n, &corev1.Node{})
		},
		PrepareUpdate: func(env resource.Env, n, old *corev1.Node) {
			n.Status = old.Status
			if old.Spec.ConfigSource == nil {
				n.Spec.ConfigSource = nil
			}
			dropNode(env.Features, n, old)
		},
		ValidateCreate: validateNode,
		ValidateUpdate: func(env resource.Env, n, old *corev1.Node) field.ErrorList {
			errs := append(validateNode(env, n), validateNodeUpdate(n, old)...)
			// Dropped unless it was there already, and then it stays as it is.
			if p := n.Spec.PodPreemptionPolicy; p != nil && !equal(p, old.Spec.PodPreemptionPolicy) && !env.Features.Enabled("InPlacePodVerticalScalingSchedulerPreemption") {
				errs = append(errs, field.Forbidden(field.NewPath("spec", "podPreemptionPolicy"), ""))
			}
			return errs
		},
		Warnings: nodeWarnings,
		Selectable: func(n *corev1.Node) fields.Set {
			return fields.Set{"spec.unschedulable": strconv.FormatBool(n.Spec.Unschedulable)}
		},
		Row: nodeRow,
	})
}

// defaultNode keeps podCIDR the first of podCIDRs (where both are set and
// disagree, podCIDR is meant) and fills in allocatable.
func defaultNode(n *corev1.Node) {
	spec, s := &n.Spec, &n.Status
	switch {
	case spec.PodCIDR != "" && (len(spec.PodCIDRs) == 0 || spec.PodCIDRs[0] != spec.PodCIDR):
		spec.PodCIDRs = []string{spec.PodCIDR}
	case spec.PodCIDR == "" && len(spec.PodCIDRs) > 0:
		spec.PodCIDR = spec.PodCIDRs[0]
	}
	if s.Allocatable == nil && s.Capacity != nil {
		s.Allocatable = s.Capacity.DeepCopy()
	}
	for _, list := range []corev1.ResourceList{s.Capacity, s.Allocatable} {
		for name, q := range list {
			q.RoundUp(apiresource.Milli)
			list[name] = q
		}
	}
}

func dropNode(f resource.Features, n, old *corev1.Node) {
	if !f.Enabled("InPlacePodVerticalScalingSchedulerPreemption") && old.Spec.PodPreemptionPolicy == nil {
		n.Spec.PodPreemptionPolicy = nil
	}
	if !f.Enabled("NodeDeclaredFeatures") && old.Status.DeclaredFeatures == nil && n.Status.DeclaredFeatures != nil {
		n.Status.DeclaredFeatures = nil
	}
}

func validateNode(env resource.Env, n *corev1.Node) field.ErrorList {
	errs := resource.ValidateMeta(n, false, resource.DNSSubdomain)
	errs = append(errs, nodeAnnotations(n)...)
	errs = append(errs, nodeTaints(field.NewPath("metadata", "taints"), n.Spec.Taints)...)
	errs = append(errs, nodeResources(n)...)
	if s := n.Status.NodeInfo.Swap; s != nil && s.Capacity != nil && *s.Capacity <= 0 {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "nodeSwapStatus", "capacity"), *s.Capacity, "must be greater than zero"))
	}
	errs = append(errs, declaredFeatures(n)...)
	p := field.NewPath("spec", "podCIDRs")
	for i, cidr := range n.Spec.PodCIDRs {
		errs = append(errs, validation.IsValidCIDRForLegacyField(p.Index(i), cidr, env.Features.Enabled("StrictIPCIDRValidation"), nil)...)
	}
	if len(n.Spec.PodCIDRs) > 1 {
		dual, err := netutils.IsDualStackCIDRStrings(n.Spec.PodCIDRs)
		if err != nil {
			errs = append(errs, field.InternalError(p, fmt.Errorf("invalid PodCIDRs. failed to check with dual stack with error:%v", err)))
		}
		if !dual || len(n.Spec.PodCIDRs) > 2 {
			errs = append(errs, field.Invalid(p, n.Spec.PodCIDRs, "may specify no more than one CIDR for each IP family"))
		}
	}
	return errs
}

func validateNodeUpdate(n, old *corev1.Node) field.ErrorList {
	errs := resource.ValidateMetaUpdate(n, old)
	errs = append(errs, nodeAnnotations(n)...)
	errs = append(errs, nodeResources(n)...)
	errs = append(errs, declaredFeatures(n)...)
	seen := map[corev1.NodeAddress]bool{}
	for i, a := range n.Status.Addresses {
		if seen[a] {
			errs = append(errs, field.Duplicate(field.NewPath("status", "addresses").Index(i), resource.Shown(a)))
		}
		seen[a] = true
	}
	if was := old.Spec.PodCIDRs; len(was) > 0 && !slices.Equal(was, n.Spec.PodCIDRs) {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "podCIDRs"), `node updates may not change podCIDR except from "" to valid`))
	}
	if was, is := old.Spec.ProviderID, n.Spec.ProviderID; was != "" && was != is {
		detail := "field cannot be modified once set"
		if is == "" {
			detail = "field cannot be cleared once set"
		}
		errs = append(errs, field.Invalid(field.NewPath("spec", "providerID"), nil, detail))
	}
	errs = append(errs, nodeTaints(field.NewPath("metadata", "taints"), n.Spec.Taints)...)
	if n.Spec.DoNotUseExternalID != old.Spec.DoNotUseExternalID {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "externalID"), "may not be updated"))
	}
	return errs
}

const (
	taintsAnnotation    = "scheduler.alpha.kubernetes.io/taints"
	avoidPodsAnnotation = corev1.PreferAvoidPodsAnnotationKey
)

func nodeAnnotations(n *corev1.Node) field.ErrorList {
	var errs field.ErrorList
	p := field.NewPath("metadata", "annotations")
	if v := n.Annotations[taintsAnnotation]; v != "" {
		var taints []corev1.Taint
		if err := json.Unmarshal([]byte(v), &taints); err != nil {
			errs = append(errs, field.Invalid(p, taintsAnnotation, strings.ReplaceAll(err.Error(), " []v1.", " []core.")))
		} else {
			errs = append(errs, nodeTaints(p.Child(taintsAnnotation), taints)...)
		}
	}
	if v := n.Annotations[avoidPodsAnnotation]; v != "" {
		var avoid corev1.AvoidPods
		if err := json.Unmarshal([]byte(v), &avoid); err != nil {
			errs = append(errs, field.Invalid(p.Child("AvoidPods"), avoidPodsAnnotation, err.Error()))
		}
		for i, e := range avoid.PreferAvoidPods {
			sp := p.Child(avoidPodsAnnotation).Index(i).Child("PodSignature")
			if owner := e.PodSignature.PodController; owner == nil {
				errs = append(errs, field.Required(sp, ""))
			} else if owner.Controller == nil || !*owner.Controller {
				errs = append(errs, field.Invalid(sp.Child("PodController", "Controller"), false, "must point to a controller"))
			}
		}
	}
	return errs
}

func nodeTaints(p *field.Path, taints []corev1.Taint) field.ErrorList {
	var errs field.ErrorList
	type key struct {
		effect corev1.TaintEffect
		key    string
	}
	seen := map[key]bool{}
	for i, t := range taints {
		tp := p.Index(i)
		errs = append(errs, metavalidation.ValidateLabelName(t.Key, tp.Child("key"))...)
		if msgs := validation.IsValidLabelValue(t.Value); len(msgs) > 0 {
			errs = append(errs, field.Invalid(tp.Child("value"), t.Value, strings.Join(msgs, ";")))
		}
		switch t.Effect {
		case corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute:
		case "":
			errs = append(errs, field.Required(tp.Child("effect"), ""))
		default:
			errs = append(errs, field.NotSupported(tp.Child("effect"), t.Effect,
				[]corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}))
		}
		if k := (key{t.Effect, t.Key}); seen[k] {
			err := field.Duplicate(tp, resource.Shown(t))
			err.Detail = "taints must be unique by key and effect pair"
			errs = append(errs, err)
		} else {
			seen[k] = true
		}
	}
	return errs
}

func nodeResources(n *corev1.Node) field.ErrorList {
	var errs field.ErrorList
	list := func(name string, l corev1.ResourceList) {
		for _, r := range sortedResources(l) {
			errs = append(errs, pod.ValidateQuantity(field.NewPath("status", name, string(r)), r, l[r])...)
		}
	}
	list("capacity", n.Status.Capacity)
	list("allocatable", n.Status.Allocatable)
	return errs
}

func sortedResources(l corev1.ResourceList) []corev1.ResourceName {
	out := make([]corev1.ResourceName, 0, len(l))
	for r := range l {
		out = append(out, r)
	}
	slices.Sort(out)
	return out
}

var featureName = regexp.MustCompile(`^[A-Z][a-zA-Z0-9]*(\/[a-zA-Z][a-zA-Z0-9]*)*$`)

func declaredFeatures(n *corev1.Node) field.ErrorList {
	const longest = validation.DNS1123SubdomainMaxLength
	var errs field.ErrorList
	p := field.NewPath("status", "declaredFeatures")
	list := n.Status.DeclaredFeatures
	for i, f := range list {
		if len(f) > longest {
			errs = append(errs, field.Invalid(p.Index(i), f, fmt.Sprintf("invalid feature name %q: must be no more than %d characters", f, longest)))
		} else if !featureName.MatchString(f) {
			errs = append(errs, field.Invalid(p.Index(i), f, fmt.Sprintf("invalid feature name %q: must start with an UpperCamelCase segment, "+
				"with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes", f)))
		}
		if i+1 == len(list) {
			break
		}
		switch next := list[i+1]; {
		case f == next:
			errs = append(errs, field.Duplicate(p.Index(i+1), next))
		case f > next:
			errs = append(errs, field.Invalid(p.Index(i+1), next, "list must be sorted alphabetically"))
		}
	}
	return errs
}

func nodeWarnings(_ resource.Env, n, _ *corev1.Node) []string {
	var out []string
	if n.Spec.ConfigSource != nil {
		out = append(out, "spec.configSource: the feature is removed")
	}
	if n.Spec.DoNotUseExternalID != "" {
		out = append(out, "spec.externalID: this field is deprecated, and is unused by Kubernetes")
	}
	for i, cidr := range n.Spec.PodCIDRs {
		out = append(out, validation.GetWarningsForCIDR(field.NewPath("spec", "podCIDRs").Index(i), cidr)...)
	}
	return out
}

func nodeRow(n *corev1.Node, now time.Time) []any {
	status := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if status = "NotReady"; c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	address := func(t corev1.NodeAddressType) string {
		for _, a := range n.Status.Addresses {
			if a.Type == t {
				return a.Address
			}
		}
		return "<none>"
	}
	known := func(v string) string {
		if v == "" {
			return "<unknown>"
		}
		return v
	}
	info := &n.Status.NodeInfo
	kernel := known(info.KernelVersion)
	if info.Architecture != "" {
		kernel += " (" + info.Architecture + ")"
	}
	return []any{n.Name, status, nodeRoles(n), resource.Age(n.CreationTimestamp, now), info.KubeletVersion,
		address(corev1.NodeInternalIP), address(corev1.NodeExternalIP), known(info.OSImage), kernel, known(info.ContainerRuntimeVersion)}
}

// nodeRoles are named by labels node-role.kubernetes.io/<role>, or by the value
// of kubernetes.io/role.
func nodeRoles(n *corev1.Node) string {
	var roles []string
	for k, v := range n.Labels {
		if role, ok := strings.CutPrefix(k, "node-role.kubernetes.io/"); ok && role != "" {
			roles = append(roles, role)
		} else if k == "kubernetes.io/role" && v != "" {
			roles = append(roles, v)
		}
	}
	if len(roles) == 0 {
		return "<none>"
	}
	slices.Sort(roles)
	return strings.Join(slices.Compact(roles), ",")
}
