package ns

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

// mostDumps bounds how often a dump is taken again, dumpPause what lies between two:
// a host on which links come and go all the time interrupts a few in a row.
const (
	mostDumps = 200
	dumpPause = 5 * time.Millisecond
)

// Dump calls list, which reads a list from the kernel, until it got one that nothing
// was added to or taken from meanwhile (NLM_F_DUMP_INTR, rtnetlink(7)): in another
// entries may be missing.
func Dump[T any](list func() (T, error)) (T, error) {
	for n := 1; ; n++ {
		all, err := list()
		switch {
		case !errors.Is(err, netlink.ErrDumpInterrupted):
			return all, err
		case n == mostDumps:
			return all, fmt.Errorf("read %d times: %w", n, err)
		}
		time.Sleep(dumpPause)
	}
}
