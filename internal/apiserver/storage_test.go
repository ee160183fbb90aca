package apiserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

func newClaim(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: apiresource.MustParse("1Gi")}},
		},
	}
}

func refused(t *testing.T, err error, want string) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want a refusal that says %q", err, want)
	}
}

func TestStorageAdmission(t *testing.T) {
	s := secure(t)
	claims := client.For[*corev1.PersistentVolumeClaim](s.client).In("default")
	classes := client.For[*storagev1.StorageClass](s.client)
	yes := true
	for name, growing := range map[string]*bool{"rigid": nil, "growing": &yes} {
		must(classes.Create(t.Context(), &storagev1.StorageClass{
			ObjectMeta:  metav1.ObjectMeta{Name: name, Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
			Provisioner: "example.com/p", AllowVolumeExpansion: growing,
		}))(t)
	}
	// Of two defaults that came in the same second the first by name is meant.
	made := must(claims.Create(t.Context(), newClaim("a")))(t)
	if made.Spec.StorageClassName == nil {
		t.Fatal("the claim has no class")
	}
	if !slices.Contains(made.Finalizers, "kubernetes.io/pvc-protection") {
		t.Errorf("finalizers of the claim are %v", made.Finalizers)
	}
	none := ""
	without := newClaim("b")
	without.Spec.StorageClassName = &none
	if got := must(claims.Create(t.Context(), without))(t); *got.Spec.StorageClassName != "" {
		t.Errorf("the claim that wants no class has %q", *got.Spec.StorageClassName)
	}
	pv := must(client.For[*corev1.PersistentVolume](s.client).Create(t.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: apiresource.MustParse("1Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/a"}},
		},
	}))(t)
	if !slices.Equal(pv.Finalizers, []string{"kubernetes.io/pv-protection"}) {
		t.Errorf("finalizers of the volume are %v", pv.Finalizers)
	}
	vac := must(client.For[*storagev1.VolumeAttributesClass](s.client).Create(t.Context(), &storagev1.VolumeAttributesClass{
		ObjectMeta: metav1.ObjectMeta{Name: "a"}, DriverName: "example.com", Parameters: map[string]string{"a": "b"},
	}))(t)
	if !slices.Equal(vac.Finalizers, []string{"kubernetes.io/vac-protection"}) {
		t.Errorf("finalizers of the class of attributes are %v", vac.Finalizers)
	}

	grow := func(name, class string, bound bool) error {
		c := newClaim(name)
		c.Spec.StorageClassName = &class
		c = must(claims.Create(t.Context(), c))(t).DeepCopy()
		if bound {
			c.Status.Phase = corev1.ClaimBound
			c.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: apiresource.MustParse("1Gi")}
			c = must(claims.UpdateStatus(t.Context(), c))(t).DeepCopy()
		}
		c.Spec.Resources.Requests[corev1.ResourceStorage] = apiresource.MustParse("2Gi")
		_, err := claims.Update(t.Context(), c)
		return err
	}
	refused(t, grow("rigid", "rigid", true), "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
	refused(t, grow("gone", "no-such-class", true), "only dynamically provisioned pvc can be resized")
	if err := grow("unbound", "growing", false); !apierrors.IsInvalid(err) {
		t.Errorf("an unbound claim grows: %v", err)
	}
	if err := grow("growing", "growing", true); err != nil {
		t.Error(err)
	}
}

func newRequest(t *testing.T, name, signer string, subject pkix.Name) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	der := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key))(t)
	return &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: signer,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}
}

