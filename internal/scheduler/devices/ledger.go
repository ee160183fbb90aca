// Package devices keeps account of the devices that resource claims hold, of those
// that there are, and of the requests that extended resources amount to. Nothing
// here does I/O, and nothing is safe for concurrent use: it belongs to the
// scheduling loop.
package devices

import (
	"strconv"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/structured"
	"k8s.io/utils/ptr"
)

// Ledger knows every claim, as its writers last showed it, and what devices are
// taken: by allocations that are written and by such that were decided upon.
type Ledger struct {
	claims map[types.NamespacedName]*resourcev1.ResourceClaim
	// pending are allocations decided upon and not written, by claim.
	pending map[types.UID]*resourcev1.AllocationResult
	// held is what is counted in state of each claim.
	held  map[types.UID]*resourcev1.AllocationResult
	state structured.AllocatedState
	// devices and shares say how many of held have each: while a device changes hands,
	// from a decision to the claim made for it, two do.
	devices map[structured.DeviceID]int
	shares  map[structured.SharedDeviceID]int
	// special are the claims for extended resources, by the UID of their pod.
	special map[types.UID]*resourcev1.ResourceClaim
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{
		claims: map[types.NamespacedName]*resourcev1.ResourceClaim{}, pending: map[types.UID]*resourcev1.AllocationResult{},
		held: map[types.UID]*resourcev1.AllocationResult{}, special: map[types.UID]*resourcev1.ResourceClaim{},
		devices: map[structured.DeviceID]int{}, shares: map[structured.SharedDeviceID]int{},
		state: structured.AllocatedState{
			AllocatedDevices: sets.New[structured.DeviceID](), AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](),
			AggregatedCapacity: structured.NewConsumedCapacityCollection(),
		},
	}
}

func keyOf(c *resourcev1.ResourceClaim) types.NamespacedName {
	return types.NamespacedName{Namespace: c.Namespace, Name: c.Name}
}

// older tells that a is an earlier state of the same claim than b.
func older(a, b *resourcev1.ResourceClaim) bool {
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return a.UID == b.UID && errX == nil && errY == nil && x < y
}

// Put takes a state of a claim, which the ledger keeps; one that is older than what
// is known is passed over. An allocation that was pending and is written is pending
// no more.
func (l *Ledger) Put(c *resourcev1.ResourceClaim) {
	key := keyOf(c)
	if old, ok := l.claims[key]; ok {
		if older(c, old) {
			return
		}
		if old.UID != c.UID {
			l.Drop(old)
		}
	}
	l.claims[key] = c
	if pod := specialFor(c); pod != "" {
		l.special[pod] = c
	}
	if c.Status.Allocation != nil {
		delete(l.pending, c.UID)
	}
	l.count(c.UID, c.Status.Allocation)
}

// Drop forgets a claim that is gone.
func (l *Ledger) Drop(c *resourcev1.ResourceClaim) {
	key := keyOf(c)
	if now, ok := l.claims[key]; !ok || now.UID != c.UID {
		return
	}
	delete(l.claims, key)
	if pod := specialFor(c); pod != "" && l.special[pod] != nil && l.special[pod].UID == c.UID {
		delete(l.special, pod)
	}
	l.count(c.UID, nil)
}

// Claim returns a claim as it is known.
func (l *Ledger) Claim(namespace, name string) (*resourcev1.ResourceClaim, bool) {
	c, ok := l.claims[types.NamespacedName{Namespace: namespace, Name: name}]
	return c, ok
}

// SpecialOf returns the claim that was made for the extended resources of a pod.
func (l *Ledger) SpecialOf(pod types.UID) *resourcev1.ResourceClaim { return l.special[pod] }

// specialFor is the UID of the pod for whose extended resources a claim was made.
func specialFor(c *resourcev1.ResourceClaim) types.UID {
	if c.Annotations[resourcev1.ExtendedResourceClaimAnnotation] != "true" {
		return ""
	}
	for _, o := range c.OwnerReferences {
		if ptr.Deref(o.Controller, false) {
			return o.UID
		}
	}
	return ""
}

// Decide counts an allocation that is about to be written.
func (l *Ledger) Decide(claim types.UID, a *resourcev1.AllocationResult) {
	l.pending[claim] = a
	l.count(claim, a)
}

// Pending tells whether an allocation of a claim is about to be written.
func (l *Ledger) Pending(claim types.UID) bool { return l.pending[claim] != nil }

// Revoke takes a decision back; one that was written meanwhile stays.
func (l *Ledger) Revoke(claim types.UID) {
	if l.pending[claim] == nil {
		return
	}
	delete(l.pending, claim)
	l.count(claim, nil)
}

// Taken is what the allocator is to leave alone. It changes with the ledger.
func (l *Ledger) Taken() structured.AllocatedState { return l.state }

// count makes a the allocation that is counted for a claim; a pending one goes on
// being counted.
func (l *Ledger) count(claim types.UID, a *resourcev1.AllocationResult) {
	if p := l.pending[claim]; p != nil {
		a = p
	}
	if old := l.held[claim]; old == a {
		return
	} else if old != nil {
		l.add(old, false)
		delete(l.held, claim)
	}
	if a != nil {
		l.held[claim] = a
		l.add(a, true)
	}
}

// add counts the devices of an allocation, or uncounts them. Admin access takes
// nothing from others.
func (l *Ledger) add(a *resourcev1.AllocationResult, in bool) {
	for i := range a.Devices.Results {
		r := &a.Devices.Results[i]
		if ptr.Deref(r.AdminAccess, false) {
			continue
		}
		id := structured.MakeDeviceID(r.Driver, r.Pool, r.Device)
		if r.ShareID == nil {
			holders(l.devices, l.state.AllocatedDevices, id, in)
			continue
		}
		share := structured.MakeSharedDeviceID(id, r.ShareID)
		holders(l.shares, l.state.AllocatedSharedDeviceIDs, share, in)
		if r.ConsumedCapacity == nil {
			continue
		}
		if used := structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity); in {
			l.state.AggregatedCapacity.Insert(used)
		} else {
			l.state.AggregatedCapacity.Remove(used)
		}
	}
}

// holders counts one more or one less that has a device, which is taken while
// anybody has it.
func holders[ID comparable](count map[ID]int, taken sets.Set[ID], id ID, in bool) {
	if in {
		count[id]++
		taken.Insert(id)
		return
	}
	if count[id]--; count[id] <= 0 {
		delete(count, id)
		taken.Delete(id)
	}
}
