// Package explanation declares explain.skiff.io: why an object is not as it should
// be, and the smallest changes that would help. Nothing of it is stored: an
// explanation is made when it is read, of what the reader may read (docs/explain.md).
//
// Its resources bear the names of what they explain (pods.explain.skiff.io), and
// each object the name and namespace of the one that it is about.
package explanation

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is that of the explanations.
var GroupVersion = schema.GroupVersion{Group: "explain.skiff.io", Version: "v1"}

// State says how the object is.
type State string

// States.
const (
	Fine    State = "Fine"    // nothing is wrong
	Waiting State = "Waiting" // it comes by itself, or waits for somebody
	Failing State = "Failing" // it does not come by itself
	Ending  State = "Ending"  // it is deleted and not gone yet
)

// Explanation is why an object is as it is.
type Explanation struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Regarding is what is explained.
	Regarding Reference `json:"regarding"`
	State     State     `json:"state"`
	// Summary is one sentence: what is the matter.
	Summary string `json:"summary"`
	// Causes are the reasons, what weighs most first.
	Causes []Cause `json:"causes,omitempty"`
	// Remedies are changes, each of which would do by itself; the smallest first.
	Remedies []Remedy `json:"remedies,omitempty"`
	// Preemption says what it would cost to make room by evicting others.
	Preemption *Preemption `json:"preemption,omitempty"`
	// Notes are what else is to be known: what could not be read, for one.
	Notes []string `json:"notes,omitempty"`
	// Because are the explanations of what this object waits for.
	Because []Explanation `json:"because,omitempty"`
}

// Reference names an object.
type Reference struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

// Cause is one reason.
type Cause struct {
	// Reason is a word for programs; of a scheduler's plugin, its name.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Nodes are those that refuse a pod for this reason.
	Nodes []string `json:"nodes,omitempty"`
}

// Remedy is a set of changes, all of which are needed.
type Remedy struct {
	Changes []Change `json:"changes"`
	// Proven: the scheduler was asked, and would place the pod after these changes.
	Proven bool `json:"proven,omitempty"`
	// Node is where the pod would run then.
	Node string `json:"node,omitempty"`
	// Evicts are the pods that would have to go.
	Evicts []Victim `json:"evicts,omitempty"`
	// Breaks are the disruption budgets that this would break, as namespace/name.
	Breaks []string `json:"breaks,omitempty"`
}

// Change is one change to one object.
type Change struct {
	Message string `json:"message"`
	// Target is the object to be changed, or made.
	Target *Reference `json:"target,omitempty"`
	// Patch is a strategic merge patch of the target; none where the change is not
	// one of an object.
	Patch json.RawMessage `json:"patch,omitempty"`
	// Create is the object to be made.
	Create json.RawMessage `json:"create,omitempty"`
	// Command does the same.
	Command string `json:"command,omitempty"`
}

// Victim is a pod that would be evicted.
type Victim struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Priority  int32  `json:"priority"`
}

// Preemption is the least that evictions could cost.
type Preemption struct {
	Message string   `json:"message"`
	Node    string   `json:"node,omitempty"`
	Evicts  []Victim `json:"evicts,omitempty"`
	Breaks  []string `json:"breaks,omitempty"`
}

// List is a list of explanations.
type List struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Explanation `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (e *Explanation) DeepCopyObject() runtime.Object {
	if e == nil {
		return nil
	}
	out := e.deepCopy()
	return &out
}

func (e *Explanation) deepCopy() Explanation {
	out := *e
	e.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Causes = each(e.Causes, func(c Cause) Cause { c.Nodes = each(c.Nodes, same); return c })
	out.Remedies = each(e.Remedies, func(r Remedy) Remedy {
		r.Changes = each(r.Changes, func(c Change) Change {
			if c.Target != nil {
				to := *c.Target
				c.Target = &to
			}
			c.Patch, c.Create = each(c.Patch, same), each(c.Create, same)
			return c
		})
		r.Evicts, r.Breaks = each(r.Evicts, same), each(r.Breaks, same)
		return r
	})
	if p := e.Preemption; p != nil {
		out.Preemption = &Preemption{Message: p.Message, Node: p.Node, Evicts: each(p.Evicts, same), Breaks: each(p.Breaks, same)}
	}
	out.Notes = each(e.Notes, same)
	out.Because = each(e.Because, func(b Explanation) Explanation { return b.deepCopy() })
	return out
}

// DeepCopyObject implements runtime.Object.
func (l *List) DeepCopyObject() runtime.Object {
	if l == nil {
		return nil
	}
	out := &List{TypeMeta: l.TypeMeta, ListMeta: *l.ListMeta.DeepCopy()}
	out.Items = each(l.Items, func(e Explanation) Explanation { return e.deepCopy() })
	return out
}

func same[T any](v T) T { return v }

func each[S ~[]T, T any](list S, f func(T) T) S {
	if list == nil {
		return nil
	}
	out := make(S, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return out
}
