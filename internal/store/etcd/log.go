package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// fault is the first event after which etcd cannot go on. etcd answers such an
// event by ending the process; here it ends the goroutine in question and is
// kept, so that the caller gets an error it can print.
type fault struct {
	once sync.Once
	ch   chan struct{}
	err  error
}

func newFault() *fault { return &fault{ch: make(chan struct{})} }

func (f *fault) set(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.ch)
	})
}

// get returns the fault, nil while there is none.
func (f *fault) get() error {
	select {
	case <-f.ch:
		return f.err
	default:
		return nil
	}
}

// OnWrite implements zapcore.CheckWriteHook for etcd's fatal and panic logs.
func (f *fault) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	msg := e.Message
	for _, fd := range fields {
		if err, ok := fd.Interface.(error); ok && fd.Type == zapcore.ErrorType {
			msg = fmt.Sprintf("%s: %v", msg, err)
		}
	}
	f.set(fmt.Errorf("%s", strings.TrimSpace(msg)))
	runtime.Goexit()
}

// quiet are messages of a member's normal life: it writes its storage version
// a moment after its first start, and until then cannot find one.
var quiet = map[string]bool{
	"Failed to detect schema version":  true,
	"failed to update storage version": true,
}

// logCore hands etcd's log to slog. raft's own warnings belong to the normal
// life of a member that runs alone and are dropped.
type logCore struct {
	log    *slog.Logger
	level  zapcore.Level
	fields []zapcore.Field
}

func newZap(log *slog.Logger, f *fault) *zap.Logger {
	return zap.New(&logCore{log: log, level: zapcore.WarnLevel}, zap.WithFatalHook(f), zap.WithPanicHook(f))
}

func (c *logCore) Enabled(l zapcore.Level) bool { return l >= c.level }

func (c *logCore) With(fields []zapcore.Field) zapcore.Core {
	d := *c
	d.fields = append(c.fields[:len(c.fields):len(c.fields)], fields...)
	return &d
}

func (c *logCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) || quiet[e.Message] || (e.LoggerName == "raft" && e.Level < zapcore.ErrorLevel) {
		return ce
	}
	return ce.AddCore(e, c)
}

func (c *logCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		f.AddTo(enc)
	}
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		// slog's fixed key for an error is "err".
		if k == "error" {
			k = "err"
		}
		attrs = append(attrs, slog.Any(k, v))
	}
	c.log.LogAttrs(context.Background(), level, "etcd: "+e.Message, attrs...)
	return nil
}

func (c *logCore) Sync() error { return nil }
