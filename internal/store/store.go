// Package store is the contract of skiff's one durable store: a flat, ordered
// space of keys in which every change has a revision.
//
// Two implementations exist: store/etcd (embedded or external, the durable one)
// and store/mem (tests and simulation). Both pass store/storetest.
//
// # Revisions
//
// The store has one revision, a counter that grows by one with every successful
// write. A key remembers the revision that created it and the one that last
// changed it. Reads at an older revision work until that revision is compacted.
//
// # Keys and values
//
// Keys and values are the ones that kube-apiserver writes: keys under
// "/registry/", values opaque here. A value passes a Transformer (encryption at
// rest) whose context is its key; see Transform.
//
// # Guarantees
//
//   - A write that returned without an error is on disk (fsync) and survives
//     kill -9.
//   - A write that returned ErrUnknown may or may not have happened.
//   - Get and List without a revision are linearizable.
//   - A watch delivers every change of its prefix once, in revision order, all
//     changes of one revision in one Batch.
//
// Only this package and those below it know etcd.
package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// KV is one key with its value as of a revision. Value must not be modified.
type KV struct {
	Key       string
	Value     []byte
	CreateRev int64 // revision that created the key
	ModRev    int64 // revision of this value
}

// EventType tells a put from a deletion.
type EventType uint8

// The kinds of change.
const (
	Put EventType = iota
	Delete
)

// Event is one change. For Delete, KV has the key and the deletion's revision
// as ModRev, and no value. KV.CreateRev == KV.ModRev tells a creation.
type Event struct {
	Type EventType
	KV   KV
}

// Batch is what a watch delivers: the changes up to and including Revision that
// were not delivered before. A batch without events reports progress: nothing
// in the prefix changed up to Revision.
type Batch struct {
	Events   []Event
	Revision int64
}

// ListOptions narrow a List.
type ListOptions struct {
	// Revision to read at; 0 is the newest, linearizable.
	Revision int64
	// Limit is the largest number of keys returned; 0 is no limit.
	Limit int64
	// After skips every key up to and including this one.
	After string
	// CountOnly returns Count alone.
	CountOnly bool
}

// Page is the answer to a List.
type Page struct {
	KVs []KV
	// Revision the page was read at (the store's revision for a newest read).
	Revision int64
	// More tells that Limit cut the page; continue with After at Revision.
	More bool
	// Count of all keys in the prefix after ListOptions.After.
	Count int64
}

// WriteOptions go with Create and Update.
type WriteOptions struct {
	// TTL removes the key this long after the write; 0 keeps it. Resolution is a
	// second; implementations may share one timer between keys written within
	// the same minute, so that a key lives up to a minute longer.
	TTL time.Duration
}

// Op is one conditional write of a Batch call.
type Op struct {
	Key string
	// Value to put; nil deletes the key.
	Value []byte
	// ExpectRev is the ModRev that the key must have; 0 means that the key must
	// not exist (a creation).
	ExpectRev int64
	TTL       time.Duration
}

// OpResult is the outcome of one Op: its revision, or an error of the kinds that
// Create, Update and Delete return.
type OpResult struct {
	Revision int64
	Err      error
}

// Store is the contract.
type Store interface {
	// Get returns key as of rev (0: newest, linearizable). ErrNotFound where it
	// does not exist; ErrCompacted, ErrFutureRev for an impossible rev.
	Get(ctx context.Context, key string, rev int64) (KV, error)
	// List returns the keys that start with prefix, in key order.
	List(ctx context.Context, prefix string, o ListOptions) (Page, error)
	// Create puts a key that must not exist, else *ExistsError. It returns the
	// write's revision.
	Create(ctx context.Context, key string, value []byte, o WriteOptions) (int64, error)
	// Update puts a key whose ModRev must be expectRev, else *ConflictError with
	// the current state, or ErrNotFound. No key has revision 0.
	Update(ctx context.Context, key string, value []byte, expectRev int64, o WriteOptions) (int64, error)
	// Delete removes a key whose ModRev must be expectRev, else as Update.
	Delete(ctx context.Context, key string, expectRev int64) (int64, error)
	// Batch does independent conditional writes, each succeeding or failing on
	// its own, with a revision of its own, at the same time: they share the
	// store's syncs of the disk. Results are in the order of ops, revisions are
	// in none. No two ops may name one key. The error is for the whole call
	// (closed, timeout: each op's outcome is then unknown).
	Batch(ctx context.Context, ops []Op) ([]OpResult, error)
	// Revision returns the store's current revision, linearizable (ReadIndex
	// where there is a quorum): no write acknowledged before the call has a
	// higher one.
	Revision(ctx context.Context) (int64, error)
	// Watch delivers the changes of prefix with a revision greater than after.
	// Its channel is closed when ctx ends or the watch breaks; Err then says why
	// (ErrCompacted where a revision after it is compacted, so that one may watch
	// after the revision compacted to, and after the one before that). Progress batches come on
	// RequestProgress, and now and then by themselves.
	Watch(ctx context.Context, prefix string, after int64) (Watch, error)
	// Compact forgets revisions below rev. A rev already compacted is no error, a
	// future one ErrFutureRev.
	Compact(ctx context.Context, rev int64) error
	// Compacted returns the revision of the last compaction, 0 for none.
	Compacted(ctx context.Context) (int64, error)
	// Close ends the store and every watch.
	Close() error
}

// Watch is a running watch.
type Watch interface {
	// Batches has every change in order. The receiver must drain it; the
	// implementation buffers without losing changes.
	Batches() <-chan Batch
	// RequestProgress asks for a Batch with at least the store's revision at the
	// time of the call.
	RequestProgress(ctx context.Context) error
	// Err returns why Batches was closed; nil while it is open or after ctx ended.
	Err() error
}

// Errors of the store. Compare with errors.Is and errors.As.
var (
	ErrNotFound  = errors.New("key not found")
	ErrCompacted = errors.New("required revision has been compacted")
	ErrFutureRev = errors.New("required revision is a future revision")
	// ErrUnknown: the outcome of a write is unknown (timeout, lost leader).
	ErrUnknown = errors.New("outcome of the write is unknown")
	ErrClosed  = errors.New("store is closed")
	// ErrNoSpace: the store's quota or its disk is full; reads and deletions work.
	ErrNoSpace  = errors.New("store is out of space")
	ErrTooLarge = errors.New("value is too large")
)

// ExistsError refuses a creation.
type ExistsError struct{ Current KV }

func (e *ExistsError) Error() string { return fmt.Sprintf("key %q exists", e.Current.Key) }

// ConflictError refuses a conditional write; Current is the key as it is.
type ConflictError struct{ Current KV }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("key %q is at revision %d", e.Current.Key, e.Current.ModRev)
}

// Transformer turns a value into what is stored and back: encryption at rest.
// key is the context: a stored value moved to another key does not decode.
type Transformer interface {
	ToStore(ctx context.Context, key string, value []byte) ([]byte, error)
	// FromStore also tells whether the value should be written anew (an old key
	// or no encryption).
	FromStore(ctx context.Context, key string, stored []byte) (value []byte, stale bool, err error)
}
