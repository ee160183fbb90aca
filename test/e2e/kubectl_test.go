package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// within makes a namespace and returns the cluster as seen from it.
func (c *cluster) within(t *testing.T, ns string) *cluster {
	t.Helper()
	sub := *c
	sub.t, sub.ns = t, ""
	sub.kubectl("create", "namespace", ns)
	sub.ns = ns
	// Pods are refused until there is the account that they run as.
	sub.kubectl("wait", "serviceaccount/default", "--for=create", "--timeout=60s")
	return &sub
}

// jsonpath reads one value.
func (c *cluster) jsonpath(obj, path string) string {
	c.t.Helper()
	return c.kubectl("get", obj, "-o", "jsonpath={"+path+"}")
}

// is waits until a value of an object is as wanted.
func (c *cluster) is(obj, path, want string) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%s has %s=%q", obj, path, want), func() (bool, string) {
		out, err := c.kubectlErr("get", obj, "-o", "jsonpath={"+path+"}")
		return err == nil && out == want, out
	})
}

// has fails unless every text is part of out.
func has(t *testing.T, out string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("%q is missing in:\n%s", w, out)
		}
	}
}

// hasRow is has for output in columns, where one blank stands for any number.
func hasRow(t *testing.T, out string, want ...string) {
	t.Helper()
	has(t, regexp.MustCompile(`[ \t]+`).ReplaceAllString(out, " "), want...)
}

// refused runs kubectl, which must fail and say why.
func (c *cluster) refused(args []string, want ...string) {
	c.t.Helper()
	out, err := c.kubectlErr(args...)
	if err == nil {
		c.t.Errorf("kubectl %s is not refused: %s", strings.Join(args, " "), out)
		return
	}
	has(c.t, out, want...)
}

func (c *cluster) gone(obj string) {
	c.t.Helper()
	c.eventually(obj+" is gone", func() (bool, string) {
		out, err := c.kubectlErr("get", obj)
		return err != nil && strings.Contains(out, "NotFound"), out
	})
}

// sleeper is a pod that does nothing.
func sleeper(name, labels string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {%s}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "busybox:1", command: [sleep, "10000"]}]
`, name, labels)
}

const readyPath = `.status.conditions[?(@.type=="Ready")].status`

// TestKubectl drives one cluster with an unmodified kubectl of the same release,
// and looks at the effect of everything that it does.
func TestKubectl(t *testing.T) { driveKubectl(t, "kubectl", true) }

// TestKubectlOfMachine is the same with the machine's own kubectl, of whatever
// release from 1.32 on. What an older one does not have, or says in other words, is
// told apart by c.minor.
func TestKubectlOfMachine(t *testing.T) {
	if _, err := exec.LookPath("kubectl"); err != nil {
		t.Skip("the machine has no kubectl of its own: only the carried one is tested")
	}
	driveKubectl(t, "kubectl-own", false)
}

func driveKubectl(t *testing.T, name string, carried bool) {
	c := start(t, name)
	c.carried = carried
	var client struct {
		ClientVersion struct{ Minor string }
	}
	if err := json.Unmarshal([]byte(c.kubectl("version", "--client", "-o", "json")), &client); err != nil {
		t.Fatal(err)
	}
	if c.minor, _ = strconv.Atoi(strings.TrimSuffix(client.ClientVersion.Minor, "+")); c.minor == 0 {
		t.Fatalf("kubectl is of minor version %q", client.ClientVersion.Minor)
	}
	t.Logf("kubectl 1.%d", c.minor)
	c.importBusybox()
	if out, err := c.skiff("image", "tag", "busybox:1", "busybox:2"); err != nil {
		t.Fatalf("image tag: %v\n%s", err, out)
	}
	for _, s := range []struct {
		name string
		run  func(*cluster)
	}{
		{"apply", kubectlApply}, {"get", kubectlGet}, {"watch", kubectlWatch}, {"describe", kubectlDescribe},
		{"logs", kubectlLogs}, {"exec", kubectlExec}, {"scale", kubectlScale}, {"rollout", kubectlRollout},
		{"label", kubectlLabel}, {"patch", kubectlPatch}, {"serverside", kubectlServerSide},
		{"delete", kubectlDelete}, {"explain", kubectlExplain}, {"wait", kubectlWait}, {"create", kubectlCreate},
		{"run", kubectlRun}, {"auth", kubectlAuth}, {"discovery", kubectlDiscovery}, {"edit", kubectlEdit},
		{"diff", kubectlDiff}, {"events", kubectlEvents}, {"forward", kubectlForward}, {"node", kubectlNode},
		{"debug", kubectlDebug}, {"cp", kubectlCp}, {"expose", kubectlExpose}, {"set", kubectlSet}, {"autoscale", kubectlAutoscale},
		{"top", kubectlTop}, {"certificate", kubectlCertificate}, {"drain", kubectlDrain}, {"lastapplied", kubectlLastApplied},
		{"generators", kubectlGenerators}, {"kustomize", kubectlKustomize}, {"config", kubectlConfig}, {"plugin", kubectlPlugin},
		{"completion", kubectlCompletion}, {"dump", kubectlDump}, {"proxy", kubectlProxy}, {"spdy", kubectlSPDY},
		{"attach", kubectlAttach}, {"logflags", kubectlLogFlags}, {"skew", kubectlSkew}, {"table", kubectlTable},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(c.within(t, s.name)) })
	}
}

func kubectlApply(c *cluster) {
	manifest := `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {a: "1", b: "2"}
