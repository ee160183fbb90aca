package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// explained is what these tests read of an explanation.
type explained struct {
	Kind      string
	State     string
	Summary   string
	Causes    []struct{ Reason, Message string }
	Remedies  []explainedRemedy
	Because   []explained
	Regarding struct{ Kind, Name string }
}

type explainedRemedy struct {
	Proven  bool
	Changes []struct {
		Message, Command string
		Patch            json.RawMessage
		Create           json.RawMessage
		Target           struct{ Kind, Namespace, Name string }
	}
}

func (c *cluster) explain(args ...string) string {
	c.t.Helper()
	out, err := c.skiff(append([]string{"explain"}, args...)...)
	if err != nil {
		c.t.Fatalf("skiff explain %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// tells waits until an explanation says each text.
func (c *cluster) tells(object string, texts ...string) {
	c.t.Helper()
	c.eventually("skiff explain "+object, func() (bool, string) {
		out := c.explain(object)
		for _, text := range texts {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), text) {
				return false, "no " + text + " in\n" + out
			}
		}
		return true, out
	})
}

func (c *cluster) explained(object string) (e explained) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.explain(object, "-o", "json")), &e); err != nil {
		c.t.Fatal(err)
	}
	return e
}

// remedy is the first one, of the object or of what it waits for, that is about text.
func (e explained) remedy(t *testing.T, text string) explainedRemedy {
	t.Helper()
	for _, r := range e.Remedies {
		for _, ch := range r.Changes {
			if strings.Contains(ch.Message, text) {
				return r
			}
		}
	}
	for _, b := range e.Because {
		return b.remedy(t, text)
	}
	t.Fatalf("no remedy about %q in %+v", text, e)
	return explainedRemedy{}
}

// do applies a remedy as it is given: its patches, and its commands.
func (c *cluster) do(r explainedRemedy) {
	c.t.Helper()
	for _, ch := range r.Changes {
		switch {
		case len(ch.Create) > 0:
			c.apply(string(ch.Create))
		case len(ch.Patch) > 0:
			c.kubectl("patch", ch.Target.Kind, ch.Target.Name, "--type", "strategic", "-p", string(ch.Patch))
		case ch.Command != "":
			args := regexp.MustCompile(`'[^']*'|\S+`).FindAllString(ch.Command, -1)
			for i := range args {
				args[i] = strings.Trim(args[i], "'")
			}
			c.kubectl(args[1:]...)
		default:
			c.t.Fatalf("%q cannot be done as it is given", ch.Message)
		}
	}
}

