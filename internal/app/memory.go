package app

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	lookEvery = time.Second
	// busyFrom is how much is allocated between two looks in a burst, bytes: a few
	// hundred writes a second.
	busyFrom = 24 << 20
	// quietBelow is the most that is allocated between two looks at rest, bytes,
	// and quietLooks how many such in a row end a burst.
	quietBelow, quietLooks = 2 << 20, 5
	// burstFrom is how much must have been allocated for the end of a burst to be
	// worth a collection, bytes.
	burstFrom = 64 << 20
	// reserve is the garbage that is let lie between two collections in a burst,
	// bytes: with a heap that is small beside it, collecting would cost more than
	// serving.
	reserve = 128 << 20
)

// tendMemory lets the heap grow in a burst of work, and returns to the machine
// what it took when that is over. By itself the Go runtime collects a small heap
// all the time under load, and keeps about as much as the live objects take in
// reserve for long after it. With GOGC set nothing is tended.
func tendMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	t := tender{percent: normalPercent, set: func(p int) { debug.SetGCPercent(p) }, free: debug.FreeOSMemory}
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			metrics.Read(samples)
			t.look(samples[0].Value.Uint64(), samples[1].Value.Uint64())
		}
	}
}

// normalPercent is Go's own.
const normalPercent = 100

// tender decides at each look.
type tender struct {
	percent     int // as set
	last, given uint64
	quiet       int
	set         func(percent int)
	free        func()
}

// look takes how much was allocated since the start, and how much was live at the
// last collection.
func (t *tender) look(allocated, live uint64) {
	since := allocated - t.last
	t.last = allocated
	switch {
	case since >= busyFrom:
		t.quiet = 0
		t.change(min(max(normalPercent, int(reserve*100/max(live, 1))), 400))
	case since >= quietBelow:
		t.quiet = 0
	default:
		t.quiet++
		if t.quiet == quietLooks {
			t.change(normalPercent)
			if allocated-t.given >= burstFrom {
				t.given = allocated
				t.free()
			}
		}
	}
}

// change sets another percentage, where it differs by much: each stops the world
// for a moment.
func (t *tender) change(percent int) {
	if percent == t.percent || (percent != normalPercent && percent > t.percent*3/4 && percent < t.percent*4/3) {
		return
	}
	t.percent = percent
	t.set(percent)
}
