package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	resourcehelper "k8s.io/component-helpers/resource"

	"skiff/internal/apiserver"
	"skiff/internal/client"
)

// LimitRanger gives containers the default requests and limits of a namespace, and
// holds pods, containers and claims to its LimitRanges.
type LimitRanger struct{}

const limitRangerAnnotation = "kubernetes.io/limit-ranger"

// Name implements apiserver.Admission.
func (LimitRanger) Name() string { return "LimitRanger" }

// limited tells whether limits hold for a request: what pods and claims use is
// fixed when they are created, but for a claim that grows and a pod that is
// resized.
func limited(a *apiserver.Attributes) bool {
	if a.Old != nil && a.Old.GetDeletionTimestamp() != nil {
		return false
	}
	switch gr := resourceOf(a); {
	case gr == podsResource && a.Subresource == "resize":
		return a.Operation == apiserver.OpUpdate
	case a.Subresource != "":
		return false
	case gr == podsResource:
		return a.Operation == apiserver.OpCreate
	case gr == claimsResource:
		return a.Operation == apiserver.OpCreate || a.Operation == apiserver.OpUpdate
	}
	return false
}

// ranges returns the LimitRanges of the request's namespace.
func ranges(ctx context.Context, a *apiserver.Attributes) ([]*corev1.LimitRange, error) {
	list, _, err := client.For[*corev1.LimitRange](a.Env.Client).In(a.Namespace).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, forbidden(a, fmt.Errorf("unable to %s %v at this time because there was an error enforcing limit ranges", a.Operation, a.Resource.GVR()))
	}
	return list, nil
}

// Admit implements apiserver.Admission.
func (LimitRanger) Admit(ctx context.Context, a *apiserver.Attributes) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || !limited(a) {
		return nil
	}
	list, err := ranges(ctx, a)
	if err != nil {
		return err
	}
	for _, r := range list {
		giveDefaults(pod, r)
	}
	return nil
}

// giveDefaults fills in what containers leave out, and notes that on the pod.
func giveDefaults(pod *corev1.Pod, r *corev1.LimitRange) {
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	for _, l := range r.Spec.Limits {
		if l.Type == corev1.LimitTypeContainer {
			maps.Copy(requests, l.DefaultRequest)
			maps.Copy(limits, l.Default)
		}
	}
	var notes []string
	give := func(to *corev1.ResourceList, from corev1.ResourceList, what, container string) {
		if *to == nil {
			*to = corev1.ResourceList{}
		}
		var given []string
		for n, q := range from {
			if _, ok := (*to)[n]; !ok {
				(*to)[n] = q.DeepCopy()
				given = append(given, string(n))
			}
		}
		if len(given) > 0 {
			slices.Sort(given)
			notes = append(notes, fmt.Sprintf("%s %s for %s", strings.Join(given, ", "), what, container))
		}
	}
	for _, list := range []struct {
		name       string
		containers []corev1.Container
	}{{"container", pod.Spec.Containers}, {"init container", pod.Spec.InitContainers}} {
		for i := range list.containers {
			c := &list.containers[i]
			give(&c.Resources.Requests, requests, "request", list.name+" "+c.Name)
			give(&c.Resources.Limits, limits, "limit", list.name+" "+c.Name)
		}
	}
	if len(notes) > 0 {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[limitRangerAnnotation] = "LimitRanger plugin set: " + strings.Join(notes, "; ")
	}
}

// Validate implements apiserver.Admission.
func (LimitRanger) Validate(ctx context.Context, a *apiserver.Attributes) error {
	if !limited(a) {
		return nil
	}
	list, err := ranges(ctx, a)
	if err != nil {
		return err
	}
	for _, r := range list {
		var errs []error
		switch o := a.Object.(type) {
		case *corev1.Pod:
			errs = podWithin(r, o, a.Env.Features.Enabled("PodLevelResources"))
		case *corev1.PersistentVolumeClaim:
			errs = claimWithin(r, o)
		}
		if len(errs) > 0 {
			return forbidden(a, utilerrors.NewAggregate(errs))
		}
	}
	return nil
}

func claimWithin(r *corev1.LimitRange, c *corev1.PersistentVolumeClaim) []error {
	var errs []error
	for _, l := range r.Spec.Limits {
		if l.Type != corev1.LimitTypePersistentVolumeClaim {
			continue
		}
		w := within{typ: l.Type, requests: c.Spec.Resources.Requests}
		w.each(l.Min, w.least)
		w.each(l.Max, w.mostRequested)
		errs = append(errs, w.errs...)
	}
	return errs
}

func podWithin(r *corev1.LimitRange, pod *corev1.Pod, podLevel bool) []error {
	var errs []error
	check := func(l *corev1.LimitRangeItem, requests, limits corev1.ResourceList) {
		w := within{typ: l.Type, requests: requests, limits: limits}
		w.each(l.Min, w.least)
		w.each(l.Max, w.most)
		w.each(l.MaxLimitRequestRatio, w.ratio)
		errs = append(errs, w.errs...)
	}
	for i := range r.Spec.Limits {
		l := &r.Spec.Limits[i]
		switch l.Type {
		case corev1.LimitTypeContainer:
			for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
				for j := range list {
					check(l, list[j].Resources.Requests, list[j].Resources.Limits)
				}
			}
		case corev1.LimitTypePod:
			requests, limits := podResources(pod, podLevel)
			check(l, requests, limits)
		}
	}
	return errs
}

