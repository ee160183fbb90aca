package diff

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// mutation is an object with one mistake, or one unusual value, in it.
type mutation struct {
	// name is the place and what was put there.
	name   string
	object map[string]any
}

// mutations makes, for every field below the Go type t that JSON can say, objects
// that are base but for that one field. A field that base does not have is tried
// within an otherwise empty parent. A Go type is entered once per object, and where base has
// a value for it again, so that a field which occurs in twenty places is tried in
// the few that matter.
func mutations(t reflect.Type, base map[string]any, shallow map[string]bool) []mutation {
	m := &mutator{base: base, shallow: shallow, entered: map[reflect.Type]int{}}
	m.structure(t, base, nil, 0)
	return m.out
}

type mutator struct {
	base    map[string]any
	shallow map[string]bool
	entered map[reflect.Type]int
	out     []mutation
}

// maxDepth bounds how far below base's own values is tried.
const maxDepth = 3

// remove asks for a field to be left out.
type remove struct{}

var (
	quantityType = reflect.TypeFor[resource.Quantity]()
	intStrType   = reflect.TypeFor[intstr.IntOrString]()
	timeType     = reflect.TypeFor[metav1.Time]()
	microType    = reflect.TypeFor[metav1.MicroTime]()
	durationType = reflect.TypeFor[metav1.Duration]()
	rawType      = reflect.TypeFor[runtime.RawExtension]()
	fieldsType   = reflect.TypeFor[metav1.FieldsV1]()
	metaType     = reflect.TypeFor[metav1.ObjectMeta]()
	bytesType    = reflect.TypeFor[[]byte]()
)

func (m *mutator) add(path []string, value any) {
	label, err := json.Marshal(value)
	if err != nil {
		panic(err) // values are built here, of maps, slices and scalars
	}
	text := string(label)
	if _, ok := value.(remove); ok {
		text = "removed"
	}
	if len(text) > 60 {
		text = text[:60] + "…" + strconv.Itoa(len(text))
	}
	m.out = append(m.out, mutation{strings.Join(path, ".") + "=" + text, set(m.base, path, value).(map[string]any)})
}

// set returns a copy of v with value at path; what is missing on the way is made.
func set(v any, path []string, value any) any {
	if len(path) == 0 {
		return value
	}
	if i, err := strconv.Atoi(path[0]); err == nil {
		old, _ := v.([]any)
		out := append([]any(nil), old...)
		for len(out) <= i {
			out = append(out, nil)
		}
		out[i] = set(out[i], path[1:], value)
		return out
	}
	old, _ := v.(map[string]any)
	out := make(map[string]any, len(old)+1)
	for k, e := range old {
		out[k] = e
	}
	if _, gone := value.(remove); gone && len(path) == 1 {
		delete(out, path[0])
		return out
	}
	out[path[0]] = set(out[path[0]], path[1:], value)
	return out
}

// structure tries the fields of a struct; have is its value in base, nil where
// there is none.
func (m *mutator) structure(t reflect.Type, have map[string]any, path []string, depth int) {
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() {
			continue
		}
		if name == "" {
			if f.Anonymous || strings.Contains(opts, "inline") {
				ft := f.Type
				if ft.Kind() == reflect.Pointer {
					ft = ft.Elem()
				}
				m.structure(ft, have, path, depth)
			}
			continue
		}
		if len(path) == 0 && (name == "kind" || name == "apiVersion") {
			continue
		}
		p := append(append([]string(nil), path...), name)
		v, ok := have[name]
		if ok {
			m.add(p, remove{})
		}
		m.value(f.Type, v, ok, p, depth)
	}
}

func (m *mutator) value(t reflect.Type, v any, have bool, path []string, depth int) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
		if have {
			m.add(path, nil)
		}
	}
	if !have {
		depth++
	}
	long := strings.Repeat("x", 300)
	switch t {
	case quantityType:
		for _, b := range []any{"-1", "x", "100000000000000000000", "1.5", "0", 7} {
			m.add(path, b)
		}
		return
	case intStrType:
		for _, b := range []any{-1, 0, 70000, "", "Bad_Name", "150%", "-5%", "x%", 1.5} {
			m.add(path, b)
		}
		return
	case timeType, microType:
		for _, b := range []any{"yesterday", "2001-02-03T04:05:06Z", 5} {
			m.add(path, b)
		}
		return
	case durationType:
		m.add(path, "soon")
		return
	case rawType, fieldsType:
		return
	case bytesType:
		m.add(path, "***")
		m.add(path, "")
		return
	case metaType:
		if len(path) == 1 && m.shallow["metadata"] {
			for _, b := range []string{"Bad_Name", "bad name", "-a", "a.b", "1a", "a:b", "a/b", strings.Repeat("x", 64), long} {
				m.add([]string{"metadata", "name"}, b)
			}
			m.add([]string{"metadata", "labels"}, map[string]any{"-bad-": "x y"})
			m.add([]string{"metadata", "namespace"}, "other")
			m.add([]string{"metadata", "name"}, remove{})
			m.add([]string{"metadata", "generateName"}, "gen-")
			return
		}
		if len(path) > 1 {
			m.add(path, map[string]any{"labels": map[string]any{"-bad-": "x y"}})
			m.add(path, map[string]any{"annotations": map[string]any{"a b": "x"}})
			m.add(path, map[string]any{"name": "Bad_Name"})
			return
		}
	}
	switch t.Kind() {
	case reflect.String:
		for _, b := range []any{"", "Bad_Value!", "other", long, 5} {
			m.add(path, b)
		}
	case reflect.Bool:
		m.add(path, true)
		m.add(path, false)
		m.add(path, "yes")
	case reflect.Int32, reflect.Int64, reflect.Int, reflect.Uint32:
		for _, b := range []any{-1, 0, 1, 70000, "1"} {
			m.add(path, b)
		}
		if t.Kind() == reflect.Int32 {
			m.add(path, int64(1)<<40)
		}
	case reflect.Float64, reflect.Float32:
		m.add(path, -1.5)
	case reflect.Map:
		m.mapping(t, path)
	case reflect.Slice:
		m.list(t, v, have, path, depth)
	case reflect.Struct:
		if m.shallow[strings.Join(path, ".")] {
			m.add(path, map[string]any{})
			return
		}
		m.add(path, "text")
		if !have {
			m.add(path, map[string]any{})
			// What base has no value for is entered at one place only.
			if m.entered[t] > 0 || depth > maxDepth {
				return
			}
		}
		// A type that base holds in many places is tried in two of them.
		if m.entered[t] > 1 {
			return
		}
		m.entered[t]++
		sub, _ := v.(map[string]any)
		m.structure(t, sub, path, depth)
	}
}

