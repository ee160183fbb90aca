package eviction

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Settings are those of KubeletConfiguration (kubelet.config.k8s.io/v1beta1), by
// signal.
type Settings struct {
	Hard, Soft, SoftGrace, MinimumReclaim map[string]string
	// MergeDefaults adds the default hard thresholds for signals that Hard leaves out.
	// Where Hard is nil they are the thresholds in any case.
	MergeDefaults bool
}

// defaultHard are upstream's default thresholds. They were made for servers: on a
// machine that is also somebody's own, with a terabyte of disk, 15% of it may be free
// room of a hundred gigabytes. So the shares of disks, where they are nobody's explicit
// wish, come to no more than atMost.
var (
	defaultHard = map[string]string{
		string(MemoryAvailable): "100Mi", string(NodeFsAvailable): "10%", string(NodeFsInodesFree): "5%",
		string(ImageFsAvailable): "15%", string(ImageFsInodesFree): "5%",
	}
	atMost = map[Signal]int64{NodeFsAvailable: 5 << 30, ImageFsAvailable: 10 << 30}
)

// Parse makes thresholds of settings. Errors have upstream's texts.
func Parse(s Settings) ([]Threshold, error) {
	out, err := statements(s.Hard)
	if err != nil {
		return nil, err
	}
	if s.Hard == nil || s.MergeDefaults {
		more, err := statements(defaultHard)
		if err != nil {
			return nil, err
		}
		for _, t := range more {
			if _, ok := s.Hard[string(t.Signal)]; !ok {
				t.Value.AtMost = atMost[t.Signal]
				out = append(out, t)
			}
		}
	}
	soft, err := statements(s.Soft)
	if err != nil {
		return nil, err
	}
	graces, err := graces(s.SoftGrace)
	if err != nil {
		return nil, err
	}
	reclaims, err := reclaims(s.MinimumReclaim)
	if err != nil {
		return nil, err
	}
	for _, t := range soft {
		var ok bool
		if t.Grace, ok = graces[t.Signal]; !ok {
			return nil, fmt.Errorf("grace period must be specified for the soft eviction threshold %v", t.Signal)
		}
		out = append(out, t)
	}
	for i := range out {
		if r, ok := reclaims[out[i].Signal]; ok {
			out[i].Reclaim = &r
		}
	}
	// What pods may have of memory in all is another limit for the same threshold.
	for _, t := range out {
		if t.Signal == MemoryAvailable && t.Grace == 0 {
			t.Signal = AllocatableMemoryAvailable
			out = append(out, t)
		}
	}
	return slices.DeleteFunc(out, func(t Threshold) bool {
		return t.Signal == ContainerFsAvailable || t.Signal == ContainerFsInodesFree
	}), nil
}

func unsupported(signal Signal) error {
	if signal.Resource() == "" {
		return fmt.Errorf("unsupported eviction signal %v", signal)
	}
	return nil
}

func statements(m map[string]string) ([]Threshold, error) {
	var out []Threshold
	for _, key := range slices.Sorted(maps.Keys(m)) {
		signal, text := Signal(key), m[key]
		if err := unsupported(signal); err != nil {
			return nil, err
		}
		if text == "0%" || text == "100%" {
			continue // how a threshold is switched off
		}
		if strings.HasSuffix(text, "%") {
			p, err := percentage(text)
			switch {
			case err != nil:
				return nil, err
			case p < 0:
				return nil, fmt.Errorf("eviction percentage threshold %v must be >= 0%%: %s", signal, text)
			case p > 1:
				return nil, fmt.Errorf("eviction percentage threshold %v must be <= 100%%: %s", signal, text)
			}
			out = append(out, Threshold{Signal: signal, Value: Value{Percentage: p}})
			continue
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, err
		}
		if q.Sign() <= 0 {
			return nil, fmt.Errorf("eviction threshold %v must be positive: %s", signal, &q)
		}
		out = append(out, Threshold{Signal: signal, Value: Value{Quantity: &q}})
	}
	return out, nil
}

func percentage(text string) (float32, error) {
	v, err := strconv.ParseFloat(strings.TrimRight(text, "%"), 32)
	return float32(v) / 100, err
}

func graces(m map[string]string) (map[Signal]time.Duration, error) {
	out := map[Signal]time.Duration{}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		signal := Signal(key)
		if err := unsupported(signal); err != nil {
			return nil, err
		}
		d, err := time.ParseDuration(m[key])
		if err != nil {
			return nil, err
		}
		if d < 0 {
			return nil, fmt.Errorf("invalid eviction grace period specified: %v, must be a positive value", m[key])
		}
		out[signal] = d
	}
	return out, nil
}

func reclaims(m map[string]string) (map[Signal]Value, error) {
	out := map[Signal]Value{}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		signal, text := Signal(key), m[key]
		if err := unsupported(signal); err != nil {
			return nil, err
		}
		if strings.HasSuffix(text, "%") {
			p, err := percentage(text)
			if err != nil {
				return nil, err
			}
			if p <= 0 {
				return nil, fmt.Errorf("eviction percentage minimum reclaim %v must be positive: %s", signal, text)
			}
			out[signal] = Value{Percentage: p}
			continue
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, err
		}
		if q.Sign() < 0 {
			return nil, fmt.Errorf("negative eviction minimum reclaim specified for %v", signal)
		}
		out[signal] = Value{Quantity: &q}
	}
	return out, nil
}

// Reserved is what hard thresholds keep from pods of a capacity: memory and ephemeral
// storage.
func (c Config) Reserved(capacity corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for _, t := range c.Thresholds {
		name := t.Signal.Resource()
		if t.Grace == 0 && (t.Signal == MemoryAvailable || t.Signal == NodeFsAvailable) {
			out[name] = t.Value.Of(capacity[name])
		}
	}
	return out
}
