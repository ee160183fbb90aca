package pod_test

import (
	"bytes"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skiff/internal/runtime/pod"
)

// Whatever comes over the socket, the pod goes on.
func TestGarbage(t *testing.T) {
	r := newRig(t, pod.Options{})
	_, log := mustStart(t)(r.start(nil, "sh", "-c", "read l; echo alive"))
	dial := func() *net.UnixConn {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: filepath.Join(r.dir, "pod.sock"), Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	many := make([]int, 20)
	for i := range many {
		many[i] = int(null.Fd())
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	packets := [][]byte{
		{0}, []byte("start"), []byte("start\x00id=\x00"), []byte("start\x00id=../../x\x00starter=/bin/true\x00"),
		[]byte("start\x00id=x\x00starter=relative\x00"), []byte("start\x00id=y\x00starter=/nonexistent\x00log=/nonexistent/log\x00"),
		[]byte("exec\x00id=z\x00starter=/nonexistent\x00tty=1\x00"), []byte("exec\x00id=c1\x00starter=/x\x00"),
		[]byte("attach\x00id=c1\x00out=1\x00err=1\x00in=1\x00"), []byte("signal\x00id=c1\x00sig=99999\x00"),
		[]byte("signal\x00id=c1\x00sig=nonsense" + strings.Repeat("x", 5000)), []byte("forget\x00id=c1\x00"),
		[]byte("nonsense\x00id=c1\x00seq=" + strings.Repeat("9", 100) + "\x00"), bytes.Repeat([]byte("a"), 40000),
		[]byte("start\x00seq=1\x00id=" + strings.Repeat("i", 1000) + "\x00starter=/x\x00"),
	}
	for range 200 {
		packets = append(packets, random(rnd.IntN(300)+1))
	}
	for i, b := range packets {
		c := dial()
		var oob []byte
		if i%3 == 0 {
			oob = unix.UnixRights(many[:1+i%20]...)
		}
		_, _, _ = c.WriteMsgUnix(b, oob, nil) // refused or not, all the same
		if i%2 == 0 {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			_, _ = c.Read(make([]byte, 4096))
		}
		c.Close()
	}
	info, err := r.c.Hello(t.Context())
	if err != nil || info.PID != r.info.PID {
		t.Fatalf("hello = %+v, %v", info, err)
	}
	fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(info.PID), "fd"))
	if err != nil || len(fds) > 20 {
		t.Errorf("%d descriptors are open: %v", len(fds), err)
	}
	l, err := r.c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range l {
		if p.ID == "c1" && p.State != pod.Exited && p.State != pod.Running {
			t.Errorf("the container is %+v", p)
		}
	}
	if e := r.exit("c1"); e.ExitCode != 0 || content(t, log, "stdout") != "alive\n" {
		t.Errorf("exit = %+v; log %q, %q", e, content(t, log, "stdout"), content(t, log, "stderr"))
	}
}
