package kubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/kubelet/eviction"
)

// ImageGC rules when images that nothing uses are removed. The zero value never does.
type ImageGC struct {
	// High is how much of the file system of images may be in use, in percent, before
	// images are removed, down to Low. 0 and 100 are never.
	High, Low int
	// KeepHigh and KeepLow, where not 0, bound the room in bytes that the shares keep
	// free: with them High and Low are those of a smaller disk.
	KeepHigh, KeepLow int64
	// MinAge is how long an image is known before it may go; MaxAge, where not 0, how
	// long it may be unused.
	MinAge, MaxAge time.Duration
}

// enabled tells whether there is anything to look for.
func (p ImageGC) enabled() bool { return p.High > 0 && p.High < 100 || p.MaxAge > 0 }

// toFree is how much should be removed from a file system, 0 for nothing.
func (p ImageGC) toFree(capacity, available int64) int64 {
	keep := func(percent int, most int64) int64 {
		n := capacity * int64(100-percent) / 100
		if most != 0 {
			n = min(n, most)
		}
		return n
	}
	if p.High <= 0 || p.High >= 100 || used(capacity, available) < p.High || p.KeepHigh != 0 && available > keep(p.High, p.KeepHigh) {
		return 0
	}
	return max(keep(p.Low, p.KeepLow)-available, 0)
}

// used is how much of a file system is, in percent, rounded up as upstream does.
func used(capacity, available int64) int { return 100 - int(available*100/capacity) }

const (
	imageGCPeriod = 5 * time.Minute
	// allUnused removes every image that may go.
	allUnused = math.MaxInt64
)

// imageRecord is what is known of an image: when it was first seen, and when last used;
// the latter is zero for one that nobody was seen to use.
type imageRecord struct {
	id             string
	detected, used time.Time
	size           int64
	pinned         bool
}

// imageCollector removes images that nothing uses. How old they are it knows from its
// own looks: after a restart every image is new.
type imageCollector struct {
	k     *Kubelet
	began time.Time

	mu      sync.Mutex
	records map[string]*imageRecord
	// removed counts images by the reason: space or age.
	removed map[string]uint64
}

func newImageCollector(k *Kubelet) *imageCollector {
	return &imageCollector{k: k, records: map[string]*imageRecord{}, removed: map[string]uint64{}}
}

// run looks at the images every five minutes. A failure is told when it is not the
// first in a row.
func (c *imageCollector) run(ctx context.Context) error {
	if !c.k.d.ImageGC.enabled() {
		return nil
	}
	c.began = c.k.d.Now()
	failed := false
	for {
		err := c.collect(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			c.k.d.Log.Warn("collect images", "err", err)
			if failed {
				c.k.nodeEvent(corev1.EventTypeWarning, "ImageGCFailed", err.Error())
			}
		}
		failed = err != nil
		if !sleep(ctx, imageGCPeriod) {
			return nil
		}
	}
}

// collect removes images that are too old and, where the file system is too full, the
// least lately used of the others.
func (c *imageCollector) collect(ctx context.Context) error {
	p, now := c.k.d.ImageGC, c.k.d.Now()
	list, err := c.candidates(ctx, now)
	if err != nil {
		return err
	}
	// Of what was before this process nothing is known: nothing is old before it was
	// there that long.
	if p.MaxAge > 0 && now.Sub(c.began) > p.MaxAge {
		var errs []error
		list = slices.DeleteFunc(list, func(r imageRecord) bool {
			if now.Sub(r.used) <= p.MaxAge {
				return false
			}
			if err := c.remove(ctx, r, "age"); err != nil {
				errs = append(errs, err)
				return false
			}
			return true
		})
		if len(errs) > 0 {
			return fmt.Errorf("wanted to free images older than %v, encountered errors in image deletion: %v", p.MaxAge, errors.Join(errs...))
		}
	}
	seen := c.k.d.Observe()[eviction.ImageFsAvailable]
	capacity := seen.Capacity.Value()
	if capacity == 0 {
		err := errors.New("invalid capacity 0 on image filesystem")
		c.k.nodeEvent(corev1.EventTypeWarning, "InvalidDiskCapacity", err.Error())
		return err
	}
	available := min(seen.Available.Value(), capacity)
	want := p.toFree(capacity, available)
	if want == 0 {
		return nil
	}
	freed, err := c.freeOf(ctx, list, want, now)
	if err == nil && freed < want && c.k.d.FreeCache != nil {
		var more int64
		more, err = c.k.d.FreeCache(ctx, want-freed)
		freed += more
	}
	if err != nil || freed >= want {
		return err
	}
	m := fmt.Sprintf("Insufficient free disk space on the node's image filesystem (%d%% of %s used). "+
		"Failed to free sufficient space by deleting unused images (freed %d bytes). "+
		"Investigate disk usage, as it could be used by active images, logs, volumes, or other data.",
		used(capacity, available), sizeText(capacity), freed)
	c.k.nodeEvent(corev1.EventTypeWarning, "FreeDiskSpaceFailed", m)
	return errors.New(m)
}

