package fields

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// schemaFile is the merge schema of every served type, as MarshalSchema writes it.
//
//go:embed schema.json.gz
var schemaFile []byte

// The schema in short: only what merging asks for, under one-letter names.
type (
	shortAtom struct {
		Scalar string     `json:"s,omitempty"`
		List   *shortList `json:"l,omitempty"`
		Map    *shortMap  `json:"m,omitempty"`
	}
	shortRef struct {
		Named string `json:"n,omitempty"`
		shortAtom
		Relation string `json:"r,omitempty"`
		Nullable bool   `json:"u,omitempty"`
	}
	shortList struct {
		Element  shortRef `json:"e"`
		Relation string   `json:"r,omitempty"`
		Keys     []string `json:"k,omitempty"`
	}
	shortMap struct {
		Fields   []shortField `json:"f,omitempty"`
		Element  *shortRef    `json:"e,omitempty"`
		Relation string       `json:"r,omitempty"`
	}
	shortField struct {
		Name    string   `json:"n"`
		Type    shortRef `json:"t"`
		Default any      `json:"d,omitempty"`
	}
	shortType struct {
		Name string `json:"n"`
		shortAtom
	}
)

// MarshalSchema encodes the types of a schema that are reachable from roots. It is
// called at development time.
func MarshalSchema(s *schema.Schema, roots []string) ([]byte, error) {
	byName := map[string]schema.TypeDef{}
	for _, t := range s.Types {
		byName[t.Name] = t
	}
	want := map[string]bool{}
	var need func(name string)
	var atom func(a schema.Atom)
	ref := func(r schema.TypeRef) {
		if r.NamedType != nil {
			need(*r.NamedType)
		}
		atom(r.Inlined)
	}
	atom = func(a schema.Atom) {
		if a.List != nil {
			ref(a.List.ElementType)
		}
		if a.Map != nil {
			ref(a.Map.ElementType)
			for _, f := range a.Map.Fields {
				ref(f.Type)
			}
		}
	}
	need = func(name string) {
		if !want[name] {
			want[name] = true
			atom(byName[name].Atom)
		}
	}
	for _, r := range roots {
		if _, ok := byName[r]; !ok {
			return nil, fmt.Errorf("type %q has no schema", r)
		}
		need(r)
	}
	var out []shortType
	for _, t := range s.Types {
		if want[t.Name] {
			out = append(out, shortType{t.Name, shorten(t.Atom)})
		}
	}
	slices.SortFunc(out, func(a, b shortType) int { return strings.Compare(a.Name, b.Name) })
	data, err := json.Marshal(out)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(data); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func shorten(a schema.Atom) shortAtom {
	var out shortAtom
	if a.Scalar != nil {
		out.Scalar = string(*a.Scalar)
	}
	if a.List != nil {
		out.List = &shortList{Element: shortenRef(a.List.ElementType), Relation: string(a.List.ElementRelationship), Keys: a.List.Keys}
	}
	if a.Map != nil {
		out.Map = &shortMap{Relation: string(a.Map.ElementRelationship)}
		if e := shortenRef(a.Map.ElementType); !reflect.ValueOf(e).IsZero() {
			out.Map.Element = &e
		}
		for _, f := range a.Map.Fields {
			s := shortField{Name: f.Name, Type: shortenRef(f.Type)}
			// Only defaults of fields that are keys of a list matter: no structures.
			switch f.Default.(type) {
			case string, bool, float64, int64:
				s.Default = f.Default
			}
			out.Map.Fields = append(out.Map.Fields, s)
		}
		// The models list their fields in the order of a Go map.
		slices.SortFunc(out.Map.Fields, func(a, b shortField) int { return strings.Compare(a.Name, b.Name) })
	}
	return out
}

func shortenRef(r schema.TypeRef) shortRef {
	out := shortRef{shortAtom: shorten(r.Inlined), Nullable: r.Nullable}
	if r.NamedType != nil {
		out.Named = *r.NamedType
	}
	if r.ElementRelationship != nil {
		out.Relation = string(*r.ElementRelationship)
	}
	return out
}

func loadSchema() (*typed.Parser, error) {
	z, err := gzip.NewReader(bytes.NewReader(schemaFile))
	if err != nil {
		return nil, fmt.Errorf("merge schema: %w", err)
	}
	var in []shortType
	if err := json.NewDecoder(z).Decode(&in); err != nil {
		return nil, fmt.Errorf("merge schema: %w", err)
	}
	l := loader{words: map[string]string{}}
	p := &typed.Parser{}
	p.Schema.Types = make([]schema.TypeDef, 0, len(in))
	for i := range in {
		p.Schema.Types = append(p.Schema.Types, schema.TypeDef{Name: l.word(in[i].Name), Atom: l.atom(&in[i].shortAtom)})
	}
	return p, nil
}

// loader makes the schema; names that repeat are kept once.
type loader struct {
	words map[string]string
}

func (l *loader) word(s string) string {
	if w, ok := l.words[s]; ok {
		return w
	}
	l.words[s] = s
	return s
}

func (l *loader) atom(a *shortAtom) schema.Atom {
	var out schema.Atom
	if a.Scalar != "" {
		s := schema.Scalar(l.word(a.Scalar))
		out.Scalar = &s
	}
	if a.List != nil {
		out.List = &schema.List{ElementType: l.ref(&a.List.Element), ElementRelationship: schema.ElementRelationship(l.word(a.List.Relation)), Keys: a.List.Keys}
	}
	if a.Map != nil {
		out.Map = &schema.Map{ElementRelationship: schema.ElementRelationship(l.word(a.Map.Relation))}
		if a.Map.Element != nil {
			out.Map.ElementType = l.ref(a.Map.Element)
		}
		if len(a.Map.Fields) > 0 {
			out.Map.Fields = make([]schema.StructField, 0, len(a.Map.Fields))
		}
		for i := range a.Map.Fields {
			f := &a.Map.Fields[i]
			d := f.Default
			if n, ok := d.(float64); ok && n == float64(int64(n)) {
				d = int64(n)
			}
			out.Map.Fields = append(out.Map.Fields, schema.StructField{Name: l.word(f.Name), Type: l.ref(&f.Type), Default: d})
		}
	}
	return out
}

func (l *loader) ref(r *shortRef) schema.TypeRef {
	out := schema.TypeRef{Inlined: l.atom(&r.shortAtom), Nullable: r.Nullable}
	if r.Named != "" {
		n := l.word(r.Named)
		out.NamedType = &n
	}
	if r.Relation != "" {
		e := schema.ElementRelationship(l.word(r.Relation))
		out.ElementRelationship = &e
	}
	return out
}
