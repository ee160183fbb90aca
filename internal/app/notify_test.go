package app

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	"github.com/coreos/go-systemd/v22/daemon"
)

// What systemd waits for comes over its socket; without one nothing is sent.
func TestNotify(t *testing.T) {
	n := notifier{log: slog.New(slog.DiscardHandler), send: daemon.SdNotify}
	n.tell(daemon.SdNotifyReady)
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	for _, state := range []string{"STATUS=Starting: API server is done", daemon.SdNotifyReady} {
		n.tell(state)
		b := make([]byte, 200)
		k, err := c.Read(b)
		if err != nil || string(b[:k]) != state {
			t.Errorf("%q, %v", b[:k], err)
		}
	}
}
