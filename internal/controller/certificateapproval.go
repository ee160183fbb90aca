package controller

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"skiff/internal/api/certificates"
	"skiff/internal/client"
	"skiff/internal/control"
)

// certificateRole is the account of the controllers of certificate requests.
const certificateRole = "certificate-controller"

func namedRule(group, resource, verb string, names ...string) rbacv1.PolicyRule {
	r := control.Rule(group, []string{resource}, verb)
	r.ResourceNames = names
	return r
}

// newCertificateApproval returns the controller that approves the requests of
// kubelets for the certificates by which they log in, where who asks may have them
// without a person's word: RBAC says so by the invented subresources nodeclient and
// selfnodeclient of certificatesigningrequests.
func newCertificateApproval(d Deps) *control.Controller {
	c := control.New(certificateRole, d.Deps)
	requests := control.Watch(c, control.Enqueue[*certificatesv1.CertificateSigningRequest](c))
	c.Writes = append(c.Writes,
		control.Rule(certificatesv1.GroupName, []string{"certificatesigningrequests/approval"}, "update"),
		namedRule(certificatesv1.GroupName, "signers", "approve", certificatesv1.KubeAPIServerClientKubeletSignerName),
		control.Rule(authorizationv1.GroupName, []string{"subjectaccessreviews"}, "create"),
	)
	now := d.Clock()
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		csr, ok := requests.Get("", k.Name)
		if !ok || !unanswered(csr) {
			return control.Result{}, nil
		}
		claims, err := kubeletClaims(csr)
		if err != nil {
			return control.Result{}, fmt.Errorf("unable to parse csr %q: %w", csr.Name, err)
		}
		for _, claim := range claims {
			review, err := client.For[*authorizationv1.SubjectAccessReview](c.Client).Create(ctx, claim.review(csr))
			if err != nil {
				return control.Result{}, err
			}
			if !review.Status.Allowed {
				continue
			}
			next := csr.DeepCopy()
			next.Status.Conditions = append(next.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
				Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved", Message: claim.message,
			})
			got, err := client.For[*certificatesv1.CertificateSigningRequest](c.Client).UpdateSub(ctx, next, "approval")
			if err != nil {
				return control.Result{}, fmt.Errorf("error updating approval for csr: %w", err)
			}
			control.Wrote(c.Pending, k, requests, got)
			return control.Result{}, nil
		}
		if len(claims) == 0 {
			return control.Result{}, nil
		}
		// The right may be given yet: ask again, ever more seldom.
		return control.Result{After: min(max(now().Sub(csr.CreationTimestamp.Time), time.Second), 1000*time.Second)}, nil
	}
	return c
}

// kubeletClaim is a right by which a kubelet may have its certificate, and what the
// approval says of it.
type kubeletClaim struct{ subresource, message string }

func (k kubeletClaim) review(csr *certificatesv1.CertificateSigningRequest) *authorizationv1.SubjectAccessReview {
	extra := map[string]authorizationv1.ExtraValue{}
	for key, v := range csr.Spec.Extra {
		extra[key] = authorizationv1.ExtraValue(v)
	}
	return &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: csr.Spec.Username, UID: csr.Spec.UID, Groups: csr.Spec.Groups, Extra: extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Group: certificatesv1.GroupName, Resource: "certificatesigningrequests", Subresource: k.subresource, Verb: "create", Version: "*",
		},
	}}
}

// kubeletClaims returns the rights to ask for, in order; none where the request is
// not one of a kubelet that logs in.
func kubeletClaims(csr *certificatesv1.CertificateSigningRequest) ([]kubeletClaim, error) {
	req, err := certificates.ParseRequest(csr.Spec.Request)
	if err != nil {
		return nil, err
	}
	if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName || checkKubeletClient(req, csr.Spec.Usages) != nil {
		return nil, nil
	}
	var out []kubeletClaim
	if csr.Spec.Username == req.Subject.CommonName {
		out = append(out, kubeletClaim{"selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."})
	}
	return append(out, kubeletClaim{"nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."}), nil
}

func hasRequestCondition(csr *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == t })
}

// unanswered tells that a request is neither approved nor denied.
func unanswered(csr *certificatesv1.CertificateSigningRequest) bool {
	return len(csr.Status.Certificate) == 0 &&
		!hasRequestCondition(csr, certificatesv1.CertificateApproved) && !hasRequestCondition(csr, certificatesv1.CertificateDenied)
}

// The rules of the signers for kubelets, with upstream's words.
var (
	errNotSystemNodes = errors.New("subject organization is not system:nodes")
	errNotSystemNode  = errors.New("subject common name does not begin with system:node:")
	errNoServerName   = errors.New("DNS or IP subjectAltName is required")
	errDNSName        = errors.New("DNS subjectAltNames are not allowed")
	errEmail          = errors.New("Email subjectAltNames are not allowed") //nolint:staticcheck // clients see it so
	errIP             = errors.New("IP subjectAltNames are not allowed")
	errURI            = errors.New("URI subjectAltNames are not allowed")
)

// sameUsages tells whether usages are auth and digital signature; the encipherment
// of keys may be among them, RSA needs it.
func sameUsages(usages []certificatesv1.KeyUsage, auth certificatesv1.KeyUsage) error {
	has := map[certificatesv1.KeyUsage]bool{}
	for _, u := range usages {
		has[u] = true
	}
	all := []certificatesv1.KeyUsage{auth, certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment}
	n := 2
	if has[certificatesv1.UsageKeyEncipherment] {
		n = 3
	}
	if len(has) != n || !has[auth] || !has[certificatesv1.UsageDigitalSignature] {
		slices.Sort(all)
		return fmt.Errorf("usages did not match %v", all)
	}
	return nil
}

func checkKubeletClient(req *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	switch {
	case !slices.Equal(req.Subject.Organization, []string{"system:nodes"}):
		return errNotSystemNodes
	case len(req.DNSNames) > 0:
		return errDNSName
	case len(req.EmailAddresses) > 0:
		return errEmail
	case len(req.IPAddresses) > 0:
		return errIP
	case len(req.URIs) > 0:
		return errURI
	case !strings.HasPrefix(req.Subject.CommonName, "system:node:"):
		return errNotSystemNode
	}
	return sameUsages(usages, certificatesv1.UsageClientAuth)
}

func checkKubeletServing(req *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	switch {
	case !slices.Equal(req.Subject.Organization, []string{"system:nodes"}):
		return errNotSystemNodes
	case len(req.DNSNames) == 0 && len(req.IPAddresses) == 0:
		return errNoServerName
	case len(req.EmailAddresses) > 0:
		return errEmail
	case len(req.URIs) > 0:
		return errURI
	}
	if err := sameUsages(usages, certificatesv1.UsageServerAuth); err != nil {
		return err
	}
	if !strings.HasPrefix(req.Subject.CommonName, "system:node:") {
		return errNotSystemNode
	}
	return nil
}
