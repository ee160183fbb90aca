package sim

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/testcluster"
)

var (
	one = resource.NewQuantity(1, resource.DecimalSI)

	spaces       = []string{"a", "b", "c"}
	deployments  = []string{"web", "api", "cache"}
	statefulSets = []string{"db", "queue"}
	daemonSets   = []string{"agent"}
	replicaSets  = []string{"twin1", "twin2"} // which select the same pods
	jobs         = []string{"build", "test", "index", "train"}
	cronJobs     = []string{"tick", "tock"}
	budgets      = []string{"web", "db"}
	policies     = []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground, metav1.DeletePropagationOrphan}
	zones        = []string{"z1", "z2", "z3"}
)

const (
	leastNodes = 4
	mostNodes  = 9
)

// populate makes what every simulation begins with.
func (w *world) populate() {
	for _, ns := range spaces {
		put(w, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
	}
	for name, value := range map[string]int32{"low": -10, "high": 1000} {
		put(w, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value})
	}
	for range 6 {
		w.addNode()
	}
	w.sleep(5 * time.Second) // accounts of services
}

func (w *world) addNode() {
	w.made++
	name := fmt.Sprintf("n%d", w.made)
	cpu := []string{"2", "4", "8"}[w.rng.IntN(3)]
	node := testcluster.Node(name, corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("20"),
	}, map[string]string{corev1.LabelTopologyZone: pick(w, zones), "disk": []string{"ssd", "hdd"}[w.rng.IntN(2)]}, w.now())
	for w.fleet.Add(w.ctx, node) != nil && w.sleep(time.Second) { // as a kubelet does
	}
	w.hist.op("node %s comes", name)
}

// removeNode takes a machine away: its kubelet first, or its object.
func (w *world) removeNode(name string) {
	w.hist.op("node %s goes", name)
	w.fleet.Stop(name)
	remove[*corev1.Node](w, "", name, metav1.DeletePropagationBackground)
}

func (w *world) template(app string) corev1.PodTemplateSpec {
	t := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app, "group": app}, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "c", Image: fmt.Sprintf("v%d", w.rng.IntN(1000)),
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: *resource.NewMilliQuantity(int64(w.rng.IntN(8)*100), resource.DecimalSI), corev1.ResourceMemory: resource.MustParse("64Mi"),
			}},
		}}, TerminationGracePeriodSeconds: ptr.To(int64(w.rng.IntN(6)))},
	}
	switch w.rng.IntN(12) {
	case 0:
		t.Spec.NodeSelector = map[string]string{"disk": "ssd"}
	case 1:
		t.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"group": app}}, TopologyKey: corev1.LabelHostname,
		}}}}
	case 2:
		t.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"group": app}},
		}}
	case 3:
		t.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
	case 4:
		t.Spec.PriorityClassName = "high"
	case 5:
		t.Spec.PriorityClassName = "low"
	case 6:
		t.Spec.Tolerations = []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpExists}}
	case 7:
		t.Annotations[testcluster.Never] = []string{"start", "ready"}[w.rng.IntN(2)]
	}
	return t
}

func selector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

func (w *world) share() *intstr.IntOrString {
	v := intstr.FromInt32(w.rng.Int32N(3))
	if w.rng.IntN(2) == 0 {
		v = intstr.FromString(fmt.Sprintf("%d%%", 10+w.rng.IntN(60)))
	}
	return &v
}

// operation does one random thing that users and machines do.
func (w *world) operation() {
	w.ops++
	ns := pick(w, spaces)
	switch w.rng.IntN(30) {
	case 0, 1, 2, 3:
		w.deployment(ns, pick(w, deployments))
	case 4, 5:
		w.statefulSet(ns, pick(w, statefulSets))
	case 6:
		w.daemonSet(ns, pick(w, daemonSets))
	case 7:
		w.replicaSet(ns, pick(w, replicaSets))
	case 8, 9, 10, 11:
		w.job(ns, pick(w, jobs))
	case 12, 13:
		w.cronJob(ns, pick(w, cronJobs))
	case 14, 15:
		w.pod(ns)
	case 16, 17, 18:
		w.evict(ns)
	case 19:
		w.disruptionBudget(ns, pick(w, budgets))
	case 20:
		w.quota(ns)
	case 21, 22, 23, 24, 25:
		w.nodeEvent()
	default:
		w.fault()
	}
}

