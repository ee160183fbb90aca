// Package codec turns API objects into bytes and back: JSON, YAML and protobuf on
// the wire, the protobuf envelope in the store.
//
// Objects inside skiff carry no TypeMeta (as in upstream's typed lists); the
// encoders take the group, version and kind beside the object. An object's JSON
// without TypeMeta and its bare protobuf are therefore the same bytes in a list,
// in a watch and alone: WithType and Envelope only put the type before them.
package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	protoserializer "k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	kjson "sigs.k8s.io/json"
)

// Media types.
const (
	JSON     = "application/json"
	YAML     = "application/yaml"
	Protobuf = "application/vnd.kubernetes.protobuf"
)

// protoMagic starts every protobuf envelope (KEP-less: upstream's
// docs/reference/using-api/api-concepts, "Protobuf encoding").
var protoMagic = []byte{'k', '8', 's', 0}

type protoMarshaler interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// storable writes itself into a part of its envelope.
type storable interface {
	protoMarshaler
	runtime.ProtobufMarshaller
}

type protoUnmarshaler interface {
	Reset()
	Unmarshal([]byte) error
}

// Codec decodes what clients send. Its scheme knows the Go types of the kinds.
type Codec struct {
	json, jsonStrict, yaml, yamlStrict runtime.Serializer
	proto                              runtime.Serializer
	scheme                             *runtime.Scheme
}

// New returns a codec over a scheme.
func New(scheme *runtime.Scheme) *Codec {
	mk := func(yaml, strict bool) runtime.Serializer {
		return jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, scheme, scheme, jsonserializer.SerializerOptions{Yaml: yaml, Strict: strict})
	}
	return &Codec{
		json: mk(false, false), jsonStrict: mk(false, true), yaml: mk(true, false), yamlStrict: mk(true, true),
		proto: protoserializer.NewSerializer(scheme, scheme), scheme: scheme,
	}
}

// Scheme returns the codec's scheme.
func (c *Codec) Scheme() *runtime.Scheme { return c.scheme }

// Decode reads data of a media type. A body without kind or apiVersion is taken
// as defaults says. into is a new object of the kind expected; the object
// returned is of the kind that the body names, into itself where these are the
// same. With strict, unknown and duplicate fields come back as a
// runtime strict decoding error beside the object. The object has no TypeMeta.
func (c *Codec) Decode(mediaType string, data []byte, strict bool, defaults schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if mediaType == JSON && c.direct(data, strict, defaults, into) {
		into.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
		return into, &defaults, nil
	}
	var s runtime.Serializer
	switch {
	case mediaType == Protobuf:
		s = c.proto
	case mediaType == YAML && strict:
		s = c.yamlStrict
	case mediaType == YAML:
		s = c.yaml
	case strict:
		s = c.jsonStrict
	default:
		s = c.json
	}
	obj, gvk, err := s.Decode(data, &defaults, into)
	if obj != nil {
		obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	return obj, gvk, err
}

// direct decodes JSON that names the kind expected and has nothing to object to,
// in one pass; the serializer reads a body twice. Into is empty where it returns
// false.
func (c *Codec) direct(data []byte, strict bool, want schema.GroupVersionKind, into runtime.Object) bool {
	if _, ok := into.(runtime.Unstructured); ok || reflect.TypeOf(into) != c.goType(want) {
		return false
	}
	if strict {
		objections, err := kjson.UnmarshalStrict(data, into)
		if err == nil && len(objections) == 0 && into.GetObjectKind().GroupVersionKind() == want {
			return true
		}
	} else if kjson.UnmarshalCaseSensitivePreserveInts(data, into) == nil && into.GetObjectKind().GroupVersionKind() == want {
		return true
	}
	reflect.ValueOf(into).Elem().SetZero()
	return false
}

// goType is the type that the scheme has for a kind, as a pointer; nil for none.
func (c *Codec) goType(gvk schema.GroupVersionKind) reflect.Type {
	if t := c.scheme.AllKnownTypes()[gvk]; t != nil {
		return reflect.PointerTo(t)
	}
	return nil
}

// Object encodes an object as JSON without TypeMeta, without a final newline.
func Object(obj runtime.Object) ([]byte, error) {
	return json.Marshal(obj)
}

// WithType puts kind and apiVersion before an object's JSON, as upstream orders
// them.
func WithType(gvk schema.GroupVersionKind, object []byte) []byte {
	// With room for a final newline.
	head := appendTypeHead(make([]byte, 0, len(object)+len(gvk.Group)+len(gvk.Version)+len(gvk.Kind)+32), gvk)
	if len(object) <= 2 { // "{}"
		return append(head[:len(head)-1], '}')
	}
	return append(head, object[1:]...)
}

// AppendTyped writes an object's JSON with its type, and a final newline.
func AppendTyped(buf *bytes.Buffer, gvk schema.GroupVersionKind, obj runtime.Object) error {
	head := TypeHead(gvk)
	buf.Write(head[:len(head)-1])
	at := buf.Len()
	if err := json.NewEncoder(buf).Encode(obj); err != nil {
		return err
	}
	b := buf.Bytes()
	if len(b) == at+len("{}\n") {
		// Nothing but its type.
		buf.Truncate(at)
		buf.WriteString("}\n")
		return nil
	}
	b[at] = ',' // in the place of its brace
	return nil
}

// TypeHead is the beginning of a JSON object with its type: it ends in a comma.
func TypeHead(gvk schema.GroupVersionKind) []byte {
	return appendTypeHead(make([]byte, 0, 128), gvk)
}

func appendTypeHead(b []byte, gvk schema.GroupVersionKind) []byte {
	b = append(b, `{"kind":`...)
	b = strconv.AppendQuote(b, gvk.Kind)
	b = append(b, `,"apiVersion":`...)
	b = strconv.AppendQuote(b, gvk.GroupVersion().String())
	return append(b, ',')
}

// Bare encodes an object as protobuf without an envelope.
func Bare(obj runtime.Object) ([]byte, error) {
	m, ok := obj.(protoMarshaler)
	if !ok {
		return nil, fmt.Errorf("%T has no protobuf encoding", obj)
	}
	n := m.Size()
	b := make([]byte, n)
	w, err := m.MarshalToSizedBuffer(b)
	if err != nil {
		return nil, err
	}
	return b[n-w:], nil
}

// Envelope puts bare protobuf bytes into the envelope that names their type.
func Envelope(gvk schema.GroupVersionKind, bare []byte) ([]byte, error) {
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind}, Raw: bare}
	b := make([]byte, len(protoMagic)+u.Size())
	copy(b, protoMagic)
	n, err := u.MarshalTo(b[len(protoMagic):])
	if err != nil {
		return nil, err
	}
	return b[:len(protoMagic)+n], nil
}

