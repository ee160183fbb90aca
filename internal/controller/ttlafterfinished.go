package controller

import (
	"context"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

// expiredJobs deletes finished Jobs ttlSecondsAfterFinished after their end.
type expiredJobs struct {
	*control.Controller
	now func() time.Time
	all *client.Informer[*batchv1.Job]
}

func newTTLAfterFinished(d Deps) *control.Controller {
	c := control.New("ttl-after-finished-controller", d.Deps)
	r := &expiredJobs{Controller: c, now: d.Clock()}
	r.all = control.Watch(c, func(ch client.Change[*batchv1.Job]) {
		if !ch.Deleted() && expires(ch.New) {
			c.Queue.Add(control.KeyOf(ch.New))
		}
	})
	c.Writes = append(c.Writes, control.Rule("batch", []string{"jobs"}, "get", "list", "watch", "delete"))
	c.Reconcile = r.reconcile
	return c
}

func expires(j *batchv1.Job) bool {
	return j.DeletionTimestamp == nil && j.Spec.TTLSecondsAfterFinished != nil && jobFinished(j)
}

// expiresIn is how long a finished job has still to live.
func expiresIn(j *batchv1.Job, now time.Time) time.Duration {
	end, ok := jobEnd(j)
	if !ok {
		return 0
	}
	return end.Add(time.Duration(*j.Spec.TTLSecondsAfterFinished) * time.Second).Sub(now)
}

func (r *expiredJobs) reconcile(ctx context.Context, k control.Key) (control.Result, error) {
	j, ok := r.all.Get(k.Namespace, k.Name)
	if !ok || !expires(j) {
		return control.Result{}, nil
	}
	if left := expiresIn(j, r.now()); left > 0 {
		return control.Result{After: left}, nil
	}
	// Its time may have been prolonged a moment ago.
	all := client.For[*batchv1.Job](r.Client).In(k.Namespace)
	live, err := all.Get(ctx, k.Name)
	if apierrors.IsNotFound(err) {
		return control.Result{}, nil
	}
	if err != nil {
		return control.Result{}, err
	}
	if !expires(live) {
		return control.Result{}, nil
	}
	if left := expiresIn(live, r.now()); left > 0 {
		return control.Result{After: left}, nil
	}
	foreground := metav1.DeletePropagationForeground
	err = all.Delete(ctx, k.Name, metav1.DeleteOptions{
		PropagationPolicy: &foreground, Preconditions: &metav1.Preconditions{UID: &live.UID, ResourceVersion: &live.ResourceVersion},
	})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return control.Result{}, err
}
