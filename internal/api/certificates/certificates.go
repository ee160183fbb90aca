// Package certificates declares the resources of certificates.k8s.io.
package certificates

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// equal is upstream's semantic equality: nil and empty are the same.
func equal(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

const certificateBlock = "CERTIFICATE"

// ParseRequest reads a PKCS #10 request in PEM.
func ParseRequest(text []byte) (*x509.CertificateRequest, error) {
	b, _ := pem.Decode(text)
	if b == nil || b.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	return x509.ParseCertificateRequest(b.Bytes)
}

// MaySign tells whether the user may do something for a signer: approve, sign,
// attest. The right is given for the signer, or for all of its domain.
func MaySign(ctx context.Context, env resource.Env, verb, signer string) bool {
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		d, err := env.Authorize(ctx, resource.Attributes{
			User: env.User, Verb: verb, Group: certificatesv1.GroupName, Version: "*", Resource: "signers", Name: name,
		})
		if err == nil && d.Allowed {
			return true
		}
	}
	return false
}
