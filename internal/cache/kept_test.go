package cache

import (
	"errors"
	"testing"

	"skiff/internal/client"
	"skiff/internal/store/mem"
)

// What was replaced takes no part of the budget, and none of what lists show is
// forgotten for it.
func TestReplacedItemsKeepNothing(t *testing.T) {
	st := mem.New(mem.Config{})
	defer st.Close()
	r := open(t, st, Config{EncodingBytes: 200})
	r.create("a", "stays", "")
	rev := r.create("a", "x", "")
	r.fresh()
	enc := func(client.Object) ([]byte, error) { return make([]byte, 80), nil }
	encode := func(it *Item) {
		t.Helper()
		if b, err := it.Encoded(JSON, enc); err != nil || len(b) != 80 {
			t.Fatal(len(b), err)
		}
	}
	stays := r.pods.Get("a/stays")
	encode(stays)
	for range 300 {
		old := r.pods.Get("a/x")
		encode(old)
		rev = r.update("a", "x", "n", rev)
		r.fresh()
		if old.Kept(JSON) != nil {
			t.Fatal("a replaced item keeps its encoding")
		}
		encode(old)
		if old.Kept(JSON) != nil {
			t.Fatal("a replaced item keeps an encoding made later")
		}
	}
	if stays.Kept(JSON) == nil {
		t.Error("an item that lists show was forgotten for those that none shows")
	}
	b := &r.c.encodings
	if b.used != 80 || len(b.queue) > 200 {
		t.Errorf("%d bytes and %d entries are kept for one encoding of 80", b.used, len(b.queue))
	}
}

func TestFrameIsMadeOnceForAView(t *testing.T) {
	r := start(t)
	rev := r.create("a", "x", "")
	r.fresh()
	w, err := r.pods.Watch(Scope{}, rev-1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	q, err := w.Poll()
	if err != nil || len(q) != 1 {
		t.Fatal(len(q), err)
	}
	made := 0
	frame := func(view string) string {
		b, err := q[0].Frame(Protobuf, view, func() ([]byte, error) { made++; return []byte(view), nil })
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if _, err := q[0].Frame(Protobuf, "one", func() ([]byte, error) { return nil, errors.New("fails") }); err == nil {
		t.Fatal("an error was kept")
	}
	for range 3 {
		if got := frame("one"); got != "one" {
			t.Fatal(got)
		}
	}
	if got := frame("two"); got != "two" {
		t.Fatal(got)
	}
	if got := frame("one"); got != "one" || made != 2 {
		t.Fatalf("%q, made %d times", got, made)
	}
	// Their bytes are bounded.
	big := func() ([]byte, error) { return make([]byte, framesBytes), nil }
	other := &Event{New: q[0].New}
	if _, err := other.Frame(JSON, "one", big); err != nil {
		t.Fatal(err)
	}
	if frame("one"); made != 3 {
		t.Errorf("made %d times: the oldest frame must have been forgotten", made)
	}
}
