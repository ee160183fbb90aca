package app

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"skiff/internal/host"
)

// made saves the config of a cluster that was started in x.
func made(t *testing.T, x host.Index, c Config) *Settings {
	t.Helper()
	c.DataDir, c.NodeIP, c.NodeName = filepath.Join(x.Dir, c.Name), "192.0.2.7", "n"
	if err := c.keepApart(x); err != nil {
		t.Fatal(err)
	}
	s, err := c.Complete()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Save(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestClustersGetRangesOfTheirOwn(t *testing.T) {
	x := host.Index{Dir: t.TempDir()}
	var all []*Settings
	// More than one name in sixty begins its search at the same place.
	for _, name := range strings.Fields("default a b c d e f g h i j k l m n o p q r s t u v w x y z aa bb cc") {
		s := made(t, x, Config{Name: name})
		for _, o := range all {
			for _, p := range slices.Concat(s.PodRanges, s.ServiceRanges) {
				if slices.ContainsFunc(slices.Concat(o.PodRanges, o.ServiceRanges), p.Overlaps) {
					t.Errorf("%s of %s meets %s and %s of %s", p, name, o.PodRanges, o.ServiceRanges, o.Name)
				}
			}
		}
		all = append(all, s)
	}
	// A restart keeps its ranges.
	again := Config{Name: "b", DataDir: filepath.Join(x.Dir, "b")}
	if err := errors.Join(again.Merge(), again.keepApart(x)); err != nil {
		t.Fatal(err)
	}
	if again.PodCIDR != all[2].PodCIDR || again.ServiceCIDR != all[2].ServiceCIDR {
		t.Errorf("the ranges were %s and %s and are %s and %s", all[2].PodCIDR, all[2].ServiceCIDR, again.PodCIDR, again.ServiceCIDR)
	}
}

func TestRangesOfOthersAreRefused(t *testing.T) {
	x := host.Index{Dir: t.TempDir()}
	made(t, x, Config{Name: "first", PodCIDR: "10.9.0.0/16,fd00:9::/56", ServiceCIDR: "10.8.0.0/16"})
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{PodCIDR: "10.9.4.0/22"}, `podCIDR: 10.9.4.0/22 overlaps 10.9.0.0/16 of cluster "first" on this machine; choose another one, 10.`},
		{Config{ServiceCIDR: "10.8.0.0/16"}, `serviceCIDR: 10.8.0.0/16 overlaps 10.8.0.0/16 of cluster "first" on this machine; choose another one, 10.`},
		{Config{PodCIDR: "10.7.0.0/16,fd00:9::/60"}, `podCIDR: fd00:9::/60 overlaps fd00:9::/56 of cluster "first" on this machine; choose another one, fd00:`},
		{Config{ServiceCIDR: "10.9.0.0/24"}, `serviceCIDR: 10.9.0.0/24 overlaps 10.9.0.0/16 of cluster "first" on this machine; choose another one, 10.`},
	} {
		tt.c.Name, tt.c.DataDir = "second", filepath.Join(x.Dir, "second")
		err := tt.c.keepApart(x)
		var ce *ConfigError
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) || !errors.As(err, &ce) {
			t.Errorf("%v, want %s", err, tt.want)
			continue
		}
		// What it says is free is.
		_, say, _ := strings.Cut(err.Error(), "choose another one, ")
		free := strings.TrimSuffix(say, " say")
		c := Config{Name: "second", DataDir: filepath.Join(x.Dir, "second"), PodCIDR: tt.c.PodCIDR, ServiceCIDR: tt.c.ServiceCIDR}
		if ce.Field == "podCIDR" {
			c.PodCIDR = free
		} else {
			c.ServiceCIDR = free
		}
		if err := c.keepApart(x); err != nil {
			t.Errorf("with the range that it proposed: %v", err)
		}
	}
}

// A name and a directory are found by each other, and contradictions are told.
func TestFindInstance(t *testing.T) {
	x := host.Index{Dir: filepath.Join(t.TempDir(), "skiff")}
	elsewhere := filepath.Join(t.TempDir(), "data")
	find := func(name, dir string) (Config, bool, error) {
		c := Config{Name: name, DataDir: dir}
		known, err := c.find(x)
		return c, known, err
	}
	if c, known, err := find("", ""); err != nil || known || c.Name != host.DefaultName {
		t.Errorf("on a new machine: %+v %v %v", c, known, err)
	}
	if c, known, err := find("a", elsewhere); err != nil || known || c.DataDir != elsewhere {
		t.Errorf("before the first start: %+v %v %v", c, known, err)
	}
	a := Config{Name: "a", DataDir: elsewhere, NodeIP: "192.0.2.7", NodeName: "n"}
	s, err := a.Complete()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(x.Add(s.Instance), s.Save()); err != nil {
		t.Fatal(err)
	}
	for _, said := range [][2]string{{"a", ""}, {"", elsewhere}, {"a", elsewhere}, {"a", elsewhere + "/"}} {
		c, known, err := find(said[0], said[1])
		if err != nil || !known || c.Name != "a" || !sameDir(c.DataDir, elsewhere) {
			t.Errorf("by %q: %+v %v %v", said, c, known, err)
		}
	}
	other := t.TempDir()
	if _, _, err := find("a", other); err == nil || err.Error() != `dataDir: cluster "a" has its data in `+elsewhere+`, not in `+other+`; leave --data-dir out, or give the other cluster another --name` {
		t.Errorf("another directory: %v", err)
	}
	if _, _, err := find("b", elsewhere); err == nil || err.Error() != `name: `+elsewhere+` holds cluster "a", not "b"; leave --name out, or choose another --data-dir` {
		t.Errorf("another name: %v", err)
	}
}