func TestCertificateAdmission(t *testing.T) {
	s := secure(t)
	const signer = "example.com/signer"
	all := client.For[*certificatesv1.CertificateSigningRequest](s.client)
	_, err := all.Create(t.Context(), newRequest(t, "masters", "kubernetes.io/kube-apiserver-client", pkix.Name{CommonName: "a", Organization: []string{"system:masters"}}))
	refused(t, err, "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")

	// Who may write the doors may not yet decide for the signer.
	grant := func(name string, rules ...rbacv1.PolicyRule) {
		t.Helper()
		must(client.For[*rbacv1.ClusterRole](s.client).Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}))(t)
		must(client.For[*rbacv1.ClusterRoleBinding](s.client).Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "decider"}},
		}))(t)
	}
	grant("doors", rbacv1.PolicyRule{APIGroups: []string{"certificates.k8s.io"}, Verbs: []string{"*"},
		Resources: []string{"certificatesigningrequests", "certificatesigningrequests/approval", "certificatesigningrequests/status", "clustertrustbundles"}})
	decider := s.as("decider")
	mine := client.For[*certificatesv1.CertificateSigningRequest](decider)
	csr := must(mine.Create(t.Context(), newRequest(t, "a", signer, pkix.Name{CommonName: "a"})))(t).DeepCopy()
	if csr.Spec.Username != "decider" || !slices.Equal(csr.Spec.Groups, []string{"system:authenticated"}) {
		t.Errorf("the request is of %q, %v", csr.Spec.Username, csr.Spec.Groups)
	}
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "R"}}
	approve := func(c *certificatesv1.CertificateSigningRequest) (client.Object, error) {
		return decider.Transport().Update(t.Context(), client.Ref{
			GVR: certificatesv1.SchemeGroupVersion.WithResource("certificatesigningrequests"), Name: c.Name, Subresource: "approval",
		}, c, metav1.UpdateOptions{})
	}
	_, err = approve(csr)
	refused(t, err, `user not permitted to approve requests with signerName "example.com/signer"`)
	failed := csr.DeepCopy()
	failed.Status.Conditions[0].Type = certificatesv1.CertificateFailed
	_, err = mine.UpdateStatus(t.Context(), failed)
	refused(t, err, `user not permitted to sign requests with signerName "example.com/signer"`)
	bundle := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "example.com:signer:a"},
		Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: authority}}
	_, err = client.For[*certificatesv1.ClusterTrustBundle](decider).Create(t.Context(), bundle)
	refused(t, err, `user not permitted to attest for signerName "example.com/signer"`)

	// The right may be for the signer, or for all of its domain.
	grant("signer", rbacv1.PolicyRule{APIGroups: []string{"certificates.k8s.io"}, Verbs: []string{"approve"}, Resources: []string{"signers"}, ResourceNames: []string{signer}})
	grant("domain", rbacv1.PolicyRule{APIGroups: []string{"certificates.k8s.io"}, Verbs: []string{"sign", "attest"}, Resources: []string{"signers"}, ResourceNames: []string{"example.com/*"}})
	csr = must(approve(csr))(t).DeepCopyObject().(*certificatesv1.CertificateSigningRequest)
	if c := csr.Status.Conditions; len(c) != 1 || c[0].LastUpdateTime.IsZero() || c[0].LastTransitionTime.IsZero() {
		t.Errorf("conditions are %v", c)
	}
	csr.Status.Certificate = []byte(authority)
	must(mine.UpdateStatus(t.Context(), csr))(t)
	must(client.For[*certificatesv1.ClusterTrustBundle](decider).Create(t.Context(), bundle))(t)
}

// authority is a certificate of nobody.
const authority = `-----BEGIN CERTIFICATE-----
MIIBcDCCARegAwIBAgIUGp8H+mTe+cgB+mGYYgsDVYpZ+n8wCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTI2MDcxMTI4WhgPMjEyNjExMDIwNzExMjha
MA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElXCRfHLh
5zYDgMU0VtOV77R0PceciXgb/8Laff8sVdEY70vANVo51MqfbF87b2ZGsnaq3qai
XYFp4oYU3ZDCu6NTMFEwHQYDVR0OBBYEFHdxGrZmz30x+OH2uYhDAK8dj2QVMB8G
A1UdIwQYMBaAFHdxGrZmz30x+OH2uYhDAK8dj2QVMA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDRwAwRAIgRQCRjzSNixiSv6Ky9/ZeE1MBkHbMDw17IIZXT32+
emMCIGdilpk7k46vEjuwsnnq+rMZ3Qmw6cH/3BxjB32t7JgC
-----END CERTIFICATE-----
`
