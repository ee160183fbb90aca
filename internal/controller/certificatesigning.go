package controller

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/certificates"
	"skiff/internal/client"
	"skiff/internal/control"
)

// Authority signs certificates that the API server's clients and servers know each
// other by.
type Authority interface {
	// Sign makes a certificate of what template says, but for its serial number,
	// and returns it in PEM form.
	Sign(template *x509.Certificate, pub crypto.PublicKey) ([]byte, error)
	// NotAfter is when the authority ends, and everything that it signed.
	NotAfter() time.Time
}

const (
	longestCertificate  = 365 * 24 * time.Hour
	shortestCertificate = 10 * time.Minute
	// certificateBackdate is for clocks that are late. A life of shortLife and more
	// is counted from that earlier begin.
	certificateBackdate = 5 * time.Minute
	shortLife           = 8 * time.Hour
)

// newCertificateSigning returns the controller that signs the approved requests for
// Kubernetes' own signers, with the cluster's authority.
func newCertificateSigning(d Deps) *control.Controller {
	c := control.New(certificateRole, d.Deps)
	requests := control.Watch(c, control.Enqueue[*certificatesv1.CertificateSigningRequest](c))
	c.Writes = append(c.Writes,
		control.Rule(certificatesv1.GroupName, []string{"certificatesigningrequests/status"}, "update"),
		namedRule(certificatesv1.GroupName, "signers", "sign", certificatesv1beta1.LegacyUnknownSignerName,
			certificatesv1.KubeAPIServerClientSignerName, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName),
	)
	now := d.Clock()
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		csr, ok := requests.Get("", k.Name)
		if !ok || !awaitsSigning(csr) {
			return control.Result{}, nil
		}
		check := signerChecks[csr.Spec.SignerName]
		if check == nil {
			return control.Result{}, nil
		}
		req, err := certificates.ParseRequest(csr.Spec.Request)
		if err != nil {
			return control.Result{}, fmt.Errorf("unable to parse csr %q: %w", csr.Name, err)
		}
		next := csr.DeepCopy()
		if err := check(req, csr.Spec.Usages); err != nil {
			next.Status.Conditions = append(next.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
				Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure",
				Message: err.Error(), LastUpdateTime: metav1.NewTime(now()),
			})
		} else if next.Status.Certificate, err = signRequest(d.Authority, req, &csr.Spec, now()); err != nil {
			return control.Result{}, fmt.Errorf("error auto signing csr: %w", err)
		}
		got, err := client.For[*certificatesv1.CertificateSigningRequest](c.Client).UpdateStatus(ctx, next)
		if err != nil {
			return control.Result{}, fmt.Errorf("error updating signature for csr: %w", err)
		}
		control.Wrote(c.Pending, k, requests, got)
		return control.Result{}, nil
	}
	return c
}

// awaitsSigning tells that a request is approved, and that nothing came of it yet.
func awaitsSigning(csr *certificatesv1.CertificateSigningRequest) bool {
	return len(csr.Status.Certificate) == 0 && hasRequestCondition(csr, certificatesv1.CertificateApproved) &&
		!hasRequestCondition(csr, certificatesv1.CertificateDenied) && !hasRequestCondition(csr, certificatesv1.CertificateFailed)
}

// signerChecks are the signers, and what each refuses.
var signerChecks = map[string]func(*x509.CertificateRequest, []certificatesv1.KeyUsage) error{
	certificatesv1.KubeAPIServerClientSignerName:        checkClientUsages,
	certificatesv1.KubeAPIServerClientKubeletSignerName: checkKubeletClient,
	certificatesv1.KubeletServingSignerName:             checkKubeletServing,
	certificatesv1beta1.LegacyUnknownSignerName:         func(*x509.CertificateRequest, []certificatesv1.KeyUsage) error { return nil },
}

func checkClientUsages(_ *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	for _, u := range usages {
		switch u {
		case certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageClientAuth:
		default:
			return fmt.Errorf("invalid usage for client certificate: %s", u)
		}
	}
	if !slices.Contains(usages, certificatesv1.UsageClientAuth) {
		return fmt.Errorf("missing required usage for client certificate: %s", certificatesv1.UsageClientAuth)
	}
	return nil
}

// certificateLife is how long a certificate is to hold: as long as was asked for,
// within bounds.
func certificateLife(seconds *int32) time.Duration {
	if seconds == nil {
		return longestCertificate
	}
	return min(max(time.Duration(*seconds)*time.Second, shortestCertificate), longestCertificate)
}

