package admission

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
	"skiff/internal/client"
)

// restrictToken lets a node have tokens for the pods that run on it, and for those
// audiences that the pods ask for.
func restrictToken(ctx context.Context, node string, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpCreate || a.Subresource != "token" {
		return nil
	}
	req, ok := a.Object.(*authenticationv1.TokenRequest)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.Object)
	}
	ref := req.Spec.BoundObjectRef
	if ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "" {
		return errors.New("node requested token not bound to a pod")
	}
	if ref.UID == "" {
		return errors.New("node requested token with a pod binding without a uid")
	}
	p, err := client.For[*corev1.Pod](a.Env.Client).In(a.Namespace).Get(ctx, ref.Name)
	if err != nil {
		return err
	}
	if ref.UID != p.UID {
		return fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	}
	if p.Spec.NodeName != node {
		return errors.New("node requested token bound to a pod scheduled on a different node")
	}
	return audienceAllowed(ctx, a, req.Spec.Audiences, p)
}

func audienceAllowed(ctx context.Context, a *apiserver.Attributes, audiences []string, p *corev1.Pod) error {
	if len(audiences) > 1 {
		return errors.New("node may only request 0 or 1 audiences")
	}
	audience := ""
	if len(audiences) == 1 {
		audience = audiences[0]
	}
	found, err := asksFor(ctx, a.Env.Client, p, audience)
	if err != nil {
		return fmt.Errorf("error validating audience %q: %v", audience, err) //nolint:errorlint // its kind must not show
	}
	if found {
		return nil
	}
	d, err := a.Env.Authorize(ctx, asked(a, "request-serviceaccounts-token-audience", audience, a.Name))
	switch {
	case d.Allowed:
		return nil
	case err != nil:
		return fmt.Errorf("error authorizing %s to request tokens for audience %q: %w", a.User.Name, audience, err)
	}
	return fmt.Errorf("%s is not authorized to request tokens for audience %q", a.User.Name, audience)
}

func asked(a *apiserver.Attributes, verb, plural, name string) resource.Attributes {
	return resource.Attributes{
		User: a.User, Verb: verb, Group: a.Resource.GroupVersion.Group, Version: a.Resource.GroupVersion.Version,
		Resource: plural, Namespace: a.Namespace, Name: name,
	}
}

// asksFor tells whether a volume of the pod wants a token for an audience.
func asksFor(ctx context.Context, c *client.Client, p *corev1.Pod, audience string) (bool, error) {
	var errs []error
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience {
					return true, nil
				}
			}
		}
		driver, err := driverOf(ctx, c, p, v)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if driver == "" {
			continue
		}
		d, err := other[*storagev1.CSIDriver](ctx, c, storagev1.SchemeGroupVersion.WithResource("csidrivers"), "", driver)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if slices.ContainsFunc(d.Spec.TokenRequests, func(t storagev1.TokenRequest) bool { return t.Audience == audience }) {
			return true, nil
		}
	}
	return false, errors.Join(errs...)
}

// driverOf returns the CSI driver of a volume, "" where it has none.
func driverOf(ctx context.Context, c *client.Client, p *corev1.Pod, v *corev1.Volume) (string, error) {
	claim := ""
	switch {
	case v.CSI != nil:
		return v.CSI.Driver, nil
	case v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil:
		claim = p.Name + "-" + v.Name
	case v.PersistentVolumeClaim != nil:
		claim = v.PersistentVolumeClaim.ClaimName
	default:
		return "", nil
	}
	pvc, err := other[*corev1.PersistentVolumeClaim](ctx, c, corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), p.Namespace, claim)
	if err != nil {
		return "", err
	}
	pv, err := other[*corev1.PersistentVolume](ctx, c, corev1.SchemeGroupVersion.WithResource("persistentvolumes"), "", pvc.Spec.VolumeName)
	if err != nil || pv.Spec.CSI == nil {
		return "", err
	}
	return pv.Spec.CSI.Driver, nil
}

// other reads an object of a kind that may not be served yet.
func other[T client.Object](ctx context.Context, c *client.Client, gvr schema.GroupVersionResource, ns, name string) (T, error) {
	var none T
	o, err := c.Transport().Get(ctx, client.Ref{GVR: gvr, Namespace: ns, Name: name}, metav1.GetOptions{})
	if err != nil {
		return none, err
	}
	t, ok := o.(T)
	if !ok {
		return none, apierrors.NewInternalError(fmt.Errorf("answer is a %T, want %T", o, none))
	}
	return t, nil
}

// undecided is an answer that says nothing of rights: what it complains of may be
// otherwise a moment later, and the node is to try again.
func undecided(format string, args ...any) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: fmt.Errorf(format, args...).Error(),
	}}
}

