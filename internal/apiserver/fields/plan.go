package fields

import (
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// shape is how values of a Go type are taken apart under a type of the schema.
type shape uint8

const (
	opaque  shape = iota // not understood: the library's
	scalar               // one value
	atomic               // a map or list that belongs to one manager as a whole
	record               // a struct
	table                // a map
	keyed                // a list of structs that some of their fields identify
	members              // a list of scalars, a set
)

// plan is what comparing two values of one Go type under one type of the schema
// asks for, found out once.
type plan struct {
	shape shape
	// convert: the type has a JSON form of its own (a quantity, a time).
	convert bool
	// several: the schema allows other shapes too, and a null is not known to be
	// a scalar.
	several bool
	fields  []planField // of a record, in order of their names
	elem    *plan       // of a table or list
	keys    []planKey   // of a keyed list, in order of their names
}

type planField struct {
	name      string
	path      element
	index     []int
	omitEmpty bool
	entry     *value.FieldCacheEntry // where omitzero counts
	plan      *plan
}

type planKey struct {
	field *planField
	// text and value stand for the default, where there is one.
	name     string
	fallback *part
}

type planID struct {
	t    reflect.Type
	name string
	elem schema.ElementRelationship
}

// planner makes plans; recursive types refer to themselves.
type planner struct {
	schema *schema.Schema
	made   map[planID]*plan
}

// planFor returns the plan of a kind; nil where its type has no schema.
func planFor(parse *typed.Parser, obj Object) *plan {
	named, ok := obj.(interface{ OpenAPIModelName() string })
	if !ok {
		return nil
	}
	name := named.OpenAPIModelName()
	p := planner{schema: &parse.Schema, made: map[planID]*plan{}}
	out := p.plan(reflect.TypeOf(obj), schema.TypeRef{NamedType: &name})
	if out.shape != record {
		return nil
	}
	return out
}

func (p *planner) plan(t reflect.Type, ref schema.TypeRef) *plan {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	id := planID{t: t}
	if ref.NamedType != nil {
		id.name = *ref.NamedType
		if ref.ElementRelationship != nil {
			id.elem = *ref.ElementRelationship
		}
		if out := p.made[id]; out != nil {
			return out
		}
	}
	out := &plan{}
	if id.name != "" {
		p.made[id] = out
	}
	atom, ok := p.schema.Resolve(ref)
	if !ok {
		return out
	}
	alone := atom.Map == nil && atom.List == nil
	if value.TypeReflectEntryOf(t).CanConvertToUnstructured() {
		// What has several shapes in the schema and converts is an int or a string.
		if atom.Scalar != nil {
			out.shape, out.convert, out.several = scalar, true, !alone
		}
		return out
	}
	switch {
	case atom.Scalar != nil && alone:
		p.scalar(out, t)
	case atom.Map != nil && atom.Scalar == nil && atom.List == nil:
		p.mapping(out, t, atom.Map)
	case atom.List != nil && atom.Scalar == nil && atom.Map == nil:
		p.list(out, t, atom.List)
	}
	return out
}

func (p *planner) scalar(out *plan, t reflect.Type) {
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		out.shape = scalar
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			out.shape = atomic // bytes: one value, compared as such
		}
	}
}

func (p *planner) mapping(out *plan, t reflect.Type, m *schema.Map) {
	switch {
	case t.Kind() != reflect.Struct && t.Kind() != reflect.Map:
	case m.ElementRelationship == schema.Atomic:
		out.shape = atomic
	case t.Kind() == reflect.Map:
		if t.Key().Kind() == reflect.String && len(m.Fields) == 0 {
			out.shape = table
			out.elem = p.plan(t.Elem(), m.ElementType)
		}
	default:
		out.shape = record
		p.fields(out, t, nil, m)
		slices.SortFunc(out.fields, func(a, b planField) int { return strings.Compare(a.name, b.name) })
	}
}

