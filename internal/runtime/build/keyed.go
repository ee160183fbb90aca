package build

import (
	"context"
	"sync"
)

// keyed are locks by name. The zero value is ready.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when let go
}

// lock waits until nobody has the lock of that name, or ctx ends. unlock must be
// called once.
func (k *keyed) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		unlock, wait := k.try(name)
		if unlock != nil {
			return unlock, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// try takes the lock if it is free; otherwise wait is closed when it may be.
func (k *keyed) try(name string) (unlock func(), wait <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ch := k.held[name]; ch != nil {
		return nil, ch
	}
	if k.held == nil {
		k.held = map[string]chan struct{}{}
	}
	ch := make(chan struct{})
	k.held[name] = ch
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.held, name)
		close(ch)
	}, nil
}
