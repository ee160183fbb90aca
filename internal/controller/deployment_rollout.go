package controller

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/dump"
)

const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"

	// historyLength bounds the list of a ReplicaSet's former revisions, in bytes.
	historyLength = 2000
)

// older orders ReplicaSets by age, then name.
func older(a, b *appsv1.ReplicaSet) int {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	}
	return strings.Compare(a.Name, b.Name)
}

// sameTemplate compares templates but for the hash label.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	delete(a.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	delete(b.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return equality.Semantic.DeepEqual(a, b)
}

// newestMatch is the ReplicaSet of the current template: of several the oldest,
// so that every reconciliation takes the same.
func newestMatch(d *appsv1.Deployment, byAge []*appsv1.ReplicaSet) *appsv1.ReplicaSet {
	for _, rs := range byAge {
		if sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			return rs
		}
	}
	return nil
}

// templateHash is the pod-template-hash, the same that upstream computes: FNV-1a
// over the dumped struct. The struct is dumped as it is after a round trip through
// protobuf, which is the form it has in the store: so neither a nil that was empty
// before, nor a number whose text was cached, changes the hash.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) string {
	plain := corev1.PodTemplateSpec{}
	if b, err := t.DeepCopy().Marshal(); err != nil || plain.Unmarshal(b) != nil {
		plain = *t
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(dump.ForHash(plain)))
	if collisions != nil {
		b := make([]byte, 8)
		binary.LittleEndian.PutUint32(b, uint32(*collisions))
		_, _ = h.Write(b)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// newReplicaSetFor is the ReplicaSet of d's template, without size and annotations.
func newReplicaSetFor(d *appsv1.Deployment) *appsv1.ReplicaSet {
	t := d.Spec.Template.DeepCopy()
	hash := templateHash(t, d.Status.CollisionCount)
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	t.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	name := d.Name
	if most := validation.DNS1123SubdomainMaxLength - 1 - len(hash); len(name) > most {
		name = name[:most]
	}
	zero := int32(0)
	setLabels := map[string]string{}
	for k, v := range t.Labels {
		setLabels[k] = v
	}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: name + "-" + hash, Namespace: d.Namespace, Labels: setLabels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, deploymentKind)},
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &zero, MinReadySeconds: d.Spec.MinReadySeconds,
			Selector: metav1.CloneSelectorAndAddLabel(d.Spec.Selector, appsv1.DefaultDeploymentUniqueLabelKey, hash),
			Template: *t,
		},
	}
}

// Revisions.

// revisionOf returns a ReplicaSet's revision, 0 where it has none; false where it
// cannot be read.
func revisionOf(rs *appsv1.ReplicaSet) (int64, bool) {
	v, ok := rs.Annotations[revisionAnnotation]
	if !ok {
		return 0, true
	}
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil
}

func maxRevision(sets []*appsv1.ReplicaSet) int64 {
	most := int64(0)
	for _, rs := range sets {
		if v, ok := revisionOf(rs); ok {
			most = max(most, v)
		}
	}
	return most
}

// previousRevision is the second highest.
func previousRevision(sets []*appsv1.ReplicaSet) int64 {
	first, second := int64(0), int64(0)
	for _, rs := range sets {
		switch v, ok := revisionOf(rs); {
		case !ok:
		case v >= first:
			first, second = v, first
		case v > second:
			second = v
		}
	}
	return second
}

func setRevision(d *appsv1.Deployment, revision string) {
	if d.Annotations[revisionAnnotation] != revision {
		metav1.SetMetaDataAnnotation(&d.ObjectMeta, revisionAnnotation, revision)
	}
}

// ownAnnotation tells annotations that are a Deployment's or a ReplicaSet's own
// and are not copied from one to the other.
func ownAnnotation(k string) bool {
	switch k {
	case corev1.LastAppliedConfigAnnotation, revisionAnnotation, historyAnnotation, desiredAnnotation, maxAnnotation, appsv1.DeprecatedRollbackTo:
		return true
	}
	return false
}

