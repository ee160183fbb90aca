package scheduler

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client/clienttest"
	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

func space(name, weight, quota string) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if weight != "" {
		n.Labels = map[string]string{ShareWeight: weight}
	}
	if quota != "" {
		n.Annotations = map[string]string{ShareQuota: quota}
	}
	return n
}

func TestPortion(t *testing.T) {
	for _, c := range []struct {
		weight, quota, want string
	}{
		{"", "", "1 {} false"},
		{"3", "", "3 {} true"},
		{"0.5", "cpu=4, memory=8Gi", "0.5 {cpu:4 memory:8Gi } true"},
		{"0", "", `1 {} true label skiff.io/share-weight: "0" is no weight: a number above 0, 1000000 at most`},
		{"NaN", "", `1 {} true label skiff.io/share-weight: "NaN" is no weight: a number above 0, 1000000 at most`},
		{"Inf", "", `1 {} true label skiff.io/share-weight: "Inf" is no weight: a number above 0, 1000000 at most`},
		{"-1", "", `1 {} true label skiff.io/share-weight: "-1" is no weight: a number above 0, 1000000 at most`},
		{"", "cpu", `1 {} true annotation skiff.io/share-quota: "cpu" is no amount of a resource, such as cpu=4`},
		{"2", "cpu=-1", `2 {} true annotation skiff.io/share-quota: "cpu=-1" is no amount of a resource, such as cpu=4`},
	} {
		p, given, err := portionOf(space("a", c.weight, c.quota))
		quota := ""
		for _, r := range []corev1.ResourceName{"cpu", "memory"} {
			if q, ok := p.quota[r]; ok {
				quota += fmt.Sprintf("%s:%s ", r, q.String())
			}
		}
		got := fmt.Sprintf("%v {%s} %v", p.weight, quota, given)
		if err != nil {
			got += " " + err.Error()
		}
		if got != c.want {
			t.Errorf("%q %q: %s, want %s", c.weight, c.quota, got, c.want)
		}
	}
}

// market is a cluster in simulation: pods of several namespaces come, wait, run for a
// while and end.
type market struct {
	s       *Scheduler
	classes *framework.Classes
	now     time.Time
	cycle   *Cycle
	runs    map[int64][]*framework.Pod // by the second of their end
	used    map[string]int64           // milliCPU-seconds by namespace
	born    map[types.UID]time.Time
	waited  map[string]time.Duration // the longest, by namespace
	count   int
}

func newMarket(nodes int, spaces ...*corev1.Namespace) *market {
	m := &market{
		s: &Scheduler{queue: newQueue(), snapshot: framework.NewSnapshot()}, classes: framework.NewClasses(), now: time.Unix(1_000_000, 0),
		cycle: NewCycle(plugins.All(), 1), runs: map[int64][]*framework.Pod{}, used: map[string]int64{}, born: map[types.UID]time.Time{},
		waited: map[string]time.Duration{},
	}
	m.s.queue.profile(plugins.ProfileOf(corev1.DefaultSchedulerName, plugins.All()))
	for i := range nodes {
		m.s.snapshot.SetNode(node(fmt.Sprintf("n%d", i), "cpu", "8", "memory", "32Gi", "pods", "110"))
	}
	for _, ns := range spaces {
		p, given, _ := portionOf(ns)
		m.s.setPortion(ns.Name, p, given)
	}
	return m
}

func (m *market) add(ns, cpu string) {
	m.count++
	p := pod(fmt.Sprintf("p%d", m.count), "cpu", cpu)
	p.Namespace, p.UID = ns, types.UID(fmt.Sprintf("u%d", m.count))
	m.born[p.UID] = m.now
	m.s.queue.set(m.classes.Pod(p), m.now)
}

// second lets a second pass: what has ended goes, what waits is tried; life says for
// how many seconds a pod runs.
func (m *market) second(life func() int64) {
	m.now = m.now.Add(time.Second)
	s := m.s.snapshot
	for _, p := range m.runs[m.now.Unix()] {
		s.RemovePod(p.UID)
		m.s.queue.happened(framework.Event{Kind: framework.PodDeleted, Pod: p}, m.now)
	}
	delete(m.runs, m.now.Unix())
	m.s.queue.flush(m.now)
	for {
		batch := m.s.queue.take(maxBatch)
		if len(batch) == 0 {
			break
		}
		pods := make([]*framework.Pod, len(batch))
		for i, q := range batch {
			pods[i] = q.pod
		}
		for i, d := range m.cycle.Schedule(s, pods) {
			if d.Failure != nil {
				m.s.queue.failed(batch[i], d.Failure.Plugins, m.now)
				continue
			}
			m.s.queue.remove(d.Pod.UID)
			s.SetPod(d.Pod, d.Node)
			end := m.now.Unix() + life()
			m.runs[end] = append(m.runs[end], d.Pod)
			m.waited[d.Pod.Namespace] = max(m.waited[d.Pod.Namespace], m.now.Sub(m.born[d.Pod.UID]))
			delete(m.born, d.Pod.UID)
		}
	}
	for _, n := range s.All() {
		for _, p := range n.Pods {
			m.used[p.Namespace] += p.Class.Requests.MilliCPU
		}
	}
}

// waitingOf counts the pods of a namespace that wait.
func (m *market) waitingOf() map[string]int {
	out := map[string]int{}
	for _, q := range m.s.queue.pods {
		out[q.pod.Namespace]++
	}
	return out
}

