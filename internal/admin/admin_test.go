package admin

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
)

// A skiff that is killed while it is asked is one that does not run.
func TestStatusOfTheDying(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	for what, read := range map[string]int{"before it read": 0, "after it read": 1 << 16} {
		done := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil && read > 0 {
				_, err = c.Read(make([]byte, read))
			}
			if err == nil {
				err = c.Close()
			}
			done <- err
		}()
		if _, err := Dial(path).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", what, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(path).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("closed: %v", err)
	}
}