// EnvelopeTo writes an envelope around size bytes that write writes: for what is
// too large to hold.
func EnvelopeTo(w io.Writer, gvk schema.GroupVersionKind, size int, write func(io.Writer) (int, error)) error {
	if _, err := w.Write(protoMagic); err != nil {
		return err
	}
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind}}
	_, err := u.MarshalToWriter(w, size, write)
	return err
}

// ErrForeign: a stored value is not what skiff or kube-apiserver writes.
var ErrForeign = errors.New("value is neither a protobuf envelope nor JSON")

// Stored encodes an object for the store: the envelope, with resourceVersion
// cleared. obj is changed for the moment of the call: it must be the caller's own.
func Stored(gvk schema.GroupVersionKind, obj interface {
	runtime.Object
	metav1.Object
}) ([]byte, error) {
	rv := obj.GetResourceVersion()
	obj.SetResourceVersion("")
	defer obj.SetResourceVersion(rv)
	m, ok := obj.(storable)
	if !ok {
		return nil, fmt.Errorf("%T has no protobuf encoding", obj)
	}
	// At once into its envelope.
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind}}
	size := m.Size()
	b := make([]byte, len(protoMagic)+u.Size()+1+protowire.SizeBytes(size))
	copy(b, protoMagic)
	n, err := u.NestedMarshalTo(b[len(protoMagic):], m, uint64(size))
	if err != nil {
		return nil, err
	}
	return b[:len(protoMagic)+n], nil
}

// FromStored decodes a stored value into a new object of its kind and sets its
// resourceVersion.
func FromStored(data []byte, rev int64, into interface {
	runtime.Object
	metav1.Object
}) error {
	switch {
	case bytes.HasPrefix(data, protoMagic):
		raw, err := unwrap(data[len(protoMagic):])
		if err != nil {
			return fmt.Errorf("envelope: %w", err)
		}
		m, ok := into.(protoUnmarshaler)
		if !ok {
			return fmt.Errorf("%T has no protobuf decoding", into)
		}
		m.Reset()
		if err := m.Unmarshal(raw); err != nil {
			return fmt.Errorf("decode %T: %w", into, err)
		}
	case len(data) > 0 && data[0] == '{':
		if err := json.Unmarshal(data, into); err != nil {
			return err
		}
		into.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	default:
		return ErrForeign
	}
	into.SetResourceVersion(strconv.FormatInt(rev, 10))
	return nil
}

// rawField is the number of the field of an envelope (runtime.Unknown) that has the
// object.
const rawField = 2

// unwrap returns the part of an envelope that is the object.
func unwrap(b []byte) ([]byte, error) {
	var raw []byte
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		if num == rawField && kind == protowire.BytesType {
			raw, n = protowire.ConsumeBytes(b)
		} else {
			n = protowire.ConsumeFieldValue(num, kind, b)
		}
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
	}
	return raw, nil
}
