package eviction

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   Settings
		want string // of the error
		n    int    // thresholds
	}{
		{name: "defaults", n: 6},
		{name: "none", in: Settings{Hard: map[string]string{}}, n: 0},
		{name: "off", in: Settings{Hard: map[string]string{"memory.available": "0%", "nodefs.available": "100%"}}, n: 0},
		{name: "memory is for the pods' limit too", in: Settings{Hard: map[string]string{"memory.available": "1Gi"}}, n: 2},
		{name: "merged", in: Settings{Hard: map[string]string{"nodefs.available": "1Gi"}, MergeDefaults: true}, n: 6},
		{name: "a part that was switched off stays so", in: Settings{Hard: map[string]string{"nodefs.available": "0%"}, MergeDefaults: true}, n: 5},
		{name: "containerfs is derived", in: Settings{Hard: map[string]string{"containerfs.available": "1Gi"}}, n: 0},
		{name: "signal", in: Settings{Hard: map[string]string{"disk": "1"}}, want: "unsupported eviction signal disk"},
		{name: "negative", in: Settings{Hard: map[string]string{"memory.available": "-1Mi"}}, want: "eviction threshold memory.available must be positive: -1Mi"},
		{name: "zero", in: Settings{Hard: map[string]string{"memory.available": "0"}}, want: "eviction threshold memory.available must be positive: 0"},
		{name: "share", in: Settings{Hard: map[string]string{"memory.available": "-15%"}}, want: "eviction percentage threshold memory.available must be >= 0%: -15%"},
		{name: "large share", in: Settings{Hard: map[string]string{"memory.available": "150%"}}, want: "eviction percentage threshold memory.available must be <= 100%: 150%"},
		{name: "soft without grace", in: Settings{Hard: map[string]string{}, Soft: map[string]string{"pid.available": "10"}}, want: "grace period must be specified for the soft eviction threshold pid.available"},
		{name: "grace", in: Settings{Hard: map[string]string{}, Soft: map[string]string{"pid.available": "10"}, SoftGrace: map[string]string{"pid.available": "-30s"}}, want: "invalid eviction grace period specified: -30s, must be a positive value"},
		{name: "soft", in: Settings{Hard: map[string]string{}, Soft: map[string]string{"pid.available": "10"}, SoftGrace: map[string]string{"pid.available": "30s"}}, n: 1},
		{name: "reclaim", in: Settings{Hard: map[string]string{}, MinimumReclaim: map[string]string{"nodefs.available": "-1Gi"}}, want: "negative eviction minimum reclaim specified for nodefs.available"},
		{name: "share of reclaim", in: Settings{Hard: map[string]string{}, MinimumReclaim: map[string]string{"nodefs.available": "0%"}}, want: "eviction percentage minimum reclaim nodefs.available must be positive: 0%"},
	} {
		got, err := Parse(tt.in)
		if tt.want != "" {
			if err == nil || err.Error() != tt.want {
				t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
			}
			continue
		}
		if err != nil || len(got) != tt.n {
			t.Errorf("%s: %d thresholds, %v, want %d", tt.name, len(got), err, tt.n)
		}
	}
}

// The usual shares are bounded, those that somebody asked for are not.
func TestShares(t *testing.T) {
	of := func(s Settings, signal Signal, capacity string) string {
		list, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(t Threshold) bool { return t.Signal == signal })
		q := list[i].Value.Of(resource.MustParse(capacity))
		return q.String()
	}
	asked := Settings{Hard: map[string]string{"imagefs.available": "15%", "memory.available": "5%"}}
	for _, tt := range []struct{ got, want string }{
		{of(Settings{}, ImageFsAvailable, "1000Gi"), "10Gi"},
		{of(Settings{}, NodeFsAvailable, "1000Gi"), "5Gi"},
		{of(Settings{}, NodeFsAvailable, "10Gi"), "1073741840"}, // a float32's 10%, as upstream,
		{of(asked, ImageFsAvailable, "1000Gi"), "161061280000"},
		{of(asked, MemoryAvailable, "8Gi"), "429496736"},
		{of(Settings{}, MemoryAvailable, "8Gi"), "100Mi"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s, want %s", tt.got, tt.want)
		}
	}
}

