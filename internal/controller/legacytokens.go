package controller

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/control"
)

// TokensController acts as the controller manager itself: whoever fills in tokens has
// rights that no single controller's account is to have.
const TokensController = "tokens-controller"

// LegacyTokens signs the tokens that Secrets hold.
type LegacyTokens interface {
	IssueLegacy(account *corev1.ServiceAccount, secret string) (string, error)
}

// accountRef is the service account that a Secret says it is for.
type accountRef struct {
	name string
	uid  types.UID // empty where it does not say
}

func accountOf(s *corev1.Secret) (accountRef, bool) {
	name := s.Annotations[corev1.ServiceAccountNameKey]
	return accountRef{name, types.UID(s.Annotations[corev1.ServiceAccountUIDKey])}, s.Type == corev1.SecretTypeServiceAccountToken && name != ""
}

// legacyTokens fills in the Secrets that ask for a token of a service account, and
// removes them with their account.
type legacyTokens struct {
	*control.Controller
	issue    LegacyTokens
	rootCA   []byte
	accounts *client.Informer[*corev1.ServiceAccount]
	secrets  *client.Informer[*corev1.Secret]

	mu   sync.Mutex
	gone map[control.Key]accountRef // secrets seen to go
}

const byAccount = "account"

func newLegacyTokens(d Deps) *control.Controller {
	c := control.New(TokensController, d.Deps)
	c.Roleless = true
	l := &legacyTokens{Controller: c, issue: d.Tokens, rootCA: d.RootCA, gone: map[control.Key]accountRef{}}
	l.secrets = control.Watch(c, func(ch client.Change[*corev1.Secret]) {
		ref, ok := accountOf(ch.Object())
		if !ok {
			return
		}
		k := control.KeyOf(ch.Object())
		if ch.Deleted() {
			l.mu.Lock()
			l.gone[k] = ref
			l.mu.Unlock()
		}
		c.Queue.Add(k)
	})
	l.secrets.AddIndex(byAccount, func(s *corev1.Secret) []string {
		if ref, ok := accountOf(s); ok {
			return []string{s.Namespace + "/" + ref.name}
		}
		return nil
	})
	l.accounts = control.Watch(c, func(ch client.Change[*corev1.ServiceAccount]) {
		if !ch.Deleted() {
			return
		}
		for _, s := range l.secrets.ByIndex(byAccount, control.KeyOf(ch.Old).String()) {
			c.Queue.Add(control.KeyOf(s))
		}
	})
	c.Writes = append(c.Writes,
		control.Rule("", []string{"secrets"}, "update", "delete"),
		control.Rule("", []string{"serviceaccounts"}, "get", "update"),
	)
	c.Reconcile = l.reconcile
	return c
}

func (l *legacyTokens) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	s, ok := l.secrets.Get(k.Namespace, k.Name)
	if !ok {
		return control.Result{}, l.forget(ctx, k)
	}
	ref, ok := accountOf(s)
	if !ok || s.DeletionTimestamp != nil {
		return control.Result{}, nil
	}
	sa, err := l.account(ctx, s.Namespace, ref)
	if err != nil {
		return control.Result{}, err
	}
	api := client.For[*corev1.Secret](l.Client).In(s.Namespace)
	if sa == nil {
		err := api.Delete(ctx, s.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return control.Result{}, err
		}
		control.Removed(l.Pending, k, l.secrets, s)
		return control.Result{}, nil
	}
	next, err := fillToken(s, sa, l.rootCA, l.issue)
	if err != nil || next == nil {
		return control.Result{}, err
	}
	got, err := api.Update(ctx, next)
	if err != nil {
		if apierrors.IsNotFound(err) {
			err = nil
		}
		return control.Result{}, err
	}
	control.Wrote(l.Pending, k, l.secrets, got)
	return control.Result{}, nil
}

// account finds the account of a Secret, nil where there is none: the informer may
// not know of it yet.
func (l *legacyTokens) account(ctx context.Context, ns string, ref accountRef) (*corev1.ServiceAccount, error) {
	fits := func(sa *corev1.ServiceAccount) bool { return ref.uid == "" || ref.uid == sa.UID }
	if sa, ok := l.accounts.Get(ns, ref.name); ok && fits(sa) {
		return sa, nil
	}
	sa, err := client.For[*corev1.ServiceAccount](l.Client).In(ns).Get(ctx, ref.name)
	if apierrors.IsNotFound(err) || err == nil && !fits(sa) {
		return nil, nil
	}
	return sa, err
}

// forget removes a Secret that is gone from the list of its account.
func (l *legacyTokens) forget(ctx context.Context, k control.Key) error {
	l.mu.Lock()
	ref, ok := l.gone[k]
	l.mu.Unlock()
	if !ok {
		return nil
	}
	named := func(r corev1.ObjectReference) bool { return r.Name == k.Name }
	sa, err := l.account(ctx, k.Namespace, ref)
	if err != nil {
		return err
	}
	if sa != nil && slices.ContainsFunc(sa.Secrets, named) {
		next := sa.DeepCopy()
		next.Secrets = slices.DeleteFunc(next.Secrets, named)
		got, err := client.For[*corev1.ServiceAccount](l.Client).In(k.Namespace).Update(ctx, next)
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err == nil {
			control.Wrote(l.Pending, k, l.accounts, got)
		}
	}
	l.mu.Lock()
	delete(l.gone, k)
	l.mu.Unlock()
	return nil
}

// fillToken returns the Secret with what it lacks, nil where it lacks nothing.
func fillToken(s *corev1.Secret, sa *corev1.ServiceAccount, ca []byte, tokens LegacyTokens) (*corev1.Secret, error) {
	fill := map[string][]byte{}
	if len(ca) > 0 && !bytes.Equal(s.Data[corev1.ServiceAccountRootCAKey], ca) {
		fill[corev1.ServiceAccountRootCAKey] = ca
	}
	if len(s.Data[corev1.ServiceAccountNamespaceKey]) == 0 {
		fill[corev1.ServiceAccountNamespaceKey] = []byte(s.Namespace)
	}
	if len(s.Data[corev1.ServiceAccountTokenKey]) == 0 {
		token, err := tokens.IssueLegacy(sa, s.Name)
		if err != nil {
			return nil, err
		}
		fill[corev1.ServiceAccountTokenKey] = []byte(token)
	}
	if len(fill) == 0 {
		return nil, nil
	}
	next := s.DeepCopy()
	if next.Data == nil {
		next.Data = map[string][]byte{}
	}
	maps.Copy(next.Data, fill)
	metav1.SetMetaDataAnnotation(&next.ObjectMeta, corev1.ServiceAccountNameKey, sa.Name)
	metav1.SetMetaDataAnnotation(&next.ObjectMeta, corev1.ServiceAccountUIDKey, string(sa.UID))
	return next, nil
}
