package sim

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

var (
	oneSeed = flag.Int64("seed", -1, "simulate this seed alone")
	steps   = flag.Int("steps", 60_000, "steps in all seeds together")
	verbose = flag.Bool("logs", false, "print the logs of all parts")
)

var errBroken = errors.New("injected: the watch broke")

func TestMain(m *testing.M) {
	flag.Parse()
	// One processor: what runs at the same instant runs in nearly the same order.
	runtime.GOMAXPROCS(1)
	goleak.VerifyTestMain(m)
	os.Exit(0)
}

// TestSimulation simulates one seed after the other until there were enough steps.
func TestSimulation(t *testing.T) {
	total, seed := 0, uint64(0)
	if *oneSeed >= 0 {
		seed = uint64(*oneSeed)
	}
	begin := time.Now()
	for ; total < *steps && !t.Failed(); seed++ {
		most := min(*steps-total, 20_000)
		if *oneSeed >= 0 {
			most = *steps
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { total += simulate(t, seed, most) })
		})
		if *oneSeed >= 0 {
			break
		}
	}
	t.Logf("%d steps in %v", total, time.Since(begin).Round(time.Second))
}

// simulate does rounds of operations and faults, each ended by calm, until there
// were enough steps, and returns their number.
func simulate(t *testing.T, seed uint64, most int) int {
	w := newWorld(t, seed)
	defer w.stop()
	w.begin()
	w.populate()
	for {
		w.faults.Set(w.rates())
		for range 60 + w.rng.IntN(120) {
			w.operation()
			d := time.Duration(w.rng.IntN(3000)) * time.Millisecond
			if w.rng.IntN(30) == 0 {
				d = time.Duration(w.rng.IntN(120)) * time.Second
			}
			if !w.sleep(d) {
				break
			}
		}
		w.calm()
		w.settle()
		if n, _, _ := w.hist.counts(); n >= most || w.ctx.Err() != nil {
			break
		}
	}
	w.quiet()
	n, beats, _ := w.hist.counts()
	t.Logf("seed %d: %d steps, %d leases and events, %d operations, %v of simulated time; checks %v; faults %v", seed, n, beats, w.ops, time.Since(bubbleStart).Round(time.Minute), w.inv.checked, w.faults.Done())
	return n
}

// bubbleStart is when time begins in a bubble.
var bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
