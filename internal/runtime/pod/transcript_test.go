package pod_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/pod"
	"skiff/internal/runtime/runtimetest"
)

var update = flag.Bool("update", false, "write the transcript anew: only while no release speaks this protocol")

// The present protocol, as skiff and its helper speak it. A pod's helper outlives
// two releases of skiff: so this file stays as it is when the next protocol gets
// its own.
const transcript = "testdata/protocol-1.txt"

const starterScript = `#!/bin/sh
case $4 in
*/bad) echo "no such program" >&3; exit 1 ;;
# Not before the starter is gone, whose child it is until then.
*/short) sh -c 'while kill -0 $0; do :; done 2>/dev/null; echo out; exit 4' $$ </dev/null 3>&- & ;;
*) sleep 1000 </dev/null 3>&- & ;;
esac
echo "pid $!" >&3
`

// conversation is all that a client asks of a helper.
func conversation(t *testing.T, dir, starter string, c *pod.Client, events <-chan pod.Process) (said []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	note := func(v any, err error) {
		errno := syscall.Errno(0)
		errors.As(err, &errno)
		said = append(said, fmt.Sprintf("%+v errno %d", v, int(errno)))
	}
	event := func() {
		t.Helper()
		select {
		case p := <-events:
			note(p, nil)
		case <-ctx.Done():
			t.Fatal("no event came")
		}
	}
	start := func(id, bundle string) {
		t.Helper()
		p, err := c.Start(ctx, pod.Start{ID: id, Starter: starter, Root: dir + "/state", Bundle: dir + "/" + bundle, LogPath: dir + "/" + id + ".log", Stdin: true, StdinOnce: true, OOMFile: dir + "/oom", ProcsFile: dir + "/procs"})
		note(p, err)
		event()
	}
	info, err := c.Hello(ctx)
	note(info, err)
	note(nil, c.Subscribe(ctx))
	start("one", "long")
	_, err = c.Start(ctx, pod.Start{ID: "one", Starter: starter})
	note(nil, err)
	list, err := c.List(ctx)
	note(list, err)
	or, ow, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer or.Close()
	in, err := c.Attach(ctx, "one", true, ow, nil)
	note(in != nil, err)
	ow.Close()
	if in != nil {
		in.Close()
	}
	note(nil, c.Reopen(ctx, "one"))
	note(nil, c.CloseStdin(ctx, "one"))
	note(nil, c.Forget(ctx, "one"))
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := c.Exec(ctx, pod.Exec{ID: "more", Container: "one", Starter: starter, Root: dir + "/state", SpecFile: dir + "/short", Files: []*os.File{null, null, null}})
	note(p, err)
	event()
	event()
	note(nil, c.Signal(ctx, "nobody", syscall.SIGTERM, false))
	note(nil, c.Signal(ctx, "one", syscall.SIGTERM, true))
	event()
	note(nil, c.Signal(ctx, "one", syscall.SIGTERM, false))
	note(nil, c.Forget(ctx, "one"))
	start("two", "bad")
	start("three", "short")
	event()
	list, err = c.List(ctx)
	note(list, err)
	note(nil, c.Shutdown(ctx))
	return said
}

// packets passes a conversation on to a helper and writes it down.
type packets struct {
	sync.Mutex
	lines []string
	mask  func(string) string
}

func (p *packets) add(mark string, b []byte, fds int) {
	fields := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	rest := slices.DeleteFunc(fields[1:], func(f string) bool { return strings.HasPrefix(f, "seq=") })
	slices.Sort(rest)
	if fds > 0 {
		rest = append(rest, fmt.Sprintf("(%d descriptors)", fds))
	}
	p.Lock()
	defer p.Unlock()
	p.lines = append(p.lines, p.mask(strings.Join(append([]string{mark, fields[0]}, rest...), "\t")))
}

func (p *packets) text() string {
	p.Lock()
	defer p.Unlock()
	return strings.Join(p.lines, "\n") + "\n"
}

// copy passes packets on with their descriptors, until either side is gone.
func (p *packets) copy(mark string, from, to *net.UnixConn) {
	buf, oob := make([]byte, 65536), make([]byte, unix.CmsgSpace(64))
	for {
		n, on, _, _, err := from.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			to.Close()
			return
		}
		var fds []int
		msgs, _ := unix.ParseSocketControlMessage(oob[:on])
		for _, m := range msgs {
			got, _ := unix.ParseUnixRights(&m)
			fds = append(fds, got...)
		}
		p.add(mark, buf[:n], len(fds))
		_, _, err = to.WriteMsgUnix(buf[:n], oob[:on], nil)
		for _, fd := range fds {
			unix.Close(fd)
		}
		if err != nil {
			from.Close()
			return
		}
	}
}

