package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
)

// clientCounts are the numbers of clients that create.
var clientCounts = []int{1, 16, 64}

// others is the number of clients of every other verb.
const others = 16

func prepareAPI(_ context.Context, s *side, z sizes) (runner, error) {
	return simple{do: func(ctx context.Context) (fs []figure, err error) {
		err = inNamespace(ctx, s, "api", func(ns string) error {
			fs, err = apiRound(ctx, s, z, ns)
			return err
		})
		return fs, err
	}}, nil
}

func apiRound(ctx context.Context, s *side, z sizes, ns string) ([]figure, error) {
	var out []figure
	var errs []error // what one verb lacks does not hide the others
	root := "/api/v1/namespaces/" + ns
	measure := func(name string, clients, count int, r func(i int) request) (outcome, error) {
		o, err := load{Clients: clients, Count: count, For: z.For, Request: r}.run(ctx, s)
		if err != nil {
			return o, fmt.Errorf("%s: %w", name, err)
		}
		fs, err := o.figures(s, name)
		out = append(out, fs...)
		return o, err
	}
	made := 0 // ConfigMaps of the run with 16 clients
	for _, n := range clientCounts {
		prefix := "cm-" + strconv.Itoa(n) + "-"
		o, err := measure(fmt.Sprintf("create ConfigMaps, %d clients", n), n, z.Count, func(i int) request {
			return request{http.MethodPost, root + "/configmaps", asJSON, asJSON, configMap(prefix+strconv.Itoa(i), "0")}
		})
		if err != nil {
			errs = append(errs, err)
		}
		if n == others {
			made = o.Done
		}
	}
	for _, n := range clientCounts {
		prefix := "pod-" + strconv.Itoa(n) + "-"
		if _, err := measure(fmt.Sprintf("create Pods, %d clients", n), n, z.Count, func(i int) request {
			return request{http.MethodPost, root + "/pods", asJSON, asJSON, pod(prefix+strconv.Itoa(i), nobody, shape{})}
		}); err != nil {
			errs = append(errs, err)
		}
	}
	if made == 0 {
		return out, errors.Join(errs...)
	}
	name := func(i int) string { return "cm-16-" + strconv.Itoa(i%made) }
	at := root + "/configmaps/"
	for _, v := range []struct {
		verb  string
		count int
		r     func(i int) request
	}{
		{"get", z.Count, func(i int) request { return request{http.MethodGet, at + name(i), "", asJSON, nil} }},
		{"update", z.Count, func(i int) request {
			return request{http.MethodPut, at + name(i), asJSON, asJSON, configMap(name(i), "u"+strconv.Itoa(i))}
		}},
		{"merge patch", z.Count, func(i int) request {
			return request{http.MethodPatch, at + name(i), asMerge, asJSON, []byte(`{"data":{"value":"m` + strconv.Itoa(i) + `"}}`)}
		}},
		{"apply", z.Count, func(i int) request {
			return request{
				http.MethodPatch, at + name(i) + "?fieldManager=bench-apply&force=true", asApply, asJSON,
				[]byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"` + name(i) + `"},"data":{"applied":"` + strconv.Itoa(i) + `"}}`),
			}
		}},
		// Each object can be deleted once.
		{"delete", min(z.Count, made), func(i int) request { return request{http.MethodDelete, at + name(i), "", asJSON, nil} }},
	} {
		if _, err := measure(fmt.Sprintf("%s, %d clients", v.verb, others), others, v.count, v.r); err != nil {
			errs = append(errs, err)
		}
	}
	return out, errors.Join(errs...)
}
