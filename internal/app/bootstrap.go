package app

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

// bootstrap makes the objects that every cluster has, where they are not there.
func (s *server) bootstrap(ctx context.Context) error {
	c := s.api.System()
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		if err := ensure(ctx, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	return nil
}

// ensure creates an object that is not there.
func ensure[T client.Object](ctx context.Context, c *client.Client, o T) error {
	_, err := client.For[T](c).Create(ctx, o)
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %T %q: %w", o, o.GetName(), err)
	}
	return nil
}
