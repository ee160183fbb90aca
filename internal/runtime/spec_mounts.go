package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounts of a container in the order in which they are made: parents first.
func (r *Runtime) mounts(c *container) ([]specs.Mount, error) {
	sec := c.config.GetLinux().GetSecurityContext()
	priv := sec.GetPrivileged()
	sysMode := "ro"
	if priv {
		sysMode = "rw"
	}
	base := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sysMode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", sysMode}},
	}
	shm := r.shmDir(c.sb.id)
	if c.sb.nsOptions().GetIpc() == runtimeapi.NamespaceMode_NODE {
		shm = "/dev/shm"
	}
	etc := "rw"
	if sec.GetReadonlyRootfs() {
		etc = "ro"
	}
	bind := func(src, dst, mode string) {
		base = append(base, specs.Mount{Destination: dst, Type: "bind", Source: src, Options: []string{"rbind", "rprivate", mode}})
	}
	bind(shm, "/dev/shm", "rw")
	bind(filepath.Join(c.sb.dir, "hostname"), "/etc/hostname", etc)
	bind(filepath.Join(c.sb.dir, "hosts"), "/etc/hosts", etc)
	bind(filepath.Join(c.sb.dir, "resolv.conf"), "/etc/resolv.conf", etc)

	extra := make([]specs.Mount, 0, len(c.config.GetMounts()))
	for i, m := range c.config.GetMounts() {
		bind := c.sb.bindMount
		if m.GetImage().GetImage() != "" {
			bind = func(m *runtimeapi.Mount) (specs.Mount, error) { return imageMount(m, r.imageDir(c.id, i)) }
		}
		o, err := bind(m)
		if err != nil {
			return nil, err
		}
		extra = append(extra, o)
	}
	// What the config mounts at a place of ours takes that place.
	base = slices.DeleteFunc(base, func(b specs.Mount) bool {
		return slices.ContainsFunc(extra, func(e specs.Mount) bool {
			return e.Destination == b.Destination || e.Destination == "/dev" && strings.HasPrefix(b.Destination, "/dev/")
		})
	})
	depth := func(p string) int { return strings.Count(filepath.Clean(p), "/") }
	slices.SortStableFunc(extra, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return append(base, extra...), nil
}

func (s *sandbox) bindMount(m *runtimeapi.Mount) (specs.Mount, error) {
	var zero specs.Mount
	src, dst := m.GetHostPath(), filepath.Clean("/"+m.GetContainerPath())
	switch {
	case m.GetContainerPath() == "" || dst == "/":
		return zero, fmt.Errorf("mount of %q: container_path %q: must name a place below the root", src, m.GetContainerPath())
	case !filepath.IsAbs(src):
		return zero, fmt.Errorf("mount at %q: host_path %q: must be an absolute path", dst, src)
	}
	if _, err := os.Stat(src); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(src, 0o755); err != nil {
			return zero, fmt.Errorf("failed to mkdir %q: %w", src, err)
		}
	} else if err != nil {
		return zero, fmt.Errorf("failed to stat %q: %w", src, err)
	}
	real, err := filepath.EvalSymlinks(src)
	if err != nil {
		return zero, fmt.Errorf("failed to resolve symlink %q: %w", src, err)
	}
	o := specs.Mount{Destination: dst, Type: "bind", Source: real, Options: []string{"rbind"}}
	switch m.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		o.Options = append(o.Options, "rslave")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		o.Options = append(o.Options, "rshared")
	default:
		o.Options = append(o.Options, "rprivate")
	}
	switch {
	case m.GetRecursiveReadOnly():
		if !m.GetReadonly() {
			return zero, fmt.Errorf("mount at %q: recursive_read_only requires readonly", dst)
		}
		if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			return zero, fmt.Errorf("mount at %q: recursive_read_only requires private propagation", dst)
		}
		o.Options = append(o.Options, "rro")
	case m.GetReadonly():
		o.Options = append(o.Options, "ro")
	default:
		o.Options = append(o.Options, "rw")
	}
	s.mapIDs(&o, m)
	return o, nil
}

// devices allows the usual ones, those of the config, and for a privileged
// container all of the host's.
func devices(config *runtimeapi.ContainerConfig, oci *specs.Spec) error {
	res := oci.Linux.Resources
	if config.GetLinux().GetSecurityContext().GetPrivileged() {
		res.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return addDevices(oci, "/dev", "/dev", "")
	}
	res.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range config.GetDevices() {
		if err := addDevices(oci, d.GetHostPath(), d.GetContainerPath(), first(d.GetPermissions(), "rwm")); err != nil {
			return err
		}
	}
	return nil
}

// private are names in /dev that belong to a mount of their own, or to libcontainer.
var private = []string{"pts", "shm", "fd", "mqueue", "console", ".udev", "core", "stdin", "stdout", "stderr", "ptmx",
	"null", "zero", "full", "random", "urandom", "tty"}

// addDevices adds the device at host, or all below that directory, as path; with
// access, its use is allowed.
func addDevices(oci *specs.Spec, host, path, access string) error {
	var st unix.Stat_t
	if err := unix.Stat(host, &st); err != nil {
		return fmt.Errorf("device %q: %w", host, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		entries, err := os.ReadDir(host)
		if err != nil {
			return fmt.Errorf("device %q: %w", host, err)
		}
		for _, e := range entries {
			if host == "/dev" && slices.Contains(private, e.Name()) || e.Type()&fs.ModeSymlink != 0 {
				continue
			}
			if err := addDevices(oci, filepath.Join(host, e.Name()), filepath.Join(path, e.Name()), access); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	}
	kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
	if kind == "" {
		return nil // sockets and files that live in /dev
	}
	major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	mode := os.FileMode(st.Mode & 0o777)
	oci.Linux.Devices = append(oci.Linux.Devices, specs.LinuxDevice{
		Path: first(path, host), Type: kind, Major: major, Minor: minor, FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	})
	if access != "" {
		oci.Linux.Resources.Devices = append(oci.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access,
		})
	}
	return nil
}
