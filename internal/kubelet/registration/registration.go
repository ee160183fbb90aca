// Package registration finds the plugins of a node: each puts a socket of the
// service pluginregistration.v1 into a directory, is asked there who it is, and is
// told whether it is taken. A plugin is dropped when its socket goes.
package registration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Handler takes the plugins of one type.
type Handler interface {
	// Register takes a plugin that serves the versions given at endpoint; the error
	// is what the plugin is told.
	Register(name, endpoint string, versions []string) error
	// Deregister drops it.
	Deregister(name, endpoint string)
}

// Deps is what a Watcher needs.
type Deps struct {
	// Dir is the directory of the sockets; it and those below are watched.
	Dir string
	// Handlers by type of plugin, "DRAPlugin" say.
	Handlers map[string]Handler
	Log      *slog.Logger
}

// Bounds of a registration, and of the wait before the next try (upstream's).
const (
	dialTimeout   = 10 * time.Second
	infoTimeout   = time.Second
	notifyTimeout = 5 * time.Second
	firstRetry    = 500 * time.Millisecond
	lastRetry     = 2 * time.Minute
)

// Watch registers plugins until ctx ends; then it drops all.
func Watch(ctx context.Context, d Deps) error {
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return fmt.Errorf("plugin registry: %w", err)
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch plugin registry: %w", err)
	}
	defer notify.Close()
	w := &watcher{Deps: d, notify: notify, sockets: map[string]*socket{}}
	defer w.wait.Wait()
	if err := w.look(ctx, d.Dir); err != nil {
		return fmt.Errorf("watch plugin registry: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-notify.Events:
			if !ok {
				return nil
			}
			switch {
			case e.Has(fsnotify.Create):
				if err := w.look(ctx, e.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
					d.Log.Warn("look at a plugin's socket", "path", e.Name, "err", err)
				}
			case e.Has(fsnotify.Remove), e.Has(fsnotify.Rename):
				w.drop(e.Name)
			}
		case err, ok := <-notify.Errors:
			if !ok {
				return nil
			}
			d.Log.Warn("watch plugin registry", "err", err)
		}
	}
}

type watcher struct {
	Deps
	notify  *fsnotify.Watcher
	sockets map[string]*socket
	wait    sync.WaitGroup
}

// socket is a plugin that is being registered, or is.
type socket struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// look takes what is at a path: a socket, or a directory with more.
func (w *watcher) look(ctx context.Context, path string) error {
	return filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case p != w.Dir && strings.HasPrefix(e.Name(), "."):
			if e.IsDir() {
				return filepath.SkipDir
			}
		case e.IsDir():
			return w.notify.Add(p)
		case e.Type()&fs.ModeSocket != 0:
			w.drop(p)
			w.take(ctx, p)
		}
		return nil
	})
}

func (w *watcher) take(ctx context.Context, path string) {
	ctx, cancel := context.WithCancel(ctx)
	s := &socket{cancel: cancel, done: make(chan struct{})}
	w.sockets[path] = s
	w.wait.Go(func() {
		defer close(s.done)
		w.serve(ctx, path)
	})
}

// drop ends the registration of a socket that is gone, or was replaced.
func (w *watcher) drop(path string) {
	if s := w.sockets[path]; s != nil {
		s.cancel()
		<-s.done
		delete(w.sockets, path)
	}
}

// serve registers a plugin, trying again until it works, and drops it when ctx ends.
func (w *watcher) serve(ctx context.Context, path string) {
	for wait := firstRetry; ; wait = min(wait*2, lastRetry) {
		drop, err := w.register(ctx, path)
		if err == nil {
			<-ctx.Done()
			drop()
			return
		}
		if ctx.Err() != nil {
			return
		}
		w.Log.Warn("register plugin", "path", path, "err", err)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// register asks a plugin who it is and tells it whether it is taken.
func (w *watcher) register(ctx context.Context, path string) (drop func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("failed to dial socket %s, err: %w", path, err)
	}
	defer conn.Close()
	plugin := registerapi.NewRegistrationClient(conn)
	ictx, icancel := context.WithTimeout(ctx, infoTimeout)
	defer icancel()
	info, err := plugin.GetInfo(ictx, &registerapi.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("failed to get plugin info using RPC GetInfo at socket %s: %w", path, err)
	}
	tell := func(problem string) error {
		nctx, ncancel := context.WithTimeout(ctx, notifyTimeout)
		defer ncancel()
		_, err := plugin.NotifyRegistrationStatus(nctx, &registerapi.RegistrationStatus{PluginRegistered: problem == "", Error: problem})
		return err
	}
	refuse := func(problem string) (func(), error) {
		if err := tell(problem); err != nil {
			return nil, fmt.Errorf("%s: %w", problem, err)
		}
		return nil, errors.New(problem)
	}
	h := w.Handlers[info.Type]
	if h == nil {
		return refuse(fmt.Sprintf("RegisterPlugin error -- no handler registered for plugin type: %s at socket %s", info.Type, path))
	}
	endpoint := info.Endpoint
	if endpoint == "" {
		endpoint = path
	}
	if err := h.Register(info.Name, endpoint, info.SupportedVersions); err != nil {
		return refuse(fmt.Sprintf("RegisterPlugin error -- plugin registration failed with err: %v", err))
	}
	if err := tell(""); err != nil {
		h.Deregister(info.Name, endpoint)
		return nil, fmt.Errorf("failed to send registration status at socket %s: %w", path, err)
	}
	w.Log.Info("plugin registered", "type", info.Type, "name", info.Name, "endpoint", endpoint)
	return func() { h.Deregister(info.Name, endpoint) }, nil
}
