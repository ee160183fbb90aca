package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// Auth are a registry's credentials.
type Auth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	Auth          string `json:"auth,omitempty"`
	IdentityToken string `json:"identityToken,omitempty"`
	RegistryToken string `json:"registryToken,omitempty"`
}

// TransferRequest is a pull or a push.
type TransferRequest struct {
	Ref string `json:"ref"`
	// Platform to pull in place of this machine's: "linux/arm64".
	Platform string `json:"platform,omitempty"`
	// Compression of layers that are pushed and have none: gzip, zstd, none.
	Compression string `json:"compression,omitempty"`
	Insecure    bool   `json:"insecure,omitempty"`
	Auth        *Auth  `json:"auth,omitempty"`
}

// TransferEvent is one line of a transfer's progress. One of its fields is set.
type TransferEvent struct {
	Layer *LayerEvent `json:"layer,omitempty"`
	Done  *Transfer   `json:"done,omitempty"`
	Error string      `json:"error,omitempty"`
}

// LayerEvent is how far a layer is.
type LayerEvent struct {
	Digest string `json:"digest"`
	// Stage as docker calls it; Ends is true at the last one.
	Stage string `json:"stage"`
	Ends  bool   `json:"ends,omitempty"`
	// Done and Total are bytes; Total is 0 at a stage that moves none.
	Done  int64  `json:"done,omitempty"`
	Total int64  `json:"total,omitempty"`
	From  string `json:"from,omitempty"`
}

// Transfer is how a transfer ended.
type Transfer struct {
	Image
	// Name is the canonical name, Digest what the registry knows it by, and Bytes
	// the size of the manifest.
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Bytes  int64  `json:"bytes,omitempty"`
	// Newer tells that a pull changed what the name means.
	Newer bool `json:"newer,omitempty"`
}

// Pull pulls an image and reports to progress.
func (c *Client) Pull(ctx context.Context, req TransferRequest, progress func(LayerEvent)) (*Transfer, error) {
	return c.transfer(ctx, "/images/pull", req, progress)
}

// Push pushes an image and reports to progress.
func (c *Client) Push(ctx context.Context, req TransferRequest, progress func(LayerEvent)) (*Transfer, error) {
	return c.transfer(ctx, "/images/push", req, progress)
}

func (c *Client) transfer(ctx context.Context, path string, req TransferRequest, progress func(LayerEvent)) (*Transfer, error) {
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(json.NewEncoder(pw).Encode(req)) }()
	resp, err := c.Do(ctx, http.MethodPost, path, nil, pr)
	pr.Close()
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil, errors.New("skiff ended during the transfer")
		}
		if err != nil {
			return nil, err
		}
		var e TransferEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, err
		}
		switch {
		case e.Layer != nil:
			progress(*e.Layer)
		case e.Done != nil:
			return e.Done, nil
		default:
			return nil, errors.New(e.Error)
		}
	}
}
