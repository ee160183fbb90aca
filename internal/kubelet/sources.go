package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/kubelet/certificates"
)

// SourcesDeps is what Sources need. Events and Log may be nil.
type SourcesDeps struct {
	Client   *client.Client
	Now      func() time.Time
	NodeName string
	Events   Events
	Log      *slog.Logger
}

// Sources give volumes and environments their content: it is what package volume
// asks for, over the API. Reads are linearizable.
type Sources struct {
	d            SourcesDeps
	certificates *certificates.Set
	used         *usedVolumes
	// changed is called when a pod's certificate has changed. A kubelet sets it
	// before it runs.
	changed func(pod types.UID)

	mu     sync.Mutex
	tokens map[tokenKey]token
}

type tokenKey struct {
	pod      types.UID
	account  string
	audience string
	seconds  int64
}

type token struct {
	value        string
	from, expire time.Time
}

// NewSources returns the sources of a node's pods.
func NewSources(d SourcesDeps) *Sources {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Events == nil {
		d.Events = noEvents{}
	}
	s := &Sources{d: d, used: newUsedVolumes(), tokens: map[tokenKey]token{}, changed: func(types.UID) {}}
	s.certificates = certificates.New(certificates.Deps{
		Client: d.Client, NodeName: d.NodeName, Now: d.Now, Log: d.Log,
		Warn: func(pod *corev1.Pod, reason, message string) {
			d.Events.Event(podRef(pod), corev1.EventTypeWarning, reason, message)
		},
		Changed: func(pod types.UID) { s.changed(pod) },
	})
	return s
}

// ConfigMap reads a config map.
func (s *Sources) ConfigMap(ctx context.Context, ns, name string) (*corev1.ConfigMap, error) {
	cm, err := client.For[*corev1.ConfigMap](s.d.Client).In(ns).Get(ctx, name)
	if apierrors.IsNotFound(err) {
		// As upstream's kubelet names it: events show this.
		err = apierrors.NewNotFound(corev1.Resource("configmap"), name)
	}
	return cm, err
}

// Secret reads a secret.
func (s *Sources) Secret(ctx context.Context, ns, name string) (*corev1.Secret, error) {
	sec, err := client.For[*corev1.Secret](s.d.Client).In(ns).Get(ctx, name)
	if apierrors.IsNotFound(err) {
		err = apierrors.NewNotFound(corev1.Resource("secret"), name)
	}
	return sec, err
}

// Token returns a token of the pod's service account that is bound to the pod,
// and when it should be asked for again: past 80 % of its life, or after a day.
func (s *Sources) Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, time.Time, error) {
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	key := tokenKey{pod.UID, account, audience, seconds}
	now := s.d.Now()
	s.mu.Lock()
	t, ok := s.tokens[key]
	s.mu.Unlock()
	if ok && now.Before(t.refresh()) {
		return t.value, t.refresh(), nil
	}
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		req.Spec.Audiences = []string{audience}
	}
	out, err := client.For[*corev1.ServiceAccount](s.d.Client).In(pod.Namespace).CreateSub(ctx, account, "token", req)
	if err != nil {
		if ok && now.Before(t.expire) {
			return t.value, now.Add(time.Minute), nil
		}
		return "", time.Time{}, fmt.Errorf("failed to fetch token: %w", err)
	}
	r, err := tokenAnswer(out)
	if err != nil {
		return "", time.Time{}, err
	}
	t = token{r.Status.Token, now, r.Status.ExpirationTimestamp.Time}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.tokens, func(_ tokenKey, t token) bool { return now.After(t.expire) })
	s.tokens[key] = t
	return t.value, t.refresh(), nil
}

func (t token) refresh() time.Time {
	at := t.from.Add(t.expire.Sub(t.from) * 8 / 10)
	if day := t.from.Add(24 * time.Hour); day.Before(at) {
		at = day
	}
	return at
}

// TrustBundles reads the bundles that a projected volume asks for.
func (s *Sources) TrustBundles(ctx context.Context, p *corev1.ClusterTrustBundleProjection) ([]string, error) {
	bundles := client.For[*certificatesv1.ClusterTrustBundle](s.d.Client)
	if p.Name != nil {
		b, err := bundles.Get(ctx, *p.Name)
		if err != nil {
			return nil, err
		}
		return []string{b.Spec.TrustBundle}, nil
	}
	// No selector selects nothing, an empty one everything.
	selector, err := metav1.LabelSelectorAsSelector(p.LabelSelector)
	if err != nil {
		return nil, fmt.Errorf("while parsing label selector: %w", err)
	}
	all, _, err := bundles.List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return nil, fmt.Errorf("while listing ClusterTrustBundles matching label selector %v: %w", p.LabelSelector, err)
	}
	var out []string
	for _, b := range all {
		if b.Spec.SignerName == *p.SignerName && selector.Matches(k8slabels.Set(b.Labels)) {
			out = append(out, b.Spec.TrustBundle)
		}
	}
	return out, nil
}

// Certificate returns the certificate of a source of a projected volume, and asks its
// signer for it where that is due.
func (s *Sources) Certificate(ctx context.Context, pod *corev1.Pod, p *corev1.PodCertificateProjection, volume string, source int,
	held func() (key, chain []byte)) (key, chain []byte, refresh time.Time, err error) {
	return s.certificates.Get(ctx, pod, p, volume, source, held)
}

