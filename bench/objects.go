package main

import (
	"fmt"
	"strconv"
	"strings"
)

// The objects of a load, as JSON, of the sizes that clusters have.

// kilobyte is the payload of a ConfigMap.
var kilobyte = strings.Repeat("0123456789abcdef", 64)

// hollowLabel marks bench's hollow nodes, and selects them.
const hollowLabel = "bench.skiff/hollow"

// nobody is a scheduler that does not exist: pods of the API scenarios are stored
// and stay as they are.
const nobody = "bench-nobody"

func configMap(name, value string) []byte {
	return []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"` + name +
		`","labels":{"app":"bench"}},"data":{"payload":"` + kilobyte + `","value":"` + value + `"}}`)
}

// pod as an application's template makes it. selector is JSON, or empty.
func pod(name, scheduler, selector string) []byte {
	return []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `","labels":{"app":"bench","tier":"web"}},"spec":` +
		podSpec(scheduler, selector) + `}`)
}

func podSpec(scheduler, selector string) string {
	if selector != "" {
		selector = `"nodeSelector":` + selector + `,`
	}
	return `{"schedulerName":"` + scheduler + `",` + selector + `"containers":[{"name":"web","image":"registry.example/web:1",` +
		`"env":[{"name":"MODE","value":"bench"},{"name":"NODE","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}}],` +
		`"ports":[{"containerPort":8080}],"resources":{"requests":{"cpu":"10m","memory":"16Mi"},"limits":{"memory":"64Mi"}},` +
		`"readinessProbe":{"httpGet":{"path":"/","port":8080}}}]}`
}

// deployment of pods for hollow nodes, paused, so that it can be let go at one
// instant.
func deployment(name string, replicas int) []byte {
	return []byte(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"` + name + `"},"spec":{"paused":true,"replicas":` +
		strconv.Itoa(replicas) + `,"selector":{"matchLabels":{"app":"bench"}},"template":{"metadata":{"labels":{"app":"bench"}},"spec":` +
		podSpec("default-scheduler", onHollow) + `}}}`)
}

const onHollow = `{"` + hollowLabel + `":"true"}`

// realPod runs a shell that exits at once on TERM, or command where it is given.
func realPod(name, image string, command []string) []byte {
	if len(command) == 0 {
		command = []string{"/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"}
	}
	quoted := make([]string, len(command))
	for i, c := range command {
		quoted[i] = strconv.Quote(c)
	}
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"labels":{"app":"bench"}},"spec":{"containers":[{"name":"c","image":%q,`+
		`"imagePullPolicy":"IfNotPresent","command":[%s]}]}}`, name, image, strings.Join(quoted, ","))
}
