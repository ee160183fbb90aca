package controller

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// ordinalOf splits a pod's name into its set's name and its ordinal, which is -1
// where it has none.
func ordinalOf(pod string) (string, int) {
	i := strings.LastIndexByte(pod, '-')
	if i < 0 || i+1 == len(pod) {
		return "", -1
	}
	digits := pod[i+1:]
	if strings.Trim(digits, "0123456789") != "" {
		return "", -1
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil {
		return pod[:i], -1
	}
	return pod[:i], int(n)
}

func firstOrdinal(s *appsv1.StatefulSet) int {
	if s.Spec.Ordinals != nil {
		return int(s.Spec.Ordinals.Start)
	}
	return 0
}

func wantsOrdinal(s *appsv1.StatefulSet, n int) bool {
	return n >= firstOrdinal(s) && n < firstOrdinal(s)+int(*s.Spec.Replicas)
}

func setPodName(s *appsv1.StatefulSet, ordinal int) string {
	return s.Name + "-" + strconv.Itoa(ordinal)
}

func setPodRevision(p *corev1.Pod) string { return p.Labels[appsv1.StatefulSetRevisionLabel] }

// setPod is the pod of an ordinal, of a template and the revision that holds it.
func setPod(s *appsv1.StatefulSet, t *corev1.PodTemplateSpec, revision string, ordinal int) *corev1.Pod {
	p := podFromTemplate(t, s, statefulSetKind)
	p.Name = setPodName(s, ordinal)
	identify(s, p)
	p.Spec.Hostname, p.Spec.Subdomain = p.Name, s.Spec.ServiceName
	mountClaims(s, p)
	p.Labels[appsv1.StatefulSetRevisionLabel] = revision
	return p
}

// identify gives a pod the labels that follow from its name.
func identify(s *appsv1.StatefulSet, p *corev1.Pod) {
	_, n := ordinalOf(p.Name)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[appsv1.StatefulSetPodNameLabel] = p.Name
	p.Labels[appsv1.PodIndexLabel] = strconv.Itoa(n)
}

func identified(s *appsv1.StatefulSet, p *corev1.Pod) bool {
	name, n := ordinalOf(p.Name)
	return n >= 0 && name == s.Name && p.Name == setPodName(s, n) && p.Labels[appsv1.StatefulSetPodNameLabel] == p.Name
}

// setView is what a StatefulSet's next steps follow from.
type setView struct {
	set             *appsv1.StatefulSet
	current, update *appsv1.ControllerRevision
	// Their templates.
	currentTemplate, updateTemplate *corev1.PodTemplateSpec
	collisions                      int32
	pods                            []*corev1.Pod
	claim                           func(name string) *corev1.PersistentVolumeClaim // nil where there is none
	now                             time.Time
}

func (v *setView) available(p *corev1.Pod) bool {
	return podAvailable(p, v.set.Spec.MinReadySeconds, v.now)
}

func (v *setView) unavailable(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil || !v.available(p)
}

// setAction is a kind of step.
type setAction string

const (
	makePod    setAction = "create"  // with its claims, which come first
	deletePod  setAction = "delete"  // for a new start, or scaling down
	replacePod setAction = "replace" // delete, for the new revision
	repairPod  setAction = "repair"  // labels, volumes, claims' owners
	makeClaims setAction = "claims"  // those that a pending pod waits for
	ownClaims  setAction = "own"     // owner references by the retention policy
)

// maxOrdinals is how far a plan looks, whatever number of pods is asked for.
const maxOrdinals = 1 << 20

type setStep struct {
	action setAction
	pod    *corev1.Pod
}

// setPhase are steps that belong together: done in parallel where the set allows
// it, one by one otherwise. What comes after is done only when all succeeded.
type setPhase []setStep

// setPlan is what is to be done now, and the status that the pods amount to.
type setPlan struct {
	phases []setPhase
	status appsv1.StatefulSetStatus
}

// slot is a wanted ordinal and its pod, which is nil where it is to be made.
type slot struct {
	ordinal int
	pod     *corev1.Pod
}

// planSet decides a StatefulSet's next steps.
func planSet(v *setView) setPlan {
	plan := setPlan{status: setStatus(v)}
	if v.set.DeletionTimestamp != nil {
		return plan
	}
	ordered := v.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
	wanted, condemned := v.slots()
	phase, blocked := v.fill(wanted, ordered)
	plan.add(phase)
	if ordered && blocked {
		return plan
	}
	var own setPhase
	for _, p := range condemned {
		if !v.ownersRight(p) {
			own = append(own, setStep{ownClaims, p})
		}
	}
	plan.add(own)
	down, blocked := v.shrink(wanted, condemned, ordered)
	plan.add(down)
	if ordered && blocked {
		return plan
	}
	if v.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		roll := v.roll(wanted)
		plan.add(roll)
		for _, s := range roll {
			if setPodRevision(s.pod) == v.current.Name {
				plan.status.CurrentReplicas--
			}
		}
	}
	return plan
}

