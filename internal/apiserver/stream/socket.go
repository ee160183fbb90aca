package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// socket is the client's WebSocket connection.
type socket struct {
	ws *websocket.Conn
	mu sync.Mutex // one message is written at a time
	// pongs are answers that are owed. They are written beside the messages, so
	// that a client which does not read holds up no one but itself.
	pongs chan string
}

// accept upgrades the client's connection; where that fails, it has been answered.
func accept(w http.ResponseWriter, r *http.Request, protocol string) (*socket, error) {
	up := websocket.Upgrader{
		Subprotocols: []string{protocol},
		// Who may come in was decided by its credentials, which a browser does not
		// send on its own.
		CheckOrigin: func(*http.Request) bool { return true },
	}
	ws, err := up.Upgrade(w, r, nil)
	if err != nil {
		return nil, err
	}
	s := &socket{ws: ws, pongs: make(chan string, 1)}
	ws.SetPingHandler(func(data string) error {
		select {
		case s.pongs <- data:
		default: // one answer says it for all
		}
		return nil
	})
	return s, nil
}

// send writes one binary message.
func (s *socket) send(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ws.WriteMessage(websocket.BinaryMessage, b)
}

// keepAlive answers and asks until ctx ends or the client is found gone; then it
// closes the connection.
func (s *socket) keepAlive(ctx context.Context) {
	// Unblocks a write to a client that does not read.
	stop := context.AfterFunc(ctx, func() { s.ws.Close() })
	defer stop()
	defer s.ws.Close()
	t := time.NewTicker(pingPeriod)
	defer t.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case data := <-s.pongs:
			err = s.ws.WriteControl(websocket.PongMessage, []byte(data), time.Time{})
		case <-t.C:
			err = s.ws.WriteControl(websocket.PingMessage, nil, time.Time{})
		}
		if err != nil && !errors.Is(err, websocket.ErrCloseSent) {
			return
		}
	}
}

// part says goodbye, and gives the client the time to read what was sent before:
// closing at once could take it away.
func (s *socket) part(code int, read <-chan struct{}) {
	by := time.Now().Add(partingTime)
	if err := s.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, ""), by); err == nil {
		t := time.NewTimer(partingTime)
		defer t.Stop()
		select {
		case <-read:
		case <-t.C:
		}
	}
	s.ws.Close()
}

// discard reads until the client closes.
func (s *socket) discard() {
	for {
		_, r, err := s.ws.NextReader()
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return
		}
	}
}

// left tells whether an error is no more than the end of a connection.
func left(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) ||
		websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived, websocket.CloseAbnormalClosure)
}
