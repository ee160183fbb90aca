package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// sizes of the loads; the flags set them.
type sizes struct {
	Count    int           // requests of one API load, at most
	For      time.Duration // of one API load, at most
	Pods     int           // that LIST returns
	Lists    int           // LISTs per encoding
	Watchers int
	Events   int // of the watch scenario
	Nodes    int // hollow
	Bind     int // pods bound on them
	Replicas int // of the Deployment on them
	Jobs     int
	Fillers  int // pods of low priority on each node
	Image    string
	Command  []string
	Serial   int // pods started one after the other
	Burst    int // pods started at once
	Settle   time.Duration
	Window   time.Duration
	Starts   int
	Patience time.Duration // bounds what is waited for
}

// figure is one number that a round yields.
type figure struct {
	Name  string
	Unit  string
	Lower bool // less is better
	Value float64
}

// runner is a scenario prepared on one side. round may be called several times.
type runner interface {
	round(ctx context.Context) ([]figure, error)
	// finish takes away what was prepared.
	finish(ctx context.Context) error
}

// scenario is a row of the help, and how it is prepared.
type scenario struct {
	name, about string
	prepare     func(ctx context.Context, s *side, z sizes) (runner, error)
}

// scenarios in the order in which they run; start has no running side and stands
// in start.go.
var scenarios = []scenario{
	{"idle", "memory and CPU of the server's processes, at rest", prepareIdle},
	{"api", "creates per second at 1, 16, 64 clients; get, update, patch, apply, delete at 16", prepareAPI},
	{"list", "LIST of many pods, JSON and protobuf", prepareList},
	{"watch", "fan-out of events to many watchers", prepareFanout},
	{"schedule", "pods created, bound and Ready on hollow nodes", prepareSchedule},
	{"bind", "waiting pods bound and Ready once their hollow nodes are opened", prepareBind("bind", basic)},
	{"bind-node", "the same, with a required node affinity to two of three zones", prepareBind("bind-node", inZones)},
	{"bind-spread", "the same, spread over the zones (DoNotSchedule, skew 5)", prepareBind("bind-spread", spread)},
	{"bind-near", "the same, with a required pod affinity by zone", prepareBind("bind-near", near)},
	{"bind-apart", "the same, with a required pod anti-affinity by node in groups of half as many pods as nodes", prepareBind("bind-apart", apart)},
	{"preempt", "a pod of high priority for each of many nodes that pods of low priority fill", preparePreempt},
	{"deployment", "a Deployment unpaused, bound and Ready on hollow nodes", prepareDeployment},
	{"rollout", "the rolling update of a Deployment on hollow nodes", prepareRollout},
	{"jobs", "Jobs of one pod created and complete on hollow nodes", prepareJobs},
	{"podstart", "pods started and ended on a real node, one by one and at once", preparePodStart},
}

// simple is a runner made of two functions.
type simple struct {
	do  func(ctx context.Context) ([]figure, error)
	end func(ctx context.Context) error
}

func (r simple) round(ctx context.Context) ([]figure, error) { return r.do(ctx) }

func (r simple) finish(ctx context.Context) error {
	if r.end == nil {
		return nil
	}
	return r.end(ctx)
}

// inNamespace runs do in a namespace of its own, which is gone afterwards.
func inNamespace(ctx context.Context, s *side, name string, do func(ns string) error) error {
	ns, err := s.namespace(ctx, name)
	if err == nil {
		err = do(ns)
	}
	if ns != "" {
		err = errors.Join(err, s.drop(ctx, ns))
	}
	return err
}

// figures of a load: its rate, and the CPU time that a request cost the server.
func (o outcome) figures(s *side, name string) ([]figure, error) {
	if o.Errors > 0 {
		return nil, fmt.Errorf("%s: %d of %d requests failed; the first: %w", name, o.Errors, o.Errors+o.Done, o.First)
	}
	fs := []figure{{Name: name, Unit: "1/s", Value: o.perSecond()}}
	if s.knowsServer() {
		fs = append(fs, figure{Name: name + ", server CPU", Unit: "us", Lower: true, Value: o.cpuMicros()})
	}
	return fs, nil
}
