package controller

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

var (
	clientUsages  = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	servingUsages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
	kubeletName   = pkix.Name{CommonName: "system:node:a", Organization: []string{"system:nodes"}}
)

// certificateRequest makes a signed request of a new key.
func certificateRequest(t *testing.T, r x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &r, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func signingRequest(t *testing.T, name, signer, user string, r x509.CertificateRequest, usages []certificatesv1.KeyUsage) *certificatesv1.CertificateSigningRequest {
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.Now()},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: signer, Username: user, Groups: []string{"g"}, Extra: map[string]certificatesv1.ExtraValue{"k": {"v"}}, Usages: usages,
			Request: certificateRequest(t, r),
		},
	}
}

func approvedAt(csr *certificatesv1.CertificateSigningRequest, t certificatesv1.RequestConditionType, at time.Time) *certificatesv1.CertificateSigningRequest {
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: t, Status: corev1.ConditionTrue, LastUpdateTime: metav1.NewTime(at)})
	return csr
}

// authority is a CA that lives until end.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	end  time.Time
}

func newAuthority(t *testing.T, end time.Time) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Unix(0, 0), NotAfter: end,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{ca, key, end}
}

func (a *authority) NotAfter() time.Time { return a.end }

func (a *authority) Sign(template *x509.Certificate, pub crypto.PublicKey) ([]byte, error) {
	template.SerialNumber = big.NewInt(2)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

func issued(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	b, _ := pem.Decode(text)
	if b == nil {
		t.Fatalf("no certificate: %q", text)
	}
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestKubeletClaims(t *testing.T) {
	kubelet := certificatesv1.KubeAPIServerClientKubeletSignerName
	for _, c := range []struct {
		name, signer, user string
		req                x509.CertificateRequest
		usages             []certificatesv1.KeyUsage
		want               []string
	}{
		{"its own", kubelet, "system:node:a", x509.CertificateRequest{Subject: kubeletName}, clientUsages, []string{"selfnodeclient", "nodeclient"}},
		{"a bootstrapper's", kubelet, "system:bootstrap:abc", x509.CertificateRequest{Subject: kubeletName}, clientUsages, []string{"nodeclient"}},
		{"with a key of RSA", kubelet, "x", x509.CertificateRequest{Subject: kubeletName}, append([]certificatesv1.KeyUsage{certificatesv1.UsageKeyEncipherment}, clientUsages...), []string{"nodeclient"}},
		{"of another signer", certificatesv1.KubeAPIServerClientSignerName, "system:node:a", x509.CertificateRequest{Subject: kubeletName}, clientUsages, nil},
		{"to serve", kubelet, "system:node:a", x509.CertificateRequest{Subject: kubeletName}, servingUsages, nil},
		{"with a DNS name", kubelet, "system:node:a", x509.CertificateRequest{Subject: kubeletName, DNSNames: []string{"a"}}, clientUsages, nil},
		{"of no node", kubelet, "a", x509.CertificateRequest{Subject: pkix.Name{CommonName: "a", Organization: []string{"system:nodes"}}}, clientUsages, nil},
		{"with a group too many", kubelet, "system:node:a", x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:a", Organization: []string{"system:nodes", "system:masters"}}}, clientUsages, nil},
	} {
		csr := signingRequest(t, "r", c.signer, c.user, c.req, c.usages)
		claims, err := kubeletClaims(csr)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, k := range claims {
			got = append(got, k.subresource)
			s := k.review(csr).Spec
			if a := s.ResourceAttributes; s.User != c.user || !slices.Equal(s.Groups, []string{"g"}) || s.Extra["k"][0] != "v" || a.Verb != "create" ||
				a.Group != "certificates.k8s.io" || a.Resource != "certificatesigningrequests" || a.Subresource != k.subresource || a.Version != "*" {
				t.Errorf("%s asks %+v of %+v", c.name, s, a)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("a request %s claims %v, want %v", c.name, got, c.want)
		}
	}
	if _, err := kubeletClaims(&certificatesv1.CertificateSigningRequest{}); err == nil {
		t.Error("no request is no error")
	}
}

func TestSignersRefuse(t *testing.T) {
	u, _ := url.Parse("spiffe://x")
	node := func(f func(*x509.CertificateRequest)) *x509.CertificateRequest {
		r := &x509.CertificateRequest{Subject: kubeletName}
		f(r)
		return r
	}
	const (
		client  = certificatesv1.KubeAPIServerClientSignerName
		kubelet = certificatesv1.KubeAPIServerClientKubeletSignerName
		serving = certificatesv1.KubeletServingSignerName
	)
	ip := func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(1, 2, 3, 4)} }
	same := func(*x509.CertificateRequest) {}
	for _, c := range []struct {
		signer string
		req    *x509.CertificateRequest
		usages []certificatesv1.KeyUsage
		want   string
	}{
		{client, node(same), clientUsages, "<nil>"},
		{client, node(same), servingUsages, "invalid usage for client certificate: server auth"},
		{client, node(same), clientUsages[:1], "missing required usage for client certificate: client auth"},
		{kubelet, node(same), clientUsages, "<nil>"},
		{kubelet, node(func(r *x509.CertificateRequest) { r.Subject.Organization = nil }), clientUsages, "subject organization is not system:nodes"},
		{kubelet, node(func(r *x509.CertificateRequest) { r.DNSNames = []string{"a"} }), clientUsages, "DNS subjectAltNames are not allowed"},
		{kubelet, node(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b"} }), clientUsages, "Email subjectAltNames are not allowed"},
		{kubelet, node(ip), clientUsages, "IP subjectAltNames are not allowed"},
		{kubelet, node(func(r *x509.CertificateRequest) { r.URIs = []*url.URL{u} }), clientUsages, "URI subjectAltNames are not allowed"},
		{kubelet, node(func(r *x509.CertificateRequest) { r.Subject.CommonName = "a" }), clientUsages, "subject common name does not begin with system:node:"},
		{kubelet, node(same), servingUsages, "usages did not match [client auth digital signature key encipherment]"},
		{serving, node(ip), servingUsages, "<nil>"},
		{serving, node(same), servingUsages, "DNS or IP subjectAltName is required"},
		{serving, node(ip), clientUsages, "usages did not match [digital signature key encipherment server auth]"},
		{serving, node(func(r *x509.CertificateRequest) { ip(r); r.URIs = []*url.URL{u} }), servingUsages, "URI subjectAltNames are not allowed"},
		{"kubernetes.io/legacy-unknown", node(ip), []certificatesv1.KeyUsage{certificatesv1.UsageCertSign}, "<nil>"},
	} {
		if got := fmt.Sprint(signerChecks[c.signer](c.req, c.usages)); got != c.want {
			t.Errorf("%s says %q of %+v for %v, want %q", c.signer, got, c.req.Subject, c.usages, c.want)
		}
	}
}

func TestSignRequest(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	ca := newAuthority(t, now.Add(10*365*24*time.Hour))
	csr := signingRequest(t, "r", "kubernetes.io/legacy-unknown", "x", x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "jane", Organization: []string{"devs"}}, DNSNames: []string{"d"}, IPAddresses: []net.IP{net.IPv4(1, 2, 3, 4)}, EmailAddresses: []string{"e@f"},
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 2, 3, 4}, Value: []byte("x")}},
	}, []certificatesv1.KeyUsage{"client auth", "digital signature", "key encipherment", "server auth", "s/mime", "email protection"})
	req := func() *x509.CertificateRequest {
		b, _ := pem.Decode(csr.Spec.Request)
		r, err := x509.ParseCertificateRequest(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}()
	sign := func(a Authority, seconds *int32) (*x509.Certificate, error) {
		csr.Spec.ExpirationSeconds = seconds
		text, err := signRequest(a, req, &csr.Spec, now)
		if err != nil {
			return nil, err
		}
		return issued(t, text), nil
	}
	c, err := sign(ca, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Subject.CommonName != "jane" || c.Subject.Organization[0] != "devs" || c.DNSNames[0] != "d" || !c.IPAddresses[0].Equal(net.IPv4(1, 2, 3, 4)) || c.EmailAddresses[0] != "e@f" || c.IsCA || !c.BasicConstraintsValid {
		t.Errorf("certificate of %+v %v %v", c.Subject, c.DNSNames, c.IsCA)
	}
	if c.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment ||
		!slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageEmailProtection}) {
		t.Errorf("usages %v %v", c.KeyUsage, c.ExtKeyUsage)
	}
	for _, e := range c.Extensions {
		if e.Id.String() == "1.2.3.4" {
			t.Error("it has an extension that was asked for")
		}
	}
	if err := c.CheckSignatureFrom(ca.cert); err != nil {
		t.Error(err)
	}
	for _, l := range []struct {
		seconds  *int32
		from, to time.Duration
	}{
		{nil, -5 * time.Minute, 365*24*time.Hour - 5*time.Minute},
		{ptr.To[int32](2 * 365 * 24 * 3600), -5 * time.Minute, 365*24*time.Hour - 5*time.Minute},
		{ptr.To[int32](8 * 3600), -5 * time.Minute, 8*time.Hour - 5*time.Minute},
		{ptr.To[int32](8*3600 - 1), -5 * time.Minute, 8*time.Hour - time.Second},
		{ptr.To[int32](600), -5 * time.Minute, 10 * time.Minute},
		{ptr.To[int32](1), -5 * time.Minute, 10 * time.Minute},
	} {
		c, err := sign(ca, l.seconds)
		if err != nil || c.NotBefore.Sub(now) != l.from || c.NotAfter.Sub(now) != l.to {
			t.Errorf("%v s: from %v to %v, %v", ptr.Deref(l.seconds, 0), c.NotBefore.Sub(now), c.NotAfter.Sub(now), err)
		}
	}
	if c, err := sign(&authority{ca.cert, ca.key, now.Add(time.Hour)}, nil); err != nil || c.NotAfter != now.Add(time.Hour) {
		t.Errorf("outlives its authority: %v", err)
	}
	if _, err := sign(&authority{ca.cert, ca.key, now}, nil); err == nil || err.Error() != fmt.Sprintf("refusing to sign a certificate that expired in the past: NotAfter=%v", now) {
		t.Errorf("authority that ended: %v", err)
	}
	csr.Spec.Usages = []certificatesv1.KeyUsage{"client auth", "baking"}
	if _, err := sign(ca, nil); err == nil || err.Error() != `unrecognized usage values: ["baking"]` {
		t.Errorf("unknown usage: %v", err)
	}
}

