package app

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"skiff/internal/host"
	"skiff/internal/network"
)

// able is a machine that has everything.
func able() machineFacts {
	return machineFacts{
		uid:         func() int { return 0 },
		filesystems: func() ([]byte, error) { return []byte("nodev\tproc\n\text4\nnodev\toverlay\n"), nil },
		namespace:   func(string) error { return nil },
		network:     func() error { return nil },
	}
}

func TestPreflight(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	newer := t.TempDir()
	if err := os.WriteFile(filepath.Join(newer, "format"), []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what   string
		dir    string
		change func(*machineFacts)
		want   string
	}{
		{"nothing wrong", "", func(*machineFacts) {}, ""},
		{"no root", "", func(m *machineFacts) { m.uid = func() int { return 1000 } }, "skiff needs root to run containers; run it with sudo"},
		{"no overlayfs", "", func(m *machineFacts) {
			m.filesystems = func() ([]byte, error) { return []byte("nodev\tproc\n\text4\nnodev\tovl\n"), nil }
		}, "this kernel has no overlayfs; load it (modprobe overlay) or use a kernel that has it"},
		{"no namespaces", "", func(m *machineFacts) {
			m.namespace = func(kind string) error {
				if kind == "net" {
					return os.ErrNotExist
				}
				return nil
			}
		}, "this kernel has no net namespaces; use a kernel that has them"},
		{"no nftables", "", func(m *machineFacts) {
			m.network = func() error {
				return &network.MissingError{Feature: "nftables", Module: "nf_tables", Err: syscall.EINVAL}
			}
		}, "this kernel has no nftables: invalid argument; load it (modprobe nf_tables) or use a kernel that has it"},
		{"no veth", "", func(m *machineFacts) {
			m.network = func() error {
				return &network.MissingError{Feature: "virtual links (veth)", Module: "veth", Err: syscall.EOPNOTSUPP}
			}
		}, "this kernel has no virtual links (veth): operation not supported; load it (modprobe veth) or use a kernel that has it"},
		{"a file", plain, func(*machineFacts) {}, plain + " is not a directory; choose another --data-dir"},
		{"below a file", plain + "/data", func(*machineFacts) {}, plain + " is not a directory; choose another --data-dir"},
		{"a newer skiff's", newer, func(*machineFacts) {}, newer + ` was written by a newer skiff (its data have format 2, this skiff knows formats up to 1); use that skiff, or choose another --data-dir`},
	} {
		if tt.dir == "" {
			tt.dir = filepath.Join(t.TempDir(), "a", "b")
		}
		i, err := host.New("x", tt.dir)
		if err != nil {
			t.Fatal(err)
		}
		m := able()
		tt.change(&m)
		err = preflight(&Settings{Config: Config{DataDir: i.DataDir}, Instance: i}, true, m)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.what, err)
			}
			continue
		}
		var se *StartError
		if err == nil || err.Error() != tt.want || !errors.As(err, &se) {
			t.Errorf("%s: %v\nwant %s", tt.what, err, tt.want)
		}
	}
}

// The machine that tests run on has what it takes, or nothing else would run.
func TestThisMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("asking the kernel for nftables needs root")
	}
	if err := thisMachine().kernelFeatures(); err != nil {
		t.Error(err)
	}
}

// A data directory that was begun and not finished is skiff's own.
func TestUnfinishedDirectory(t *testing.T) {
	for _, name := range []string{"lock", "format"} {
		i, err := host.New("x", t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(i.Data(name), []byte("1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := foreignDir(i); err != nil {
			t.Errorf("with %s alone: %v", name, err)
		}
	}
}

func TestConfigFileMistakes(t *testing.T) {
	f := filepath.Join(t.TempDir(), "c.yaml")
	for content, want := range map[string]string{
		"podRange: x":      `unknown field "podRange"`,
		"apiPort: many":    `apiPort: must be a number, not a string`,
		"extraSANs: one":   `extraSANs: must be a list, not a string`,
		"verbose: 3":       `verbose: must be a true or false, not a number`,
		"name: [a]":        `name: must be a string, not a array`,
		"name: a\nname: b": `yaml: `,
		"name: {":          `yaml: `,
		"- name: a":        `cannot unmarshal array`,
	} {
		if err := os.WriteFile(f, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfig(f)
		if err == nil || !strings.HasPrefix(err.Error(), "config file "+f+": "+want) {
			t.Errorf("%q: %v, want %s", content, err, want)
		}
	}
}
