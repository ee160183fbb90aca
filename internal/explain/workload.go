package explain

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"

	"skiff/internal/api/explanation"
	"skiff/internal/client"
)

// podsOf are the pods that an object controls.
func (w *World) podsOf(owner metav1.Object) []*corev1.Pod {
	return slices.DeleteFunc(in[*corev1.Pod](w, owner.GetNamespace()), func(p *corev1.Pod) bool { return !ownedBy(p, owner) })
}

// progress is how far a workload is.
type progress struct {
	want, have, updated, ready int32
	pods                       []*corev1.Pod
	kind                       string
	owner                      client.Object
	// makers are who creates the pods: events about refusals are theirs.
	makers []explanation.Reference
}

// explainDeployment says why a deployment does not progress.
func (w *World) explainDeployment(d *appsv1.Deployment) *explanation.Explanation {
	out := begin("Deployment", "apps/v1", d)
	pr := progress{want: ptr.Deref(d.Spec.Replicas, 1), have: d.Status.Replicas, updated: d.Status.UpdatedReplicas, ready: d.Status.AvailableReplicas, kind: "Deployment", owner: d}
	var newest *appsv1.ReplicaSet
	for _, rs := range in[*appsv1.ReplicaSet](w, d.Namespace) {
		if !metav1.IsControlledBy(rs, d) {
			continue
		}
		if newest == nil || revision(rs) > revision(newest) {
			newest = rs
		}
		if ptr.Deref(rs.Spec.Replicas, 0) > 0 {
			pr.makers = append(pr.makers, explanation.Reference{Kind: "ReplicaSet", Name: rs.Name})
		}
		if rs.Status.Replicas > 0 || ptr.Deref(rs.Spec.Replicas, 0) > 0 {
			pr.pods = append(pr.pods, w.podsOf(rs)...)
		}
	}
	if newest != nil {
		// The newest are what the rollout waits for.
		slices.SortStableFunc(pr.pods, func(a, b *corev1.Pod) int { return order(ownedBy(b, newest)) - order(ownedBy(a, newest)) })
	}
	late := false
	for _, c := range d.Status.Conditions {
		late = late || c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded"
	}
	if d.Status.ObservedGeneration < d.Generation {
		out.State, out.Summary = explanation.Waiting, "its last change was not looked at by the controller yet"
		return out
	}
	if d.Spec.Paused && (pr.updated < pr.want || d.Status.Replicas > pr.updated) {
		out.State, out.Summary = explanation.Waiting, fmt.Sprintf("its rollout is paused: %d of %d are of the new template", pr.updated, pr.want)
		cause(out, "DeploymentPaused", "spec.paused is true")
		advise(out, "resume the rollout", nil, fmt.Sprintf("kubectl rollout resume deployment/%s -n %s", d.Name, d.Namespace))
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			w.refused(out, d.Namespace, c.Message)
		}
	}
	w.explainProgress(out, pr)
	if late && out.State != explanation.Fine {
		cause(out, "ProgressDeadlineExceeded", "no progress for %ds (progressDeadlineSeconds)", ptr.Deref(d.Spec.ProgressDeadlineSeconds, 600))
	}
	return out
}

func order(b bool) int {
	if b {
		return 1
	}
	return 0
}

func revision(rs *appsv1.ReplicaSet) string {
	// Of equal length, so that they compare as numbers.
	return fmt.Sprintf("%20s", rs.Annotations["deployment.kubernetes.io/revision"])
}

func (w *World) explainReplicaSet(rs *appsv1.ReplicaSet) *explanation.Explanation {
	out := begin("ReplicaSet", "apps/v1", rs)
	for _, c := range rs.Status.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
			w.refused(out, rs.Namespace, c.Message)
		}
	}
	w.explainProgress(out, progress{
		want: ptr.Deref(rs.Spec.Replicas, 1), have: rs.Status.Replicas, updated: rs.Status.Replicas, ready: rs.Status.AvailableReplicas, pods: w.podsOf(rs),
		kind: "ReplicaSet", owner: rs, makers: []explanation.Reference{{Kind: "ReplicaSet", Name: rs.Name}},
	})
	return out
}

func (w *World) explainStatefulSet(s *appsv1.StatefulSet) *explanation.Explanation {
	out := begin("StatefulSet", "apps/v1", s)
	pods := w.podsOf(s)
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int { return len(a.Name) - len(b.Name) })
	updated := s.Status.UpdatedReplicas
	if s.Status.UpdateRevision == "" || s.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		updated = s.Status.Replicas
	}
	w.explainProgress(out, progress{
		want: ptr.Deref(s.Spec.Replicas, 1), have: s.Status.Replicas, updated: updated, ready: s.Status.ReadyReplicas, pods: pods,
		kind: "StatefulSet", owner: s, makers: []explanation.Reference{{Kind: "StatefulSet", Name: s.Name}},
	})
	if s.Spec.PodManagementPolicy != appsv1.ParallelPodManagement && len(out.Because) > 0 && s.Status.Replicas < ptr.Deref(s.Spec.Replicas, 1) {
		note(out, "Pods are started in order: those after %s wait for it.", out.Because[0].Name)
	}
	return out
}

