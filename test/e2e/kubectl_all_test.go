package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// script writes a program that kubectl starts, an editor say.
func script(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// write makes a file for kubectl to read.
func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func kubectlDebug(c *cluster) {
	c.apply(sleeper("box", "app: box"))
	c.is("pod/box", readyPath, "True")
	// A container beside the pod's, that sees the target's processes.
	c.kubectl("debug", "box", "--image=busybox:2", "--target=main", "-c", "look", "--quiet", "--", "sleep", "10001")
	c.jsonpathWait("pod/box", `.status.ephemeralContainerStatuses[?(@.name=="look")].state.running.startedAt`)
	has(c.t, c.kubectl("exec", "box", "-c", "look", "--", "/bin/busybox", "ps", "-o", "args"), "sleep 10000\n", "sleep 10001\n")
	if got := c.jsonpath("pod/box", ".spec.ephemeralContainers[0].targetContainerName"); got != "main" {
		c.t.Errorf("the target is %q", got)
	}
	// Without a target it has processes of its own, but the pod's network.
	s := c.onTerminal(24, 80, "debug", "box", "--image=busybox:1", "-it", "--", "sh")
	s.types("echo pid $$; hostname\n")
	s.says("pid 1\r\n")
	s.says("box\r\n")
	s.types("exit 3\n")
	s.exits()
	hasRow(c.t, c.kubectl("describe", "pod", "box"), "Ephemeral Containers:\n look:\n", " Image: busybox:2\n")
	// One that cannot be made says why, and the pod goes on.
	c.kubectl("debug", "box", "--image=busybox:nosuch", "-c", "never", "--quiet", "--profile=general", "--", "true")
	c.eventually("the bad one says why", func() (bool, string) {
		out := c.jsonpath("pod/box", `.status.ephemeralContainerStatuses[?(@.name=="never")].state.waiting.reason`)
		return out == "ErrImagePull" || out == "ImagePullBackOff", out
	})
	c.is("pod/box", readyPath, "True")
	// A copy of the pod, with another image and command.
	c.kubectl("debug", "box", "--copy-to=copy", "--container=main", "--image=busybox:2", "--share-processes", "--quiet", "--", "sleep", "10002")
	c.is("pod/copy", ".status.phase", "Running")
	if got := c.jsonpath("pod/copy", ".spec.containers[0].image") + " " + c.jsonpath("pod/copy", ".spec.shareProcessNamespace") + c.jsonpath("pod/copy", ".metadata.labels"); got != "busybox:2 true" {
		c.t.Errorf("the copy has %q", got)
	}
	// A pod on the node, that sees all of it.
	node := c.jsonpath("nodes", ".items[0].metadata.name")
	s = c.onTerminal(24, 80, "debug", "node/"+node, "--image=busybox:1", "-it", "--quiet", "--", "sh")
	s.types("test -d /host" + c.data + " && echo the host''s files; /bin/busybox readlink /proc/self/ns/net; exit\n")
	s.says("the hosts files")
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		c.t.Fatal(err)
	}
	s.says(own)
	s.exits()
	label := "app.kubernetes.io/managed-by=kubectl-debug"
	if c.minor < 33 {
		label = "" // it gives its pods none
	}
	if pods := c.kubectl("get", "pods", "-o", "name", "-l", label); !strings.Contains("\n"+pods, "\npod/node-debugger-"+node+"-") {
		c.t.Errorf("the pod on the node is not among %q", pods)
	}
}

// jsonpathWait waits until a value is there.
func (c *cluster) jsonpathWait(obj, path string) (out string) {
	c.t.Helper()
	c.eventually(obj+" has "+path, func() (bool, string) {
		out, _ = c.kubectlErr("get", obj, "-o", "jsonpath={"+path+"}")
		return out != "", out
	})
	return out
}

func kubectlCp(c *cluster) {
	c.apply(sleeper("box", ""))
	c.is("pod/box", readyPath, "True")
	c.kubectl("exec", "box", "--", "/bin/busybox", "ln", "-s", "busybox", "/bin/tar")
	dir := c.t.TempDir()
	large := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	for path, content := range map[string]string{"tree/a": "one", "tree/b c": "two", "tree/deep/er/d": large, "tree/empty": ""} {
		write(c.t, filepath.Join(dir, path), content)
	}
	if err := os.Symlink("a", filepath.Join(dir, "tree/link")); err != nil {
		c.t.Fatal(err)
	}
	c.kubectl("cp", filepath.Join(dir, "tree"), "cp/box:/tmp/tree", "-c", "main")
	if out := c.kubectl("exec", "box", "--", "sh", "-c", `cat "/tmp/tree/b c"; /bin/busybox readlink /tmp/tree/link; /bin/busybox wc -c < /tmp/tree/deep/er/d`); out != "twoa\n1048576\n" {
		c.t.Errorf("in the pod there is %q", out)
	}
	c.kubectl("cp", "box:/tmp/tree", filepath.Join(dir, "back"), "--retries=2")
	got := map[string]int{}
	err := fs.WalkDir(os.DirFS(filepath.Join(dir, "back")), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, "back", path))
		got[path] = len(b)
		return err
	})
	// kubectl leaves links out of what it fetches, and says so.
	if want := "map[a:3 b c:3 deep/er/d:1048576 empty:0]"; err != nil || fmt.Sprint(got) != want {
		c.t.Errorf("came back: %v, %v; want %s", got, err, want)
	}
}

