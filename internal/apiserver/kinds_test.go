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

func TestTokenRequestMustFitItsAccount(t *testing.T) {
	f := start(t)
	const accounts = "/api/v1/namespaces/default/serviceaccounts"
	f.want(201, "POST", accounts, "application/json", `{"metadata":{"name":"a"}}`)
	for body, want := range map[string]string{
		`{"metadata":{"name":"b"}}`:                  `TokenRequest.authentication.k8s.io "a" is invalid: metadata.name: Invalid value: "b": must match the service account name if specified`,
		`{"spec":{"expirationSeconds":599}}`:         `TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes`,
		`{"spec":{"attestations":{"a":["b"]}}}`:      `TokenRequest.authentication.k8s.io "" is invalid: spec.attestations: Invalid value: {"a":["b"]}: attestations may only be specified with a webhook bound object reference`,
		`{"spec":{"expirationSeconds":98765432109}}`: `TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 98765432109: may not specify a duration larger than 2^32 seconds`,
	} {
		if msg := f.want(422, "POST", accounts+"/a/token", "application/json", body)["message"]; msg != want {
			t.Errorf("%s:\n got  %v\n want %s", body, msg, want)
		}
	}
	body := `{"metadata":{"uid":"other"}}`
	f.want(409, "POST", accounts+"/a/token", "application/json", body)
}
