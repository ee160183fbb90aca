package controller

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

// How long certificate requests are kept that are answered, or wait for an answer.
const (
	answeredRequestAge = time.Hour
	waitingRequestAge  = 24 * time.Hour
	podRequestAge      = 15 * time.Minute
)

// newCertificateCleaner returns the controller that deletes certificate requests
// that nobody needs anymore.
func newCertificateCleaner(d Deps) *control.Controller {
	c := control.New(certificateRole, d.Deps)
	requests := control.Watch(c, control.Enqueue[*certificatesv1.CertificateSigningRequest](c))
	c.Writes = append(c.Writes, control.Rule(certificatesv1.GroupName, []string{"certificatesigningrequests"}, "delete"))
	now := d.Clock()
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		csr, ok := requests.Get("", k.Name)
		if !ok {
			return control.Result{}, nil
		}
		return deleteAt(ctx, c, k, csr, requests, requestEnds(csr), now())
	}
	return c
}

// newPodCertificateCleaner returns the controller that deletes the requests of pods
// for certificates: by then they are answered, or given up.
func newPodCertificateCleaner(d Deps) *control.Controller {
	c := control.New("podcertificaterequestcleaner", d.Deps)
	requests := control.Watch(c, control.Enqueue[*certificatesv1.PodCertificateRequest](c))
	c.Writes = append(c.Writes, control.Rule(certificatesv1.GroupName, []string{"podcertificaterequests"}, "delete"))
	now := d.Clock()
	c.Reconcile = func(ctx context.Context, k control.Key) (control.Result, error) {
		r, ok := requests.Get(k.Namespace, k.Name)
		if !ok {
			return control.Result{}, nil
		}
		return deleteAt(ctx, c, k, r, requests, r.CreationTimestamp.Add(podRequestAge), now())
	}
	return c
}

// deleteAt deletes o once its time has come; a zero time never comes.
func deleteAt[T client.Object](ctx context.Context, c *control.Controller, k control.Key, o T, inf *client.Informer[T], at, now time.Time) (control.Result, error) {
	if at.IsZero() {
		return control.Result{}, nil
	}
	if now.Before(at) {
		return control.Result{After: at.Sub(now)}, nil
	}
	uid := o.GetUID()
	err := client.For[T](c.Client).In(k.Namespace).Delete(ctx, k.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return control.Result{}, err
	}
	control.Removed(c.Pending, k, inf, o)
	return control.Result{}, nil
}

// requestEnds is when a request is to be deleted: an hour after its certificate was
// approved or refused, or when that has expired; a day after it was made, or
// approved, where nothing came of it. Zero is never.
func requestEnds(csr *certificatesv1.CertificateSigningRequest) time.Time {
	var ends time.Time
	by := func(t metav1.Time, age time.Duration) {
		if at := t.Add(age); !t.IsZero() && (ends.IsZero() || at.Before(ends)) {
			ends = at
		}
	}
	if len(csr.Status.Conditions) == 0 {
		by(csr.CreationTimestamp, waitingRequestAge)
	}
	for _, c := range csr.Status.Conditions {
		switch {
		case c.Type == certificatesv1.CertificateDenied, c.Type == certificatesv1.CertificateFailed:
			by(c.LastUpdateTime, answeredRequestAge)
		case c.Type != certificatesv1.CertificateApproved:
		case len(csr.Status.Certificate) == 0:
			by(c.LastUpdateTime, waitingRequestAge)
		default:
			by(c.LastUpdateTime, answeredRequestAge)
			by(metav1.NewTime(certificateEnd(csr.Status.Certificate)), 0)
		}
	}
	return ends
}

// certificateEnd is when a certificate in PEM form expires, zero where it is none.
func certificateEnd(text []byte) time.Time {
	b, _ := pem.Decode(text)
	if b == nil {
		return time.Time{}
	}
	certs, err := x509.ParseCertificates(b.Bytes)
	if err != nil || len(certs) == 0 {
		return time.Time{}
	}
	return certs[0].NotAfter
}
