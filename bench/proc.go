package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// clockTick is USER_HZ, the unit of CPU times in /proc/PID/stat: 100 on every
// architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// parseCPU reads user and system time from the text of /proc/PID/stat. The
// program's name in it may hold spaces and parentheses.
func parseCPU(stat []byte) (time.Duration, error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("stat: no program name")
	}
	f := strings.Fields(string(stat[i+1:]))
	const utime, stime = 11, 12 // fields 14 and 15, counted from the state
	if len(f) <= stime {
		return 0, fmt.Errorf("stat: %d fields after the name, want more than %d", len(f), stime)
	}
	var ticks int64
	for _, s := range []string{f[utime], f[stime]} {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// cpuOf sums the CPU time that processes have used so far, those of their
// children not counted. Resolution: 10 ms.
func cpuOf(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		d, err := parseCPU(b)
		if err != nil {
			return 0, fmt.Errorf("process %d: %w", pid, err)
		}
		sum += d
	}
	return sum, nil
}

// memory of processes, in bytes. Anon and File add up to the resident size; Pss
// shares pages that several processes map among them.
type memory struct{ Anon, File, Pss, Private int64 }

func (m memory) rss() int64 { return m.Anon + m.File }

func (m memory) add(o memory) memory {
	return memory{m.Anon + o.Anon, m.File + o.File, m.Pss + o.Pss, m.Private + o.Private}
}

// parseRollup reads /proc/PID/smaps_rollup.
func parseRollup(b []byte) (memory, error) {
	v := map[string]int64{}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		name, rest, ok := strings.Cut(s.Text(), ":")
		f := strings.Fields(rest)
		if !ok || len(f) != 2 || f[1] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return memory{}, fmt.Errorf("smaps_rollup: %s: %w", name, err)
		}
		v[name] = n << 10
	}
	rss, ok := v["Rss"]
	if !ok {
		return memory{}, errors.New("smaps_rollup: no line Rss")
	}
	return memory{
		Anon: v["Anonymous"], File: rss - v["Anonymous"], Pss: v["Pss"],
		Private: v["Private_Clean"] + v["Private_Dirty"],
	}, nil
}

func memoryOf(pids []int) (memory, error) {
	var sum memory
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return memory{}, fmt.Errorf("memory of process %d: %w", pid, err)
		}
		m, err := parseRollup(b)
		if err != nil {
			return memory{}, fmt.Errorf("process %d: %w", pid, err)
		}
		sum = sum.add(m)
	}
	return sum, nil
}

// lockHolder is the main process of a skiff instance.
func lockHolder(dataDir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("skiff of %s: %w", dataDir, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("lock of %s: %w", dataDir, err)
	}
	return []int{pid}, nil
}

// instancePIDs are the processes of a skiff instance: the one that holds the lock
// of its data directory, and the helpers that run from the directory's programs.
// What runs inside pods is not skiff's.
func instancePIDs(dataDir string) ([]int, error) {
	pids, err := lockHolder(dataDir)
	if err != nil {
		return nil, err
	}
	main := pids[0]
	bin, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return nil, err
	}
	bin = filepath.Join(bin, "bin") + "/"
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == main {
			continue
		}
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		case err == nil && strings.HasPrefix(exe, bin):
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}
