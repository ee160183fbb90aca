package apiserver_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"net/http"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
)

// TestPodCertificates: a node asks for certificates of its own pods from the signers
// that they name, and reads its own requests; who may sign answers them.
func TestPodCertificates(t *testing.T) {
	s := secure(t)
	ctx := t.Context()
	n1, n2 := s.as("system:node:n1", "system:nodes"), s.as("system:node:n2", "system:nodes")
	node := must(client.For[*corev1.Node](n1).Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}))(t)
	p := pod("default", "p")
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{PodCertificate: &corev1.PodCertificateProjection{SignerName: "example.com/s", KeyType: "ED25519", CredentialBundlePath: "all.pem"}},
	}}}}}
	made := must(client.For[*corev1.Pod](s.client).Create(ctx, p))(t)
	other := must(client.For[*corev1.Pod](s.client).Create(ctx, pod("default", "other")))(t)
	for pod, node := range map[string]string{"p": "n1", "other": "n2"} {
		for _, err := range s.client.Bind(ctx, []*corev1.Binding{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: pod}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}}) {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	account := must(client.For[*corev1.ServiceAccount](s.client).In("default").Get(ctx, "default"))(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stub := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))(t)
	request := func(name string, change func(*certificatesv1.PodCertificateRequestSpec)) *certificatesv1.PodCertificateRequest {
		r := &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: "example.com/s", PodName: "p", PodUID: made.UID, ServiceAccountName: "default", ServiceAccountUID: account.UID,
			NodeName: "n1", NodeUID: node.UID, StubPKCS10Request: stub,
		}}
		if change != nil {
			change(&r.Spec)
		}
		return r
	}
	const refused, again = http.StatusForbidden, http.StatusInternalServerError
	type spec = certificatesv1.PodCertificateRequestSpec
	for _, c := range []struct {
		change func(*spec)
		code   int
		want   string
	}{
		{func(s *spec) { s.NodeName = "n2" }, refused, `PodCertificateRequest.Spec.NodeName="n2", which is not the requesting node "n1"`},
		{func(s *spec) { s.NodeUID = "x" }, again, `PodCertificateRequest for pod "default/p" names node UID "x", inconsistent with the running node ("` + string(node.UID) + `")`},
		{func(s *spec) { s.PodName = "none" }, again, `while retrieving pod "default/none" named in the PodCertificateRequest: pod "none" not found`},
		{func(s *spec) { s.PodUID = "x" }, again, `PodCertificateRequest for pod "default/p" contains pod UID ("x") which differs from running pod "` + string(made.UID) + `"`},
		{func(s *spec) { s.PodName, s.PodUID = "other", other.UID }, refused, `pod "default/other" is not running on node "n1" named in the PodCertificateRequest`},
		{func(s *spec) { s.ServiceAccountName = "root" }, refused, `PodCertificateRequest for pod "default/p" contains serviceAccountName ("root") that differs from running pod ("default")`},
		{func(s *spec) { s.ServiceAccountUID = "x" }, again, `PodCertificateRequest for pod "default/p" names service account UID "x", which differs from the running service account ("` + string(account.UID) + `")`},
		{func(s *spec) { s.SignerName = "example.com/t" }, refused, `pod "default/p" does not mount a podCertificate projected volume for signer "example.com/t"`},
	} {
		_, err := client.For[*certificatesv1.PodCertificateRequest](n1).Create(ctx, request("a", c.change))
		want := c.want
		if c.code == refused {
			want = `podcertificaterequests.certificates.k8s.io "a" is forbidden: ` + want
		}
		if err == nil || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		} else if st, ok := err.(apierrors.APIStatus); !ok || int(st.Status().Code) != c.code {
			t.Errorf("%v, want the code %d", st.Status(), c.code)
		}
	}
	must(client.For[*certificatesv1.PodCertificateRequest](n1).Create(ctx, request("a", nil)))(t)
	// Who is no node is not asked what he knows of pods.
	must(client.For[*certificatesv1.PodCertificateRequest](s.client).Create(ctx, request("b", func(s *spec) { s.NodeName, s.PodUID = "n2", types.UID("x") })))(t)

	mine := client.For[*certificatesv1.PodCertificateRequest](n1).In("default")
	if got := must(mine.Get(ctx, "a"))(t); *got.Spec.MaxExpirationSeconds != 86400 {
		t.Errorf("a certificate for %d s", *got.Spec.MaxExpirationSeconds)
	}
	_, err = mine.Get(ctx, "b")
	wantErr(t, err, `podcertificaterequests.certificates.k8s.io "b" is forbidden: User "system:node:n1" cannot get resource "podcertificaterequests" in API group "certificates.k8s.io" in the namespace "default": node: no relationship found between node 'n1' and this object`)
	if list, _, err := mine.List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n1"}); err != nil || len(list) != 1 {
		t.Errorf("%v %v", list, err)
	}
	_, _, err = mine.List(ctx, metav1.ListOptions{})
	wantErr(t, err, `podcertificaterequests.certificates.k8s.io is forbidden: User "system:node:n1" cannot list resource "podcertificaterequests" in API group "certificates.k8s.io" in the namespace "default": node: can only list/watch podcertificaterequests with nodeName field selector`)
	_, err = client.For[*certificatesv1.PodCertificateRequest](n2).In("default").Get(ctx, "a")
	if !apierrors.IsForbidden(err) {
		t.Error(err)
	}
	if err := mine.Delete(ctx, "a", metav1.DeleteOptions{}); err == nil || !strings.Contains(err.Error(), "nodes may not delete podcertificaterequests") {
		t.Error(err)
	}

	// Who may write the status may not yet sign.
	grant := func(name string, rule rbacv1.PolicyRule) {
		t.Helper()
		must(client.For[*rbacv1.ClusterRole](s.client).Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{rule}}))(t)
		must(client.For[*rbacv1.ClusterRoleBinding](s.client).Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "signer"}},
		}))(t)
	}
	grant("doors", rbacv1.PolicyRule{APIGroups: []string{"certificates.k8s.io"}, Verbs: []string{"*"}, Resources: []string{"podcertificaterequests", "podcertificaterequests/status"}})
	signer := client.For[*certificatesv1.PodCertificateRequest](s.as("signer")).In("default")
	r := must(signer.Get(ctx, "a"))(t).DeepCopy()
	must(signer.UpdateStatus(ctx, r))(t) // which changes nothing
	r.Status.Conditions = []metav1.Condition{{Type: certificatesv1.PodCertificateRequestConditionTypeDenied, Status: metav1.ConditionTrue, Reason: "R", LastTransitionTime: metav1.Now()}}
	_, err = signer.UpdateStatus(ctx, r)
	wantErr(t, err, `PodCertificateRequest.certificates.k8s.io "a" is invalid: spec.signerName: Forbidden: User "signer" is not permitted to "sign" for signer "example.com/s"`)
	grant("sign", rbacv1.PolicyRule{APIGroups: []string{"certificates.k8s.io"}, Verbs: []string{"sign"}, Resources: []string{"signers"}, ResourceNames: []string{"example.com/s"}})
	must(signer.UpdateStatus(ctx, r))(t)
}
