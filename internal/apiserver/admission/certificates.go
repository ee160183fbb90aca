package admission

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"skiff/internal/api/certificates"
	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
)

// noMutation is for plugins that change nothing.
type noMutation struct{}

// Admit implements apiserver.Admission.
func (noMutation) Admit(context.Context, *apiserver.Attributes) error { return nil }

// CertificateApproval asks who approves or denies a certificate request for the
// right to approve for its signer.
type CertificateApproval struct{ noMutation }

// Name implements apiserver.Admission.
func (CertificateApproval) Name() string { return "CertificateApproval" }

// Validate implements apiserver.Admission.
func (CertificateApproval) Validate(ctx context.Context, a *apiserver.Attributes) error {
	old, ok := a.Old.(*certificatesv1.CertificateSigningRequest)
	if !ok || a.Operation != apiserver.OpUpdate || a.Subresource != "approval" {
		return nil
	}
	if !certificates.MaySign(ctx, a.Env, "approve", old.Spec.SignerName) {
		return forbidden(a, fmt.Errorf("user not permitted to approve requests with signerName %q", old.Spec.SignerName))
	}
	return nil
}

// CertificateSigning asks who issues a certificate, or says that it failed, for the
// right to sign for its signer.
type CertificateSigning struct{ noMutation }

// Name implements apiserver.Admission.
func (CertificateSigning) Name() string { return "CertificateSigning" }

// Validate implements apiserver.Admission.
func (CertificateSigning) Validate(ctx context.Context, a *apiserver.Attributes) error {
	old, ok := a.Old.(*certificatesv1.CertificateSigningRequest)
	csr, isCSR := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || !isCSR || a.Operation != apiserver.OpUpdate || a.Subresource != "status" {
		return nil
	}
	if bytes.Equal(old.Status.Certificate, csr.Status.Certificate) && apiequality.Semantic.DeepEqual(old.Status.Conditions, csr.Status.Conditions) {
		return nil
	}
	if !certificates.MaySign(ctx, a.Env, "sign", old.Spec.SignerName) {
		return forbidden(a, fmt.Errorf("user not permitted to sign requests with signerName %q", old.Spec.SignerName))
	}
	return nil
}

// CertificateSubjectRestriction refuses requests for clients of the API server that
// would be in the group of its masters.
type CertificateSubjectRestriction struct{ noMutation }

// Name implements apiserver.Admission.
func (CertificateSubjectRestriction) Name() string { return "CertificateSubjectRestriction" }

// Validate implements apiserver.Admission.
func (CertificateSubjectRestriction) Validate(_ context.Context, a *apiserver.Attributes) error {
	csr, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || a.Operation != apiserver.OpCreate || a.Subresource != "" || csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		return nil
	}
	req, err := certificates.ParseRequest(csr.Spec.Request)
	if err != nil {
		return forbidden(a, fmt.Errorf("failed to parse CSR: %v", err))
	}
	if slices.Contains(req.Subject.Organization, "system:masters") {
		return forbidden(a, errors.New("use of "+certificatesv1.KubeAPIServerClientSignerName+" signer with system:masters group is not allowed"))
	}
	return nil
}

// ClusterTrustBundleAttest asks who writes a signer's bundle for the right to attest
// for that signer.
type ClusterTrustBundleAttest struct{ noMutation }

// Name implements apiserver.Admission.
func (ClusterTrustBundleAttest) Name() string { return "ClusterTrustBundleAttest" }

// Validate implements apiserver.Admission.
func (ClusterTrustBundleAttest) Validate(ctx context.Context, a *apiserver.Attributes) error {
	b, ok := a.Object.(*certificatesv1.ClusterTrustBundle)
	if !ok || a.Operation != apiserver.OpCreate && a.Operation != apiserver.OpUpdate || b.Spec.SignerName == "" {
		return nil
	}
	// What the garbage collector and a migration of the storage write changes nothing.
	if a.Operation == apiserver.OpUpdate && resource.OnlyCollected(a.Object, a.Old) {
		return nil
	}
	if !certificates.MaySign(ctx, a.Env, "attest", b.Spec.SignerName) {
		return forbidden(a, fmt.Errorf("user not permitted to attest for signerName %q", b.Spec.SignerName))
	}
	return nil
}
