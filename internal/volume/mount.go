package volume

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// isMountPoint tells whether something is mounted on dir.
func isMountPoint(dir string) (bool, error) {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	all, err := mounts()
	if err != nil {
		return false, err
	}
	for _, m := range all {
		if m == real {
			return true, nil
		}
	}
	return false, nil
}

// mounts lists the mount points of this process's namespace.
func mounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if fields := strings.Fields(sc.Text()); len(fields) > 4 {
			out = append(out, unescape(fields[4]))
		}
	}
	return out, sc.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func mountTmpfs(dir string, flags uintptr, options string) error {
	return unix.Mount("tmpfs", dir, "tmpfs", flags, options)
}

// unmountBelow unmounts all that is mounted on dir and below it, the deepest
// first. It fails where something is left.
func unmountBelow(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		found, err := mountsBelow(real)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return nil
		}
		if try == 10 {
			return fmt.Errorf("unmount %s: still mounted", found[0])
		}
		sort.Slice(found, func(i, j int) bool { return len(found[i]) > len(found[j]) })
		for _, m := range found {
			if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("unmount %s: %w", m, err)
			}
		}
	}
}

// mountsBelow lists what is mounted on dir, which has no symbolic links in it, and
// below it.
func mountsBelow(dir string) ([]string, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range all {
		if m == dir || strings.HasPrefix(m, dir+"/") {
			found = append(found, m)
		}
	}
	return found, nil
}