// signRequest takes the subject, its other names and the key from the request, and
// the usages from the spec. Extensions that were asked for are left out, the right
// to sign others before all.
func signRequest(a Authority, req *x509.CertificateRequest, spec *certificatesv1.CertificateSigningRequestSpec, now time.Time) ([]byte, error) {
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("unable to verify certificate request signature: %w", err)
	}
	usage, ext, err := x509Usages(spec.Usages)
	if err != nil {
		return nil, err
	}
	end := a.NotAfter()
	if !now.Before(end) {
		return nil, fmt.Errorf("refusing to sign a certificate that expired in the past: NotAfter=%v", end)
	}
	t := &x509.Certificate{
		Subject: req.Subject, DNSNames: req.DNSNames, IPAddresses: req.IPAddresses, EmailAddresses: req.EmailAddresses, URIs: req.URIs,
		KeyUsage: usage, ExtKeyUsage: ext, BasicConstraintsValid: true, NotBefore: now.Add(-certificateBackdate),
	}
	life := certificateLife(spec.ExpirationSeconds)
	t.NotAfter = now.Add(life)
	if life >= shortLife {
		t.NotAfter = t.NotBefore.Add(life)
	}
	if t.NotAfter.After(end) {
		t.NotAfter = end
	}
	return a.Sign(t, req.PublicKey)
}

var keyUsages = map[certificatesv1.KeyUsage]x509.KeyUsage{
	certificatesv1.UsageSigning:           x509.KeyUsageDigitalSignature,
	certificatesv1.UsageDigitalSignature:  x509.KeyUsageDigitalSignature,
	certificatesv1.UsageContentCommitment: x509.KeyUsageContentCommitment,
	certificatesv1.UsageKeyEncipherment:   x509.KeyUsageKeyEncipherment,
	certificatesv1.UsageKeyAgreement:      x509.KeyUsageKeyAgreement,
	certificatesv1.UsageDataEncipherment:  x509.KeyUsageDataEncipherment,
	certificatesv1.UsageCertSign:          x509.KeyUsageCertSign,
	certificatesv1.UsageCRLSign:           x509.KeyUsageCRLSign,
	certificatesv1.UsageEncipherOnly:      x509.KeyUsageEncipherOnly,
	certificatesv1.UsageDecipherOnly:      x509.KeyUsageDecipherOnly,
}

var extKeyUsages = map[certificatesv1.KeyUsage]x509.ExtKeyUsage{
	certificatesv1.UsageAny:             x509.ExtKeyUsageAny,
	certificatesv1.UsageServerAuth:      x509.ExtKeyUsageServerAuth,
	certificatesv1.UsageClientAuth:      x509.ExtKeyUsageClientAuth,
	certificatesv1.UsageCodeSigning:     x509.ExtKeyUsageCodeSigning,
	certificatesv1.UsageEmailProtection: x509.ExtKeyUsageEmailProtection,
	certificatesv1.UsageSMIME:           x509.ExtKeyUsageEmailProtection,
	certificatesv1.UsageIPsecEndSystem:  x509.ExtKeyUsageIPSECEndSystem,
	certificatesv1.UsageIPsecTunnel:     x509.ExtKeyUsageIPSECTunnel,
	certificatesv1.UsageIPsecUser:       x509.ExtKeyUsageIPSECUser,
	certificatesv1.UsageTimestamping:    x509.ExtKeyUsageTimeStamping,
	certificatesv1.UsageOCSPSigning:     x509.ExtKeyUsageOCSPSigning,
	certificatesv1.UsageMicrosoftSGC:    x509.ExtKeyUsageMicrosoftServerGatedCrypto,
	certificatesv1.UsageNetscapeSGC:     x509.ExtKeyUsageNetscapeServerGatedCrypto,
}

func x509Usages(usages []certificatesv1.KeyUsage) (x509.KeyUsage, []x509.ExtKeyUsage, error) {
	var usage x509.KeyUsage
	var ext []x509.ExtKeyUsage
	var unknown []certificatesv1.KeyUsage
	for _, u := range usages {
		if bit, ok := keyUsages[u]; ok {
			usage |= bit
		} else if e, ok := extKeyUsages[u]; ok {
			ext = append(ext, e)
		} else {
			unknown = append(unknown, u)
		}
	}
	if len(unknown) > 0 {
		return 0, nil, fmt.Errorf("unrecognized usage values: %q", unknown)
	}
	slices.Sort(ext)
	return usage, slices.Compact(ext), nil
}
