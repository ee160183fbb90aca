package batch

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// Limits of an indexed job, whose status names indexes; and lower ones where it
// has more completions than manyCompletions.
const (
	mostParallel       = 100_000
	mostFailed         = 100_000
	manyCompletions    = 100_000
	mostParallelOfMany = 10_000
	mostFailedOfMany   = 10_000
	mostRules          = 20
	mostExitCodes      = 255
	mostConditions     = 20
	mostManagedBy      = 63
	mostSuccessIndexes = 64 << 10
	needsIndexed       = "requires indexed completion mode"
)

func validateJobCreate(env resource.Env, j *batchv1.Job) field.ErrorList {
	errs := resource.ValidateMeta(j, true, resource.DNSSubdomain)
	errs = append(errs, validateOwnLabels(j)...)
	errs = append(errs, validateSelectingSpec(&j.Spec, pod.TemplateOptions(env.Features, nil), false)...)
	return append(errs, validateJobName(j)...)
}

// validateOwnLabels: the template has the labels that were made for the job's
// pods, and the selector selects them.
func validateOwnLabels(j *batchv1.Job) field.ErrorList {
	if *j.Spec.ManualSelector || j.Spec.Selector == nil {
		return nil
	}
	var errs field.ErrorList
	p := specPath.Child("template", "metadata", "labels")
	want := map[string]string{}
	for _, l := range [][2]string{{oldUIDLabel, string(j.UID)}, {oldNameLabel, j.Name}, {batchv1.ControllerUidLabel, string(j.UID)}, {batchv1.JobNameLabel, j.Name}} {
		want[l[0]] = l[1]
		have, ok := j.Spec.Template.Labels[l[0]]
		switch {
		case !ok:
			errs = append(errs, field.Required(p.Key(l[0]), fmt.Sprintf("must be '%s'", l[1])))
		case have != l[1]:
			errs = append(errs, field.Invalid(p.Key(l[0]), j.Spec.Template.Labels, fmt.Sprintf("must be '%s'", l[1])))
		}
	}
	if s, err := metav1.LabelSelectorAsSelector(j.Spec.Selector); err == nil && !s.Matches(labels.Set(want)) {
		errs = append(errs, field.Invalid(specPath.Child("selector"), j.Spec.Selector, "`selector` not auto-generated"))
	}
	return errs
}

// validateJobName: the host name of an indexed job's last pod is a label.
func validateJobName(j *batchv1.Job) field.ErrorList {
	n := j.Spec.Completions
	if !indexed(&j.Spec) || n == nil || *n <= 0 {
		return nil
	}
	host := fmt.Sprintf("%s-%d", j.Name, *n-1)
	if len(validation.IsDNS1123Label(host)) == 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("metadata", "name"), j.Name, "will not able to create pod with invalid DNS label: "+host)}
}

func indexed(s *batchv1.JobSpec) bool {
	return s.CompletionMode != nil && *s.CompletionMode == batchv1.IndexedCompletion
}