// fields adds the fields of a struct under their JSON names, those of inlined
// structs too.
func (p *planner) fields(out *plan, t reflect.Type, index []int, m *schema.Map) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		at := append(slices.Clone(index), i)
		if name == "-" || !f.IsExported() {
			continue
		}
		if name == "" {
			// An inlined struct. TypeMeta is the same on both sides of a comparison.
			if f.Type.Kind() == reflect.Struct && f.Name != "TypeMeta" {
				p.fields(out, f.Type, at, m)
			} else if f.Name != "TypeMeta" {
				out.shape = opaque
			}
			continue
		}
		pf := planField{name: name, path: element{text: "f:" + name}, index: at, plan: &plan{}}
		for o := range strings.SplitSeq(opts, ",") {
			switch o {
			case "omitempty":
				pf.omitEmpty = f.Type.Kind() != reflect.Struct
			case "omitzero":
				pf.entry = value.TypeReflectEntryOf(t).Fields()[name]
			}
		}
		if sf, ok := m.FindField(name); ok {
			pf.plan = p.plan(f.Type, sf.Type)
		}
		out.fields = append(out.fields, pf)
	}
}

func (p *planner) list(out *plan, t reflect.Type, l *schema.List) {
	switch {
	case t.Kind() != reflect.Slice || t.Elem().Kind() == reflect.Uint8:
	case l.ElementRelationship != schema.Associative:
		out.shape = atomic
	case len(l.Keys) == 0:
		if e := p.plan(t.Elem(), l.ElementType); e.shape == scalar && !e.convert && t.Elem().Kind() != reflect.Pointer {
			out.shape, out.elem = members, e
		}
	default:
		e := p.plan(t.Elem(), l.ElementType)
		if t.Elem().Kind() == reflect.Pointer {
			return
		}
		// Items may belong to one manager as a whole (owner references do): then
		// their fields are there for their keys alone.
		of := e
		if e.shape == atomic && t.Elem().Kind() == reflect.Struct {
			if atom, ok := p.schema.Resolve(l.ElementType); ok && atom.Map != nil {
				of = &plan{shape: record}
				p.fields(of, t.Elem(), nil, atom.Map)
			}
		}
		if of.shape != record {
			return
		}
		keys, ok := p.keys(of, l)
		if ok {
			out.shape, out.elem, out.keys = keyed, e, keys
		}
	}
}

func (p *planner) keys(e *plan, l *schema.List) ([]planKey, bool) {
	atom, ok := p.schema.Resolve(l.ElementType)
	if !ok || atom.Map == nil {
		return nil, false
	}
	var out []planKey
	for _, name := range l.Keys {
		i := slices.IndexFunc(e.fields, func(f planField) bool { return f.name == name })
		if i < 0 || e.fields[i].plan.shape != scalar || e.fields[i].plan.convert {
			return nil, false
		}
		k := planKey{field: &e.fields[i], name: name}
		if sf, ok := atom.Map.FindField(name); ok && sf.Default != nil {
			switch d := sf.Default.(type) {
			case string:
				k.fallback = &part{name: name, kind: text, s: d}
			case int64:
				k.fallback = &part{name: name, kind: number, n: d}
			default:
				return nil, false
			}
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b planKey) int { return strings.Compare(a.name, b.name) })
	return out, true
}

// exclusion are the fields that a door does not write: below a name either all,
// or what is excluded there.
type exclusion struct {
	all   bool
	below map[string]*exclusion
}

func exclude(dotted []string) *exclusion {
	root := &exclusion{}
	for _, d := range dotted {
		at := root
		for name := range strings.SplitSeq(d, ".") {
			next := at.below[name]
			if next == nil {
				next = &exclusion{}
				if at.below == nil {
					at.below = map[string]*exclusion{}
				}
				at.below[name] = next
			}
			at = next
		}
		at.all = true
	}
	return root
}

// of returns what is excluded below a field; nil for nothing.
func (e *exclusion) of(name string) *exclusion {
	if e == nil {
		return nil
	}
	return e.below[name]
}
