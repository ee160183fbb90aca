package apiserver_test

import "testing"

// Nothing depends on events: no deletion of one waits for the garbage collector.
func TestEventsHaveNoDependents(t *testing.T) {
	f := start(t)
	const events = "/api/v1/namespaces/default/events"
	for _, policy := range []string{"Orphan", "Foreground", "Background"} {
		f.want(201, "POST", events, "application/json", `{"metadata":{"name":"a"},"involvedObject":{"namespace":"default"}}`)
		f.want(200, "DELETE", events+"/a", "application/json", `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"`+policy+`"}`)
		f.want(404, "GET", events+"/a", "", "")
	}
	// Other kinds do wait.
	f.want(201, "POST", maps, "application/json", `{"metadata":{"name":"a"}}`)
	f.want(200, "DELETE", maps+"/a", "application/json", `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Orphan"}`)
	f.want(200, "GET", maps+"/a", "", "")
}