func (w *world) deployment(ns, name string) {
	d, ok := get[*appsv1.Deployment](w, ns, name)
	if !ok {
		w.hist.op("deployment %s/%s is made", ns, name)
		put(w, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(w.rng.Int32N(7)), Selector: selector(name), Template: w.template(name), MinReadySeconds: w.rng.Int32N(3),
			Strategy:             appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: ptr.To(intstr.FromInt32(1 + w.rng.Int32N(2))), MaxUnavailable: w.share()}},
			RevisionHistoryLimit: ptr.To(w.rng.Int32N(3)),
		}})
		return
	}
	switch w.rng.IntN(10) {
	case 0, 1:
		n := w.rng.Int32N(9)
		w.hist.op("deployment %s/%s scales to %d", ns, name, n)
		edit(w, ns, name, func(d *appsv1.Deployment) { d.Spec.Replicas = &n })
	case 2, 3, 4:
		w.hist.op("deployment %s/%s is updated", ns, name)
		t := w.template(name)
		edit(w, ns, name, func(d *appsv1.Deployment) { d.Spec.Template = t })
	case 5:
		w.hist.op("deployment %s/%s rolls back", ns, name)
		var old []*appsv1.ReplicaSet
		for _, rs := range list[*appsv1.ReplicaSet](w, ns) {
			if owner(rs) == d.UID {
				old = append(old, rs)
			}
		}
		if len(old) > 0 {
			t := *pick(w, old).Spec.Template.DeepCopy()
			delete(t.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
			edit(w, ns, name, func(d *appsv1.Deployment) { d.Spec.Template = t })
		}
	case 6:
		w.hist.op("deployment %s/%s paused: %v", ns, name, !d.Spec.Paused)
		edit(w, ns, name, func(d *appsv1.Deployment) { d.Spec.Paused = !d.Spec.Paused })
	case 7:
		p := pick(w, policies)
		w.hist.op("deployment %s/%s is deleted: %s", ns, name, p)
		remove[*appsv1.Deployment](w, ns, name, p)
	case 8:
		w.hist.op("deployment %s/%s recreates", ns, name)
		edit(w, ns, name, func(d *appsv1.Deployment) {
			d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
		})
	case 9:
		edit(w, ns, name, func(d *appsv1.Deployment) { d.Spec.MinReadySeconds = w.rng.Int32N(4) })
	}
}

func (w *world) statefulSet(ns, name string) {
	if _, ok := get[*appsv1.StatefulSet](w, ns, name); !ok {
		w.hist.op("statefulset %s/%s is made", ns, name)
		s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: appsv1.StatefulSetSpec{
			Replicas: ptr.To(w.rng.Int32N(5)), Selector: selector(name), ServiceName: name, Template: w.template(name), RevisionHistoryLimit: ptr.To(int32(2)),
		}}
		if w.rng.IntN(3) == 0 {
			s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
		}
		if w.rng.IntN(4) == 0 {
			s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: w.rng.Int32N(3)}
		}
		put(w, s)
		return
	}
	switch w.rng.IntN(6) {
	case 0, 1:
		n := w.rng.Int32N(6)
		w.hist.op("statefulset %s/%s scales to %d", ns, name, n)
		edit(w, ns, name, func(s *appsv1.StatefulSet) { s.Spec.Replicas = &n })
	case 2, 3:
		w.hist.op("statefulset %s/%s is updated", ns, name)
		t := w.template(name)
		edit(w, ns, name, func(s *appsv1.StatefulSet) { s.Spec.Template = t })
	case 4:
		n := w.rng.Int32N(4)
		w.hist.op("statefulset %s/%s has partition %d", ns, name, n)
		edit(w, ns, name, func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: &n}}
		})
	case 5:
		p := pick(w, policies)
		w.hist.op("statefulset %s/%s is deleted: %s", ns, name, p)
		remove[*appsv1.StatefulSet](w, ns, name, p)
	}
}

