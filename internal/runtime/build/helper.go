package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"skiff/internal/runtime/snapshot"
)

// Helper does nothing, unless the program was started as HelperName: then it
// becomes the command of a RUN instruction and never returns.
func Helper() {
	if len(os.Args) == 0 || os.Args[0] != HelperName {
		return
	}
	// Capabilities and the bounding set are a thread's.
	runtime.LockOSThread()
	const specFD, errFD = 3, 4
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(errFD)
	err := becomeCommand(os.NewFile(specFD, "spec"))
	// Only a failure comes here.
	fmt.Fprint(os.NewFile(errFD, "errors"), err)
	os.Exit(125)
}

func becomeCommand(specFile *os.File) error {
	var spec helperSpec
	if err := json.NewDecoder(specFile).Decode(&spec); err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	unix.Umask(0o022)
	for _, f := range spec.Cgroups {
		if err := os.WriteFile(f, []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	// Nothing mounted from here on shall reach the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The overlay covers the directory that holds its own parts: it has them
	// open already.
	root := filepath.Dir(spec.Rootfs.Work)
	flags := unix.MOUNT_ATTR_NODEV
	if spec.Insecure {
		flags = 0
	}
	if err := spec.Rootfs.Mount(root, flags); err != nil {
		return err
	}
	if spec.Hostname == "" {
		spec.Hostname = hostName
	}
	m := mounter{root: root}
	m.system(&spec)
	for _, mt := range spec.Mounts {
		m.extra(mt)
	}
	if !spec.Insecure {
		m.finish()
	}
	if m.err != nil {
		return m.err
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's mounts: %w", err)
	}
	if err := os.MkdirAll(spec.Cwd, 0o755); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	if spec.NoNetwork {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	// Its loading needs a capability that is given up next.
	if err := loadFilter(spec.Filter); err != nil {
		return err
	}
	if err := dropPrivileges(spec.User, spec.Insecure); err != nil {
		return err
	}
	if err := os.Chdir(spec.Cwd); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	path, err := lookPath(spec.Args[0], spec.Env)
	if err != nil {
		return err
	}
	if err := unix.Exec(path, spec.Args, spec.Env); err != nil {
		return fmt.Errorf("exec: %q: %w", spec.Args[0], err)
	}
	return nil
}

// hostName is the host name in RUN commands.
const hostName = "skiff-build"

// mounter builds what a command sees; the first error stays.
type mounter struct {
	root string
	err  error
}

// target resolves a path in the root, whose links are not to be trusted.
func (m *mounter) target(path string) string {
	full, err := securejoin.SecureJoin(m.root, path)
	if err != nil && m.err == nil {
		m.err = fmt.Errorf("mount %s: %w", path, err)
	}
	return full
}

func (m *mounter) mount(source, path, fstype string, flags uintptr, data string) {
	full := m.target(path)
	if m.err != nil {
		return
	}
	if err := os.MkdirAll(full, 0o755); err != nil {
		m.err = fmt.Errorf("mount %s: %w", path, err)
		return
	}
	if err := unix.Mount(source, full, fstype, flags, data); err != nil {
		m.err = fmt.Errorf("mount %s: %w", path, err)
	}
}

// bind mounts a file or directory over another; a missing file at path is made.
func (m *mounter) bind(source, path string, readOnly bool) {
	full := m.target(path)
	if m.err != nil {
		return
	}
	if fi, err := os.Stat(source); err != nil {
		m.err = fmt.Errorf("mount %s: %w", path, err)
		return
	} else if fi.IsDir() {
		m.err = os.MkdirAll(full, 0o755)
	} else if _, err := os.Lstat(full); err != nil {
		m.err = errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, nil, 0o644))
	}
	if m.err != nil {
		return
	}
	if err := unix.Mount(source, full, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		m.err = fmt.Errorf("mount %s: %w", path, err)
		return
	}
	if readOnly {
		if err := unix.Mount("", full, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			m.err = fmt.Errorf("mount %s read-only: %w", path, err)
		}
	}
}

func (m *mounter) do(what string, err error) {
	if err != nil && m.err == nil {
		m.err = fmt.Errorf("%s: %w", what, err)
	}
}

// system mounts /proc, /sys, /dev, and the files that the network needs.
func (m *mounter) system(spec *helperSpec) {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	m.mount("proc", "/proc", "proc", quiet, "")
	sysFlags := uintptr(quiet | unix.MS_RDONLY)
	if spec.Insecure {
		sysFlags = quiet
	}
	m.mount("sysfs", "/sys", "sysfs", sysFlags, "")
	m.mount("tmpfs", "/dev", "tmpfs", unix.MS_NOSUID|unix.MS_STRICTATIME, "mode=755,size=65536k")
	m.mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")
	shm := spec.ShmSize
	if shm == 0 {
		shm = 64 << 20
	}
	m.mount("tmpfs", "/dev/shm", "tmpfs", quiet, fmt.Sprintf("mode=1777,size=%d", shm))
	if m.err != nil {
		return
	}
	dev := m.target("/dev")
	for name, minor := range map[string][2]uint32{
		"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0},
	} {
		p := filepath.Join(dev, name)
		m.do("make /dev/"+name, unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(minor[0], minor[1]))))
		m.do("make /dev/"+name, os.Chmod(p, 0o666))
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"ptmx": "pts/ptmx", "core": "/proc/kcore",
	} {
		m.do("make /dev/"+name, os.Symlink(to, filepath.Join(dev, name)))
	}
	m.scripts(spec.Scripts)
	files := map[string]string{
		"hosts":    "127.0.0.1\tlocalhost " + spec.Hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		"hostname": spec.Hostname + "\n",
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Hosts)) {
		files["hosts"] += spec.Hosts[name] + "\t" + name + "\n"
	}
	if spec.ResolvConf != "" {
		files["resolv.conf"] = spec.ResolvConf
	}
	for name, content := range files {
		// The file stays, while its name goes: the mount holds it.
		tmp := filepath.Join(dev, ".build-"+name)
		m.do("/etc/"+name, os.WriteFile(tmp, []byte(content), 0o644))
		m.bind(tmp, "/etc/"+name, false)
		m.do("/etc/"+name, os.Remove(tmp))
	}
}

