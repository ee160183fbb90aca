package kubelet

import (
	"context"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// environment is a container's environment: what its services, envFrom and env
// give, in this order of precedence, last first.
func (w *worker) environment(ctx context.Context, pod *corev1.Pod, c *corev1.Container, ips []string) ([]corev1.EnvVar, error) {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	services := w.k.serviceEnv(pod.Namespace, links)
	e := envBuilder{
		ctx: ctx, src: w.k.sources, pod: withIPs(pod, w.k.d.NodeIPs, ips),
		volumes: w.volumes.paths,
		vars:    map[string]string{}, services: services, maps: map[string]map[string]string{}, secrets: map[string]map[string][]byte{},
	}
	for i := range c.EnvFrom {
		if err := e.from(&c.EnvFrom[i]); err != nil {
			return nil, err
		}
	}
	for i := range c.Env {
		if err := e.add(&c.Env[i], c); err != nil {
			return nil, err
		}
	}
	out := make([]corev1.EnvVar, 0, len(e.vars)+len(services))
	for _, name := range e.order {
		out = append(out, corev1.EnvVar{Name: name, Value: e.vars[name]})
	}
	names := make([]string, 0, len(services))
	for name := range services {
		if _, ok := e.vars[name]; !ok {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		out = append(out, corev1.EnvVar{Name: name, Value: services[name]})
	}
	return out, nil
}

type envBuilder struct {
	ctx      context.Context
	src      *Sources
	pod      *corev1.Pod
	volumes  map[string]string
	vars     map[string]string
	order    []string
	services map[string]string
	maps     map[string]map[string]string
	secrets  map[string]map[string][]byte
}

func (e *envBuilder) set(name, value string) {
	if _, ok := e.vars[name]; !ok {
		e.order = append(e.order, name)
	}
	e.vars[name] = value
}

// configMap returns a config map's data; none where it is missing and optional.
func (e *envBuilder) configMap(name string, optional *bool) (map[string]string, bool, error) {
	if m, ok := e.maps[name]; ok {
		return m, true, nil
	}
	cm, err := e.src.ConfigMap(e.ctx, e.pod.Namespace, name)
	if err != nil {
		if apierrors.IsNotFound(err) && optional != nil && *optional {
			return nil, false, nil
		}
		return nil, false, err
	}
	e.maps[name] = cm.Data
	return cm.Data, true, nil
}

func (e *envBuilder) secret(name string, optional *bool) (map[string][]byte, bool, error) {
	if m, ok := e.secrets[name]; ok {
		return m, true, nil
	}
	s, err := e.src.Secret(e.ctx, e.pod.Namespace, name)
	if err != nil {
		if apierrors.IsNotFound(err) && optional != nil && *optional {
			return nil, false, nil
		}
		return nil, false, err
	}
	e.secrets[name] = s.Data
	return s.Data, true, nil
}

func (e *envBuilder) from(f *corev1.EnvFromSource) error {
	all := map[string]string{}
	switch {
	case f.ConfigMapRef != nil:
		m, ok, err := e.configMap(f.ConfigMapRef.Name, f.ConfigMapRef.Optional)
		if err != nil || !ok {
			return err
		}
		for k, v := range m {
			all[f.Prefix+k] = v
		}
	case f.SecretRef != nil:
		m, ok, err := e.secret(f.SecretRef.Name, f.SecretRef.Optional)
		if err != nil || !ok {
			return err
		}
		for k, v := range m {
			all[f.Prefix+k] = string(v)
		}
	}
	names := make([]string, 0, len(all))
	for k := range all {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		e.set(k, all[k])
	}
	return nil
}

func (e *envBuilder) add(v *corev1.EnvVar, c *corev1.Container) error {
	if v.Value != "" || v.ValueFrom == nil {
		e.set(v.Name, expandWith(v.Value, e.lookup))
		return nil
	}
	switch f := v.ValueFrom; {
	case f.FieldRef != nil:
		s, err := e.src.Field(e.ctx, e.pod, f.FieldRef)
		if err != nil {
			return err
		}
		e.set(v.Name, s)
	case f.ResourceFieldRef != nil:
		name := f.ResourceFieldRef.ContainerName
		if name == "" {
			name = c.Name
		}
		s, err := e.src.Resource(e.ctx, e.pod, name, f.ResourceFieldRef)
		if err != nil {
			return err
		}
		e.set(v.Name, s)
	case f.ConfigMapKeyRef != nil:
		r := f.ConfigMapKeyRef
		m, ok, err := e.configMap(r.Name, r.Optional)
		if err != nil || !ok {
			return err
		}
		return setKey(e, v.Name, "ConfigMap", m, r.Name, r.Key, r.Optional)
	case f.SecretKeyRef != nil:
		r := f.SecretKeyRef
		m, ok, err := e.secret(r.Name, r.Optional)
		if err != nil || !ok {
			return err
		}
		return setKey(e, v.Name, "Secret", m, r.Name, r.Key, r.Optional)
	case f.FileKeyRef != nil:
		return e.file(v.Name, f.FileKeyRef)
	default:
		e.set(v.Name, "")
	}
	return nil
}

func (e *envBuilder) lookup(name string) (string, bool) {
	if v, ok := e.vars[name]; ok {
		return v, true
	}
	v, ok := e.services[name]
	return v, ok
}

// expand replaces $(NAME) by the variable's value; $$ stands for $, and what is
// not defined stays as it is.
func expand(s string, vars map[string]string) string {
	return expandWith(s, func(n string) (string, bool) { v, ok := vars[n]; return v, ok })
}

func expandWith(s string, lookup func(string) (string, bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i+2:], ')')
			if end < 0 {
				b.WriteString("$(")
				i++
				continue
			}
			name := s[i+2 : i+2+end]
			if v, ok := lookup(name); ok {
				b.WriteString(v)
			} else {
				b.WriteString("$(" + name + ")")
			}
			i += 2 + end
		default:
			b.WriteByte('$')
			b.WriteByte(s[i+1])
			i++
		}
	}
	return b.String()
}

