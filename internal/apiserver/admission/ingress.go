package admission

import (
	"context"

	networkingv1 "k8s.io/api/networking/v1"

	"skiff/internal/api/networking"
	"skiff/internal/apiserver"
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
	classes, err := listed[*networkingv1.IngressClass](ctx, a.Env.Client)
	if err != nil {
		return forbidden(a, err)
	}
	if d := networking.DefaultClass(classes); d != nil {
		name := d.Name
		i.Spec.IngressClassName = &name
	}
	return nil
}
