package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	maxNodeImages = 50
	maxImageNames = 5
)

// setNodeStatus fills in a node's status from the machine and the runtime. old is
// the node as the API has it, nil for a new one.
func (k *Kubelet) setNodeStatus(ctx context.Context, n *corev1.Node, old *corev1.Node) {
	s := &n.Status
	s.Addresses = nil
	for _, ip := range k.d.NodeIPs {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: k.d.Hostname})
	disk := diskOf(k.d.Host.DataDir)
	declared := s.Capacity
	s.Capacity, s.Allocatable = k.capacity(disk)
	// Resources that others have declared, extended ones, are theirs.
	for name, q := range declared {
		if strings.Contains(string(name), "/") {
			s.Capacity[name], s.Allocatable[name] = q, q
		}
	}
	boot := s.NodeInfo.BootID
	k.node.mu.Lock()
	version := k.node.version // one for the whole report: the runtime may answer meanwhile
	k.node.mu.Unlock()
	s.NodeInfo = k.nodeInfo(version)
	if old != nil && boot != "" && boot != s.NodeInfo.BootID {
		k.nodeEvent(corev1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", k.d.NodeName, s.NodeInfo.BootID))
	}
	s.DaemonEndpoints.KubeletEndpoint.Port = k.d.Port

	var st *runtimeapi.StatusResponse
	err := fmt.Errorf("container runtime is down")
	if version != nil {
		st, err = k.d.Runtime.Status(ctx, false)
		s.Images = k.images(ctx)
	}
	if err == nil {
		s.RuntimeHandlers = nil
		for _, h := range st.GetRuntimeHandlers() {
			f := h.GetFeatures()
			rro, userns := f.GetRecursiveReadOnlyMounts(), f.GetUserNamespaces()
			s.RuntimeHandlers = append(s.RuntimeHandlers, corev1.NodeRuntimeHandler{Name: h.Name, Features: &corev1.NodeRuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: &rro, UserNamespaces: &userns,
			}})
		}
		groups := st.GetFeatures().GetSupplementalGroupsPolicy()
		s.Features = &corev1.NodeFeatures{SupplementalGroupsPolicy: &groups}
	}
	s.DeclaredFeatures = slices.Clone(declaredFeatures)
	k.pressureConditions(s, old)
	k.ready(s, old, st, err)
}

// declaredFeatures are those that pods ask for by what is in them (KEP-5328), and
// that this kubelet has: the scheduler sends such pods to nodes that declare them.
var declaredFeatures = []string{"RestartAllContainersOnContainerExits"}

func (k *Kubelet) setCondition(s *corev1.NodeStatus, old *corev1.Node, c corev1.NodeCondition, event string) {
	now := metav1.NewTime(k.d.Now().Truncate(1e9))
	c.LastHeartbeatTime, c.LastTransitionTime = now, now
	have := nodeCondition(s.Conditions, c.Type)
	if have != nil && have.Status == c.Status {
		c.LastTransitionTime = have.LastTransitionTime
	} else if old != nil {
		k.nodeEvent(corev1.EventTypeNormal, event, fmt.Sprintf("Node %s status is now: %s", k.d.NodeName, event))
	}
	if have != nil {
		*have = c
		return
	}
	s.Conditions = append(s.Conditions, c)
}

// pressureConditions sets the conditions for what the machine may run out of.
func (k *Kubelet) pressureConditions(s *corev1.NodeStatus, old *corev1.Node) {
	short := k.pressure.conditions()
	set := func(t corev1.NodeConditionType, on bool, yes, no, yesText, noText, yesEvent, noEvent string) {
		c := corev1.NodeCondition{Type: t, Status: corev1.ConditionFalse, Reason: no, Message: noText}
		event := noEvent
		if on {
			c.Status, c.Reason, c.Message, event = corev1.ConditionTrue, yes, yesText, yesEvent
		}
		k.setCondition(s, old, c, event)
	}
	set(corev1.NodeMemoryPressure, slices.Contains(short, corev1.NodeMemoryPressure),
		"KubeletHasInsufficientMemory", "KubeletHasSufficientMemory",
		"kubelet has insufficient memory available", "kubelet has sufficient memory available",
		"NodeHasInsufficientMemory", "NodeHasSufficientMemory")
	set(corev1.NodeDiskPressure, slices.Contains(short, corev1.NodeDiskPressure),
		"KubeletHasDiskPressure", "KubeletHasNoDiskPressure",
		"kubelet has disk pressure", "kubelet has no disk pressure",
		"NodeHasDiskPressure", "NodeHasNoDiskPressure")
	set(corev1.NodePIDPressure, slices.Contains(short, corev1.NodePIDPressure),
		"KubeletHasInsufficientPID", "KubeletHasSufficientPID",
		"kubelet has insufficient PID available", "kubelet has sufficient PID available",
		"NodeHasInsufficientPID", "NodeHasSufficientPID")
}

// ready sets the condition Ready from what the runtime says of itself.
func (k *Kubelet) ready(s *corev1.NodeStatus, old *corev1.Node, st *runtimeapi.StatusResponse, err error) {
	var problems []string
	if err != nil {
		problems = append(problems, err.Error())
	}
	for _, c := range st.GetStatus().GetConditions() {
		if c.Status {
			continue
		}
		switch c.Type {
		case runtimeapi.RuntimeReady:
			problems = append(problems, fmt.Sprintf("container runtime not ready: RuntimeReady=false reason:%s message:%s", c.Reason, c.Message))
		case runtimeapi.NetworkReady:
			problems = append(problems, fmt.Sprintf("container runtime network not ready: NetworkReady=false reason:%s message:%s", c.Reason, c.Message))
		}
	}
	c := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	event := "NodeReady"
	if len(problems) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "KubeletNotReady", problems[0]
		if len(problems) > 1 {
			c.Message = "[" + strings.Join(problems, ", ") + "]"
		}
		event = "NodeNotReady"
	}
	k.setCondition(s, old, c, event)
}

