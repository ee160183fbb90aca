// Package admin is the local door to a running skiff: HTTP over a unix socket that
// only root can open. It serves what concerns this host and not the cluster:
// status, images, builds, the end of the process.
//
// The half that needs no cluster (images, builds) also runs inside the command
// itself when skiff is down.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Status describes a running skiff.
type Status struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Ready    bool      `json:"ready"`
	Server   string    `json:"server,omitempty"`
	NodeName string    `json:"nodeName,omitempty"`
	NodeIP   string    `json:"nodeIP,omitempty"`
	DataDir  string    `json:"dataDir"`
	// Release is the version of the program, or "dev"; Build a hash of what it was
	// built from.
	Release string `json:"release,omitempty"`
	Build   string `json:"build,omitempty"`
	// Unit is the systemd unit that it runs as; empty where it runs as none.
	Unit string `json:"unit,omitempty"`
}

// Health is how a running skiff is, and what it takes of the machine.
type Health struct {
	// Healthy: it is Ready, and all of its parts are well.
	Healthy bool    `json:"healthy"`
	Process Process `json:"process"`
	Parts   []Part  `json:"parts,omitempty"`
}

// Process is what the process takes.
type Process struct {
	// Memory is all that is resident, Private what is no page of a file among it,
	// Heap what Go's objects take, bytes.
	Memory  int64 `json:"memoryBytes"`
	Private int64 `json:"privateBytes"`
	Heap    int64 `json:"heapBytes"`
	// CPU is the share of one CPU in the last half to whole minute, CPUSeconds what
	// was used since the start.
	CPU        float64 `json:"cpu"`
	CPUSeconds float64 `json:"cpuSeconds"`
	Goroutines int     `json:"goroutines"`
}

// Part is one part of a process.
type Part struct {
	Name    string `json:"name"`
	Healthy bool   `json:"healthy"`
	// State is "ok", or what is wrong.
	State string `json:"state"`
	// Goroutines that the part began. Memory and CPU of one process cannot be told
	// apart by its parts: the figures say what makes them grow.
	Goroutines int      `json:"goroutines"`
	Figures    []Figure `json:"figures,omitempty"`
}

// Figure is a measure of a part.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Unit is "bytes" or "days"; empty for a plain number.
	Unit string `json:"unit,omitempty"`
}

// Add adds a figure.
func (p *Part) Add(name string, value float64, unit string) {
	p.Figures = append(p.Figures, Figure{name, value, unit})
}

// Host is what the door opens to; the app implements it.
type Host interface {
	Status(ctx context.Context) (Status, error)
	// Health asks every part how it is; that takes a moment.
	Health(ctx context.Context) (Health, error)
	// Stop ends the process; with pods, all pods of this node first.
	Stop(pods bool)
	// RenewCertificates issues certificates anew, all where none is named, and
	// returns the names of those.
	RenewCertificates(ctx context.Context, names []string) ([]string, error)
	// Images handles /images and /build; nil while there are none.
	Images() http.Handler
	Containers
}

// Listen opens the socket. A socket that nobody answers on is left over from a
// killed skiff and is replaced.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("admin socket %s: another skiff of this name is running", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	return l, nil
}

// Serve answers on l until ctx ends.
func Serve(ctx context.Context, l net.Listener, h Host) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", answer(h.Status))
	mux.HandleFunc("GET /health", answer(h.Health))
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		h.Stop(r.URL.Query().Get("pods") != "false")
	})
	mux.HandleFunc("POST /certs/renew", func(w http.ResponseWriter, r *http.Request) {
		issued, err := h.RenewCertificates(r.Context(), r.URL.Query()["name"])
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(issued)
	})
	images := func(w http.ResponseWriter, r *http.Request) {
		if i := h.Images(); i != nil {
			i.ServeHTTP(w, r)
			return
		}
		http.Error(w, "skiff is starting, or runs no containers", http.StatusServiceUnavailable)
	}
	mux.HandleFunc("/images", images)
	mux.HandleFunc("/images/", images)
	mux.HandleFunc("/build", images)
	serveContainers(mux, h)
	mux.HandleFunc("/build/", images)
	// For those who look for where time and memory go:
	// curl --unix-socket admin.sock http://skiff/debug/pprof/heap.
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return srv.Close()
	}
}

// answer serves what get returns, as JSON.
func answer[T any](get func(context.Context) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := get(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

// Client talks to a running skiff.
type Client struct {
	http *http.Client
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Dial returns a client of the socket at path.
func Dial(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{dial: dial, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// ErrNotRunning: nobody answers on the socket.
var ErrNotRunning = errors.New("skiff is not running")

// Status asks for the status.
func (c *Client) Status(ctx context.Context) (Status, error) { return ask[Status](ctx, c, "/status") }

// Health asks every part how it is.
func (c *Client) Health(ctx context.Context) (Health, error) { return ask[Health](ctx, c, "/health") }

func ask[T any](ctx context.Context, c *Client, path string) (T, error) {
	var v T
	resp, err := c.Do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	return v, json.NewDecoder(resp.Body).Decode(&v)
}

// Stop ends the process and returns at once.
func (c *Client) Stop(ctx context.Context, pods bool) error {
	resp, err := c.Do(ctx, http.MethodPost, "/stop", url.Values{"pods": {fmt.Sprint(pods)}}, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// RenewCertificates issues certificates anew, all where none is named, and returns
// the names of those.
func (c *Client) RenewCertificates(ctx context.Context, names []string) ([]string, error) {
	resp, err := c.Do(ctx, http.MethodPost, "/certs/renew", url.Values{"name": names}, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var issued []string
	return issued, json.NewDecoder(resp.Body).Decode(&issued)
}

// End is Stop, and waits until the process is gone. It returns ErrNotRunning where
// there is none.
func (c *Client) End(ctx context.Context, pods bool) error {
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(st.PID, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", st.PID, err)
	}
	defer unix.Close(fd)
	if err := c.Stop(ctx, pods); err != nil {
		return err
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", st.PID, err)
		}
		if n > 0 {
			return nil
		}
	}
	return ctx.Err()
}

// Do sends a request. An answer of 400 or more is an error with its text.
func (c *Client) Do(ctx context.Context, method, path string, q url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "skiff", Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if err = notRunning(err); errors.Is(err, ErrNotRunning) {
			return nil, err
		}
		if method == http.MethodGet && ctx.Err() == nil {
			return nil, fmt.Errorf("%w: %w", ErrNotRunning, err) // it was killed while it was asked
		}
		return nil, err
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp, nil
}

// notRunning is ErrNotRunning where err is that nobody listens.
func notRunning(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return ErrNotRunning
	}
	return err
}

// refusal is the text of an answer of 400 or more.
func refusal(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return err
	}
	return errors.New(string(trimNewline(b)))
}

func trimNewline(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}