func (w *world) daemonSet(ns, name string) {
	if _, ok := get[*appsv1.DaemonSet](w, ns, name); !ok {
		w.hist.op("daemonset %s/%s is made", ns, name)
		t := w.template(name)
		t.Spec.Affinity, t.Spec.TopologySpreadConstraints = nil, nil
		put(w, &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: appsv1.DaemonSetSpec{Selector: selector(name), Template: t}})
		return
	}
	switch w.rng.IntN(3) {
	case 0, 1:
		w.hist.op("daemonset %s/%s is updated", ns, name)
		t := w.template(name)
		t.Spec.Affinity, t.Spec.TopologySpreadConstraints = nil, nil
		edit(w, ns, name, func(d *appsv1.DaemonSet) { d.Spec.Template = t })
	case 2:
		p := pick(w, policies)
		w.hist.op("daemonset %s/%s is deleted: %s", ns, name, p)
		remove[*appsv1.DaemonSet](w, ns, name, p)
	}
}

// replicaSet: two of them select the same pods.
func (w *world) replicaSet(ns, name string) {
	if _, ok := get[*appsv1.ReplicaSet](w, ns, name); !ok {
		w.hist.op("replicaset %s/%s is made", ns, name)
		put(w, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: appsv1.ReplicaSetSpec{
			Replicas: ptr.To(w.rng.Int32N(4)), Selector: selector("twin"), Template: w.template("twin"),
		}})
		return
	}
	if w.rng.IntN(2) == 0 {
		n := w.rng.Int32N(5)
		w.hist.op("replicaset %s/%s scales to %d", ns, name, n)
		edit(w, ns, name, func(r *appsv1.ReplicaSet) { r.Spec.Replicas = &n })
		return
	}
	p := pick(w, policies)
	w.hist.op("replicaset %s/%s is deleted: %s", ns, name, p)
	remove[*appsv1.ReplicaSet](w, ns, name, p)
}

func (w *world) jobSpec(app string) batchv1.JobSpec {
	t := w.template(app)
	delete(t.Annotations, testcluster.Never)
	t.Spec.RestartPolicy = corev1.RestartPolicyNever
	t.Annotations[testcluster.Runs] = (time.Duration(1+w.rng.IntN(8)) * time.Second).String()
	if w.rng.IntN(2) == 0 {
		t.Annotations[testcluster.Fails] = fmt.Sprint(w.rng.IntN(40))
		t.Annotations[testcluster.Exit] = fmt.Sprint(1 + w.rng.IntN(3))
	}
	s := batchv1.JobSpec{
		Parallelism: ptr.To(1 + w.rng.Int32N(5)), Completions: ptr.To(1 + w.rng.Int32N(8)), Template: t, BackoffLimit: ptr.To(w.rng.Int32N(8)),
	}
	if w.rng.IntN(4) == 0 {
		t.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		s.Template = t
	}
	if w.rng.IntN(2) == 0 {
		s.CompletionMode = ptr.To(batchv1.IndexedCompletion)
		switch w.rng.IntN(3) {
		case 0:
			s.BackoffLimit, s.BackoffLimitPerIndex = nil, ptr.To(w.rng.Int32N(3))
			s.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
		case 1:
			s.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededCount: ptr.To(1 + w.rng.Int32N(*s.Completions))}}}
		}
	}
	if s.Template.Spec.RestartPolicy == corev1.RestartPolicyNever && w.rng.IntN(3) == 0 {
		action := []batchv1.PodFailurePolicyAction{batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore, batchv1.PodFailurePolicyActionCount}[w.rng.IntN(3)]
		s.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
			{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}},
			{Action: action, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{2}}},
		}}
	}
	if w.rng.IntN(6) == 0 {
		s.PodReplacementPolicy = ptr.To(batchv1.Failed)
	}
	if w.rng.IntN(6) == 0 {
		s.TTLSecondsAfterFinished = ptr.To(int32(w.rng.IntN(60)))
	}
	if w.rng.IntN(8) == 0 {
		s.ActiveDeadlineSeconds = ptr.To(int64(5 + w.rng.IntN(60)))
	}
	if w.rng.IntN(6) == 0 {
		s.Suspend = ptr.To(true)
	}
	return s
}

