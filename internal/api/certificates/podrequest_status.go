package certificates

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/mail"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

const (
	issued = certificatesv1.PodCertificateRequestConditionTypeIssued
	denied = certificatesv1.PodCertificateRequestConditionTypeDenied
	failed = certificatesv1.PodCertificateRequestConditionTypeFailed
)

func isOutcome(t string) bool { return t == issued || t == denied || t == failed }

// outcome is what became of a request; empty while it is pending.
func outcome(r *podRequest) string {
	for _, t := range []string{denied, failed, issued} {
		if slices.ContainsFunc(r.Status.Conditions, func(c metav1.Condition) bool { return c.Type == t && c.Status == metav1.ConditionTrue }) {
			return t
		}
	}
	return ""
}

func validatePodStatus(env resource.Env, r, old *podRequest) field.ErrorList {
	if errs := resource.ValidateMetaUpdate(r, old); len(errs) > 0 {
		return errs
	}
	if errs := validateOutcome(r.Status.Conditions); len(errs) > 0 {
		return errs
	}
	frozen := func(detail string, want certificatesv1.PodCertificateRequestStatus) field.ErrorList {
		if equal(r.Status, want) {
			return nil
		}
		return one(field.Invalid(statusPath, field.OmitValueType{}, detail))
	}
	if outcome(old) != "" {
		return frozen("immutable after PodCertificateRequest is issued, denied, or failed", old.Status)
	}
	switch outcome(r) {
	case denied, failed:
		return frozen("non-condition status fields must be empty when denying or failing the PodCertificateRequest",
			certificatesv1.PodCertificateRequestStatus{Conditions: r.Status.Conditions})
	case issued:
		return validateIssued(env, r, old)
	}
	return frozen(`status is immutable unless transitioning to "Issued", "Denied", or "Failed"`, old.Status)
}

// validateOutcome allows one condition, of a known type.
func validateOutcome(list []metav1.Condition) field.ErrorList {
	var errs field.ErrorList
	n := 0
	for i, c := range list {
		// The index is a name of its own here, as upstream has it.
		p := statusPath.Child("conditions", fmt.Sprintf("[%d]", i))
		if !isOutcome(c.Type) {
			errs = append(errs, field.NotSupported(p.Child("type"), c.Type, []string{issued, denied, failed}))
			continue
		}
		if n++; n > 1 {
			errs = append(errs, field.Invalid(p.Child("type"), c.Type, `There may be at most one condition with type "Issued", "Denied", or "Failed"`))
		}
		if c.Status != metav1.ConditionTrue {
			errs = append(errs, field.NotSupported(p.Child("status"), c.Status, []metav1.ConditionStatus{metav1.ConditionTrue}))
		}
	}
	return append(errs, metavalidation.ValidateConditions(list, statusPath.Child("conditions"))...)
}

var (
	chainPath     = statusPath.Child("certificateChain")
	notBeforePath = statusPath.Child("notBefore")
	notAfterPath  = statusPath.Child("notAfter")
	refreshPath   = statusPath.Child("beginRefreshAt")
)

const (
	maxChain = 100 << 10 // bytes
	// margin is how far from both ends of its life a certificate is renewed.
	margin = 10 * time.Minute
	// skew is how far a signer's clock may be from ours.
	skew        = 5 * time.Minute
	minLifetime = time.Hour
)

