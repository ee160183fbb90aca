package usage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fleet is a cluster of kubelets. Each node uses half a core, and its pod ns/web a
// tenth, in two containers.
type fleet struct {
	mu    sync.Mutex
	nodes map[string]*fakeNode
	reads int
	most  int // readings under way at a time
	now   int
}

type fakeNode struct {
	ready, hangs bool
	// ahead is by how much the node's clock is ahead of ours; started is when its
	// containers started, before everything else where zero.
	ahead   time.Duration
	started time.Time
	begin   time.Time // of the containers' counters
	code    int
	body    func() string
}

func newFleet(names ...string) *fleet {
	f := &fleet{nodes: map[string]*fakeNode{}}
	for _, n := range names {
		f.nodes[n] = &fakeNode{ready: true}
	}
	return f
}

func (f *fleet) edit(name string, change func(*fakeNode)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.nodes[name])
}

func (f *fleet) list(context.Context) ([]*corev1.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*corev1.Node
	for name := range f.nodes {
		out = append(out, f.node(name))
	}
	return out, nil
}

func (f *fleet) node(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	s := corev1.ConditionTrue
	if k := f.nodes[name]; k == nil || !k.ready {
		s = corev1.ConditionUnknown
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: s}}
	return n
}

func (f *fleet) Kubelet(_ context.Context, n *corev1.Node) (*url.URL, http.RoundTripper, error) {
	return &url.URL{Scheme: "https", Host: n.Name}, f, nil
}

func (f *fleet) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	n := f.nodes[r.URL.Host]
	f.reads++
	f.now++
	f.most = max(f.most, f.now)
	hangs := n == nil || n.hangs
	f.mu.Unlock()
	defer func() { f.mu.Lock(); f.now--; f.mu.Unlock() }()
	if r.URL.Path != "/metrics/resource" {
		return nil, fmt.Errorf("asked for %s", r.URL)
	}
	if hangs {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	code := n.code
	if code == 0 {
		code = http.StatusOK
	}
	text := n.text(time.Now())
	if n.body != nil {
		text = n.body()
	}
	return &http.Response{StatusCode: code, Status: fmt.Sprint(code), Body: io.NopCloser(strings.NewReader(text))}, nil
}

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (n *fakeNode) text(now time.Time) string {
	begin := n.begin
	if begin.IsZero() {
		begin = epoch.Add(-time.Hour)
	}
	started := n.started
	if started.IsZero() {
		started = begin
	}
	node, pod := now.Sub(epoch.Add(-time.Hour)).Seconds()/2, now.Sub(begin).Seconds()/20
	ms := now.Add(n.ahead).UnixMilli()
	var b strings.Builder
	fmt.Fprintf(&b, "# HELP node_cpu_usage_seconds_total x\n# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total %g %d\nnode_memory_working_set_bytes 1e+09 %d\n", node, ms, ms)
	for _, c := range []string{"a", "b"} {
		l := fmt.Sprintf(`{container=%q,namespace="ns",pod="web"}`, c)
		fmt.Fprintf(&b, "container_cpu_usage_seconds_total%s %.9g %d\ncontainer_memory_working_set_bytes%s 1.048576e+06 %d\ncontainer_start_time_seconds%s %d\n", l, pod, ms, l, ms, l, started.Add(n.ahead).Unix())
	}
	return b.String()
}

func (f *fleet) count() int { f.mu.Lock(); defer f.mu.Unlock(); return f.reads }

type rig struct {
	*Source
	f    *fleet
	stop func()
}

func start(t *testing.T, f *fleet) *rig {
	s := New(Deps{Nodes: f.list, Kubelets: f, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return &rig{s, f, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}}
}

func (r *rig) node(t *testing.T, name string) resource.Usage {
	t.Helper()
	r.f.mu.Lock()
	n := r.f.node(name)
	r.f.mu.Unlock()
	u, err := r.NodeUsage(t.Context(), []*corev1.Node{n})
	if err != nil {
		t.Fatal(err)
	}
	return u[0]
}

func (r *rig) pod(t *testing.T, node string) resource.PodUsage {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}, Spec: corev1.PodSpec{NodeName: node}}
	u, err := r.PodUsage(t.Context(), []*corev1.Pod{p})
	if err != nil {
		t.Fatal(err)
	}
	return u[0]
}

