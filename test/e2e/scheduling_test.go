package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// example returns an example of docs/scheduling.md, by the name in its first line.
func example(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/scheduling.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```yaml\n# " + regexp.QuoteMeta(name) + "\n(.*?)```").FindSubmatch(b)
	if m == nil {
		t.Fatalf("docs/scheduling.md has no example %s", name)
	}
	return string(m[1])
}

// TestSchedulingExamples: a group of three with room for two is not bound, and says
// why; it runs when there is room for three. The marks of shares are taken.
func TestSchedulingExamples(t *testing.T) {
	c := start(t, "gang")
	c.importBusybox()
	node := strings.TrimSpace(c.kubectl("get", "nodes", "-o", "name"))
	room := func(n string) {
		c.kubectl("patch", node, "--subresource=status", "--type=merge", "-p",
			`{"status":{"capacity":{"example.com/gpu":"`+n+`"},"allocatable":{"example.com/gpu":"`+n+`"}}}`)
	}
	room("2")
	c.apply(example(t, "gang.yaml"))
	says := "minCount (3) cannot be satisfied: 2 scheduled, 0 remaining, pod group preemption: No preemption victims found for incoming preemptor"
	c.eventually("the group says why it waits", func() (bool, string) {
		out := c.jsonpath("podgroup/training", ".status.conditions[0].message")
		return out == says, out
	})
	if out := c.kubectl("get", "podgroup"); !regexp.MustCompile(`training +Gang +<none> +Unschedulable`).MatchString(out) {
		t.Errorf("get podgroup:\n%s", out)
	}
	c.eventually("events of the pods say so", func() (bool, string) {
		out := c.kubectl("get", "events", "--field-selector", "reason=FailedScheduling")
		return strings.Contains(out, says) && strings.Contains(out, "Insufficient example.com/gpu"), out
	})
	if out := c.kubectl("get", "pods", "-l", "job=training", "-o", "jsonpath={.items[*].spec.nodeName}"); out != "" {
		t.Errorf("bound in part: %q", out)
	}
	room("3")
	c.eventually("all three run", func() (bool, string) {
		out := c.kubectl("get", "pods", "-l", "job=training", "-o", "jsonpath={.items[*].status.phase}")
		return out == "Running Running Running", out
	})
	c.eventually("the group is scheduled", func() (bool, string) {
		out := c.kubectl("get", "podgroup")
		return regexp.MustCompile(`training +Gang +<none> +Scheduled`).MatchString(out), out
	})
	// It is kept while its pods are there.
	c.kubectl("delete", "podgroup", "training", "--wait=false")
	if out := c.jsonpath("podgroup/training", ".metadata.finalizers"); !strings.Contains(out, "podgroup-protection") {
		t.Errorf("a group in use has the finalizers %s", out)
	}
	c.kubectl("delete", "job", "training")
	c.gone("podgroup/training")

	c.apply(example(t, "shares.yaml"))
	// Two seats are left to nobody but those two; each pod takes one.
	room("4")
	for _, ns := range []string{"ci", "research"} {
		manifest := ""
		for _, name := range []string{"a", "b", "c", "d"} {
			manifest += "---\n" + strings.Replace(sleeper(name, "app: x"), "command: [sleep, \"10000\"]", "command: [sleep, \"10000\"], resources: {limits: {example.com/gpu: 1}}", 1)
		}
		if _, err := c.kubectlIn(strings.NewReader(manifest), "-n", ns, "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	bound := func(ns string) string {
		return c.kubectl("-n", ns, "get", "pods", "-o", "jsonpath={.items[?(@.spec.nodeName)].metadata.name}")
	}
	// ci came first and took all; as its pods end, research gets three of four.
	c.eventually("four are bound", func() (bool, string) {
		n := len(strings.Fields(bound("ci"))) + len(strings.Fields(bound("research")))
		return n == 4, bound("ci") + " / " + bound("research")
	})
	for _, name := range strings.Fields(bound("ci")) {
		if len(strings.Fields(bound("ci"))) == 1 {
			break
		}
		c.kubectl("-n", "ci", "delete", "pod", name, "--now")
		c.eventually("four are bound", func() (bool, string) {
			n := len(strings.Fields(bound("ci"))) + len(strings.Fields(bound("research")))
			return n == 4, bound("ci") + " / " + bound("research")
		})
	}
	if ci, research := strings.Fields(bound("ci")), strings.Fields(bound("research")); len(ci) != 1 || len(research) != 3 {
		t.Errorf("ci has %v, research %v", ci, research)
	}
}
