package alloc

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/api/resource"
	"skiff/internal/codec"
	"skiff/internal/store"
)

// PortsKey holds the RangeAllocation of node ports, as upstream's.
const PortsKey = "/registry/ranges/servicenodeports"

// portMap is the node ports that are taken, as the store held them at rev; 0 where
// it held none yet.
type portMap struct {
	first, size int
	bits        *big.Int // bit i is port first+i
	rev         int64
}

func newPortMap(first, last int32) portMap {
	return portMap{first: int(first), size: int(last-first) + 1, bits: new(big.Int)}
}

// spec names the range in the stored object.
func (m *portMap) spec() string { return fmt.Sprintf("%d-%d", m.first, m.first+m.size-1) }

func (m *portMap) offset(port int32) (int, bool) {
	i := int(port) - m.first
	return i, i >= 0 && i < m.size
}

func (m *portMap) has(i int) bool { return m.bits.Bit(i) == 1 }

// any picks a free port: from the upper part of the range, or where that is full
// from the lower one, which is for those who ask for a port by number.
func (m *portMap) any() (int, bool) {
	const least, most, part = 16, 128, 32
	lower := 0
	if m.size > least {
		lower = min(max(least, m.size/part), most)
	}
	for _, span := range [][2]int{{lower, m.size}, {0, lower}} {
		n := span[1] - span[0]
		if n == 0 {
			continue
		}
		start := rand.IntN(n)
		for i := range n {
			if at := span[0] + (start+i)%n; !m.has(at) {
				return at, true
			}
		}
	}
	return 0, false
}

// read takes over a stored value; a value of another range counts for nothing.
func (m *portMap) read(kv store.KV) (same bool, err error) {
	var obj corev1.RangeAllocation
	if err := codec.FromStored(kv.Value, kv.ModRev, &obj); err != nil {
		return false, fmt.Errorf("decode %q: %w", PortsKey, err)
	}
	m.rev = kv.ModRev
	m.bits = new(big.Int)
	if obj.Range != m.spec() {
		return false, nil
	}
	m.bits.SetBytes(obj.Data)
	return true, nil
}

func (m *portMap) encode() ([]byte, error) {
	return codec.Stored(corev1.SchemeGroupVersion.WithKind("RangeAllocation"),
		&corev1.RangeAllocation{Range: m.spec(), Data: m.bits.Bytes()})
}

// Errors, with the texts that clients see.
var (
	errNotStarted = errors.New("cannot allocate resources of type servicenodeportallocations at this time")
	errPortRange  = errors.New("the provided port range does not match the current port range")
)

// change applies f to the newest port map and stores what came of it; f is called
// again where another API server was faster.
func (a *Allocator) change(ctx context.Context, f func(*portMap) (changed bool, err error)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		if a.ports.rev == 0 {
			if err := a.load(ctx); err != nil {
				return err
			}
		}
		next := a.ports
		next.bits = new(big.Int).Set(a.ports.bits)
		changed, err := f(&next)
		if err == nil && changed {
			err = a.write(ctx, &next)
		}
		// A refusal, or that there is nothing to do, may come from an old map: only
		// a write proves that it was the newest.
		var conflict *store.ConflictError
		switch {
		case errors.As(err, &conflict):
			if err := a.take(conflict.Current); err != nil {
				return err
			}
		case errors.Is(err, store.ErrNotFound):
			a.ports.rev = 0
		case err == nil && changed:
			a.ports = next
			return nil
		default:
			rev := a.ports.rev
			if lerr := a.load(ctx); lerr != nil {
				return lerr
			}
			if a.ports.rev == rev {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (a *Allocator) load(ctx context.Context) error {
	kv, err := a.Store.Get(ctx, PortsKey, 0)
	if errors.Is(err, store.ErrNotFound) {
		return errNotStarted
	}
	if err != nil {
		return err
	}
	return a.take(kv)
}

// take makes a stored map the known one. A map of another range is not touched:
// who configured the other one has to agree first.
func (a *Allocator) take(kv store.KV) error {
	same, err := a.ports.read(kv)
	if err == nil && !same {
		a.ports.rev = 0
		err = errPortRange
	}
	return err
}

func (a *Allocator) write(ctx context.Context, m *portMap) error {
	value, err := m.encode()
	if err != nil {
		return err
	}
	m.rev, err = a.Store.Update(ctx, PortsKey, value, m.rev, store.WriteOptions{})
	if errors.Is(err, store.ErrUnknown) {
		a.ports.rev = 0 // what the store holds is to be read again
	}
	return err
}

// AllocatePort implements resource.ServiceAllocator.
func (a *Allocator) AllocatePort(ctx context.Context, port int32) (int32, error) {
	if port != 0 {
		if _, ok := a.ports.offset(port); !ok {
			return 0, fmt.Errorf("provided port is not in the valid range. The range of valid ports is %s", a.ports.spec())
		}
	}
	var got int32
	err := a.change(ctx, func(m *portMap) (bool, error) {
		i, _ := m.offset(port) // in range, as checked above
		if port == 0 {
			var ok bool
			if i, ok = m.any(); !ok {
				return false, resource.ErrRangeFull
			}
		} else if m.has(i) {
			return false, resource.ErrPortAllocated
		}
		m.bits.SetBit(m.bits, i, 1)
		got = int32(m.first + i)
		return true, nil
	})
	return got, err
}

// PortTaken implements resource.ServiceAllocator.
func (a *Allocator) PortTaken(ctx context.Context, port int32) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, ok := a.ports.offset(port)
	if !ok {
		return false, nil
	}
	if err := a.load(ctx); err != nil {
		return false, err
	}
	return a.ports.has(i), nil
}

// ReleasePort implements resource.ServiceAllocator.
func (a *Allocator) ReleasePort(ctx context.Context, port int32) error {
	return a.change(ctx, func(m *portMap) (bool, error) {
		i, ok := m.offset(port)
		if !ok || !m.has(i) {
			return false, nil
		}
		m.bits.SetBit(m.bits, i, 0)
		return true, nil
	})
}
