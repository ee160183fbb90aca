package certificates

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/pod"
	"skiff/internal/api/resource"
)

type csr = certificatesv1.CertificateSigningRequest

// CertificateSigningRequest declares certificatesigningrequests. Who asks is written
// into the request when it is made; after that only approval and status change. Who
// may approve and sign for a signer is for admission to hold.
func CertificateSigningRequest() *resource.Resource {
	// The table describes its columns with the words of the version before.
	doc := certificatesv1beta1.CertificateSigningRequestSpec{}.SwaggerDoc()
	approval := resource.Untyped(resource.StrategyOf[*csr]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"spec", "status.certificate"},
		PrepareUpdate: func(env resource.Env, c, old *csr) {
			conditions := stamped(env.Now(), c.Status.Conditions, old.Status.Conditions)
			c.Spec, c.Status = *old.Spec.DeepCopy(), *old.Status.DeepCopy()
			c.Status.Conditions = conditions
		},
		ValidateUpdate: func(_ resource.Env, c, old *csr) field.ErrorList {
			return validateRequestUpdate(c, old, mayChange{approval: true})
		},
	})
	return resource.Define(resource.Resource{
		GroupVersion: certificatesv1.SchemeGroupVersion, Kind: "CertificateSigningRequest",
		Plural: "certificatesigningrequests", Singular: "certificatesigningrequest",
		ShortNames: []string{"csr"}, Prefix: "/registry/certificatesigningrequests/",
		New:     func() resource.Object { return &csr{} },
		NewList: func() runtime.Object { return &certificatesv1.CertificateSigningRequestList{} },
		Columns: []metav1.TableColumnDefinition{
			resource.NameColumn(),
			resource.AgeColumn(),
			resource.Column("SignerName", "string", doc["signerName"], 0),
			resource.Column("Requestor", "string", doc["request"], 0),
			resource.Column("RequestedDuration", "string", doc["expirationSeconds"], 0),
			resource.Column("Condition", "string", certificatesv1beta1.CertificateSigningRequestStatus{}.SwaggerDoc()["conditions"], 0),
		},
		Subresources: []resource.Subresource{
			{Name: "approval", Verbs: []string{"get", "patch", "update"}, Status: &approval},
			resource.StatusOf(resource.StrategyOf[*csr]{
				UnconditionalUpdate: true,
				ResetFields:         []string{"spec", "status.conditions"},
				PrepareUpdate: func(env resource.Env, c, old *csr) {
					c.Spec = *old.Spec.DeepCopy()
					for _, t := range verdicts {
						keepConditions(c, old, t)
					}
					c.Status.Conditions = stamped(env.Now(), c.Status.Conditions, old.Status.Conditions)
				},
				ValidateUpdate: func(_ resource.Env, c, old *csr) field.ErrorList {
					return validateRequestUpdate(c, old, mayChange{certificate: true})
				},
			}),
		},
	}, resource.StrategyOf[*csr]{
		UnconditionalUpdate: true,
		ResetFields:         []string{"spec", "status"},
		PrepareCreate: func(env resource.Env, c *csr) {
			c.Spec.Username, c.Spec.UID, c.Spec.Groups, c.Spec.Extra = env.User.Name, env.User.UID, env.User.Groups, nil
			for k, v := range env.User.Extra {
				if c.Spec.Extra == nil {
					c.Spec.Extra = map[string]certificatesv1.ExtraValue{}
				}
				c.Spec.Extra[k] = v
			}
			c.Status = certificatesv1.CertificateSigningRequestStatus{}
		},
		PrepareUpdate: func(_ resource.Env, c, old *csr) {
			c.Spec, c.Status = *old.Spec.DeepCopy(), *old.Status.DeepCopy()
		},
		ValidateCreate: func(_ resource.Env, c *csr) field.ErrorList { return validateRequest(c, requestOptions{}) },
		ValidateUpdate: func(_ resource.Env, c, old *csr) field.ErrorList { return validateRequestUpdate(c, old, mayChange{}) },
		Selectable:     func(c *csr) fields.Set { return fields.Set{"spec.signerName": c.Spec.SignerName} },
		Row:            requestRow,
	})
}