func kubectlExpose(c *cluster) {
	c.apply(sleeper("box", "app: box"))
	c.is("pod/box", readyPath, "True")
	ip := c.jsonpath("pod/box", ".status.podIP")
	c.kubectl("expose", "pod", "box", "--name=plain", "--port=80", "--target-port=8080", "--protocol=UDP")
	c.is("endpoints/plain", ".subsets[0].addresses[0].ip", ip)
	c.is("service/plain", ".spec.ports[0]", `{"port":80,"protocol":"UDP","targetPort":8080}`)
	c.kubectl("expose", "service", "plain", "--name=far", "--type=NodePort", "--port=81", "--session-affinity=ClientIP")
	if got := c.jsonpath("service/far", ".spec.selector.app") + " " + c.jsonpath("service/far", ".spec.sessionAffinity"); got != "box ClientIP" {
		c.t.Errorf("the second service has %q", got)
	}
	c.refused([]string{"expose", "pod", "box", "--name=none"}, "couldn't find port via --port flag or introspection")
}

func kubectlSet(c *cluster) {
	c.apply(web(1, "one"))
	c.kubectl("create", "serviceaccount", "robot")
	c.kubectl("create", "configmap", "conf", "--from-literal=k=v")
	c.kubectl("set", "image", "deployment/web", "web=busybox:2")
	c.kubectl("set", "env", "deployment/web", "--from=configmap/conf", "--prefix=C_")
	c.kubectl("set", "env", "deployment/web", "VERSION-")
	c.kubectl("set", "resources", "deployment/web", "-c=web", "--requests=cpu=10m")
	c.kubectl("set", "serviceaccount", "deployment/web", "robot")
	c.rollout("web")
	spec := ".spec.template.spec."
	got := c.kubectl("get", "deployment/web", "-o", "jsonpath={"+spec+"containers[0].image} {"+spec+"containers[0].env[*].name} {"+spec+"containers[0].env[0].valueFrom.configMapKeyRef.name} {"+spec+"containers[0].resources.requests.cpu} {"+spec+"serviceAccountName}")
	if got != "busybox:2 C_K conf 10m robot" {
		c.t.Errorf("the template has %q", got)
	}
	if out := c.kubectl("set", "env", "deployment/web", "--list"); !strings.Contains(out, "# C_K from configmap conf, key k") {
		c.t.Errorf("set env --list says %q", out)
	}
	c.kubectl("set", "selector", "service/web", "app=else")
	c.is("service/web", ".spec.selector", `{"app":"else"}`)
	c.kubectl("create", "rolebinding", "view", "--clusterrole=view", "--user=jane")
	c.kubectl("set", "subject", "rolebinding", "view", "--group=devs", "--serviceaccount=set:robot")
	if got := c.jsonpath("rolebinding/view", ".subjects[*].name"); got != "jane devs robot" {
		c.t.Errorf("subjects are %q", got)
	}
	if out := c.kubectl("auth", "can-i", "list", "pods", "--as=system:serviceaccount:set:robot"); out != "yes\n" {
		c.t.Errorf("the subject that was added: %q", out)
	}
}

func kubectlAutoscale(c *cluster) {
	c.apply(web(1, "one"))
	target := "--cpu=80%"
	if c.minor < 34 {
		target = "--cpu-percent=80"
	}
	if out := c.kubectl("autoscale", "deployment", "web", "--min=2", "--max=5", target); out != "horizontalpodautoscaler.autoscaling/web autoscaled\n" {
		c.t.Errorf("autoscale says %q", out)
	}
	// Its effect: the least number of pods.
	c.is("deployment/web", ".status.readyReplicas", "2")
	hasRow(c.t, c.kubectl("get", "hpa", "web"), "NAME REFERENCE TARGETS MINPODS MAXPODS REPLICAS AGE\n", "web Deployment/web cpu: ", "/80% 2 5 ")
	c.refused([]string{"autoscale", "deployment", "web", "--min=5", "--max=1"}, "--max=MAXPODS must be larger or equal to --min=MINPODS, max: 1, min: 5")
}

