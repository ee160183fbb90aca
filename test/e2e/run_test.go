package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skiff/internal/host"
	"skiff/internal/runtime"
)

// docker runs skiff as its users type it: streams apart, and the exit code.
func (c *cluster) docker(in io.Reader, args ...string) (out, errOut string, code int) {
	c.t.Helper()
	cmd := c.command(args...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &o, &e
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	late := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	_ = cmd.Wait() // its code says it
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// must is docker where only success will do.
func (c *cluster) must(args ...string) string {
	c.t.Helper()
	out, errOut, code := c.docker(nil, args...)
	if code != 0 {
		c.t.Fatalf("skiff %s: code %d\n%s%s", strings.Join(args, " "), code, out, errOut)
	}
	return strings.TrimSuffix(out, "\n")
}

// saying starts skiff and returns when it has said something.
func (c *cluster) saying(what string, args ...string) (*exec.Cmd, *lockedBuffer) {
	c.t.Helper()
	cmd, out := c.command(args...), &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.eventually("it says "+what, func() (bool, string) { return strings.Contains(out.String(), what), out.String() })
	return cmd, out
}

// noneLeft waits until nothing of containers is there: no pod, no process of them, no
// container's directory, nothing that they wrote.
func (c *cluster) noneLeft() {
	c.t.Helper()
	c.eventually("nothing is left", func() (bool, string) {
		pods, err := c.kubectlErr("get", "pods", "-A", "-o", "name")
		var left []string
		for _, place := range []string{"/run/skiff/" + c.name + "/runtime/pods/*", c.data + "/logs/*", c.data + "/snapshots/keys/*", c.data + "/runtime/kept/*", c.data + "/runtime/held/*"} {
			found, gerr := filepath.Glob(place)
			err = errors.Join(err, gerr)
			left = append(left, found...)
		}
		return err == nil && !strings.Contains(pods, "pod/") && len(left) == 0, fmt.Sprint(pods, left)
	})
}

// TestRun: single containers, as docker's users know them.
func TestRun(t *testing.T) {
	c := start(t, "run")
	c.importBusybox()

	t.Run("streams and codes", func(t *testing.T) {
		for _, tc := range []struct {
			name, in string
			args     []string
			out, err string // the latter is contained
			code     int
		}{
			{"output", "", []string{"run", "--rm", "busybox:1", "echo", "hello"}, "hello\n", "", 0},
			{"code", "", []string{"run", "--rm", "busybox:1", "sh", "-c", "echo out; echo err >&2; exit 7"}, "out\n", "err\n", 7},
			{"killed", "", []string{"run", "--rm", "busybox:1", "sh", "-c", "kill -9 $$"}, "", "", 0}, // the first process of a namespace is not killed from within
			{"input", "x\n", []string{"run", "-i", "--rm", "busybox:1", "cat"}, "x\n", "", 0},
			{"no input", "x\n", []string{"run", "--rm", "busybox:1", "cat"}, "", "", 0},
			{"environment", "", []string{"run", "--rm", "-e", "A=$(B) $$", "-w", "/etc", "busybox:1", "sh", "-c", "echo \"$A\"; echo '$(A)'; exec head -n1 passwd"}, "$(B) $$\n$(A)\nroot:x:0:0:root:/:/bin/sh\n", "", 0},
			{"nothing hidden", "", []string{"run", "--rm", "--security-opt", "systempaths=unconfined", "--cap-add", "NET_ADMIN", "busybox:1", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward && echo writable"}, "writable\n", "", 0},
			{"not there", "", []string{"run", "--rm", "busybox:1", "nonesuch"}, "", "not found", 127},
			{"no program", "", []string{"run", "--rm", "busybox:1", "/etc/passwd"}, "", "permission denied", 126},
			{"no image", "", []string{"run", "--rm", "--pull", "never", "nonesuch:1"}, "", "ErrImageNeverPull", 125},
			{"bad flag", "", []string{"run", "--rm", "--restart", "often", "busybox:1"}, "", "--restart \"often\"", 125},
		} {
			out, errOut, code := c.docker(strings.NewReader(tc.in), tc.args...)
			if out != tc.out || !strings.Contains(errOut, tc.err) || code != tc.code {
				t.Errorf("%s: %q, %q, code %d; want %q, %q, code %d", tc.name, out, errOut, code, tc.out, tc.err, tc.code)
			}
		}
		big := bytes.Repeat([]byte("0123456789abcde\n"), 1<<20) // 16 MiB: more than logs keep in a file
		if out, errOut, code := c.docker(bytes.NewReader(big), "run", "-i", "--rm", "busybox:1", "cat"); out != string(big) || code != 0 {
			t.Errorf("cat of %d bytes: %d came back, code %d, %s", len(big), len(out), code, errOut)
		}
		c.noneLeft()
	})

	t.Run("terminal", func(t *testing.T) {
		s := c.skiffOnTerminal(33, 77, "run", "-it", "--name", "shell", "busybox:1", "sh", "-c", `stty size; while read l; do echo "line $l $(stty size)"; done`)
		s.says("33 77")
		s.resize(44, 88)
		// The size follows in its own time.
		c.eventually("the size follows", func() (bool, string) {
			s.types("one\r")
			s.says("line one")
			return strings.Contains(s.text(), "44 88"), s.text()
		})
		s.types("\x10\x11")
		s.says("skiff attach shell")
		if code := s.exits(); code != 0 {
			t.Errorf("detached: code %d", code)
		}
		if st := c.must("ps", "--format", "{{.Names}} {{.State}}"); st != "shell running" {
			t.Errorf("after it was left: %q", st)
		}
		s = c.skiffOnTerminal(20, 60, "attach", "shell")
		s.types("two\r")
		s.says("line two")
		s.types("\x04") // ^D ends the shell
		if code := s.exits(); code != 0 {
			t.Errorf("attach: code %d", code)
		}
		c.must("rm", "shell")
		c.noneLeft()
	})

	t.Run("life", func(t *testing.T) {
		c := c.of(t)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/index.html", []byte("from the host\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if out := c.must("run", "-d", "--name", "web", "--restart", "always", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "-v", dir+":/www", "-v", "data:/data", "--stop-timeout", "1", "busybox:1",
			"sh", "-c", "echo up; echo from the container > /www/made; echo kept >> /data/file; exec httpd -f -p 80 -h /www"); out != "web" {
			t.Errorf("run -d says %q", out)
		}
		get := func(path string) string {
			t.Helper()
			var body string
			c.eventually("the port answers", func() (bool, string) {
				resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(fmt.Sprintf("http://127.0.0.1:%d/%s", port, path))
				if err != nil {
					return false, err.Error()
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				body = string(b)
				return err == nil && resp.StatusCode == 200, body
			})
			return body
		}
		if got := get("index.html"); got != "from the host\n" {
			t.Errorf("the published port has %q", got)
		}
		if b, err := os.ReadFile(dir + "/made"); err != nil || string(b) != "from the container\n" {
			t.Errorf("on the host: %q, %v", b, err)
		}
		if out := c.must("logs", "web"); out != "up" {
			t.Errorf("logs: %q", out)
		}
		if out := c.must("port", "web"); out != fmt.Sprintf("80/tcp -> 127.0.0.1:%d", port) {
			t.Errorf("port: %q", out)
		}
		if out, _, code := c.docker(strings.NewReader("in"), "exec", "-i", "-e", "A=1", "-w", "/etc", "web", "sh", "-c", "cat; echo $A; [ -f passwd ]; exit 3"); out != "in1\n" || code != 3 {
			t.Errorf("exec: %q, code %d", out, code)
		}
		if _, errOut, code := c.docker(nil, "run", "-d", "--name", "web", "busybox:1"); code != 125 || !strings.Contains(errOut, "taken") {
			t.Errorf("a second of the name: %q, code %d", errOut, code)
		}
		if _, errOut, code := c.docker(nil, "rm", "web"); code != 1 || !strings.Contains(errOut, "is running") {
			t.Errorf("rm of one that runs: %q, code %d", errOut, code)
		}
		c.must("stop", "web")
		if out := c.must("ps", "-q"); out != "" {
			t.Errorf("after stop there run %q", out)
		}
		if out := c.must("ps", "-a", "--format", "{{.Names}} {{.Status}}"); !strings.HasPrefix(out, "web Exited (137) ") {
			t.Errorf("after stop: %q", out)
		}
		if out := c.must("logs", "web"); out != "up" {
			t.Errorf("logs after stop: %q", out)
		}
		c.must("start", "web")
		if got := get("index.html"); got != "from the host\n" {
			t.Errorf("after start the port has %q", got)
		}
		if out := c.must("exec", "web", "cat", "/data/file"); out != "kept\nkept" {
			t.Errorf("the volume has %q", out)
		}
		// It is restarted when it ends by itself.
		c.must("kill", "-s", "KILL", "web")
		c.eventually("it is restarted", func() (bool, string) {
			out := c.kubectl("get", "pod", "web", "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running}")
			return strings.HasPrefix(out, "1 {"), out
		})
		if got := get("index.html"); got != "from the host\n" {
			t.Errorf("after a restart the port has %q", got)
		}

		// Whatever happens to skiff, containers are there.
		c.kill9()
		if _, errOut, code := c.docker(nil, "ps"); code != 1 || !strings.Contains(errOut, "skiff up") {
			t.Errorf("ps while skiff is down: %q, code %d", errOut, code)
		}
		c.up()
		if out := c.must("ps", "--format", "{{.Names}} {{.State}}"); out != "web running" {
			t.Errorf("after skiff came back: %q", out)
		}
		c.must("rm", "-f", "web")
		c.kubectl("delete", "pvc", "data")
		c.noneLeft()
	})

	t.Run("what it wrote", func(t *testing.T) {
		c := c.of(t)
		// A container adds a letter whenever it starts.
		run := func() {
			c.must("run", "-d", "--name", "keeps", "--restart", "always", "--stop-timeout", "0", "busybox:1", "sh", "-c", "echo $(cat /kept 2>/dev/null)x > /kept; exec sleep 1000")
		}
		has := func(after, want string) {
			t.Helper()
			c.eventually("after "+after+" it has "+want, func() (bool, string) {
				out, errOut, _ := c.docker(nil, "exec", "keeps", "cat", "/kept")
				return out == want+"\n", out + errOut
			})
		}
		// reboot is a restart of the machine, as far as skiff can tell.
		reboot := func() {
			t.Helper()
			c.kill9()
			inst, err := host.New(c.name, c.data)
			if err == nil {
				err = runtime.Reset(t.Context(), inst)
			}
			if err != nil {
				t.Fatal(err)
			}
			c.up()
		}
		run()
		has("its first start", "x")
		c.must("kill", "keeps")
		has("a restart in its pod", "xx")
		c.must("restart", "keeps")
		has("restart", "xxx")
		c.must("stop", "keeps")
		c.kill9()
		c.up()
		c.must("start", "keeps")
		has("stop, kill -9 of skiff, start", "xxxx")
		c.kill9()
		c.up()
		has("kill -9 of skiff", "xxxx")
		reboot()
		has("a reboot", "xxxxx")
		c.must("stop", "keeps")
		reboot()
		if out := c.must("ps", "-a", "--format", "{{.Names}} {{.Status}}"); !strings.HasPrefix(out, "keeps Exited (137) ") {
			t.Errorf("stopped, after a reboot: %q", out)
		}
		c.must("start", "keeps")
		has("stop, a reboot, start", "xxxxxx")
		if out, err := c.skiff("down"); err != nil {
			t.Fatalf("down: %v\n%s", err, out)
		}
		c.up()
		has("down and up", "xxxxxxx")

		// Another pod does not get at it by asking for it.
		_, id, _ := strings.Cut(c.kubectl("get", "pod", "keeps", "-o", "jsonpath={.status.containerStatuses[0].containerID}"), "://")
		c.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: thief, labels: {run.skiff.io/name: thief}, annotations: {run.skiff.io/rootfs: %s}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: thief, image: "busybox:1", imagePullPolicy: Never, command: [cat, /kept]}]
`, id))
		c.eventually("the thief is refused", func() (bool, string) {
			out := c.kubectl("get", "pod", "thief", "-o", "jsonpath={.status.containerStatuses[0].state.waiting}")
			return strings.Contains(out, "CreateContainerError") && strings.Contains(out, "belongs to another pod"), out
		})
		c.kubectl("delete", "pod", "thief")

		// What is removed is removed: another container of the name is another.
		c.kubectl("delete", "pod", "keeps")
		run()
		has("it was removed and made anew", "x")
		c.must("rm", "-f", "keeps")
		c.noneLeft()
	})

	t.Run("exec as others", func(t *testing.T) {
		c := c.of(t)
		c.must("run", "-d", "--name", "as", "-u", "1000", "-e", "KEPT=yes", "--stop-timeout", "0", "busybox:1", "sleep", "1000")
		for _, tc := range []struct {
			in   string
			args []string
			out  string
			err  string // is contained
			code int
		}{
			{"", []string{"as", "id", "-u"}, "1000\n", "", 0},
			{"", []string{"-u", "root", "as", "sh", "-c", "id -u; id -g; echo $KEPT"}, "0\n0\nyes\n", "", 0},
			{"", []string{"-u", "web", "as", "sh", "-c", "id -u; id -g"}, "1000\n1000\n", "", 0},
			{"", []string{"--user", "12:34", "as", "sh", "-c", "id -u; id -g; exit 5"}, "12\n34\n", "", 5},
			{"x\n", []string{"-i", "-u", "0", "as", "cat"}, "x\n", "", 0},
			{"", []string{"-u", "0", "-w", "/etc", "-e", "A=b c", "as", "/bin/busybox", "sh", "-c", "pwd; echo $A >&2"}, "/etc\n", "b c\n", 0},
			{"", []string{"-w", "/bin", "-e", "KEPT=no", "as", "env"}, "", "", -1}, // looked at below
			{"", []string{"-u", "nobody", "as", "id"}, "", "unable to find user nobody: no matching entries in passwd file", 1},
			{"", []string{"-u", "0:nogroup", "as", "id"}, "", "unable to find group nogroup", 1},
			{"", []string{"-u", "0", "as", "nonesuch"}, "", "not found", 1},
			{"", []string{"-w", "etc", "as", "id"}, "", `--workdir "etc": must be an absolute path`, 1},
		} {
			out, errOut, code := c.docker(strings.NewReader(tc.in), append([]string{"exec"}, tc.args...)...)
			if tc.code < 0 {
				if code != 0 || !strings.Contains(out, "KEPT=no\n") || strings.Contains(out, "KEPT=yes") {
					t.Errorf("environment: %q, %q, code %d", out, errOut, code)
				}
				continue
			}
			if out != tc.out || !strings.Contains(errOut, tc.err) || code != tc.code {
				t.Errorf("exec %q: %q, %q, code %d; want %q, %q, code %d", tc.args, out, errOut, code, tc.out, tc.err, tc.code)
			}
		}
		c.must("exec", "-d", "-u", "0", "as", "sh", "-c", "id -u > /tmp/left; sleep 1000")
		c.eventually("what was left there runs", func() (bool, string) {
			out := c.must("exec", "as", "sh", "-c", "cat /tmp/left; /bin/busybox ps")
			return strings.HasPrefix(out, "0\n") && strings.Contains(out, "sleep 1000"), out
		})
		if _, errOut, code := c.docker(nil, "exec", "-d", "as", "nonesuch"); code != 1 || !strings.Contains(errOut, "not found") {
			t.Errorf("exec -d of nothing: %q, code %d", errOut, code)
		}
		s := c.skiffOnTerminal(31, 71, "exec", "-it", "-u", "root", "as", "sh", "-c", "stty size; id -u; read x; echo got $x; exit 6")
		s.says("31 71")
		s.types("word\r")
		s.says("got word")
		if code := s.exits(); code != 6 {
			t.Errorf("exec on a terminal: code %d", code)
		}
		c.must("rm", "-f", "as")
		c.noneLeft()
	})

	t.Run("no network", func(t *testing.T) {
		c := c.of(t)
		out := c.must("run", "--rm", "--network", "none", "--name", "alone", "busybox:1", "sh", "-c", "cat /proc/net/dev | /bin/busybox tail -n +3 | /bin/busybox cut -d: -f1; echo reached > /tmp/x; httpd -p 127.0.0.1:80 -h /tmp; wget -q -O - http://127.0.0.1/x; /bin/busybox grep -c localhost /etc/hosts")
		if f := strings.Fields(out); len(f) != 3 || f[0] != "lo" || f[1] != "reached" || f[2] == "0" {
			t.Errorf("it has %q", out)
		}
		c.must("run", "-d", "--network", "none", "--name", "alone", "--stop-timeout", "0", "busybox:1", "sleep", "1000")
		if out := c.kubectl("get", "pod", "alone", "-o", "jsonpath={.status.phase} {.status.podIP}{.status.podIPs}"); out != "Running " {
			t.Errorf("the pod is %q", out)
		}
		c.kill9()
		c.up()
		if out := c.must("exec", "alone", "cat", "/proc/net/route"); strings.Count(out, "\n") != 0 {
			t.Errorf("routes: %q", out)
		}
		if out := c.kubectl("get", "pod", "alone", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); out != "0" {
			t.Errorf("restarts after skiff came back: %q", out)
		}
		c.must("rm", "-f", "alone")
		c.noneLeft()
	})

	t.Run("publish all", func(t *testing.T) {
		c := c.of(t)
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/Dockerfile", []byte("FROM busybox:1\nEXPOSE 80 53/udp\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		c.must("build", "-q", "-t", "exposes:1", dir)
		c.must("run", "-d", "-P", "--expose", "8081", "-p", "127.0.0.1::9000", "--name", "open", "--stop-timeout", "0", "exposes:1", "sh", "-c", "echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp")
		ports := map[string]string{}
		for l := range strings.Lines(c.must("port", "open") + "\n") {
			to, host, _ := strings.Cut(strings.TrimSpace(l), " -> ")
			ports[to] = host
		}
		if len(ports) != 4 || !strings.HasPrefix(ports["53/udp"], "0.0.0.0:") || !strings.HasPrefix(ports["8081/tcp"], "0.0.0.0:") || !strings.HasPrefix(ports["9000/tcp"], "127.0.0.1:") {
			t.Errorf("ports: %v", ports)
		}
		_, port, _ := strings.Cut(ports["80/tcp"], ":")
		c.eventually("the port answers", func() (bool, string) {
			resp, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://127.0.0.1:" + port)
			if err != nil {
				return false, err.Error()
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return err == nil && string(b) == "hello\n", string(b)
		})
		if out := c.must("ps", "--format", "{{.Ports}}"); !strings.Contains(out, "0.0.0.0:"+port+"->80/tcp") {
			t.Errorf("ps has the ports %q", out)
		}
		c.must("rm", "-f", "open")
		c.noneLeft()
	})

	t.Run("a limit of restarts", func(t *testing.T) {
		c := c.of(t)
		c.must("run", "-d", "--restart", "on-failure:1", "--name", "fails", "busybox:1", "sh", "-c", "echo try; exit 3")
		if out := c.must("wait", "fails"); out != "3" {
			t.Errorf("wait: %q", out)
		}
		if out := c.kubectl("get", "pod", "fails", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount}"); out != "Failed 1" {
			t.Errorf("the pod is %q", out)
		}
		if out := c.must("ps", "-a", "--format", "{{.Status}}"); !strings.HasPrefix(out, "Exited (3) ") {
			t.Errorf("status: %q", out)
		}
		c.must("rm", "fails")
		c.noneLeft()
	})

	t.Run("wait and stop", func(t *testing.T) {
		c := c.of(t)
		c.must("run", "-d", "--name", "job", "busybox:1", "sh", "-c", "trap 'exit 4' TERM; while :; do sleep 0.1; done")
		w := c.command("wait", "job")
		var out bytes.Buffer
		w.Stdout = &out
		if err := w.Start(); err != nil {
			t.Fatal(err)
		}
		c.must("stop", "job")
		if err := w.Wait(); err != nil || out.String() != "4\n" {
			t.Errorf("wait: %q, %v", out.String(), err)
		}
		if out := c.must("ps", "-a", "--format", "{{.Status}}"); !strings.HasPrefix(out, "Exited (4) ") {
			t.Errorf("status: %q", out)
		}
		c.must("rm", "job")
		c.noneLeft()
	})

	t.Run("signals", func(t *testing.T) {
		c := c.of(t)
		cmd, out := c.saying("ready", "run", "--rm", "--name", "sig", "busybox:1", "sh", "-c", "trap 'echo usr; exit 9' USR1; echo ready; while :; do sleep 0.1; done")
		if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 9 || out.String() != "ready\nusr\n" {
			t.Errorf("a signal: %q, code %d", out.String(), code)
		}
		c.noneLeft()
	})

	t.Run("the client is killed", func(t *testing.T) {
		c := c.of(t)
		dir := t.TempDir()
		cmd, _ := c.saying("ready", "run", "--rm", "--name", "left", "-v", dir+":/d", "busybox:1", "sh", "-c", "echo ready; while [ ! -e /d/go ]; do sleep 0.1; done; exit 3")
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if out := c.must("ps", "--format", "{{.Names}} {{.State}}"); out != "left running" {
			t.Errorf("without its client: %q", out)
		}
		if err := os.WriteFile(dir+"/go", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		c.noneLeft() // although nobody waits for its end
	})

	t.Run("skiff is killed", func(t *testing.T) {
		c := c.of(t)
		dir := t.TempDir()
		cmd, out := c.saying("first", "run", "--rm", "--name", "stay", "-v", dir+":/d", "busybox:1", "sh", "-c", "echo first; while [ ! -e /d/go ]; do sleep 0.1; done; echo second; exit 5")
		c.kill9()
		c.up()
		c.eventually("the client is attached again", func() (bool, string) {
			return strings.Contains(out.String(), "attaching again"), out.String()
		})
		if err := os.WriteFile(dir+"/go", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 5 {
			t.Errorf("the end of a container that outlived skiff: %q, code %d", out.String(), code)
		}
		c.noneLeft()
	})

	t.Run("completion", func(t *testing.T) {
		c := c.of(t)
		c.must("run", "-d", "--name", "named", "--stop-timeout", "0", "busybox:1", "sleep", "1000")
		for args, want := range map[string]string{"stop na": "named", "run busy": "busybox:1", "image rm docker.io/library/b": "docker.io/library/busybox:1", "ps --name ": c.name} {
			out := c.must(append([]string{"__complete"}, strings.Split(args, " ")...)...)
			if !strings.Contains("\n"+out, "\n"+want) {
				t.Errorf("completion of %q: %q", args, out)
			}
		}
		for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
			out, err := exec.Command(c.bin, "completion", shell).Output()
			if err != nil || !strings.Contains(string(out), "__complete") {
				t.Errorf("completion %s: %d bytes, %v", shell, len(out), err)
			}
		}
		c.must("rm", "-f", "named")
		c.noneLeft()
	})
}

// of is the same cluster for another test.
func (c *cluster) of(t *testing.T) *cluster {
	d := *c
	d.t = t
	return &d
}