// verdicts are the conditions of approval, which exclude each other.
var verdicts = []certificatesv1.RequestConditionType{certificatesv1.CertificateApproved, certificatesv1.CertificateDenied}

// stamped returns conditions with the times that the client left out.
func stamped(at time.Time, list, old []certificatesv1.CertificateSigningRequestCondition) []certificatesv1.CertificateSigningRequestCondition {
	now := metav1.NewTime(at)
	for i := range list {
		c := &list[i]
		if c.LastUpdateTime.IsZero() {
			c.LastUpdateTime = now
		}
		if !c.LastTransitionTime.IsZero() {
			continue
		}
		c.LastTransitionTime = now
		for _, o := range old {
			if o.Type == c.Type && o.Status == c.Status && !o.LastTransitionTime.IsZero() {
				c.LastTransitionTime = o.LastTransitionTime
				break
			}
		}
	}
	return list
}

// keepConditions puts the old conditions of a type where the new ones are, if there
// are as many: what came or went is left for validation to refuse.
func keepConditions(c, old *csr, t certificatesv1.RequestConditionType) {
	was := conditionsOf(old, t)
	if len(was) != len(conditionsOf(c, t)) {
		return
	}
	for i := range c.Status.Conditions {
		if c.Status.Conditions[i].Type == t {
			c.Status.Conditions[i], was = was[0], was[1:]
		}
	}
}

func conditionsOf(c *csr, t certificatesv1.RequestConditionType) []certificatesv1.CertificateSigningRequestCondition {
	var out []certificatesv1.CertificateSigningRequestCondition
	for _, x := range c.Status.Conditions {
		if x.Type == t {
			out = append(out, x)
		}
	}
	return out
}

// requestOptions are what a stored request may keep that would be refused today.
type requestOptions struct {
	bothVerdicts, repeatedConditions, untypedConditions, anyCertificate bool
	legacySigner, unknownUsages, repeatedUsages                         bool
}

func requestOptionsOf(c, old *csr) requestOptions {
	o := requestOptions{
		bothVerdicts:   len(conditionsOf(old, certificatesv1.CertificateApproved)) > 0 && len(conditionsOf(old, certificatesv1.CertificateDenied)) > 0,
		anyCertificate: bytes.Equal(c.Status.Certificate, old.Status.Certificate) || checkCertificates(old.Status.Certificate) != nil,
		legacySigner:   old.Spec.SignerName == legacySigner,
		unknownUsages:  slices.ContainsFunc(old.Spec.Usages, func(u certificatesv1.KeyUsage) bool { return !slices.Contains(usages, u) }),
	}
	types := map[certificatesv1.RequestConditionType]bool{}
	for _, x := range old.Status.Conditions {
		o.untypedConditions = o.untypedConditions || x.Type == ""
		o.repeatedConditions = o.repeatedConditions || types[x.Type]
		types[x.Type] = true
	}
	seen := map[certificatesv1.KeyUsage]bool{}
	for _, u := range old.Spec.Usages {
		o.repeatedUsages = o.repeatedUsages || seen[u]
		seen[u] = true
	}
	return o
}

// legacySigner is whom requests asked before they named a signer.
const legacySigner = "kubernetes.io/legacy-unknown"