func available(s Signal, available, capacity string) Observations {
	return Observations{s: {resource.MustParse(available), resource.MustParse(capacity)}}
}

func amount(s string) Value {
	q := resource.MustParse(s)
	return Value{Quantity: &q}
}

// Rounds of a node with a hard and a soft threshold, and the conditions between them.
func TestNext(t *testing.T) {
	reclaim := amount("500Mi")
	c := Config{Transition: 5 * time.Minute, Thresholds: []Threshold{
		{Signal: MemoryAvailable, Value: amount("2Gi"), Grace: 2 * time.Minute},
		{Signal: MemoryAvailable, Value: amount("1Gi"), Reclaim: &reclaim},
		{Signal: PIDAvailable, Value: amount("100")},
	}}
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var s State
	memory := []corev1.NodeConditionType{corev1.NodeMemoryPressure}
	for _, step := range []struct {
		at         time.Duration
		o          Observations
		conditions []corev1.NodeConditionType
		due        []time.Duration // graces of those due
		enough     bool
	}{
		{0, available(MemoryAvailable, "3Gi", "8Gi"), nil, nil, true},
		{10 * time.Second, available(MemoryAvailable, "1536Mi", "8Gi"), memory, nil, false},
		{time.Minute, available(MemoryAvailable, "1536Mi", "8Gi"), memory, nil, false},
		{2*time.Minute + 10*time.Second, available(MemoryAvailable, "1536Mi", "8Gi"), memory, []time.Duration{2 * time.Minute}, false},
		// Hard comes before soft.
		{3 * time.Minute, available(MemoryAvailable, "1023Mi", "8Gi"), memory, []time.Duration{0, 2 * time.Minute}, false},
		// More than the threshold, but not as much as is to be reclaimed.
		{3*time.Minute + 10*time.Second, available(MemoryAvailable, "1300Mi", "8Gi"), memory, []time.Duration{0, 2 * time.Minute}, false},
		{3*time.Minute + 20*time.Second, available(MemoryAvailable, "3Gi", "8Gi"), memory, nil, true},
		// Without a cause the condition stays for the transition period, counted from
		// the last one.
		{8 * time.Minute, available(MemoryAvailable, "3Gi", "8Gi"), memory, nil, true},
		{8*time.Minute + 11*time.Second, available(MemoryAvailable, "3Gi", "8Gi"), nil, nil, true},
		// A grace period begins anew.
		{9 * time.Minute, available(MemoryAvailable, "1536Mi", "8Gi"), memory, nil, false},
		// What could not be measured is no reason.
		{20 * time.Minute, Observations{}, nil, nil, true},
		{21 * time.Minute, available(PIDAvailable, "99", "32768"), []corev1.NodeConditionType{corev1.NodePIDPressure}, []time.Duration{0}, false},
		// Exactly the threshold is enough.
		{40 * time.Minute, available(PIDAvailable, "100", "32768"), nil, nil, true},
	} {
		next, due := c.Next(s, step.o, begin.Add(step.at))
		var graces []time.Duration
		for _, d := range due {
			graces = append(graces, d.Grace)
		}
		if !slices.Equal(next.Conditions, step.conditions) || !slices.Equal(graces, step.due) || c.Crossed(step.o) == step.enough {
			t.Errorf("at %v: conditions %v, due %v, crossed %v", step.at, next.Conditions, graces, c.Crossed(step.o))
		}
		s = next
	}
	// Memory is the most urgent.
	both := Observations{PIDAvailable: available(PIDAvailable, "1", "10")[PIDAvailable], MemoryAvailable: available(MemoryAvailable, "1Mi", "8Gi")[MemoryAvailable]}
	if _, due := c.Next(State{}, both, begin); len(due) != 2 || due[0].Signal != MemoryAvailable {
		t.Errorf("due: %v", due)
	}
}