`
	apply := func(m, want string) {
		c.t.Helper()
		out, err := c.kubectlIn(strings.NewReader(m), "apply", "-f", "-")
		if err != nil || out != want {
			c.t.Fatalf("apply says %q, %v; want %q", out, err, want)
		}
	}
	apply(manifest, "configmap/conf created\n")
	apply(manifest, "configmap/conf unchanged\n")
	c.kubectl("patch", "configmap", "conf", "--type=merge", "-p", `{"data":{"other":"kept"}}`)
	// What the manifest no longer has goes; what it never had stays.
	apply(strings.Replace(manifest, `a: "1", b: "2"`, `b: "3"`, 1), "configmap/conf configured\n")
	if got := c.jsonpath("configmap/conf", ".data"); got != `{"b":"3","other":"kept"}` {
		c.t.Errorf("data is %s", got)
	}
	out, err := c.kubectlIn(strings.NewReader(strings.Replace(sleeper("bad", ""), "image", "imagee", 1)), "apply", "-f", "-")
	if err == nil {
		c.t.Errorf("a wrong field is taken: %s", out)
	}
	has(c.t, out, `strict decoding error: unknown field "spec.containers[0].imagee"`)
	out, err = c.kubectlIn(strings.NewReader(sleeper("Bad", "")), "apply", "-f", "-")
	if err == nil {
		c.t.Errorf("a wrong name is taken: %s", out)
	}
	has(c.t, out, `The Pod "Bad" is invalid: metadata.name: Invalid value: "Bad": a lowercase RFC 1123 subdomain must consist of`)
	// A list of things, pruned by label.
	two := `
apiVersion: v1
kind: ConfigMap
metadata: {name: p1, labels: {set: x}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: p2, labels: {set: x}}
`
	apply(two, "configmap/p1 created\nconfigmap/p2 created\n")
	out, err = c.kubectlIn(strings.NewReader(strings.Split(two, "---")[0]), "apply", "--prune", "-l", "set=x", "--prune-allowlist=core/v1/ConfigMap", "-f", "-")
	if err != nil {
		c.t.Fatal(err)
	}
	has(c.t, out, "configmap/p1 unchanged", "configmap/p2 pruned")
	c.gone("configmap/p2")
}

func kubectlGet(c *cluster) {
	c.apply(web(2, "one"))
	c.rollout("web")
	node := c.jsonpath("nodes", ".items[0].metadata.name")
	hasRow(c.t, c.kubectl("get", "deployment", "-o", "wide"), "NAME READY UP-TO-DATE AVAILABLE AGE CONTAINERS IMAGES SELECTOR", "web 2/2 2 2 ", " web busybox:1 app=web\n")
	pods := c.kubectl("get", "pods", "-o", "wide", "--show-labels")
	hasRow(c.t, pods, "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES LABELS", " 1/1 Running 0 ", " "+node+" <none> <none> app=web,pod-template-hash=")
	if n := strings.Count(pods, "\n"); n != 3 {
		c.t.Errorf("get pods has %d lines, want 3:\n%s", n, pods)
	}
	hasRow(c.t, c.kubectl("get", "svc,rs,endpointslices", "-o", "wide"), "service/web NodePort ", " 80:", "replicaset.apps/web-", "endpointslice.discovery.k8s.io/web-", "IPv4 8080 ")
	hasRow(c.t, c.kubectl("get", "nodes", "-o", "wide"), "NAME STATUS ROLES AGE VERSION INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME", node+" Ready ")
	yaml := c.kubectl("get", "deployment", "web", "-o", "yaml")
	has(c.t, yaml, "apiVersion: apps/v1\nkind: Deployment\n", "  progressDeadlineSeconds: 600\n", "      terminationGracePeriodSeconds: 2\n", "    reason: NewReplicaSetAvailable\n")
	if strings.Contains(yaml, "managedFields") {
		c.t.Error("kubectl shows managedFields without being asked")
	}
	if out := c.kubectl("get", "pods", "-l", "app=web", "-o", "name"); strings.Count(out, "pod/web-") != 2 {
		c.t.Errorf("-l app=web -o name says %q", out)
	}
	if out := c.kubectl("get", "pods", "-l", "app notin (web)", "-o", "name"); out != "" {
		c.t.Errorf("-l 'app notin (web)' says %q", out)
	}
	if out := c.kubectl("get", "pods", "--field-selector", "status.phase=Pending", "-o", "name"); out != "" {
		c.t.Errorf("a field selector says %q", out)
	}
	if out := c.kubectl("get", "deployment", "web", "-o", "custom-columns=N:.metadata.name,R:.spec.replicas", "--no-headers"); strings.Join(strings.Fields(out), " ") != "web 2" {
		c.t.Errorf("custom columns say %q", out)
	}
	if out := c.kubectl("get", "deployment", "web", "-o", "go-template={{.spec.replicas}}"); out != "2" {
		c.t.Errorf("go-template says %q", out)
	}
	if out := c.kubectl("get", "deployment", "web", "--subresource=scale", "-o", "jsonpath={.status.selector}"); out != "app=web" {
		c.t.Errorf("the scale's selector is %q", out)
	}
	// Pages are put together, and sorted where asked.
	for i := range 12 {
		c.kubectl("create", "configmap", fmt.Sprintf("cm-%02d", i))
	}
	out := c.kubectl("get", "configmaps", "--chunk-size=5", "--sort-by=.metadata.name", "-o", "name")
	if n := strings.Count(out, "configmap/cm-"); n != 12 || strings.Index(out, "cm-03") > strings.Index(out, "cm-04") {
		c.t.Errorf("in pages of 5 there are %d of 12:\n%s", n, out)
	}
	hasRow(c.t, c.kubectl("get", "all"), "pod/web-", "service/web ", "deployment.apps/web ", "replicaset.apps/web-")
	c.refused([]string{"get", "pod", "nosuch"}, `Error from server (NotFound): pods "nosuch" not found`)
	c.refused([]string{"get", "nosuchkind"}, `error: the server doesn't have a resource type "nosuchkind"`)
	if out := c.kubectl("get", "--raw", "/readyz"); out != "ok" {
		c.t.Errorf("/readyz says %q", out)
	}
}

func kubectlWatch(c *cluster) {
	w := c.background("get", "pods", "-w", "--output-watch-events", "--no-headers")
	c.apply(sleeper("seen", ""))
	c.is("pod/seen", readyPath, "True")
	c.kubectl("delete", "pod", "seen")
	w.says("DELETED")
	out := regexp.MustCompile(` +`).ReplaceAllString(w.text(), " ")
	has(c.t, out, "ADDED seen 0/1 Pending", "MODIFIED seen 0/1 ContainerCreating", "MODIFIED seen 1/1 Running", "DELETED seen ")
}

