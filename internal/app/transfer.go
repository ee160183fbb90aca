package app

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"skiff/internal/admin"
	"skiff/internal/runtime/image"
)

// layerProgress keeps the last that was heard of each layer until it is sent, so
// that whoever moves bytes waits for nobody who watches.
type layerProgress struct {
	mu     sync.Mutex
	order  []string
	latest map[string]admin.LayerEvent
}

func (p *layerProgress) note(e image.Event) {
	id := e.Digest.String()
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, waits := p.latest[id]; !waits {
		p.order = append(p.order, id)
	}
	p.latest[id] = admin.LayerEvent{Digest: id, Stage: string(e.Stage), Ends: e.Stage.Ends(), Done: e.Done, Total: e.Total, From: e.From}
}

func (p *layerProgress) take() []admin.LayerEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]admin.LayerEvent, 0, len(p.order))
	for _, id := range p.order {
		out = append(out, p.latest[id])
	}
	p.order, p.latest = nil, map[string]admin.LayerEvent{}
	return out
}

// progressPeriod is how often progress is told.
const progressPeriod = 100 * time.Millisecond

// registryAuth are credentials as the image store has them; nil for none.
func registryAuth(a *admin.Auth) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{Username: a.Username, Password: a.Password, Auth: a.Auth, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
}

// transfer runs a pull or push and sends its progress as lines of JSON.
func transfer(w http.ResponseWriter, r *http.Request, run func(context.Context, admin.TransferRequest, image.Access, image.Progress) (*admin.Transfer, error)) {
	var req admin.TransferRequest
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, "request: "+err.Error(), http.StatusBadRequest)
		return
	}
	access := image.Access{Insecure: req.Insecure, Auth: registryAuth(req.Auth)}
	p := &layerProgress{latest: map[string]admin.LayerEvent{}}
	type result struct {
		done *admin.Transfer
		err  error
	}
	ended := make(chan result, 1)
	go func() { // ends with the request's context, and is waited for
		done, err := run(r.Context(), req, access, p.note)
		ended <- result{done, err}
	}()
	enc, flusher := json.NewEncoder(w), http.NewResponseController(w)
	// A client that is gone ends the context; what cannot be sent to it is dropped.
	send := func(events ...admin.TransferEvent) {
		for _, e := range events {
			_ = enc.Encode(e)
		}
		_ = flusher.Flush()
	}
	layers := func() {
		for _, e := range p.take() {
			send(admin.TransferEvent{Layer: &e})
		}
	}
	tick := time.NewTicker(progressPeriod)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			layers()
		case res := <-ended:
			layers()
			if res.err != nil {
				send(admin.TransferEvent{Error: res.err.Error()})
				return
			}
			send(admin.TransferEvent{Done: res.done})
			return
		}
	}
}

func (h *imageHandler) pull(w http.ResponseWriter, r *http.Request) {
	transfer(w, r, func(ctx context.Context, req admin.TransferRequest, access image.Access, tell image.Progress) (*admin.Transfer, error) {
		n, err := image.ParseName(req.Ref)
		if err != nil {
			return nil, err
		}
		o := image.PullOptions{Access: access, Progress: tell}
		if req.Platform != "" {
			p, err := image.ParsePlatform(req.Platform)
			if err != nil {
				return nil, err
			}
			o.Platform = &p
		}
		before := ""
		if old, err := h.images.Resolve(ctx, n.String()); err == nil {
			before = old.ID
		}
		img, err := h.images.PullWith(ctx, req.Ref, o)
		if err != nil {
			return nil, err
		}
		// Who pulls by hand means the image for every pod.
		if err := h.images.Give(n.String()); err != nil {
			return nil, err
		}
		return &admin.Transfer{Image: describe(img), Name: n.String(), Digest: digestIn(img, n), Newer: img.ID != before}, nil
	})
}

// digestIn is the digest by which the repository of n knows the image.
func digestIn(img *image.Image, n image.Name) string {
	for _, d := range img.RepoDigests {
		if m, err := image.ParseName(d); err == nil && m.Repository() == n.Repository() {
			return m.Digest
		}
	}
	return img.Digest.String()
}

func (h *imageHandler) push(w http.ResponseWriter, r *http.Request) {
	transfer(w, r, func(ctx context.Context, req admin.TransferRequest, access image.Access, tell image.Progress) (*admin.Transfer, error) {
		n, err := image.ParseName(req.Ref)
		if err != nil {
			return nil, err
		}
		img, err := h.images.Push(ctx, req.Ref, image.PushOptions{Access: access, Compression: req.Compression, Progress: tell})
		if err != nil {
			return nil, err
		}
		out := &admin.Transfer{Image: describe(img), Name: n.String(), Digest: img.Digest.String()}
		if raw, err := h.images.ReadBlob(img.Digest); err == nil {
			out.Bytes = int64(len(raw))
		}
		return out, nil
	})
}
