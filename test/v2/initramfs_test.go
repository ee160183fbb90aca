package v2

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// initramfs is an archive of the form "newc", not compressed: unpacking it would
// cost the emulated processor more than reading it.
type initramfs struct {
	w    io.Writer
	n    int
	seen map[string]bool
	err  error
}

func (a *initramfs) entry(name string, mode uint32, data []byte) {
	if a.err != nil || a.seen[name] {
		return
	}
	if dir := filepath.Dir(name); dir != "." && dir != "/" {
		a.entry(dir, 0o40755, nil)
	}
	a.seen[name] = true
	a.n++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.n, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	var b bytes.Buffer
	b.WriteString(head + name + "\x00")
	pad(&b)
	b.Write(data)
	pad(&b)
	_, a.err = a.w.Write(b.Bytes())
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}

func (a *initramfs) file(name, from string) {
	b, err := os.ReadFile(from)
	if err != nil {
		a.err = err
		return
	}
	a.entry(name, 0o100755, b)
}

// program adds a file with the libraries that it is linked to.
func (a *initramfs) program(name, from string) {
	a.file(name, from)
	f, err := elf.Open(from)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b, _ := io.ReadAll(p.Open())
			path := strings.TrimRight(string(b), "\x00")
			a.file(strings.TrimPrefix(path, "/"), path)
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		a.err = err
	}
	for _, l := range libs {
		for _, dir := range []string{"lib/x86_64-linux-gnu", "lib64"} {
			if _, err := os.Stat("/" + dir + "/" + l); err == nil {
				a.file(dir+"/"+l, "/"+dir+"/"+l)
			}
		}
	}
}

func (a *initramfs) end() error {
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}

// modules adds kernel modules, with all that they need, and "modules/order" for
// loading them.
func (a *initramfs) modules(kernel string, names ...string) error {
	paths := map[string]string{}
	err := filepath.WalkDir(filepath.Join(kernel, "lib/modules"), func(p string, d fs.DirEntry, err error) error {
		if n, ok := strings.CutSuffix(filepath.Base(p), ".ko"); ok {
			paths[strings.ReplaceAll(n, "-", "_")] = p
		}
		return err
	})
	if err != nil {
		return err
	}
	var order []string
	var add func(name string) error
	add = func(name string) error {
		path, ok := paths[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s", name)
		}
		if slices.Contains(order, filepath.Base(path)) {
			return nil
		}
		needs, err := needs(path)
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		order = append(order, filepath.Base(path))
		a.file("modules/"+filepath.Base(path), path)
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return err
		}
	}
	a.entry("modules/order", 0o100644, []byte(strings.Join(order, "\n")+"\n"))
	return a.err
}

// needs are the modules that a module says it depends on.
func needs(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%s is no module", path)
	}
	b, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, l := range strings.Split(string(b), "\x00") {
		if v, ok := strings.CutPrefix(l, "depends="); ok && v != "" {
			return strings.Split(strings.ReplaceAll(v, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
