package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"skiff/internal/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rounds is a runner that yields its name's turn.
func turns(log *[]string, name string, values ...float64) func(context.Context) (runner, error) {
	return func(context.Context) (runner, error) {
		i := 0
		return simple{
			do: func(context.Context) ([]figure, error) {
				*log = append(*log, name)
				if i == len(values) {
					return nil, errors.New("no more")
				}
				i++
				return []figure{{Name: "rate", Unit: "1/s", Value: values[i-1]}}, nil
			},
			end: func(context.Context) error { *log = append(*log, "end "+name); return nil },
		}, nil
	}
}

func TestAlternate(t *testing.T) {
	var log []string
	r := &report{Names: []string{"a", "b"}}
	rs, err := r.alternate(t.Context(), "s", 3, []func(context.Context) (runner, error){turns(&log, "a", 30, 10, 20), turns(&log, "b", 4, 5, 6)})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(log, " "); got != "a b a b a b end a end b" {
		t.Errorf("turns: %s", got)
	}
	if len(rs) != 1 || rs[0].Subject.Median != 20 || rs[0].Peer.Min != 4 || *rs[0].Better != 4 {
		t.Errorf("results %+v", rs)
	}
	var out bytes.Buffer
	columns(&out, r.Names, rs)
	for _, want := range []string{"20 (10..30)", "5 (4..6)", "TIMES BETTER"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("columns lack %q:\n%s", want, out.String())
		}
	}
	file := filepath.Join(t.TempDir(), "out.json")
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(b, &back); err != nil || len(back.Results) != 1 || !slices.Equal(back.Results[0].Subject.Values, []float64{30, 10, 20}) {
		t.Errorf("JSON %s, %v", b, err)
	}
}

func TestAlternateFails(t *testing.T) {
	var log []string
	r := &report{Names: []string{"a", "b"}}
	rs, err := r.alternate(t.Context(), "s", 3, []func(context.Context) (runner, error){turns(&log, "a", 1), turns(&log, "b", 1, 2, 3)})
	if err == nil || !strings.Contains(err.Error(), "a: no more") {
		t.Errorf("error %v does not name the side", err)
	}
	if got := strings.Join(log, " "); got != "a b a b end a end b" {
		t.Errorf("turns: %s", got)
	}
	if len(rs) != 1 || len(rs[0].Subject.Values) != 1 {
		t.Errorf("what was measured is lost: %+v", rs)
	}
}

func TestFlags(t *testing.T) {
	var o options
	got, err := o.parse([]string{"list", "--pods", "7", "all", "--command", "/a,b"}, &bytes.Buffer{})
	if err != nil || !slices.Equal(got, append([]string{"list"}, inAll...)) || o.Pods != 7 || !slices.Equal(o.Command, []string{"/a", "b"}) {
		t.Errorf("scenarios %v, options %+v, %v", got, o, err)
	}
	for _, bad := range [][]string{{"lits"}, {"list", "--pods", "0"}, {"--no-such-flag"}, {}} {
		var o options
		if _, err := o.parse(bad, &bytes.Buffer{}); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
	if _, err := parsePIDs("1,x"); err == nil {
		t.Error("x is a process id")
	}
	if pids, err := parsePIDs("1,22\n"); err != nil || !slices.Equal(pids, []int{1, 22}) {
		t.Errorf("pids %v, %v", pids, err)
	}
}

func TestObjectsAreJSON(t *testing.T) {
	for name, b := range map[string][]byte{
		"config map": configMap("a", "b"), "pod": pod("a", nobody, shape{}), "pod on hollow nodes": pod("a", "s", shape{Placement: onHollow}),
		"pod by zone": pod("a", "s", inZones(1, 10)), "pod spread": pod("a", "s", spread(1, 10)), "pod near": pod("a", "s", near(1, 10)),
		"pod apart": pod("a", "s", apart(1, 10)), "pod with a class": pod("a", "s", ranked("c", 4)(1, 10)),
		"job": job("a"), "priority class": priorityClass("a", 3), "deployment": deployment("a", 3), "real pod": realPod("a", "i", nil), "real pod with a command": realPod("a", "i", []string{"/x", `"`}),
	} {
		if !json.Valid(b) {
			t.Errorf("%s: %s", name, b)
		}
	}
}

func TestPoll(t *testing.T) {
	if err := poll(t.Context(), time.Millisecond, time.Millisecond, func() (bool, error) { return false, nil }); !errors.Is(err, errLate) {
		t.Errorf("poll = %v", err)
	}
	no := errors.New("no")
	if err := poll(t.Context(), time.Minute, time.Millisecond, func() (bool, error) { return false, no }); !errors.Is(err, no) {
		t.Errorf("poll = %v", err)
	}
}

func TestAuthority(t *testing.T) {
	a, err := newAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.issue("admin", "admin", "system:masters"); err != nil {
		t.Fatal(err)
	}
	kc, err := a.kubeconfig("admin", "https://127.0.0.1:1234")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := client.LoadKubeconfig(kc)
	if err != nil || cfg.Server != "https://127.0.0.1:1234" || cfg.CA == nil || cfg.Certificate == nil {
		t.Errorf("kubeconfig %+v, %v", cfg, err)
	}
}

func TestMarkdown(t *testing.T) {
	of := func(scenario string, better *float64) report {
		return report{
			Time: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Host: hostFacts{CPUs: 2, Kernel: "6.1", Load: "0.10 0.20 0.30 1/2 3"},
			Names: []string{"one", "other"}, Rounds: 2,
			Results: []result{
				{Scenario: scenario, Figure: "5000 waiting pods, bound", Unit: "1/s", Subject: summarize([]float64{10, 30, 20}), Peer: summarize([]float64{2}), Better: better},
				{Scenario: scenario, Figure: "unknown", Peer: summarize([]float64{1.5})},
			},
		}
	}
	ten := 10.0
	got := markdown([]report{of("bind", &ten), of("odd", nil)})
	for _, want := range []string{
		"# one beside other\n", "- bind: 2026-01-02 03:04 UTC, 2 processors, kernel 6.1, load average before 0.10 0.20 0.30, rounds: 2\n",
		"    x-axis [\"bind\"]\n    y-axis \"times\"\n    bar [10]\n",
		"## bind\n\n| figure | unit | one | other | times better |\n|---|---|---|---|---|\n| 5000 waiting pods, bound | 1/s | 20 (10..30) | 2 | 10 |\n| unknown |  | - | 1.50 | - |\n",
		"\n## odd\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("it lacks\n%s\nin\n%s", want, got)
		}
	}
}

func TestParent(t *testing.T) {
	if pid, err := parent("42 (odd) na(me) S 17 2 3"); err != nil || pid != 17 {
		t.Errorf("parent %d, %v", pid, err)
	}
	if _, err := parent("42 (x"); err == nil {
		t.Error("a stat without a parent has one")
	}
}

// Ports for servers are not such as connections get, so that none takes one before its
// server listens.
func TestFreePorts(t *testing.T) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Fatal(err)
	}
	var first, last int
	if _, err := fmt.Sscan(string(b), &first, &last); err != nil {
		t.Fatal(err)
	}
	if first <= lastPort {
		t.Skipf("connections get ports from %d here: net.ipv4.ip_local_port_range was changed", first)
	}
	seen := map[int]bool{}
	for range 20 {
		ports, err := freePorts(5)
		if err != nil {
			t.Fatal(err)
		}
		clear(seen)
		for _, p := range ports {
			if p >= first && p <= last || seen[p] {
				t.Errorf("ports %v; connections get %d to %d", ports, first, last)
			}
			seen[p] = true
		}
	}
}
