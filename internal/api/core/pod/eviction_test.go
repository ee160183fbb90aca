package pod

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
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

// TestDisruptionBudgets: what a pod's budget says about evicting it.
func TestDisruptionBudgets(t *testing.T) {
	ready := func(p *corev1.Pod) {
		p.Spec.NodeName, p.Status.Phase = "n1", corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	running := func(p *corev1.Pod) { p.Spec.NodeName, p.Status.Phase = "n1", corev1.PodRunning }
	denied := func(reason string) []metav1.Condition {
		return []metav1.Condition{{Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: reason, Message: "why"}}
	}
	const needs = "The disruption budget b needs 2 healthy pods and has 1 currently"
	for _, c := range []struct {
		name      string
		pod       func(*corev1.Pod)
		budget    policyv1.PodDisruptionBudget
		two       bool
		dry       bool
		code      int32
		cause     string
		retry     int32
		left      int32
		disrupted bool
	}{
		{name: "allowed", pod: ready, budget: budget(policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1}), disrupted: true},
		{name: "dry run", pod: ready, budget: budget(policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1}), dry: true, left: 1},
		{name: "needs", pod: ready, budget: budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 2}), code: 429, cause: needs},
		{name: "dry run needs", pod: ready, dry: true, budget: budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 2}), code: 429, cause: needs},
		{name: "sync failed", pod: ready, budget: budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 2, Conditions: denied(policyv1.SyncFailedReason)}), code: 429,
			cause: "The disruption budget b does not allow evicting pods currently because it failed sync: why"},
		{name: "explained", pod: ready, budget: budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 3, DesiredHealthy: 2, Conditions: denied("R")}), code: 429,
			cause: "The disruption budget b does not allow evicting pods currently (R): why"},
		{name: "unexplained", pod: ready, budget: budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 3, DesiredHealthy: 2}), code: 429,
			cause: "The disruption budget b does not allow evicting pods currently"},
		{name: "not seen", pod: ready, budget: budget(policyv1.PodDisruptionBudgetStatus{ObservedGeneration: -1, DisruptionsAllowed: 1}), code: 429, retry: 10, left: 1,
			cause: "The disruption budget b is still being processed by the server."},
		{name: "negative", pod: ready, budget: budget(policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: -1}), code: 403, left: -1,
			cause: "The disruption budget b does not allow evicting pods currently: pdb disruptions allowed is negative"},
		{name: "not ready", pod: running, budget: budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 2}), code: 429, cause: needs},
		{name: "not ready, others are", pod: running, budget: budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 2, DesiredHealthy: 2})},
		{name: "always", pod: running, budget: func() policyv1.PodDisruptionBudget {
			b := budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 2})
			b.Spec.UnhealthyPodEvictionPolicy = new(policyv1.AlwaysAllow)
			return b
		}()},
		{name: "ended", pod: func(p *corev1.Pod) { ready(p); p.Status.Phase = corev1.PodFailed }, budget: budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 2})},
		{name: "two", pod: ready, two: true, budget: budget(policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1}), code: 500, left: 1},
		{name: "another's", pod: ready, budget: func() policyv1.PodDisruptionBudget {
			b := budget(policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 1, DesiredHealthy: 2})
			b.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"no": "one"}}
			return b
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := clienttest.New(stored(c.pod), &c.budget)
			if c.two {
				second := c.budget.DeepCopy()
				second.Name = "b2"
				api.Put(second)
			}
			env := testEnv()
			env.Client = client.New(api, "test")
			ops := clientOps{env.Client}
			e := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "web"}}
			var o metav1.CreateOptions
			if c.dry {
				o.DryRun = []string{metav1.DryRunAll}
			}
			_, err := evict(t.Context(), env, ops, "default", "web", e, o)
			b, gerr := client.For[*policyv1.PodDisruptionBudget](env.Client).In("default").Get(t.Context(), "b")
			if gerr != nil {
				t.Fatal(gerr)
			}
			if _, ok := b.Status.DisruptedPods["web"]; ok != c.disrupted || b.Status.DisruptionsAllowed != c.left {
				t.Errorf("the budget became %+v", b.Status)
			}
			if c.code == 0 {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			status, ok := err.(apierrors.APIStatus)
			if !ok || status.Status().Code != c.code {
				t.Fatalf("got %v, want %d", err, c.code)
			}
			if d := status.Status().Details; c.cause != "" && (len(d.Causes) != 1 || d.Causes[0].Type != policyv1.DisruptionBudgetCause || d.Causes[0].Message != c.cause || d.RetryAfterSeconds != c.retry) {
				t.Errorf("details %+v, want %q", d, c.cause)
			}
		})
	}
}

func budget(s policyv1.PodDisruptionBudgetStatus) policyv1.PodDisruptionBudget {
	return policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "default"}, Status: s,
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{}}}
}

// clientOps are the writes of a door by way of a client.
type clientOps struct{ *client.Client }

func (o clientOps) Get(ctx context.Context, ns, name string) (resource.Object, error) {
	return client.For[*corev1.Pod](o.Client).In(ns).Get(ctx, name)
}

func (o clientOps) Mutate(ctx context.Context, ns, name string, _ bool, change func(resource.Object) error) (resource.Object, error) {
	pod, err := client.For[*corev1.Pod](o.Client).In(ns).Get(ctx, name)
	if err != nil {
		return nil, err
	}
	pod = pod.DeepCopy()
	if err := change(pod); err != nil {
		return nil, err
	}
	return client.For[*corev1.Pod](o.Client).In(ns).UpdateStatus(ctx, pod)
}

// TestBudgetConflict: an eviction that another one overtook looks at the budget
// again.
func TestBudgetConflict(t *testing.T) {
	ops := &onePod{stored(func(p *corev1.Pod) { p.Spec.NodeName, p.Status.Phase = "n1", corev1.PodRunning })}
	b := budget(policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1})
	api := clienttest.New(ops.pod.DeepCopy(), &b)
	overtaken := 0
	api.Intercept = func(verb string, ref client.Ref, obj client.Object) error {
		if verb != "update" || ref.GVR.Resource != "poddisruptionbudgets" || overtaken > 0 {
			return nil
		}
		overtaken++
		return apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, nil)
	}
	env := testEnv()
	env.Client = client.New(api, "test")
	_, err := evict(t.Context(), env, ops, "default", "web", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "web"}}, metav1.CreateOptions{})
	after, gerr := client.For[*policyv1.PodDisruptionBudget](env.Client).In("default").Get(t.Context(), "b")
	if err != nil || gerr != nil || overtaken != 1 || after.Status.DisruptionsAllowed != 0 {
		t.Errorf("%v, %v; overtaken %d times, left %d", err, gerr, overtaken, after.Status.DisruptionsAllowed)
	}
}
