package resource

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// Shown returns v in the form in which upstream shows structures in messages:
// JSON whose members are the Go names of the fields, with nothing left out, for
// the types of k8s.io/api (upstream prints its internal types, which carry no
// JSON names). Types of other packages, and those that marshal themselves, keep
// their own JSON.
func Shown(v any) json.Marshaler { return shown{v} }

type shown struct{ v any }

func (s shown) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	if err := show(&b, reflect.ValueOf(s.v)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

var marshaler = reflect.TypeFor[json.Marshaler]()

func show(b *bytes.Buffer, v reflect.Value) error {
	if !v.IsValid() {
		b.WriteString("null")
		return nil
	}
	t := v.Type()
	if t.Implements(marshaler) {
		return showJSON(b, v)
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			b.WriteString("null")
			return nil
		}
		return show(b, v.Elem())
	case reflect.Struct:
		if reflect.PointerTo(t).Implements(marshaler) {
			p := reflect.New(t)
			p.Elem().Set(v)
			return showJSON(b, p)
		}
		if !strings.HasPrefix(t.PkgPath(), "k8s.io/api/") {
			return showJSON(b, v)
		}
		b.WriteByte('{')
		first := true
		if err := showFields(b, v, &first); err != nil {
			return err
		}
		b.WriteByte('}')
		return nil
	case reflect.Slice:
		if v.IsNil() || t.Elem().Kind() == reflect.Uint8 {
			return showJSON(b, v)
		}
		b.WriteByte('[')
		for i := range v.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := show(b, v.Index(i)); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	case reflect.Map:
		if v.IsNil() || t.Key().Kind() != reflect.String {
			return showJSON(b, v)
		}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, c reflect.Value) int { return strings.Compare(a.String(), c.String()) })
		b.WriteByte('{')
		for i, k := range keys {
			if i > 0 {
				b.WriteByte(',')
			}
			name, err := json.Marshal(k.String())
			if err != nil {
				return err
			}
			b.Write(name)
			b.WriteByte(':')
			if err := show(b, v.MapIndex(k)); err != nil {
				return err
			}
		}
		b.WriteByte('}')
		return nil
	}
	return showJSON(b, v)
}

// showFields writes the members of a structure; those of an embedded one stand
// among them, as in JSON generally.
func showFields(b *bytes.Buffer, v reflect.Value, first *bool) error {
	t := v.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			if err := showEmbedded(b, v.Field(i), first); err != nil {
				return err
			}
			continue
		}
		if !*first {
			b.WriteByte(',')
		}
		*first = false
		name, err := json.Marshal(f.Name)
		if err != nil {
			return err
		}
		b.Write(name)
		b.WriteByte(':')
		if err := show(b, v.Field(i)); err != nil {
			return err
		}
	}
	return nil
}

// showEmbedded writes the members of an embedded structure, which has JSON names
// where it is metav1's.
func showEmbedded(b *bytes.Buffer, v reflect.Value, first *bool) error {
	if strings.HasPrefix(v.Type().PkgPath(), "k8s.io/api/") {
		return showFields(b, v, first)
	}
	raw, err := json.Marshal(v.Interface())
	if err != nil {
		return err
	}
	members := bytes.TrimSuffix(bytes.TrimPrefix(raw, []byte("{")), []byte("}"))
	if len(members) == 0 {
		return nil
	}
	if !*first {
		b.WriteByte(',')
	}
	*first = false
	b.Write(members)
	return nil
}

func showJSON(b *bytes.Buffer, v reflect.Value) error {
	raw, err := json.Marshal(v.Interface())
	if err != nil {
		return err
	}
	b.Write(raw)
	return nil
}
