package apiserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"skiff/internal/api/resource"
	streaming "skiff/internal/apiserver/stream"
	"skiff/internal/client"
)

// NodeConnector reaches kubelets.
type NodeConnector interface {
	// Kubelet returns the base URL of a node's kubelet and the transport that
	// authenticates to it and trusts it.
	Kubelet(ctx context.Context, node *corev1.Node) (*url.URL, http.RoundTripper, error)
}

// connect joins a request to a node or a pod: logs, exec, attach, port-forward
// and the proxies.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, rq *request, in info) {
	// A proxy passes OPTIONS on too, which is no verb of the API.
	ok := slices.Contains(rq.sub.Verbs, in.verb) || rq.sub.Name == "proxy" && r.Method == http.MethodOptions
	if !ok {
		s.fail(w, r, apierrors.NewMethodNotSupported(rq.gr(), in.verb))
		return
	}
	ctx := r.Context()
	if rq.sub.Name == "proxy" {
		// The name of a proxy request may carry a scheme and a port.
		if _, name, _, ok := splitTarget(rq.name); ok {
			rq.name = name
		}
	}
	if err := s.mayStream(ctx, rq, in); err != nil {
		s.fail(w, r, err)
		return
	}
	it, err := s.get(ctx, rq, &metav1.GetOptions{})
	if apierrors.IsNotFound(err) && rq.kind.Plural == "services" {
		err = noEndpoints(rq.name)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if err := s.admitConnect(ctx, rq); err != nil {
		s.fail(w, r, err)
		return
	}
	switch o := it.Object().(type) {
	case *corev1.Pod:
		switch rq.sub.Name {
		case "log":
			err = s.podLog(ctx, w, r, o)
		case "exec", "attach", "portforward":
			err = s.podStream(w, r, o, rq.sub.Name)
		case "proxy":
			err = s.podProxy(w, r, rq, o, in)
		}
	case *corev1.Node:
		err = s.nodeProxy(w, r, o, in)
	case *corev1.Service:
		err = s.serviceProxy(w, r, o, in)
	default:
		err = apierrors.NewMethodNotSupported(rq.gr(), in.verb)
	}
	if err != nil {
		s.fail(w, r, err)
	}
}

// mayStream judges what runs in a container as a creation, by whatever method it
// comes: a WebSocket's handshake is a GET, and who may read may not act.
func (s *Server) mayStream(ctx context.Context, rq *request, in info) error {
	if in.verb == "create" || rq.sub.Name != "exec" && rq.sub.Name != "attach" && rq.sub.Name != "portforward" {
		return nil
	}
	d, err := s.Authorizer.Authorize(ctx, resource.Attributes{
		User: rq.user, Verb: "create", Namespace: in.namespace, Group: in.group, Version: in.version,
		Resource: in.plural, Subresource: in.subresource, Name: in.name,
	})
	if err != nil {
		return err
	}
	if !d.Allowed {
		return apierrors.NewForbidden(rq.gr(), in.name, errors.New(d.Reason))
	}
	return nil
}

func (s *Server) admitConnect(ctx context.Context, rq *request) error {
	a := &Attributes{
		Operation: OpConnect, Resource: rq.kind.Resource, Subresource: rq.sub.Name, Namespace: rq.namespace, Name: rq.name,
		User: rq.user, Env: s.env(rq, false), Warn: rq.warn,
	}
	if err := s.admit(ctx, a); err != nil {
		return err
	}
	return s.validateAdmission(ctx, a)
}

// container picks the container that a request is for, as upstream.
func container(p *corev1.Pod, name string) (string, error) {
	if name != "" {
		for _, c := range p.Spec.Containers {
			if c.Name == name {
				return name, nil
			}
		}
		for _, c := range p.Spec.InitContainers {
			if c.Name == name {
				return name, nil
			}
		}
		for _, c := range p.Spec.EphemeralContainers {
			if c.Name == name {
				return name, nil
			}
		}
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, p.Name))
	}
	switch len(p.Spec.Containers) {
	case 1:
		return p.Spec.Containers[0].Name, nil
	case 0:
		return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s", p.Name))
	}
	names := func(cs []corev1.Container) string {
		var out []string
		for _, c := range cs {
			out = append(out, c.Name)
		}
		return strings.Join(out, " ")
	}
	msg := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", p.Name, names(p.Spec.Containers))
	if len(p.Spec.InitContainers) > 0 {
		msg += fmt.Sprintf(" or one of the init containers: [%s]", names(p.Spec.InitContainers))
	}
	return "", apierrors.NewBadRequest(msg)
}

