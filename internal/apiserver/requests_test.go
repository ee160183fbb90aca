package apiserver

import (
	"net/http"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/api/resource"
)

func countOne(m *requests, rq *request) {
	m.begin(rq.countedAs(false, ""), time.Now()).end(http.StatusOK, 1234)
}

// Every request pays for being counted: no memory, after the first of its route.
func TestCountingTakesNoMemory(t *testing.T) {
	rq := &request{verb: "get", kind: &kind{Resource: &resource.Resource{Plural: "things", GroupVersion: schema.GroupVersion{Version: "v1"}}}, namespace: "a", name: "b"}
	m := newRequests()
	if n := testing.AllocsPerRun(100, func() { countOne(m, rq) }); n != 0 {
		t.Errorf("counting a request allocates %v times", n)
	}
	if n := len(*m.routes.Load()); n != 1 {
		t.Errorf("%d routes, want 1", n)
	}
}

func BenchmarkCount(b *testing.B) {
	rq := &request{verb: "get", kind: &kind{Resource: &resource.Resource{Plural: "things"}}, namespace: "a", name: "b"}
	m := newRequests()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			countOne(m, rq)
		}
	})
}
