package kubelet

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
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
	Swap      *swapStats   `json:"swap,omitempty"`
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
	Swap       *swapStats       `json:"swap,omitempty"`
}

type containerStats struct {
	Name      string       `json:"name"`
	StartTime metav1.Time  `json:"startTime"`
	CPU       *cpuStats    `json:"cpu,omitempty"`
	Memory    *memoryStats `json:"memory,omitempty"`
	Swap      *swapStats   `json:"swap,omitempty"`

	id      string
	written *runtimeapi.FilesystemUsage // nil where the runtime does not tell
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

type swapStats struct {
	Time               metav1.Time `json:"time"`
	SwapAvailableBytes *uint64     `json:"swapAvailableBytes,omitempty"`
	SwapUsageBytes     *uint64     `json:"swapUsageBytes,omitempty"`
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
	s := &summary{Node: k.measureNode(metav1.NewTime(k.d.Now())), Pods: []podStats{}}
	byPod := map[string]*podStats{}
	for _, c := range latest(list) {
		l := c.GetAttributes().GetLabels()
		uid := l[labelPodUID]
		p := byPod[uid]
		if p == nil {
			p = &podStats{PodRef: podRefStats{l[labelPodName], l[labelPodNamespace], uid}, CPU: &cpuStats{}, Memory: &memoryStats{}}
			if pod, ok := k.pods.Get(p.PodRef.Namespace, p.PodRef.Name); ok && pod.Status.StartTime != nil {
				p.StartTime = *pod.Status.StartTime
			}
			byPod[uid] = p
		}
		p.add(containerOf(c, k.startOf(p.PodRef, l[labelContainerName])))
	}
	for _, p := range byPod {
		sort.Slice(p.Containers, func(i, j int) bool { return p.Containers[i].Name < p.Containers[j].Name })
		s.Pods = append(s.Pods, *p)
	}
	sort.Slice(s.Pods, func(i, j int) bool { return s.Pods[i].PodRef.UID < s.Pods[j].PodRef.UID })
	return s, nil
}

// latest are the pods' containers without those that a later attempt replaced: some
// runtimes list what has ended too.
func latest(list []*runtimeapi.ContainerStats) []*runtimeapi.ContainerStats {
	type key struct{ uid, name string }
	newest := map[key]*runtimeapi.ContainerStats{}
	for _, c := range list {
		l := c.GetAttributes().GetLabels()
		k := key{l[labelPodUID], l[labelContainerName]}
		if k.uid == "" {
			continue
		}
		if old := newest[k]; old == nil || c.GetAttributes().GetMetadata().GetAttempt() > old.GetAttributes().GetMetadata().GetAttempt() {
			newest[k] = c
		}
	}
	return slices.Collect(maps.Values(newest))
}

// measureNode is the whole machine: its working set is what is in use without the
// pages of files that nobody has touched lately, as for a container.
func (k *Kubelet) measureNode(now metav1.Time) nodeStats {
	cpu, size := uint64(nodeCPU()), uint64(k.memory)
	m := memory()
	used := size - min(m["MemFree"], size)
	set := used - min(m["Inactive(file)"], used)
	free, rss, swap := size-min(set, size), m["AnonPages"], m["SwapTotal"]-min(m["SwapFree"], m["SwapTotal"])
	d := diskOf(k.d.Host.DataDir)
	swapFree := m["SwapFree"]
	return nodeStats{
		NodeName: k.d.NodeName, StartTime: metav1.NewTime(bootTime()),
		CPU:    &cpuStats{Time: now, UsageCoreNanoSeconds: &cpu},
		Memory: &memoryStats{Time: now, AvailableBytes: &free, WorkingSetBytes: &set, UsageBytes: &used, RSSBytes: &rss},
		Swap:   &swapStats{Time: now, SwapUsageBytes: &swap, SwapAvailableBytes: &swapFree},
		FS: &fsStats{Time: now, AvailableBytes: uint64(d.free), CapacityBytes: uint64(d.size), UsedBytes: uint64(d.size - d.free),
			InodesFree: uint64(d.inodesFree), Inodes: uint64(d.inodes)},
	}
}

func containerOf(c *runtimeapi.ContainerStats, start metav1.Time) containerStats {
	at := func(ns int64) metav1.Time { return metav1.NewTime(time.Unix(0, ns)) }
	cs := containerStats{Name: c.GetAttributes().GetLabels()[labelContainerName], StartTime: start, id: c.GetAttributes().GetId(), written: c.GetWritableLayer()}
	if u := c.Cpu; u != nil {
		cs.CPU = &cpuStats{Time: at(u.Timestamp), UsageNanoCores: value(u.UsageNanoCores), UsageCoreNanoSeconds: value(u.UsageCoreNanoSeconds)}
	}
	if u := c.Memory; u != nil {
		cs.Memory = &memoryStats{Time: at(u.Timestamp), AvailableBytes: value(u.AvailableBytes), UsageBytes: value(u.UsageBytes),
			WorkingSetBytes: value(u.WorkingSetBytes), RSSBytes: value(u.RssBytes)}
	}
	if u := c.Swap; u != nil {
		cs.Swap = &swapStats{Time: at(u.Timestamp), SwapUsageBytes: value(u.SwapUsageBytes), SwapAvailableBytes: value(u.SwapAvailableBytes)}
	}
	return cs
}

// add counts a container into its pod, which is of the time of the last of them.
func (p *podStats) add(c containerStats) {
	if u := c.CPU; u != nil {
		add(&p.CPU.UsageCoreNanoSeconds, u.UsageCoreNanoSeconds)
		p.CPU.Time = later(p.CPU.Time, u.Time)
	}
	if u := c.Memory; u != nil {
		add(&p.Memory.UsageBytes, u.UsageBytes)
		add(&p.Memory.WorkingSetBytes, u.WorkingSetBytes)
		add(&p.Memory.RSSBytes, u.RSSBytes)
		p.Memory.Time = later(p.Memory.Time, u.Time)
	}
	if u := c.Swap; u != nil {
		if p.Swap == nil {
			p.Swap = &swapStats{}
		}
		add(&p.Swap.SwapUsageBytes, u.SwapUsageBytes)
		p.Swap.Time = later(p.Swap.Time, u.Time)
	}
	p.Containers = append(p.Containers, c)
}

func later(a, b metav1.Time) metav1.Time {
	if a.Before(&b) {
		return b
	}
	return a
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

// ticksPerSecond is the kernel's unit in /proc/stat; it is 100 on every
// architecture that Linux runs containers on.
const ticksPerSecond = 100

// nodeCPU is the time that all processors together were not idle, in nanoseconds.
func nodeCPU() int64 {
	f := strings.Fields(line("/proc/stat"))
	var busy int64
	for i, v := range f {
		// cpu user nice system idle iowait irq softirq steal: guest time is in user,
		// and what other machines stole was not this one's.
		if i == 0 || i == 4 || i == 5 || i > 7 {
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