// milli is the processor usage in thousandths of a core.
func milli(l corev1.ResourceList) int64 { q := l[corev1.ResourceCPU]; return q.MilliValue() }

func TestNobodyIsAskedUntilSomebodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("one", "two"))
		defer r.stop()
		time.Sleep(time.Hour)
		if n := r.f.count(); n != 0 {
			t.Fatalf("%d readings while nobody asks", n)
		}
		begin := time.Now()
		u := r.node(t, "one")
		if took := time.Since(begin); took != firstWindow {
			t.Errorf("the first answer took %v", took)
		}
		if u.Window != time.Second || milli(u.Used) != 500 || u.Used.Memory().Value() != 1e9 || !u.At.Equal(time.Now()) {
			t.Errorf("usage %+v", u)
		}
		p := r.pod(t, "two")
		if len(p.Containers) != 2 || p.Containers[0].Name != "a" || milli(p.Containers[1].Used) != 50 || p.Containers[0].Used.Memory().String() != "1Mi" {
			t.Errorf("pod %+v", p)
		}
		time.Sleep(20 * time.Second)
		if u := r.node(t, "one"); u.Window < 13*time.Second || u.Window > 15*time.Second || milli(u.Used) != 500 {
			t.Errorf("later %+v", u)
		}
		time.Sleep(interest + resolution)
		asked := r.f.count()
		time.Sleep(time.Hour)
		if n := r.f.count(); n != asked {
			t.Errorf("%d readings after the interest ended", n-asked)
		}
		r.mu.Lock()
		kept := len(r.nodes)
		r.mu.Unlock()
		if kept != 0 {
			t.Errorf("%d nodes are remembered", kept)
		}
		if u := r.node(t, "two"); milli(u.Used) != 500 {
			t.Errorf("after a sleep %+v", u)
		}
	})
}

// A node that hangs holds up nobody but those who ask for it, and them not for long.
func TestNodesThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("good", "bad", "away"))
		defer r.stop()
		r.f.edit("bad", func(n *fakeNode) { n.hangs = true })
		r.f.edit("away", func(n *fakeNode) { n.ready = false })
		begin := time.Now()
		if p := r.pod(t, "good"); time.Since(begin) != firstWindow || milli(p.Containers[0].Used) != 50 {
			t.Errorf("after %v: %+v", time.Since(begin), p)
		}
		if u := r.node(t, "bad"); !u.At.IsZero() || time.Since(begin) > firstWindow+patience {
			t.Errorf("after %v: %+v", time.Since(begin), u)
		}
		if u := r.node(t, "away"); !u.At.IsZero() {
			t.Errorf("of a node that is not ready: %+v", u)
		}
		time.Sleep(time.Minute)
		// It stays asked, it does not come, and nobody waits for it any more.
		begin = time.Now()
		if u := r.node(t, "bad"); !u.At.IsZero() || time.Since(begin) != 0 {
			t.Errorf("after %v: %+v", time.Since(begin), u)
		}
		r.f.edit("bad", func(n *fakeNode) { n.hangs = false })
		time.Sleep(30 * time.Second)
		if u := r.node(t, "bad"); milli(u.Used) != 500 {
			t.Errorf("when it has come back: %+v", u)
		}
	})
}

