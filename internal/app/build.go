package app

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"sync"

	"skiff/internal/admin"
	"skiff/internal/host"
	"skiff/internal/runtime/build"
	"skiff/internal/runtime/image"
	"skiff/internal/runtime/image/registry"
	"skiff/internal/runtime/programs"
)

// buildStream sends progress as lines of JSON.
type buildStream struct {
	mu  sync.Mutex
	enc *json.Encoder
	f   http.Flusher
}

func (s *buildStream) send(e admin.BuildEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// The build goes on though its client is gone; its context tells it.
	_ = s.enc.Encode(e)
	if s.f != nil {
		s.f.Flush()
	}
}

func (s *buildStream) Start(n, total int, name string) {
	s.send(admin.BuildEvent{Start: &admin.BuildStart{N: n, Total: total, Name: name}})
}

func (s *buildStream) Output(n int, data []byte) {
	s.send(admin.BuildEvent{Output: &admin.BuildOutput{N: n, Data: data}})
}

func (s *buildStream) Done(n int, cached bool, err error) {
	d := &admin.BuildDone{N: n, Cached: cached}
	if err != nil {
		d.Error = err.Error()
	}
	s.send(admin.BuildEvent{Done: d})
}

func (s *buildStream) Warn(file string, line int, text string) {
	s.send(admin.BuildEvent{Warn: &admin.BuildWarn{File: file, Line: line, Text: text}})
}

func buildRequest(req admin.BuildRequest, p build.Progress) build.Request {
	out := build.Request{
		Context: req.Context, Contexts: req.Contexts, Dockerfile: req.Dockerfile, Content: req.Content, Tags: req.Tags,
		Target: req.Target, Platform: req.Platform, Args: req.Args, Secrets: req.Secrets, SSH: req.SSH, Labels: req.Labels,
		Annotations: req.Annotations, NoCache: req.NoCache, NoCacheFilter: req.NoCacheFilter, Pull: req.Pull, Insecure: req.Insecure,
		Network: req.Network, Hosts: req.Hosts, ShmSize: req.ShmSize, Progress: p,
	}
	if req.OutputType != "" {
		out.Output = &build.Output{Type: req.OutputType, Dest: req.OutputDest}
	}
	for _, c := range req.CacheFrom {
		out.CacheFrom = append(out.CacheFrom, build.CacheFrom{
			Type: c.Type, Ref: c.Ref, Src: c.Src, Tag: c.Tag, Digest: c.Digest,
		})
	}
	for _, c := range req.CacheTo {
		out.CacheTo = append(out.CacheTo, build.CacheTo{
			Type: c.Type, Ref: c.Ref, Dest: c.Dest, Tag: c.Tag, Mode: c.Mode, Compression: c.Compression,
			IgnoreError: c.IgnoreError,
		})
	}
	return out
}

// credentials are what this process's user keeps for the registry of an image.
func credentials(ctx context.Context, ref string) (*image.Auth, error) {
	n, err := image.ParseName(ref)
	if err != nil {
		return nil, err
	}
	return registry.Credentials(ctx, n)
}

// asks are the questions of builds that wait for their clients' answers. The zero value
// is ready.
type asks struct {
	mu      sync.Mutex
	waiting map[string]chan admin.BuildAnswer
}

// ask asks the client that hears s for its credentials.
func (a *asks) ask(ctx context.Context, s *buildStream, ref string) (*image.Auth, error) {
	id, ch := rand.Text(), make(chan admin.BuildAnswer, 1)
	a.mu.Lock()
	if a.waiting == nil {
		a.waiting = map[string]chan admin.BuildAnswer{}
	}
	a.waiting[id] = ch
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.waiting, id)
	}()
	s.send(admin.BuildEvent{Ask: &admin.BuildAsk{ID: id, Ref: ref}})
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case answer := <-ch:
		if answer.Error != "" {
			return nil, errors.New(answer.Error)
		}
		return registryAuth(answer.Auth), nil
	}
}

// answer takes a client's answer.
func (a *asks) answer(w http.ResponseWriter, r *http.Request) {
	var in admin.BuildAnswer
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, "answer: "+err.Error(), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	ch := a.waiting[r.PathValue("id")]
	delete(a.waiting, r.PathValue("id"))
	a.mu.Unlock()
	if ch == nil {
		http.Error(w, "nobody asks that, or not any more", http.StatusNotFound)
		return
	}
	ch <- in
	w.WriteHeader(http.StatusNoContent)
}

func (h *imageHandler) build(w http.ResponseWriter, r *http.Request) {
	var in admin.BuildRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, "build request: "+err.Error(), http.StatusBadRequest)
		return
	}
	// Only once the request is read whole is a client's end noticed.
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		http.Error(w, "build request: "+err.Error(), http.StatusBadRequest)
		return
	}
	f, _ := w.(http.Flusher)
	s := &buildStream{enc: json.NewEncoder(w), f: f}
	req := buildRequest(in, s)
	end := admin.BuildEvent{Ended: true}
	req.Auth = credentials
	if in.Answers {
		req.Auth = func(ctx context.Context, ref string) (*image.Auth, error) { return h.asks.ask(ctx, s, ref) }
	}
	if in.Check {
		if err := h.builder.Check(r.Context(), req); err != nil {
			end = failure(err)
		}
		s.send(end)
		return
	}
	made, err := h.builder.Build(r.Context(), req)
	switch {
	case err != nil:
		end = failure(err)
	case made != nil:
		i := describe(made)
		end = admin.BuildEvent{Image: &i}
	}
	s.send(end)
}

// failure is an error with what helps to see where it comes from.
func failure(err error) admin.BuildEvent {
	e := admin.BuildEvent{Error: err.Error()}
	var exit *build.ExitError
	if errors.As(err, &exit) {
		e.Excerpt = exit.LogExcerpt()
	}
	var at *build.Error
	if errors.As(err, &at) {
		e.Excerpt += at.Excerpt
	}
	return e
}

func (h *imageHandler) pruneBuild(w http.ResponseWriter, r *http.Request) {
	var req admin.BuildPrune
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, "prune request: "+err.Error(), http.StatusBadRequest)
		return
	}
	gone, err := h.builder.Prune(r.Context(), req.Unused)
	if err != nil {
		imageError(w, err)
		return
	}
	sendJSON(w, admin.BuildPruned{Steps: gone.Steps, Caches: gone.Caches, Bytes: gone.Bytes})
}

// executor runs the commands of builds: with the default filter of containers,
// and below a cgroup of the instance.
func executor(i host.Instance) *build.NamespaceExecutor {
	starter := func() (string, error) {
		return programs.UnpackOne(programs.Embedded(), i.Data("bin"), "skiff-start")
	}
	return &build.NamespaceExecutor{
		Filter: build.DefaultFilter(starter, i.Run("runtime", "filters")),
		Cgroup: filepath.Join(i.CgroupParent, "build"),
	}
}
