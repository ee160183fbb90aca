// Package programs carries skiff's two helper programs, skiff-pod and
// skiff-start, compressed inside skiff, and unpacks them under their content
// hash: what an older skiff started goes on running from its own copy.
//
// `go run ./internal/runtime/programs/build` builds them and puts them where
// this package embeds them.
package programs

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

//go:embed all:bin
var embedded embed.FS

// Embedded is the file system that the build filled: NAME.zst for each program.
func Embedded() fs.FS {
	sub, err := fs.Sub(embedded, "bin")
	if err != nil {
		return embedded // not reached: the directory is embedded
	}
	return sub
}

// Set are the unpacked programs' paths.
type Set struct {
	Pod, Start string
}

// Unpack writes the programs of src below dir, unless they are there, and
// returns their paths.
func Unpack(src fs.FS, dir string) (Set, error) {
	pod, err := unpack(src, dir, "skiff-pod")
	if err != nil {
		return Set{}, err
	}
	start, err := unpack(src, dir, "skiff-start")
	return Set{Pod: pod, Start: start}, err
}

// UnpackOne writes one program, unless it is there, and returns its path.
func UnpackOne(src fs.FS, dir, name string) (string, error) { return unpack(src, dir, name) }

func unpack(src fs.FS, dir, name string) (string, error) {
	packed, err := fs.ReadFile(src, name+".zst")
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("this skiff was built without its program %s: build it with make", name)
	}
	if err != nil {
		return "", fmt.Errorf("program %s: %w", name, err)
	}
	sum := sha256.Sum256(packed)
	path := filepath.Join(dir, hex.EncodeToString(sum[:8]), name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := write(path, packed); err != nil {
		return "", fmt.Errorf("unpack %s: %w", name, err)
	}
	return path, nil
}

// write places a packed program.
func write(path string, packed []byte) error {
	z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	return Place(path, z)
}

// Place leaves at path either the whole program that from has or what was there, also
// after a power loss; that may be running.
func Place(path string, from io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".unpack-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Chmod(0o755)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
