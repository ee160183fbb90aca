package admission

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilrand "k8s.io/apimachinery/pkg/util/rand"

	"skiff/internal/api/podrefs"
	"skiff/internal/apiserver"
	"skiff/internal/client"
)

// ServiceAccount gives every pod a service account and its token.
type ServiceAccount struct{}

const (
	defaultAccount  = "default"
	enforceSecrets  = "kubernetes.io/enforce-mountable-secrets"
	tokenVolume     = "kube-api-access-"
	tokenPath       = "/var/run/secrets/kubernetes.io/serviceaccount"
	tokenSeconds    = int64(3607)
	rootCAConfigMap = "kube-root-ca.crt"
)

// Name implements apiserver.Admission.
func (ServiceAccount) Name() string { return "ServiceAccount" }

func mirror(p *corev1.Pod) bool {
	_, ok := p.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// Admit implements apiserver.Admission.
func (s ServiceAccount) Admit(ctx context.Context, a *apiserver.Attributes) error {
	p := newPod(a)
	if p == nil {
		return nil
	}
	if mirror(p) {
		// Its kubelet knows what it is to be.
		return s.Validate(ctx, a)
	}
	if p.Spec.ServiceAccountName == "" {
		p.Spec.ServiceAccountName = defaultAccount
		p.Spec.DeprecatedServiceAccount = defaultAccount //nolint:staticcheck // kept in line with serviceAccountName, as upstream
	}
	sa, err := accountOf(ctx, a, p.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	if automount(sa, p) {
		mountToken(p)
	}
	if len(p.Spec.ImagePullSecrets) == 0 {
		p.Spec.ImagePullSecrets = slices.Clone(sa.ImagePullSecrets)
	}
	return s.check(a, sa, p)
}

// Validate implements apiserver.Admission.
func (s ServiceAccount) Validate(ctx context.Context, a *apiserver.Attributes) error {
	if p, ok := a.Object.(*corev1.Pod); ok && a.Operation == apiserver.OpUpdate && a.Subresource == "ephemeralcontainers" && resourceOf(a) == podsResource {
		return s.ephemeral(ctx, a, p)
	}
	p := newPod(a)
	if p == nil {
		return nil
	}
	if mirror(p) {
		return mirrorAllowed(a, p)
	}
	if p.Spec.ServiceAccountName == "" {
		return forbidden(a, fmt.Errorf("no service account specified for pod %s/%s", a.Namespace, p.Name))
	}
	sa, err := accountOf(ctx, a, p.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	return s.check(a, sa, p)
}

func (ServiceAccount) check(a *apiserver.Attributes, sa *corev1.ServiceAccount, p *corev1.Pod) error {
	if !enforced(sa) {
		return nil
	}
	if err := onlyOwnSecrets(sa, p); err != nil {
		return forbidden(a, err)
	}
	return nil
}

func enforced(sa *corev1.ServiceAccount) bool {
	on, err := strconv.ParseBool(sa.Annotations[enforceSecrets])
	return err == nil && on
}

func mirrorAllowed(a *apiserver.Attributes, p *corev1.Pod) error {
	if p.Spec.ServiceAccountName != "" {
		return forbidden(a, errors.New("a mirror pod may not reference service accounts"))
	}
	for _, r := range podrefs.Of(p) {
		if r.Kind == podrefs.Secret {
			return forbidden(a, errors.New("a mirror pod may not reference secrets"))
		}
	}
	for _, v := range p.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, src := range v.Projected.Sources {
			if src.ServiceAccountToken != nil {
				return forbidden(a, errors.New("a mirror pod may not use ServiceAccountToken volume projections"))
			}
		}
	}
	return nil
}

func (ServiceAccount) ephemeral(ctx context.Context, a *apiserver.Attributes, p *corev1.Pod) error {
	if p.Spec.ServiceAccountName == "" {
		return forbidden(a, fmt.Errorf("no service account specified for pod %s/%s", a.Namespace, p.Name))
	}
	sa, err := accountOf(ctx, a, p.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	if !enforced(sa) {
		return nil
	}
	for i := range p.Spec.EphemeralContainers {
		c := &p.Spec.EphemeralContainers[i]
		if err := ownEnvironment(sa, "ephemeral container", c.Name, c.Env, c.EnvFrom); err != nil {
			return forbidden(a, err)
		}
	}
	return nil
}

// accountTries bounds how long a pod waits for its namespace's default account,
// which a controller makes.
const accountTries = 10

func accountOf(ctx context.Context, a *apiserver.Attributes, name string) (*corev1.ServiceAccount, error) {
	fail := func(err error) error {
		return forbidden(a, fmt.Errorf("error looking up service account %s/%s: %w", a.Namespace, name, err))
	}
	sa, err := cached[*corev1.ServiceAccount](ctx, a.Env.Client, a.Namespace, name)
	if err == nil {
		return sa, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, fail(err)
	}
	if name == defaultAccount {
		// The first looks are soon: the controller is in this process, mostly.
		wait := 2 * time.Millisecond
		limit := time.Duration(rand.Int64N(100)+100) * time.Millisecond
		for try := 1; try < accountTries; {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return nil, fail(ctx.Err())
			}
			sa, err := client.For[*corev1.ServiceAccount](a.Env.Client).In(a.Namespace).Get(ctx, name)
			if err == nil {
				return sa, nil
			}
			if !apierrors.IsNotFound(err) {
				return nil, fail(err)
			}
			if wait = min(2*wait, limit); wait == limit {
				try++
			}
		}
	}
	return nil, fail(apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccount"}, name))
}

func automount(sa *corev1.ServiceAccount, p *corev1.Pod) bool {
	switch {
	case p.Spec.AutomountServiceAccountToken != nil:
		return *p.Spec.AutomountServiceAccountToken
	case sa.AutomountServiceAccountToken != nil:
		return *sa.AutomountServiceAccountToken
	}
	return true
}

// mountToken mounts the volume with token, CA and namespace into every container
// that has nothing there.
func mountToken(p *corev1.Pod) {
	name, have := "", false
	for _, v := range p.Spec.Volumes {
		if strings.HasPrefix(v.Name, tokenVolume) {
			name, have = v.Name, true
			break
		}
	}
	if !have {
		name = tokenVolume + utilrand.String(5)
	}
	mounted := false
	mount := func(list []corev1.Container) {
		for i := range list {
			if slices.ContainsFunc(list[i].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == tokenPath }) {
				continue
			}
			list[i].VolumeMounts = append(list[i].VolumeMounts, corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenPath})
			mounted = true
		}
	}
	mount(p.Spec.InitContainers)
	mount(p.Spec.Containers)
	if have || !mounted {
		return
	}
	mode, seconds := corev1.ProjectedVolumeSourceDefaultMode, tokenSeconds
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		Projected: &corev1.ProjectedVolumeSource{
			DefaultMode: &mode,
			Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
				{ConfigMap: &corev1.ConfigMapProjection{
					LocalObjectReference: corev1.LocalObjectReference{Name: rootCAConfigMap},
					Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
				}},
				{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
					Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
				}}}},
			},
		},
	}})
}

