package resource

import (
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestNewest(t *testing.T) {
	class := func(name string, made int64, marked string) *networkingv1.IngressClass {
		return &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(made, 0)), Labels: map[string]string{"marked": marked}}}
	}
	marked := func(c *networkingv1.IngressClass) bool { return c.Labels["marked"] == "yes" }
	for want, list := range map[string][]*networkingv1.IngressClass{
		"":      {class("new", 9, "")},
		"only":  {class("new", 9, ""), class("only", 1, "yes")},
		"late":  {class("a", 1, "yes"), class("late", 2, "yes"), class("b", 1, "yes")},
		"first": {class("z", 1, "yes"), class("first", 1, "yes"), class("other", 1, "yes")},
	} {
		got := ""
		if c := Newest(list, marked); c != nil {
			got = c.Name
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
