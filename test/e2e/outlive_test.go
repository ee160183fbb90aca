package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

type loadResult struct {
	URL      string   `json:"url"`
	Sent     int      `json:"sent"`
	Answered int      `json:"answered"`
	Lookups  int      `json:"failedLookups"`
	Failed   int      `json:"failed"`
	Errors   []string `json:"errors"`
	MaxMS    float64  `json:"maxMilliseconds"`
}

func envInt(name string, def int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return def
}

// TestOutlives sends requests through a cluster IP, a node port and, from a pod,
// a name, while the front tier rolls and skiff is killed and started again: no
// request and no lookup fails, no pod is restarted, and what a writer was told is
// what the store holds. SKIFF_LOAD_RATE (requests a second on each way) and
// SKIFF_LOAD_KILLS set its size.
func TestOutlives(t *testing.T) {
	rate, kills := envInt("SKIFF_LOAD_RATE", 100), envInt("SKIFF_LOAD_KILLS", 10)
	c := start(t, "outlive")
	c.importBusybox()
	c.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: front}
spec:
  replicas: 3
  selector: {matchLabels: {app: front}}
  template:
    metadata: {labels: {app: front}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: main
        image: busybox:1
        command: [load, --serve, ":8080"]
        env: [{name: VERSION, value: "0"}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec:
  type: NodePort
  selector: {app: front}
  ports: [{port: 80, targetPort: 8080}]
`)
	c.rollout("front")
	c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 30
  restartPolicy: Never
  containers: [{name: main, image: "busybox:1", command: [load, --rate, "%d", --url, "http://front/"]}]
`, rate))
	c.eventually("the pod sends requests", func() (bool, string) {
		out, err := c.kubectlErr("logs", "client")
		return strings.HasPrefix(out, "begun"), fmt.Sprint(out, err)
	})
	ip := c.kubectl("get", "service", "front", "-o", "jsonpath={.spec.clusterIP}")
	port := c.kubectl("get", "service", "front", "-o", "jsonpath={.spec.ports[0].nodePort}")
	node := c.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.addresses[?(@.type==\"InternalIP\")].address}")
	byIP := c.hostLoad(rate, "http://"+ip+"/")
	byPort := c.hostLoad(rate, "http://"+node+":"+port+"/")
	w := c.writer()

	for i := range kills {
		c.kubectl("set", "env", "deployment/front", fmt.Sprintf("VERSION=%d", i+1))
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
		c.kill9()
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		c.up()
	}
	c.rollout("front")

	w.stop()
	check := func(way string, r loadResult) {
		t.Helper()
		t.Logf("%s: %d sent, %d answered, %d failed, %d failed lookups, slowest %.0f ms", way, r.Sent, r.Answered, r.Failed, r.Lookups, r.MaxMS)
		if r.Failed > 0 || r.Lookups > 0 || r.Answered != r.Sent || r.Sent == 0 {
			t.Errorf("%s: %s", way, strings.Join(r.Errors, "\n"))
		}
	}
	check("cluster IP", byIP())
	check("node port", byPort())
	c.kubectl("exec", "client", "--", "kill", "-TERM", "1")
	c.waitPod("client", ".status.phase", "Succeeded")
	_, out, _ := strings.Cut(c.kubectl("logs", "client"), "\n")
	var byName loadResult
	if err := json.Unmarshal([]byte(out), &byName); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	check("name, from a pod", byName)
	// A lookup that skiff had read when it was killed is answered by the next one: the
	// resolver would ask again only after 5 s.
	if byName.MaxMS >= 5000 {
		t.Errorf("the slowest request by name took %.0f ms: its lookup was lost and asked again", byName.MaxMS)
	}

	if out := c.kubectl("get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[0].restartCount} {end}`); strings.Contains(strings.ReplaceAll(out, "=0 ", ""), "=") {
		t.Errorf("pods were restarted: %s", out)
	}
	w.compare()
}

// hostLoad starts load on this host; the function returned ends it.
func (c *cluster) hostLoad(rate int, url string) func() loadResult {
	c.t.Helper()
	cmd := exec.Command(loadProgram(c.t), "--rate", strconv.Itoa(rate), "--url", url)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	var once sync.Once
	end := func() {
		once.Do(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		})
	}
	c.t.Cleanup(end)
	return func() loadResult {
		c.t.Helper()
		end()
		_, line, _ := strings.Cut(out.String(), "\n")
		var r loadResult
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			c.t.Fatalf("load on %s: %v: %q", url, err, out.String())
		}
		return r
	}
}

// writer creates and updates ConfigMaps all the time and remembers what it was
// told.
type writer struct {
	c      *cluster
	cms    client.Resource[*corev1.ConfigMap]
	cancel context.CancelFunc
	done   chan struct{}
	// acked is the last acknowledged value of each name, tried the last sent.
	acked, tried map[string]string
	writes       int
}

func (c *cluster) writer() *writer {
	c.t.Helper()
	cfg, err := client.LoadKubeconfig(c.data + "/admin.kubeconfig")
	if err != nil {
		c.t.Fatal(err)
	}
	h, err := client.NewHTTPS(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{
		c: c, cms: client.For[*corev1.ConfigMap](client.New(h, "writer")).In("default"), cancel: cancel,
		done: make(chan struct{}), acked: map[string]string{}, tried: map[string]string{},
	}
	c.t.Cleanup(func() { cancel(); <-w.done; h.Close() })
	go w.run(ctx)
	return w
}

func (w *writer) run(ctx context.Context) {
	defer close(w.done)
	for n := 0; ctx.Err() == nil; n++ {
		name, value := fmt.Sprintf("w-%d", n%50), strconv.Itoa(n)
		w.tried[name] = value
		one, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"v": value}}
		var err error
		if w.acked[name] == "" {
			if _, err = w.cms.Create(one, cm); apierrors.IsAlreadyExists(err) {
				// An earlier try whose answer was lost.
				_, err = w.cms.Update(one, cm)
			}
		} else {
			_, err = w.cms.Update(one, cm)
		}
		cancel()
		if err == nil {
			w.acked[name] = value
			w.writes++
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (w *writer) stop() {
	w.cancel()
	<-w.done
}

// compare holds the store's content against what was acknowledged. A write whose
// answer was lost may have happened.
func (w *writer) compare() {
	t := w.c.t
	t.Helper()
	t.Logf("writer: %d acknowledged writes", w.writes)
	if w.writes < 100 {
		t.Errorf("only %d writes were acknowledged", w.writes)
	}
	for name, want := range w.acked {
		cm, err := w.cms.Get(context.Background(), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := cm.Data["v"]; got != want && got != w.tried[name] {
			t.Errorf("%s is %q, acknowledged was %q", name, got, want)
		}
	}
}
