package app

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/admin"
	"skiff/internal/client"
	"skiff/internal/control"
	"skiff/internal/cri"
	"skiff/internal/pki"
)

// probeTime bounds what one part is asked.
const probeTime = 3 * time.Second

// probe asks a part how it is: an error is why it is not well.
type probe struct {
	name string
	// labels are the parts of the group whose goroutines are of it.
	labels []string
	ask    func(ctx context.Context, p *admin.Part) error
}

// Status implements admin.Host.
func (p *Process) Status(context.Context) (admin.Status, error) {
	server := p.set.ServerURL()
	if p.join != nil {
		server = p.join.server
	}
	self := identity()
	return admin.Status{
		Release: self.Release, Build: self.Build,
		Name: p.set.Name, PID: os.Getpid(), Version: version().GitVersion, Started: p.started, Ready: p.ready.Load(),
		Server: server, NodeName: p.set.NodeName, NodeIP: p.set.NodeIP, DataDir: p.set.DataDir,
		Unit: os.Getenv(unitEnv),
	}, nil
}

// Health implements admin.Host. Until the start is over only the process is looked
// at: its parts are being made.
func (p *Process) Health(ctx context.Context) (admin.Health, error) {
	h := admin.Health{Process: p.usage()}
	if !p.ready.Load() {
		return h, nil
	}
	probes := p.probes()
	parts := make([]admin.Part, len(probes))
	goroutines := goroutinesByPart()
	var wg sync.WaitGroup
	for i, pr := range probes {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, probeTime)
			defer cancel()
			parts[i] = admin.Part{Name: pr.name, Healthy: true, State: "ok"}
			if err := pr.ask(ctx, &parts[i]); err != nil {
				parts[i].Healthy, parts[i].State = false, err.Error()
			}
			for _, l := range pr.labels {
				parts[i].Goroutines += goroutines[l]
			}
		})
	}
	wg.Wait()
	h.Healthy, h.Parts = true, parts
	for _, part := range parts {
		h.Healthy = h.Healthy && part.Healthy
	}
	return h, nil
}

func (p *Process) probes() []probe {
	var out []probe
	if s := p.server; s != nil {
		out = append(out,
			probe{"etcd", []string{"store"}, s.probeStore},
			probe{"API server", []string{"api", "cache", "usage", "service allocations"}, s.probeAPI},
			probe{"controllers", []string{"controllers", "informers"}, s.probeControl},
			probe{"scheduler", []string{"scheduler", "scheduler events"}, nil},
			probe{"certificates", []string{"certificates"}, s.probeCertificates},
		)
	}
	if j := p.join; j != nil {
		out = append(out, probe{"certificates", []string{"certificates"}, j.probeCertificate})
	}
	if n := p.node; n != nil {
		out = append(out,
			probe{"kubelet", []string{"kubelet", "kubelet events", "kubelet server", "node informers", "node network"}, n.probeKubelet},
			probe{"runtime", []string{"runtime", "pod network"}, n.probeRuntime},
			probe{"services", []string{"services", "service rules keeper", "service events"}, nil},
			probe{"DNS", []string{"DNS"}, n.probeDNS},
		)
	}
	for i := range out {
		if out[i].ask == nil {
			// A part that ends takes the process with it: one that is asked is well.
			out[i].ask = func(context.Context, *admin.Part) error { return nil }
		}
	}
	return out
}

func (s *server) probeStore(ctx context.Context, p *admin.Part) error {
	rev, err := s.store.Revision(ctx)
	if err != nil {
		return err
	}
	p.Add("revision", float64(rev), "")
	if len(s.set.Etcd) > 0 {
		p.State = "ok, at " + strings.Join(s.set.Etcd, ", ")
		return nil
	}
	if st, err := os.Stat(s.set.Instance.Data("etcd", "member", "snap", "db")); err == nil {
		p.Add("database", float64(st.Size()), "bytes")
	}
	if n, err := sizeBelow(s.set.Instance.Data("etcd", "member", "wal")); err == nil {
		p.Add("log", float64(n), "bytes")
	}
	return nil
}

