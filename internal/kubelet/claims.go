package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/component-helpers/storage/ephemeral"

	"skiff/internal/client"
)

// claimError is why a volume is not found behind its claim.
type claimError struct {
	volume string
	err    error
}

func (e *claimError) Error() string { return e.err.Error() }
func (e *claimError) Unwrap() error { return e.err }

// PersistentVolume finds what the claim of a pod's volume is bound to.
func (s *Sources) PersistentVolume(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (*corev1.PersistentVolume, error) {
	pv, err := s.claimed(ctx, pod, v)
	if err != nil {
		return nil, &claimError{v.Name, err}
	}
	return pv, nil
}

func (s *Sources) claimed(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (*corev1.PersistentVolume, error) {
	name := ""
	if v.PersistentVolumeClaim != nil {
		name = v.PersistentVolumeClaim.ClaimName
	} else {
		name = ephemeral.VolumeClaimName(pod, v)
	}
	wrap := func(err error) error {
		return fmt.Errorf("error processing PVC %s/%s: %w", pod.Namespace, name, err)
	}
	c, err := client.For[*corev1.PersistentVolumeClaim](s.d.Client).In(pod.Namespace).Get(ctx, name)
	if err != nil {
		return nil, wrap(unanswered(err, fmt.Errorf("failed to fetch PVC from API server: %w", err)))
	}
	if err := usable(c); err != nil {
		return nil, wrap(err)
	}
	if v.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(pod, c); err != nil {
			return nil, err
		}
	}
	pv, err := client.For[*corev1.PersistentVolume](s.d.Client).Get(ctx, c.Spec.VolumeName)
	if err != nil {
		return nil, wrap(unanswered(err, fmt.Errorf("failed to fetch PV %s from API server: %w", c.Spec.VolumeName, err)))
	}
	switch r := pv.Spec.ClaimRef; {
	case r == nil:
		return nil, wrap(fmt.Errorf("found PV object %s but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim", pv.Name))
	case r.UID != c.UID:
		return nil, wrap(fmt.Errorf("found PV object %s but its pv.Spec.ClaimRef.UID %s does not point to claim.UID %s", pv.Name, r.UID, c.UID))
	}
	mode := corev1.PersistentVolumeFilesystem
	if pv.Spec.VolumeMode != nil {
		mode = *pv.Spec.VolumeMode
	}
	return pv, checkMode(pod, v.Name, mode)
}

// unanswered is err, said of a read that failed for why: another answer may come soon,
// but where there is no such object.
func unanswered(why, err error) error {
	if apierrors.IsNotFound(why) {
		return err
	}
	return unread{err}
}

// usable says whether a claim can be mounted.
func usable(c *corev1.PersistentVolumeClaim) error {
	switch {
	case c.DeletionTimestamp != nil && !slices.Contains(c.Finalizers, "kubernetes.io/pvc-protection"):
		return errors.New("PVC is being deleted")
	case c.Status.Phase != corev1.ClaimBound:
		return errors.New("PVC is not bound")
	case c.Spec.VolumeName == "":
		return errors.New("PVC has empty pvc.Spec.VolumeName")
	}
	return nil
}

// checkMode refuses a device among mounts and a file system among devices.
func checkMode(pod *corev1.Pod, volume string, mode corev1.PersistentVolumeMode) error {
	mounted, device := false, false
	each := func(mounts []corev1.VolumeMount, devices []corev1.VolumeDevice) {
		mounted = mounted || slices.ContainsFunc(mounts, func(m corev1.VolumeMount) bool { return m.Name == volume })
		device = device || slices.ContainsFunc(devices, func(d corev1.VolumeDevice) bool { return d.Name == volume })
	}
	for _, c := range pod.Spec.InitContainers {
		each(c.VolumeMounts, c.VolumeDevices)
	}
	for _, c := range pod.Spec.Containers {
		each(c.VolumeMounts, c.VolumeDevices)
	}
	for _, c := range pod.Spec.EphemeralContainers {
		each(c.VolumeMounts, c.VolumeDevices)
	}
	switch {
	case mounted && mode != corev1.PersistentVolumeFilesystem:
		return fmt.Errorf("volume %s has volumeMode %s, but is specified in volumeMounts", volume, mode)
	case device && mode != corev1.PersistentVolumeBlock:
		return fmt.Errorf("volume %s has volumeMode %s, but is specified in volumeDevices", volume, mode)
	case mode == corev1.PersistentVolumeBlock:
		return fmt.Errorf("volume %s has volumeMode %s, which this node does not support", volume, mode)
	}
	return nil
}

// unmounted tells, as upstream does, of volumes that are not found behind their
// claims.
func unmounted(claims []*claimError) string {
	var names, why []string
	for _, c := range claims {
		names = append(names, c.volume)
		why = append(why, c.Error())
	}
	return fmt.Sprintf("Unable to attach or mount volumes: unmounted volumes=%v, unattached volumes=%v, failed to process volumes=%v: %s",
		names, []string{}, names, strings.Join(why, "; "))
}