func kubectlTop(c *cluster) {
	c.apply(sleeper("box", "app: box"))
	c.is("pod/box", readyPath, "True")
	node := c.jsonpath("nodes", ".items[0].metadata.name")
	c.eventually("the pod's use is told", func() (bool, string) {
		out, err := c.kubectlErr("top", "pod", "-l", "app=box", "--containers")
		return err == nil && regexp.MustCompile(`^POD +NAME +CPU\(cores\) +MEMORY\(bytes\) *\nbox +main +\d+m +\d+Mi *\n$`).MatchString(out), out
	})
	if out := c.kubectl("top", "pod", "--sum"); !regexp.MustCompile(`(?s)^NAME +CPU\(cores\) +MEMORY\(bytes\).*\nbox +\d+m .*_+ +_+.*\d+m +\d+Mi`).MatchString(out) {
		c.t.Errorf("top pod --sum says %q", out)
	}
	if out := c.kubectl("top", "node"); !regexp.MustCompile(`^NAME +CPU\(cores\) +CPU\(%\) +MEMORY\(bytes\) +MEMORY\(%\) *\n` + regexp.QuoteMeta(node) + ` +\d+m +\d+% +\d+Mi +\d+% *\n$`).MatchString(out) {
		c.t.Errorf("top node says %q", out)
	}
}

func kubectlCertificate(c *cluster) {
	for _, name := range []string{"anna", "otto"} {
		c.apply(request(c.t, name, filepath.Join(c.t.TempDir(), "key")))
	}
	if out := c.kubectl("certificate", "approve", "anna"); out != "certificatesigningrequest.certificates.k8s.io/anna approved\n" {
		c.t.Errorf("approve says %q", out)
	}
	if out := c.kubectl("certificate", "deny", "otto"); out != "certificatesigningrequest.certificates.k8s.io/otto denied\n" {
		c.t.Errorf("deny says %q", out)
	}
	c.jsonpathWait("csr/anna", ".status.certificate")
	if got := c.jsonpath("csr/otto", ".status.conditions[0].type") + c.jsonpath("csr/otto", ".status.certificate"); got != "Denied" {
		c.t.Errorf("the one that was denied has %q", got)
	}
	c.kubectl("delete", "csr", "anna", "otto")
}

func kubectlDrain(c *cluster) {
	node := c.jsonpath("nodes", ".items[0].metadata.name")
	c.apply(strings.ReplaceAll(web(2, "one"), "terminationGracePeriodSeconds: 2", "terminationGracePeriodSeconds: 0") + "---\n" + sleeper("alone", "drain: me") + `
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 2, selector: {matchLabels: {app: web}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: "busybox:1", command: [sleep, "10000"]}]}
`)
	c.rollout("web")
	c.is("pod/alone", readyPath, "True")
	c.is("daemonset/each", ".status.numberReady", "1")
	c.is("pdb/web", ".status.currentHealthy", "2")
	defer c.kubectl("uncordon", node)
	selected := []string{"drain", node, "--pod-selector=app in (web,each),!no", "--timeout=2s"}
	c.refused(selected, "cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore): drain/each-")
	c.refused([]string{"drain", node, "--pod-selector=drain=me"}, "cannot delete Pods that declare no controller (use --force to override): drain/alone")
	c.kubectl("drain", node, "--pod-selector=drain=me", "--force")
	c.gone("pod/alone")
	// The budget allows none to go.
	c.refused(append(selected, "--ignore-daemonsets"), "Cannot evict pod as it would violate the pod's disruption budget.")
	if got := c.jsonpath("deployment/web", ".status.readyReplicas"); got != "2" {
		c.t.Errorf("%s pods are ready under the budget", got)
	}
	c.kubectl("delete", "pdb", "web")
	has(c.t, c.kubectl("drain", node, "--pod-selector=app in (web,each)", "--ignore-daemonsets", "--timeout=60s"), "evicting pod drain/web-", "node/"+node+" drained\n")
	c.is("deployment/web", ".status.readyReplicas", "")
	c.is("daemonset/each", ".status.numberReady", "1")
	c.kubectl("uncordon", node)
	c.is("deployment/web", ".status.readyReplicas", "2")
}

