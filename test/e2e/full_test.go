package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// usage is what skiff itself takes: processor time in all, and resident memory.
func (c *cluster) usage() (cpu time.Duration, anonymous, file int) {
	c.t.Helper()
	pid := strconv.Itoa(c.pid())
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		c.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(after)
	for _, ticks := range f[11:13] { // utime and stime, in hundredths of a second
		n, err := strconv.Atoi(ticks)
		if err != nil {
			c.t.Fatal(err)
		}
		cpu += time.Duration(n) * 10 * time.Millisecond
	}
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		for name, to := range map[string]*int{"RssAnon:": &anonymous, "RssFile:": &file} {
			if v, ok := strings.CutPrefix(line, name); ok {
				if *to, err = strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB")); err != nil {
					c.t.Fatal(err)
				}
			}
		}
	}
	return cpu, anonymous >> 10, file >> 10
}

// TestFullNode: many pods, with probes, volumes and a service, run for a while
// without anything being written of any of them; deleted at once they are gone soon,
// and nothing is left. SKIFF_FULL_SECONDS (10; make full: 600) is how long they run,
// SKIFF_FULL_PODS (200) how many.
func TestFullNode(t *testing.T) {
	if !apart(t) {
		return
	}
	n, during := envInt("SKIFF_FULL_PODS", 200), time.Duration(envInt("SKIFF_FULL_SECONDS", 10))*time.Second
	w := wear(t, "full", "--max-pods", strconv.Itoa(n+50))
	began := time.Now()
	for i := range n {
		w.create(fmt.Sprintf("full-%d", i), func(p *corev1.Pod) {
			main := &p.Spec.Containers[0]
			p.Labels = map[string]string{"app": "full"}
			p.Spec.TerminationGracePeriodSeconds = nil
			main.Command = []string{"sh", "-c", "echo started >> /starts/$NAME; echo $NAME > /memory/index.html; httpd -h /memory -p 8080; trap exit TERM; sleep 100000 & wait"}
			main.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
			probe := corev1.Probe{PeriodSeconds: 10, TimeoutSeconds: 10}
			switch i % 4 {
			case 0: // one that TERM does not end
				main.Command[2] = "echo started >> /starts/$NAME; exec sleep 100000"
				p.Spec.TerminationGracePeriodSeconds = new(int64)
				*p.Spec.TerminationGracePeriodSeconds = 1
				return
			case 1:
				probe.HTTPGet = &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("http")}
			case 2:
				probe.TCPSocket = &corev1.TCPSocketAction{Port: intstr.FromString("http")}
			case 3:
				probe.Exec = &corev1.ExecAction{Command: []string{"test", "-s", "/memory/index.html"}}
			}
			main.ReadinessProbe = &probe
			main.LivenessProbe = probe.DeepCopy()
		})
	}
	w.apply(`
apiVersion: v1
kind: Service
metadata: {name: full, namespace: churn}
spec: {selector: {app: full}, ports: [{port: 80, targetPort: 8080}]}
`)
	versions := func() (ready int, of map[string]string) {
		pods, _, err := w.pods.List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		of = map[string]string{}
		for _, p := range pods {
			of[p.Name] = p.ResourceVersion
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		return ready, of
	}
	w.eventually("all pods are ready", func() (bool, string) {
		ready, of := versions()
		return ready == n, fmt.Sprintf("%d of %d", ready, len(of))
	})
	t.Logf("%d pods ready after %v", n, time.Since(began).Round(time.Millisecond))
	_, before := versions()
	cpu, anonymous, file := w.usage()
	t.Logf("skiff: %d MiB anonymous, %d MiB of files", anonymous, file)
	for began = time.Now(); time.Since(began) < during; time.Sleep(time.Second) {
		_, now := versions()
		for name, v := range now {
			if before[name] != v {
				t.Fatalf("pod %s changed after %v:\n%s", name, time.Since(began), w.kubectl("get", "pod", name, "-n", "churn", "-o", "yaml"))
			}
		}
		if len(now) != n {
			t.Fatalf("%d pods after %v", len(now), time.Since(began))
		}
	}
	took, anonymousThen, fileThen := w.usage()
	t.Logf("after %v: skiff: %d MiB anonymous, %d MiB of files, %.1f %% of a processor", during, anonymousThen, fileThen, 100*(took-cpu).Seconds()/time.Since(began).Seconds())
	for i := range n {
		w.runs(fmt.Sprintf("full-%d", i))
	}
	began = time.Now()
	if err := w.pods.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("all pods are gone", func() (bool, string) {
		_, of := versions()
		return len(of) == 0, fmt.Sprint(len(of))
	})
	t.Logf("%d pods gone after %v", n, time.Since(began).Round(time.Millisecond))
	w.kubectl("delete", "service", "full", "-n", "churn")
	w.unharmed()
	t.Logf("nothing left after %v", time.Since(began).Round(time.Millisecond))
}
