package certificates

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

type podRequest = certificatesv1.PodCertificateRequest

// PodCertificateRequest declares podcertificaterequests (KEP 4317). Nothing of a
// request changes; its status is written once, by who may sign for its signer.
func PodCertificateRequest() *resource.Resource {
	doc := certificatesv1.PodCertificateRequestSpec{}.SwaggerDoc()
	return resource.Define(resource.Resource{
		GroupVersion: certificatesv1.SchemeGroupVersion, Kind: "PodCertificateRequest", Plural: "podcertificaterequests", Singular: "podcertificaterequest",
		Namespaced: true, Prefix: "/registry/podcertificaterequests/",
		Stored:  certificatesv1beta1.SchemeGroupVersion,
		New:     func() resource.Object { return &podRequest{} },
		NewList: func() runtime.Object { return &certificatesv1.PodCertificateRequestList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.Column("PodName", "string", doc["podName"], 0),
			resource.Column("ServiceAccountName", "string", doc["serviceAccountName"], 0),
			resource.Column("NodeName", "string", doc["nodeName"], 0),
			resource.Column("SignerName", "string", doc["signerName"], 0),
			resource.Column("State", "string", "Is the request Pending, Issued, Denied, or Failed?", 0),
			resource.Column("UnverifiedUserAnnotations", "string", doc["unverifiedUserAnnotations"], 0),
		},
		Subresources: []resource.Subresource{resource.StatusOf(resource.StrategyOf[*podRequest]{
			Default:     defaultPodRequest,
			ResetFields: []string{"metadata", "spec"},
			PrepareUpdate: func(_ resource.Env, r, old *podRequest) {
				r.Spec = *old.Spec.DeepCopy()
				metav1.ResetObjectMetaForStatus(&r.ObjectMeta, old.ObjectMeta.DeepCopy())
			},
			Check:          maySignStatus,
			ValidateUpdate: validatePodStatus,
		})},
	}, resource.StrategyOf[*podRequest]{
		Default:        defaultPodRequest,
		ResetFields:    []string{"status"},
		PrepareCreate:  func(_ resource.Env, r *podRequest) { r.Status = certificatesv1.PodCertificateRequestStatus{} },
		PrepareUpdate:  func(_ resource.Env, r, old *podRequest) { r.Status = *old.Status.DeepCopy() },
		ValidateCreate: func(_ resource.Env, r *podRequest) field.ErrorList { return validatePodRequest(r) },
		ValidateUpdate: func(_ resource.Env, r, old *podRequest) field.ErrorList {
			errs := resource.ValidateMetaUpdate(r, old)
			if !equal(r.Spec, old.Spec) {
				errs = append(errs, field.Invalid(specPath, shownSpec(&r.Spec), apivalidation.FieldImmutableErrorMsg))
			}
			return errs
		},
		Selectable: func(r *podRequest) fields.Set {
			return fields.Set{"spec.signerName": r.Spec.SignerName, "spec.podName": r.Spec.PodName, "spec.nodeName": string(r.Spec.NodeName)}
		},
		Row: func(r *podRequest, _ time.Time) []any {
			state := "Pending"
			for _, c := range r.Status.Conditions {
				if isOutcome(c.Type) {
					state = c.Type
				}
			}
			return []any{r.Name, r.Spec.PodName, r.Spec.ServiceAccountName, string(r.Spec.NodeName), r.Spec.SignerName, state,
				labels.FormatLabels(r.Spec.UnverifiedUserAnnotations)}
		},
	})
}

func defaultPodRequest(r *podRequest) {
	if r.Spec.MaxExpirationSeconds == nil {
		day := int32(24 * 60 * 60)
		r.Spec.MaxExpirationSeconds = &day
	}
}

// shownSpec is a spec as messages show it: with the fields of the versions before.
func shownSpec(s *certificatesv1.PodCertificateRequestSpec) any {
	return struct {
		SignerName, PodName       string
		PodUID                    types.UID
		ServiceAccountName        string
		ServiceAccountUID         types.UID
		NodeName                  types.NodeName
		NodeUID                   types.UID
		MaxExpirationSeconds      *int32
		PKIXPublicKey             []byte
		ProofOfPossession         []byte
		StubPKCS10Request         []byte
		UnverifiedUserAnnotations map[string]string
	}{s.SignerName, s.PodName, s.PodUID, s.ServiceAccountName, s.ServiceAccountUID, s.NodeName, s.NodeUID, s.MaxExpirationSeconds,
		nil, nil, s.StubPKCS10Request, s.UnverifiedUserAnnotations}
}