// expandStrict is expand for subPathExpr, where every variable must be defined.
func expandStrict(s string, vars map[string]string) (string, error) {
	var missing string
	out := expandWith(s, func(n string) (string, bool) {
		v, ok := vars[n]
		if !ok && missing == "" {
			missing = n
		}
		return v, ok
	})
	if missing != "" {
		return "", fmt.Errorf("missing value for %q", missing)
	}
	return out, nil
}

// masterServices are told to every pod, links or not.
const masterService = "kubernetes"

// serviceEnv are the variables of the services that a pod of this namespace sees.
func (k *Kubelet) serviceEnv(ns string, links bool) map[string]string {
	out := map[string]string{}
	seen := map[string]*corev1.Service{}
	for _, s := range k.services.List(metav1NamespaceDefault, nil) {
		if s.Name == masterService && hasClusterIP(s) {
			seen[s.Name] = s
		}
	}
	if links {
		for _, s := range k.services.List(ns, nil) {
			if hasClusterIP(s) {
				seen[s.Name] = s
			}
		}
	}
	for _, s := range seen {
		addServiceEnv(out, s)
	}
	return out
}

const metav1NamespaceDefault = "default"

func hasClusterIP(s *corev1.Service) bool {
	return s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone && len(s.Spec.Ports) > 0
}

func envName(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }

func addServiceEnv(out map[string]string, s *corev1.Service) {
	p := envName(s.Name)
	ip := s.Spec.ClusterIP
	out[p+"_SERVICE_HOST"] = ip
	out[p+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, sp := range s.Spec.Ports {
		port := strconv.Itoa(int(sp.Port))
		if sp.Name != "" {
			out[p+"_SERVICE_PORT_"+envName(sp.Name)] = port
		}
		proto := string(corev1.ProtocolTCP)
		if sp.Protocol != "" {
			proto = string(sp.Protocol)
		}
		url := strings.ToLower(proto) + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			out[p+"_PORT"] = url
		}
		pp := p + "_PORT_" + port + "_" + strings.ToUpper(proto)
		out[pp] = url
		out[pp+"_PROTO"] = strings.ToLower(proto)
		out[pp+"_PORT"] = port
		out[pp+"_ADDR"] = ip
	}
}

// withIPs returns the pod with its addresses in the status, for fieldRefs that are
// resolved before the API knows them.
func withIPs(pod *corev1.Pod, node []net.IP, ips []string) *corev1.Pod {
	p := *pod
	if pod.Spec.HostNetwork && len(ips) == 0 {
		for _, ip := range node {
			ips = append(ips, ip.String())
		}
	}
	if len(ips) > 0 {
		p.Status.PodIP = ips[0]
		p.Status.PodIPs = nil
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	if len(node) > 0 {
		p.Status.HostIP = node[0].String()
		p.Status.HostIPs = nil
		for _, ip := range node {
			p.Status.HostIPs = append(p.Status.HostIPs, corev1.HostIP{IP: ip.String()})
		}
	}
	return &p
}

// setKey sets a variable to what key has in a ConfigMap or Secret. A key that is
// missing is an error, unless it is optional.
func setKey[V ~string | ~[]byte](e *envBuilder, variable, kind string, m map[string]V, name, key string, optional *bool) error {
	v, ok := m[key]
	if !ok {
		if optional != nil && *optional {
			return nil
		}
		return fmt.Errorf("couldn't find key %v in %s %v/%v", key, kind, e.pod.Namespace, name)
	}
	e.set(variable, string(v))
	return nil
}
