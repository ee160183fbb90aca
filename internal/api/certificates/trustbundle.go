package certificates

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

// ClusterTrustBundle declares clustertrustbundles (KEP 3257).
func ClusterTrustBundle() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: certificatesv1.SchemeGroupVersion, Kind: "ClusterTrustBundle", Plural: "clustertrustbundles", Singular: "clustertrustbundle",
		Prefix:  "/registry/clustertrustbundles/",
		Stored:  certificatesv1beta1.SchemeGroupVersion,
		New:     func() resource.Object { return &certificatesv1.ClusterTrustBundle{} },
		NewList: func() runtime.Object { return &certificatesv1.ClusterTrustBundleList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("SignerName", "string", certificatesv1.ClusterTrustBundleSpec{}.SwaggerDoc()["signerName"], 0),
		},
	}, resource.StrategyOf[*certificatesv1.ClusterTrustBundle]{
		ValidateCreate: func(_ resource.Env, b *certificatesv1.ClusterTrustBundle) field.ErrorList {
			return append(validateBundle(b), validateAnchors(b.Spec.TrustBundle)...)
		},
		ValidateUpdate: func(_ resource.Env, b, old *certificatesv1.ClusterTrustBundle) field.ErrorList {
			errs := validateBundle(b)
			// What was read once need not be readable by every later parser.
			if b.Spec.TrustBundle != old.Spec.TrustBundle {
				errs = append(errs, validateAnchors(b.Spec.TrustBundle)...)
			}
			errs = append(errs, resource.ValidateMetaUpdate(b, old)...)
			return append(errs, apivalidation.ValidateImmutableField(b.Spec.SignerName, old.Spec.SignerName, specPath.Child("signerName"))...)
		},
		Selectable: func(b *certificatesv1.ClusterTrustBundle) fields.Set {
			return fields.Set{"spec.signerName": b.Spec.SignerName}
		},
		Row: func(b *certificatesv1.ClusterTrustBundle, _ time.Time) []any {
			signer := b.Spec.SignerName
			if signer == "" {
				signer = "<none>"
			}
			return []any{b.Name, signer}
		},
	})
}

func validateBundle(b *certificatesv1.ClusterTrustBundle) field.ErrorList {
	errs := resource.ValidateMeta(b, false, pod.TrustBundleName(b.Spec.SignerName))
	if b.Spec.SignerName != "" {
		errs = append(errs, pod.ValidateSignerName(specPath.Child("signerName"), b.Spec.SignerName)...)
	}
	return errs
}

const maxTrustBundle = 1 << 20 // bytes

// validateAnchors checks the certificates of authorities that a bundle consists of.
func validateAnchors(text string) field.ErrorList {
	p := specPath.Child("trustBundle")
	if len(text) > maxTrustBundle {
		return field.ErrorList{field.TooLong(p, "", maxTrustBundle)}
	}
	var errs field.ErrorList
	bad := func(format string, args ...any) {
		errs = append(errs, field.Invalid(p, "<value omitted>", fmt.Sprintf(format, args...)))
	}
	var order []string
	at := map[string][]int{}
	i := 0
	for b, rest := pem.Decode([]byte(text)); b != nil; b, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(b.Bytes)
		switch {
		case b.Type != certificateBlock:
			bad("entry %d has bad block type: %v", i, b.Type)
		case len(b.Headers) > 0:
			bad("entry %d has PEM block headers", i)
		case err != nil:
			bad("entry %d does not parse as X.509", i)
		case !cert.IsCA:
			bad("entry %d does not have the CA bit set", i)
		case !cert.BasicConstraintsValid:
			bad("entry %d has invalid basic constraints", i)
		default:
			if at[string(b.Bytes)] == nil {
				order = append(order, string(b.Bytes))
			}
			at[string(b.Bytes)] = append(at[string(b.Bytes)], i)
		}
		i++
	}
	if len(errs) > 0 {
		return errs
	}
	if len(order) == 0 {
		bad("at least one trust anchor must be provided")
	}
	for _, k := range order {
		if len(at[k]) > 1 {
			bad("duplicate trust anchor (indices %v)", at[k])
		}
	}
	return errs
}
