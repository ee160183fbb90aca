package admission

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/version"
	ndf "k8s.io/component-helpers/nodedeclaredfeatures"

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
	pod, _ := a.Object.(*corev1.Pod)
	old, _ := a.Old.(*corev1.Pod)
	// The generation counts changes of the spec.
	if pod == nil || old == nil || pod.Spec.NodeName == "" || pod.Generation == old.Generation || !a.Env.Features.Enabled("NodeDeclaredFeatures") {
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
	node, err := client.For[*corev1.Node](a.Env.Client).Get(ctx, pod.Spec.NodeName)
	switch {
	case apierrors.IsNotFound(err):
		return forbidden(a, fmt.Errorf("node %q not found", pod.Spec.NodeName))
	case err != nil:
		return forbidden(a, fmt.Errorf("failed to get node %q: %w", pod.Spec.NodeName, err))
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
