package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// summary of a figure's values on one side.
type summary struct {
	Values []float64 `json:"values"`
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
}

func summarize(v []float64) *summary {
	if len(v) == 0 {
		return nil
	}
	lo, hi := span(v)
	return &summary{Values: v, Median: median(v), Min: lo, Max: hi}
}

// result is a figure over all rounds. Better is how many times better the first
// side is than its peer, by the medians.
type result struct {
	Scenario      string   `json:"scenario"`
	Figure        string   `json:"figure"`
	Unit          string   `json:"unit,omitempty"`
	LowerIsBetter bool     `json:"lowerIsBetter,omitempty"`
	Subject       *summary `json:"subject,omitempty"`
	Peer          *summary `json:"peer,omitempty"`
	Better        *float64 `json:"timesBetter,omitempty"`
}

// report is what --json writes.
type report struct {
	Time    time.Time `json:"time"`
	Host    hostFacts `json:"host"`
	Names   []string  `json:"names"`
	Rounds  int       `json:"rounds"`
	Results []result  `json:"results"`
	Errors  []string  `json:"errors,omitempty"`
}

// hostFacts are what figures depend on. Load is the load average at the start: on
// a busy machine figures say little.
type hostFacts struct {
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	Load   string `json:"load"`
}

func facts() hostFacts {
	read := func(p string) string {
		b, err := os.ReadFile(p)
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(b))
	}
	return hostFacts{CPUs: runtime.NumCPU(), Kernel: read("/proc/sys/kernel/osrelease"), Load: read("/proc/loadavg")}
}

// collect adds a round's figures to the results of its scenario.
func (r *report) collect(name string, values [2]map[string][]float64, order []figure) []result {
	var out []result
	for _, f := range order {
		res := result{
			Scenario: name, Figure: f.Name, Unit: f.Unit, LowerIsBetter: f.Lower,
			Subject: summarize(values[0][f.Name]), Peer: summarize(values[1][f.Name]),
		}
		if res.Subject != nil && res.Peer != nil {
			if b := timesBetter(res.Subject.Median, res.Peer.Median, f.Lower); !math.IsNaN(b) {
				res.Better = &b
			}
		}
		out = append(out, res)
	}
	r.Results = append(r.Results, out...)
	return out
}

// number with three digits that say something.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100 || a == math.Trunc(a):
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (s *summary) text() string {
	switch {
	case s == nil:
		return "-"
	case len(s.Values) == 1:
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s..%s)", number(s.Median), number(s.Min), number(s.Max))
}

// columns prints results: medians, the range behind them, the ratio.
func columns(w io.Writer, names []string, rs []result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "FIGURE\tUNIT\t%s", strings.ToUpper(names[0]))
	if len(names) > 1 {
		fmt.Fprintf(t, "\t%s\tTIMES BETTER", strings.ToUpper(names[1]))
	}
	fmt.Fprintln(t)
	for _, r := range rs {
		fmt.Fprintf(t, "%s\t%s\t%s", r.Figure, r.Unit, r.Subject.text())
		if len(names) > 1 {
			better := "-"
			if r.Better != nil {
				better = number(*r.Better)
			}
			fmt.Fprintf(t, "\t%s\t%s", r.Peer.text(), better)
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintln(t)
	_ = t.Flush() // the terminal's errors are nobody's
}

func (r *report) write(file string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}
