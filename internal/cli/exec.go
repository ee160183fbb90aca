package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/admin"
	"skiff/internal/client"
	"skiff/internal/run"
)

// execution is a command of `skiff exec`.
type execution struct {
	args       []string
	dir, user  string
	vars       map[string]string
	stdin, tty bool
}

// exec runs a command in a container of a pod and returns its exit code. What exec of
// the API cannot do, this machine's runtime does; elsewhere a shell in the container
// sets a directory and variables, and a user cannot be chosen.
func (p *pods) exec(ctx context.Context, pod *corev1.Pod, container string, x execution, s client.Streams) (int, error) {
	if id := run.IDOf(pod, container); id != "" && (x.user != "" || x.dir != "" || len(x.vars) > 0) {
		code, err := p.door.Command(ctx, id, x.command(), s)
		if !elsewhere(err) {
			return code, err
		}
	}
	if x.user != "" {
		return 0, fmt.Errorf("--user: %s does not run on this machine, and exec of the API has no users: run it on the container's node", pod.Name)
	}
	q := url.Values{"command": wrapped(x.args, x.dir, x.vars), "tty": {fmt.Sprint(x.tty)}}
	if container != "" {
		q.Set("container", container)
	}
	return p.http.Command(ctx, refOf(pod, "exec"), q, s)
}

// leave starts a command in a container of this machine and does not wait for it.
func (p *pods) leave(ctx context.Context, pod *corev1.Pod, container string, x execution) error {
	err := admin.ErrNoContainer
	if id := run.IDOf(pod, container); id != "" {
		err = p.door.StartCommand(ctx, id, x.command())
	}
	if elsewhere(err) {
		return fmt.Errorf("--detach: %s does not run on this machine, and exec of the API ends with its client: run it on the container's node", pod.Name)
	}
	return err
}

// elsewhere tells of an answer of the door that the container is not behind it.
func elsewhere(err error) bool {
	return errors.Is(err, admin.ErrNoContainer) || errors.Is(err, admin.ErrNotRunning)
}

// command is what this machine's runtime is asked for.
func (x *execution) command() admin.Command {
	c := admin.Command{Args: x.args, User: x.user, Dir: x.dir, Stdin: x.stdin, TTY: x.tty}
	for _, name := range sortedKeys(x.vars) {
		c.Env = append(c.Env, name+"="+x.vars[name])
	}
	return c
}

// wrapped has a shell set what exec of the API cannot: a directory and variables.
func wrapped(args []string, dir string, vars map[string]string) []string {
	if dir == "" && len(vars) == 0 {
		return args
	}
	script := ""
	for _, name := range sortedKeys(vars) {
		script += "export " + name + "=" + quoted(vars[name]) + "; "
	}
	if dir != "" {
		script += "cd " + quoted(dir) + " && "
	}
	return append([]string{"sh", "-c", script + `exec "$@"`, "sh"}, args...)
}
