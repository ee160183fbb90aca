package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"skiff/internal/host"
)

func dataDir(t *testing.T, format string) host.Instance {
	t.Helper()
	i, err := host.New("x", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(i.Data("etcd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if format != "" {
		if err := os.WriteFile(i.Data(formatFile), []byte(format), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

// The migrations of this skiff lead from one format to the next, to its own.
func TestMigrationsHaveNoGap(t *testing.T) {
	f := theseFormats()
	for n, m := range f.steps {
		if want := f.oldest() + n + 1; m.to != want {
			t.Errorf("migration %d leads to format %d, want %d", n, m.to, want)
		}
	}
	if f.oldest() < 1 {
		t.Errorf("the oldest format is %d", f.oldest())
	}
}

// A skiff that knows format 4 and migrates from 2 on meets directories of all ages.
func TestFormats(t *testing.T) {
	var ran []int
	step := func(to int) migration {
		return migration{to, func(context.Context, host.Instance) error { ran = append(ran, to); return nil }}
	}
	f := formats{newest: 4, steps: []migration{step(3), step(4)}}
	for _, tt := range []struct {
		format string
		refuse string
		ran    []int
	}{
		{"4\n", "", nil},
		{"3\n", "", []int{4}},
		{"2", "", []int{3, 4}},
		{"5\n", "DIR was written by a newer skiff (its data have format 5, this skiff knows formats up to 4); use that skiff, or choose another --data-dir", nil},
		{"1\n", "DIR was written by a skiff too old for this one (its data have format 1, this skiff migrates formats from 2 on); start a release in between on it first", nil},
		{"", "DIR was written by a skiff too old for this one (its data have format 1, this skiff migrates formats from 2 on); start a release in between on it first", nil},
		{"four\n", `DIR/format says "four", which is no format of a data directory; put a copy of the file back, or choose another --data-dir`, nil},
		{"-1\n", `DIR/format says "-1", which is no format of a data directory; put a copy of the file back, or choose another --data-dir`, nil},
		{"\x00\x00", `DIR/format says "\x00\x00", which is no format of a data directory; put a copy of the file back, or choose another --data-dir`, nil},
	} {
		i := dataDir(t, tt.format)
		ran = nil
		err := f.check(i)
		if tt.refuse != "" {
			if want := strings.ReplaceAll(tt.refuse, "DIR", i.DataDir); err == nil || err.Error() != want {
				t.Errorf("format %q: %v, want %s", tt.format, err, want)
			}
			continue
		}
		if err != nil {
			t.Errorf("format %q: %v", tt.format, err)
			continue
		}
		if _, err := f.migrate(t.Context(), i); err != nil {
			t.Errorf("format %q: %v", tt.format, err)
		}
		if now, err := readFormat(i); now != 4 || err != nil || !slices.Equal(ran, tt.ran) {
			t.Errorf("format %q: now %d (%v), ran %v, want %v", tt.format, now, err, ran, tt.ran)
		}
	}
}

// A migration that was cut off is repeated from its beginning; those before it are
// not.
func TestMigrationCutOff(t *testing.T) {
	i := dataDir(t, "1\n")
	cut := errors.New("cut off")
	runs := map[int]int{}
	fail := true
	step := func(to int) migration {
		return migration{to, func(_ context.Context, i host.Instance) error {
			runs[to]++
			if to == 3 && fail {
				return cut
			}
			return os.WriteFile(i.Data(fmt.Sprint("made-", to)), nil, 0o600)
		}}
	}
	f := formats{newest: 4, steps: []migration{step(2), step(3), step(4)}}
	if _, err := f.migrate(t.Context(), i); !errors.Is(err, cut) || !strings.Contains(err.Error(), "to data format 3") {
		t.Fatalf("cut off: %v", err)
	}
	if now, err := readFormat(i); now != 2 || err != nil {
		t.Fatalf("after the cut: format %d, %v", now, err)
	}
	fail = false
	if from, err := f.migrate(t.Context(), i); from != 2 || err != nil {
		t.Fatalf("again: from %d, %v", from, err)
	}
	if now, err := readFormat(i); now != 4 || err != nil || runs[2] != 1 || runs[3] != 2 || runs[4] != 1 {
		t.Errorf("format %d (%v), runs %v", now, err, runs)
	}
}
