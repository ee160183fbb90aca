package pod

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// warnings of a pod are given when it is created: who updates pods is seldom a
// person.
func warnings(_ resource.Env, pod, old *corev1.Pod) []string {
	if old != nil {
		return nil
	}
	w := &advice{}
	if msgs := validation.IsDNS1123Label(pod.Name); len(msgs) > 0 {
		w.say(metaPath.Child("name"), "this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: %v", msgs)
	}
	w.spec(nil, &pod.Spec, &pod.ObjectMeta)
	return w.texts
}

// TemplateWarnings are the warnings about the template of a workload's pods.
func TemplateWarnings(p *field.Path, t *corev1.PodTemplateSpec) []string {
	w := &advice{template: true}
	w.spec(p, &t.Spec, &t.ObjectMeta)
	return w.texts
}

// advice collects what is allowed and probably not meant.
type advice struct {
	template bool
	texts    []string
}

func (w *advice) say(p *field.Path, format string, args ...any) {
	w.texts = append(w.texts, fmt.Sprintf("%s: ", p)+fmt.Sprintf(format, args...))
}

// DeprecatedNodeLabels says what is wrong with labels that nodes once had.
var DeprecatedNodeLabels = map[string]string{
	"beta.kubernetes.io/arch":                       `deprecated since v1.14; use "kubernetes.io/arch" instead`,
	"beta.kubernetes.io/os":                         `deprecated since v1.14; use "kubernetes.io/os" instead`,
	"failure-domain.beta.kubernetes.io/region":      `deprecated since v1.17; use "topology.kubernetes.io/region" instead`,
	"failure-domain.beta.kubernetes.io/zone":        `deprecated since v1.17; use "topology.kubernetes.io/zone" instead`,
	"beta.kubernetes.io/instance-type":              `deprecated since v1.17; use "node.kubernetes.io/instance-type" instead`,
	"app.kubernetes.io/created-by":                  `deprecated since v1.9`,
	"scheduler.alpha.kubernetes.io/preferAvoidPods": `deprecated since v1.22; use Taints and Tolerations instead`,
	"node-role.kubernetes.io/master":                `use "node-role.kubernetes.io/control-plane" instead`,
}

var deprecatedAnnotations = []struct{ key, text string }{
	{"scheduler.alpha.kubernetes.io/critical-pod", `non-functional in v1.16+; use the "priorityClassName" field instead`},
	{"security.alpha.kubernetes.io/sysctls", `non-functional in v1.11+; use the "sysctls" field instead`},
	{"security.alpha.kubernetes.io/unsafe-sysctls", `non-functional in v1.11+; use the "sysctls" field instead`},
}

func (w *advice) spec(p *field.Path, spec *corev1.PodSpec, meta *metav1.ObjectMeta) {
	sp, annotations := p.Child("spec"), p.Child("metadata", "annotations")
	w.nodes(sp, spec)
	for _, a := range deprecatedAnnotations {
		if _, ok := meta.Annotations[a.key]; ok {
			w.say(annotations.Key(a.key), "%s", a.text)
		}
	}
	for i := range spec.Volumes {
		w.volume(sp.Child("volumes").Index(i), &spec.Volumes[i])
	}
	for i := range spec.Volumes {
		w.overlaps(&spec.Volumes[i])
	}
	w.duplicates(sp, spec)
	w.fraction(sp.Child("overhead"), spec.Overhead, corev1.ResourceMemory)
	w.fraction(sp.Child("overhead"), spec.Overhead, corev1.ResourceEphemeralStorage)

	const useSeccomp = `non-functional in v1.27+; use the "seccompProfile" field instead`
	if _, ok := meta.Annotations[seccompPod]; ok && (spec.SecurityContext == nil || spec.SecurityContext.SeccompProfile == nil) {
		w.say(annotations.Key(seccompPod), useSeccomp)
	}
	for ctr, cp := range containers(spec, sp) {
		if _, ok := meta.Annotations[seccompContainer+ctr.Name]; ok && (ctr.SecurityContext == nil || ctr.SecurityContext.SeccompProfile == nil) {
			w.say(annotations.Key(seccompContainer+ctr.Name), useSeccomp)
		}
		w.appArmor(annotations, ctr, spec, meta)
		w.fractional(cp.Child("resources"), &ctr.Resources)
		w.env(cp.Child("env"), ctr.Env)
	}
	w.ports(sp, spec)
	if g := spec.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		w.say(sp.Child("terminationGracePeriodSeconds"), "must be >= 0; negative values are invalid and will be treated as 1")
	}
	w.podAffinity(sp, spec.Affinity)
	if spec.DNSConfig != nil {
		for i, ns := range spec.DNSConfig.Nameservers {
			w.texts = append(w.texts, validation.GetWarningsForIP(sp.Child("dnsConfig", "nameservers").Index(i), ns)...)
		}
	}
	for i, a := range spec.HostAliases {
		w.texts = append(w.texts, validation.GetWarningsForIP(sp.Child("hostAliases").Index(i).Child("ip"), a.IP)...)
	}
}

