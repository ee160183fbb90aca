package kubelet

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
	"skiff/internal/kubelet/pullrecord"
)

// pull is the back-off of an image that could not be pulled.
type pull struct {
	backoff backoff
	last    string // the error, for messages
}

// problem is why an image is not there.
type problem struct {
	reason, message string
	until           time.Time // when to try again
}

// imageName splits a reference: name, tag, digest. It knows what a reference may
// look like, not what exists.
var imageName = regexp.MustCompile(`^((?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?|\[[a-fA-F0-9:]+\](?::[0-9]+)?)/)?` +
	`[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*` +
	`(:[\w][\w.-]{0,127})?(@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?$`)

// withTag adds the default tag to a reference that has neither tag nor digest.
func withTag(image string) (string, error) {
	m := imageName.FindStringSubmatch(image)
	if m == nil {
		why := "invalid reference format"
		if strings.ToLower(image) != image && imageName.MatchString(strings.ToLower(image)) {
			why = "invalid reference format: repository name (" + image + ") must be lowercase"
		}
		return "", fmt.Errorf("couldn't parse image name %q: %s", image, why)
	}
	if m[2] == "" && m[3] == "" {
		return image + ":latest", nil
	}
	return image, nil
}

// wanted is an image that a container runs, or mounts as a volume.
type wanted struct {
	image  string
	policy corev1.PullPolicy
	// event tells of it, where the image is asked for.
	event func(eventType, reason, message string)
}

// ensureImage makes a container's image present by its pull policy and returns the
// reference by which the runtime knows it.
func (w *worker) ensureImage(ctx context.Context, pod *corev1.Pod, c *corev1.Container, sc *runtimeapi.PodSandboxConfig) (string, *problem) {
	return w.ensure(ctx, pod, wanted{c.Image, c.ImagePullPolicy, func(t, reason, message string) { w.containerEvent(pod, c.Name, t, reason, message) }}, sc)
}

// imageVolumes makes the images present that a container mounts as volumes
// (KEP-4639), by their names there.
func (w *worker) imageVolumes(ctx context.Context, pod *corev1.Pod, c *corev1.Container, sc *runtimeapi.PodSandboxConfig) (map[string]*runtimeapi.ImageSpec, *problem) {
	var out map[string]*runtimeapi.ImageSpec
	var last *problem
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Image == nil || !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name }) {
			continue
		}
		ref, problem := w.ensure(ctx, pod, wanted{v.Image.Reference, v.Image.PullPolicy, func(t, reason, message string) { w.event(pod, t, reason, message) }}, sc)
		if problem != nil {
			last = problem
			continue
		}
		if out == nil {
			out = map[string]*runtimeapi.ImageSpec{}
		}
		out[v.Name] = &runtimeapi.ImageSpec{Image: ref, UserSpecifiedImage: v.Image.Reference, Annotations: pod.Annotations}
	}
	return out, last
}

func (w *worker) ensure(ctx context.Context, pod *corev1.Pod, c wanted, sc *runtimeapi.PodSandboxConfig) (string, *problem) {
	now, event := w.k.d.Now(), c.event
	present, pull := "unknown", "unknown"
	defer func() { w.k.figures.ensured(c.policy, present, pull) }()
	image, err := withTag(c.image)
	if err != nil {
		m := fmt.Sprintf("Failed to apply default image tag %q: %v", c.image, err)
		event(corev1.EventTypeWarning, "InspectFailed", m)
		return "", &problem{"InvalidImageName", m, now.Add(startRetry)}
	}
	spec := &runtimeapi.ImageSpec{Image: image, Annotations: pod.Annotations}
	// They are looked for when they are needed first, and no more than once.
	credentials := sync.OnceValue(func() []credential { return w.credentials(ctx, pod, spec.Image) })
	if c.policy != corev1.PullAlways {
		resp, err := w.k.d.Images.ImageStatus(ctx, spec, false)
		if err != nil {
			m := fmt.Sprintf("Failed to inspect image %q: %v", "", err)
			event(corev1.EventTypeWarning, "InspectFailed", m)
			return "", &problem{"ImageInspectError", m, now.Add(startRetry)}
		}
		id := resp.GetImage().GetId()
		present = strconv.FormatBool(id != "")
		here := pullrecord.Present{Image: c.image, Ref: id, Preloaded: resp.GetImage().GetSpec().GetAnnotations()[cri.AnnotationPreloaded] == "true"}
		if id != "" && w.k.records.MayUse(here, func() []pullrecord.Secret { return secretsOf(credentials()) }) {
			pull = "false"
			event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", c.image))
			return id, nil
		}
		// One that is present and is not the pod's to use is as one that is not there.
		if id != "" {
			pull = "true"
		}
		if c.policy == corev1.PullNever {
			m := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.image)
			event(corev1.EventTypeWarning, "ErrImageNeverPull", m)
			return "", &problem{"ErrImageNeverPull", m, now.Add(startRetry)}
		}
	}
	pull = "true"
	return w.pullImage(ctx, c, spec, credentials, sc)
}

