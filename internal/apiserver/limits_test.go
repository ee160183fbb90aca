package apiserver_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

func amount(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = apiresource.MustParse(pairs[i+1])
	}
	return out
}

// quota makes a quota as its controller would have counted it.
func (s *secured) quota(q *corev1.ResourceQuota, used corev1.ResourceList) {
	s.t.Helper()
	quotas := client.For[*corev1.ResourceQuota](s.client).In("default")
	q.Namespace = "default"
	q = must(quotas.Create(s.t.Context(), q))(s.t).DeepCopy()
	q.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard, Used: used}
	must(quotas.UpdateStatus(s.t.Context(), q))(s.t)
	seen(s.t, s.client, "default", q.Name, func(q *corev1.ResourceQuota) bool { return len(q.Status.Hard) > 0 })
}

// seen waits until the cache has an object as is wanted.
func seen[T client.Object](t *testing.T, c *client.Client, ns, name string, ok func(T) bool) {
	t.Helper()
	w, err := client.For[T](c).In(ns).Watch(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		t.Fatal(err)
	}
	for e := range w.Events() {
		if o, is := e.Object.(T); is && o.GetName() == name && ok(o) {
			return
		}
	}
	t.Fatalf("the watch for %s ended", name)
}

func (s *secured) config(name string) error {
	_, err := client.For[*corev1.ConfigMap](s.client).In("default").Create(s.t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}})
	return err
}

// TestQuota: what is counted is exact, however many ask at once.
func TestQuota(t *testing.T) {
	s := secure(t)
	const limit, tries = 7, 40
	s.quota(&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: amount("configmaps", fmt.Sprint(limit))}}, amount("configmaps", "0"))
	var made atomic.Int32
	var wg sync.WaitGroup
	for i := range tries {
		wg.Go(func() {
			err := s.config(fmt.Sprint("c", i))
			switch {
			case err == nil:
				made.Add(1)
			case !strings.Contains(err.Error(), "exceeded quota: q, requested: configmaps=1, used: configmaps=7, limited: configmaps=7"):
				t.Errorf("refused for another reason: %v", err)
			}
		})
	}
	wg.Wait()
	q := must(client.For[*corev1.ResourceQuota](s.client).In("default").Get(t.Context(), "q"))(t)
	used := q.Status.Used["configmaps"]
	if made.Load() != limit || used.Value() != limit {
		t.Errorf("%d were made, %s are counted, of %d", made.Load(), used.String(), limit)
	}
}

func TestQuotaRefusals(t *testing.T) {
	s := secure(t)
	s.quota(&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: amount("requests.cpu", "1", "count/configmaps", "1")}},
		amount("requests.cpu", "500m"))
	if err := s.config("c"); err == nil || err.Error() != `configmaps "c" is forbidden: status unknown for quota: q, resources: count/configmaps` {
		t.Errorf("uncounted: %v", err)
	}
	pod := func(cpu string) error {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		if cpu != "" {
			p.Spec.Containers[0].Resources.Requests = amount("cpu", cpu)
		}
		_, err := client.For[*corev1.Pod](s.client).In("default").Create(t.Context(), p)
		return err
	}
	if err := pod(""); err == nil || err.Error() != `pods "p" is forbidden: failed quota: q: must specify requests.cpu for: c` {
		t.Errorf("unsaid: %v", err)
	}
	if err := pod("501m"); err == nil || err.Error() != `pods "p" is forbidden: exceeded quota: q, requested: requests.cpu=501m, used: requests.cpu=500m, limited: requests.cpu=1` {
		t.Errorf("too much: %v", err)
	}
	if err := pod("500m"); err != nil {
		t.Errorf("what fits: %v", err)
	}
}

func TestLimitRanges(t *testing.T) {
	s := secure(t)
	must(client.For[*corev1.LimitRange](s.client).In("default").Create(t.Context(), &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "l", Namespace: "default"},
		Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
			{Type: "Container", Default: amount("cpu", "1"), DefaultRequest: amount("cpu", "500m"), Max: amount("cpu", "2"), MaxLimitRequestRatio: amount("cpu", "4")},
			{Type: "Pod", Max: amount("cpu", "3")},
		}}}))(t)
	seen(t, s.client, "default", "l", func(*corev1.LimitRange) bool { return true })
	pod := func(name string, containers ...corev1.Container) (*corev1.Pod, error) {
		for i := range containers {
			containers[i].Name, containers[i].Image = fmt.Sprint("c", i), "i"
		}
		return client.For[*corev1.Pod](s.client).In("default").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: corev1.PodSpec{Containers: containers}})
	}
	limits := func(limits, requests string) corev1.Container {
		return corev1.Container{Resources: corev1.ResourceRequirements{Limits: amount("cpu", limits), Requests: amount("cpu", requests)}}
	}
	p := must(pod("defaults", corev1.Container{}))(t)
	r := p.Spec.Containers[0].Resources
	if r.Requests.Cpu().String() != "500m" || r.Limits.Cpu().String() != "1" || p.Status.QOSClass != corev1.PodQOSBurstable ||
		p.Annotations["kubernetes.io/limit-ranger"] != "LimitRanger plugin set: cpu request for container c0; cpu limit for container c0" {
		t.Errorf("resources %v, class %s, annotations %v", r, p.Status.QOSClass, p.Annotations)
	}
	for want, containers := range map[string][]corev1.Container{
		`maximum cpu usage per Container is 2, but limit is 3`:                                           {limits("3", "2")},
		`cpu max limit to request ratio per Container is 4, but provided ratio is 5.000000`:              {limits("500m", "100m")},
		`cpu max limit to request ratio per Container is 4, but no request is specified or request is 0`: {limits("500m", "0")},
		`maximum cpu usage per Pod is 3, but limit is 4`:                                                 {limits("2", "1"), limits("2", "1")},
	} {
		if _, err := pod("refused", containers...); err == nil || err.Error() != `pods "refused" is forbidden: `+want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestUnreadable: an annotation that stands for a number is one.
func TestUnreadable(t *testing.T) {
	f := start(t)
	for _, c := range []struct{ plural, kind, key, want string }{
		{"daemonsets", "DaemonSet", "deprecated.daemonset.template.generation",
			`DaemonSet in version "v1" cannot be handled as a DaemonSet: strconv.ParseInt: parsing "x": invalid syntax`},
		{"deployments", "Deployment", "deprecated.deployment.rollback.to",
			`Deployment in version "v1" cannot be handled as a Deployment: failed to parse annotation[deprecated.deployment.rollback.to]=x as int64: strconv.ParseInt: parsing "x": invalid syntax`},
	} {
		body := fmt.Sprintf(`{"apiVersion":"apps/v1","kind":%q,"metadata":{"name":"d","annotations":{%q:"x"}}}`, c.kind, c.key)
		if got := f.want(400, "POST", "/apis/apps/v1/namespaces/default/"+c.plural, "application/json", body)["message"]; got != c.want {
			t.Errorf("got %v, want %s", got, c.want)
		}
	}
}
