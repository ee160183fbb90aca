package api_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api"
	"skiff/internal/api/resource"
)

func env() resource.Env {
	return resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
}

func find(t *testing.T, gvk string) *resource.Resource {
	t.Helper()
	for _, r := range api.All() {
		if k := r.GVK(); strings.TrimPrefix(k.GroupVersion().String()+"/"+k.Kind, "/") == gvk {
			return r
		}
	}
	t.Fatalf("no resource %s", gvk)
	return nil
}

func decode(t *testing.T, r *resource.Resource, text string) resource.Object {
	t.Helper()
	o := r.New()
	if err := json.Unmarshal([]byte(text), o); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if r.Default != nil {
		r.Default(o)
	}
	return o
}

func texts(errs field.ErrorList) []string {
	var out []string
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return out
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

const immutable = "field is immutable when `immutable` is set"

// checkRules compares what the rules say of an object, or of its change from old,
// through the door sub.
func checkRules(t *testing.T, gvk, sub, obj, old string, want []string) {
	t.Helper()
	r := find(t, gvk)
	o := decode(t, r, obj)
	if old == "" {
		same(t, texts(r.ValidateCreate(env(), o)), want)
		return
	}
	st := &r.Strategy
	if sub != "" {
		st = r.Subresource(sub).Status
	}
	same(t, texts(st.ValidateUpdate(env(), o, decode(t, r, old))), want)
}

// TestRules compares what each kind's rules say, word for word. With old the
// object is an update.
func TestRules(t *testing.T) {
	for name, c := range map[string]struct {
		gvk, obj, old, sub string
		want               []string
	}{
		"endpoints": {gvk: "v1/Endpoints", obj: `{"metadata":{"name":"a","namespace":"d"},"subsets":[
				{"addresses":[{"ip":"127.0.0.1"},{"ip":"x"}],"ports":[{"port":0},{"name":"b","port":1,"protocol":"X"}]},{"ports":[{"port":1}]}]}`, want: []string{
			`subsets[0].addresses[0].ip: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`,
			`subsets[0].addresses[1].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`,
			`subsets[0].addresses[1].ip: Invalid value: "x": must be a valid IP address`,
			`subsets[0].ports[0].name: Required value`,
			`subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive`,
			`subsets[0].ports[1].protocol: Unsupported value: "X": supported values: "SCTP", "TCP", "UDP"`,
			"subsets[1]: Required value: must specify `addresses` or `notReadyAddresses`",
		}},
		"endpoints as they were": {gvk: "v1/Endpoints", obj: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"subsets":[{"addresses":[{"ip":"127.0.0.1"}]}]}`,
			old: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"subsets":[{"addresses":[{"ip":"127.0.0.1"}]}]}`},
		"endpoint slice": {gvk: "discovery.k8s.io/v1/EndpointSlice", obj: `{"metadata":{"name":"a","namespace":"d"},"addressType":"IPv4",
				"ports":[{"port":1},{"port":2}],"endpoints":[{"addresses":["::1","0.0.0.0"]},{"addresses":[],"hints":{"forZones":[{"name":"z"},{"name":"z"}]}}]}`, want: []string{
			`ports[1].name: Duplicate value: ""`,
			`endpoints[0].addresses: Invalid value: "::1": must be an IPv4 address`,
			`endpoints[0].addresses[0]: Invalid value: "::1": may not be in the loopback range (127.0.0.0/8, ::1/128)`,
			`endpoints[0].addresses[1]: Invalid value: "0.0.0.0": may not be unspecified (0.0.0.0)`,
			`endpoints[1].hints.forZones[1].name: Duplicate value: "z"`,
			`endpoints[1].addresses: Required value`,
		}},
		"endpoint slice of another type": {gvk: "discovery.k8s.io/v1/EndpointSlice", obj: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"addressType":"IPv6"}`,
			old: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"addressType":"IPv4"}`, want: []string{`addressType: Invalid value: null: field is immutable`}},
		"IP address": {gvk: "networking.k8s.io/v1/IPAddress", obj: `{"metadata":{"name":"2001:db8::0:1"},"spec":{"parentRef":{"group":"_","name":"a/b"}}}`, want: []string{
			`metadata.name: Invalid value: "2001:db8::0:1": must be in canonical form ("2001:db8::1")`,
			`spec.parentRef.group: Invalid value: "_": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`,
			`spec.parentRef.resource: Required value`,
			`spec.parentRef.name: Invalid value: "a/b": may not contain '/'`,
		}},
		"IP address without parent": {gvk: "networking.k8s.io/v1/IPAddress", obj: `{"metadata":{"name":"10.0.0.1"}}`, want: []string{`spec.parentRef: Required value`}},
		"IP address of another": {gvk: "networking.k8s.io/v1/IPAddress", obj: `{"metadata":{"name":"10.0.0.1","resourceVersion":"1"},"spec":{"parentRef":{"resource":"services","name":"b"}}}`,
			old: `{"metadata":{"name":"10.0.0.1","resourceVersion":"1"},"spec":{"parentRef":{"resource":"services","name":"a"}}}`, want: []string{`spec.parentRef: Invalid value: null: field is immutable`}},
		"service CIDR": {gvk: "networking.k8s.io/v1/ServiceCIDR", obj: `{"metadata":{"name":"a"},"spec":{"cidrs":["10.0.0.1/24","10.0.1.0/24"]}}`, want: []string{
			`spec.cidrs[0]: Invalid value: "10.0.0.1/24": must not have bits set beyond the prefix length`,
			`spec.cidrs: Invalid value: ["10.0.0.1/24","10.0.1.0/24"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64`,
		}},
		"empty service CIDR": {gvk: "networking.k8s.io/v1/ServiceCIDR", obj: `{"metadata":{"name":"a"},"spec":{}}`, want: []string{`spec.cidrs: Required value: at least one CIDR required`}},
		"service CIDR becomes dual": {gvk: "networking.k8s.io/v1/ServiceCIDR", obj: `{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"cidrs":["10.0.0.0/24","fd00::/112"]}}`,
			old: `{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"cidrs":["10.0.0.0/24"]}}`},
		"service CIDR shrinks": {gvk: "networking.k8s.io/v1/ServiceCIDR", obj: `{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"cidrs":["10.0.0.0/24"]}}`,
			old: `{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"cidrs":["10.0.0.0/24","fd00::/112"]}}`, want: []string{`spec.cidrs: Invalid value: ["10.0.0.0/24"]: field is immutable`}},
		"ingress": {gvk: "networking.k8s.io/v1/Ingress", obj: `{"metadata":{"name":"a","namespace":"d","annotations":{"kubernetes.io/ingress.class":"x"}},"spec":{"ingressClassName":"y","tls":[{"hosts":["*.*"],"secretName":"_"}],
				"defaultBackend":{"service":{"name":"a","port":{"name":"p","number":1}}},"rules":[
				{"host":"192.0.2.1","http":{"paths":[{"path":"a//b/..","pathType":"Exact","backend":{}},{"backend":{}},{"path":"a","pathType":"ImplementationSpecific","backend":{"resource":{"kind":"a/b"}}}]}},
				{"http":{"paths":[{"path":"/","pathType":"Regex","backend":{"service":{"name":"1a"}}}]}},{"http":{}}]}}`, want: []string{
			`spec.defaultBackend: Invalid value: "": cannot set both port name & port number`,
			`spec.rules[0].host: Invalid value: "192.0.2.1": must be a DNS name, not an IP address`,
			`spec.rules[0].http.paths[0].path: Invalid value: "a//b/..": must be an absolute path`,
			`spec.rules[0].http.paths[0].path: Invalid value: "a//b/..": must not contain '//'`,
			`spec.rules[0].http.paths[0].path: Invalid value: "a//b/..": cannot end with '/..'`,
			`spec.rules[0].http.paths[0].backend: Invalid value: "": resource or service backend is required`,
			`spec.rules[0].http.paths[1].pathType: Required value: pathType must be specified`,
			`spec.rules[0].http.paths[2].path: Invalid value: "a": must be an absolute path`,
			`spec.rules[0].http.paths[2].backend.resource.kind: Invalid value: "a/b": may not contain '/'`,
			`spec.rules[0].http.paths[2].backend.resource.name: Required value`,
			`spec.rules[1].http.paths[0].pathType: Unsupported value: "Regex": supported values: "Exact", "ImplementationSpecific", "Prefix"`,
			`spec.rules[1].http.paths[0].backend: Required value: port name or number is required`,
			`spec.rules[2].http.paths: Required value`,
			`spec.tls[0].hosts[0]: Invalid value: "*.*": a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`,
			`spec.tls[0].secretName: Invalid value: "_": ` + subdomain,
			"annotations.kubernetes.io/ingress.class: Invalid value: \"x\": must match `ingressClassName` when both are specified",
		}},
		"ingress that older versions let through": {gvk: "networking.k8s.io/v1/Ingress", obj: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"spec":{"tls":[{"secretName":"_"}],"rules":[{"host":"*.a","http":{}}]}}`,
			old: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"spec":{"tls":[{"secretName":"-"}],"rules":[{"host":"*.b","http":{}}]}}`},
		"ingress status": {gvk: "networking.k8s.io/v1/Ingress", sub: "status", obj: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"status":{"loadBalancer":{"ingress":[{"ip":"010.0.0.1"},{"ip":"010.0.0.2","hostname":"192.0.2.1"}]}}}`,
			old: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"status":{"loadBalancer":{"ingress":[{"ip":"010.0.0.1"}]}}}`, want: []string{
				`status.loadBalancer.ingress[1].ip: Invalid value: "010.0.0.2": must not have leading 0s`,
				`status.loadBalancer.ingress[1].hostname: Invalid value: "192.0.2.1": must be a DNS name, not an IP address`,
			}},
		"ingress class": {gvk: "networking.k8s.io/v1/IngressClass", obj: `{"metadata":{"name":"a"},"spec":{"controller":"a","parameters":{"apiGroup":"_","name":"a%b","scope":"Namespace"}}}`, want: []string{
			`spec.controller: Invalid value: "a": must be a domain-prefixed path (such as "acme.io/foo")`,
			`spec.parameters.apiGroup: Invalid value: "_": ` + subdomain,
			`spec.parameters.name: Invalid value: "a%b": may not contain '%'`,
			"spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
			`spec.parameters.kind: Required value`,
		}},
		"ingress class of another controller": {gvk: "networking.k8s.io/v1/IngressClass", obj: `{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"controller":"a.b/d","parameters":{"kind":"k","name":"n","namespace":"x"}}}`,
			old: `{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"controller":"a.b/c"}}`, want: []string{`spec.controller: Invalid value: "a.b/d": field is immutable`,
				"spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'"}},
		"network policy": {gvk: "networking.k8s.io/v1/NetworkPolicy", obj: `{"metadata":{"name":"a","namespace":"d"},"spec":{"policyTypes":["X"],
				"ingress":[{"ports":[{"endPort":1},{"port":2,"endPort":1,"protocol":"X"},{"port":"p","endPort":1}],"from":[{},{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.0.0.0/8","x"]},"podSelector":{}}]}],"egress":[{"to":[{"ipBlock":{}}]}]}}`, want: []string{
			"spec.ingress[0].ports[0].endPort: Invalid value: 1: may not be specified when `port` is not specified",
			`spec.ingress[0].ports[1].protocol: Unsupported value: "X": supported values: "TCP", "UDP", "SCTP"`,
			"spec.ingress[0].ports[1].endPort: Invalid value: 1: must be greater than or equal to `port`",
			"spec.ingress[0].ports[2].endPort: Invalid value: 1: may not be specified when `port` is non-numeric",
			`spec.ingress[0].from[0]: Required value: must specify a peer`,
			"spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
			`spec.ingress[0].from[1].ipBlock.except[1]: Invalid value: "x": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`,
			`spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer`,
			`spec.policyTypes[0]: Unsupported value: "X": supported values: "Ingress", "Egress"`,
			`spec.egress[0].to[0].ipBlock.cidr: Required value`,
		}},
		"network policy that older versions let through": {gvk: "networking.k8s.io/v1/NetworkPolicy", obj: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"spec":{"podSelector":{"matchExpressions":[{"key":"a","operator":"In","values":["-"]}]},"egress":[{"to":[{"ipBlock":{"cidr":"10.0.0.1/8"}}]}]}}`,
			old: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"spec":{"podSelector":{"matchExpressions":[{"key":"b","operator":"In","values":["_"]}]},"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.1/8"}}]}]}}`},
		"runtime class": {gvk: "node.k8s.io/v1/RuntimeClass", obj: `{"metadata":{"name":"a"},"overhead":{"podFixed":{"cpu":"-1"}},"scheduling":{"nodeSelector":{"-":"a"},
				"tolerations":[{"key":"a","operator":"Exists"},{"key":"a","operator":"Exists","effect":""},{"key":"b","operator":"X"}]}}`, want: []string{
			`overhead.limits[cpu]: Invalid value: "-1": must be greater than or equal to 0`,
			`scheduling.nodeSelector: Invalid value: "-": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`,
			`scheduling.tolerations[2].operator: Unsupported value: "X": supported values: "Equal", "Exists"`,
			`scheduling.tolerations[1]: Duplicate value: {"Key":"a","Operator":"Exists","Value":"","Effect":"","TolerationSeconds":null}`,
			`handler: Required value`,
		}},
		"runtime class of another handler": {gvk: "node.k8s.io/v1/RuntimeClass", obj: `{"metadata":{"name":"a","resourceVersion":"1"}}`, old: `{"metadata":{"name":"a","resourceVersion":"1"},"handler":"a"}`, want: []string{
			`handler: Invalid value: null: field is immutable`, `handler: Required value`}},
		"immutable config map": {gvk: "v1/ConfigMap", obj: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"data":{"a":"c"}}`,
			old: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"immutable":true,"data":{"a":"b"}}`, want: []string{
				"immutable: Forbidden: " + immutable, "data: Forbidden: " + immutable}},
		"secret without its keys": {gvk: "v1/Secret", obj: `{"metadata":{"name":"a","namespace":"d"},"type":"kubernetes.io/tls"}`, want: []string{
			`data[tls.crt]: Required value`, `data[tls.key]: Required value`}},
		"namespace finalizer": {gvk: "v1/Namespace", obj: `{"metadata":{"name":"a"},"spec":{"finalizers":["x"]}}`, want: []string{
			`spec.finalizers: Invalid value: "x": name is neither a standard finalizer name nor is it fully qualified`}},
		"namespace phase": {gvk: "v1/Namespace", sub: "status", obj: `{"metadata":{"name":"a","resourceVersion":"1"},"status":{"phase":"Terminating"}}`,
			old: `{"metadata":{"name":"a","resourceVersion":"1"}}`, want: []string{"status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"}},
		"lease": {gvk: "coordination.k8s.io/v1/Lease", obj: `{"metadata":{"name":"a","namespace":"d"},"spec":{"leaseDurationSeconds":0,"leaseTransitions":-1}}`, want: []string{
			`spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0`, `spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0`}},
		"lease strategy": {gvk: "coordination.k8s.io/v1/Lease", obj: `{"metadata":{"name":"a","namespace":"d"},"spec":{"strategy":"Best"}}`, want: []string{
			`spec.strategy.strategy: Unsupported value: "Best": supported values: "OldestEmulationVersion"`}},
	} {
		t.Run(name, func(t *testing.T) {
			checkRules(t, c.gvk, c.sub, c.obj, c.old, c.want)
		})
	}
}