func (m *mounter) scripts(scripts map[string]string) {
	if len(scripts) == 0 || m.err != nil {
		return
	}
	dir := m.target(ScriptDir)
	m.do("script directory", os.Mkdir(dir, 0o755))
	for name, content := range scripts {
		m.do("script "+name, os.WriteFile(filepath.Join(dir, filepath.Base(name)), []byte(content), 0o755))
	}
}

func (m *mounter) extra(mt Mount) {
	if m.err != nil {
		return
	}
	switch {
	case mt.Rootfs != nil:
		m.part(*mt.Rootfs, mt.Source, mt)
	case mt.Source != "" && mt.Scratch:
		lower, part := mt.Source, "/"
		if fi, err := os.Stat(mt.Source); err == nil && !fi.IsDir() {
			lower, part = filepath.Split(mt.Source)
		}
		m.part(snapshot.Rootfs{Lower: []string{filepath.Clean(lower)}}, part, mt)
	case mt.File != nil:
		tmp := filepath.Join(m.target("/dev"), ".build-file")
		m.do("mount "+mt.Target, os.WriteFile(tmp, mt.File.Content, 0o600))
		m.do("mount "+mt.Target, os.Chown(tmp, mt.File.UID, mt.File.GID))
		m.do("mount "+mt.Target, unix.Chmod(tmp, mt.File.Mode))
		m.bind(tmp, mt.Target, true)
		m.do("mount "+mt.Target, os.Remove(tmp))
	case mt.Source != "":
		m.bind(mt.Source, mt.Target, mt.ReadOnly)
	default:
		data := "mode=1777"
		if mt.Size > 0 {
			data += fmt.Sprintf(",size=%d", mt.Size)
		}
		m.mount("tmpfs", mt.Target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data)
	}
}