func kubectlLastApplied(c *cluster) {
	dir := c.t.TempDir()
	conf := func(v string) string {
		return write(c.t, filepath.Join(dir, v+".yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf, namespace: lastapplied}\ndata: {k: "+v+"}\n")
	}
	c.kubectl("apply", "-f", conf("one"))
	if out := c.kubectl("apply", "view-last-applied", "configmap/conf"); !strings.Contains(out, "data:\n  k: one\n") {
		c.t.Errorf("view-last-applied says %q", out)
	}
	c.kubectl("apply", "set-last-applied", "-f", conf("two"))
	if out := c.kubectl("apply", "view-last-applied", "-f", filepath.Join(dir, "two.yaml"), "-o", "json"); !strings.Contains(out, `"k": "two"`) {
		c.t.Errorf("after set-last-applied it says %q", out)
	}
	if got := c.jsonpath("configmap/conf", ".data.k"); got != "one" {
		c.t.Errorf("set-last-applied changed the object to %q", got)
	}
	c.t.Setenv("KUBE_EDITOR", script(c.t, dir, "editor", `sed -i 's/k: two/k: three/' "$1"`))
	c.kubectl("apply", "edit-last-applied", "configmap/conf")
	if out := c.kubectl("apply", "view-last-applied", "configmap/conf"); !strings.Contains(out, "k: three") {
		c.t.Errorf("after edit-last-applied it says %q", out)
	}
}

func kubectlGenerators(c *cluster) {
	dir := c.t.TempDir()
	file := write(c.t, filepath.Join(dir, "f.conf"), "in a file")
	env := write(c.t, filepath.Join(dir, "env"), "A=1\nB=2\n")
	c.kubectl("create", "configmap", "files", "--from-file="+dir, "--from-literal=x=y")
	if got := c.jsonpath("configmap/files", ".data"); got != `{"env":"A=1\nB=2\n","f.conf":"in a file","x":"y"}` {
		c.t.Errorf("configmap has %s", got)
	}
	c.kubectl("create", "configmap", "env", "--from-env-file="+env)
	if got := c.jsonpath("configmap/env", ".data"); got != `{"A":"1","B":"2"}` {
		c.t.Errorf("configmap has %s", got)
	}
	c.kubectl("create", "secret", "generic", "gen", "--from-file=k="+file, "--type=example.com/x")
	c.kubectl("create", "secret", "docker-registry", "reg", "--docker-server=registry.example", "--docker-username=u", "--docker-password=p")
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	selfSigned(c.t, cert, key)
	c.kubectl("create", "secret", "tls", "tls", "--cert="+cert, "--key="+key)
	if got := c.jsonpath("secrets", ".items[*].type"); got != "example.com/x kubernetes.io/dockerconfigjson kubernetes.io/tls" {
		c.t.Errorf("secrets are of types %q", got)
	}
	c.kubectl("create", "job", "once", "--image=busybox:1", "--", "true")
	c.is("job/once", ".status.succeeded", "1")
	c.kubectl("create", "cronjob", "yearly", "--image=busybox:1", "--schedule=0 0 1 1 *", "--", "true")
	c.kubectl("create", "job", "now", "--from=cronjob/yearly")
	c.is("job/now", ".status.succeeded", "1")
	c.is("job/now", ".metadata.ownerReferences[0].name", "yearly")
	c.kubectl("create", "quota", "few", "--hard=pods=3,secrets=20")
	c.is("quota/few", ".status.hard.pods", "3")
	c.kubectl("create", "pdb", "most", "--selector=app=x", "--min-available=50%")
	c.is("pdb/most", ".spec.minAvailable", "50%")
	c.kubectl("create", "ingress", "in", "--class=none", "--rule=a.example/x*=svc:http,tls=tls", "--default-backend=svc:80")
	if got := c.jsonpath("ingress/in", ".spec.rules[0].http.paths[0].backend.service"); got != `{"name":"svc","port":{"name":"http"}}` {
		c.t.Errorf("ingress leads to %s", got)
	}
	c.kubectl("create", "service", "nodeport", "np", "--tcp=80:8080")
	c.kubectl("create", "service", "loadbalancer", "lb", "--tcp=80:8080")
	c.kubectl("create", "service", "externalname", "en", "--external-name=far.example")
	c.kubectl("create", "service", "clusterip", "head", "--clusterip=None", "--tcp=80")
	if got := c.jsonpath("services", ".items[*].spec.type"); got != "ExternalName ClusterIP LoadBalancer NodePort" {
		c.t.Errorf("services are of types %q", got)
	}
	role := c.name + "-pods"
	c.kubectl("create", "clusterrole", role, "--verb=get,list,watch", "--resource=pods,deployments.apps/scale")
	c.kubectl("create", "clusterrolebinding", role, "--clusterrole="+role, "--user=jane")
	if out := c.kubectl("auth", "can-i", "list", "pods", "-A", "--as=jane"); out != "yes\n" {
		c.t.Errorf("jane may list pods everywhere: %q", out)
	}
	c.kubectl("delete", "clusterrole/"+role, "clusterrolebinding/"+role)
	c.kubectl("create", "priorityclass", role, "--value=7", "--preemption-policy=Never")
	if got := c.jsonpath("priorityclass/"+role, ".value") + c.jsonpath("priorityclass/"+role, ".preemptionPolicy"); got != "7Never" {
		c.t.Errorf("the priority class has %q", got)
	}
	c.kubectl("delete", "priorityclass", role)
	// RBAC from files: what is there is completed, not replaced.
	c.kubectl("create", "role", "reader", "--verb=get", "--resource=pods")
	roles := write(c.t, filepath.Join(dir, "role.yaml"), "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: reader, namespace: generators}\nrules: [{apiGroups: [\"\"], resources: [secrets], verbs: [list]}]\n")
	c.kubectl("auth", "reconcile", "-f", roles)
	if got := c.jsonpath("role/reader", ".rules[*].resources[*]"); got != "pods secrets" {
		c.t.Errorf("after auth reconcile the role is about %q", got)
	}
	c.kubectl("auth", "reconcile", "-f", roles, "--remove-extra-permissions")
	if got := c.jsonpath("role/reader", ".rules[*].resources[*]"); got != "secrets" {
		c.t.Errorf("without what is extra the role is about %q", got)
	}
}

// selfSigned writes a certificate and its key.
func selfSigned(t *testing.T, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})))
}