// annotateNew gives the new ReplicaSet the Deployment's annotations and its
// revision, and remembers the revision it had before; it tells whether anything
// changed.
func annotateNew(d *appsv1.Deployment, rs *appsv1.ReplicaSet, revision int64, exists bool) bool {
	changed := false
	set := func(k, v string) {
		if old, ok := rs.Annotations[k]; !ok || old != v {
			metav1.SetMetaDataAnnotation(&rs.ObjectMeta, k, v)
			changed = true
		}
	}
	for k, v := range d.Annotations {
		if !ownAnnotation(k) {
			set(k, v)
		}
	}
	was, had := rs.Annotations[revisionAnnotation]
	number, err := strconv.ParseInt(was, 10, 64)
	if err != nil && was != "" {
		return false // not ours to repair
	}
	if number < revision {
		set(revisionAnnotation, strconv.FormatInt(revision, 10))
		if had {
			if h, ok := appendHistory(rs.Annotations[historyAnnotation], was); ok {
				set(historyAnnotation, h)
			}
		}
	}
	if !exists {
		changed = annotateSizes(rs, *d.Spec.Replicas, *d.Spec.Replicas+maxSurge(d)) || changed
	}
	return changed
}

// appendHistory adds a revision to a list, dropping the oldest as needed.
func appendHistory(list, revision string) (string, bool) {
	if list == "" {
		return revision, true
	}
	for len(list)+1+len(revision) > historyLength {
		_, rest, more := strings.Cut(list, ",")
		if !more {
			return revision, len(revision) <= historyLength
		}
		list = rest
	}
	return list + "," + revision, true
}

func annotateSizes(rs *appsv1.ReplicaSet, desired, most int32) bool {
	changed := false
	for k, n := range map[string]int32{desiredAnnotation: desired, maxAnnotation: most} {
		if v := strconv.Itoa(int(n)); rs.Annotations[k] != v {
			metav1.SetMetaDataAnnotation(&rs.ObjectMeta, k, v)
			changed = true
		}
	}
	return changed
}

func annotated(rs *appsv1.ReplicaSet, key string) (int32, bool) {
	v, ok := rs.Annotations[key]
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 31)
	return int32(n), err == nil
}

// rollbackTo is the revision that the deprecated annotation asks for.
func rollbackTo(d *appsv1.Deployment) (int64, bool) {
	n, err := strconv.ParseInt(d.Annotations[appsv1.DeprecatedRollbackTo], 10, 64)
	return n, err == nil
}

// restoreTemplate gives d the template and annotations of a former ReplicaSet.
func restoreTemplate(d *appsv1.Deployment, rs *appsv1.ReplicaSet) {
	d.Spec.Template = *rs.Spec.Template.DeepCopy()
	delete(d.Spec.Template.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	annotations := map[string]string{}
	for k, v := range d.Annotations {
		if ownAnnotation(k) {
			annotations[k] = v
		}
	}
	for k, v := range rs.Annotations {
		if !ownAnnotation(k) {
			annotations[k] = v
		}
	}
	d.Annotations = annotations
}

// beyondHistory are the old ReplicaSets that the history limit does not cover,
// oldest first, as far as they are empty and at rest.
func beyondHistory(d *appsv1.Deployment, old []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	limit := d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return nil
	}
	var alive []*appsv1.ReplicaSet
	for _, rs := range old {
		if rs.DeletionTimestamp == nil {
			alive = append(alive, rs)
		}
	}
	n := len(alive) - int(*limit)
	if n <= 0 {
		return nil
	}
	slices.SortStableFunc(alive, func(a, b *appsv1.ReplicaSet) int {
		x, xok := revisionOf(a)
		y, yok := revisionOf(b)
		if !xok || !yok || x == y {
			return older(a, b)
		}
		return int(min(max(x-y, -1), 1))
	})
	return slices.DeleteFunc(alive[:n], func(rs *appsv1.ReplicaSet) bool {
		return rs.Status.Replicas != 0 || *rs.Spec.Replicas != 0 || rs.Generation > rs.Status.ObservedGeneration
	})
}

