package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/quota"
	"skiff/internal/apiserver"
	"skiff/internal/client"
)

// ResourceQuota refuses what a namespace has no quota left for. What it lets pass
// it has reserved before, in the status of the quotas, by compare and swap: several
// servers together cannot overspend one. What is reserved and then not created is
// given back when the quota's controller counts anew.
type ResourceQuota struct {
	mu     sync.Mutex
	queues map[string]*queue
}

// queue is of the requests for one namespace: one at a time reserves.
type queue struct {
	turn    chan struct{}
	waiting int
}

// quotaPatience is how long a request waits for its turn.
const quotaPatience = 10 * time.Second

// quotaRetries is how often a reservation that another server overtook is tried
// again.
const quotaRetries = 3

// NewResourceQuota returns the plugin.
func NewResourceQuota() *ResourceQuota { return &ResourceQuota{queues: map[string]*queue{}} }

// Name implements apiserver.Admission.
func (*ResourceQuota) Name() string { return "ResourceQuota" }

// Admit implements apiserver.Admission.
func (*ResourceQuota) Admit(context.Context, *apiserver.Attributes) error { return nil }

// Validate implements apiserver.Admission.
func (p *ResourceQuota) Validate(ctx context.Context, a *apiserver.Attributes) error {
	gr := resourceOf(a)
	if a.Namespace == "" || !a.Resource.Namespaced || !spends(a) {
		return nil
	}
	counter := quota.For(a.Env.Features, gr)
	if counter == nil {
		return nil
	}
	quotas := client.For[*corev1.ResourceQuota](a.Env.Client).In(a.Namespace)
	// A quota that the cache does not have yet has no counts either, and limits
	// nothing.
	if known, _, err := quotas.List(ctx, metav1.ListOptions{ResourceVersion: "0"}); err != nil || len(known) == 0 {
		return quotaError(err)
	}
	done, err := p.wait(ctx, a.Namespace)
	if err != nil {
		return err
	}
	defer done()
	list, _, err := quotas.List(ctx, metav1.ListOptions{})
	if err != nil {
		return quotaError(err)
	}
	for try := 0; ; try++ {
		failed, err := reserve(ctx, a, counter, list)
		if err == nil || len(failed) == 0 || try == quotaRetries {
			return err
		}
		// What could be reserved stays so. One that was deleted limits no more.
		now, _, lerr := quotas.List(ctx, metav1.ListOptions{})
		if lerr != nil {
			return err
		}
		list = list[:0:0]
		for _, q := range now {
			if failed[q.Name] {
				list = append(list, q)
			}
		}
	}
}

func quotaError(err error) error {
	if err == nil {
		return nil
	}
	return apierrors.NewInternalError(fmt.Errorf("error resolving quota: %w", err))
}

// spends tells whether a request can use more than before.
func spends(a *apiserver.Attributes) bool {
	gr := resourceOf(a)
	if gr.Group == "" && a.Operation == apiserver.OpUpdate {
		switch gr.Resource {
		case "pods":
			if a.Subresource == "resize" {
				return true
			}
			// Who ends by itself is counted by other quotas.
			pod, ok := a.Object.(*corev1.Pod)
			old, was := a.Old.(*corev1.Pod)
			return a.Subresource == "" && ok && was && quota.Terminating(pod) != quota.Terminating(old)
		case "services":
			return a.Subresource == ""
		case "persistentvolumeclaims":
			return a.Subresource == "" || a.Subresource == "status"
		}
	}
	return a.Operation == apiserver.OpCreate && a.Subresource == ""
}

// wait returns when it is the request's turn to reserve in a namespace; done ends
// the turn.
func (p *ResourceQuota) wait(ctx context.Context, ns string) (done func(), err error) {
	p.mu.Lock()
	q := p.queues[ns]
	if q == nil {
		q = &queue{turn: make(chan struct{}, 1)}
		p.queues[ns] = q
	}
	q.waiting++
	p.mu.Unlock()
	leave := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if q.waiting--; q.waiting == 0 {
			delete(p.queues, ns)
		}
	}
	late := time.NewTimer(quotaPatience)
	defer late.Stop()
	select {
	case q.turn <- struct{}{}:
		return func() { <-q.turn; leave() }, nil
	case <-late.C:
		err = apierrors.NewInternalError(errors.New("resource quota evaluation timed out"))
	case <-ctx.Done():
		err = apierrors.NewInternalError(ctx.Err())
	}
	leave()
	return nil, err
}