func kubectlDescribe(c *cluster) {
	c.apply(web(1, "one"))
	c.rollout("web")
	pod := strings.TrimPrefix(strings.TrimSpace(c.kubectl("get", "pods", "-o", "name")), "pod/")
	node := c.jsonpath("nodes", ".items[0].metadata.name")
	ip := c.jsonpath("pod/"+pod, ".status.podIP")
	c.eventually("the pod's events are told", func() (bool, string) {
		out := c.kubectl("describe", "pod", pod)
		return strings.Contains(out, "Started container web") || strings.Contains(out, "Container started"), out
	})
	times := "successThreshold=1 failureThreshold=3"
	if c.minor < 35 {
		times = "#success=1 #failure=3"
	}
	hasRow(c.t, c.kubectl("describe", "pod", pod), "Name: "+pod+"\n", "Namespace: describe\n", "Service Account: default\n", "Status: Running\n", "IP: "+ip+"\n",
		"Controlled By: ReplicaSet/web-", " Image: busybox:1\n", " Port: 8080/TCP", " State: Running\n", " Ready: True\n", " Restart Count: 0\n",
		"Readiness: http-get http://:http/ delay=0s timeout=1s period=1s "+times+"\n", " VERSION: one\n",
		"/var/run/secrets/kubernetes.io/serviceaccount from kube-api-access-", " PodScheduled True", "QoS Class: BestEffort\n",
		"node.kubernetes.io/not-ready:NoExecute op=Exists for 300s", "Normal Scheduled ", " default-scheduler Successfully assigned describe/"+pod+" to "+node+"\n",
		"Normal Pulled ", "Normal Created ", "Normal Started ")
	hasRow(c.t, c.kubectl("describe", "deployment", "web"), "Selector: app=web\n", "Replicas: 1 desired | 1 updated | 1 total | 1 available | 0 unavailable\n",
		"StrategyType: RollingUpdate\n", "RollingUpdateStrategy: 25% max unavailable, 25% max surge\n", " Available True MinimumReplicasAvailable\n",
		" Progressing True NewReplicaSetAvailable\n", "NewReplicaSet: web-", "Normal ScalingReplicaSet ", " deployment-controller Scaled up replica set web-")
	hasRow(c.t, c.kubectl("describe", "replicaset"), "Controlled By: Deployment/web\n", "Pods Status: 1 Running / 0 Waiting / 0 Succeeded / 0 Failed\n", " replicaset-controller Created pod: "+pod)
	hasRow(c.t, c.kubectl("describe", "service", "web"), "Type: NodePort\n", "Selector: app=web\n", "Port: http 80/TCP\n", "TargetPort: http/TCP\n", "Endpoints: "+ip+":8080\n", "Session Affinity: None\n")
	hasRow(c.t, c.kubectl("describe", "node", node), "Name: "+node+"\n", " kubernetes.io/hostname="+node, " MemoryPressure False ", " Ready True ", "KubeletReady",
		"Capacity:\n", "Allocatable:\n", " pods: 110\n", " Kubelet Version: v1.37.2", "Container Runtime Version: ", " describe "+pod+" 0 (0%) 0 (0%) 0 (0%) 0 (0%) ", "Allocated resources:\n")
	hasRow(c.t, c.kubectl("describe", "namespace", "describe"), "Status: Active\n", "kubernetes.io/metadata.name=describe")
	hasRow(c.t, c.kubectl("describe", "configmap", "kube-root-ca.crt"), "ca.crt:\n", "-----BEGIN CERTIFICATE-----\n")
}

