package main

import (
	"math"
	"slices"
	"time"
)

// percentile of values by the nearest rank; NaN of none. It does not change values.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(s))))
	return s[min(max(rank, 1), len(s))-1]
}

// median of values: the middle one, or the mean of the two in the middle.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// span is the smallest and the largest value.
func span(values []float64) (lo, hi float64) {
	if len(values) == 0 {
		return math.NaN(), math.NaN()
	}
	return slices.Min(values), slices.Max(values)
}

// times better a is than b: above 1 where a wins, whichever way the unit counts.
func timesBetter(a, b float64, lowerIsBetter bool) float64 {
	if lowerIsBetter {
		a, b = b, a
	}
	if b == 0 {
		return math.NaN()
	}
	return a / b
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func millisOf(ds []time.Duration) []float64 {
	out := make([]float64, len(ds))
	for i, d := range ds {
		out[i] = millis(d)
	}
	return out
}
