package admin

import (
	"bufio"
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
	ID      string            `json:"id"`
	Names   []string          `json:"names"`
	Digests []string          `json:"digests,omitempty"`
	Size    int64             `json:"size"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Platform is "linux/amd64".
	Platform string `json:"platform,omitempty"`
	// Users are the containers that need it.
	Users []string `json:"users,omitempty"`
}

// Removed is what a removal did.
type Removed struct {
	Untagged []string `json:"untagged,omitempty"`
	Deleted  []string `json:"deleted,omitempty"`
	// Reclaimed is what the disk got back, bytes.
	Reclaimed uint64 `json:"reclaimed,omitempty"`
}

// PruneRequest says which images go, of those that no container needs.
type PruneRequest struct {
	// All includes images that have names.
	All bool `json:"all,omitempty"`
	// Until spares what was made at or after that time.
	Until time.Time `json:"until,omitzero"`
	// Labels, "key" or "key=value", must be there; those of NoLabels must not.
	Labels   []string `json:"labels,omitempty"`
	NoLabels []string `json:"noLabels,omitempty"`
}

// Step is one step of an image's history.
type Step struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"createdBy"`
	Comment   string    `json:"comment,omitempty"`
	Size      int64     `json:"size"`
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

// BuildRequest is a build; paths are absolute, on this host.
type BuildRequest struct {
	Context    string            `json:"context,omitempty"`
	Dockerfile string            `json:"dockerfile,omitempty"`
	Content    []byte            `json:"content,omitempty"`
	Tags       []string          `json:"tags,omitempty"`
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	NoCache    bool              `json:"noCache,omitempty"`
	Pull       bool              `json:"pull,omitempty"`
}

// BuildEvent is one line of a build's progress. One of its fields is set.
type BuildEvent struct {
	Start  *BuildStart  `json:"start,omitempty"`
	Output *BuildOutput `json:"output,omitempty"`
	Done   *BuildDone   `json:"done,omitempty"`
	Warn   *BuildWarn   `json:"warn,omitempty"`
	Image  *Image       `json:"image,omitempty"`
	Error  string       `json:"error,omitempty"`
}

// BuildStart begins step N.
type BuildStart struct {
	N, Total int
	Name     string
}

// BuildOutput is what a step's command wrote.
type BuildOutput struct {
	N    int
	Data []byte
}

// BuildDone ends step N.
type BuildDone struct {
	N      int
	Cached bool
	Error  string
}

// BuildWarn tells of something doubtful.
type BuildWarn struct {
	File string
	Line int
	Text string
}

// BuildProgress hears what a build does.
type BuildProgress interface {
	Start(n, total int, name string)
	Output(n int, data []byte)
	Done(n int, cached bool, err error)
	Warn(file string, line int, text string)
	Close() error
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

// Remove removes a name, or an image by its ID. Without force, an image that a
// container needs stays, and the error names the container.
func (c *Client) Remove(ctx context.Context, ref string, force bool) (Removed, error) {
	q := url.Values{"ref": {ref}}
	if force {
		q.Set("force", "true")
	}
	return get[Removed](c.Do(ctx, http.MethodDelete, "/images", q, nil))
}

// Prune removes images that nothing needs.
func (c *Client) Prune(ctx context.Context, req PruneRequest) (Removed, error) {
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(json.NewEncoder(pw).Encode(req)) }()
	defer pr.Close()
	return get[Removed](c.Do(ctx, http.MethodPost, "/images/prune", nil, pr))
}

// Inspect returns all that is known of an image, as docker writes it.
func (c *Client) Inspect(ctx context.Context, ref string) (json.RawMessage, error) {
	return get[json.RawMessage](c.Do(ctx, http.MethodGet, "/images/inspect", url.Values{"ref": {ref}}, nil))
}

// History tells how an image came to be, the last step first.
func (c *Client) History(ctx context.Context, ref string) ([]Step, error) {
	return get[[]Step](c.Do(ctx, http.MethodGet, "/images/history", url.Values{"ref": {ref}}, nil))
}

// get reads an answer.
func get[T any](resp *http.Response, err error) (T, error) {
	var out T
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

// Tag gives an image a further name.
func (c *Client) Tag(ctx context.Context, ref, name string) error {
	resp, err := c.Do(ctx, http.MethodPost, "/images/tag", url.Values{"ref": {ref}, "name": {name}}, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Build builds an image and reports to p.
func (c *Client) Build(ctx context.Context, req BuildRequest, p BuildProgress) (*Image, error) {
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(json.NewEncoder(pw).Encode(req)) }()
	resp, err := c.Do(ctx, http.MethodPost, "/build", nil, pr)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil, errors.New("skiff ended during the build")
		}
		if err != nil {
			return nil, err
		}
		var e BuildEvent
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, err
		}
		switch {
		case e.Start != nil:
			p.Start(e.Start.N, e.Start.Total, e.Start.Name)
		case e.Output != nil:
			p.Output(e.Output.N, e.Output.Data)
		case e.Done != nil:
			var err error
			if e.Done.Error != "" {
				err = errors.New(e.Done.Error)
			}
			p.Done(e.Done.N, e.Done.Cached, err)
		case e.Warn != nil:
			p.Warn(e.Warn.File, e.Warn.Line, e.Warn.Text)
		case e.Image != nil:
			return e.Image, nil
		default:
			return nil, errors.New(e.Error)
		}
	}
}
