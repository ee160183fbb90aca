package apiserver

import (
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/metrics"
)

// requests counts the requests for resources, those of skiff's own parts among
// them, by upstream's names. A request that no route takes, or that is not
// allowed, is not counted, as upstream's is not; so labels come from what is
// declared and never from a client, and there are no more series than routes.
type requests struct {
	routes atomic.Pointer[map[routeKey]*route] // replaced, never changed
	mu     sync.Mutex                          // held to replace it
	// reading and writing are the requests in flight.
	reading, writing peak
	// codes are the status codes that are told apart; place has where each is.
	codes []string
	place [600]uint8

	seconds, sizes []float64 // bounds
}

// routeKey is what requests are told apart by. Its strings are of fixed sets.
type routeKey struct {
	kind                *kind
	sub                 *subresource
	verb, scope, dryRun string
}

// route is what is counted of the requests of one key.
type route struct {
	routeKey
	codes   []atomic.Uint64
	seconds *metrics.Histogram
	sizes   *metrics.Histogram // of reads, bytes
	running atomic.Int64       // of those that last
}

// long tells of requests that last as long as their client wants.
func (k routeKey) long() bool { return k.verb == "WATCH" || k.verb == "CONNECT" }

// otherCode is the label of a status code that has no name: what is behind a
// proxy may answer with any.
const otherCode = "other"

func newRequests() *requests {
	m := &requests{codes: []string{otherCode}, seconds: metrics.RequestSeconds(), sizes: prometheus.ExponentialBuckets(1000, 10, 7)}
	for code := range m.place {
		if http.StatusText(code) != "" {
			m.place[code] = uint8(len(m.codes))
			m.codes = append(m.codes, strconv.Itoa(code))
		}
	}
	m.routes.Store(&map[routeKey]*route{})
	return m
}

// route returns the counters of a key.
func (m *requests) route(k routeKey) *route {
	if r := (*m.routes.Load())[k]; r != nil {
		return r
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *m.routes.Load()
	if r := old[k]; r != nil {
		return r
	}
	r := &route{routeKey: k, codes: make([]atomic.Uint64, len(m.codes)), seconds: metrics.NewHistogram(m.seconds)}
	if k.verb == "GET" || k.verb == "LIST" {
		r.sizes = metrics.NewHistogram(m.sizes)
	}
	next := maps.Clone(old)
	next[k] = r
	m.routes.Store(&next)
	return r
}

// verbs are what metrics call the verbs of the API: upstream tells a deletion of
// many from one by the scope.
var verbs = map[string]string{
	"get": "GET", "list": "LIST", "watch": "WATCH", "create": "POST", "update": "PUT", "patch": "PATCH",
	"delete": "DELETE", "deletecollection": "DELETE",
}

// countedAs is what tells rq from other requests.
func (rq *request) countedAs(apply bool, dryRun string) routeKey {
	k := routeKey{kind: rq.kind, sub: rq.sub, verb: verbs[rq.verb], dryRun: dryRun}
	switch {
	case rq.sub != nil && rq.sub.Connect:
		k.verb = "CONNECT"
	case apply && k.verb == "PATCH":
		k.verb = "APPLY"
	case k.verb == "":
		k.verb = "other"
	}
	switch {
	case rq.name != "" || rq.verb == "create":
		k.scope = "resource"
	case rq.namespace != "":
		k.scope = "namespace"
	default:
		k.scope = "cluster"
	}
	return k
}

// dryRunLabel is one of three.
func dryRunLabel(values []string) string {
	if len(values) == 0 {
		return ""
	}
	for _, v := range values {
		if v != metav1.DryRunAll {
			return "invalid"
		}
	}
	return metav1.DryRunAll
}

func dryRunOf(u *url.URL) string {
	if !strings.Contains(u.RawQuery, "dryRun") {
		return ""
	}
	return dryRunLabel(u.Query()["dryRun"])
}

// running is a request that is being served.
type running struct {
	m     *requests
	route *route
	since time.Time
}

func (m *requests) begin(k routeKey, since time.Time) running {
	r := m.route(k)
	if k.long() {
		r.running.Add(1)
	} else {
		m.flight(r).enter()
	}
	return running{m, r, since}
}

func (m *requests) flight(r *route) *peak {
	if r.verb == "GET" || r.verb == "LIST" {
		return &m.reading
	}
	return &m.writing
}

// end counts the request with its status code and the size of its answer, bytes;
// a size below zero is not known.
func (r running) end(code int, size int64) {
	if r.route.long() {
		r.route.running.Add(-1)
	} else {
		r.m.flight(r.route).leave()
	}
	at := uint8(0)
	if code >= 0 && code < len(r.m.place) {
		at = r.m.place[code]
	}
	r.route.codes[at].Add(1)
	r.route.seconds.Observe(time.Since(r.since).Seconds())
	if r.route.sizes != nil && size >= 0 {
		r.route.sizes.Observe(float64(size))
	}
}

// ended counts a request that came from this process: what it was answered with
// is an error or none.
func (r running) ended(err error) {
	code := http.StatusOK
	switch {
	case err != nil:
		code = http.StatusInternalServerError
		var api apierrors.APIStatus
		if (errors.As(err, &api) || errors.As(storeError(err), &api)) && api.Status().Code != 0 {
			code = int(api.Status().Code)
		}
	case r.route.verb == "POST":
		code = http.StatusCreated
	}
	r.end(code, -1)
}

// peak counts what is there at a time, and remembers the most.
type peak struct{ now, most atomic.Int64 }

func (p *peak) enter() {
	n := p.now.Add(1)
	for {
		most := p.most.Load()
		if n <= most || p.most.CompareAndSwap(most, n) {
			return
		}
	}
}

func (p *peak) leave() { p.now.Add(-1) }

// take returns the most since it was last called.
func (p *peak) take() float64 { return float64(p.most.Swap(p.now.Load())) }

// measured serves a request of a route and counts it.
func (s *Server) measured(w http.ResponseWriter, r *http.Request, rq *request, in info, serve func(*Server, http.ResponseWriter, *http.Request, *request, info)) {
	apply := r.Method == http.MethodPatch && r.Header.Get("Content-Type") == string(types.ApplyYAMLPatchType)
	run := s.requests.begin(rq.countedAs(apply, dryRunOf(r.URL)), in.received)
	rec, _ := s.recorders.Get().(*recorder)
	if rec == nil {
		rec = &recorder{}
	}
	*rec = recorder{ResponseWriter: w, code: http.StatusOK}
	served := false
	defer func() {
		if !served {
			rec.code = http.StatusInternalServerError // it panicked
		}
		run.end(rec.code, rec.size)
		if served && !run.route.long() {
			rec.ResponseWriter = nil
			s.recorders.Put(rec) // a stream may still be in other hands
		}
	}()
	var out http.ResponseWriter = rec
	if h, ok := w.(http.Hijacker); ok && run.route.verb == "CONNECT" {
		out = hijackable{rec, h}
	}
	serve(s, out, r, rq, in)
	served = true
}

// recorder sees what is answered.
type recorder struct {
	http.ResponseWriter
	code  int
	wrote bool
	size  int64
}

func (r *recorder) WriteHeader(code int) {
	// 1xx but 101 announce another.
	if !r.wrote && (code >= 200 || code == http.StatusSwitchingProtocols) {
		r.code, r.wrote = code, true
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	n, err := r.ResponseWriter.Write(b)
	r.size += int64(n)
	return n, err
}

// Flush is http.Flusher's; every server of this package has it.
func (r *recorder) Flush() {
	if f, ok := r.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// hijackable is a recorder of HTTP/1.1, whose connection can be taken over.
type hijackable struct {
	*recorder
	http.Hijacker
}

// Descriptions of metrics, by upstream's names and meaning.
type descs struct {
	total, seconds, sizes, long, inflight, objects, resourceObjects, watchEvents *prometheus.Desc
}

func newDescs() *descs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("apiserver_"+name, help, labels, nil)
	}
	return &descs{
		total: desc("request_total", "Number of requests, by verb, dry run, resource, scope and HTTP status code.",
			"verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component", "code"),
		seconds: desc("request_duration_seconds", "Time from the arrival of a request to the end of its answer, in seconds.",
			"verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"),
		sizes: desc("response_sizes", "Size of the answers to reads that came over the network, in bytes.",
			"verb", "group", "version", "resource", "subresource", "scope", "component"),
		long: desc("longrunning_requests", "Number of watches and streams that are open.",
			"verb", "group", "version", "resource", "subresource", "scope", "component"),
		inflight: desc("current_inflight_requests", "Largest number of requests that were served at a time since it was last asked.", "request_kind"),
		objects:  desc("storage_objects", "Number of stored objects of a resource.", "resource"),
		resourceObjects: desc("resource_objects", "Number of stored objects of a resource.",
			"group", "resource"),
		watchEvents: desc("watch_events_total", "Number of events that watches sent over the network.", "group", "version", "resource"),
	}
}

// collector makes metrics of what a server counted.
type collector struct {
	s *Server
	d *descs
}

func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.d.total, c.d.seconds, c.d.sizes, c.d.long, c.d.inflight, c.d.objects, c.d.resourceObjects, c.d.watchEvents,
	} {
		out <- d
	}
}

