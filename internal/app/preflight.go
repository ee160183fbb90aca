package app

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skiff/internal/host"
	"skiff/internal/network"
)

// StartError is why a start is impossible, with what to do about it.
type StartError struct{ Problem, Remedy string }

func (e *StartError) Error() string { return e.Problem + "; " + e.Remedy }

// machineFacts are the questions that a start asks the machine.
type machineFacts struct {
	uid         func() int
	filesystems func() ([]byte, error)
	namespace   func(kind string) error
	network     func() error
	ipv6        func() error
}

func thisMachine() machineFacts {
	return machineFacts{
		uid:         os.Geteuid,
		filesystems: func() ([]byte, error) { return os.ReadFile("/proc/filesystems") },
		namespace:   func(kind string) error { _, err := os.Stat("/proc/self/ns/" + kind); return err },
		network:     network.Probe,
		ipv6:        func() error { _, err := os.Stat("/proc/sys/net/ipv6"); return err },
	}
}

// preflight finds what would make the start fail half-way.
func preflight(s *Settings, withNode bool, m machineFacts) error {
	if withNode && m.uid() != 0 {
		return &StartError{"skiff needs root to run containers", "run it with sudo"}
	}
	if withNode {
		if err := m.kernelFeatures(); err != nil {
			return err
		}
		if s.usesIPv6() && m.ipv6() != nil {
			return &StartError{"podCIDR has IPv6, which this kernel has not, or was started without", "boot it without ipv6.disable=1, or leave the IPv6 range out"}
		}
	}
	if err := checkDisk(s.DataDir); err != nil {
		return err
	}
	return foreignDir(s.Instance)
}

// needDisk is what a cluster has to have at its start: the programs, etcd's files,
// an image.
const needDisk = 300 << 20

// checkDisk looks whether dir, which may not be there yet, can be written to.
func checkDisk(dir string) error {
	for {
		st, err := os.Stat(dir)
		if err == nil && !st.IsDir() {
			return &StartError{dir + " is not a directory", "choose another --data-dir"}
		}
		if err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			return fmt.Errorf("data directory: %w", err)
		}
		dir = filepath.Dir(dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		remedy := "choose another --data-dir"
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			remedy = "run skiff with sudo, or choose another --data-dir"
		}
		return &StartError{fmt.Sprintf("%s cannot be written to (%v)", dir, err), remedy}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return fmt.Errorf("data directory %s: %w", dir, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < needDisk {
		return &StartError{
			fmt.Sprintf("the disk of %s has %d MiB left, skiff needs %d", dir, free>>20, needDisk>>20),
			"free some space or choose another --data-dir",
		}
	}
	return nil
}

// dataFormat is the version of what is in a data directory; the file formatFile
// there says it.
const (
	dataFormat = "1"
	formatFile = "format"
)

// foreignDir refuses a data directory that holds something else.
func foreignDir(i host.Instance) error {
	entries, err := os.ReadDir(i.DataDir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return &StartError{fmt.Sprintf("data directory %s: %v", i.DataDir, err), "choose another --data-dir"}
	}
	b, err := os.ReadFile(i.Data(formatFile))
	if format := strings.TrimSpace(string(b)); err == nil && format != dataFormat {
		return &StartError{
			fmt.Sprintf("%s was written by another version of skiff (data format %.20q, this one knows %q)", i.DataDir, format, dataFormat),
			"use that version, or choose another --data-dir",
		}
	}
	for _, e := range entries {
		switch e.Name() {
		case configFile, formatFile, "lock", "etcd", "pki", "images":
			return nil
		}
	}
	return &StartError{fmt.Sprintf("%s is not empty and not a data directory of skiff", i.DataDir), "choose another --data-dir"}
}

// claimDir makes the directories of an instance, and findable by its name.
func claimDir(i host.Instance) error {
	// Where the index cannot be written the instance works all the same; its
	// commands need --data-dir then.
	if err := machine().Add(i); err != nil && !errors.Is(err, syscall.EROFS) {
		return err
	}
	for _, dir := range []string{i.DataDir, i.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	if _, err := os.Stat(i.Data(formatFile)); err == nil {
		return nil
	}
	return writeFile(i.Data(formatFile), []byte(dataFormat+"\n"), 0o600)
}

// kernelFeatures checks what containers and their network need.
func (m machineFacts) kernelFeatures() error {
	b, err := m.filesystems()
	if err != nil {
		return fmt.Errorf("read /proc/filesystems: %w", err)
	}
	if !strings.Contains("\n"+string(b), "\toverlay\n") {
		return &StartError{"this kernel has no overlayfs", "load it (modprobe overlay) or use a kernel that has it"}
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		if m.namespace(ns) != nil {
			return &StartError{fmt.Sprintf("this kernel has no %s namespaces", ns), "use a kernel that has them"}
		}
	}
	err = m.network()
	if missing := (*network.MissingError)(nil); errors.As(err, &missing) {
		return &StartError{missing.Error(), fmt.Sprintf("load it (modprobe %s) or use a kernel that has it", missing.Module)}
	}
	return err
}

// lastGasp is how long a process that was killed may take to let go of its lock.
const lastGasp = 10 * time.Second

// lockInstance makes this process the only one of its instance. It waits for one
// that was killed: its lock goes with the last of its threads, which may be a while
// after the first.
func lockInstance(i host.Instance) (func(), error) {
	f, err := os.OpenFile(i.Data("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	for begin := time.Now(); syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil; time.Sleep(10 * time.Millisecond) {
		b := make([]byte, 16)
		n, _ := f.ReadAt(b, 0)
		pid := strings.TrimSpace(string(b[:n]))
		if time.Since(begin) > lastGasp || !dying(pid) {
			f.Close()
			return nil, &StartError{fmt.Sprintf("skiff %q is running already (pid %s)", i.Name, pid), "`skiff status` tells more, `skiff down` ends it"}
		}
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock: %w", err)
		}
	}
	return func() { f.Close() }, nil
}

// dying tells that the first thread of a process is gone.
func dying(pid string) bool {
	if _, err := strconv.Atoi(pid); err != nil {
		return false
	}
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}