func (w *world) job(ns, name string) {
	j, ok := get[*batchv1.Job](w, ns, name)
	if !ok {
		w.hist.op("job %s/%s is made", ns, name)
		put(w, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: w.jobSpec(name)})
		return
	}
	switch {
	case finished(j) || w.rng.IntN(6) == 0:
		p := pick(w, policies)
		w.hist.op("job %s/%s is deleted: %s", ns, name, p)
		remove[*batchv1.Job](w, ns, name, p)
	case w.rng.IntN(2) == 0:
		on := !ptr.Deref(j.Spec.Suspend, false)
		w.hist.op("job %s/%s suspended: %v", ns, name, on)
		edit(w, ns, name, func(j *batchv1.Job) { j.Spec.Suspend = &on })
	default:
		n := w.rng.Int32N(6)
		w.hist.op("job %s/%s has parallelism %d", ns, name, n)
		edit(w, ns, name, func(j *batchv1.Job) { j.Spec.Parallelism = &n })
	}
}

func (w *world) cronJob(ns, name string) {
	cj, ok := get[*batchv1.CronJob](w, ns, name)
	if !ok {
		w.hist.op("cronjob %s/%s is made", ns, name)
		spec := w.jobSpec(name)
		spec.Suspend = nil
		put(w, &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: batchv1.CronJobSpec{
			Schedule:          pick(w, []string{"* * * * *", "*/2 * * * *"}),
			ConcurrencyPolicy: pick(w, []batchv1.ConcurrencyPolicy{batchv1.ForbidConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent, batchv1.AllowConcurrent}),
			JobTemplate:       batchv1.JobTemplateSpec{Spec: spec}, SuccessfulJobsHistoryLimit: ptr.To(w.rng.Int32N(3)), FailedJobsHistoryLimit: ptr.To(w.rng.Int32N(2)),
		}})
		return
	}
	switch w.rng.IntN(3) {
	case 0:
		on := !ptr.Deref(cj.Spec.Suspend, false)
		w.hist.op("cronjob %s/%s suspended: %v", ns, name, on)
		edit(w, ns, name, func(c *batchv1.CronJob) { c.Spec.Suspend = &on })
	case 1:
		p := pick(w, policies)
		w.hist.op("cronjob %s/%s is deleted: %s", ns, name, p)
		remove[*batchv1.CronJob](w, ns, name, p)
	}
}

// pod does something to a pod: deletes it, kills it, releases it from its owner or
// lets it be adopted again.
func (w *world) pod(ns string) {
	pods := w.pods(ns)
	if len(pods) == 0 {
		return
	}
	p := pick(w, pods)
	switch w.rng.IntN(4) {
	case 0, 1:
		w.hist.op("pod %s/%s is deleted", ns, p.Name)
		remove[*corev1.Pod](w, ns, p.Name, metav1.DeletePropagationBackground)
	case 2:
		// What no kubelet does on its own: its containers were killed.
		if p.Spec.NodeName != "" && !ended(p) {
			w.hist.op("pod %s/%s fails", ns, p.Name)
			next := p.DeepCopy()
			next.Status.Phase, next.Status.Reason = corev1.PodFailed, "Killed"
			for i := range next.Status.Conditions {
				// A budget counts by this condition alone, upstream's too.
				if c := &next.Status.Conditions[i]; c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
					c.Status = corev1.ConditionFalse
				}
			}
			_, err := client.For[*corev1.Pod](w.user).UpdateStatus(w.ctx, next)
			if err != nil && !lost(err) && w.ctx.Err() == nil {
				w.failed("pod status: %v", err)
			}
		}
	case 3:
		if tracked(p) {
			return
		}
		app := p.Labels["app"]
		if app == "released" {
			app = p.Labels["group"]
		} else {
			app = "released"
		}
		w.hist.op("pod %s/%s has app=%s", ns, p.Name, app)
		edit(w, ns, p.Name, func(p *corev1.Pod) { p.Labels["app"] = app })
	}
}