func kubectlLogs(c *cluster) {
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: talk, labels: {app: talk}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - {name: a, image: "busybox:1", command: [sh, -c, 'for i in $(seq 40); do echo a$i; sleep 0.1; done; echo oops >&2']}
  - {name: b, image: "busybox:1", command: [sh, -c, 'echo b1; sleep 2']}
`)
	c.eventually("container a runs", func() (bool, string) {
		out, err := c.kubectlErr("logs", "talk", "-c", "a")
		return err == nil && out != "", out
	})
	f := c.background("logs", "-f", "talk", "-c", "a")
	// It follows: what is said later is seen, until the container ends.
	f.says("a1\n")
	f.says("a20\n")
	if strings.Contains(f.text(), "oops") {
		c.t.Log("the container ended before its log was followed")
	}
	if code := f.exits(); code != 0 {
		c.t.Errorf("logs -f exits with %d", code)
	}
	var want strings.Builder
	for i := range 40 {
		fmt.Fprintf(&want, "a%d\n", i+1)
	}
	want.WriteString("oops\n")
	if f.text() != want.String() {
		c.t.Errorf("logs -f says %q", f.text())
	}
	if out := c.kubectl("logs", "talk", "-c", "a", "--tail=2"); out != "a40\noops\n" {
		c.t.Errorf("--tail=2 says %q", out)
	}
	if out := c.kubectl("logs", "talk", "-c", "b", "--timestamps"); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z b1\n$`).MatchString(out) {
		c.t.Errorf("--timestamps says %q", out)
	}
	if out := c.kubectl("logs", "talk", "-c", "a", "--limit-bytes=4"); out != "a1\na" {
		c.t.Errorf("--limit-bytes=4 says %q", out)
	}
	if out := c.kubectl("logs", "-l", "app=talk", "--all-containers", "--prefix", "--tail=1"); !strings.Contains(out, "[pod/talk/a] oops\n") || !strings.Contains(out, "[pod/talk/b] b1\n") {
		c.t.Errorf("-l --all-containers --prefix says %q", out)
	}
	c.refused([]string{"logs", "talk", "-c", "z"}, "container z is not valid for pod talk")
	// Of the run before.
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: twice}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - {name: main, image: "busybox:1", volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, 'if test -e /v/x; then echo second; exec sleep 1000; fi; touch /v/x; echo first; exit 3']}
`)
	c.is("pod/twice", ".status.containerStatuses[0].restartCount", "1")
	c.eventually("the second run speaks", func() (bool, string) {
		out, _ := c.kubectlErr("logs", "twice")
		return out == "second\n", out
	})
	if out := c.kubectl("logs", "twice", "--previous"); out != "first\n" {
		c.t.Errorf("--previous says %q", out)
	}
}

func kubectlExec(c *cluster) {
	c.apply(sleeper("box", ""))
	c.is("pod/box", readyPath, "True")
	s := c.onTerminal(37, 111, "exec", "-it", "box", "--", "sh")
	s.says("#")
	s.types("echo $((6*7)) && /bin/busybox stty size\n")
	s.says("42\r\n")
	s.says("37 111\r\n")
	s.resize(50, 132)
	c.eventually("the new size arrives", func() (bool, string) {
		s.types("/bin/busybox stty size\n")
		time.Sleep(200 * time.Millisecond)
		return strings.Contains(s.text(), "50 132\r\n"), s.text()
	})
	// An interrupt goes to the program in the pod, not to kubectl.
	s.types("sleep 1000\n")
	time.Sleep(500 * time.Millisecond)
	s.types("\x03")
	s.types("test -t 0 && echo on a ter''minal; exit 7\n")
	s.says("on a terminal\r\n")
	if code := s.exits(); code != 7 {
		c.t.Errorf("exec -it exits with %d, want 7; it said %q", code, s.text())
	}
	out, err := c.kubectlIn(strings.NewReader("one\ntwo\n"), "exec", "-i", "box", "--", "cat")
	if err != nil || out != "one\ntwo\n" {
		c.t.Errorf("exec -i cat says %q, %v", out, err)
	}
	out, err = c.kubectlErr("exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 9")
	if err == nil || !strings.Contains(err.Error(), "exit status 9") {
		c.t.Errorf("exit code 9 arrives as %v", err)
	}
	has(c.t, out, "out\n", "err\n", "command terminated with exit code 9")
	c.refused([]string{"exec", "box", "--", "/nosuch"}, "no such file or directory")
	c.refused([]string{"exec", "nosuch", "--", "true"}, `pods "nosuch" not found`)
	// Files, both ways, by tar in the pod.
	dir := c.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o644); err != nil {
		c.t.Fatal(err)
	}
	c.kubectl("exec", "box", "--", "/bin/busybox", "ln", "-s", "busybox", "/bin/tar")
	c.kubectl("cp", filepath.Join(dir, "f"), "box:/tmp/f")
	c.kubectl("cp", "box:/tmp/f", filepath.Join(dir, "g"))
	if b, err := os.ReadFile(filepath.Join(dir, "g")); string(b) != "content" {
		c.t.Errorf("copied forth and back: %q, %v", b, err)
	}
}

func kubectlScale(c *cluster) {
	c.apply(web(1, "one"))
	c.rollout("web")
	c.kubectl("scale", "deployment/web", "--replicas=3")
	c.is("deployment/web", ".status.readyReplicas", "3")
	c.refused([]string{"scale", "deployment/web", "--current-replicas=9", "--replicas=1"}, "Expected replicas to be 9, was 3")
	c.kubectl("scale", "deployment/web", "--current-replicas=3", "--replicas=0")
	c.eventually("no pod is left", func() (bool, string) {
		out := c.kubectl("get", "pods", "--no-headers")
		return out == "", out
	})
}

func kubectlRollout(c *cluster) {
	c.apply(web(2, "one"))
	c.kubectl("annotate", "deployment/web", "kubernetes.io/change-cause=first")
	c.rollout("web")
	image := func() string { return c.jsonpath("pods", ".items[*].spec.containers[0].image") }
	c.kubectl("set", "image", "deployment/web", "web=busybox:2")
	c.kubectl("annotate", "deployment/web", "kubernetes.io/change-cause=second")
	has(c.t, c.kubectl("rollout", "status", "deployment/web", "--timeout=60s"), `deployment "web" successfully rolled out`)
	c.eventually("the old pods are gone", func() (bool, string) { return image() == "busybox:2 busybox:2", image() })
	hasRow(c.t, c.kubectl("rollout", "history", "deployment/web"), "REVISION CHANGE-CAUSE\n1 first\n2 second\n")
	hasRow(c.t, c.kubectl("rollout", "history", "deployment/web", "--revision=1"), "deployment.apps/web with revision #1", "Image: busybox:1\n")
	if out := c.kubectl("rollout", "undo", "deployment/web", "--to-revision=1"); out != "deployment.apps/web rolled back\n" {
		c.t.Errorf("undo says %q", out)
	}
	c.rollout("web")
	c.eventually("the first image runs again", func() (bool, string) { return image() == "busybox:1 busybox:1", image() })
	hasRow(c.t, c.kubectl("rollout", "history", "deployment/web"), "2 second\n3 first\n")

	c.kubectl("rollout", "pause", "deployment/web")
	c.kubectl("set", "image", "deployment/web", "web=busybox:2")
	c.is("deployment/web", `.status.conditions[?(@.type=="Progressing")].reason`, "DeploymentPaused")
	c.refused([]string{"rollout", "restart", "deployment/web"}, "can't restart paused deployment")
	if got := image(); got != "busybox:1 busybox:1" {
		c.t.Errorf("a paused deployment rolls: %s", got)
	}
	c.kubectl("rollout", "resume", "deployment/web")
	c.rollout("web")
	c.eventually("the second image runs", func() (bool, string) { return image() == "busybox:2 busybox:2", image() })
	before := c.jsonpath("pods", ".items[*].metadata.name")
	c.kubectl("rollout", "restart", "deployment/web")
	c.rollout("web")
	c.eventually("every pod is another", func() (bool, string) {
		now := c.jsonpath("pods", ".items[*].metadata.name")
		for _, p := range strings.Fields(before) {
			if strings.Contains(now, p) {
				return false, now
			}
		}
		return len(strings.Fields(now)) == 2, now
	})
	// What cannot roll out is told.
	c.kubectl("patch", "deployment", "web", "-p", `{"spec":{"progressDeadlineSeconds":2,"template":{"spec":{"containers":[{"name":"web","image":"nosuch.invalid/image:1"}]}}}}`)
	c.refused([]string{"rollout", "status", "deployment/web", "--timeout=60s"}, `deployment "web" exceeded its progress deadline`)
}

func kubectlLabel(c *cluster) {
	c.apply(sleeper("box", "app: box"))
	c.kubectl("label", "pod", "box", "tier=back", "app-")
	c.refused([]string{"label", "pod", "box", "tier=front"}, "already has a value (back), and --overwrite is false")
	c.kubectl("label", "pod", "box", "tier=front", "--overwrite")
	if got := c.jsonpath("pod/box", ".metadata.labels"); got != `{"tier":"front"}` {
		c.t.Errorf("labels are %s", got)
	}
	c.refused([]string{"label", "pod", "box", "tier=not a label", "--overwrite"}, "a valid label must be an empty string or consist of alphanumeric characters")
	c.kubectl("annotate", "pods", "--all", "note=hello there")
	if got := c.jsonpath("pod/box", ".metadata.annotations.note"); got != "hello there" {
		c.t.Errorf("annotation is %q", got)
	}
	c.kubectl("annotate", "pod", "box", "note-")
	if got := c.jsonpath("pod/box", ".metadata.annotations.note"); got != "" {
		c.t.Errorf("annotation is %q after its removal", got)
	}
}

func kubectlPatch(c *cluster) {
	c.apply(web(1, "one"))
	patch := func(kind, p string) { c.t.Helper(); c.kubectl("patch", "deployment", "web", "--type="+kind, "-p", p) }
	// Strategic: a container is found by its name, an environment variable too.
	patch("strategic", `{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"MORE","value":"m"}]}]}}}}`)
	if got := c.jsonpath("deployment/web", ".spec.template.spec.containers[*].env[*].name"); got != "MORE VERSION" && got != "VERSION MORE" {
		c.t.Errorf("after the strategic patch env has %q", got)
	}
	// Merge: a list is replaced whole.
	patch("merge", `{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"busybox:2","env":[{"name":"ONLY","value":"o"}]}]}}}}`)
	if got := c.jsonpath("deployment/web", ".spec.template.spec.containers[*].env[*].name"); got != "ONLY" {
		c.t.Errorf("after the merge patch env has %q", got)
	}
	patch("json", `[{"op":"test","path":"/spec/replicas","value":1},{"op":"replace","path":"/spec/template/spec/containers/0/env/0/value","value":"p"},{"op":"add","path":"/metadata/labels","value":{"x":"y"}}]`)
	if got := c.jsonpath("deployment/web", ".spec.template.spec.containers[0].env[0].value") + c.jsonpath("deployment/web", ".metadata.labels.x"); got != "py" {
		c.t.Errorf("after the JSON patch: %q", got)
	}
	c.refused([]string{"patch", "deployment", "web", "--type=json", "-p", `[{"op":"test","path":"/spec/replicas","value":5}]`}, "The request is invalid: the server rejected our request due to an error in our request")
	c.refused([]string{"patch", "deployment", "web", "-p", `{"spec":{"selector":{"matchLabels":{"app":"else"}}}}`}, "field is immutable")
	c.kubectl("patch", "deployment", "web", "--subresource=scale", "--type=merge", "-p", `{"spec":{"replicas":2}}`)
	if got := c.jsonpath("deployment/web", ".spec.replicas"); got != "2" {
		c.t.Errorf("replicas are %s after a patch of the scale", got)
	}
}

func kubectlServerSide(c *cluster) {
	apply := func(manager, data string, more ...string) (string, error) {
		return c.kubectlIn(strings.NewReader("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {"+data+"}\n"),
			append([]string{"apply", "--server-side", "--field-manager=" + manager, "-f", "-"}, more...)...)
	}
	if out, err := apply("one", `a: "1", b: "1"`); err != nil || out != "configmap/conf serverside-applied\n" {
		c.t.Fatalf("apply says %q, %v", out, err)
	}
	out, err := apply("two", `a: "2"`)
	if err == nil {
		c.t.Fatalf("no conflict: %s", out)
	}
	has(c.t, out, `error: Apply failed with 1 conflict: conflict with "one": .data.a`, "Please review the fields above--they currently have other managers")
	if out, err := apply("two", `a: "2"`, "--force-conflicts"); err != nil {
		c.t.Fatalf("forced: %s, %v", out, err)
	}
	if got := c.jsonpath("configmap/conf", ".data"); got != `{"a":"2","b":"1"}` {
		c.t.Errorf("data is %s", got)
	}
	// One owner gives up what it no longer names; the other's stays.
	if out, err := apply("one", ``); err != nil {
		c.t.Fatalf("again: %s, %v", out, err)
	}
	if got := c.jsonpath("configmap/conf", ".data"); got != `{"a":"2"}` {
		c.t.Errorf("data is %s after its owner dropped b", got)
	}
	out = c.kubectl("get", "configmap", "conf", "-o", `jsonpath={.metadata.managedFields[?(@.manager=="two")]}`, "--show-managed-fields")
	has(c.t, out, `"operation":"Apply"`, `"fieldsType":"FieldsV1"`, `"f:a":{}`)
	// A dry run changes nothing.
	if out, err := apply("two", `a: "9"`, "--dry-run=server"); err != nil || !strings.Contains(out, "(server dry run)") {
		c.t.Errorf("dry run says %q, %v", out, err)
	}
	if got := c.jsonpath("configmap/conf", ".data.a"); got != "2" {
		c.t.Errorf("a dry run changed a to %s", got)
	}
}

func kubectlDelete(c *cluster) {
	for _, n := range []string{"a", "b", "x"} {
		c.apply(sleeper(n, map[bool]string{true: "", false: "set: s"}[n == "x"]))
	}
	c.is("pod/x", readyPath, "True")
	if out := c.kubectl("delete", "pods", "-l", "set=s"); !strings.Contains(out, `"a" deleted`) || !strings.Contains(out, `"b" deleted`) {
		c.t.Errorf("delete -l says %q", out)
	}
	if out := c.kubectl("get", "pods", "-o", "name"); out != "pod/x\n" {
		c.t.Errorf("left is %q", out)
	}
	c.kubectl("delete", "pod", "x", "--dry-run=server")
	c.kubectl("get", "pod", "x")
	c.kubectl("delete", "pod", "x", "--force", "--grace-period=0")
	c.gone("pod/x")
	c.refused([]string{"delete", "pod", "x"}, `pods "x" not found`)
	c.kubectl("delete", "pod", "x", "--ignore-not-found")

	c.apply(web(2, "one"))
	c.rollout("web")
	c.kubectl("delete", "deployment", "web", "--cascade=orphan")
	c.gone("deployment/web")
	rs := strings.TrimSpace(c.kubectl("get", "rs", "-o", "name"))
	c.is(rs, ".metadata.ownerReferences", "")
	if got := c.jsonpath(rs, ".status.readyReplicas"); got != "2" {
		c.t.Errorf("the orphan has %q pods ready", got)
	}
	c.kubectl("delete", rs, "--cascade=foreground")
	if out := c.kubectl("get", "rs,pods", "--no-headers"); out != "" {
		c.t.Errorf("deletion in the foreground left %q", out)
	}
	// A finalizer holds an object back.
	c.kubectl("create", "configmap", "held")
	c.kubectl("patch", "configmap", "held", "--type=merge", "-p", `{"metadata":{"finalizers":["example.com/hold"]}}`)
	c.kubectl("delete", "configmap", "held", "--wait=false")
	if got := c.jsonpath("configmap/held", ".metadata.deletionTimestamp"); got == "" {
		c.t.Error("no deletionTimestamp")
	}
	c.kubectl("patch", "configmap", "held", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	c.gone("configmap/held")
	// A namespace takes all that is in it along.
	sub := c.within(c.t, "delete-all")
	sub.apply(web(1, "one"))
	sub.rollout("web")
	out, err := sub.kubectlErr("delete", "namespace", "delete-all", "--timeout=60s")
	if err != nil {
		c.t.Fatalf("%s: %v", out, err)
	}
	if out := c.kubectl("get", "pods,rs,deploy,svc,cm,sa", "-n", "delete-all", "--no-headers"); out != "" {
		c.t.Errorf("left in the namespace: %s", out)
	}
}

func kubectlExplain(c *cluster) {
	has(c.t, c.kubectl("explain", "pod.spec.containers.livenessProbe"), "KIND:       Pod\nVERSION:    v1\n", "FIELD: livenessProbe <Probe>", "  failureThreshold\t<integer>\n")
	has(c.t, c.kubectl("explain", "deployment.spec.strategy", "--recursive"), "GROUP:      apps\n", "rollingUpdate\t<RollingUpdateDeployment>\n", "maxSurge\t<IntOrString>\n", "enum: Recreate, RollingUpdate")
	has(c.t, c.kubectl("explain", "services"), "KIND:       Service\n", "  spec\t<ServiceSpec>\n")
	c.refused([]string{"explain", "pod.spec.nosuch"}, `field "nosuch" does not exist`)
}

func kubectlWait(c *cluster) {
	w := c.background("wait", "pod/later", "--for=create", "--timeout=60s")
	time.Sleep(300 * time.Millisecond)
	c.apply(sleeper("later", ""))
	if code := w.exits(); code != 0 {
		c.t.Errorf("--for=create: %d %s", code, w.text())
	}
	if out := c.kubectl("wait", "pod/later", "--for=condition=Ready", "--timeout=60s"); out != "pod/later condition met\n" {
		c.t.Errorf("--for=condition says %q", out)
	}
	c.kubectl("wait", "pod/later", "--for=jsonpath={.status.phase}=Running", "--timeout=60s")
	w = c.background("wait", "pod/later", "--for=delete", "--timeout=60s")
	time.Sleep(300 * time.Millisecond)
	c.kubectl("delete", "pod", "later")
	if code := w.exits(); code != 0 {
		c.t.Errorf("--for=delete: %d %s", code, w.text())
	}
	c.kubectl("create", "configmap", "never")
	c.refused([]string{"wait", "configmap/never", "--for=condition=Ready", "--timeout=1s"}, "timed out waiting for the condition on configmaps/never")
}

func kubectlCreate(c *cluster) {
	c.kubectl("create", "configmap", "conf", "--from-literal=k=v")
	c.kubectl("create", "secret", "generic", "sec", "--from-literal=password=s3cret")
	if got := c.jsonpath("secret/sec", ".data.password"); got != "czNjcmV0" {
		c.t.Errorf("secret is %q", got)
	}
	c.refused([]string{"create", "configmap", "conf"}, `error: failed to create configmap: configmaps "conf" already exists`)
	c.kubectl("create", "deployment", "web", "--image=busybox:1", "--replicas=2", "--port=8080", "--", "sleep", "10000")
	c.rollout("web")
	c.kubectl("expose", "deployment", "web", "--port=80", "--target-port=8080")
	c.is("endpoints/web", ".subsets[0].ports[0].port", "8080")
	if got := len(strings.Fields(c.jsonpath("endpoints/web", ".subsets[*].addresses[*].ip"))); got != 2 {
		c.t.Errorf("the exposed service has %d addresses", got)
	}
	c.kubectl("create", "service", "clusterip", "plain", "--tcp=5678:8080")
	if got := c.jsonpath("service/plain", ".spec.ports[0].name"); got != "5678-8080" {
		c.t.Errorf("port is named %q", got)
	}
	c.refused([]string{"create", "service", "nodeport", "far", "--tcp=80:80", "--node-port=1"}, "spec.ports[0].nodePort: Invalid value: 1: provided port is not in the valid range. The range of valid ports is 30000-32767")
	c.kubectl("create", "serviceaccount", "robot")
	if tok := strings.TrimSpace(c.kubectl("create", "token", "robot", "--duration=1h")); strings.Count(tok, ".") != 2 {
		c.t.Errorf("token is %q", tok)
	} else if out := c.kubectl("auth", "whoami", "--token="+tok, "--kubeconfig="+c.withoutCredentials()); !strings.Contains(out, "system:serviceaccount:create:robot") {
		c.t.Errorf("whoami with the token says %q", out)
	}
	c.kubectl("create", "role", "reader", "--verb=get,list", "--resource=pods")
	c.kubectl("create", "rolebinding", "reader", "--role=reader", "--serviceaccount=create:robot")
	c.kubectl("create", "priorityclass", "high-"+c.ns, "--value=1000")
	if out := c.kubectl("create", "quota", "q", "--dry-run=client", "-o", "yaml"); !strings.Contains(out, "kind: ResourceQuota") {
		c.t.Errorf("dry run says %q", out)
	}
	out, err := c.kubectlIn(strings.NewReader(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"gen-"}}`), "create", "-f", "-")
	if err != nil || !regexp.MustCompile(`^configmap/gen-[a-z0-9]{5} created\n$`).MatchString(out) {
		c.t.Errorf("generateName: %q, %v", out, err)
	}
}