// reserve checks a request against quotas and writes what it uses into their
// status. It returns the names of those that could not be written, with the last
// error.
func reserve(ctx context.Context, a *apiserver.Attributes, c *quota.Counter, quotas []*corev1.ResourceQuota) (map[string]bool, error) {
	changed, err := afford(a, c, quotas)
	if err != nil || a.DryRun {
		return nil, err
	}
	var failed map[string]bool
	var last error
	for _, q := range changed {
		if _, err := client.For[*corev1.ResourceQuota](a.Env.Client).In(a.Namespace).UpdateStatus(ctx, q); err != nil {
			if failed == nil {
				failed = map[string]bool{}
			}
			failed[q.Name], last = true, err
		}
	}
	return failed, last
}

// afford refuses what is too much, and otherwise returns the quotas that count it,
// as they become. Quotas are not changed.
func afford(a *apiserver.Attributes, c *quota.Counter, quotas []*corev1.ResourceQuota) ([]*corev1.ResourceQuota, error) {
	var counting []*corev1.ResourceQuota
	for _, q := range quotas {
		match, err := c.Matches(q, a.Object)
		if err != nil {
			return nil, apierrors.NewInternalError(fmt.Errorf("error matching scopes of quota %s, err: %w", q.Name, err))
		}
		if !match {
			continue
		}
		names := c.Matching(quota.Names(q.Status.Hard))
		if err := c.Required(names, a.Object); err != nil {
			return nil, forbidden(a, fmt.Errorf("failed quota: %s: %w", q.Name, err))
		}
		for _, n := range names {
			if _, ok := q.Status.Used[n]; !ok {
				return nil, forbidden(a, fmt.Errorf("status unknown for quota: %s, resources: %s", q.Name, joined(names)))
			}
		}
		counting = append(counting, q)
	}
	now := a.Env.Now()
	usage := c.Usage(a.Object, now)
	if bad := quota.Negative(usage); len(bad) > 0 {
		return nil, forbidden(a, fmt.Errorf("quota usage is negative for resource(s): %s", joined(bad)))
	}
	var out []*corev1.ResourceQuota
	for _, q := range counting {
		more := usage
		if a.Operation == apiserver.OpUpdate && a.Old != nil && a.Old.GetResourceVersion() != "" {
			match, err := c.Matches(q, a.Old)
			if err != nil {
				return nil, apierrors.NewInternalError(err)
			}
			if match {
				more = quota.Increase(usage, c.Usage(a.Old, now))
			}
		}
		more = quota.Only(quota.Nonzero(more), quota.Names(q.Status.Hard))
		if len(more) == 0 {
			continue
		}
		used := quota.Add(q.Status.Used, more)
		if over := quota.Exceeding(quota.Only(used, quota.Names(more)), q.Status.Hard); len(over) > 0 && a.Subresource != "status" {
			return nil, forbidden(a, fmt.Errorf("exceeded quota: %s, requested: %s, used: %s, limited: %s", q.Name,
				amounts(quota.Only(more, over)), amounts(quota.Only(q.Status.Used, over)), amounts(quota.Only(q.Status.Hard, over))))
		}
		q = q.DeepCopy()
		q.Status.Used = used
		out = append(out, q)
	}
	return out, nil
}

func amounts(l corev1.ResourceList) string {
	var parts []string
	for _, n := range quota.Names(l) {
		q := l[n]
		parts = append(parts, string(n)+"="+q.String())
	}
	return strings.Join(parts, ",")
}

func joined(names []corev1.ResourceName) string {
	parts := make([]string, 0, len(names))
	for _, n := range names {
		parts = append(parts, string(n))
	}
	return strings.Join(parts, ",")
}
