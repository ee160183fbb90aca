package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/testcluster"
)

// calm ends all faults and takes away what keeps the cluster from reaching what is
// asked for: then it must.
func (w *world) calm() {
	w.hist.op("calm")
	w.faults.Set(testcluster.Rates{})
	names := w.fleet.Names()
	for range 6 - len(names) {
		w.addNode()
	}
	w.sleep(10 * time.Second)
	names = w.fleet.Names()
	for i, name := range names {
		w.fleet.Silence(name, false)
		w.fleet.Slow(name, 1)
		edit(w, "", name, func(n *corev1.Node) {
			n.Spec.Unschedulable = false
			setTaint(n, nil)
			// Every domain of every constraint has room.
			n.Labels[corev1.LabelTopologyZone], n.Labels["disk"] = zones[i%len(zones)], "ssd"
		})
		// A kubelet may be writing its own.
		big := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("110")}
		for range 20 {
			if w.fleet.Resize(w.ctx, name, big) == nil || !w.sleep(time.Second) {
				break
			}
		}
	}
	for _, ns := range spaces {
		if _, ok := get[*corev1.ResourceQuota](w, ns, "quota"); ok {
			remove[*corev1.ResourceQuota](w, ns, "quota", metav1.DeletePropagationBackground)
		}
		for _, c := range list[*batchv1.CronJob](w, ns) {
			edit(w, ns, c.Name, func(c *batchv1.CronJob) { c.Spec.Suspend = ptr.To(true) })
		}
		for _, p := range w.pods(ns) {
			if owner(p) == "" && p.Labels["app"] == "released" {
				remove[*corev1.Pod](w, ns, p.Name, metav1.DeletePropagationBackground)
			}
		}
		// What has one pod a node at most has room for an update.
		for _, d := range list[*appsv1.Deployment](w, ns) {
			edit(w, ns, d.Name, func(d *appsv1.Deployment) {
				d.Spec.Paused = false
				easy(&d.Spec.Template)
				d.Spec.Replicas = ptr.To(min(*d.Spec.Replicas, narrow(&d.Spec.Template)))
			})
		}
		for _, s := range list[*appsv1.StatefulSet](w, ns) {
			edit(w, ns, s.Name, func(s *appsv1.StatefulSet) {
				easy(&s.Spec.Template)
				s.Spec.Replicas = ptr.To(min(*s.Spec.Replicas, narrow(&s.Spec.Template)))
				s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: ptr.To(int32(0))}}
			})
			// In order, a pod of an old template that never becomes ready stays: it
			// must be deleted by hand (upstream's known limit).
			for _, p := range w.pods(ns) {
				if owner(p) == s.UID && !ready(p) {
					remove[*corev1.Pod](w, ns, p.Name, metav1.DeletePropagationBackground)
				}
			}
		}
		for _, d := range list[*appsv1.DaemonSet](w, ns) {
			edit(w, ns, d.Name, func(d *appsv1.DaemonSet) { easy(&d.Spec.Template) })
		}
		for _, r := range list[*appsv1.ReplicaSet](w, ns) {
			if owner(r) == "" {
				edit(w, ns, r.Name, func(r *appsv1.ReplicaSet) {
					easy(&r.Spec.Template)
					r.Spec.Replicas = ptr.To(min(*r.Spec.Replicas, narrow(&r.Spec.Template)))
				})
				w.sleep(5 * time.Second)
				// A replica set makes no pod anew that is there, however bad.
				for _, p := range w.pods(ns) {
					if owner(p) == r.UID && !ready(p) {
						remove[*corev1.Pod](w, ns, p.Name, metav1.DeletePropagationBackground)
					}
				}
			}
		}
		for _, j := range list[*batchv1.Job](w, ns) {
			edit(w, ns, j.Name, func(j *batchv1.Job) {
				if !finished(j) {
					j.Spec.Suspend = ptr.To(false)
					j.Spec.Parallelism = ptr.To(max(*j.Spec.Parallelism, 1))
				}
			})
		}
	}
}

// easy takes out of a template what need not be possible: host ports of all of
// them together on few nodes, and what never starts.
func easy(t *corev1.PodTemplateSpec) {
	delete(t.Annotations, testcluster.Never)
	for i := range t.Spec.Containers {
		t.Spec.Containers[i].Ports = nil
	}
}

// narrow is how many pods of a template are sure to find places.
func narrow(t *corev1.PodTemplateSpec) int32 {
	if t.Spec.Affinity != nil && t.Spec.Affinity.PodAntiAffinity != nil {
		return 2
	}
	return 100
}