func (p *setPlan) add(phase setPhase) {
	if len(phase) > 0 {
		p.phases = append(p.phases, phase)
	}
}

// slots are the pods of the ordinals that are wanted, in order, and those that are
// not, the highest ordinal first.
func (v *setView) slots() (wanted []slot, condemned []*corev1.Pod) {
	first, n := firstOrdinal(v.set), min(int(*v.set.Spec.Replicas), maxOrdinals)
	wanted = make([]slot, n)
	for i := range wanted {
		wanted[i].ordinal = first + i
	}
	for _, p := range v.pods {
		_, ordinal := ordinalOf(p.Name)
		switch {
		case ordinal >= first && ordinal-first < n:
			wanted[ordinal-first].pod = p
		case ordinal >= 0:
			condemned = append(condemned, p)
		}
	}
	slices.SortFunc(condemned, func(a, b *corev1.Pod) int {
		_, x := ordinalOf(a.Name)
		_, y := ordinalOf(b.Name)
		return cmp.Compare(y, x)
	})
	return wanted, condemned
}

// newPod is the pod of an ordinal: of the current revision below the partition, of
// the new one above.
func (v *setView) newPod(ordinal int) *corev1.Pod {
	u := v.set.Spec.UpdateStrategy
	old := 0
	switch {
	case u.RollingUpdate != nil && u.RollingUpdate.Partition != nil:
		old = int(*u.RollingUpdate.Partition)
	case u.RollingUpdate == nil && u.Type == appsv1.RollingUpdateStatefulSetStrategyType:
		old = int(v.set.Status.CurrentReplicas)
	}
	if ordinal < firstOrdinal(v.set)+old {
		return setPod(v.set, v.currentTemplate, v.current.Name, ordinal)
	}
	return setPod(v.set, v.updateTemplate, v.update.Name, ordinal)
}

// fill makes what is missing and mends what is wrong. Where the order counts it
// stops, blocked, at the first pod that is not there, or not available, yet.
func (v *setView) fill(wanted []slot, ordered bool) (phase setPhase, blocked bool) {
	made := 0
	for _, s := range wanted {
		switch {
		case s.pod != nil && podTerminal(s.pod):
			if s.pod.DeletionTimestamp == nil {
				phase = append(phase, setStep{deletePod, s.pod})
			}
			blocked = true
		case s.pod == nil:
			blocked = true
			if made == batch {
				break
			}
			// A stale claim goes with the pod that was here before.
			if p := v.newPod(s.ordinal); !v.claimStale(p) {
				phase = append(phase, setStep{makePod, p})
				made++
			}
		default:
			if s.pod.Status.Phase == corev1.PodPending && !v.claimsMade(s.pod) {
				phase = append(phase, setStep{makeClaims, s.pod})
			}
			if v.unavailable(s.pod) && ordered {
				return phase, true
			}
			if !identified(v.set, s.pod) || !claimsMounted(v.set, s.pod) || !v.ownersRight(s.pod) {
				phase = append(phase, setStep{repairPod, s.pod})
			}
		}
		if blocked && ordered {
			return phase, true
		}
	}
	return phase, blocked
}

