package pod_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/startspec"
)

func mustStart(t *testing.T) func(pod.Process, string, error) (pod.Process, string) {
	return func(p pod.Process, log string, err error) (pod.Process, string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return p, log
	}
}

func TestOutput(t *testing.T) {
	r := newRig(t, pod.Options{})
	t.Run("long lines are cut at 16 KiB", func(t *testing.T) {
		p, log := mustStart(t)(r.start(nil, "sh", "-c", "head -c 40000 /bin/busybox | od -An -v -tx1 | tr -d ' \\n' | head -c 40000; echo; echo end"))
		r.exit(p.ID)
		b, _ := os.ReadFile(log)
		var sizes []string
		for l := range strings.Lines(string(b)) {
			f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
			sizes = append(sizes, fmt.Sprint(f[2], len(f[3])))
		}
		if got, want := strings.Join(sizes, " "), "P16384 P16384 F7232 F3"; got != want {
			t.Errorf("records = %s, want %s", got, want)
		}
	})
	t.Run("binary", func(t *testing.T) {
		p, log := mustStart(t)(r.start(nil, "head", "-c", "300000", "/bin/busybox"))
		r.exit(p.ID)
		want, _ := os.ReadFile("/usr/bin/busybox")
		// Records keep every byte; a newline in the data ends one.
		if got := content(t, log, "stdout"); sha256.Sum256([]byte(got)) != sha256.Sum256(want[:300000]) {
			t.Errorf("content differs (%d bytes)", len(got))
		}
	})
	t.Run("flood", func(t *testing.T) {
		p, log := mustStart(t)(r.start(nil, "seq", "1", "300000"))
		if e := r.exit(p.ID); e.ExitCode != 0 {
			t.Fatalf("exit = %+v", e)
		}
		var want strings.Builder
		for i := 1; i <= 300000; i++ {
			fmt.Fprintln(&want, i)
		}
		if got := content(t, log, "stdout"); got != want.String() {
			t.Errorf("%d bytes, want %d: lines lost, doubled or reordered", len(got), want.Len())
		}
	})
	t.Run("rotation loses nothing", func(t *testing.T) {
		p, log := mustStart(t)(r.start(nil, "sh", "-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done"))
		n := 0
		for ; n < 5; n++ {
			if err := os.Rename(log, fmt.Sprint(log, ".", n)); err != nil {
				t.Fatal(err)
			}
			if err := r.c.Reopen(t.Context(), p.ID); err != nil {
				t.Fatal(err)
			}
		}
		r.exit(p.ID)
		var got strings.Builder
		for i := range n {
			got.WriteString(content(t, fmt.Sprint(log, ".", i), "stdout"))
		}
		got.WriteString(content(t, log, "stdout"))
		var want strings.Builder
		for i := 1; i <= 3000; i++ {
			fmt.Fprintln(&want, i)
		}
		if got.String() != want.String() {
			t.Errorf("got %d bytes, want %d", got.Len(), want.Len())
		}
	})
	t.Run("SIGPIPE is what programs expect", func(t *testing.T) {
		p, log := mustStart(t)(r.start(nil, "sh", "-c", "yes | head -n1; grep Sig[IB] /proc/self/status; umask"))
		r.exit(p.ID)
		got := strings.Fields(content(t, log, "stdout"))
		if len(got) == 6 {
			// Signals 32 and 33 are the C library's own: what spawns a process for
			// it may leave them ignored, and no program can tell.
			if n, err := strconv.ParseUint(got[4], 16, 64); err == nil {
				got[4] = fmt.Sprintf("%016x", n&^(1<<31|1<<32))
			}
		}
		if want := "y SigBlk: 0000000000000000 SigIgn: 0000000000000000 0022"; strings.Join(got, " ") != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("no descriptor of ours is inherited", func(t *testing.T) {
		p, log := mustStart(t)(r.start(nil, "ls", "-l", "/proc/self/fd"))
		r.exit(p.ID)
		got := content(t, log, "stdout")
		for l := range strings.Lines(got) {
			f := strings.Fields(l)
			if len(f) < 9 {
				continue // "total 0"
			}
			// 3 is the directory that ls itself reads (and has closed when it looks).
			if fd, to := f[8], f[len(f)-1]; fd > "2" && !(fd == "3" && (to == "3" || strings.HasPrefix(to, "/proc/"))) {
				t.Errorf("descriptor %s -> %s", fd, to)
			}
		}
		if !strings.Contains(got, "pipe:") {
			t.Errorf("no pipes in %s", got)
		}
	})
}

// A process that the container leaves behind holds the pipe and writes on.
func TestGrandchildHoldsPipe(t *testing.T) {
	r := newRig(t, pod.Options{PID: true})
	shared := func(s *startspec.Spec, st *pod.Start) {
		for i, ns := range s.OCI.Linux.Namespaces {
			if ns.Type == "pid" {
				s.OCI.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/pid", r.info.NSInit)
			}
		}
		st.ProcsFile = "" // nobody kills it
	}
	p, log := mustStart(t)(r.start(shared, "sh", "-c", "(while :; do echo again; usleep 20000; done) & echo first; exit 3"))
	start := time.Now()
	if e := r.exit(p.ID); e.ExitCode != 3 {
		t.Errorf("exit = %+v", e)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("exit came after %v", d)
	}
	if got := content(t, log, "stdout"); !strings.Contains(got, "first\n") {
		t.Errorf("stdout = %q", got)
	}
	// Orphans belong to the namespace's first process, which reaps them.
	p, log = mustStart(t)(r.start(shared, "sh", "-c", "for i in 1 2 3 4 5; do (setsid true &) ; done; usleep 100000; n=0; "+
		"while ps -o stat,comm | grep -q 'Z.*true' && [ $n -lt 200 ]; do n=$((n+1)); usleep 50000; done; ps -o pid,stat,comm"))
	r.exit(p.ID)
	got := content(t, log, "stdout")
	// STAT has an N where the test itself runs at a lower priority.
	if strings.Contains(got, "true") || !regexp.MustCompile(`(?m)^ *1 SN? +skiff-pause`).MatchString(got) {
		t.Errorf("processes:\n%s", got)
	}
}

func TestKillAllOfSharedPID(t *testing.T) {
	r := newRig(t, pod.Options{PID: true})
	p, _ := mustStart(t)(r.start(func(s *startspec.Spec, st *pod.Start) {
		for i, ns := range s.OCI.Linux.Namespaces {
			if ns.Type == "pid" {
				s.OCI.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/pid", r.info.NSInit)
			}
		}
		st.ProcsFile = "/sys/fs/cgroup/pids/" + r.cgroup(r.n) + "/cgroup.procs"
	}, "sh", "-c", "sleep 1000 & exit 0"))
	r.exit(p.ID)
	deadline := time.Now().Add(10 * time.Second)
	for {
		b, _ := os.ReadFile("/sys/fs/cgroup/pids/" + r.cgroup(r.n) + "/cgroup.procs")
		if len(bytes.TrimSpace(b)) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %s", b)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestAttach(t *testing.T) {
	r := newRig(t, pod.Options{})
	p, log := mustStart(t)(r.start(func(_ *startspec.Spec, st *pod.Start) { st.Stdin = true }, "sh", "-c", "while read l; do echo got $l; done; echo bye"))
	or, ow, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer or.Close()
	in, err := r.c.Attach(t.Context(), p.ID, true, ow, nil)
	ow.Close()
	if err != nil || in == nil {
		t.Fatalf("attach: %v, %v", in, err)
	}
	fmt.Fprintln(in, "one")
	buf := make([]byte, 100)
	if n, _ := or.Read(buf); string(buf[:n]) != "got one\n" {
		t.Errorf("read %q", buf[:n])
	}
	in.Close()
	if err := r.c.CloseStdin(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(or)
	if string(rest) != "bye\n" {
		t.Errorf("rest = %q", rest)
	}
	r.exit(p.ID)
	if got := content(t, log, "stdout"); got != "got one\nbye\n" {
		t.Errorf("log = %q", got)
	}
}

// A slow client gets every byte; one that is gone costs nothing.
func TestAttachSlow(t *testing.T) {
	r := newRig(t, pod.Options{})
	p, log := mustStart(t)(r.start(func(_ *startspec.Spec, st *pod.Start) { st.Stdin = true }, "sh", "-c", "read l; seq 1 100000"))
	or, ow, _ := os.Pipe()
	gr, gw, _ := os.Pipe()
	in, err := r.c.Attach(t.Context(), p.ID, true, ow, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := r.c.Attach(t.Context(), p.ID, false, gw, nil); err != nil {
		t.Fatal(err)
	}
	ow.Close()
	gw.Close()
	gr.Close()
	fmt.Fprintln(in, "go")
	time.Sleep(300 * time.Millisecond) // the slowness is what is tested
	b, _ := io.ReadAll(or)
	or.Close()
	r.exit(p.ID)
	if want := content(t, log, "stdout"); string(b) != want || !strings.HasSuffix(want, "\n100000\n") {
		t.Errorf("client got %d bytes, log has %d", len(b), len(want))
	}
}

func TestTerminal(t *testing.T) {
	r := newRig(t, pod.Options{})
	p, log := mustStart(t)(r.start(func(s *startspec.Spec, st *pod.Start) {
		st.TTY = true
		s.OCI.Process.Terminal = true
		s.OCI.Mounts = append(s.OCI.Mounts, devpts)
	}, "sh", "-c", "tty; read l; stty size; echo $l"))
	or, ow, _ := os.Pipe()
	defer or.Close()
	in, err := r.c.Attach(t.Context(), p.ID, true, ow, nil)
	ow.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := unix.IoctlSetWinsize(int(in.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "hello")
	rest, _ := io.ReadAll(or)
	r.exit(p.ID)
	if !strings.Contains(string(rest), "33 77\r\n") {
		t.Errorf("attached got %q", rest)
	}
	if got := content(t, log, "stdout"); !strings.Contains(got, "/dev/pts/0") && !strings.Contains(got, "/dev/console") || !strings.Contains(got, "hello") {
		t.Errorf("log = %q", got)
	}
}

func TestSignalAndFailedStart(t *testing.T) {
	r := newRig(t, pod.Options{})
	p, _ := mustStart(t)(r.start(nil, "sleep", "1000"))
	if err := r.c.Signal(t.Context(), p.ID, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if e := r.exit(p.ID); e.ExitCode != 137 || e.Signal != 9 {
		t.Errorf("exit = %+v", e)
	}
	if err := r.c.Signal(t.Context(), p.ID, syscall.SIGTERM, false); err == nil {
		t.Error("signal to an ended container succeeded")
	}
	_, _, err := r.start(nil, "nope")
	if err == nil || !strings.HasSuffix(err.Error(), `exec: "nope": executable file not found in $PATH`) {
		t.Errorf("start = %v", err)
	}
	e, err := pod.ReadExit(r.dir, "c2")
	if err != nil || e.State != pod.Failed || !strings.Contains(e.Message, "nope") {
		t.Errorf("record = %+v, %v", e, err)
	}
	if err := r.c.Forget(t.Context(), "c2"); err != nil {
		t.Error(err)
	}
}

// The disk is full: lines are dropped and counted, the container goes on, every
// record that is there is whole, and later ones are written again.
func TestLogDiskFull(t *testing.T) {
	r := newRig(t, pod.Options{})
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	p, log := mustStart(t)(r.start(func(_ *startspec.Spec, st *pod.Start) {
		st.LogPath = dir + "/log"
		st.Stdin = true
	}, "sh", "-c", "seq 1 20000; echo filled >&2; read l; echo after"))
	in, err := r.c.Attach(t.Context(), p.ID, true, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		l, err := r.c.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		// All that was written is in the log or counted.
		raw, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if l[0].DroppedLines > 0 && bytes.Count(raw, []byte("\n"))+int(l[0].DroppedLines) == 20001 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("dropped %d", l[0].DroppedLines)
		}
		time.Sleep(5 * time.Millisecond)
	}
	head := content(t, log, "stdout")
	if !strings.HasPrefix(head, "1\n2\n3\n") {
		t.Errorf("log starts %.40q", head)
	}
	os.Truncate(log, 0)
	fmt.Fprintln(in, "go")
	in.Close()
	if e := r.exit(p.ID); e.ExitCode != 0 {
		t.Errorf("exit = %+v", e)
	}
	if got := content(t, log, "stdout"); got != "after\n" {
		t.Errorf("log = %q", got)
	}
}
