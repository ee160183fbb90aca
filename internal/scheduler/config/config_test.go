package config

import (
	"slices"
	"strings"
	"testing"

	configv1 "k8s.io/kube-scheduler/config/v1"
)

const head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"

// The texts are those that upstream's scheduler ends with.
func TestBadConfigurations(t *testing.T) {
	for _, tt := range []struct{ name, yaml, want string }{
		{"no kind", "profiles: []\n", "Object 'Kind' is missing in 'profiles: []\n'"},
		{"unknown field", head + "profile: []\n", `strict decoding error: unknown field "profile"`},
		{"unknown field of arguments", head + "profiles:\n- pluginConfig:\n  - name: NodeResourcesFit\n    args: {scoring: 1}\n",
			`strict decoding error: decoding .profiles[0].pluginConfig[0]: strict decoding error: decoding args for plugin NodeResourcesFit: strict decoding error: unknown field "scoring"`},
		{"parallelism", head + "parallelism: 0\n", "parallelism: Invalid value: 0: should be an integer value greater than zero"},
		{"percentage", head + "percentageOfNodesToScore: 101\n", "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]"},
		{"back-off", head + "podInitialBackoffSeconds: 20\n", "podMaxBackoffSeconds: Invalid value: 10: must be greater than or equal to PodInitialBackoffSeconds"},
		{"names", head + "profiles:\n- {}\n- {}\n", "[profiles[0].schedulerName: Required value, profiles[1].schedulerName: Required value, profiles[1].schedulerName: Duplicate value: {}]"},
		{"removed plugin", head + "profiles:\n- plugins: {filter: {enabled: [{name: EBSLimits}]}}\n",
			`profiles[0].plugins.filter.enabled[0]: Invalid value: "EBSLimits": was invalid in version "v1" (KubeSchedulerConfiguration is version "kubescheduler.config.k8s.io/v1")`},
		{"weight of pod affinity", head + "profiles:\n- pluginConfig:\n  - name: InterPodAffinity\n    args: {hardPodAffinityWeight: 101}\n",
			"profiles[0].pluginConfig[0].args.hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]"},
		{"default constraints", head + "profiles:\n- pluginConfig:\n  - name: PodTopologySpread\n    args: {defaultConstraints: [{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: DoNotSchedule}]}\n",
			`profiles[0].pluginConfig[0].args.defaultingType: Invalid value: "System": when .defaultConstraints are not empty`},
		{"preemption", head + "profiles:\n- pluginConfig:\n  - name: DefaultPreemption\n    args: {minCandidateNodesPercentage: 0, minCandidateNodesAbsolute: 0}\n",
			"[profiles[0].pluginConfig[0].args.minCandidateNodesPercentage: Invalid value: 0: cannot be zero at the same time as minCandidateNodesAbsolute, profiles[0].pluginConfig[0].args.minCandidateNodesAbsolute: Invalid value: 0: cannot be zero at the same time as minCandidateNodesPercentage]"},
		{"twice", head + "profiles:\n- pluginConfig: [{name: NodeAffinity}, {name: NodeAffinity}]\n", `profiles[0].pluginConfig[1]: Duplicate value: "NodeAffinity"`},
		{"extenders", head + "extenders:\n- {urlPrefix: 'http://a', prioritizeVerb: p, bindVerb: b}\n- {urlPrefix: 'http://b', bindVerb: b, managedResources: [{name: cpu}]}\n",
			`[extenders[0].weight: Invalid value: 0: must have a positive weight applied to it, extenders[1].managedResources[0].name: Invalid value: "cpu": is an invalid extended resource name, extenders: Invalid value: "found 2 extenders implementing bind": only one extender can implement bind]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load([]byte(tt.yaml))
			if err == nil || err.Error() != tt.want {
				t.Errorf("%v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestArguments(t *testing.T) {
	for _, tt := range []struct {
		name string
		args configv1.NodeResourcesFitArgs
		want string
	}{
		{"kind", configv1.NodeResourcesFitArgs{ScoringStrategy: &configv1.ScoringStrategy{Type: "Best"}},
			`scoringStrategy.type: Unsupported value: "Best": supported values: "LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"`},
		{"shape", configv1.NodeResourcesFitArgs{ScoringStrategy: &configv1.ScoringStrategy{Type: configv1.RequestedToCapacityRatio, RequestedToCapacityRatio: &configv1.RequestedToCapacityRatioParam{
			Shape: []configv1.UtilizationShapePoint{{Utilization: 50, Score: 1}, {Utilization: 50, Score: 11}},
		}}}, "[scoringStrategy.requestedToCapacityRatio.shape[1].utilization: Invalid value: 50: values must be sorted in increasing order, scoringStrategy.requestedToCapacityRatio.shape[1].score: Invalid value: 11: not in valid range [0, 10]]"},
		{"group", configv1.NodeResourcesFitArgs{IgnoredResourceGroups: []string{"a/b"}, ScoringStrategy: &configv1.ScoringStrategy{Type: configv1.LeastAllocated}},
			`ignoredResourceGroups[0]: Invalid value: "a/b": resource group name can't contain '/'`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := Arguments(nil, &tt.args); err == nil || err.Error() != tt.want {
				t.Errorf("%v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestDefaultsAndMerging(t *testing.T) {
	c, err := Load([]byte(head + `
profiles:
- plugins:
    multiPoint:
      disabled: [{name: ImageLocality}]
      enabled: [{name: NodeResourcesFit, weight: 5}]
    score:
      disabled: [{name: TaintToleration}]
`))
	if err != nil {
		t.Fatal(err)
	}
	p := c.Profiles[0]
	if *p.SchedulerName != "default-scheduler" || *c.PodMaxBackoffSeconds != 10 {
		t.Errorf("%+v", c)
	}
	var names []string
	for _, e := range p.Plugins.MultiPoint.Enabled {
		names = append(names, e.Name)
		if e.Name == "NodeResourcesFit" && *e.Weight != 5 {
			t.Errorf("weight %d", *e.Weight)
		}
	}
	if slices.Contains(names, "ImageLocality") || !slices.Contains(names, "TaintToleration") {
		t.Errorf("enabled: %s", strings.Join(names, " "))
	}
	i := slices.IndexFunc(p.PluginConfig, func(pc configv1.PluginConfig) bool { return pc.Name == "PodTopologySpread" })
	if i < 0 || p.PluginConfig[i].Args.Object.(*configv1.PodTopologySpreadArgs).DefaultingType != configv1.SystemDefaulting {
		t.Errorf("%+v", p.PluginConfig)
	}
}
