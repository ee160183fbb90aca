package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	utilexec "k8s.io/utils/exec"
)

const (
	maxProbeOutput = 10 << 10
	probeTries     = 3
)

// once probes one time. ok is false where nothing could be learned. quiet keeps a
// failure from being told.
func (r *prober) once(ctx context.Context, quiet bool) (got result, ok bool) {
	var output string
	var warning bool
	var err error
	for range probeTries {
		if got, output, warning, err = r.probe(ctx); err == nil {
			break
		}
		if ctx.Err() != nil {
			return resultNone, false
		}
	}
	if ctx.Err() != nil {
		return resultNone, false
	}
	w := r.p.w
	switch {
	case err != nil:
		state := "unknown"
		w.containerEvent(r.pod, r.c.Name, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe errored and resulted in %s state: %s", r.kind, state, err))
		return resultNone, false
	case got == resultFailure && quiet:
	case got == resultFailure:
		w.containerEvent(r.pod, r.c.Name, corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe failed: %s", r.kind, output))
	case warning:
		w.containerEvent(r.pod, r.c.Name, corev1.EventTypeWarning, "ProbeWarning", fmt.Sprintf("%s probe warning: %s", r.kind, output))
	}
	return got, true
}

func (r *prober) probe(ctx context.Context) (got result, output string, warning bool, err error) {
	timeout := time.Duration(orDefault(r.spec.TimeoutSeconds, 1)) * time.Second
	ip := ""
	if len(r.ips) > 0 {
		ip = r.ips[0]
	}
	switch h := r.spec.ProbeHandler; {
	case h.Exec != nil:
		got, output, err = r.exec(ctx, h.Exec.Command, timeout)
		return got, output, false, err
	case h.HTTPGet != nil:
		return r.http(ctx, h.HTTPGet, ip, timeout)
	case h.TCPSocket != nil:
		port, err := containerPort(h.TCPSocket.Port, r.c)
		if err != nil {
			return resultNone, "", false, err
		}
		host := h.TCPSocket.Host
		if host == "" {
			host = ip
		}
		d := probeDialer()
		d.Timeout = timeout
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return resultFailure, err.Error(), false, nil
		}
		conn.Close()
		return resultSuccess, "", false, nil
	case h.GRPC != nil:
		got, output = r.grpc(ctx, h.GRPC, ip, timeout)
		return got, output, false, nil
	}
	return resultNone, "", false, fmt.Errorf("missing probe handler for %s:%s", podNameFull(r.pod), r.c.Name)
}

func (r *prober) exec(ctx context.Context, cmd []string, timeout time.Duration) (result, string, error) {
	vars := map[string]string{}
	for _, e := range r.c.Env {
		if e.ValueFrom == nil {
			vars[e.Name] = e.Value
		}
	}
	args := make([]string, len(cmd))
	for i, a := range cmd {
		args[i] = expand(a, vars)
	}
	stdout, stderr, err := r.p.w.k.d.Runtime.ExecSync(ctx, r.have.id, args, timeout)
	out := append(stdout, stderr...)
	if len(out) > maxProbeOutput {
		out = out[:maxProbeOutput]
	}
	if err == nil {
		return resultSuccess, string(out), nil
	}
	var exit utilexec.ExitError
	switch {
	case errors.As(err, &exit):
		if exit.ExitStatus() == 0 {
			return resultSuccess, string(out), nil
		}
		return resultFailure, string(out), nil
	case status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
		return resultFailure, fmt.Sprintf("command timed out: %q timed out after %s", cmd, timeout), nil
	}
	return resultNone, "", err
}

func (r *prober) http(ctx context.Context, g *corev1.HTTPGetAction, ip string, timeout time.Duration) (result, string, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := httpRequest(ctx, g, r.c, ip, "probe")
	if err != nil {
		return resultNone, "", false, err
	}
	c := probeClient(false)
	c.Timeout = timeout
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		return resultFailure, err.Error(), false, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeOutput))
	if err != nil {
		return resultFailure, err.Error(), false, nil
	}
	if resp.StatusCode >= http.StatusOK && resp.StatusCode < http.StatusBadRequest {
		if resp.StatusCode >= http.StatusMultipleChoices {
			return resultSuccess, fmt.Sprintf("Probe terminated redirects, Response body: %v", string(body)), true, nil
		}
		return resultSuccess, string(body), false, nil
	}
	return resultFailure, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode), false, nil
}

func (r *prober) grpc(ctx context.Context, g *corev1.GRPCAction, ip string, timeout time.Duration) (result, string) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	service := ""
	if g.Service != nil {
		service = *g.Service
	}
	addr := net.JoinHostPort(ip, strconv.Itoa(int(g.Port)))
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent("kube-probe/"+userAgentVersion), grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return probeDialer().DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		return resultFailure, fmt.Sprintf("error: failed to connect service at %q: %+v", addr, err)
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		switch status.Code(err) {
		case codes.Unimplemented:
			return resultFailure, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + status.Convert(err).Message()
		case codes.DeadlineExceeded:
			return resultFailure, fmt.Sprintf("timeout: health rpc did not complete within %v", timeout)
		case codes.Unavailable:
			return resultFailure, fmt.Sprintf("timeout: failed to connect service %q within %v: %+v", addr, timeout, err)
		}
		return resultFailure, fmt.Sprintf("error: health rpc probe failed: %+v", err)
	}
	if resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return resultFailure, fmt.Sprintf("service unhealthy (responded with %q)", resp.Status.String())
	}
	return resultSuccess, "service healthy"
}