func (s *Server) kubelet(ctx context.Context, nodeName string) (*url.URL, http.RoundTripper, error) {
	if s.Nodes == nil {
		return nil, nil, apierrors.NewServiceUnavailable("this server does not reach nodes")
	}
	node, err := client.For[*corev1.Node](s.system).Get(ctx, nodeName)
	if err != nil {
		return nil, nil, err
	}
	return s.Nodes.Kubelet(ctx, node)
}

func (s *Server) podLog(ctx context.Context, w http.ResponseWriter, r *http.Request, p *corev1.Pod) error {
	q := r.URL.Query()
	name, err := container(p, q.Get("container"))
	if err != nil {
		return err
	}
	if err := validateLogOptions(p.Name, q); err != nil {
		return err
	}
	if p.Spec.NodeName == "" {
		// A pod without a node has logged nothing.
		w.Header().Set("Content-Type", "text/plain")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	u, rt, err := s.kubelet(ctx, p.Spec.NodeName)
	if err != nil {
		return err
	}
	u.Path = fmt.Sprintf("/containerLogs/%s/%s/%s", p.Namespace, p.Name, name)
	q.Del("container")
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		if resp.StatusCode == http.StatusNotFound {
			return apierrors.NewGenericServerResponse(resp.StatusCode, "get", corev1.Resource("pods"), p.Name, strings.TrimSpace(string(b)), 0, true)
		}
		return apierrors.NewBadRequest(strings.TrimSpace(string(b)))
	}
	if wsstream.IsWebSocketRequest(r) {
		// Buffered: the copy drops what comes together with the end.
		if err := wsstream.NewReader(bufio.NewReader(resp.Body), true, wsstream.NewDefaultReaderProtocols()).Copy(w, r); err != nil {
			s.sent(err)
		}
		return nil
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	flush, _ := w.(http.Flusher)
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				s.sent(werr)
				return nil
			}
			if flush != nil {
				flush.Flush()
			}
		}
		if err != nil {
			return nil
		}
	}
}

func validateLogOptions(pod string, q url.Values) error {
	var errs field.ErrorList
	for _, k := range []string{"tailLines", "limitBytes", "sinceSeconds"} {
		v := q.Get(k)
		if v == "" {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		switch {
		case k == "tailLines" && n < 0:
			errs = append(errs, field.Invalid(field.NewPath(k), n, "must be greater than or equal to 0"))
		case k != "tailLines" && n < 1:
			errs = append(errs, field.Invalid(field.NewPath(k), n, "must be greater than 0"))
		}
	}
	if q.Get("sinceSeconds") != "" && q.Get("sinceTime") != "" {
		errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, pod, errs)
	}
	return nil
}

func (s *Server) podStream(w http.ResponseWriter, r *http.Request, p *corev1.Pod, what string) error {
	q := r.URL.Query()
	if p.Spec.NodeName == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", p.Name))
	}
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		if what != "portforward" {
			return apierrors.NewInternalError(fmt.Errorf("cannot %s in a completed pod; current phase is %s", what+" into a container", p.Status.Phase))
		}
	}
	path := fmt.Sprintf("/portForward/%s/%s", p.Namespace, p.Name)
	cmd := streaming.Command{Log: s.Log}
	if what != "portforward" {
		name, err := container(p, q.Get("container"))
		if err != nil {
			return err
		}
		if what == "exec" && len(q["command"]) == 0 {
			return apierrors.NewBadRequest("you must specify at least 1 command for the container")
		}
		q.Del("container")
		// The API says stdin, stdout, stderr, tty; the kubelet input, output,
		// error, tty.
		for api, kubelet := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"} {
			v := q.Get(api)
			q.Del(api)
			if v == "true" || v == "1" {
				q.Set(kubelet, "1")
			}
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.TTY = q.Has("input"), q.Has("output"), q.Has("error"), q.Has("tty")
		path = fmt.Sprintf("/%s/%s/%s/%s", what, p.Namespace, p.Name, name)
	}
	u, rt, err := s.kubelet(r.Context(), p.Spec.NodeName)
	if err != nil {
		return err
	}
	u.Path, u.RawQuery = path, q.Encode()
	to := streaming.Backend{Location: u, Transport: rt}
	switch {
	case what == "portforward" && streaming.IsTunnel(r):
		t := streaming.Tunnel{Backend: to, Log: s.Log}
		if err := t.Serve(w, r); err != nil {
			return apierrors.NewInternalError(err)
		}
	case what != "portforward" && streaming.IsCommand(r):
		cmd.Backend = to
		cmd.Serve(w, r)
	default:
		s.upgradeAware(w, r, u, rt, true)
	}
	return nil
}