func (m *mutator) mapping(t reflect.Type, path []string) {
	value := t.Elem()
	m.add(path, "text")
	switch {
	case value == quantityType:
		for _, b := range []map[string]any{
			{"bad name!": "1"}, {"cpu": "-1"}, {"cpu": "many"}, {"memory": "1.5"}, {"cpu": "0.0001"}, {"example.com/gpu": "1.5"},
			{"example.com/gpu": "2"}, {"hugepages-2Mi": "3Mi"}, {"unknown": "1"}, {"kubernetes.io/odd": "1"}, {"ephemeral-storage": "-5"}, {},
		} {
			m.add(path, b)
		}
	case value.Kind() == reflect.String:
		for _, b := range []map[string]any{
			{"bad key!": "v"}, {"": "v"}, {"k": "bad value!"}, {"k": strings.Repeat("v", 64)}, {strings.Repeat("k", 64): "v"},
			{"example.com/k": ""}, {"Bad.Domain_/k": "v"}, {"a/b/c": "v"}, {"k": "v"}, {},
		} {
			m.add(path, b)
		}
		m.add(path, map[string]any{"k": 5})
	case value == bytesType:
		for _, b := range []map[string]any{{"bad key!": "dg=="}, {"k": "***"}, {"": "dg=="}, {"k": ""}, {}} {
			m.add(path, b)
		}
	default:
		m.add(path, map[string]any{"bad key!": nil})
		m.add(path, map[string]any{})
	}
}

func (m *mutator) list(t reflect.Type, v any, have bool, path []string, depth int) {
	elem := t.Elem()
	items, _ := v.([]any)
	m.add(path, []any{})
	m.add(path, "text")
	m.add(path, []any{nil})
	if len(items) > 0 {
		m.add(path, append(append([]any(nil), items...), items[0])) // twice the same
		if len(items) > 1 {
			m.add(path, append([]any{items[len(items)-1]}, items[:len(items)-1]...))
		}
	}
	first := append(append([]string(nil), path...), "0")
	switch {
	case elem.Kind() == reflect.String:
		m.add(path, []any{""})
		m.add(path, []any{"Bad_Value!"})
		m.add(path, []any{"other", "other"})
		m.add(path, []any{strings.Repeat("x", 300)})
	case elem.Kind() == reflect.Struct && elem != timeType && elem != microType:
		m.add(path, append(append([]any(nil), items...), map[string]any{}))
		if len(items) == 0 {
			if m.entered[elem] > 0 || depth > maxDepth {
				return
			}
			m.entered[elem]++
			m.structure(elem, nil, first, depth)
			return
		}
		// Lists whose items are alternatives (volumes) are tried item by item.
		n := m.entered[elem]
		for i, it := range items {
			if i > 0 && n == 0 && i > 60 || n > 1 {
				break
			}
			m.entered[elem]++
			sub, _ := it.(map[string]any)
			m.present(elem, sub, append(append([]string(nil), path...), strconv.Itoa(i)), depth, i > 0)
		}
	default:
		m.value(elem, first0(items), len(items) > 0, first, depth)
	}
}

// present tries the fields of one item of a list: all of them for the first, only
// those that it has for the rest.
func (m *mutator) present(t reflect.Type, have map[string]any, path []string, depth int, only bool) {
	if !only {
		m.structure(t, have, path, depth)
		return
	}
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" && (f.Anonymous || strings.Contains(opts, "inline")) && f.Type.Kind() == reflect.Struct {
			m.present(f.Type, have, path, depth, true)
			continue
		}
		v, ok := have[name]
		if !ok || f.Type.Kind() != reflect.Pointer && f.Type.Kind() != reflect.Slice && f.Type.Kind() != reflect.Struct {
			continue
		}
		ft := f.Type
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		if m.entered[ft] > 0 {
			continue
		}
		m.value(f.Type, v, true, append(append([]string(nil), path...), name), depth)
	}
}

func first0(items []any) any {
	if len(items) == 0 {
		return nil
	}
	return items[0]
}

// decodeObject reads an object as JSON has it.
func decodeObject(b []byte) (map[string]any, error) {
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, err
	}
	if out["kind"] == nil || out["apiVersion"] == nil {
		return nil, fmt.Errorf("object without kind or apiVersion: %.80s", b)
	}
	return out, nil
}
