package controller

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"

	"skiff/internal/client"
	"skiff/internal/control"
)

// History of templates, which StatefulSets and DaemonSets keep in
// ControllerRevisions.

const (
	revisionHashLabel = "controller.kubernetes.io/hash"
	// revisionPrefix bounds the part of a revision's name that is its owner's.
	revisionPrefix = 223
)

// revisionData is a template as a ControllerRevision holds it, byte for byte what
// upstream stores: a strategic merge patch that replaces spec.template.
func revisionData(t *corev1.PodTemplateSpec) ([]byte, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	m["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": m}})
}

// revisionTemplate is the template that rev holds; now is the answer where it holds
// none.
func revisionTemplate(rev *appsv1.ControllerRevision, now *corev1.PodTemplateSpec) (*corev1.PodTemplateSpec, error) {
	var data struct {
		Spec struct {
			Template *corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(rev.Data.Raw, &data); err != nil {
		return nil, fmt.Errorf("read controller revision %s: %w", rev.Name, err)
	}
	if data.Spec.Template == nil {
		return now, nil
	}
	return data.Spec.Template, nil
}

// revisionHash is upstream's hash of a revision's data.
func revisionHash(data []byte, collisions int32) string {
	h := fnv.New32()
	_, _ = h.Write(data)
	_, _ = h.Write([]byte(strconv.FormatInt(int64(collisions), 10)))
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

func revisionName(owner, hash string) string {
	return owner[:min(len(owner), revisionPrefix)] + "-" + hash
}

// byRevision orders revisions by number, then age, then name.
func byRevision(a, b *appsv1.ControllerRevision) int {
	if a.Revision != b.Revision {
		if a.Revision < b.Revision {
			return -1
		}
		return 1
	}
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	}
	return strings.Compare(a.Name, b.Name)
}

// revisions reads and writes an owner's ControllerRevisions.
type revisions struct {
	c     *control.Controller
	key   control.Key
	inf   *client.Informer[*appsv1.ControllerRevision]
	owner client.Object
	kind  schema.GroupVersionKind
}

// newRevision is a revision of a template, not written yet.
func (r revisions) newRevision(t *corev1.PodTemplateSpec, number int64, collisions int32) (*appsv1.ControllerRevision, error) {
	data, err := revisionData(t)
	if err != nil {
		return nil, err
	}
	hash := revisionHash(data, collisions)
	labels := map[string]string{}
	for k, v := range t.Labels {
		labels[k] = v
	}
	labels[revisionHashLabel] = hash
	annotations := map[string]string{}
	for k, v := range r.owner.GetAnnotations() {
		annotations[k] = v
	}
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name: revisionName(r.owner.GetName(), hash), Namespace: r.owner.GetNamespace(), Labels: labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(r.owner, r.kind)},
		},
		Data: runtime.RawExtension{Raw: data}, Revision: number,
	}, nil
}

// create writes rev. Where its name is another template's, it is hashed with the
// next number of collisions; the number that it took is returned.
func (r revisions) create(ctx context.Context, rev *appsv1.ControllerRevision, collisions int32) (*appsv1.ControllerRevision, int32, error) {
	all := client.For[*appsv1.ControllerRevision](r.c.Client).In(rev.Namespace)
	for {
		rev.Name = revisionName(r.owner.GetName(), revisionHash(rev.Data.Raw, collisions))
		got, err := all.Create(ctx, rev)
		if err == nil {
			control.Wrote(r.c.Pending, r.key, r.inf, got)
			return got, collisions, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, collisions, err
		}
		there, err := all.Get(ctx, rev.Name)
		if err != nil {
			return nil, collisions, err
		}
		if bytes.Equal(there.Data.Raw, rev.Data.Raw) {
			return there, collisions, nil
		}
		collisions++
	}
}

func (r revisions) update(ctx context.Context, rev *appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
	got, err := client.For[*appsv1.ControllerRevision](r.c.Client).Update(ctx, rev)
	if err != nil {
		return nil, err
	}
	control.Wrote(r.c.Pending, r.key, r.inf, got)
	return got, nil
}

func (r revisions) delete(ctx context.Context, rev *appsv1.ControllerRevision) error {
	err := client.For[*appsv1.ControllerRevision](r.c.Client).In(rev.Namespace).Delete(ctx, rev.Name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	control.Removed(r.c.Pending, r.key, r.inf, rev)
	return nil
}

// beyondLimit are the revisions that a limit does not cover, of those that are not
// live: the lowest numbers.
func beyondLimit(all []*appsv1.ControllerRevision, live func(*appsv1.ControllerRevision) bool, limit int) []*appsv1.ControllerRevision {
	if limit < 0 {
		return nil
	}
	past := slices.DeleteFunc(slices.Clone(all), live)
	slices.SortFunc(past, byRevision)
	return past[:max(0, len(past)-limit)]
}