func (w *advice) nodes(p *field.Path, spec *corev1.PodSpec) {
	for _, k := range sortedKeys(spec.NodeSelector) {
		if text, ok := DeprecatedNodeLabels[k]; ok {
			w.say(p.Child("nodeSelector").Key(k), "%s", text)
		}
	}
	if spec.Affinity != nil && spec.Affinity.NodeAffinity != nil {
		n, np := spec.Affinity.NodeAffinity, p.Child("affinity", "nodeAffinity")
		if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
			for i, t := range r.NodeSelectorTerms {
				w.nodeTerm(np.Child("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms").Index(i), t, false)
			}
		}
		for i, t := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			w.nodeTerm(np.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("preference"), t.Preference, true)
		}
	}
	for i, c := range spec.TopologySpreadConstraints {
		cp := p.Child("topologySpreadConstraints").Index(i)
		if text, ok := DeprecatedNodeLabels[c.TopologyKey]; ok {
			w.say(cp.Child("topologyKey"), "%s is %s", c.TopologyKey, text)
		}
		if c.LabelSelector == nil {
			w.say(cp.Child("labelSelector"), "a null labelSelector results in matching no pod")
		}
	}
}

func (w *advice) nodeTerm(p *field.Path, t corev1.NodeSelectorTerm, values bool) {
	for i, r := range t.MatchExpressions {
		rp := p.Child("matchExpressions").Index(i)
		if text, ok := DeprecatedNodeLabels[r.Key]; ok {
			w.say(rp.Child("key"), "%s is %s", r.Key, text)
		}
		if !values {
			continue
		}
		for j, v := range r.Values {
			for _, msg := range validation.IsValidLabelValue(v) {
				w.say(rp.Child("values").Index(j), "%s is invalid, %s", v, msg)
			}
		}
	}
}

func (w *advice) volume(p *field.Path, v *corev1.Volume) {
	for _, t := range []struct {
		set        bool
		name, text string
	}{
		{v.PhotonPersistentDisk != nil, "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"},
		{v.GitRepo != nil, "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"},
		{v.ScaleIO != nil, "scaleIO", "deprecated in v1.16, non-functional in v1.22+"},
		{v.Flocker != nil, "flocker", "deprecated in v1.22, non-functional in v1.25+"},
		{v.StorageOS != nil, "storageOS", "deprecated in v1.22, non-functional in v1.25+"},
		{v.Quobyte != nil, "quobyte", "deprecated in v1.22, non-functional in v1.25+"},
		{v.Glusterfs != nil, "glusterfs", "deprecated in v1.25, non-functional in v1.26+"},
	} {
		if t.set {
			w.say(p.Child(t.name), "%s", t.text)
		}
	}
	if v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
		w.texts = append(w.texts, ClaimWarnings(p.Child("ephemeral", "volumeClaimTemplate", "spec"), &v.Ephemeral.VolumeClaimTemplate.Spec)...)
	}
	const gone = "deprecated in v1.28, non-functional in v1.31+"
	if v.CephFS != nil {
		w.say(p.Child("cephfs"), gone)
	}
	if v.RBD != nil {
		w.say(p.Child("rbd"), gone)
	}
}

func (w *advice) fraction(p *field.Path, list corev1.ResourceList, n corev1.ResourceName) {
	if q, ok := list[n]; ok && q.MilliValue()%1000 != 0 {
		w.say(p.Key(string(n)), "fractional byte value %q is invalid, must be an integer", q.String())
	}
}

// ClaimWarnings are about the spec of a PersistentVolumeClaim.
func ClaimWarnings(p *field.Path, s *corev1.PersistentVolumeClaimSpec) []string {
	w := &advice{}
	w.fraction(p.Child("resources", "requests"), s.Resources.Requests, corev1.ResourceStorage)
	w.fraction(p.Child("resources", "limits"), s.Resources.Limits, corev1.ResourceStorage)
	return w.texts
}

// fractional looks for parts of bytes.
func (w *advice) fractional(p *field.Path, r *corev1.ResourceRequirements) {
	for _, n := range []corev1.ResourceName{corev1.ResourceMemory, corev1.ResourceEphemeralStorage} {
		w.fraction(p.Child("limits"), r.Limits, n)
		w.fraction(p.Child("requests"), r.Requests, n)
	}
}

