package admission

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

func TestClaimWithin(t *testing.T) {
	q := func(s string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceStorage: apiresource.MustParse(s)}
	}
	r := &corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
		{Type: corev1.LimitTypePersistentVolumeClaim, Min: q("2Gi"), Max: q("4Gi")}, {Type: corev1.LimitTypeContainer, Max: q("1")}}}}
	for want, requests := range map[string]corev1.ResourceList{
		"": q("3Gi"),
		"minimum storage usage per PersistentVolumeClaim is 2Gi, but request is 1Gi":                                                                                           q("1Gi"),
		"maximum storage usage per PersistentVolumeClaim is 4Gi, but request is 5Gi":                                                                                           q("5Gi"),
		"[minimum storage usage per PersistentVolumeClaim is 2Gi.  No request is specified, maximum storage usage per PersistentVolumeClaim is 4Gi.  No request is specified]": nil,
	} {
		c := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{Requests: requests}}}
		got := ""
		if err := utilerrors.NewAggregate(claimWithin(r, c)); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%v: got %q, want %q", requests, got, want)
		}
	}
}
