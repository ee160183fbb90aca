package cache

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"

	"skiff/internal/client"
)

// Encoding is a kind of bytes that an Item keeps.
type Encoding uint8

// The encodings kept.
const (
	JSON Encoding = iota
	Protobuf
	encodings
)

// Item is one object at one revision. It never changes.
type Item struct {
	// Key below the collection's prefix: "namespace/name", or "name".
	Key string
	// Rev is its revision, CreateRev the one at which it was created.
	Rev, CreateRev int64

	col  *Collection
	obj  client.Object
	raw  []byte // of a lazy collection
	size int
	hash [32]byte
	enc  [encodings]atomic.Pointer[[]byte]
}

// Object returns the object: shared, never to be modified. In a lazy collection
// it is decoded anew; nil if that fails.
func (it *Item) Object() client.Object {
	if it.raw == nil {
		return it.obj
	}
	obj, err := it.col.cfg.Decode(it.col.cfg.Prefix+it.Key, it.raw, it.Rev)
	if err != nil {
		it.col.c.cfg.Log.Error("stored object does not decode", "key", it.Key, "rev", it.Rev, "err", err)
		return nil
	}
	return obj
}

// Size of the stored value, bytes.
func (it *Item) Size() int { return it.size }

// Encoded returns the object's bytes in an encoding, made by encode at most once
// while they are kept. The bytes are shared: never to be modified.
func (it *Item) Encoded(e Encoding, encode func(client.Object) ([]byte, error)) ([]byte, error) {
	if b := it.enc[e].Load(); b != nil {
		return *b, nil
	}
	obj := it.Object()
	if obj == nil {
		return nil, fmt.Errorf("object %q does not decode", it.Key)
	}
	b, err := encode(obj)
	if err != nil {
		return nil, err
	}
	if it.enc[e].CompareAndSwap(nil, &b) {
		it.col.c.encodings.add(it, len(b))
	}
	return b, nil
}

func (it *Item) verify() {
	if it.col.c.cfg.Verify && it.obj != nil && hashObject(it.obj) != it.hash {
		panic(fmt.Sprintf("cache: object %s%s of revision %d was modified", it.col.cfg.Prefix, it.Key, it.Rev))
	}
}

func hashObject(obj client.Object) [32]byte {
	b, err := json.Marshal(obj)
	if err != nil {
		panic(err)
	}
	return sha256.Sum256(b)
}

// budget forgets the oldest encodings when all together take too much.
type budget struct {
	mu    sync.Mutex
	limit int64
	used  int64
	queue []kept
}

type kept struct {
	it *Item
	n  int
}

func (b *budget) add(it *Item, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, kept{it, n})
	b.used += int64(n)
	for b.used > b.limit && len(b.queue) > 1 {
		k := b.queue[0]
		b.queue[0] = kept{}
		b.queue = b.queue[1:]
		for e := range k.it.enc {
			k.it.enc[e].Store(nil)
		}
		b.used -= int64(k.n)
	}
}

// Object is an API object.
type Object = client.Object