// validateIssued checks the chain that a signer issued: it begins with a certificate
// of the key that was asked for, whose times the status repeats.
func validateIssued(env resource.Env, r, old *podRequest) field.ErrorList {
	s := &r.Status
	chain := s.CertificateChain
	badChain := func(detail string) field.ErrorList { return one(field.Invalid(chainPath, chain, detail)) }
	if len(chain) > maxChain {
		return one(field.TooLong(chainPath, chain, maxChain))
	}
	block, rest := pem.Decode([]byte(chain))
	if block == nil {
		return badChain("issued certificate chain must contain at least one certificate")
	}
	if block.Type != certificateBlock {
		return badChain("issued certificate chain must consist entirely of CERTIFICATE PEM blocks")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return badChain("leaf certificate does not parse as valid X.509")
	}
	errs := validateNames(leaf)
	req, err := x509.ParseCertificateRequest(old.Spec.StubPKCS10Request)
	if err != nil {
		return append(errs, field.Invalid(stubPath, field.OmitValueType{}, "must be a valid PKCS#10 CSR"))
	}
	if k, ok := req.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && !k.Equal(leaf.PublicKey) {
		return append(errs, badChain("leaf certificate was not issued to the requested public key")...)
	}
	if s.NotBefore == nil {
		errs = append(errs, field.Required(notBeforePath, "must be present and consistent with the issued certificate"))
	}
	if s.NotAfter == nil {
		errs = append(errs, field.Required(notAfterPath, "must be present and consistent with the issued certificate"))
	}
	if s.BeginRefreshAt == nil {
		errs = append(errs, field.Required(refreshPath, "must be present and in the range [notbefore+10min, notafter-10min]"))
	}
	if len(errs) > 0 {
		return errs
	}
	if errs := validateTimes(env, r, leaf); len(errs) > 0 {
		return errs
	}
	for b, rest := pem.Decode(rest); b != nil; b, rest = pem.Decode(rest) {
		if b.Type != certificateBlock {
			// The misspelling is upstream's.
			return badChain("issued certificate chain must consist entirely of CERTFICATE PEM blocks")
		}
		if _, err := x509.ParseCertificate(b.Bytes); err != nil {
			return badChain("intermediate certificate does not parse as valid X.509")
		}
	}
	return nil
}

func validateNames(leaf *x509.Certificate) field.ErrorList {
	var errs field.ErrorList
	for _, n := range leaf.DNSNames {
		if n == "" {
			errs = append(errs, field.Invalid(chainPath, n, "leaf certificate should not contain empty DNSName"))
		}
		if strings.Contains(n, "..") {
			errs = append(errs, field.Invalid(chainPath, n, "leaf certificate's DNSName should not contain '..'"))
		}
		if strings.HasPrefix(n, ".") || strings.HasSuffix(n, ".") {
			errs = append(errs, field.Invalid(chainPath, n, "leaf certificate's DNSName should not start or end with '.'"))
		}
	}
	for _, a := range leaf.EmailAddresses {
		if _, err := mail.ParseAddress(a); err != nil {
			errs = append(errs, field.Invalid(chainPath, a, "leaf certificate should not contain invalid EmailAddress"))
		}
	}
	return errs
}

// validateTimes returns the first mistake in the times of a status and its
// certificate.
func validateTimes(env resource.Env, r *podRequest, leaf *x509.Certificate) field.ErrorList {
	from, to, refresh := r.Status.NotBefore.Time, r.Status.NotAfter.Time, r.Status.BeginRefreshAt.Time
	now, lifetime, most := env.Now(), leaf.NotAfter.Sub(leaf.NotBefore), *r.Spec.MaxExpirationSeconds
	switch {
	case !from.Equal(leaf.NotBefore):
		return one(field.Invalid(notBeforePath, from, "must be set to the NotBefore time encoded in the leaf certificate"))
	case !from.After(now.Add(-skew)) || !from.Before(now.Add(skew)):
		return one(field.Invalid(notBeforePath, from, "must be set to within 5 minutes of kube-apiserver's current time"))
	case !to.Equal(leaf.NotAfter):
		return one(field.Invalid(notAfterPath, to, "must be set to the NotAfter time encoded in the leaf certificate"))
	case lifetime < minLifetime:
		return one(field.Invalid(chainPath, lifetime, "leaf certificate lifetime must be >= 1 hour"))
	case lifetime > time.Duration(most)*time.Second:
		return one(field.Invalid(chainPath, lifetime, fmt.Sprintf("leaf certificate lifetime must be <= spec.maxExpirationSeconds (%v)", most)))
	case refresh.Before(from.Add(margin)):
		return one(field.Invalid(refreshPath, refresh, "must be at least 10 minutes after status.notBefore"))
	case refresh.After(to.Add(-margin)):
		return one(field.Invalid(refreshPath, refresh, "must be at least 10 minutes before status.notAfter"))
	}
	return nil
}
