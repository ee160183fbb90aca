package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/host"
)

// hold keeps what a container wrote beyond its end, for the next pod of the same name:
// that one is another, and is made only when the first is gone. It stands on disk, and
// outlives this process and the machine.
type hold struct {
	ID        string    `json:"id"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Until     time.Time `json:"until"`
	// Boot is that of a container whose writes were not synced; "" where they are.
	Boot string `json:"boot,omitempty"`

	taken bool // by a container that is being made; guarded by Runtime.mu
}

// HoldTime is how long what a container wrote is held.
const HoldTime = 10 * time.Minute

func heldDir(i host.Instance) string { return i.Data("runtime", "held") }

func (h *hold) is(m *runtimeapi.PodSandboxMetadata) bool {
	return h.Namespace == m.GetNamespace() && h.Name == m.GetName()
}

func (h *hold) durable(boot string) bool { return h.Boot == "" || h.Boot == boot }

func (h *hold) file() string { return h.ID + ".json" }

// Hold keeps what the container id, which has ended, wrote for the next pod with the name
// and namespace of its own, until a container of that pod has begun with it or the time is
// over. It is no part of CRI. A second call counts from then on, also where the container
// is removed meanwhile. The error's code is NotFound where there is no such container,
// FailedPrecondition where it runs.
func (r *Runtime) Hold(_ context.Context, id string, d time.Duration) error {
	r.holdOp.Lock()
	defer r.holdOp.Unlock()
	r.mu.Lock()
	c := r.conts[id]
	r.mu.Unlock()
	if c != nil { // it is not removed meanwhile
		c.op.Lock()
		defer c.op.Unlock()
	}
	r.mu.Lock()
	before := r.holds[id]
	h, err := r.newHold(id, before)
	if err == nil {
		h.Until = r.Now().Add(d)
		r.holds[id] = h
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err = os.MkdirAll(heldDir(r.Instance), 0o700); err == nil {
		err = writeSynced(heldDir(r.Instance), h.file(), h)
	}
	if err != nil {
		r.mu.Lock()
		if r.holds[id] == h {
			delete(r.holds, id)
			if before != nil {
				r.holds[id] = before
			}
		}
		r.mu.Unlock()
		return fmt.Errorf("hold container: %w", err)
	}
	r.holdChanged()
	return nil
}

// newHold is one of a container that is there, or was when it was held before. r.mu is
// held.
func (r *Runtime) newHold(id string, before *hold) (*hold, error) {
	c := r.conts[id]
	switch {
	case c == nil && (before == nil || before.taken):
		return nil, status.Errorf(codes.NotFound, "container %q: not found", id)
	case c == nil:
		return &hold{ID: id, Namespace: before.Namespace, Name: before.Name, Boot: before.Boot}, nil
	case c.state == runtimeapi.ContainerState_CONTAINER_RUNNING:
		return nil, status.Errorf(codes.FailedPrecondition, "container %q is running", id)
	case c.sb.users != nil:
		return nil, status.Errorf(codes.FailedPrecondition, "container %q has owners that no other pod has", id)
	}
	m := c.sb.config.GetMetadata()
	h := &hold{ID: id, Namespace: m.GetNamespace(), Name: m.GetName()}
	if !c.keeps() {
		h.Boot = c.sb.rec.Boot
	}
	return h, nil
}

// holdChanged has endHolds look at the clock again.
func (r *Runtime) holdChanged() {
	select {
	case r.holdsChanged <- struct{}{}:
	default:
	}
}

// endHolds ends holds when their time is over, until ctx is done.
func (r *Runtime) endHolds(ctx context.Context) error {
	for {
		t := time.NewTimer(r.endHoldsOnce(ctx))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-r.holdsChanged:
			t.Stop()
		case <-t.C:
		}
	}
}

// endHoldsOnce ends the holds whose time is over, and returns when to look again.
func (r *Runtime) endHoldsOnce(ctx context.Context) time.Duration {
	next := HoldTime
	var over []*hold
	now := r.Now()
	r.mu.Lock()
	for _, h := range r.holds {
		switch left := h.Until.Sub(now); {
		case h.taken: // it tells
		case left <= 0:
			over = append(over, h)
		default:
			next = min(next, left)
		}
	}
	r.mu.Unlock()
	for _, h := range over {
		if err := r.endHold(ctx, h); err != nil {
			r.Log.Error("end the hold of a container's file system", "container", h.ID, "err", err)
			next = min(next, time.Minute)
		}
	}
	return next
}

// endHold ends a hold, and removes what is held unless its container is there still.
func (r *Runtime) endHold(ctx context.Context, h *hold) error {
	r.holdOp.Lock()
	defer r.holdOp.Unlock()
	r.mu.Lock()
	c := r.conts[h.ID]
	r.mu.Unlock()
	if c != nil { // a removal under way either knows of the hold and is over, or will not
		c.op.Lock()
		defer c.op.Unlock()
	}
	r.mu.Lock()
	if r.holds[h.ID] != h || h.taken {
		r.mu.Unlock()
		return nil
	}
	gone := r.conts[h.ID] == nil
	r.mu.Unlock()
	if gone {
		if err := r.Snapshots.Remove(ctx, h.ID); err != nil {
			return err
		}
	}
	r.forgetHold(h)
	return nil
}

// forgetHold ends a hold alone.
func (r *Runtime) forgetHold(h *hold) {
	if err := os.Remove(filepath.Join(heldDir(r.Instance), h.file())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.Log.Error("end a hold", "container", h.ID, "err", err) // the next runtime finds that there is nothing to hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds[h.ID] == h {
		delete(r.holds, h.ID)
	}
}

// isHeld tells that what a container wrote stays when it is removed.
func (r *Runtime) isHeld(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.holds[id] != nil
}

// adoptHolds reads the holds, and drops those that are over or hold nothing: sweep
// removes what nobody holds.
func (r *Runtime) adoptHolds(ctx context.Context) error {
	entries, err := os.ReadDir(heldDir(r.Instance))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	keys, err := r.Snapshots.Keys(ctx)
	if err != nil {
		return fmt.Errorf("list root file systems: %w", err)
	}
	for _, e := range entries {
		h := &hold{}
		err := readRecord(heldDir(r.Instance), e.Name(), h)
		if err == nil && e.Name() == h.file() && r.Now().Before(h.Until) && h.durable(r.boot) && slices.Contains(keys, h.ID) {
			r.holds[h.ID] = h
			continue
		}
		if err != nil && !strings.HasPrefix(e.Name(), ".") {
			r.Log.Warn("a hold without a readable record is dropped", "err", err)
		}
		if err := os.Remove(filepath.Join(heldDir(r.Instance), e.Name())); err != nil {
			return err
		}
	}
	return nil
}
