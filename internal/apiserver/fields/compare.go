package fields

import (
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// comparison walks two objects of a kind side by side, as the library compares
// them. What it does not understand it leaves to the library: failed.
type comparison struct{ failed bool }

// compare notes under s what differs between l and r: in is what r changed or
// added, gone what it took away. A side that is not Valid is not there. It
// returns whether anything was noted.
func (c *comparison) compare(p *plan, l, r reflect.Value, skip *exclusion, s *set) bool {
	l, r = deref(l), deref(r)
	switch p.shape {
	case scalar:
		if p.several && (null(l) || null(r)) {
			c.failed = true
			return false
		}
		return c.leaf(p, l, r, s)
	case atomic:
		return c.leaf(p, l, r, s)
	case record:
		if null(l) && null(r) {
			return c.leaf(p, l, r, s)
		}
		return c.record(p, l, r, skip, s)
	case table, keyed, members:
		if length(l) == 0 && length(r) == 0 {
			return c.leaf(p, l, r, s)
		}
		switch p.shape {
		case table:
			c.table(p, l, r, s)
		default:
			c.list(p, l, r, s)
		}
		return c.self(l, r, s)
	}
	c.failed = c.failed || l.IsValid() || r.IsValid()
	return false
}

// self notes that a container came or went, and tells whether there is anything
// to note at or below s.
func (c *comparison) self(l, r reflect.Value, s *set) bool {
	s.in, s.gone = !l.IsValid(), !r.IsValid()
	return s.in || s.gone || len(s.kids) > 0
}

func (c *comparison) leaf(p *plan, l, r reflect.Value, s *set) bool {
	switch {
	case !l.IsValid() && !r.IsValid():
		return false
	case !l.IsValid():
		s.in = true
	case !r.IsValid():
		s.gone = true
	default:
		s.in = !c.equal(p, l, r)
	}
	return s.in || s.gone
}

func objectValue(obj Object) reflect.Value { return reflect.ValueOf(obj).Elem() }

// deref follows a pointer; a nil one stays, as a null.
func deref(v reflect.Value) reflect.Value {
	if v.IsValid() && v.Kind() == reflect.Pointer && !v.IsNil() {
		return v.Elem()
	}
	return v
}

// null tells that a value is there and is null.
func null(v reflect.Value) bool {
	if !v.IsValid() {
		return false
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Interface:
		return v.IsNil()
	}
	return false
}

// length of a map or list; 0 for a null and for what is not there.
func length(v reflect.Value) int {
	if !v.IsValid() || v.Kind() == reflect.Pointer {
		return 0
	}
	return v.Len()
}

func (c *comparison) equal(p *plan, l, r reflect.Value) bool {
	if null(l) || null(r) {
		return null(l) && null(r)
	}
	if p.shape == scalar && !p.convert {
		switch l.Kind() {
		case reflect.String:
			return l.String() == r.String()
		case reflect.Bool:
			return l.Bool() == r.Bool()
		default:
			return l.Int() == r.Int()
		}
	}
	if l.Comparable() && r.Comparable() && l.Equal(r) {
		return true
	}
	if !p.convert && reflect.DeepEqual(l.Interface(), r.Interface()) {
		return true
	}
	// Values may differ and mean the same: the library decides.
	lv, lerr := value.NewValueReflect(pointer(l).Interface())
	rv, rerr := value.NewValueReflect(pointer(r).Interface())
	if lerr != nil || rerr != nil {
		c.failed = true
		return false
	}
	return value.Equals(lv, rv)
}

func pointer(v reflect.Value) reflect.Value {
	if v.CanAddr() {
		return v.Addr()
	}
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	return p
}

// omitted tells that a field of a struct does not appear.
func (f *planField) omitted(v reflect.Value) bool {
	if f.omitEmpty {
		switch v.Kind() {
		case reflect.Map, reflect.Slice, reflect.String:
			if v.Len() == 0 {
				return true
			}
		default:
			if v.IsZero() {
				return true
			}
		}
	}
	return f.entry != nil && f.entry.CanOmit(v)
}

// at returns a field of v, not Valid where it does not appear.
func (f *planField) at(v reflect.Value) reflect.Value {
	if !v.IsValid() || v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	for _, i := range f.index {
		v = v.Field(i)
	}
	if f.omitted(v) {
		return reflect.Value{}
	}
	return v
}

func (c *comparison) record(p *plan, l, r reflect.Value, skip *exclusion, s *set) bool {
	seen := false
	for i := range p.fields {
		f := &p.fields[i]
		lf, rf := f.at(l), f.at(r)
		if !lf.IsValid() && !rf.IsValid() {
			continue
		}
		seen = true
		below := skip.of(f.name)
		if below != nil && below.all {
			continue
		}
		kid := set{element: f.path}
		if c.compare(f.plan, lf, rf, below, &kid) {
			if s.kids == nil {
				s.kids = make([]set, 0, min(8, len(p.fields)-i))
			}
			s.kids = append(s.kids, kid)
		}
		if c.failed {
			return false
		}
	}
	if !seen {
		return c.leaf(p, l, r, s)
	}
	return c.self(l, r, s)
}

func (c *comparison) table(p *plan, l, r reflect.Value, s *set) {
	each := func(v reflect.Value, visit func(key, val reflect.Value)) {
		if length(v) == 0 {
			return
		}
		for it := v.MapRange(); it.Next(); {
			visit(it.Key(), it.Value())
		}
	}
	add := func(key string, lv, rv reflect.Value) {
		if !plain(key) {
			c.failed = true
			return
		}
		kid := set{element: element{text: "f:" + key}}
		if c.compare(p.elem, lv, rv, nil, &kid) {
			s.kids = append(s.kids, kid)
		}
	}
	each(r, func(key, rv reflect.Value) {
		var lv reflect.Value
		if length(l) > 0 {
			lv = l.MapIndex(key)
		}
		add(key.String(), lv, rv)
	})
	each(l, func(key, lv reflect.Value) {
		if length(r) == 0 || !r.MapIndex(key).IsValid() {
			add(key.String(), lv, reflect.Value{})
		}
	})
	slices.SortFunc(s.kids, func(a, b set) int { return strings.Compare(a.text, b.text) })
}

// item is one item of a list, by its element.
type item struct {
	element
	v reflect.Value
}

// items returns the items of a list in the order of their elements. Lists with
// the same element twice are the library's.
func (c *comparison) items(p *plan, v reflect.Value) []item {
	n := length(v)
	out := make([]item, 0, n)
	for i := range n {
		e, ok := itemElement(p, v.Index(i))
		if !ok {
			c.failed = true
			return nil
		}
		out = append(out, item{e, v.Index(i)})
	}
	slices.SortFunc(out, func(a, b item) int { return a.compare(&b.element) })
	for i := 1; i < n; i++ {
		if out[i-1].text == out[i].text {
			c.failed = true
			return nil
		}
	}
	return out
}

func itemElement(p *plan, v reflect.Value) (element, bool) {
	if p.shape == members {
		one, ok := partOf(v)
		if !ok {
			return element{}, false
		}
		return keyElement([]part{one})
	}
	parts := make([]part, 0, len(p.keys))
	for i := range p.keys {
		k := &p.keys[i]
		f := deref(k.field.at(v))
		if !f.IsValid() {
			if k.fallback != nil {
				parts = append(parts, *k.fallback)
			}
			continue
		}
		one, ok := partOf(f)
		if !ok {
			return element{}, false
		}
		one.name = k.name
		parts = append(parts, one)
	}
	if len(parts) == 0 {
		return element{}, false
	}
	return keyElement(parts)
}

func partOf(v reflect.Value) (part, bool) {
	switch v.Kind() {
	case reflect.String:
		return part{kind: text, s: v.String()}, true
	case reflect.Bool:
		if v.Bool() {
			return part{kind: truth, n: 1}, true
		}
		return part{kind: truth}, true
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return part{kind: number, n: v.Int()}, v.Int() <= maxExact && v.Int() >= -maxExact
	}
	return part{}, false
}

func (c *comparison) list(p *plan, l, r reflect.Value, s *set) {
	was, is := c.items(p, l), c.items(p, r)
	for len(was) > 0 || len(is) > 0 {
		if c.failed {
			return
		}
		order := 0
		switch {
		case len(was) == 0:
			order = 1
		case len(is) == 0:
			order = -1
		default:
			order = was[0].compare(&is[0].element)
		}
		var lv, rv reflect.Value
		var kid set
		if order <= 0 {
			kid.element, lv = was[0].element, was[0].v
			was = was[1:]
		}
		if order >= 0 {
			kid.element, rv = is[0].element, is[0].v
			is = is[1:]
		}
		if c.compare(p.elem, lv, rv, nil, &kid) {
			s.kids = append(s.kids, kid)
		}
	}
}
