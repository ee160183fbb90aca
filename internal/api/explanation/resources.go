package explanation

import (
	"context"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
)

// Subject is a resource whose objects are explained.
type Subject struct {
	Of         schema.GroupVersionResource
	Kind       string
	Namespaced bool
}

// KindFor is the kind of explanations of a kind: kubectl finds a resource by it.
func KindFor(kind string) string { return kind + "Explanation" }

// Explain makes the explanations of objects, as the user of env may know them. For a
// list it leaves out what is well.
type Explain func(ctx context.Context, env resource.Env, objs []resource.Object) ([]*Explanation, error)

// Resources declares a resource of explanations for each subject, made by f.
func Resources(of []Subject, f Explain) []*resource.Resource {
	var out []*resource.Resource
	for _, s := range of {
		out = append(out, resource.Define(resource.Resource{
			GroupVersion: GroupVersion, Kind: KindFor(s.Kind), Plural: s.Of.Resource, Singular: strings.ToLower(s.Kind),
			Namespaced: s.Namespaced, Verbs: []string{"get", "list"},
			New:     func() resource.Object { return &Explanation{} },
			NewList: func() runtime.Object { return &List{} },
			Columns: []metav1.TableColumnDefinition{
				{Name: "Name", Type: "string", Format: "name", Description: "Name of what is explained"},
				{Name: "State", Type: "string", Description: "Fine, Waiting, Failing or Ending"},
				{Name: "Summary", Type: "string", Description: "What is the matter"},
				{Name: "Remedy", Type: "string", Priority: 1, Description: "The smallest change that would help"},
			},
			Live: &resource.Live{Of: s.Of, Measure: func(ctx context.Context, env resource.Env, objs []resource.Object) ([]resource.Object, error) {
				found, err := f(ctx, env, objs)
				if err != nil {
					return nil, err
				}
				var list []resource.Object
				for _, e := range found {
					list = append(list, e)
				}
				return list, nil
			}},
		}, resource.StrategyOf[*Explanation]{
			Row: func(e *Explanation, _ time.Time) []any {
				return []any{e.Name, string(e.State), e.Summary, e.first()}
			},
		}))
	}
	return out
}

// first is the smallest remedy, in words.
func (e *Explanation) first() string {
	if len(e.Remedies) == 0 {
		return "<none>"
	}
	var texts []string
	for _, c := range e.Remedies[0].Changes {
		texts = append(texts, c.Message)
	}
	return strings.Join(texts, ", and ")
}
