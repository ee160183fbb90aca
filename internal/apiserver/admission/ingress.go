package admission

import (
	"context"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/networking"
	"skiff/internal/apiserver"
	"skiff/internal/client"
)

// DefaultIngressClass gives Ingresses that name no class the default one.
type DefaultIngressClass struct{ noValidation }

// Name implements apiserver.Admission.
func (DefaultIngressClass) Name() string { return "DefaultIngressClass" }

// Admit implements apiserver.Admission.
func (DefaultIngressClass) Admit(ctx context.Context, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpCreate || a.Subresource != "" {
		return nil
	}
	i, ok := a.Object.(*networkingv1.Ingress)
	if !ok {
		return nil
	}
	if _, annotated := i.Annotations[networking.IngressClassAnnotation]; annotated || i.Spec.IngressClassName != nil {
		return nil
	}
	list, err := a.Env.Client.Transport().List(ctx, client.Ref{GVR: client.KindOf[*networkingv1.IngressClass]().GVR}, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return forbidden(a, err)
	}
	classes := make([]*networkingv1.IngressClass, 0, len(list.Items))
	for _, o := range list.Items {
		if c, ok := o.(*networkingv1.IngressClass); ok {
			classes = append(classes, c)
		}
	}
	if d := networking.DefaultClass(classes); d != nil {
		name := d.Name
		i.Spec.IngressClassName = &name
	}
	return nil
}