func TestGrace(t *testing.T) {
	pod := func(n int64) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &n}}
	}
	soft := Threshold{Grace: time.Minute}
	for _, tt := range []struct {
		max  int64
		t    Threshold
		pod  *corev1.Pod
		want int64
	}{{60, Threshold{}, pod(30), 1}, {60, soft, pod(30), 30}, {10, soft, pod(30), 10}, {0, soft, pod(30), 1}, {10, soft, &corev1.Pod{}, 10}} {
		if got := (Config{MaxPodGrace: tt.max}).Grace(tt.t, tt.pod); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
}

// aPod has one container, "c", that asks for memory and ephemeral storage.
func aPod(name string, priority int32, memory, storage string) *corev1.Pod {
	r := corev1.ResourceList{}
	if memory != "" {
		r[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	if storage != "" {
		r[corev1.ResourceEphemeralStorage] = resource.MustParse(storage)
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		Priority:   &priority,
		Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: r}}},
		Volumes: []corev1.Volume{
			{Name: "empty", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		},
	}}
}

func p(n int64) *int64 { return &n }

func TestRank(t *testing.T) {
	type one struct {
		pod *corev1.Pod
		u   *Usage
	}
	mem := func(mi int64) *Usage { return &Usage{Memory: p(mi << 20)} }
	dsk := func(root, logs, volume int64) *Usage {
		return &Usage{Containers: []Container{{Name: "c", Root: &Disk{root << 20, root}, Logs: &Disk{logs << 20, logs}}}, Volumes: map[string]Disk{"empty": {volume << 20, volume}}}
	}
	for _, tt := range []struct {
		name   string
		signal Signal
		layout Layout
		pods   []one
		want   string
	}{
		{"usage over requests, then priority, then how much", MemoryAvailable, Layout{}, []one{
			{aPod("within", -10, "1Gi", ""), mem(900)},
			{aPod("over-high", 100, "100Mi", ""), mem(800)},
			{aPod("over-low-little", 1, "100Mi", ""), mem(150)},
			{aPod("over-low-much", 1, "100Mi", ""), mem(700)},
			{aPod("besteffort-high", 100, "", ""), mem(900)},
			{aPod("unknown", 1000, "", ""), nil},
		}, "unknown over-low-much over-low-little besteffort-high over-high within"},
		{"the allocatable memory too", AllocatableMemoryAvailable, Layout{}, []one{
			{aPod("a", 0, "", ""), mem(1)}, {aPod("b", 0, "", ""), mem(2)},
		}, "b a"},
		{"processes: priority first", PIDAvailable, Layout{}, []one{
			{aPod("many-high", 10, "", ""), &Usage{Processes: 1000}},
			{aPod("few", 0, "", ""), &Usage{Processes: 1}},
			{aPod("some", 0, "", ""), &Usage{Processes: 50}},
			{aPod("unknown-high", 10, "", ""), nil},
		}, "some few unknown-high many-high"},
		{"one file system: all counts", NodeFsAvailable, Layout{}, []one{
			{aPod("logs", 0, "", ""), dsk(0, 10, 0)}, {aPod("root", 0, "", ""), dsk(20, 0, 0)}, {aPod("volume", 0, "", ""), dsk(0, 0, 30)},
			{aPod("asked", 0, "", "1Gi"), dsk(0, 0, 500)},
		}, "volume root logs asked"},
		{"a file system of images: what is on the other", NodeFsAvailable, Layout{ImageFs: true}, []one{
			{aPod("logs", 0, "", ""), dsk(0, 10, 0)}, {aPod("root", 0, "", ""), dsk(20, 0, 0)}, {aPod("volume", 0, "", ""), dsk(0, 0, 30)},
		}, "volume logs root"},
		{"what is on it", ImageFsAvailable, Layout{ImageFs: true}, []one{
			{aPod("logs", 0, "", ""), dsk(0, 10, 0)}, {aPod("root", 0, "", ""), dsk(20, 0, 0)},
		}, "root logs"},
		{"inodes", NodeFsInodesFree, Layout{}, []one{
			{aPod("few", 0, "", ""), dsk(0, 1, 0)}, {aPod("many", 0, "", ""), dsk(0, 9, 0)},
		}, "many few"},
	} {
		use := map[string]*Usage{}
		var pods []*corev1.Pod
		for _, o := range tt.pods {
			pods = append(pods, o.pod)
			use[o.pod.Name] = o.u
		}
		Rank(pods, func(p *corev1.Pod) (Usage, bool) {
			if u := use[p.Name]; u != nil {
				return *u, true
			}
			return Usage{}, false
		}, tt.signal, tt.layout)
		var names []string
		for _, p := range pods {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, " "); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestMessage(t *testing.T) {
	pod := aPod("web", 0, "100Mi", "1Gi")
	whole := aPod("web", 0, "", "")
	whole.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("50Mi")}}
	hard := Threshold{Signal: MemoryAvailable, Value: amount("1Gi")}
	disk := Threshold{Signal: NodeFsAvailable, Value: Value{Percentage: 0.5}}
	u := Usage{Memory: p(300 << 20), Containers: []Container{{Name: "c", Memory: p(200 << 20), Root: &Disk{Bytes: 2 << 30}, Logs: &Disk{Bytes: 1 << 30}}, {Name: "injected", Memory: p(1 << 40)}}}
	for _, tt := range []struct {
		t           Threshold
		o           Observations
		pod         *corev1.Pod
		known       bool
		want        string
		annotations map[string]string
	}{
		{hard, available(MemoryAvailable, "512Mi", "8Gi"), pod, true,
			"The node was low on resource: memory. Threshold quantity: 1Gi, available: 512Mi. Container c was using 200Mi, request is 100Mi, has larger consumption of memory. ",
			map[string]string{"offending_containers": "c", "offending_containers_usage": "200Mi", "starved_resource": "memory"}},
		{hard, available(MemoryAvailable, "512Mi", "8Gi"), pod, false, "The node was low on resource: memory. Threshold quantity: 1Gi, available: 512Mi. ", map[string]string{}},
		{hard, available(MemoryAvailable, "512Mi", "8Gi"), whole, true,
			"The node was low on resource: memory. Threshold quantity: 1Gi, available: 512Mi. Pod web was using 300Mi, request is 50Mi, has larger consumption of memory. Container c was using 200Mi, request is 0, has larger consumption of memory. ",
			map[string]string{"offending_pod": "web", "offending_pod_usage": "300Mi", "offending_containers": "c", "offending_containers_usage": "200Mi", "starved_resource": "memory"}},
		{disk, available(NodeFsAvailable, "1Gi", "8Gi"), pod, true,
			"The node was low on resource: ephemeral-storage. Threshold quantity: 4Gi, available: 1Gi. Container c was using 3Gi, request is 1Gi, has larger consumption of ephemeral-storage. ",
			map[string]string{"offending_containers": "c", "offending_containers_usage": "3Gi", "starved_resource": "ephemeral-storage"}},
	} {
		got, annotations := Message(tt.t, []Threshold{tt.t}, tt.o, tt.pod, func(*corev1.Pod) (Usage, bool) { return u, tt.known })
		if got != tt.want || !reflect.DeepEqual(annotations, tt.annotations) {
			t.Errorf("%s\n%v", got, annotations)
		}
	}
}