func TestRequestEnds(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	ca := newAuthority(t, now.Add(24*time.Hour))
	at := func(h int) time.Time { return now.Add(time.Duration(h) * time.Hour) }
	made := func(f func(*certificatesv1.CertificateSigningRequest)) *certificatesv1.CertificateSigningRequest {
		csr := signingRequest(t, "r", "x/y", "x", x509.CertificateRequest{Subject: kubeletName}, clientUsages)
		csr.CreationTimestamp = metav1.NewTime(now)
		f(csr)
		return csr
	}
	sign := func(csr *certificatesv1.CertificateSigningRequest, now time.Time, seconds int32) {
		b, _ := pem.Decode(csr.Spec.Request)
		r, err := x509.ParseCertificateRequest(b.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		csr.Spec.ExpirationSeconds = &seconds
		if csr.Status.Certificate, err = signRequest(ca, r, &csr.Spec, now); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what string
		csr  *certificatesv1.CertificateSigningRequest
		want time.Time
	}{
		{"pending", made(func(*certificatesv1.CertificateSigningRequest) {}), at(24)},
		{"denied", made(func(r *certificatesv1.CertificateSigningRequest) { approvedAt(r, "Denied", at(2)) }), at(3)},
		{"failed", made(func(r *certificatesv1.CertificateSigningRequest) {
			approvedAt(approvedAt(r, "Approved", at(2)), "Failed", at(2))
		}), at(3)},
		{"approved", made(func(r *certificatesv1.CertificateSigningRequest) { approvedAt(r, "Approved", at(2)) }), at(26)},
		{"issued", made(func(r *certificatesv1.CertificateSigningRequest) {
			approvedAt(r, "Approved", at(2))
			sign(r, at(2), 7200)
		}), at(3)},
		{"expired", made(func(r *certificatesv1.CertificateSigningRequest) {
			approvedAt(r, "Approved", at(2))
			sign(r, at(2), 600)
		}), at(2).Add(10 * time.Minute)},
		{"of another kind of condition", made(func(r *certificatesv1.CertificateSigningRequest) { approvedAt(r, "Seen", at(2)) }), time.Time{}},
		{"untimed", made(func(r *certificatesv1.CertificateSigningRequest) { approvedAt(r, "Denied", time.Time{}) }), time.Time{}},
	} {
		if got := requestEnds(c.csr); !got.Equal(c.want) {
			t.Errorf("%s: ends %v, want %v", c.what, got.Sub(now), c.want.Sub(now))
		}
	}
}

func TestCertificateRequestLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, time.Now().Add(1000*24*time.Hour))
		csr := signingRequest(t, "a", certificatesv1.KubeAPIServerClientSignerName, "x", x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane"}}, clientUsages)
		bad := signingRequest(t, "bad", certificatesv1.KubeletServingSignerName, "x", x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane"}}, servingUsages)
		other := approvedAt(signingRequest(t, "other", "example.com/mine", "x", x509.CertificateRequest{}, clientUsages), "Approved", time.Now())
		pcr := &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "p", CreationTimestamp: metav1.Now()}}
		w := newWorld(t, func(d Deps) []*control.Controller {
			d.Authority = ca
			return []*control.Controller{newCertificateApproval(d), newCertificateSigning(d), newCertificateCleaner(d), newPodCertificateCleaner(d)}
		}, csr, bad, other, pcr)
		defer w.stop()
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := get[*certificatesv1.CertificateSigningRequest](w, "", "a"); len(got.Status.Conditions)+len(got.Status.Certificate) > 0 {
			t.Fatalf("without a word: %+v", got.Status)
		}
		for _, name := range []string{"a", "bad"} {
			edit(w, "", name, "status", func(r *certificatesv1.CertificateSigningRequest) { approvedAt(r, "Approved", time.Now()) })
		}
		w.until("signed", func() bool {
			return len(get[*certificatesv1.CertificateSigningRequest](w, "", "a").Status.Certificate) > 0
		})
		if c := issued(t, get[*certificatesv1.CertificateSigningRequest](w, "", "a").Status.Certificate); c.Subject.CommonName != "jane" {
			t.Errorf("issued to %v", c.Subject)
		}
		w.until("failed", func() bool {
			return len(get[*certificatesv1.CertificateSigningRequest](w, "", "bad").Status.Conditions) == 2
		})
		if c := get[*certificatesv1.CertificateSigningRequest](w, "", "bad").Status.Conditions[1]; c.Type != "Failed" || c.Status != "True" || c.Reason != "SignerValidationFailure" || c.Message != "subject organization is not system:nodes" {
			t.Errorf("condition %+v", c)
		}
		count := func() int { return len(list[*certificatesv1.CertificateSigningRequest](w, "")) }
		time.Sleep(13 * time.Minute)
		synctest.Wait()
		if n := len(list[*certificatesv1.PodCertificateRequest](w, "ns")); n != 1 || count() != 3 {
			t.Fatalf("%d requests of pods, %d others after 14 minutes", n, count())
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := len(list[*certificatesv1.PodCertificateRequest](w, "ns")); n != 0 {
			t.Error("a pod's request is there after 16 minutes")
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if count() != 1 {
			t.Errorf("%d requests after an hour, want that which nobody signed", count())
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if count() != 0 {
			t.Errorf("%d requests after a day", count())
		}
	})
}

