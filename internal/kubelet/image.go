package kubelet

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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
	image, err := withTag(c.image)
	if err != nil {
		m := fmt.Sprintf("Failed to apply default image tag %q: %v", c.image, err)
		event(corev1.EventTypeWarning, "InspectFailed", m)
		return "", &problem{"InvalidImageName", m, now.Add(startRetry)}
	}
	spec := &runtimeapi.ImageSpec{Image: image, Annotations: pod.Annotations}
	if c.policy != corev1.PullAlways {
		resp, err := w.k.d.Images.ImageStatus(ctx, spec, false)
		if err != nil {
			m := fmt.Sprintf("Failed to inspect image %q: %v", "", err)
			event(corev1.EventTypeWarning, "InspectFailed", m)
			return "", &problem{"ImageInspectError", m, now.Add(startRetry)}
		}
		if id := resp.GetImage().GetId(); id != "" {
			event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", c.image))
			return id, nil
		}
		if c.policy == corev1.PullNever {
			m := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.image)
			event(corev1.EventTypeWarning, "ErrImageNeverPull", m)
			return "", &problem{"ErrImageNeverPull", m, now.Add(startRetry)}
		}
	}
	return w.pullImage(ctx, pod, c, spec, sc)
}

func (w *worker) pullImage(ctx context.Context, pod *corev1.Pod, c wanted, spec *runtimeapi.ImageSpec, sc *runtimeapi.PodSandboxConfig) (string, *problem) {
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
	event(corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", c.image))
	ref, err := w.pullWithSecrets(ctx, pod, spec, sc)
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
	took := w.k.d.Now().Sub(now).Truncate(time.Millisecond)
	var size uint64
	if resp, err := w.k.d.Images.ImageStatus(ctx, spec, false); err == nil {
		size = resp.GetImage().GetSize()
	}
	event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.", c.image, took, took, size))
	delete(w.pulls, c.image)
	return ref, nil
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

// pullWithSecrets tries the pod's pull secrets that are for the image's registry,
// then without any.
func (w *worker) pullWithSecrets(ctx context.Context, pod *corev1.Pod, spec *runtimeapi.ImageSpec, sc *runtimeapi.PodSandboxConfig) (string, error) {
	secrets, missing := w.k.sources.pullSecrets(ctx, pod)
	var last error
	for _, auth := range credentials(secrets, spec.Image) {
		ref, err := w.k.d.Images.PullImage(ctx, spec, auth, sc)
		if err == nil {
			return ref, nil
		}
		last = err
	}
	if last != nil {
		return "", last
	}
	ref, err := w.k.d.Images.PullImage(ctx, spec, nil, sc)
	if err != nil && len(missing) > 0 && ctx.Err() == nil {
		w.event(pod, corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
			fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", ")))
	}
	return ref, err
}

type dockerAuth struct {
	Username string `json:"username"`
	Password string `json:"password"`
	Auth     string `json:"auth"`
}

// credentials are those of the secrets that are for the registry of image, the
// most specific first.
func credentials(secrets []*corev1.Secret, image string) []*runtimeapi.AuthConfig {
	type match struct {
		key  string
		auth *runtimeapi.AuthConfig
	}
	var found []match
	for _, s := range secrets {
		var auths map[string]dockerAuth
		if b, ok := s.Data[corev1.DockerConfigJsonKey]; ok {
			var c struct {
				Auths map[string]dockerAuth `json:"auths"`
			}
			if json.Unmarshal(b, &c) != nil {
				continue
			}
			auths = c.Auths
		} else if b, ok := s.Data[corev1.DockerConfigKey]; ok {
			if json.Unmarshal(b, &auths) != nil {
				continue
			}
		}
		for key, a := range auths {
			if !registryMatches(key, image) {
				continue
			}
			if a.Username == "" && a.Auth != "" {
				if b, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
					a.Username, a.Password, _ = strings.Cut(string(b), ":")
				}
			}
			found = append(found, match{key, &runtimeapi.AuthConfig{Username: a.Username, Password: a.Password}})
		}
	}
	var out []*runtimeapi.AuthConfig
	for len(found) > 0 {
		best := 0
		for i := range found {
			if len(found[i].key) > len(found[best].key) {
				best = i
			}
		}
		out = append(out, found[best].auth)
		found = append(found[:best], found[best+1:]...)
	}
	return out
}

func registryMatches(key, image string) bool {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(key, "/"), "/v1"), "/v2")
	host, _, ok := strings.Cut(image, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return key == "docker.io" || key == "index.docker.io"
	}
	return image == key || strings.HasPrefix(image, key+"/") || host == key
}
