package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"sort"
	"strings"
)

// result is how one test ended.
type result struct {
	name    string
	area    string // the special interest group, without "sig-"
	state   string // passed, failed, skipped, panicked, timedout, ...
	seconds float64
	message string // the first line of what went wrong
}

func (r result) passed() bool { return r.state == "passed" }

// suiteReport is what is read of Ginkgo's JSON report.
type suiteReport struct {
	SpecialSuiteFailureReasons []string
	SpecReports                []struct {
		LeafNodeType            string
		ContainerHierarchyTexts []string
		LeafNodeText            string
		State                   string
		RunTime                 float64 // nanoseconds
		Failure                 struct{ Message string }
	}
}

var areaOf = regexp.MustCompile(`\[sig-([a-z-]+)\]`)

// readResults reads the tests that ran; those that the focus left out are not
// among them.
func readResults(path string) ([]result, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var suites []suiteReport
	if err := json.Unmarshal(b, &suites); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var out []result
	for _, s := range suites {
		for _, sp := range s.SpecReports {
			name := strings.TrimSpace(strings.Join(append(sp.ContainerHierarchyTexts, sp.LeafNodeText), " "))
			r := result{name: name, state: sp.State, seconds: sp.RunTime / 1e9, message: firstLine(sp.Failure.Message)}
			if sp.LeafNodeType != "It" {
				// The suite's own beginning and end: nothing holds if they do not.
				if sp.State == "failed" || sp.State == "panicked" || sp.State == "timedout" {
					return nil, fmt.Errorf("%s of the suite: %s", sp.LeafNodeType, r.message)
				}
				continue
			}
			if sp.State == "skipped" && sp.RunTime == 0 || sp.State == "pending" {
				continue
			}
			if m := areaOf.FindStringSubmatch(name); m != nil {
				r.area = m[1]
			}
			out = append(out, r)
		}
	}
	return out, nil
}

func firstLine(s string) string {
	for l := range strings.SplitSeq(s, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			if len(l) > 300 {
				l = l[:300] + "…"
			}
			return l
		}
	}
	return ""
}

// report makes a table per area, and lists what did not pass.
func report(all []result) (text string, failed int) {
	type count struct{ passed, ran int }
	areas := map[string]*count{}
	total := count{}
	for _, r := range all {
		if areas[r.area] == nil {
			areas[r.area] = &count{}
		}
		areas[r.area].ran++
		total.ran++
		if r.passed() {
			areas[r.area].passed++
			total.passed++
		}
	}
	names := make([]string, 0, len(areas))
	for a := range areas {
		names = append(names, a)
	}
	sort.Slice(names, func(i, j int) bool {
		a, b := areas[names[i]], areas[names[j]]
		if a.ran != b.ran {
			return a.ran > b.ran
		}
		return names[i] < names[j]
	})
	var b strings.Builder
	b.WriteString("| area | passed | ran |\n|---|---|---|\n")
	for _, n := range names {
		fmt.Fprintf(&b, "| %s | %d | %d |\n", n, areas[n].passed, areas[n].ran)
	}
	fmt.Fprintf(&b, "| all | %d | %d |\n", total.passed, total.ran)
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	for _, r := range all {
		if r.passed() {
			continue
		}
		failed++
		fmt.Fprintf(&b, "\n- %s: %s\n  %s\n", r.state, r.name, r.message)
	}
	return b.String(), failed
}