func TestApprovalAsksTheAuthorizer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		csr := signingRequest(t, "a", certificatesv1.KubeAPIServerClientKubeletSignerName, "system:node:a", x509.CertificateRequest{Subject: kubeletName}, clientUsages)
		var asked []string
		w := newWorld(t, func(d Deps) []*control.Controller {
			inner := d.ClientFor
			d.ClientFor = func(name string) *client.Client {
				return client.New(&reviewer{Transport: inner(name).Transport(), answer: func(s authorizationv1.SubjectAccessReviewSpec) bool {
					asked = append(asked, s.ResourceAttributes.Subresource)
					return len(asked) > 4
				}}, "test")
			}
			return []*control.Controller{newCertificateApproval(d)}
		}, csr)
		defer w.stop()
		w.until("approved", func() bool {
			return len(get[*certificatesv1.CertificateSigningRequest](w, "", "a").Status.Conditions) == 1
		})
		if c := get[*certificatesv1.CertificateSigningRequest](w, "", "a").Status.Conditions[0]; c.Type != "Approved" || c.Reason != "AutoApproved" || c.Message != "Auto approving self kubelet client certificate after SubjectAccessReview." {
			t.Errorf("condition %+v", c)
		}
		if want := []string{"selfnodeclient", "nodeclient", "selfnodeclient", "nodeclient", "selfnodeclient"}; !slices.Equal(asked, want) {
			t.Errorf("asked %v", asked)
		}
	})
}

func TestTrustBundleIsPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes.io:kube-apiserver-serving:old"}, Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: servingSigner, TrustBundle: "old"}}
		mine := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: certificatesv1.ClusterTrustBundleSpec{TrustBundle: "mine"}}
		w := newWorld(t, func(d Deps) []*control.Controller {
			d.RootCA = []byte("CA")
			return []*control.Controller{newTrustBundle(d)}
		}, old, mine)
		defer w.stop()
		// The first 12 bytes of SHA-256 of "CA".
		const name = "kubernetes.io:kube-apiserver-serving:4b650e5c4785025dee7bd65e"
		is := func() bool {
			l := list[*certificatesv1.ClusterTrustBundle](w, "")
			return len(l) == 2 && l[0].Spec.SignerName == servingSigner && l[0].Spec.TrustBundle == "CA" && l[1].Name == "mine"
		}
		w.until("published", is)
		if got := list[*certificatesv1.ClusterTrustBundle](w, "")[0].Name; got != name {
			t.Errorf("named %q", got)
		}
		edit(w, "", list[*certificatesv1.ClusterTrustBundle](w, "")[0].Name, "", func(b *certificatesv1.ClusterTrustBundle) { b.Spec.TrustBundle = "other" })
		w.until("put right", is)
	})
}

// reviewer answers reviews of access, which the API in memory does not.
type reviewer struct {
	client.Transport
	answer func(authorizationv1.SubjectAccessReviewSpec) bool
}

func (r *reviewer) Create(ctx context.Context, ref client.Ref, o client.Object, opts metav1.CreateOptions) (client.Object, error) {
	review, ok := o.(*authorizationv1.SubjectAccessReview)
	if !ok {
		return r.Transport.Create(ctx, ref, o, opts)
	}
	review = review.DeepCopy()
	review.Status.Allowed = r.answer(review.Spec)
	return review, nil
}
