package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// balancerHealth answers the health check node ports of services of type
// LoadBalancer under the Local policy: a balancer outside asks there whether this
// node has endpoints of the service.
type balancerHealth struct {
	addrs []netip.Addr
	log   *slog.Logger
	// failed is told of a port that cannot be listened on.
	failed func(svc *corev1.Service, port int32, err error)
	// written tells that the node's rules are what they should be.
	written atomic.Bool

	by   map[nsName]*healthPort // of one goroutine
	done sync.WaitGroup
}

// healthPort is the port of one service.
type healthPort struct {
	name    nsName
	port    int32
	local   atomic.Int64
	written *atomic.Bool
	servers []*http.Server
}

func newBalancerHealth(addrs []netip.Addr, log *slog.Logger, failed func(*corev1.Service, int32, error)) *balancerHealth {
	return &balancerHealth{addrs: addrs, log: log, failed: failed, by: map[nsName]*healthPort{}}
}

// set makes the port of a service what the service says. One that could not be
// opened is tried again each time.
func (b *balancerHealth) set(s *corev1.Service, eps []*discoveryv1.EndpointSlice, node string) {
	k, port := nsName{s.Namespace, s.Name}, s.Spec.HealthCheckNodePort
	if s.Labels[proxyLabel] != "" {
		port = 0 // another proxy answers
	}
	h := b.by[k]
	if h != nil && h.port != port {
		b.remove(k)
		h = nil
	}
	if port == 0 {
		return
	}
	if h == nil {
		h = &healthPort{name: k, port: port, written: &b.written}
		if err := b.open(h); err != nil {
			h.close()
			b.failed(s, h.port, err)
			return
		}
		b.by[k] = h
	}
	h.local.Store(int64(localReady(eps, node)))
}

// localReady counts the addresses of a service's ready endpoints on a node.
func localReady(eps []*discoveryv1.EndpointSlice, node string) int {
	seen := map[string]bool{}
	for _, sl := range eps {
		for _, e := range sl.Endpoints {
			if e.NodeName == nil || *e.NodeName != node || e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, a := range e.Addresses {
				seen[a] = true
			}
		}
	}
	return len(seen)
}

func (b *balancerHealth) open(h *healthPort) error {
	for _, a := range b.addrs {
		var lc net.ListenConfig
		l, err := lc.Listen(context.Background(), "tcp", netip.AddrPortFrom(a, uint16(h.port)).String())
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(b.log.Handler(), slog.LevelDebug)}
		h.servers = append(h.servers, srv)
		b.done.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				b.log.Error("health check of a service ended", "ns", h.name.ns, "service", h.name.name, "err", err)
			}
		})
	}
	return nil
}

func (h *healthPort) close() {
	for _, s := range h.servers {
		_ = s.Close() // of its listener and connections: there is nothing to lose
	}
}

// remove closes a service's port, if it has one.
func (b *balancerHealth) remove(k nsName) {
	if h := b.by[k]; h != nil {
		h.close()
		delete(b.by, k)
	}
}

// close closes all ports and waits for their ends.
func (b *balancerHealth) close() {
	for k := range b.by {
		b.remove(k)
	}
	b.done.Wait()
}

// ServeHTTP tells how many endpoints the node has, in upstream's form.
func (h *healthPort) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	n, written := h.local.Load(), h.written.Load()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(n, 10))
	code := http.StatusServiceUnavailable
	if n > 0 && written {
		code = http.StatusOK
	}
	w.WriteHeader(code)
	fmt.Fprintf(w, "{\n\t\"service\": {\n\t\t\"namespace\": %q,\n\t\t\"name\": %q\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}",
		h.name.ns, h.name.name, n, written)
}
