package control

import "time"

// Load is how busy controllers are.
type Load struct {
	// Waiting is the number of keys that wait to be worked on, Longest how long the
	// one that has been worked on for longest has taken so far.
	Waiting int
	Longest time.Duration
}

// LoadOf sums up what waits in all queues of all.
func LoadOf(all []*Controller) Load {
	var l Load
	for _, c := range all {
		for _, q := range c.queues() {
			s := q.stats()
			l.Waiting += s.Depth
			l.Longest = max(l.Longest, time.Duration(s.Longest*float64(time.Second)))
		}
	}
	return l
}
