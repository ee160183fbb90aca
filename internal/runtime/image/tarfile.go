package image

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

func (d layoutDir) open(name string) (io.ReadCloser, error) { return d.root.Open(name) }

// plainFile returns f as a ReaderAt where it is a regular file, at its start,
// and not compressed.
func plainFile(f *os.File) (io.ReaderAt, int64) {
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return nil, 0
	}
	if pos, err := f.Seek(0, io.SeekCurrent); err != nil || pos != 0 {
		return nil, 0
	}
	var head [6]byte
	n, _ := f.ReadAt(head[:], 0)
	if Compression(head[:n]) != "" {
		return nil, 0
	}
	return f, fi.Size()
}

// tarFiles are the files of a tar that can be read at any place.
type tarFiles struct {
	at      io.ReaderAt
	regular map[string][2]int64 // offset, size
	links   map[string]string
}

// scan reads the headers of a tar.
func scan(ctx context.Context, at io.ReaderAt, size int64) (*tarFiles, error) {
	sr := io.NewSectionReader(at, 0, size)
	tr := tar.NewReader(sr)
	t := &tarFiles{at: at, regular: map[string][2]int64{}, links: map[string]string{}}
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if err == io.EOF && n > 0 {
			return t, nil
		}
		if err == io.EOF {
			return nil, fmt.Errorf("import: %w: the archive is empty", ErrFormat)
		}
		if err != nil && n == 0 {
			return nil, fmt.Errorf("import: %w: not a tar, gzip, zstd or bzip2 file", ErrFormat)
		}
		if err != nil {
			return nil, fmt.Errorf("import: %w: tar entry %d: %w", ErrCorrupt, n+1, err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		switch h.Typeflag {
		case tar.TypeReg:
			offset, err := sr.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			if offset+h.Size > size {
				return nil, fmt.Errorf("import: %w: the archive ends within %s", ErrCorrupt, h.Name)
			}
			t.regular[name] = [2]int64{offset, h.Size}
		case tar.TypeSymlink:
			t.links[name] = strings.TrimPrefix(path.Join("/", path.Dir(name), h.Linkname), "/")
		case tar.TypeLink:
			t.links[name] = strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		}
	}
}

// kind is "oci", "docker", or "" for anything else.
func (t *tarFiles) kind() string {
	_, index := t.regular["index.json"]
	_, layout := t.regular["oci-layout"]
	_, manifest := t.regular["manifest.json"]
	switch {
	case index && layout:
		return "oci"
	case manifest:
		return "docker"
	}
	return ""
}

func (t *tarFiles) open(name string) (io.ReadCloser, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for range 8 { // links to links
		if r, ok := t.regular[name]; ok {
			return io.NopCloser(io.NewSectionReader(t.at, r[0], r[1])), nil
		}
		target, ok := t.links[name]
		if !ok {
			break
		}
		name = target
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}
