package kubelet

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/kubelet/certificates"
	"skiff/internal/metrics"
)

// figures are what /metrics tells, counted since the start of the process.
type figures struct {
	podStart  *metrics.Histogram
	podsTotal atomic.Uint64
	podErrors atomic.Uint64
	// Of these, those with a user namespace of their own.
	usersTotal, usersErrors atomic.Uint64

	mu         sync.Mutex
	operations map[string]*operation
	pulls      map[string]*metrics.Histogram // by the size of the image
	containers map[string]uint64             // started, by type
	failed     map[[2]string]uint64          // by type and code
	rejected   map[string]uint64             // by reason
	images     map[[3]string]uint64          // asked for, by policy, whether present, whether pulled
}

// operation is one of the runtime's.
type operation struct {
	total, errors atomic.Uint64
	took          *metrics.Histogram
}

// The bounds of upstream's histograms, in seconds.
func podStartBounds() []float64 {
	return []float64{0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}
}

func pullBounds() []float64 {
	return []float64{1, 5, 10, 20, 30, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}
}

func newFigures() *figures {
	return &figures{
		podStart: metrics.NewHistogram(podStartBounds()), operations: map[string]*operation{}, pulls: map[string]*metrics.Histogram{},
		containers: map[string]uint64{}, failed: map[[2]string]uint64{}, rejected: map[string]uint64{}, images: map[[3]string]uint64{},
	}
}

// operation is the one of that name; upstream's.
func (f *figures) operation(name string) *operation {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.operations[name]
	if o == nil {
		o = &operation{took: metrics.NewHistogram(prometheus.ExponentialBuckets(.005, 2.5, 14))}
		f.operations[name] = o
	}
	return o
}

// containerType is what a container is called in labels.
func containerType(s start) string {
	switch {
	case s.init:
		return "init_container"
	case s.ephemeral != nil:
		return "ephemeral_container"
	}
	return "container"
}

// started counts a try to start a container.
func (f *figures) started(s start) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers[containerType(s)]++
}

// notStarted counts a container that could not be started, by the reason that its status
// shows: texts of errors would be labels without end.
func (f *figures) notStarted(s start, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed[[2]string{containerType(s), reason}]++
}

func (f *figures) reject(reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rejected[reason]++
}

// imageSizes are the labels of images by their sizes in bytes.
var imageSizes = []struct {
	from  uint64
	label string
}{
	{100 << 30, "GT100GB"}, {50 << 30, "50GB-100GB"}, {20 << 30, "20GB-50GB"}, {10 << 30, "10GB-20GB"}, {5 << 30, "5GB-10GB"}, {1 << 30, "1GB-5GB"},
	{500 << 20, "500MB-1GB"}, {100 << 20, "100MB-500MB"}, {10 << 20, "10MB-100MB"}, {0, "0-10MB"},
}

func (f *figures) pulled(size uint64, took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	label := ""
	for _, s := range imageSizes {
		if size >= s.from {
			label = s.label
			break
		}
	}
	if f.pulls[label] == nil {
		f.pulls[label] = metrics.NewHistogram(pullBounds())
	}
	f.pulls[label].Observe(took.Seconds())
}

// ensured counts a container's image that was asked for; "unknown" stands for what was
// not looked at.
func (f *figures) ensured(policy corev1.PullPolicy, present, pull string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[[3]string{strings.ToLower(string(policy)), present, pull}]++
}

// Describe has nothing to say beforehand: what is collected follows from what happened.
func (k *Kubelet) Describe(chan<- *prometheus.Desc) {}

