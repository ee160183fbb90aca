package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// highlights are the figures that the chart shows, by scenario and by what their
// names contain.
var highlights = []struct{ scenario, figure, label string }{
	{"start", titleReadyz + ", p50", "start to readyz"},
	{"idle", "memory", "idle memory"},
	{"idle", "CPU", "idle CPU"},
	{"api", "create Pods, 16", "create pods"},
	{"api", "get", "get"},
	{"api", "update", "update"},
	{"list", "LIST", "list 10k pods"},
	{"watch", "events delivered", "watch"},
	{"bind", ", bound", "bind"},
	{"bind-near", ", bound", "bind, affinity"},
	{"bind-apart", ", bound", "bind, anti-affinity"},
	{"bind-spread", ", bound", "bind, spread"},
	{"preempt", ", bound", "preempt"},
	{"deployment", "all bound", "scale to 3,000"},
	{"rollout", "rolling update", "rolling update"},
	{"jobs", "complete", "1,000 jobs"},
	{"podstart", "created to Ready, one by one, p50", "pod start"},
	{"podstart", "deleted to gone, one by one, p50", "pod delete"},
	{"podstart", "all Ready", "100 pods at once"},
	{"podstart", "memory a pod adds", "memory a pod"},
}

// markdownCommand writes what --json wrote as a document: a chart of how many times
// better the first side is, and a table of each scenario.
func markdownCommand(args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("bench markdown", flag.ContinueOnError)
	f.SetOutput(stderr)
	if err := f.Parse(args); err != nil {
		return err
	}
	var all []report
	for _, file := range f.Args() {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var r report
		if err := json.Unmarshal(b, &r); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if len(r.Names) != 2 {
			return fmt.Errorf("%s: is of one side alone", file)
		}
		all = append(all, r)
	}
	if len(all) == 0 {
		return errors.New("which results? Name the files that --json wrote")
	}
	_, err := io.WriteString(stdout, markdown(all))
	return err
}

func markdown(all []report) string {
	var b strings.Builder
	names := all[0].Names
	fmt.Fprintf(&b, "# %s beside %s\n\n", names[0], names[1])
	fmt.Fprintf(&b, "Written by `make compare`: both sides in turns, on one machine, by the same program; `bench/README.md` says what each figure\n"+
		"means and how it is measured. Medians, and the range behind them where there was more than one round. Rates suffer on both\n"+
		"sides from the load that shares the processors with them; only ratios of one run say something.\n\n")
	for _, r := range all {
		var done []string
		for _, x := range r.Results {
			if len(done) == 0 || done[len(done)-1] != x.Scenario {
				done = append(done, x.Scenario)
			}
		}
		fmt.Fprintf(&b, "- %s: %s, %d processors, kernel %s, load average before %s, rounds: %d\n",
			strings.Join(done, ", "), r.Time.Format("2006-01-02 15:04 MST"), r.Host.CPUs, r.Host.Kernel, strings.Join(strings.Fields(r.Host.Load)[:min(3, len(strings.Fields(r.Host.Load)))], " "), r.Rounds)
		for _, e := range r.Errors {
			fmt.Fprintf(&b, "  - failed: %s\n", e)
		}
	}
	b.WriteString(chart(all))
	for _, r := range all {
		last := ""
		for _, x := range r.Results {
			if x.Scenario != last {
				last = x.Scenario
				fmt.Fprintf(&b, "\n## %s\n\n| figure | unit | %s | %s | times better |\n|---|---|---|---|---|\n", last, r.Names[0], r.Names[1])
			}
			better := "-"
			if x.Better != nil {
				better = number(*x.Better)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", x.Figure, x.Unit, x.Subject.text(), x.Peer.text(), better)
		}
	}
	return b.String()
}

// chart draws how many times better each highlight is, in Mermaid's language.
func chart(all []report) string {
	var labels, values []string
	for _, h := range highlights {
		x := find(all, h.scenario, h.figure)
		if x == nil || x.Better == nil {
			continue
		}
		labels = append(labels, fmt.Sprintf("%q", h.label))
		values = append(values, number(*x.Better))
	}
	if len(labels) == 0 {
		return ""
	}
	return fmt.Sprintf("\n```mermaid\nxychart-beta horizontal\n    title \"times better\"\n    x-axis [%s]\n    y-axis \"times\"\n    bar [%s]\n```\n",
		strings.Join(labels, ", "), strings.Join(values, ", "))
}

// find is the first figure of a scenario whose name has a text in it.
func find(all []report, scenario, figure string) *result {
	for _, r := range all {
		for i := range r.Results {
			if x := &r.Results[i]; x.Scenario == scenario && strings.Contains(x.Figure, figure) {
				return x
			}
		}
	}
	return nil
}
