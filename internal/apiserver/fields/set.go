package fields

import (
	"cmp"
	"strconv"
	"strings"
)

// element is one step of a path, with its text in FieldsV1: "f:spec", or
// `k:{"name":"web"}`. parts are a key's values in order of their names, or the
// one value of a set's member.
type element struct {
	text  string
	parts []part
}

// part is a scalar, under its name where it is part of a key.
type part struct {
	name string
	kind scalarKind
	s    string
	n    int64 // of a number or a bool
}

type scalarKind uint8

// In the order in which the library sorts them.
const (
	number scalarKind = iota
	text
	truth
)

func (p *part) compare(q *part) int {
	return cmp.Or(strings.Compare(p.name, q.name), cmp.Compare(p.kind, q.kind), cmp.Compare(p.n, q.n), strings.Compare(p.s, q.s))
}

// compare orders elements as the library does: fields, keys, values.
func (e *element) compare(o *element) int {
	if e.text == o.text {
		return 0
	}
	if c := cmp.Compare(e.text[0], o.text[0]); c != 0 {
		return c
	}
	if e.text[0] == 'f' {
		return strings.Compare(e.text, o.text)
	}
	for i := 0; i < len(e.parts) && i < len(o.parts); i++ {
		if c := e.parts[i].compare(&o.parts[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(e.parts), len(o.parts))
}

// plain tells that a text means the same bytes in every quoting.
func plain(s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c < 0x20, c >= 0x7f, c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}

// keyElement makes the element of a key, or of a set's member where it has one
// part without a name; false where a text is not plain.
func keyElement(parts []part) (element, bool) {
	b := make([]byte, 0, 64)
	one := len(parts) == 1 && parts[0].name == ""
	if one {
		b = append(b, "v:"...)
	} else {
		b = append(b, "k:{"...)
	}
	for i := range parts {
		p := &parts[i]
		if i > 0 {
			b = append(b, ',')
		}
		if !one {
			b = append(append(append(b, '"'), p.name...), `":`...)
		}
		switch p.kind {
		case text:
			if !plain(p.s) {
				return element{}, false
			}
			b = append(append(append(b, '"'), p.s...), '"')
		case number:
			b = strconv.AppendInt(b, p.n, 10)
		case truth:
			b = strconv.AppendBool(b, p.n != 0)
		}
	}
	if !one {
		b = append(b, '}')
	}
	return element{text: string(b), parts: parts}, true
}

// set is a node of a set of fields: a field, whether it is a member, and the
// nodes below it, in order. The root is no field. A set that is shared is never
// changed.
type set struct {
	element
	in   bool
	kids []set
	// gone marks, in a comparison, what is there no more.
	gone bool
}

// empty tells that nothing at or below s is a member.
func (s *set) empty() bool {
	if s.in {
		return false
	}
	for i := range s.kids {
		if !s.kids[i].empty() {
			return false
		}
	}
	return true
}

// without returns s less what d marks, in or gone; the same s where that is
// nothing.
func (s *set) without(d *set) *set {
	out := *s
	changed := false
	if s.in && (d.in || d.gone) {
		out.in, changed = false, true
	}
	var kids []set // once it differs from s.kids
	j := 0
	for i := range s.kids {
		k := &s.kids[i]
		for j < len(d.kids) && d.kids[j].compare(&k.element) < 0 {
			j++
		}
		left := k
		if j < len(d.kids) && d.kids[j].text == k.text {
			left = k.without(&d.kids[j])
		}
		if left != k && kids == nil {
			kids = append(make([]set, 0, len(s.kids)), s.kids[:i]...)
			changed = true
		}
		if kids != nil && (left == k || !left.empty()) {
			kids = append(kids, *left)
		}
	}
	if !changed {
		return s
	}
	if kids != nil {
		out.kids = kids
	}
	return &out
}

// with returns s and what d marks as in; the same s where that has it all. It uses
// d up.
func (s *set) with(d *set) *set {
	out := *s
	changed := false
	if d.in && !s.in {
		out.in, changed = true, true
	}
	kids := make([]set, 0, len(s.kids)+len(d.kids))
	i := 0
	for j := range d.kids {
		k := &d.kids[j]
		if k.empty() {
			continue
		}
		for i < len(s.kids) && s.kids[i].compare(&k.element) < 0 {
			kids = append(kids, s.kids[i])
			i++
		}
		if i < len(s.kids) && s.kids[i].text == k.text {
			both := s.kids[i].with(k)
			changed = changed || both != &s.kids[i]
			kids = append(kids, *both)
			i++
			continue
		}
		k.prune()
		kids = append(kids, *k)
		changed = true
	}
	if !changed {
		return s
	}
	out.kids = append(kids, s.kids[i:]...)
	return &out
}

// prune makes of a comparison's node the set of what is in.
func (s *set) prune() {
	s.gone = false
	n := 0
	for i := range s.kids {
		if s.kids[i].empty() {
			continue
		}
		if n != i {
			s.kids[n] = s.kids[i]
		}
		s.kids[n].prune()
		n++
	}
	s.kids = s.kids[:n]
}

// appendJSON writes what is below s as FieldsV1.
func (s *set) appendJSON(b []byte) []byte {
	b = append(b, '{')
	if s.in && len(s.kids) > 0 && s.text != "" {
		b = append(b, `".":{}`...)
		if len(s.kids) > 0 {
			b = append(b, ',')
		}
	}
	for i := range s.kids {
		k := &s.kids[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		if k.text[0] == 'f' {
			b = append(b, k.text...)
		} else {
			for _, c := range []byte(k.text) {
				if c == '"' {
					b = append(b, '\\')
				}
				b = append(b, c)
			}
		}
		b = append(b, `":`...)
		b = k.appendJSON(b)
	}
	return append(b, '}')
}

// parseSet reads FieldsV1 as appendJSON writes it; false for any other form.
func parseSet(raw string) (*set, bool) {
	r := reader{s: raw}
	root := &set{}
	if !r.node(root, 0) || r.s != "" {
		return nil, false
	}
	root.in = false
	// What was passed over, or stands in another order, shows here.
	if string(root.appendJSON(make([]byte, 0, len(raw)))) != raw {
		return nil, false
	}
	return root, true
}

type reader struct{ s string }

func (r *reader) take(prefix string) bool {
	rest, ok := strings.CutPrefix(r.s, prefix)
	if ok {
		r.s = rest
	}
	return ok
}

// maxDepth bounds the nesting of a set: API types are far from it.
const maxDepth = 100

// node reads what is below s.
func (r *reader) node(s *set, depth int) bool {
	if depth > maxDepth || !r.take("{") {
		return false
	}
	if r.take("}") {
		s.in = true
		return true
	}
	if r.take(`".":{}`) {
		s.in = true
		if !r.take(",") {
			return false
		}
	}
	for {
		e, ok := r.element()
		if !ok || !r.take(":") {
			return false
		}
		if n := len(s.kids); n > 0 && s.kids[n-1].compare(&e) >= 0 {
			return false
		}
		s.kids = append(s.kids, set{element: e})
		if !r.node(&s.kids[len(s.kids)-1], depth+1) {
			return false
		}
		if r.take("}") {
			return true
		}
		if !r.take(",") {
			return false
		}
	}
}

// element reads a quoted path element.
func (r *reader) element() (element, bool) {
	switch {
	case r.take(`"f:`):
		name, rest, ok := strings.Cut(r.s, `"`)
		if !ok || !plain(name) {
			return element{}, false
		}
		r.s = rest
		return element{text: "f:" + name}, true
	case r.take(`"v:`):
		p, ok := r.part()
		if !ok || !r.take(`"`) {
			return element{}, false
		}
		return keyElement([]part{p})
	case r.take(`"k:{`):
		var parts []part
		for {
			name, ok := r.quoted()
			if !ok || name == "" || !r.take(":") {
				return element{}, false
			}
			p, ok := r.part()
			if !ok {
				return element{}, false
			}
			p.name = name
			if n := len(parts); n > 0 && parts[n-1].name >= name {
				return element{}, false
			}
			parts = append(parts, p)
			if r.take(`}"`) {
				return keyElement(parts)
			}
			if !r.take(",") {
				return element{}, false
			}
		}
	}
	return element{}, false
}

// quoted reads a text whose quotes are themselves quoted.
func (r *reader) quoted() (string, bool) {
	if !r.take(`\"`) {
		return "", false
	}
	s, rest, ok := strings.Cut(r.s, `\"`)
	if !ok || !plain(s) {
		return "", false
	}
	r.s = rest
	return s, true
}

// maxExact is the greatest number that survives the library's floating point.
const maxExact = 1 << 50

func (r *reader) part() (part, bool) {
	if strings.HasPrefix(r.s, `\"`) {
		s, ok := r.quoted()
		return part{kind: text, s: s}, ok
	}
	if r.take("true") {
		return part{kind: truth, n: 1}, true
	}
	if r.take("false") {
		return part{kind: truth}, true
	}
	n := 0
	for n < len(r.s) && (r.s[n] == '-' || (r.s[n] >= '0' && r.s[n] <= '9')) {
		n++
	}
	v, err := strconv.ParseInt(r.s[:n], 10, 64)
	if err != nil || v > maxExact || v < -maxExact {
		return part{}, false
	}
	r.s = r.s[n:]
	return part{kind: number, n: v}, true
}

// granular tells that no node of s lies below what belongs to one manager as a
// whole: the library would mend that.
func (s *set) granular(p *plan) bool {
	if p.shape == opaque || p.shape == atomic {
		return len(s.kids) == 0
	}
	for i := range s.kids {
		k := &s.kids[i]
		sub := p.elem
		if p.shape == record {
			sub = nil
			for f := range p.fields {
				if p.fields[f].path.text == k.text {
					sub = p.fields[f].plan
					break
				}
			}
		}
		if sub != nil && !k.granular(sub) {
			return false
		}
	}
	return true
}
