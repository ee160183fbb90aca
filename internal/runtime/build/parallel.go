package build

import (
	"context"
	"errors"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"golang.org/x/sync/errgroup"
)

// buildStages builds the stages of r.order, each as soon as those that it needs are
// there, as many at once as there are processors. The first failure ends the others.
func (r *run) buildStages(ctx context.Context) error {
	needs := map[int][]int{}
	done := map[int]chan struct{}{}
	for _, i := range r.order {
		done[i] = make(chan struct{})
		var err error
		if needs[i], err = r.needs(i); err != nil {
			return err
		}
	}
	slots := make(chan struct{}, r.b.atOnce)
	g, ctx := errgroup.WithContext(ctx)
	for _, i := range r.order {
		g.Go(func() error {
			for _, k := range needs[i] {
				select {
				case <-done[k]:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			defer func() { <-slots }()
			if err := r.buildStage(ctx, i); err != nil {
				return err
			}
			close(done[i])
			return nil
		})
	}
	return g.Wait()
}

// needs are the stages that stage i starts from or reads.
func (r *run) needs(i int) ([]int, error) {
	b := &r.bases[i]
	if b.replaced {
		return nil, nil
	}
	var out []int
	if b.stage >= 0 {
		out = append(out, b.stage)
	}
	for _, cmds := range [][]instructions.Command{b.triggers, r.file.stages[i].Commands} {
		err := r.markSources(i, cmds, func(k int) error {
			out = append(out, k)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ErrCanceled is how a step ends, to the progress, that was given up because the build
// ended otherwise.
var ErrCanceled = errors.New("canceled")

// begin tells the progress of a step and returns its number.
func (r *run) begin(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.step++
	r.req.Progress.Start(r.step, r.total, name)
	return r.step
}

// end tells the progress of the end of step n.
func (r *run) end(ctx context.Context, n int, cached bool, err error) {
	if err != nil && ctx.Err() != nil {
		err = ErrCanceled
	}
	r.req.Progress.Done(n, cached, err)
}
