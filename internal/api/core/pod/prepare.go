package pod

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
)

func prepareCreate(env resource.Env, pod *corev1.Pod) {
	pod.Generation = 1
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending}
	dropDisabledPod(env.Features, pod, nil)
	if len(pod.Spec.SchedulingGates) > 0 {
		setCondition(&pod.Status, corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
			Message: "Scheduling is blocked due to non-empty scheduling gates",
		}, env.Now())
	}
	mergeLabelKeys(env.Features, pod)
	appArmorFromAnnotations(env, pod)
	completePodResources(env.Features, pod)
	pod.Status.QOSClass = QOSClass(env.Features, pod)
}

func prepareUpdate(env resource.Env, pod, old *corev1.Pod) {
	pod.Status = old.Status
	keepPodResources(env.Features, pod, old)
	dropDisabledPod(env.Features, pod, old)
	countGeneration(pod, old)
}

// keepPodResources: a client that does not know resources of a pod as a whole
// does not take them away.
func keepPodResources(f resource.Features, pod, old *corev1.Pod) {
	if f.Enabled("PodLevelResourcesFixDefaulting") && pod.Spec.Resources == nil && old.Spec.Resources != nil {
		pod.Spec.Resources = old.Spec.Resources.DeepCopy()
	}
}

func countGeneration(pod, old *corev1.Pod) {
	pod.Generation = old.Generation
	if !equal(pod.Spec, old.Spec) {
		pod.Generation++
	}
}

// setCondition sets a condition; the transition is now, unless the status was
// that already.
func setCondition(s *corev1.PodStatus, c corev1.PodCondition, now time.Time) {
	c.LastTransitionTime = metav1.NewTime(now)
	if i, old := condition(s, c.Type); old != nil {
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		s.Conditions[i] = c
		return
	}
	s.Conditions = append(s.Conditions, c)
}

// mergeLabelKeys turns keys whose values are the pod's own into selector
// requirements.
func mergeLabelKeys(f resource.Features, pod *corev1.Pod) {
	merge := func(s *metav1.LabelSelector, keys []string, op metav1.LabelSelectorOperator) {
		if s == nil {
			return
		}
		for _, k := range keys {
			if v, ok := pod.Labels[k]; ok {
				s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: k, Operator: op, Values: []string{v}})
			}
		}
	}
	if a := pod.Spec.Affinity; a != nil && f.Enabled("MatchLabelKeysInPodAffinity") {
		term := func(t *corev1.PodAffinityTerm) {
			merge(t.LabelSelector, t.MatchLabelKeys, metav1.LabelSelectorOpIn)
			merge(t.LabelSelector, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn)
		}
		terms := func(must []corev1.PodAffinityTerm, may []corev1.WeightedPodAffinityTerm) {
			for i := range may {
				term(&may[i].PodAffinityTerm)
			}
			for i := range must {
				term(&must[i])
			}
		}
		if p := a.PodAffinity; p != nil {
			terms(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if p := a.PodAntiAffinity; p != nil {
			terms(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	if f.Enabled("MatchLabelKeysInPodTopologySpread") && f.Enabled("MatchLabelKeysInPodTopologySpreadSelectorMerge") {
		for i := range pod.Spec.TopologySpreadConstraints {
			c := &pod.Spec.TopologySpreadConstraints[i]
			merge(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn)
		}
	}
}

// appArmorFromAnnotations copies profiles from the annotations that once set
// them into the fields.
func appArmorFromAnnotations(env resource.Env, pod *corev1.Pod) {
	if isWindows(&pod.Spec) {
		return
	}
	var podProfile *corev1.AppArmorProfile
	if pod.Spec.SecurityContext != nil {
		podProfile = pod.Spec.SecurityContext.AppArmorProfile
	}
	for ctr := range containers(&pod.Spec, nil) {
		key := appArmorContainer + ctr.Name
		v, ok := pod.Annotations[key]
		if !ok || ctr.SecurityContext != nil && ctr.SecurityContext.AppArmorProfile != nil {
			continue
		}
		profile := appArmorProfile(v)
		if profile != nil && equal(profile, podProfile) {
			continue
		}
		if profile != nil {
			if ctr.SecurityContext == nil {
				ctr.SecurityContext = &corev1.SecurityContext{}
			}
			ctr.SecurityContext.AppArmorProfile = profile
		}
		if env.Warn != nil {
			env.Warn(fmt.Sprintf(`%s: deprecated since v1.30; use the "appArmorProfile" field instead`, metaPath.Child("annotations").Key(key)))
		}
	}
}

// appArmorProfile is namedProfile, where that is valid.
func appArmorProfile(v string) *corev1.AppArmorProfile {
	c := &check{}
	profile := namedProfile(v)
	if c.appArmor(nil, profile); len(c.errs) > 0 {
		return nil
	}
	return profile
}

// namedProfile is the profile that an annotation names, nil where it names none.
func namedProfile(v string) *corev1.AppArmorProfile {
	switch name, local := strings.CutPrefix(v, appArmorLocalhost); {
	case v == appArmorUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	case v == appArmorRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	case local && name != "":
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	return nil
}

// grace decides a pod's grace period: what was asked for, else the pod's own;
// none for a pod that is on no node or has ended.
func grace(_ resource.Env, pod *corev1.Pod, o *metav1.DeleteOptions) bool {
	period := int64(0)
	if o.GracePeriodSeconds != nil {
		period = *o.GracePeriodSeconds
	} else if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		period = *s
	}
	if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		period = 0
	}
	if period < 0 {
		period = 1
	}
	o.GracePeriodSeconds = &period
	return true
}
