package framework

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func classPod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"a": "b", "c": "d"},
			Tolerations:  []corev1.Toleration{{Key: "k", Operator: "Equal", Value: "v"}},
			Containers: []corev1.Container{{Name: "c", Image: "app", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("1"), "memory": resource.MustParse("1Gi")},
			}}},
		},
	}
	change(p)
	return p
}

func TestClasses(t *testing.T) {
	classes := NewClasses()
	base := classes.Pod(classPod(func(*corev1.Pod) {})).Class
	five, always := int64(5), corev1.ContainerRestartPolicyAlways
	for _, tt := range []struct {
		name   string
		same   bool
		change func(*corev1.Pod)
	}{
		{"another name and label", true, func(p *corev1.Pod) { p.Name = "q"; p.Labels = map[string]string{"x": "y"} }},
		{"the same amount, written otherwise", true, func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests["cpu"] = resource.MustParse("1000m") }},
		{"how long a taint is tolerated", true, func(p *corev1.Pod) { p.Spec.Tolerations[0].TolerationSeconds = &five }},
		{"a container port without a host port", true, func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80}} }},
		{"another amount", false, func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests["cpu"] = resource.MustParse("1001m") }},
		{"another selector", false, func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"a": "bc", "": "d"} }},
		{"another toleration", false, func(p *corev1.Pod) { p.Spec.Tolerations[0].Value = "w" }},
		{"no toleration", false, func(p *corev1.Pod) { p.Spec.Tolerations = nil }},
		{"a host port", false, func(p *corev1.Pod) { p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80}} }},
		{"another priority", false, func(p *corev1.Pod) { n := int32(1); p.Spec.Priority = &n }},
		{"overhead", false, func(p *corev1.Pod) { p.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse("1")} }},
		{"an init container", false, func(p *corev1.Pod) { p.Spec.InitContainers = p.Spec.Containers }},
		{"another image", false, func(p *corev1.Pod) { p.Spec.Containers[0].Image = "other" }},
		{"affinity", false, func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 1}}}}
		}},
		{"a sidecar instead", false, func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{p.Spec.Containers[0]}
			p.Spec.InitContainers[0].RestartPolicy = &always
		}},
		// A key of the length that stands for another field's mark must not
		// pass for that field.
		{"a long key", false, func(p *corev1.Pod) { p.Spec.Tolerations[0].Key = strings.Repeat("o", 'o') }},
	} {
		if got := classes.Pod(classPod(tt.change)).Class == base; got != tt.same {
			t.Errorf("%s: one class %t, want %t", tt.name, got, tt.same)
		}
	}
}

// A claim is not an image, though both are written by name: pods that differ in one
// are of two classes.
func TestClassesOfVolumes(t *testing.T) {
	classes := NewClasses()
	image := func(ref string) corev1.Volume {
		return corev1.Volume{VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: ref}}}
	}
	claim := func(name string) corev1.Volume {
		return corev1.Volume{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}
	}
	in := func(ns string, vs ...corev1.Volume) *Class {
		return classes.Pod(classPod(func(p *corev1.Pod) { p.Namespace, p.Spec.Volumes = ns, vs })).Class
	}
	if in("ns", claim("data")) != in("ns", claim("data")) {
		t.Error("pods of one claim are of two classes")
	}
	for what, other := range map[string]*Class{
		"another claim": in("ns", claim("logs")), "another namespace": in("other", claim("data")),
		"two images": in("ns", image("ns"), image("data")), "none": in("ns"),
	} {
		if in("ns", claim("data")) == other {
			t.Errorf("%s: one class", what)
		}
	}
}

// The set of classes is bounded, and keeps those in use.
func TestClassesBounded(t *testing.T) {
	classes := NewClasses()
	kept := classes.Pod(classPod(func(*corev1.Pod) {})).Class
	for i := range 2 * maxClasses {
		classes.Pod(classPod(func(p *corev1.Pod) { p.Spec.Containers[0].Image = fmt.Sprint(i) }))
		if classes.Pod(classPod(func(*corev1.Pod) {})).Class != kept {
			t.Fatalf("after %d others the class in use was forgotten", i)
		}
	}
	if n := len(classes.byKey); n > maxClasses {
		t.Errorf("%d classes are kept", n)
	}
}

func TestHeldToANode(t *testing.T) {
	classes := NewClasses()
	p := classPod(func(p *corev1.Pod) { p.Spec.NodeName = "n" })
	if classes.Pod(p).Class.NodeName != "" || classes.Held(p).Class.NodeName != "n" {
		t.Error("only Held keeps a pod to its node")
	}
}
