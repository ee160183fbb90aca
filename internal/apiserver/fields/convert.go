package fields

import (
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"skiff/internal/api/resource"
)

// hubVersion names the version that the library converts through. There is none
// here: an object in it is of some served version.
const hubVersion = runtime.APIVersionInternal

// types knows the kinds and, once loaded, their schemas.
type types struct {
	kinds map[schema.GroupVersionKind]*resource.Resource
	once  sync.Once
	err   error
	parse *typed.Parser
}

func newTypes(all []*resource.Resource) *types {
	t := &types{kinds: map[schema.GroupVersionKind]*resource.Resource{}}
	for _, r := range all {
		if r.Prefix != "" || r.Twin != nil {
			t.kinds[r.GVK()] = r
		}
	}
	return t
}

// twins are the other resources that show the same objects.
func (t *types) twins(r *resource.Resource) []*resource.Resource {
	stored := func(r *resource.Resource) *resource.Resource {
		if r.Twin != nil {
			return r.Twin.Of
		}
		return r
	}
	var out []*resource.Resource
	for _, other := range t.kinds {
		if other.GVK() != r.GVK() && stored(other).GVK() == stored(r).GVK() {
			out = append(out, other)
		}
	}
	return out
}

func (t *types) load() error {
	t.once.Do(func() { t.parse, t.err = loadSchema() })
	return t.err
}

// kind is what the library asks about one kind: its schema, conversions, defaults
// and empty objects.
type kind struct {
	gvk      schema.GroupVersionKind
	fresh    func() Object
	standard func(Object)
	types    *types
}

// unknown is returned for a kind that has no schema; the library takes it as
// "this version is not served any more".
func (k *kind) unknown(gvk schema.GroupVersionKind) error {
	return runtime.NewNotRegisteredErrForKind("skiff", gvk)
}

// ObjectToTyped implements managedfields.TypeConverter.
func (k *kind) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	gvk := obj.GetObjectKind().GroupVersionKind()
	var model any
	if gvk == k.gvk {
		model = k.fresh()
	} else if r := k.types.kinds[gvk]; r != nil {
		model = r.New()
	} else {
		return nil, k.unknown(gvk)
	}
	named, ok := model.(interface{ OpenAPIModelName() string })
	if !ok {
		return nil, k.unknown(gvk)
	}
	t := k.types.parse.Type(named.OpenAPIModelName())
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return t.FromUnstructured(u.UnstructuredContent(), opts...)
	}
	return t.FromStructured(obj, opts...)
}

// TypedToObject implements managedfields.TypeConverter.
func (k *kind) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	m, ok := v.AsValue().Unstructured().(map[string]any)
	if !ok {
		return nil, fmt.Errorf("failed to convert value to unstructured for type %T", v.AsValue().Unstructured())
	}
	return &unstructured.Unstructured{Object: m}, nil
}

// ConvertToVersion implements runtime.ObjectConvertor. The object it returns may
// share what the one given consists of, but has a TypeMeta of its own.
func (k *kind) ConvertToVersion(in runtime.Object, to runtime.GroupVersioner) (runtime.Object, error) {
	target, ok := to.(schema.GroupVersion)
	if !ok {
		return nil, fmt.Errorf("conversion to %v", to)
	}
	from := in.GetObjectKind().GroupVersionKind()
	if from.Empty() {
		from = k.gvk
	}
	obj, err := k.typed(in, from)
	if err != nil {
		return nil, err
	}
	if target.Version == hubVersion || target == from.GroupVersion() {
		obj.GetObjectKind().SetGroupVersionKind(from)
		return obj, nil
	}
	// As upstream: what was written through another group is not followed.
	want := target.WithKind(from.Kind)
	a, b := k.types.kinds[from], k.types.kinds[want]
	if a == nil || b == nil || target.Group != from.Group {
		return nil, k.unknown(want)
	}
	switch {
	case b.Twin != nil && b.Twin.Of == a:
		obj = b.Twin.FromStored(obj)
	case a.Twin != nil && a.Twin.Of == b:
		obj = a.Twin.ToStored(obj)
	case a.Twin != nil && b.Twin != nil && a.Twin.Of == b.Twin.Of:
		obj = b.Twin.FromStored(a.Twin.ToStored(obj))
	default:
		return nil, k.unknown(want)
	}
	obj.GetObjectKind().SetGroupVersionKind(want)
	return obj, nil
}

// typed returns an object as its Go type, with a TypeMeta of its own.
func (k *kind) typed(in runtime.Object, gvk schema.GroupVersionKind) (Object, error) {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		obj, ok := in.(Object)
		if !ok {
			return nil, fmt.Errorf("%T has no metadata", in)
		}
		return shallow(obj), nil
	}
	var obj Object
	if gvk == k.gvk {
		obj = k.fresh()
	} else if r := k.types.kinds[gvk]; r != nil {
		obj = r.New()
	} else {
		return nil, k.unknown(gvk)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, obj); err != nil {
		return nil, fmt.Errorf("unable to convert unstructured object to %s: %w", gvk, err)
	}
	return obj, nil
}

// Convert and ConvertFieldLabel implement runtime.ObjectConvertor; the library
// does not call them.
func (k *kind) Convert(in, out, _ any) error { return fmt.Errorf("conversion of %T to %T", in, out) }

// ConvertFieldLabel see Convert.
func (k *kind) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

// Default implements runtime.ObjectDefaulter.
func (k *kind) Default(in runtime.Object) {
	if obj, ok := in.(Object); ok && k.standard != nil {
		k.standard(obj)
	}
}

// New implements runtime.ObjectCreater.
func (k *kind) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	if gvk != k.gvk {
		return nil, k.unknown(gvk)
	}
	return k.fresh(), nil
}
