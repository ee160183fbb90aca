package runtime

import (
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventBuffer is how far a subscriber may lag before it is cut off: it lists
// anew then.
const eventBuffer = 4096

// broadcaster hands events to all subscribers in one order.
type broadcaster struct {
	mu   sync.Mutex
	subs map[chan *runtimeapi.ContainerEventResponse]bool
	done bool
}

func (b *broadcaster) subscribe() chan *runtimeapi.ContainerEventResponse {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := make(chan *runtimeapi.ContainerEventResponse, eventBuffer)
	if b.done {
		close(ch)
		return ch
	}
	if b.subs == nil {
		b.subs = map[chan *runtimeapi.ContainerEventResponse]bool{}
	}
	b.subs[ch] = true
	return ch
}

func (b *broadcaster) unsubscribe(ch chan *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs[ch] {
		delete(b.subs, ch)
		close(ch)
	}
}

func (b *broadcaster) send(e *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.subs {
		select {
		case ch <- e:
		default:
			delete(b.subs, ch)
			close(ch)
		}
	}
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = true
	for ch := range b.subs {
		delete(b.subs, ch)
		close(ch)
	}
}

// GetContainerEvents sends every change of a container or sandbox from now on.
func (r *Runtime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	ch := r.events.subscribe()
	defer r.events.unsubscribe(ch)
	for {
		select {
		case <-s.Context().Done():
			return nil
		case e, ok := <-ch:
			if !ok {
				if r.isStopping() {
					return status.Error(codes.Unavailable, "the runtime is stopping")
				}
				return status.Errorf(codes.ResourceExhausted, "more than %d events behind: list and subscribe again", eventBuffer)
			}
			if err := s.Send(e); err != nil {
				return err
			}
		}
	}
}

// notify tells subscribers of a change, with the state of the whole pod as it
// is now. id is a container's, or the sandbox's own.
func (r *Runtime) notify(s *sandbox, id string, t runtimeapi.ContainerEventType) {
	r.mu.Lock()
	e := &runtimeapi.ContainerEventResponse{
		ContainerId:        id,
		ContainerEventType: t,
		CreatedAt:          r.Now().UnixNano(),
		PodSandboxStatus:   s.status(),
	}
	for _, c := range r.conts {
		if c.sb == s {
			e.ContainersStatuses = append(e.ContainersStatuses, c.status())
		}
	}
	// Sent under the lock: events leave in the order of what they tell.
	r.events.send(e)
	r.mu.Unlock()
}
