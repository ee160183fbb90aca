package kubelet

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Attributes are what a request to the kubelet's server is judged by: a verb on a
// subresource (proxy, stats, log, metrics, pods, healthz) of this node.
type Attributes struct {
	Verb        string
	Node        string
	Subresource string
	Path        string
}

// Authorizer judges a request. An *apierrors.StatusError is answered as it is, any
// other error as forbidden.
type Authorizer func(r *http.Request, a Attributes) error

// Handler returns the kubelet's HTTP server: logs, exec, attach, port-forward, the
// pods of this node, health, statistics and metrics, under upstream's paths.
func (k *Kubelet) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern, subresource string, f http.HandlerFunc) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if k.d.Authorize != nil {
				if err := k.d.Authorize(r, Attributes{verbOf(r.Method), k.d.NodeName, subresource, r.URL.Path}); err != nil {
					var st *apierrors.StatusError
					if !errors.As(err, &st) {
						err = apierrors.NewForbidden(corev1.Resource("nodes"), k.d.NodeName, err)
					}
					writeError(w, err)
					return
				}
			}
			f(w, r)
		})
	}
	ok := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, "ok")
	}
	handle("GET /healthz", "healthz", ok)
	handle("GET /healthz/{check}", "healthz", ok)
	handle("GET /pods", "pods", k.servePods)
	handle("GET /runningpods/", "proxy", k.servePods)
	handle("GET /containerLogs/{ns}/{pod}/{container}", "proxy", k.serveLogs)
	for _, what := range []struct {
		name string
		f    func(http.ResponseWriter, *http.Request)
	}{{"exec", k.serveExec}, {"attach", k.serveAttach}} {
		for _, method := range []string{"GET", "POST"} {
			handle(method+" /"+what.name+"/{ns}/{pod}/{container}", "proxy", what.f)
			handle(method+" /"+what.name+"/{ns}/{pod}/{uid}/{container}", "proxy", what.f)
		}
	}
	for _, method := range []string{"GET", "POST"} {
		handle(method+" /portForward/{ns}/{pod}", "proxy", k.servePortForward)
		handle(method+" /portForward/{ns}/{pod}/{uid}", "proxy", k.servePortForward)
	}
	if k.d.LocalVolumes != nil {
		handle("PUT /localVolumes/{name}", "proxy", k.serveMakeLocal)
		handle("DELETE /localVolumes/{name}", "proxy", k.serveRemoveLocal)
	}
	handle("GET /stats/summary", "stats", k.serveStats)
	handle("GET /metrics", "metrics", k.serveMetrics)
	handle("GET /metrics/resource", "metrics", k.serveResourceMetrics)
	return mux
}

func verbOf(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return "get"
}

// writeError answers with an error: the code of its status and its message.
func writeError(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	var st apierrors.APIStatus
	if errors.As(err, &st) && st.Status().Code != 0 {
		code = int(st.Status().Code)
	}
	http.Error(w, err.Error(), code)
}

// serveMakeLocal makes the directory of a local volume and answers with its path.
func (k *Kubelet) serveMakeLocal(w http.ResponseWriter, r *http.Request) {
	path, err := k.d.LocalVolumes.MakeLocal(r.PathValue("name"))
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, path)
}

func (k *Kubelet) serveRemoveLocal(w http.ResponseWriter, r *http.Request) {
	if err := k.d.LocalVolumes.RemoveLocal(r.PathValue("name")); err != nil {
		writeError(w, err)
	}
}

func (k *Kubelet) servePods(w http.ResponseWriter, _ *http.Request) {
	list := &corev1.PodList{}
	for p := range k.pods.All() {
		if !isMirror(p) {
			list.Items = append(list.Items, *p)
		}
	}
	for _, w := range k.statics.running() {
		p, _ := w.current()
		p = p.DeepCopy()
		p.Status = w.status.current()
		list.Items = append(list.Items, *p)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		writeError(w, err)
		return
	}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{}).Encode(list, w); err != nil {
		k.d.Log.Debug("write pods", "err", err)
	}
}

// logOptions reads a request's log options.
func logOptions(q url.Values) (*corev1.PodLogOptions, error) {
	o := &corev1.PodLogOptions{}
	var bad error
	flag := func(name string, to *bool) {
		if v := q.Get(name); v != "" {
			b, err := strconv.ParseBool(v)
			if err != nil {
				bad = apierrors.NewBadRequest(fmt.Sprintf("%s: Invalid value: %q: must be true or false", name, v))
			}
			*to = b
		}
	}
	number := func(name string, to **int64) {
		if v := q.Get(name); v != "" && !(name == "tailLines" && v == "all") {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				bad = apierrors.NewBadRequest(fmt.Sprintf("%s: Invalid value: %q: must be an integer", name, v))
			}
			*to = &n
		}
	}
	flag("follow", &o.Follow)
	flag("previous", &o.Previous)
	flag("timestamps", &o.Timestamps)
	number("tailLines", &o.TailLines)
	number("limitBytes", &o.LimitBytes)
	number("sinceSeconds", &o.SinceSeconds)
	if v := q.Get("sinceTime"); v != "" {
		t, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("sinceTime: Invalid value: %q: must be an RFC 3339 time", v))
		}
		at := metav1.NewTime(t)
		o.SinceTime = &at
	}
	if v := q.Get("stream"); v != "" && v != corev1.LogStreamAll {
		if v != corev1.LogStreamStdout && v != corev1.LogStreamStderr {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("stream: Unsupported value: %q: supported values: \"All\", \"Stderr\", \"Stdout\"", v))
		}
		o.Stream = &v
	}
	return o, bad
}