// Field resolves a fieldRef of the downward API.
func (s *Sources) Field(_ context.Context, pod *corev1.Pod, f *corev1.ObjectFieldSelector) (string, error) {
	if path, key, ok := subscript(f.FieldPath); ok {
		switch path {
		case "metadata.annotations":
			return pod.Annotations[key], nil
		case "metadata.labels":
			return pod.Labels[key], nil
		}
		return "", fmt.Errorf("fieldPath %q does not support subscript", path)
	}
	switch f.FieldPath {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return pod.Status.HostIP, nil
	case "status.hostIPs":
		var ips []string
		for _, ip := range pod.Status.HostIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	case "status.podIP":
		return pod.Status.PodIP, nil
	case "status.podIPs":
		var ips []string
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", f.FieldPath)
}

// subscript splits metadata.labels['key'].
func subscript(path string) (string, string, bool) {
	if !strings.HasSuffix(path, "']") {
		return "", "", false
	}
	i := strings.Index(path, "['")
	if i <= 0 {
		return "", "", false
	}
	return path[:i], path[i+2 : len(path)-2], true
}

func formatMap(m map[string]string) string {
	keys := slices.Sorted(maps.Keys(m))
	var b strings.Builder
	for i, k := range keys {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%v=%q", k, m[k])
	}
	return b.String()
}

// Resource resolves a resourceFieldRef of the downward API. Where no limit is set
// it is the node's allocatable amount.
func (s *Sources) Resource(ctx context.Context, pod *corev1.Pod, name string, f *corev1.ResourceFieldSelector) (string, error) {
	c := findContainer(pod, name)
	if c == nil {
		return "", fmt.Errorf("container %s not found", name)
	}
	kind, res, ok := strings.Cut(f.Resource, ".")
	if !ok || kind != "limits" && kind != "requests" {
		return "", fmt.Errorf("unsupported container resource : %v", f.Resource)
	}
	list := c.Resources.Requests
	if kind == "limits" {
		list = c.Resources.Limits
	}
	q, set := list[corev1.ResourceName(res)]
	if !set && kind == "limits" || set && q.IsZero() && kind == "limits" {
		if pr := pod.Spec.Resources; pr != nil && !set {
			q, set = pr.Limits[corev1.ResourceName(res)]
		}
		if !set || q.IsZero() {
			switch corev1.ResourceName(res) {
			case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
				node, err := client.For[*corev1.Node](s.d.Client).Get(ctx, s.d.NodeName)
				if err != nil && !apierrors.IsNotFound(err) {
					return "", fmt.Errorf("failed to find node object, expected a node: %w", err)
				}
				if err == nil {
					q = node.Status.Allocatable[corev1.ResourceName(res)]
				}
			}
		}
	}
	divisor := f.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if corev1.ResourceName(res) == corev1.ResourceCPU {
		return strconv.FormatInt(int64(math.Ceil(float64(q.MilliValue())/float64(divisor.MilliValue()))), 10), nil
	}
	return strconv.FormatInt(int64(math.Ceil(float64(q.Value())/float64(divisor.Value()))), 10), nil
}

func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return &pod.Spec.InitContainers[i]
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		}
	}
	return nil
}

func tokenAnswer(o client.Object) (*authenticationv1.TokenRequest, error) {
	switch t := any(o).(type) {
	case *authenticationv1.TokenRequest:
		return t, nil
	}
	return nil, fmt.Errorf("answer to a token request is a %T", o)
}

// objectRef names an object that a pod refers to.
type objectRef struct {
	kind, ns, name string
}

// podRefs are the config maps and secrets that a pod's volumes and environment
// refer to.
func podRefs(pod *corev1.Pod) []objectRef {
	set := map[objectRef]bool{}
	add := func(kind, name string) {
		if name != "" {
			set[objectRef{kind, pod.Namespace, name}] = true
		}
	}
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.ConfigMap != nil:
			add("ConfigMap", v.ConfigMap.Name)
		case v.Secret != nil:
			add("Secret", v.Secret.SecretName)
		case v.Projected != nil:
			for _, p := range v.Projected.Sources {
				if p.ConfigMap != nil {
					add("ConfigMap", p.ConfigMap.Name)
				}
				if p.Secret != nil {
					add("Secret", p.Secret.Name)
				}
				if b := p.ClusterTrustBundle; b != nil && b.Name != nil {
					set[objectRef{kind: "ClusterTrustBundle", name: *b.Name}] = true
				} else if b != nil {
					set[objectRef{kind: "ClusterTrustBundle"}] = true // whichever will match
				}
			}
		}
	}
	each := func(c *corev1.Container) {
		for _, f := range c.EnvFrom {
			if f.ConfigMapRef != nil {
				add("ConfigMap", f.ConfigMapRef.Name)
			}
			if f.SecretRef != nil {
				add("Secret", f.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
				add("ConfigMap", r.Name)
			}
			if r := e.ValueFrom.SecretKeyRef; r != nil {
				add("Secret", r.Name)
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		each(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		each(&pod.Spec.Containers[i])
	}
	out := slices.Collect(maps.Keys(set))
	sort.Slice(out, func(i, j int) bool { return fmt.Sprint(out[i]) < fmt.Sprint(out[j]) })
	return out
}

// pullSecrets reads the pod's image pull secrets; missing ones are named.
func (s *Sources) pullSecrets(ctx context.Context, pod *corev1.Pod) (found []*corev1.Secret, missing []string) {
	for _, r := range pod.Spec.ImagePullSecrets {
		if r.Name == "" {
			continue
		}
		sec, err := s.Secret(ctx, pod.Namespace, r.Name)
		if err != nil {
			missing = append(missing, r.Name)
			continue
		}
		found = append(found, sec)
	}
	return found, missing
}
