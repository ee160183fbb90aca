package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

// side is one of the clusters compared: the one named first, or its peer.
type side struct {
	Name string
	// PIDs are the server's processes, whose CPU time and memory are reported;
	// empty where they are not known.
	PIDs []int
	// DataDir of a skiff instance, from which its processes are found anew each
	// time; empty for others.
	DataDir string
	// Bin is the directory of the programs of a peer with a node, whose processes
	// are found anew each time, too.
	Bin   string
	http2 bool

	e *endpoint
	// slow is the typed client, for what is not timed by the request.
	slow *client.Client
}

func newSide(name, kubeconfig string, pids []int, dataDir string, http2 bool) (*side, error) {
	cfg, err := client.LoadKubeconfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = "bench"
	e, err := newEndpoint(cfg)
	if err != nil {
		return nil, err
	}
	t, err := client.NewHTTPS(cfg)
	if err != nil {
		return nil, err
	}
	return &side{Name: name, PIDs: pids, DataDir: dataDir, http2: http2, e: e, slow: client.New(t, "bench")}, nil
}

// caller returns a connection of its own.
func (s *side) caller() caller {
	if s.http2 {
		return s.e.multiplexed()
	}
	return s.e.wire()
}

// pids are the server's processes now.
func (s *side) pids() ([]int, error) {
	if s.DataDir != "" {
		return instancePIDs(s.DataDir)
	}
	if s.Bin != "" {
		return programPIDs(s.Bin)
	}
	return s.PIDs, nil
}

// server are the processes that answer requests: of a skiff instance its main one.
func (s *side) server() ([]int, error) {
	pids := s.PIDs
	if len(pids) == 0 && s.DataDir != "" {
		return lockHolder(s.DataDir)
	}
	return pids, nil
}

func (s *side) cpu() (time.Duration, error) {
	pids, err := s.server()
	if err != nil {
		return 0, err
	}
	return cpuOf(pids)
}

// costing adds to figures the CPU time that the server has spent since before, for each
// of n things, where its processes are known.
func (s *side) costing(before time.Duration, title string, n int, each string, fs ...figure) ([]figure, error) {
	if !s.knowsServer() {
		return fs, nil
	}
	after, err := s.cpu()
	if err != nil {
		return nil, err
	}
	return append(fs, figure{title + ", server CPU a " + each, "us", true, float64((after - before).Microseconds()) / float64(n)}), nil
}

func (s *side) knowsServer() bool { return len(s.PIDs) > 0 || s.DataDir != "" }

func parsePIDs(text string) ([]int, error) {
	var out []int
	for f := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
		n, err := strconv.Atoi(f)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("process id %q: must be a positive number", f)
		}
		out = append(out, n)
	}
	return out, nil
}

// namespace makes a namespace for one scenario, with the service account that
// pods need, and returns its name.
func (s *side) namespace(ctx context.Context, scenario string) (string, error) {
	name := fmt.Sprintf("bench-%s-%s", scenario, strconv.FormatInt(time.Now().UnixNano(), 36))
	ns := client.For[*corev1.Namespace](s.slow)
	if _, err := ns.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		return "", fmt.Errorf("create namespace: %w", err)
	}
	accounts := client.For[*corev1.ServiceAccount](s.slow).In(name)
	err := poll(ctx, 3*time.Second, 20*time.Millisecond, func() (bool, error) {
		_, err := accounts.Get(ctx, "default")
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	if !errors.Is(err, errLate) {
		return name, err
	}
	// A bare API server has no controller that makes it.
	_, err = accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	if apierrors.IsAlreadyExists(err) {
		err = nil
	}
	return name, err
}

// drop removes a namespace and all that bench made in it. It does not depend on
// the controllers, nor on nodes that end pods: a bare API server has neither.
func (s *side) drop(ctx context.Context, name string) error {
	// What was begun is removed even when the run was interrupted.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	c := s.caller()
	defer c.close()
	now := []byte(`{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0,"propagationPolicy":"Background"}`)
	// Owners first, so that nothing is made again.
	for _, path := range []string{
		"/apis/apps/v1/namespaces/" + name + "/deployments", "/apis/apps/v1/namespaces/" + name + "/replicasets",
		"/api/v1/namespaces/" + name + "/pods", "/api/v1/namespaces/" + name + "/configmaps",
		"/apis/events.k8s.io/v1/namespaces/" + name + "/events",
	} {
		r := request{Method: http.MethodDelete, Path: path, ContentType: asJSON, Accept: asJSON, Body: now}
		// Ten thousand objects may take longer than a request may: then again.
		var last error
		err := poll(ctx, 2*time.Minute, 100*time.Millisecond, func() (bool, error) {
			code, body, err := c.call(ctx, r)
			if err == nil && code >= 400 && code != http.StatusNotFound {
				err = answerError(r, code, body)
			}
			last = err
			return err == nil, nil
		})
		if err != nil {
			return fmt.Errorf("clean up: %w", errors.Join(err, last))
		}
	}
	ns := client.For[*corev1.Namespace](s.slow)
	if err := ns.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("clean up: %w", err)
	}
	err := poll(ctx, 20*time.Second, 50*time.Millisecond, func() (bool, error) {
		_, err := ns.Get(ctx, name)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if !errors.Is(err, errLate) {
		return err
	}
	// No controller empties namespaces here; ours is empty.
	r := request{
		Method: http.MethodPut, Path: "/api/v1/namespaces/" + name + "/finalize", ContentType: asJSON, Accept: asJSON,
		Body: []byte(`{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"` + name + `"},"spec":{"finalizers":[]}}`),
	}
	code, body, err := c.call(ctx, r)
	if err == nil && code >= 400 && code != http.StatusNotFound {
		err = answerError(r, code, body)
	}
	return err
}

// errLate is the end of a wait.
var errLate = errors.New("not within the time allowed")

// poll asks until ok is true or fails, for at most the time given; then errLate.
func poll(ctx context.Context, most, every time.Duration, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, most, errLate)
	defer cancel()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		done, err := ok()
		switch {
		case context.Cause(ctx) != nil && !done:
			return context.Cause(ctx)
		case done || err != nil:
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