// capacity is what the machine has, and what pods may have of it.
func (k *Kubelet) capacity(d disk) (all, pods corev1.ResourceList) {
	bytes := func(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.BinarySI) }
	all = corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory:           bytes(k.memory),
		corev1.ResourcePods:             *resource.NewQuantity(int64(k.d.MaxPods), resource.DecimalSI),
		corev1.ResourceEphemeralStorage: bytes(d.size),
	}
	huge := int64(0)
	for size, n := range hugepages() {
		all[corev1.ResourceName(corev1.ResourceHugePagesPrefix+resource.NewQuantity(size, resource.BinarySI).String())] = bytes(size * n)
		huge += size * n
	}
	pods = all.DeepCopy()
	kept, r := k.d.Eviction.Reserved(all), k.d.Reserved
	memory, storage := r.of(corev1.ResourceMemory), r.of(corev1.ResourceEphemeralStorage)
	pods[corev1.ResourceCPU] = r.left(corev1.ResourceCPU, all[corev1.ResourceCPU])
	pods[corev1.ResourceMemory] = bytes(max(k.memory-kept.Memory().Value()-memory.Value()-huge, 0))
	pods[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(max(d.size-kept.StorageEphemeral().Value()-storage.Value(), 0), resource.DecimalSI)
	return all, pods
}

// nodeInfo is what the machine is; version is nil where the runtime did not answer yet.
func (k *Kubelet) nodeInfo(version *runtimeapi.VersionResponse) corev1.NodeSystemInfo {
	var u unix.Utsname
	_ = unix.Uname(&u)
	i := corev1.NodeSystemInfo{
		MachineID: line("/etc/machine-id"), SystemUUID: line("/sys/class/dmi/id/product_uuid"),
		BootID: line("/proc/sys/kernel/random/boot_id"), KernelVersion: string(bytes.TrimRight(u.Release[:], "\x00")),
		OSImage: osImage(), KubeletVersion: k.d.Version, OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
	}
	if i.SystemUUID == "" {
		i.SystemUUID = i.MachineID
	}
	if version != nil {
		i.ContainerRuntimeVersion = version.RuntimeName + "://" + version.RuntimeVersion
	}
	if swap := meminfo("SwapTotal:"); swap > 0 {
		i.Swap = &corev1.NodeSwapStatus{Capacity: &swap}
	}
	return i
}

// images are the largest images on the machine.
func (k *Kubelet) images(ctx context.Context) []corev1.ContainerImage {
	list, err := k.d.Images.ListImages(ctx, nil)
	if err != nil {
		k.d.Log.Warn("list images", "err", err)
		return nil
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].Size != list[j].Size {
			return list[i].Size > list[j].Size
		}
		return list[i].Id < list[j].Id
	})
	var out []corev1.ContainerImage
	for _, i := range list {
		names := append(append([]string(nil), i.RepoDigests...), i.RepoTags...)
		if len(names) == 0 {
			continue
		}
		if len(names) > maxImageNames {
			names = names[:maxImageNames]
		}
		if out = append(out, corev1.ContainerImage{Names: names, SizeBytes: int64(i.Size)}); len(out) == maxNodeImages {
			break
		}
	}
	return out
}

type disk struct{ size, free, inodes, inodesFree int64 }

// diskOf measures the file system that a path, or the nearest directory above it
// that exists, is on.
func diskOf(path string) disk {
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err == nil {
			b := int64(st.Bsize)
			return disk{int64(st.Blocks) * b, int64(st.Bavail) * b, int64(st.Files), int64(st.Ffree)}
		}
		up := filepath.Dir(path)
		if up == path {
			return disk{}
		}
		path = up
	}
}

// line is the first line of a file, empty where it cannot be read.
func line(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	s, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(s)
}

func osImage() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Unknown"
	}
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return "Unknown"
}

// meminfo is an entry of /proc/meminfo in bytes, 0 where there is none.
func meminfo(name string) int64 { return int64(memory()[strings.TrimSuffix(name, ":")]) }

// memory is /proc/meminfo in bytes.
func memory() map[string]uint64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil
	}
	out := map[string]uint64{}
	for l := range strings.Lines(string(b)) {
		name, v, _ := strings.Cut(l, ":")
		if n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 54); err == nil {
			out[name] = n << 10
		}
	}
	return out
}

// processes are the processes that run and the most there can be; false where that
// cannot be read.
func processes() (used, all int64, ok bool) {
	all, err := strconv.ParseInt(line("/proc/sys/kernel/pid_max"), 10, 64)
	if err != nil || all <= 0 {
		return 0, 0, false
	}
	if n, err := strconv.ParseInt(line("/proc/sys/kernel/threads-max"), 10, 64); err == nil && n > 0 {
		all = min(all, n)
	}
	f := strings.Fields(line("/proc/loadavg"))
	if len(f) < 4 {
		return 0, 0, false
	}
	_, total, _ := strings.Cut(f[3], "/")
	n, err := strconv.ParseInt(total, 10, 64)
	return n, all, err == nil
}

// hugepages are the numbers of huge pages by their size in bytes.
func hugepages() map[int64]int64 {
	out := map[int64]int64{}
	dirs, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, d := range dirs {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		n, _ := strconv.ParseInt(line(filepath.Join(d, "nr_hugepages")), 10, 64)
		out[kb<<10] = n
	}
	return out
}
