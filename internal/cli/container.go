package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/admin"
	"skiff/internal/api/runpod"
	"skiff/internal/client"
	"skiff/internal/run"
)

// containers are the commands for single containers (docs/run.md).
func (c *command) containers() []*cobra.Command {
	all := []*cobra.Command{
		c.run(), c.ps(), c.logs(), c.execIn(), c.attach(), c.stopContainers(), c.kill(), c.startContainers(), c.restart(),
		c.wait(), c.remove(), c.inspect(), c.port(), c.copy(), c.top(), c.stats(),
	}
	for _, cmd := range all {
		// run --name is the container's: the cluster has a name of its own there.
		cmd.Flags().StringVar(&c.set.Name, "cluster", c.set.Name, "name of the cluster; the same as --name before the command")
		_ = cmd.RegisterFlagCompletionFunc("cluster", c.completeClusters)
	}
	return all
}

// pods is the way to the containers of a cluster.
type pods struct {
	*client.Client
	http      *client.HTTPS
	door      *admin.Client
	namespace string
}

func (p *pods) close() { p.http.Close() }

func (p *pods) in(ns string) client.Resource[*corev1.Pod] {
	return client.For[*corev1.Pod](p.Client).In(ns)
}

// podPath is where the API has a pod.
func podPath(p *corev1.Pod) string { return "/api/v1/namespaces/" + p.Namespace + "/pods/" + p.Name }

func refOf(p *corev1.Pod, sub string) client.Ref {
	return client.Ref{GVR: corev1.SchemeGroupVersion.WithResource("pods"), Namespace: p.Namespace, Name: p.Name, Subresource: sub}
}

// cluster reaches the cluster that is meant; where it does not run, the error says
// which command helps.
func (c *command) cluster(ctx context.Context, namespace string) (*pods, error) {
	if namespace == "" {
		namespace = corev1.NamespaceDefault
	}
	a, i, known, err := c.find()
	if err != nil {
		return nil, err
	}
	kubeconfig := ""
	_, err = a.Status(ctx)
	switch {
	case !known && os.Getenv("KUBECONFIG") == "":
		return nil, errors.New(c.local.Unknown(i))
	case err == nil || !known:
	case os.Geteuid() != 0: // the door opens to root alone
		if kubeconfig = os.Getenv("KUBECONFIG"); kubeconfig == "" {
			return nil, errors.New("containers need root, or a kubeconfig in $KUBECONFIG: run it with sudo")
		}
	case errors.Is(err, admin.ErrNotRunning):
		return nil, fmt.Errorf("cluster %q is not running: start it with `skiff up%s`", i.Name, nameFlag(i))
	default:
		return nil, err
	}
	h, err := c.apiServer(kubeconfig)
	if err != nil {
		return nil, err
	}
	return &pods{Client: client.New(h, "skiff"), http: h, door: a, namespace: namespace}, nil
}

// with calls f with the cluster.
func (c *command) with(ctx context.Context, namespace string, f func(p *pods) error) error {
	p, err := c.cluster(ctx, namespace)
	if err != nil {
		return err
	}
	defer p.close()
	return f(p)
}

// find returns the pod that a word means: a container's name, NAMESPACE/POD, or the
// beginning of a container's ID; with the container, where NAMESPACE/POD/CONTAINER
// names one.
func (p *pods) find(ctx context.Context, word string) (*corev1.Pod, string, error) {
	ns, name, container := p.namespace, strings.TrimPrefix(word, "pod/"), ""
	if parts := strings.Split(name, "/"); len(parts) > 1 {
		ns, name = parts[0], parts[1]
		if len(parts) > 2 {
			container = strings.Join(parts[2:], "/")
		}
	}
	pod, err := p.in(ns).Get(ctx, name)
	if err == nil || !apierrors.IsNotFound(err) {
		return pod, container, err
	}
	if ns == p.namespace && len(name) >= 3 && strings.Trim(name, "0123456789abcdef") == "" {
		all, _, err := p.in("").List(ctx, metav1.ListOptions{LabelSelector: runpod.LabelName})
		if err != nil {
			return nil, "", err
		}
		var hit *corev1.Pod
		for _, x := range all {
			if !strings.HasPrefix(run.ID(x), name) {
				continue
			}
			if hit != nil {
				return nil, "", fmt.Errorf("several containers have an ID that begins with %s", name)
			}
			hit = x
		}
		if hit != nil {
			return hit, "", nil
		}
	}
	return nil, "", fmt.Errorf("no such container: %s", word)
}

