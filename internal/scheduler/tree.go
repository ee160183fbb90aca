package scheduler

// tree finds the slot with the greatest key in constant time and takes a changed
// key in logarithmic time: a tournament, of which every inner place holds the
// winner of the two below. Key 0 never wins against another.
type tree struct {
	size int // a power of two
	keys []uint64
	win  []int32 // of the inner places, from 1
}

func (t *tree) reset(slots int) {
	size := 1
	for size < slots {
		size *= 2
	}
	if size != t.size {
		t.size, t.keys, t.win = size, make([]uint64, size), make([]int32, size)
		return
	}
	clear(t.keys)
}

func (t *tree) winner(i int) int32 {
	if i >= t.size {
		return int32(i - t.size)
	}
	return t.win[i]
}

func (t *tree) settle(i int) {
	a, b := t.winner(2*i), t.winner(2*i+1)
	if t.keys[b] > t.keys[a] {
		a = b
	}
	t.win[i] = a
}

// build settles all places, after keys were written.
func (t *tree) build() {
	for i := t.size - 1; i > 0; i-- {
		t.settle(i)
	}
}

func (t *tree) set(slot int, key uint64) {
	t.keys[slot] = key
	for i := (t.size + slot) / 2; i > 0; i /= 2 {
		t.settle(i)
	}
}

// best returns the slot with the greatest key, false where all are 0.
func (t *tree) best() (int, bool) {
	if t.size == 0 {
		return 0, false
	}
	slot := 0
	if t.size > 1 {
		slot = int(t.win[1])
	}
	return slot, t.keys[slot] != 0
}
