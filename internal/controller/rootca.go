package controller

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

const (
	rootCAName            = "kube-root-ca.crt"
	descriptionAnnotation = "kubernetes.io/description"
	rootCADescription     = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. " +
		"No other usage is guaranteed across distributions of Kubernetes clusters."
)

// newRootCA returns the controller that publishes the cluster's CA in every
// namespace. Keys are namespaces.
func newRootCA(d Deps) *control.Controller {
	c := control.New("root-ca-cert-publisher", d.Deps)
	namespaces := control.Watch(c, func(ch client.Change[*corev1.Namespace]) {
		if !ch.Deleted() {
			c.Queue.Add(control.Key{Name: ch.New.Name})
		}
	})
	configMaps := control.Watch(c, func(ch client.Change[*corev1.ConfigMap]) {
		if o := ch.Object(); o.Name == rootCAName {
			c.Queue.Add(control.Key{Name: o.Namespace})
		}
	})
	c.Writes = append(c.Writes, control.Rule("", []string{"configmaps"}, "create", "update"))
	want := map[string]string{"ca.crt": string(d.RootCA)}
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		ns, ok := namespaces.Get("", k.Name)
		if !ok || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
			return control.Result{}, nil
		}
		api := client.For[*corev1.ConfigMap](c.Client).In(k.Name)
		old, ok := configMaps.Get(k.Name, rootCAName)
		var got *corev1.ConfigMap
		var err error
		switch {
		case !ok:
			got, err = api.Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Namespace: k.Name, Name: rootCAName, Annotations: map[string]string{descriptionAnnotation: rootCADescription}},
				Data:       want,
			})
			if namespaceGone(err) {
				return control.Result{}, nil
			}
		case maps.Equal(old.Data, want) && len(old.BinaryData) == 0 && old.Annotations[descriptionAnnotation] != "":
			return control.Result{}, nil
		default:
			next := old.DeepCopy()
			next.Data, next.BinaryData = want, nil
			metav1.SetMetaDataAnnotation(&next.ObjectMeta, descriptionAnnotation, rootCADescription)
			got, err = api.Update(ctx, next)
		}
		if err != nil {
			return control.Result{}, err
		}
		control.Wrote(c.Pending, k, configMaps, got)
		return control.Result{}, nil
	}
	return c
}
