package explain

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"skiff/internal/api/explanation"
	"skiff/internal/client"
)

// Explain says why an object of the world is as it is; nil where there is nothing to
// say about objects of its kind.
func (w *World) Explain(o client.Object) *explanation.Explanation {
	var out *explanation.Explanation
	switch o := o.(type) {
	case *corev1.Pod:
		out = w.explainPod(o)
	case *corev1.PersistentVolumeClaim:
		out = w.explainClaim(o)
	case *corev1.Namespace:
		out = w.explainNamespace(o)
	case *corev1.Service:
		out = w.explainService(o)
	case *appsv1.Deployment:
		out = w.explainDeployment(o)
	case *appsv1.ReplicaSet:
		out = w.explainReplicaSet(o)
	case *appsv1.StatefulSet:
		out = w.explainStatefulSet(o)
	case *appsv1.DaemonSet:
		out = w.explainDaemonSet(o)
	case *batchv1.Job:
		out = w.explainJob(o)
	case *autoscalingv2.HorizontalPodAutoscaler:
		out = w.explainAutoscaler(o)
	default:
		return nil
	}
	for _, what := range sorted(w.Unread) {
		note(out, "%s could not be read (%s): what depends on them is not told.", what, w.Unread[what])
	}
	return out
}

// begin is an explanation of an object, to be filled in.
func begin(kind, version string, o client.Object) *explanation.Explanation {
	out := &explanation.Explanation{Regarding: explanation.Reference{APIVersion: version, Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}}
	out.APIVersion, out.Kind = explanation.GroupVersion.String(), explanation.KindFor(kind)
	out.Name, out.Namespace, out.Labels = o.GetName(), o.GetNamespace(), o.GetLabels()
	return out
}

func cause(e *explanation.Explanation, reason, format string, args ...any) {
	e.Causes = append(e.Causes, explanation.Cause{Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func note(e *explanation.Explanation, format string, args ...any) {
	e.Notes = append(e.Notes, fmt.Sprintf(format, args...))
}

// advise proposes what no core can be asked about.
func advise(e *explanation.Explanation, message string, target *explanation.Reference, command ...string) {
	e.Remedies = append(e.Remedies, explanation.Remedy{Changes: []explanation.Change{{Message: message, Target: target, Command: strings.Join(command, " ")}}})
}

// editable is what a change of a pod's spec is to be written to.
type editable struct {
	ref explanation.Reference
	obj client.Object
	// spec finds the pod's spec in a copy of obj.
	spec func(client.Object) *corev1.PodSpec
}

// shown is a change for those who read it; of is what a pod's spec stands in.
func (c *change) shown(of *editable) explanation.Change {
	out := explanation.Change{Message: c.message, Target: c.target, Command: c.command}
	switch {
	case c.create != nil:
		out.Create, _ = json.Marshal(c.create)
	case c.edit != nil && of != nil:
		ref := of.ref
		out.Target = &ref
		next := of.obj.DeepCopyObject().(client.Object)
		c.edit(of.spec(next))
		out.Patch = difference(of.obj, next)
	}
	return out
}

// difference is the strategic merge patch from one state of an object to another.
func difference(from, to client.Object) json.RawMessage {
	a, err := json.Marshal(from)
	if err != nil {
		return nil
	}
	b, err := json.Marshal(to)
	if err != nil {
		return nil
	}
	p, err := strategicpatch.CreateTwoWayMergePatch(a, b, from)
	if err != nil || string(p) == "{}" {
		return nil
	}
	return p
}

// some are names as a sentence has them: "node a", "nodes a and b", "nodes a, b, c and
// 4 more"; none where there are none.
func some(what string, names []string, none string) string {
	if len(names) == 0 {
		return none
	}
	if strings.HasPrefix(what, "there") {
		if len(names) == 1 {
			what = "there is"
		}
	} else if len(names) > 1 {
		if s, is := strings.CutSuffix(what, "class is"); is {
			what = s + "classes are"
		} else {
			what += "s"
		}
	}
	return what + " " + few(names)
}

// few are the first of many names.
func few(names []string) string {
	const most = 4
	if len(names) > most+1 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return and(names)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// since is a time span as a person says it.
func since(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
