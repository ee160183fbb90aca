package apiserver

import (
	"reflect"
	"testing"

	"sigs.k8s.io/yaml"
)

// What is read as JSON means what YAML says; the rest is left to YAML.
func TestDecodeAlike(t *testing.T) {
	for _, doc := range []string{
		`{}`, `{"a":1,"b":[1.5,true,null,"x: y # z"],"c":{"d":"yes","e":1e3,"f":-7,"g":12345678901234567890}}`,
		"{\n \"a\": \"\",\n \"b\": [ ]\n}", `{"~":"null","1":"0x10","a b":"- c"}`,
	} {
		got, clean := decodeAlike([]byte(doc))
		want := map[string]any{}
		if err := yaml.UnmarshalStrict([]byte(doc), &want); err != nil {
			t.Fatal(err)
		}
		if !clean || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v (%v), want %v", doc, got, clean, want)
		}
	}
	for _, doc := range []string{``, `[]`, `a: b`, `{a: b}`, `{"a":1,"a":2}`, `{"a":"\u00e4"}`, "{\"a\":\t1}", `{"a":"ä"}`, `{"<<":{}}`, `{"a":1}}`} {
		if got, _ := decodeAlike([]byte(doc)); got != nil {
			t.Errorf("%s: taken as %v", doc, got)
		}
	}
}