func sizeBelow(dir string) (n int64, err error) {
	return n, filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if i, err := d.Info(); err == nil {
			n += i.Size()
		}
		return nil
	})
}

// probeAPI asks over the network, as clients do.
func (s *server) probeAPI(ctx context.Context, p *admin.Part) error {
	u := s.api.CacheUsage()
	p.Add("objects", float64(u.Objects), "")
	p.Add("stored", float64(u.Bytes), "bytes")
	p.Add("changes kept", float64(u.Window), "bytes")
	p.Add("answers kept", float64(u.Encoded), "bytes")
	p.Add("watches", float64(u.Watchers), "")
	t := &http.Transport{TLSClientConfig: s.pki.Pair("admin").ClientTLS(s.pki.Pool(pki.ClusterCA), "localhost"), DisableKeepAlives: true}
	defer t.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.set.ServerURL()+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return errors.Join(fmt.Errorf("/readyz answers %s: %s", resp.Status, bytes.TrimSpace(b)), err)
	}
	return nil
}

// stuckAfter is how long one reconciliation may take.
const stuckAfter = 5 * time.Minute

func (s *server) probeControl(_ context.Context, p *admin.Part) error {
	l := control.LoadOf(s.controllers)
	p.Add("controllers", float64(len(s.controllers)), "")
	p.Add("keys waiting", float64(l.Waiting), "")
	if l.Longest > stuckAfter {
		return fmt.Errorf("one has been at work on one object for %s", l.Longest.Round(time.Second))
	}
	return nil
}

func (s *server) probeCertificates(_ context.Context, p *admin.Part) error {
	all, err := pki.List(s.set.Instance.Data("pki"))
	if err != nil {
		return err
	}
	now := time.Now()
	var ended []string
	first := time.Duration(1<<63 - 1)
	for _, c := range all {
		left := c.NotAfter.Sub(now)
		if first = min(first, left); left <= 0 {
			ended = append(ended, c.Name)
		}
	}
	p.Add("certificates", float64(len(all)), "")
	p.Add("first ends in", float64(int(first.Hours()/24)), "days")
	if len(ended) > 0 {
		return fmt.Errorf("expired: %s; see skiff certs", strings.Join(ended, ", "))
	}
	return nil
}

func (j *join) probeCertificate(_ context.Context, p *admin.Part) error {
	left := time.Until(j.own.ends())
	p.Add("first ends in", float64(int(left.Hours()/24)), "days")
	if left <= 0 {
		return errors.New("the node's certificate has expired; see skiff certs --help")
	}
	return nil
}

func (n *node) probeKubelet(ctx context.Context, p *admin.Part) error {
	o, err := client.For[*corev1.Node](n.client).Get(ctx, n.set.NodeName)
	if err != nil {
		return err
	}
	for _, c := range o.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return fmt.Errorf("the node is not Ready: %s", c.Message)
		}
	}
	if !conditionTrue(o, corev1.NodeReady) {
		return errors.New("the node has not said that it is Ready")
	}
	return nil
}

func (n *node) probeRuntime(ctx context.Context, p *admin.Part) error {
	rt := cri.InProcess(n.runtime).Runtime
	sandboxes, err := rt.ListPodSandbox(ctx, nil)
	if err != nil {
		return err
	}
	containers, err := rt.ListContainers(ctx, nil)
	if err != nil {
		return err
	}
	pods, run := 0, 0
	for _, s := range sandboxes {
		if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			pods++
		}
	}
	for _, c := range containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			run++
		}
	}
	p.Add("pods", float64(pods), "")
	p.Add("containers", float64(run), "")
	p.Add("pod processes", float64(helperMemory(n.programs.Pod)), "bytes")
	st, err := rt.Status(ctx, false)
	if err != nil {
		return err
	}
	for _, c := range st.GetStatus().GetConditions() {
		if !c.Status {
			return fmt.Errorf("%s is false: %s", c.Type, c.Message)
		}
	}
	return nil
}