// TestExplain: what is proposed, done as it is given, makes the pods run.
func TestExplain(t *testing.T) {
	c := start(t, "explain")
	c.carried = true
	c.importBusybox()
	deployment := func(name, pod, container string) {
		t.Helper()
		c.apply(fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec: {terminationGracePeriodSeconds: 0, %[2]s containers: [{name: main, image: "busybox:1", command: [sleep, "1000"], %[3]s}]}
`, name, pod, container))
	}
	available := func(name string) {
		t.Helper()
		c.is("deployment/"+name, ".status.availableReplicas", "1")
	}

	deployment("large", "", `resources: {requests: {cpu: "500"}}`)
	c.tells("deployment/large", "too small: the pod requests 500 CPU", "its spec is made from deployment/large")
	c.do(c.explained("deployment/large").remedy(t, "less CPU"))
	available("large")

	deployment("ssd", "nodeSelector: {disk: ssd},", "")
	c.tells("deployment/ssd", "not disk=ssd, as the nodeSelector asks; no node has the label disk")
	c.do(c.explained("deployment/ssd").remedy(t, "the label disk=ssd on node"))
	available("ssd")

	deployment("store", `volumes: [{name: data, persistentVolumeClaim: {claimName: data}}],`, "volumeMounts: [{name: data, mountPath: /data}]")
	c.tells("deployment/store", "claim data does not exist")
	c.do(c.explained("deployment/store").remedy(t, "a claim of the name data"))
	available("store")

	deployment("settings", "", "env: [{name: URL, valueFrom: {configMapKeyRef: {name: settings, key: url}}}]")
	c.tells("deployment/settings", "ConfigMap settings does not exist in namespace default")
	c.kubectl("create", "configmap", "settings", "--from-literal=uri=x")
	c.tells("deployment/settings", "ConfigMap settings has no key url; it has uri")
	c.kubectl("patch", "configmap", "settings", "-p", `{"data":{"url":"x"}}`)
	available("settings")

	deployment("probed", "", `readinessProbe: {exec: {command: ["false"]}, periodSeconds: 1}`)
	c.tells("deployment/probed", "its readiness probe fails", "command false")

	c.apply(`{apiVersion: v1, kind: Pod, metadata: {name: crash}, spec: {containers: [{name: main, image: "busybox:1", command: [sh, -c, "echo no database at db; exit 3"]}]}}`)
	c.tells("pod/crash", "ended with exit code 3", "it wrote last: no database at db")

	c.apply(`{apiVersion: batch/v1, kind: Job, metadata: {name: load}, spec: {backoffLimit: 0, template: {spec: {restartPolicy: Never, containers: [{name: main, image: "busybox:1", command: [sh, -c, "echo no rows; exit 4"]}]}}}}`)
	c.tells("job/load", "it has failed", "backoffLimit is 0", "ended with exit code 4", "it wrote last: no rows")

	c.kubectl("create", "quota", "team", "--hard=count/pods=0,pods=0")
	deployment("late", "", "")
	c.tells("deployment/late", "the API refuses to create more", "quota team is used up")
	c.kubectl("delete", "quota", "team")
	c.kubectl("delete", "deployment", "late")

	c.kubectl("create", "namespace", "shop")
	c.kubectl("create", "configmap", "held", "-n", "shop")
	c.kubectl("patch", "configmap", "held", "-n", "shop", "-p", `{"metadata":{"finalizers":["example.com/held"]}}`)
	c.kubectl("delete", "namespace", "shop", "--wait=false")
	c.tells("namespace/shop", "configmaps: held, held by finalizer example.com/held")
	c.do(c.explained("namespace/shop").remedy(t, "example.com/held"))
	c.eventually("the namespace is gone", func() (bool, string) {
		out, err := c.kubectlErr("get", "namespace", "shop")
		return err != nil && strings.Contains(out, "NotFound"), out
	})

	// kubectl as it is.
	if out := c.kubectl("get", "deployments.explain.skiff.io"); !strings.Contains(out, "probed") || strings.Contains(out, "large") {
		t.Errorf("what is not well:\n%s", out)
	}
	if out := c.kubectl("get", "deployments.explain.skiff.io", "probed", "-o", "jsonpath={.kind} {.state}"); out != "DeploymentExplanation Failing" {
		t.Errorf("deployment probed is %s", out)
	}
	if out := c.kubectl("get", "deployments", "large", "-o", "jsonpath={.kind}"); out != "Deployment" {
		t.Errorf("deployments are %s", out)
	}
	if out := c.explain(); !strings.Contains(out, "pod/crash") || strings.Contains(out, "deployment/large") {
		t.Errorf("the overview says\n%s", out)
	}
	c.explainedAs(t)
}

// explainedAs: an explanation tells what its reader may read.
func (c *cluster) explainedAs(t *testing.T) {
	t.Helper()
	c.kubectl("create", "namespace", "mine")
	c.apply(`{apiVersion: v1, kind: Pod, metadata: {name: big, namespace: mine}, spec: {containers: [{name: a, image: x, resources: {requests: {cpu: "500"}}}]}}`)
	c.kubectl("create", "rolebinding", "viewer", "-n", "mine", "--clusterrole=view", "--user=eve")
	c.eventually("eve sees her pod explained", func() (bool, string) {
		out, err := c.kubectlErr("get", "pods.explain.skiff.io", "big", "-n", "mine", "-o", "yaml", "--as=eve")
		return err == nil && strings.Contains(out, "Insufficient cpu") && strings.Contains(out, "nodes could not be read (forbidden)") && !strings.Contains(out, "less CPU"), out
	})
	if out, err := c.kubectlErr("get", "pods.explain.skiff.io", "crash", "--as=eve"); err == nil || !strings.Contains(out, "forbidden") {
		t.Errorf("eve sees the pod of others: %v\n%s", err, out)
	}
	if out, err := c.kubectlErr("get", "pods.explain.skiff.io", "-A", "--as=eve"); err == nil && strings.Contains(out, "crash") {
		t.Errorf("eve sees the pods of others: %s", out)
	}
}

// TestExplainDocs: docs/explain.md shows what is really said.
func TestExplainDocs(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "explain.md"))
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, "explaindocs", "--node-name", "b")
	c.carried = true
	c.importBusybox()
	blocks := regexp.MustCompile("(?s)```(yaml|console)\n(.*?)```").FindAllStringSubmatch(string(b), -1)
	if len(blocks) < 4 {
		t.Fatalf("docs/explain.md has %d examples", len(blocks))
	}
	for _, m := range blocks {
		if m[1] == "yaml" {
			c.apply(m[2])
			continue
		}
		command, want, _ := strings.Cut(m[2], "\n")
		args := strings.Fields(strings.TrimPrefix(command, "$ skiff "))
		if args[0] == "kubectl" {
			c.kubectl(args[1:]...)
			continue
		}
		c.eventually(command, func() (bool, string) {
			out, err := exec.Command(c.bin, append([]string{"--name", c.name, "--data-dir", c.data}, args...)...).CombinedOutput()
			return err == nil && masked(string(out)) == masked(want), string(out)
		})
	}
}

// masked leaves out what is otherwise on each machine: the size of the node and the
// names of pods.
func masked(s string) string {
	s = regexp.MustCompile(`(web|shop)-[0-9a-f]{8,10}-[a-z0-9]{5}`).ReplaceAllString(s, "POD")
	s = regexp.MustCompile(`[0-9]+ CPU|[0-9.]+[KMGT]i|b has [0-9]+|[0-9]+ instead|[0-9]+ less`).ReplaceAllString(s, "N")
	return strings.Join(strings.Fields(s), " ")
}
