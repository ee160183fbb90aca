package explain

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"skiff/internal/scheduler/framework"
)

// amount is an amount of a resource as people write it: thousandths of a core of
// CPU, bytes of memory and storage, pieces of others.
func amount(name corev1.ResourceName, v int64) string {
	q := quantity(name, v)
	return q.String()
}

func quantity(name corev1.ResourceName, v int64) resource.Quantity {
	switch {
	case name == corev1.ResourceCPU:
		return *resource.NewMilliQuantity(v, resource.DecimalSI)
	case binary(name):
		return *resource.NewQuantity(v, resource.BinarySI)
	}
	return *resource.NewQuantity(v, resource.DecimalSI)
}

func binary(name corev1.ResourceName) bool {
	return name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

// rough is an amount as a person would say it, rounded down where it is exact to the
// byte.
func rough(name corev1.ResourceName, v int64) string {
	if binary(name) {
		for _, unit := range []struct {
			size int64
			name string
		}{{1 << 40, "Ti"}, {1 << 30, "Gi"}, {1 << 20, "Mi"}, {1 << 10, "Ki"}} {
			if v < unit.size {
				continue
			}
			if v%unit.size != 0 && v%(unit.size/2) == 0 && v < 100*unit.size {
				return fmt.Sprintf("%d.5%s", v/unit.size, unit.name)
			}
			if v%unit.size == 0 || v >= 100*unit.size {
				return fmt.Sprintf("%d%s", v/unit.size, unit.name)
			}
			if v >= 10*unit.size || unit.size == 1<<10 {
				return fmt.Sprintf("%s%s", strings.TrimSuffix(fmt.Sprintf("%.1f", math.Floor(float64(v)/float64(unit.size)*10)/10), ".0"), unit.name)
			}
		}
	}
	return amount(name, v)
}

func called(name corev1.ResourceName) string {
	switch name {
	case corev1.ResourceCPU:
		return "CPU"
	case corev1.ResourceEphemeralStorage:
		return "ephemeral storage"
	}
	return string(name)
}

// lacking are the resources of which a node has not enough left, in a fixed order.
func lacking(c *framework.Class, n *framework.Node) []corev1.ResourceName {
	names := []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}
	for name := range c.Requests.Scalar {
		names = append(names, name)
	}
	slices.Sort(names[3:])
	return slices.DeleteFunc(names, func(name corev1.ResourceName) bool {
		want := c.Requests.Of(name)
		return want <= 0 || want <= left(c, n, name)
	})
}

// left is what a node has left of a resource for pods of a class: what waits there
// for victims to end is counted as the scheduler counts it.
func left(c *framework.Class, n *framework.Node, name corev1.ResourceName) int64 {
	v := n.Allocatable.Of(name) - n.Requested.Of(name)
	for _, p := range n.Nominated {
		if p.Class.Priority >= c.Priority {
			v -= p.Class.Requests.Of(name)
		}
	}
	return max(v, 0)
}

// cut is a container's request as it would be.
type cut struct {
	name string
	init bool
	to   int64
}