func references(sa *corev1.ServiceAccount, secret string) bool {
	return slices.ContainsFunc(sa.Secrets, func(r corev1.ObjectReference) bool { return r.Name == secret })
}

// onlyOwnSecrets refuses a secret that the account does not list, for accounts
// that demand it.
func onlyOwnSecrets(sa *corev1.ServiceAccount, p *corev1.Pod) error {
	for _, v := range p.Spec.Volumes {
		if v.Secret != nil && !references(sa, v.Secret.SecretName) {
			return fmt.Errorf("volume with secret.secretName=%q is not allowed because service account %s does not reference that secret", v.Secret.SecretName, sa.Name)
		}
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if err := ownEnvironment(sa, "init container", c.Name, c.Env, c.EnvFrom); err != nil {
			return err
		}
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		if err := ownEnvironment(sa, "container", c.Name, c.Env, c.EnvFrom); err != nil {
			return err
		}
	}
	for i, r := range p.Spec.ImagePullSecrets {
		if !slices.Contains(sa.ImagePullSecrets, r) {
			return fmt.Errorf("imagePullSecrets[%d].name=%q is not allowed because service account %s does not reference that imagePullSecret", i, r.Name, sa.Name)
		}
	}
	return nil
}

func ownEnvironment(sa *corev1.ServiceAccount, what, container string, env []corev1.EnvVar, from []corev1.EnvFromSource) error {
	for _, e := range env {
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && !references(sa, e.ValueFrom.SecretKeyRef.Name) {
			return fmt.Errorf("%s %s with envVar %s referencing secret.secretName=%q is not allowed because service account %s does not reference that secret",
				what, container, e.Name, e.ValueFrom.SecretKeyRef.Name, sa.Name)
		}
	}
	for _, f := range from {
		if f.SecretRef != nil && !references(sa, f.SecretRef.Name) {
			return fmt.Errorf("%s %s with envFrom referencing secret.secretName=%q is not allowed because service account %s does not reference that secret",
				what, container, f.SecretRef.Name, sa.Name)
		}
	}
	return nil
}
