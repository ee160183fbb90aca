package app

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
)

func TestTendMemory(t *testing.T) {
	var did []int // percentages, 0 for memory given back
	tend := tender{percent: normalPercent, set: func(p int) { did = append(did, p) }, free: func() { did = append(did, 0) }}
	var allocated uint64
	looks := func(n int, bytes, live uint64, want ...int) {
		t.Helper()
		did = nil
		for range n {
			allocated += bytes
			tend.look(allocated, live)
		}
		if !slices.Equal(did, want) {
			t.Errorf("%d looks of %d MiB with %d live: did %v, want %v", n, bytes>>20, live>>20, did, want)
		}
	}
	// A start, and rest.
	looks(1, 20<<20, 20<<20)
	looks(20, 1<<20, 20<<20)
	// A burst: a small heap may grow; one that is large collects as ever.
	looks(5, 100<<20, 20<<20, 400)
	looks(5, 100<<20, 32<<20)
	looks(5, 100<<20, 64<<20, 200)
	looks(5, 100<<20, 300<<20, normalPercent)
	// A pause within it changes nothing; its end gives memory back, once.
	looks(3, 0, 30<<20)
	looks(1, 100<<20, 30<<20, 400)
	looks(4, 1<<20, 30<<20)
	looks(1, 1<<20, 30<<20, normalPercent, 0)
	looks(30, 1<<20, 30<<20)
	looks(1, 10<<20, 30<<20)
	looks(20, 0, 30<<20)
}

// Where GOGC is set nothing is tended, for as long as the program runs.
func TestMemoryUntended(t *testing.T) {
	t.Setenv("GOGC", "200")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := false
		go func() { _ = tendMemory(ctx); ended = true }()
		synctest.Wait()
		if ended {
			t.Error("it ended before the program")
		}
		cancel()
		synctest.Wait()
		if !ended {
			t.Error("it does not end with the program")
		}
	})
}