// validateSelectingSpec checks the spec of a job, whose selector is set; with lax,
// values of the selector may be bad.
func validateSelectingSpec(s *batchv1.JobSpec, o pod.Options, lax bool) field.ErrorList {
	errs := validateSpec(specPath, s, o)
	if s.Selector == nil {
		errs = append(errs, field.Required(specPath.Child("selector"), ""))
	} else {
		errs = append(errs, metavalidation.ValidateLabelSelector(s.Selector,
			metavalidation.LabelSelectorValidationOptions{AllowInvalidLabelValueInSelector: lax}, specPath.Child("selector"))...)
	}
	if selector, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil && !selector.Matches(labels.Set(s.Template.Labels)) {
		errs = append(errs, field.Invalid(specPath.Child("template", "metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`"))
	}
	return errs
}

// validateSpec checks the spec of a job, or of the jobs that a cron job makes.
func validateSpec(p *field.Path, s *batchv1.JobSpec, o pod.Options) field.ErrorList {
	errs := validateNumbers(p, s)
	if s.ManagedBy != nil {
		errs = append(errs, validation.IsDomainPrefixedPath(p.Child("managedBy"), *s.ManagedBy)...)
		if len(*s.ManagedBy) > mostManagedBy {
			errs = append(errs, field.TooLong(p.Child("managedBy"), "", mostManagedBy))
		}
	}
	errs = append(errs, validateMode(p, s)...)
	if s.PodFailurePolicy != nil {
		errs = append(errs, validateFailurePolicy(p.Child("podFailurePolicy", "rules"), s)...)
	}
	if s.SuccessPolicy != nil {
		if !indexed(s) {
			errs = append(errs, field.Invalid(p.Child("successPolicy"), resource.Shown(*s.SuccessPolicy), needsIndexed))
		} else {
			errs = append(errs, validateSuccessPolicy(p.Child("successPolicy", "rules"), s)...)
		}
	}
	if r := s.PodReplacementPolicy; r != nil {
		allowed := []batchv1.PodReplacementPolicy{batchv1.Failed, batchv1.TerminatingOrFailed}
		if s.PodFailurePolicy != nil {
			allowed = allowed[:1]
		}
		if !slices.Contains(allowed, *r) {
			errs = append(errs, field.NotSupported(p.Child("podReplacementPolicy"), *r, allowed))
		}
	}
	errs = append(errs, pod.ValidateTemplate(&s.Template, p.Child("template"), o)...)
	rp := p.Child("template", "spec", "restartPolicy")
	switch r := s.Template.Spec.RestartPolicy; {
	case r == corev1.RestartPolicyAlways, r == "":
		errs = append(errs, field.Required(rp, `valid values: "OnFailure", "Never"`))
	case r != corev1.RestartPolicyOnFailure && r != corev1.RestartPolicyNever:
		errs = append(errs, field.NotSupported(rp, r, []corev1.RestartPolicy{corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}))
	case s.PodFailurePolicy != nil && r != corev1.RestartPolicyNever:
		errs = append(errs, field.Invalid(rp, r, `only "Never" is supported when podFailurePolicy is specified`))
	}
	return errs
}

func validateNumbers(p *field.Path, s *batchv1.JobSpec) field.ErrorList {
	var errs field.ErrorList
	number := func(name string, n *int32) {
		if n != nil {
			errs = append(errs, resource.NotNegative(p, resource.N(name, *n))...)
		}
	}
	number("parallelism", s.Parallelism)
	number("completions", s.Completions)
	if s.ActiveDeadlineSeconds != nil {
		errs = append(errs, apivalidation.ValidateNonnegativeField(*s.ActiveDeadlineSeconds, p.Child("activeDeadlineSeconds"))...)
	}
	number("backoffLimit", s.BackoffLimit)
	number("ttlSecondsAfterFinished", s.TTLSecondsAfterFinished)
	number("backoffLimitPerIndex", s.BackoffLimitPerIndex)
	number("maxFailedIndexes", s.MaxFailedIndexes)
	if s.MaxFailedIndexes != nil && s.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Required(p.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
	}
	return errs
}

// validateMode checks what goes with the completion mode.
func validateMode(p *field.Path, s *batchv1.JobSpec) field.ErrorList {
	var errs field.ErrorList
	refuse := func(name string, n *int32, limit int32, format string, args ...any) {
		if n != nil && *n > limit {
			errs = append(errs, field.Invalid(p.Child(name), *n, fmt.Sprintf(format, args...)))
		}
	}
	mode := s.CompletionMode
	if mode != nil && *mode != batchv1.NonIndexedCompletion && *mode != batchv1.IndexedCompletion {
		errs = append(errs, field.NotSupported(p.Child("completionMode"), *mode, []batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion}))
	}
	if mode == nil || *mode == batchv1.NonIndexedCompletion {
		if n := s.BackoffLimitPerIndex; n != nil {
			errs = append(errs, field.Invalid(p.Child("backoffLimitPerIndex"), *n, needsIndexed))
		}
		if n := s.MaxFailedIndexes; n != nil {
			errs = append(errs, field.Invalid(p.Child("maxFailedIndexes"), *n, needsIndexed))
		}
	}
	if !indexed(s) {
		return errs
	}
	if s.Completions == nil {
		errs = append(errs, field.Required(p.Child("completions"), "when completion mode is Indexed"))
	}
	refuse("parallelism", s.Parallelism, mostParallel, "must be less than or equal to %d when completion mode is Indexed", mostParallel)
	if s.Completions != nil {
		refuse("maxFailedIndexes", s.MaxFailedIndexes, *s.Completions, "must be less than or equal to completions")
	}
	refuse("maxFailedIndexes", s.MaxFailedIndexes, mostFailed, "must be less than or equal to %d", mostFailed)
	if s.Completions == nil || *s.Completions <= manyCompletions || s.BackoffLimitPerIndex == nil {
		return errs
	}
	if s.MaxFailedIndexes == nil {
		errs = append(errs, field.Required(p.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions)))
	}
	const of = "must be less than or equal to %d when completions are above %d and used with backoff limit per index"
	refuse("parallelism", s.Parallelism, mostParallelOfMany, of, mostParallelOfMany, manyCompletions)
	refuse("maxFailedIndexes", s.MaxFailedIndexes, mostFailedOfMany, of, mostFailedOfMany, manyCompletions)
	return errs
}

// oneOf asks for one of the values, which are sorted.
func oneOf[T ~string](p *field.Path, v T, allowed ...T) field.ErrorList {
	switch {
	case v == "":
		return field.ErrorList{field.Required(p, fmt.Sprintf("valid values: %q", allowed))}
	case !slices.Contains(allowed, v):
		return field.ErrorList{field.NotSupported(p, v, allowed)}
	}
	return nil
}

func validateFailurePolicy(p *field.Path, s *batchv1.JobSpec) field.ErrorList {
	var errs field.ErrorList
	rules := s.PodFailurePolicy.Rules
	if len(rules) > mostRules {
		errs = append(errs, field.TooMany(p, len(rules), mostRules))
	}
	for i := range rules {
		errs = append(errs, validateFailureRule(p.Index(i), &rules[i], s)...)
	}
	return errs
}

