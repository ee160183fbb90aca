package scheduler

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/client/clienttest"
	"skiff/internal/scheduler/config"
)

const configHead = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"

func runConfigured(t *testing.T, api *clienttest.API, yaml string) *running {
	t.Helper()
	c, err := config.Load([]byte(configHead + yaml))
	if err != nil {
		t.Fatal(err)
	}
	return runWith(t, api, func(d *Deps) { d.Config = c })
}

func named(p *corev1.Pod, scheduler string) *corev1.Pod {
	p.Spec.SchedulerName = scheduler
	return p
}

// Two profiles see the same nodes, each by its own plugins: one packs, the other
// spreads. Pods of neither are left alone.
func TestProfiles(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), on(pod("there", "cpu", "1", "memory", "1Gi"), "a"))
	r := runConfigured(t, api, `
profiles:
- schedulerName: spread
- schedulerName: pack
  plugins: {score: {disabled: [{name: NodeResourcesBalancedAllocation}]}}
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated, resources: [{name: cpu}, {name: memory}]}}
`)
	api.Put(named(pod("nobody's"), "other"))
	api.Put(named(pod("p", "cpu", "1", "memory", "1Gi"), "pack"))
	r.until("packed", func() bool { return r.node("p") == "a" })
	api.Put(named(pod("s", "cpu", "1", "memory", "1Gi"), "spread"))
	r.until("spread", func() bool { return r.node("s") == "b" })
	if r.node("nobody's") != "" || r.message("nobody's") != "" {
		t.Error("a pod of another scheduler was touched")
	}
}

// A plugin can be off at one extension point and on at others.
func TestDisabledFilter(t *testing.T) {
	cordon := node("a")
	cordon.Spec.Unschedulable = true
	r := runConfigured(t, clienttest.New(cordon), "profiles:\n- plugins: {filter: {disabled: [{name: NodeUnschedulable}]}}\n")
	r.api.Put(pod("p"))
	r.until("the cordon is not looked at", func() bool { return r.node("p") == "a" })
}

func TestBackoffConfigured(t *testing.T) {
	r := runConfigured(t, clienttest.New(), "podInitialBackoffSeconds: 3\npodMaxBackoffSeconds: 7\n")
	for tries, want := range map[int]float64{1: 3, 2: 6, 3: 7, 9: 7} {
		if got := r.sched.queue.backoffOf(tries).Seconds(); got != want {
			t.Errorf("after %d tries %v s, want %v", tries, got, want)
		}
	}
}

func TestBadProfiles(t *testing.T) {
	for _, tt := range []struct{ name, yaml, want string }{
		{"unknown plugin", "profiles:\n- plugins: {multiPoint: {enabled: [{name: Foo}]}}\n", `PreEnqueuePlugin "Foo" does not exist`},
		{"unknown at a point", "profiles:\n- plugins: {filter: {enabled: [{name: Foo}]}}\n", `FilterPlugin "Foo" does not exist`},
		{"wrong point", "profiles:\n- plugins: {score: {enabled: [{name: NodePorts}]}}\n", `plugin "NodePorts" does not extend ScorePlugin plugin`},
		{"no binder", "profiles:\n- plugins: {bind: {disabled: [{name: '*'}]}}\n", `at least one bind plugin is needed for profile with scheduler name "default-scheduler"`},
		{"twice", "profiles:\n- plugins: {filter: {enabled: [{name: NodePorts}, {name: NodePorts}]}}\n", `plugin "NodePorts" already registered as "FilterPlugin"`},
		{"scoring", "profiles:\n- pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: Best}}}]\n",
			`initializing plugin "NodeResourcesFit": scoringStrategy.type: Unsupported value: "Best": supported values: "LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := config.Load([]byte(configHead + tt.yaml))
			if err != nil {
				t.Fatal(err)
			}
			r := run(t, clienttest.New())
			d := r.sched.d
			d.Config = c
			_, err = New(d)
			want := "initializing profiles: creating profile for scheduler name default-scheduler: " + tt.want
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%v\nwant %s", err, want)
			}
		})
	}
}
