package framework

import (
	"fmt"
	"slices"
	"strings"
)

// Reasons counts the nodes by the reason for which they were refused.
type Reasons map[string]int

// Add counts one node.
func (r Reasons) Add(reason string) { r[reason]++ }

// Message is the sentence that events and conditions carry: sorted as text, as
// upstream sorts it.
func (r Reasons) Message(nodes int) string {
	head := fmt.Sprintf("0/%d nodes are available:", nodes)
	if len(r) == 0 {
		return head
	}
	parts := make([]string, 0, len(r))
	for reason, n := range r {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(parts)
	return head + " " + strings.Join(parts, ", ") + "."
}
