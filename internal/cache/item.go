package cache

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
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
	// enc is read freely and written under the budget's lock alone.
	enc [encodings]atomic.Pointer[[]byte]
	// replaced, under that lock: no list shows the item any more.
	replaced bool
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
	it.col.c.encodings.add(it, e, b)
	return b, nil
}

// Kept returns the object's bytes in an encoding where they are kept, else nil.
func (it *Item) Kept(e Encoding) []byte {
	if b := it.enc[e].Load(); b != nil {
		return *b
	}
	return nil
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

// Object is an API object.
type Object = client.Object
