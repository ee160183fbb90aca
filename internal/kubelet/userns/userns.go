// Package userns gives pods with a user namespace of their own (KEP-127) the IDs that
// they have on the host. Every pod has as many, at a multiple of their number, and no
// two have the same. What a pod has stands in the file userns of its directory, as
// upstream's kubelet writes it, from before anything is made with it: it outlives the
// kubelet and goes with the pod.
package userns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// Unit is what the number of a pod's IDs is a multiple of, and how many a pod has by
// default.
const Unit = 65536

// file is the name of a pod's record in its directory.
const file = "userns"

// Deps is what an Allocator needs.
type Deps struct {
	// Dir is the directory of a pod, All lists those that there are.
	Dir func(types.UID) string
	All func() []types.UID
	// IDsPerPod is Unit by default.
	IDsPerPod uint32
	// MaxPods is how many pods there must be IDs for.
	MaxPods int
	// First and Length are the IDs there are; all but the first IDsPerPod by default.
	First, Length uint32
	// Pick is any of n numbers from 0 on; a random one by default, so that neighbours
	// on a host seldom pick the same.
	Pick func(n int) int
}

// Allocator gives IDs out. Its methods may be called concurrently.
type Allocator struct {
	d     Deps
	slots int // how many pods there is room for

	mu   sync.Mutex
	by   map[types.UID]uint32 // a pod's first ID
	used map[uint32]types.UID
}

// New takes over what is recorded. What cannot be, since it is damaged or another pod
// has it, is among the problems, and told again when the pod asks for its IDs.
func New(d Deps) (a *Allocator, problems []error, err error) {
	if d.IDsPerPod == 0 {
		d.IDsPerPod = Unit
	}
	if d.Length == 0 {
		d.First, d.Length = d.IDsPerPod, uint32(1<<32-uint64(d.IDsPerPod))
	}
	if d.Pick == nil {
		d.Pick = rand.IntN
	}
	n := d.IDsPerPod
	switch {
	case n%Unit != 0:
		return nil, nil, fmt.Errorf("kubelet user namespace length %v is not a multiple of %d", n, Unit)
	case d.First%n != 0:
		return nil, nil, fmt.Errorf("kubelet user assigned ID %v is not a multiple of %v", d.First, n)
	case d.First < n:
		return nil, nil, fmt.Errorf("kubelet user assigned ID %v must be greater or equal to %v", d.First, n)
	case d.Length%n != 0:
		return nil, nil, fmt.Errorf("kubelet user assigned IDs length %v is not a multiple of %v", d.Length, n)
	case int(d.Length/n) < d.MaxPods:
		return nil, nil, fmt.Errorf("kubelet user assigned IDs are not enough to support %v pods", d.MaxPods)
	}
	a = &Allocator{d: d, slots: int(d.Length / n), by: map[types.UID]uint32{}, used: map[uint32]types.UID{}}
	for _, pod := range d.All() {
		if err := a.takeOver(pod); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, fmt.Errorf("record pod mappings for existing pod %q: %w", pod, err))
		}
	}
	return a, problems, nil
}

// Get returns the first of a pod's IDs on the host and how many it has, giving it some
// where it has none. The pod's directory must be there.
func (a *Allocator) Get(pod types.UID) (first, length uint32, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	err = a.takeOver(pod)
	if errors.Is(err, fs.ErrNotExist) {
		if err = a.give(pod); err != nil {
			return 0, 0, fmt.Errorf("create user namespace: %w", err)
		}
	} else if err != nil {
		return 0, 0, fmt.Errorf("user namespace: %w", err)
	}
	return a.by[pod], a.d.IDsPerPod, nil
}

// Release takes a pod's IDs back: nothing of it runs any more. A pod that has none is
// no error.
func (a *Allocator) Release(pod types.UID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	first, ok := a.by[pod]
	if !ok {
		return nil
	}
	if err := os.Remove(filepath.Join(a.d.Dir(pod), file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release the IDs of a pod: %w", err)
	}
	delete(a.by, pod)
	delete(a.used, first)
	return nil
}

// mapping is one of upstream's record, in which there is one for each kind of ID, and
// both are the same.
type mapping struct {
	HostID      uint32 `json:"hostId"`
	ContainerID uint32 `json:"containerId"`
	Length      uint32 `json:"length"`
}

type record struct {
	UIDMappings []mapping `json:"uidMappings"`
	GIDMappings []mapping `json:"gidMappings"`
}

// takeOver notes what is recorded for a pod; fs.ErrNotExist where nothing is.
func (a *Allocator) takeOver(pod types.UID) error {
	b, err := os.ReadFile(filepath.Join(a.d.Dir(pod), file))
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return fs.ErrNotExist
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("invalid user namespace mappings file: %w", err)
	}
	const wrong = "invalid user namespace configuration: "
	switch {
	case len(r.UIDMappings) != 1:
		return errors.New(wrong + "no more than one mapping allowed.")
	case len(r.GIDMappings) != 1:
		return errors.New(wrong + "GID and UID mappings should be identical.")
	case r.UIDMappings[0] != r.GIDMappings[0]:
		return errors.New(wrong + "GID and UID mapping should be identical")
	case r.UIDMappings[0].ContainerID != 0:
		return errors.New(wrong + "UID 0 must be mapped")
	}
	return a.note(pod, r.UIDMappings[0].HostID, r.UIDMappings[0].Length)
}

// note has a pod own the IDs from first on.
func (a *Allocator) note(pod types.UID, first, length uint32) error {
	have, known := a.by[pod]
	other, taken := a.used[first]
	switch {
	case length != a.d.IDsPerPod:
		return fmt.Errorf("wrong user namespace length %v", length)
	case first%length != 0:
		return fmt.Errorf("wrong user namespace offset specified %v", first)
	case known && have != first:
		return fmt.Errorf("different user namespace range already used by pod %q", pod)
	case first < a.d.First || int((first-a.d.First)/length) >= a.slots:
		return fmt.Errorf("id %v is out of range", first)
	case taken && other != pod:
		return fmt.Errorf("range picked for pod %q already taken", pod)
	}
	a.by[pod], a.used[first] = first, pod
	return nil
}

// give finds a pod IDs and records them.
func (a *Allocator) give(pod types.UID) error {
	if first, ok := a.by[pod]; ok { // the record was lost
		return a.write(pod, first)
	}
	start := a.d.Pick(a.slots)
	for i := range a.slots {
		first := a.d.First + uint32((start+i)%a.slots)*a.d.IDsPerPod
		if _, taken := a.used[first]; taken {
			continue
		}
		if err := a.write(pod, first); err != nil {
			return err
		}
		a.by[pod], a.used[first] = first, pod
		return nil
	}
	return errors.New("could not find an empty slot to allocate a user namespace")
}

// write leaves a pod's record so that it is there, or not, after whatever happens: the
// IDs may own files that are not the pod's alone.
func (a *Allocator) write(pod types.UID, first uint32) error {
	m := []mapping{{HostID: first, Length: a.d.IDsPerPod}}
	b, err := json.Marshal(record{m, m})
	if err != nil {
		return err
	}
	dir := a.d.Dir(pod)
	f, err := os.CreateTemp(dir, "."+file)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone where all went well
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, file)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
