package kubelet

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	podapi "skiff/internal/api/core/pod"
	"skiff/internal/api/podrefs"
	"skiff/internal/api/resource"
)

// Annotations of static pods and of their mirrors; upstream's.
const (
	annotationConfigHash   = "kubernetes.io/config.hash"
	annotationConfigMirror = corev1.MirrorPodAnnotationKey
	annotationConfigSeen   = "kubernetes.io/config.seen"
	annotationConfigSource = "kubernetes.io/config.source"

	sourceFile = "file"
)

// isStatic tells of a pod that came from a file, isMirror of one that shows such a pod
// in the API.
func isStatic(p *corev1.Pod) bool {
	s, ok := p.Annotations[annotationConfigSource]
	return ok && s != "api" && !isMirror(p)
}

func isMirror(p *corev1.Pod) bool {
	_, ok := p.Annotations[annotationConfigMirror]
	return ok
}

// manifest makes a static pod of a file's content: with a name of this node's, and a
// UID that is another when the content is, so that a change is a new pod.
func manifest(data []byte, path, node string, seen time.Time) (*corev1.Pod, error) {
	raw, err := yaml.YAMLToJSON(data)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse as pod(%w), please check config file", err)
	}
	p := &corev1.Pod{}
	if err := json.Unmarshal(raw, p); err != nil {
		return nil, fmt.Errorf("couldn't parse as pod(%w), please check config file", err)
	}
	if p.APIVersion != "v1" || p.Kind != "Pod" {
		return nil, fmt.Errorf("couldn't parse as pod(%s %s), please check config file", p.APIVersion, p.Kind)
	}
	if p.Name == "" {
		return nil, errors.New("invalid pod: name is needed for the pod")
	}
	strategy := podapi.Pod().Strategy
	strategy.Default(p)
	if p.UID == "" {
		h := fnv.New128a()
		fmt.Fprintf(h, "%shost:%sfile:%s", raw, node, path)
		p.UID = types.UID(hex.EncodeToString(h.Sum(nil)))
	}
	p.Name += "-" + strings.ToLower(node)
	if p.Namespace == "" {
		p.Namespace = corev1.NamespaceDefault
	}
	p.Spec.NodeName = node
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	delete(p.Annotations, annotationConfigMirror)
	p.Annotations[annotationConfigHash] = string(p.UID)
	p.Annotations[annotationConfigSource] = sourceFile
	p.Annotations[annotationConfigSeen] = seen.Format(time.RFC3339Nano)
	// Trouble of the node does not end what runs it.
	p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	p.Status = corev1.PodStatus{Phase: corev1.PodPending}
	if errs := strategy.ValidateCreate(resource.Env{}, p); len(errs) > 0 {
		return nil, fmt.Errorf("invalid pod: %v", errs)
	}
	// The deprecated field is one name with the other, where pods come by the API.
	p.Spec.ServiceAccountName = cmp.Or(p.Spec.ServiceAccountName, p.Spec.DeprecatedServiceAccount)
	if what := podrefs.NeedsAPI(p); what != "" {
		return nil, fmt.Errorf("static pods may not reference %s", what)
	}
	return p, nil
}