// shrink deletes condemned pods: one by one, from the highest ordinal, when all
// others are available; the lowest one that is not is no hindrance to itself.
func (v *setView) shrink(wanted []slot, condemned []*corev1.Pod, ordered bool) (phase setPhase, blocked bool) {
	if !ordered {
		for _, p := range condemned {
			if p.DeletionTimestamp == nil {
				phase = append(phase, setStep{deletePod, p})
			}
		}
		return phase, false
	}
	if len(condemned) == 0 {
		return nil, false
	}
	p := condemned[0]
	if p.DeletionTimestamp != nil || v.unavailable(p) && p != v.firstUnavailable(wanted, condemned) {
		return nil, true
	}
	return setPhase{{deletePod, p}}, true
}

func (v *setView) firstUnavailable(wanted []slot, condemned []*corev1.Pod) *corev1.Pod {
	for _, s := range wanted {
		if s.pod == nil || v.unavailable(s.pod) {
			return s.pod
		}
	}
	for _, p := range slices.Backward(condemned) {
		if v.unavailable(p) {
			return p
		}
	}
	return nil
}

// roll replaces pods of another revision, from the highest ordinal down to the
// partition, as many as may be unavailable at a time. A parallel set begins with
// those that are unavailable anyway.
func (v *setView) roll(wanted []slot) (phase setPhase) {
	u := v.set.Spec.UpdateStrategy.RollingUpdate
	partition, limit := 0, 1
	if u != nil {
		if u.Partition != nil {
			partition = int(*u.Partition)
		}
		limit = setMaxUnavailable(u.MaxUnavailable, len(wanted))
	}
	parallel := v.set.Spec.PodManagementPolicy == appsv1.ParallelPodManagement
	old := func(s slot) bool {
		return s.pod != nil && setPodRevision(s.pod) != v.update.Name && s.pod.DeletionTimestamp == nil
	}
	down, stuck := 0, 0
	for _, s := range wanted {
		if s.pod == nil || v.unavailable(s.pod) {
			down++
			if parallel && old(s) {
				stuck++
			}
		}
	}
	if down >= limit && stuck == 0 {
		return nil
	}
	if parallel {
		for i := len(wanted) - 1; i >= partition; i-- {
			// A pod that has ended is deleted by fill.
			if s := wanted[i]; old(s) && !v.available(s.pod) && !podTerminal(s.pod) {
				phase = append(phase, setStep{replacePod, s.pod})
			}
		}
	}
	for i := len(wanted) - 1; i >= partition && down < limit; i-- {
		if s := wanted[i]; old(s) && (!parallel || v.available(s.pod)) {
			phase = append(phase, setStep{replacePod, s.pod})
			down++
		}
	}
	return phase
}

func setMaxUnavailable(m *intstr.IntOrString, n int) int {
	v, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(m, intstr.FromInt32(1)), n, false)
	if err != nil {
		return 1
	}
	return max(v, 1)
}

// setStatus is the status that follows from the pods.
func setStatus(v *setView) appsv1.StatefulSetStatus {
	s := appsv1.StatefulSetStatus{
		ObservedGeneration: v.set.Generation, CurrentRevision: v.current.Name, UpdateRevision: v.update.Name,
		CollisionCount: &v.collisions, Conditions: v.set.Status.Conditions,
	}
	for _, p := range v.pods {
		s.Replicas++
		if p.Status.Phase == corev1.PodRunning && podReady(p) {
			s.ReadyReplicas++
			if v.available(p) {
				s.AvailableReplicas++
			}
		}
		if p.DeletionTimestamp == nil {
			if r := setPodRevision(p); r == v.current.Name {
				s.CurrentReplicas++
			}
			if setPodRevision(p) == v.update.Name {
				s.UpdatedReplicas++
			}
		}
	}
	return s
}

// settleSet ends an update in s when every pod is of the new revision and ready.
func settleSet(set *appsv1.StatefulSet, s *appsv1.StatefulSetStatus) {
	if n := *set.Spec.Replicas; s.UpdatedReplicas == n && s.ReadyReplicas == n && s.Replicas == n {
		s.CurrentReplicas, s.CurrentRevision = s.UpdatedReplicas, s.UpdateRevision
	}
}

