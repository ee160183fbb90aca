package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Image is a line of the image list.
type Image struct {
	ID      string    `json:"id"`
	Digest  string    `json:"digest,omitempty"` // the manifest's
	Names   []string  `json:"names"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
}

// ImportOptions say how a tar becomes an image.
type ImportOptions struct {
	Names []string
	// RootFS takes the tar as a root file system, with the config below.
	RootFS     bool
	Entrypoint []string
	Cmd        []string
	Env        []string
	WorkingDir string
	User       string
}

// Values puts the options into a query.
func (o ImportOptions) Values() url.Values {
	q := url.Values{"name": o.Names, "entrypoint": o.Entrypoint, "cmd": o.Cmd, "env": o.Env}
	if o.RootFS {
		q.Set("rootfs", "true")
	}
	if o.WorkingDir != "" {
		q.Set("workdir", o.WorkingDir)
	}
	if o.User != "" {
		q.Set("user", o.User)
	}
	return q
}

// Images lists the images.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	resp, err := c.Do(ctx, http.MethodGet, "/images", nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out []Image
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

// Import makes images of a tar.
func (c *Client) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]Image, error) {
	resp, err := c.Do(ctx, http.MethodPost, "/images/import", o.Values(), r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out []Image
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

// Export writes images as an archive.
func (c *Client) Export(ctx context.Context, w io.Writer, refs []string, format string) error {
	resp, err := c.Do(ctx, http.MethodGet, "/images/export", url.Values{"ref": refs, "format": {format}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return err
	}
	// The archive is streamed: what fails on the way is told at its end.
	if msg := resp.Trailer.Get("Skiff-Error"); msg != "" {
		return errors.New(msg)
	}
	return nil
}

// Remove removes a name, or an image by its ID.
func (c *Client) Remove(ctx context.Context, ref string) error {
	resp, err := c.Do(ctx, http.MethodDelete, "/images", url.Values{"ref": {ref}}, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Tag gives an image a further name.
func (c *Client) Tag(ctx context.Context, ref, name string) error {
	resp, err := c.Do(ctx, http.MethodPost, "/images/tag", url.Values{"ref": {ref}, "name": {name}}, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
