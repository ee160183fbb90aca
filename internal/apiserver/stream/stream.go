// Package stream joins clients that speak WebSocket with kubelets that speak SPDY.
//
// A Command carries exec and attach: five channels of WebSocket messages (protocol
// v5.channel.k8s.io) become the SPDY streams stdin, stdout, stderr, error and
// resize (protocol v4.channel.k8s.io). A Tunnel carries port-forward: the client
// speaks SPDY inside of WebSocket messages, and the bytes go on as they are.
//
// Contract: Serve returns when both ends are closed and nothing runs any more. The
// end of either side ends the other: a client that leaves closes the remote
// process's streams, and a kubelet that is lost is told to the client as a failure,
// never as a success. What is in flight is bounded: a slow reader slows its writer.
package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/apimachinery/pkg/util/proxy"
)

const (
	commandV5    = "v5.channel.k8s.io"
	commandV4    = "v4.channel.k8s.io"
	tunnelPrefix = "SPDY/3.1+"
	tunnelSuffix = ".k8s.io"
	spdy31       = "SPDY/3.1"

	headerProtocol = "X-Stream-Protocol-Version"

	// handshakeTime is how long a kubelet may take to answer.
	handshakeTime = 30 * time.Second
	// partingTime is how long a client may take to close after it was told to.
	partingTime = 5 * time.Second
	// pingPeriod is how often each side is asked whether it is there.
	pingPeriod = 5 * time.Second
	// maxAnswer bounds what is read of an answer that is not a stream.
	maxAnswer = 64 << 10
	// bufferSize is the largest message to the client, bytes.
	bufferSize = 32 << 10
)

// IsCommand tells whether a request asks for what Command serves. Older WebSocket
// protocols are the kubelet's own.
func IsCommand(r *http.Request) bool {
	return websocket.IsWebSocketUpgrade(r) && slices.Contains(websocket.Subprotocols(r), commandV5)
}

// IsTunnel tells whether a request asks for what Tunnel serves.
func IsTunnel(r *http.Request) bool {
	return websocket.IsWebSocketUpgrade(r) && len(tunnelled(r)) > 0
}

// tunnelled are the protocols that a client wants to speak over SPDY.
func tunnelled(r *http.Request) []string {
	var out []string
	for _, p := range websocket.Subprotocols(r) {
		if strings.HasPrefix(p, tunnelPrefix) && strings.HasSuffix(p, tunnelSuffix) {
			out = append(out, strings.TrimPrefix(p, tunnelPrefix))
		}
	}
	return out
}

// Backend is where a kubelet serves a stream, and how it is reached.
type Backend struct {
	Location  *url.URL
	Transport http.RoundTripper
}

// upgrade asks the kubelet for SPDY with one of protocols. Where it agrees, the
// response is 101 and the connection is the caller's; otherwise the connection is
// closed and the response has its body.
func (b Backend) upgrade(ctx context.Context, protocols ...string) (net.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.Location.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", spdy31)
	for _, p := range protocols {
		req.Header.Add(headerProtocol, p)
	}
	conn, err := proxy.DialURL(ctx, b.Location, b.Transport)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	br := bufio.NewReader(conn)
	resp, err := exchange(conn, br, req)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		var body []byte
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		resp.Body.Close()
		resp.Body = io.NopCloser(strings.NewReader(string(body)))
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil && resp.StatusCode == http.StatusSwitchingProtocols {
		if !strings.EqualFold(resp.Header.Get("Upgrade"), spdy31) {
			err = errors.New("unable to upgrade: missing upgrade headers in response")
		} else {
			return &buffered{Conn: conn, r: br}, resp, nil
		}
	}
	conn.Close()
	if err != nil {
		return nil, nil, err
	}
	return nil, resp, nil
}

func exchange(w io.Writer, r *bufio.Reader, req *http.Request) (*http.Response, error) {
	if err := req.Write(w); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's answer: %w", err)
	}
	return resp, nil
}

// buffered is a connection of which some may have been read already. It may be
// closed more than once; what it says at its end interests nobody.
type buffered struct {
	net.Conn
	r    *bufio.Reader
	once sync.Once
}

func (b *buffered) Close() error {
	b.once.Do(func() { b.Conn.Close() })
	return nil
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }
