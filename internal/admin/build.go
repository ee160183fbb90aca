package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// BuildRequest is a build; paths are absolute, on this host. The fields are those
// of build.Request.
type BuildRequest struct {
	Context       string            `json:"context,omitempty"`
	Contexts      map[string]string `json:"contexts,omitempty"`
	Dockerfile    string            `json:"dockerfile,omitempty"`
	Content       []byte            `json:"content,omitempty"`
	Tags          []string          `json:"tags,omitempty"`
	Target        string            `json:"target,omitempty"`
	Platform      string            `json:"platform,omitempty"`
	Args          map[string]string `json:"args,omitempty"`
	Secrets       map[string][]byte `json:"secrets,omitempty"`
	SSH           map[string]string `json:"ssh,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
	NoCache       bool              `json:"noCache,omitempty"`
	NoCacheFilter []string          `json:"noCacheFilter,omitempty"`
	Pull          bool              `json:"pull,omitempty"`
	Insecure      bool              `json:"insecure,omitempty"`
	Network       string            `json:"network,omitempty"`
	Hosts         map[string]string `json:"hosts,omitempty"`
	ShmSize       int64             `json:"shmSize,omitempty"`
	// OutputType and OutputDest take the result elsewhere than into the store.
	OutputType string `json:"outputType,omitempty"`
	OutputDest string `json:"outputDest,omitempty"`
	// CacheFrom and CacheTo are caches that others read or made.
	CacheFrom []CacheFrom `json:"cacheFrom,omitempty"`
	CacheTo   []CacheTo   `json:"cacheTo,omitempty"`
	// Check builds nothing: the checks of the Dockerfile are warnings.
	Check bool `json:"check,omitempty"`
	// Answers says that the client answers BuildAsk. The credentials of one that does
	// not are those of the server's user.
	Answers bool `json:"answers,omitempty"`
}

// CacheFrom is a cache that a build reads. The fields are those of build.CacheFrom.
type CacheFrom struct {
	Type   string `json:"type"`
	Ref    string `json:"ref,omitempty"`
	Src    string `json:"src,omitempty"`
	Tag    string `json:"tag,omitempty"`
	Digest string `json:"digest,omitempty"`
}

// CacheTo is where a build's results go. The fields are those of build.CacheTo.
type CacheTo struct {
	Type        string `json:"type"`
	Ref         string `json:"ref,omitempty"`
	Dest        string `json:"dest,omitempty"`
	Tag         string `json:"tag,omitempty"`
	Mode        string `json:"mode,omitempty"`
	Compression string `json:"compression,omitempty"`
	IgnoreError bool   `json:"ignoreError,omitempty"`
}

// BuildEvent is one line of a build's progress. One of its fields is set, Excerpt
// beside Error; none where a build without an image has ended well.
type BuildEvent struct {
	Start   *BuildStart  `json:"start,omitempty"`
	Output  *BuildOutput `json:"output,omitempty"`
	Done    *BuildDone   `json:"done,omitempty"`
	Warn    *BuildWarn   `json:"warn,omitempty"`
	Ask     *BuildAsk    `json:"ask,omitempty"`
	Image   *Image       `json:"image,omitempty"`
	Ended   bool         `json:"ended,omitempty"`
	Error   string       `json:"error,omitempty"`
	Excerpt string       `json:"excerpt,omitempty"`
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

// BuildAsk asks for the credentials of an image's registry. The build waits for a
// BuildAnswer at /build/answers/ID.
type BuildAsk struct {
	ID, Ref string
}

// BuildAnswer is what the client's user keeps there; nothing, or why it cannot be told.
type BuildAnswer struct {
	Auth  *Auth  `json:"auth,omitempty"`
	Error string `json:"error,omitempty"`
}

// BuildProgress hears what a build does.
type BuildProgress interface {
	Start(n, total int, name string)
	Output(n int, data []byte)
	Done(n int, cached bool, err error)
	Warn(file string, line int, text string)
	Close() error
}

// BuildError is a build's failure.
type BuildError struct {
	Message string
	// Excerpt shows the last output of the command that failed, and the place in
	// the Dockerfile; lines of text, or empty.
	Excerpt string
}

func (e *BuildError) Error() string { return e.Message }

// Credentials finds what a user keeps for the registry of an image; nil for none.
type Credentials func(ctx context.Context, ref string) (*Auth, error)

// answer tells the server what it asked for.
func (c *Client) answer(ctx context.Context, ask BuildAsk, credentials Credentials) error {
	var a BuildAnswer
	var err error
	if a.Auth, err = credentials(ctx, ask.Ref); err != nil {
		a.Error = err.Error()
	}
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	resp, err := c.Do(ctx, http.MethodPost, "/build/answers/"+url.PathEscape(ask.ID), nil, bytes.NewReader(body))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Build builds an image and reports to p; credentials are asked for what the build needs
// of registries. The image is nil where the result went elsewhere, or nothing was built.
// A failure of the build is a *BuildError.
func (c *Client) Build(ctx context.Context, req BuildRequest, p BuildProgress, credentials Credentials) (*Image, error) {
	req.Answers = true
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(ctx, http.MethodPost, "/build", nil, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for {
		e, err := next[BuildEvent](lines, "build")
		if err != nil {
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
		case e.Ask != nil:
			if err := c.answer(ctx, *e.Ask, credentials); err != nil {
				return nil, err
			}
		case e.Image != nil:
			return e.Image, nil
		case e.Ended:
			return nil, nil
		default:
			return nil, &BuildError{Message: e.Error, Excerpt: e.Excerpt}
		}
	}
}

// BuildPrune says which of the build cache goes: what was not used for Unused.
type BuildPrune struct {
	Unused time.Duration `json:"unused"`
}

// BuildPruned is what went.
type BuildPruned struct {
	// Steps and Caches are how many instructions' results and cache mounts.
	Steps  int `json:"steps"`
	Caches int `json:"caches"`
	// Bytes of disk are free again.
	Bytes int64 `json:"bytes"`
}

// PruneBuild removes what is unused of the build cache.
func (c *Client) PruneBuild(ctx context.Context, p BuildPrune) (*BuildPruned, error) {
	body, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(ctx, http.MethodPost, "/build/prune", nil, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var out BuildPruned
	return &out, json.NewDecoder(resp.Body).Decode(&out)
}
