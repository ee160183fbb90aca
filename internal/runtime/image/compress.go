package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

var magics = []struct {
	name  string
	magic []byte
}{
	{"gzip", []byte{0x1f, 0x8b}},
	{"zstd", []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{"bzip2", []byte("BZh")},
	{"xz", []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
}

// Compression names the compression that content starting with head has: gzip,
// zstd, bzip2, xz, or "" for none that is known.
func Compression(head []byte) string {
	for _, m := range magics {
		if bytes.HasPrefix(head, m.magic) {
			return m.name
		}
	}
	return ""
}

// Decompress yields what r holds, decompressed where it is gzip, zstd or bzip2.
// Closing the result does not close r.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 128<<10)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch c := Compression(head); c {
	case "gzip":
		return gzip.NewReader(br)
	case "zstd":
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case "bzip2":
		return io.NopCloser(bzip2.NewReader(br)), nil
	case "xz":
		return nil, fmt.Errorf("%w: xz compression is not supported; decompress first", ErrFormat)
	}
	return io.NopCloser(br), nil
}

// room is how much may be unpacked: what the disk has, save a twentieth of it that
// everything else on it needs. What a compressed layer unpacks to is known only
// when it is unpacked; a bomb is stopped there.
func (s *Store) room() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return math.MaxInt64 - 1
	}
	free := int64(st.Bavail) - int64(st.Blocks)/20
	return max(free, 0) * st.Bsize
}

// verifyLayer checks that the stored blob is the layer with that diff ID and
// returns its uncompressed size, which must be no more than room.
func (s *Store) verifyLayer(ctx context.Context, blob, diffID v1.Hash, room int64) (int64, error) {
	f, err := s.OpenBlob(blob)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if blob == diffID {
		fi, err := f.Stat()
		if err != nil {
			return 0, err
		}
		return fi.Size(), nil
	}
	r, err := Decompress(contextReader{ctx, f})
	if err != nil {
		return 0, fmt.Errorf("layer %s: %w", blob, err)
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, room+1))
	if err != nil {
		if ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return 0, fmt.Errorf("layer %s: %w", blob, err)
	}
	if n > room {
		return 0, fmt.Errorf("layer %s: %w: it unpacks to more than the %d bytes that there is room for", blob, ErrNoRoom, room)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != diffID.Hex {
		return 0, fmt.Errorf("layer %s: %w: its content has digest sha256:%s, the image config says %s", blob, ErrCorrupt, got, diffID)
	}
	return n, nil
}

// OpenLayer opens layer i of img as an uncompressed tar.
func (s *Store) OpenLayer(img *Image, i int) (io.ReadCloser, error) {
	f, err := s.OpenBlob(img.Layers[i].Digest)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", img.Layers[i].Digest, err)
	}
	r, err := Decompress(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("layer %s: %w", img.Layers[i].Digest, err)
	}
	return &layerReader{r, f}, nil
}

type layerReader struct {
	io.ReadCloser
	file io.Closer
}

func (l *layerReader) Close() error {
	l.ReadCloser.Close()
	return l.file.Close()
}
