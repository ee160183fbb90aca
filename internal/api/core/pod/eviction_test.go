package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

func TestEviction(t *testing.T) {
	ok := func() *policyv1.Eviction { return &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "web"}} }
	running := func(p *corev1.Pod) { p.Spec.NodeName, p.Status.Phase = "n1", corev1.PodRunning }
	for _, c := range []struct {
		name string
		set  func(*policyv1.Eviction)
		o    metav1.CreateOptions
		want string
		code int32
	}{
		{name: "evicted"},
		{name: "name", set: func(e *policyv1.Eviction) { e.Name = "x" }, want: "name in URL does not match name in Eviction object", code: 400},
		{name: "another pod", set: func(e *policyv1.Eviction) {
			e.DeleteOptions = metav1.NewPreconditionDeleteOptions("u2")
		}, code: 409, want: `Operation cannot be fulfilled on Pod "web": the UID in the precondition (u2) does not match the UID in record (u1). The object might have been deleted and then recreated`},
		{name: "dry run twice", set: func(e *policyv1.Eviction) { e.DeleteOptions = &metav1.DeleteOptions{DryRun: []string{"x"}} },
			o: metav1.CreateOptions{DryRun: []string{"All"}}, code: 500, want: "Non-matching dry-run options in request and content: [All] and [x]"},
		{name: "broken store", set: func(e *policyv1.Eviction) {
			e.DeleteOptions = &metav1.DeleteOptions{IgnoreStoreReadErrorWithClusterBreakingPotential: new(true)}
		}, code: 422, want: `Eviction.policy "web" is invalid: deleteOptions.ignoreStoreReadErrorWithClusterBreakingPotential: Invalid value: true: can not be set for pod eviction, try after removing the option`},
	} {
		t.Run(c.name, func(t *testing.T) {
			ops, e := &onePod{stored(running)}, ok()
			if c.set != nil {
				c.set(e)
			}
			env := testEnv()
			env.Client = client.New(clienttest.New(ops.pod.DeepCopy()), "test")
			_, err := evict(t.Context(), env, ops, "default", "web", e, c.o)
			pods := client.For[*corev1.Pod](env.Client).In("default")
			left, gone := pods.Get(t.Context(), "web")
			deleted := apierrors.IsNotFound(gone) || gone == nil && left.DeletionTimestamp != nil
			if c.want != "" {
				status, ok := err.(apierrors.APIStatus)
				if !ok || status.Status().Code != c.code || err.Error() != c.want {
					t.Errorf("got %v, want %d %s", err, c.code, c.want)
				}
				if deleted {
					t.Error("the pod was deleted all the same")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, cond := condition(&ops.pod.Status, corev1.DisruptionTarget); cond == nil || cond.Reason != "EvictionByEvictionAPI" || cond.Message != "Eviction API: evicting" {
				t.Errorf("condition is %+v", cond)
			}
			if !deleted {
				t.Errorf("the pod was not deleted: %+v, %v", left, gone)
			}
		})
	}
}
