package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/api/podrefs"
	"skiff/internal/client"
	"skiff/internal/control"
)

// The ConfigMap that says since when the use of tokens in Secrets is noted (KEP-2799).
const (
	TokenTracking    = "kube-apiserver-legacy-service-account-token-tracking"
	trackedSince     = "since"
	dayFormat        = "2006-01-02"
	tokenUnusedFor   = 365 * 24 * time.Hour
	tokenCleanEvery  = 24 * time.Hour
	tokenLastUsed    = "kubernetes.io/legacy-token-last-used"
	tokenInvalidated = "kubernetes.io/legacy-token-invalid-since"
)

// NewTokenTracking returns the ConfigMap of TokenTracking as of today.
func NewTokenTracking(now time.Time) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: TokenTracking},
		Data:       map[string]string{trackedSince: now.UTC().Format(dayFormat)},
	}
}

// newTokenTracking returns the controller that keeps that ConfigMap, as the API
// server itself. There is one key.
func newTokenTracking(d Deps) *control.Controller {
	c := control.New(TokenTrackingController, d.Deps)
	c.Roleless = true
	only := control.Key{Namespace: metav1.NamespaceSystem, Name: TokenTracking}
	configMaps := control.Watch(c, func(ch client.Change[*corev1.ConfigMap]) {
		if control.KeyOf(ch.Object()) == only {
			c.Queue.Add(only)
		}
	})
	c.Writes = append(c.Writes, control.Rule("", []string{"configmaps"}, "create", "update"))
	c.Loop = func(context.Context) error {
		c.Queue.Add(only) // it may not be there to begin with
		return nil
	}
	now := d.Clock()
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		api := client.For[*corev1.ConfigMap](c.Client)
		want := NewTokenTracking(now())
		old, ok := configMaps.Get(k.Namespace, k.Name)
		var got *corev1.ConfigMap
		var err error
		if ok {
			if _, bad := time.Parse(dayFormat, old.Data[trackedSince]); bad == nil {
				return control.Result{}, nil
			}
			next := old.DeepCopy()
			if next.Data == nil {
				next.Data = map[string]string{}
			}
			next.Data[trackedSince] = want.Data[trackedSince]
			got, err = api.Update(ctx, next)
		} else {
			got, err = api.Create(ctx, want)
		}
		if err != nil {
			if apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
				err = nil
			}
			return control.Result{}, err
		}
		control.Wrote(c.Pending, k, configMaps, got)
		return control.Result{}, nil
	}
	return c
}

// TokenTrackingController acts as the API server.
const TokenTrackingController = "legacy-token-tracking-controller"

// newLegacyTokenCleaner returns the controller that does away with tokens which the
// cluster once made for every account, unasked, and which nobody has used for a year:
// first it refuses them, a year later it deletes them. Tokens that somebody asked for
// stay. It looks once a day; there is one key.
func newLegacyTokenCleaner(d Deps) *control.Controller {
	c := control.New("legacy-service-account-token-cleaner", d.Deps)
	accounts := control.Watch[*corev1.ServiceAccount](c, nil)
	secrets := control.Watch[*corev1.Secret](c, nil)
	pods := control.Watch[*corev1.Pod](c, nil)
	c.Writes = append(c.Writes,
		namedRule("", "configmaps", "get", TokenTracking),
		control.Rule("", []string{"secrets"}, "patch", "delete"),
	)
	c.Loop = func(context.Context) error {
		c.Queue.Add(control.Key{Name: "tokens"})
		return nil
	}
	now := d.Clock()
	c.Reconcile = func(ctx context.Context, _ control.Key) (control.Result, error) {
		again := control.Result{After: tokenCleanEvery}
		m, err := client.For[*corev1.ConfigMap](c.Client).In(metav1.NamespaceSystem).Get(ctx, TokenTracking)
		if err != nil {
			return again, err
		}
		since, err := time.Parse(dayFormat, m.Data[trackedSince])
		if err != nil {
			return again, fmt.Errorf("configmap %s: %w", TokenTracking, err)
		}
		at := now().UTC()
		// Of the first day a part was not noted.
		if at.Before(since.AddDate(0, 0, 1).Add(tokenUnusedFor)) {
			return again, nil
		}
		for _, s := range secrets.List("", nil) {
			ref, ok := accountOf(s)
			if !ok {
				continue
			}
			sa, ok := accounts.Get(s.Namespace, ref.name)
			if !ok || ref.uid != "" && ref.uid != sa.UID {
				continue
			}
			api := client.For[*corev1.Secret](c.Client).In(s.Namespace)
			var err error
			switch judgeToken(s, sa, pods.List(s.Namespace, nil), at) {
			case refuseToken:
				patch, _ := json.Marshal(map[string]any{"metadata": map[string]any{"uid": s.UID, "labels": map[string]string{tokenInvalidated: at.Format(dayFormat)}}}) //nolint:errchkjson // strings
				_, err = api.Patch(ctx, s.Name, types.MergePatchType, patch, "")
			case deleteToken:
				err = api.Delete(ctx, s.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &s.ResourceVersion}})
			}
			if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				c.Log.Warn("an unused token was not cleaned", "ns", s.Namespace, "secret", s.Name, "err", err)
			}
		}
		return again, nil
	}
	return c
}

type tokenVerdict uint8

const (
	keepToken tokenVerdict = iota
	refuseToken
	deleteToken
)

// judgeToken decides on a token of account sa, given the pods of its namespace.
func judgeToken(s *corev1.Secret, sa *corev1.ServiceAccount, pods []*corev1.Pod, now time.Time) tokenVerdict {
	begin := now.Add(-tokenUnusedFor)
	day := begin.Format(dayFormat)
	used, everUsed := s.Labels[tokenLastUsed]
	if everUsed {
		if _, err := time.Parse(dayFormat, used); err != nil || used >= day {
			return keepToken
		}
	}
	switch {
	case !s.CreationTimestamp.Time.Before(begin), s.DeletionTimestamp != nil:
		return keepToken
	case !slices.ContainsFunc(sa.Secrets, func(r corev1.ObjectReference) bool { return r.Name == s.Name }):
		return keepToken // somebody asked for it
	case slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
		return slices.Contains(podrefs.Of(p), podrefs.Ref{Kind: podrefs.Secret, Name: s.Name})
	}):
		return keepToken
	}
	since := s.Labels[tokenInvalidated]
	if _, err := time.Parse(dayFormat, since); err != nil {
		return refuseToken
	}
	if since >= day {
		return keepToken
	}
	return deleteToken
}
