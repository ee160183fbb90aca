package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	configv1 "k8s.io/kube-scheduler/config/v1"
	"k8s.io/utils/ptr"
)

// validate says everything that is wrong with a defaulted configuration, as one
// aggregate.
func validate(c *configv1.KubeSchedulerConfiguration) error {
	var errs []error
	add := func(list ...*field.Error) {
		for _, e := range list {
			if e != nil {
				errs = append(errs, e)
			}
		}
	}
	if c.ClientConnection.Burst < 0 {
		add(field.Invalid(field.NewPath("clientConnection", "burst"), c.ClientConnection.Burst, "must be non-negative"))
	}
	add(leaderElection(c)...)
	if *c.Parallelism <= 0 {
		add(field.Invalid(field.NewPath("parallelism"), *c.Parallelism, "should be an integer value greater than zero"))
	}
	profiles := field.NewPath("profiles")
	seen := map[string]int{}
	for i := range c.Profiles {
		p, path := &c.Profiles[i], profiles.Index(i)
		errs = append(errs, profile(path, c.APIVersion, p)...)
		name := ptr.Deref(p.SchedulerName, "")
		if first, ok := seen[name]; ok {
			add(field.Duplicate(path.Child("schedulerName"), profiles.Index(first).Child("schedulerName")))
		}
		seen[name] = i
	}
	add(queueSort(profiles, c.Profiles)...)
	add(percentage(field.NewPath("percentageOfNodesToScore"), c.PercentageOfNodesToScore))
	if *c.PodInitialBackoffSeconds <= 0 {
		add(field.Invalid(field.NewPath("podInitialBackoffSeconds"), *c.PodInitialBackoffSeconds, "must be greater than 0"))
	}
	if *c.PodMaxBackoffSeconds < *c.PodInitialBackoffSeconds {
		add(field.Invalid(field.NewPath("podMaxBackoffSeconds"), *c.PodMaxBackoffSeconds, "must be greater than or equal to PodInitialBackoffSeconds"))
	}
	add(extenders(field.NewPath("extenders"), c.Extenders)...)
	if all := utilerrors.Flatten(utilerrors.NewAggregate(errs)); all != nil {
		return all
	}
	return nil
}

func leaderElection(c *configv1.KubeSchedulerConfiguration) (errs []*field.Error) {
	e, path := &c.LeaderElection, field.NewPath("leaderElection")
	if !ptr.Deref(e.LeaderElect, false) {
		return nil
	}
	if e.LeaseDuration.Duration <= 0 {
		errs = append(errs, field.Invalid(path.Child("leaseDuration"), e.LeaseDuration, "must be greater than zero"))
	}
	if e.RenewDeadline.Duration <= 0 {
		errs = append(errs, field.Invalid(path.Child("renewDeadline"), e.RenewDeadline, "must be greater than zero"))
	}
	if e.RetryPeriod.Duration <= 0 {
		errs = append(errs, field.Invalid(path.Child("retryPeriod"), e.RetryPeriod, "must be greater than zero"))
	}
	if e.LeaseDuration.Duration <= e.RenewDeadline.Duration {
		errs = append(errs, field.Invalid(path.Child("leaseDuration"), e.RenewDeadline, "must be greater than `RenewDeadline`"))
	}
	if e.ResourceLock != "leases" {
		errs = append(errs, field.Invalid(path.Child("resourceLock"), e.ResourceLock, `resourceLock value must be "leases"`))
	}
	return errs
}

func percentage(path *field.Path, v *int32) *field.Error {
	if v != nil && (*v < 0 || *v > 100) {
		return field.Invalid(path, *v, "not in valid range [0-100]")
	}
	return nil
}

// removed are plugins that there were before this version.
var removed = []string{"AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"}

func wasRemoved(path *field.Path, apiVersion, name string) *field.Error {
	if !slices.Contains(removed, name) {
		return nil
	}
	return field.Invalid(path, name, fmt.Sprintf("was invalid in version %q (KubeSchedulerConfiguration is version %q)", corev1.SchemeGroupVersion.String(), apiVersion))
}

