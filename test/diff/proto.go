package diff

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"sigs.k8s.io/yaml"

	"skiff/internal/api"
)

const protoType = "application/vnd.kubernetes.protobuf"

// known types of bodies and answers in protobuf.
var wireScheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, r := range api.All() {
		s.AddKnownTypeWithName(r.GVK(), r.New())
		if r.NewList != nil {
			s.AddKnownTypeWithName(r.GroupVersion.WithKind(r.Kind+"List"), r.NewList())
		}
		metav1.AddToGroupVersion(s, r.GroupVersion)
	}
	utilruntime.Must(metav1.AddMetaToScheme(s))
	for _, add := range []func(*runtime.Scheme) error{authenticationv1.AddToScheme, autoscalingv1.AddToScheme, policyv1.AddToScheme} {
		utilruntime.Must(add(s))
	}
	s.AddKnownTypes(schema.GroupVersion{Version: "v1"}, &metav1.Status{}, &metav1.APIGroup{}, &metav1.APIGroupList{}, &metav1.APIResourceList{}, &metav1.APIVersions{})
	return s
}()

// toProto turns a body that is written as YAML into protobuf.
func toProto(body []byte) ([]byte, error) {
	js, err := yaml.YAMLToJSON(body)
	if err != nil {
		return nil, err
	}
	var t metav1.TypeMeta
	if err := json.Unmarshal(js, &t); err != nil {
		return nil, err
	}
	obj, err := wireScheme.New(t.GroupVersionKind())
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(js, obj); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := protobuf.NewSerializer(wireScheme, wireScheme).Encode(obj, &b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// fromProto is an answer in protobuf as JSON.
func fromProto(b []byte) (any, error) {
	obj, gvk, err := protobuf.NewSerializer(wireScheme, wireScheme).Decode(b, nil, nil)
	if err != nil {
		return nil, err
	}
	obj.GetObjectKind().SetGroupVersionKind(*gvk)
	js, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	var v any
	return v, json.Unmarshal(js, &v)
}

// fromProtoStream is a watch in protobuf: frames of a length and a WatchEvent.
func fromProtoStream(b []byte) ([]any, error) {
	var out []any
	for len(b) > 0 {
		if len(b) < 4 {
			return out, fmt.Errorf("frame of %d bytes", len(b))
		}
		n := int(binary.BigEndian.Uint32(b))
		if b = b[4:]; n > len(b) {
			return out, fmt.Errorf("frame of %d bytes, %d left", n, len(b))
		}
		var e metav1.WatchEvent
		if err := e.Unmarshal(b[:n]); err != nil {
			return out, err
		}
		obj, err := fromProto(e.Object.Raw)
		if err != nil {
			return out, err
		}
		out = append(out, map[string]any{"type": e.Type, "object": obj})
		b = b[n:]
	}
	return out, nil
}