// usages are the known ones, sorted.
var usages = slices.Sorted(slices.Values([]certificatesv1.KeyUsage{
	certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature, certificatesv1.UsageContentCommitment, certificatesv1.UsageKeyEncipherment,
	certificatesv1.UsageKeyAgreement, certificatesv1.UsageDataEncipherment, certificatesv1.UsageCertSign, certificatesv1.UsageCRLSign,
	certificatesv1.UsageEncipherOnly, certificatesv1.UsageDecipherOnly, certificatesv1.UsageAny, certificatesv1.UsageServerAuth,
	certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning, certificatesv1.UsageEmailProtection, certificatesv1.UsageSMIME,
	certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel, certificatesv1.UsageIPsecUser, certificatesv1.UsageTimestamping,
	certificatesv1.UsageOCSPSigning, certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC,
}))

func anyName(string, bool) []string { return nil }

func validateRequest(c *csr, o requestOptions) field.ErrorList {
	errs := resource.ValidateMeta(c, false, anyName)
	if r, err := ParseRequest(c.Spec.Request); err != nil {
		errs = append(errs, field.Invalid(specPath.Child("request"), c.Spec.Request, err.Error()))
	} else if err := r.CheckSignature(); err != nil {
		errs = append(errs, field.Invalid(specPath.Child("request"), c.Spec.Request, err.Error()))
	}
	up := specPath.Child("usages")
	if len(c.Spec.Usages) == 0 {
		errs = append(errs, field.Required(up, ""))
	}
	if !o.unknownUsages {
		for i, u := range c.Spec.Usages {
			if !slices.Contains(usages, u) {
				errs = append(errs, field.NotSupported(up.Index(i), u, usages))
			}
		}
	}
	if !o.repeatedUsages {
		seen := map[certificatesv1.KeyUsage]bool{}
		for i, u := range c.Spec.Usages {
			if seen[u] {
				errs = append(errs, field.Duplicate(up.Index(i), u))
			}
			seen[u] = true
		}
	}
	if !o.legacySigner && c.Spec.SignerName == legacySigner {
		errs = append(errs, field.Invalid(specPath.Child("signerName"), c.Spec.SignerName, "the legacy signerName is not allowed via this API version"))
	} else {
		errs = append(errs, pod.ValidateSignerName(specPath.Child("signerName"), c.Spec.SignerName)...)
	}
	if e := c.Spec.ExpirationSeconds; e != nil && *e < 600 {
		errs = append(errs, field.Invalid(specPath.Child("expirationSeconds"), *e, "may not specify a duration less than 600 seconds (10 minutes)"))
	}
	errs = append(errs, validateConditions(c, o)...)
	if !o.anyCertificate {
		if err := checkCertificates(c.Status.Certificate); err != nil {
			errs = append(errs, field.Invalid(statusPath.Child("certificate"), "<certificate data>", err.Error()))
		}
	}
	return errs
}

func validateConditions(c *csr, o requestOptions) field.ErrorList {
	var errs field.ErrorList
	p := statusPath.Child("conditions")
	seen := map[certificatesv1.RequestConditionType]bool{}
	for i, x := range c.Status.Conditions {
		if x.Type == "" && !o.untypedConditions {
			errs = append(errs, field.Required(p.Index(i).Child("type"), ""))
		}
		allowed := []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown}
		if x.Type == certificatesv1.CertificateFailed || slices.Contains(verdicts, x.Type) {
			allowed = []corev1.ConditionStatus{corev1.ConditionTrue}
		}
		if x.Status == "" {
			errs = append(errs, field.Required(p.Index(i).Child("status"), ""))
		} else if !slices.Contains(allowed, x.Status) {
			errs = append(errs, field.NotSupported(p.Index(i).Child("status"), x.Status, allowed))
		}
		if seen[x.Type] && !o.repeatedConditions {
			errs = append(errs, field.Duplicate(p.Index(i).Child("type"), x.Type))
		}
		seen[x.Type] = true
	}
	return errs
}

