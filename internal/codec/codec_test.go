package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	protoserializer "k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

var gvk = corev1.SchemeGroupVersion.WithKind("Pod")

func pod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", ResourceVersion: "7", Labels: map[string]string{"<x>": "&"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

func scheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStoredComesBack(t *testing.T) {
	in := pod()
	b, err := Stored(gvk, in)
	if err != nil {
		t.Fatal(err)
	}
	if in.ResourceVersion != "7" {
		t.Error("the caller's object was changed")
	}
	var out corev1.Pod
	if err := FromStored(b, 42, &out); err != nil {
		t.Fatal(err)
	}
	if out.ResourceVersion != "42" {
		t.Errorf("resourceVersion is %q", out.ResourceVersion)
	}
	out.ResourceVersion = "7"
	if !apiequality.Semantic.DeepEqual(in, &out) {
		t.Errorf("%+v", out)
	}
	// kube-apiserver's own serializer reads it: nobody is locked in.
	obj, got, err := protoserializer.NewSerializer(scheme(t), scheme(t)).Decode(b, nil, nil)
	if err != nil || *got != gvk || obj.(*corev1.Pod).Name != "a" {
		t.Errorf("%v %v %v", obj, got, err)
	}
}

func TestFromStoredRefusesForeignValues(t *testing.T) {
	for _, b := range [][]byte{nil, []byte("nonsense"), []byte("k8s\x00\xff\xff")} {
		if err := FromStored(b, 1, &corev1.Pod{}); err == nil {
			t.Errorf("%q was taken", b)
		}
	}
	if err := FromStored([]byte("x"), 1, &corev1.Pod{}); !errors.Is(err, ErrForeign) {
		t.Errorf("%v", err)
	}
	var p corev1.Pod
	if err := FromStored([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"j"}}`), 3, &p); err != nil || p.Name != "j" || p.Kind != "" {
		t.Errorf("JSON: %v %+v", err, p.TypeMeta)
	}
}

// TestWithType: the bytes are those of an object that carries its type itself.
func TestWithType(t *testing.T) {
	p := pod()
	bare, err := Object(p)
	if err != nil {
		t.Fatal(err)
	}
	p.SetGroupVersionKind(gvk)
	want, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if got := WithType(gvk, bare); !bytes.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := string(WithType(gvk, []byte("{}"))); got != `{"kind":"Pod","apiVersion":"v1"}` {
		t.Errorf("an empty object is %s", got)
	}
}

func TestEnvelopeTo(t *testing.T) {
	raw := bytes.Repeat([]byte("x"), 300)
	want, err := Envelope(gvk, raw)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := EnvelopeTo(&got, gvk, len(raw), func(w io.Writer) (int, error) { return w.Write(raw) }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("got  %q\nwant %q", got.Bytes(), want)
	}
}

func TestDecodeStrictness(t *testing.T) {
	c := New(scheme(t))
	body := []byte(`{"metadata":{"name":"a"},"spek":{}}`)
	into := &corev1.Pod{}
	obj, got, err := c.Decode(JSON, body, true, gvk, into)
	if _, ok := runtime.AsStrictDecodingError(err); !ok || obj != runtime.Object(into) || *got != gvk {
		t.Errorf("strict: %v %v %v", obj, got, err)
	}
	if _, _, err := c.Decode(JSON, body, false, gvk, &corev1.Pod{}); err != nil {
		t.Errorf("not strict: %v", err)
	}
	if obj, _, err := c.Decode(YAML, []byte("kind: Pod\napiVersion: v1\nmetadata:\n  name: y\n  namespace: z\n"), true, gvk, &corev1.Pod{}); err == nil {
		t.Errorf("a YAML boolean was taken as a name: %+v", obj)
	}
}

func TestAppendTyped(t *testing.T) {
	for _, obj := range []runtime.Object{
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "<&>\u2028"}},
		&corev1.ConfigMap{}, &metav1.Status{}, &corev1.Pod{},
	} {
		bare, err := Object(obj)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		b.WriteString("before")
		if err := AppendTyped(&b, gvk, obj); err != nil {
			t.Fatal(err)
		}
		if got, want := b.String(), "before"+string(WithType(gvk, bare))+"\n"; got != want {
			t.Errorf("%T: got %s, want %s", obj, got, want)
		}
	}
}

// What is stored is what the library's envelope around the object is.
func TestStoredIsAnEnvelope(t *testing.T) {
	for _, p := range []*corev1.Pod{{}, {ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("a", 300), Namespace: "b"}, Spec: corev1.PodSpec{NodeName: "n"}}} {
		got, err := Stored(gvk, p)
		if err != nil {
			t.Fatal(err)
		}
		bare, err := Bare(p)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Envelope(gvk, bare)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%q instead of %q", got, want)
		}
	}
	for _, b := range []string{"k8s\x00\x0a", "k8s\x00\x12\x05ab", "k8s\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "k8s\x00\x12\x02\xff\xff"} {
		if err := FromStored([]byte(b), 1, &corev1.Pod{}); err == nil {
			t.Errorf("%q was taken", b)
		}
	}
}
