package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"skiff/internal/store"
	"skiff/internal/store/mem"
	"skiff/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tagged stores a value behind its key's name, or plainly: as "plain:" values are
// found before encryption is switched on.
type tagged struct{}

func (tagged) ToStore(_ context.Context, key string, v []byte) ([]byte, error) {
	if string(v) == "refused" {
		return nil, errors.New("refused")
	}
	return fmt.Appendf(nil, "k:%s:%s", key, v), nil
}

func (tagged) FromStore(_ context.Context, key string, b []byte) ([]byte, bool, error) {
	if v, ok := bytes.CutPrefix(b, []byte("k:"+key+":")); ok {
		return v, false, nil
	}
	if v, ok := bytes.CutPrefix(b, []byte("plain:")); ok {
		return v, true, nil
	}
	return nil, false, errors.New("stored for another key")
}

func TestTransformedContract(t *testing.T) {
	storetest.Run(t, storetest.Harness{New: func(t *testing.T) store.Store {
		s := store.Transformed(mem.New(mem.Config{}), tagged{})
		t.Cleanup(func() { _ = s.Close() })
		return s
	}})
}

func TestTransformed(t *testing.T) {
	inner := mem.New(mem.Config{})
	s := store.Transformed(inner, tagged{})
	defer s.Close()
	ctx := t.Context()
	if _, err := s.Create(ctx, "/a", []byte("v"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	kv, err := inner.Get(ctx, "/a", 0)
	if err != nil || string(kv.Value) != "k:/a:v" {
		t.Fatalf("stored is %q, %v", kv.Value, err)
	}
	// A value moved to another key does not decode, by any way to it.
	moved, err := inner.Create(ctx, "/b", kv.Value, store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var te *store.TransformError
	if _, err := s.Get(ctx, "/b", 0); !errors.As(err, &te) || te.Key != "/b" {
		t.Errorf("get: %v", err)
	}
	if _, err := s.List(ctx, "/", store.ListOptions{}); !errors.As(err, &te) {
		t.Errorf("list: %v", err)
	}
	if _, err := s.Create(ctx, "/b", []byte("w"), store.WriteOptions{}); !errors.As(err, &te) {
		t.Errorf("create: %v", err)
	}
	w, err := s.Watch(ctx, "/", 0)
	if err != nil {
		t.Fatal(err)
	}
	if b := <-w.Batches(); len(b.Events) != 1 || string(b.Events[0].KV.Value) != "v" {
		t.Errorf("watch: %+v", b)
	}
	if _, ok := <-w.Batches(); ok || !errors.As(w.Err(), &te) {
		t.Errorf("watch: open=%t, %v", ok, w.Err())
	}
	// Counts and deletions need no value.
	if p, err := s.List(ctx, "/", store.ListOptions{CountOnly: true}); err != nil || p.Count != 2 {
		t.Errorf("count: %+v, %v", p, err)
	}
	if _, err := s.Delete(ctx, "/b", moved); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := s.Create(ctx, "/c", []byte("refused"), store.WriteOptions{}); err == nil {
		t.Error("a value that cannot be encoded is taken")
	}
	res, err := s.Batch(ctx, []store.Op{{Key: "/c", Value: []byte("refused")}, {Key: "/d", Value: []byte("v")}, {Key: "/a", Value: []byte("x")}})
	if err != nil {
		t.Fatal(err)
	}
	var exists *store.ExistsError
	if res[0].Err == nil || res[1].Err != nil || !errors.As(res[2].Err, &exists) || string(exists.Current.Value) != "v" {
		t.Errorf("batch: %+v", res)
	}
}

func TestTransformedStale(t *testing.T) {
	inner := mem.New(mem.Config{})
	s := store.Transformed(inner, tagged{})
	defer s.Close()
	for key, v := range map[string]string{"/a": "k:/a:1", "/b": "plain:2", "/c": "plain:3"} {
		if _, err := inner.Create(t.Context(), key, []byte(v), store.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var stale store.Stale
	p, err := s.List(store.WithStale(t.Context(), &stale), "/", store.ListOptions{})
	if err != nil || len(p.KVs) != 3 || string(p.KVs[1].Value) != "2" {
		t.Fatalf("list: %+v, %v", p, err)
	}
	keys := stale.Keys()
	slices.Sort(keys)
	if !slices.Equal(keys, []string{"/b", "/c"}) || stale.Has("/a") || !stale.Has("/b") {
		t.Fatalf("stale: %q", keys)
	}
}