// setStatusDiffers: the number of collisions alone is not worth a write.
func setStatusDiffers(set *appsv1.StatefulSet, s appsv1.StatefulSetStatus) bool {
	o := set.Status
	return s.ObservedGeneration > o.ObservedGeneration || s.Replicas != o.Replicas || s.CurrentReplicas != o.CurrentReplicas ||
		s.ReadyReplicas != o.ReadyReplicas || s.UpdatedReplicas != o.UpdatedReplicas || s.CurrentRevision != o.CurrentRevision ||
		s.AvailableReplicas != o.AvailableReplicas || s.UpdateRevision != o.UpdateRevision
}

// liveSetRevisions are the names of revisions that are in use.
func liveSetRevisions(v *setView) map[string]bool {
	live := map[string]bool{v.current.Name: true, v.update.Name: true}
	for _, p := range v.pods {
		live[setPodRevision(p)] = true
	}
	return live
}

// Claims.

// setClaims are the claims of a pod, in the order of their templates, by the name
// of the volume.
func setClaims(s *appsv1.StatefulSet, pod string) []*corev1.PersistentVolumeClaim {
	_, ordinal := ordinalOf(pod)
	var out []*corev1.PersistentVolumeClaim
	for i := range s.Spec.VolumeClaimTemplates {
		c := s.Spec.VolumeClaimTemplates[i].DeepCopy()
		c.Name, c.Namespace = claimName(s, c.Name, ordinal), s.Namespace
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, s.Spec.Selector.MatchLabels)
		out = append(out, c)
	}
	return out
}

func claimName(s *appsv1.StatefulSet, volume string, ordinal int) string {
	return volume + "-" + s.Name + "-" + strconv.Itoa(ordinal)
}

// mountClaims makes the pod's volumes of the templates' names its claims.
func mountClaims(s *appsv1.StatefulSet, p *corev1.Pod) {
	_, ordinal := ordinalOf(p.Name)
	var volumes []corev1.Volume
	claimed := map[string]bool{}
	for _, t := range s.Spec.VolumeClaimTemplates {
		claimed[t.Name] = true
		volumes = append(volumes, corev1.Volume{Name: t.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(s, t.Name, ordinal)},
		}})
	}
	for _, v := range p.Spec.Volumes {
		if !claimed[v.Name] {
			volumes = append(volumes, v)
		}
	}
	p.Spec.Volumes = volumes
}

func claimsMounted(s *appsv1.StatefulSet, p *corev1.Pod) bool {
	_, ordinal := ordinalOf(p.Name)
	for _, t := range s.Spec.VolumeClaimTemplates {
		if !slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool {
			return v.Name == t.Name && v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claimName(s, t.Name, ordinal)
		}) {
			return false
		}
	}
	return true
}

// claimsMade tells that a pod's claims exist and are owned as they should be.
func (v *setView) claimsMade(p *corev1.Pod) bool {
	for _, c := range setClaims(v.set, p.Name) {
		if v.claim(c.Name) == nil {
			return false
		}
	}
	return v.ownersRight(p)
}

// claimStale tells that a claim of a pod that is to be made is owned by a pod of
// that name that is gone, and will go with it.
func (v *setView) claimStale(p *corev1.Pod) bool {
	if _, scaled := claimRetention(v.set); !scaled {
		return false
	}
	for _, t := range setClaims(v.set, p.Name) {
		if c := v.claim(t.Name); c != nil && staleRef(c, p, podKind) {
			return true
		}
	}
	return false
}

// ownersRight tells that the claims of a pod that exist are owned as the retention
// policy says.
func (v *setView) ownersRight(p *corev1.Pod) bool {
	_, ordinal := ordinalOf(p.Name)
	for _, t := range v.set.Spec.VolumeClaimTemplates {
		if c := v.claim(claimName(v.set, t.Name, ordinal)); c != nil && !claimOwnersRight(c, v.set, p) {
			return false
		}
	}
	return true
}
