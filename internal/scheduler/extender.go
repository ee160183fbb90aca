package scheduler

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	configv1 "k8s.io/kube-scheduler/config/v1"
	extenderv1 "k8s.io/kube-scheduler/extender/v1"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

// extenderName is what explanations and the queue call extenders.
const extenderName = "Extender"

// extenderTimeout is how long an extender may take where its configuration says
// nothing.
const extenderTimeout = 5 * time.Second

// Extender is a webhook that has its say about nodes (KubeSchedulerConfiguration's
// extenders): the scheduling loop waits for its answers.
type Extender struct {
	c       configv1.Extender
	client  *http.Client
	managed map[string]bool
}

// NewExtender returns an extender of a validated configuration.
func NewExtender(c configv1.Extender) (*Extender, error) {
	e := &Extender{c: c, managed: map[string]bool{}}
	for _, r := range c.ManagedResources {
		e.managed[r.Name] = true
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	var err error
	if t.TLSClientConfig, err = extenderTLS(&c); err != nil {
		return nil, fmt.Errorf("extender %s: %w", c.URLPrefix, err)
	}
	e.client = &http.Client{Transport: t, Timeout: c.HTTPTimeout.Duration}
	if e.client.Timeout == 0 {
		e.client.Timeout = extenderTimeout
	}
	return e, nil
}

func extenderTLS(c *configv1.Extender) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	t := c.TLSConfig
	if t == nil {
		t = &configv1.ExtenderTLSConfig{}
	}
	ca, err := contentOf(t.CAData, t.CAFile)
	if err != nil {
		return nil, err
	}
	if ca != nil {
		if t.Insecure {
			return nil, errors.New("specifying a root certificates file with the insecure flag is not allowed")
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("unable to load root certificates: unable to parse bytes as PEM block")
		}
	}
	// Without anything to verify it by, HTTPS is not verified: upstream's choice.
	out.InsecureSkipVerify = t.Insecure || c.EnableHTTPS && ca == nil //nolint:gosec // as configured
	out.ServerName = t.ServerName
	cert, err := contentOf(t.CertData, t.CertFile)
	if err != nil {
		return nil, err
	}
	key, err := contentOf(t.KeyData, t.KeyFile)
	if err != nil {
		return nil, err
	}
	if cert != nil || key != nil {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

func contentOf(data []byte, file string) ([]byte, error) {
	if len(data) > 0 || file == "" {
		return data, nil
	}
	return os.ReadFile(file)
}

// send posts args to a verb and reads the result.
func (e *Extender) send(ctx context.Context, verb string, args, result any) error {
	body, err := json.Marshal(args)
	if err != nil {
		return err
	}
	url := strings.TrimRight(e.c.URLPrefix, "/") + "/" + verb
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("failed %v with extender at URL %v, code %v", verb, url, resp.StatusCode)
	}
	return json.NewDecoder(resp.Body).Decode(result)
}

// interested tells whether an extender wants to be asked about a pod: all, or those
// that ask for a resource which it manages.
func (e *Extender) interested(p *corev1.Pod) bool {
	if len(e.managed) == 0 {
		return true
	}
	for _, cs := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range cs {
			for _, list := range []corev1.ResourceList{cs[i].Resources.Requests, cs[i].Resources.Limits} {
				for name := range list {
					if e.managed[string(name)] {
						return true
					}
				}
			}
		}
	}
	return false
}

// args are those of filter and prioritize.
func (e *Extender) args(p *corev1.Pod, nodes []*framework.Node) *extenderv1.ExtenderArgs {
	out := &extenderv1.ExtenderArgs{Pod: p}
	if e.c.NodeCacheCapable {
		names := make([]string, len(nodes))
		for i, n := range nodes {
			names[i] = n.Name
		}
		out.NodeNames = &names
		return out
	}
	out.Nodes = &corev1.NodeList{}
	for _, n := range nodes {
		out.Nodes.Items = append(out.Nodes.Items, *n.Obj)
	}
	return out
}

// filter returns the nodes that an extender leaves, and what it says of others.
func (e *Extender) filter(ctx context.Context, p *corev1.Pod, nodes []*framework.Node) ([]*framework.Node, map[string]*framework.Status, error) {
	if e.c.FilterVerb == "" {
		return nodes, nil, nil
	}
	var r extenderv1.ExtenderFilterResult
	if err := e.send(ctx, e.c.FilterVerb, e.args(p, nodes), &r); err != nil {
		return nil, nil, err
	}
	if r.Error != "" {
		return nil, nil, errors.New(r.Error)
	}
	by := make(map[string]*framework.Node, len(nodes))
	for _, n := range nodes {
		by[n.Name] = n
	}
	var left []string
	switch {
	case e.c.NodeCacheCapable && r.NodeNames != nil:
		left = *r.NodeNames
	case r.Nodes != nil:
		for i := range r.Nodes.Items {
			left = append(left, r.Nodes.Items[i].Name)
		}
	}
	var out []*framework.Node
	for _, name := range left {
		n := by[name]
		if n == nil {
			return nil, nil, fmt.Errorf("extender %q claims a filtered node %q which is not found in the input node list", e.c.URLPrefix, name)
		}
		out = append(out, n)
	}
	refused := map[string]*framework.Status{}
	for name, why := range r.FailedNodes {
		refused[name] = &framework.Status{Code: framework.Unschedulable, Plugin: extenderName, Reasons: []string{why}}
	}
	for name, why := range r.FailedAndUnresolvableNodes {
		refused[name] = &framework.Status{Code: framework.Unresolvable, Plugin: extenderName, Reasons: []string{why}}
	}
	return out, refused, nil
}