// responder passes the errors of a proxied request on.
type responder struct {
	s *Server
}

func (p responder) Error(w http.ResponseWriter, r *http.Request, err error) {
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		err = apierrors.NewInternalError(err)
	}
	p.s.fail(w, r, err)
}

// upgradeAware passes a request on. One that must be a stream is upgraded;
// otherwise links and redirects in what comes back are made to lead through the
// proxy too.
func (s *Server) upgradeAware(w http.ResponseWriter, r *http.Request, u *url.URL, rt http.RoundTripper, upgrade bool) {
	h := proxy.NewUpgradeAwareHandler(u, rt, !upgrade, upgrade, responder{s})
	r.Header.Del("Authorization")
	h.ServeHTTP(w, r)
}

// proxyTarget makes the URL that a proxy request goes to.
func proxyTarget(r *http.Request, scheme, host, rest string) *url.URL {
	if scheme == "" {
		scheme = "http"
	}
	return &url.URL{Scheme: scheme, Host: host, Path: rest, RawQuery: r.URL.RawQuery}
}

// splitTarget reads "scheme:name:port", "name:port" or "name".
func splitTarget(id string) (scheme, name, port string, ok bool) {
	parts := strings.Split(id, ":")
	if len(parts) < 3 && parts[0] == "" || len(parts) == 3 && parts[1] == "" {
		return "", "", "", false
	}
	switch len(parts) {
	case 1:
		return "", parts[0], "", true
	case 2:
		return "", parts[0], parts[1], true
	case 3:
		if parts[0] == "http" || parts[0] == "https" || parts[0] == "" {
			return parts[0], parts[1], parts[2], true
		}
	}
	return "", "", "", false
}

func (s *Server) podProxy(w http.ResponseWriter, r *http.Request, rq *request, p *corev1.Pod, in info) error {
	scheme, _, port, ok := splitTarget(in.name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid pod request %q", in.name))
	}
	if port == "" && len(p.Spec.Containers) > 0 && len(p.Spec.Containers[0].Ports) > 0 {
		port = strconv.Itoa(int(p.Spec.Containers[0].Ports[0].ContainerPort))
	}
	if p.Status.PodIP == "" {
		return apierrors.NewBadRequest("pod " + p.Name + " has no address yet")
	}
	return s.proxyTo(w, r, scheme, joinHostPort(p.Status.PodIP, port), in.rest)
}

func joinHostPort(host, port string) string {
	if port == "" {
		return host
	}
	return net.JoinHostPort(host, port)
}

func (s *Server) proxyTo(w http.ResponseWriter, r *http.Request, scheme, host, rest string) error {
	u := proxyTarget(r, scheme, host, rest)
	s.upgradeAware(w, r, u, proxyTransport, false)
	return nil
}

// proxyTransport carries requests to pods, which have no certificate to check
// against (as upstream's proxies).
var proxyTransport http.RoundTripper = &http.Transport{TLSClientConfig: insecureTLS(), MaxIdleConnsPerHost: 2}

func (s *Server) nodeProxy(w http.ResponseWriter, r *http.Request, n *corev1.Node, in info) error {
	u, rt, err := s.kubelet(r.Context(), n.Name)
	if err != nil {
		return err
	}
	u.Path, u.RawQuery = in.rest, r.URL.RawQuery
	s.upgradeAware(w, r, u, rt, false)
	return nil
}