// Sizes.

// fence returns maxSurge and maxUnavailable as numbers. Where percentages come to
// zero for both, one pod may be unavailable: otherwise nothing could ever move.
func fence(d *appsv1.Deployment) (surge, unavailable int32) {
	u := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || u == nil {
		return 0, 0
	}
	n := int(*d.Spec.Replicas)
	zero := intstr.FromInt32(0)
	s, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(u.MaxSurge, zero), n, true)
	if err != nil {
		return 0, 0
	}
	a, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(u.MaxUnavailable, zero), n, false)
	if err != nil {
		return 0, 0
	}
	if s == 0 && a == 0 {
		a = 1
	}
	return int32(s), int32(a)
}

func maxSurge(d *appsv1.Deployment) int32 { s, _ := fence(d); return s }

func maxUnavailable(d *appsv1.Deployment) int32 {
	_, u := fence(d)
	return min(u, *d.Spec.Replicas)
}

func total(sets []*appsv1.ReplicaSet, f func(*appsv1.ReplicaSet) int32) int32 {
	n := int32(0)
	for _, rs := range sets {
		if rs != nil {
			n += f(rs)
		}
	}
	return n
}

func specReplicas(rs *appsv1.ReplicaSet) int32      { return *rs.Spec.Replicas }
func statusReplicas(rs *appsv1.ReplicaSet) int32    { return rs.Status.Replicas }
func readyReplicas(rs *appsv1.ReplicaSet) int32     { return rs.Status.ReadyReplicas }
func availableReplicas(rs *appsv1.ReplicaSet) int32 { return rs.Status.AvailableReplicas }

// lastingReplicas are the available pods that stay: a ReplicaSet that was made
// smaller may still count those that it is about to delete.
func lastingReplicas(rs *appsv1.ReplicaSet) int32 {
	return min(rs.Status.AvailableReplicas, *rs.Spec.Replicas)
}

// newSetSize is how far the new ReplicaSet may grow now.
func newSetSize(d *appsv1.Deployment, all []*appsv1.ReplicaSet, rs *appsv1.ReplicaSet) (int32, error) {
	want, has := *d.Spec.Replicas, *rs.Spec.Replicas
	switch d.Spec.Strategy.Type {
	case appsv1.RecreateDeploymentStrategyType:
		return want, nil
	case appsv1.RollingUpdateDeploymentStrategyType:
		room := want + maxSurge(d) - total(all, specReplicas)
		if room <= 0 {
			return has, nil
		}
		return has + min(room, want-has), nil
	}
	return 0, fmt.Errorf("deployment type %v isn't supported", d.Spec.Strategy.Type)
}

// shrinkOld is how far old ReplicaSets may shrink now: first by pods that are not
// available anyway, then by as many available ones as the Deployment has above its
// minimum. Pods of the new ReplicaSet that are not available count as if they never
// will be.
func shrinkOld(d *appsv1.Deployment, newSet *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) []resize {
	var active []*appsv1.ReplicaSet
	for _, rs := range old {
		if *rs.Spec.Replicas > 0 {
			active = append(active, rs)
		}
	}
	if len(active) == 0 {
		return nil
	}
	slices.SortFunc(active, older)
	least := *d.Spec.Replicas - maxUnavailable(d)
	waiting := *newSet.Spec.Replicas - newSet.Status.AvailableReplicas
	room := total(old, specReplicas) + *newSet.Spec.Replicas - least - waiting
	if room <= 0 {
		return nil
	}
	size := make([]int32, len(active))
	for i, rs := range active {
		size[i] = *rs.Spec.Replicas
		if sick := size[i] - rs.Status.AvailableReplicas; sick > 0 {
			n := min(room, sick)
			size[i] -= n
			room -= n
		}
	}
	spare := total(active, lastingReplicas) + lastingReplicas(newSet) - least
	for i := range active {
		if spare <= 0 {
			break
		}
		n := min(size[i], spare)
		size[i] -= n
		spare -= n
	}
	var out []resize
	for i, rs := range active {
		if size[i] != *rs.Spec.Replicas {
			out = append(out, resize{rs, size[i]})
		}
	}
	return out
}

