package app

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"skiff/internal/client"
	"skiff/internal/pki"
)

// served tells whether the API has a resource.
func (s *server) served(gvr schema.GroupVersionResource) bool {
	for _, r := range s.api.Served() {
		if r.GVR() == gvr {
			return true
		}
	}
	return false
}

// serviceObjects makes the objects by which pods find the API server and the
// cluster's DNS.
func (s *server) serviceObjects(ctx context.Context, c *client.Client) error {
	var eg errgroup.Group
	if s.served(client.KindOf[*corev1.Service]().GVR) {
		eg.Go(func() error { return ensure(ctx, c, s.kubernetesService()) })
		eg.Go(func() error { return ensure(ctx, c, s.dnsService()) })
	}
	if s.served(client.KindOf[*corev1.Endpoints]().GVR) { //nolint:staticcheck // served as upstream serves it
		eg.Go(func() error { return s.kubernetesEndpoints(ctx, c) })
	}
	if s.served(client.KindOf[*discoveryv1.EndpointSlice]().GVR) {
		eg.Go(func() error { return s.kubernetesSlice(ctx, c) })
	}
	return eg.Wait()
}

func (s *server) kubernetesService() *corev1.Service {
	single := corev1.IPFamilyPolicySingleStack
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: "kubernetes", Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: s.set.APIServiceIP.String(), IPFamilyPolicy: &single,
			SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{
				Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt(s.set.APIPort),
			}},
		},
	}
}

// dnsService has no selector: every node answers it by itself.
func (s *server) dnsService() *corev1.Service {
	prefer := corev1.IPFamilyPolicyPreferDualStack
	var ips []string
	for _, ip := range s.set.DNSIPs {
		ips = append(ips, ip.String())
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: "kube-dns",
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ips[0], ClusterIPs: ips, IPFamilyPolicy: &prefer,
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt(53)},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt(53)},
			},
		},
	}
}

//nolint:staticcheck // Endpoints are served as upstream serves them
func (s *server) kubernetesEndpoints(ctx context.Context, c *client.Client) error {
	want := &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"},
		},
		Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: s.set.NodeAddr().String()}},
			Ports:     []corev1.EndpointPort{{Name: "https", Port: int32(s.set.APIPort), Protocol: corev1.ProtocolTCP}},
		}},
	}
	now, ok, err := lookup(ctx, c, want)
	if err != nil {
		return err
	}
	return reconcile(ctx, c, want, now, ok, func(have *corev1.Endpoints) *corev1.Endpoints {
		o := have.DeepCopy()
		changed := addMissing(&o.Labels, want.Labels)
		if !changed && apiequality.Semantic.DeepEqual(o.Subsets, want.Subsets) {
			return nil
		}
		o.Subsets = want.Subsets
		return o
	})
}

func (s *server) kubernetesSlice(ctx context.Context, c *client.Client) error {
	name, port, proto, ready := "https", int32(s.set.APIPort), corev1.ProtocolTCP, true
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"},
		},
		AddressType: discoveryv1.AddressType(familyName(s.set.NodeAddr().Is6())),
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{s.set.NodeAddr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	now, ok, err := lookup(ctx, c, want)
	if err != nil {
		return err
	}
	return reconcile(ctx, c, want, now, ok, func(have *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
		o := have.DeepCopy()
		changed := addMissing(&o.Labels, want.Labels)
		if !changed && apiequality.Semantic.DeepEqual(o.Endpoints, want.Endpoints) && apiequality.Semantic.DeepEqual(o.Ports, want.Ports) {
			return nil
		}
		o.Endpoints, o.Ports = want.Endpoints, want.Ports
		return o
	})
}

// lookup reads an object that may not be there.
func lookup[T client.Object](ctx context.Context, c *client.Client, want T) (T, bool, error) {
	o, err := client.For[T](c).In(want.GetNamespace()).Get(ctx, want.GetName())
	if apierrors.IsNotFound(err) {
		return o, false, nil
	}
	if err != nil {
		return o, false, fmt.Errorf("read %T %q: %w", want, want.GetName(), err)
	}
	return o, true, nil
}

// extensionAuthentication publishes what an extension API server needs to know
// users by.
func (s *server) extensionAuthentication(ctx context.Context, c *client.Client) error {
	list := func(v ...string) string {
		b, err := json.Marshal(v)
		if err != nil {
			return "[]"
		}
		return string(b)
	}
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "extension-apiserver-authentication"},
		Data: map[string]string{
			"client-ca-file":                     string(s.pki.CA(pki.ClusterCA).CertPEM),
			"requestheader-allowed-names":        list("front-proxy-client"),
			"requestheader-client-ca-file":       string(s.pki.CA(pki.FrontProxyCA).CertPEM),
			"requestheader-extra-headers-prefix": list("X-Remote-Extra-"),
			"requestheader-group-headers":        list("X-Remote-Group"),
			"requestheader-uid-headers":          list("X-Remote-Uid"),
			"requestheader-username-headers":     list("X-Remote-User"),
		},
	}
	now, ok, err := lookup(ctx, c, want)
	if err != nil {
		return err
	}
	return reconcile(ctx, c, want, now, ok, func(have *corev1.ConfigMap) *corev1.ConfigMap {
		if apiequality.Semantic.DeepEqual(have.Data, want.Data) {
			return nil
		}
		o := have.DeepCopy()
		o.Data = want.Data
		return o
	})
}

// clusterInfo publishes to everybody where the API server is, and by which authority
// it is known. Its signatures are the bootstrap signer's.
func (s *server) clusterInfo(ctx context.Context, c *client.Client) error {
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "contexts": nil, "current-context": "", "preferences": struct{}{}, "users": nil,
		"clusters": []any{map[string]any{"name": "", "cluster": map[string]any{
			"server":                     "https://" + net.JoinHostPort(s.set.NodeAddr().String(), strconv.Itoa(s.set.APIPort)),
			"certificate-authority-data": s.pki.CA(pki.ClusterCA).CertPEM,
		}}},
	})
	if err != nil {
		return err
	}
	const key = "kubeconfig"
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespacePublic, Name: "cluster-info"}, Data: map[string]string{key: string(text)},
	}
	now, ok, err := lookup(ctx, c, want)
	if err != nil {
		return err
	}
	return reconcile(ctx, c, want, now, ok, func(have *corev1.ConfigMap) *corev1.ConfigMap {
		if have.Data[key] == want.Data[key] {
			return nil
		}
		o := have.DeepCopy()
		if o.Data == nil {
			o.Data = map[string]string{}
		}
		o.Data[key] = want.Data[key]
		return o
	})
}
