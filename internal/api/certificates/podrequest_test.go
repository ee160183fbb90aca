package certificates

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func env() resource.Env {
	return resource.Env{Now: func() time.Time { return now }, Features: resource.DefaultFeatures()}
}

func newKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// requested is a request for a key's certificate, of an hour.
func requested(t *testing.T, k *ecdsa.PrivateKey) *podRequest {
	t.Helper()
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		t.Fatal(err)
	}
	hour := int32(3600)
	return &podRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "d", ResourceVersion: "1"},
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: "example.com/s", PodName: "p", PodUID: "1", ServiceAccountName: "default", ServiceAccountUID: "2",
			NodeName: "n", NodeUID: "3", MaxExpirationSeconds: &hour, StubPKCS10Request: stub,
		},
	}
}

// issue answers a request with a certificate of k.
func issue(t *testing.T, r *podRequest, k *ecdsa.PrivateKey, from time.Time, lasts time.Duration) *podRequest {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: from.Add(lasts)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	at := func(t time.Time) *metav1.Time { return &metav1.Time{Time: t} }
	r = r.DeepCopy()
	r.Status = certificatesv1.PodCertificateRequestStatus{
		Conditions:       []metav1.Condition{{Type: issued, Status: metav1.ConditionTrue, Reason: "R", LastTransitionTime: metav1.NewTime(now)}},
		CertificateChain: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		NotBefore:        at(template.NotBefore), NotAfter: at(template.NotAfter), BeginRefreshAt: at(from.Add(lasts / 2)),
	}
	return r
}

func TestIssued(t *testing.T) {
	key := newKey(t, elliptic.P256())
	pending := requested(t, key)
	if errs := validatePodRequest(pending); len(errs) > 0 {
		t.Fatal(errs)
	}
	good := issue(t, pending, key, now, time.Hour)
	for name, c := range map[string]struct {
		obj, old *podRequest
		change   func(*certificatesv1.PodCertificateRequestStatus)
		want     string
	}{
		"right":            {obj: good},
		"of another key":   {obj: issue(t, pending, newKey(t, elliptic.P256()), now, time.Hour), want: "leaf certificate was not issued to the requested public key"},
		"from long ago":    {obj: issue(t, pending, key, now.Add(-6*time.Minute), time.Hour), want: "must be set to within 5 minutes of kube-apiserver's current time"},
		"too short":        {obj: issue(t, pending, key, now, time.Hour-time.Second), want: "leaf certificate lifetime must be >= 1 hour"},
		"too long":         {obj: issue(t, pending, key, now, time.Hour+time.Second), want: "leaf certificate lifetime must be <= spec.maxExpirationSeconds (3600)"},
		"no times":         {obj: good, change: func(s *certificatesv1.PodCertificateRequestStatus) { s.NotBefore = nil }, want: "must be present and consistent with the issued certificate"},
		"other end":        {obj: good, change: func(s *certificatesv1.PodCertificateRequestStatus) { s.NotAfter = s.NotBefore }, want: "must be set to the NotAfter time encoded in the leaf certificate"},
		"renewed at once":  {obj: good, change: func(s *certificatesv1.PodCertificateRequestStatus) { s.BeginRefreshAt = s.NotBefore }, want: "must be at least 10 minutes after status.notBefore"},
		"renewed too late": {obj: good, change: func(s *certificatesv1.PodCertificateRequestStatus) { s.BeginRefreshAt = s.NotAfter }, want: "must be at least 10 minutes before status.notAfter"},
		"bad chain": {obj: good, change: func(s *certificatesv1.PodCertificateRequestStatus) {
			s.CertificateChain += "-----BEGIN CERTIFICATE-----\neA==\n-----END CERTIFICATE-----\n"
		}, want: "intermediate certificate does not parse as valid X.509"},
		"denied with chain": {obj: good, change: func(s *certificatesv1.PodCertificateRequestStatus) { s.Conditions[0].Type = denied },
			want: "non-condition status fields must be empty when denying or failing the PodCertificateRequest"},
		"still pending": {obj: good, change: func(s *certificatesv1.PodCertificateRequestStatus) { s.Conditions = nil },
			want: `status is immutable unless transitioning to "Issued", "Denied", or "Failed"`},
		"issued already": {obj: good, old: good, change: func(s *certificatesv1.PodCertificateRequestStatus) { s.NotBefore = nil },
			want: "immutable after PodCertificateRequest is issued, denied, or failed"},
	} {
		t.Run(name, func(t *testing.T) {
			obj, old := c.obj.DeepCopy(), c.old
			if old == nil {
				old = pending
			}
			if c.change != nil {
				c.change(&obj.Status)
			}
			errs := validatePodStatus(env(), obj, old)
			if c.want == "" {
				if len(errs) > 0 {
					t.Error(errs)
				}
				return
			}
			if len(errs) != 1 || !strings.HasSuffix(errs[0].Error(), c.want) {
				t.Errorf("got %v, want %q", errs, c.want)
			}
		})
	}
}

func TestUnfitKeys(t *testing.T) {
	errs := validatePodRequest(requested(t, newKey(t, elliptic.P224())))
	if len(errs) != 1 || errs[0].Detail != "elliptic public keys must use curve P256, P384, or P521" {
		t.Errorf("got %v", errs)
	}
}

// TestStatusOfSigner: who may not sign is refused, unless the status is refused
// anyway or does not change.
func TestStatusOfSigner(t *testing.T) {
	key := newKey(t, elliptic.P256())
	pending := requested(t, key)
	answer := issue(t, pending, key, now, time.Hour)
	bad := answer.DeepCopy()
	bad.Status.NotBefore = nil
	e := env()
	var asked []string
	e.User.Name = "u"
	e.Authorize = func(_ context.Context, a resource.Attributes) (resource.Decision, error) {
		asked = append(asked, a.Verb+" "+a.Name)
		return resource.Decision{}, nil
	}
	for _, c := range []struct {
		obj  *podRequest
		want int
	}{{answer, 1}, {bad, 0}, {pending, 0}} {
		if errs := maySignStatus(t.Context(), e, c.obj, pending); len(errs) != c.want {
			t.Errorf("got %v, want %d", errs, c.want)
		}
	}
	if want := []string{"sign example.com/s", "sign example.com/*"}; !slices.Equal(asked, want) {
		t.Errorf("asked for %v, want %v", asked, want)
	}
}