func validateFailureRule(p *field.Path, r *batchv1.PodFailurePolicyRule, s *batchv1.JobSpec) field.ErrorList {
	var errs field.ErrorList
	if r.Action == batchv1.PodFailurePolicyActionFailIndex {
		if s.BackoffLimitPerIndex == nil {
			errs = append(errs, field.Invalid(p.Child("action"), r.Action, "requires the backoffLimitPerIndex to be set"))
		}
	} else {
		errs = append(errs, oneOf(p.Child("action"), r.Action, batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex,
			batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore)...)
	}
	if r.OnExitCodes != nil {
		errs = append(errs, validateExitCodes(p.Child("onExitCodes"), r.OnExitCodes, &s.Template.Spec)...)
	}
	cp := p.Child("onPodConditions")
	if len(r.OnPodConditions) > mostConditions {
		errs = append(errs, field.TooMany(cp, len(r.OnPodConditions), mostConditions))
	}
	for i, c := range r.OnPodConditions {
		for _, msg := range validation.IsQualifiedName(string(c.Type)) {
			errs = append(errs, field.Invalid(cp.Index(i).Child("type"), string(c.Type), msg))
		}
		errs = append(errs, oneOf(cp.Index(i).Child("status"), c.Status, corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown)...)
	}
	switch conditions := len(r.OnPodConditions) > 0; {
	case r.OnExitCodes != nil && conditions:
		errs = append(errs, field.Invalid(p, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported"))
	case r.OnExitCodes == nil && !conditions:
		errs = append(errs, field.Invalid(p, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required"))
	}
	return errs
}

func validateExitCodes(p *field.Path, r *batchv1.PodFailurePolicyOnExitCodesRequirement, spec *corev1.PodSpec) field.ErrorList {
	errs := oneOf(p.Child("operator"), r.Operator, batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn)
	named := func(c corev1.Container) bool { return c.Name == *r.ContainerName }
	if r.ContainerName != nil && !slices.ContainsFunc(spec.Containers, named) && !slices.ContainsFunc(spec.InitContainers, named) {
		errs = append(errs, field.Invalid(p.Child("containerName"), *r.ContainerName, "must be one of the container or initContainer names in the pod template"))
	}
	vp := p.Child("values")
	if len(r.Values) == 0 {
		errs = append(errs, field.Invalid(vp, r.Values, "at least one value is required"))
	} else if len(r.Values) > mostExitCodes {
		errs = append(errs, field.TooMany(vp, len(r.Values), mostExitCodes))
	}
	seen := map[int32]bool{}
	for i, v := range r.Values {
		if r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && v == 0 {
			errs = append(errs, field.Invalid(vp.Index(i), v, "must not be 0 for the In operator"))
		}
		if seen[v] {
			errs = append(errs, field.Duplicate(vp.Index(i), v))
		}
		seen[v] = true
	}
	if !slices.IsSorted(r.Values) {
		errs = append(errs, field.Invalid(vp, r.Values, "must be ordered"))
	}
	return errs
}

// validateSuccessPolicy: the job is indexed.
func validateSuccessPolicy(p *field.Path, s *batchv1.JobSpec) field.ErrorList {
	var errs field.ErrorList
	rules := s.SuccessPolicy.Rules
	if len(rules) == 0 {
		errs = append(errs, field.Required(p, "at least one rules must be specified when the successPolicy is specified"))
	}
	if len(rules) > mostRules {
		errs = append(errs, field.TooMany(p, len(rules), mostRules))
	}
	for i := range rules {
		r, rp := &rules[i], p.Index(i)
		if r.SucceededCount == nil && r.SucceededIndexes == nil {
			errs = append(errs, field.Required(rp, "at least one of succeededCount or succeededIndexes must be specified"))
		}
		// Completions that are missing are reported with the mode.
		var all int32
		if s.Completions != nil {
			all = *s.Completions
		}
		var named int32
		if list := r.SucceededIndexes; list != nil {
			ip := rp.Child("succeededIndexes")
			if len(*list) > mostSuccessIndexes {
				errs = append(errs, field.TooLong(ip, "", mostSuccessIndexes))
			}
			var err error
			if named, err = countIndexes(*list, all); err != nil {
				errs = append(errs, field.Invalid(ip, *list, fmt.Sprintf("error parsing succeededIndexes: %s", err)))
			}
		}
		n := r.SucceededCount
		if n == nil {
			continue
		}
		errs = append(errs, resource.NotNegative(rp, resource.N("succeededCount", *n))...)
		if *n > all {
			errs = append(errs, field.Invalid(rp.Child("succeededCount"), *n, fmt.Sprintf("must be less than or equal to %d (the number of specified completions)", all)))
		}
		if r.SucceededIndexes != nil && *n > named {
			errs = append(errs, field.Invalid(rp.Child("succeededCount"), *n, fmt.Sprintf("must be less than or equal to %d (the number of indexes in the specified succeededIndexes field)", named)))
		}
	}
	return errs
}
