package diff

import (
	"os"
	"path/filepath"
	"testing"
)

func TestKnownByName(t *testing.T) {
	file := filepath.Join(t.TempDir(), "known.yaml")
	text := "- {case: c/EACH, difference: 'body\\[EACH\\]: .*', each: [a.b, c], reason: r}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := readKnown(file)
	if err != nil || len(list) != 2 {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	at := func(name string) []difference {
		return []difference{{path: "body[" + name + "]", upstream: "1", skiff: "2"}}
	}
	if left := explain(list, "c/a.b", at("a.b")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	// A name is no pattern, and explains itself only.
	for _, c := range [][2]string{{"c/a.b", "c"}, {"c/axb", "axb"}} {
		if left := explain(list, c[0], at(c[1])); len(left) != 1 {
			t.Errorf("%v is known", c)
		}
	}
	if list[0].met != 1 || list[1].met != 0 {
		t.Errorf("met %d and %d times", list[0].met, list[1].met)
	}
}

func TestKnownIsReadable(t *testing.T) {
	if _, err := readKnown("known.yaml"); err != nil {
		t.Error(err)
	}
}
