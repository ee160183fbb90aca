package kubelet

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The summary API's form; fields that are not measured are left out.
type summary struct {
	Node nodeStats  `json:"node"`
	Pods []podStats `json:"pods"`
}

type nodeStats struct {
	NodeName  string       `json:"nodeName"`
	StartTime metav1.Time  `json:"startTime"`
	CPU       *cpuStats    `json:"cpu,omitempty"`
	Memory    *memoryStats `json:"memory,omitempty"`
	FS        *fsStats     `json:"fs,omitempty"`
}

type podRefStats struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
}

type podStats struct {
	PodRef     podRefStats      `json:"podRef"`
	StartTime  metav1.Time      `json:"startTime"`
	Containers []containerStats `json:"containers"`
	CPU        *cpuStats        `json:"cpu,omitempty"`
	Memory     *memoryStats     `json:"memory,omitempty"`
}

type containerStats struct {
	Name      string       `json:"name"`
	StartTime metav1.Time  `json:"startTime"`
	CPU       *cpuStats    `json:"cpu,omitempty"`
	Memory    *memoryStats `json:"memory,omitempty"`
}

type cpuStats struct {
	Time                 metav1.Time `json:"time"`
	UsageNanoCores       *uint64     `json:"usageNanoCores,omitempty"`
	UsageCoreNanoSeconds *uint64     `json:"usageCoreNanoSeconds,omitempty"`
}

type memoryStats struct {
	Time            metav1.Time `json:"time"`
	AvailableBytes  *uint64     `json:"availableBytes,omitempty"`
	UsageBytes      *uint64     `json:"usageBytes,omitempty"`
	WorkingSetBytes *uint64     `json:"workingSetBytes,omitempty"`
	RSSBytes        *uint64     `json:"rssBytes,omitempty"`
}

type fsStats struct {
	Time           metav1.Time `json:"time"`
	AvailableBytes uint64      `json:"availableBytes"`
	CapacityBytes  uint64      `json:"capacityBytes"`
	UsedBytes      uint64      `json:"usedBytes"`
	InodesFree     uint64      `json:"inodesFree"`
	Inodes         uint64      `json:"inodes"`
}

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

func add(sum **uint64, v *uint64) {
	if v == nil {
		return
	}
	n := *v
	if *sum != nil {
		n += **sum
	}
	*sum = &n
}

// summarize measures the node and its pods.
func (k *Kubelet) summarize(ctx context.Context) (*summary, error) {
	list, err := k.d.Runtime.ListContainerStats(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("read statistics: %w", err)
	}
	now := metav1.NewTime(k.d.Now())
	cpu := uint64(nodeCPU())
	size, free := uint64(k.memory), uint64(meminfo("MemAvailable:"))
	used := size - min(free, size)
	d := diskOf(k.d.Host.DataDir)
	s := &summary{Node: nodeStats{
		NodeName: k.d.NodeName, StartTime: metav1.NewTime(bootTime()),
		CPU:    &cpuStats{Time: now, UsageCoreNanoSeconds: &cpu},
		Memory: &memoryStats{Time: now, AvailableBytes: &free, WorkingSetBytes: &used, UsageBytes: &used},
		FS: &fsStats{Time: now, AvailableBytes: uint64(d.free), CapacityBytes: uint64(d.size), UsedBytes: uint64(d.size - d.free),
			InodesFree: uint64(d.inodesFree), Inodes: uint64(d.inodes)},
	}}
	byPod := map[string]*podStats{}
	for _, c := range list {
		l := c.GetAttributes().GetLabels()
		uid := l[labelPodUID]
		if uid == "" {
			continue
		}
		p := byPod[uid]
		if p == nil {
			p = &podStats{PodRef: podRefStats{l[labelPodName], l[labelPodNamespace], uid}, CPU: &cpuStats{Time: now}, Memory: &memoryStats{Time: now}}
			if pod, ok := k.pods.Get(p.PodRef.Namespace, p.PodRef.Name); ok && pod.Status.StartTime != nil {
				p.StartTime = *pod.Status.StartTime
			}
			byPod[uid] = p
		}
		cs := containerStats{Name: l[labelContainerName], StartTime: k.startOf(p.PodRef, l[labelContainerName])}
		if u := c.Cpu; u != nil {
			cs.CPU = &cpuStats{Time: metav1.NewTime(time.Unix(0, u.Timestamp)), UsageNanoCores: value(u.UsageNanoCores), UsageCoreNanoSeconds: value(u.UsageCoreNanoSeconds)}
			add(&p.CPU.UsageNanoCores, cs.CPU.UsageNanoCores)
			add(&p.CPU.UsageCoreNanoSeconds, cs.CPU.UsageCoreNanoSeconds)
		}
		if u := c.Memory; u != nil {
			cs.Memory = &memoryStats{Time: metav1.NewTime(time.Unix(0, u.Timestamp)), AvailableBytes: value(u.AvailableBytes),
				UsageBytes: value(u.UsageBytes), WorkingSetBytes: value(u.WorkingSetBytes), RSSBytes: value(u.RssBytes)}
			add(&p.Memory.UsageBytes, cs.Memory.UsageBytes)
			add(&p.Memory.WorkingSetBytes, cs.Memory.WorkingSetBytes)
			add(&p.Memory.RSSBytes, cs.Memory.RSSBytes)
		}
		p.Containers = append(p.Containers, cs)
	}
	for _, p := range byPod {
		sort.Slice(p.Containers, func(i, j int) bool { return p.Containers[i].Name < p.Containers[j].Name })
		s.Pods = append(s.Pods, *p)
	}
	sort.Slice(s.Pods, func(i, j int) bool { return s.Pods[i].PodRef.UID < s.Pods[j].PodRef.UID })
	return s, nil
}

