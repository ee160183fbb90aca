package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

// serviceProxy passes a request on to a ready endpoint of the service's port that
// the request names, by name or number.
func (s *Server) serviceProxy(w http.ResponseWriter, r *http.Request, svc *corev1.Service, in info) error {
	scheme, _, port, ok := splitTarget(in.name)
	if !ok {
		return apierrors.NewBadRequest(fmt.Sprintf("invalid service request %q", in.name))
	}
	if n, err := strconv.ParseInt(port, 10, 64); err == nil {
		i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return int64(p.Port) == n })
		if i < 0 {
			return apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", n, svc.Name))
		}
		port = svc.Spec.Ports[i].Name
	}
	host, err := s.randomEndpoint(r.Context(), svc, port)
	if err != nil {
		return err
	}
	return s.proxyTo(w, r, scheme, host, in.rest)
}

// randomEndpoint picks an endpoint of the port named: of the cluster's first IP
// family, where the service has such.
func (s *Server) randomEndpoint(ctx context.Context, svc *corev1.Service, port string) (string, error) {
	list, _, err := client.For[*discoveryv1.EndpointSlice](s.system).In(svc.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + svc.Name,
	})
	if err != nil {
		return "", err
	}
	first := discoveryv1.AddressTypeIPv4
	if s.Services != nil {
		first = discoveryv1.AddressType(s.Services.Families()[0])
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b *discoveryv1.EndpointSlice) int {
		switch x, y := a.AddressType == first, b.AddressType == first; {
		case x && !y:
			return -1
		case y && !x:
			return 1
		}
		return 0
	})
	for _, sl := range list {
		for _, p := range sl.Ports {
			if p.Name == nil || *p.Name != port || p.Port == nil {
				continue
			}
			for _, i := range rand.Perm(len(sl.Endpoints)) {
				e := &sl.Endpoints[i]
				if (e.Conditions.Ready == nil || *e.Conditions.Ready) && s.isPod(ctx, svc.Namespace, e) {
					return net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))), nil
				}
			}
		}
	}
	return "", noEndpoints(svc.Name)
}

// noEndpoints is the answer for a service that nothing answers for, one that is not
// there included.
func noEndpoints(service string) error {
	return apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", service))
}

// isPod tells that an endpoint is a pod of the namespace. Whoever may write
// endpoints must not reach, through the API server, whatever it can reach.
func (s *Server) isPod(ctx context.Context, namespace string, e *discoveryv1.Endpoint) bool {
	if e.TargetRef == nil || e.TargetRef.Namespace != namespace || len(e.Addresses) == 0 {
		return false
	}
	pod, err := client.For[*corev1.Pod](s.system).In(namespace).Get(ctx, e.TargetRef.Name)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(pod.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == e.Addresses[0] })
}
