package etcd

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"skiff/internal/store"
)

// space refuses growing writes before etcd meets a full disk, which it does not
// survive: it keeps MinFree for the next log segments and for the database to
// take deletions and compactions, which are what makes room again.
type space struct {
	dir     string
	quota   int64
	minFree uint64
	inUse   func() int64 // bytes of the database in use
	// checked is when the disk was last asked, in nanoseconds after start, and full
	// what it said; since counts the bytes admitted after that.
	start   time.Time
	checked atomic.Int64
	since   atomic.Int64
	full    atomic.Bool
}

// The disk is asked again after this time, and after a part of MinFree was
// written: a fast disk fills quickly.
const (
	diskCheckEvery = 500 * time.Millisecond
	diskCheckPart  = 16
)

// admit returns store.ErrNoSpace where n more bytes do not fit.
//
// The quota is compared with the bytes in use and not with the file's size, so
// that deletions and a compaction suffice to end the state: free pages of the
// file are used again.
func (s *space) admit(n int) error {
	if s.inUse()+int64(n) > s.quota {
		return store.ErrNoSpace
	}
	now := int64(time.Since(s.start)) + 1
	written := s.since.Add(int64(n))
	last := s.checked.Load()
	due := last == 0 || now-last > int64(diskCheckEvery) || uint64(written) > s.minFree/diskCheckPart
	if due && s.checked.CompareAndSwap(last, now) {
		s.since.Store(0)
		var st unix.Statfs_t
		if err := unix.Statfs(s.dir, &st); err == nil {
			s.full.Store(st.Bavail*uint64(st.Bsize) < s.minFree)
		}
	}
	if s.full.Load() {
		return store.ErrNoSpace
	}
	return nil
}