func isUndecided(err error) bool {
	var s *apierrors.StatusError
	return errors.As(err, &s) && s.ErrStatus.Reason == metav1.StatusReasonUnknown && s.ErrStatus.Code == http.StatusInternalServerError
}

// restrictPodCertificate lets a node ask for certificates of the pods that run on
// it, from the signers that they name.
func restrictPodCertificate(ctx context.Context, node string, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpCreate {
		return fmt.Errorf("unexpected operation %v", a.Operation)
	}
	if a.Subresource != "" {
		return fmt.Errorf("unexpected subresource %v", a.Subresource)
	}
	r, ok := a.Object.(*certificatesv1.PodCertificateRequest)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.Object)
	}
	s := &r.Spec
	pod, account := a.Namespace+"/"+s.PodName, a.Namespace+"/"+s.ServiceAccountName
	if string(s.NodeName) != node {
		return fmt.Errorf("PodCertificateRequest.Spec.NodeName=%q, which is not the requesting node %q", s.NodeName, node)
	}
	n, err := named(ctx, client.For[*corev1.Node](a.Env.Client), "node", node, node)
	if err != nil {
		return err
	}
	if n.UID != s.NodeUID {
		return undecided("PodCertificateRequest for pod %q names node UID %q, inconsistent with the running node (%q)", pod, s.NodeUID, n.UID)
	}
	p, err := named(ctx, client.For[*corev1.Pod](a.Env.Client).In(a.Namespace), "pod", pod, s.PodName)
	if err != nil {
		return err
	}
	switch {
	case s.PodUID != p.UID:
		return undecided("PodCertificateRequest for pod %q contains pod UID (%q) which differs from running pod %q", pod, s.PodUID, string(p.UID))
	case p.Spec.NodeName != node:
		return fmt.Errorf("pod %q is not running on node %q named in the PodCertificateRequest", pod, s.NodeName)
	case mirror(p):
		return fmt.Errorf("pod %q is a mirror pod", pod)
	case s.ServiceAccountName != p.Spec.ServiceAccountName:
		return fmt.Errorf("PodCertificateRequest for pod %q contains serviceAccountName (%q) that differs from running pod (%q)", pod, s.ServiceAccountName, p.Spec.ServiceAccountName)
	}
	sa, err := named(ctx, client.For[*corev1.ServiceAccount](a.Env.Client).In(a.Namespace), "service account", account, s.ServiceAccountName)
	if err != nil {
		return err
	}
	if s.ServiceAccountUID != sa.UID {
		return undecided("PodCertificateRequest for pod %q names service account UID %q, which differs from the running service account (%q)", pod, s.ServiceAccountUID, sa.UID)
	}
	return mayAskSigner(ctx, a, p, s)
}

// named reads an object that a PodCertificateRequest names; what and shown say in
// errors what it is.
func named[T client.Object](ctx context.Context, r client.Resource[T], what, shown, name string) (T, error) {
	o, err := r.Get(ctx, name)
	switch {
	case apierrors.IsNotFound(err):
		kind := strings.ReplaceAll(what, " ", "")
		return o, undecided("while retrieving %s %q named in the PodCertificateRequest: %w", what, shown, apierrors.NewNotFound(corev1.Resource(kind), name))
	case err != nil:
		return o, fmt.Errorf("while retrieving %s %q named in the PodCertificateRequest: %w", what, shown, err)
	}
	return o, nil
}

// mayAskSigner allows the signers that a pod's volumes name, and those that the node
// has a right to ask for the pod's account.
func mayAskSigner(ctx context.Context, a *apiserver.Attributes, p *corev1.Pod, s *certificatesv1.PodCertificateRequestSpec) error {
	for i := range p.Spec.Volumes {
		if v := p.Spec.Volumes[i].Projected; v != nil {
			for _, src := range v.Sources {
				if src.PodCertificate != nil && src.PodCertificate.SignerName == s.SignerName {
					return nil
				}
			}
		}
	}
	// A resource's name has no slash.
	signer := strings.ReplaceAll(s.SignerName, "/", ":")
	d, err := a.Env.Authorize(ctx, asked(a, "request-serviceaccounts-podcertificate-signer", signer, s.ServiceAccountName))
	switch {
	case d.Allowed:
		return nil
	case err != nil:
		return fmt.Errorf("error authorizing %s to request podcertificaterequests for signer %q: %w", a.User.Name, s.SignerName, err)
	}
	return fmt.Errorf("pod %q does not mount a podCertificate projected volume for signer %q", a.Namespace+"/"+s.PodName, s.SignerName)
}
