package service_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/core/service"
	"skiff/internal/api/resource"
)

func env() resource.Env {
	return resource.Env{Now: time.Now, Features: resource.DefaultFeatures()}
}

// decode makes the service of a JSON text, defaulted.
func decode(t *testing.T, text string) *corev1.Service {
	t.Helper()
	s := &corev1.Service{}
	if err := json.Unmarshal([]byte(text), s); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	service.Service().Default(s)
	return s
}

// full is a valid service with spec's members set over the usual ones.
func full(t *testing.T, spec string) *corev1.Service {
	t.Helper()
	s := decode(t, `{"metadata":{"name":"web","namespace":"default","uid":"u","resourceVersion":"5"},"spec":{
		"clusterIP":"10.96.0.5","clusterIPs":["10.96.0.5"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","ports":[{"port":80}]}}`)
	if err := json.Unmarshal([]byte(spec), &s.Spec); err != nil {
		t.Fatalf("%s: %v", spec, err)
	}
	service.Service().Default(s)
	return s
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

func TestDefaults(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"cluster IP": {`{"ports":[{"port":80}]}`,
			`{"ports":[{"protocol":"TCP","port":80,"targetPort":80}],"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster"}`},
		"affinity": {`{"sessionAffinity":"ClientIP"}`,
			`{"type":"ClusterIP","sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":10800}},"internalTrafficPolicy":"Cluster"}`},
		"no affinity": {`{"sessionAffinity":"None","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":5}}}`,
			`{"type":"ClusterIP","sessionAffinity":"None","internalTrafficPolicy":"Cluster"}`},
		"external IPs": {`{"externalIPs":["192.0.2.1"]}`,
			`{"type":"ClusterIP","externalIPs":["192.0.2.1"],"sessionAffinity":"None","externalTrafficPolicy":"Cluster","internalTrafficPolicy":"Cluster"}`},
		"load balancer": {`{"type":"LoadBalancer"}`,
			`{"type":"LoadBalancer","sessionAffinity":"None","externalTrafficPolicy":"Cluster","allocateLoadBalancerNodePorts":true,"internalTrafficPolicy":"Cluster"}`},
		"external name": {`{"type":"ExternalName"}`, `{"type":"ExternalName","sessionAffinity":"None"}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := decode(t, `{"spec":`+c.in+`}`)
			got, err := json.Marshal(s.Spec)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestValidateCreate(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		want []string
	}{
		"valid":    {`{}`, nil},
		"no ports": {`{"ports":[]}`, []string{`spec.ports: Required value`}},
		"port names": {`{"ports":[{"name":"a","port":80},{"name":"a","port":81},{"port":82}]}`, []string{
			`spec.ports[1].name: Duplicate value: "a"`, `spec.ports[2].name: Required value`}},
		"port twice": {`{"ports":[{"name":"a","port":80},{"name":"b","port":80}]}`, []string{
			`spec.ports[1]: Duplicate value: {"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80,"TargetPort":0,"NodePort":0}`}},
		"protocol": {`{"ports":[{"port":80,"protocol":"ICMP"}]}`, []string{
			`spec.ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"`}},
		"node port": {`{"ports":[{"port":80,"nodePort":30000}]}`, []string{
			"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"}},
		"affinity time": {`{"sessionAffinity":"ClientIP","sessionAffinityConfig":{"clientIP":{"timeoutSeconds":86401}}}`, []string{
			`spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400`}},
		"type": {`{"type":"Other"}`, []string{
			`spec.type: Unsupported value: "Other": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"`}},
		"external IP": {`{"externalIPs":["127.0.0.1"]}`, []string{
			`spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`}},
		"two of a family": {`{"clusterIPs":["10.96.0.5","10.96.0.6"]}`, []string{
			`spec.clusterIPs: Invalid value: ["10.96.0.5","10.96.0.6"]: may specify no more than one IP for each IP family`}},
		"other first": {`{"clusterIP":"10.96.0.6"}`, []string{
			"spec.clusterIPs: Invalid value: [\"10.96.0.5\"]: first value must match `clusterIP`"}},
		"wrong family": {`{"ipFamilies":["IPv6"]}`, []string{
			"spec.clusterIPs[0]: Invalid value: \"10.96.0.5\": expected an IPv6 value as indicated by `ipFamilies[0]`"}},
		"headless load balancer": {`{"type":"LoadBalancer","clusterIP":"None","clusterIPs":["None"]}`, []string{
			`spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for LoadBalancer services`}},
		"external name": {`{"type":"ExternalName"}`, []string{
			`spec.clusterIPs: Forbidden: may not be set for ExternalName services`,
			`spec.ipFamilies: Forbidden: may not be set for ExternalName services`,
			`spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services`,
			`spec.externalName: Required value`}},
		"ranges": {`{"loadBalancerSourceRanges":["10.0.0.0/33"]}`, []string{
			"spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
			`spec.LoadBalancerSourceRanges[0]: Invalid value: "10.0.0.0/33": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)`}},
		"health port": {`{"type":"LoadBalancer","externalTrafficPolicy":"Local"}`, []string{`spec.healthCheckNodePort: Required value`}},
		"class":       {`{"loadBalancerClass":"a"}`, []string{"spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'"}},
		"distribution": {`{"trafficDistribution":"Far"}`, []string{
			`spec.trafficDistribution: Unsupported value: "Far": supported values: "PreferClose", "PreferSameZone", "PreferSameNode"`}},
	} {
		t.Run(name, func(t *testing.T) {
			same(t, texts(service.Service().ValidateCreate(env(), full(t, c.spec))), c.want)
		})
	}
}

func TestValidateUpdate(t *testing.T) {
	for name, c := range map[string]struct {
		old, spec string
		want      []string
	}{
		"nothing":                    {`{}`, `{}`, nil},
		"address":                    {`{}`, `{"clusterIP":"10.96.0.6","clusterIPs":["10.96.0.6"]}`, []string{`spec.clusterIPs[0]: Invalid value: ["10.96.0.6"]: may not change once set`}},
		"upgrade":                    {`{}`, `{"clusterIPs":["10.96.0.5","fd00::5"],"ipFamilies":["IPv4","IPv6"],"ipFamilyPolicy":"PreferDualStack"}`, nil},
		"unset":                      {`{}`, `{"clusterIP":"","clusterIPs":[]}`, []string{`spec.clusterIPs[0]: Invalid value: []: primary clusterIP can not be unset`}},
		"families":                   {`{}`, `{"ipFamilies":["IPv6"]}`, []string{`spec.ipFamilies[0]: Invalid value: ["IPv6"]: may not change once set`, "spec.clusterIPs[0]: Invalid value: \"10.96.0.5\": expected an IPv6 value as indicated by `ipFamilies[0]`"}},
		"class":                      {`{"type":"LoadBalancer","loadBalancerClass":"a"}`, `{"type":"LoadBalancer","loadBalancerClass":"b"}`, []string{`spec.loadBalancerClass: Invalid value: "b": may not change once set`}},
		"old address in an odd form": {`{"clusterIP":"010.96.0.5","clusterIPs":["010.96.0.5"]}`, `{"clusterIP":"010.96.0.5","clusterIPs":["010.96.0.5"]}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			same(t, texts(service.Service().ValidateUpdate(env(), full(t, c.spec), full(t, c.old))), c.want)
		})
	}
}

// What the client did not touch goes with the type that had it; what it changed
// stays, and is refused.
func TestTypeTakesItsFieldsAlong(t *testing.T) {
	old := full(t, `{"type":"LoadBalancer","externalTrafficPolicy":"Local","healthCheckNodePort":30009,"loadBalancerClass":"a","ports":[{"port":80,"nodePort":30007}]}`)
	s := old.DeepCopy()
	s.Spec.Type = corev1.ServiceTypeClusterIP
	service.Service().PrepareUpdate(env(), s, old)
	same(t, texts(service.Service().ValidateUpdate(env(), s, old)), nil)
	if s.Spec.Ports[0].NodePort != 0 || s.Spec.HealthCheckNodePort != 0 || s.Spec.LoadBalancerClass != nil {
		t.Errorf("left over: %+v", s.Spec)
	}
	s = old.DeepCopy()
	s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeClusterIP, 30011
	service.Service().PrepareUpdate(env(), s, old)
	same(t, texts(service.Service().ValidateUpdate(env(), s, old)), []string{"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"})
}

func TestStatusDoor(t *testing.T) {
	door := service.Service().Subresource("status").Status
	old := full(t, `{"type":"LoadBalancer"}`)
	s := old.DeepCopy()
	s.Spec.Type = corev1.ServiceTypeClusterIP
	s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}, {Hostname: "192.0.2.2"}}
	door.PrepareUpdate(env(), s, old)
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		t.Error("the status door wrote the spec")
	}
	same(t, texts(door.ValidateUpdate(env(), s, old)), []string{
		"status.loadBalancer.ingress[0].ipMode: Required value: must be specified when `ip` is set",
		`status.loadBalancer.ingress[1].hostname: Invalid value: "192.0.2.2": must be a DNS name, not an IP address`,
	})
}

func TestRow(t *testing.T) {
	for name, c := range map[string]struct{ spec, want string }{
		"cluster IP":    {`{"selector":{"b":"2","a":"1"}}`, `["web","ClusterIP","10.96.0.5","\u003cnone\u003e","80/TCP","\u003cunknown\u003e","a=1,b=2"]`},
		"node port":     {`{"type":"NodePort","ports":[{"port":80,"nodePort":30007},{"port":53,"protocol":"UDP"}]}`, `["web","NodePort","10.96.0.5","\u003cnone\u003e","80:30007/TCP,53/UDP","\u003cunknown\u003e","\u003cnone\u003e"]`},
		"load balancer": {`{"type":"LoadBalancer"}`, `["web","LoadBalancer","10.96.0.5","\u003cpending\u003e","80/TCP","\u003cunknown\u003e","\u003cnone\u003e"]`},
		"external name": {`{"type":"ExternalName","externalName":"a.example.com","clusterIPs":[],"ports":[]}`, `["web","ExternalName","\u003cnone\u003e","a.example.com","\u003cnone\u003e","\u003cunknown\u003e","\u003cnone\u003e"]`},
	} {
		t.Run(name, func(t *testing.T) {
			r := service.Service()
			row := r.Row(full(t, c.spec), time.Now())
			got, err := json.Marshal(row)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want || len(row) != len(r.Columns) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	s := full(t, `{"externalIPs":["2001:db8:0::1"],"externalName":"x","trafficDistribution":"PreferClose"}`)
	s.Annotations = map[string]string{"service.kubernetes.io/topology-aware-hints": "auto"}
	same(t, service.Service().Warnings(env(), s, nil), []string{
		"annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead",
		`spec.externalIPs[0]: IPv6 address "2001:db8:0::1" should be in RFC 5952 canonical format ("2001:db8::1")`,
		"spec.externalIPs is deprecated and may no longer be implemented in some clusters",
		`spec.externalName is ignored when spec.type is not "ExternalName"`,
		`spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"`,
	})
}
