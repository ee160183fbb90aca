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

// shape is what pods of a load ask for beside being run.
type shape struct {
	Group     string // the value of their label "group"
	Placement string // members of their spec, each followed by a comma
	CPU       string // that they request; 10m where empty
	Ends      bool   // hollow kubelets report them Succeeded
}

// pod as an application's template makes it.
func pod(name, scheduler string, s shape) []byte {
	return []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `","labels":` + s.labels() + `},"spec":` +
		podSpec(scheduler, s) + `}`)
}

func (s shape) labels() string {
	out := `{"app":"bench","tier":"web"`
	if s.Group != "" {
		out += `,"group":"` + s.Group + `"`
	}
	if s.Ends {
		out += `,"` + endsLabel + `":"true"`
	}
	return out + "}"
}

func podSpec(scheduler string, s shape) string {
	cpu := s.CPU
	if cpu == "" {
		cpu = "10m"
	}
	return `{"schedulerName":"` + scheduler + `",` + s.Placement + `"containers":[{"name":"web","image":"registry.example/web:1",` +
		`"env":[{"name":"MODE","value":"bench"},{"name":"NODE","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}}],` +
		`"ports":[{"containerPort":8080}],"resources":{"requests":{"cpu":"` + cpu + `","memory":"16Mi"},"limits":{"memory":"64Mi"}},` +
		`"readinessProbe":{"httpGet":{"path":"/","port":8080}}}]}`
}

// job of one pod.
func job(name string) []byte {
	s := shape{Placement: `"restartPolicy":"Never",` + onHollow, Ends: true}
	return []byte(`{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"` + name + `"},"spec":{"template":{"metadata":{"labels":` +
		s.labels() + `},"spec":` + podSpec("default-scheduler", s) + `}}}`)
}

// priorityClass of a value.
func priorityClass(name string, value int) []byte {
	return []byte(`{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","metadata":{"name":"` + name + `"},"value":` +
		strconv.Itoa(value) + `}`)
}

// deployment of pods for hollow nodes, paused, so that it can be let go at one
// instant.
func deployment(name string, replicas int) []byte {
	return []byte(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"` + name + `"},"spec":{"paused":true,"replicas":` +
		strconv.Itoa(replicas) + `,"selector":{"matchLabels":{"app":"bench"}},"template":{"metadata":{"labels":{"app":"bench"}},"spec":` +
		podSpec("default-scheduler", shape{Placement: onHollow}) + `}}}`)
}

// onHollow lets a pod run on hollow nodes alone.
const onHollow = `"nodeSelector":{"` + hollowLabel + `":"true"},`

// endsLabel marks pods that end at once, with success, where hollow kubelets run
// them.
const endsLabel = "bench.skiff/ends"

// upLine is what the shell of a realPod writes once it would exit on TERM: before
// that the signal is lost, as to every first process without a handler.
const upLine = "up"

// realPod runs a shell that exits at once on TERM, or command where it is given.
func realPod(name, image string, command []string) []byte {
	if len(command) == 0 {
		command = []string{"/bin/sh", "-c", "trap 'exit 0' TERM; echo " + upLine + "; while :; do sleep 3600 & wait; done"}
	}
	quoted := make([]string, len(command))
	for i, c := range command {
		quoted[i] = strconv.Quote(c)
	}
	return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"labels":{"app":"bench"}},"spec":{"containers":[{"name":"c","image":%q,`+
		`"imagePullPolicy":"IfNotPresent","command":[%s]}]}}`, name, image, strings.Join(quoted, ","))
}