func kubectlKustomize(c *cluster) {
	dir := c.t.TempDir()
	write(c.t, dir+"/base/kustomization.yaml", "resources: [conf.yaml]\nconfigMapGenerator: [{name: gen, literals: [k=v]}]\n")
	write(c.t, dir+"/base/conf.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {a: base}\n")
	write(c.t, dir+"/over/kustomization.yaml", "resources: [../base]\nnamePrefix: over-\nlabels: [{pairs: {made: kustomize}}]\npatches: [{patch: '{apiVersion: v1, kind: ConfigMap, metadata: {name: conf}, data: {a: over}}'}]\n")
	out := c.kubectl("kustomize", dir+"/over")
	has(c.t, out, "name: over-conf\n", "  a: over\n", "name: over-gen-")
	c.kubectl("apply", "-k", dir+"/over")
	if got := c.jsonpath("configmap/over-conf", ".data.a") + " " + c.jsonpath("configmap/over-conf", ".metadata.labels.made"); got != "over kustomize" {
		c.t.Errorf("applied is %q", got)
	}
	c.kubectl("delete", "-k", dir+"/over")
	c.gone("configmap/over-conf")
}

// kubectlConfig changes a kubeconfig of its own, and what kubectl then talks to.
func kubectlConfig(c *cluster) {
	dir := c.t.TempDir()
	path := write(c.t, dir+"/config", c.kubectl("config", "view", "--raw"))
	anywhere := *c
	anywhere.ns = "" // older ones take no -n before config
	with := func(args ...string) string {
		c.t.Helper()
		return anywhere.kubectl(append(args, "--kubeconfig="+path)...)
	}
	first := strings.TrimSpace(with("config", "current-context"))
	cluster := with("config", "view", "-o", "jsonpath={.clusters[0].name}")
	user := with("config", "view", "-o", "jsonpath={.users[0].name}")
	with("config", "set-context", "here", "--cluster="+cluster, "--user="+user, "--namespace=config")
	with("config", "use-context", "here")
	with("create", "configmap", "made")
	c.kubectl("get", "configmap", "made")
	with("config", "set-cluster", "other", "--server=https://127.0.0.1:1", "--insecure-skip-tls-verify")
	with("config", "set-credentials", "nobody", "--token=x")
	with("config", "set-context", "there", "--cluster=other", "--user=nobody")
	if out, err := c.kubectlErr("get", "pods", "--kubeconfig="+path, "--context=there"); err == nil || !strings.Contains(out, "127.0.0.1:1 was refused") {
		c.t.Errorf("in another context: %v %s", err, out)
	}
	with("config", "rename-context", "there", "away")
	with("config", "set", "contexts.away.namespace", "far")
	hasRow(c.t, with("config", "get-contexts"), "* here "+cluster+" "+user+" config\n", " away other nobody far\n", " "+first+" ")
	with("config", "unset", "contexts.away.namespace")
	hasRow(c.t, with("config", "get-contexts", "away"), " away other nobody \n")
	has(c.t, with("config", "get-clusters"), "NAME\n", cluster+"\n", "other\n")
	has(c.t, with("config", "get-users"), "NAME\n", user+"\n", "nobody\n")
	with("config", "delete-context", "away")
	with("config", "delete-cluster", "other")
	with("config", "delete-user", "nobody")
	if out := with("config", "view"); strings.Contains(out, "nobody") || strings.Contains(out, "other") || !strings.Contains(out, "DATA+OMITTED") {
		c.t.Errorf("what was deleted is still there, or what is secret is shown:\n%s", out)
	}
}

func kubectlPlugin(c *cluster) {
	dir := c.t.TempDir()
	script(c.t, dir, "kubectl-greet", `echo "hello $1 from $(basename "$0")"`)
	c.t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	has(c.t, c.kubectl("plugin", "list"), dir+"/kubectl-greet\n")
	ns := *c
	ns.ns = "" // what comes before its name is not for a plugin
	if out := ns.kubectl("greet", "you"); out != "hello you from kubectl-greet\n" {
		c.t.Errorf("the plugin says %q", out)
	}
	if c.minor < 35 {
		return // it has no kuberc command
	}
	// Settings of a user: an alias, and a default of a flag.
	kuberc := write(c.t, dir+"/kuberc", "apiVersion: kubectl.config.k8s.io/v1beta1\nkind: Preference\n")
	ns.kubectl("kuberc", "set", "--kuberc="+kuberc, "--section=aliases", "--name=cms", "--command=get", "--prependarg=configmaps")
	ns.kubectl("kuberc", "set", "--kuberc="+kuberc, "--section=defaults", "--command=get", "--option=output=name")
	has(c.t, ns.kubectl("kuberc", "view", "--kuberc="+kuberc), "kind: Preference", "name: cms")
	has(c.t, ns.kubectl("cms", "-n", "plugin", "--kuberc="+kuberc), "kube-root-ca.crt ")
	if out := ns.kubectl("get", "configmaps", "-n", "plugin", "--kuberc="+kuberc); out != "configmap/kube-root-ca.crt\n" {
		c.t.Errorf("with a default of -o get says %q", out)
	}
}