func profile(path *field.Path, apiVersion string, p *configv1.KubeSchedulerProfile) (errs []error) {
	add := func(e *field.Error) {
		if e != nil {
			errs = append(errs, e)
		}
	}
	if ptr.Deref(p.SchedulerName, "") == "" {
		add(field.Required(path.Child("schedulerName"), ""))
	}
	add(percentage(path.Child("percentageOfNodesToScore"), p.PercentageOfNodesToScore))
	for _, point := range Points(p.Plugins) {
		for i, e := range point.Set.Enabled {
			add(wasRemoved(path.Child("plugins", point.Name, "enabled").Index(i), apiVersion, e.Name))
		}
	}
	seen := map[string]bool{}
	for i := range p.PluginConfig {
		name, args, at := p.PluginConfig[i].Name, p.PluginConfig[i].Args.Object, path.Child("pluginConfig").Index(i)
		if seen[name] {
			add(field.Duplicate(at, name))
		}
		seen[name] = true
		if e := wasRemoved(at, apiVersion, name); e != nil {
			add(e)
			continue
		}
		want := arguments(name)
		if want == nil || name == "NodeResourcesFit" {
			// Those of NodeResourcesFit are judged when the plugin is made, as by upstream.
			continue
		}
		if reflect.TypeOf(args) != reflect.TypeOf(want) {
			add(field.Invalid(at.Child("args"), args, "has to match plugin args"))
			continue
		}
		if err := Arguments(at.Child("args"), args); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

func queueSort(path *field.Path, profiles []configv1.KubeSchedulerProfile) (errs []*field.Error) {
	first := profiles[0].Plugins.QueueSort
	if n := len(first.Enabled); n > 1 {
		errs = append(errs, field.Invalid(path.Index(0).Child("plugins", "queueSort", "Enabled"), n, "only one queue sort plugin can be enabled"))
	}
	for i := 1; i < len(profiles); i++ {
		if now := profiles[i].Plugins.QueueSort; !equality.Semantic.DeepEqual(first, now) {
			errs = append(errs, field.Invalid(path.Index(i).Child("plugins", "queueSort"), setSaid(now), "must be the same for all profiles"))
		}
	}
	return errs
}

// pluginSet and pluginNamed are how upstream's messages show them.
type pluginSet struct{ Enabled, Disabled []pluginNamed }

type pluginNamed struct {
	Name   string
	Weight int32
}

func setSaid(s configv1.PluginSet) pluginSet {
	said := func(list []configv1.Plugin) (out []pluginNamed) {
		for _, p := range list {
			out = append(out, pluginNamed{p.Name, ptr.Deref(p.Weight, 0)})
		}
		return out
	}
	return pluginSet{said(s.Enabled), said(s.Disabled)}
}

func extenders(path *field.Path, list []configv1.Extender) (errs []*field.Error) {
	binders, managed := 0, map[string]bool{}
	for i := range list {
		e, at := &list[i], path.Index(i)
		if e.PrioritizeVerb != "" && e.Weight <= 0 {
			errs = append(errs, field.Invalid(at.Child("weight"), e.Weight, "must have a positive weight applied to it"))
		}
		if e.BindVerb != "" {
			binders++
		}
		for j, r := range e.ManagedResources {
			name := at.Child("managedResources").Index(j).Child("name")
			errs = append(errs, extendedResource(name, r.Name)...)
			if managed[r.Name] {
				errs = append(errs, field.Invalid(name, r.Name, "duplicate extender managed resource name"))
			}
			managed[r.Name] = true
		}
	}
	if binders > 1 {
		errs = append(errs, field.Invalid(path, fmt.Sprintf("found %d extenders implementing bind", binders), "only one extender can implement bind"))
	}
	return errs
}

func extendedResource(path *field.Path, name string) (errs []*field.Error) {
	for _, msg := range validation.IsQualifiedName(name) {
		errs = append(errs, field.Invalid(path, corev1.ResourceName(name), msg))
	}
	if len(errs) > 0 {
		return errs
	}
	native := !strings.Contains(name, "/") || strings.Contains(name, corev1.ResourceDefaultNamespacePrefix)
	if native || strings.HasPrefix(name, corev1.DefaultResourceRequestsPrefix) ||
		len(validation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+name)) > 0 {
		errs = append(errs, field.Invalid(path, name, "is an invalid extended resource name"))
	}
	return errs
}