func (w *World) explainDaemonSet(s *appsv1.DaemonSet) *explanation.Explanation {
	out := begin("DaemonSet", "apps/v1", s)
	st := &s.Status
	updated := st.UpdatedNumberScheduled
	if s.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
		updated = st.CurrentNumberScheduled
	}
	w.explainProgress(out, progress{
		want: st.DesiredNumberScheduled, have: st.CurrentNumberScheduled, updated: updated, ready: st.NumberAvailable, pods: w.podsOf(s),
		kind: "DaemonSet", owner: s, makers: []explanation.Reference{{Kind: "DaemonSet", Name: s.Name}},
	})
	if st.DesiredNumberScheduled == 0 && st.ObservedGeneration >= s.Generation && len(all[*corev1.Node](w)) > 0 {
		out.State, out.Summary = explanation.Failing, "no node is to run it"
		cause(out, "NoNodes", "no node matches its nodeSelector, affinity and tolerations")
	}
	return out
}

// explainProgress says what a workload waits for.
func (w *World) explainProgress(out *explanation.Explanation, pr progress) {
	for _, m := range pr.makers {
		for _, text := range said(w, m.Kind, pr.owner.GetNamespace(), m.Name, "FailedCreate") {
			if pr.have < pr.want || len(out.Causes) > 0 {
				w.refused(out, pr.owner.GetNamespace(), text)
			}
		}
	}
	if pr.ready >= pr.want && pr.updated >= pr.want && pr.have <= pr.want && len(out.Causes) == 0 {
		out.State, out.Summary = explanation.Fine, fmt.Sprintf("all of its %s are available", count(int(pr.want), "pod"))
		if pr.want == 0 {
			out.Summary = "it is to have no pods"
		}
		return
	}
	where := fmt.Sprintf("%d of %d pods are available", pr.ready, pr.want)
	bad, why := w.worst(pr.pods)
	switch {
	case out.Summary != "":
	case len(out.Causes) > 0 && pr.have < pr.want:
		out.State, out.Summary = explanation.Failing, fmt.Sprintf("%s; the API refuses to create more", where)
	case bad != nil:
		out.State = why.State
		if why.State == explanation.Fine {
			out.State = explanation.Waiting
		}
		out.Summary = fmt.Sprintf("%s; pod %s: %s", where, bad.Name, why.Summary)
	case pr.have < pr.want || pr.updated < pr.want:
		out.State, out.Summary = explanation.Waiting, where+": its controller is at work"
	default:
		out.State, out.Summary = explanation.Waiting, where
	}
	if bad != nil && why.State != explanation.Fine {
		same := 0
		for _, p := range pr.pods {
			if p != bad && !podReady(p) && p.DeletionTimestamp == nil && p.Status.Phase == bad.Status.Phase && (p.Spec.NodeName == "") == (bad.Spec.NodeName == "") {
				same++
			}
		}
		if same > 0 {
			note(why, "%s in the same state.", more(same))
		}
		out.Because = append(out.Because, *why)
	}
	w.held(out, pr)
}

func more(n int) string {
	if n == 1 {
		return "1 more pod is"
	}
	return fmt.Sprintf("%d more pods are", n)
}

// held tells of pods of a workload that are to go and may not.
func (w *World) held(out *explanation.Explanation, pr progress) {
	for _, p := range pr.pods {
		node, ok := get[*corev1.Node](w, "", p.Spec.NodeName)
		if !ok || !node.Spec.Unschedulable || p.DeletionTimestamp != nil {
			continue
		}
		for _, b := range in[*policyv1.PodDisruptionBudget](w, p.Namespace) {
			s, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
			if err == nil && s.Matches(labels.Set(p.Labels)) && b.Status.DisruptionsAllowed == 0 && b.Status.ExpectedPods > 0 {
				note(out, "Disruption budget %s allows no pod to be evicted now (%d of %d healthy): a drain of node %s waits.", b.Name, b.Status.CurrentHealthy, b.Status.DesiredHealthy, node.Name)
				return
			}
		}
	}
}

var exceeded = regexp.MustCompile(`exceeded quota: ([^,]+), requested: (.+?), used: (.+?), limited: (.+)$`)

// refused says why the API takes no more pods.
func (w *World) refused(out *explanation.Explanation, ns, message string) {
	message = strings.TrimPrefix(message, "Error creating: ")
	m := exceeded.FindStringSubmatch(message)
	if m == nil {
		at := message
		if i := strings.Index(at, "is forbidden: "); i >= 0 {
			at = at[i+len("is forbidden: "):]
		}
		if !slices.ContainsFunc(out.Causes, func(c explanation.Cause) bool { return c.Message == at }) {
			cause(out, "FailedCreate", "%s", at)
		}
		return
	}
	asked, used, limited := amounts(m[2]), amounts(m[3]), amounts(m[4])
	var parts []string
	for _, name := range sorted(asked) {
		parts = append(parts, fmt.Sprintf("%s of %s %s are used, one more pod takes %s", used[name], limited[name], name, asked[name]))
	}
	text := fmt.Sprintf("quota %s is used up: %s", m[1], strings.Join(parts, "; "))
	if slices.ContainsFunc(out.Causes, func(c explanation.Cause) bool {
		return c.Reason == "QuotaExceeded" && strings.HasPrefix(c.Message, "quota "+m[1]+" ")
	}) {
		return
	}
	cause(out, "QuotaExceeded", "%s", text)
	ref := &explanation.Reference{APIVersion: "v1", Kind: "ResourceQuota", Namespace: ns, Name: m[1]}
	advise(out, fmt.Sprintf("a larger quota %s, or pods that ask for less", m[1]), ref, fmt.Sprintf("kubectl edit resourcequota %s -n %s", m[1], ns))
}

// amounts reads "a=1,b=2".
func amounts(s string) map[string]string {
	out := map[string]string{}
	for part := range strings.SplitSeq(s, ",") {
		if k, v, ok := strings.Cut(part, "="); ok {
			out[k] = v
		}
	}
	return out
}
