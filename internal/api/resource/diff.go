package resource

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Diff shows what an update changed: the unified difference of both values as
// Shown, indented. It is the text upstream writes into messages that refuse a
// change.
func Diff(old, new any) string {
	a, b := lines(old), lines(new)
	var out strings.Builder
	for _, group := range inContext(edits(a, b)) {
		first, last := group[0], group[len(group)-1]
		fmt.Fprintf(&out, "@@ -%s +%s @@\n", lineRange(first.a, last.aEnd), lineRange(first.b, last.bEnd))
		for _, e := range group {
			old, new := "-", "+"
			if e.same {
				old, new = " ", ""
			}
			for _, l := range a[e.a:e.aEnd] {
				out.WriteString(old + l + "\n")
			}
			for _, l := range b[e.b:e.bEnd] {
				if new != "" {
					out.WriteString(new + l + "\n")
				}
			}
		}
	}
	return out.String()
}

func lines(v any) []string {
	raw, err := json.Marshal(Shown(v))
	if err != nil {
		return []string{err.Error()}
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", " "); err != nil {
		return []string{err.Error()}
	}
	return strings.Split(b.String(), "\n")
}

func lineRange(from, to int) string {
	switch n := to - from; n {
	case 1:
		return fmt.Sprint(from + 1)
	case 0:
		return fmt.Sprintf("%d,0", from)
	default:
		return fmt.Sprintf("%d,%d", from+1, n)
	}
}

// edit says that lines [a,aEnd) became lines [b,bEnd), or stayed the same.
type edit struct {
	same             bool
	a, aEnd, b, bEnd int
}

// edits finds the longest run of lines that both sides have, then looks left and
// right of it for the next. In a long text, lines that occur often start no run.
func edits(a, b []string) []edit {
	const long, often = 200, 100
	where := map[string][]int{}
	for i, l := range b {
		where[l] = append(where[l], i)
	}
	if len(b) >= long {
		for l, at := range where {
			if len(at) > len(b)/often+1 {
				delete(where, l)
			}
		}
	}
	type block struct{ a, b, n int }
	var blocks []block
	var search func(a0, a1, b0, b1 int)
	search = func(a0, a1, b0, b1 int) {
		best := block{a0, b0, 0}
		ending := map[int]int{} // length of the run that ends at a line of b
		for i := a0; i < a1; i++ {
			next := map[int]int{}
			for _, j := range where[a[i]] {
				if j < b0 || j >= b1 {
					continue
				}
				n := ending[j-1] + 1
				next[j] = n
				if n > best.n {
					best = block{i - n + 1, j - n + 1, n}
				}
			}
			ending = next
		}
		for best.a > a0 && best.b > b0 && a[best.a-1] == b[best.b-1] {
			best.a, best.b, best.n = best.a-1, best.b-1, best.n+1
		}
		for best.a+best.n < a1 && best.b+best.n < b1 && a[best.a+best.n] == b[best.b+best.n] {
			best.n++
		}
		if best.n == 0 {
			return
		}
		if a0 < best.a && b0 < best.b {
			search(a0, best.a, b0, best.b)
		}
		blocks = append(blocks, best)
		if best.a+best.n < a1 && best.b+best.n < b1 {
			search(best.a+best.n, a1, best.b+best.n, b1)
		}
	}
	search(0, len(a), 0, len(b))

	var out []edit
	ai, bi := 0, 0
	put := func(same bool, aEnd, bEnd int) {
		if ai < aEnd || bi < bEnd {
			if n := len(out); n > 0 && same && out[n-1].same {
				out[n-1].aEnd, out[n-1].bEnd = aEnd, bEnd
			} else {
				out = append(out, edit{same, ai, aEnd, bi, bEnd})
			}
		}
		ai, bi = aEnd, bEnd
	}
	for _, m := range blocks {
		put(false, m.a, m.b)
		put(true, m.a+m.n, m.b+m.n)
	}
	put(false, len(a), len(b))
	return out
}

// inContext groups edits with three unchanged lines around them.
func inContext(list []edit) [][]edit {
	const context = 3
	if !slices.ContainsFunc(list, func(e edit) bool { return !e.same }) {
		return nil
	}
	if e := &list[0]; e.same {
		e.a, e.b = max(e.a, e.aEnd-context), max(e.b, e.bEnd-context)
	}
	if e := &list[len(list)-1]; e.same {
		e.aEnd, e.bEnd = min(e.aEnd, e.a+context), min(e.bEnd, e.b+context)
	}
	var out [][]edit
	var group []edit
	for _, e := range list {
		if e.same && e.aEnd-e.a > 2*context {
			out = append(out, append(group, edit{true, e.a, e.a + context, e.b, e.b + context}))
			group = nil
			e.a, e.b = e.aEnd-context, e.bEnd-context
		}
		group = append(group, e)
	}
	return append(out, group)
}