// settle waits until the cluster is as asked for.
func (w *world) settle() {
	deadline := time.Now().Add(2 * time.Hour)
	for {
		if !w.sleep(5 * time.Second) {
			return
		}
		left := w.unsettled()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.failed("does not settle:\n  %s", strings.Join(left, "\n  "))
			return
		}
		if time.Until(deadline) < 90*time.Minute {
			w.sleep(time.Minute)
		}
	}
}

// unsettled lists what is not as it was asked for.
func (w *world) unsettled() []string {
	w.hist.mu.Lock()
	defer w.hist.mu.Unlock()
	h := w.hist
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	uids := map[string]bool{}
	for _, o := range h.state {
		uids[string(o.GetUID())] = true
		if o.GetDeletionTimestamp() != nil {
			add("%T %s/%s is being deleted: finalizers %v, owners %v", o, o.GetNamespace(), o.GetName(), o.GetFinalizers(), o.GetOwnerReferences())
		}
	}
	owned := map[string][]*corev1.Pod{}
	nodes := map[string]bool{}
	for _, n := range all[*corev1.Node](h) {
		nodes[n.Name] = true
	}
	for _, o := range h.state {
		for _, r := range o.GetOwnerReferences() {
			if !uids[string(r.UID)] {
				add("%T %s/%s has an owner that is gone: %s %s", o, o.GetNamespace(), o.GetName(), r.Kind, r.Name)
			}
		}
		p, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		if p.Spec.NodeName != "" && !nodes[p.Spec.NodeName] {
			add("pod %s/%s is on node %s, which is gone", p.Namespace, p.Name, p.Spec.NodeName)
		}
		if by := owner(p); by != "" && !ended(p) {
			owned[string(by)] = append(owned[string(by)], p)
		}
	}
	// The state asked for, and the pods that there are for it.
	generation := ""
	whole := func(what string, uid string, want int32, t *corev1.PodTemplateSpec) {
		pods := owned[uid]
		if len(pods) != int(want) {
			add("%s has %d pods of %d", what, len(pods), want)
		}
		for _, p := range pods {
			if !ready(p) {
				add("%s: pod %s is not ready: %s on %q: %s", what, p.Name, p.Status.Phase, p.Spec.NodeName, reason(p))
			}
			// A pod of an older daemon set's template of the same number counts as
			// updated (upstream's rule), and so may be adopted for good.
			if g := p.Labels["pod-template-generation"]; g != "" && g == generation {
				continue
			}
			if t != nil && p.Spec.Containers[0].Image != t.Spec.Containers[0].Image {
				add("%s: pod %s has %s instead of %s; its labels %v, generation %s", what, p.Name, p.Spec.Containers[0].Image, t.Spec.Containers[0].Image, p.Labels, generation)
			}
		}
	}
	for _, d := range all[*appsv1.Deployment](h) {
		what, n, s := "deployment "+d.Namespace+"/"+d.Name, *d.Spec.Replicas, d.Status
		if s.ObservedGeneration != d.Generation || s.Replicas != n || s.UpdatedReplicas != n || s.AvailableReplicas != n || s.UnavailableReplicas != 0 {
			add("%s: %d wanted, generation %d, paused %v, strategy %+v %+v, status %+v", what, n, d.Generation, d.Spec.Paused, d.Spec.Strategy.Type, ptr.Deref(d.Spec.Strategy.RollingUpdate, appsv1.RollingUpdateDeployment{}), s)
			for _, rs := range all[*appsv1.ReplicaSet](h) {
				if owner(rs) == d.UID {
					add("%s: replica set %s of %d, status %+v, annotations %v, image %s, deleted %v", what, rs.Name, *rs.Spec.Replicas, rs.Status, rs.Annotations, rs.Spec.Template.Spec.Containers[0].Image, rs.DeletionTimestamp)
				}
			}
		}
		for _, rs := range all[*appsv1.ReplicaSet](h) {
			if owner(rs) != d.UID {
				continue
			}
			if rs.Spec.Template.Spec.Containers[0].Image == d.Spec.Template.Spec.Containers[0].Image && *rs.Spec.Replicas == n {
				whole(what, string(rs.UID), n, &d.Spec.Template)
			} else if *rs.Spec.Replicas != 0 {
				add("%s: its replica set %s has %d", what, rs.Name, *rs.Spec.Replicas)
			}
		}
	}
	for _, r := range all[*appsv1.ReplicaSet](h) {
		n, s := *r.Spec.Replicas, r.Status
		if s.ObservedGeneration != r.Generation || s.Replicas != n || s.AvailableReplicas != n || s.ReadyReplicas != n {
			add("replicaset %s/%s: %d wanted, generation %d, status %+v", r.Namespace, r.Name, n, r.Generation, s)
		}
		whole("replicaset "+r.Namespace+"/"+r.Name, string(r.UID), n, nil)
	}
	for _, s := range all[*appsv1.StatefulSet](h) {
		what, n := "statefulset "+s.Namespace+"/"+s.Name, *s.Spec.Replicas
		whole(what, string(s.UID), n, &s.Spec.Template)
		if t := s.Status; t.ObservedGeneration != s.Generation || t.Replicas != n || t.AvailableReplicas != n || t.CurrentRevision != t.UpdateRevision {
			add("%s: %d wanted, generation %d, status %+v", what, n, s.Generation, t)
		}
	}
	for _, d := range all[*appsv1.DaemonSet](h) {
		what, n := "daemonset "+d.Namespace+"/"+d.Name, int32(len(nodes)) //nolint:gosec // few
		generation = d.Annotations[appsv1.DeprecatedTemplateGeneration]
		whole(what, string(d.UID), n, &d.Spec.Template)
		if s := d.Status; s.ObservedGeneration != d.Generation || s.DesiredNumberScheduled != n || s.NumberAvailable != n || s.UpdatedNumberScheduled != n {
			add("%s: %d wanted, generation %d, status %+v", what, n, d.Generation, s)
		}
	}
	for _, j := range all[*batchv1.Job](h) {
		what := "job " + j.Namespace + "/" + j.Name
		if !finished(j) {
			add("%s is not finished: %+v", what, j.Status)
			continue
		}
		if len(owned[string(j.UID)]) > 0 || j.Status.Active != 0 || ptr.Deref(j.Status.Terminating, 0) != 0 {
			add("%s is finished and has %d pods: %+v", what, len(owned[string(j.UID)]), j.Status)
		}
		if u := j.Status.UncountedTerminatedPods; u != nil && len(u.Succeeded)+len(u.Failed) > 0 {
			add("%s has not counted all: %+v", what, j.Status)
		}
		if t := w.inv.jobs[j.UID]; t != nil && !indexed(j) && complete(j) && int(j.Status.Succeeded) < int(ptr.Deref(j.Spec.Completions, 1)) {
			add("%s is complete with %d of %d", what, j.Status.Succeeded, *j.Spec.Completions)
		}
		if t := w.inv.jobs[j.UID]; t != nil && !indexed(j) && complete(j) && int(j.Status.Succeeded) != len(t.succeeded) {
			add("%s counts %d, %d pods succeeded: %v", what, j.Status.Succeeded, len(t.succeeded), t.succeeded)
		}
		if indexed(j) && complete(j) && j.Spec.SuccessPolicy == nil && len(indexes(j.Status.CompletedIndexes)) != int(*j.Spec.Completions) {
			add("%s is complete with indexes %s of %d", what, j.Status.CompletedIndexes, *j.Spec.Completions)
		}
	}
	for _, p := range all[*corev1.Pod](h) {
		if tracked(p) && ended(p) {
			add("pod %s/%s keeps its finalizer", p.Namespace, p.Name)
		}
	}
	for _, b := range all[*policyv1.PodDisruptionBudget](h) {
		if b.Status.ObservedGeneration != b.Generation {
			add("budget %s/%s: generation %d, status %+v", b.Namespace, b.Name, b.Generation, b.Status)
		}
	}
	slices.Sort(out)
	return out
}

func complete(j *batchv1.Job) bool {
	return slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == batchv1.JobComplete && c.Status == corev1.ConditionTrue
	})
}

func reason(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
			return c.Message
		}
	}
	return ""
}

// quiet: a cluster at rest stays at rest.
func (w *world) quiet() {
	// What was set for later: history limits, leftovers of deletions, times to live.
	if !w.sleep(10 * time.Minute) {
		return
	}
	w.settle()
	steps, _, _ := w.hist.counts()
	w.mu.Lock()
	before := maps.Clone(w.reqs)
	w.mu.Unlock()
	if !w.sleep(30 * time.Minute) {
		return
	}
	if now, _, _ := w.hist.counts(); now != steps {
		w.failed("%d steps in half an hour in which nothing happens", now-steps)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, n := range w.reqs {
		// The lease is renewed every two seconds; some look every few minutes.
		if n -= before[k]; n > 60 && !strings.HasPrefix(k, "lease ") {
			w.mu.Unlock()
			w.failed("%d times in half an hour in which nothing happens: %s", n, k)
			w.mu.Lock()
		}
	}
	synctest.Wait()
}
