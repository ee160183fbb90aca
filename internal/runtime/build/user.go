package build

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
)

// user resolves USER by the image's own passwd and group.
func (w *writer) user(spec string) (User, error) {
	var passwd, group io.Reader
	if f, err := w.readInside("/etc/passwd"); err == nil {
		defer f.Close()
		passwd = f
	}
	if f, err := w.readInside("/etc/group"); err == nil {
		defer f.Close()
		group = f
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return User{}, fmt.Errorf("user %q: %w", spec, err)
	}
	return User{UID: u.Uid, GID: u.Gid, Groups: append(u.Sgids, u.Gid), Home: u.Home}, nil
}

// owner resolves --chown: a user's number without a group is the group's too.
func (w *writer) owner(spec string) (uid, gid int, err error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	if n, err := strconv.Atoi(name); err == nil && !hasGroup {
		if n < 0 {
			return 0, 0, fmt.Errorf("chown %q: a user's number cannot be negative", spec)
		}
		return n, n, nil
	}
	if hasGroup && group != "" {
		name += ":" + group
	}
	u, err := w.user(name)
	if err != nil {
		return 0, 0, fmt.Errorf("chown: %w", err)
	}
	return u.UID, u.GID, nil
}
