package kubelet

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

type probeKind int

const (
	probeStartup probeKind = iota
	probeReadiness
	probeLiveness
)

func (p probeKind) String() string {
	return [...]string{"Startup", "Readiness", "Liveness"}[p]
}

func (p probeKind) of(c *corev1.Container) *corev1.Probe {
	switch p {
	case probeStartup:
		return c.StartupProbe
	case probeReadiness:
		return c.ReadinessProbe
	}
	return c.LivenessProbe
}

type result int

const (
	resultNone result = iota
	resultSuccess
	resultFailure
)

// probes runs the probes of a pod's containers: a goroutine for each probe of a
// running container, which sleeps between its turns. A change of a result wakes
// the worker.
//
// A container that ran before this kubelet keeps, until its first result, the
// readiness that the API shows for it.
type probes struct {
	w *worker

	mu    sync.Mutex
	state map[string]*probeState // by container ID
	quiet bool                   // the pod ends: no liveness, no startup
}

// probeState is what is known of one container by its probes.
type probeState struct {
	results  [3]result
	specs    [3]*corev1.Probe
	adopted  bool // ran before this kubelet
	wasReady bool
	started  chan struct{} // closed when the startup probe has succeeded
	cancel   context.CancelFunc
}

func newProbes(w *worker) *probes { return &probes{w: w, state: map[string]*probeState{}} }

// get returns the state of a container, made at the first look at it. old is what
// the API showed of it then.
func (p *probes) get(pod *corev1.Pod, c *container, old *corev1.ContainerStatus) *probeState {
	s := p.state[c.id]
	if s != nil {
		return s
	}
	s = &probeState{started: make(chan struct{})}
	spec := findContainer(pod, c.name)
	if spec != nil {
		for _, k := range []probeKind{probeStartup, probeReadiness, probeLiveness} {
			s.specs[k] = k.of(spec)
		}
	}
	if old != nil && old.ContainerID == p.w.k.runtimeName+"://"+c.id && old.State.Running != nil {
		s.adopted = true
		s.wasReady = old.Ready
		if old.Started != nil && *old.Started && s.specs[probeStartup] != nil {
			s.results[probeStartup] = resultSuccess
		}
	}
	if s.specs[probeStartup] == nil || s.results[probeStartup] == resultSuccess {
		close(s.started)
	}
	p.state[c.id] = s
	return s
}

// startedNow tells whether a running container has passed its startup probe.
func (p *probes) startedNow(pod *corev1.Pod, c *container, old *corev1.ContainerStatus) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.get(pod, c, old)
	return s.specs[probeStartup] == nil || s.results[probeStartup] == resultSuccess
}

// readyNow tells whether a running container that has started is ready.
func (p *probes) readyNow(pod *corev1.Pod, c *container, old *corev1.ContainerStatus) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.get(pod, c, old)
	if s.specs[probeReadiness] == nil {
		return true
	}
	switch s.results[probeReadiness] {
	case resultSuccess:
		return true
	case resultFailure:
		return false
	}
	return s.adopted && s.wasReady
}

// started implements probeView.
func (p *probes) started(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state[id]
	return s != nil && (s.specs[probeStartup] == nil || s.results[probeStartup] == resultSuccess)
}

// failed implements probeView.
func (p *probes) failed(id string) (killReason, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state[id]
	switch {
	case s == nil:
		return killUnknown, false
	case s.results[probeLiveness] == resultFailure:
		return killLiveness, true
	case s.results[probeStartup] == resultFailure:
		return killStartup, true
	}
	return killUnknown, false
}

// follow starts the probes of containers that run and stops those of others.
func (p *probes) follow(pod *corev1.Pod, o *observed, st *corev1.PodStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	alive := map[string]bool{}
	for i := range o.containers {
		c := &o.containers[i]
		if !c.running() {
			continue
		}
		alive[c.id] = true
		s := p.get(pod, c, nil)
		if s.cancel != nil || s.specs == [3]*corev1.Probe{} {
			continue
		}
		spec := findContainer(pod, c.name)
		if spec == nil {
			continue
		}
		s.cancel = func() {}
		have, ips := *c, podIPs(st)
		for kind, ps := range s.specs {
			if ps == nil {
				continue
			}
			pr := &prober{p: p, s: s, kind: probeKind(kind), spec: ps, pod: pod, c: spec, have: have, ips: ips}
			p.spawn(s, pr.run)
		}
	}
	for id, s := range p.state {
		if !alive[id] {
			if s.cancel != nil {
				s.cancel()
			}
			delete(p.state, id)
		}
	}
}

