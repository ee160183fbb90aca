package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/gorilla/websocket"

	"skiff/internal/client"
)

// ErrNoContainer: this node runs no container of that ID.
var ErrNoContainer = errors.New("no such container runs on this node")

// Containers is what the API has no words for: processes and their signals. IDs are
// the runtime's.
type Containers interface {
	// Signal sends a signal to a container's first process.
	Signal(ctx context.Context, id string, signal int) error
	// Processes are a container's, by their numbers on the host.
	Processes(ctx context.Context, id string) ([]int, error)
	// Hold keeps what a container that has ended wrote for the next pod of its pod's
	// name, for a while, also when the container is removed.
	Hold(ctx context.Context, id string) error
	// Command runs a command in a container for a client that speaks WebSocket, as
	// exec of the API does. After an error the request is not answered yet.
	Command(w http.ResponseWriter, r *http.Request, id string, c Command) error
	// StartCommand starts one that nobody is attached to.
	StartCommand(ctx context.Context, id string, c Command) error
}

// Command is one more process of a container. What it does not say is as the
// container's first process has it.
type Command struct {
	Args []string
	// User is USER[:GROUP], by name or number; Dir an absolute path; Env has NAME=VALUE.
	User, Dir  string
	Env        []string
	Stdin, TTY bool
}

func (c *Command) query() url.Values {
	q := url.Values{"command": c.Args, "env": c.Env}
	for name, v := range map[string]string{"user": c.User, "dir": c.Dir} {
		if v != "" {
			q.Set(name, v)
		}
	}
	for name, on := range map[string]bool{"stdin": c.Stdin, "tty": c.TTY} {
		if on {
			q.Set(name, "true")
		}
	}
	return q
}

func commandOf(q url.Values) Command {
	return Command{
		Args: q["command"], User: q.Get("user"), Dir: q.Get("dir"), Env: q["env"],
		Stdin: q.Get("stdin") == "true", TTY: q.Get("tty") == "true",
	}
}

func serveContainers(mux *http.ServeMux, h Containers) {
	fail := func(w http.ResponseWriter, err error) {
		code := http.StatusInternalServerError
		if errors.Is(err, ErrNoContainer) {
			code = http.StatusNotFound
		}
		http.Error(w, err.Error(), code)
	}
	mux.HandleFunc("POST /containers/{id}/signal", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.URL.Query().Get("signal"))
		if err != nil || n < 1 || n > 64 {
			http.Error(w, "signal: must be between 1 and 64", http.StatusBadRequest)
			return
		}
		if err := h.Signal(r.Context(), r.PathValue("id"), n); err != nil {
			fail(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /containers/{id}/hold", func(w http.ResponseWriter, r *http.Request) {
		if err := h.Hold(r.Context(), r.PathValue("id")); err != nil {
			fail(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /containers/{id}/exec", func(w http.ResponseWriter, r *http.Request) {
		if err := h.Command(w, r, r.PathValue("id"), commandOf(r.URL.Query())); err != nil {
			fail(w, err)
		}
	})
	mux.HandleFunc("POST /containers/{id}/exec", func(w http.ResponseWriter, r *http.Request) {
		if err := h.StartCommand(r.Context(), r.PathValue("id"), commandOf(r.URL.Query())); err != nil {
			fail(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /containers/{id}/processes", func(w http.ResponseWriter, r *http.Request) {
		pids, err := h.Processes(r.Context(), r.PathValue("id"))
		if err != nil {
			fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(pids)
	})
}

// Signal sends a signal to a container's first process.
func (c *Client) Signal(ctx context.Context, id string, signal int) error {
	resp, err := c.Do(ctx, http.MethodPost, "/containers/"+url.PathEscape(id)+"/signal", url.Values{"signal": {fmt.Sprint(signal)}}, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Hold keeps what a container that has ended wrote for the next pod of its pod's name.
// The error is ErrNoContainer where this node has no such container.
func (c *Client) Hold(ctx context.Context, id string) error {
	resp, err := c.Do(ctx, http.MethodPost, "/containers/"+url.PathEscape(id)+"/hold", nil, nil)
	if err != nil {
		return unknown(err)
	}
	return resp.Body.Close()
}

// unknown is ErrNoContainer where a refusal says that.
func unknown(err error) error {
	if err.Error() == ErrNoContainer.Error() {
		return ErrNoContainer
	}
	return err
}

// Processes are a container's, by their numbers on the host.
func (c *Client) Processes(ctx context.Context, id string) ([]int, error) {
	resp, err := c.Do(ctx, http.MethodGet, "/containers/"+url.PathEscape(id)+"/processes", nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out []int
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

// Command runs a command in a container, with its streams, and returns its exit code.
// The error is ErrNoContainer where this node runs no such container.
func (c *Client) Command(ctx context.Context, id string, cmd Command, s client.Streams) (int, error) {
	d := websocket.Dialer{Subprotocols: []string{client.CommandProtocol}, NetDialContext: c.dial}
	u := url.URL{Scheme: "ws", Host: "skiff", Path: "/containers/" + url.PathEscape(id) + "/exec", RawQuery: cmd.query().Encode()}
	ws, resp, err := d.DialContext(ctx, u.String(), nil)
	if err != nil {
		if resp == nil || resp.StatusCode < 400 {
			return 0, notRunning(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound {
			return 0, ErrNoContainer
		}
		return 0, refusal(resp)
	}
	return client.Converse(ctx, ws, s)
}

// StartCommand starts a command in a container, and leaves it there. The error is
// ErrNoContainer where this node runs no such container.
func (c *Client) StartCommand(ctx context.Context, id string, cmd Command) error {
	resp, err := c.Do(ctx, http.MethodPost, "/containers/"+url.PathEscape(id)+"/exec", cmd.query(), nil)
	if err != nil {
		return unknown(err)
	}
	return resp.Body.Close()
}
