package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
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
