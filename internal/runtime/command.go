package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"skiff/internal/runtime/startspec"
)

// Command is one more process for a running container. Where it does not say
// otherwise, it runs as the container's first process does.
type Command struct {
	Args []string
	// User is USER[:GROUP], by name or number; names are those of the container's own
	// /etc/passwd and /etc/group.
	User string
	// Dir is its working directory, an absolute path.
	Dir string
	// Env are variables, NAME=VALUE each, that stand over the container's.
	Env []string
}

// change makes the container's process the command's.
func (c *Command) change(p *specs.Process) {
	p.Args = c.Args
	if c.Dir != "" {
		p.Cwd = c.Dir
	}
	for _, e := range c.Env {
		name, _, _ := strings.Cut(e, "=")
		kept := p.Env[:0:0]
		for _, have := range p.Env {
			if !strings.HasPrefix(have, name+"=") {
				kept = append(kept, have)
			}
		}
		p.Env = append(kept, e)
	}
}

// user is whom skiff-start is to look up; nil for the container's own.
func (c *Command) user() *startspec.User {
	if c.User == "" {
		return nil
	}
	u, g, _ := strings.Cut(c.User, ":")
	return &startspec.User{User: u, Group: g}
}

// channels of a command's connection, and its protocol (KEP-4006).
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channelCount

	commandProtocol = "v5.channel.k8s.io"
)

// ServeCommand runs a command for a client that speaks v5.channel.k8s.io over
// WebSocket, as the API server's exec does. An error means that the request was not
// answered; what fails later is told in the error channel. It is no part of CRI, whose
// exec has no users.
func (r *Runtime) ServeCommand(w http.ResponseWriter, req *http.Request, id string, cmd Command, stdin, tty bool) error {
	if _, _, err := r.running(id); err != nil {
		return err
	}
	kinds := make([]wsstream.ChannelType, channelCount)
	kinds[channelStdin], kinds[channelResize] = wsstream.IgnoreChannel, wsstream.ReadChannel
	if stdin {
		kinds[channelStdin] = wsstream.ReadChannel
	}
	kinds[channelStdout], kinds[channelStderr], kinds[channelError] = wsstream.WriteChannel, wsstream.WriteChannel, wsstream.WriteChannel
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{commandProtocol: {Binary: true, Channels: kinds}})
	// A client that leaves is nothing to log.
	req = req.WithContext(klog.NewContext(req.Context(), klog.Logger{}))
	_, ch, err := conn.Open(w, req)
	if err != nil {
		r.Log.Debug("refused a command's client", "err", err)
		return nil // it has its answer
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	sizes := make(chan remotecommand.TerminalSize)
	r.background(func() {
		defer close(sizes)
		d := json.NewDecoder(ch[channelResize])
		for {
			var s remotecommand.TerminalSize
			if d.Decode(&s) != nil {
				return
			}
			select {
			case sizes <- s:
			case <-ctx.Done():
				return
			}
		}
	})
	r.onEnd(ctx, nil, func() { conn.Close() })
	var code int
	if stdin {
		code, err = r.execStreams(ctx, id, cmd, ch[channelStdin], ch[channelStdout], ch[channelStderr], tty, sizes)
	} else {
		code, err = r.execStreams(ctx, id, cmd, nil, ch[channelStdout], ch[channelStderr], tty, sizes)
	}
	b, err := json.Marshal(outcome(code, err))
	if err == nil {
		_, err = ch[channelError].Write(b)
	}
	if err != nil {
		r.Log.Debug("report of a command's end", "err", err)
	}
	return nil
}

// StartCommand runs a command that has no client: its output goes nowhere, and nobody
// hears of its end. An error means that it did not start.
func (r *Runtime) StartCommand(ctx context.Context, id string, cmd Command) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	e, err := r.exec(ctx, id, cmd, false, null, null, null)
	if err != nil {
		return err
	}
	r.background(func() {
		defer e.done()
		select {
		case <-e.exit:
		case <-e.client.Done():
		case <-r.stopping: // it goes on
		}
	})
	return nil
}

// outcome is how a command ended, as exec's error channel says it.
func outcome(code int, err error) metav1.Status {
	switch {
	case err != nil:
		return metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError, Message: err.Error()}
	case code == 0:
		return metav1.Status{Status: metav1.StatusSuccess}
	}
	return metav1.Status{
		Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason,
		Message: fmt.Sprintf("command terminated with non-zero exit code: %d", code),
		Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: fmt.Sprint(code)}}},
	}
}
