package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"
)

// sums remembers the digests of files in build contexts, so that a rebuild reads
// only what changed. A file is the same while inode, size and both times are:
// every write moves the change time, which nobody can set.
type sums struct {
	mu    sync.Mutex
	known map[fileID]string
}

type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// maxSums bounds the memory: some 25 MiB.
const maxSums = 100_000

func newSums() *sums { return &sums{known: map[fileID]string{}} }

// settled is how long ago a change must be for the next one to have another
// time: clocks of file systems tick up to every 10 ms.
const settled = 100 * time.Millisecond

// of is the digest of a regular file. A nil s reads every time.
func (s *sums) of(ctx context.Context, full string, fi fs.FileInfo) (string, error) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if s == nil || !ok {
		return fileSum(ctx, full)
	}
	id := fileID{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	s.mu.Lock()
	sum := s.known[id]
	s.mu.Unlock()
	if sum != "" {
		return sum, nil
	}
	calm := time.Since(time.Unix(st.Ctim.Unix())) > settled
	sum, err := fileSum(ctx, full)
	if err != nil || !calm {
		return sum, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= maxSums {
		clear(s.known)
	}
	s.known[id] = sum
	return sum, nil
}

func fileSum(ctx context.Context, full string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	f, err := os.OpenFile(full, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
