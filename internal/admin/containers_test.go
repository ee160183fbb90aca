package admin

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
)

// holder is a host that has one container, and one whose files nobody may have.
type holder struct {
	Host
	held []string
}

var errRefused = errors.New("it is running")

func (h *holder) Hold(_ context.Context, id string) error {
	switch id {
	case "has":
		h.held = append(h.held, id)
		return nil
	case "runs":
		return errRefused
	}
	return ErrNoContainer
}

// TestHold: what a client hears when it asks to hold a container's files.
func TestHold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	c := Dial(path)
	if err := c.Hold(t.Context(), "has"); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a host: %v", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h) }()
	if err := c.Hold(ctx, "has"); err != nil || len(h.held) != 1 {
		t.Errorf("held: %v, %v", h.held, err)
	}
	if err := c.Hold(ctx, "elsewhere"); !errors.Is(err, ErrNoContainer) {
		t.Errorf("elsewhere: %v", err)
	}
	if err := c.Hold(ctx, "runs"); err == nil || err.Error() != errRefused.Error() {
		t.Errorf("refused: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