// part mounts a path of a rootfs, by way of places that nobody sees afterwards.
// What is written to a scratch mount goes to memory.
func (m *mounter) part(rootfs snapshot.Rootfs, path string, mt Mount) {
	what := "mount " + mt.Target
	tmp := filepath.Join(m.target("/dev"), ".build-mount")
	mem := filepath.Join(m.target("/dev"), ".build-scratch")
	m.do(what, os.Mkdir(tmp, 0o700))
	if mt.Scratch {
		rootfs.Upper, rootfs.Work = filepath.Join(mem, "upper"), filepath.Join(mem, "work")
		m.do(what, os.Mkdir(mem, 0o700))
		m.do(what, unix.Mount("tmpfs", mem, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700"))
		m.do(what, errors.Join(os.Mkdir(rootfs.Upper, 0o755), os.Mkdir(rootfs.Work, 0o700)))
		if fi, err := os.Stat(rootfs.Lower[0]); err == nil {
			m.do(what, os.Chmod(rootfs.Upper, fi.Mode().Perm()))
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				m.do(what, os.Chown(rootfs.Upper, int(st.Uid), int(st.Gid)))
			}
		}
	}
	if m.err != nil {
		return
	}
	m.do(what, rootfs.Mount(tmp, unix.MOUNT_ATTR_NODEV))
	source, err := securejoin.SecureJoin(tmp, path)
	m.do(what, err)
	m.bind(source, mt.Target, mt.ReadOnly)
	m.do(what, unix.Unmount(tmp, unix.MNT_DETACH))
	m.do(what, os.Remove(tmp))
	if mt.Scratch {
		m.do(what, unix.Unmount(mem, unix.MNT_DETACH))
		m.do(what, os.Remove(mem))
	}
}

// finish hides the kernel's controls and closes /dev to new device nodes.
func (m *mounter) finish() {
	for _, p := range []string{"bus", "fs", "irq", "sys", "sysrq-trigger"} {
		if _, err := os.Stat(m.target("/proc/" + p)); err == nil {
			m.bind(m.target("/proc/"+p), "/proc/"+p, true)
		}
	}
	for _, p := range []string{"kcore", "keys", "timer_list", "sched_debug", "latency_stats"} {
		if _, err := os.Stat(m.target("/proc/" + p)); err == nil {
			m.bind(filepath.Join(m.root, "dev/null"), "/proc/"+p, false)
		}
	}
	if m.err == nil {
		m.do("make /dev read-only", unix.Mount("", m.target("/dev"), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID, ""))
	}
}

// allowedCaps are the capabilities that containers have by default.
var allowedCaps = map[uintptr]string{
	unix.CAP_CHOWN: "CAP_CHOWN", unix.CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE", unix.CAP_FSETID: "CAP_FSETID",
	unix.CAP_FOWNER: "CAP_FOWNER", unix.CAP_MKNOD: "CAP_MKNOD", unix.CAP_NET_RAW: "CAP_NET_RAW", unix.CAP_SETGID: "CAP_SETGID",
	unix.CAP_SETUID: "CAP_SETUID", unix.CAP_SETFCAP: "CAP_SETFCAP", unix.CAP_SETPCAP: "CAP_SETPCAP",
	unix.CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE", unix.CAP_SYS_CHROOT: "CAP_SYS_CHROOT", unix.CAP_KILL: "CAP_KILL",
	unix.CAP_AUDIT_WRITE: "CAP_AUDIT_WRITE",
}

// dropPrivileges becomes the user with the default capabilities, or all of them.
func dropPrivileges(u User, insecure bool) error {
	for c := uintptr(0); !insecure; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // past the last one
		}
		if allowedCaps[c] != "" {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	groups := u.Groups
	if groups == nil {
		groups = []int{}
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("set groups: %w", err)
	}
	if err := syscall.Setgid(u.GID); err != nil {
		return fmt.Errorf("set group %d: %w", u.GID, err)
	}
	if err := syscall.Setuid(u.UID); err != nil {
		return fmt.Errorf("set user %d: %w", u.UID, err)
	}
	// Another user lost this: the command ends with the program that started it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("set parent death signal: %w", err)
	}
	return nil
}

// lookPath finds the program as a shell does, by the command's own PATH.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if fi, err := os.Stat(name); err != nil {
			return "", fmt.Errorf("exec: %q: stat %s: no such file or directory", name, name)
		} else if fi.IsDir() || fi.Mode()&0o111 == 0 {
			return "", fmt.Errorf("exec: %q: permission denied", name)
		}
		return name, nil
	}
	for _, e := range env {
		dirs, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(dirs) {
			p := filepath.Join(d, name)
			if fi, err := os.Stat(p); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

// loopbackUp brings up lo in a new network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
