package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"skiff/internal/host"
)

// The format of a data directory is a number in its file formatFile. It grows when
// a skiff begins to write there what an older one would misread, and only then:
// skiffs of the same format take turns on one directory as they like.
//
//	1  etcd, pki, images, kubelet, bin, config.yaml (no file formatFile: 1)
const (
	dataFormat = 1
	formatFile = "format"
)

// migration brings a data directory of the format before to format to. It may be
// cut off at any point and is repeated then from its beginning: the format is
// written after it. No process uses the directory meanwhile.
type migration struct {
	to  int
	run func(ctx context.Context, i host.Instance) error
}

// migrations are those that this skiff knows, in their order, without a gap; the
// last leads to dataFormat.
func migrations() []migration { return nil }

// formats are what a skiff makes of data directories.
type formats struct {
	newest int
	steps  []migration
}

func theseFormats() formats { return formats{dataFormat, migrations()} }

// oldest is the oldest format that can be migrated.
func (f formats) oldest() int { return f.newest - len(f.steps) }

// readFormat returns the format of i's data directory; 1 where it does not say.
func readFormat(i host.Instance) (int, error) {
	b, err := os.ReadFile(i.Data(formatFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("format of the data directory: %w", err)
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || n < 1 {
		return 0, &StartError{
			fmt.Sprintf("%s says %.20q, which is no format of a data directory", i.Data(formatFile), bytes.TrimSpace(b)),
			"put a copy of the file back, or choose another --data-dir",
		}
	}
	return n, nil
}

// check refuses a data directory that this skiff can neither use nor migrate. It
// changes nothing.
func (f formats) check(i host.Instance) error {
	have, err := readFormat(i)
	switch {
	case err != nil:
		return err
	case have > f.newest:
		return &StartError{
			fmt.Sprintf("%s was written by a newer skiff (its data have format %d, this skiff knows formats up to %d)", i.DataDir, have, f.newest),
			"use that skiff, or choose another --data-dir",
		}
	case have < f.oldest():
		return &StartError{
			fmt.Sprintf("%s was written by a skiff too old for this one (its data have format %d, this skiff migrates formats from %d on)", i.DataDir, have, f.oldest()),
			"start a release in between on it first",
		}
	}
	return nil
}

// migrate brings i's data directory, which check has passed, to the newest format,
// and returns the one that it had.
func (f formats) migrate(ctx context.Context, i host.Instance) (from int, err error) {
	if from, err = readFormat(i); err != nil {
		return 0, err
	}
	for _, m := range f.steps {
		if m.to <= from {
			continue
		}
		if err := m.run(ctx, i); err != nil {
			return from, fmt.Errorf("migrate %s to data format %d: %w", i.DataDir, m.to, err)
		}
		if err := writeFormat(i, m.to); err != nil {
			return from, err
		}
	}
	return from, nil
}

// writeFormat leaves either format or the one before, also after a power loss.
func writeFormat(i host.Instance, format int) error {
	path := i.Data(formatFile)
	f, err := os.CreateTemp(filepath.Dir(path), "."+formatFile+"-*")
	if err != nil {
		return fmt.Errorf("format of the data directory: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = fmt.Fprintln(f, format)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("format of the data directory: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
