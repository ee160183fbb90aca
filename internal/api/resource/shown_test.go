package resource

import (
	"encoding/json"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestShown(t *testing.T) {
	name := "x"
	for _, c := range []struct {
		v    any
		want string
	}{
		{nil, `null`},
		{(*corev1.Taint)(nil), `null`},
		{corev1.PodResourceClaim{Name: "a", ResourceClaimName: &name}, `{"Name":"a","ResourceClaimName":"x","ResourceClaimTemplateName":null}`},
		{[]corev1.PodIP{{IP: "1.2.3.4"}}, `[{"IP":"1.2.3.4"}]`},
		{corev1.ResourceRequirements{Limits: corev1.ResourceList{"memory": apiresource.MustParse("1Gi"), "cpu": apiresource.MustParse("1")}},
			`{"Limits":{"cpu":"1","memory":"1Gi"},"Requests":null,"Claims":null}`},
		// What is embedded stands among the other members; metav1 keeps its names.
		{corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}, Key: "k"}, `{"Name":"c","Key":"k","Optional":null}`},
		{corev1.PersistentVolumeClaimTemplate{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}}.ObjectMeta, `{"labels":{"a":"b"}}`},
		{corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Data: map[string][]byte{"k": []byte("v")}},
			`{"name":"s","Immutable":null,"Data":{"k":"dg=="},"StringData":null,"Type":""}`},
	} {
		got, err := json.Marshal(Shown(c.v))
		if err != nil || string(got) != c.want {
			t.Errorf("%T: %s, %v; want %s", c.v, got, err, c.want)
		}
	}
	err := field.Invalid(field.NewPath("a"), Shown(corev1.PodIP{IP: "x"}), "is bad")
	if want := `a: Invalid value: {"IP":"x"}: is bad`; err.Error() != want {
		t.Errorf("got %s, want %s", err, want)
	}
}

func TestDiff(t *testing.T) {
	list := func(n int, change ...int) []corev1.PodIP {
		var out []corev1.PodIP
		for i := range n {
			out = append(out, corev1.PodIP{IP: fmt.Sprint(i)})
		}
		for _, i := range change {
			out[i].IP = "changed"
		}
		return out
	}
	if d := Diff(list(3), list(3)); d != "" {
		t.Errorf("no change is %q", d)
	}
	if got, want := Diff(list(1), list(1, 0)), "@@ -1,5 +1,5 @@\n [\n  {\n-  \"IP\": \"0\"\n+  \"IP\": \"changed\"\n  }\n ]\n"; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
	// Two changes far from each other are two groups.
	got := Diff(list(9), list(9, 1, 7))
	want := "@@ -3,7 +3,7 @@\n   \"IP\": \"0\"\n  },\n  {\n-  \"IP\": \"1\"\n+  \"IP\": \"changed\"\n  },\n  {\n   \"IP\": \"2\"\n" +
		"@@ -21,7 +21,7 @@\n   \"IP\": \"6\"\n  },\n  {\n-  \"IP\": \"7\"\n+  \"IP\": \"changed\"\n  },\n  {\n   \"IP\": \"8\"\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// A line that is gone, and one that came.
	if got, want := Diff([]corev1.PodIP{}, list(1)), "@@ -1 +1,5 @@\n-[]\n+[\n+ {\n+  \"IP\": \"0\"\n+ }\n+]\n"; got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestFinalizers(t *testing.T) {
	obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", Finalizers: []string{"foregroundDeletion", "example.com/x", "mine"}}}
	errs := ValidateMeta(obj, true, DNSSubdomain)
	const want = `metadata.finalizers[2]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified`
	if len(errs) != 1 || errs[0].Error() != want {
		t.Errorf("got %v", errs)
	}
}
