package controller

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"time"

	corev1 "k8s.io/api/core/v1"

	resourcehelpers "k8s.io/component-helpers/resource"
)

// How many replicas a metric asks for. Amounts are thousandths of the metric's unit.

// podReading is a metric of one pod.
type podReading struct {
	at     time.Time
	window time.Duration
	value  int64
}

// hpaSettings are upstream's flags of the controller manager.
type hpaSettings struct {
	tolerance float64
	// cpuInitialization is how long after its start a pod's processor usage counts
	// only while it is ready; readinessDelay is how soon after its start a pod that was
	// never ready since is taken to be starting.
	cpuInitialization, readinessDelay time.Duration
	// downscaleWindow is how long a recommendation holds back smaller ones.
	downscaleWindow time.Duration
}

func defaultHPASettings() hpaSettings {
	return hpaSettings{tolerance: 0.1, cpuInitialization: 5 * time.Minute, readinessDelay: 30 * time.Second, downscaleWindow: 5 * time.Minute}
}

// tolerances are by how much a ratio may differ from 1 without consequence.
type tolerances struct{ down, up float64 }

func (t tolerances) hold(ratio float64) bool { return 1-t.down <= ratio && ratio <= 1+t.up }

var (
	errNoPods   = errors.New("no pods returned by selector while calculating replica count")
	errNoValues = errors.New("did not receive metrics for targeted pods (pods might be unready)")
)

// podGroups are the pods of a target by what their metrics are worth.
type podGroups struct {
	ready            int
	unready, missing map[string]bool
}

// groupPods sorts pods, and takes from readings those that do not count: of pods that
// go or failed, and of pods that only start.
func (s hpaSettings) groupPods(pods []*corev1.Pod, readings map[string]podReading, cpu bool, now time.Time) podGroups {
	g := podGroups{unready: map[string]bool{}, missing: map[string]bool{}}
	for _, p := range pods {
		r, measured := readings[p.Name]
		switch {
		case p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed:
			delete(readings, p.Name)
		case p.Status.Phase == corev1.PodPending:
			g.unready[p.Name] = true
			delete(readings, p.Name)
		case !measured:
			g.missing[p.Name] = true
		case cpu && s.starting(p, r, now):
			g.unready[p.Name] = true
			delete(readings, p.Name)
		default:
			g.ready++
		}
	}
	return g
}

// starting tells that a pod's processor usage is not yet that of its work.
func (s hpaSettings) starting(p *corev1.Pod, r podReading, now time.Time) bool {
	c := podCondition(p, corev1.PodReady)
	if c == nil || p.Status.StartTime == nil {
		return true
	}
	unready := c.Status == corev1.ConditionFalse
	start := p.Status.StartTime.Time
	if start.Add(s.cpuInitialization).After(now) {
		return unready || r.at.Before(c.LastTransitionTime.Add(r.window))
	}
	return unready && start.Add(s.readinessDelay).After(c.LastTransitionTime.Time)
}

// ratio compares what is used with what is wanted; it fails where nothing can be
// compared.
type ratio func(readings map[string]podReading) (float64, error)

// replicasFor is the number of replicas that brings of(readings) to 1. What is not
// known of pods is assumed so as to move less: missing ones, when there is too much
// capacity, to use absent(pod), and when there is too little, nothing, as starting ones.
func replicasFor(current int32, t tolerances, g podGroups, readings map[string]podReading, of ratio, absent func(pod string) int64) (int32, error) {
	now, err := of(readings)
	if err != nil {
		return 0, err
	}
	withUnready := len(g.unready) > 0 && now > 1
	if !withUnready && len(g.missing) == 0 {
		if t.hold(now) {
			return current, nil
		}
		return ceiling(now * float64(g.ready)), nil
	}
	for pod := range g.missing {
		if now < 1 {
			readings[pod] = podReading{value: absent(pod)}
		} else if now > 1 {
			readings[pod] = podReading{}
		}
	}
	if withUnready {
		for pod := range g.unready {
			readings[pod] = podReading{}
		}
	}
	then, err := of(readings)
	if err != nil {
		return 0, err
	}
	n := ceiling(then * float64(len(readings)))
	if t.hold(then) || now < 1 && then > 1 || now > 1 && then < 1 || then < 1 && n > current || then > 1 && n < current {
		// What was assumed must not turn the direction.
		return current, nil
	}
	return n, nil
}

// utilization is the replica count for a share of what pods request, in percent, with
// the share that is used and its average amount.
func (s hpaSettings) utilization(v *hpaView, readings map[string]podReading, resource corev1.ResourceName, container string, target int32) (n, used int32, average int64, err error) {
	if len(v.pods) == 0 {
		return 0, 0, 0, errNoPods
	}
	readings = maps.Clone(readings)
	g := s.groupPods(v.pods, readings, resource == corev1.ResourceCPU, v.now)
	if len(readings) == 0 {
		return 0, 0, 0, errNoValues
	}
	requests, err := podRequests(v.pods, container, resource)
	if err != nil {
		return 0, 0, 0, err
	}
	used, average, err = utilized(readings, requests)
	if err != nil {
		return 0, 0, 0, err
	}
	of := func(readings map[string]podReading) (float64, error) {
		u, _, err := utilized(readings, requests)
		return float64(u) / float64(target), err
	}
	n, err = replicasFor(v.scale.Spec.Replicas, v.tolerances(s), g, readings, of, func(pod string) int64 {
		return scaled(requests[pod], int64(max(100, target)), 100)
	})
	return n, used, average, err
}