// evict asks for several evictions at once.
func (w *world) evict(ns string) {
	pods := w.pods(ns)
	if len(pods) == 0 {
		return
	}
	for range 1 + w.rng.IntN(4) {
		p := pick(w, pods)
		w.wg.Go(func() {
			_, err := client.For[*corev1.Pod](w.user).In(ns).CreateSub(w.ctx, p.Name, "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: p.Name}})
			if err == nil {
				w.hist.op("pod %s/%s was evicted", ns, p.Name)
			} else if !apierrors.IsTooManyRequests(err) && !lost(err) && w.ctx.Err() == nil {
				w.failed("evict %s/%s: %v", ns, p.Name, err)
			}
		})
	}
}

func (w *world) disruptionBudget(ns, name string) {
	if _, ok := get[*policyv1.PodDisruptionBudget](w, ns, name); ok && w.rng.IntN(3) > 0 {
		return
	} else if ok {
		w.hist.op("budget %s/%s is deleted", ns, name)
		remove[*policyv1.PodDisruptionBudget](w, ns, name, metav1.DeletePropagationBackground)
		return
	}
	w.hist.op("budget %s/%s is made", ns, name)
	put(w, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: policyv1.PodDisruptionBudgetSpec{
		MinAvailable: ptr.To(intstr.FromInt32(1 + w.rng.Int32N(4))), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"group": name}},
	}})
}

func (w *world) quota(ns string) {
	hard := corev1.ResourceList{
		corev1.ResourcePods: *resource.NewQuantity(int64(2+w.rng.IntN(20)), resource.DecimalSI), corev1.ResourceRequestsCPU: *resource.NewQuantity(int64(1+w.rng.IntN(8)), resource.DecimalSI),
		"count/jobs.batch": *resource.NewQuantity(int64(1+w.rng.IntN(5)), resource.DecimalSI),
	}
	w.hist.op("quota of %s: %v", ns, hard)
	if !put(w, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "quota"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}) {
		edit(w, ns, "quota", func(q *corev1.ResourceQuota) { q.Spec.Hard = hard })
	}
}

func (w *world) nodeEvent() {
	names := w.fleet.Names()
	if len(names) == 0 {
		w.addNode()
		return
	}
	name := pick(w, names)
	switch w.rng.IntN(8) {
	case 0:
		if len(names) < mostNodes {
			w.addNode()
		}
	case 1:
		if len(names) > leastNodes {
			w.removeNode(name)
		}
	case 2:
		w.hist.op("node %s is cordoned or not", name)
		edit(w, "", name, func(n *corev1.Node) { n.Spec.Unschedulable = !n.Spec.Unschedulable })
	case 3:
		effect := pick(w, []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute})
		w.hist.op("node %s is tainted: %s", name, effect)
		edit(w, "", name, func(n *corev1.Node) { setTaint(n, &corev1.Taint{Key: "dedicated", Effect: effect}) })
	case 4:
		edit(w, "", name, func(n *corev1.Node) { setTaint(n, nil) })
	case 5:
		w.hist.op("node %s falls silent", name)
		w.fleet.Silence(name, true)
	case 6:
		for _, n := range names {
			w.fleet.Silence(n, false)
		}
		w.hist.op("all nodes are heard")
	case 7:
		w.hist.op("node %s is slow", name)
		w.fleet.Slow(name, 1+w.rng.IntN(5))
	}
}

// setTaint replaces the taint of users.
func setTaint(n *corev1.Node, t *corev1.Taint) {
	var keep []corev1.Taint
	for _, x := range n.Spec.Taints {
		if x.Key != "dedicated" {
			keep = append(keep, x)
		}
	}
	if t != nil {
		keep = append(keep, *t)
	}
	n.Spec.Taints = keep
}

// fault does something to the machinery.
func (w *world) fault() {
	switch w.rng.IntN(6) {
	case 0, 1:
		i := w.rng.IntN(2)
		w.hist.op("control process %d is killed", i)
		w.kill(i)
	case 2:
		w.hist.op("watches of the store break")
		w.st.BreakWatches(errBroken)
	case 3:
		d := time.Duration(w.rng.IntN(90)) * time.Second
		w.hist.op("the clock jumps by %v", d)
		w.jump.Add(int64(d))
	case 4:
		w.hist.op("the store loses answers")
		w.st.Faults.FailWrites(1+w.rng.IntN(3), w.rng.IntN(2) == 0)
	case 5:
		w.faults.Set(w.rates())
	}
}

func (w *world) rates() testcluster.Rates {
	level := w.rng.IntN(4)
	return testcluster.Rates{
		Refuse: level * w.rng.IntN(40), Lose: level * w.rng.IntN(10), Delay: level * w.rng.IntN(60), Break: level * w.rng.IntN(3),
		Repeat: level * w.rng.IntN(20), Stall: level * w.rng.IntN(10), Slowest: 2 * time.Second,
	}
}
