package host

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// Kind is a kind of thing on the host.
type Kind string

// Kinds of journal entries, and what undoing each means.
const (
	KindDir      Kind = "dir"      // remove the tree
	KindFile     Kind = "file"     // remove the file
	KindCgroup   Kind = "cgroup"   // kill what is in it, remove it in every hierarchy
	KindTable    Kind = "nftables" // delete the table ("inet NAME", "ip NAME")
	KindLinks    Kind = "links"    // delete links whose name starts so
	KindLink     Kind = "link"     // delete the link
	KindSysctl   Kind = "sysctl"   // write Prior back (unless someone else changed it since)
	KindMounts   Kind = "mounts"   // unmount everything below, deepest first
	KindRule     Kind = "rule"     // delete the policy routing rule of this priority
	KindRoutes   Kind = "routes"   // delete routes of this routing protocol number
	KindPodProcs Kind = "pods"     // end pod processes whose state is below this directory
)

// Entry is one thing that was put on the host.
type Entry struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	// Prior is the value before a change (sysctl), Value the one written.
	Prior string `json:"prior,omitempty"`
	Value string `json:"value,omitempty"`
}

// Journal is the durable list of what an instance put on the host. An entry is
// on disk before Record returns, so that reset undoes it even after a crash
// between the two.
type Journal struct {
	mu      sync.Mutex
	path    string
	entries []Entry
	seen    map[Entry]bool
}

// OpenJournal reads the journal at path, or starts one. A torn last line (power
// loss) is dropped.
func OpenJournal(path string) (*Journal, error) {
	j := &Journal{path: path, seen: map[Entry]bool{}}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		var e Entry
		if json.Unmarshal(s.Bytes(), &e) != nil {
			continue
		}
		j.add(e)
	}
	return j, s.Err()
}

func (j *Journal) add(e Entry) {
	k := Entry{Kind: e.Kind, Name: e.Name}
	if !j.seen[k] {
		j.seen[k] = true
		j.entries = append(j.entries, e)
	}
}

// Record notes an entry. A second entry of the same kind and name changes
// nothing: the first Prior is the one to go back to.
func (j *Journal) Record(e Entry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.seen[Entry{Kind: e.Kind, Name: e.Name}] {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(j.path), 0o700); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	f, err := os.OpenFile(j.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer f.Close()
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.add(e)
	return nil
}

// Entries returns the entries, newest first: the order in which to undo them.
func (j *Journal) Entries() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]Entry, 0, len(j.entries))
	for i := len(j.entries) - 1; i >= 0; i-- {
		out = append(out, j.entries[i])
	}
	return out
}
