package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const period = 100000

// limit writes a group's limits.
func (t *Tree) limit(path string, l Limits) error {
	type setting struct{ controller, file, value string }
	var all []setting
	if t.v2 {
		quota := "max"
		if l.Quota > 0 {
			quota = strconv.FormatInt(l.Quota, 10)
		}
		memory := "max"
		if l.Memory > 0 {
			memory = strconv.FormatInt(l.Memory, 10)
		}
		all = []setting{
			{"cpu", "cpu.weight", strconv.FormatUint(weight(l.Shares), 10)},
			{"cpu", "cpu.max", quota + " " + strconv.Itoa(period)},
			{"memory", "memory.max", memory},
		}
	} else {
		quota, memory := int64(-1), int64(-1)
		if l.Quota > 0 {
			quota = l.Quota
		}
		if l.Memory > 0 {
			memory = l.Memory
		}
		all = []setting{
			{"cpu", "cpu.shares", strconv.FormatInt(max(l.Shares, 2), 10)},
			{"cpu", "cpu.cfs_period_us", strconv.Itoa(period)},
			{"cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10)},
			{"memory", "memory.limit_in_bytes", strconv.FormatInt(memory, 10)},
		}
	}
	pids := "max"
	if l.PIDs > 0 {
		pids = strconv.FormatInt(l.PIDs, 10)
	}
	all = append(all, setting{"pids", "pids.max", pids})
	for _, s := range all {
		h := t.with(s.controller)
		if h == nil {
			continue
		}
		file := filepath.Join(h.dir, path, s.file)
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == s.value {
			continue
		}
		err := os.WriteFile(file, []byte(s.value), 0)
		unlimited := strings.HasPrefix(s.value, "max") || s.value == "-1" || s.file == "cpu.cfs_period_us"
		if err != nil && !(unlimited && errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("set %s of control group %s to %s: %w", s.file, path, s.value, err)
		}
	}
	return nil
}

// LimitAll sets what all pods together may use. It fails where they have more memory
// already, which only version 1 refuses to take away.
func (t *Tree) LimitAll(l Limits) error {
	if err := t.prepare(); err != nil {
		return err
	}
	return t.limit(t.path(""), l)
}

// Memory is what all pods together have, in bytes, without file pages that have not
// been used for a while and can go at once; 0 before there was a pod.
func (t *Tree) Memory() (int64, error) {
	h := t.with("memory")
	if h == nil {
		return 0, errors.New("there is no memory controller")
	}
	dir, file, inactive := filepath.Join(h.dir, t.path("")), "memory.usage_in_bytes", "total_inactive_file"
	if t.v2 {
		file, inactive = "memory.current", "inactive_file"
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	used, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err = errors.Join(err, perr); err != nil {
		return 0, fmt.Errorf("read %s of all pods: %w", file, err)
	}
	stat, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return 0, fmt.Errorf("read memory.stat of all pods: %w", err)
	}
	for l := range strings.Lines(string(stat)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(l), " "); name == inactive {
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read memory.stat of all pods: %w", err)
			}
			used -= min(used, n)
		}
	}
	return used, nil
}

// weight is the version 2 form of CPU shares; 1024 shares are a weight of 100.
func weight(shares int64) uint64 {
	if shares <= 2 {
		return 1
	}
	if shares >= 262144 {
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34.0)))
}

// weighBurstable gives the burstable pods together what they request. t.mu is held.
func (t *Tree) weighBurstable() error {
	h := t.with("cpu")
	if h == nil {
		return nil
	}
	file, least := "cpu.shares", int64(2)
	if t.v2 {
		file, least = "cpu.weight", 1
	}
	dir := filepath.Join(h.dir, t.path("burstable"))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read control groups: %w", err)
	}
	var sum int64
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), "pod") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), file))
		if err != nil {
			continue // just removed
		}
		n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		sum += n
	}
	most := int64(262144)
	if t.v2 {
		most = 10000
	}
	value := strconv.FormatInt(min(max(sum, least), most), 10)
	if b, err := os.ReadFile(filepath.Join(dir, file)); err == nil && strings.TrimSpace(string(b)) == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s of burstable pods to %s: %w", file, value, err)
	}
	return nil
}