// scalesFirst tells that the size of d has changed since its ReplicaSets got theirs,
// and is to be spread over them before the rollout goes on. Where d recreates its pods
// (since its strategy was changed in the middle of a rollout) there is nothing to spread
// over several: they all go. Upstream's controller is stuck there.
func scalesFirst(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) bool {
	active, changed := 0, false
	for _, rs := range sets {
		if *rs.Spec.Replicas == 0 {
			continue
		}
		active++
		want, ok := annotated(rs, desiredAnnotation)
		changed = changed || ok && want != *d.Spec.Replicas
	}
	return changed && (active == 1 || d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType)
}

// proportionalSizes spreads a new size of the Deployment over its ReplicaSets.
// With one in use (or none) that one takes all. During a rollout each takes its
// share, so that scaling does not hasten the rollout.
func proportionalSizes(d *appsv1.Deployment, newSet *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) []resize {
	var active []*appsv1.ReplicaSet
	all := slices.Clone(old)
	slices.SortFunc(all, func(a, b *appsv1.ReplicaSet) int { return older(b, a) })
	if newSet != nil {
		all = append(all, newSet)
	}
	for _, rs := range all {
		if *rs.Spec.Replicas > 0 {
			active = append(active, rs)
		}
	}
	want := *d.Spec.Replicas
	var only *appsv1.ReplicaSet
	switch {
	case len(active) == 1:
		only = active[0]
	case len(active) > 1:
	case newSet != nil:
		only = newSet
	case len(all) > 0:
		only = all[0]
	default:
		return nil
	}
	if only != nil {
		if *only.Spec.Replicas == want && want == 0 {
			return nil
		}
		return []resize{{only, want}}
	}
	if newSet != nil {
		if desired, ok := annotated(newSet, desiredAnnotation); ok && desired == want && *newSet.Spec.Replicas == want && newSet.Status.AvailableReplicas == want {
			var out []resize
			for _, rs := range active {
				if rs != newSet {
					out = append(out, resize{rs, 0})
				}
			}
			return out
		}
	}
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return nil
	}
	allowed := int32(0)
	if want > 0 {
		allowed = want + maxSurge(d)
	}
	add := allowed - total(active, specReplicas)
	// The biggest gets what rounding leaves; of equals the newest when growing,
	// the oldest when shrinking.
	slices.SortFunc(active, func(a, b *appsv1.ReplicaSet) int {
		if x, y := *a.Spec.Replicas, *b.Spec.Replicas; x != y {
			return int(y) - int(x)
		}
		if add > 0 {
			return older(b, a)
		}
		return older(a, b)
	})
	out := make([]resize, len(active))
	added := int32(0)
	for i, rs := range active {
		n := share(d, rs, add, added)
		added += n
		out[i] = resize{rs, *rs.Spec.Replicas + n}
	}
	if add != 0 {
		out[0].to = max(0, out[0].to+add-added)
	}
	return out
}

// share is one ReplicaSet's part of add, of which added is given away.
func share(d *appsv1.Deployment, rs *appsv1.ReplicaSet, add, added int32) int32 {
	size := *rs.Spec.Replicas
	if size == 0 || add == added || add == 0 {
		return 0
	}
	var part int32
	if *d.Spec.Replicas == 0 {
		part = -size
	} else {
		before, ok := annotated(rs, maxAnnotation)
		if !ok || before == 0 {
			before = d.Status.Replicas
		}
		if before == 0 {
			return 0
		}
		grown := math.Round(float64(size) * float64(*d.Spec.Replicas+maxSurge(d)) / float64(before))
		part = int32(min(grown, math.MaxInt32)) - size
	}
	if add > 0 {
		return min(part, add-added)
	}
	return max(part, add-added)
}

