package app

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"
	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/auth/rbac/validation"

	"skiff/internal/apiserver/policy"
	"skiff/internal/client"
)

// applyPolicy adds to the cluster's roles and bindings what the policy has and
// they lack. It takes nothing away: what an administrator added stays, and an
// object whose autoupdate annotation is not "true" is left alone.
func applyPolicy(ctx context.Context, c *client.Client, p policy.Policy) error {
	clusterRoles, err := existing[*rbacv1.ClusterRole](ctx, c)
	if err != nil {
		return err
	}
	roles, err := existing[*rbacv1.Role](ctx, c)
	if err != nil {
		return err
	}
	clusterBindings, err := existing[*rbacv1.ClusterRoleBinding](ctx, c)
	if err != nil {
		return err
	}
	bindings, err := existing[*rbacv1.RoleBinding](ctx, c)
	if err != nil {
		return err
	}
	var eg errgroup.Group
	eg.SetLimit(atOnce)
	for _, want := range p.ClusterRoles {
		eg.Go(func() error {
			now, ok := find(clusterRoles, want)
			return reconcile(ctx, c, want, now, ok, func(have *rbacv1.ClusterRole) *rbacv1.ClusterRole {
				o := have.DeepCopy()
				changed := annotate(&o.ObjectMeta, want.ObjectMeta)
				if want.AggregationRule == nil {
					changed = addRules(&o.Rules, want.Rules) || changed
				} else if o.AggregationRule == nil || !selects(o.AggregationRule, want.AggregationRule) {
					// What such a role gathers is for its controller to say.
					o.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: append(slices.Clone(selectorsOf(o.AggregationRule)), want.AggregationRule.ClusterRoleSelectors...)}
					changed = true
				}
				if !changed || !auto(have) {
					return nil
				}
				return o
			})
		})
	}
	for _, want := range p.Roles {
		eg.Go(func() error {
			now, ok := find(roles, want)
			return reconcile(ctx, c, want, now, ok, func(have *rbacv1.Role) *rbacv1.Role {
				o := have.DeepCopy()
				changed := annotate(&o.ObjectMeta, want.ObjectMeta)
				if changed = addRules(&o.Rules, want.Rules) || changed; !changed || !auto(have) {
					return nil
				}
				return o
			})
		})
	}
	for _, want := range p.ClusterRoleBindings {
		eg.Go(func() error {
			now, ok := find(clusterBindings, want)
			if ok && now.RoleRef != want.RoleRef && auto(now) {
				if err := remove(ctx, c, now); err != nil {
					return err
				}
				ok = false
			}
			return reconcile(ctx, c, want, now, ok, func(have *rbacv1.ClusterRoleBinding) *rbacv1.ClusterRoleBinding {
				o := have.DeepCopy()
				changed := annotate(&o.ObjectMeta, want.ObjectMeta)
				if changed = addSubjects(&o.Subjects, want.Subjects) || changed; !changed || !auto(have) {
					return nil
				}
				return o
			})
		})
	}
	for _, want := range p.RoleBindings {
		eg.Go(func() error {
			now, ok := find(bindings, want)
			if ok && now.RoleRef != want.RoleRef && auto(now) {
				if err := remove(ctx, c, now); err != nil {
					return err
				}
				ok = false
			}
			return reconcile(ctx, c, want, now, ok, func(have *rbacv1.RoleBinding) *rbacv1.RoleBinding {
				o := have.DeepCopy()
				changed := annotate(&o.ObjectMeta, want.ObjectMeta)
				if changed = addSubjects(&o.Subjects, want.Subjects) || changed; !changed || !auto(have) {
					return nil
				}
				return o
			})
		})
	}
	return eg.Wait()
}

func find[T client.Object](have map[string]T, want T) (T, bool) {
	o, ok := have[want.GetNamespace()+"/"+want.GetName()]
	return o, ok
}

// remove deletes a binding to another role than the policy's, so that it is made
// anew: what a binding refers to cannot be changed.
func remove[T client.Object](ctx context.Context, c *client.Client, o T) error {
	uid := o.GetUID()
	err := client.For[T](c).In(o.GetNamespace()).Delete(ctx, o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("replace %T %q: %w", o, o.GetName(), err)
	}
	return nil
}

// auto tells that an object wants to be kept up to date.
func auto(o metav1.Object) bool {
	v, ok := o.GetAnnotations()[rbacv1.AutoUpdateAnnotationKey]
	return !ok || v == "true"
}

// annotate adds the labels and annotations that are missing.
func annotate(o *metav1.ObjectMeta, want metav1.ObjectMeta) bool {
	changed := addMissing(&o.Labels, want.Labels)
	return addMissing(&o.Annotations, want.Annotations) || changed
}

func addMissing(have *map[string]string, want map[string]string) bool {
	changed := false
	for k, v := range want {
		if _, ok := (*have)[k]; ok {
			continue
		}
		if !changed {
			*have = maps.Clone(*have)
			changed = true
		}
		if *have == nil {
			*have = map[string]string{}
		}
		(*have)[k] = v
	}
	return changed
}

func addRules(have *[]rbacv1.PolicyRule, want []rbacv1.PolicyRule) bool {
	if apiequality.Semantic.DeepEqual(*have, want) {
		return false
	}
	covered, missing := validation.Covers(*have, want)
	if covered {
		return false
	}
	*have = append(slices.Clone(*have), missing...)
	return true
}

func addSubjects(have *[]rbacv1.Subject, want []rbacv1.Subject) bool {
	changed := false
	for _, s := range want {
		if !slices.Contains(*have, s) {
			*have = append(slices.Clone(*have), s)
			changed = true
		}
	}
	return changed
}

func selectorsOf(a *rbacv1.AggregationRule) []metav1.LabelSelector {
	if a == nil {
		return nil
	}
	return a.ClusterRoleSelectors
}

func selects(have, want *rbacv1.AggregationRule) bool {
	for i := range want.ClusterRoleSelectors {
		if !slices.ContainsFunc(have.ClusterRoleSelectors, func(s metav1.LabelSelector) bool {
			return apiequality.Semantic.DeepEqual(s, want.ClusterRoleSelectors[i])
		}) {
			return false
		}
	}
	return true
}