// maySignStatus asks for the right to sign. A status that is refused anyway is not
// asked about.
func maySignStatus(ctx context.Context, env resource.Env, r, old *podRequest) field.ErrorList {
	if equal(r.Status, old.Status) || len(validatePodStatus(env, r, old)) > 0 || MaySign(ctx, env, "sign", old.Spec.SignerName) {
		return nil
	}
	return field.ErrorList{field.Forbidden(specPath.Child("signerName"),
		fmt.Sprintf("User %q is not permitted to \"sign\" for signer %q", env.User.Name, old.Spec.SignerName))}
}

// Bounds of a request.
const (
	maxUID        = 128
	maxRequest    = 10 << 10 // bytes
	minExpiration = 60 * 60  // seconds
)

func validatePodRequest(r *podRequest) field.ErrorList {
	errs := resource.ValidateMeta(r, true, resource.DNSSubdomain)
	s := &r.Spec
	errs = append(errs, pod.ValidateSignerName(specPath.Child("signerName"), s.SignerName)...)
	errs = append(errs, pod.ValidateUserAnnotations(specPath.Child("unverifiedUserAnnotations"), s.UnverifiedUserAnnotations)...)
	for _, ref := range []struct {
		name, value string
		uid         types.UID
	}{{"pod", s.PodName, s.PodUID}, {"serviceAccount", s.ServiceAccountName, s.ServiceAccountUID}, {"node", string(s.NodeName), s.NodeUID}} {
		for _, msg := range resource.DNSSubdomain(ref.value, false) {
			errs = append(errs, field.Invalid(specPath.Child(ref.name+"Name"), ref.value, msg))
		}
		up := specPath.Child(ref.name + "UID")
		if ref.uid == "" {
			errs = append(errs, field.Invalid(up, ref.uid, "must not be empty"))
		} else if len(ref.uid) > maxUID {
			errs = append(errs, field.TooLong(up, ref.uid, maxUID))
		}
	}
	ep := specPath.Child("maxExpirationSeconds")
	if most := pod.MaxCertificateSeconds(s.SignerName); *s.MaxExpirationSeconds < minExpiration || *s.MaxExpirationSeconds > most {
		errs = append(errs, field.Invalid(ep, *s.MaxExpirationSeconds, fmt.Sprintf("must be in the range [%d, %d]", minExpiration, most)))
	}
	// The text names fields of versions before this one.
	if len(s.StubPKCS10Request) == 0 {
		return append(errs, field.Invalid(specPath, field.OmitValueType{}, "exactly one of (stubPKCS10Request) or (pkixPublicKey, proofOfPossession) must be set"))
	}
	return append(errs, validateStub(s)...)
}

var stubPath = specPath.Child("stubPKCS10Request")

func one(e *field.Error) field.ErrorList { return field.ErrorList{e} }

// unfit tells why a key may not be certified.
func unfit(key crypto.PublicKey) field.ErrorList {
	switch k := key.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return one(field.Invalid(stubPath, "curve "+k.Curve.Params().Name, "elliptic public keys must use curve P256, P384, or P521"))
		}
	case *rsa.PublicKey:
		if bits := k.Size() * 8; bits != 3072 && bits != 4096 {
			return one(field.Invalid(stubPath, fmt.Sprintf("%d-bit modulus", bits), "RSA keys must have modulus size 3072 or 4096"))
		}
	default:
		return one(field.Invalid(stubPath, field.OmitValueType{}, "unknown public key type; supported types are Ed25519, ECDSA, and RSA"))
	}
	return nil
}

// validateStub checks a request that says nothing but which key it is for, and is
// signed with it.
func validateStub(s *certificatesv1.PodCertificateRequestSpec) field.ErrorList {
	if len(s.StubPKCS10Request) > maxRequest {
		return one(field.TooLong(stubPath, s.StubPKCS10Request, maxRequest))
	}
	req, err := x509.ParseCertificateRequest(s.StubPKCS10Request)
	if err != nil {
		return one(field.Invalid(stubPath, field.OmitValueType{}, "must be a valid PKCS#10 CSR"))
	}
	if errs := unfit(req.PublicKey); len(errs) > 0 {
		return errs
	}
	if req.CheckSignature() != nil {
		return one(field.Invalid(stubPath, field.OmitValueType{}, "invalid signature"))
	}
	return nil
}