func (k *Kubelet) startOf(p podRefStats, name string) metav1.Time {
	if pod, ok := k.pods.Get(p.Namespace, p.Name); ok {
		for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
			if st := oldStatus(list, name); st != nil && st.State.Running != nil {
				return st.State.Running.StartedAt
			}
		}
	}
	return metav1.Time{}
}

func (k *Kubelet) serveStats(w http.ResponseWriter, r *http.Request) {
	s, err := k.summarize(r.Context())
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

func (k *Kubelet) serveMetrics(w http.ResponseWriter, r *http.Request) {
	pods, containers := 0, map[string]int{}
	if list, err := k.d.Runtime.ListContainers(r.Context(), nil); err == nil {
		for _, c := range list {
			containers[strings.ToLower(strings.TrimPrefix(c.State.String(), "CONTAINER_"))]++
		}
	}
	for _, wk := range k.allWorkers() {
		if st := wk.status.current(); st.Phase == corev1.PodRunning {
			pods++
		}
	}
	m := metrics{w}
	m.head("kubelet_node_name", "gauge", "The node's name. The count is always 1.")
	m.value("kubelet_node_name", 1, "node", k.d.NodeName)
	m.head("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox")
	m.value("kubelet_running_pods", float64(pods))
	m.head("kubelet_running_containers", "gauge", "Number of containers currently running")
	for _, state := range []string{"created", "running", "exited", "unknown"} {
		m.value("kubelet_running_containers", float64(containers[state]), "container_state", state)
	}
}

func (k *Kubelet) serveResourceMetrics(w http.ResponseWriter, r *http.Request) {
	s, err := k.summarize(r.Context())
	if err != nil {
		writeError(w, err)
		return
	}
	m := metrics{w}
	seconds := func(n *uint64) float64 { return float64(*n) / 1e9 }
	m.head("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container in core-seconds")
	each := func(f func(p *podStats, c *containerStats, l []string)) {
		for i := range s.Pods {
			p := &s.Pods[i]
			for j := range p.Containers {
				f(p, &p.Containers[j], []string{"container", p.Containers[j].Name, "namespace", p.PodRef.Namespace, "pod", p.PodRef.Name})
			}
		}
	}
	each(func(_ *podStats, c *containerStats, l []string) {
		if c.CPU != nil && c.CPU.UsageCoreNanoSeconds != nil {
			m.value("container_cpu_usage_seconds_total", seconds(c.CPU.UsageCoreNanoSeconds), l...)
		}
	})
	m.head("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes")
	each(func(_ *podStats, c *containerStats, l []string) {
		if c.Memory != nil && c.Memory.WorkingSetBytes != nil {
			m.value("container_memory_working_set_bytes", float64(*c.Memory.WorkingSetBytes), l...)
		}
	})
	m.head("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds")
	each(func(_ *podStats, c *containerStats, l []string) {
		if !c.StartTime.IsZero() {
			m.value("container_start_time_seconds", float64(c.StartTime.Unix()), l...)
		}
	})
	m.head("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds")
	m.value("node_cpu_usage_seconds_total", seconds(s.Node.CPU.UsageCoreNanoSeconds))
	m.head("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes")
	m.value("node_memory_working_set_bytes", float64(*s.Node.Memory.WorkingSetBytes))
	m.head("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise")
	m.value("resource_scrape_error", 0)
}

// metrics writes Prometheus' text format.
type metrics struct{ w io.Writer }

func (m metrics) head(name, kind, help string) {
	if w, ok := m.w.(http.ResponseWriter); ok {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	}
	fmt.Fprintf(m.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (m metrics) value(name string, v float64, labels ...string) {
	var l []string
	for i := 0; i+1 < len(labels); i += 2 {
		l = append(l, labels[i]+"="+strconv.Quote(labels[i+1]))
	}
	set := ""
	if len(l) > 0 {
		set = "{" + strings.Join(l, ",") + "}"
	}
	fmt.Fprintf(m.w, "%s%s %s\n", name, set, strconv.FormatFloat(v, 'g', -1, 64))
}

// ticksPerSecond is the kernel's unit in /proc/stat; it is 100 on every
// architecture that Linux runs containers on.
const ticksPerSecond = 100

// nodeCPU is the time that all processors together were not idle, in nanoseconds.
func nodeCPU() int64 {
	f := strings.Fields(line("/proc/stat"))
	var busy int64
	for i, v := range f {
		// cpu user nice system idle iowait irq softirq steal; guest time is in user.
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		n, _ := strconv.ParseInt(v, 10, 64)
		busy += n
	}
	return busy * int64(time.Second) / ticksPerSecond
}

func bootTime() time.Time {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return time.Time{}
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "btime "); ok {
			n, _ := strconv.ParseInt(v, 10, 64)
			return time.Unix(n, 0)
		}
	}
	return time.Time{}
}