// prioritize adds what an extender thinks of nodes. An extender that fails thinks
// nothing.
func (e *Extender) prioritize(ctx context.Context, p *corev1.Pod, nodes []*framework.Node, into map[string]int64) {
	if e.c.PrioritizeVerb == "" {
		return
	}
	var r extenderv1.HostPriorityList
	if err := e.send(ctx, e.c.PrioritizeVerb, e.args(p, nodes), &r); err != nil {
		return
	}
	for _, h := range r {
		into[h.Host] += h.Score * e.c.Weight * (framework.MaxScore / extenderv1.MaxExtenderPriority)
	}
}

// bind binds a pod.
func (e *Extender) bind(ctx context.Context, p *corev1.Pod, node string) error {
	var r extenderv1.ExtenderBindingResult
	args := &extenderv1.ExtenderBindingArgs{PodName: p.Name, PodNamespace: p.Namespace, PodUID: p.UID, Node: node}
	if err := e.send(ctx, e.c.BindVerb, args, &r); err != nil {
		return err
	}
	if r.Error != "" {
		return errors.New(r.Error)
	}
	return nil
}

// preempt asks which victims an extender agrees to.
func (e *Extender) preempt(ctx context.Context, p *corev1.Pod, s *framework.Snapshot, found map[string]plugins.Victims) (map[string]plugins.Victims, error) {
	args := &extenderv1.ExtenderPreemptionArgs{Pod: p}
	if e.c.NodeCacheCapable {
		args.NodeNameToMetaVictims = map[string]*extenderv1.MetaVictims{}
	} else {
		args.NodeNameToVictims = map[string]*extenderv1.Victims{}
	}
	for node, v := range found {
		if e.c.NodeCacheCapable {
			m := &extenderv1.MetaVictims{Pods: []*extenderv1.MetaPod{}, NumPDBViolations: int64(v.Violations)}
			for _, o := range v.Pods {
				m.Pods = append(m.Pods, &extenderv1.MetaPod{UID: string(o.UID)})
			}
			args.NodeNameToMetaVictims[node] = m
			continue
		}
		full := &extenderv1.Victims{NumPDBViolations: int64(v.Violations)}
		for _, o := range v.Pods {
			full.Pods = append(full.Pods, o.Pod)
		}
		args.NodeNameToVictims[node] = full
	}
	var r extenderv1.ExtenderPreemptionResult
	if err := e.send(ctx, e.c.PreemptVerb, args, &r); err != nil {
		return nil, err
	}
	out := map[string]plugins.Victims{}
	for name, m := range r.NodeNameToMetaVictims {
		n := s.Node(name)
		if n == nil || m == nil {
			return nil, fmt.Errorf("nodeinfo not found for node name %q", name)
		}
		v := plugins.Victims{Violations: int(m.NumPDBViolations)}
		for _, meta := range m.Pods {
			i := slices.IndexFunc(n.Pods, func(o *framework.Pod) bool { return string(o.UID) == meta.UID })
			if i < 0 {
				return nil, fmt.Errorf("extender: %v claims to preempt pod (UID: %v) on node: %v, but the pod is not found on that node", e.c.URLPrefix, meta, name)
			}
			v.Pods = append(v.Pods, n.Pods[i])
		}
		out[name] = v
	}
	return out, nil
}

// extenders are those of a scheduler, the ignorable ones last.
type extenders []*Extender

func (es extenders) interested(p *corev1.Pod) bool {
	return slices.ContainsFunc(es, func(e *Extender) bool {
		return (e.c.FilterVerb != "" || e.c.PrioritizeVerb != "") && e.interested(p)
	})
}

// filter asks one after the other.
func (es extenders) filter(ctx context.Context, p *corev1.Pod, nodes []*framework.Node) ([]*framework.Node, map[string]*framework.Status, error) {
	refused := map[string]*framework.Status{}
	for _, e := range es {
		if len(nodes) == 0 {
			break
		}
		if !e.interested(p) {
			continue
		}
		left, more, err := e.filter(ctx, p, nodes)
		if err != nil {
			if e.c.Ignorable {
				continue
			}
			return nil, nil, err
		}
		nodes = left
		for name, st := range more {
			refused[name] = st
		}
	}
	return nodes, refused, nil
}

// narrow is what DefaultPreemption asks.
func (es extenders) narrow(p *framework.Pod, s *framework.Snapshot, found map[string]plugins.Victims) (map[string]plugins.Victims, error) {
	for _, e := range es {
		if e.c.PreemptVerb == "" || !e.interested(p.Pod) {
			continue
		}
		left, err := e.preempt(context.Background(), p.Pod, s, found)
		if err != nil {
			if e.c.Ignorable {
				continue
			}
			return nil, err
		}
		for name, v := range left {
			if len(v.Pods) > 0 {
				continue
			}
			if !e.c.Ignorable {
				return nil, fmt.Errorf("expected at least one victim pod on node %q", name)
			}
			delete(left, name)
		}
		if found = left; len(found) == 0 {
			break
		}
	}
	return found, nil
}

// binder is the extender that binds a pod, nil where the API does.
func (es extenders) binder(p *corev1.Pod) *Extender {
	for _, e := range es {
		if e.c.BindVerb != "" && e.interested(p) {
			return e
		}
	}
	return nil
}