// checkPrepared compares what is left of an object when it was prepared for the door
// sub.
func checkPrepared(t *testing.T, gvk, sub, obj, old, want string) {
	t.Helper()
	r := find(t, gvk)
	st := &r.Strategy
	if sub != "" {
		st = r.Subresource(sub).Status
	}
	o := decode(t, r, obj)
	if old == "" {
		st.PrepareCreate(env(), o)
	} else {
		st.PrepareUpdate(env(), o, decode(t, r, old))
	}
	got, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestPrepared compares what is left of an object when it was prepared.
func TestPrepared(t *testing.T) {
	for name, c := range map[string]struct{ gvk, obj, old, want string }{
		"endpoint slice": {gvk: "discovery.k8s.io/v1/EndpointSlice",
			obj:  `{"addressType":"IPv4","ports":[{}],"endpoints":[{"addresses":["10.0.0.1"],"deprecatedTopology":{"a":"b"}}]}`,
			want: `{"metadata":{"generation":1},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"],"conditions":{}}],"ports":[{"name":"","protocol":"TCP"}]}`},
		"endpoint slice changed": {gvk: "discovery.k8s.io/v1/EndpointSlice",
			obj: `{"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.2"],"deprecatedTopology":{"kubernetes.io/hostname":"n"}}],"ports":[]}`, old: `{"metadata":{"generation":7},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"],"deprecatedTopology":{"kubernetes.io/hostname":"n"}}],"ports":[]}`,
			want: `{"metadata":{"generation":8},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.2"],"conditions":{},"nodeName":"n"}],"ports":[]}`},
		"endpoint slice of other annotations": {gvk: "discovery.k8s.io/v1/EndpointSlice",
			obj: `{"metadata":{"generation":7,"annotations":{"a":"b"}},"addressType":"IPv4","endpoints":[],"ports":[]}`, old: `{"metadata":{"generation":7},"addressType":"IPv4","endpoints":[],"ports":[]}`,
			want: `{"metadata":{"generation":7,"annotations":{"a":"b"}},"addressType":"IPv4","endpoints":[],"ports":[]}`},
		"lease":           {gvk: "coordination.k8s.io/v1/Lease", obj: `{"spec":{"holderIdentity":"h","strategy":"x","preferredHolder":"y"}}`, want: `{"metadata":{},"spec":{"holderIdentity":"h"}}`},
		"service account": {gvk: "v1/ServiceAccount", obj: `{"secrets":[{"name":"a","namespace":"b","uid":"c"}]}`, want: `{"metadata":{},"secrets":[{"name":"a"}]}`},
		"service CIDR": {gvk: "networking.k8s.io/v1/ServiceCIDR", obj: `{"spec":{"cidrs":["10.0.0.0/24"]},"status":{"conditions":[{"type":"Ready","status":"True","reason":"","message":"","lastTransitionTime":null}]}}`,
			want: `{"metadata":{},"spec":{"cidrs":["10.0.0.0/24"]},"status":{}}`},
		"ingress": {gvk: "networking.k8s.io/v1/Ingress", obj: `{"spec":{},"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"}]}}}`, want: `{"metadata":{"generation":1},"spec":{},"status":{"loadBalancer":{}}}`},
		"ingress class changed": {gvk: "networking.k8s.io/v1/IngressClass", obj: `{"metadata":{"generation":4},"spec":{"parameters":{"kind":"k","name":"n"}}}`, old: `{"metadata":{"generation":4},"spec":{}}`,
			want: `{"metadata":{"generation":5},"spec":{"parameters":{"kind":"k","name":"n","scope":"Cluster"}}}`},
		"network policy": {gvk: "networking.k8s.io/v1/NetworkPolicy", obj: `{"spec":{"podSelector":{},"egress":[{"ports":[{}]}]}}`,
			want: `{"metadata":{"generation":1},"spec":{"podSelector":{},"egress":[{"ports":[{"protocol":"TCP"}]}],"policyTypes":["Ingress","Egress"]}}`},
		"namespace": {gvk: "v1/Namespace", obj: `{"metadata":{"name":"a","labels":{"kubernetes.io/metadata.name":"b"}},"status":{"phase":"Terminating"}}`,
			want: `{"metadata":{"name":"a","labels":{"kubernetes.io/metadata.name":"a"}},"spec":{"finalizers":["kubernetes"]},"status":{"phase":"Active"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			checkPrepared(t, c.gvk, "", c.obj, c.old, c.want)
		})
	}
}

func TestRows(t *testing.T) {
	for name, c := range map[string]struct{ gvk, obj, want string }{
		"endpoints": {gvk: "v1/Endpoints", obj: `{"metadata":{"name":"a"},"subsets":[{"addresses":[{"ip":"10.0.0.1"},{"ip":"10.0.0.2"}],"notReadyAddresses":[{"ip":"10.0.0.9"}],"ports":[{"port":80},{"port":81}]}]}`,
			want: `["a","10.0.0.1:80,10.0.0.2:80,10.0.0.1:81 + 1 more...","<unknown>"]`},
		"no endpoints": {gvk: "v1/Endpoints", obj: `{"metadata":{"name":"a"}}`, want: `["a","<none>","<unknown>"]`},
		"endpoint slice": {gvk: "discovery.k8s.io/v1/EndpointSlice", obj: `{"metadata":{"name":"a"},"addressType":"IPv4","ports":[{"name":"x","port":80},{"name":"y"}],"endpoints":[{"addresses":["10.0.0.1"]}]}`,
			want: `["a","IPv4","80,y","10.0.0.1","<unknown>"]`},
		"empty endpoint slice": {gvk: "discovery.k8s.io/v1/EndpointSlice", obj: `{"metadata":{"name":"a"},"addressType":"IPv4"}`, want: `["a","IPv4","<unset>","<unset>","<unknown>"]`},
		"IP address":           {gvk: "networking.k8s.io/v1/IPAddress", obj: `{"metadata":{"name":"10.0.0.1"},"spec":{"parentRef":{"resource":"services","namespace":"d","name":"a"}}}`, want: `["10.0.0.1","services/d/a","<unknown>"]`},
		"ingress": {gvk: "networking.k8s.io/v1/Ingress", obj: `{"metadata":{"name":"a"},"spec":{"ingressClassName":"c","tls":[{}],"rules":[{"host":"a"},{},{"host":"b"},{"host":"c"},{},{"host":"d"}]},"status":{"loadBalancer":{"ingress":[{"hostname":"b.a"},{"ip":"192.0.2.1"}]}}}`,
			want: `["a","c","a,b,c + 3 more...","192.0.2.1,b.a","80, 443","<unknown>"]`},
		"ingress class": {gvk: "networking.k8s.io/v1/IngressClass", obj: `{"metadata":{"name":"a","annotations":{"ingressclass.kubernetes.io/is-default-class":"true"}},"spec":{"controller":"a.b/c","parameters":{"apiGroup":"g","kind":"K","name":"n"}}}`,
			want: `["a (default)","a.b/c","K.g/n","<unknown>"]`},
		"network policy": {gvk: "networking.k8s.io/v1/NetworkPolicy", obj: `{"metadata":{"name":"a"},"spec":{"podSelector":{"matchLabels":{"a":"b"}}}}`, want: `["a","a=b","<unknown>"]`},
		"runtime class":  {gvk: "node.k8s.io/v1/RuntimeClass", obj: `{"metadata":{"name":"a"},"handler":"h"}`, want: `["a","h","<unknown>"]`},
		"service CIDR":   {gvk: "networking.k8s.io/v1/ServiceCIDR", obj: `{"metadata":{"name":"a"},"spec":{"cidrs":["10.0.0.0/24","fd00::/112"]}}`, want: `["a","10.0.0.0/24,fd00::/112","<unknown>"]`},
	} {
		t.Run(name, func(t *testing.T) {
			r := find(t, c.gvk)
			var b strings.Builder
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			if err := e.Encode(r.Row(decode(t, r, c.obj), time.Now())); err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(b.String()); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for name, c := range map[string]struct {
		gvk, obj string
		want     []string
	}{
		"endpoint slice of names": {gvk: "discovery.k8s.io/v1/EndpointSlice", obj: `{"addressType":"FQDN","endpoints":[{"addresses":["a.example.com"]}]}`, want: []string{`spec.addressType: FQDN endpoints are deprecated`}},
		"endpoints": {gvk: "v1/Endpoints", obj: `{"subsets":[{"notReadyAddresses":[{"ip":"2001:db8:0::1"}]}]}`, want: []string{
			`subsets[0].notReadyAddresses[0].ip: IPv6 address "2001:db8:0::1" should be in RFC 5952 canonical format ("2001:db8::1")`}},
		"certificate": {gvk: "v1/Secret", obj: `{"type":"kubernetes.io/tls","data":{"tls.crt":"","tls.key":""}}`, want: []string{`tls: failed to find any PEM data in certificate input`}},
		"service account": {gvk: "v1/ServiceAccount", obj: `{"metadata":{"annotations":{"kubernetes.io/enforce-mountable-secrets":"true"}}}`, want: []string{
			`metadata.annotations[kubernetes.io/enforce-mountable-secrets]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets`}},
	} {
		t.Run(name, func(t *testing.T) {
			r := find(t, c.gvk)
			same(t, r.Warnings(env(), decode(t, r, c.obj), nil), c.want)
		})
	}
}