// withoutCredentials writes a kubeconfig that reaches the cluster as nobody.
func (c *cluster) withoutCredentials() string {
	c.t.Helper()
	out := c.kubectl("config", "view", "--raw", "-o", "json")
	out = regexp.MustCompile(`(?s)"client-(certificate|key)(-data)?":\s*"[^"]*",?`).ReplaceAllString(out, "")
	path := filepath.Join(c.t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(out), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func kubectlRun(c *cluster) {
	c.kubectl("run", "one", "--image=busybox:1", "--labels=a=b", "--env=X=y", "--restart=Never", "--", "sh", "-c", "echo $X")
	c.is("pod/one", ".status.phase", "Succeeded")
	if out := c.kubectl("logs", "one"); out != "y\n" {
		c.t.Errorf("it said %q", out)
	}
	if got := c.jsonpath("pod/one", ".metadata.labels"); got != `{"a":"b"}` {
		c.t.Errorf("labels are %s", got)
	}
	s := c.onTerminal(24, 80, "run", "two", "--image=busybox:1", "-it", "--rm", "--restart=Never", "--", "sh")
	s.types("echo in $HOSTNAME\n")
	s.says("in two\r\n")
	s.types("exit\n")
	if code := s.exits(); code != 0 || !strings.Contains(s.text(), `pod "two" deleted`) {
		c.t.Errorf("run -it --rm exits with %d: %q", code, s.text())
	}
	c.gone("pod/two")
	out, err := c.kubectlIn(strings.NewReader("through\n"), "run", "three", "--image=busybox:1", "-i", "--rm", "--restart=Never", "--quiet", "--", "cat")
	if err != nil || !strings.HasPrefix(out, "through\n") {
		c.t.Errorf("run -i says %q, %v", out, err)
	}
}

func kubectlAuth(c *cluster) {
	if out := c.kubectl("auth", "can-i", "create", "pods"); out != "yes\n" {
		c.t.Errorf("the administrator: %q", out)
	}
	c.kubectl("create", "serviceaccount", "robot")
	as := "--as=system:serviceaccount:auth:robot"
	c.refused([]string{"auth", "can-i", "list", "pods", as}, "no\n")
	c.refused([]string{"get", "pods", as}, `pods is forbidden: User "system:serviceaccount:auth:robot" cannot list resource "pods" in API group "" in the namespace "auth"`)
	c.kubectl("create", "rolebinding", "view", "--clusterrole=view", "--serviceaccount=auth:robot")
	c.eventually("the binding holds", func() (bool, string) {
		out, err := c.kubectlErr("auth", "can-i", "list", "pods", as)
		return err == nil && out == "yes\n", out
	})
	c.refused([]string{"auth", "can-i", "get", "secrets", as}, "no\n")
	hasRow(c.t, c.kubectl("auth", "can-i", "--list", as), "pods [] [] [get list watch]")
	has(c.t, c.kubectl("auth", "whoami"), "kubernetes-admin")
	c.refused([]string{"get", "pods", "--kubeconfig=" + c.withoutCredentials(), "--token=wrong"}, "You must be logged in to the server (Unauthorized)")
}

func kubectlDiscovery(c *cluster) {
	hasRow(c.t, c.kubectl("api-resources"), "NAME SHORTNAMES APIVERSION NAMESPACED KIND\n", "pods po v1 true Pod\n", "deployments deploy apps/v1 true Deployment\n",
		"endpointslices discovery.k8s.io/v1 true EndpointSlice\n", "clusterroles rbac.authorization.k8s.io/v1 false ClusterRole\n", "leases coordination.k8s.io/v1 true Lease\n")
	if out := c.kubectl("api-resources", "--verbs=list", "--namespaced=false", "-o", "name"); !strings.Contains(out, "nodes\n") || strings.Contains(out, "pods\n") {
		c.t.Errorf("those without namespace: %q", out)
	}
	has(c.t, c.kubectl("api-versions"), "apps/v1\n", "events.k8s.io/v1\n", "\nv1\n")
	has(c.t, c.kubectl("cluster-info"), "Kubernetes control plane", "is running at", "https://")
	has(c.t, c.kubectl("version"), "Server Version: v1.37.2", fmt.Sprintf("Client Version: v1.%d.", c.minor))
}

func kubectlEdit(c *cluster) {
	c.kubectl("create", "configmap", "conf", "--from-literal=k=before")
	editor := filepath.Join(c.t.TempDir(), "editor")
	script := "#!/bin/sh\nsed -i 's/before/after/' \"$1\"\n"
	if err := os.WriteFile(editor, []byte(script), 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.t.Setenv("KUBE_EDITOR", editor)
	if out := c.kubectl("edit", "configmap", "conf"); out != "configmap/conf edited\n" {
		c.t.Errorf("edit says %q", out)
	}
	if got := c.jsonpath("configmap/conf", ".data.k"); got != "after" {
		c.t.Errorf("after the edit it is %q", got)
	}
	// Replaced: what was read before a change is refused, with the reason.
	stale := c.kubectl("get", "configmap", "conf", "-o", "json")
	c.kubectl("label", "configmap", "conf", "x=y")
	out, err := c.kubectlIn(strings.NewReader(stale), "replace", "-f", "-")
	if err == nil {
		c.t.Errorf("a stale object replaces a newer one: %s", out)
	}
	has(c.t, out, `Operation cannot be fulfilled on configmaps "conf": the object has been modified; please apply your changes to the latest version and try again`)
	fresh := strings.Replace(c.kubectl("get", "configmap", "conf", "-o", "json"), `"after"`, `"replaced"`, 1)
	if out, err := c.kubectlIn(strings.NewReader(fresh), "replace", "-f", "-"); err != nil || out != "configmap/conf replaced\n" {
		c.t.Errorf("replace says %q, %v", out, err)
	}
	if got := c.jsonpath("configmap/conf", ".data.k"); got != "replaced" {
		c.t.Errorf("after replace it is %q", got)
	}
	uid := c.jsonpath("configmap/conf", ".metadata.uid")
	if out, err := c.kubectlIn(strings.NewReader("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\n"), "replace", "--force", "-f", "-"); err != nil {
		c.t.Errorf("replace --force: %s, %v", out, err)
	}
	if now := c.jsonpath("configmap/conf", ".metadata.uid"); now == uid {
		c.t.Error("replace --force kept the object")
	}
	c.apply(web(1, "one"))
	c.kubectl("set", "env", "deployment/web", "A=b")
	c.kubectl("set", "resources", "deployment/web", "--limits=memory=64Mi", "--requests=cpu=10m")
	c.rollout("web")
	if got := c.jsonpath("deployment/web", ".spec.template.spec.containers[0].resources"); got != `{"limits":{"memory":"64Mi"},"requests":{"cpu":"10m"}}` {
		c.t.Errorf("resources are %s", got)
	}
	c.is("pods", ".items[*].status.qosClass", "Burstable")
}

func kubectlDiff(c *cluster) {
	conf := func(v string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {k: " + v + "}\n"
	}
	c.apply(conf("before"))
	if out, err := c.kubectlIn(strings.NewReader(conf("before")), "diff", "-f", "-"); err != nil || out != "" {
		c.t.Errorf("without a difference diff says %q, %v", out, err)
	}
	out, err := c.kubectlIn(strings.NewReader(conf("after")), "diff", "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "exit status 1") {
		c.t.Errorf("diff ends with %v", err)
	}
	has(c.t, out, "-  k: before\n", "+  k: after\n")
	if got := c.jsonpath("configmap/conf", ".data.k"); got != "before" {
		c.t.Errorf("diff changed it to %q", got)
	}
}

func kubectlEvents(c *cluster) {
	c.apply(sleeper("box", ""))
	c.is("pod/box", readyPath, "True")
	c.eventually("events tell of the pod", func() (bool, string) {
		out := c.kubectl("events", "--for=pod/box")
		return strings.Contains(out, "Scheduled") && strings.Contains(out, "Started"), out
	})
	hasRow(c.t, c.kubectl("get", "events", "--field-selector=reason=Scheduled"), "LAST SEEN TYPE REASON OBJECT MESSAGE\n", " Normal Scheduled pod/box Successfully assigned events/box to ")
}

func kubectlForward(c *cluster) {
	c.apply(web(1, "one"))
	c.rollout("web")
	for _, target := range []string{"deployment/web", "service/web"} {
		port := ":8080"
		if target == "service/web" {
			port = ":80"
		}
		s := c.background("port-forward", target, port)
		s.says("Forwarding from 127.0.0.1:")
		m := regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) -> 8080`).FindStringSubmatch(s.text())
		if m == nil {
			c.t.Fatalf("%s: port-forward says %q", target, s.text())
		}
		for range 3 {
			if out, err := fetch("http://" + m[1]); err != nil || !strings.HasPrefix(out, "one web-") {
				c.t.Errorf("through port-forward %s: %q, %v", target, out, err)
			}
		}
	}
	// A port where nobody listens fails; the forwarding goes on.
	s := c.background("port-forward", "deployment/web", ":8080", ":8081")
	s.says("-> 8081")
	at := func(port string) string {
		return "http://" + regexp.MustCompile(`(127\.0\.0\.1:\d+) -> ` + port).FindStringSubmatch(s.text())[1]
	}
	for range 2 {
		if out, err := fetch(at("8081")); err == nil {
			c.t.Errorf("where nobody listens: %q", out)
		}
		if out, err := fetch(at("8080")); err != nil || !strings.HasPrefix(out, "one web-") {
			c.t.Errorf("after a connection that failed: %q, %v\n%s", out, err, s.text())
		}
	}
	pod := c.jsonpath("pods", ".items[0].metadata.name")
	if out := c.kubectl("get", "--raw", "/api/v1/namespaces/forward/pods/"+pod+":8080/proxy/"); !strings.HasPrefix(out, "one web-") {
		c.t.Errorf("the pod's proxy says %q", out)
	}
	if out := c.kubectl("get", "--raw", "/api/v1/namespaces/forward/services/web:http/proxy/index.html"); !strings.HasPrefix(out, "one web-") {
		c.t.Errorf("the service's proxy says %q", out)
	}
}

func kubectlNode(c *cluster) {
	node := c.jsonpath("nodes", ".items[0].metadata.name")
	c.kubectl("cordon", node)
	hasRow(c.t, c.kubectl("get", "nodes", "--no-headers"), " Ready,SchedulingDisabled ")
	c.apply(sleeper("box", ""))
	c.eventually("it is told why the pod waits", func() (bool, string) {
		out := c.jsonpath("pod/box", `.status.conditions[?(@.type=="PodScheduled")].message`)
		return strings.HasPrefix(out, "0/1 nodes are available: 1 node(s) were unschedulable. ") && strings.HasSuffix(out, "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."), out
	})
	c.kubectl("uncordon", node)
	c.is("pod/box", readyPath, "True")
	c.kubectl("taint", "nodes", node, "gpu=yes:NoSchedule")
	c.apply(sleeper("other", ""))
	c.eventually("the taint is told", func() (bool, string) {
		out := c.jsonpath("pod/other", `.status.conditions[?(@.type=="PodScheduled")].message`)
		return strings.Contains(out, "0/1 nodes are available: 1 node(s) had untolerated taint(s)") || strings.Contains(out, "had untolerated taint {gpu: yes}"), out
	})
	c.kubectl("taint", "nodes", node, "gpu-")
	c.is("pod/other", readyPath, "True")
}