func kubectlCompletion(c *cluster) {
	ns := *c
	ns.ns = ""
	for shell, want := range map[string]string{"bash": "complete -o default -F __start_kubectl kubectl", "zsh": "#compdef kubectl", "fish": "complete -c kubectl", "powershell": "Register-ArgumentCompleter -CommandName 'kubectl'"} {
		has(c.t, ns.kubectl("completion", shell), want)
	}
	// What the shell asks for, of the cluster's own objects.
	c.kubectl("create", "configmap", "completed")
	has(c.t, ns.kubectl("__complete", "get", "configmap", "-n", "completion", "comp"), "completed\n")
	has(c.t, ns.kubectl("__complete", "get", "configm"), "configmaps")
	has(c.t, ns.kubectl("options"), "The following options can be passed to any command:", "--kubeconfig=''", "--as=''")
}

func kubectlDump(c *cluster) {
	c.apply(strings.Replace(sleeper("box", ""), `[sleep, "10000"]`, `[sh, -c, "echo a word; exec sleep 10000"]`, 1))
	c.is("pod/box", readyPath, "True")
	dir := c.t.TempDir()
	c.kubectl("cluster-info", "dump", "--namespaces=dump", "--output-directory="+dir)
	b, err := os.ReadFile(dir + "/dump/pods.json")
	var pods struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	if err != nil || json.Unmarshal(b, &pods) != nil || len(pods.Items) != 1 || pods.Items[0].Metadata.Name != "box" {
		c.t.Errorf("pods.json has %.300s, %v", b, err)
	}
	if b, err := os.ReadFile(dir + "/dump/box/logs.txt"); err != nil || !strings.Contains(string(b), "a word\n") {
		c.t.Errorf("logs.txt has %q, %v", b, err)
	}
	if b, err := os.ReadFile(dir + "/nodes.json"); err != nil || !strings.Contains(string(b), `"kind": "NodeList"`) {
		c.t.Errorf("nodes.json has %.200s, %v", b, err)
	}
}

func kubectlProxy(c *cluster) {
	c.apply(web(1, "one"))
	c.rollout("web")
	dir := c.t.TempDir()
	write(c.t, dir+"/page", "a file\n")
	s := c.background("proxy", "--port=0", "--www="+dir, "--www-prefix=/static/", "--reject-paths=^/api/v1/secrets")
	s.says("Starting to serve on ")
	at := "http://" + regexp.MustCompile(`serve on (\S+)`).FindStringSubmatch(s.text())[1]
	pod, node := c.jsonpath("pods", ".items[0].metadata.name"), c.jsonpath("nodes", ".items[0].metadata.name")
	for path, want := range map[string]string{
		"/version":     `"gitVersion": "v1.37.2`,
		"/static/page": "a file",
		"/api/v1/namespaces/proxy/services/web:http/proxy/":     "one web-",
		"/api/v1/namespaces/proxy/services/web:80/proxy/":       "one web-",
		"/api/v1/namespaces/proxy/pods/" + pod + ":8080/proxy/": "one web-",
		"/api/v1/nodes/" + node + "/proxy/healthz":              "ok",
		"/api/v1/nodes/" + node + ":10250/proxy/healthz":        "ok",
		"/api/v1/nodes/" + node + "/proxy/pods":                 pod,
	} {
		if strings.Contains(path, ":10250") {
			path = strings.Replace(path, "10250", c.jsonpath("nodes", ".items[0].status.daemonEndpoints.kubeletEndpoint.Port"), 1)
		}
		c.eventually(path+" answers", func() (bool, string) { // endpoints follow pods a moment later
			out, err := fetch(at + path)
			return err == nil && strings.Contains(out, want), fmt.Sprint(out, err)
		})
	}
	resp, err := http.Get(at + "/api/v1/secrets")
	if err != nil {
		c.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		c.t.Errorf("a path that is not let through: %s", resp.Status)
	}
}

