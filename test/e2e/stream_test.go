package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// logsOverWebSocket reads a pod's log as clients do that speak nothing else.
func (c *cluster) logsOverWebSocket(pod, want string) {
	c.t.Helper()
	cmd := c.kubectlCmd(c.t.Context(), "proxy", "--port=0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var at string
	if _, err := fmt.Fscanf(out, "Starting to serve on %s\n", &at); err != nil {
		c.t.Fatal(err)
	}
	d := websocket.Dialer{Subprotocols: []string{"binary.k8s.io"}}
	ws, resp, err := d.DialContext(c.t.Context(), "ws://"+at+"/api/v1/namespaces/default/pods/"+pod+"/log", nil)
	if err != nil {
		c.t.Fatalf("open %s's log: %v %v", pod, err, resp)
	}
	defer ws.Close()
	var got string
	for err == nil {
		var b []byte
		_, b, err = ws.ReadMessage()
		got += string(b)
	}
	if got != want || !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		c.t.Errorf("log over a WebSocket: %q, %v; want %q", got, err, want)
	}
}

// TestStreams drives exec, attach and port-forward as kubectl asks for them:
// WebSocket first. A fall-back to SPDY would show in its log.
func TestStreams(t *testing.T) {
	c := start(t, "streams")
	c.importBusybox()
	c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:1
    stdin: true
    command: [sh, -c, 'echo attached; echo ok > /tmp/index.html; httpd -p 8080 -h /tmp; while read l; do echo "read $l"; done; sleep 1000']
`)
	c.waitPod("box", ".status.phase", "Running")
	direct := func(out string) {
		t.Helper()
		if strings.Contains(out, "RemoteCommand fallback") || strings.Contains(out, "fallback to secondary dialer") {
			t.Errorf("kubectl fell back to SPDY:\n%s", out)
		}
	}
	out, err := c.kubectlErr("exec", "-v=4", "box", "--", "sh", "-c", "exit 7")
	if err == nil || !strings.Contains(err.Error(), "exit code 7") {
		t.Errorf("exit code: %v", err)
	}
	direct(out + fmt.Sprint(err))

	big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<18) // 4 MiB
	if out, err := c.kubectlIn(bytes.NewReader(big), "exec", "-i", "box", "--", "cat"); err != nil || out != string(big) {
		t.Errorf("cat of %d bytes: %d came back, %v", len(big), len(out), err)
	}

	c.logsOverWebSocket("box", "attached\n")

	// script gives kubectl a terminal.
	if script, err := exec.LookPath("script"); err == nil {
		cmd := exec.Command(script, "-qec", c.bin+" kubectl --name "+c.name+" --data-dir "+c.data+" exec -it box -- sh -c 'test -t 0 && echo a terminal; exit 5'", "/dev/null")
		out, err := cmd.CombinedOutput()
		if !strings.Contains(string(out), "a terminal") || cmd.ProcessState.ExitCode() != 5 {
			t.Errorf("exec -it: %q, %v", out, err)
		}
	} else {
		t.Error("script is missing: apt-get install bsdutils")
	}

	cmd := exec.Command(c.bin, "kubectl", "--name", c.name, "--data-dir", c.data, "attach", "-i", "box")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var got lockedBuffer
	cmd.Stdout, cmd.Stderr = &got, &got
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // skiff starts kubectl: both are to end
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "one")
	c.eventually("attach echoes", func() (bool, string) {
		return strings.Contains(got.String(), "read one"), got.String()
	})
	in.Close()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	fwd := exec.Command(c.bin, "kubectl", "--name", c.name, "--data-dir", c.data, "port-forward", "-v=4", "pod/box", fmt.Sprintf("%d:8080", port))
	var log lockedBuffer
	fwd.Stdout, fwd.Stderr = &log, &log
	fwd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := fwd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-fwd.Process.Pid, syscall.SIGKILL)
		_ = fwd.Wait()
	}()
	c.eventually("port-forward listens", func() (bool, string) {
		return strings.Contains(log.String(), "Forwarding from"), log.String()
	})
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range 5 {
		if i == 2 { // a connection that is cut harms no other
			if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
				fmt.Fprint(conn, "GET / HT")
				_ = conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
			time.Sleep(100 * time.Millisecond)
		}
		resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatalf("request %d: %v\n%s", i, err, log.String())
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("request %d: %s", i, resp.Status)
		}
	}
	direct(log.String())
}

// lockedBuffer is written by a process and read meanwhile.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
