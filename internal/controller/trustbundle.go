package controller

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

// servingSigner is who signs the API server's certificate.
const servingSigner = "kubernetes.io/kube-apiserver-serving"

// newTrustBundle returns the controller that publishes the CA of the API server as a
// ClusterTrustBundle (KEP-3257), and removes those of a CA before. There is one key.
func newTrustBundle(d Deps) *control.Controller {
	c := control.New("kube-apiserver-serving-clustertrustbundle-publisher", d.Deps)
	only := control.Key{Name: bundleName(servingSigner, d.RootCA)}
	bundles := control.Watch(c, func(ch client.Change[*certificatesv1.ClusterTrustBundle]) {
		if ch.Object().Spec.SignerName == servingSigner || ch.Object().Name == only.Name {
			c.Queue.Add(only)
		}
	})
	c.Writes = append(c.Writes,
		namedRule(certificatesv1.GroupName, "signers", "attest", servingSigner),
		control.Rule(certificatesv1.GroupName, []string{"clustertrustbundles"}, "create", "update", "delete"),
	)
	c.Loop = func(context.Context) error {
		c.Queue.Add(only) // there may be no bundle to begin with
		return nil
	}
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		api := client.For[*certificatesv1.ClusterTrustBundle](c.Client)
		old, ok := bundles.Get("", k.Name)
		var got *certificatesv1.ClusterTrustBundle
		var err error
		switch {
		case !ok:
			got, err = api.Create(ctx, &certificatesv1.ClusterTrustBundle{
				ObjectMeta: metav1.ObjectMeta{Name: k.Name},
				Spec:       certificatesv1.ClusterTrustBundleSpec{SignerName: servingSigner, TrustBundle: string(d.RootCA)},
			})
		case old.Spec.TrustBundle != string(d.RootCA):
			next := old.DeepCopy()
			next.Spec.TrustBundle = string(d.RootCA)
			got, err = api.Update(ctx, next)
		}
		if err != nil {
			return control.Result{}, err
		}
		if got != nil {
			control.Wrote(c.Pending, k, bundles, got)
		}
		for _, b := range bundles.List("", nil) {
			if b.Spec.SignerName != servingSigner || b.Name == k.Name {
				continue
			}
			if err := api.Delete(ctx, b.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return control.Result{}, err
			}
			control.Removed(c.Pending, k, bundles, b)
		}
		return control.Result{}, nil
	}
	return c
}

// bundleName names a signer's bundle by its content.
func bundleName(signer string, bundle []byte) string {
	sum := sha256.Sum256(bundle)
	return fmt.Sprintf("%s:%x", strings.ReplaceAll(signer, "/", ":"), sum[:12])
}
