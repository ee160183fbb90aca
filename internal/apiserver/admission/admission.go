// Package admission has the admission plugins that every cluster runs: what
// upstream's API server has on by default and does not need a webhook for.
//
// A plugin reads other objects as the API server itself. What it finds in the
// cache it takes; what it does not find there, and what must not be stale, it
// reads again with everything that was written before the request.
package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/apiserver"
	"skiff/internal/client"
)

// Default returns the plugins in upstream's order.
func Default() []apiserver.Admission {
	return []apiserver.Admission{
		NewNamespaceLifecycle(), LimitRanger{}, ServiceAccount{}, NodeRestriction{}, TaintNodesByCondition{}, Priority{}, DefaultTolerationSeconds{},
		DefaultStorageClass{}, StorageObjectInUseProtection{}, PodGroupProtection{}, PersistentVolumeClaimResize{}, RuntimeClass{},
		CertificateApproval{}, CertificateSigning{}, ClusterTrustBundleAttest{}, CertificateSubjectRestriction{}, DefaultIngressClass{},
		NodeFeatures{}, PodResize{},
		NewResourceQuota(),
	}
}

var (
	podsResource   = schema.GroupResource{Resource: "pods"}
	claimsResource = schema.GroupResource{Resource: "persistentvolumeclaims"}
)

func resourceOf(a *apiserver.Attributes) schema.GroupResource { return a.Resource.GroupResource() }

// forbidden is upstream's refusal by a plugin. A refusal inside is passed on.
func forbidden(a *apiserver.Attributes, err error) error {
	if apierrors.IsForbidden(err) {
		return err
	}
	return forbiddenStatus(a, err)
}

func forbiddenStatus(a *apiserver.Attributes, err error) *apierrors.StatusError {
	name := a.Name
	if name == "" && a.Object != nil {
		if name = a.Object.GetName(); name == "" {
			name = a.Object.GetGenerateName()
		}
	}
	if name == "" {
		name = "Unknown"
	}
	return apierrors.NewForbidden(resourceOf(a), name, err)
}

// newPod returns the pod that a request creates, nil for any other request.
func newPod(a *apiserver.Attributes) *corev1.Pod {
	if a.Operation != apiserver.OpCreate || a.Subresource != "" || resourceOf(a) != podsResource {
		return nil
	}
	p, _ := a.Object.(*corev1.Pod)
	return p
}

// cached reads what the cache holds, and only where that is nothing, the store.
func cached[T client.Object](ctx context.Context, c *client.Client, ns, name string) (T, error) {
	var none T
	o, err := c.Transport().Get(ctx, client.Ref{GVR: client.KindOf[T]().GVR, Namespace: ns, Name: name}, metav1.GetOptions{ResourceVersion: "0"})
	if err == nil {
		if t, ok := o.(T); ok {
			return t, nil
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return none, err
	}
	return client.For[T](c).In(ns).Get(ctx, name)
}

// listed returns all objects of a kind of the cluster; none where the kind is not
// served.
func listed[T client.Object](ctx context.Context, c *client.Client) ([]T, error) {
	list, err := c.Transport().List(ctx, client.Ref{GVR: client.KindOf[T]().GVR}, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(list.Items))
	for _, o := range list.Items {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out, nil
}

// noValidation is for plugins that only change what is written.
type noValidation struct{}

// Validate implements apiserver.Admission.
func (noValidation) Validate(context.Context, *apiserver.Attributes) error { return nil }
