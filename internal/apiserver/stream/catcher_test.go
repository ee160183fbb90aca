package stream

import (
	"bufio"
	"net"
	"net/http"
)

// catcher hands out the connections that a handler takes over.
type catcher struct {
	http.ResponseWriter
	conns chan<- net.Conn
}

func (c catcher) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(c.ResponseWriter).Hijack()
	if err == nil {
		c.conns <- conn
	}
	return conn, rw, err
}
