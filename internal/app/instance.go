package app

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"skiff/internal/cli"
	"skiff/internal/host"
)

// machine is where this machine's instances are found by name.
func machine() host.Index { return host.Index{Dir: host.StateDir} }

// find completes name and data directory, each from the other where one is not
// said: one name has one data directory, and one directory holds one instance.
// known is false for one that was never started here, or was reset.
func (c *Config) find(x host.Index) (known bool, err error) {
	said := c.DataDir
	if said != "" {
		if said, err = filepath.Abs(said); err != nil {
			return false, &ConfigError{"dataDir", err.Error()}
		}
		was, err := LoadConfig(filepath.Join(said, configFile))
		if err == nil && was.Name != "" {
			if c.Name != "" && c.Name != was.Name {
				return true, &ConfigError{"name", fmt.Sprintf("%s holds cluster %q, not %q; leave --name out, or choose another --data-dir", said, was.Name, c.Name)}
			}
			c.Name, known = was.Name, true
		} // one that cannot be read is told of when it is needed
	}
	i, err := c.Instance()
	if err != nil {
		return false, err
	}
	c.Name = i.Name
	dir, noted, err := x.Find(c.Name)
	if err != nil {
		return false, err
	}
	if noted && said != "" && !sameDir(dir, said) {
		return true, &ConfigError{"dataDir", fmt.Sprintf("cluster %q has its data in %s, not in %s; leave --data-dir out, or give the other cluster another --name", c.Name, dir, said)}
	}
	if noted {
		c.DataDir = dir
	}
	return known || noted, nil
}

// sameDir: links lead to the same place under several names.
func sameDir(a, b string) bool {
	if a == b {
		return true
	}
	ia, err := os.Stat(a)
	if err != nil {
		return false
	}
	ib, err := os.Stat(b)
	return err == nil && os.SameFile(ia, ib)
}

// Find implements cli.Local.
func (Local) Find(s cli.Settings) (host.Instance, bool, error) {
	c := Config(s)
	known, err := c.find(machine())
	if err != nil {
		return host.Instance{}, false, err
	}
	i, err := c.Instance()
	if err != nil {
		return i, false, err
	}
	if !known {
		// A run directory alone: a start that failed early, or data that were
		// removed by hand.
		_, err := os.Stat(i.RunDir)
		// Who may not look cannot tell.
		known = err == nil || errors.Is(err, fs.ErrPermission)
	}
	return i, known, nil
}

// Unknown implements cli.Local.
func (Local) Unknown(i host.Instance) string {
	names := slices.Sorted(maps.Keys(machine().All()))
	if len(names) == 0 {
		return fmt.Sprintf("there is no cluster %q on this machine, nor any other", i.Name)
	}
	return fmt.Sprintf("there is no cluster %q on this machine; there is %s", i.Name, strings.Join(names, ", "))
}