// free removes images until so many bytes are free.
func (c *imageCollector) free(ctx context.Context, bytes int64) error {
	now := c.k.d.Now()
	list, err := c.candidates(ctx, now)
	if err != nil {
		return err
	}
	_, err = c.freeOf(ctx, list, bytes, now)
	return err
}

func (c *imageCollector) freeOf(ctx context.Context, list []imageRecord, bytes int64, now time.Time) (int64, error) {
	var freed int64
	var errs []error
	for _, r := range list {
		if now.Sub(r.detected) < c.k.d.ImageGC.MinAge {
			continue // pulled a moment ago, for a container that is about to be made
		}
		if err := c.remove(ctx, r, "space"); err != nil {
			errs = append(errs, err)
			continue
		}
		if freed += r.size; freed >= bytes {
			break
		}
	}
	if len(errs) > 0 {
		return freed, fmt.Errorf("wanted to free %d bytes, but freed %d bytes space with errors in image deletion: %w", bytes, freed, errors.Join(errs...))
	}
	return freed, nil
}

func (c *imageCollector) remove(ctx context.Context, r imageRecord, reason string) error {
	c.k.d.Log.Info("unused image is removed", "image", r.id, "size", r.size, "reason", reason)
	if err := c.k.d.Images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: r.id}); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.records, r.id)
	c.removed[reason]++
	return nil
}

// candidates are the images that nothing uses and that are not pinned, the least lately
// used first.
func (c *imageCollector) candidates(ctx context.Context, now time.Time) ([]imageRecord, error) {
	images, err := c.k.d.Images.ListImages(ctx, nil)
	if err != nil {
		return nil, err
	}
	here := map[string]bool{}
	for _, i := range images {
		here[i.Id] = true
	}
	if err := c.k.records.Prune(here, now); err != nil {
		c.k.d.Log.Warn("forget images that are gone", "err", err)
	}
	using, err := c.k.imagesInUse(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return note(c.records, images, using, now), nil
}

// note brings records up to date with the images there are and those in use, and
// returns those that may go, in their order.
func note(records map[string]*imageRecord, images []*runtimeapi.Image, using map[string]bool, now time.Time) []imageRecord {
	here := map[string]bool{}
	var out []imageRecord
	for _, i := range images {
		here[i.Id] = true
		r := records[i.Id]
		if r == nil {
			r = &imageRecord{id: i.Id, detected: now}
			records[i.Id] = r
		}
		r.size, r.pinned = int64(i.Size), i.Pinned
		switch {
		case using[i.Id]:
			r.used = now
		case !r.pinned:
			out = append(out, *r)
		}
	}
	maps.DeleteFunc(records, func(id string, _ *imageRecord) bool { return !here[id] })
	slices.SortFunc(out, func(a, b imageRecord) int {
		if c := a.used.Compare(b.used); c != 0 {
			return c
		}
		if c := a.detected.Compare(b.detected); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return out
}

// imagesInUse are the IDs of images that a container was made from or has mounted, and
// of those that a pod of this node names and that is not at its end: it will need them
// again, whether it has a container now or not.
func (k *Kubelet) imagesInUse(ctx context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	list, err := k.d.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		out[c.ImageId], out[c.ImageRef] = true, true
		resp, err := k.d.Runtime.ContainerStatus(ctx, c.Id, false)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, m := range resp.GetStatus().GetMounts() {
			out[m.GetImage().GetImage()] = true
		}
	}
	names := map[string]bool{}
	for _, w := range k.allWorkers() {
		p, gone := w.current()
		if gone || final(w.status.current().Phase) {
			continue
		}
		for name := range imagesOf(p) {
			names[name] = true
		}
	}
	for name := range names {
		resp, err := k.d.Images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: name}, false)
		if err == nil && resp.GetImage() != nil {
			out[resp.Image.Id] = true
		}
	}
	delete(out, "")
	return out, nil
}

// imagesOf are the names of images in a pod.
func imagesOf(p *corev1.Pod) map[string]bool {
	out := map[string]bool{}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			out[list[i].Image] = true
		}
	}
	for i := range p.Spec.EphemeralContainers {
		out[p.Spec.EphemeralContainers[i].Image] = true
	}
	for i := range p.Spec.Volumes {
		if v := p.Spec.Volumes[i].Image; v != nil {
			out[v.Reference] = true
		}
	}
	delete(out, "")
	return out
}

// sizeText is a size for people.
func sizeText(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/(1<<10), 0
	for v >= 1<<10 && unit < 3 {
		v, unit = v/(1<<10), unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGT"[unit])
}