func TestLocal(t *testing.T) {
	limit := func(s string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(s)}}
	}
	size := resource.MustParse("10Mi")
	sized := aPod("p", 0, "", "")
	sized.Spec.Volumes[0].EmptyDir.SizeLimit = &size
	one := aPod("p", 0, "", "")
	one.Spec.Containers[0].Resources = limit("20Mi")
	two := aPod("p", 0, "", "")
	two.Spec.Containers = append(two.Spec.Containers, corev1.Container{Name: "d", Resources: limit("100Mi")})
	two.Spec.Containers[0].Resources = limit("20Mi")
	use := func(root, logs, volume int64) Usage {
		return Usage{Containers: []Container{{Name: "c", Root: &Disk{Bytes: root << 20}, Logs: &Disk{Bytes: logs << 20}}}, Volumes: map[string]Disk{"empty": {Bytes: volume << 20}}}
	}
	for _, tt := range []struct {
		name   string
		pod    *corev1.Pod
		u      Usage
		l      Layout
		signal string
		want   string
	}{
		{"within", sized, use(100, 100, 10), Layout{}, "", ""},
		{"volume", sized, use(0, 0, 11), Layout{}, "emptydirfs.limit", `Usage of EmptyDir volume "empty" exceeds the limit "10Mi". `},
		{"pod", one, use(5, 6, 10), Layout{}, "ephemeralpodfs.limit", "Pod ephemeral local storage usage exceeds the total limit of containers 20Mi. "},
		{"container", two, use(15, 6, 0), Layout{}, "ephemeralcontainerfs.limit", `Container c exceeded its local ephemeral storage limit "20Mi". `},
		{"its own file system", two, use(15, 6, 0), Layout{ImageFs: true}, "", ""},
		{"no limit", aPod("p", 0, "", ""), use(1000, 1000, 1000), Layout{}, "", ""},
	} {
		var got Excess
		if x := Local(tt.pod, tt.u, tt.l); x != nil {
			got = *x
		}
		if got.Signal != tt.signal || got.Message != tt.want {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
	if !Limited(sized) || !Limited(one) || !Limited(two) || Limited(aPod("p", 0, "", "1Gi")) {
		t.Error("Limited")
	}
}

func TestRefusal(t *testing.T) {
	memory := []corev1.NodeConditionType{corev1.NodeMemoryPressure}
	both := []corev1.NodeConditionType{corev1.NodeDiskPressure, corev1.NodeMemoryPressure}
	critical := aPod("p", systemCritical, "", "")
	static := aPod("p", 0, "", "")
	static.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
	for _, tt := range []struct {
		name      string
		have      []corev1.NodeConditionType
		pod       *corev1.Pod
		class     corev1.PodQOSClass
		tolerates bool
		want      string
	}{
		{"none", nil, aPod("p", 0, "", ""), corev1.PodQOSBestEffort, false, ""},
		{"besteffort", memory, aPod("p", 0, "", ""), corev1.PodQOSBestEffort, false, "The node had condition: [MemoryPressure]. "},
		{"burstable", memory, aPod("p", 0, "", ""), corev1.PodQOSBurstable, false, ""},
		{"tolerant", memory, aPod("p", 0, "", ""), corev1.PodQOSBestEffort, true, ""},
		{"disk", both, aPod("p", 0, "", ""), corev1.PodQOSGuaranteed, true, "The node had condition: [DiskPressure MemoryPressure]. "},
		{"critical", both, critical, corev1.PodQOSBestEffort, false, ""},
		{"static", both, static, corev1.PodQOSBestEffort, false, ""},
	} {
		if got := Refusal(tt.have, tt.pod, tt.class, func(corev1.Taint) bool { return tt.tolerates }); got != tt.want {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
}

// What hard thresholds keep is not for pods.
func TestReserved(t *testing.T) {
	list, err := Parse(Settings{Hard: map[string]string{"memory.available": "1Gi", "nodefs.available": "25%"},
		Soft: map[string]string{"memory.available": "4Gi"}, SoftGrace: map[string]string{"memory.available": "1m"}})
	if err != nil {
		t.Fatal(err)
	}
	got := Config{Thresholds: list}.Reserved(corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi")})
	if got.Memory().String() != "1Gi" || got.StorageEphemeral().String() != "25Gi" {
		t.Errorf("%v", got)
	}
}
