package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"skiff/internal/admin"
)

// otherRelease is the release of the skiff that otherSkiff builds.
const otherRelease = "v0.0.1"

// otherDir is where it is built.
var otherDir string

var otherOnce = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "skiff-other-")
	if err != nil {
		return "", err
	}
	otherDir = dir
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for _, helper := range []string{"skiff-pod.zst", "skiff-start.zst"} {
		from := filepath.Join(root, "internal/runtime/programs/bin", helper)
		packed, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		// A frame that is skipped (RFC 8878, 3.1.2) changes the hash and nothing else.
		packed = binary.LittleEndian.AppendUint32(packed, 0x184D2A50)
		packed = binary.LittleEndian.AppendUint32(packed, 4)
		packed = append(packed, "once"...)
		to := filepath.Join(dir, helper)
		if err := os.WriteFile(to, packed, 0o600); err != nil {
			return "", err
		}
		replace[from] = to
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "skiff")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", filepath.Join(dir, "overlay.json"),
		"-ldflags", "-s -w -X skiff/internal/app.release="+otherRelease, "-o", path, "skiff/cmd/skiff")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the other skiff: %w\n%s", err, out)
	}
	return path, nil
})

// otherSkiff is skiff as another release: with another version, and with helper
// programs of another hash. SKIFF_OTHER names one that is built.
func otherSkiff(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("SKIFF_OTHER"); path != "" {
		return path
	}
	path, err := otherOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// running describes all containers of the default namespace, with what tells a
// container that went on from one that was started again.
func (c *cluster) running() string {
	c.t.Helper()
	return c.kubectl("get", "pods", "--sort-by=.metadata.name", "-o", `jsonpath={range .items[*]}{.metadata.name} {.metadata.uid}{range .status.containerStatuses[*]} {.containerID} {.restartCount} {.state.running.startedAt}{end}{"\n"}{end}`)
}

func (c *cluster) status() admin.Status {
	c.t.Helper()
	st, err := admin.Dial("/run/skiff/" + c.name + "/admin.sock").Status(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	return st
}

// TestUpgrade: another release takes over a cluster in use, in both directions. No
// pod is touched, no request fails, no acknowledged write is lost, and pods of
// either release obey the other. One that cannot run leaves things as they were.
func TestUpgrade(t *testing.T) {
	other := otherSkiff(t)
	c := reserve(t, "upgrade")
	here := c.bin
	c.bin = other
	c.up()
	c.importBusybox()
	c.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: front}
spec:
  replicas: 2
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: busybox:1
        command: [load, --serve, ":8080"]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec:
  selector: {app: front}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: lines}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:1", command: [sh, -c, "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done"]}]
`)
	c.rollout("front")
	c.is("pod/lines", readyPath, "True")
	if st := c.status(); st.Release != otherRelease || st.Build == "" {
		t.Fatalf("the other skiff says it is %q, build %q", st.Release, st.Build)
	}
	load := c.hostLoad(100, "http://"+c.jsonpath("service/front", ".spec.clusterIP")+"/")
	w := c.writer()
	before := c.running()
	programs, err := filepath.Glob(c.data + "/bin/*/skiff-pod")
	if err != nil || len(programs) != 1 {
		t.Fatalf("helper programs: %v, %v", programs, err)
	}

	over := func(bin, release string) {
		t.Helper()
		was := c.status()
		c.bin = bin
		out, err := c.skiff("up")
		if err != nil || !strings.Contains(out, "it takes over; pods go on") {
			t.Fatalf("up of %s: %v\n%s", release, err, out)
		}
		st := c.status()
		if st.Build == was.Build || st.PID == was.PID || st.Release != release {
			t.Errorf("after %+v runs %+v", was, st)
		}
		if after := c.running(); after != before {
			t.Errorf("pods were touched:\n%s\nbefore\n%s", after, before)
		}
		// Pods of the other release obey.
		if out := c.kubectl("exec", "lines", "--", "echo", "hello"); out != "hello\n" {
			t.Errorf("exec says %q", out)
		}
		if out, err := c.skiff("up"); err != nil || !strings.Contains(out, "Nothing was changed.") {
			t.Errorf("up again: %v\n%s", err, out)
		}
	}
	over(here, c.releaseOf(here))
	// The next ones have programs of their own, beside those that run.
	if programs, err = filepath.Glob(c.data + "/bin/*/skiff-pod"); err != nil || len(programs) != 2 {
		t.Errorf("helper programs: %v, %v", programs, err)
	}
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: second}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:1", command: [sleep, "100000"]}]
`)
	c.is("pod/second", readyPath, "True")
	before = c.running()
	over(other, otherRelease)

	// A release that cannot take over: the port that it is to have is another's.
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c.bin = here
	_, port, _ := net.SplitHostPort(l.Addr().String())
	out, err := c.skiff("up", "--kubelet-port", port)
	if err == nil || !strings.Contains(out, "this skiff could not take over; the one from before runs again: kubeletPort: port "+port+" is in use by another program") {
		t.Errorf("a takeover that must fail: %v\n%s", err, out)
	}
	if st := c.status(); st.Release != otherRelease {
		t.Errorf("after it runs %+v", st)
	}
	if after := c.running(); after != before {
		t.Errorf("pods were touched:\n%s\nbefore\n%s", after, before)
	}
	// One that sees beforehand that it cannot run does not even end the other.
	was := c.status().PID
	if err := os.Rename(c.data+"/format", c.data+"/format-kept"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.data+"/format", []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := c.skiff("up"); err == nil || !strings.Contains(out, "was written by a newer skiff (its data have format 99") || c.status().PID != was {
		t.Errorf("up on data of a newer skiff: %v, process %d, was %d\n%s", err, c.status().PID, was, out)
	}
	if err := os.Rename(c.data+"/format-kept", c.data+"/format"); err != nil {
		t.Fatal(err)
	}

	w.stop()
	w.compare()
	if r := load(); r.Failed > 0 || r.Answered != r.Sent || r.Sent == 0 {
		t.Errorf("requests: %+v", r)
	}
	// The log of a pod that went on all the time has every line once.
	n := 0
	for l := range strings.Lines(c.kubectl("logs", "lines")) {
		if want := fmt.Sprintf("line %d\n", n); l != want {
			t.Fatalf("the log has %q, want %q", l, want)
		}
		n++
	}
	c.kubectl("delete", "pod", "lines", "second")
	c.kubectl("delete", "deployment", "front")
}

// releaseOf asks a program for its release.
func (c *cluster) releaseOf(bin string) string {
	c.t.Helper()
	out, err := exec.Command(bin, "--version").Output()
	if err != nil {
		c.t.Fatal(err)
	}
	out = bytes.TrimPrefix(out, []byte("skiff version "))
	release, _, _ := strings.Cut(string(out), " ")
	return release
}
