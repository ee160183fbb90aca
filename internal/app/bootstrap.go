package app

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/scheduling"
	"skiff/internal/api/storage"
	"skiff/internal/apiserver/policy"
	"skiff/internal/client"
	"skiff/internal/control"
	"skiff/internal/controller"
)

// atOnce bounds the writes of the bootstrap in flight together: the store commits
// what waits as one group.
const atOnce = 128

// bootstrap makes the objects that every cluster has, where they are not there,
// and brings the roles and bindings of the policy up to date. all are the
// controllers, whose roles follow from what they declare.
func (s *server) bootstrap(ctx context.Context, all []*control.Controller) error {
	c := s.api.System()
	if err := s.namespaces(ctx, c); err != nil {
		return err
	}
	p := policy.Default()
	role, binding := explainPolicy()
	p.ClusterRoles, p.ClusterRoleBindings = append(p.ClusterRoles, role), append(p.ClusterRoleBindings, binding)
	for _, k := range all {
		p.AddController(k.Name, k.Rules())
	}
	var eg errgroup.Group
	eg.SetLimit(atOnce)
	eg.Go(func() error { return applyPolicy(ctx, c, p) })
	for _, pc := range scheduling.SystemClasses() {
		eg.Go(func() error { return ensure(ctx, c, pc) })
	}
	eg.Go(func() error { return ensure(ctx, c, localClass()) })
	eg.Go(func() error { return s.extensionAuthentication(ctx, c) })
	eg.Go(func() error { return s.serviceObjects(ctx, c) })
	return eg.Wait()
}

func (s *server) namespaces(ctx context.Context, c *client.Client) error {
	var eg errgroup.Group
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		eg.Go(func() error { return ensure(ctx, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}) })
	}
	return eg.Wait()
}

// localClass is the default class: volumes are directories of the node that the
// first pod of a claim runs on.
func localClass() *storagev1.StorageClass {
	wait, grows, policy := storagev1.VolumeBindingWaitForFirstConsumer, true, corev1.PersistentVolumeReclaimDelete
	return &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "local", Annotations: map[string]string{storage.DefaultClassAnnotation: "true"}},
		Provisioner: controller.LocalProvisioner, VolumeBindingMode: &wait, AllowVolumeExpansion: &grows, ReclaimPolicy: &policy,
	}
}

// ensure creates an object that is not there.
func ensure[T client.Object](ctx context.Context, c *client.Client, o T) error {
	kind := client.For[T](c).In(o.GetNamespace())
	if _, err := kind.Get(ctx, o.GetName()); err == nil {
		return nil
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read %T %q: %w", o, o.GetName(), err)
	}
	if _, err := kind.Create(ctx, o); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %T %q: %w", o, o.GetName(), err)
	}
	return nil
}

// reconcile creates an object that is not there (ok is false), and otherwise writes
// what change makes of it as it is now; change returns nil where it is as it should
// be.
func reconcile[T client.Object](ctx context.Context, c *client.Client, want T, now T, ok bool, change func(have T) T) error {
	kind := client.For[T](c).In(want.GetNamespace())
	for {
		var err error
		if !ok {
			_, err = kind.Create(ctx, want)
		} else {
			o := change(now)
			if any(o) == any(*new(T)) {
				return nil
			}
			_, err = kind.Update(ctx, o)
		}
		if err == nil {
			return nil
		}
		if !apierrors.IsAlreadyExists(err) && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return fmt.Errorf("write %T %q: %w", want, want.GetName(), err)
		}
		// Another server of this cluster was quicker.
		if now, err = kind.Get(ctx, want.GetName()); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("read %T %q: %w", want, want.GetName(), err)
		}
		ok = err == nil
	}
}

// existing lists what there is of a kind, by namespace/name.
func existing[T client.Object](ctx context.Context, c *client.Client) (map[string]T, error) {
	list, _, err := client.For[T](c).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	out := make(map[string]T, len(list))
	for _, o := range list {
		out[o.GetNamespace()+"/"+o.GetName()] = o
	}
	return out, nil
}
