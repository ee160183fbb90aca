package schedule

import (
	"errors"
	"slices"
	"testing"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"skiff/internal/scheduler/config"
)

// What is wrong with a configuration is said in the same words, whatever the order.
func TestConfigurations(t *testing.T) {
	args := func(plugin, yaml string) string {
		return header + "profiles:\n- pluginConfig:\n  - name: " + plugin + "\n    args: " + yaml + "\n"
	}
	for _, yaml := range []string{
		"", "a", "kind: KubeSchedulerConfiguration\n", "apiVersion: v1\nkind: Pod\n", "apiVersion: kubescheduler.config.k8s.io/v1beta3\nkind: KubeSchedulerConfiguration\n",
		header, header + "profile: []\n", header + "parallelism: -1\n", header + "parallelism: many\n", header + "percentageOfNodesToScore: 101\n",
		header + "profiles:\n- percentageOfNodesToScore: -1\n", header + "podInitialBackoffSeconds: 0\n", header + "podMaxBackoffSeconds: 0\n",
		header + "clientConnection: {burst: -3}\n", header + "leaderElection: {leaderElect: true, resourceLock: endpoints}\n",
		header + "leaderElection: {leaseDuration: 5s, renewDeadline: 9s}\n", header + "leaderElection: {leaderElect: false, resourceLock: endpoints}\n",
		header + "profiles:\n- {}\n- {}\n", header + "profiles:\n- schedulerName: a\n- schedulerName: a\n", header + "profiles:\n- schedulerName: ''\n",
		header + "profiles:\n- plugins: {filter: {enabled: [{name: EBSLimits}]}}\n", header + "profiles:\n- plugins: {multiPoint: {enabled: [{name: EBSLimits}]}}\n",
		header + "profiles:\n- pluginConfig: [{name: CinderLimits}]\n", header + "profiles:\n- pluginConfig: [{name: Foo, args: {a: 1}}]\n",
		header + "profiles:\n- pluginConfig: [{name: NodeAffinity}, {name: NodeAffinity}]\n",
		header + "profiles:\n- schedulerName: a\n  plugins: {queueSort: {enabled: [{name: PrioritySort}, {name: B}]}}\n- schedulerName: b\n",
		args("NodeResourcesFit", "{scoring: 1}"), args("NodeResourcesFit", "{kind: Foo}"), args("NodeAffinity", "{apiVersion: kubescheduler.config.k8s.io/v1, kind: NodeResourcesFitArgs}"),
		args("InterPodAffinity", "{hardPodAffinityWeight: 101}"), args("InterPodAffinity", "{hardPodAffinityWeight: -1}"),
		args("DefaultPreemption", "{minCandidateNodesPercentage: 0, minCandidateNodesAbsolute: 0}"), args("DefaultPreemption", "{minCandidateNodesPercentage: 200, minCandidateNodesAbsolute: -1}"),
		args("NodeAffinity", "{addedAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Is}, {key: '-', operator: Exists}]}]}}}"),
		args("NodeAffinity", "{addedAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, preference: {matchFields: [{key: a, operator: In, values: [b]}]}}]}}"),
		args("NodeResourcesBalancedAllocation", "{resources: [{name: cpu, weight: 2}, {name: cpu}]}"),
		args("PodTopologySpread", "{defaultConstraints: [{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: DoNotSchedule}]}"), args("PodTopologySpread", "{defaultingType: None}"),
		args("PodTopologySpread", "{defaultingType: List, defaultConstraints: [{maxSkew: 0}, {topologyKey: 'a b', maxSkew: 1, whenUnsatisfiable: Never, labelSelector: {}}]}"),
		args("PodTopologySpread", "{defaultingType: List, defaultConstraints: [{topologyKey: z, maxSkew: 1, whenUnsatisfiable: DoNotSchedule}, {topologyKey: z, maxSkew: 2, whenUnsatisfiable: DoNotSchedule}]}"),
		args("VolumeBinding", "{bindTimeoutSeconds: -1}"), args("VolumeBinding", "{shape: [{utilization: 0, score: 1}]}"),
		args("DynamicResources", "{filterTimeout: -1s, bindingTimeout: 1ms}"),
		header + "extenders:\n- {urlPrefix: 'http://a', prioritizeVerb: p, bindVerb: b}\n- {urlPrefix: 'http://b', bindVerb: b, managedResources: [{name: cpu}, {name: a.b/c}, {name: a.b/c}, {name: 'x y/z'}, {name: requests.a/b}]}\n",
	} {
		_, want := upstreamConfig(yaml)
		_, got := config.Load([]byte(yaml))
		if a, b := said(got), said(want); !slices.Equal(a, b) {
			t.Errorf("%s\nskiff    %q\nupstream %q", yaml, a, b)
		}
	}
}

func said(err error) (out []string) {
	if err == nil {
		return nil
	}
	var all utilerrors.Aggregate
	if !errors.As(err, &all) {
		return []string{err.Error()}
	}
	for _, e := range utilerrors.Flatten(all).Errors() {
		out = append(out, e.Error())
	}
	slices.Sort(out)
	return out
}
