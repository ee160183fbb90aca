package scheduler

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/rogpeppe/go-internal/txtar"

	"skiff/internal/scheduler/framework"
	"skiff/internal/scheduler/plugins"
)

var update = flag.Bool("update", false, "write what the cycle answered into testdata")

// A transcript is a script of commands for a cycle and what it answers:
//
//	node NAME key=value...   a node; cpu, memory, pods or any resource; label:K=V,
//	                         taint:K=V:EFFECT, unschedulable, image:NAME=SIZE
//	drop-node NAME
//	pod NAME key=value...    a pending pod; requests as above; select:K=V, tolerate:K,
//	                         port=N, priority=N, name=NODE (affinity by name),
//	                         prefer:K=V, image=NAME
//	schedule NAME...         one batch
//	run NAME NODE            the API says that a pod runs there
//	end NAME                 a pod is gone
//	wait NAME NODE           a pod is nominated
//	explain NAME             node by node
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(a.Files) != 2 || a.Files[0].Name != "script" || a.Files[1].Name != "want" {
				t.Fatal("a transcript has two files, script and want")
			}
			got := play(t, string(a.Files[0].Data))
			if *update {
				a.Files[1].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want := string(a.Files[1].Data); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func play(t *testing.T, script string) string {
	t.Helper()
	s, classes, c := framework.NewSnapshot(), framework.NewClasses(), NewCycle(plugins.All(), 1)
	pods := map[string]*corev1.Pod{}
	get := func(name string) *framework.Pod {
		if pods[name] == nil {
			t.Fatalf("no pod %q", name)
		}
		return classes.Pod(pods[name])
	}
	var out strings.Builder
	for line := range strings.Lines(script) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		switch f[0] {
		case "node":
			s.SetNode(scriptNode(t, f[1], f[2:]))
		case "drop-node":
			s.RemoveNode(f[1])
		case "pod":
			pods[f[1]] = scriptPod(t, f[1], f[2:])
		case "schedule":
			var batch []*framework.Pod
			for _, name := range f[1:] {
				batch = append(batch, get(name))
			}
			for _, d := range c.Schedule(s, batch) {
				if d.Failure == nil {
					fmt.Fprintf(&out, "%s -> %s\n", d.Pod.Name, d.Node)
					continue
				}
				fmt.Fprintf(&out, "%s: %s\n", d.Pod.Name, d.Failure.Message)
				if len(d.Failure.Plugins) > 0 {
					fmt.Fprintf(&out, "  refused by %s\n", strings.Join(d.Failure.Plugins, ", "))
				}
				for _, v := range d.Failure.Victims {
					fmt.Fprintf(&out, "  evict %s\n", v.Name)
				}
			}
		case "run":
			s.SetPod(get(f[1]), f[2])
		case "end":
			s.RemovePod(get(f[1]).UID)
		case "wait":
			s.Nominate(get(f[1]), f[2])
		case "explain":
			for _, r := range c.Explain(s, get(f[1])) {
				fmt.Fprintf(&out, "%s: %s: %s\n", r.Node, r.Plugin, r.Sentence)
			}
		default:
			t.Fatalf("unknown command %q", f[0])
		}
	}
	return out.String()
}

func scriptNode(t *testing.T, name string, args []string) *corev1.Node {
	n := node(name, "cpu", "4", "memory", "8Gi", "pods", "10")
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		switch {
		case a == "unschedulable":
			n.Spec.Unschedulable = true
		case strings.HasPrefix(k, "label:"):
			n.Labels[k[6:]] = v
		case strings.HasPrefix(k, "taint:"):
			value, effect, _ := strings.Cut(v, ":")
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: k[6:], Value: value, Effect: corev1.TaintEffect(effect)})
		case strings.HasPrefix(k, "image:"):
			q := resource.MustParse(v)
			n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{k[6:]}, SizeBytes: q.Value()})
		default:
			n.Status.Allocatable[corev1.ResourceName(k)] = resource.MustParse(v)
		}
	}
	return n
}

func scriptPod(t *testing.T, name string, args []string) *corev1.Pod {
	p := pod(name)
	c := &p.Spec.Containers[0]
	affinity := &corev1.NodeAffinity{}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		switch {
		case strings.HasPrefix(k, "select:"):
			if p.Spec.NodeSelector == nil {
				p.Spec.NodeSelector = map[string]string{}
			}
			p.Spec.NodeSelector[k[7:]] = v
		case strings.HasPrefix(k, "tolerate:"):
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: k[9:], Operator: corev1.TolerationOpExists})
		case strings.HasPrefix(k, "prefer:"):
			affinity.PreferredDuringSchedulingIgnoredDuringExecution = append(affinity.PreferredDuringSchedulingIgnoredDuringExecution, corev1.PreferredSchedulingTerm{
				Weight: 10, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: k[7:], Operator: corev1.NodeSelectorOpIn, Values: []string{v}}}},
			})
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: affinity}
		case k == "name":
			affinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: strings.Split(v, ",")}},
			}}}
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: affinity}
		case k == "image":
			c.Image = v
		case k == "port", k == "priority":
			n, err := strconv.ParseInt(v, 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			if k == "port" {
				c.Ports = append(c.Ports, corev1.ContainerPort{HostPort: int32(n), ContainerPort: int32(n), Protocol: corev1.ProtocolTCP})
			} else {
				withPriority(p, int32(n))
			}
		default:
			c.Resources.Requests[corev1.ResourceName(k)] = resource.MustParse(v)
		}
	}
	return p
}