// Collect tells the node's figures.
func (k *Kubelet) Collect(ch chan<- prometheus.Metric) {
	value := func(kind prometheus.ValueType, name, help string, labels ...string) func(v float64, values ...string) {
		d := prometheus.NewDesc("kubelet_"+name, help, labels, nil)
		return func(v float64, values ...string) { ch <- prometheus.MustNewConstMetric(d, kind, v, values...) }
	}
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	value(gauge, "node_name", "The node's name. The count is always 1.", "node")(1, k.d.NodeName)
	k.collectPods(func(name, help string, labels ...string) func(float64, ...string) {
		return value(gauge, name, help, labels...)
	})

	f := k.figures
	value(counter, "started_pods_total", "Cumulative number of pods started")(float64(f.podsTotal.Load()))
	value(counter, "started_pods_errors_total", "Cumulative number of errors when starting pods")(float64(f.podErrors.Load()))
	value(counter, "started_user_namespaced_pods_total", "Cumulative number of pods with user namespaces started")(float64(f.usersTotal.Load()))
	value(counter, "started_user_namespaced_pods_errors_total", "Cumulative number of errors when starting pods with user namespaces")(float64(f.usersErrors.Load()))
	histogram := func(name, help string, h *metrics.Histogram, labels []string, values ...string) {
		ch <- h.Metric(prometheus.NewDesc("kubelet_"+name, help, labels, nil), values...)
	}
	histogram("pod_start_duration_seconds", "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run", f.podStart, nil)

	f.mu.Lock()
	defer f.mu.Unlock()
	total := value(counter, "runtime_operations_total", "Cumulative number of runtime operations by operation type.", "operation_type")
	errs := value(counter, "runtime_operations_errors_total", "Cumulative number of runtime operation errors by operation type.", "operation_type")
	for _, name := range slices.Sorted(maps.Keys(f.operations)) {
		o := f.operations[name]
		total(float64(o.total.Load()), name)
		if n := o.errors.Load(); n > 0 {
			errs(float64(n), name)
		}
		histogram("runtime_operations_duration_seconds", "Duration in seconds of runtime operations. Broken down by operation type.", o.took, []string{"operation_type"}, name)
	}
	for size, h := range f.pulls {
		histogram("image_pull_duration_seconds", "Duration in seconds to pull an image.", h, []string{"image_size_in_bytes"}, size)
	}
	started := value(counter, "started_containers_total", "Cumulative number of containers started", "container_type")
	for kind, n := range f.containers {
		started(float64(n), kind)
	}
	failed := value(counter, "started_containers_errors_total", "Cumulative number of errors when starting containers", "container_type", "code")
	for key, n := range f.failed {
		failed(float64(n), key[0], key[1])
	}
	rejected := value(counter, "admission_rejections_total", "Cumulative number pod admission rejections by the Kubelet.", "reason")
	for reason, n := range f.rejected {
		rejected(float64(n), reason)
	}
	k.pressure.mu.Lock()
	evictions := value(counter, "evictions", "Cumulative number of pod evictions by eviction signal", "eviction_signal")
	for signal, n := range k.pressure.evicted {
		evictions(float64(n), signal)
	}
	k.pressure.mu.Unlock()
	k.gc.mu.Lock()
	removed := value(counter, "image_garbage_collected_total", "Total number of images garbage collected by the kubelet, whether through disk usage or image age.", "reason")
	for reason, n := range k.gc.removed {
		removed(float64(n), reason)
	}
	k.gc.mu.Unlock()
	ensured := value(counter, "image_manager_ensure_image_requests_total", "Number of ensure-image requests processed by the kubelet.", "pull_policy", "present_locally", "pull_required")
	for key, n := range f.images {
		ensured(float64(n), key[:]...)
	}
	pulling, pulled, checks := k.records.Figures()
	value(gauge, "imagemanager_ondisk_pullintents", "Number of ImagePullIntents stored on disk.")(float64(pulling))
	value(gauge, "imagemanager_ondisk_pulledrecords", "Number of ImagePulledRecords stored on disk.")(float64(pulled))
	checked := value(counter, "imagemanager_image_mustpull_checks_total", "Counter for how many times kubelet checked whether credentials need to be re-verified to access an image", "result")
	for result, n := range checks {
		checked(float64(n), string(result))
	}
	states := value(gauge, "podcertificate_states", "Gauge vector reporting the number of pod certificate projected volume sources, faceted by signer_name and state.", "signer_name", "state")
	all := k.sources.certificates.States()
	for _, s := range slices.SortedFunc(maps.Keys(all), certificates.State.Compare) {
		states(float64(all[s]), s.Signer, s.State)
	}
}

// collectPods tells how many pods and containers there are.
func (k *Kubelet) collectPods(gauge func(name, help string, labels ...string) func(float64, ...string)) {
	running := 0
	desired, active := map[bool]int{}, map[bool]int{}
	for _, w := range k.allWorkers() {
		p, gone := w.current()
		st, static := w.status.current(), isStatic(p)
		if st.Phase == corev1.PodRunning {
			running++
		}
		if gone {
			continue
		}
		desired[static]++
		if !final(st.Phase) {
			active[static]++
		}
	}
	gauge("running_pods", "Number of pods that have a running pod sandbox")(float64(running))
	containers := map[string]int{}
	if list, err := k.listForFigures(); err == nil {
		for _, c := range list {
			containers[strings.ToLower(strings.TrimPrefix(c.State.String(), "CONTAINER_"))]++
		}
	}
	by := gauge("running_containers", "Number of containers currently running", "container_state")
	for _, state := range []string{"created", "running", "exited", "unknown"} {
		by(float64(containers[state]), state)
	}
	want := gauge("desired_pods", "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.", "static")
	have := gauge("active_pods", "The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.", "static")
	for _, static := range []bool{false, true} {
		label := ""
		if static {
			label = strconv.FormatBool(true)
		}
		want(float64(desired[static]), label)
		have(float64(active[static]), label)
	}
	gauge("mirror_pods", "The number of mirror pods the kubelet will try to create (one per admitted static pod)")(float64(active[true]))
}

// serveMetrics answers with the node's figures.
func (k *Kubelet) serveMetrics(w http.ResponseWriter, r *http.Request) {
	reg := prometheus.NewRegistry()
	if err := reg.Register(k); err != nil {
		writeError(w, err)
		return
	}
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}

// listForFigures lists all containers, in a moment or not at all.
func (k *Kubelet) listForFigures() ([]*runtimeapi.Container, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return k.d.Runtime.ListContainers(ctx, nil)
}
