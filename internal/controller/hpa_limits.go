package controller

import (
	"math"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// How fast an autoscaler may move: stabilization windows and policies.

// recommendation is a number of replicas that the metrics asked for at a time.
type recommendation struct {
	at       time.Time
	replicas int32
}

// scaleEvent is by how many replicas a target was changed at a time.
type scaleEvent struct {
	at     time.Time
	change int32
}

// hpaPast is what an autoscaler remembers. It is not stored: after a change of leaders
// it begins with the number of replicas that there are.
type hpaPast struct {
	recommended []recommendation
	ups, downs  []scaleEvent
}

// recommend remembers a recommendation, and forgets those that are older than window.
func (p hpaPast) recommend(n int32, now time.Time, window time.Duration) hpaPast {
	old := now.Add(-window)
	p.recommended = append(slices.DeleteFunc(slices.Clone(p.recommended), func(r recommendation) bool { return r.at.Before(old) }), recommendation{now, n})
	return p
}

// scaled remembers a change of the target, where behaviours need to know.
func (p hpaPast) scaled(b *autoscalingv2.HorizontalPodAutoscalerBehavior, from, to int32, now time.Time) hpaPast {
	if b == nil {
		return p
	}
	add := func(events []scaleEvent, rules *autoscalingv2.HPAScalingRules, change int32) []scaleEvent {
		longest := int32(0)
		if rules != nil {
			for _, policy := range rules.Policies {
				longest = max(longest, policy.PeriodSeconds)
			}
		}
		old := now.Add(-time.Duration(longest) * time.Second)
		return append(slices.DeleteFunc(slices.Clone(events), func(e scaleEvent) bool { return e.at.Before(old) }), scaleEvent{now, change})
	}
	if to > from {
		p.ups = add(p.ups, b.ScaleUp, to-from)
	} else {
		p.downs = add(p.downs, b.ScaleDown, from-to)
	}
	return p
}

// verdict is a number of replicas after a limit, with the reason and message of the
// condition that tells of it.
type verdict struct {
	replicas        int32
	reason, message string
}

const (
	tooFew       = "the desired replica count is less than the minimum replica count"
	tooMany      = "the desired replica count is more than the maximum replica count"
	tooFastUp    = "the desired replica count is increasing faster than the maximum scale rate"
	tooFastDown  = "the desired replica count is decreasing faster than the maximum scale rate"
	lowestRecent = "recent recommendations were lower than current one, applying the lowest recent recommendation"
	highestOnes  = "recent recommendations were higher than current one, applying the highest recent recommendation"
	inRange      = "the desired count is within the acceptable range"
)

// stabilize returns the largest of the recommendations of the window and the new one.
func (p hpaPast) stabilize(desired int32, now time.Time, window time.Duration) verdict {
	out := verdict{desired, "ScaleDownStabilized", highestOnes}
	for _, r := range p.recommended {
		if !r.at.Before(now.Add(-window)) {
			out.replicas = max(out.replicas, r.replicas)
		}
	}
	return out
}

// within keeps a number of replicas in the range, and from more than doubling.
func within(current, desired, least, most int32) verdict {
	limit := int32(min(math.MaxInt32, max(2*int64(current), 4)))
	switch {
	case desired < least:
		return verdict{least, "TooFewReplicas", tooFew}
	case most > limit && desired > limit:
		return verdict{limit, "ScaleUpLimit", tooFastUp}
	case most <= limit && desired > most:
		return verdict{most, "TooManyReplicas", tooMany}
	}
	return verdict{desired, "DesiredWithinRange", inRange}
}

// behaviour is what is allowed in both directions, with all defaults filled in.
type behaviour struct{ up, down autoscalingv2.HPAScalingRules }

func behaviourOf(b *autoscalingv2.HorizontalPodAutoscalerBehavior, downWindow time.Duration) behaviour {
	percent := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}
	four := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15}
	fill := func(r *autoscalingv2.HPAScalingRules, window int32, policies ...autoscalingv2.HPAScalingPolicy) autoscalingv2.HPAScalingRules {
		out := autoscalingv2.HPAScalingRules{}
		if r != nil {
			out = *r
		}
		if out.StabilizationWindowSeconds == nil {
			out.StabilizationWindowSeconds = &window
		}
		if out.SelectPolicy == nil {
			out.SelectPolicy = new(autoscalingv2.MaxChangePolicySelect)
		}
		if len(out.Policies) == 0 {
			out.Policies = policies
		}
		return out
	}
	return behaviour{up: fill(b.ScaleUp, 0, percent, four), down: fill(b.ScaleDown, int32(downWindow.Seconds()), percent)}
}

