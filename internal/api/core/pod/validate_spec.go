package pod

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

var (
	metaPath   = field.NewPath("metadata")
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// ValidateTemplate validates the template of a workload's pods.
func ValidateTemplate(t *corev1.PodTemplateSpec, p *field.Path, o Options) field.ErrorList {
	c := &check{Options: o}
	c.templateMeta(p, t)
	c.spec(p.Child("spec"), &t.Spec, nil)
	c.profileAnnotations(p.Child("spec"), &t.ObjectMeta, &t.Spec)
	if len(t.Spec.EphemeralContainers) > 0 {
		c.forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template")
	}
	return c.errs
}

// ValidateTemplateMeta validates labels and annotations of a template alone.
func ValidateTemplateMeta(t *corev1.PodTemplateSpec, p *field.Path, o Options) field.ErrorList {
	c := &check{Options: o}
	c.templateMeta(p, t)
	return c.errs
}

func (c *check) templateMeta(p *field.Path, t *corev1.PodTemplateSpec) {
	c.add(metavalidation.ValidateLabels(t.Labels, p.Child("labels"))...)
	c.add(apivalidation.ValidateAnnotations(t.Annotations, p.Child("annotations"))...)
	c.annotations(p.Child("annotations"), t.Annotations, &t.Spec)
}

func validateCreate(env resource.Env, pod *corev1.Pod) field.ErrorList {
	c := &check{Options: podOptions(env.Features, nil)}
	c.pod(pod)
	if len(pod.Spec.EphemeralContainers) > 0 {
		c.forbidden(specPath.Child("ephemeralContainers"), "cannot be set on create")
	}
	if pod.Spec.NodeName != "" && len(pod.Spec.SchedulingGates) != 0 {
		c.forbidden(specPath.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
	}
	c.profileAnnotations(specPath, &pod.ObjectMeta, &pod.Spec)
	return c.errs
}

// pod checks metadata and spec of a whole pod.
func (c *check) pod(pod *corev1.Pod) {
	c.add(resource.ValidateMeta(pod, true, resource.DNSSubdomain)...)
	c.annotations(metaPath.Child("annotations"), pod.Annotations, &pod.Spec)
	c.spec(specPath, &pod.Spec, &pod.ObjectMeta)

	if pod.Spec.ServiceAccountName == "" {
		for i, v := range pod.Spec.Volumes {
			if v.Projected == nil {
				continue
			}
			for j, s := range v.Projected.Sources {
				if s.ServiceAccountToken != nil {
					c.forbidden(specPath.Child("volumes").Index(i).Child("projected", "sources").Index(j).Child("serviceAccountToken"),
						"must not be specified when serviceAccountName is not set")
				}
			}
		}
	}
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		c.nonNegative(specPath.Child("terminationGracePeriodSeconds"), *s)
	}
	for i := range pod.Spec.Containers {
		c.trimmedImage(specPath.Child("containers").Index(i), pod.Spec.Containers[i].Image)
	}
	for i := range pod.Spec.InitContainers {
		c.trimmedImage(specPath.Child("initContainers").Index(i), pod.Spec.InitContainers[i].Image)
	}
}

// spec checks a pod's spec; meta is nil for a template.
func (c *check) spec(p *field.Path, spec *corev1.PodSpec, meta *metav1.ObjectMeta) {
	if spec.TerminationGracePeriodSeconds == nil {
		c.required(p.Child("terminationGracePeriodSeconds"), "")
	}
	s := scope{spec: spec, meta: meta, volumes: c.volumes(p.Child("volumes"), spec.Volumes, meta)}
	for _, claim := range spec.ResourceClaims {
		if claim.Name != "" {
			s.claims = append(s.claims, claim.Name)
		}
	}
	slices.Sort(s.claims)
	s.claims = slices.Compact(s.claims)

	c.resourceClaims(p.Child("resourceClaims"), spec.ResourceClaims, meta)
	c.regularContainers(p.Child("containers"), s)
	c.initContainers(p.Child("initContainers"), s)
	c.ephemeralContainers(p.Child("ephemeralContainers"), s)
	if c.features.Enabled("PodLevelResources") {
		c.podResources(p.Child("resources"), s)
	}
	c.hostNetworkPorts(p.Child("containers"), spec)
	oneOfRequired(c, p.Child("restartPolicy"), spec.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	oneOfRequired(c, p.Child("dnsPolicy"), spec.DNSPolicy, corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)
	c.add(metavalidation.ValidateLabels(spec.NodeSelector, p.Child("nodeSelector"))...)
	c.podSecurity(p.Child("securityContext"), spec)
	if isTrue(spec.ShareProcessNamespace) && spec.HostPID {
		c.invalid(p.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	c.affinity(p.Child("affinity"), spec.Affinity)
	c.dnsConfig(p.Child("dnsConfig"), spec)
	for i, g := range spec.ReadinessGates {
		c.qualified(p.Child("readinessGates").Index(i).Child("conditionType"), string(g.ConditionType))
	}
	gates := map[string]bool{}
	for i, g := range spec.SchedulingGates {
		gp := p.Child("schedulingGates").Index(i)
		c.qualified(gp, g.Name)
		if gates[g.Name] {
			c.duplicate(gp, g.Name)
		}
		gates[g.Name] = true
	}
	c.spread(p.Child("topologySpreadConstraints"), spec.TopologySpreadConstraints)
	c.hostProcess(p, spec)
	c.hostUsers(p, spec)
	c.hostname(p, spec)

	if spec.ServiceAccountName != "" {
		c.all(p.Child("serviceAccountName"), spec.ServiceAccountName, resource.DNSSubdomain(spec.ServiceAccountName, false))
	}
	if twin := spec.DeprecatedServiceAccount; twin != spec.ServiceAccountName {
		c.invalid(p.Child("deprecatedServiceAccount"), twin, fmt.Sprintf("must be the same as serviceAccountName: %q", spec.ServiceAccountName))
	}
	if spec.NodeName != "" {
		c.name(p.Child("nodeName"), spec.NodeName)
	}
	if d := spec.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		c.invalid(p.Child("activeDeadlineSeconds"), *d, validation.InclusiveRangeError(1, math.MaxInt32))
	}
	if spec.Hostname != "" {
		c.label(p.Child("hostname"), spec.Hostname)
	}
	if spec.Subdomain != "" {
		c.label(p.Child("subdomain"), spec.Subdomain)
	}
	c.tolerations(p.Child("tolerations"), spec.Tolerations)
	for i, a := range spec.HostAliases {
		ap := p.Child("hostAliases").Index(i)
		c.ip(ap.Child("ip"), a.IP, nil)
		for j, h := range a.Hostnames {
			c.subdomain(ap.Child("hostnames").Index(j), h)
		}
	}
	if spec.PriorityClassName != "" {
		c.name(p.Child("priorityClassName"), spec.PriorityClassName)
	}
	if n := spec.RuntimeClassName; n != nil {
		c.name(p.Child("runtimeClassName"), *n)
	}
	if v := spec.PreemptionPolicy; v != nil {
		oneOfRequired(c, p.Child("preemptionPolicy"), *v, corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
	if spec.Overhead != nil {
		c.requirements(p.Child("overhead"), &corev1.ResourceRequirements{Limits: spec.Overhead}, nil, c.containerResource)
	}
	c.os(p, spec)
	if g := spec.SchedulingGroup; g != nil {
		gp := p.Child("schedulingGroup")
		if g.PodGroupName == nil {
			c.invalid(gp.Child("podGroupName"), g.PodGroupName, "must specify one of: `podGroupName`")
		} else {
			c.name(gp.Child("podGroupName"), *g.PodGroupName)
		}
		if len(spec.EvictionResponders) > 0 {
			c.forbidden(gp, "may not be set when evictionResponders is set")
		}
	}
	c.envFileVolumes(p, spec)
}

// scope is what the rules of a container look up in the spec around it.
type scope struct {
	spec    *corev1.PodSpec
	meta    *metav1.ObjectMeta
	volumes map[string]*corev1.VolumeSource // the valid ones by name
	claims  []string                        // names of spec.resourceClaims, sorted
}

func (s scope) hostUsers() bool { return !isFalse(s.spec.HostUsers) }

func (c *check) ip(p *field.Path, ip string, old []string) {
	c.add(validation.IsValidIPForLegacyField(p, ip, c.features.Enabled("StrictIPCIDRValidation"), old)...)
}

// hostNetworkPorts: on the host's network a port is the host's port.
func (c *check) hostNetworkPorts(p *field.Path, spec *corev1.PodSpec) {
	if !spec.HostNetwork {
		return
	}
	for i, ctr := range spec.Containers {
		for j, port := range ctr.Ports {
			if port.HostPort == port.ContainerPort || port.HostPort == 0 && !c.isPod {
				continue
			}
			c.invalid(p.Index(i).Child("ports").Index(j).Child("hostPort"), port.HostPort, "must match `containerPort` when `hostNetwork` is true")
		}
	}
}

// Limits of a pod's resolv.conf.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

func (c *check) dnsConfig(p *field.Path, spec *corev1.PodSpec) {
	d := spec.DNSConfig
	if spec.DNSPolicy == corev1.DNSNone {
		if d == nil {
			c.required(p, "must provide `dnsConfig` when `dnsPolicy` is None")
			return
		}
		if len(d.Nameservers) == 0 {
			c.required(p.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")
			return
		}
	}
	if d == nil {
		return
	}
	if len(d.Nameservers) > maxNameservers {
		c.invalid(p.Child("nameservers"), d.Nameservers, fmt.Sprintf("must not have more than %v nameservers", maxNameservers))
	}
	for i, ns := range d.Nameservers {
		c.ip(p.Child("nameservers").Index(i), ns, nil)
	}
	if len(d.Searches) > maxSearches {
		c.invalid(p.Child("searches"), d.Searches, fmt.Sprintf("must not have more than %v search paths", maxSearches))
	}
	if len(strings.Join(d.Searches, " ")) > maxSearchChars {
		c.invalid(p.Child("searches"), d.Searches, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxSearchChars))
	}
	for i, s := range d.Searches {
		if s == "." {
			continue
		}
		s = strings.TrimSuffix(s, ".")
		c.all(p.Child("searches").Index(i), s, validation.IsDNS1123SubdomainWithUnderscore(s))
	}
	for i, o := range d.Options {
		if o.Name == "" {
			c.required(p.Child("options").Index(i), "must not be empty")
		}
	}
}

func (c *check) hostUsers(p *field.Path, spec *corev1.PodSpec) {
	const detail = "when `hostUsers` is false"
	if !isFalse(spec.HostUsers) {
		return
	}
	if spec.HostNetwork && !c.userNamespaceOnHostNetwork {
		c.forbidden(p.Child("hostNetwork"), detail)
	}
	if spec.HostPID {
		c.forbidden(p.Child("HostPID"), detail)
	}
	if spec.HostIPC {
		c.forbidden(p.Child("HostIPC"), detail)
	}
	if c.devicesInUserNamespace {
		return
	}
	for ctr, cp := range containers(spec, p) {
		if len(ctr.VolumeDevices) > 0 {
			c.forbidden(cp.Child("volumeDevices"), detail)
		}
	}
}

func (c *check) hostname(p *field.Path, spec *corev1.PodSpec) {
	const most = 64
	h := spec.HostnameOverride
	if h == nil {
		return
	}
	p = p.Child("hostnameOverride")
	if isTrue(spec.SetHostnameAsFQDN) {
		c.forbidden(p, "may not be specified when setHostnameAsFQDN is true")
	}
	if spec.HostNetwork {
		c.forbidden(p, "may not be specified when hostNetwork is true")
	}
	if len(*h) > most {
		c.tooLong(p, "", most)
	}
	c.subdomain(p, *h)
}

// resourceClaims checks the claims that a pod names.
func (c *check) resourceClaims(p *field.Path, claims []corev1.PodResourceClaim, meta *metav1.ObjectMeta) {
	seen := map[string]bool{}
	for i, claim := range claims {
		if meta != nil {
			if _, mirror := meta.Annotations[mirrorAnnotation]; mirror {
				c.forbidden(field.NewPath(""), "static pods do not support resource claims")
				continue
			}
		}
		cp := p.Index(i)
		switch {
		case claim.Name == "":
			c.required(cp.Child("name"), "")
		case seen[claim.Name]:
			c.duplicate(cp.Child("name"), claim.Name)
		default:
			c.label(cp.Child("name"), claim.Name)
			seen[claim.Name] = true
		}
		name, template := claim.ResourceClaimName, claim.ResourceClaimTemplateName
		if name != nil && template != nil {
			c.invalid(cp, resource.Shown(claim), "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified")
		}
		if name == nil && template == nil {
			c.invalid(cp, resource.Shown(claim), "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`")
		}
		if name != nil {
			c.name(cp.Child("resourceClaimName"), *name)
		}
		if template != nil {
			c.name(cp.Child("resourceClaimTemplateName"), *template)
		}
	}
}

// ValidateTolerations checks the tolerations that a class of pods adds.
func ValidateTolerations(p *field.Path, ts []corev1.Toleration) field.ErrorList {
	c := &check{}
	c.tolerations(p, ts)
	return c.errs
}

// tolerations checks tolerations, of a pod or of the annotation that once held them.
func (c *check) tolerations(p *field.Path, ts []corev1.Toleration) {
	for i, t := range ts {
		tp := p.Index(i)
		if t.Key != "" {
			c.add(metavalidation.ValidateLabelName(t.Key, tp.Child("key"))...)
		} else if t.Operator != corev1.TolerationOpExists {
			c.invalid(tp.Child("operator"), t.Operator, `operator must be Exists when `+"`key`"+` is empty, which means "match all values and all keys"`)
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			c.invalid(tp.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
		}
		c.tolerationValue(tp, t)
		if t.Effect != "" {
			c.taintEffect(tp.Child("effect"), t.Effect)
		}
	}
}

func (c *check) tolerationValue(p *field.Path, t corev1.Toleration) {
	switch t.Operator {
	case corev1.TolerationOpEqual, "":
		if msgs := validation.IsValidLabelValue(t.Value); len(msgs) > 0 {
			c.invalid(p.Child("operator"), t.Value, strings.Join(msgs, ";"))
		}
	case corev1.TolerationOpExists:
		if t.Value != "" {
			c.invalid(p.Child("operator"), t.Value, "value must be empty when `operator` is 'Exists'")
		}
	case corev1.TolerationOpLt, corev1.TolerationOpGt:
		if !c.comparingTolerations {
			c.add(field.NotSupported(p.Child("operator"), t.Operator, []corev1.TolerationOperator{
				corev1.TolerationOpEqual, corev1.TolerationOpExists, corev1.TolerationOpLt, corev1.TolerationOpGt}))
			return
		}
		c.all(p.Child("value"), t.Value, content.IsDecimalInteger(t.Value))
		if _, err := strconv.ParseInt(t.Value, 10, 64); err != nil {
			c.invalid(p.Child("value"), t.Value, err.Error())
		}
	default:
		oneOf(c, p.Child("operator"), t.Operator, corev1.TolerationOpEqual, corev1.TolerationOpExists)
	}
}

func (c *check) taintEffect(p *field.Path, e corev1.TaintEffect) {
	oneOf(c, p, e, corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute)
}

// onlyFields refuses every field of a structure that is set and not allowed.
func (c *check) onlyFields(p *field.Path, v any, detail string, allowed ...string) {
	rv := reflect.ValueOf(v)
	for i := range rv.NumField() {
		f := rv.Type().Field(i)
		if slices.Contains(allowed, f.Name) || reflect.DeepEqual(rv.Field(i).Interface(), reflect.Zero(f.Type).Interface()) {
			continue
		}
		c.forbidden(p.Child(strings.ToLower(f.Name[:1])+f.Name[1:]), detail)
	}
}
