package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

func TestParseCPU(t *testing.T) {
	got, err := parseCPU([]byte("42 (odd) na(me) S 1 2 3 4 5 6 7 8 9 10 150 50 7 8 20 0 1 0 100 0 0\n"))
	if err != nil || got != 2*time.Second {
		t.Errorf("CPU = %v, %v, want 2s", got, err)
	}
	for _, bad := range []string{"", "42 name S", "42 (x) S 1 2", "42 (x) S 1 2 3 4 5 6 7 8 9 10 a b 0"} {
		if _, err := parseCPU([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a stat", bad)
		}
	}
}

func TestParseRollup(t *testing.T) {
	m, err := parseRollup([]byte(`00400000-7fff rollup
Rss:              1000 kB
Pss:               700 kB
Private_Clean:     100 kB
Private_Dirty:     200 kB
Anonymous:         300 kB
`))
	if err != nil {
		t.Fatal(err)
	}
	if want := (memory{Anon: 300 << 10, File: 700 << 10, Pss: 700 << 10, Private: 300 << 10}); m != want {
		t.Errorf("memory = %+v, want %+v", m, want)
	}
	if m.rss() != 1000<<10 {
		t.Errorf("rss = %d", m.rss())
	}
	if _, err := parseRollup([]byte("Pss: 1 kB\n")); err == nil {
		t.Error("a rollup without Rss is accepted")
	}
}

func TestOwnProcess(t *testing.T) {
	me := []int{os.Getpid()}
	if m, err := memoryOf(me); err != nil || m.Anon <= 0 || m.File <= 0 {
		t.Errorf("own memory = %+v, %v", m, err)
	}
	before, err := cpuOf(me)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for now := before; now <= before; {
		if time.Now().After(deadline) {
			t.Fatal("half a minute's work uses no CPU time")
		}
		if now, err = cpuOf(me); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cpuOf([]int{1 << 30}); err == nil {
		t.Error("a process that does not exist has CPU time")
	}
}

func TestInstancePIDs(t *testing.T) {
	dir := t.TempDir()
	if _, err := instancePIDs(dir); err == nil {
		t.Error("a directory without a lock is an instance")
	}
	if err := os.WriteFile(filepath.Join(dir, "lock"), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pids, err := instancePIDs(dir)
	if err != nil || !slices.Equal(pids, []int{os.Getpid()}) {
		t.Errorf("pids = %v, %v", pids, err)
	}
}
