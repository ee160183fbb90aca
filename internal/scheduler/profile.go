package scheduler

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	configv1 "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/config"
	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// profile decides on the pods of one schedulerName.
type profile struct {
	plugins.Profile
	cycle   *Cycle
	preBind []framework.PreBinder
}

// profileOf is the profile that decides on a pod; for one that none decides on, the
// first, which then says what would become of it.
func (s *Scheduler) profileOf(p *framework.Pod) *profile {
	if by := s.profiles[p.Spec.SchedulerName]; by != nil {
		return by
	}
	return s.first
}

// configure makes what the configuration says.
func (s *Scheduler) configure() error {
	c := s.d.Config.DeepCopy()
	s.queue.first = time.Duration(*c.PodInitialBackoffSeconds) * time.Second
	s.queue.last = time.Duration(*c.PodMaxBackoffSeconds) * time.Second
	if err := s.extend(c); err != nil {
		return err
	}
	s.profiles = map[string]*profile{}
	if s.d.Plugins != nil {
		return s.addProfile(plugins.ProfileOf(corev1.DefaultSchedulerName, s.d.Plugins))
	}
	f := plugins.NewFactory(plugins.Deps{Client: s.d.Client, Informers: s.d.Informers, Events: s.d.Events, Log: s.d.Log, Now: s.d.Now})
	for i := range c.Profiles {
		if err := fitArguments(&c.Profiles[i]); err != nil {
			return fmt.Errorf("initializing profiles: creating profile for scheduler name %s: %w", *c.Profiles[i].SchedulerName, err)
		}
		p, err := f.Profile(&c.Profiles[i])
		if err != nil {
			return fmt.Errorf("initializing profiles: creating profile for scheduler name %s: %w", *c.Profiles[i].SchedulerName, err)
		}
		if err := s.addProfile(p); err != nil {
			return err
		}
	}
	return nil
}

// fitArguments judges the arguments of NodeResourcesFit, which upstream judges late.
func fitArguments(p *configv1.KubeSchedulerProfile) error {
	for _, pc := range p.PluginConfig {
		if pc.Name != "NodeResourcesFit" {
			continue
		}
		if err := config.Arguments((*field.Path)(nil), pc.Args.Object); err != nil {
			return fmt.Errorf("initializing plugin %q: %w", pc.Name, err)
		}
	}
	return nil
}

func (s *Scheduler) addProfile(p plugins.Profile) error {
	seen := map[string]bool{}
	for _, e := range p.All {
		if seen[e.Name()] {
			return fmt.Errorf("scheduler: plugin %q is given twice", e.Name())
		}
		seen[e.Name()] = true
		_, watches := e.Plugin.(framework.Watcher)
		_, runs := e.Plugin.(framework.Runner)
		if (watches || runs) && !slices.Contains(s.live, e.Plugin) {
			s.live = append(s.live, e.Plugin)
		}
		if d, ok := e.Plugin.(*plugins.DefaultPreemption); ok && slices.ContainsFunc(s.extenders, func(e *Extender) bool { return e.c.PreemptVerb != "" }) {
			d.Narrow = s.extenders.narrow
		}
	}
	by := &profile{Profile: p, cycle: NewProfileCycle(p, s.d.Seed+uint64(len(s.profiles))), preBind: acting[framework.PreBinder](p.PreBind)}
	by.cycle.extenders = s.extenders
	s.profiles[p.Name] = by
	if s.first == nil {
		s.first = by
	}
	s.queue.profile(p)
	return nil
}

// extend makes the extenders, the ignorable ones last. What they alone manage the
// profiles do not look at.
func (s *Scheduler) extend(c *configv1.KubeSchedulerConfiguration) error {
	var ignorable extenders
	var ignored []string
	for _, ec := range c.Extenders {
		e, err := NewExtender(ec)
		if err != nil {
			return err
		}
		if ec.Ignorable {
			ignorable = append(ignorable, e)
		} else {
			s.extenders = append(s.extenders, e)
		}
		for _, r := range ec.ManagedResources {
			if r.IgnoredByScheduler {
				ignored = append(ignored, r.Name)
			}
		}
	}
	s.extenders = append(s.extenders, ignorable...)
	if len(ignored) == 0 {
		return nil
	}
	for _, p := range c.Profiles {
		for _, pc := range p.PluginConfig {
			if args, ok := pc.Args.Object.(*configv1.NodeResourcesFitArgs); ok {
				args.IgnoredResources = ignored
			}
		}
	}
	return nil
}
