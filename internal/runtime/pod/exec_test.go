package pod_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"skiff/internal/runtime/keeper"
	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/runtimetest"
	"skiff/internal/runtime/startspec"
)

var devpts = specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}}

func (r *rig) exec(container, id string, p any) (string, string, pod.Process) {
	r.t.Helper()
	file := filepath.Join(r.dir, id+".json")
	if err := startspec.Write(file, p); err != nil {
		r.t.Fatal(err)
	}
	or, ow, _ := os.Pipe()
	er, ew, _ := os.Pipe()
	null, _ := os.Open(os.DevNull)
	defer null.Close()
	_, err := r.c.Exec(r.t.Context(), pod.Exec{ID: id, Container: container, Starter: r.set.Start, Root: filepath.Join(r.dir, "state"), SpecFile: file, Files: []*os.File{null, ow, ew}})
	ow.Close()
	ew.Close()
	if err != nil {
		r.t.Fatal(err)
	}
	out, _ := io.ReadAll(or)
	errOut, _ := io.ReadAll(er)
	or.Close()
	er.Close()
	return string(out), string(errOut), r.exit(id)
}

// A container whose starter kept its filter as rules, as those of the first
// release did: what is added to it is filtered all the same.
func TestExecFiltersByRules(t *testing.T) {
	r := newRig(t, pod.Options{})
	p, _ := mustStart(t)(r.start(func(s *startspec.Spec, _ *pod.Start) { s.DefaultSeccomp = true }, "sleep", "1000"))
	state, err := os.ReadFile(filepath.Join(r.dir, "state", p.ID, "state.json"))
	if err != nil || !strings.Contains(string(state), "io_pgetevents") || strings.Contains(string(state), `"program"`) {
		t.Fatalf("the state has no rules: %v", err)
	}
	out, _, _ := r.exec(p.ID, "e1", specs.Process{Args: []string{"grep", "Seccomp:", "/proc/self/status"}, Cwd: "/", Env: []string{"PATH=/bin"}})
	if out != "Seccomp:\t2\n" {
		t.Errorf("a process added has %q", out)
	}
}

func TestExec(t *testing.T) {
	r := newRig(t, pod.Options{})
	p, _ := mustStart(t)(r.start(nil, "sleep", "1000"))
	start := time.Now()
	out, errOut, e := r.exec(p.ID, "e1", specs.Process{
		Args: []string{"sh", "-c", "id; ls /proc/self/fd | wc -l; echo oops >&2; exit 5"}, Cwd: "/", Env: []string{"PATH=/bin"},
		User: specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{2002}},
	})
	t.Logf("exec took %v", time.Since(start))
	if want := "uid=1000(app) gid=1001(apps) groups=2002(extra)\n4\n"; out != want || errOut != "oops\n" || e.ExitCode != 5 {
		t.Errorf("out %q, err %q, %+v; want %q", out, errOut, e, want)
	}
	for i, tc := range []struct {
		as   startspec.User
		want string
	}{
		{startspec.User{User: "app"}, "uid=1000(app) gid=1001(apps) groups=1001(apps),2002(extra)\n"},
		{startspec.User{User: "1000"}, "uid=1000(app) gid=1001(apps) groups=1001(apps),2002(extra)\n"},
		{startspec.User{User: "app", Group: "nogroup"}, "uid=1000(app) gid=65534(nogroup) groups=2002(extra),65534(nogroup)\n"},
		{startspec.User{User: "root"}, "uid=0(root) gid=0(root) groups=0(root)\n"},
	} {
		out, errOut, e := r.exec(p.ID, fmt.Sprint("as", i), startspec.Exec{
			Process: specs.Process{Args: []string{"id"}, Cwd: "/", Env: []string{"PATH=/bin"}, User: specs.User{UID: 7}}, As: &tc.as,
		})
		if out != tc.want || e.ExitCode != 0 {
			t.Errorf("as %+v: out %q, err %q, %+v; want %q", tc.as, out, errOut, e, tc.want)
		}
	}
	l, err := r.c.List(t.Context())
	if err != nil || len(l) != 1 {
		t.Errorf("list = %+v, %v: the ended exec is still there", l, err)
	}
}

// Everything goes on when the client dies in the middle of it, and the next one
// finds all.
func TestClientDies(t *testing.T) {
	r := newRig(t, pod.Options{})
	p, log := mustStart(t)(r.start(nil, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; usleep 30000; done; exit 9"))
	r.c.Close()
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err := pod.ReadExit(r.dir, p.ID); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no record")
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.connect()
	l, err := r.c.List(t.Context())
	if err != nil || len(l) != 1 || l[0].ExitCode != 9 || l[0].State != pod.Exited {
		t.Errorf("list = %+v, %v", l, err)
	}
	if got := content(t, log, "stdout"); got != "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n" {
		t.Errorf("log = %q", got)
	}
}

func TestMemory(t *testing.T) {
	r := newRig(t, pod.Options{Net: true, IPC: true, UTS: true})
	p, log := mustStart(t)(r.start(nil, "sh", "-c", "seq 1 20000; printf partial; sleep 1000"))
	// Busy with output it may use more; idle it gives that back.
	private := func() (kib int) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", r.info.PID))
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); f[0] == "Anonymous:" {
				fmt.Sscan(f[1], &kib)
			}
		}
		return kib
	}
	deadline := time.Now().Add(20 * time.Second)
	for !strings.HasSuffix(content(t, log, "stdout"), "\n20000\n") || private() > 100 {
		if time.Now().After(deadline) {
			t.Fatalf("%d KiB private, at most 100 allowed", private())
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("private memory: %d KiB", private())
	if err := r.c.Signal(t.Context(), p.ID, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	r.exit(p.ID)
}

// A listener outlives its process: what connects meanwhile waits and is served.
func TestKeeper(t *testing.T) {
	set := runtimetest.Programs(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40)) // longer than a socket address
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	k, err := keeper.Open(ctx, set.Pod, dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tf, _ := l.(*net.TCPListener).File()
	uf, _ := u.(*net.UDPConn).File()
	for name, f := range map[string]*os.File{"api": tf, "dns": uf} {
		if err := k.Put(ctx, name, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	k.Close()
	l.Close()
	u.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("refused while nobody serves: %v", err)
	}
	defer c.Close()
	fmt.Fprint(c, "hi")
	q, _ := net.Dial("udp", u.LocalAddr().String())
	defer q.Close()
	fmt.Fprint(q, "query")

	if k, err = keeper.Open(ctx, set.Pod, dir); err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	names, err := k.Names(ctx)
	if err != nil || len(names) != 2 {
		t.Errorf("names = %v, %v", names, err)
	}
	f, err := k.Get(ctx, "api")
	if err != nil {
		t.Fatal(err)
	}
	l2, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	s, err := l2.Accept()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, _ := s.Read(buf); string(buf[:n]) != "hi" {
		t.Errorf("read %q", buf[:n])
	}
	s.Close()
	l2.Close()
	f, err = k.Get(ctx, "dns")
	if err != nil {
		t.Fatal(err)
	}
	u2, err := net.FilePacketConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if n, _, _ := u2.ReadFrom(buf); string(buf[:n]) != "query" {
		t.Errorf("read %q", buf[:n])
	}
	u2.Close()
	if _, err := k.Get(ctx, "nothing"); !os.IsNotExist(err) && !strings.Contains(err.Error(), "file does not exist") {
		t.Errorf("get of nothing = %v", err)
	}
	if err := k.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}