func (k *Kubelet) serveLogs(w http.ResponseWriter, r *http.Request) {
	o, err := logOptions(r.URL.Query())
	if err != nil {
		writeError(w, err)
		return
	}
	log, err := k.Logs(r.Context(), r.PathValue("ns"), r.PathValue("pod"), r.PathValue("container"), o)
	if err != nil {
		writeError(w, err)
		return
	}
	defer log.Close()
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	to := io.Writer(w)
	if o.Follow {
		to = flushing{w, http.NewResponseController(w)}
		_ = http.NewResponseController(w).Flush()
	}
	// The client sees a broken connection where the log cannot be read further.
	if _, err := io.Copy(to, log); err != nil && r.Context().Err() == nil {
		k.d.Log.Debug("send log", "pod", r.PathValue("pod"), "ns", r.PathValue("ns"), "err", err)
		panic(http.ErrAbortHandler)
	}
}

// flushing sends on what is written at once.
type flushing struct {
	w io.Writer
	c *http.ResponseController
}

func (f flushing) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}

// param reads a switch under the kubelet's or the API's name for it.
func param(q url.Values, names ...string) bool {
	for _, n := range names {
		if v := q.Get(n); v == "1" || strings.EqualFold(v, "true") {
			return true
		}
	}
	return false
}

var errNoStream = apierrors.NewBadRequest("you must specify at least 1 of stdin, stdout, stderr")

func (k *Kubelet) serveExec(w http.ResponseWriter, r *http.Request) {
	id, err := k.runningContainer(r.Context(), r.PathValue("ns"), r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"), false)
	if err != nil {
		writeError(w, err)
		return
	}
	q := r.URL.Query()
	req := &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: q["command"], Tty: param(q, "tty"),
		Stdin: param(q, "input", "stdin"), Stdout: param(q, "output", "stdout"), Stderr: param(q, "error", "stderr"),
	}
	if len(req.Cmd) == 0 {
		writeError(w, apierrors.NewBadRequest("you must specify a command"))
		return
	}
	if req.Tty {
		req.Stderr = false // a terminal has one output
	}
	if !req.Stdin && !req.Stdout && !req.Stderr {
		writeError(w, errNoStream)
		return
	}
	resp, err := k.d.Runtime.Exec(r.Context(), req)
	if err != nil {
		writeError(w, apierrors.NewInternalError(err))
		return
	}
	k.proxyTo(w, r, resp.Url)
}

func (k *Kubelet) serveAttach(w http.ResponseWriter, r *http.Request) {
	id, err := k.runningContainer(r.Context(), r.PathValue("ns"), r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"), true)
	if err != nil {
		writeError(w, err)
		return
	}
	q := r.URL.Query()
	req := &runtimeapi.AttachRequest{
		ContainerId: id, Tty: param(q, "tty"),
		Stdin: param(q, "input", "stdin"), Stdout: param(q, "output", "stdout"), Stderr: param(q, "error", "stderr"),
	}
	if pod, _, err := k.podByName(r.PathValue("ns"), r.PathValue("pod")); err == nil {
		if c := findContainer(pod, r.PathValue("container")); c != nil {
			req.Tty = c.TTY
		}
	}
	if req.Tty {
		req.Stderr = false
	}
	if !req.Stdin && !req.Stdout && !req.Stderr {
		writeError(w, errNoStream)
		return
	}
	resp, err := k.d.Runtime.Attach(r.Context(), req)
	if err != nil {
		writeError(w, apierrors.NewInternalError(err))
		return
	}
	k.proxyTo(w, r, resp.Url)
}

func (k *Kubelet) servePortForward(w http.ResponseWriter, r *http.Request) {
	pod, _, err := k.podByName(r.PathValue("ns"), r.PathValue("pod"))
	if err == nil && r.PathValue("uid") != "" && r.PathValue("uid") != string(pod.UID) {
		err = apierrors.NewNotFound(corev1.Resource("pods"), pod.Name)
	}
	if err != nil {
		writeError(w, err)
		return
	}
	o, err := k.observe(r.Context(), pod.UID)
	if err != nil {
		writeError(w, apierrors.NewInternalError(err))
		return
	}
	if len(o.sandboxes) == 0 || !o.sandboxes[0].ready {
		writeError(w, apierrors.NewInternalError(fmt.Errorf("failed to find sandboxID for pod %s", podNameFull(pod))))
		return
	}
	req := &runtimeapi.PortForwardRequest{PodSandboxId: o.sandboxes[0].id}
	for _, v := range append(r.URL.Query()["port"], r.URL.Query()["ports"]...) {
		for _, s := range strings.Split(v, ",") {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil || n == 0 {
				writeError(w, apierrors.NewBadRequest(fmt.Sprintf("unable to parse %q as a port", s)))
				return
			}
			req.Port = append(req.Port, int32(n))
		}
	}
	resp, err := k.d.Runtime.PortForward(r.Context(), req)
	if err != nil {
		writeError(w, apierrors.NewInternalError(err))
		return
	}
	k.proxyTo(w, r, resp.Url)
}

// proxyTo joins the client with the runtime's streaming server.
func (k *Kubelet) proxyTo(w http.ResponseWriter, r *http.Request, to string) {
	u, err := url.Parse(to)
	if err != nil || u.Host == "" {
		writeError(w, apierrors.NewInternalError(fmt.Errorf("the runtime's streaming address %q is not a URL", to)))
		return
	}
	proxy.NewUpgradeAwareHandler(u, nil, false, true, streamErrors{}).ServeHTTP(w, r)
}

type streamErrors struct{}

func (streamErrors) Error(w http.ResponseWriter, _ *http.Request, err error) { writeError(w, err) }
