package admission

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	ndf "k8s.io/component-helpers/nodedeclaredfeatures"
	"k8s.io/component-helpers/resource"

	"skiff/internal/apiserver"
	"skiff/internal/client"
)

// NodeFeatures refuses changes of a bound pod that need what its node does not
// declare that it can do (KEP-5328): resizing in place, before all.
type NodeFeatures struct{}

// featuresOf is the release whose features are asked for.
var featuresOf = version.MustParseGeneric("1.37.2")

// Name implements apiserver.Admission.
func (NodeFeatures) Name() string { return "NodeDeclaredFeatureValidator" }

// Admit implements apiserver.Admission.
func (NodeFeatures) Admit(context.Context, *apiserver.Attributes) error { return nil }

// Validate implements apiserver.Admission.
func (NodeFeatures) Validate(ctx context.Context, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpUpdate || resourceOf(a) != podsResource || a.Subresource != "" && a.Subresource != "resize" {
		return nil
	}
	pod, old := changedOnNode(a)
	if old == nil || !a.Env.Features.Enabled("NodeDeclaredFeatures") {
		return nil
	}
	needs, err := ndf.DefaultFramework.InferForPodUpdate(
		&ndf.PodInfo{Spec: &old.Spec, Status: &old.Status}, &ndf.PodInfo{Spec: &pod.Spec, Status: &pod.Status}, featuresOf)
	if err != nil {
		return forbidden(a, fmt.Errorf("failed to infer pod capability requirements: %w", err))
	}
	if needs.IsEmpty() {
		return nil
	}
	node, err := nodeOf(ctx, a, pod)
	if err != nil {
		return err
	}
	match, err := ndf.DefaultFramework.MatchNode(needs, node)
	if err != nil {
		return forbidden(a, fmt.Errorf("failed to match pod requirements against node %q: %w", node.Name, err))
	}
	if !match.IsMatch {
		return forbidden(a, fmt.Errorf("pod update requires features %s which are not available on node %q", strings.Join(match.UnsatisfiedRequirements, ", "), node.Name))
	}
	return nil
}

// PodResize refuses to resize a pod in place where its node cannot give what it
// asks for, or does not do such a thing.
type PodResize struct{}

// Name implements apiserver.Admission.
func (PodResize) Name() string { return "PodResizeValidator" }

// Admit implements apiserver.Admission.
func (PodResize) Admit(context.Context, *apiserver.Attributes) error { return nil }

// Validate implements apiserver.Admission.
func (PodResize) Validate(ctx context.Context, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpUpdate || resourceOf(a) != podsResource || a.Subresource != "resize" {
		return nil
	}
	pod, old := changedOnNode(a)
	if old == nil {
		return nil
	}
	node, err := nodeOf(ctx, a, pod)
	if err != nil {
		return err
	}
	if system, ok := node.Labels[corev1.LabelOSStable]; ok && system != "linux" {
		return cannotResize(a, "UnsupportedPlatform", fmt.Errorf("pod resize is only supported on linux nodes, node %q is %q", node.Name, system))
	}
	var over []string
	requests := resource.PodRequests(pod, resource.PodResourcesOptions{})
	if want, have := requests.Cpu(), node.Status.Allocatable.Cpu(); want.Cmp(*have) > 0 {
		over = append(over, fmt.Sprintf("cpu, requested: %d, allocatable: %d", want.MilliValue(), have.MilliValue()))
	}
	if want, have := requests.Memory(), node.Status.Allocatable.Memory(); want.Cmp(*have) > 0 {
		over = append(over, fmt.Sprintf("memory, requested: %d, allocatable: %d", want.Value(), have.Value()))
	}
	if len(over) > 0 {
		return cannotResize(a, "NodeCapacity", fmt.Errorf("node didn't have enough allocatable resources: %s", strings.Join(over, "; ")))
	}
	return nil
}

// cannotResize is a refusal whose cause clients can tell.
func cannotResize(a *apiserver.Attributes, cause metav1.CauseType, err error) error {
	out := forbiddenStatus(a, err)
	out.ErrStatus.Details.Causes = append(out.ErrStatus.Details.Causes, metav1.StatusCause{Type: cause})
	return out
}

// changedOnNode returns the pod of an update that changes the spec of a bound pod,
// and what it was; nil where the update is none. The generation counts changes of
// the spec.
func changedOnNode(a *apiserver.Attributes) (pod, old *corev1.Pod) {
	pod, _ = a.Object.(*corev1.Pod)
	old, _ = a.Old.(*corev1.Pod)
	if pod == nil || old == nil || pod.Spec.NodeName == "" || pod.Generation == old.Generation {
		return nil, nil
	}
	return pod, old
}

func nodeOf(ctx context.Context, a *apiserver.Attributes, pod *corev1.Pod) (*corev1.Node, error) {
	node, err := client.For[*corev1.Node](a.Env.Client).Get(ctx, pod.Spec.NodeName)
	switch {
	case apierrors.IsNotFound(err):
		return nil, forbidden(a, fmt.Errorf("node %q not found", pod.Spec.NodeName))
	case err != nil:
		return nil, forbidden(a, fmt.Errorf("failed to get node %q: %w", pod.Spec.NodeName, err))
	}
	return node, nil
}