// kubectlSPDY: clients that know nothing of WebSockets, an older kubectl, get the same.
func kubectlSPDY(c *cluster) {
	c.t.Setenv("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
	c.t.Setenv("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "busybox:1", stdin: true, tty: true, command: [sh]}
  - {name: web, image: "busybox:1", command: [sh, -c, 'mkdir /www; echo here > /www/index.html; exec httpd -f -p 8080 -h /www']}
`)
	c.is("pod/box", readyPath, "True")
	out, err := c.kubectlErr("exec", "-v=8", "box", "-c", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 9")
	has(c.t, out, "out\n", "err\n", "command terminated with exit code 9", "SPDY/3.1")
	if err == nil || strings.Contains(strings.ToLower(out), "websocket") {
		c.t.Errorf("not by SPDY, or with exit code 0: %s", out)
	}
	large := strings.Repeat("0123456789abcdef", 1<<16)
	if out, err := c.kubectlIn(strings.NewReader(large), "exec", "-i", "box", "-c", "main", "--", "cat"); err != nil || out != large {
		c.t.Errorf("cat of %d bytes: %d came back, %v", len(large), len(out), err)
	}
	s := c.onTerminal(30, 99, "exec", "-it", "box", "-c", "main", "--", "sh")
	s.types("/bin/busybox stty size\n")
	s.says("30 99\r\n")
	s.resize(40, 120)
	c.eventually("the new size arrives", func() (bool, string) {
		s.types("/bin/busybox stty size\n")
		return strings.Contains(s.text(), "40 120\r\n"), s.text()
	})
	s.types("exit 6\n")
	if code := s.exits(); code != 6 {
		c.t.Errorf("exec -it exits with %d", code)
	}
	s = c.onTerminal(31, 98, "attach", "-it", "box", "-c", "main")
	s.types("echo at''tached; /bin/busybox stty size\n")
	s.says("attached\r\n")
	s.says("31 98\r\n")
	dir := c.t.TempDir()
	c.kubectl("exec", "box", "-c", "main", "--", "/bin/busybox", "ln", "-s", "busybox", "/bin/tar")
	c.kubectl("cp", write(c.t, dir+"/f", large), "box:/tmp/f", "-c", "main")
	c.kubectl("cp", "box:/tmp/f", dir+"/g", "-c", "main")
	if b, err := os.ReadFile(dir + "/g"); string(b) != large {
		c.t.Errorf("copied forth and back: %d bytes, %v", len(b), err)
	}
	// A port where nobody listens fails; the forwarding goes on.
	f := c.background("port-forward", "pod/box", ":8080", ":8081")
	f.says("-> 8081")
	at := func(port string) string {
		return "http://" + regexp.MustCompile(`(127\.0\.0\.1:\d+) -> ` + port).FindStringSubmatch(f.text())[1]
	}
	if out, err := fetch(at("8081")); err == nil {
		c.t.Errorf("where nobody listens: %q", out)
	}
	for range 2 {
		if out, err := fetch(at("8080")); err != nil || out != "here" {
			c.t.Errorf("after a connection that failed: %q, %v\n%s", out, err, f.text())
		}
	}
}

// kubectlAttach: attach over WebSockets, to a terminal and without.
func kubectlAttach(c *cluster) {
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: tty, image: "busybox:1", stdin: true, tty: true, command: [sh]}
  - {name: plain, image: "busybox:1", command: [sh, -c, 'i=0; while :; do i=$((i+1)); echo line $i; echo bad $i >&2; sleep 0.1; done']}
  - {name: once, image: "busybox:1", stdin: true, stdinOnce: true, command: [sh, -c, 'cat; echo end; sleep 10000']}
`)
	c.is("pod/box", readyPath, "True")
	s := c.onTerminal(33, 77, "attach", "-it", "box", "-c", "tty")
	s.types("echo he''re; /bin/busybox stty size\n")
	s.says("here\r\n")
	s.says("33 77\r\n")
	s.resize(20, 40)
	c.eventually("the new size arrives", func() (bool, string) {
		s.types("/bin/busybox stty size\n")
		return strings.Contains(s.text(), "20 40\r\n"), s.text()
	})
	b := c.background("attach", "box", "-c", "plain")
	b.says("line ")
	b.says("bad ")
	in := c.kubectlCmd(c.t.Context(), "attach", "-i", "box", "-c", "once")
	in.Stdin = strings.NewReader("fed\n")
	if err := in.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.eventually("stdin that is used once is closed", func() (bool, string) {
		out := c.kubectl("logs", "box", "-c", "once")
		return out == "fed\nend\n", out
	})
	_ = in.Process.Kill()
	_ = in.Wait()
	says := "container nosuch is not valid for pod box out of: tty, plain, once"
	if c.minor < 35 {
		says = "container nosuch not found in pod box"
	}
	c.refused([]string{"attach", "box", "-c", "nosuch"}, says)
}

// kubectlLogFlags are those that kubectlLogs does not use.
func kubectlLogFlags(c *cluster) {
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: talk, labels: {app: talk}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  initContainers: [{name: init, image: "busybox:1", command: [echo, from init]}]
  containers:
  - {name: a, image: "busybox:1", command: [sh, -c, 'echo early; sleep 3; echo late']}
  - {name: b, image: "busybox:1", command: [sh, -c, 'echo -n no end of line']}
`)
	c.is("pod/talk", ".status.phase", "Succeeded")
	lines := strings.Fields(c.kubectl("logs", "talk", "-c", "a", "--timestamps"))
	if len(lines) != 4 || lines[1] != "early" || lines[3] != "late" {
		c.t.Fatalf("--timestamps says %q", lines)
	}
	if out := c.kubectl("logs", "talk", "-c", "a", "--since-time="+lines[2]); out != "late\n" {
		c.t.Errorf("--since-time says %q", out)
	}
	if out := c.kubectl("logs", "talk", "-c", "a", "--since=1h"); out != "early\nlate\n" {
		c.t.Errorf("--since=1h says %q", out)
	}
	if out := c.kubectl("logs", "talk", "-c", "a", "--tail=0"); out != "" {
		c.t.Errorf("--tail=0 says %q", out)
	}
	// Containers come in any order: kubectl keeps them in a map.
	out := c.kubectl("logs", "talk", "--all-containers")
	has(c.t, out, "from init\n", "early\nlate\n", "no end of line")
	if want := len("from init\nearly\nlate\nno end of line"); len(out) != want {
		c.t.Errorf("--all-containers says %q", out)
	}
	if out := c.kubectl("logs", "talk", "-c", "b", "--prefix", "--timestamps"); !regexp.MustCompile(`^\[pod/talk/b\] \S+Z no end of line\n?$`).MatchString(out) {
		c.t.Errorf("--prefix --timestamps says %q", out)
	}
	if out := c.kubectl("logs", "-l", "app=talk", "-c", "a", "--limit-bytes=3"); out != "ear" {
		c.t.Errorf("-l --limit-bytes says %q", out)
	}
	has(c.t, c.kubectl("logs", "pod/talk"), "early\n") // the default container is the first
	c.refused([]string{"logs", "talk", "-c", "a", "--since=1h", "--since-time=" + lines[0]}, "at most one of `sinceTime` or `sinceSeconds` may be specified")
	c.refused([]string{"logs", "talk", "-c", "a", "--previous"}, `previous terminated container "a" in pod "talk" not found`)
}

// kubectlSkew drives the cluster with the machine's own kubectl, five releases older,
// which warns of that and works.
func kubectlSkew(c *cluster) {
	if _, err := exec.LookPath("kubectl"); err != nil {
		c.t.Skip("the machine has no kubectl of its own: only the carried one is tested")
	}
	old := *c
	old.carried = false
	out, err := old.kubectlCmd(c.t.Context(), "version").CombinedOutput()
	m := regexp.MustCompile(`Client Version: v1\.(\d+)\.`).FindStringSubmatch(string(out))
	if err != nil || m == nil {
		c.t.Fatalf("version: %v %s", err, out)
	}
	has(c.t, string(out), "Server Version: v1.37.2")
	if m[1] != "36" && m[1] != "37" && m[1] != "38" {
		has(c.t, string(out), "WARNING: version difference between client (1."+m[1]+") and server (1.37) exceeds the supported minor version skew of +/-1\n")
	}
	old.apply(web(1, "one"))
	old.rollout("web")
	hasRow(c.t, old.kubectl("get", "pods"), "NAME READY STATUS RESTARTS AGE\n", " 1/1 Running 0 ")
	old.kubectl("scale", "deployment/web", "--replicas=2")
	old.is("deployment/web", ".status.readyReplicas", "2")
	pod := old.jsonpath("pods", ".items[0].metadata.name")
	has(c.t, old.kubectl("exec", pod, "--", "cat", "/www/index.html"), "one ")
	has(c.t, old.kubectl("explain", "pod.spec"), "KIND:       Pod\n")
	old.kubectl("delete", "deployment/web")
}

// kubectlTable: docs/kubectl.md has a row for every command that kubectl --help prints,
// and for every command below those.
func kubectlTable(c *cluster) {
	ns := *c
	ns.ns = ""
	table, err := os.ReadFile("../../docs/kubectl.md")
	if err != nil {
		c.t.Fatal(err)
	}
	commands := regexp.MustCompile(`(?m)^  ([a-z-]+)  +\S`)
	var want []string
	for _, m := range commands.FindAllStringSubmatch(ns.kubectl("--help"), -1) {
		want = append(want, m[1])
	}
	if len(want) < 40 {
		c.t.Fatalf("kubectl --help names %d commands: %v", len(want), want)
	}
	for _, name := range slices.Clone(want) {
		_, below, _ := strings.Cut(ns.kubectl(name, "--help"), "\nAvailable Commands:\n")
		below, _, _ = strings.Cut(below, "\n\n")
		for _, m := range commands.FindAllStringSubmatch(below, -1) {
			want = append(want, name+" "+m[1])
		}
	}
	for _, name := range want {
		if !strings.Contains(string(table), "\n| `"+name+"` | ") {
			c.t.Errorf("docs/kubectl.md has no row for kubectl %s", name)
		}
	}
}