// Status.

func condition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

func dropCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) {
	var rest []appsv1.DeploymentCondition
	for _, c := range s.Conditions {
		if c.Type != t {
			rest = append(rest, c)
		}
	}
	s.Conditions = rest
}

// putCondition replaces a condition, unless status and reason are what they were.
// The time of transition is that of the last change of status.
func putCondition(s *appsv1.DeploymentStatus, c appsv1.DeploymentCondition) {
	if old := condition(s, c.Type); old != nil {
		if old.Status == c.Status && old.Reason == c.Reason {
			return
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	dropCondition(s, c.Type)
	s.Conditions = append(s.Conditions, c)
}

func newCondition(now time.Time, t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) appsv1.DeploymentCondition {
	at := metav1.NewTime(now.Truncate(time.Second))
	return appsv1.DeploymentCondition{Type: t, Status: status, LastUpdateTime: at, LastTransitionTime: at, Reason: reason, Message: message}
}

func setCondition(s *appsv1.DeploymentStatus, now time.Time, t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) {
	putCondition(s, newCondition(now, t, status, reason, message))
}

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

// markPaused notes pausing and resuming in the condition, so that the time paused
// does not count against the deadline.
func markPaused(d *appsv1.Deployment, now time.Time) {
	if !hasDeadline(d) {
		return
	}
	reason := ""
	if c := condition(&d.Status, appsv1.DeploymentProgressing); c != nil {
		reason = c.Reason
	}
	switch {
	case reason == "ProgressDeadlineExceeded":
	case d.Spec.Paused && reason != "DeploymentPaused":
		setCondition(&d.Status, now, appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused")
	case !d.Spec.Paused && reason == "DeploymentPaused":
		setCondition(&d.Status, now, appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed")
	}
}

// deploymentStatus is the status that follows from the ReplicaSets.
func deploymentStatus(d *appsv1.Deployment, newSet *appsv1.ReplicaSet, all []*appsv1.ReplicaSet, now time.Time) appsv1.DeploymentStatus {
	s := appsv1.DeploymentStatus{
		ObservedGeneration: d.Generation,
		Replicas:           total(all, statusReplicas),
		UpdatedReplicas:    total([]*appsv1.ReplicaSet{newSet}, statusReplicas),
		ReadyReplicas:      total(all, readyReplicas),
		AvailableReplicas:  total(all, availableReplicas),
		CollisionCount:     d.Status.CollisionCount,
		Conditions:         slices.Clone(d.Status.Conditions),
	}
	s.UnavailableReplicas = max(0, total(all, specReplicas)-s.AvailableReplicas)
	s.TerminatingReplicas = terminatingReplicas(all)
	if s.AvailableReplicas >= *d.Spec.Replicas-maxUnavailable(d) {
		setCondition(&s, now, appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.")
	} else {
		setCondition(&s, now, appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
	}
	return s
}

// terminatingReplicas is nil while a ReplicaSet does not say.
func terminatingReplicas(all []*appsv1.ReplicaSet) *int32 {
	n := int32(0)
	for _, rs := range all {
		if t := rs.Status.TerminatingReplicas; t != nil {
			n += *t
		} else if rs.Status.ObservedGeneration != 0 {
			return nil
		}
	}
	return &n
}

func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	n := *d.Spec.Replicas
	return s.UpdatedReplicas == n && s.Replicas == n && s.AvailableReplicas == n && s.ObservedGeneration >= d.Generation
}

func progressed(was, is *appsv1.DeploymentStatus) bool {
	return is.UpdatedReplicas > was.UpdatedReplicas ||
		is.Replicas-is.UpdatedReplicas < was.Replicas-was.UpdatedReplicas ||
		is.ReadyReplicas > was.ReadyReplicas ||
		is.AvailableReplicas > was.AvailableReplicas
}

func timedOut(d *appsv1.Deployment, c *appsv1.DeploymentCondition, now time.Time) bool {
	switch {
	case c == nil || c.Reason == "NewReplicaSetAvailable":
		return false
	case c.Reason == "ProgressDeadlineExceeded":
		return true
	}
	return c.LastUpdateTime.Add(time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second).Before(now)
}

// rolloutStatus is deploymentStatus with the conditions Progressing and
// ReplicaFailure.
func rolloutStatus(d *appsv1.Deployment, newSet *appsv1.ReplicaSet, all []*appsv1.ReplicaSet, now time.Time) appsv1.DeploymentStatus {
	s := deploymentStatus(d, newSet, all, now)
	current := condition(&d.Status, appsv1.DeploymentProgressing)
	switch who := subject(d, newSet); {
	case !hasDeadline(d):
		dropCondition(&s, appsv1.DeploymentProgressing)
	case s.Replicas == s.UpdatedReplicas && current != nil && current.Reason == "NewReplicaSetAvailable":
		// A finished rollout stays finished, whatever becomes of its pods.
	case complete(d, &s):
		setCondition(&s, now, appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetAvailable", who+" has successfully progressed.")
	case progressed(&d.Status, &s):
		// Every step forward renews the time of update, from which the deadline
		// counts.
		c := newCondition(now, appsv1.DeploymentProgressing, corev1.ConditionTrue, "ReplicaSetUpdated", who+" is progressing.")
		if current != nil && current.Status == corev1.ConditionTrue {
			c.LastTransitionTime = current.LastTransitionTime
		}
		dropCondition(&s, appsv1.DeploymentProgressing)
		s.Conditions = append(s.Conditions, c)
	case timedOut(d, condition(&s, appsv1.DeploymentProgressing), now):
		setCondition(&s, now, appsv1.DeploymentProgressing, corev1.ConditionFalse, "ProgressDeadlineExceeded", who+" has timed out progressing.")
	}
	if c := replicaFailure(newSet, all); c != nil {
		putCondition(&s, *c)
	} else if condition(&s, appsv1.DeploymentReplicaFailure) != nil {
		dropCondition(&s, appsv1.DeploymentReplicaFailure)
	}
	return s
}

func subject(d *appsv1.Deployment, newSet *appsv1.ReplicaSet) string {
	if newSet != nil {
		return fmt.Sprintf("ReplicaSet %q", newSet.Name)
	}
	return fmt.Sprintf("Deployment %q", d.Name)
}

// replicaFailure is the failure of a ReplicaSet, the new one's before all others.
func replicaFailure(newSet *appsv1.ReplicaSet, all []*appsv1.ReplicaSet) *appsv1.DeploymentCondition {
	for _, rs := range append([]*appsv1.ReplicaSet{newSet}, all...) {
		if rs == nil {
			continue
		}
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				return &appsv1.DeploymentCondition{
					Type: appsv1.DeploymentReplicaFailure, Status: c.Status, Reason: c.Reason, Message: c.Message,
					LastTransitionTime: c.LastTransitionTime, LastUpdateTime: c.LastTransitionTime,
				}
			}
		}
	}
	return nil
}

// progressCheck is when to look again whether the deadline has passed; zero for
// never.
func progressCheck(d *appsv1.Deployment, s *appsv1.DeploymentStatus, now time.Time) time.Duration {
	c := condition(s, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c == nil || complete(d, s) || c.Reason == "ProgressDeadlineExceeded" || c.Reason == "NewReplicaSetAvailable" {
		return 0
	}
	left := c.LastUpdateTime.Add(time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second).Sub(now)
	return max(left, 0) + time.Second
}
