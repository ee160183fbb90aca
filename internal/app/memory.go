package app

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// quietEvery is how often it is looked whether a burst is over.
	quietEvery = 5 * time.Second
	// quietBelow is the most that is allocated in that time at rest, bytes.
	quietBelow = 8 << 20
	// burstFrom is how much was allocated since the memory was last given back for
	// it to be worth the collection, bytes.
	burstFrom = 64 << 20
)

// giveBack returns memory to the machine that a burst of work needed, once it is
// over. By itself the Go runtime would keep about as much as the live objects take
// in reserve for the next one, until something is allocated again.
func giveBack(ctx context.Context) error {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	allocated := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	tick := time.NewTicker(quietEvery)
	defer tick.Stop()
	before, given := allocated(), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := allocated()
		if now-before < quietBelow && now-given >= burstFrom {
			debug.FreeOSMemory()
			now = allocated()
			given = now
		}
		before = now
	}
}
