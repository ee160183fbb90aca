package apiserver_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

func TestRuntimeClassAdmission(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	classes := client.For[*nodev1.RuntimeClass](s.client)
	pods := client.For[*corev1.Pod](s.client).In("default")
	overhead := amount("cpu", "10m", "memory", "1Mi")
	must(classes.Create(ctx, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "costly"}, Handler: "h",
		Overhead: &nodev1.Overhead{PodFixed: overhead},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"a": "b"},
			Tolerations: []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}}}))(t)
	must(classes.Create(ctx, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "plain"}, Handler: "h"}))(t)

	of := func(name, class string) *corev1.Pod {
		p := pod("default", name)
		p.Spec.RuntimeClassName = &class
		return p
	}
	p := of("given", "costly")
	p.Spec.NodeSelector = map[string]string{"c": "d"}
	p.Spec.Tolerations = []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpEqual, Value: "v"}}
	p = must(pods.Create(ctx, p))(t)
	if !apiequality.Semantic.DeepEqual(p.Spec.Overhead, overhead) {
		t.Errorf("overhead %v", p.Spec.Overhead)
	}
	if want := map[string]string{"a": "b", "c": "d"}; !apiequality.Semantic.DeepEqual(p.Spec.NodeSelector, want) {
		t.Errorf("node selector %v, want %v", p.Spec.NodeSelector, want)
	}
	// Those of not-ready and unreachable nodes come besides.
	if l := p.Spec.Tolerations; len(l) != 3 || l[2].Key != "k" || l[2].Operator != corev1.TolerationOpExists {
		t.Errorf("tolerations %v", l)
	}
	if p := must(pods.Create(ctx, of("bare", "plain")))(t); p.Spec.Overhead != nil || p.Spec.NodeSelector != nil {
		t.Errorf("of a class without costs: %+v", p.Spec)
	}
	for _, c := range []struct {
		name, class string
		with        func(*corev1.PodSpec)
		want        string
	}{
		{"none", "none", func(*corev1.PodSpec) {}, `pod rejected: RuntimeClass "none" not found`},
		{"other", "costly", func(p *corev1.PodSpec) { p.Overhead = amount("cpu", "1") }, `pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead`},
		{"free", "plain", func(p *corev1.PodSpec) { p.Overhead = amount("cpu", "1") }, `pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead`},
		{"classless", "", func(p *corev1.PodSpec) { p.RuntimeClassName, p.Overhead = nil, amount("cpu", "1") }, `pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead`},
		{"elsewhere", "costly", func(p *corev1.PodSpec) { p.NodeSelector = map[string]string{"a": "x"} }, `conflict: runtimeClass.scheduling.nodeSelector[a] = b; pod.spec.nodeSelector[a] = x`},
	} {
		p := of(c.name, c.class)
		c.with(&p.Spec)
		_, err := pods.Create(ctx, p)
		wantErr(t, err, `pods "`+c.name+`" is forbidden: `+c.want)
	}
	if err := classes.Delete(ctx, "plain", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := pods.Create(ctx, of("late", "plain"))
	wantErr(t, err, `pods "late" is forbidden: pod rejected: RuntimeClass "plain" not found`)
}

func TestDefaultIngressClass(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	classes := client.For[*networkingv1.IngressClass](s.client)
	ingresses := client.For[*networkingv1.Ingress](s.client).In("default")
	class := func(name string, isDefault string) {
		t.Helper()
		c := &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.IngressClassSpec{Controller: "example.com/c"}}
		if isDefault != "" {
			c.Annotations = map[string]string{networkingv1.AnnotationIsDefaultIngressClass: isDefault}
		}
		must(classes.Create(ctx, c))(t)
	}
	want := func(name, want string, with func(*networkingv1.Ingress)) {
		t.Helper()
		i := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Spec: networkingv1.IngressSpec{Rules: []networkingv1.IngressRule{{Host: "a.example.com"}}}}
		if with != nil {
			with(i)
		}
		got := "<none>"
		if n := must(ingresses.Create(ctx, i))(t).Spec.IngressClassName; n != nil {
			got = *n
		}
		if got != want {
			t.Errorf("%s: class %s, want %s", name, got, want)
		}
	}
	class("ordinary", "")
	class("no-more", "false")
	want("before", "<none>", nil)
	class("usual", "true")
	want("after", "usual", nil)
	want("named", "ordinary", func(i *networkingv1.Ingress) { n := "ordinary"; i.Spec.IngressClassName = &n })
	want("annotated", "<none>", func(i *networkingv1.Ingress) { i.Annotations = map[string]string{"kubernetes.io/ingress.class": "x"} })
}
