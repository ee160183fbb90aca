package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	texttemplate "text/template"
)

//go:embed peernode/*
var nodeFiles embed.FS

// peerNode is upstream's kubelet with containerd and runc, in mount and process
// namespaces of their own: what they mount, and what of the kernel's settings the
// kubelet changes, is theirs alone, and with the first process of the namespaces all
// others end. Their pods hang on a bridge of the host's.
type peerNode struct {
	Dir, Bin, Plugins string
	Name, Bridge      string
	// CgroupRoot is the group of all pods, in each hierarchy.
	CgroupRoot string
	Port       int
	Images     string
}

// startNode starts a node. images is an archive with the images that its pods run, and
// with the pause image.
func (p *peer) startNode(images string) error {
	ports, err := freePorts(1)
	if err != nil {
		return err
	}
	images, err = filepath.Abs(images)
	if err != nil {
		return err
	}
	bin, err := filepath.Abs(p.bin)
	if err != nil {
		return err
	}
	id := strconv.Itoa(os.Getpid())
	n := &peerNode{
		Dir: p.dir, Bin: bin, Plugins: "/usr/lib/cni", Name: "bench-node", Bridge: "bench" + id,
		CgroupRoot: "bench-peer-" + id, Port: ports[0], Images: images,
	}
	user := "system:node:" + n.Name
	if err := p.ca.issue("kubelet", user, "system:nodes"); err != nil {
		return err
	}
	if _, err := p.ca.kubeconfig("kubelet", "https://127.0.0.1:"+strconv.Itoa(p.apiPort)); err != nil {
		return err
	}
	files, err := texttemplate.ParseFS(nodeFiles, "peernode/*")
	if err != nil {
		return err
	}
	for _, t := range files.Templates() {
		path := p.ca.path(filepath.Join("node", t.Name()))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		if err := errors.Join(t.Execute(f, n), f.Close()); err != nil {
			return fmt.Errorf("%s: %w", t.Name(), err)
		}
	}
	x, err := start(exec.Command("bash", p.ca.path("node/run.sh")), p.ca.path("node.log"), syscall.CLONE_NEWNS|syscall.CLONE_NEWPID)
	if err != nil {
		return fmt.Errorf("start a node: %w", err)
	}
	p.procs, p.node = append(p.procs, x), n
	return nil
}

// clean removes what the node leaves behind when all its processes are gone.
func (n *peerNode) clean() error {
	var errs []error
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + n.CgroupRoot)
	errs = append(errs, err)
	for _, root := range append(roots, "/sys/fs/cgroup/"+n.CgroupRoot) {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := syscall.Rmdir(dirs[i]); err != nil {
				errs = append(errs, fmt.Errorf("remove %s: %w", dirs[i], err))
			}
		}
	}
	if _, err := os.Stat("/sys/class/net/" + n.Bridge); err == nil {
		if out, err := exec.Command("ip", "link", "del", n.Bridge).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w: %s", n.Bridge, err, out))
		}
	}
	return errors.Join(errs...)
}

// programPIDs are the processes of the programs in a directory, and the pauses that
// they started: what runs in pods is not theirs.
func programPIDs(bin string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	ours := map[int]bool{}
	pauses := map[int]int{} // to their parents
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		if err != nil {
			continue // gone, or the kernel's
		}
		switch {
		case filepath.Dir(exe) == bin:
			ours[pid] = true
		case filepath.Base(exe) == "pause":
			if b, err := os.ReadFile("/proc/" + e.Name() + "/stat"); err == nil {
				pauses[pid], _ = parent(string(b))
			}
		}
	}
	var out []int
	for pid := range ours {
		out = append(out, pid)
	}
	for pid, by := range pauses {
		if ours[by] {
			out = append(out, pid)
		}
	}
	return out, nil
}

// parent reads the parent's number from the text of /proc/PID/stat.
func parent(stat string) (int, error) {
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 2 {
		return 0, errors.New("stat: no parent")
	}
	return strconv.Atoi(f[1])
}
