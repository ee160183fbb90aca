package explain

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"skiff/internal/client"
)

var update = flag.Bool("update", false, "write what is explained into testdata")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// A transcript has the objects of a cluster (world), what is asked (ask: KIND/NAME
// [NAMESPACE]) and what is answered (want). For a pending pod, every remedy that the
// answer calls proven is applied too, to a cluster with a scheduler: the pod must run.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d transcripts: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(a.Files) != 3 || a.Files[0].Name != "world" || a.Files[1].Name != "ask" || a.Files[2].Name != "want" {
				t.Fatal("a transcript has three files: world, ask and want")
			}
			w := worldOf(t, a.Files[0].Data)
			o := find(t, w, strings.TrimSpace(string(a.Files[1].Data)))
			e := w.Explain(o)
			var got bytes.Buffer
			if err := Text(&got, e, Style{Width: 100}); err != nil {
				t.Fatal(err)
			}
			if *update {
				a.Files[2].Data = got.Bytes()
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if want := string(a.Files[2].Data); got.String() != want {
				t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
			}
			if p, ok := o.(*corev1.Pod); ok && p.Spec.NodeName == "" && len(all[*corev1.Node](w)) > 0 {
				proveAll(t, w, p, e)
			}
		})
	}
}

// worldOf reads a world: a document of an object each. Documents of kind Left are
// what remains in a namespace, of kind Broken an API group that does not answer, of
// kind Log the last lines of a container.
func worldOf(t *testing.T, text []byte) *World {
	t.Helper()
	w := NewWorld(now)
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var m struct {
			metav1.TypeMeta
			Resource, Group, Version, Reason, Of, Text string
			Objects                                    []metav1.PartialObjectMetadata
		}
		if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		switch m.Kind {
		case "":
			continue
		case "Left":
			r := schema.GroupVersionResource{Group: m.Group, Version: m.Version, Resource: m.Resource}
			for i := range m.Objects {
				w.Left[r] = append(w.Left[r], &m.Objects[i])
			}
			continue
		case "Broken":
			w.Broken[m.Group] = m.Reason
			continue
		case "Log":
			w.Logs[m.Of] = m.Text
			continue
		}
		w.Put(objectOf(t, doc))
	}
	return w
}

func objectOf(t *testing.T, doc string) client.Object {
	t.Helper()
	var m metav1.TypeMeta
	if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
		t.Fatal(err)
	}
	if m.APIVersion == "" {
		m.APIVersion = "v1"
	}
	for _, k := range client.Kinds {
		if k.GVK.Kind != m.Kind || k.GVK.GroupVersion().String() != m.APIVersion {
			continue
		}
		o := k.New()
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if k.Namespaced && o.GetNamespace() == "" {
			o.SetNamespace("default")
		}
		o.SetUID(types.UID(strings.ToLower(m.Kind) + "-" + o.GetName()))
		if n, ok := o.(*corev1.Node); ok {
			nodeDefaults(n)
		}
		if p, ok := o.(*corev1.Pod); ok {
			podDefaults(p)
		}
		return o
	}
	t.Fatalf("%s %s is not a kind that is known", m.APIVersion, m.Kind)
	return nil
}

func nodeDefaults(n *corev1.Node) {
	metav1.SetMetaDataLabel(&n.ObjectMeta, corev1.LabelHostname, n.Name)
	if _, ok := n.Status.Allocatable[corev1.ResourcePods]; !ok {
		n.Status.Allocatable[corev1.ResourcePods] = quantity(corev1.ResourcePods, 110)
	}
	if n.Status.Conditions == nil {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	}
}

func podDefaults(p *corev1.Pod) {
	if p.Spec.SchedulerName == "" {
		p.Spec.SchedulerName = corev1.DefaultSchedulerName
	}
	if p.Status.Phase == "" {
		p.Status.Phase = corev1.PodPending
		if p.Spec.NodeName != "" {
			p.Status.Phase = corev1.PodRunning
		}
	}
	for i := range p.Spec.Containers {
		for j := range p.Spec.Containers[i].Ports {
			if o := &p.Spec.Containers[i].Ports[j]; o.Protocol == "" {
				o.Protocol = corev1.ProtocolTCP
			}
		}
	}
}

func find(t *testing.T, w *World, ask string) client.Object {
	t.Helper()
	what, ns, _ := strings.Cut(ask, " ")
	kind, name, _ := strings.Cut(what, "/")
	k, ok := KindOf(kind)
	if !ok {
		t.Fatalf("no kind %q", kind)
	}
	if k.Namespaced && ns == "" {
		ns = "default"
	}
	for _, list := range w.byType {
		for _, o := range list {
			if o.GetNamespace() == ns && o.GetName() == name && strings.HasSuffix(fmt.Sprintf("%T", o), "."+k.Kind) {
				return o
			}
		}
	}
	t.Fatalf("the world has no %s", ask)
	return nil
}