// TestFairShares holds, over seeds: while all want more than there is, each gets its
// part by weight within 5 %, in the long run, and every pod has its turn.
func TestFairShares(t *testing.T) {
	weights := map[string]float64{"a": 1, "b": 2, "c": 5}
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 7))
		m := newMarket(10, space("b", "2", ""), space("c", "5", ""))
		life := func() int64 { return 1 + int64(r.IntN(40)) }
		const backlog = 40
		for range 4000 {
			have := m.waitingOf()
			for _, ns := range []string{"a", "b", "c"} {
				for range backlog - have[ns] {
					m.add(ns, []string{"500m", "1", "1", "2"}[r.IntN(4)])
				}
			}
			m.second(life)
		}
		var all float64
		for _, v := range m.used {
			all += float64(v)
		}
		if full := all / (4000 * 80_000); full < 0.95 {
			t.Errorf("seed %d: %.3f of the cluster is used", seed, full)
		}
		for ns, w := range weights {
			if got, want := float64(m.used[ns])/all, w/8; math.Abs(got-want)/want > 0.05 {
				t.Errorf("seed %d: %s got %.4f, its part is %.4f", seed, ns, got, want)
			}
			// A namespace with a tenth of the places turns its backlog over in some
			// hundred seconds.
			if m.waited[ns] > 10*time.Minute {
				t.Errorf("seed %d: a pod of %s waited for %v", seed, ns, m.waited[ns])
			}
		}
		for uid, at := range m.born {
			if m.now.Sub(at) > 10*time.Minute {
				t.Errorf("seed %d: %s waits for %v", seed, uid, m.now.Sub(at))
			}
		}
	}
}

// TestFairBorrow: what nobody else wants may be taken, and is given back as pods end.
func TestFairBorrow(t *testing.T) {
	m := newMarket(10, space("a", "1", ""), space("b", "1", ""))
	life := func() int64 { return 20 }
	for range 200 {
		m.add("a", "1")
	}
	m.second(life)
	if got := m.s.snapshot.Use("a").MilliCPU; got != 80_000 {
		t.Fatalf("alone, a has %d", got)
	}
	for range 200 {
		m.add("b", "1")
	}
	for range 25 {
		m.second(life)
	}
	a, b := m.s.snapshot.Use("a"), m.s.snapshot.Use("b")
	if a.MilliCPU != 40_000 || b.MilliCPU != 40_000 {
		t.Errorf("then a has %d, b %d", a.MilliCPU, b.MilliCPU)
	}
}

// TestFairQuota: a quota goes before weights, and is no limit.
func TestFairQuota(t *testing.T) {
	m := newMarket(10, space("a", "9", ""), space("b", "", "cpu=30"))
	for range 100 {
		m.add("a", "1")
		m.add("b", "1")
	}
	m.second(func() int64 { return 1000 })
	a, b := m.s.snapshot.Use("a"), m.s.snapshot.Use("b")
	if a.MilliCPU != 50_000 || b.MilliCPU != 30_000 {
		t.Errorf("a has %d, b %d", a.MilliCPU, b.MilliCPU)
	}
	m = newMarket(10, space("a", "9", ""), space("b", "", "cpu=30"))
	for range 100 {
		m.add("b", "1")
	}
	m.second(func() int64 { return 1000 })
	if b := m.s.snapshot.Use("b"); b.MilliCPU != 80_000 {
		t.Errorf("alone, b has %d", b.MilliCPU)
	}
}

// TestFairOrder: priority goes before shares, and without marks the order is
// upstream's.
func TestFairOrder(t *testing.T) {
	qu, classes := testQueue()
	s := &Scheduler{queue: qu, snapshot: framework.NewSnapshot()}
	s.snapshot.SetNode(node("n", "cpu", "100", "memory", "100Gi", "pods", "100"))
	now := time.Unix(1000, 0)
	fill := func() {
		for i, name := range []string{"a1", "a2", "a3", "b1", "b2"} {
			p := pod(name, "cpu", "1")
			p.Namespace = name[:1]
			if name == "a3" {
				p = withPriority(p, 5)
			}
			qu.set(classes.Pod(p), now.Add(time.Duration(i)*time.Second))
		}
	}
	empty := func() string {
		got := qu.take(9)
		for _, q := range got {
			qu.remove(q.pod.UID)
		}
		return names(got)
	}
	fill()
	if got := empty(); got != "a3 a1 a2 b1 b2" {
		t.Errorf("off: %s", got)
	}
	s.setPortion("a", portion{weight: 1}, true)
	fill()
	if got := empty(); got != "a3 b1 a1 b2 a2" {
		t.Errorf("on: %s", got)
	}
	s.setPortion("a", portion{}, false)
	fill()
	if got := empty(); got != "a3 a1 a2 b1 b2" || qu.fair != nil {
		t.Errorf("off again: %s", got)
	}
}

// TestFairRuns: the marks of namespaces take effect in a scheduler at work.
func TestFairRuns(t *testing.T) {
	api := clienttest.New()
	api.Put(space("a", "1", ""))
	api.Put(space("b", "3", ""))
	for i := range 20 {
		for _, ns := range []string{"a", "b"} {
			p := pod(fmt.Sprintf("%s%d", ns, i), "cpu", "1")
			p.Namespace = ns
			api.Put(p)
		}
	}
	r := run(t, api)
	r.until("all are told that there is no node", func() bool {
		n := 0
		for _, p := range r.pods.List("", nil) {
			if len(p.Status.Conditions) > 0 && strings.Contains(p.Status.Conditions[0].Message, noNodes) {
				n++
			}
		}
		return n == 40
	})
	api.Put(node("n", "cpu", "16", "memory", "100Gi", "pods", "110"))
	by := func(ns string) (n int) {
		for _, p := range r.pods.List(ns, nil) {
			if p.Spec.NodeName != "" {
				n++
			}
		}
		return n
	}
	r.until("the node is full", func() bool { return by("a")+by("b") == 16 })
	if by("a") != 4 || by("b") != 12 {
		t.Errorf("a has %d, b %d", by("a"), by("b"))
	}
}
