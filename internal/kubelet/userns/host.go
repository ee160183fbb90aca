package userns

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// kubeletUser is whose subordinate IDs are for pods.
const kubeletUser = "kubelet"

// HostIDs are the IDs that the host's administrator set aside for pods: those of the
// user kubelet in subuid(5) and subgid(5), both files below etc. They are one range, and
// the same for users and groups. Without such a user, or such IDs of it, first and length
// are 0. Where the host asks others for them (getsubids), these are not asked.
func HostIDs(etc string) (first, length uint32, err error) {
	id := ""
	if err := lines(filepath.Join(etc, "passwd"), func(f []string) error {
		if len(f) > 2 && f[0] == kubeletUser {
			id = f[2]
		}
		return nil
	}); err != nil || id == "" {
		return 0, 0, err
	}
	uids, err := subordinate(filepath.Join(etc, "subuid"), id)
	if err != nil {
		return 0, 0, err
	}
	gids, err := subordinate(filepath.Join(etc, "subgid"), id)
	switch {
	case err != nil:
		return 0, 0, err
	case len(uids)+len(gids) == 0:
		return 0, 0, nil
	case len(uids) > 1:
		return 0, 0, fmt.Errorf("subordinate IDs of user %q: there must be one range of them, not %d", kubeletUser, len(uids))
	case len(gids) != 1 || len(uids) != 1 || uids[0] != gids[0]:
		return 0, 0, fmt.Errorf("mismatched subuids and subgids for user %q", kubeletUser)
	}
	return uids[0][0], uids[0][1], nil
}

// subordinate are the ranges of the user, who stands there by name or number.
func subordinate(file, id string) (out [][2]uint32, err error) {
	err = lines(file, func(f []string) error {
		if f[0] != kubeletUser && f[0] != id {
			return nil
		}
		if len(f) != 3 {
			return fmt.Errorf("invalid line %q", strings.Join(f, ":"))
		}
		var r [2]uint32
		for i := range r {
			n, err := strconv.ParseUint(f[i+1], 10, 32)
			if err != nil {
				return fmt.Errorf("error parsing line %q: %w", strings.Join(f, ":"), err)
			}
			r[i] = uint32(n)
		}
		out = append(out, r)
		return nil
	})
	return out, err
}

// lines hands over the fields of each line of a file, none where there is no file.
func lines(path string, each func(fields []string) error) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if err := each(strings.Split(strings.TrimSpace(s.Text()), ":")); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return s.Err()
}