// helpers are the resident processes of this instance's programs, whichever release
// they are of, by the directory below /proc. Their programs are beside program,
// under other hashes.
func helpers(program string) map[string]string {
	out := map[string]string{}
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil // not reached: the pattern is well formed
	}
	bin := filepath.Dir(filepath.Dir(program))
	for _, e := range exes {
		if to, err := os.Readlink(e); err == nil && strings.HasPrefix(to, bin+"/") {
			out[filepath.Dir(e)] = to
		}
	}
	return out
}

// helperMemory is what the resident processes of this instance's pods, and its
// keeper, take of memory that is theirs alone, bytes.
func helperMemory(program string) (n int64) {
	for proc := range helpers(program) {
		b, err := os.ReadFile(filepath.Join(proc, "smaps_rollup"))
		if err != nil {
			continue // it has just ended
		}
		for l := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(l, "Private_Dirty:"); ok {
				n += kilobytes(rest)
			}
		}
	}
	return n
}

func (n *node) probeDNS(ctx context.Context, _ *admin.Part) error {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, n.dns.String())
	}}
	name := "kubernetes.default.svc." + n.set.ClusterDomain
	if addrs, err := r.LookupHost(ctx, name+"."); err != nil {
		return err
	} else if len(addrs) == 0 {
		return fmt.Errorf("%s has no address", name)
	}
	return nil
}

// usage is what the process takes of the machine.
func (p *Process) usage() admin.Process {
	u := admin.Process{Goroutines: runtime.NumGoroutine(), CPUSeconds: cpuTime().Seconds()}
	if b, err := os.ReadFile("/proc/self/status"); err == nil {
		for l := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(l, "VmRSS:"); ok {
				u.Memory = kilobytes(rest)
			}
			if rest, ok := strings.CutPrefix(l, "RssAnon:"); ok {
				u.Private = kilobytes(rest)
			}
		}
	}
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(samples)
	u.Heap = int64(samples[0].Value.Uint64())
	u.CPU = p.cpu.share(time.Now(), cpuTime())
	return u
}

// kilobytes reads "  123 kB".
func kilobytes(s string) int64 {
	f := strings.Fields(s)
	if len(f) == 0 {
		return 0
	}
	n, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}

func cpuTime() time.Duration {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// cpuMeter tells how much of one CPU was used lately.
type cpuMeter struct {
	mu         sync.Mutex
	last, prev struct {
		at  time.Time
		cpu time.Duration
	}
}

const meterEvery = 30 * time.Second

// run takes samples until ctx ends.
func (m *cpuMeter) run(ctx context.Context) error {
	t := time.NewTicker(meterEvery)
	defer t.Stop()
	for {
		m.sample(time.Now(), cpuTime())
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (m *cpuMeter) sample(at time.Time, cpu time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.prev = m.last
	m.last.at, m.last.cpu = at, cpu
}

// share is what was used since the sample before the last, 1 being one CPU.
func (m *cpuMeter) share(now time.Time, cpu time.Duration) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	from := m.prev
	if from.at.IsZero() {
		from = m.last
	}
	if d := now.Sub(from.at); !from.at.IsZero() && d > 0 {
		return float64(cpu-from.cpu) / float64(d)
	}
	return 0
}

// partLabel is the pprof label of the goroutines of a part.
const partLabel = "part"

// goroutinesByPart counts this process's goroutines by the part that began them.
func goroutinesByPart() map[string]int {
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		return nil
	}
	return countByPart(&b)
}

// countByPart reads a goroutine profile in its form for people: "N @ addresses",
// then "# labels: {...}" where there are some.
func countByPart(r io.Reader) map[string]int {
	out := map[string]int{}
	n := 0
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if count, _, ok := strings.Cut(s.Text(), " @ "); ok {
			n, _ = strconv.Atoi(count)
			continue
		}
		if text, ok := strings.CutPrefix(s.Text(), "# labels: "); ok {
			var labels map[string]string
			if json.Unmarshal([]byte(text), &labels) == nil && labels[partLabel] != "" {
				out[labels[partLabel]] += n
			}
		}
	}
	return out
}
