// Package keeper lends skiff's listening sockets to a resident process, so that
// the next skiff listens on with the connections that waited meanwhile.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"skiff/internal/host"
	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/wire"
)

const socket = "keeper.sock"

// Dir is where an instance's keeper lives.
func Dir(i host.Instance) string { return i.Run("keeper") }

// Keeper is a connection to the keeper of a directory.
type Keeper struct {
	w   *wire.Conn
	dir string
}

// Open reaches the keeper of dir (made with mode 0700 where absent), and starts
// one of program where none answers.
func Open(ctx context.Context, program, dir string) (*Keeper, error) {
	if k, err := Connect(dir); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	if _, err := pod.SpawnKeeper(ctx, program, dir); err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	return Connect(dir)
}

// Connect reaches a keeper that runs.
func Connect(dir string) (*Keeper, error) {
	w, err := wire.Dial(dir, socket, nil)
	if err != nil {
		return nil, err
	}
	return &Keeper{w: w, dir: dir}, nil
}

// Put gives the keeper a copy of f under name, in place of an earlier one. A
// net.Listener's file comes from its File method.
func (k *Keeper) Put(ctx context.Context, name string, f *os.File) error {
	_, _, err := k.w.Call(ctx, "put", map[string]string{"name": name}, f)
	return err
}

// Get returns a copy of what is kept under name; fs.ErrNotExist when nothing is.
// net.FileListener and net.FilePacketConn take it.
func (k *Keeper) Get(ctx context.Context, name string) (*os.File, error) {
	m, _, err := k.w.Call(ctx, "get", map[string]string{"name": name})
	if errors.Is(err, syscall.ENOENT) {
		return nil, fmt.Errorf("kept socket %q: %w", name, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	if m.File == nil {
		return nil, fmt.Errorf("kept socket %q: the keeper sent none", name)
	}
	return m.File, nil
}

// Names lists what is kept.
func (k *Keeper) Names(ctx context.Context) ([]string, error) {
	_, items, err := k.w.Call(ctx, "names", nil)
	var out []string
	for _, m := range items {
		out = append(out, m.Fields["name"])
	}
	return out, err
}

// Drop closes the keeper's copy.
func (k *Keeper) Drop(ctx context.Context, name string) error {
	_, _, err := k.w.Call(ctx, "drop", map[string]string{"name": name})
	return err
}

// Shutdown ends the keeper, and with it what nobody else holds open.
func (k *Keeper) Shutdown(ctx context.Context) error {
	if _, _, err := k.w.Call(ctx, "shutdown", nil); err != nil && !errors.Is(err, wire.ErrClosed) {
		return err
	}
	select {
	case <-k.w.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dying bounds how long a keeper that ends already, and is no longer to be reached, may
// take.
const dying = 10 * time.Second

// End ends the keeper that lives in dir and waits until it is gone; lived tells whether
// there was one.
func End(ctx context.Context, dir string) (lived bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, dying)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ; pod.Alive(dir); lived = true {
		k, err := Connect(dir)
		if err == nil {
			err = k.Shutdown(ctx)
			k.Close()
		}
		select {
		case <-ctx.Done():
			return true, errors.Join(err, ctx.Err())
		case <-tick.C:
		}
	}
	return lived, nil
}

// Close ends the connection, not the keeper.
func (k *Keeper) Close() { k.w.Close() }