// ours finds a container of skiff run: others are not ended or removed.
func (p *pods) ours(ctx context.Context, word string) (*corev1.Pod, error) {
	pod, _, err := p.find(ctx, word)
	if err != nil {
		return nil, err
	}
	if pod.Labels[runpod.LabelName] == "" {
		return nil, fmt.Errorf("%s is a pod that skiff run did not make: use `skiff kubectl -n %s ... pod %s`", word, pod.Namespace, pod.Name)
	}
	return pod, nil
}

// each does something to every container named, and goes on where it fails.
func (c *command) each(ctx context.Context, namespace string, names []string, f func(p *pods, word string) error) error {
	return c.with(ctx, namespace, func(p *pods) error {
		var errs []error
		for _, n := range names {
			if err := f(p, n); err != nil {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

// change does something to every container of skiff run that is named, and prints the
// names of those to which it was done. verb is what errors call it.
func (c *command) change(ctx context.Context, verb, namespace string, names []string, f func(p *pods, pod *corev1.Pod) error) error {
	return c.each(ctx, namespace, names, func(p *pods, word string) error {
		pod, err := p.ours(ctx, word)
		if err != nil {
			return err
		}
		if err := f(p, pod); err != nil {
			return fmt.Errorf("%s %s: %w", verb, word, err)
		}
		fmt.Fprintln(c.out, word)
		return nil
	})
}

// again is how long after a failure the API is asked once more.
const again = 200 * time.Millisecond

// follow calls f with every state of a pod, from now on, until f says that it is
// enough; gone is its last call when the pod is removed. Once in a while it is called
// without a change, for what depends on time. A server that is away is waited for.
func (p *pods) follow(ctx context.Context, pod *corev1.Pod, f func(now *corev1.Pod, gone bool) (enough bool, err error)) error {
	for ctx.Err() == nil {
		now, err := p.in(pod.Namespace).Get(ctx, pod.Name)
		switch {
		case apierrors.IsNotFound(err) || err == nil && now.UID != pod.UID:
			_, err := f(pod, true)
			return err
		case err == nil:
			pod = now
			enough, err := f(now, false)
			if enough || err != nil {
				return err
			}
			if enough, err := p.stream(ctx, &pod, f); enough || err != nil {
				return err
			}
		case apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err):
			return err
		}
		t := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
	return ctx.Err()
}

// stream is one watch of follow.
func (p *pods) stream(ctx context.Context, pod **corev1.Pod, f func(*corev1.Pod, bool) (bool, error)) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := p.in((*pod).Namespace).Watch(ctx, metav1.ListOptions{
		FieldSelector:   fields.OneTermEqualSelector("metadata.name", (*pod).Name).String(),
		ResourceVersion: (*pod).ResourceVersion,
	})
	if err != nil {
		return false, nil // asked again
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var gone bool
		select {
		case e, ok := <-w.Events():
			if !ok {
				return false, nil
			}
			now, ok := e.Object.(*corev1.Pod)
			if !ok || now.UID != (*pod).UID {
				continue
			}
			*pod, gone = now, e.Type == watch.Deleted
		case <-tick.C:
		}
		if enough, err := f(*pod, gone); enough || err != nil || gone {
			return true, err
		}
	}
}

// delete removes a pod and waits until it is gone; grace nil is the pod's own.
func (p *pods) delete(ctx context.Context, pod *corev1.Pod, grace *int64) error {
	err := p.in(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: grace, Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.follow(ctx, pod, func(_ *corev1.Pod, gone bool) (bool, error) { return gone, nil })
}

// namespaceFlag is that of all these commands.
func namespaceFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "namespace", "", "namespace of the container (default \"default\")")
}