// checkCertificates checks what a signer issued: certificates in PEM, or nothing.
func checkCertificates(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	n := 0
	for b, rest := pem.Decode(text); b != nil; b, rest = pem.Decode(rest) {
		if b.Type != certificateBlock {
			return fmt.Errorf("only CERTIFICATE PEM blocks are allowed, found %q", b.Type)
		}
		if len(b.Headers) > 0 {
			return errors.New("no PEM block headers are permitted")
		}
		n++
		list, err := x509.ParseCertificates(b.Bytes)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return errors.New("found CERTIFICATE PEM block containing 0 certificates")
		}
	}
	if n == 0 {
		return errors.New("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}

// mayChange is what a door may write besides metadata and other conditions.
type mayChange struct{ approval, certificate bool }

func validateRequestUpdate(c, old *csr, may mayChange) field.ErrorList {
	o := requestOptionsOf(c, old)
	errs := validateRequest(c, o)
	p := statusPath.Child("conditions")
	for _, t := range append(slices.Clone(verdicts), certificatesv1.CertificateFailed) {
		if len(conditionsOf(c, t)) < len(conditionsOf(old, t)) {
			errs = append(errs, field.Forbidden(p, fmt.Sprintf("updates may not remove a condition of type %q", t)))
		}
	}
	if !may.approval {
		for _, t := range verdicts {
			is, was := conditionsOf(c, t), conditionsOf(old, t)
			if len(is) > len(was) {
				errs = append(errs, field.Forbidden(p, fmt.Sprintf("updates may not add a condition of type %q", t)))
			} else if len(is) == len(was) && !equal(is, was) {
				errs = append(errs, field.Forbidden(p, fmt.Sprintf("updates may not modify a condition of type %q\n%v", t, resource.Diff(was, is))))
			}
		}
	}
	if !bytes.Equal(c.Status.Certificate, old.Status.Certificate) {
		if !may.certificate {
			errs = append(errs, field.Forbidden(statusPath.Child("certificate"), "updates may not set certificate content"))
		} else if len(old.Status.Certificate) > 0 {
			errs = append(errs, field.Forbidden(statusPath.Child("certificate"), "updates may not modify existing certificate content"))
		}
	}
	errs = append(errs, resource.ValidateMetaUpdate(c, old)...)
	if !equal(c.Status.Conditions, old.Status.Conditions) {
		errs = append(errs, bothVerdicts(c, old)...)
	}
	return errs
}

// bothVerdicts refuses a request that is approved and denied, unless it was.
func bothVerdicts(c, old *csr) field.ErrorList {
	both := func(c *csr) bool {
		return !slices.ContainsFunc(verdicts, func(t certificatesv1.RequestConditionType) bool { return len(conditionsOf(c, t)) == 0 })
	}
	if !both(c) || both(old) {
		return nil
	}
	var names, quoted []string
	for _, t := range verdicts {
		n := fmt.Sprintf(`conditions[{"type": %q}]`, t)
		names, quoted = append(names, n), append(quoted, "`"+n+"`")
	}
	return field.ErrorList{field.Invalid(statusPath.Child("conditions"), "{"+strings.Join(names, ", ")+"}",
		"must specify at most one of: "+strings.Join(quoted, ", "))}
}

func requestRow(c *csr, now time.Time) []any {
	lasts, signer := "<none>", "<none>"
	if e := c.Spec.ExpirationSeconds; e != nil {
		lasts = duration.HumanDuration(time.Duration(*e) * time.Second)
	}
	if c.Spec.SignerName != "" {
		signer = c.Spec.SignerName
	}
	state := "Pending"
	switch {
	case len(conditionsOf(c, certificatesv1.CertificateDenied)) > 0:
		state = "Denied"
	case len(conditionsOf(c, certificatesv1.CertificateApproved)) > 0:
		state = "Approved"
	}
	if len(conditionsOf(c, certificatesv1.CertificateFailed)) > 0 {
		state += ",Failed"
	}
	if len(c.Status.Certificate) > 0 {
		state += ",Issued"
	}
	return []any{c.Name, resource.Age(c.CreationTimestamp, now), signer, c.Spec.Username, lasts, state}
}
