package ns

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// A list that changed while it was read is read again, other errors are not tried
// again, and there is an end.
func TestDump(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name  string
		fails []error // of the first calls
		forever,
		want error
		calls int
	}{
		{name: "whole", calls: 1},
		{name: "interrupted", fails: []error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted}, calls: 3},
		{name: "broken", fails: []error{broken}, want: broken, calls: 1},
		{name: "interrupted, then broken", fails: []error{netlink.ErrDumpInterrupted, broken}, want: broken, calls: 2},
		{name: "for ever", forever: netlink.ErrDumpInterrupted, want: netlink.ErrDumpInterrupted, calls: mostDumps},
	} {
		calls := 0
		got, err := Dump(func() ([]int, error) {
			calls++
			if calls <= len(c.fails) {
				return []int{1}, c.fails[calls-1]
			}
			return []int{1, 2}, c.forever
		})
		if !errors.Is(err, c.want) || calls != c.calls || err == nil && !slices.Equal(got, []int{1, 2}) {
			t.Errorf("%s: %v, %v after %d calls", c.name, got, err, calls)
		}
	}
}