func (w *advice) duplicates(p *field.Path, spec *corev1.PodSpec) {
	ips := map[string]bool{}
	for i, a := range spec.HostAliases {
		if ips[a.IP] {
			w.say(p.Child("hostAliases").Index(i).Child("ip"), "duplicate ip %q", a.IP)
		}
		ips[a.IP] = true
	}
	names := map[string]bool{}
	for i, s := range spec.ImagePullSecrets {
		if names[s.Name] {
			w.say(p.Child("imagePullSecrets").Index(i).Child("name"), "duplicate name %q", s.Name)
		}
		names[s.Name] = true
	}
	for i, s := range spec.ImagePullSecrets {
		if s.Name == "" {
			w.say(p.Child("imagePullSecrets").Index(i).Child("name"), "invalid empty name %q", s.Name)
		}
	}
}

// appArmor speaks of templates only: of a pod, its creation does.
func (w *advice) appArmor(annotations *field.Path, ctr *corev1.Container, spec *corev1.PodSpec, meta *metav1.ObjectMeta) {
	key := appArmorContainer + ctr.Name
	v, ok := meta.Annotations[key]
	if !ok || !w.template || ctr.SecurityContext != nil && ctr.SecurityContext.AppArmorProfile != nil {
		return
	}
	if s := spec.SecurityContext; s != nil && s.AppArmorProfile != nil && equal(s.AppArmorProfile, namedProfile(v)) {
		return
	}
	w.say(annotations.Key(key), `deprecated since v1.30; use the "appArmorProfile" field instead`)
}

// env: of two variables with one name the later counts. That may be meant where
// it is made from the earlier.
func (w *advice) env(p *field.Path, vars []corev1.EnvVar) {
	seen := map[string]bool{}
	for i, v := range vars {
		ref := "$(" + v.Name + ")"
		if seen[v.Name] && (v.ValueFrom != nil || v.Value == ref || !strings.Contains(v.Value, ref)) {
			w.say(p.Index(i), "hides previous definition of %q, which may be dropped when using apply", v.Name)
		}
		seen[v.Name] = true
	}
}

func (w *advice) ports(p *field.Path, spec *corev1.PodSpec) {
	type defined struct {
		at   *field.Path
		port corev1.ContainerPort
	}
	ports := map[string][]defined{}
	for ctr, cp := range containers(spec, p) {
		for i, port := range ctr.Ports {
			pp := cp.Child("ports").Index(i)
			if port.HostIP != "" && port.HostPort == 0 {
				w.say(pp, "hostIP set without hostPort: %+v", port)
			}
			key := fmt.Sprintf("%d/%s", port.ContainerPort, port.Protocol)
			for _, o := range ports[key] {
				switch {
				case port.HostIP == o.port.HostIP && port.HostPort == o.port.HostPort:
					w.say(pp, "duplicate port definition with %s", o.at)
				case port.HostPort == 0 || o.port.HostPort == 0:
					w.say(pp, "overlapping port definition with %s", o.at)
				case port.HostPort == o.port.HostPort && (port.HostIP == "") != (o.port.HostIP == ""):
					w.say(pp, "dangerously ambiguous port definition with %s", o.at)
				}
			}
			ports[key] = append(ports[key], defined{pp, port})
		}
	}
	names := map[string]*field.Path{}
	for ctr, cp := range containers(spec, p) {
		for i, port := range ctr.Ports {
			pp := cp.Child("ports").Index(i)
			if o := names[port.Name]; port.Name != "" && o != nil {
				w.say(pp, "duplicate port name %q with %s, services and probes that select ports by name will use %s", port.Name, o, o)
			} else if port.Name != "" {
				names[port.Name] = pp
			}
		}
	}
}

func (w *advice) podAffinity(p *field.Path, a *corev1.Affinity) {
	const none = "a null labelSelector results in matching no pod"
	if a == nil {
		return
	}
	terms := func(p *field.Path, must []corev1.PodAffinityTerm, may []corev1.WeightedPodAffinityTerm) {
		for i, t := range must {
			if t.LabelSelector == nil {
				w.say(p.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i).Child("labelSelector"), none)
			}
		}
		for i, t := range may {
			if t.PodAffinityTerm.LabelSelector == nil {
				w.say(p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i).Child("podAffinityTerm", "labelSelector"), none)
			}
		}
	}
	if n := a.PodAffinity; n != nil {
		terms(p.Child("affinity", "podAffinity"), n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if n := a.PodAntiAffinity; n != nil {
		terms(p.Child("affinity", "podAntiAffinity"), n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}