const component = "apiserver"

func (c collector) Collect(out chan<- prometheus.Metric) {
	m := c.s.requests
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, r := range *m.routes.Load() {
		gv, sub := r.kind.GroupVersion, ""
		if r.sub != nil {
			sub = r.sub.Name
		}
		what := []string{gv.Group, gv.Version, r.kind.Plural, sub, r.scope, component}
		full := slices.Concat([]string{r.verb, r.dryRun}, what)
		short := slices.Concat([]string{r.verb}, what)
		for i := range r.codes {
			if n := r.codes[i].Load(); n > 0 {
				out <- prometheus.MustNewConstMetric(c.d.total, prometheus.CounterValue, float64(n), slices.Concat(full, m.codes[i:i+1])...)
			}
		}
		if r.seconds.Count() > 0 {
			out <- r.seconds.Metric(c.d.seconds, full...)
		}
		if r.sizes != nil && r.dryRun == "" && r.sizes.Count() > 0 {
			out <- r.sizes.Metric(c.d.sizes, short...)
		}
		if r.long() && r.dryRun == "" {
			gauge(c.d.long, float64(r.running.Load()), short...)
		}
	}
	gauge(c.d.inflight, m.reading.take(), "readOnly")
	gauge(c.d.inflight, m.writing.take(), "mutating")
	for _, k := range c.s.order {
		if n := k.watched.Load(); n > 0 {
			out <- prometheus.MustNewConstMetric(c.d.watchEvents, prometheus.CounterValue, float64(n), k.GroupVersion.Group, k.GroupVersion.Version, k.Plural)
		}
		if k.col == nil || k.stored != k.Resource {
			continue
		}
		gr := k.GroupResource()
		gauge(c.d.objects, float64(k.col.Len()), gr.String())
		gauge(c.d.resourceObjects, float64(k.col.Len()), gr.Group, gr.Resource)
	}
}