// average is the replica count for an average amount per pod.
func (s hpaSettings) average(v *hpaView, readings map[string]podReading, cpu bool, target int64) (n int32, used int64, err error) {
	if len(v.pods) == 0 {
		return 0, 0, errNoPods
	}
	readings = maps.Clone(readings)
	g := s.groupPods(v.pods, readings, cpu, v.now)
	if len(readings) == 0 {
		return 0, 0, errNoValues
	}
	mean := func(readings map[string]podReading) int64 {
		sum := int64(0)
		for _, r := range readings {
			sum = plus(sum, r.value)
		}
		return sum / int64(len(readings))
	}
	used = mean(readings)
	of := func(readings map[string]podReading) (float64, error) {
		return float64(mean(readings)) / float64(target), nil
	}
	n, err = replicasFor(v.scale.Spec.Replicas, v.tolerances(s), g, readings, of, func(string) int64 { return target })
	return n, used, err
}

// total is the replica count for an amount of all pods together; from none, for one
// replica per target.
func (s hpaSettings) total(v *hpaView, used, target int64) (int32, error) {
	r := float64(used) / float64(target)
	current := v.scale.Spec.Replicas
	if current == 0 {
		return ceiling(r), nil
	}
	if v.tolerances(s).hold(r) {
		return current, nil
	}
	if len(v.pods) == 0 {
		return 0, fmt.Errorf("unable to calculate ready pods: %w", errNoPods)
	}
	ready := 0
	for _, p := range v.pods {
		if p.Status.Phase == corev1.PodRunning && podReady(p) {
			ready++
		}
	}
	return ceiling(r * float64(ready)), nil
}

// perPod is the replica count for an amount that is shared by the pods that are there,
// with each one's share. Without pods there is nobody to share: all of it is told.
func (s hpaSettings) perPod(v *hpaView, used, target int64) (n int32, share int64) {
	pods := v.scale.Status.Replicas
	n = pods
	if pods == 0 || !v.tolerances(s).hold(float64(used)/(float64(target)*float64(pods))) {
		n = ceiling(float64(used) / float64(target))
	}
	if pods == 0 || used == math.MaxInt64 {
		return n, used
	}
	return n, int64(math.Ceil(float64(used) / float64(pods)))
}

// utilized is the share, in percent, that the pods of readings use of their requests,
// and the average use.
func utilized(readings map[string]podReading, requests map[string]int64) (percent int32, average int64, err error) {
	used, requested, n := int64(0), int64(0), int64(0)
	for pod, r := range readings {
		if request, known := requests[pod]; known {
			used, requested = plus(used, r.value), plus(requested, request)
			n++
		}
	}
	if requested == 0 {
		return 0, 0, errors.New("no metrics returned matched known pods")
	}
	return int32(max(math.MinInt32, min(math.MaxInt32, scaled(used, 100, requested)))), used / n, nil
}

// podRequests are what pods request of a resource: of one container, or of the pod, as
// a whole where it says so, else as the sum of its containers.
func podRequests(pods []*corev1.Pod, container string, resource corev1.ResourceName) (map[string]int64, error) {
	out := make(map[string]int64, len(pods))
	for _, p := range pods {
		n, err := podRequestOf(p, container, resource)
		if err != nil {
			return nil, err
		}
		out[p.Name] = n
	}
	return out, nil
}

func podRequestOf(p *corev1.Pod, container string, resource corev1.ResourceName) (int64, error) {
	if container == "" && resourcehelpers.IsPodLevelRequestsSet(p) {
		q, ok := resourcehelpers.PodRequests(p, resourcehelpers.PodResourcesOptions{})[resource]
		if !ok {
			return 0, fmt.Errorf("missing pod-level request for %s in Pod %s", resource, p.Name)
		}
		return q.MilliValue(), nil
	}
	sum, found := int64(0), false
	add := func(c *corev1.Container) error {
		if container != "" && c.Name != container {
			return nil
		}
		q, ok := c.Resources.Requests[resource]
		if !ok {
			return fmt.Errorf("missing request for %s in container %s of Pod %s", resource, c.Name, p.Name)
		}
		found = true
		sum = plus(sum, q.MilliValue())
		return nil
	}
	for i := range p.Spec.Containers {
		if err := add(&p.Spec.Containers[i]); err != nil {
			return 0, err
		}
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			if err := add(c); err != nil {
				return 0, err
			}
		}
	}
	if container != "" && !found {
		return 0, fmt.Errorf("container %s not found in Pod %s", container, p.Name)
	}
	return sum, nil
}

// ceiling is the number of replicas next above x, as far as there are such numbers.
func ceiling(x float64) int32 {
	switch x = math.Ceil(x); {
	case x >= math.MaxInt32:
		return math.MaxInt32
	case x > math.MinInt32:
		return int32(x)
	case math.IsNaN(x):
		return 0
	}
	return math.MinInt32
}

// plus adds, and stops at the ends of the range.
func plus(a, b int64) int64 {
	switch c := a + b; {
	case a > 0 && b > 0 && c < 0:
		return math.MaxInt64
	case a < 0 && b < 0 && c >= 0:
		return math.MinInt64
	default:
		return c
	}
}

// scaled is v * by / of, rounded towards zero; by and of are positive. Beyond the range
// it is its end.
func scaled(v, by, of int64) int64 {
	neg := v < 0
	u := uint64(v)
	if neg {
		u = -u
	}
	hi, lo := bits.Mul64(u, uint64(by))
	out := uint64(math.MaxInt64)
	if hi < uint64(of) {
		if q, _ := bits.Div64(hi, lo, uint64(of)); q < out {
			out = q
		}
	}
	if neg {
		return -int64(out)
	}
	return int64(out)
}