// Of a node that stops answering the last figures are told for a minute; of one that
// is not ready or gone nothing.
func TestNodesThatGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("silent", "unready", "gone"))
		defer r.stop()
		names := []string{"silent", "unready", "gone"}
		for _, n := range names {
			if u := r.node(t, n); u.At.IsZero() {
				t.Fatalf("%s is not known", n)
			}
		}
		r.f.edit("silent", func(n *fakeNode) { n.code = 500 })
		r.f.edit("unready", func(n *fakeNode) { n.ready = false })
		r.f.mu.Lock()
		delete(r.f.nodes, "gone")
		r.f.mu.Unlock()
		time.Sleep(20 * time.Second)
		if u := r.node(t, "silent"); u.At.IsZero() {
			t.Error("one lost answer is enough to forget a node")
		}
		for _, n := range names[1:] {
			if u := r.node(t, n); !u.At.IsZero() {
				t.Errorf("%s: %+v", n, u)
			}
		}
		time.Sleep(keep)
		if u := r.node(t, "silent"); !u.At.IsZero() {
			t.Errorf("of long ago: %+v", u)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.nodes) != 1 {
			t.Errorf("%d nodes are remembered", len(r.nodes))
		}
	})
}

func TestContainersThatRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("one"))
		defer r.stop()
		r.pod(t, "one")
		time.Sleep(6*time.Second + 500*time.Millisecond)
		// Its counters begin anew; by the next reading they are behind those before.
		r.f.edit("one", func(n *fakeNode) { n.begin = time.Now() })
		time.Sleep(8 * time.Second) // one reading at 15 s: the container is 8 s old
		if p := r.pod(t, "one"); !p.At.IsZero() {
			t.Errorf("after a restart %+v", p)
		}
		if u := r.node(t, "one"); milli(u.Used) != 500 {
			t.Errorf("the node meanwhile: %+v", u)
		}
		time.Sleep(15 * time.Second)
		if p := r.pod(t, "one"); milli(p.Containers[0].Used) != 50 {
			t.Errorf("a reading later %+v", p)
		}
		// One that is old enough at its first reading is measured from its start.
		time.Sleep(3 * time.Second)
		r.f.edit("one", func(n *fakeNode) { n.begin = time.Now() })
		time.Sleep(14 * time.Second)
		if p := r.pod(t, "one"); p.Window < freshAge || p.Window >= resolution || milli(p.Containers[0].Used) > 51 || milli(p.Containers[0].Used) < 45 {
			t.Errorf("from its start %+v", p)
		}
	})
}

// A clock that is set gives no figure, rather than a wrong one.
func TestClocksThatJump(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"forward": time.Hour, "back": -time.Hour, "back a little": -20 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := start(t, newFleet("one"))
				defer r.stop()
				r.node(t, "one")
				time.Sleep(5 * time.Second)
				r.f.edit("one", func(n *fakeNode) { n.ahead = ahead })
				time.Sleep(12 * time.Second)
				u, p := r.node(t, "one"), r.pod(t, "one")
				if !u.At.IsZero() && milli(u.Used) != 500 || !p.At.IsZero() && milli(p.Containers[0].Used) != 50 {
					t.Errorf("when it jumped: %+v, %+v", u, p)
				}
				time.Sleep(resolution)
				if u, p := r.node(t, "one"), r.pod(t, "one"); milli(u.Used) != 500 || milli(p.Containers[0].Used) != 50 {
					t.Errorf("a reading later: %+v, %+v", u, p)
				}
			})
		})
	}
}

// A runtime that measures less often than it is asked: the last two measurements count.
func TestMeasuredNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, newFleet("one"))
		defer r.stop()
		r.f.edit("one", func(n *fakeNode) {
			n.body = func() string { return n.text(time.Now().Truncate(20 * time.Second)) }
		})
		time.Sleep(time.Second)
		r.node(t, "one")
		time.Sleep(25 * time.Second)
		for range 12 {
			time.Sleep(5 * time.Second)
			if u, p := r.node(t, "one"), r.pod(t, "one"); milli(u.Used) != 500 || u.Window%(20*time.Second) != 0 || milli(p.Containers[0].Used) != 50 {
				t.Fatalf("%v: %+v, %+v", time.Since(epoch), u, p)
			}
		}
	})
}