// podResources are the requests and limits of all containers together, or those of
// the pod as a whole where it has some.
func podResources(pod *corev1.Pod, podLevel bool) (requests, limits corev1.ResourceList) {
	sum := &corev1.Pod{Spec: corev1.PodSpec{Containers: pod.Spec.Containers, InitContainers: pod.Spec.InitContainers}}
	requests = resourcehelper.AggregateContainerRequests(sum, resourcehelper.PodResourcesOptions{})
	limits = resourcehelper.AggregateContainerLimits(sum, resourcehelper.PodResourcesOptions{})
	if own := pod.Spec.Resources; podLevel && own != nil {
		for _, n := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q, ok := own.Requests[n]; ok {
				requests[n] = q
			}
			if q, ok := own.Limits[n]; ok {
				limits[n] = q
			}
		}
	}
	return requests, limits
}

// within compares what one thing uses with what a limit allows.
type within struct {
	typ              corev1.LimitType
	requests, limits corev1.ResourceList
	errs             []error
}

func (w *within) each(allowed corev1.ResourceList, rule func(corev1.ResourceName, apiresource.Quantity) error) {
	for _, n := range slices.Sorted(maps.Keys(allowed)) {
		if err := rule(n, allowed[n]); err != nil {
			w.errs = append(w.errs, err)
		}
	}
}

// used is what is used of a resource: requested, limited to, and whether either is
// said at all.
type used struct {
	request, limit       apiresource.Quantity
	hasRequest, hasLimit bool
	// The same and what is allowed in one unit: thousandths, where they fit.
	r, l, allowed int64
}

func (w *within) of(n corev1.ResourceName, allowed apiresource.Quantity) used {
	var u used
	u.request, u.hasRequest = w.requests[n]
	u.limit, u.hasLimit = w.limits[n]
	u.r, u.l, u.allowed = u.request.Value(), u.limit.Value(), allowed.Value()
	if u.r <= apiresource.MaxMilliValue && u.l <= apiresource.MaxMilliValue && u.allowed <= apiresource.MaxMilliValue {
		u.r, u.l, u.allowed = u.request.MilliValue(), u.limit.MilliValue(), allowed.MilliValue()
	}
	return u
}

func (w *within) refuse(bound string, n corev1.ResourceName, allowed apiresource.Quantity, detail string) error {
	return errors.New(fmt.Sprintf("%s %s usage per %s is %s", bound, n, w.typ, allowed.String()) + detail)
}

func (w *within) least(n corev1.ResourceName, allowed apiresource.Quantity) error {
	switch u := w.of(n, allowed); {
	case !u.hasRequest:
		return w.refuse("minimum", n, allowed, ".  No request is specified")
	case u.r < u.allowed:
		return w.refuse("minimum", n, allowed, ", but request is "+u.request.String())
	case u.hasLimit && u.l < u.allowed:
		return w.refuse("minimum", n, allowed, ", but limit is "+u.limit.String())
	}
	return nil
}

func (w *within) most(n corev1.ResourceName, allowed apiresource.Quantity) error {
	switch u := w.of(n, allowed); {
	case !u.hasLimit:
		return w.refuse("maximum", n, allowed, ".  No limit is specified")
	case u.l > u.allowed:
		return w.refuse("maximum", n, allowed, ", but limit is "+u.limit.String())
	case u.hasRequest && u.r > u.allowed:
		return w.refuse("maximum", n, allowed, ", but request is "+u.request.String())
	}
	return nil
}

// mostRequested is for what has no limits.
func (w *within) mostRequested(n corev1.ResourceName, allowed apiresource.Quantity) error {
	switch u := w.of(n, allowed); {
	case !u.hasRequest:
		return w.refuse("maximum", n, allowed, ".  No request is specified")
	case u.r > u.allowed:
		return w.refuse("maximum", n, allowed, ", but request is "+u.request.String())
	}
	return nil
}

func (w *within) ratio(n corev1.ResourceName, allowed apiresource.Quantity) error {
	refuse := func(format string, args ...any) error {
		return errors.New(fmt.Sprintf("%s max limit to request ratio per %s is %s, but ", n, w.typ, allowed.String()) + fmt.Sprintf(format, args...))
	}
	u := w.of(n, allowed)
	if !u.hasRequest || u.r == 0 {
		return refuse("no request is specified or request is 0")
	}
	if !u.hasLimit || u.l == 0 {
		return refuse("no limit is specified or limit is 0")
	}
	have := float64(u.l) / float64(u.r)
	compare, most := have, float64(allowed.Value())
	if allowed.Value() <= apiresource.MaxMilliValue {
		compare, most = have*1000, float64(allowed.MilliValue())
	}
	if compare > most {
		return refuse("provided ratio is %f", have)
	}
	return nil
}
