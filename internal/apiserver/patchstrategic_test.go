package apiserver

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// A patch of parts comes to what one of the whole object comes to.
func TestMergeParts(t *testing.T) {
	meta := metav1.ObjectMeta{
		Name: "a", Namespace: "ns", UID: "u", ResourceVersion: "5", Labels: map[string]string{"a": "b"}, Finalizers: []string{"x/y", "z/w"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "o", UID: "1"}},
		ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "m", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:status":{"f:phase":{}}}`)}},
	}
	pod := &corev1.Pod{
		ObjectMeta: meta,
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i"}}, Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionFalse},
		}},
	}
	deployment := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: pod.Spec}}}
	config := &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"a": "b"}}
	event := &corev1.Event{ObjectMeta: meta, FirstTimestamp: metav1.NewTime(time.Unix(1e9, 0)), Count: 1, Source: corev1.EventSource{Component: "c"}}
	for _, c := range []struct {
		of    Object
		patch string
		parts bool // can be merged by parts
	}{
		{pod, `{}`, true},
		{pod, `{"metadata":{"uid":"u"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}],"podIPs":[{"ip":"10.0.0.1"}]}}`, true},
		{pod, `{"status":{"$setElementOrder/conditions":[{"type":"Ready"},{"type":"PodScheduled"}],"conditions":[{"type":"Ready","$patch":"delete"}]}}`, true},
		{pod, `{"status":null}`, true},
		{pod, `{"status":{"$patch":"replace","phase":"Failed"}}`, true},
		{pod, `{"metadata":{"labels":{"a":null,"c":"d"},"annotations":{"e":"f"}}}`, true},
		{pod, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["x/y"]}}`, true},
		{pod, `{"metadata":{"ownerReferences":[{"$patch":"delete","uid":"1"}]},"spec":{"containers":[{"name":"c","image":"j"},{"name":"d"}],"volumes":null}}`, true},
		{pod, `{"metadata":{"resourceVersion":"6","name":"b"}}`, true},
		{pod, `{"metadata":{"managedFields":null}}`, false},
		{pod, `{"metadata":{"$patch":"replace","name":"a"}}`, false},
		{pod, `{"metadata":null}`, false},
		{pod, `{"$patch":"replace","status":{"phase":"Failed"}}`, false},
		{pod, `{"kind":"Pod","status":{"phase":"Failed"}}`, false},
		{pod, `{"status":{"phase":1}}`, false},
		{pod, `{"status":{"nothing":1}}`, false},
		{pod, `{"status":"x"}`, false},
		{pod, `{"nothing":{}}`, false},
		{deployment, `{"spec":{"replicas":3,"template":{"spec":{"containers":[{"name":"c","env":[{"name":"A","value":"b"}]}]}}}}`, true},
		{config, `{"metadata":{"labels":{"x":"y"}}}`, true},
		{config, `{"data":{"x":"y"}}`, false},
		{event, `{"source":{"host":"h"}}`, true},
		{event, `{"count":2,"lastTimestamp":"2026-01-01T00:00:00Z"}`, false},
		{event, `{"firstTimestamp":"2026-01-01T00:00:00Z"}`, false},
	} {
		before, _ := json.Marshal(c.of)
		parse := func() map[string]any {
			var p map[string]any
			if err := json.Unmarshal([]byte(c.patch), &p); err != nil {
				t.Fatal(err)
			}
			return p
		}
		fresh := func() Object { return c.of.DeepCopyObject().(Object) }
		got := mergeParts(c.of, parse(), fresh())
		if (got != nil) != c.parts {
			t.Errorf("%s on %T: by parts: %t", c.patch, c.of, got != nil)
			continue
		}
		if after, _ := json.Marshal(c.of); string(after) != string(before) {
			t.Errorf("%s on %T: changed what it was applied to", c.patch, c.of)
		}
		if got == nil {
			continue
		}
		u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(c.of)
		if err != nil {
			t.Fatal(err)
		}
		merged, err := strategicpatch.StrategicMergeMapPatch(u, parse(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		want := reflect.New(reflect.TypeOf(c.of).Elem()).Interface().(Object)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(merged, want); err != nil {
			t.Fatal(err)
		}
		if !apiequality.Semantic.DeepEqual(got, want) {
			t.Errorf("%s on %T:\n%+v\ninstead of\n%+v", c.patch, c.of, got, want)
		}
	}
}
