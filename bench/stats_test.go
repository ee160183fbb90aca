package main

import (
	"math"
	"testing"
)

func TestPercentile(t *testing.T) {
	v := []float64{5, 1, 4, 2, 3}
	for _, c := range []struct{ p, want float64 }{{50, 3}, {99, 5}, {100, 5}, {0, 1}, {20, 1}, {21, 2}} {
		if got := percentile(v, c.p); got != c.want {
			t.Errorf("p%v = %v, want %v", c.p, got, c.want)
		}
	}
	if v[0] != 5 {
		t.Error("the values were sorted in place")
	}
	if !math.IsNaN(percentile(nil, 50)) {
		t.Error("percentile of nothing is a number")
	}
}

func TestMedianAndSpan(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		want float64
	}{{[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}, {[]float64{7}, 7}} {
		if got := median(c.v); got != c.want {
			t.Errorf("median of %v = %v, want %v", c.v, got, c.want)
		}
	}
	if lo, hi := span([]float64{2, 9, -1}); lo != -1 || hi != 9 {
		t.Errorf("span = %v, %v", lo, hi)
	}
	if !math.IsNaN(median(nil)) {
		t.Error("median of nothing is a number")
	}
}

func TestTimesBetter(t *testing.T) {
	if got := timesBetter(300, 100, false); got != 3 {
		t.Errorf("three times the rate is %v times better", got)
	}
	if got := timesBetter(20, 100, true); got != 5 {
		t.Errorf("a fifth of the time is %v times better", got)
	}
	if !math.IsNaN(timesBetter(1, 0, false)) {
		t.Error("a ratio to nothing is a number")
	}
}
