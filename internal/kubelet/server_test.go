package kubelet

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/client/clienttest"
	"skiff/internal/cri/fake"
	"skiff/internal/host"
)

// live is a kubelet in real time: logs are watched by the kernel.
type live struct {
	t   *testing.T
	api *clienttest.API
	rt  *fake.Runtime
	k   *Kubelet
	url string
}

func newLive(t *testing.T, change func(*Deps)) *live {
	t.Helper()
	l := &live{t: t, api: clienttest.New(), rt: fake.New("nginx")}
	dir := t.TempDir()
	d := Deps{
		Client: l.api.Client(), Runtime: l.rt, Images: l.rt, Log: slog.New(slog.DiscardHandler), NoNode: true,
		Host:     host.Instance{Name: "live", DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run")},
		NodeName: node, NodeIPs: []net.IP{net.ParseIP("127.0.0.1")},
	}
	if change != nil {
		change(&d)
	}
	k, err := New(d)
	if err != nil {
		t.Fatal(err)
	}
	l.k = k
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	srv := httptest.NewServer(k.Handler())
	l.url = srv.URL
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		srv.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return l
}

// until waits for a condition.
func (l *live) until(what string, f func() bool) {
	l.t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(end) {
			l.t.Fatalf("waited in vain for: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (l *live) phase(name string) corev1.PodPhase {
	p, ok := l.k.pods.Get("default", name)
	if !ok {
		return ""
	}
	return p.Status.Phase
}

func (l *live) runPod(name string) fake.Container {
	l.t.Helper()
	l.api.Put(newPod(name, "a"))
	l.until("pod runs", func() bool { return l.phase(name) == corev1.PodRunning })
	return l.rt.Containers("a")[0]
}

func (l *live) get(path string) (int, string) {
	l.t.Helper()
	resp, err := http.Get(l.url + path)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

const sample = "2026-01-01T00:00:01.000000001Z stdout F one\n" +
	"2026-01-01T00:00:02.000000001Z stderr P tw\n2026-01-01T00:00:02.000000002Z stderr F o\n" +
	"2026-01-01T00:00:03.000000001Z stdout F three\n"

func TestLogs(t *testing.T) {
	l := newLive(t, nil)
	c := l.runPod("web")
	writeFile(t, c.Status.LogPath, sample)
	for _, x := range []struct {
		query, want string
		code        int
	}{
		{"", "one\ntwo\nthree\n", 200},
		{"?tailLines=1", "three\n", 200},
		{"?tailLines=0", "", 200},
		{"?tailLines=100", "one\ntwo\nthree\n", 200},
		{"?limitBytes=5", "one\nt", 200},
		{"?sinceTime=2026-01-01T00:00:03Z", "three\n", 200},
		{"?timestamps=true&tailLines=1", "2026-01-01T00:00:03.000000001Z three\n", 200},
		{"?stream=Stderr", "", 400},
		{"?tailLines=-1", "", 400},
		{"?tailLines=x", "", 400},
		{"?sinceTime=yesterday", "", 400},
		{"?previous=true", "previous terminated container \"a\" in pod \"web\" not found\n", 400},
	} {
		code, body := l.get("/containerLogs/default/web/a" + x.query)
		if x.query == "?stream=Stderr" {
			// Named as the API names it.
			continue
		}
		if code != x.code || code == 200 && body != x.want || x.code == 400 && x.want != "" && body != x.want {
			t.Errorf("%s: %d %q, want %d %q", x.query, code, body, x.code, x.want)
		}
	}
	if code, body := l.get("/containerLogs/default/web/a?stream=" + corev1.LogStreamStderr); code != 200 || body != "two\n" {
		t.Errorf("stderr: %d %q", code, body)
	}
	if code, _ := l.get("/containerLogs/default/none/a"); code != 404 {
		t.Errorf("no such pod: %d", code)
	}
	if code, _ := l.get("/containerLogs/default/web/none"); code != 404 {
		t.Errorf("no such container: %d", code)
	}
	// The one before.
	l.rt.Exit(c.Status.Id, 1, "")
	l.until("second instance", func() bool {
		p, _ := l.k.pods.Get("default", "web")
		return p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	if code, body := l.get("/containerLogs/default/web/a?previous=true"); code != 200 || body != "one\ntwo\nthree\n" {
		t.Errorf("previous: %d %q", code, body)
	}
}

func TestLogsOfWaitingContainer(t *testing.T) {
	l := newLive(t, nil)
	p := newPod("web", "a")
	p.Spec.Containers[0].Image = "nothere"
	l.api.Put(p)
	l.until("pull fails", func() bool {
		p, ok := l.k.pods.Get("default", "web")
		return ok && len(p.Status.ContainerStatuses) > 0 && strings.Contains(p.Status.ContainerStatuses[0].State.Waiting.Reason, "Pull")
	})
	_, err := l.k.Logs(context.Background(), "default", "web", "a", nil)
	if err == nil || !strings.HasPrefix(err.Error(), `container "a" in pod "web" is waiting to start: `) {
		t.Errorf("error %v", err)
	}
}

func appendFile(t *testing.T, path, s string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func TestFollow(t *testing.T) {
	l := newLive(t, nil)
	c := l.runPod("web")
	path := c.Status.LogPath
	writeFile(t, path, sample)
	log, err := l.k.Logs(context.Background(), "default", "web", "a", &corev1.PodLogOptions{Follow: true, TailLines: ptr(int64(1))})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	r := bufio.NewReader(log)
	want := func(s string) {
		t.Helper()
		got, err := r.ReadString('\n')
		if err != nil || got != s+"\n" {
			t.Fatalf("got %q, %v, want %q", got, err, s)
		}
	}
	line := func(s string) string { return "2026-01-01T00:00:04.0Z stdout F " + s + "\n" }
	want("three")
	appendFile(t, path, line("four"))
	want("four")
	// Half a line is not given out before the other half is there.
	half := line("five")
	appendFile(t, path, half[:20])
	appendFile(t, path, half[20:])
	want("five")
	// Rotation: what is still written to the old file is not lost.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	appendFile(t, path+".old", line("six"))
	appendFile(t, path, line("seven"))
	want("six")
	want("seven")
	appendFile(t, path, line("last"))
	l.rt.Exit(c.Status.Id, 0, "")
	want("last")
	if _, err := r.ReadString('\n'); err != io.EOF {
		t.Errorf("after the container's end: %v", err)
	}
}

func TestFollowerGoesAway(t *testing.T) {
	l := newLive(t, nil)
	l.runPod("web")
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, "GET", l.url+"/containerLogs/default/web/a?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	l.until("follower is forgotten", func() bool {
		l.k.exitMu.Lock()
		defer l.k.exitMu.Unlock()
		return len(l.k.exits) == 0
	})
}

func TestRotation(t *testing.T) {
	var later atomic.Int64
	l := newLive(t, func(d *Deps) {
		d.LogMaxSize, d.LogMaxFiles = 100, 3
		d.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load()) * time.Second) }
	})
	c := l.runPod("web")
	for i := range 5 {
		later.Add(1) // names of rotated logs go by the second
		appendFile(t, c.Status.LogPath, strings.Repeat(fmt.Sprintf("2026-01-01T00:00:01.0Z stdout F %d\n", i), 10))
		l.k.rotateLogs(context.Background())
		st, err := os.Stat(c.Status.LogPath)
		if err != nil || st.Size() != 0 {
			t.Fatalf("rotation %d: %v", i, err)
		}
	}
	files, _ := filepath.Glob(c.Status.LogPath + "*")
	gz := 0
	for _, f := range files {
		if strings.HasSuffix(f, ".gz") {
			gz++
		}
	}
	if len(files) != 3 || gz != 1 {
		t.Errorf("files: %q", files)
	}
	// Where the runtime cannot reopen the log nothing is lost.
	appendFile(t, c.Status.LogPath, sample)
	l.rt.FailAlways("ReopenContainerLog", fmt.Errorf("no"))
	l.k.rotateLogs(context.Background())
	if st, err := os.Stat(c.Status.LogPath); err != nil || st.Size() != int64(len(sample)) {
		t.Errorf("after a failed rotation: %v", err)
	}
}

func TestServer(t *testing.T) {
	l := newLive(t, nil)
	c := l.runPod("web")
	if code, body := l.get("/healthz"); code != 200 || body != "ok" {
		t.Errorf("healthz: %d %q", code, body)
	}
	code, body := l.get("/pods")
	var pods corev1.PodList
	if err := json.Unmarshal([]byte(body), &pods); code != 200 || err != nil || pods.Kind != "PodList" || len(pods.Items) != 1 || pods.Items[0].Name != "web" {
		t.Errorf("pods: %d %v %s", code, err, body)
	}
	code, body = l.get("/stats/summary")
	var s summary
	if err := json.Unmarshal([]byte(body), &s); code != 200 || err != nil || len(s.Pods) != 1 || len(s.Pods[0].Containers) != 1 || *s.Pods[0].Memory.WorkingSetBytes != 1<<20 {
		t.Errorf("stats: %d %v %s", code, err, body)
	}
	if _, body := l.get("/metrics/resource"); !strings.Contains(body, `container_memory_working_set_bytes{container="a",namespace="default",pod="web"} 1.048576e+06`) {
		t.Errorf("metrics: %s", body)
	}
	if _, body := l.get("/metrics"); !strings.Contains(body, "kubelet_running_pods 1\n") {
		t.Errorf("metrics: %s", body)
	}
	// Exec goes on to the runtime's streaming server, upgraded.
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(buf, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nhello from %s\n", r.URL.Path)
		buf.Flush()
	}))
	defer up.Close()
	l.rt.StreamURL = up.URL
	for path, want := range map[string]string{
		"/exec/default/web/a?command=sh&input=1&output=1": "/exec/" + c.Status.Id,
		"/attach/default/web/a?stdout=true":               "/attach/" + c.Status.Id,
		"/portForward/default/web?port=80":                "/portforward/" + c.SandboxID,
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(l.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n", path)
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		b, _ := io.ReadAll(conn)
		conn.Close()
		if !strings.Contains(string(b), "101 Switching") || !strings.Contains(string(b), "hello from "+want) {
			t.Errorf("%s: %q", path, b)
		}
	}
	for path, want := range map[string]int{
		"/exec/default/web/a?output=1":         400,
		"/exec/default/web/a?command=sh":       400,
		"/exec/default/none/a?command=sh":      404,
		"/exec/default/web/wrong/a?command=sh": 404,
		"/portForward/default/web?port=0":      400,
		"/nothing":                             404,
	} {
		if code, body := l.get(path); code != want {
			t.Errorf("%s: %d %s, want %d", path, code, body, want)
		}
	}
}

func TestAuthorization(t *testing.T) {
	var asked []Attributes
	l := newLive(t, func(d *Deps) {
		d.Authorize = func(_ *http.Request, a Attributes) error {
			asked = append(asked, a)
			if a.Subresource == "healthz" {
				return nil
			}
			return fmt.Errorf("no")
		}
	})
	if code, _ := l.get("/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
	for path, sub := range map[string]string{"/pods": "pods", "/containerLogs/a/b/c": "proxy", "/stats/summary": "stats", "/metrics": "metrics"} {
		if code, _ := l.get(path); code != 403 {
			t.Errorf("%s: %d", path, code)
		}
		if a := asked[len(asked)-1]; a.Subresource != sub || a.Verb != "get" || a.Node != node {
			t.Errorf("%s: asked for %+v", path, a)
		}
	}
}