// Many nodes are not asked all at once, and all are known after the first question.
func TestManyNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []string
		for i := range 1000 {
			names = append(names, fmt.Sprint("node-", i))
		}
		r := start(t, newFleet(names...))
		defer r.stop()
		list, _ := r.f.list(t.Context())
		u, err := r.NodeUsage(t.Context(), list)
		if err != nil {
			t.Fatal(err)
		}
		for i := range u {
			if milli(u[i].Used) != 500 {
				t.Fatalf("%s: %+v", list[i].Name, u[i])
			}
		}
		if r.f.most > readsAtOnce {
			t.Errorf("%d readings at a time", r.f.most)
		}
	})
}

func TestAskingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Deps{Nodes: func(context.Context) ([]*corev1.Node, error) { return nil, errors.New("down") }, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		n := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
		if _, err := s.NodeUsage(ctx, []*corev1.Node{n}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		begin := time.Now()
		if u, err := s.NodeUsage(t.Context(), []*corev1.Node{n}); err != nil || !u[0].At.IsZero() || time.Since(begin) != patience {
			t.Errorf("after %v: %+v, %v", time.Since(begin), u, err)
		}
	})
}

func TestParse(t *testing.T) {
	now := epoch
	const node = "node_cpu_usage_seconds_total 2.5 946684800000\nnode_memory_working_set_bytes 4096\n"
	container := func(cpu, memory string) string {
		l := `{container="c",namespace="ns",pod="p"}`
		return "container_cpu_usage_seconds_total" + l + " " + cpu + "\ncontainer_memory_working_set_bytes" + l + " " + memory + "\n"
	}
	for name, c := range map[string]struct {
		body string
		pods int
		err  bool
	}{
		"whole":                {body: node + container("1.5 946684800000", "1e6"), pods: 1},
		"nothing":              {err: true},
		"not text":             {body: "\x00\x01{{{\n}}}", err: true},
		"no node":              {body: container("1", "1"), err: true},
		"node's NaN":           {body: strings.Replace(node, "2.5", "NaN", 1), err: true},
		"node's negative":      {body: strings.Replace(node, "4096", "-1", 1), err: true},
		"NaN":                  {body: node + container("NaN", "1")},
		"negative":             {body: node + container("-1", "1")},
		"infinite":             {body: node + container("1", "+Inf")},
		"too large":            {body: node + container("1e300", "1")},
		"no number":            {body: node + container("one", "1")},
		"no time":              {body: node + container("1 soon", "1")},
		"one of two":           {body: node + `container_cpu_usage_seconds_total{container="c",namespace="ns",pod="p"} 1` + "\n"},
		"one container of two": {body: node + container("1", "1") + `container_cpu_usage_seconds_total{container="d",namespace="ns",pod="p"} 1` + "\n"},
		"no labels":            {body: node + "container_cpu_usage_seconds_total 1\n"},
		"open label":           {body: node + `container_cpu_usage_seconds_total{container="c` + "\n"},
		"escapes":              {body: node + strings.ReplaceAll(container("1", "1"), `"p"`, `"a\"b\\c"`), pods: 1},
		"others":               {body: node + container("1", "1") + "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\"} 1\nresource_scrape_error 0\n", pods: 1},
	} {
		r, err := parse([]byte(c.body), now)
		if (err != nil) != c.err {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil && (len(r.pods) != c.pods || r.node.cpu != 25e8 || !r.node.at.Equal(epoch) || r.node.memory != 4096) {
			t.Errorf("%s: %+v", name, r)
		}
		if name == "escapes" && err == nil && r.pods[podKey{"ns", `a"b\c`}] == nil {
			t.Errorf("labels are read as %v", r.pods)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("node_cpu_usage_seconds_total{a=\"\\\"} 1 2\n"))
	f.Add([]byte((&fakeNode{}).text(epoch)))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parse(b, epoch)
		if err != nil {
			return
		}
		for _, cs := range r.pods {
			for _, c := range cs {
				if c.cpu < 0 || c.memory < 0 {
					t.Errorf("%+v", c)
				}
			}
		}
	})
}
