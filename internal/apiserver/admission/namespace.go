package admission

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/apiserver"
	"skiff/internal/client"
)

// NamespaceLifecycle lets nothing into a namespace that is not there or on its way
// out, and keeps the namespaces that every cluster needs.
type NamespaceLifecycle struct {
	noValidation
	mu sync.Mutex
	// deleted are the namespaces whose deletion was asked for lately: of those
	// the cache may not know it yet.
	deleted map[string]time.Time
}

// deletionKnown is after how long the cache surely knows of a deletion.
const deletionKnown = 30 * time.Second

// NewNamespaceLifecycle returns the plugin.
func NewNamespaceLifecycle() *NamespaceLifecycle {
	return &NamespaceLifecycle{deleted: map[string]time.Time{}}
}

// Name implements apiserver.Admission.
func (*NamespaceLifecycle) Name() string { return "NamespaceLifecycle" }

func immortal(name string) bool {
	switch name {
	case metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic:
		return true
	}
	return false
}

// Admit implements apiserver.Admission.
func (l *NamespaceLifecycle) Admit(ctx context.Context, a *apiserver.Attributes) error {
	gr := resourceOf(a)
	if gr.Group == "" && gr.Resource == "namespaces" {
		if a.Operation != apiserver.OpDelete {
			return nil
		}
		if immortal(a.Name) {
			return apierrors.NewForbidden(gr, a.Name, errors.New("this namespace may not be deleted"))
		}
		l.note(a.Name, a.Env.Now())
		return nil
	}
	if a.Operation != apiserver.OpCreate || a.Namespace == "" {
		return nil
	}
	// Whoever asks about access must not learn which namespaces there are.
	if gr.Group == "authorization.k8s.io" && gr.Resource == "localsubjectaccessreviews" {
		return nil
	}
	ns, err := cached[*corev1.Namespace](ctx, a.Env.Client, "", a.Namespace)
	if err == nil && ns.Status.Phase == corev1.NamespaceActive && l.doubtful(a.Namespace, a.Env.Now()) {
		ns, err = client.For[*corev1.Namespace](a.Env.Client).Get(ctx, a.Namespace)
	}
	if err != nil {
		if apierrors.IsNotFound(err) {
			return err
		}
		return apierrors.NewInternalError(err)
	}
	if ns.Status.Phase != corev1.NamespaceTerminating {
		return nil
	}
	out := forbiddenStatus(a, fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.Namespace))
	out.ErrStatus.Details.Causes = append(out.ErrStatus.Details.Causes, metav1.StatusCause{
		Type:    corev1.NamespaceTerminatingCause,
		Message: fmt.Sprintf("namespace %s is being terminated", a.Namespace),
		Field:   "metadata.namespace",
	})
	return out
}

func (l *NamespaceLifecycle) note(name string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, at := range l.deleted {
		if now.Sub(at) > deletionKnown {
			delete(l.deleted, n)
		}
	}
	l.deleted[name] = now
}

func (l *NamespaceLifecycle) doubtful(name string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.deleted[name]
	return ok && now.Sub(at) <= deletionKnown
}
