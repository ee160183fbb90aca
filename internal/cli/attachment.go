package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skiff/internal/run"
)

// attachment is a console joined with the process of a container, until it ends.
type attachment struct {
	c      *command
	p      *pods
	con    *console
	remove bool // the container, when it has ended
	proxy  bool // signals go to the process

	restarts int32      // of the container when it was attached to
	end      chan error // how the connection ended
	lost     int        // connections in a row that ended before the process
}

// drain is how long what a process wrote is waited for after its end.
const drain = 10 * time.Second

// run attaches, waits for the end and ends the command with the process's exit
// code.
func (a *attachment) run(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a.end = make(chan error, 1)
	states := make(chan *corev1.Pod)
	gone := make(chan error, 1)
	go func() {
		gone <- a.p.follow(ctx, pod, func(now *corev1.Pod, gone bool) (bool, error) {
			if gone {
				return true, nil
			}
			select {
			case states <- now:
				return false, nil
			case <-ctx.Done():
				return true, ctx.Err()
			}
		})
	}()
	stop := a.signals(ctx, pod)
	defer stop()
	if _, st := status(pod); st != nil {
		a.restarts = st.RestartCount
	}
	connected := false
	for {
		select {
		case now := <-states:
			pod = now
			s := run.StateOf(pod, "")
			if code, why, fatal := run.Fatal(pod, time.Now()); fatal {
				a.con.restore()
				err := a.c.failed(code, why)
				// Nothing ran: what is left is of no use to anybody.
				return errors.Join(err, a.p.kill(ctx, pod))
			}
			if code, ended := a.ended(pod); ended {
				return a.finish(ctx, pod, code, connected)
			}
			if !connected && (run.Waits(pod) || s.Word == run.Running) {
				connected = true
				a.connect(ctx, pod)
			}
		case err := <-a.end:
			connected = false
			if errors.Is(err, errDetached) {
				a.con.restore()
				fmt.Fprintf(a.c.err, "\nDetached; %s goes on. Return with: skiff attach %s\n", pod.Name, pod.Name)
				return nil
			}
			// The process has ended, or the server has. Who is not connected is told
			// of its end all the same.
			if err != nil && a.retry(ctx, pod, err) {
				connected = true
			}
		case err := <-gone:
			a.con.restore()
			if err != nil {
				return err
			}
			return a.c.failed(codeFailed, fmt.Sprintf("%s was removed before it ended", pod.Name))
		}
	}
}

func status(p *corev1.Pod) (*corev1.Container, *corev1.ContainerStatus) {
	for i := range p.Status.ContainerStatuses {
		return &p.Spec.Containers[0], &p.Status.ContainerStatuses[i]
	}
	return nil, nil
}

// ended returns the exit code of the process that was attached to.
func (a *attachment) ended(pod *corev1.Pod) (int, bool) {
	_, st := status(pod)
	if st == nil {
		s := run.StateOf(pod, "")
		return max(s.Code, codeFailed), s.Word == run.Exited
	}
	for _, t := range []*corev1.ContainerStateTerminated{st.State.Terminated, st.LastTerminationState.Terminated} {
		if t != nil && (st.State.Terminated != nil || st.RestartCount > a.restarts) {
			return int(t.ExitCode), true
		}
	}
	return codeFailed, run.StateOf(pod, "").Word == run.Exited
}

// connect attaches in the background; the outcome comes to a.end.
func (a *attachment) connect(ctx context.Context, pod *corev1.Pod) {
	go func() {
		_, err := a.p.http.Command(ctx, refOf(pod, "attach"), url.Values{
			"container": {pod.Spec.Containers[0].Name}, "tty": {fmt.Sprint(a.con.tty)},
		}, a.con.streams())
		a.end <- err
	}()
}

// maxLost is after how many connections in a row that did not last a container is
// only waited for.
const maxLost = 20

// retry attaches once more after a connection was lost. Input that was read for the
// old one is lost with it.
func (a *attachment) retry(ctx context.Context, pod *corev1.Pod, lost error) bool {
	if a.lost++; a.lost > maxLost {
		return false
	}
	t := time.NewTimer(again)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return false
	}
	now, err := a.p.in(pod.Namespace).Get(ctx, pod.Name)
	if apierrors.IsNotFound(err) {
		return false
	}
	if err == nil {
		if _, ended := a.ended(now); ended {
			return false
		}
	}
	if a.lost == 1 && !a.con.tty {
		fmt.Fprintf(a.c.err, "skiff: the connection was lost (%v); attaching again. skiff logs %s has what was written meanwhile.\n", lost, pod.Name)
	}
	a.connect(ctx, pod)
	return true
}

// finish waits for the last of the output, removes what is to be removed, and ends
// the command.
func (a *attachment) finish(ctx context.Context, pod *corev1.Pod, code int, connected bool) error {
	if connected {
		t := time.NewTimer(drain)
		defer t.Stop()
		select {
		case <-a.end:
		case <-t.C:
		}
	}
	a.con.restore()
	var err error
	if a.remove {
		err = a.p.delete(ctx, pod, nil)
	}
	if code != 0 {
		err = errors.Join(exitCode(code), err)
	}
	return err
}

// signals passes them on to the process. Where that is not possible, the first one
// stops the container and the second ends skiff.
func (a *attachment) signals(ctx context.Context, pod *corev1.Pod) (stop func()) {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGALRM)
	go func() {
		asked := 0
		for {
			var sig syscall.Signal
			select {
			case s := <-ch:
				sig = s.(syscall.Signal)
			case <-ctx.Done():
				return
			}
			var err error = errors.New("not passed on")
			if a.proxy {
				err = a.p.signal(ctx, pod, sig)
			}
			if err == nil || sig == syscall.SIGCONT {
				continue
			}
			if asked++; asked > 1 || !a.proxy {
				a.con.restore()
				os.Exit(codeSignals + int(sig))
			}
			if err := a.p.stop(ctx, pod); err != nil && !apierrors.IsNotFound(err) {
				fmt.Fprintf(a.c.err, "skiff: %s: %v\n", unix.SignalName(sig), err)
			}
		}
	}()
	return func() { signal.Stop(ch) }
}