// listen serves one client at the place of a helper's socket.
func listen(t *testing.T, dir string, serve func(*net.UnixConn)) {
	t.Helper()
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "pod.sock"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := ln.AcceptUnix(); err == nil {
			defer c.Close()
			serve(c)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
}

var variable = regexp.MustCompile(`\b(pid|started|finished|nsinit)=[1-9]\d*`)

// TestTranscript holds both sides to the transcript: it fails when the client asks,
// or the helper answers, anything in another way than is written there.
func TestTranscript(t *testing.T) {
	set := runtimetest.Programs(t)
	dir, front := t.TempDir(), t.TempDir()
	starter := filepath.Join(dir, "starter")
	if err := os.WriteFile(starter, []byte(starterScript), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pod.Spawn(t.Context(), set.Pod, pod.Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	p := &packets{mask: func(l string) string {
		return variable.ReplaceAllString(strings.ReplaceAll(l, dir, "DIR"), "$1=N")
	}}
	listen(t, front, func(client *net.UnixConn) {
		helper, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(dir, "pod.sock"), Net: "unixpacket"})
		if err != nil {
			t.Error(err)
			return
		}
		defer helper.Close()
		var wg sync.WaitGroup
		wg.Go(func() { p.copy(">", client, helper) })
		p.copy("<", helper, client)
		client.Close()
		wg.Wait()
	})
	events := make(chan pod.Process, 100)
	c, err := pod.Connect(front, func(p pod.Process) { events <- p })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conversation(t, dir, starter, c, events)
	record, err := os.ReadFile(filepath.Join(dir, "three.exit"))
	if err != nil {
		t.Fatal(err)
	}
	p.add("exit record", append([]byte("three.exit\x00"), record...), 0)
	got := p.text()
	if *update {
		if err := os.WriteFile(transcript, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(transcript)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the protocol has changed. Pods of earlier releases speak it as %s has it: give what is new another name, a field or verb that they may ignore, or a version of its own.\n%s", transcript, differences(string(want), got))
	}
}

func differences(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("line %d is\n%s\ninstead of\n%s", i+1, b, a)
		}
	}
	return ""
}

// TestOlderHelper has the transcript's helper answer the present client, which
// must ask for nothing that the helper does not know, and understand all it says.
func TestOlderHelper(t *testing.T) {
	b, err := os.ReadFile(transcript)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const n = "1700000000000000001"
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	record := lines[len(lines)-1]
	lines = lines[:len(lines)-1]
	fill := func(l string) string {
		return strings.NewReplacer("DIR", dir, "pid=N", "pid=77", "started=N", "started="+n, "finished=N", "finished="+n).Replace(l)
	}
	listen(t, dir, func(client *net.UnixConn) {
		buf, oob := make([]byte, 65536), make([]byte, unix.CmsgSpace(64))
		seq := ""
		for _, l := range lines {
			fields := strings.Split(fill(l), "\t")
			mark, fields := fields[0], fields[1:]
			fds := 0
			if last := fields[len(fields)-1]; strings.HasPrefix(last, "(") {
				fmt.Sscanf(last, "(%d", &fds)
				fields = fields[:len(fields)-1]
			}
			if mark == "<" {
				var rights []byte
				if fds > 0 {
					rights = unix.UnixRights(2)
				}
				out := append([]string{fields[0], "seq=" + seq}, fields[1:]...)
				if _, _, err := client.WriteMsgUnix([]byte(strings.Join(out, "\x00")+"\x00"), rights, nil); err != nil {
					t.Errorf("%s: %v", l, err)
					return
				}
				continue
			}
			k, on, _, _, err := client.ReadMsgUnix(buf, oob)
			if err != nil || k == 0 {
				t.Errorf("the client did not ask %s: %v", l, err)
				return
			}
			msgs, _ := unix.ParseSocketControlMessage(oob[:on])
			for _, m := range msgs {
				got, _ := unix.ParseUnixRights(&m)
				for _, fd := range got {
					unix.Close(fd)
				}
			}
			asked := strings.Split(string(bytes.TrimSuffix(buf[:k], []byte{0})), "\x00")
			for _, f := range asked {
				if s, ok := strings.CutPrefix(f, "seq="); ok {
					seq = s
				}
			}
			// More fields are no harm: the helper ignores them. Fewer are.
			if asked[0] != fields[0] {
				t.Errorf("the client asks %s, a helper of that time is to be asked %s", asked[0], fields[0])
			}
			for _, f := range fields[1:] {
				if !slices.Contains(asked, f) {
					t.Errorf("%s lacks %q: %q", fields[0], f, asked)
				}
			}
		}
	})
	events := make(chan pod.Process, 100)
	c, err := pod.Connect(dir, func(p pod.Process) { events <- p })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	said := strings.Join(conversation(t, dir, dir+"/starter", c, events), "\n")
	at := time.Unix(0, 1700000000000000001)
	for _, want := range []string{
		fmt.Sprintf("{Proto:1 PID:77 NSInit:0 Started:%v}", at),
		fmt.Sprintf("{ID:one Exec:false State:running PID:77 Started:%v Finished:0001-01-01 00:00:00 +0000 UTC ExitCode:0 ", at),
		fmt.Sprintf("{ID:one Exec:false State:exited PID:77 Started:%v Finished:%v ExitCode:143 Signal:15 ", at, at),
		fmt.Sprintf("{ID:more Exec:true State:exited PID:77 Started:%v Finished:%v ExitCode:4 ", at, at),
		"Message:no such program", "errno 17", "errno 2", "errno 16", "errno 3", "errno 5", "true errno 0",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("of what the helper said is missing %q:\n%s", want, said)
		}
	}
	if err := os.WriteFile(dir+"/three.exit", []byte(strings.Join(strings.Split(fill(record), "\t")[2:], "\x00")+"\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := pod.ReadExit(dir, "three"); err != nil || p.ID != "three" || p.State != pod.Exited || p.ExitCode != 4 || !p.Finished.Equal(at) {
		t.Errorf("exit record: %+v, %v", p, err)
	}
}