// shrink says which requests would have to be what for a pod to ask for no more of a
// resource than to; nil where no request can be that small.
func shrink(p *corev1.Pod, name corev1.ResourceName, to int64) []cut {
	if over, ok := p.Spec.Overhead[name]; ok {
		to -= of(name, over)
	}
	if binary(name) && to > 1<<26 {
		to -= to % (1 << 20)
	}
	if to <= 0 {
		return nil
	}
	var out []cut
	set := func(c *corev1.Container, init bool, v int64) { out = append(out, cut{c.Name, init, v}) }
	// Sidecars run beside the containers, and beside the init containers after them.
	var together []*corev1.Container
	inits := map[*corev1.Container]bool{}
	var sum int64
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; restarts(c) {
			together, inits[c] = append(together, c), true
			sum += asked(c, name)
		}
	}
	for i := range p.Spec.Containers {
		together = append(together, &p.Spec.Containers[i])
		sum += asked(&p.Spec.Containers[i], name)
	}
	now := map[*corev1.Container]int64{}
	for _, c := range together {
		now[c] = asked(c, name)
	}
	if excess := sum - to; excess > 0 {
		greatest := slices.MaxFunc(together, func(a, b *corev1.Container) int { return int(min(max(now[a]-now[b], -1), 1)) })
		if now[greatest] > excess {
			now[greatest] -= excess
		} else {
			// Each gives its share; what rounding leaves, the greatest gives.
			rest := to
			for _, c := range together {
				now[c] = int64(float64(now[c]) * float64(to) / float64(sum))
				rest -= now[c]
			}
			now[greatest] += min(rest, 0)
		}
		for _, c := range together {
			if now[c] < 0 || now[c] == 0 && asked(c, name) > 0 {
				return nil
			}
			if now[c] != asked(c, name) {
				set(c, inits[c], now[c])
			}
		}
	}
	var beside int64
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if restarts(c) {
			beside += now[c]
			continue
		}
		if asked(c, name) > to-beside {
			if to-beside <= 0 {
				return nil
			}
			set(c, true, to-beside)
		}
	}
	if resourcehelper.IsPodLevelRequestsSet(p) {
		if q, ok := p.Spec.Resources.Requests[name]; ok && of(name, q) > to {
			out = append(out, cut{"", false, to})
		}
	}
	return out
}

func restarts(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func of(name corev1.ResourceName, q resource.Quantity) int64 {
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// asked is what a container requests; in a template, a limit stands for a request
// that is not said.
func asked(c *corev1.Container, name corev1.ResourceName) int64 {
	if q, ok := c.Resources.Requests[name]; ok {
		return of(name, q)
	}
	if q, ok := c.Resources.Limits[name]; ok {
		return of(name, q)
	}
	return 0
}

// perform makes requests what cuts say. Of resources that cannot be overcommitted the
// limit is the request.
func perform(cuts []cut, name corev1.ResourceName) func(*corev1.PodSpec) {
	return func(s *corev1.PodSpec) {
		for _, c := range cuts {
			r := &corev1.ResourceRequirements{}
			list := s.Containers
			if c.init {
				list = s.InitContainers
			}
			if i := slices.IndexFunc(list, func(o corev1.Container) bool { return o.Name == c.name }); i >= 0 {
				r = &list[i].Resources
			} else if c.name == "" && s.Resources != nil {
				r = s.Resources
			}
			if r.Requests == nil {
				r.Requests = corev1.ResourceList{}
			}
			r.Requests[name] = quantity(name, c.to)
			if name != corev1.ResourceCPU && name != corev1.ResourceMemory && name != corev1.ResourceEphemeralStorage {
				if _, ok := r.Limits[name]; ok {
					r.Limits[name] = quantity(name, c.to)
				}
			}
		}
	}
}

// less is the change by which a pod asks for no more of a resource than to.
func less(p *corev1.Pod, c *framework.Class, name corev1.ResourceName, to int64) (change, bool) {
	cuts := shrink(p, name, to)
	if len(cuts) == 0 {
		return change{}, false
	}
	edit := perform(cuts, name)
	next := p.DeepCopy()
	edit(&next.Spec)
	was := c.Requests.Of(name)
	now := of(name, resourcehelper.PodRequests(next, resourcehelper.PodResourcesOptions{})[name])
	text := fmt.Sprintf("request %s less %s: %s instead of %s", rough(name, was-now), called(name), amount(name, now), rough(name, was))
	if containers := len(p.Spec.Containers) + len(p.Spec.InitContainers); containers > 1 {
		var parts []string
		for _, c := range cuts {
			if c.name != "" {
				parts = append(parts, fmt.Sprintf("%s %s", c.name, amount(name, c.to)))
			}
		}
		text += " (" + strings.Join(parts, ", ") + ")"
	}
	return change{key: "less " + string(name), message: text, edit: edit}, true
}