func windowOf(r autoscalingv2.HPAScalingRules) time.Duration {
	return time.Duration(*r.StabilizationWindowSeconds) * time.Second
}

// stabilizeBoth moves no further than the recommendations of each direction's window.
func (p hpaPast) stabilizeBoth(b behaviour, current, desired int32, now time.Time) verdict {
	up, down := desired, desired
	for _, r := range p.recommended {
		if r.at.After(now.Add(-windowOf(b.up))) {
			up = min(up, r.replicas)
		}
		if r.at.After(now.Add(-windowOf(b.down))) {
			down = max(down, r.replicas)
		}
	}
	n := min(max(current, up), down)
	if desired >= current {
		return verdict{n, "ScaleUpStabilized", lowestRecent}
	}
	return verdict{n, "ScaleDownStabilized", highestOnes}
}

// withinRate keeps a number of replicas in the range, and within what the policies
// allow in their periods.
func (p hpaPast) withinRate(b behaviour, current, desired, least, most int32, now time.Time) verdict {
	switch {
	case desired > current:
		limit := max(current, p.limit(b.up, current, now, true))
		if most > limit && desired > limit {
			return verdict{limit, "ScaleUpLimit", tooFastUp}
		}
		if most <= limit && desired > most {
			return verdict{most, "TooManyReplicas", tooMany}
		}
	case desired < current:
		limit := min(current, p.limit(b.down, current, now, false))
		if least < limit && desired < limit {
			return verdict{limit, "ScaleDownLimit", tooFastDown}
		}
		if least >= limit && desired < least {
			return verdict{least, "TooFewReplicas", tooFew}
		}
	}
	return verdict{desired, "DesiredWithinRange", inRange}
}

// limit is the number of replicas that the policies of one direction allow, seen from
// the number there was when each policy's period began.
func (p hpaPast) limit(rules autoscalingv2.HPAScalingRules, current int32, now time.Time, up bool) int32 {
	if *rules.SelectPolicy == autoscalingv2.DisabledPolicySelect {
		return current
	}
	// The greatest change is the largest number upwards, the smallest downwards.
	largest := up != (*rules.SelectPolicy == autoscalingv2.MinChangePolicySelect)
	var out int64
	for i, policy := range rules.Policies {
		start := int64(current) - changed(p.ups, policy.PeriodSeconds, now) + changed(p.downs, policy.PeriodSeconds, now)
		n := start + int64(policy.Value)
		switch {
		case policy.Type == autoscalingv2.PercentScalingPolicy && up:
			n = int64(math.Ceil(float64(start) * (1 + float64(policy.Value)/100)))
		case policy.Type == autoscalingv2.PercentScalingPolicy:
			n = int64(float64(start) * (1 - float64(policy.Value)/100))
		case !up:
			n = start - int64(policy.Value)
		}
		if i == 0 || largest && n > out || !largest && n < out {
			out = n
		}
	}
	return int32(max(math.MinInt32, min(math.MaxInt32, out)))
}

// changed is by how many replicas a target was changed in a period.
func changed(events []scaleEvent, seconds int32, now time.Time) int64 {
	begin, n := now.Add(-time.Duration(seconds)*time.Second), int64(0)
	for _, e := range events {
		if e.at.After(begin) {
			n += int64(e.change)
		}
	}
	return n
}
