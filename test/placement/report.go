package main

import (
	"fmt"
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

var sides = [2]string{"upstream", "skiff"}

// comparison is what both made of each workload of a kind, upstream first. Among
// equal nodes both choose as it happens, and one choice moves all that follow: what
// they make of one workload says little, the mean over many does.
type comparison [][2]result

// figures are what the schedulers are compared by; of each, less is better.
var figures = []struct {
	name, format string
	of           func(result) float64
}{
	{"without a node", "%.4g", func(r result) float64 { return float64(len(r.pending)) }},
	{"preempted", "%.4g", func(r result) float64 { return float64(r.lost) }},
	{"nodes used", "%.4g", func(r result) float64 { return r.used }},
	{"skew by zone", "%.4g", func(r result) float64 { return r.skew[corev1.LabelTopologyZone] }},
	{"skew by host", "%.4g", func(r result) float64 { return r.skew[corev1.LabelHostname] }},
	{"deviation of cores", "%.2f %%", func(r result) float64 { return r.cpu }},
	{"deviation of memory", "%.2f %%", func(r result) float64 { return r.memory }},
}

// tolerance is how much worse than upstream's a mean may be, and certain how many
// standard errors it must be worse by to be called so.
const (
	tolerance = 0.02
	certain   = 2
)

func header() string {
	out, line := "| workload | scheduler | pods | left by it alone |", "|---|---|---|---|"
	for _, f := range figures {
		out, line = out+" "+f.name+" |", line+"---|"
	}
	return out + "\n" + line
}

// rows are the means of both, and of their difference with its standard error.
func (c comparison) rows(kind string) string {
	var out strings.Builder
	for side, name := range sides {
		pods, _ := c.mean(func(r [2]result) float64 { return float64(r[side].pods) })
		alone, _ := c.mean(func(r [2]result) float64 { return r[side].without(r[1-side]) })
		fmt.Fprintf(&out, "| %s | %s | %.4g | %.3g |", kind, name, pods, alone)
		for _, f := range figures {
			mean, _ := c.mean(func(r [2]result) float64 { return f.of(r[side]) })
			fmt.Fprintf(&out, " "+f.format+" |", mean)
		}
		out.WriteString("\n")
	}
	fmt.Fprintf(&out, "| %s | difference | | |", kind)
	for _, f := range figures {
		mean, err := c.mean(func(r [2]result) float64 { return f.of(r[1]) - f.of(r[0]) })
		if err < 1e-9 && math.Abs(mean) < 1e-9 {
			out.WriteString(" 0 |")
			continue
		}
		fmt.Fprintf(&out, " %+.2f ± %.2f |", mean, err)
	}
	return out.String()
}

// mean returns the mean of a figure over the rounds and its standard error.
func (c comparison) mean(of func([2]result) float64) (mean, err float64) {
	n := float64(len(c))
	for _, r := range c {
		mean += of(r) / n
	}
	if n < 2 {
		return mean, 0
	}
	var sum float64
	for _, r := range c {
		sum += (of(r) - mean) * (of(r) - mean)
	}
	return mean, math.Sqrt(sum / (n - 1) / n)
}

// worse says in what skiff's placements are worse than upstream's.
func (c comparison) worse() []string {
	var out []string
	for i, f := range figures {
		allowed := 1 + tolerance
		if i == 0 {
			allowed = 1 // of pods, none
		}
		if more, err := c.mean(func(r [2]result) float64 { return f.of(r[1]) - allowed*f.of(r[0]) }); more > certain*err+1e-9 {
			out = append(out, fmt.Sprintf("%s: %.3f ± %.3f more than allowed", f.name, more, err))
		}
	}
	return out
}
