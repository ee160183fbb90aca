package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/startspec"
)

// lookUp turns names and numbers into the process's user, by the files of its
// own root file system.
func lookUp(root string, u startspec.User) (specs.User, error) {
	var none specs.User
	passwd, err := openIn(root, "/etc/passwd")
	if err != nil {
		return none, err
	}
	defer closeAll(passwd)
	group, err := openIn(root, "/etc/group")
	if err != nil {
		return none, err
	}
	defer closeAll(group)
	who := u.User
	if u.Group != "" {
		who += ":" + u.Group
	}
	found, err := user.GetExecUser(who, &user.ExecUser{Home: "/"}, passwd, group)
	if err != nil {
		return none, fmt.Errorf("user %q: %w", who, err)
	}
	out := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	add := func(g uint32) {
		if !slices.Contains(out.AdditionalGids, g) {
			out.AdditionalGids = append(out.AdditionalGids, g)
		}
	}
	add(out.GID)
	if !u.Strict {
		sgids := found.Sgids
		if u.Group != "" { // then the library looks for no other groups
			if sgids, err = memberOf(root, found.Uid); err != nil {
				return none, err
			}
		}
		for _, g := range sgids {
			add(uint32(g))
		}
	}
	for _, g := range u.Extra {
		add(g)
	}
	return out, nil
}

// lookUpIn is lookUp in a running container: by the files that its processes see.
func lookUpIn(c *libcontainer.Container, u startspec.User) (specs.User, error) {
	st, err := c.State()
	if err != nil {
		return specs.User{}, err
	}
	return lookUp(fmt.Sprintf("/proc/%d/root", st.InitProcessPid), u)
}

// memberOf are the groups whose member lists name the user.
func memberOf(root string, uid int) ([]int, error) {
	passwd, err := openIn(root, "/etc/passwd")
	if err != nil || passwd == nil {
		return nil, err
	}
	defer closeAll(passwd)
	group, err := openIn(root, "/etc/group")
	if err != nil || group == nil {
		return nil, err
	}
	defer closeAll(group)
	u, err := user.GetExecUser(strconv.Itoa(uid), &user.ExecUser{}, passwd, group)
	if err != nil {
		return nil, fmt.Errorf("groups of %d: %w", uid, err)
	}
	return u.Sgids, nil
}

// openIn opens a file of the root file system; no link in it leads out. A file
// that is not there is nil.
func openIn(root, name string) (io.Reader, error) {
	r, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(r)
	fd, err := unix.Openat2(r, name[1:], &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s in the root file system: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s in the root file system is no file", name), err, f.Close())
	}
	return f, nil
}

func closeAll(r io.Reader) {
	if f, ok := r.(*os.File); ok {
		f.Close()
	}
}
