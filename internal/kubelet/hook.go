package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const userAgentVersion = "1.37"

// runHook runs a postStart or preStop hook. The message, of a failure, is what the
// pod's status shows.
func (w *worker) runHook(ctx context.Context, pod *corev1.Pod, c *corev1.Container, id string, ips []string, h *corev1.LifecycleHandler) (string, error) {
	of := fmt.Sprintf("for Container %q in Pod %q failed - error: ", c.Name, podNameFull(pod))
	switch {
	case h.Exec != nil:
		stdout, stderr, err := w.k.d.Runtime.ExecSync(ctx, id, h.Exec.Command, 0)
		if err != nil {
			return fmt.Sprintf("Exec lifecycle hook (%v) %s%v, message: %q", h.Exec.Command, of, err, string(stdout)+string(stderr)), err
		}
	case h.HTTPGet != nil:
		if err := w.httpHook(ctx, pod, c, ips, h.HTTPGet); err != nil {
			return fmt.Sprintf("HTTP lifecycle hook (%s) %s%v", h.HTTPGet.Path, of, err), err
		}
	case h.Sleep != nil:
		if !sleep(ctx, time.Duration(h.Sleep.Seconds)*time.Second) {
			err := errors.New("container terminated before sleep hook finished")
			return fmt.Sprintf("Sleep lifecycle hook (%d) %s%v", h.Sleep.Seconds, of, err), errors.Join(err, ctx.Err())
		}
	default:
		err := fmt.Errorf("invalid handler: %v", h)
		return fmt.Sprintf("Cannot run handler: %v", err), err
	}
	return "", nil
}

func (w *worker) httpHook(ctx context.Context, pod *corev1.Pod, c *corev1.Container, ips []string, g *corev1.HTTPGetAction) error {
	ip := ""
	if len(ips) > 0 {
		ip = ips[0]
	} else if hostNetwork(pod) && len(w.k.d.NodeIPs) > 0 {
		ip = w.k.d.NodeIPs[0].String()
	}
	if ip == "" && g.Host == "" {
		return errors.New("failed to find networking container")
	}
	req, err := httpRequest(ctx, g, c, ip, "lifecycle")
	if err != nil {
		return err
	}
	client := probeClient(true)
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		req = req.Clone(ctx)
		req.URL.Scheme = "http"
		req.Header.Del("Authorization")
		if resp, err = client.Do(req); err == nil {
			w.event(pod, corev1.EventTypeWarning, "LifecycleHTTPFallback",
				fmt.Sprintf("request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", req.URL.Host))
		}
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 10<<10)
	return nil
}

// probeClient makes a connection for every request and trusts any certificate, as
// probes do. follow allows redirects to other hosts.
func probeClient(follow bool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a probe asks whether it answers, not who
			DisableKeepAlives:  true,
			DisableCompression: true,
			Proxy:              nil,
			DialContext:        probeDialer().DialContext,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if !follow && req.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= 10 {
				return errors.New("stopped after 10 redirects")
			}
			return nil
		},
	}
}

// httpRequest is the request of an HTTP hook or probe.
func httpRequest(ctx context.Context, g *corev1.HTTPGetAction, c *corev1.Container, podIP, agent string) (*http.Request, error) {
	port, err := containerPort(g.Port, c)
	if err != nil {
		return nil, err
	}
	scheme := strings.ToLower(string(g.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	host := g.Host
	if host == "" {
		host = podIP
	}
	u, err := url.Parse(g.Path)
	if err != nil {
		u = &url.URL{Path: g.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, h := range g.HTTPHeaders {
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			req.Host = h.Value
		}
		req.Header.Add(h.Name, h.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", "kube-"+agent+"/"+userAgentVersion)
	} else if req.Header.Get("User-Agent") == "" {
		req.Header["User-Agent"] = []string{""}
	}
	if v, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if len(v) == 1 && v[0] == "" {
		req.Header.Del("Accept")
	}
	return req, nil
}

// containerPort resolves a port by number or by the container's name for it.
func containerPort(p intstr.IntOrString, c *corev1.Container) (int, error) {
	port := p.IntValue()
	if p.Type == intstr.String {
		port = 0
		for _, cp := range c.Ports {
			if cp.Name == p.StrVal {
				port = int(cp.ContainerPort)
			}
		}
		if port == 0 {
			n, err := strconv.Atoi(p.StrVal)
			if err != nil {
				return 0, fmt.Errorf("couldn't find port: %v in container: %s", p.StrVal, c.Name)
			}
			port = n
		}
	}
	if port <= 0 || port > 65535 {
		return 0, fmt.Errorf("invalid port number: %v", port)
	}
	return port, nil
}

func probeDialer() *net.Dialer { return &net.Dialer{KeepAlive: -1} }
