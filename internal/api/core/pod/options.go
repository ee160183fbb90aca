package pod

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
)

// Options say how strict the rules are: what the features allow, and what an
// object that is stored already may keep although it would be refused today.
type Options struct {
	features resource.Features
	// isPod is false for the templates of workloads.
	isPod bool

	// What the old object has, and the new one may therefore have too.
	badDeletionCost           bool
	indivisibleHugePages      bool
	badAffinityValues         bool
	badNodeAffinityValues     bool
	badSpreadSelector         bool
	badSpreadKeys             bool
	nonLocalTokenPath         bool
	hostSysctls               bool
	devicesInUserNamespace    bool
	emptyImageReference       bool
	sysAdminWithoutEscalation bool
	restartingInitContainer   bool

	// A feature allows it, or the old object has it.
	userNamespaceOnHostNetwork bool
	anySELinuxChangePolicy     bool
	comparingTolerations       bool
	restartRules               bool
	restartAll                 bool
	sidecarResizePolicy        bool
}

func podOptions(f resource.Features, old *corev1.Pod) Options {
	var o Options
	if old == nil {
		o = specOptions(f, nil, nil)
	} else {
		o = specOptions(f, &old.Spec, &old.ObjectMeta)
	}
	o.isPod = true
	return o
}

// TemplateOptions are the options for a workload's template; old is nil for a
// new object.
func TemplateOptions(f resource.Features, old *corev1.PodTemplateSpec) Options {
	if old == nil {
		return specOptions(f, nil, nil)
	}
	return specOptions(f, &old.Spec, &old.ObjectMeta)
}

func specOptions(f resource.Features, old *corev1.PodSpec, meta *metav1.ObjectMeta) Options {
	o := Options{
		features:                   f,
		userNamespaceOnHostNetwork: f.Enabled("UserNamespacesHostNetworkSupport"),
		anySELinuxChangePolicy:     f.Enabled("SELinuxMount"),
		comparingTolerations:       f.Enabled("TaintTolerationComparisonOperators"),
		restartRules:               f.Enabled("ContainerRestartRules"),
		restartAll:                 f.Enabled("RestartAllContainersOnContainerExits"),
		sidecarResizePolicy:        f.Enabled("InPlacePodVerticalScaling"),
		badDeletionCost:            !f.Enabled("PodDeletionCost"),
	}
	if old == nil {
		return o
	}
	userNamespace := isFalse(old.HostUsers)
	o.userNamespaceOnHostNetwork = o.userNamespaceOnHostNetwork || userNamespace && old.HostNetwork
	o.anySELinuxChangePolicy = o.anySELinuxChangePolicy || seLinuxChangePolicyUsed(old)
	o.comparingTolerations = o.comparingTolerations || slices.ContainsFunc(old.Tolerations, func(t corev1.Toleration) bool {
		return t.Operator == corev1.TolerationOpLt || t.Operator == corev1.TolerationOpGt
	})
	o.restartRules = o.restartRules || restartRulesUsed(old)
	o.restartAll = o.restartAll || restartAllUsed(old)
	o.sidecarResizePolicy = o.sidecarResizePolicy || slices.ContainsFunc(old.InitContainers, func(c corev1.Container) bool {
		return isSidecar(&c) && len(c.ResizePolicy) > 0
	})
	o.restartingInitContainer = slices.ContainsFunc(old.InitContainers, func(c corev1.Container) bool {
		return !isSidecar(&c) && slices.ContainsFunc(c.ResizePolicy, func(p corev1.ContainerResizePolicy) bool {
			return p.RestartPolicy == corev1.RestartContainer
		})
	})
	o.devicesInUserNamespace = userNamespace && anyContainer(old, func(c *corev1.Container) bool { return len(c.VolumeDevices) > 0 })
	o.emptyImageReference = slices.ContainsFunc(old.Volumes, func(v corev1.Volume) bool { return v.Image != nil && v.Image.Reference == "" })
	o.sysAdminWithoutEscalation = anyContainer(old, func(c *corev1.Container) bool {
		s := c.SecurityContext
		return s != nil && !isTrue(s.AllowPrivilegeEscalation) && s.Capabilities != nil && slices.Contains(s.Capabilities.Add, capSysAdmin)
	})
	o.indivisibleHugePages = indivisibleHugePagesUsed(old)

	// The rules themselves tell whether the old object breaks them.
	breaks := func(rule func(*check)) bool {
		c := &check{Options: Options{features: f}}
		rule(c)
		return len(c.errs) > 0
	}
	o.badAffinityValues = breaks(func(c *check) { c.affinitySelectors(old.Affinity) })
	o.badNodeAffinityValues = badNodeAffinityValues(old.Affinity)
	o.badSpreadSelector = breaks(func(c *check) {
		for _, s := range old.TopologySpreadConstraints {
			c.selector(nil, s.LabelSelector, false)
		}
	})
	o.badSpreadKeys = breaks(func(c *check) {
		for _, s := range old.TopologySpreadConstraints {
			if f.Enabled("MatchLabelKeysInPodTopologySpreadSelectorMerge") {
				c.labelKeys(nil, s.MatchLabelKeys, nil, s.LabelSelector)
			} else {
				c.spreadLabelKeys(nil, s.MatchLabelKeys, s.LabelSelector)
			}
		}
	})
	o.nonLocalTokenPath = breaks(func(c *check) {
		for _, v := range old.Volumes {
			if v.Projected == nil {
				continue
			}
			for _, s := range v.Projected.Sources {
				if s.ServiceAccountToken != nil {
					c.ownPath(nil, s.ServiceAccountToken.Path)
				}
			}
		}
	})
	if s := old.SecurityContext; s != nil {
		o.hostSysctls = slices.ContainsFunc(s.Sysctls, func(s corev1.Sysctl) bool { return hostSysctl(s.Name, old) != "" })
	}
	if meta != nil && !o.badDeletionCost {
		o.badDeletionCost = !validDeletionCost(meta.Annotations)
	}
	return o
}