func podIPs(st *corev1.PodStatus) []string {
	var out []string
	for _, ip := range st.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

// spawn runs f until the container's probes are cancelled. p.mu is held.
func (p *probes) spawn(s *probeState, f func(context.Context)) {
	before := s.cancel
	stop, cancel := context.WithCancel(context.Background())
	s.cancel = func() {
		before()
		cancel()
	}
	p.w.k.spawn(func(ctx context.Context) {
		defer cancel()
		unhook := context.AfterFunc(ctx, cancel)
		defer unhook()
		f(stop)
	})
}

// stopLiveness ends liveness and startup probes: the pod is to end anyway.
func (p *probes) stopLiveness() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quiet = true
}

// stopAll ends all probes.
func (p *probes) stopAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.state {
		if s.cancel != nil {
			s.cancel()
		}
	}
}

// prober is one probe of one container.
type prober struct {
	p    *probes
	s    *probeState
	kind probeKind
	spec *corev1.Probe
	pod  *corev1.Pod
	c    *corev1.Container
	have container
	ips  []string
}

// soonFirst is how soon a container that is not ready yet is asked again; then
// twice as long, until that is the probe's period.
const soonFirst = 100 * time.Millisecond

func orDefault(v, d int32) int32 {
	if v <= 0 {
		return d
	}
	return v
}

func (r *prober) run(ctx context.Context) {
	if r.kind != probeStartup {
		select {
		case <-r.s.started:
		case <-ctx.Done():
			return
		}
	} else if r.p.result(r.s, probeStartup) == resultSuccess {
		return
	}
	period := time.Duration(orDefault(r.spec.PeriodSeconds, 10)) * time.Second
	first := r.have.started.Add(time.Duration(r.spec.InitialDelaySeconds) * time.Second)
	if wait := first.Sub(r.p.w.k.d.Now()); wait > 0 && !sleep(ctx, wait) {
		return
	}
	last, run := resultNone, int32(0)
	// Until a container has been ready once it is asked again soon after a failure:
	// a server that opens its port a moment after its start need not wait out a
	// period. Those tries are not told in events.
	soon, quiet := soonFirst, false
	for {
		at := time.Now()
		got, ok := r.once(ctx, quiet)
		wait := period
		if quiet = r.kind == probeReadiness && soon > 0 && soon < period && ok && got == resultFailure; quiet {
			wait = soon
			soon *= 2
		} else if got == resultSuccess {
			soon = 0
		}
		if ok && ctx.Err() == nil {
			if got == last {
				run++
			} else {
				last, run = got, 1
			}
			threshold := orDefault(r.spec.SuccessThreshold, 1)
			if got == resultFailure {
				threshold = orDefault(r.spec.FailureThreshold, 3)
			}
			if run >= threshold && !r.p.set(r, got) {
				return
			}
		}
		if !sleep(ctx, max(wait-time.Since(at), time.Millisecond)) {
			return
		}
	}
}

func (p *probes) result(s *probeState, k probeKind) result {
	p.mu.Lock()
	defer p.mu.Unlock()
	return s.results[k]
}

// set takes a result over and tells whether the probe goes on.
func (p *probes) set(r *prober, got result) (more bool) {
	p.mu.Lock()
	if p.quiet && r.kind != probeReadiness {
		p.mu.Unlock()
		return false
	}
	changed := r.s.results[r.kind] != got
	r.s.results[r.kind] = got
	if changed && r.kind == probeStartup && got == resultSuccess {
		close(r.s.started)
	}
	p.mu.Unlock()
	if changed {
		p.w.kick()
	}
	// A startup probe has done its work; a failed liveness probe waits for the
	// container to be replaced.
	return r.kind != probeStartup && (r.kind != probeLiveness || got == resultSuccess)
}
