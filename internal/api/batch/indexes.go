package batch

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Indexes of completions are written as numbers and intervals, in order:
// "1,3-5,7".

// interval is the first and the last index of a part.
type interval struct{ from, to int32 }

func parseInterval(text string, completions int32) (interval, error) {
	parts := strings.Split(text, "-")
	if len(parts) > 2 {
		return interval{}, fmt.Errorf("the fragment %q violates the requirement that an index interval can have at most two parts separated by '-'", text)
	}
	var n [2]int
	for i, part := range parts {
		v, err := strconv.Atoi(part)
		if err != nil {
			return interval{}, fmt.Errorf("cannot convert string to integer for index: %q", part)
		}
		if v >= int(completions) {
			return interval{}, fmt.Errorf("too large index: %q", part)
		}
		n[i] = v
	}
	if len(parts) == 1 {
		n[1] = n[0]
	} else if n[0] >= n[1] {
		return interval{}, fmt.Errorf("non-increasing order, previous: %d, current: %d", n[0], n[1])
	}
	return interval{int32(n[0]), int32(n[1])}, nil
}

// countIndexes checks a list and returns how many indexes it has.
func countIndexes(list string, completions int32) (int32, error) {
	if list == "" {
		return 0, nil
	}
	var total, last int32
	for i, part := range strings.Split(list, ",") {
		v, err := parseInterval(part, completions)
		if err != nil {
			return 0, err
		}
		if i > 0 && last >= v.from {
			return 0, fmt.Errorf("non-increasing order, previous: %d, current: %d", last, v.from)
		}
		total += v.to - v.from + 1
		last = v.to
	}
	return total, nil
}

// disjoint tells that no index completed and failed. Parts that do not parse are
// passed over: they are reported elsewhere.
func disjoint(completed, failed string, completions int32) error {
	parse := func(list string) []interval {
		var out []interval
		if list == "" {
			return nil
		}
		for _, part := range strings.Split(list, ",") {
			if v, err := parseInterval(part, completions); err == nil {
				out = append(out, v)
			}
		}
		return out
	}
	c, f := parse(completed), parse(failed)
	for len(c) > 0 && len(f) > 0 {
		if c[0].from <= f[0].to && f[0].from <= c[0].to {
			return errors.New("failedIndexes and completedIndexes overlap at index: " + strconv.Itoa(int(max(c[0].from, f[0].from))))
		}
		if c[0].from <= f[0].from {
			c = c[1:]
		} else {
			f = f[1:]
		}
	}
	return nil
}