func (w *worker) pullImage(ctx context.Context, c wanted, spec *runtimeapi.ImageSpec, credentials func() []credential, sc *runtimeapi.PodSandboxConfig) (string, *problem) {
	now, event := w.k.d.Now(), c.event
	p := w.pulls[c.image]
	if p == nil {
		p = &pull{}
		w.pulls[c.image] = p
	}
	if until, on := p.backoff.active(p.backoff.updated, now); on {
		m := fmt.Sprintf("Back-off pulling image %q", c.image)
		event(corev1.EventTypeNormal, "BackOff", m)
		if p.last != "" {
			m += ": " + p.last
		}
		return "", &problem{"ImagePullBackOff", m, until}
	}
	if err := w.k.records.Begin(c.image); err != nil {
		return "", &problem{"ErrImagePull", fmt.Sprintf("Failed to record image pull intent for container image %q: %v", c.image, err), now.Add(startRetry)}
	}
	var ref string
	var used pullrecord.Credentials
	defer func() {
		if ref != "" {
			w.k.records.Pulled(c.image, ref, used)
		} else {
			w.k.records.Failed(c.image)
		}
	}()
	event(corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", c.image))
	free, err := w.k.pullTurn(ctx)
	if err != nil {
		return "", &problem{"ErrImagePull", err.Error(), now}
	}
	began := w.k.d.Now()
	ref, used, err = w.pullWith(ctx, credentials(), spec, sc)
	free()
	if err != nil {
		if ctx.Err() != nil {
			return "", &problem{"ErrImagePull", err.Error(), now}
		}
		event(corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", c.image, err))
		now = w.k.d.Now()
		p.backoff = p.backoff.next(now, now, backoffMax)
		reason, m := pullReason(c.image, err)
		p.last = reason + ": " + m
		// Soon after, the back-off is told.
		return "", &problem{reason, m, now.Add(2 * time.Second)}
	}
	end := w.k.d.Now()
	took, waited := end.Sub(began).Truncate(time.Millisecond), end.Sub(now).Truncate(time.Millisecond)
	var size uint64
	if resp, err := w.k.d.Images.ImageStatus(ctx, spec, false); err == nil {
		size = resp.GetImage().GetSize()
	}
	event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.", c.image, took, waited, size))
	w.k.figures.pulled(size, waited)
	delete(w.pulls, c.image)
	return ref, nil
}

// pullTurn waits until one more image may be pulled; the function returned ends
// the turn.
func (k *Kubelet) pullTurn(ctx context.Context) (func(), error) {
	if k.pulling == nil {
		return func() {}, nil
	}
	select {
	case k.pulling <- struct{}{}:
		return func() { <-k.pulling }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// pullReason is how a failed pull is shown, by what the runtime says of it.
func pullReason(image string, err error) (reason, message string) {
	for _, k := range []struct{ reason, what string }{
		{"RegistryUnavailable", "the registry is unavailable"},
		{"SignatureValidationFailed", "the signature validation failed"},
	} {
		if rest, ok := strings.CutPrefix(err.Error(), k.reason); ok {
			return k.reason, fmt.Sprintf("image pull failed for %s because %s%s", image, k.what, rest)
		}
	}
	return "ErrImagePull", err.Error()
}

// credentials are what the pod's pull secrets, and then the node's own configuration,
// have for an image's repository.
func (w *worker) credentials(ctx context.Context, pod *corev1.Pod, image string) []credential {
	secrets, missing := w.k.sources.pullSecrets(ctx, pod)
	if len(missing) > 0 {
		w.event(pod, corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
			fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", ")))
	}
	repo := repositoryOf(image)
	return append(secretKeyring(secrets).lookup(repo), nodeKeyring(w.k.d.DockerConfigs).lookup(repo)...)
}

// secretsOf are the pod's own among credentials.
func secretsOf(all []credential) []pullrecord.Secret {
	var out []pullrecord.Secret
	for _, c := range all {
		if c.secret != nil {
			out = append(out, *c.secret)
		}
	}
	return out
}

// pullWith tries credentials one after the other; without any of them, nothing. It
// tells which opened the registry.
func (w *worker) pullWith(ctx context.Context, credentials []credential, spec *runtimeapi.ImageSpec, sc *runtimeapi.PodSandboxConfig) (string, pullrecord.Credentials, error) {
	ofNode := pullrecord.Credentials{NodePodsAccessible: true}
	if len(credentials) == 0 {
		ref, err := w.k.d.Images.PullImage(ctx, spec, nil, sc)
		return ref, ofNode, err
	}
	var errs []error
	for _, c := range credentials {
		ref, err := w.k.d.Images.PullImage(ctx, spec, c.AuthConfig, sc)
		switch {
		case err == nil && c.secret != nil:
			return ref, pullrecord.Credentials{KubernetesSecrets: []pullrecord.Secret{*c.secret}}, nil
		case err == nil:
			return ref, ofNode, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return "", ofNode, utilerrors.NewAggregate(errs)
}

// adoptPulls settles the records of pulls that a former process did not see the end of.
func (k *Kubelet) adoptPulls(ctx context.Context) {
	err := k.records.Adopt(func(image string) (string, error) {
		name, err := withTag(image)
		if err != nil {
			return "", nil // nothing was pulled by such a name
		}
		resp, err := k.d.Images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: name}, false)
		return resp.GetImage().GetId(), err
	})
	if err != nil {
		k.d.Log.Warn("settle pulls that were interrupted", "err", err)
	}
}
