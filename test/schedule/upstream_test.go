package schedule

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	resourceslicetracker "k8s.io/dynamic-resource-allocation/resourceslice/tracker"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/scheme"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/validation"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/backend/queue"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/dynamicresources"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/nodevolumelimits"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
	"k8s.io/kubernetes/pkg/scheduler/util/assumecache"
)

// upstream is upstream's scheduler in one state of a cluster.
type upstream struct {
	t       *testing.T
	ctx     context.Context
	factory informers.SharedInformerFactory
	client  *fake.Clientset
	profile config.KubeSchedulerProfile
	devices fwk.SharedDRAManager
}

// header begins a configuration.
const header = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"

// alone switches off what needs more than a state of nodes and pods; arguments of
// plugins, as pluginConfig, follow it.
const alone = header + `
profiles:
- plugins:
    multiPoint:
      disabled: [{name: DynamicResources}, {name: DefaultPreemption}, {name: VolumeRestrictions}, {name: NodeVolumeLimits}, {name: VolumeBinding}, {name: VolumeZone}]
`

// newUpstream takes a configuration, and the objects besides nodes and pods.
func newUpstream(t *testing.T, yaml string, objects ...runtime.Object) *upstream {
	t.Helper()
	metrics.Register()
	u := &upstream{t: t, ctx: t.Context(), client: fake.NewClientset(objects...)}
	u.factory = informers.NewSharedInformerFactory(u.client, 0)
	c, err := upstreamConfig(yaml)
	if err != nil {
		t.Fatal(err)
	}
	u.profile = c.Profiles[0]
	// Every plugin asks the factory for its listers once; after that it may start.
	u.framework(cache.NewEmptySnapshot())
	u.factory.Policy().V1().PodDisruptionBudgets().Informer()
	u.factory.Core().V1().Pods().Informer()
	u.factory.Start(u.ctx.Done())
	u.factory.WaitForCacheSync(u.ctx.Done())
	return u
}

// upstreamConfig reads a configuration as kube-scheduler does.
func upstreamConfig(yaml string) (*config.KubeSchedulerConfiguration, error) {
	obj, gvk, err := scheme.Codecs.UniversalDecoder().Decode([]byte(yaml), nil, nil)
	if err != nil {
		return nil, err
	}
	c, ok := obj.(*config.KubeSchedulerConfiguration)
	if !ok {
		return nil, fmt.Errorf("couldn't decode as KubeSchedulerConfiguration, got %s: ", gvk)
	}
	c.APIVersion = gvk.GroupVersion().String()
	if err := validation.ValidateKubeSchedulerConfiguration(c); err != nil {
		return nil, err
	}
	return c, nil
}

func (u *upstream) framework(s *cache.Snapshot) framework.Framework {
	u.t.Helper()
	if u.devices == nil {
		claims := u.factory.Resource().V1().ResourceClaims().Informer()
		tracker, err := resourceslicetracker.StartTracker(u.ctx, resourceslicetracker.Options{SliceInformer: u.factory.Resource().V1().ResourceSlices(), KubeClient: u.client})
		if err != nil {
			u.t.Fatal(err)
		}
		u.devices = dynamicresources.NewDRAManager(u.ctx, assumecache.NewAssumeCache(klog.Background(), claims, "ResourceClaim", "", nil), tracker, u.factory)
	}
	f, err := frameworkruntime.NewFramework(u.ctx, plugins.NewInTreeRegistry(), &u.profile,
		frameworkruntime.WithClientSet(u.client), frameworkruntime.WithInformerFactory(u.factory),
		frameworkruntime.WithSnapshotSharedLister(s), frameworkruntime.WithMutableSnapshotLister(s),
		frameworkruntime.WithSharedDRAManager(u.devices),
		frameworkruntime.WithPodNominator(queue.NewSchedulingQueue(nil, u.factory)),
		frameworkruntime.WithSharedCSIManager(nodevolumelimits.NewCSIManager(u.factory.Storage().V1().CSINodes().Lister())),
	)
	if err != nil {
		u.t.Fatal(err)
	}
	return f
}

// verdict is what was said of one node: refused, or a score.
type verdict struct {
	reasons    []string
	resolvable bool
	// named tells that the pod names other nodes; then there is no reason of its own.
	named bool
	score int64
	by    []fwk.PluginScore
}

// judge says of every node what becomes of a pod.
func (u *upstream) judge(p *corev1.Pod, nodes []*corev1.Node, pods []*corev1.Pod) map[string]*verdict {
	u.t.Helper()
	s := cache.NewSnapshot(pods, nodes)
	f := u.framework(s)
	infos, err := s.NodeInfos().List()
	if err != nil {
		u.t.Fatal(err)
	}
	out := map[string]*verdict{}
	state := framework.NewCycleState()
	refuse := func(name string, st *fwk.Status) {
		if st.Code() == fwk.Error {
			u.t.Fatalf("%s on %s: %v", p.Name, name, st.AsError())
		}
		out[name] = &verdict{reasons: st.Reasons(), resolvable: st.Code() == fwk.Unschedulable}
	}
	only, st, _ := f.RunPreFilterPlugins(u.ctx, state, p)
	if !st.IsSuccess() {
		for _, n := range infos {
			refuse(n.Node().Name, st)
		}
		return out
	}
	var left []fwk.NodeInfo
	for _, n := range infos {
		name := n.Node().Name
		if !only.AllNodes() && !sets.Set[string](only.NodeNames).Has(name) {
			out[name] = &verdict{named: true, reasons: []string{"named"}}
			continue
		}
		if st := f.RunFilterPlugins(u.ctx, state, p, n); !st.IsSuccess() {
			refuse(name, st)
			continue
		}
		left = append(left, n)
	}
	if len(left) == 0 {
		return out
	}
	if st := f.RunPreScorePlugins(u.ctx, state, p, left); !st.IsSuccess() {
		u.t.Fatal(st.AsError())
	}
	scores, st := f.RunScorePlugins(u.ctx, state, p, left)
	if !st.IsSuccess() {
		u.t.Fatal(st.AsError())
	}
	for _, n := range scores {
		out[n.Name] = &verdict{score: n.TotalScore, by: n.Scores}
	}
	return out
}
